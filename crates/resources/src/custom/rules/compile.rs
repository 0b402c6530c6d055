//! One expression made ready.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/schema/cel/compilation.go compileRule

use cel::{DeclType, Env, Program, Type, maximum_cardinality};
use serde_json::Value;

use super::field_path;
use crate::get::text;

/// A rule with its programs, or why it has none.
#[derive(Debug)]
pub struct Compiled {
    pub text: String,
    pub message: String,
    pub message_expression: String,
    pub reason: String,
    /// What the rule blames, below where it stands; empty for the place itself.
    pub field_path: String,
    pub optional_old_self: bool,
    pub uses_old_self: bool,
    /// `None` for an empty rule.
    pub program: Result<Option<Program>, String>,
    pub message_program: Result<Option<Program>, String>,
    /// What the rule and its message may cost at most, for one value.
    pub max_cost: u64,
    pub message_max_cost: u64,
    /// How many values there may be in one request, when no limit is declared.
    pub max_cardinality: u64,
}

/// Makes a rule ready that stands on `schema`, which `decl` declares.
pub fn compile(rule: &Value, schema: &Value, decl: Option<&DeclType>) -> Compiled {
    let mut compiled = Compiled {
        text: text(rule, "rule").to_owned(),
        message: text(rule, "message").to_owned(),
        message_expression: text(rule, "messageExpression").to_owned(),
        reason: text(rule, "reason").to_owned(),
        field_path: field_path::parse(text(rule, "fieldPath"), schema, true)
            .map(|(path, _)| path.as_str().to_owned())
            .unwrap_or_default(),
        optional_old_self: super::optional_old_self(rule),
        uses_old_self: false,
        program: Ok(None),
        message_program: Ok(None),
        max_cost: 0,
        message_max_cost: 0,
        max_cardinality: 0,
    };
    if compiled.text.trim().is_empty() {
        return compiled;
    }
    let Some(decl) = decl else {
        compiled.program = Err("failed to convert to declType for CEL validation rules".to_owned());
        return compiled;
    };
    let own = decl.cel_type().clone();
    let old = if compiled.optional_old_self { Type::optional(own.clone()) } else { own.clone() };
    let env = Env::kubernetes().variable("self", own).variable("oldSelf", old);
    compiled.max_cardinality = maximum_cardinality(decl.min_serialized_size);
    match env.compile(&compiled.text) {
        Err(errors) => compiled.program = Err(format!("compilation failed: {errors}")),
        Ok(program) if !matches!(program.result_type(), Type::Bool) => {
            compiled.program = Err("cel expression must evaluate to a bool".to_owned());
        }
        Ok(program) => {
            compiled.uses_old_self = program.uses_variable("oldSelf");
            compiled.max_cost = program.estimated_cost(Some(decl)).max;
            compiled.program = Ok(Some(program));
            compile_message(&env, decl, &mut compiled);
        }
    }
    compiled
}

fn compile_message(env: &Env, decl: &DeclType, compiled: &mut Compiled) {
    if compiled.message_expression.is_empty() {
        return;
    }
    compiled.message_program = match env.compile(&compiled.message_expression) {
        Err(errors) => Err(format!("messageExpression compilation failed: {errors}")),
        Ok(program) if !matches!(program.result_type(), Type::String) => {
            Err("messageExpression must evaluate to a string".to_owned())
        }
        Ok(program) => {
            compiled.message_max_cost = program.estimated_cost(Some(decl)).max;
            Ok(Some(program))
        }
    };
}
