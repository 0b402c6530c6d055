//! Evaluation of the expressions of policies and webhooks about a request.
//!
//! Upstream: apiserver/pkg/admission/plugin/cel/activation.go, condition.go, composition.go;
//! plugin/webhook/matchconditions/matcher.go

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use cel::{
    AuthorizerCheck, AuthorizerDecision, Dynamic, EvalError, MATCH_CONDITIONS_COST_BUDGET, PER_CALL_LIMIT,
    Type,
};
use resources::expressions::{Compiled, Compiler, Scope};
use serde_json::{Value, json};

use crate::admission::matching::{Matched, operation};
use crate::admission::tree::{items, text};
use crate::authz::Authorizer;
use crate::seams::{AdmissionRequest, Attributes, Decision, UserInfo};

const OUT_OF_BUDGET: &str =
    "validation failed due to running out of cost budget, no further validation rules will be run";

/// An expression with its text, which messages show.
#[derive(Clone, Debug)]
pub(crate) struct Expression {
    pub text: String,
    pub compiled: Compiled,
}

impl Expression {
    pub fn new(compiler: &Compiler, text: &str, scope: Scope, types: &[Type]) -> Self {
        Expression { text: text.to_owned(), compiled: compiler.compile(text, scope, types) }
    }
}

/// Match conditions: all must hold.
#[derive(Clone, Debug, Default)]
pub(crate) struct Conditions(Vec<Expression>);

impl Conditions {
    /// The conditions of a webhook.
    pub(crate) fn of_webhook(webhook: &Value) -> Self {
        Conditions::new(&Compiler::plain(), webhook, Scope { authorizer: true, ..Scope::default() })
    }

    pub(super) fn new(compiler: &Compiler, owner: &Value, scope: Scope) -> Self {
        let condition = |condition: &Value| {
            Expression::new(compiler, text(condition, "expression"), scope, &[Type::Bool])
        };
        Conditions(items(owner, "matchConditions").iter().map(condition).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all hold. One that does not hold decides whatever is wrong with the others.
    pub(crate) fn hold(&self, input: &Input<'_>, variables: &[Variable]) -> Result<bool, String> {
        let mut wrong = Vec::new();
        let mut budget = MATCH_CONDITIONS_COST_BUDGET;
        for condition in &self.0 {
            match input.evaluate(condition, variables, &mut budget, |value| value.as_bool())? {
                Ok(Some(false)) => return Ok(false),
                Ok(_) => {}
                Err(error) => wrong.push(error),
            }
        }
        if wrong.is_empty() { Ok(true) } else { Err(crate::admission::join_errors(&wrong)) }
    }
}

/// A variable of a policy.
#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub name: String,
    pub compiled: Compiled,
}

/// What expressions about one request see. All of it is JSON; null where there is nothing.
pub(crate) struct Input<'r> {
    pub object: &'r Value,
    pub old_object: &'r Value,
    pub params: Option<&'r Value>,
    pub namespace: &'r Value,
    pub request: Value,
    /// Not given to message expressions and audit annotations.
    pub authorizer: Option<Questioner<'r>>,
}

/// The `request` variable.
///
/// Upstream: apiserver/pkg/admission/plugin/cel/condition.go CreateAdmissionRequest
pub(crate) fn request_value(request: &AdmissionRequest<'_>, matched: &Matched) -> Value {
    let kind = |gvk: &apimachinery::GroupVersionKind| json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind});
    let resource = |gvr: &apimachinery::GroupVersionResource| json!({"group": gvr.group, "version": gvr.version, "resource": gvr.resource});
    let user = request.user;
    let mut value = json!({
        "kind": kind(&matched.gvk), "resource": resource(&matched.gvr),
        "requestKind": kind(&request.gvk), "requestResource": resource(&request.gvr),
        "operation": operation(request.operation), "dryRun": request.dry_run, "options": request.options,
        "uid": "", "object": null, "oldObject": null, "userInfo": {},
    });
    let texts = [
        ("subResource", request.subresource),
        ("requestSubResource", request.subresource),
        ("name", request.name),
        ("namespace", request.namespace),
    ];
    for (field, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        value[field] = text.into();
    }
    let user_info = &mut value["userInfo"];
    for (field, text) in [("username", &user.name), ("uid", &user.uid)] {
        if !text.is_empty() {
            user_info[field] = text.as_str().into();
        }
    }
    if !user.groups.is_empty() {
        user_info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        user_info["extra"] = json!(user.extra);
    }
    value
}

/// The way from expressions to the server's authorizer, for the one who makes the request.
pub(crate) struct Questioner<'r> {
    pub authorizer: &'r Authorizer,
    pub user: &'r UserInfo,
    /// The question that `authorizer.requestResource` begins with.
    pub resource: AuthorizerCheck,
}

impl<'r> Questioner<'r> {
    pub(crate) fn new(authorizer: &'r Authorizer, request: &AdmissionRequest<'r>) -> Self {
        let resource = AuthorizerCheck {
            group: request.gvr.group.to_string(),
            resource: request.gvr.resource.to_string(),
            subresource: request.subresource.to_owned(),
            namespace: request.namespace.to_owned(),
            name: request.name.to_owned(),
            ..AuthorizerCheck::default()
        };
        Questioner { authorizer, user: request.user, resource }
    }
}

impl cel::Authorize for Questioner<'_> {
    fn authorize(&self, check: &AuthorizerCheck) -> AuthorizerDecision {
        let is_resource = check.path.is_empty();
        let attributes = Attributes {
            verb: check.verb.clone(),
            namespace: check.namespace.clone(),
            group: check.group.clone(),
            version: if is_resource { "*".to_owned() } else { String::new() },
            resource: check.resource.clone(),
            subresource: check.subresource.clone(),
            name: check.name.clone(),
            is_resource,
            path: check.path.clone(),
            field_selector: check.field_selector.clone(),
            label_selector: check.label_selector.clone(),
        };
        let account = check.service_account.as_ref().map(|(namespace, name)| UserInfo {
            name: format!("system:serviceaccount:{namespace}:{name}"),
            groups: vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")],
            ..UserInfo::default()
        });
        let decided = self.authorizer.decide(account.as_ref().unwrap_or(self.user), &attributes);
        let allowed = matches!(decided.decision, Decision::Allow { .. });
        let (Decision::Allow { reason } | Decision::Deny { reason } | Decision::NoOpinion { reason }) =
            decided.decision;
        AuthorizerDecision { allowed, reason, error: decided.error }
    }
}

/// The `variables` variable: each is evaluated when it is first asked for, once.
struct Variables<'a> {
    definitions: &'a [Variable],
    bindings: Vec<(&'static str, cel::Value<'a>)>,
    known: RefCell<HashMap<&'a str, Result<cel::Value<'a>, EvalError>>>,
    cost: Cell<u64>,
    this: Weak<Variables<'a>>,
}

impl<'a> Dynamic<'a> for Variables<'a> {
    fn field(&self, name: &str) -> Option<Result<cel::Value<'a>, EvalError>> {
        let variable = self.definitions.iter().find(|variable| variable.name == name)?;
        if let Some(known) = self.known.borrow().get(name) {
            return Some(known.clone());
        }
        let value = match &variable.compiled {
            Err(why) => Err(EvalError::new(format!("composited variable {name:?} fails to compile: {why}"))),
            Ok(program) => {
                let mut bindings = self.bindings.clone();
                if let Some(this) = self.this.upgrade() {
                    bindings.push(("variables", cel::Value::Dynamic(this)));
                }
                let evaluation = program.eval(&bindings, PER_CALL_LIMIT);
                self.cost.set(self.cost.get().saturating_add(evaluation.cost));
                let fails = |error| format!("composited variable {name:?} fails to evaluate: {error}");
                evaluation.result.map_err(|error| EvalError::new(fails(error)))
            }
        };
        self.known.borrow_mut().insert(variable.name.as_str(), value.clone());
        Some(value)
    }
}

impl Input<'_> {
    fn bindings<'a>(&'a self) -> Vec<(&'static str, cel::Value<'a>)> {
        let mut bindings = vec![
            ("object", cel::Value::json(self.object)),
            ("oldObject", cel::Value::json(self.old_object)),
            ("namespaceObject", cel::Value::json(self.namespace)),
            ("request", cel::Value::json(&self.request)),
            ("params", self.params.map_or(cel::Value::Null, cel::Value::json)),
        ];
        if let Some(questioner) = &self.authorizer {
            let resource = cel::Value::resource_check(questioner, questioner.resource.clone());
            bindings.push(("authorizer", cel::Value::authorizer(questioner)));
            bindings.push(("authorizer.requestResource", resource));
        }
        bindings
    }

    /// Evaluates one expression and reads its value. What is wrong with the expression is the inner error; when
    /// the budget is spent nothing more is to be evaluated, which is the outer one.
    pub(crate) fn evaluate<T>(
        &self,
        expression: &Expression,
        variables: &[Variable],
        budget: &mut u64,
        read: impl Fn(&cel::Value<'_>) -> T,
    ) -> Result<Result<T, String>, String> {
        let program = match &expression.compiled {
            Ok(program) => program,
            Err(why) => return Ok(Err(format!("compilation error: {why}"))),
        };
        let bindings = self.bindings();
        let lazy = Rc::new_cyclic(|this: &Weak<Variables<'_>>| Variables {
            definitions: variables,
            bindings: bindings.clone(),
            known: RefCell::default(),
            cost: Cell::new(0),
            this: this.clone(),
        });
        let mut all = bindings;
        all.push(("variables", cel::Value::Dynamic(lazy.clone())));
        let evaluation = program.eval(&all, PER_CALL_LIMIT);
        let cost = evaluation.cost.saturating_add(lazy.cost.get());
        *budget = budget.checked_sub(cost).ok_or_else(|| OUT_OF_BUDGET.to_owned())?;
        let result = match &evaluation.result {
            Ok(value) => Ok(read(value)),
            Err(error) => Err(format!("expression '{}' resulted in error: {error}", expression.text)),
        };
        Ok(result)
    }
}
