//! A group of pods stays while pods of it are there, and is of a Workload that has its template.
//!
//! Upstream: plugin/pkg/admission/scheduling/podgroupprotection/admission.go, plugin/pkg/admission/podgroup/admission.go

use apimachinery::{GroupResource, Status};
use serde_json::Value;

use super::tree::{at, items, list_mut, text};
use super::{Context, Plugin, forbid, is_create, is_whole};
use crate::seams::AdmissionRequest;

const GROUP: &str = "scheduling.k8s.io";
/// Taken off by a controller once nothing of the group is there.
const FINALIZER: &str = "scheduling.k8s.io/podgroup-protection";
const WORKLOADS: GroupResource = GroupResource::from_static(GROUP, "workloads");

fn is_new_group(request: &AdmissionRequest<'_>) -> bool {
    is_create(request) && is_whole(request, GROUP, "podgroups")
}

pub(super) struct PodGroupProtection;

impl Plugin for PodGroupProtection {
    fn name(&self) -> &'static str {
        "PodGroupProtection"
    }

    fn mutate(&self, _context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if is_new_group(request)
            && let Some(finalizers) = list_mut(request.object, "metadata.finalizers")
            && !finalizers.iter().any(|finalizer| finalizer == FINALIZER)
        {
            finalizers.push(FINALIZER.into());
        }
        Ok(())
    }
}

pub(super) struct PodGroupWorkloadExists;

impl Plugin for PodGroupWorkloadExists {
    fn name(&self) -> &'static str {
        "PodGroupWorkloadExists"
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let reference = at(request.object, "spec.podGroupTemplateRef.workload").filter(|r| !r.is_null());
        let Some(reference) = reference.filter(|_| is_new_group(request)) else { return Ok(()) };
        let workload = context.lookup.get(&WORKLOADS, request.namespace, text(reference, "workloadName"));
        match objection(reference, workload.as_deref()) {
            Some(why) => Err(forbid(request, format!("PodGroup rejected: {why}"))),
            None => Ok(()),
        }
    }
}

fn objection(reference: &Value, workload: Option<&Value>) -> Option<String> {
    let (name, template) = (text(reference, "workloadName"), text(reference, "podGroupTemplateName"));
    let Some(workload) = workload else { return Some(format!("Workload {name:?} not found")) };
    if at(workload, "metadata.deletionTimestamp").is_some() {
        return Some(format!("Workload {name:?} is being deleted"));
    }
    let known = items(workload, "spec.podGroupTemplates").iter().any(|known| text(known, "name") == template);
    (!known).then(|| format!("PodGroupTemplate {template:?} not found in Workload {name:?}"))
}
