//! The identity of a StatefulSet's pods: names by ordinal, labels, and claims that outlive them.

use api::Object;
use api::apps::v1::StatefulSet;
use api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};
use api::meta::{ObjectMeta, OwnerReference};

use crate::objects::{controller_reference, label, pod_from_template};

/// The label of pods that names their revision.
pub(crate) const REVISION_LABEL: &str = "controller-revision-hash";
const POD_NAME_LABEL: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX_LABEL: &str = "apps.kubernetes.io/pod-index";

/// The name of the set that a pod's name says it is of, and its ordinal.
///
/// Upstream: pkg/controller/statefulset/stateful_set_utils.go getParentNameAndOrdinal
pub(crate) fn parent_and_ordinal(pod: &Pod) -> Option<(&str, i32)> {
    let (parent, ordinal) = pod.name().rsplit_once('-')?;
    let digits = !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| ordinal.parse().ok()).flatten().map(|ordinal| (parent, ordinal))
}

pub(crate) fn ordinal(pod: &Pod) -> Option<i32> {
    parent_and_ordinal(pod).map(|(_, ordinal)| ordinal)
}

pub(crate) fn is_member(set: &StatefulSet, pod: &Pod) -> bool {
    parent_and_ordinal(pod).is_some_and(|(parent, _)| parent == set.name())
}

fn claim_templates(set: &StatefulSet) -> &[PersistentVolumeClaim] {
    set.spec.as_ref().and_then(|spec| spec.volume_claim_templates.as_deref()).unwrap_or_default()
}

pub(crate) fn claim_names(set: &StatefulSet, ordinal: i32) -> impl Iterator<Item = String> + '_ {
    claim_templates(set).iter().map(move |claim| format!("{}-{}-{ordinal}", claim.name(), set.name()))
}

/// The claims that the pod of an ordinal mounts.
pub(crate) fn claims(set: &StatefulSet, ordinal: i32) -> Vec<PersistentVolumeClaim> {
    let selector = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    let make = |(template, name): (&PersistentVolumeClaim, String)| {
        let mut labels = template.metadata.labels.clone().unwrap_or_default();
        labels.extend(selector.clone());
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: set.metadata.namespace.clone(),
                labels: Some(labels),
                annotations: template.metadata.annotations.clone(),
                ..Default::default()
            },
            spec: template.spec.clone(),
            status: None,
        }
    };
    claim_templates(set).iter().zip(claim_names(set, ordinal)).map(make).collect()
}

/// The pod of an ordinal, of a revision of the template.
pub(crate) fn make_pod(set: &StatefulSet, template: &PodTemplateSpec, revision: &str, ordinal: i32) -> Pod {
    let mut pod = pod_from_template(set, template);
    let name = format!("{}-{ordinal}", set.name());
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(REVISION_LABEL.to_owned(), revision.to_owned());
    set_identity(&mut pod, &name, ordinal);
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(name);
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone());
    set_storage(set, &mut pod, ordinal);
    pod
}

fn set_identity(pod: &mut Pod, name: &str, ordinal: i32) {
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME_LABEL.to_owned(), name.to_owned());
    labels.insert(POD_INDEX_LABEL.to_owned(), ordinal.to_string());
}

fn set_storage(set: &StatefulSet, pod: &mut Pod, ordinal: i32) {
    let make = |(template, claim_name): (&PersistentVolumeClaim, String)| Volume {
        name: template.name().to_owned(),
        persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource { claim_name, read_only: None }),
        ..Default::default()
    };
    let mut volumes: Vec<_> = claim_templates(set).iter().zip(claim_names(set, ordinal)).map(make).collect();
    let spec = pod.spec.get_or_insert_default();
    let others = spec.volumes.take().unwrap_or_default();
    let own = |volume: &Volume| claim_templates(set).iter().any(|template| template.name() == volume.name);
    volumes.extend(others.into_iter().filter(|volume| !own(volume)));
    spec.volumes = Some(volumes).filter(|volumes| !volumes.is_empty());
}

/// The pod with the labels that it has to have, when it does not have them.
///
/// Upstream: pkg/controller/statefulset/stateful_set_utils.go identityMatches
pub(crate) fn corrected(pod: &Pod) -> Option<Pod> {
    if label(pod, POD_NAME_LABEL) == Some(pod.name()) {
        return None;
    }
    let (name, ordinal) = (pod.name().to_owned(), ordinal(pod)?);
    let mut corrected = pod.clone();
    set_identity(&mut corrected, &name, ordinal);
    Some(corrected)
}

/// Who shall own a claim: the set, the pod, or neither.
///
/// Upstream: pkg/controller/statefulset/stateful_set_utils.go updateClaimOwnerRefForSetAndPod
fn wanted_owners(set: &StatefulSet, scaled_down: bool) -> (bool, bool) {
    let policy = set.spec.as_ref().and_then(|s| s.persistent_volume_claim_retention_policy.as_ref());
    let deletes = |when: Option<&String>| when.is_some_and(|when| when == "Delete");
    let when_deleted = deletes(policy.and_then(|policy| policy.when_deleted.as_ref()));
    let when_scaled = deletes(policy.and_then(|policy| policy.when_scaled.as_ref()));
    (when_deleted && !(when_scaled && scaled_down), when_scaled && scaled_down)
}

/// Whether claims go when the set is scaled down.
pub(crate) fn deletes_when_scaled(set: &StatefulSet) -> bool {
    wanted_owners(set, true).1
}

/// What is to be done about the owners of a claim.
#[derive(Debug, PartialEq)]
pub(crate) enum Owners {
    Right,
    /// They are to be these.
    Wrong(Vec<OwnerReference>),
    /// Another controller has it: ours are taken away.
    Conflict(Option<Vec<OwnerReference>>),
}

fn names<T: Object>(reference: &OwnerReference, object: &T) -> bool {
    reference.kind == T::KIND && reference.api_version == T::api_version() && reference.name == object.name()
}

/// Upstream: pkg/controller/statefulset/stateful_set_utils.go isClaimOwnerUpToDate
pub(crate) fn owners(
    claim: &PersistentVolumeClaim,
    set: &StatefulSet,
    pod: &Pod,
    scaled_down: bool,
) -> Owners {
    let present = claim.metadata.owner_references.clone().unwrap_or_default();
    if is_stale(claim, set) || is_stale(claim, pod) {
        return Owners::Right;
    }
    let ours = |r: &OwnerReference| names(r, set) || names(r, pod);
    let mut wanted: Vec<_> = present.iter().filter(|reference| !ours(reference)).cloned().collect();
    let (by_set, by_pod) = wanted_owners(set, scaled_down);
    let policy = wanted_owners(set, true) != (false, false) || wanted_owners(set, false) != (false, false);
    if policy && wanted.iter().any(|reference| reference.controller == Some(true)) {
        return Owners::Conflict((wanted.len() != present.len()).then_some(wanted));
    }
    let held = |uid: &str| present.iter().any(|r| r.uid == uid && r.controller == Some(true));
    let loose = present.iter().any(|r| ours(r) && r.controller != Some(true));
    if !loose && held(set.uid()) == by_set && held(pod.uid()) == by_pod {
        return Owners::Right;
    }
    if by_pod {
        wanted.push(controller_reference(pod));
    }
    if by_set {
        wanted.push(controller_reference(set));
    }
    Owners::Wrong(wanted)
}

/// Whether the claim is of an earlier object of that name, and so about to be collected.
pub(crate) fn is_stale<T: Object>(claim: &PersistentVolumeClaim, object: &T) -> bool {
    let mut references = claim.metadata.owner_references.iter().flatten();
    references.any(|reference| names(reference, object) && reference.uid != object.uid())
}
