//! The policies that are in force: compiled once for each change of a policy, with their bindings.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use apimachinery::{GroupResource, GroupVersionKind};
use cel::Type;
use resources::expressions::{Compiler, Scope};
use serde_json::Value;

use super::expressions::{Conditions, Expression, Variable};
use super::params;
use crate::admission::matching::Matcher;
use crate::admission::tree::{at, items, text};
use crate::seams::Lookup;

const GROUP: &str = "admissionregistration.k8s.io";

/// A policy, read and compiled.
pub(super) struct Definition {
    pub name: String,
    pub matcher: Matcher,
    pub ignores_failures: bool,
    pub param_kind: Option<Result<GroupVersionKind, String>>,
    pub conditions: Conditions,
    pub variables: Vec<Variable>,
    pub validations: Vec<Validation>,
    pub audit_annotations: Vec<(String, Expression)>,
    pub mutations: Vec<Mutation>,
    pub reinvoke: bool,
}

/// One of a policy's `validations`.
pub(super) struct Validation {
    pub expression: Expression,
    pub message: String,
    pub message_expression: Option<Expression>,
    pub reason: String,
}

/// One of a policy's `mutations`.
pub(super) enum Mutation {
    Apply(Expression),
    JsonPatch(Expression),
}

/// A binding, read.
pub(super) struct Binding {
    pub name: String,
    pub matcher: Option<Matcher>,
    pub actions: Vec<String>,
    pub object: Arc<Value>,
}

/// A policy with the bindings that put it in force.
pub(super) struct Hook {
    pub policy: Arc<Definition>,
    pub bindings: Vec<Binding>,
}

impl Definition {
    fn read(policy: &Value) -> Self {
        let spec = &policy["spec"];
        let params = at(spec, "paramKind").is_some();
        let scope = Scope { params, authorizer: true, patches: false };
        let mut compiler = Compiler::composited();
        let mut variables = Vec::new();
        for variable in items(spec, "variables") {
            let name = text(variable, "name").to_owned();
            let compiled = compiler.variable(&name, text(variable, "expression"), scope);
            variables.push(Variable { name, compiled });
        }
        let validation = |validation: &Value| Validation::read(&compiler, validation, scope);
        let audit = |annotation: &Value| {
            let types = [Type::String, Type::Null];
            let expression = Expression::new(&compiler, text(annotation, "valueExpression"), scope, &types);
            (text(annotation, "key").to_owned(), expression)
        };
        let mutations = items(spec, "mutations");
        Definition {
            name: text(policy, "metadata.name").to_owned(),
            matcher: Matcher::of_resources(&spec["matchConstraints"]),
            ignores_failures: text(spec, "failurePolicy") == "Ignore",
            param_kind: params::param_kind(policy),
            conditions: Conditions::new(&compiler, spec, scope),
            validations: items(spec, "validations").iter().map(validation).collect(),
            audit_annotations: items(spec, "auditAnnotations").iter().map(audit).collect(),
            mutations: mutations.iter().map(|mutation| Mutation::read(&compiler, mutation, scope)).collect(),
            reinvoke: text(spec, "reinvocationPolicy") == "IfNeeded",
            variables,
        }
    }
}

impl Validation {
    fn read(compiler: &Compiler, validation: &Value, scope: Scope) -> Self {
        // A message does not depend on what somebody may do.
        let scope_of_message = Scope { authorizer: false, ..scope };
        let message = Some(text(validation, "messageExpression")).filter(|expression| !expression.is_empty());
        Validation {
            expression: Expression::new(compiler, text(validation, "expression"), scope, &[Type::Bool]),
            message: text(validation, "message").trim().to_owned(),
            message_expression: message
                .map(|expression| Expression::new(compiler, expression, scope_of_message, &[Type::String])),
            reason: text(validation, "reason").to_owned(),
        }
    }
}

impl Mutation {
    fn read(compiler: &Compiler, mutation: &Value, scope: Scope) -> Self {
        let scope = Scope { patches: true, ..scope };
        let expression =
            |field: &str, ty: Type| Expression::new(compiler, text(mutation, field), scope, &[ty]);
        match at(mutation, "jsonPatch") {
            Some(_) => Mutation::JsonPatch(expression(
                "jsonPatch.expression",
                Type::list(Type::object("JSONPatch", [])),
            )),
            None => Mutation::Apply(expression("applyConfiguration.expression", Type::object("Object", []))),
        }
    }
}

impl Binding {
    fn read(binding: &Arc<Value>) -> Self {
        let actions = items(binding, "spec.validationActions");
        Binding {
            name: text(binding, "metadata.name").to_owned(),
            matcher: at(binding, "spec.matchResources").map(Matcher::of_resources),
            actions: actions.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
            object: binding.clone(),
        }
    }
}

/// The policies of one kind.
pub(super) struct Definitions {
    policies: GroupResource,
    bindings: GroupResource,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    revisions: Option<(u64, u64)>,
    /// By uid and resourceVersion.
    compiled: HashMap<(String, String), Arc<Definition>>,
    hooks: Arc<[Hook]>,
}

impl Definitions {
    pub(super) fn validating() -> Self {
        Definitions::of("validatingadmissionpolicies", "validatingadmissionpolicybindings")
    }

    pub(super) fn mutating() -> Self {
        Definitions::of("mutatingadmissionpolicies", "mutatingadmissionpolicybindings")
    }

    fn of(policies: &'static str, bindings: &'static str) -> Self {
        let resource = |name| GroupResource::from_static(GROUP, name);
        Definitions { policies: resource(policies), bindings: resource(bindings), state: Mutex::default() }
    }

    /// The policies that have bindings, by name.
    pub(super) fn hooks(&self, lookup: &dyn Lookup) -> Arc<[Hook]> {
        let revisions = (lookup.revision(&self.policies), lookup.revision(&self.bindings));
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.revisions == Some(revisions) {
            return state.hooks.clone();
        }
        let sorted = |resource: &GroupResource| {
            let mut objects = lookup.list(resource, None);
            objects.sort_by(|a, b| text(a, "metadata.name").cmp(text(b, "metadata.name")));
            objects
        };
        let bindings = sorted(&self.bindings);
        let mut compiled = HashMap::new();
        let mut hooks = Vec::new();
        for policy in sorted(&self.policies) {
            let name = text(&policy, "metadata.name");
            let own = bindings.iter().filter(|binding| text(binding, "spec.policyName") == name);
            let own: Vec<Binding> = own.map(Binding::read).collect();
            if own.is_empty() {
                continue;
            }
            let key = (
                text(&policy, "metadata.uid").to_owned(),
                text(&policy, "metadata.resourceVersion").to_owned(),
            );
            let known = state.compiled.get(&key).filter(|_| !key.1.is_empty()).cloned();
            let definition = known.unwrap_or_else(|| Arc::new(Definition::read(&policy)));
            compiled.insert(key, definition.clone());
            hooks.push(Hook { policy: definition, bindings: own });
        }
        *state = State { revisions: Some(revisions), compiled, hooks: hooks.into() };
        state.hooks.clone()
    }
}
