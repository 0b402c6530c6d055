//! Namespaces that are being deleted: their content goes first, pods before all else, then they are finalized.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Object;
use api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use client::{DeleteOptions, Error as ClientError, ListOptions, Propagation, Resource};
use controller_runtime::{ApiResource, Event, Informer, WorkQueue};
use jiff::Timestamp;

use crate::Error;
use crate::context::Context;
use crate::objects::is_deleting;

const WORKERS: usize = 10;
const FINALIZER: &str = "kubernetes";
const PAGE: u32 = 500;

/// What a pass over the content found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Group versions that discovery could not ask.
    pub undiscovered: Vec<String>,
    pub errors: Vec<String>,
    /// Objects left, by `resource.group`.
    pub remaining: BTreeMap<String, usize>,
    /// Objects that a finalizer holds.
    pub finalizers: BTreeMap<String, usize>,
    /// Whether something is left that nobody will tell of when it goes.
    pub unwatched: bool,
}

impl Found {
    fn is_empty(&self) -> bool {
        self.undiscovered.is_empty() && self.errors.is_empty() && self.remaining.is_empty()
    }
}

/// The status that tells what is left.
///
/// Upstream: pkg/controller/namespace/deletion/status_condition_utils.go
pub(crate) fn status(old: &NamespaceStatus, found: &Found, now: Timestamp) -> NamespaceStatus {
    let list = |counts: &BTreeMap<String, usize>, verb: &str| {
        let lines: Vec<_> =
            counts.iter().map(|(what, n)| format!("{what} {verb} {n} resource instances")).collect();
        lines.join(", ")
    };
    let mut errors = found.errors.clone();
    errors.sort();
    let undiscovered = (!found.undiscovered.is_empty()).then(|| {
        let groups = found.undiscovered.join(", ");
        let message =
            format!("Discovery failed for some groups, {} failing: {groups}", found.undiscovered.len());
        ("DiscoveryFailed", message)
    });
    let failed = (!errors.is_empty()).then(|| {
        let all = errors.join(", ");
        let message = format!("Failed to delete all resource types, {} remaining: {all}", errors.len());
        ("ContentDeletionFailed", message)
    });
    let remain = (!found.remaining.is_empty()).then(|| {
        ("SomeResourcesRemain", format!("Some resources are remaining: {}", list(&found.remaining, "has")))
    });
    let held = (!found.finalizers.is_empty()).then(|| {
        let message = list(&found.finalizers, "in");
        ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {message}"))
    });
    let ok = "All content successfully deleted, may be waiting on finalization";
    let mut new = old.clone();
    new.phase = Some("Terminating".to_owned());
    let conditions = new.conditions.get_or_insert_default();
    for (kind, problem, reason, message) in [
        (
            "NamespaceDeletionDiscoveryFailure",
            undiscovered,
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        ("NamespaceDeletionContentFailure", failed, "ContentDeleted", ok),
        ("NamespaceContentRemaining", remain, "ContentRemoved", "All content successfully removed"),
        (
            "NamespaceFinalizersRemaining",
            held,
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        ),
    ] {
        let status = if problem.is_some() { "True" } else { "False" };
        let (reason, message) = problem.unwrap_or_else(|| (reason, message.to_owned()));
        set(conditions, kind, status, reason, message, now);
    }
    new
}

fn set(
    conditions: &mut Vec<NamespaceCondition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) {
    let at = conditions.iter().position(|condition| condition.type_ == kind);
    let since = at
        .map(|at| &conditions[at])
        .filter(|old| old.status == status)
        .and_then(|old| old.last_transition_time.clone());
    let condition = NamespaceCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: since.or(Some(api::meta::Time(now))),
    };
    match at {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

struct Controller {
    context: Context,
    namespaces: Informer<Namespace>,
    queue: WorkQueue<String>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller =
        Arc::new(Controller { namespaces: context.informers.informer(), queue: WorkQueue::new(), context });
    let queue = controller.queue.clone();
    controller.namespaces.subscribe(move |event| {
        if is_deleting(&**event.object()) && !matches!(event, Event::Deleted(_)) {
            queue.add(event.object().name().to_owned());
        }
    });
    // What went from a namespace may have been the last.
    let this = controller.clone();
    controller.context.universe.subscribe(move |_, event| {
        let gone = event.object();
        if matches!(event, Event::Deleted(_))
            && this.namespaces.get(&gone.namespace).is_some_and(|namespace| is_deleting(&*namespace))
        {
            this.queue.add(gone.namespace.clone());
        }
    });
    let synced = tokio::select! {
        () = controller.context.shutdown.cancelled() => false,
        synced = async { controller.namespaces.synced().await && controller.context.universe.synced().await } => synced,
    };
    if !synced {
        return;
    }
    let (queue, context) = (controller.queue.clone(), controller.context.clone());
    context
        .run_workers(&queue, WORKERS, move |name| {
            let controller = controller.clone();
            async move { controller.reconcile(&name).await }
        })
        .await;
}

impl Controller {
    async fn reconcile(&self, name: &str) -> Result<(), Error> {
        let Some(namespace) = self.namespaces.get(name).filter(|n| is_deleting(&**n)) else { return Ok(()) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(());
        }
        let found = self.delete_content(name).await;
        let old = namespace.status.clone().unwrap_or_default();
        let new = status(&old, &found, self.context.clock().now());
        let mut current = namespace.clone();
        if new != old {
            let mut updated = (*namespace).clone();
            updated.status = Some(new);
            current = match self.namespaces.update_status(&updated).await {
                Err(error) if error.is_not_found() => return Ok(()),
                updated => updated?,
            };
        }
        if !found.errors.is_empty() || !found.undiscovered.is_empty() || found.unwatched {
            return Err(Error::Unfinished(format!(
                "the content of namespace {name} cannot all be deleted yet"
            )));
        }
        if found.is_empty() {
            self.finalize(&current).await?;
        }
        // What remains is told of when it goes.
        Ok(())
    }

    async fn delete_content(&self, namespace: &str) -> Found {
        let (mut resources, undiscovered) = self.context.universe.namespaced();
        let mut found = Found { undiscovered, ..Default::default() };
        // Upstream: features.OrderedNamespaceDeletion: nothing that protects pods goes before them.
        let is_pods =
            |r: &Arc<ApiResource>| r.resource.gvr.group.is_empty() && r.resource.gvr.resource == "pods";
        if let Some(at) = resources.iter().position(is_pods) {
            let pods = resources.remove(at);
            self.delete_all(namespace, &pods, &mut found).await;
            if !found.is_empty() {
                return found;
            }
        }
        for resource in &resources {
            self.delete_all(namespace, resource, &mut found).await;
        }
        found
    }

    /// Deletes every object of a resource, and counts those that stay.
    async fn delete_all(&self, namespace: &str, resource: &ApiResource, found: &mut Found) {
        let mut options = ListOptions { limit: Some(PAGE), ..Default::default() };
        let mut remaining = 0;
        loop {
            let page =
                match self.context.client.list_values(&resource.resource, Some(namespace), &options).await {
                    Ok(page) => page,
                    // The kind went away meanwhile, and its objects with it.
                    Err(error) if error.is_not_found() => return,
                    Err(error) => return found.errors.push(error.to_string()),
                };
            for object in &page.items {
                if let Err(error) = self.delete(namespace, &resource.resource, object).await {
                    found.errors.push(error.to_string());
                }
            }
            remaining += page.items.len();
            if page.continue_token.is_empty() {
                break;
            }
            options.continue_token = Some(page.continue_token);
        }
        if remaining > 0 {
            self.count_left(namespace, resource, found).await;
        }
    }

    async fn count_left(&self, namespace: &str, resource: &ApiResource, found: &mut Found) {
        let left = self
            .context
            .client
            .list_values(&resource.resource, Some(namespace), &ListOptions::default())
            .await;
        match left {
            Ok(left) if left.items.is_empty() => {}
            Ok(left) => {
                let gvr = &resource.resource.gvr;
                found.unwatched |= !self.context.universe.watches(&resource.resource);
                found.remaining.insert(format!("{}.{}", gvr.resource, gvr.group), left.items.len());
                let finalizers = left.items.iter().flat_map(|o| o["metadata"]["finalizers"].as_array());
                for finalizer in finalizers.flatten().filter_map(|f| f.as_str()) {
                    *found.finalizers.entry(finalizer.to_owned()).or_default() += 1;
                }
            }
            Err(error) if error.is_not_found() => {}
            Err(error) => found.errors.push(error.to_string()),
        }
    }

    async fn delete(
        &self,
        namespace: &str,
        resource: &Resource,
        object: &serde_json::Value,
    ) -> Result<(), ClientError> {
        let metadata = &object["metadata"];
        if !metadata["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let (Some(name), Some(uid)) = (metadata["name"].as_str(), metadata["uid"].as_str()) else {
            return Ok(());
        };
        let options =
            DeleteOptions { propagation_policy: Some(Propagation::Background), ..DeleteOptions::uid(uid) };
        match self.context.client.delete_value(resource, namespace, name, &options).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome,
        }
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), Error> {
        let mut finalized = namespace.clone();
        if let Some(finalizers) = finalized.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != FINALIZER);
        }
        let resource = Resource::of::<Namespace>();
        let value = finalized.to_value();
        match self
            .context
            .client
            .update_value(&resource, "", namespace.name(), Some("finalize"), &value)
            .await
        {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::tests::at;

    #[test]
    fn what_is_left_is_told() {
        let found = Found {
            remaining: [("pods.".to_owned(), 2)].into(),
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
            ..Default::default()
        };
        let first = status(&NamespaceStatus::default(), &found, at(1));
        let line = |status: &NamespaceStatus, kind: &str| {
            let condition = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
            format!("{} {}", condition.status, condition.message.as_deref().unwrap())
        };
        assert_eq!(first.phase.as_deref(), Some("Terminating"));
        assert_eq!(
            line(&first, "NamespaceContentRemaining"),
            "True Some resources are remaining: pods. has 2 resource instances"
        );
        assert_eq!(
            line(&first, "NamespaceFinalizersRemaining"),
            "True Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances"
        );
        assert!(line(&first, "NamespaceDeletionContentFailure").starts_with("False All content"));
        assert_eq!(status(&first, &found, at(9)), first);
        let done = status(&first, &Found::default(), at(9));
        assert_eq!(line(&done, "NamespaceContentRemaining"), "False All content successfully removed");
    }
}
