//! Whether the community approved of an API in one of its own groups.
//!
//! Upstream: apiextensions-apiserver/pkg/apihelpers/helpers.go GetAPIApprovalState

use apimachinery::field::{Error, Path};
use serde_json::Value;

use crate::get::{Errors, entries, text};

const ANNOTATION: &str = "api-approved.kubernetes.io";

/// What the annotation says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approval {
    Invalid,
    Approved,
    /// It says that nobody approved.
    Bypassed,
    Missing,
}

/// Whether a group is the community's own.
pub fn is_protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"]
        .iter()
        .any(|own| group.strip_suffix(own).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

/// What the annotation of a definition says, and that in words.
pub fn approval(definition: &Value) -> (Approval, String) {
    let found = entries(definition, "metadata.annotations").find(|(key, _)| *key == ANNOTATION);
    let annotation = found.and_then(|(_, value)| value.as_str()).unwrap_or_default();
    let see = "see https://github.com/kubernetes/enhancements/pull/1111";
    if annotation.is_empty() {
        let why = format!("protected groups must have approval annotation {ANNOTATION:?}, {see}");
        return (Approval::Missing, why);
    }
    if annotation.starts_with("unapproved") {
        return (Approval::Bypassed, format!("not approved: {annotation:?}"));
    }
    let is_url = annotation.split_once("://").is_some_and(|(scheme, rest)| {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        !host.is_empty() && !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
    });
    if is_url {
        return (Approval::Approved, format!("approved in {annotation}"));
    }
    let why = format!(
        "protected groups must have approval annotation {ANNOTATION:?} with either a URL or a reason starting with \
         \"unapproved\", {see}"
    );
    (Approval::Invalid, why)
}

/// What is wrong with the approval; one that does not change is left alone.
pub fn validate(definition: &Value, old: Option<&Value>) -> Errors {
    if !is_protected(text(definition, "spec.group")) {
        return Errors::new();
    }
    let (state, why) = approval(definition);
    if old.is_some_and(|old| approval(old).0 == state) {
        return Errors::new();
    }
    let path = Path::new("metadata").child("annotations").key(ANNOTATION);
    match state {
        Approval::Invalid => {
            let found = entries(definition, "metadata.annotations").find(|(key, _)| *key == ANNOTATION);
            vec![Error::invalid(&path, found.map_or(Value::Null, |(_, value)| value.clone()), why)]
        }
        Approval::Missing => vec![Error::required(&path, why)],
        Approval::Approved | Approval::Bypassed => Errors::new(),
    }
}
