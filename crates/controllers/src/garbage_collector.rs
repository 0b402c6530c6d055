//! The garbage collector: deletes what no owner holds any more, in the background, in the foreground, or not at
//! all when dependents are to be orphaned. The decisions are the [graph](crate::garbage_graph)'s.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::core::v1::ObjectReference;
use api::meta::OwnerReference;
use client::{DeleteOptions, Error as ClientError, PatchType, Preconditions, Propagation};
use controller_runtime::{EventRecorder, EventType, Metadata, WorkQueue};
use serde_json::{Value, json};

use crate::Error;
use crate::context::Context;
use crate::garbage_graph::{Absent, Action, Graph, Node, ORPHAN, Uid};

/// Upstream: pkg/controller/garbagecollector/config/v1alpha1/defaults.go ConcurrentGCSyncs
const WORKERS: usize = 20;

struct Controller {
    context: Context,
    graph: Mutex<Graph>,
    events: EventRecorder,
    queue: WorkQueue<Uid>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        graph: Mutex::default(),
        events: context.events("garbage-collector-controller"),
        queue: WorkQueue::new(),
        context,
    });
    let this = controller.clone();
    controller.context.universe.subscribe(move |resource, event| {
        let visit = this.lock().observe(resource, event);
        visit.into_iter().for_each(|uid| this.queue.add(uid));
    });
    if controller.context.universe.synced().await {
        controller.context.work(&controller, &controller.queue, WORKERS, Controller::visit).await;
    }
}

impl Controller {
    fn lock(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn visit(self: Arc<Self>, uid: String) -> Result<(), Error> {
        self.tell_misplaced(&uid);
        let mut absent = HashMap::new();
        loop {
            let (node, action) = {
                let graph = self.lock();
                let Some(node) = graph.node(&uid).cloned() else { return Ok(()) };
                let action = graph.decide(&uid, &absent);
                (node, action)
            };
            match action {
                Action::Ask(owners) => {
                    for owner in owners {
                        absent.insert(owner.uid.clone(), self.ask(&node, &owner).await?);
                    }
                }
                action => return self.act(&node, action).await,
            }
        }
    }

    /// Upstream: pkg/controller/garbagecollector/graph_builder.go reportInvalidNamespaceOwnerRef
    fn tell_misplaced(&self, uid: &str) {
        let graph = self.lock();
        let Some((node, owner)) = graph.node(uid).zip(graph.misplaced(uid)) else { return };
        let Metadata { namespace, name, .. } = &*node.object;
        let OwnerReference { api_version, kind, name: owner, uid: owner_uid, .. } = owner;
        let message = format!(
            "ownerRef [{api_version}/{kind}, namespace: {namespace}, name: {owner}, uid: {owner_uid}] does not exist in \
             namespace {namespace:?}"
        );
        let about = ObjectReference {
            api_version: Some(node.resource.resource.gvr.group_version().to_string()),
            kind: Some(node.resource.kind.clone()),
            namespace: Some(namespace.clone()).filter(|namespace| !namespace.is_empty()),
            name: Some(name.clone()),
            uid: Some(uid.to_owned()),
            ..Default::default()
        };
        self.events.event_about(about, EventType::Warning, "OwnerRefInvalidNamespace", message);
    }

    /// Asks the server whether an owner exists that the graph does not hold: the graph may be behind.
    async fn ask(&self, dependent: &Node, owner: &OwnerReference) -> Result<Absent, Error> {
        let Some(resource) = self.context.universe.resource_of(&owner.api_version, &owner.kind) else {
            // A kind that is not served just now: its objects may come back with it.
            return Ok(Absent::Kept);
        };
        let namespace = dependent.object.namespace.as_str();
        if resource.resource.namespaced && namespace.is_empty() {
            // Such an owner cannot be named from outside its namespace.
            return Ok(Absent::Kept);
        }
        match self.context.client.get_value(&resource.resource, namespace, &owner.name).await {
            Ok(found) if found["metadata"]["uid"] == owner.uid.as_str() => Ok(Absent::Kept),
            Ok(_) => Ok(Absent::Gone),
            Err(error) if error.is_not_found() => Ok(Absent::Gone),
            Err(error) => Err(error.into()),
        }
    }

    async fn act(&self, node: &Node, action: Action) -> Result<(), Error> {
        let uid = node.object.uid.as_str();
        match action {
            Action::Nothing | Action::Ask(_) => Ok(()),
            Action::Visit(uids) => {
                uids.into_iter().for_each(|uid| self.queue.add(uid));
                Ok(())
            }
            Action::Delete(policy) => gone_is_fine(self.delete(node, policy).await),
            Action::DropOwners(gone) => {
                self.set_owners(node, node.object.owner_references.iter().filter(|o| !gone.contains(&o.uid)))
                    .await
            }
            Action::Unblock => {
                let unblocked = node.object.owner_references.iter().cloned();
                let unblocked = unblocked.map(|o| OwnerReference { block_owner_deletion: Some(false), ..o });
                let unblocked: Vec<_> = unblocked.collect();
                self.set_owners(node, unblocked.iter()).await?;
                gone_is_fine(self.delete(node, Propagation::Foreground).await)
            }
            Action::Orphan(dependents) => {
                for dependent in dependents {
                    let dependent = self.lock().node(&dependent).cloned();
                    let Some(dependent) = dependent else { continue };
                    let rest = dependent.object.owner_references.iter().filter(|owner| owner.uid != uid);
                    self.set_owners(&dependent, rest).await?;
                }
                self.remove_finalizer(node, ORPHAN).await
            }
            Action::RemoveFinalizer(finalizer) => self.remove_finalizer(node, finalizer).await,
        }
    }

    async fn delete(&self, node: &Node, policy: Propagation) -> Result<(), ClientError> {
        let object = &node.object;
        let options = DeleteOptions {
            preconditions: Some(Preconditions {
                uid: Some(object.uid.clone()),
                // Owners may have been added since we looked.
                resource_version: Some(object.resource_version.clone()),
            }),
            propagation_policy: Some(policy),
            grace_period_seconds: None,
        };
        tracing::debug!(
            kind = node.resource.kind,
            namespace = object.namespace,
            name = object.name,
            "deletes garbage"
        );
        self.context
            .client
            .delete_value(&node.resource.resource, &object.namespace, &object.name, &options)
            .await
    }

    async fn set_owners(
        &self,
        node: &Node,
        owners: impl Iterator<Item = &OwnerReference>,
    ) -> Result<(), Error> {
        let owners =
            serde_json::to_value(owners.collect::<Vec<_>>()).map_err(|e| ClientError::Decode(e.into()))?;
        self.patch(node, "ownerReferences", owners).await
    }

    async fn remove_finalizer(&self, node: &Node, finalizer: &str) -> Result<(), Error> {
        let rest: Vec<_> = node.object.finalizers.iter().filter(|f| *f != finalizer).collect();
        self.patch(node, "finalizers", json!(rest)).await
    }

    /// Writes a list of the metadata, unless the object has changed since.
    async fn patch(&self, node: &Node, field: &str, list: Value) -> Result<(), Error> {
        let object = &node.object;
        let patch = json!({"metadata": {
            "uid": object.uid,
            "resourceVersion": object.resource_version,
            field: list,
        }});
        let resource = &node.resource.resource;
        let patched = self
            .context
            .client
            .patch_value(resource, &object.namespace, &object.name, None, PatchType::Merge, &patch)
            .await;
        gone_is_fine(patched.map(drop))
    }
}

fn gone_is_fine(outcome: Result<(), ClientError>) -> Result<(), Error> {
    match outcome {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}
