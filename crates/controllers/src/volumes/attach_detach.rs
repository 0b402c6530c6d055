//! Volumes of CSI drivers that are attached to nodes: one VolumeAttachment for each volume that a node's pods
//! use, removed when the node has unmounted it; and what the node may mount, in its status.
//!
//! Upstream: pkg/controller/volume/attachdetach

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use api::storage::v1::{CSIDriver, VolumeAttachment, VolumeAttachmentSource, VolumeAttachmentSpec};
use client::PatchType;
use controller_runtime::{EventRecorder, Informer, WorkQueue};
use jiff::Timestamp;
use ring::digest;
use serde_json::json;

use super::{BY_CLAIM, claim_phase, claims_of, volume_name};
use crate::Error;
use crate::context::Context;
use crate::node_lifecycle::index_by_node;
use crate::objects::{is_deleting, is_terminal, node_name, until};

const WORKERS: usize = 4;
/// A node that does not answer is waited for so long before its volumes are taken from it.
///
/// Upstream: pkg/controller/volume/attachdetach/attach_detach_controller.go DefaultTimerConfig
const MAX_WAIT_FOR_UNMOUNT: i64 = 6 * 60;
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// A volume that can be attached.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Attachable {
    pub volume: String,
    pub driver: String,
    pub handle: String,
    /// Whether several nodes may have it at once.
    pub shared: bool,
}

impl Attachable {
    /// Upstream: pkg/volume/util/util.go IsMultiAttachAllowed
    pub fn of(volume: &PersistentVolume) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let csi = spec.csi.as_ref()?;
        let modes = spec.access_modes.as_deref().unwrap_or_default();
        let shared = modes.is_empty() || modes.iter().any(|m| m == "ReadWriteMany" || m == "ReadOnlyMany");
        Some(Attachable {
            volume: volume.name().to_owned(),
            driver: csi.driver.clone(),
            handle: csi.volume_handle.clone(),
            shared,
        })
    }

    /// How nodes call it.
    pub fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }

    /// Upstream: pkg/volume/csi/csi_attacher.go getAttachmentName
    pub fn attachment_name(&self, node: &str) -> String {
        let text = format!("{}{}{node}", self.handle, self.driver);
        let hash = digest::digest(&digest::SHA256, text.as_bytes());
        let hex: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("csi-{hex}")
    }
}

/// What is known of a node's volumes.
pub(super) struct View<'a> {
    pub node: &'a Node,
    /// What its pods use.
    pub wanted: &'a [Attachable],
    /// Our attachments to it, with their volumes.
    pub attached: &'a [(Attachable, Arc<VolumeAttachment>)],
    /// Volumes that other nodes have.
    pub elsewhere: &'a BTreeSet<String>,
    /// Since when volumes are to be taken from the node.
    pub waiting_since: &'a HashMap<String, Timestamp>,
    pub now: Timestamp,
}

#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub attach: Vec<Attachable>,
    /// Another node has it, and only one may.
    pub blocked: Vec<String>,
    /// Attachments to be removed.
    pub detach: Vec<String>,
    /// Volumes that the node still has mounted.
    pub awaited: Vec<String>,
    /// What the node is told that it has.
    pub told: Vec<String>,
    pub again: Option<Duration>,
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Upstream: pkg/controller/volume/attachdetach/reconciler/reconciler.go reconcile
pub(super) fn decide(view: &View<'_>) -> Plan {
    let status = view.node.status.as_ref();
    let in_use = status.and_then(|status| status.volumes_in_use.as_deref()).unwrap_or_default();
    let taints = view.node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let out_of_service = taints.iter().any(|taint| taint.key == OUT_OF_SERVICE);
    let mut plan = Plan::default();
    for volume in view.wanted {
        if view.attached.iter().any(|(attached, _)| attached.volume == volume.volume) {
            continue;
        }
        if view.elsewhere.contains(&volume.volume) && !volume.shared {
            plan.blocked.push(volume.volume.clone());
        } else {
            plan.attach.push(volume.clone());
        }
    }
    for (volume, attachment) in view.attached {
        let is_attached = attachment.status.as_ref().is_some_and(|status| status.attached);
        if view.wanted.iter().any(|wanted| wanted.volume == volume.volume) {
            if is_attached {
                plan.told.push(volume.unique_name());
            }
            continue;
        }
        let unique_name = volume.unique_name();
        if !out_of_service && in_use.contains(&unique_name) {
            plan.awaited.push(volume.volume.clone());
            let since = view.waiting_since.get(&volume.volume).copied().unwrap_or(view.now);
            let forced = since + jiff::SignedDuration::from_secs(MAX_WAIT_FOR_UNMOUNT);
            let left = until(forced, view.now);
            if is_ready(view.node) || !left.is_zero() {
                plan.told.extend(is_attached.then_some(unique_name));
                if !left.is_zero() {
                    plan.again = Some(plan.again.map_or(left, |again| again.min(left)));
                }
                continue;
            }
        }
        if !is_deleting(&**attachment) {
            plan.detach.push(attachment.name().to_owned());
        }
    }
    plan.told.sort();
    plan
}

/// Why a pod cannot have a volume that other nodes have. It is not told the names of pods of other namespaces.
///
/// Upstream: pkg/controller/volume/attachdetach/reconciler/reconciler.go reportMultiAttachError
pub(super) fn multi_attach(namespace: &str, users: &[(String, String)]) -> String {
    let near: Vec<&str> =
        users.iter().filter(|(n, _)| n == namespace).map(|(_, name)| name.as_str()).collect();
    let far = users.len() - near.len();
    match (near.is_empty(), far) {
        (true, 0) => {
            "Volume is already exclusively attached to one node and can't be attached to another".to_owned()
        }
        (true, far) => format!("Volume is already used by {far} pod(s) in different namespaces"),
        (false, 0) => format!("Volume is already used by pod(s) {}", near.join(", ")),
        (false, far) => {
            let near = near.join(", ");
            format!("Volume is already used by pod(s) {near} and {far} pod(s) in different namespaces")
        }
    }
}

struct Controller {
    context: Context,
    events: EventRecorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    drivers: Informer<CSIDriver>,
    attachments: Informer<VolumeAttachment>,
    queue: WorkQueue<String>,
    /// By node and volume: since when the volume is to be taken from the node.
    waiting: Mutex<BTreeMap<String, HashMap<String, Timestamp>>>,
}

const BY_NODE: &str = "attached node";

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let informers = &context.informers;
    let controller = Arc::new(Controller {
        events: context.events("attachdetach-controller"),
        nodes: informers.informer(),
        pods: informers.informer(),
        claims: informers.informer(),
        volumes: informers.informer(),
        drivers: informers.informer(),
        attachments: informers.informer(),
        queue: WorkQueue::new(),
        waiting: Mutex::default(),
        context: context.clone(),
    });
    index_by_node(&controller.pods);
    controller.pods.add_index(BY_CLAIM, claims_of);
    controller.attachments.add_index(BY_NODE, |attachment| vec![attachment.spec.node_name.clone()]);
    controller.subscribe();
    let queue = controller.queue.clone();
    context.work(&controller, &queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    fn subscribe(self: &Arc<Self>) {
        let this = self.clone();
        self.nodes.subscribe(move |event| {
            // Nodes beat often; only what concerns volumes is looked at.
            let in_use = |node: &Node| {
                let status = node.status.as_ref();
                (
                    status.and_then(|s| s.volumes_in_use.clone()),
                    status.and_then(|s| s.volumes_attached.clone()),
                    node.spec.as_ref().and_then(|spec| spec.taints.clone()),
                    is_ready(node),
                )
            };
            let node = event.object();
            if event.old().is_none_or(|old| in_use(old) != in_use(node)) {
                this.queue.add(node.name().to_owned());
            }
        });
        let this = self.clone();
        self.pods.subscribe(move |event| {
            let pod = event.object();
            let moved = event
                .old()
                .is_none_or(|old| node_name(old) != node_name(pod) || is_terminal(old) != is_terminal(pod));
            if moved && !node_name(pod).is_empty() && !claims_of(pod).is_empty() {
                this.queue.add(node_name(pod).to_owned());
            }
        });
        let this = self.clone();
        self.claims.subscribe(move |event| this.ask_users(&Object::key(&**event.object())));
        let this = self.clone();
        self.volumes.subscribe(move |event| {
            let reference = event.object().spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
            if let Some(reference) = reference {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                this.ask_users(&format!("{}/{}", text(&reference.namespace), text(&reference.name)));
            }
        });
        let this = self.clone();
        self.attachments.subscribe(move |event| {
            let attachment = event.object();
            this.tell_error(event.old().map(|old| &**old), attachment);
            this.queue.add(attachment.spec.node_name.clone());
            // Who waits for it to leave its node.
            let volume = attachment.spec.source.persistent_volume_name.as_deref();
            let volume = volume.and_then(|volume| this.volumes.get(volume));
            let reference = volume.as_ref().and_then(|volume| volume.spec.as_ref()?.claim_ref.as_ref());
            if let Some(reference) = reference {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                this.ask_users(&format!("{}/{}", text(&reference.namespace), text(&reference.name)));
            }
        });
    }

    /// The nodes of the pods that use a claim.
    fn ask_users(&self, claim: &str) {
        let pods = self.pods.by_index(BY_CLAIM, claim);
        let nodes = pods.iter().map(|pod| node_name(pod)).filter(|node| !node.is_empty());
        nodes.for_each(|node| self.queue.add(node.to_owned()));
    }

    fn attachable(&self, claim: &str) -> Option<Attachable> {
        let claim = self.claims.get(claim).filter(|claim| claim_phase(claim) == "Bound")?;
        let volume = Attachable::of(&*self.volumes.get(volume_name(&claim))?)?;
        let driver = self.drivers.get(&volume.driver);
        let attach = driver.and_then(|driver| driver.spec.attach_required).unwrap_or(true);
        attach.then_some(volume)
    }

    fn wanted(&self, node: &str) -> Vec<Attachable> {
        let pods = self.pods.by_index("node", node);
        let claims = pods.iter().filter(|pod| !is_terminal(pod)).flat_map(|pod| claims_of(pod));
        let volumes: BTreeMap<_, _> =
            claims.filter_map(|claim| self.attachable(&claim)).map(|v| (v.volume.clone(), v)).collect();
        volumes.into_values().collect()
    }

    /// Our attachments: those that others made under names of their own are theirs.
    fn ours(&self, attachment: &VolumeAttachment) -> Option<Attachable> {
        let volume = attachment.spec.source.persistent_volume_name.as_deref()?;
        let volume = Attachable::of(&*self.volumes.get(volume)?)?;
        (volume.attachment_name(&attachment.spec.node_name) == attachment.name()).then_some(volume)
    }

    async fn reconcile(self: Arc<Self>, name: String) -> Result<(), Error> {
        let attached: Vec<_> = self
            .attachments
            .by_index(BY_NODE, &name)
            .into_iter()
            .filter_map(|attachment| Some((self.ours(&attachment)?, attachment)))
            .collect();
        let gone = || {
            let metadata = api::meta::ObjectMeta { name: Some(name.clone()), ..Default::default() };
            Arc::new(Node { metadata, ..Default::default() })
        };
        let node = self.nodes.get(&name);
        let wanted = if node.is_some() { self.wanted(&name) } else { Vec::new() };
        let elsewhere = self.elsewhere(&name, &wanted);
        let now = self.context.clock().now();
        let waiting_since = {
            let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.get(&name).cloned().unwrap_or_default()
        };
        let plan = decide(&View {
            node: node.as_ref().unwrap_or(&gone()),
            wanted: &wanted,
            attached: &attached,
            elsewhere: &elsewhere,
            waiting_since: &waiting_since,
            now,
        });
        self.remember(&name, &plan, &waiting_since, now);
        if let Some(again) = plan.again {
            self.queue.add_after(name.clone(), again);
        }
        // A node is told before a volume leaves it, and after it came.
        if let Some(node) = &node {
            self.tell_node(node, &plan.told).await?;
        }
        for name in &plan.detach {
            let Some(attachment) = self.attachments.get(name) else { continue };
            self.context.delete(&*attachment).await?;
        }
        for volume in &plan.attach {
            self.attach(&name, volume).await?;
        }
        for volume in &plan.blocked {
            let others = self.users_elsewhere(&name, volume);
            self.each_user(&name, volume, |pod| {
                let why = multi_attach(pod.namespace(), &others);
                let message = format!("Multi-Attach error for volume {volume:?} {why}");
                self.events.warning(pod, "FailedAttachVolume", message);
            });
        }
        Ok(())
    }

    /// The pods of other nodes that use the volume, by namespace and name.
    fn users_elsewhere(&self, node: &str, volume: &str) -> Vec<(String, String)> {
        let found = self.volumes.get(volume);
        let claim = found.as_ref().and_then(|volume| volume.spec.as_ref()?.claim_ref.as_ref());
        let Some(claim) = claim else { return Vec::new() };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let pods = self.pods.by_index(BY_CLAIM, &format!("{}/{}", text(&claim.namespace), text(&claim.name)));
        let others = pods
            .iter()
            .filter(|pod| !is_terminal(pod) && !node_name(pod).is_empty() && node_name(pod) != node);
        let mut names: Vec<_> =
            others.map(|pod| (pod.namespace().to_owned(), pod.name().to_owned())).collect();
        names.sort();
        names
    }

    /// Those of the volumes that other nodes have.
    fn elsewhere(&self, node: &str, wanted: &[Attachable]) -> BTreeSet<String> {
        if wanted.iter().all(|volume| volume.shared) {
            return BTreeSet::new();
        }
        let attachments = self.attachments.list();
        let others = attachments.iter().filter(|attachment| attachment.spec.node_name != node);
        others.filter_map(|attachment| attachment.spec.source.persistent_volume_name.clone()).collect()
    }

    fn remember(&self, node: &str, plan: &Plan, since: &HashMap<String, Timestamp>, now: Timestamp) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if plan.awaited.is_empty() {
            waiting.remove(node);
            return;
        }
        let awaited = plan.awaited.iter();
        let awaited = awaited.map(|volume| (volume.clone(), since.get(volume).copied().unwrap_or(now)));
        waiting.insert(node.to_owned(), awaited.collect());
    }

    async fn attach(&self, node: &str, volume: &Attachable) -> Result<(), Error> {
        let attachment = VolumeAttachment {
            metadata: api::meta::ObjectMeta {
                name: Some(volume.attachment_name(node)),
                ..Default::default()
            },
            spec: VolumeAttachmentSpec {
                attacher: volume.driver.clone(),
                node_name: node.to_owned(),
                source: VolumeAttachmentSource {
                    persistent_volume_name: Some(volume.volume.clone()),
                    ..Default::default()
                },
            },
            status: None,
        };
        match self.attachments.create(&attachment).await {
            Err(error) if error.is_already_exists() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }

    async fn tell_node(&self, node: &Node, told: &[String]) -> Result<(), Error> {
        let status = node.status.as_ref();
        let before = status.and_then(|status| status.volumes_attached.as_deref()).unwrap_or_default();
        let mut known: Vec<&str> = before.iter().map(|volume| volume.name.as_str()).collect();
        known.sort_unstable();
        if known == told {
            return Ok(());
        }
        let list: Vec<_> = told.iter().map(|name| json!({"name": name, "devicePath": ""})).collect();
        let patch = json!({"metadata": {"uid": node.uid()}, "status": {"volumesAttached": list}});
        match self.nodes.patch(node, Some("status"), PatchType::Merge, &patch).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }

    fn each_user(&self, node: &str, volume: &str, act: impl Fn(&Pod)) {
        let pods = self.pods.by_index("node", node);
        let uses = |pod: &Pod| {
            let claims = claims_of(pod).into_iter().filter_map(|claim| self.claims.get(&claim));
            claims.into_iter().any(|claim| volume_name(&claim) == volume)
        };
        pods.iter().filter(|pod| uses(pod)).for_each(|pod| act(pod));
    }

    /// Tells the pods that wait how the attaching went.
    fn tell_error(&self, old: Option<&VolumeAttachment>, new: &VolumeAttachment) {
        let attached = |attachment: &VolumeAttachment| attachment.status.as_ref().is_some_and(|s| s.attached);
        let error = |attachment: &VolumeAttachment| {
            attachment.status.as_ref().and_then(|s| s.attach_error.as_ref()?.message.clone())
        };
        let (node, Some(volume)) = (&new.spec.node_name, new.spec.source.persistent_volume_name.as_deref())
        else {
            return;
        };
        let Some(old) = old.filter(|_| self.ours(new).is_some()) else { return };
        if attached(new) && !attached(old) {
            let message = format!("AttachVolume.Attach succeeded for volume {volume:?} ");
            self.each_user(node, volume, |pod| {
                self.events.normal(pod, "SuccessfulAttachVolume", message.clone());
            });
        } else if let Some(why) = error(new).filter(|why| error(old).as_ref() != Some(why)) {
            let message = format!("AttachVolume.Attach failed for volume {volume:?} : {why}");
            self.each_user(node, volume, |pod| {
                self.events.warning(pod, "FailedAttachVolume", message.clone());
            });
        }
    }
}
