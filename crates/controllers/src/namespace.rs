//! Namespaces that are being deleted: their content goes first, pods before all else, then they are finalized.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use apimachinery::GroupResource;
use client::{DeleteOptions, Error as ClientError, ListOptions, Propagation, Resource};
use controller_runtime::{ApiResource, Event, Informer, Metadata, WorkQueue};
use jiff::Timestamp;

use crate::Error;
use crate::context::Context;
use crate::objects::is_deleting;

const WORKERS: usize = 10;
const FINALIZER: &str = "kubernetes";
const PAGE: u32 = 500;
/// While much goes, the status says what is left this often: each time costs lists of all that may be left.
const TELL_EVERY: Duration = Duration::from_secs(5);

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

/// What there is of one resource.
#[derive(Default)]
struct Left {
    objects: usize,
    finalizers: BTreeMap<String, usize>,
    /// Names and uids of those whose deletion nobody has asked for.
    alive: Vec<(String, String)>,
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

/// How many objects of each resource each namespace has.
#[derive(Default)]
struct Census(HashMap<(GroupResource, String), usize>);

impl Census {
    /// Takes in a change; true when it took the last object of its resource from its namespace.
    fn observe(&mut self, resource: &ApiResource, event: &Event<Metadata>) -> bool {
        let key = (resource.resource.gvr.group_resource(), event.object().namespace.clone());
        match event {
            Event::Updated { .. } => false,
            Event::Added(_) => {
                *self.0.entry(key).or_default() += 1;
                false
            }
            Event::Deleted(_) => match self.0.get_mut(&key) {
                Some(left) if *left > 1 => {
                    *left -= 1;
                    false
                }
                _ => {
                    self.0.remove(&key);
                    true
                }
            },
        }
    }
}

struct Controller {
    context: Context,
    namespaces: Informer<Namespace>,
    /// Short sections that never wait: a plain lock.
    census: Mutex<Census>,
    queue: WorkQueue<String>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        namespaces: context.informers.informer(),
        census: Mutex::default(),
        queue: WorkQueue::new(),
        context,
    });
    let queue = controller.queue.clone();
    controller.namespaces.subscribe(move |event| {
        if is_deleting(&**event.object()) && !matches!(event, Event::Deleted(_)) {
            queue.add(event.object().name().to_owned());
        }
    });
    let this = controller.clone();
    controller.context.universe.subscribe(move |resource, event| {
        let last = this.census.lock().unwrap_or_else(PoisonError::into_inner).observe(resource, event);
        let namespace = &event.object().namespace;
        if matches!(event, Event::Deleted(_))
            && this.namespaces.get(namespace).is_some_and(|n| is_deleting(&*n))
        {
            // With the last of a resource it goes on; until then it is told now and then what is left.
            this.queue.add_after(namespace.clone(), if last { Duration::ZERO } else { TELL_EVERY });
        }
    });
    if controller.context.universe.synced().await {
        controller.context.work(&controller, &controller.queue, WORKERS, Controller::reconcile).await;
    }
}

impl Controller {
    async fn reconcile(self: Arc<Self>, name: String) -> Result<(), Error> {
        let Some(namespace) = self.namespaces.get(&name).filter(|n| is_deleting(&**n)) else { return Ok(()) };
        let finalizers = namespace.spec.as_ref().and_then(|spec| spec.finalizers.clone()).unwrap_or_default();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            return Ok(());
        }
        let found = self.delete_content(&name).await;
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
        match self.delete_resource(namespace, resource).await {
            Ok(left) if left.objects == 0 => {}
            Ok(left) => {
                let gvr = &resource.resource.gvr;
                found.unwatched |= !self.context.universe.watches(&resource.resource);
                found.remaining.insert(format!("{}.{}", gvr.resource, gvr.group), left.objects);
                for (finalizer, times) in left.finalizers {
                    *found.finalizers.entry(finalizer).or_default() += times;
                }
            }
            // The kind went away meanwhile, and its objects with it.
            Err(error) if error.is_not_found() => {}
            Err(error) => found.errors.push(error.to_string()),
        }
    }

    /// Upstream: pkg/controller/namespace/deletion/namespaced_resources_deleter.go deleteAllContentForGroupVersionResource
    async fn delete_resource(&self, namespace: &str, resource: &ApiResource) -> Result<Left, ClientError> {
        let left = self.left(namespace, resource).await?;
        if left.alive.is_empty() {
            return Ok(left);
        }
        let client = &self.context.client;
        let background =
            DeleteOptions { propagation_policy: Some(Propagation::Background), ..Default::default() };
        if resource.can("deletecollection") {
            client.delete_collection(&resource.resource, namespace, &background).await?;
        } else {
            for (name, uid) in &left.alive {
                let options = DeleteOptions {
                    propagation_policy: Some(Propagation::Background),
                    ..DeleteOptions::uid(uid)
                };
                match client.delete_value(&resource.resource, namespace, name, &options).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
        }
        self.left(namespace, resource).await
    }

    /// What there is of a resource.
    async fn left(&self, namespace: &str, resource: &ApiResource) -> Result<Left, ClientError> {
        let mut left = Left::default();
        let mut options = ListOptions { limit: Some(PAGE), ..Default::default() };
        loop {
            let client = &self.context.client;
            let page = client.list_values(&resource.resource, Some(namespace), &options).await?;
            left.objects += page.items.len();
            for metadata in page.items.iter().map(|object| &object["metadata"]) {
                let finalizers = metadata["finalizers"].as_array().into_iter().flatten();
                for finalizer in finalizers.filter_map(|finalizer| finalizer.as_str()) {
                    *left.finalizers.entry(finalizer.to_owned()).or_default() += 1;
                }
                if metadata["deletionTimestamp"].is_null()
                    && let (Some(name), Some(uid)) = (metadata["name"].as_str(), metadata["uid"].as_str())
                {
                    left.alive.push((name.to_owned(), uid.to_owned()));
                }
            }
            if page.continue_token.is_empty() {
                return Ok(left);
            }
            options.continue_token = Some(page.continue_token);
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
