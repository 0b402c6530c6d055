//! Claims for the ephemeral volumes of pods, made with the pod and owned by it.
//!
//! Upstream: pkg/controller/volume/ephemeral/controller.go

use std::sync::Arc;

use api::Object;
use api::core::v1::{PersistentVolumeClaim, Pod, Volume};
use api::meta::ObjectMeta;
use controller_runtime::{Event, EventRecorder, Informer, WorkQueue};

use super::{BY_CLAIM, claims_of};
use crate::Error;
use crate::context::Context;
use crate::objects::{controller_reference, is_controlled_by, is_deleting};

const WORKERS: usize = 4;

/// The claim of a volume; `None` when it is there already.
///
/// Upstream: component-helpers/storage/ephemeral/ephemeral.go VolumeIsForPod
pub(super) fn decide(
    pod: &Pod,
    volume: &Volume,
    existing: Option<&PersistentVolumeClaim>,
) -> Result<Option<PersistentVolumeClaim>, String> {
    let Some(template) = volume.ephemeral.as_ref().and_then(|e| e.volume_claim_template.as_ref()) else {
        return Ok(None);
    };
    if let Some(claim) = existing {
        if is_controlled_by(claim, pod.uid()) {
            return Ok(None);
        }
        let (pod, claim) = (Object::key(pod), Object::key(claim));
        return Err(format!("PVC {claim} was not created for pod {pod} (pod is not owner)"));
    }
    let from = template.metadata.as_ref();
    let metadata = ObjectMeta {
        name: Some(format!("{}-{}", pod.name(), volume.name)),
        namespace: Some(pod.namespace().to_owned()),
        annotations: from.and_then(|metadata| metadata.annotations.clone()),
        labels: from.and_then(|metadata| metadata.labels.clone()),
        owner_references: Some(vec![controller_reference(pod)]),
        ..Default::default()
    };
    Ok(Some(PersistentVolumeClaim { metadata, spec: Some(template.spec.clone()), ..Default::default() }))
}

fn has_ephemeral(pod: &Pod) -> bool {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|volume| volume.ephemeral.is_some())
}

struct Controller {
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    events: EventRecorder,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        pods: context.informers.informer(),
        claims: context.informers.informer(),
        events: context.events("ephemeral_volume"),
    });
    controller.pods.add_index(BY_CLAIM, claims_of);
    let queue = WorkQueue::new();
    let pods = queue.clone();
    controller.pods.subscribe(move |event| {
        if let Event::Added(pod) = event
            && has_ephemeral(pod)
        {
            pods.add(Object::key(&**pod));
        }
    });
    let (claims, this) = (queue.clone(), controller.clone());
    controller.claims.subscribe(move |event| {
        if let Event::Deleted(claim) = event {
            let users = this.pods.by_index(BY_CLAIM, &Object::key(&**claim));
            let users = users.iter().filter(|pod| has_ephemeral(pod));
            users.for_each(|pod| claims.add(Object::key(&**pod)));
        }
    });
    context.work(&controller, &queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(pod) = self.pods.get(&key).filter(|pod| !is_deleting(&**pod)) else { return Ok(()) };
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            if let Err(why) = self.make(&pod, volume).await {
                let message = format!("ephemeral volume {}: {why}", volume.name);
                self.events.warning(&*pod, "FailedBinding", message.clone());
                return Err(Error::Unfinished(format!("pod {key}, {message}")));
            }
        }
        Ok(())
    }

    async fn make(&self, pod: &Pod, volume: &Volume) -> Result<(), String> {
        let name = format!("{}-{}", pod.name(), volume.name);
        let existing = self.claims.get_in(pod.namespace(), &name);
        let Some(claim) = decide(pod, volume, existing.as_deref())? else { return Ok(()) };
        let created = self.claims.create(&claim).await;
        created.map(drop).map_err(|error| format!("create PVC {name}: {error}"))
    }
}
