//! Asking whether somebody may do something. Who answers is the caller's.
//!
//! Upstream: apiserver/pkg/cel/library/authz.go

use std::rc::Rc;

use apimachinery::names;

use super::{Extension, Function, no_overload};
use crate::error::EvalError;
use crate::value::Value;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// Who answers.
pub trait Authorize {
    fn authorize(&self, check: &AuthorizerCheck) -> AuthorizerDecision;
}

/// What is asked: a resource, or a path when that is not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthorizerCheck {
    /// A namespace and a name of a service account to ask for, in place of the one who makes the request.
    pub service_account: Option<(String, String)>,
    pub verb: String,
    pub path: String,
    pub group: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    pub field_selector: String,
    pub label_selector: String,
}

/// What was answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuthorizerDecision {
    pub allowed: bool,
    pub reason: String,
    pub error: Option<String>,
}

/// The one who is asked about, and who answers.
#[derive(Clone)]
pub struct Subject<'a> {
    authorizer: &'a dyn Authorize,
    service_account: Option<(String, String)>,
}

/// A question that is being put together.
#[derive(Clone)]
pub struct Check<'a> {
    authorizer: &'a dyn Authorize,
    question: Rc<AuthorizerCheck>,
}

impl<'a> Value<'a> {
    /// The `authorizer` variable.
    pub fn authorizer(authorizer: &'a dyn Authorize) -> Self {
        Value::Extension(Extension::Authorizer(Subject { authorizer, service_account: None }))
    }

    /// The `authorizer.requestResource` variable: a question about the resource of the request.
    pub fn resource_check(authorizer: &'a dyn Authorize, question: AuthorizerCheck) -> Self {
        Value::Extension(Extension::ResourceCheck(Check { authorizer, question: Rc::new(question) }))
    }
}

macro_rules! detail {
    ($name:literal, $id:literal, $field:ident) => {
        Function {
            name: $name,
            eval: |args| detail(args, |question, text| question.$field = text),
            overloads: &[(
                $id,
                "kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.ResourceCheck",
            )],
        }
    };
}

pub static FUNCTIONS: &[Function] = &[
    Function {
        name: "path",
        eval: path,
        overloads: &[(
            "authorizer_path",
            "kubernetes.authorization.Authorizer.(string) -> kubernetes.authorization.PathCheck",
        )],
    },
    Function {
        name: "group",
        eval: group,
        overloads: &[(
            "authorizer_group",
            "kubernetes.authorization.Authorizer.(string) -> kubernetes.authorization.GroupCheck",
        )],
    },
    Function {
        name: "serviceAccount",
        eval: service_account,
        overloads: &[(
            "authorizer_serviceaccount",
            "kubernetes.authorization.Authorizer.(string, string) -> kubernetes.authorization.Authorizer",
        )],
    },
    Function {
        name: "resource",
        eval: resource,
        overloads: &[(
            "groupcheck_resource",
            "kubernetes.authorization.GroupCheck.(string) -> kubernetes.authorization.ResourceCheck",
        )],
    },
    detail!("subresource", "resourcecheck_subresource", subresource),
    detail!("namespace", "resourcecheck_namespace", namespace),
    detail!("name", "resourcecheck_name", name),
    detail!("fieldSelector", "authorizer_fieldselector", field_selector),
    detail!("labelSelector", "authorizer_labelselector", label_selector),
    Function {
        name: "check",
        eval: check,
        overloads: &[
            (
                "pathcheck_check",
                "kubernetes.authorization.PathCheck.(string) -> kubernetes.authorization.Decision",
            ),
            (
                "resourcecheck_check",
                "kubernetes.authorization.ResourceCheck.(string) -> kubernetes.authorization.Decision",
            ),
        ],
    },
    Function {
        name: "allowed",
        eval: |args| decided(args).map(|decision| Value::Bool(decision.allowed)),
        overloads: &[("decision_allowed", "kubernetes.authorization.Decision.() -> bool")],
    },
    Function {
        name: "errored",
        eval: |args| decided(args).map(|decision| Value::Bool(decision.error.is_some())),
        overloads: &[("decision_errored", "kubernetes.authorization.Decision.() -> bool")],
    },
    Function {
        name: "error",
        eval: |args| {
            decided(args).map(|decision| Value::string(decision.error.as_deref().unwrap_or_default()))
        },
        overloads: &[("decision_error", "kubernetes.authorization.Decision.() -> string")],
    },
    Function {
        name: "reason",
        eval: |args| decided(args).map(|decision| Value::string(decision.reason.as_str())),
        overloads: &[("decision_reason", "kubernetes.authorization.Decision.() -> string")],
    },
];

fn path<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::Extension(Extension::Authorizer(subject)), Value::String(path)] = args else {
        return no_overload();
    };
    if path.trim().is_empty() {
        return Err(EvalError::new("path must not be empty"));
    }
    let question = AuthorizerCheck {
        service_account: subject.service_account.clone(),
        path: path.to_string(),
        ..AuthorizerCheck::default()
    };
    let check = Check { authorizer: subject.authorizer, question: Rc::new(question) };
    Ok(Value::Extension(Extension::PathCheck(check)))
}

fn group<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::Extension(Extension::Authorizer(subject)), Value::String(group)] = args else {
        return no_overload();
    };
    let question = AuthorizerCheck {
        service_account: subject.service_account.clone(),
        group: group.to_string(),
        ..AuthorizerCheck::default()
    };
    let check = Check { authorizer: subject.authorizer, question: Rc::new(question) };
    Ok(Value::Extension(Extension::GroupCheck(check)))
}

fn service_account<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::Extension(Extension::Authorizer(subject)), Value::String(namespace), Value::String(name)] =
        args
    else {
        return no_overload();
    };
    if !names::dns1123_subdomain(name).is_empty() {
        return Err(EvalError::new("Invalid service account name"));
    }
    if !names::dns1123_label(namespace).is_empty() {
        return Err(EvalError::new("Invalid service account namespace"));
    }
    let service_account = Some((namespace.to_string(), name.to_string()));
    Ok(Value::Extension(Extension::Authorizer(Subject { authorizer: subject.authorizer, service_account })))
}

fn resource<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::Extension(Extension::GroupCheck(check)), Value::String(resource)] = args else {
        return no_overload();
    };
    if resource.trim().is_empty() {
        return Err(EvalError::new("resource must not be empty"));
    }
    let question = AuthorizerCheck { resource: resource.to_string(), ..(*check.question).clone() };
    let check = Check { authorizer: check.authorizer, question: Rc::new(question) };
    Ok(Value::Extension(Extension::ResourceCheck(check)))
}

fn detail<'a>(args: &[Value<'a>], set: fn(&mut AuthorizerCheck, String)) -> Result<'a> {
    let [Value::Extension(Extension::ResourceCheck(check)), Value::String(text)] = args else {
        return no_overload();
    };
    let mut question = (*check.question).clone();
    set(&mut question, text.to_string());
    let check = Check { authorizer: check.authorizer, question: Rc::new(question) };
    Ok(Value::Extension(Extension::ResourceCheck(check)))
}

fn check<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (check, verb) = match args {
        [
            Value::Extension(Extension::PathCheck(check) | Extension::ResourceCheck(check)),
            Value::String(verb),
        ] => (check, verb),
        _ => return no_overload(),
    };
    let question = AuthorizerCheck { verb: verb.to_string(), ..(*check.question).clone() };
    Ok(Value::Extension(Extension::Decision(check.authorizer.authorize(&question))))
}

fn decided<'v>(args: &'v [Value<'_>]) -> std::result::Result<&'v AuthorizerDecision, EvalError> {
    match args {
        [Value::Extension(Extension::Decision(decision))] => Ok(decision),
        _ => no_overload(),
    }
}
