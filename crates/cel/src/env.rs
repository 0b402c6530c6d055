//! [`Env`] declares what names mean, and compiles; [`Program`] is what comes of it.

use std::sync::Arc;

use crate::ast::ExprKind;
use crate::check::{self, Checked, Scope};
use crate::cost;
use crate::error::{CompileErrors, EvalError};
use crate::eval::{self, Evaluator};
use crate::parse;
use crate::{DeclType, Type, Value};

pub use cost::CostEstimate;

/// Declared variables, and the functions of Kubernetes.
#[derive(Clone, Debug)]
pub struct Env {
    scope: Scope,
}

impl Env {
    /// The functions and macros of Kubernetes v1.36 and no variables.
    pub fn kubernetes() -> Self {
        Env { scope: Scope { variables: Vec::new(), patch_types: false } }
    }

    /// Declares one more variable. A name may have dots, as `authorizer.requestResource` has.
    pub fn variable(mut self, name: &str, ty: Type) -> Self {
        self.scope.variables.push((name.into(), ty));
        self
    }

    /// Adds `Object{…}`, `JSONPatch{…}` and `jsonpatch.escapeKey`, for mutating policies.
    ///
    /// Upstream: apiserver/pkg/cel/mutation
    pub fn patch_types(mut self) -> Self {
        self.scope.patch_types = true;
        self
    }

    /// Parses and type checks.
    pub fn compile(&self, text: &str) -> Result<Program, CompileErrors> {
        let expr = parse::parse(text)?;
        let checked = check::check(text, expr, &self.scope)?;
        let patterns = eval::patterns(&checked);
        Ok(Program { inner: Arc::new(Inner { checked, patterns, scope: self.scope.clone() }) })
    }
}

/// A checked expression. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Program {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    checked: Checked,
    patterns: eval::Patterns,
    scope: Scope,
}

/// What came of an evaluation, and what it cost, failed or not.
#[derive(Clone, Debug)]
pub struct Evaluation<'a> {
    pub result: Result<Value<'a>, EvalError>,
    pub cost: u64,
}

impl Program {
    pub fn result_type(&self) -> &Type {
        self.inner.checked.type_of(&self.inner.checked.expr)
    }

    /// Whether the expression names this variable (`oldSelf` makes a transition rule).
    pub fn uses_variable(&self, name: &str) -> bool {
        let mut uses = false;
        self.inner.checked.expr.walk(&mut |expr| {
            uses = uses || matches!(&expr.kind, ExprKind::Ident(ident) if &**ident == name);
        });
        uses
    }

    /// What an evaluation may cost given the sizes that `root`, the type of all its variables, declares.
    pub fn estimated_cost(&self, root: Option<&DeclType>) -> CostEstimate {
        cost::estimate(&self.inner.checked, root)
    }

    /// Evaluates, and stops when it costs more than `limit`.
    pub fn eval<'a>(&self, bindings: &[(&str, Value<'a>)], limit: u64) -> Evaluation<'a> {
        let Inner { checked, patterns, scope } = &*self.inner;
        let mut evaluator = Evaluator::new(checked, scope, patterns, bindings, limit);
        let result = evaluator.eval(&checked.expr);
        Evaluation { result, cost: evaluator.meter.cost }
    }
}
