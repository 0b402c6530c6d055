//! Claims and volumes in use are not removed: a finalizer, put on at admission, is taken off when nothing uses
//! them any more.
//!
//! Upstream: pkg/controller/volume/pvcprotection, pkg/controller/volume/pvprotection,
//! pkg/controller/volume/vacprotection

use std::sync::Arc;

use api::Object;
use api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use apimachinery::GroupVersionResource;
use client::Resource;
use controller_runtime::{Informer, Metadata, WorkQueue};
use serde_json::json;

use crate::Error;
use crate::context::Context;
use crate::objects::{is_deleting, is_terminal, node_name};
use crate::volumes::{BY_CLAIM, claims_of};

const WORKERS: usize = 1;
const CLAIM_FINALIZER: &str = "kubernetes.io/pvc-protection";
const VOLUME_FINALIZER: &str = "kubernetes.io/pv-protection";
const CLASS_FINALIZER: &str = "kubernetes.io/vac-protection";

/// What becomes of the finalizers; `None` when they stay as they are.
fn decide(finalizers: &[String], deleting: bool, finalizer: &str, in_use: bool) -> Option<Vec<String>> {
    let mut finalizers = finalizers.to_vec();
    let protected = finalizers.iter().any(|f| f == finalizer);
    match (deleting, protected) {
        (true, true) if !in_use => finalizers.retain(|f| f != finalizer),
        // What was made before protection came into force.
        (false, false) => finalizers.push(finalizer.to_owned()),
        _ => return None,
    }
    Some(finalizers)
}

/// A pod that no node has yet mounts nothing, and one that ended mounts nothing any more.
fn mounts(pod: &Pod) -> bool {
    !node_name(pod).is_empty() && !is_terminal(pod)
}

struct Claims {
    claims: Informer<PersistentVolumeClaim>,
    pods: Informer<Pod>,
}

/// Runs the controller of claims until the shutdown.
pub(crate) async fn run_claims(context: Context) {
    let controller =
        Arc::new(Claims { claims: context.informers.informer(), pods: context.informers.informer() });
    controller.pods.add_index(BY_CLAIM, claims_of);
    let queue = WorkQueue::new();
    let claims = queue.clone();
    controller.claims.subscribe(move |event| claims.add(Object::key(&**event.object())));
    let pods = queue.clone();
    controller
        .pods
        .subscribe(move |event| claims_of(event.object()).into_iter().for_each(|key| pods.add(key)));
    context.work(&controller, &queue, WORKERS, Claims::reconcile).await;
}

impl Claims {
    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(claim) = self.claims.get(&key) else { return Ok(()) };
        let in_use = is_deleting(&*claim) && self.pods.by_index(BY_CLAIM, &key).iter().any(|pod| mounts(pod));
        write(&self.claims, &*claim, CLAIM_FINALIZER, in_use).await
    }
}

/// Runs the controller of volumes until the shutdown.
pub(crate) async fn run_volumes(context: Context) {
    let volumes: Informer<PersistentVolume> = context.informers.informer();
    let queue = WorkQueue::new();
    let names = queue.clone();
    volumes.subscribe(move |event| names.add(event.object().name().to_owned()));
    let reconcile = |volumes: Arc<Informer<PersistentVolume>>, name: String| async move {
        let Some(volume) = volumes.get(&name) else { return Ok(()) };
        let status = volume.status.as_ref();
        let bound = status.is_some_and(|status| status.phase.as_deref() == Some("Bound"));
        write(&volumes, &*volume, VOLUME_FINALIZER, bound).await
    };
    context.work(&Arc::new(volumes), &queue, WORKERS, reconcile).await;
}

async fn write<T: Object>(
    informer: &Informer<T>,
    object: &T,
    finalizer: &str,
    in_use: bool,
) -> Result<(), Error> {
    let finalizers = object.metadata().finalizers.as_deref().unwrap_or_default();
    let decided = decide(finalizers, is_deleting(object), finalizer, in_use);
    let Some(finalizers) = decided else { return Ok(()) };
    let mut updated = object.clone();
    updated.metadata_mut().finalizers = Some(finalizers);
    match informer.update(&updated).await {
        Err(error) if error.is_not_found() => Ok(()),
        outcome => Ok(outcome.map(drop)?),
    }
}

struct Classes {
    context: Context,
    resource: Resource,
    classes: Informer<Metadata>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
}

/// The VolumeAttributesClasses that a claim has, wants, or is on its way to.
fn classes_of_claim(claim: &PersistentVolumeClaim) -> Vec<String> {
    let status = claim.status.as_ref();
    let names = [
        claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone()),
        status.and_then(|status| status.current_volume_attributes_class_name.clone()),
        status
            .and_then(|status| status.modify_volume_status.as_ref())
            .and_then(|modifying| modifying.target_volume_attributes_class_name.clone()),
    ];
    names.into_iter().flatten().collect()
}

fn class_of_volume(volume: &PersistentVolume) -> Vec<String> {
    volume.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.clone()).into_iter().collect()
}

const BY_CLASS: &str = "volumeattributesclasses";

/// Runs the controller of VolumeAttributesClasses until the shutdown.
pub(crate) async fn run_classes(context: Context) {
    let gvr = GroupVersionResource::from_static("storage.k8s.io", "v1", "volumeattributesclasses");
    let resource = Resource { gvr, namespaced: false };
    let controller = Arc::new(Classes {
        classes: context.informers.metadata(resource.clone()),
        claims: context.informers.informer(),
        volumes: context.informers.informer(),
        resource,
        context,
    });
    controller.claims.add_index(BY_CLASS, classes_of_claim);
    controller.volumes.add_index(BY_CLASS, class_of_volume);
    let queue = WorkQueue::new();
    let classes = queue.clone();
    controller.classes.subscribe(move |event| classes.add(event.object().name.clone()));
    // Both what is used now and what was used before: the latter may have become unused.
    let claims = queue.clone();
    controller.claims.subscribe(move |event| {
        let objects = event.old().into_iter().chain([event.object()]);
        objects.flat_map(|claim| classes_of_claim(claim)).for_each(|name| claims.add(name));
    });
    let volumes = queue.clone();
    controller.volumes.subscribe(move |event| {
        let objects = event.old().into_iter().chain([event.object()]);
        objects.flat_map(|volume| class_of_volume(volume)).for_each(|name| volumes.add(name));
    });
    controller.context.work(&controller, &queue, WORKERS, Classes::reconcile).await;
}

impl Classes {
    async fn reconcile(self: Arc<Self>, name: String) -> Result<(), Error> {
        let Some(class) = self.classes.get(&name) else { return Ok(()) };
        let in_use = !self.claims.by_index(BY_CLASS, &name).is_empty()
            || !self.volumes.by_index(BY_CLASS, &name).is_empty();
        let decided = decide(&class.finalizers, class.deleting, CLASS_FINALIZER, in_use);
        let Some(finalizers) = decided else { return Ok(()) };
        let client = &self.context.client;
        // Its role lets the controller update classes, not patch them.
        let update = async {
            let mut whole = client.get_value(&self.resource, "", &name).await?;
            whole["metadata"]["uid"] = json!(class.uid);
            whole["metadata"]["resourceVersion"] = json!(class.resource_version);
            whole["metadata"]["finalizers"] = json!(finalizers);
            client.update_value(&self.resource, "", &name, None, &whole).await
        };
        match update.await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_deleted_and_unused_loses_its_protection() {
        let check = |deleted: bool, finalizers: &[&str], in_use, expected: Option<&[&str]>| {
            let texts = |list: &[&str]| list.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>();
            assert_eq!(decide(&texts(finalizers), deleted, "p", in_use), expected.map(texts));
        };
        check(true, &["p", "x"], false, Some(&["x"]));
        check(true, &["p"], true, None);
        check(true, &["x"], false, None);
        check(false, &["p"], false, None);
        check(false, &["x"], true, Some(&["x", "p"]));
    }

    #[test]
    fn claims_are_named_by_pods() {
        let pod = Pod::from_value(serde_json::json!({
            "metadata": {"namespace": "ns", "name": "web"},
            "spec": {"containers": [], "volumes": [
                {"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "b", "ephemeral": {}},
                {"name": "c", "emptyDir": {}}
            ]}
        }));
        assert_eq!(claims_of(&pod.unwrap()), ["ns/data", "ns/web-b"]);
    }
}
