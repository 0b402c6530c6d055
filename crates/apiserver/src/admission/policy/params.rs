//! The parameters that a binding gives to its policy.
//!
//! Upstream: apiserver/pkg/admission/plugin/policy/generic/policy_dispatcher.go CollectParams

use std::sync::Arc;

use apimachinery::selector::LabelSelector;
use apimachinery::{GroupVersion, GroupVersionKind};
use serde_json::Value;

use crate::admission::tree::{at, text};
use crate::seams::Lookup;

/// The kind that a policy takes its parameters from.
pub(super) fn param_kind(policy: &Value) -> Option<Result<GroupVersionKind, String>> {
    let kind = at(policy, "spec.paramKind")?;
    let version = text(kind, "apiVersion");
    let group_version =
        GroupVersion::parse(version).ok_or_else(|| format!("unexpected GroupVersion string: {version}"));
    Some(group_version.map(|of| GroupVersionKind::new(of.group, of.version, text(kind, "kind").to_owned())))
}

/// The parameters of a binding, each of which makes an evaluation of its own. Without a kind or a reference there
/// is one, without parameters.
pub(super) fn collect(
    kind: Option<&Result<GroupVersionKind, String>>,
    binding: &Value,
    request_namespace: &str,
    lookup: &dyn Lookup,
) -> Result<Vec<Option<Arc<Value>>>, String> {
    let Some(kind) = kind else { return Ok(vec![None]) };
    let kind = kind.as_ref().map_err(String::clone)?;
    let (resource, namespaced) = lookup
        .resource_of(kind)
        .ok_or_else(|| format!("failed to find resource referenced by paramKind: '{kind}'"))?;
    let Some(reference) = at(binding, "spec.paramRef") else { return Ok(vec![None]) };
    let own = text(reference, "namespace");
    let namespace = match (namespaced, own) {
        (false, "") => "",
        (false, _) => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into());
        }
        (true, "") if request_namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .into(),
            );
        }
        (true, "") => request_namespace,
        (true, own) => own,
    };
    let found: Vec<Arc<Value>> = match (text(reference, "name"), at(reference, "selector")) {
        ("", None) => return Err("one of name or selector must be provided".into()),
        ("", Some(selector)) => {
            let selector = LabelSelector::from_object(selector)?;
            let namespace = namespaced.then_some(namespace);
            let all = lookup.list(&resource, namespace).into_iter();
            all.filter(|object| selector.matches_object(object)).collect()
        }
        (name, _) => lookup.get(&resource, namespace, name).into_iter().collect(),
    };
    if found.is_empty() && text(reference, "parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found.into_iter().map(Some).collect())
}
