//! A namespace says by an annotation on which nodes its pods run.
//!
//! Upstream: plugin/pkg/admission/podnodeselector/admission.go

use std::collections::BTreeMap;

use apimachinery::Status;

use super::tree::{annotation, entries, map_mut, text};
use super::{Context, Plugin, core, is_create, is_whole};
use crate::seams::AdmissionRequest;

const SELECTOR: &str = "scheduler.alpha.kubernetes.io/node-selector";

pub(super) struct PodNodeSelector;

/// `a=b,c=d` as a map; nothing else is a selector of nodes.
///
/// Upstream: apimachinery/pkg/labels/labels.go ConvertSelectorToLabelsMap
fn labels(selector: &str) -> Result<BTreeMap<String, String>, String> {
    let mut labels = BTreeMap::new();
    for term in selector.split(',').filter(|_| !selector.is_empty()) {
        let Some((key, value)) = term.split_once('=') else {
            return Err(format!("invalid selector: [{term}]"));
        };
        let (key, value) = (key.trim(), value.trim());
        if !apimachinery::names::qualified_name(key).is_empty()
            || !apimachinery::names::label_value(value).is_empty()
        {
            return Err(format!("invalid selector: [{term}]"));
        }
        labels.insert(key.to_owned(), value.to_owned());
    }
    Ok(labels)
}

impl Plugin for PodNodeSelector {
    fn name(&self) -> &'static str {
        "PodNodeSelector"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn mutate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "", "pods") || !is_create(request) {
            return Ok(());
        }
        let Some(namespace) = context.lookup.get(&core("namespaces"), "", request.namespace) else {
            return Err(Status::not_found(&core("namespaces"), request.namespace));
        };
        let wanted =
            labels(annotation(&namespace, SELECTOR).unwrap_or_default()).map_err(Status::internal)?;
        let conflicts = entries(request.object, "spec.nodeSelector")
            .any(|(key, value)| wanted.get(key).is_some_and(|wanted| value.as_str() != Some(wanted)));
        if conflicts {
            let why = "pod node label selector conflicts with its namespace node label selector";
            return Err(Status::forbidden(&core("pods"), text(request.object, "metadata.name"), why));
        }
        if let Some(selector) = map_mut(request.object, "spec.nodeSelector").filter(|_| !wanted.is_empty()) {
            selector.extend(wanted.into_iter().map(|(key, value)| (key, value.into())));
        }
        Ok(())
    }
}
