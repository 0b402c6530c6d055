//! What is wrong with a policy's expressions given the types of the built-in kinds that it is for: the policy's
//! `status.typeChecking`. Upstream's controller manager writes it a moment after the policy; here it is part of
//! the write, so that no controller has to wait for it.
//!
//! Upstream: apiserver/pkg/admission/plugin/policy/validating/typechecking.go,
//! pkg/controller/validatingadmissionpolicystatus/controller.go

use api::tables::{self, Definition};
use cel::Type;

use super::expressions::{Compiler, Scope};
use crate::prelude::*;
use crate::rules::content_changed;
use crate::{Context, table};

/// How many kinds one policy is checked for.
const MAX_KINDS: usize = 10;
/// How deep the types of fields go; what is deeper is of any type. Some kinds hold themselves.
const MAX_DEPTH: usize = 10;

pub(super) fn prepare_create(_: &Context, policy: &mut Value) {
    check(policy, 1);
}

pub(super) fn prepare_update(_: &Context, policy: &mut Value, old: &Value) {
    if content_changed(policy, old) {
        check(policy, number(old, "metadata.generation") + 1);
    }
}

fn check(policy: &mut Value, generation: i64) {
    let warnings = warnings(policy);
    set(policy, "status.observedGeneration", generation);
    set(policy, "status.typeChecking", json!({}));
    if !warnings.is_empty() {
        set(policy, "status.typeChecking.expressionWarnings", Value::Array(warnings));
    }
}

fn warnings(policy: &Value) -> Vec<Value> {
    let spec = &policy["spec"];
    let kinds = kinds(spec);
    let scope = Scope { params: has(spec, "paramKind"), authorizer: true, patches: false };
    let compilers: Vec<(String, Compiler)> = kinds
        .into_iter()
        .map(|(name, object)| {
            let mut compiler = Compiler::typed(object);
            for variable in get::list(spec, "variables") {
                // What is wrong with a variable shows where it is used.
                let _ = compiler.variable(text(variable, "name"), text(variable, "expression"), scope);
            }
            (name, compiler)
        })
        .collect();
    let mut warnings = Vec::new();
    for (validation, at) in get::items(spec, "validations", &path("spec.validations")) {
        for (field, scope) in
            [("expression", scope), ("messageExpression", Scope { authorizer: false, ..scope })]
        {
            let expression = text(validation, field);
            if expression.is_empty() {
                continue;
            }
            let wrong = compilers.iter().filter_map(|(name, compiler)| {
                let errors = compiler.check(expression, scope).err()?;
                Some(format!("{name}: {errors}\n"))
            });
            let wrong: Vec<String> = wrong.collect();
            if !wrong.is_empty() {
                warnings.push(json!({"fieldRef": at.child(field).as_str(), "warning": wrong.join("\n")}));
            }
        }
    }
    warnings
}

/// The built-in kinds that a policy's rules name outright, and their types.
fn kinds(spec: &Value) -> Vec<(String, Type)> {
    let mut kinds = Vec::new();
    for rule in get::list(spec, "matchConstraints.resourceRules") {
        let named = |field: &str| get::texts(rule, field);
        let matched = table().iter().filter(|row| {
            let gvr = row.gvr();
            named("apiGroups").contains(&&*gvr.group)
                && named("apiVersions").contains(&&*gvr.version)
                && named("resources").contains(&&*gvr.resource)
        });
        for row in matched {
            let gvk = row.gvk();
            let name = format!("{}, Kind={}", gvk.group_version(), gvk.kind);
            let definition = tables::kind(&gvk.group, &gvk.version, &gvk.kind);
            if let Some(definition) = definition.filter(|_| !kinds.iter().any(|(known, _)| *known == name)) {
                kinds.push((name, object_type(definition, 0)));
            }
        }
    }
    kinds.sort_by(|(a, _), (b, _)| a.cmp(b));
    kinds.truncate(MAX_KINDS);
    kinds
}

fn object_type(definition: &Definition, depth: usize) -> Type {
    let fields: Vec<(String, Type)> = definition
        .fields
        .iter()
        .filter_map(|field| Some((cel::escape(field.name)?, field_type(field.ty, depth + 1))))
        .collect();
    Type::object(definition.name, fields.iter().map(|(name, ty)| (name.as_str(), ty.clone())))
}

fn field_type(ty: tables::Type, depth: usize) -> Type {
    match ty {
        tables::Type::String => Type::String,
        tables::Type::Bytes => Type::Bytes,
        tables::Type::Bool => Type::Bool,
        tables::Type::Int32 | tables::Type::Int64 => Type::Int,
        tables::Type::Double => Type::Double,
        tables::Type::Time | tables::Type::MicroTime => Type::Timestamp,
        tables::Type::Strings => Type::list(Type::String),
        tables::Type::Object(id) if depth < MAX_DEPTH => object_type(id.get(), depth),
        tables::Type::List(items) => Type::list(field_type(*items, depth)),
        tables::Type::Map(values) => Type::map(Type::String, field_type(*values, depth)),
        _ => Type::Dyn,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_checked_against_the_kinds_that_rules_name() {
        let policy = |expression: &str, message: &str| {
            json!({"spec": {
                "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"],
                                     "resources": ["deployments"], "operations": ["*"]}]},
                "validations": [{"expression": expression, "messageExpression": message}]}})
        };
        assert_eq!(warnings(&policy("object.spec.replicas > 1", "")), Vec::<Value>::new());
        let found = warnings(&policy("object.spec.replicas > '1'", "'got ' + object.spec.replicas"));
        let shown: Vec<(&str, &str)> =
            found.iter().map(|warning| (text(warning, "fieldRef"), text(warning, "warning"))).collect();
        assert_eq!(shown.len(), 2, "{shown:?}");
        let (at, why) = shown[0];
        assert_eq!(at, "spec.validations[0].expression");
        assert!(why.starts_with("apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'"), "{why}");
        assert_eq!(shown[1].0, "spec.validations[0].messageExpression");
        assert!(shown[1].1.contains("'_+_' applied to '(string, int)'"), "{}", shown[1].1);
    }
}
