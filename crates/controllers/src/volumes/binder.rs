//! Binds claims to volumes.

use std::sync::Arc;

use api::Object;
use api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use api::storage::v1::StorageClass;
use controller_runtime::{Event, EventRecorder, Informer, WorkQueue, reference};

use super::claim_plan::{self, ClaimPlan, Tell, View};
use super::volume_plan::{self, Reclaim, VolumePlan};
use super::{
    BIND_COMPLETED, BOUND_BY_CONTROLLER, BY_CLAIM, PROVISIONER, PROVISIONER_BETA, amount, claim_phase,
    claims_of, is_bound_to, volume_name, volume_phase,
};
use crate::Error;
use crate::context::Context;
use crate::objects::{annotation, annotations_mut, is_terminal, node_name};

/// Volumes are given out one after the other: no two claims see the same one free.
const WORKERS: usize = 1;
const PRE_RESIZE_CAPACITY: &str = "volume.alpha.kubernetes.io/pre-resize-capacity";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Claim(String),
    Volume(String),
}

struct Controller {
    context: Context,
    events: EventRecorder,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
    pods: Informer<Pod>,
    queue: WorkQueue<Key>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        events: context.events("persistentvolume-controller"),
        claims: context.informers.informer(),
        volumes: context.informers.informer(),
        classes: context.informers.informer(),
        pods: context.informers.informer(),
        queue: WorkQueue::new(),
        context,
    });
    controller.pods.add_index(BY_CLAIM, claims_of);
    controller.subscribe();
    let reconcile = |controller: Arc<Controller>, key| async move {
        match key {
            Key::Claim(key) => controller.reconcile_claim(&key).await,
            Key::Volume(name) => controller.reconcile_volume(&name).await,
        }
    };
    controller.context.work(&controller, &controller.queue, WORKERS, reconcile).await;
}

/// The key of the claim that a volume names.
fn claim_key(volume: &PersistentVolume) -> Option<String> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(format!("{}/{}", claim.namespace.as_deref()?, claim.name.as_deref()?))
}

impl Controller {
    fn subscribe(self: &Arc<Self>) {
        let this = self.clone();
        self.claims.subscribe(move |event| {
            let claim = event.object();
            this.queue.add(Key::Claim(Object::key(&**claim)));
            if !volume_name(claim).is_empty() {
                this.queue.add(Key::Volume(volume_name(claim).to_owned()));
            }
            if matches!(event, Event::Deleted(_)) {
                // A volume that was bound before its claim knew of it.
                let orphans = this.volumes.list();
                let named = orphans.iter().filter(|volume| is_bound_to(volume, claim));
                named.for_each(|volume| this.queue.add(Key::Volume(volume.name().to_owned())));
            }
        });
        let this = self.clone();
        self.volumes.subscribe(move |event| {
            let volume = event.object();
            this.queue.add(Key::Volume(volume.name().to_owned()));
            if let Some(claim) = claim_key(volume) {
                this.queue.add(Key::Claim(claim));
            }
            this.ask_pending(event);
        });
        let this = self.clone();
        self.classes.subscribe(move |event| {
            if !matches!(event, Event::Deleted(_)) {
                this.each_pending(|claim| this.queue.add(Key::Claim(Object::key(claim))));
            }
        });
        let this = self.clone();
        self.pods.subscribe(move |event| {
            if let Event::Added(pod) = event
                && node_name(pod).is_empty()
            {
                claims_of(pod).into_iter().for_each(|claim| this.queue.add(Key::Claim(claim)));
            }
        });
    }

    fn each_pending(&self, act: impl Fn(&PersistentVolumeClaim)) {
        let claims = self.claims.list();
        let pending = claims.iter().filter(|claim| annotation(&***claim, BIND_COMPLETED).is_none());
        pending.for_each(|claim| act(claim));
    }

    /// A volume that became free may be what a claim waits for.
    fn ask_pending(&self, event: &Event<PersistentVolume>) {
        let volume = event.object();
        let free = |volume: &PersistentVolume| volume_phase(volume) == "Available";
        let newly_free = free(volume) && event.old().is_none_or(|old| !free(old));
        if newly_free || matches!(event, Event::Added(_)) {
            self.each_pending(|claim| self.queue.add(Key::Claim(Object::key(claim))));
        }
    }

    fn tell<T: Object>(&self, object: &T, tell: Tell) {
        self.events.event(object, tell.kind, tell.reason, tell.message);
    }

    async fn reconcile_claim(&self, key: &str) -> Result<(), Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        let (volumes, classes) = (self.volumes.list(), self.classes.list());
        let pods = self.pods.by_index(BY_CLAIM, key);
        let waiting = pods.iter().filter(|pod| node_name(pod).is_empty() && !is_terminal(pod));
        let view = View {
            volumes: &volumes.iter().map(|volume| &**volume).collect::<Vec<_>>(),
            classes: &classes.iter().map(|class| &**class).collect::<Vec<_>>(),
            waiting_pods: &waiting.map(|pod| pod.name().to_owned()).collect::<Vec<_>>(),
        };
        match claim_plan::decide(&claim, &view) {
            ClaimPlan::Pending(tell) => {
                if let Some(tell) = tell {
                    self.tell(&*claim, tell);
                }
                self.write_claim_status(&claim, "Pending", None).await
            }
            ClaimPlan::AssignClass(class) => {
                let mut updated = (*claim).clone();
                updated.spec.get_or_insert_default().storage_class_name = Some(class);
                Ok(self.claims.update(&updated).await.map(drop)?)
            }
            ClaimPlan::Provision(provisioner) => self.provision(&claim, &provisioner).await,
            ClaimPlan::CannotProvision(tell) => {
                self.tell(&*claim, tell);
                self.write_claim_status(&claim, "Pending", None).await
            }
            ClaimPlan::Lost(tell) => {
                if claim_phase(&claim) == "Lost" {
                    return Ok(());
                }
                // The volume may be there and our cache behind.
                if self
                    .context
                    .client
                    .get::<PersistentVolume>("", volume_name(&claim))
                    .await
                    .is_ok_and(|volume| self.volumes.get(volume.name()).is_none())
                {
                    return Err(Error::Unfinished("the volume is not known yet".to_owned()));
                }
                self.write_claim_status(&claim, "Lost", None).await?;
                self.tell(&*claim, tell);
                Ok(())
            }
            ClaimPlan::Bind(name) => {
                let Some(volume) = self.volumes.get(&name) else { return Ok(()) };
                self.bind(volume, claim).await
            }
        }
    }

    /// Asks the provisioner that stands outside of us.
    ///
    /// Upstream: pkg/controller/volume/persistentvolume/pv_controller.go provisionClaimOperationExternal
    async fn provision(&self, claim: &Arc<PersistentVolumeClaim>, provisioner: &str) -> Result<(), Error> {
        let mut asked = claim.clone();
        if [PROVISIONER, PROVISIONER_BETA].iter().any(|key| annotation(&**claim, key) != Some(provisioner)) {
            let mut updated = (**claim).clone();
            for key in [PROVISIONER, PROVISIONER_BETA] {
                annotations_mut(&mut updated).insert(key.to_owned(), provisioner.to_owned());
            }
            asked = match self.claims.update(&updated).await {
                Err(error) if error.is_not_found() => return Ok(()),
                Err(error) => {
                    let message = format!("Error saving claim: {error}");
                    self.events.warning(&**claim, "ProvisioningFailed", message);
                    return Err(error.into());
                }
                Ok(updated) => updated,
            };
        }
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by \
             the system administrator. If volume creation is delayed, please verify that the provisioner is \
             running and correctly registered."
        );
        self.events.normal(&*asked, "ExternalProvisioning", message);
        Ok(())
    }

    /// The volume first: it is what two claims could fight over.
    ///
    /// Upstream: pkg/controller/volume/persistentvolume/pv_controller.go bind
    async fn bind(
        &self,
        volume: Arc<PersistentVolume>,
        claim: Arc<PersistentVolumeClaim>,
    ) -> Result<(), Error> {
        let volume = match bound_volume(&volume, &claim) {
            Some(updated) => self.volumes.update(&updated).await?,
            None => volume,
        };
        let volume = self.write_volume_phase(&volume, "Bound", None).await?;
        let claim = match bound_claim(&claim, volume.name()) {
            Some(updated) => self.claims.update(&updated).await?,
            None => claim,
        };
        self.write_claim_status(&claim, "Bound", Some(&volume)).await
    }

    async fn write_claim_status(
        &self,
        claim: &PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> Result<(), Error> {
        let Some(updated) = claim_status(claim, phase, volume)? else { return Ok(()) };
        match self.claims.update_status(&updated).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }

    async fn write_volume_phase(
        &self,
        volume: &Arc<PersistentVolume>,
        phase: &str,
        message: Option<String>,
    ) -> Result<Arc<PersistentVolume>, Error> {
        if volume_phase(volume) == phase {
            return Ok(volume.clone());
        }
        let mut updated = (**volume).clone();
        let status = updated.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        status.message = message;
        Ok(self.volumes.update_status(&updated).await?)
    }

    async fn reconcile_volume(&self, name: &str) -> Result<(), Error> {
        let Some(volume) = self.volumes.get(name) else { return Ok(()) };
        let claim = self.claim_of(&volume).await?;
        match volume_plan::decide(&volume, claim.as_deref()) {
            VolumePlan::Available => self.write_volume_phase(&volume, "Available", None).await.map(drop),
            VolumePlan::Bound => self.write_volume_phase(&volume, "Bound", None).await.map(drop),
            VolumePlan::AskClaim => {
                self.queue.add(Key::Claim(claim_key(&volume).unwrap_or_default()));
                Ok(())
            }
            VolumePlan::Mismatch => {
                if let Some(claim) = claim {
                    let message = format!(
                        "Cannot bind PersistentVolume to requested PersistentVolumeClaim {:?} due to \
                         incompatible volumeMode.",
                        claim.name()
                    );
                    self.events.warning(&*volume, "VolumeMismatch", message);
                    let message = format!(
                        "Cannot bind PersistentVolume {name:?} to requested PersistentVolumeClaim due to \
                         incompatible volumeMode."
                    );
                    self.events.warning(&*claim, "VolumeMismatch", message);
                }
                Ok(())
            }
            VolumePlan::Unbind { entirely } => {
                let freed = self.volumes.update(&unbound(&volume, entirely)).await?;
                self.write_volume_phase(&freed, "Available", None).await.map(drop)
            }
            VolumePlan::Released(reclaim) => self.release(volume, reclaim).await,
        }
    }

    /// The claim that the volume names, with the same uid. The server is asked before a volume is let go.
    async fn claim_of(&self, volume: &PersistentVolume) -> Result<Option<Arc<PersistentVolumeClaim>>, Error> {
        let Some(reference) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else {
            return Ok(None);
        };
        let uid = reference.uid.as_deref().unwrap_or_default();
        let key = claim_key(volume).unwrap_or_default();
        let known = self.claims.get(&key).filter(|claim| claim.uid() == uid);
        if known.is_some() || volume_plan::is_released(volume) || uid.is_empty() {
            return Ok(known);
        }
        let (namespace, name) = crate::objects::split_key(&key);
        match self.context.client.get::<PersistentVolumeClaim>(namespace, name).await {
            Ok(claim) => Ok(Some(Arc::new(claim)).filter(|claim| claim.uid() == uid)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn release(&self, volume: Arc<PersistentVolume>, reclaim: Reclaim) -> Result<(), Error> {
        let volume = match volume_plan::is_released(&volume) {
            true => volume,
            false => self.write_volume_phase(&volume, "Released", None).await?,
        };
        let failure = volume_plan::failure(&volume, &reclaim).filter(|_| volume_phase(&volume) != "Failed");
        if let Some(failure) = failure {
            let failed = self.write_volume_phase(&volume, "Failed", Some(failure.message.clone())).await?;
            self.tell(&*failed, failure);
        }
        Ok(())
    }
}

/// The volume bound to the claim; `None` when it is so.
///
/// Upstream: component-helpers/storage/volume/pv_helpers.go GetBindVolumeToClaim
pub(super) fn bound_volume(
    volume: &PersistentVolume,
    claim: &PersistentVolumeClaim,
) -> Option<PersistentVolume> {
    let ours = is_bound_to(volume, claim);
    let complete = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.claim_ref.as_ref())
        .is_some_and(|reference| reference.uid.as_deref() == Some(claim.uid()));
    if ours && complete {
        return None;
    }
    let mut updated = volume.clone();
    updated.spec.get_or_insert_default().claim_ref = Some(reference(claim));
    if !ours {
        annotations_mut(&mut updated)
            .entry(BOUND_BY_CONTROLLER.to_owned())
            .or_insert_with(|| "yes".to_owned());
    }
    Some(updated)
}

/// The claim bound to the volume; `None` when it is so.
pub(super) fn bound_claim(claim: &PersistentVolumeClaim, volume: &str) -> Option<PersistentVolumeClaim> {
    let chosen = volume_name(claim) == volume;
    if chosen && annotation(claim, BIND_COMPLETED).is_some() {
        return None;
    }
    let mut updated = claim.clone();
    if !chosen {
        updated.spec.get_or_insert_default().volume_name = Some(volume.to_owned());
        annotations_mut(&mut updated)
            .entry(BOUND_BY_CONTROLLER.to_owned())
            .or_insert_with(|| "yes".to_owned());
    }
    annotations_mut(&mut updated).insert(BIND_COMPLETED.to_owned(), "yes".to_owned());
    Some(updated)
}

/// Upstream: pkg/controller/volume/persistentvolume/pv_controller.go unbindVolume
fn unbound(volume: &PersistentVolume, entirely: bool) -> PersistentVolume {
    let mut updated = volume.clone();
    let spec = updated.spec.get_or_insert_default();
    if entirely {
        spec.claim_ref = None;
        annotations_mut(&mut updated).remove(BOUND_BY_CONTROLLER);
    } else if let Some(reference) = &mut spec.claim_ref {
        reference.uid = None;
    }
    updated
}

/// The claim with its status; `None` when it is so.
///
/// Upstream: pkg/controller/volume/persistentvolume/pv_controller.go updateClaimStatus
pub(super) fn claim_status(
    claim: &PersistentVolumeClaim,
    phase: &str,
    volume: Option<&PersistentVolume>,
) -> Result<Option<PersistentVolumeClaim>, Error> {
    let mut updated = claim.clone();
    let status = updated.status.get_or_insert_default();
    let was = claim_phase(claim);
    status.phase = Some(phase.to_owned());
    match volume {
        None => {
            status.access_modes = None;
            status.capacity = None;
            status.current_volume_attributes_class_name = None;
        }
        Some(volume) => {
            let spec = volume.spec.as_ref();
            status.access_modes = spec.and_then(|spec| spec.access_modes.clone());
            // A claim that is bound already may have less than its volume: its file system grows later.
            if was != phase {
                let storage = spec.and_then(|spec| spec.capacity.as_ref()?.get("storage"));
                let storage = storage.ok_or_else(|| {
                    let name = volume.name();
                    Error::Unfinished(format!("PersistentVolume {name:?} is without a storage capacity"))
                })?;
                let before = annotation(volume, PRE_RESIZE_CAPACITY);
                let have = status.capacity.as_ref().and_then(|capacity| capacity.get("storage"));
                if let Some(before) = before {
                    let capacity = status.capacity.get_or_insert_default();
                    capacity.insert("storage".to_owned(), api::Quantity(before.to_owned()));
                } else if have.is_none() || amount(have) != amount(Some(storage)) {
                    status.capacity = spec.and_then(|spec| spec.capacity.clone());
                }
            }
            if was == "Pending" && phase == "Bound" {
                status.current_volume_attributes_class_name =
                    spec.and_then(|spec| spec.volume_attributes_class_name.clone());
            }
        }
    }
    Ok((updated.status != claim.status).then_some(updated))
}
