//! Tells that a claim which wants to grow waits for whoever can make its volume grow: no kind of volume that we
//! know ourselves can.
//!
//! Upstream: pkg/controller/volume/expand/expand_controller.go

use std::sync::Arc;

use api::Object;
use api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use controller_runtime::{Event, EventRecorder, Informer, WorkQueue};

use super::{amount, claim_phase, requested, volume_name};
use crate::Error;
use crate::context::Context;

fn has(claim: &PersistentVolumeClaim) -> apimachinery::quantity::Quantity {
    amount(claim.status.as_ref().and_then(|status| status.capacity.as_ref()?.get("storage")))
}

/// Whether the event is of a bound claim that wants more than before, or than it has when we come.
pub(super) fn concerns(event: &Event<PersistentVolumeClaim>) -> bool {
    let claim = match event {
        Event::Deleted(_) => return false,
        Event::Added(claim) | Event::Updated { new: claim, .. } => claim,
    };
    claim_phase(claim) == "Bound"
        && requested(claim) > has(claim)
        && event.old().is_none_or(|old| requested(claim) > requested(old))
}

struct Controller {
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    events: EventRecorder,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        claims: context.informers.informer(),
        volumes: context.informers.informer(),
        events: context.events("volume_expand"),
    });
    let queue = WorkQueue::new();
    let growing = queue.clone();
    controller.claims.subscribe(move |event| {
        if concerns(event) {
            growing.add(Object::key(&**event.object()));
        }
    });
    let reconcile = |controller: Arc<Controller>, key: String| async move { controller.reconcile(&key) };
    context.work(&controller, &queue, 1, reconcile).await;
}

impl Controller {
    fn reconcile(&self, key: &str) -> Result<(), Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        let volume = self.volumes.get(volume_name(&claim));
        let reference = volume.as_ref().and_then(|volume| volume.spec.as_ref()?.claim_ref.as_ref());
        if reference.and_then(|reference| reference.uid.as_deref()) != Some(claim.uid()) {
            let message = format!("persistent Volume is not bound to PVC being updated : {key}");
            return Err(Error::Unfinished(message));
        }
        let message = "waiting for an external controller to expand this PVC";
        self.events.normal(&*claim, "ExternalExpanding", message);
        Ok(())
    }
}
