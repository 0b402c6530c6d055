//! A namespace says by annotations which taints its pods tolerate without saying so, and which they may tolerate.
//!
//! Upstream: plugin/pkg/admission/podtolerationrestriction/admission.go

use apimachinery::Status;
use apimachinery::field::{Path, aggregate};
use serde::Deserialize;
use serde_json::{Value, json};

use super::configuration::versioned;
use super::tree::{annotation, at, integer, items, list_mut, text};
use super::{Context, Plugin, core, is_create, is_update, is_whole};
use crate::seams::AdmissionRequest;

const DEFAULTS: &str = "scheduler.alpha.kubernetes.io/defaultTolerations";
const ALLOWED: &str = "scheduler.alpha.kubernetes.io/tolerationsWhitelist";

pub(super) struct PodTolerationRestriction;

/// What the cluster says for namespaces that say nothing.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Tolerations {
    default: Vec<Value>,
    whitelist: Vec<Value>,
}

/// Upstream: plugin/pkg/admission/podtolerationrestriction/apis/podtolerationrestriction/validation/validation.go
pub(super) fn configured(document: Option<&Value>) -> Result<Tolerations, String> {
    let Some(document) = document else { return Ok(Tolerations::default()) };
    let group = "podtolerationrestriction.admission.k8s.io";
    let tolerations: Tolerations = versioned(document, group, &["v1alpha1"], "Configuration")?;
    let mut errors = Vec::new();
    for (list, field) in [(&tolerations.default, "default"), (&tolerations.whitelist, "whitelist")] {
        let spec = json!({"tolerations": list});
        errors.extend(resources::validate_tolerations(&spec, &Path::new(field)));
    }
    if errors.is_empty() { Ok(tolerations) } else { Err(aggregate(&errors)) }
}

/// The tolerations that the annotation of the request's namespace lists; `None` when there is no annotation.
fn listed(context: &Context, namespace: &str, key: &str) -> Result<Option<Vec<Value>>, Status> {
    let Some(namespace) = context.lookup.get(&core("namespaces"), "", namespace) else {
        return Err(Status::not_found(&core("namespaces"), namespace));
    };
    match annotation(&namespace, key) {
        None => Ok(None),
        Some("") => Ok(Some(Vec::new())),
        Some(listed) => serde_json::from_str(listed)
            .map(Some)
            .map_err(|error| Status::failure(500, "", error.to_string())),
    }
}

fn equal(one: &Value, other: &Value) -> bool {
    ["key", "operator", "value", "effect"].iter().all(|field| text(one, field) == text(other, field))
        && integer(one, "tolerationSeconds") == integer(other, "tolerationSeconds")
}

/// Whether what `narrow` tolerates is tolerated by `wide` too.
///
/// Upstream: pkg/util/tolerations/tolerations.go isSuperset
fn covers(wide: &Value, narrow: &Value) -> bool {
    if equal(wide, narrow) {
        return true;
    }
    let operator = text(wide, "operator");
    let any_key = text(wide, "key").is_empty() && operator == "Exists";
    let effect = text(wide, "effect");
    let longer = match (integer(wide, "tolerationSeconds"), integer(narrow, "tolerationSeconds")) {
        (Some(wide), Some(narrow)) => narrow <= wide,
        (Some(_), None) => false,
        (None, _) => true,
    };
    (any_key || text(wide, "key") == text(narrow, "key"))
        && (effect.is_empty() || effect == text(narrow, "effect"))
        && (effect != "NoExecute" || longer)
        && match operator {
            "Equal" | "" => {
                text(narrow, "operator") == "Equal" && text(narrow, "value") == text(wide, "value")
            }
            operator => operator == "Exists",
        }
}

/// All tolerations but those that another covers; of equal ones the first stays.
///
/// Upstream: pkg/util/tolerations/tolerations.go MergeTolerations
fn merged(all: &[Value]) -> Vec<Value> {
    let mut merged: Vec<Value> = Vec::new();
    for (index, one) in all.iter().enumerate() {
        let by_earlier = merged.iter().any(|kept| covers(kept, one));
        let by_later = all[index + 1..].iter().any(|later| !equal(later, one) && covers(later, one));
        if !by_earlier && !by_later {
            merged.push(one.clone());
        }
    }
    merged
}

/// Whether the request is for a pod itself, with what it is to be.
fn concerned(request: &AdmissionRequest<'_>) -> bool {
    is_whole(request, "", "pods") && (is_create(request) || is_update(request))
}

impl Plugin for PodTolerationRestriction {
    fn name(&self) -> &'static str {
        "PodTolerationRestriction"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn mutate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !concerned(request) {
            return Ok(());
        }
        let mut more = match is_create(request) {
            true => listed(context, request.namespace, DEFAULTS)?
                .unwrap_or_else(|| context.settings.tolerations.default.clone()),
            false => Vec::new(),
        };
        let spec = at(request.object, "spec").unwrap_or(&Value::Null);
        if resources::qos_class(spec) != "BestEffort" {
            let pressure = "node.kubernetes.io/memory-pressure";
            more.push(json!({"key": pressure, "operator": "Exists", "effect": "NoSchedule"}));
        }
        if !more.is_empty()
            && let Some(tolerations) = list_mut(request.object, "spec.tolerations")
        {
            tolerations.append(&mut more);
            *tolerations = merged(tolerations);
        }
        self.validate(context, request)
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !concerned(request) || items(request.object, "spec.tolerations").is_empty() {
            return Ok(());
        }
        let (allowed, whose) = match listed(context, request.namespace, ALLOWED)? {
            Some(allowed) => (allowed, "namespace"),
            None => (context.settings.tolerations.whitelist.clone(), "cluster"),
        };
        let tolerations = items(request.object, "spec.tolerations");
        if allowed.is_empty() || tolerations.iter().all(|one| allowed.iter().any(|wide| covers(wide, one))) {
            return Ok(());
        }
        let why = format!(
            "pod tolerations (possibly merged with namespace default tolerations) conflict with its {whose} whitelist"
        );
        Err(Status::failure(500, "", why))
    }
}
