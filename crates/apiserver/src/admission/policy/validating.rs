//! ValidatingAdmissionPolicy: what each binding of each policy says of a request.
//!
//! Upstream: apiserver/pkg/admission/plugin/policy/validating/{dispatcher,validator}.go

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Status;
use apimachinery::status::Cause;
use cel::{MAX_MESSAGE_BYTES, RUNTIME_COST_BUDGET};
use serde_json::{Value, json};

use super::definitions::{Binding, Definition, Hook, Validation};
use super::expressions::{Input, Questioner};
use super::{Subject, params};
use crate::admission::{Context, forbid};
use crate::audit::Annotation;
use crate::extensions::convert::Converter;
use crate::seams::AdmissionRequest;

/// Why a policy refuses.
struct Denial {
    message: String,
    reason: String,
    /// Which of the policy's expressions it was.
    index: usize,
}

impl Denial {
    fn new(message: impl Into<String>) -> Self {
        Denial { message: message.into(), reason: String::new(), index: 0 }
    }
}

/// What a value of an audit annotation is.
enum Audit {
    Leave,
    Say(String),
    Wrong(String),
}

/// Asks all policies; the first refusal is told.
pub(super) async fn validate(
    hooks: &[Hook],
    context: &Context,
    request: &mut AdmissionRequest<'_>,
    converter: &Converter,
) -> Result<(), Status> {
    let mut denied: Option<(String, String)> = None;
    let mut failures = Vec::new();
    let mut told = Vec::new();
    for hook in hooks {
        let policy = &*hook.policy;
        let mut deny = |binding: Option<&Binding>, denial: Denial| {
            let who = match binding {
                Some(binding) => format!("'{}' with binding '{}'", policy.name, binding.name),
                None => format!("'{}'", policy.name),
            };
            let message = format!("ValidatingAdmissionPolicy {who} denied request: {}", denial.message);
            denied.get_or_insert((message, denial.reason));
        };
        let matched = match policy.matcher.matches(request, &*context.lookup) {
            Ok(None) => continue,
            Ok(Some(matched)) => matched,
            Err(status) => {
                if !policy.ignores_failures {
                    deny(None, Denial::new(format!("failed to configure policy: {}", status.message)));
                }
                continue;
            }
        };
        let mut subject = None;
        for binding in &hook.bindings {
            let (params, failure) = match chosen(policy, binding, context, request) {
                Ok(params) => (params, None),
                Err(why) => (Vec::new(), Some(why)),
            };
            if let Some(why) = failure
                && !policy.ignores_failures
            {
                deny(Some(binding), Denial::new(format!("failed to configure binding: {why}")));
            }
            if params.is_empty() {
                continue;
            }
            if subject.is_none() {
                subject = Some(Subject::new(context, request, &matched, converter).await?);
            }
            let Some(subject) = &subject else { continue };
            for param in params {
                let decisions = judge(policy, context, request, subject, param.as_deref(), &mut told);
                for denial in decisions {
                    if binding.actions.iter().any(|action| action == "Audit") {
                        failures.push(failed_validation(policy, binding, &denial));
                    }
                    act(binding, policy, denial, request.warnings, &mut |denial| deny(Some(binding), denial));
                }
            }
        }
    }
    annotate(request, failures, told);
    let Some((message, reason)) = denied else { return Ok(()) };
    Err(refusal(request, message, &reason))
}

/// The parameters of a binding that is for the request; none when it is not.
fn chosen(
    policy: &Definition,
    binding: &Binding,
    context: &Context,
    request: &AdmissionRequest<'_>,
) -> Result<Vec<Option<Arc<Value>>>, String> {
    if let Some(matcher) = &binding.matcher
        && matcher.matches(request, &*context.lookup).map_err(|status| status.message)?.is_none()
    {
        return Ok(Vec::new());
    }
    params::collect(policy.param_kind.as_ref(), &binding.object, request.namespace, &*context.lookup)
}

/// What a binding wants done about a refusal.
fn act(
    binding: &Binding,
    policy: &Definition,
    denial: Denial,
    warnings: &mut Vec<String>,
    deny: &mut dyn FnMut(Denial),
) {
    let Denial { message, reason, index } = denial;
    for action in &binding.actions {
        match action.as_str() {
            "Deny" => deny(Denial { message: message.clone(), reason: reason.clone(), index }),
            "Warn" => warnings.push(format!(
                "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {message}",
                policy.name, binding.name
            )),
            _ => {}
        }
    }
}

/// As the audit log has a failed validation.
///
/// Upstream: apiserver/pkg/admission/plugin/policy/validating/dispatcher.go ValidationFailureValue
fn failed_validation(policy: &Definition, binding: &Binding, denial: &Denial) -> Value {
    json!({
        "message": denial.message, "policy": policy.name, "binding": binding.name,
        "expressionIndex": denial.index, "validationActions": binding.actions,
    })
}

/// Tells the audit log what failed, and what policies have to say. Of a key that several bindings give the values
/// are joined.
fn annotate(request: &mut AdmissionRequest<'_>, failures: Vec<Value>, told: Vec<(String, String)>) {
    if !failures.is_empty() {
        let value = Value::Array(failures).to_string();
        let key = "validation.policy.admission.k8s.io/validation_failure";
        request.annotations.push(Annotation::new(key, value));
    }
    let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in told {
        let values = by_key.entry(key).or_default();
        if !values.contains(&value) {
            values.push(value);
        }
    }
    let joined = by_key.into_iter().map(|(key, values)| Annotation::new(key, values.join(", ")));
    request.annotations.extend(joined);
}

fn at(index: usize, denials: Vec<Denial>) -> impl Iterator<Item = Denial> {
    denials.into_iter().map(move |denial| Denial { index, ..denial })
}

/// The longest value of an audit annotation.
///
/// Upstream: apiserver/pkg/admission/plugin/policy/validating/validator.go maxAuditAnnotationValueLength
fn clipped(text: &str) -> String {
    const LONGEST: usize = 10 << 10;
    text.char_indices().take_while(|(at, c)| at + c.len_utf8() <= LONGEST).map(|(_, c)| c).collect()
}

fn refusal(request: &AdmissionRequest<'_>, message: String, reason: &str) -> Status {
    let mut status = forbid(request, &message);
    status.reason = if reason.is_empty() { "Invalid" } else { reason }.to_owned();
    status.code = match reason {
        "Forbidden" => 403,
        "Unauthorized" => 401,
        "RequestEntityTooLarge" => 413,
        _ => 422,
    };
    let mut details = status.details.take().unwrap_or_default();
    details.causes.push(Cause { message, ..Cause::default() });
    status.details = Some(details);
    status
}

/// Everything that one policy refuses about a request, with one set of parameters.
fn judge(
    policy: &Definition,
    context: &Context,
    request: &AdmissionRequest<'_>,
    subject: &Subject,
    params: Option<&Value>,
    told: &mut Vec<(String, String)>,
) -> Vec<Denial> {
    let failed = |why: String| if policy.ignores_failures { Vec::new() } else { vec![Denial::new(why)] };
    let mut input = subject.input(params, Some(Questioner::new(&context.authorizer, request)));
    input.namespace = &Value::Null;
    match policy.conditions.hold(&input, &policy.variables) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(why) => return failed(why),
    }
    let input = subject.input(params, input.authorizer);
    let mut budget = RUNTIME_COST_BUDGET;
    let mut results = Vec::new();
    for (index, validation) in policy.validations.iter().enumerate() {
        match input.evaluate(&validation.expression, &policy.variables, &mut budget, |value| value.as_bool())
        {
            Ok(result) => results.push((index, validation, result)),
            Err(spent) => return failed(spent),
        }
    }
    let plain = subject.input(params, None);
    let mut denials = Vec::new();
    for (index, validation, result) in results {
        match result {
            Ok(Some(true)) => {}
            Ok(_) => match message(validation, policy, &plain, &mut budget) {
                Ok(message) => denials.push(Denial { message, reason: validation.reason.clone(), index }),
                Err(why) => denials.extend(at(index, failed(format!("failed messageExpression: {why}")))),
            },
            Err(why) => denials.extend(at(index, failed(why))),
        }
    }
    match audit(policy, &plain, told) {
        Ok(wrong) => denials.extend(wrong.into_iter().map(Denial::new)),
        Err(spent) => return failed(spent),
    }
    denials
}

/// The words of a refusal: what the message expression says, the message, or the expression itself.
fn message(
    validation: &Validation,
    policy: &Definition,
    input: &Input<'_>,
    budget: &mut u64,
) -> Result<String, String> {
    let mut message = String::new();
    if let Some(expression) = &validation.message_expression {
        let told = input.evaluate(expression, &policy.variables, budget, |value| {
            value.as_str().map(|text| text.trim().to_owned()).unwrap_or_default()
        })?;
        // What is wrong with a message never decides about the request.
        let usable = |text: &String| text.len() <= MAX_MESSAGE_BYTES && !text.contains('\n');
        message = told.ok().filter(usable).unwrap_or_default();
    }
    if message.is_empty() {
        message = validation.message.clone();
    }
    if message.is_empty() {
        message = format!("failed expression: {}", validation.expression.text.trim());
    }
    Ok(message)
}

/// Has the audit annotations told; answers what is wrong with them.
fn audit(
    policy: &Definition,
    input: &Input<'_>,
    told: &mut Vec<(String, String)>,
) -> Result<Vec<String>, String> {
    let mut budget = RUNTIME_COST_BUDGET;
    let mut wrong = Vec::new();
    for (key, expression) in &policy.audit_annotations {
        let said = input.evaluate(expression, &policy.variables, &mut budget, |value| match value {
            cel::Value::Null => Audit::Leave,
            cel::Value::String(text) if text.trim().is_empty() => Audit::Leave,
            cel::Value::String(text) => Audit::Say(clipped(text.trim())),
            other => Audit::Wrong(format!(
                "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or \
                 null.",
                expression.text,
                other.type_of()
            )),
        })?;
        match said {
            Ok(Audit::Leave) => {}
            Ok(Audit::Say(value)) => told.push((format!("{}/{key}", policy.name), value)),
            Ok(Audit::Wrong(why)) => wrong.push(why),
            Err(why) if !policy.ignores_failures => wrong.push(why),
            Err(_) => {}
        }
    }
    Ok(wrong)
}
