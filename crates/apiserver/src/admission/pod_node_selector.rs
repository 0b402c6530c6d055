//! A namespace says by an annotation on which nodes its pods run; the cluster, where others may run at all.
//!
//! Upstream: plugin/pkg/admission/podnodeselector/admission.go

use std::collections::BTreeMap;

use apimachinery::Status;
use serde::Deserialize;
use serde_json::Value;

use super::tree::{annotation, entries, map_mut, text};
use super::{Context, Plugin, core, is_create, is_whole};
use crate::seams::AdmissionRequest;

const SELECTOR: &str = "scheduler.alpha.kubernetes.io/node-selector";

pub(super) struct PodNodeSelector;

/// The selector of namespaces that say nothing.
const USUAL: &str = "clusterDefaultNodeSelector";

/// What the cluster says: the usual selector, and for namespaces what their pods may select at most.
#[derive(Default)]
pub(super) struct NodeSelectors(BTreeMap<String, String>);

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Configuration {
    pod_node_selector_plugin_config: BTreeMap<String, String>,
}

pub(super) fn configured(document: Option<&Value>) -> Result<NodeSelectors, String> {
    let configuration = document.map(Configuration::deserialize).transpose();
    let configuration = configuration.map_err(|error| error.to_string())?.unwrap_or_default();
    Ok(NodeSelectors(configuration.pod_node_selector_plugin_config))
}

impl NodeSelectors {
    fn labels(&self, name: &str) -> Result<BTreeMap<String, String>, Status> {
        labels(self.0.get(name).map_or("", String::as_str)).map_err(Status::internal)
    }
}

/// What the pods of the request's namespace select.
fn wanted(context: &Context, request: &AdmissionRequest<'_>) -> Result<BTreeMap<String, String>, Status> {
    let Some(namespace) = context.lookup.get(&core("namespaces"), "", request.namespace) else {
        return Err(Status::not_found(&core("namespaces"), request.namespace));
    };
    match annotation(&namespace, SELECTOR) {
        Some(said) => labels(said).map_err(Status::internal),
        None => context.settings.node_selectors.labels(USUAL),
    }
}

fn refused(request: &AdmissionRequest<'_>, why: &str) -> Status {
    Status::forbidden(&core("pods"), text(request.object, "metadata.name"), why)
}

/// Whether the pod selects other values than it must.
fn check_conflicts(wanted: &BTreeMap<String, String>, request: &AdmissionRequest<'_>) -> Result<(), Status> {
    let conflicts = entries(request.object, "spec.nodeSelector")
        .any(|(key, value)| wanted.get(key).is_some_and(|wanted| value.as_str() != Some(wanted)));
    match conflicts {
        true => {
            Err(refused(request, "pod node label selector conflicts with its namespace node label selector"))
        }
        false => Ok(()),
    }
}

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
        let wanted = wanted(context, request)?;
        check_conflicts(&wanted, request)?;
        if let Some(selector) = map_mut(request.object, "spec.nodeSelector").filter(|_| !wanted.is_empty()) {
            selector.extend(wanted.into_iter().map(|(key, value)| (key, value.into())));
        }
        self.validate(context, request)
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "", "pods") || !is_create(request) {
            return Ok(());
        }
        check_conflicts(&wanted(context, request)?, request)?;
        let allowed = context.settings.node_selectors.labels(request.namespace)?;
        let within = entries(request.object, "spec.nodeSelector")
            .all(|(key, value)| allowed.get(key).is_some_and(|allowed| value.as_str() == Some(allowed)));
        if allowed.is_empty() || within {
            return Ok(());
        }
        Err(refused(request, "pod node label selector labels conflict with its namespace whitelist"))
    }
}
