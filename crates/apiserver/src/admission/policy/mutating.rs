//! MutatingAdmissionPolicy: what each binding of each policy changes in an object.
//!
//! Upstream: apiserver/pkg/admission/plugin/policy/mutating/dispatcher.go, patch/{smd,json_patch}.go

use apimachinery::Status;
use apimachinery::status::Cause;
use cel::RUNTIME_COST_BUDGET;
use schema::apply::Typed;
use schema::structural::apply::Custom;
use serde_json::{Value, json};

use super::definitions::{Binding, Definition, Hook, Mutation};
use super::expressions::Questioner;
use super::{Rounds, Subject, params};
use crate::admission::matching::Matched;
use crate::admission::webhook::versions;
use crate::admission::{Context, forbid};
use crate::extensions::convert::Converter;
use crate::seams::AdmissionRequest;

/// What went wrong with policies that do not ignore that.
#[derive(Default)]
struct Failures(Vec<(String, bool)>);

impl Failures {
    fn add(&mut self, policy: &Definition, binding: Option<&Binding>, why: &str, invalid: bool) {
        if policy.ignores_failures {
            return;
        }
        let message = match binding {
            Some(binding) => {
                format!("policy '{}' with binding '{}' denied request: {why}", policy.name, binding.name)
            }
            None => format!("policy {:?} denied request: {why}", policy.name),
        };
        self.0.push((message, invalid));
    }

    fn status(self, request: &AdmissionRequest<'_>) -> Result<(), Status> {
        let Some((message, invalid)) = self.0.first().cloned() else { return Ok(()) };
        let mut status = forbid(request, "admission request denied by policy");
        status.message = message;
        if invalid {
            status.reason = "Invalid".to_owned();
        }
        let mut details = status.details.take().unwrap_or_default();
        details.causes.extend(self.0.into_iter().map(|(message, _)| Cause { message, ..Cause::default() }));
        status.details = Some(details);
        Err(status)
    }
}

/// Has the object changed by all policies. True when it was.
pub(super) async fn mutate(
    hooks: &[Hook],
    context: &Context,
    request: &mut AdmissionRequest<'_>,
    rounds: &mut Rounds,
    converter: &Converter,
) -> Result<bool, Status> {
    rounds.begin(request.object);
    let mut failures = Failures::default();
    let mut changed = false;
    for hook in hooks {
        let policy = &*hook.policy;
        let lookup = &*context.lookup;
        let matched = match policy.matcher.matches(request, lookup) {
            Ok(None) => continue,
            Ok(Some(matched)) => matched,
            Err(status) => {
                failures.add(policy, None, &format!("failed to configure policy: {}", status.message), false);
                continue;
            }
        };
        for binding in &hook.bindings {
            let selected = binding.matcher.as_ref().map_or(Ok(true), |matcher| {
                matcher
                    .matches(request, lookup)
                    .map(|matched| matched.is_some())
                    .map_err(|status| status.message)
            });
            let params = selected.and_then(|selected| match selected {
                true => {
                    params::collect(policy.param_kind.as_ref(), &binding.object, request.namespace, lookup)
                }
                false => Ok(Vec::new()),
            });
            let params = params.unwrap_or_else(|why| {
                failures.add(policy, Some(binding), &format!("failed to configure binding: {why}"), false);
                Vec::new()
            });
            for param in params {
                let param = param.as_deref();
                let key = key(policy, binding, param);
                let invocation =
                    Invocation { policy, context, matched: &matched, param, key: &key, converter };
                let outcome = invocation.run(request, rounds).await?;
                match outcome {
                    Ok(object_changed) => changed |= object_changed,
                    Err(why) => failures.add(policy, Some(binding), &why, true),
                }
            }
        }
    }
    rounds.end(request.object);
    failures.status(request).map(|()| changed)
}

/// What tells one invocation from the others.
fn key(policy: &Definition, binding: &Binding, param: Option<&Value>) -> String {
    let metadata = param.map(|param| &param["metadata"]);
    let text = |name: &str| metadata.and_then(|metadata| metadata[name].as_str()).unwrap_or_default();
    format!("{}/{}/{}/{}", policy.name, binding.name, text("namespace"), text("name"))
}

/// One policy with one set of parameters.
struct Invocation<'a> {
    policy: &'a Definition,
    context: &'a Context,
    matched: &'a Matched,
    param: Option<&'a Value>,
    key: &'a str,
    converter: &'a Converter,
}

impl Invocation<'_> {
    /// The outer error ends the request, the inner one is the policy's own.
    async fn run(
        &self,
        request: &mut AdmissionRequest<'_>,
        rounds: &mut Rounds,
    ) -> Result<Result<bool, String>, Status> {
        let Invocation { policy, context, matched, key, converter, .. } = self;
        let mut subject = Subject::new(context, request, matched, converter).await?;
        match self.concerns(request, &subject) {
            Ok(true) if rounds.wants(key) => {}
            Ok(_) => return Ok(Ok(false)),
            Err(why) => return Ok(Err(why)),
        }
        let before = subject.object.clone();
        let failed = self.change(request, &mut subject)?;
        let changed = subject.object != before;
        if changed {
            let (known, own) = (&matched.gvk, request.gvk.clone());
            *request.object = versions::convert(converter, request, known, &own, subject.object).await?;
            rounds.require_all();
        }
        if policy.reinvoke {
            rounds.invoked(key);
        }
        Ok(failed.map_or(Ok(changed), Err))
    }

    fn concerns(&self, request: &AdmissionRequest<'_>, subject: &Subject) -> Result<bool, String> {
        let questioner = Questioner::new(&self.context.authorizer, request);
        let mut input = subject.input(self.param, Some(questioner));
        input.namespace = &Value::Null;
        self.policy.conditions.hold(&input, &self.policy.variables)
    }

    /// Makes the mutations, one on top of the other. What the first of them that fails has to say.
    fn change(
        &self,
        request: &AdmissionRequest<'_>,
        subject: &mut Subject,
    ) -> Result<Option<String>, Status> {
        let mut failed = None;
        for mutation in &self.policy.mutations {
            if subject.object.is_null() {
                continue;
            }
            match patched(mutation, self.policy, self.context, request, subject, self.param) {
                Ok(object) => subject.object = versions::read(&self.matched.gvk, request, object)?,
                Err(why) => {
                    failed.get_or_insert(why);
                }
            }
        }
        Ok(failed)
    }
}

/// The object with one mutation made.
fn patched(
    mutation: &Mutation,
    policy: &Definition,
    context: &Context,
    request: &AdmissionRequest<'_>,
    subject: &Subject,
    param: Option<&Value>,
) -> Result<Value, String> {
    let input = subject.input(param, Some(Questioner::new(&context.authorizer, request)));
    let mut budget = RUNTIME_COST_BUDGET;
    match mutation {
        Mutation::Apply(expression) => {
            if let Err(why) = &expression.compiled {
                return Err(why.clone());
            }
            let patch = input.evaluate(expression, &policy.variables, &mut budget, fields)???;
            apply(request, &subject.object, patch)
        }
        Mutation::JsonPatch(expression) => {
            if let Err(why) = &expression.compiled {
                return Err(why.clone());
            }
            let patch = input.evaluate(expression, &policy.variables, &mut budget, operations)???;
            let bytes = serde_json::to_vec(&patch).map_err(|error| error.to_string())?;
            match schema::patch::json_patch(&subject.object, &bytes) {
                Ok(object) => Ok(object),
                // A patch whose test fails changes nothing.
                Err(error) if is_failed_test(&patch, &error.to_string()) => Ok(subject.object.clone()),
                Err(error) => Err(format!("JSON Patch: {error}")),
            }
        }
    }
}

fn is_failed_test(patch: &Value, error: &str) -> bool {
    error.contains("test") && patch.as_array().is_some_and(|all| all.iter().any(|one| one["op"] == "test"))
}

/// The tree of `Object{…}`, in which every name of a type is its place.
fn fields(value: &cel::Value<'_>) -> Result<Value, String> {
    let mut wrong = Vec::new();
    check_names(value, "Object", &mut wrong);
    if !wrong.is_empty() {
        return Err(format!("type mismatch: {}", wrong.join("\n")));
    }
    value.to_json().map_err(|error| error.to_string())
}

/// Upstream: apiserver/pkg/cel/mutation/dynamic/objects.go CheckTypeNamesMatchFieldPathNames
fn check_names(value: &cel::Value<'_>, path: &str, wrong: &mut Vec<String>) {
    match value {
        cel::Value::Object(object) => {
            if &*object.name != path {
                wrong.push(format!(
                    "unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type",
                    &*object.name
                ));
            }
            for (name, field) in &object.fields {
                check_names(field, &format!("{path}.{name}"), wrong);
            }
        }
        cel::Value::List(list) => {
            list.iter().flatten().for_each(|item| check_names(&item, path, wrong));
        }
        cel::Value::Map(map) => {
            let values = map.keys().into_iter().filter_map(|key| map.get(&key)).flatten();
            values.for_each(|value| check_names(&value, path, wrong));
        }
        _ => {}
    }
}

/// The operations of a list of `JSONPatch{…}`.
fn operations(value: &cel::Value<'_>) -> Result<Value, String> {
    let cel::Value::List(list) = value else {
        return Err("type mismatch: JSONPatchType.expression should evaluate to array".to_owned());
    };
    let mut operations = Vec::new();
    for item in list.iter() {
        let item = item.map_err(|error| error.to_string())?;
        let cel::Value::Object(patch) = &item else {
            return Err(
                "type mismatch: JSONPatchType.expression should evaluate to array of JSONPatch".to_owned()
            );
        };
        let text = |name: &str| patch.fields.get(name).and_then(cel::Value::as_str).unwrap_or_default();
        let mut operation = json!({"op": text("op"), "path": text("path")});
        if !text("from").is_empty() {
            operation["from"] = text("from").into();
        }
        if let Some(value) = patch.fields.get("value") {
            operation["value"] = match value {
                cel::Value::Object(object) => named(&object.name, value)?,
                value => value.to_json().map_err(|error| {
                    format!(
                        "JSONPath valueExpression evaluated to a type that could not marshal to JSON: {error}"
                    )
                })?,
            };
        }
        operations.push(operation);
    }
    Ok(Value::Array(operations))
}

/// The tree of an object below the root, which begins with the name that it has.
fn named(name: &str, value: &cel::Value<'_>) -> Result<Value, String> {
    let mut wrong = Vec::new();
    check_names(value, name, &mut wrong);
    if !wrong.is_empty() {
        return Err(format!("type mismatch: {}", wrong.join("\n")));
    }
    value.to_json().map_err(|error| error.to_string())
}

/// Sets the fields of a tree on the object.
fn apply(request: &AdmissionRequest<'_>, object: &Value, mut patch: Value) -> Result<Value, String> {
    for name in ["apiVersion", "kind"] {
        patch[name] = object[name].clone();
    }
    let (version, kind) = (object["apiVersion"].as_str(), object["kind"].as_str());
    let group_version = apimachinery::GroupVersion::parse(version.unwrap_or_default()).unwrap_or_default();
    let definition =
        api::tables::kind(&group_version.group, &group_version.version, kind.unwrap_or_default());
    let custom = request.def.and_then(|def| def.custom.as_ref());
    let merged = match (definition, custom) {
        (Some(definition), _) => schema::apply::set_fields(&Typed::of(definition), object, &patch),
        (None, Some(custom)) => schema::apply::set_fields(&Custom::of(&custom.schema), object, &patch),
        (None, None) => Err(format!("Resource kind {} not found", request.gvk)),
    };
    merged.map_err(|why| format!("error applying patch: {why}"))
}
