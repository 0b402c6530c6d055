//! Claims of devices for pods: made from templates, reserved for pods that were placed without the scheduler,
//! and freed when no pod needs them any more.
//!
//! Upstream: pkg/controller/resourceclaim/controller.go

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Object;
use api::core::v1::{Pod, PodResourceClaim};
use api::meta::{ObjectMeta, OwnerReference};
use api::resource::v1::{ResourceClaim, ResourceClaimConsumerReference, ResourceClaimTemplate};
use client::PatchType;
use controller_runtime::{Event, EventRecorder, Informer, WorkQueue};
use serde_json::json;

use crate::Error;
use crate::context::Context;
use crate::objects::{annotation, controller_of, is_controlled_by, is_deleting, is_terminal, node_name};

const WORKERS: usize = 50;
const CLAIM_OF_POD: &str = "resource.kubernetes.io/pod-claim-name";
const FINALIZER: &str = "resource.kubernetes.io/delete-protection";
/// As many pods may have one claim.
const MAX_RESERVED: usize = 256;
/// Leaves room for five random characters and a hyphen.
const MAX_PREFIX: usize = 57;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Pod(String),
    Claim(String),
}

pub(crate) fn wanted(pod: &Pod) -> impl Iterator<Item = &PodResourceClaim> {
    pod.spec.iter().flat_map(|spec| spec.resource_claims.iter().flatten())
}

/// Which claim stands for one of a pod.
#[derive(Debug, PartialEq)]
pub(crate) enum Named {
    Claim(String),
    /// It was found that there is to be none.
    None,
    /// None has been made yet.
    Unknown,
}

/// Upstream: dynamic-resource-allocation/resourceclaim/claim.go Name
pub(crate) fn name_of(pod: &Pod, claim: &PodResourceClaim) -> Named {
    if let Some(name) = &claim.resource_claim_name {
        return Named::Claim(name.clone());
    }
    let statuses = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
    match statuses.into_iter().find(|status| status.name == claim.name) {
        Some(status) => status.resource_claim_name.clone().map_or(Named::None, Named::Claim),
        None => Named::Unknown,
    }
}

/// The keys of all claims that a pod is known to use.
pub(crate) fn claims_of(pod: &Pod) -> Vec<String> {
    let named = wanted(pod).filter_map(|claim| match name_of(pod, claim) {
        Named::Claim(name) => Some(name),
        Named::None | Named::Unknown => None,
    });
    let extended = pod.status.as_ref().and_then(|s| s.extended_resource_claim_status.as_ref());
    let extended = extended.map(|status| status.resource_claim_name.clone());
    named.chain(extended).map(|name| format!("{}/{name}", pod.namespace())).collect()
}

/// Whether the pod will never use its claims again.
///
/// Upstream: pkg/controller/resourceclaim/controller.go isPodDone
fn is_done(pod: &Pod) -> bool {
    is_terminal(pod) || (is_deleting(pod) && node_name(pod).is_empty())
}

/// What names made for a pod's claim begin with, both parts shortened alike.
fn prefix(pod: &str, claim: &str) -> String {
    let whole = format!("{pod}-{claim}-");
    if whole.len() <= MAX_PREFIX {
        return whole;
    }
    let part = |text: &str| text[..text.len() * MAX_PREFIX / whole.len()].to_owned();
    format!("{}-{}", part(pod), part(claim))
}

fn from_template(pod: &Pod, claim: &PodResourceClaim, template: &ResourceClaimTemplate) -> ResourceClaim {
    let from = template.spec.metadata.as_ref();
    let mut annotations = from.and_then(|metadata| metadata.annotations.clone()).unwrap_or_default();
    annotations.insert(CLAIM_OF_POD.to_owned(), claim.name.clone());
    ResourceClaim {
        metadata: ObjectMeta {
            generate_name: Some(prefix(pod.name(), &claim.name)),
            namespace: Some(pod.namespace().to_owned()),
            annotations: Some(annotations),
            labels: from.and_then(|metadata| metadata.labels.clone()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: pod.name().to_owned(),
                uid: pod.uid().to_owned(),
                controller: Some(true),
                block_owner_deletion: None,
            }]),
            ..Default::default()
        },
        spec: template.spec.spec.clone(),
        status: None,
    }
}

pub(crate) fn reserved(claim: &ResourceClaim) -> &[ResourceClaimConsumerReference] {
    claim.status.as_ref().and_then(|status| status.reserved_for.as_deref()).unwrap_or_default()
}

fn is_allocated(claim: &ResourceClaim) -> bool {
    claim.status.as_ref().is_some_and(|status| status.allocation.is_some())
}

/// Whether a placed pod lacks its reservation.
fn needs_reservation(pod: &Pod, claim: &ResourceClaim) -> bool {
    let has = reserved(claim).iter().any(|consumer| consumer.uid == pod.uid());
    is_allocated(claim) && !has && reserved(claim).len() < MAX_RESERVED
}

struct Controller {
    context: Context,
    events: EventRecorder,
    pods: Informer<Pod>,
    claims: Informer<ResourceClaim>,
    templates: Informer<ResourceClaimTemplate>,
    queue: WorkQueue<Key>,
}

pub(crate) const BY_CLAIM: &str = "resource claims";
const BY_TEMPLATE: &str = "resource claim templates";
const BY_OWNER: &str = "owner pod";

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        events: context.events("resource_claim"),
        pods: context.informers.informer(),
        claims: context.informers.informer(),
        templates: context.informers.informer(),
        queue: WorkQueue::new(),
        context,
    });
    controller.pods.add_index(BY_CLAIM, claims_of);
    controller.pods.add_index(BY_TEMPLATE, |pod| {
        let names = wanted(pod).filter_map(|claim| claim.resource_claim_template_name.as_ref());
        names.map(|name| format!("{}/{name}", pod.namespace())).collect()
    });
    controller.claims.add_index(BY_OWNER, |claim| {
        let owner = controller_of(&claim.metadata).filter(|owner| owner.kind == "Pod");
        owner.map(|owner| owner.uid.clone()).into_iter().collect()
    });
    controller.subscribe();
    let reconcile = |controller: Arc<Controller>, key| async move {
        match key {
            Key::Pod(key) => controller.reconcile_pod(&key).await,
            Key::Claim(key) => controller.reconcile_claim(&key).await,
        }
    };
    controller.context.work(&controller, &controller.queue, WORKERS, reconcile).await;
}

impl Controller {
    fn subscribe(self: &Arc<Self>) {
        let this = self.clone();
        self.pods.subscribe(move |event| {
            let pod = event.object();
            if wanted(pod).next().is_none() && claims_of(pod).is_empty() {
                return;
            }
            if matches!(event, Event::Deleted(_)) || is_done(pod) {
                claims_of(pod).into_iter().for_each(|key| this.queue.add(Key::Claim(key)));
            } else {
                this.queue.add(Key::Pod(Object::key(&**pod)));
            }
        });
        let this = self.clone();
        self.claims.subscribe(move |event| {
            let key = Object::key(&**event.object());
            let users = this.pods.by_index(BY_CLAIM, &key);
            users.iter().for_each(|pod| this.queue.add(Key::Pod(Object::key(&**pod))));
            this.queue.add(Key::Claim(key));
        });
        let this = self.clone();
        self.templates.subscribe(move |event| {
            let users = this.pods.by_index(BY_TEMPLATE, &Object::key(&**event.object()));
            users.iter().for_each(|pod| this.queue.add(Key::Pod(Object::key(&**pod))));
        });
    }

    async fn reconcile_pod(&self, key: &str) -> Result<(), Error> {
        let Some(pod) = self.pods.get(key).filter(|pod| !is_deleting(&**pod) && !is_terminal(pod)) else {
            return Ok(());
        };
        let mut made = BTreeMap::new();
        for claim in wanted(&pod) {
            match self.claim_for(&pod, claim).await {
                Ok(Some(name)) => drop(made.insert(claim.name.clone(), name)),
                Ok(None) => {}
                Err(why) => {
                    let message = format!("PodResourceClaim {}: {why}", claim.name);
                    self.events.warning(&*pod, "FailedResourceClaimCreation", message.clone());
                    return Err(Error::Unfinished(format!("pod {key}, {message}")));
                }
            }
        }
        let pod = if made.is_empty() { pod } else { self.tell_pod(&pod, made).await? };
        if node_name(&pod).is_empty() {
            // The scheduler reserves what it places.
            return Ok(());
        }
        for claim in wanted(&pod) {
            let Named::Claim(name) = name_of(&pod, claim) else { continue };
            let Some(found) = self.claims.get_in(pod.namespace(), &name) else { return Ok(()) };
            let ours = claim.resource_claim_name.is_some() || is_controlled_by(&*found, pod.uid());
            if ours && needs_reservation(&pod, &found) {
                self.reserve(&pod, &found).await?;
            }
        }
        Ok(())
    }

    /// Makes the claim from its template where it is missing, and says what it is called.
    async fn claim_for(&self, pod: &Pod, claim: &PodResourceClaim) -> Result<Option<String>, String> {
        let Some(template) = &claim.resource_claim_template_name else { return Ok(None) };
        match name_of(pod, claim) {
            Named::None => return Ok(None),
            Named::Claim(name) => {
                let existing = self.claims.get_in(pod.namespace(), &name);
                if existing.is_some_and(|existing| is_controlled_by(&*existing, pod.uid())) {
                    return Ok(None);
                }
            }
            Named::Unknown => {}
        }
        // One that was made, and the pod was not told of it.
        let owned = self.claims.by_index(BY_OWNER, pod.uid());
        if let Some(owned) = owned.iter().find(|c| annotation(&***c, CLAIM_OF_POD) == Some(&claim.name)) {
            return Ok(Some(owned.name().to_owned()));
        }
        let template = self.templates.get_in(pod.namespace(), template).ok_or_else(|| {
            format!(
                "resource claim template {template:?}: resourceclaimtemplate.resource.k8s.io {template:?} not found"
            )
        })?;
        let created = self.claims.create(&from_template(pod, claim, &template)).await;
        created
            .map(|created| Some(created.name().to_owned()))
            .map_err(|e| format!("create ResourceClaim : {e}"))
    }

    async fn tell_pod(&self, pod: &Pod, made: BTreeMap<String, String>) -> Result<Arc<Pod>, Error> {
        let known = pod.status.iter().flat_map(|s| s.resource_claim_statuses.iter().flatten());
        let known = known.filter(|status| !made.contains_key(&status.name)).map(|status| json!(status));
        let new = made.iter().map(|(name, claim)| json!({"name": name, "resourceClaimName": claim}));
        let statuses: Vec<_> = known.chain(new).collect();
        let patch = json!({
            "metadata": {"uid": pod.uid(), "resourceVersion": pod.metadata.resource_version},
            "status": {"resourceClaimStatuses": statuses},
        });
        Ok(self.pods.patch(pod, Some("status"), PatchType::Merge, &patch).await?)
    }

    async fn reserve(&self, pod: &Pod, claim: &ResourceClaim) -> Result<(), Error> {
        let mut updated = claim.clone();
        let consumer = ResourceClaimConsumerReference {
            resource: "pods".to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            ..Default::default()
        };
        updated.status.get_or_insert_default().reserved_for.get_or_insert_default().push(consumer);
        Ok(self.claims.update_status(&updated).await.map(drop)?)
    }

    async fn reconcile_claim(&self, key: &str) -> Result<(), Error> {
        let Some(claim) = self.claims.get(key) else { return Ok(()) };
        let mut remaining = Vec::new();
        for consumer in reserved(&claim) {
            if self.still_uses(claim.namespace(), consumer).await? {
                remaining.push(consumer.clone());
            }
        }
        let protected = claim.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
        let unused = remaining.is_empty();
        let mut claim = claim;
        if remaining.len() < reserved(&claim).len() {
            claim = self.write(&claim, remaining, unused && protected).await?;
            if unused && protected && !is_allocated(&claim) {
                claim = self.unprotect(&claim).await?;
            }
        } else if protected && unused && is_deleting(&*claim) {
            if is_allocated(&claim) {
                claim = self.write(&claim, Vec::new(), true).await?;
            }
            claim = self.unprotect(&claim).await?;
        }
        if unused && self.owner_is_done(&claim) {
            self.context.delete(&*claim).await?;
        }
        Ok(())
    }

    /// Pods are known well; of all others that may use claims nothing is known, and they keep them.
    async fn still_uses(
        &self,
        namespace: &str,
        consumer: &ResourceClaimConsumerReference,
    ) -> Result<bool, Error> {
        let is_pod =
            consumer.api_group.as_deref().unwrap_or_default().is_empty() && consumer.resource == "pods";
        if !is_pod {
            return Ok(true);
        }
        if let Some(pod) = self.pods.get_in(namespace, &consumer.name) {
            return Ok(pod.uid() == consumer.uid && !is_done(&pod));
        }
        // The scheduler may know a pod before we do.
        match self.context.client.get::<Pod>(namespace, &consumer.name).await {
            Ok(pod) => Ok(pod.uid() == consumer.uid),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn write(
        &self,
        claim: &ResourceClaim,
        remaining: Vec<ResourceClaimConsumerReference>,
        deallocate: bool,
    ) -> Result<Arc<ResourceClaim>, Error> {
        let mut updated = claim.clone();
        let status = updated.status.get_or_insert_default();
        status.reserved_for = Some(remaining);
        if deallocate {
            status.allocation = None;
        }
        Ok(self.claims.update_status(&updated).await?)
    }

    async fn unprotect(&self, claim: &ResourceClaim) -> Result<Arc<ResourceClaim>, Error> {
        let mut updated = claim.clone();
        updated.metadata.finalizers.iter_mut().for_each(|all| all.retain(|finalizer| finalizer != FINALIZER));
        Ok(self.claims.update(&updated).await?)
    }

    /// Whether the claim was made for a pod that will not run.
    fn owner_is_done(&self, claim: &ResourceClaim) -> bool {
        let owner = controller_of(&claim.metadata).filter(|owner| owner.kind == "Pod");
        let pod = owner.and_then(|owner| Some((owner, self.pods.get_in(claim.namespace(), &owner.name)?)));
        pod.is_some_and(|(owner, pod)| pod.uid() != owner.uid || is_done(&pod))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(status: serde_json::Value) -> Pod {
        Pod::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web", "uid": "p1"},
            "spec": {"containers": [], "resourceClaims": [
                {"name": "gpu", "resourceClaimTemplateName": "t"}, {"name": "net", "resourceClaimName": "shared"},
            ]},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn claims_are_named_by_spec_or_status() {
        let unknown = pod(json!({}));
        let named: Vec<_> = wanted(&unknown).map(|claim| name_of(&unknown, claim)).collect();
        assert_eq!(named, [Named::Unknown, Named::Claim("shared".into())]);
        assert_eq!(claims_of(&unknown), ["ns/shared"]);
        let known =
            pod(json!({"resourceClaimStatuses": [{"name": "gpu", "resourceClaimName": "web-gpu-x"}]}));
        assert_eq!(claims_of(&known), ["ns/web-gpu-x", "ns/shared"]);
        let none = pod(json!({"resourceClaimStatuses": [{"name": "gpu"}]}));
        assert_eq!(name_of(&none, wanted(&none).next().unwrap()), Named::None);
    }

    #[test]
    fn names_are_shortened_alike() {
        assert_eq!(prefix("web", "gpu"), "web-gpu-");
        let long = prefix(&"p".repeat(60), &"c".repeat(20));
        assert!(long.len() <= MAX_PREFIX && long.starts_with('p') && long.ends_with('c'), "{long}");
    }

    #[test]
    fn a_claim_made_for_a_pod_says_so() {
        let template = ResourceClaimTemplate::from_value(json!({
            "metadata": {"name": "t"}, "spec": {"metadata": {"labels": {"a": "b"}}, "spec": {"devices": {}}},
        }))
        .unwrap();
        let pod = pod(json!({}));
        let claim = from_template(&pod, wanted(&pod).next().unwrap(), &template);
        assert_eq!(annotation(&claim, CLAIM_OF_POD), Some("gpu"));
        assert!(is_controlled_by(&claim, "p1"));
    }

    #[test]
    fn a_placed_pod_gets_what_is_allocated() {
        let claim = |status| {
            ResourceClaim::from_value(
                json!({"metadata": {"name": "c"}, "spec": {"devices": {}}, "status": status}),
            )
            .unwrap()
        };
        let pod = pod(json!({}));
        for (status, expected) in [
            (json!({}), false),
            (json!({"allocation": {}}), true),
            (
                json!({"allocation": {}, "reservedFor": [{"resource": "pods", "name": "web", "uid": "p1"}]}),
                false,
            ),
            (
                json!({"allocation": {}, "reservedFor": [{"resource": "pods", "name": "web", "uid": "p0"}]}),
                true,
            ),
        ] {
            assert_eq!(needs_reservation(&pod, &claim(status.clone())), expected, "{status}");
        }
    }
}
