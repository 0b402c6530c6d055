//! StatefulSets: pods with names, places and claims that they keep, one after the other.

mod decision;
mod identity;

use std::collections::BTreeSet;
use std::sync::Arc;

use api::Object;
use api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use api::core::v1::{PersistentVolumeClaim, Pod};
use api::meta::LabelSelector;
use controller_runtime::{Event, Informer, WorkQueue};

use crate::Error;
use crate::context::Context;
use crate::history::{History, data_of, label_values, sort_out, template_of};
use crate::objects::{namespace_is_terminating, same};
use crate::ownership::{candidates, claim_all, concerned};
use crate::pod_control::PodControl;
use crate::selector;
use decision::{Observed, Plan, Revision, Step, decide};
use identity::{REVISION_LABEL, is_member};

const COMPONENT: &str = "statefulset-controller";
const WORKERS: usize = 5;
/// The label of revisions that holds the hash.
const HASH_LABEL: &str = "controller.kubernetes.io/hash";

struct StatefulSets {
    context: Context,
    sets: Informer<StatefulSet>,
    claims: Informer<PersistentVolumeClaim>,
    history: History,
    pods: PodControl,
    queue: WorkQueue<String>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(StatefulSets {
        sets: context.informers.informer::<StatefulSet>(),
        claims: context.informers.informer::<PersistentVolumeClaim>(),
        history: History::new(&context, HASH_LABEL),
        pods: PodControl::new(&context, COMPONENT),
        queue: WorkQueue::new(),
        context,
    });
    let this = controller.clone();
    controller.sets.subscribe(move |event| this.queue.add(event.object().key()));
    let this = controller.clone();
    controller.claims.subscribe(move |event| this.claim_event(event));
    let this = controller.clone();
    controller.pods.pods.subscribe(move |event| {
        this.pods.observe(event);
        this.enqueue_owner(event);
    });
    controller.context.work(&controller, &controller.queue, WORKERS, StatefulSets::reconcile).await;
}

fn selector_of(set: &StatefulSet) -> LabelSelector {
    set.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default()
}

impl StatefulSets {
    /// A pod has changed: its owner is looked at, or who may adopt it.
    ///
    /// Revisions are not followed: the collector removes those of a set that goes in the foreground, and each pass
    /// over the set makes them anew.
    // Upstream: pkg/controller/statefulset/stateful_set.go NewStatefulSetController
    fn enqueue_owner(&self, event: &Event<Pod>) {
        concerned(event, &self.sets, selector_of).into_iter().for_each(|key| self.queue.add(key));
    }

    /// A claim is gone: a pod may be waiting to have it made anew.
    fn claim_event(&self, event: &Event<PersistentVolumeClaim>) {
        let Event::Deleted(claim) = event else { return };
        for set in self.sets.by_namespace(claim.namespace()) {
            if selector::matches(&selector_of(&set), claim.metadata.labels.as_ref()) {
                self.queue.add(set.key());
            }
        }
    }

    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(set) = self.sets.get(&key) else { return Ok(()) };
        let (Some(spec), selector) = (&set.spec, selector_of(&set)) else { return Ok(()) };
        if selector::is_empty(&selector) {
            return Ok(());
        }
        let client = &self.context.client;
        let mut all = candidates(&self.pods.pods, &*set);
        all.retain(|pod| is_member(&set, pod));
        let pods = claim_all(client, &self.pods.pods, &*set, &selector, all).await?;

        let status = set.status.as_ref();
        let mut collisions = status.and_then(|status| status.collision_count);
        let data = data_of(&spec.template);
        let revisions = self.history.claim(&*set, &selector).await?;
        let lineage = sort_out(revisions.clone(), &data);
        let labels = spec.template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
        let update = self.history.ensure(&*set, &lineage, &labels, &data, &mut collisions).await?;
        let known = status.and_then(|status| status.current_revision.as_deref());
        let current = revisions.iter().find(|revision| Some(revision.name()) == known).unwrap_or(&update);
        let Some(current_template) = template_of(current) else {
            return Err(Error::Unfinished(format!("revision {} holds no template", current.name())));
        };

        let now = self.context.clock().now();
        let pods = self.pods.foresee(pods, now);
        let plan = decide(&Observed {
            set: &set,
            pods: &pods,
            claim: &|name| self.claims.get_in(set.namespace(), name),
            current: Revision { name: current.name(), template: &current_template },
            update: Revision { name: update.name(), template: &spec.template },
            collisions: collisions.unwrap_or(0),
            now,
        });
        let (status, again) = (plan.status.clone(), plan.again);
        let failure = self.execute(&set, plan).await.err();
        self.update_status(&set, status).await?;
        if let Some(delay) = again {
            self.queue.add_after(key.clone(), delay);
        }
        self.forget_revisions(&set, &pods, &revisions, [current.name(), update.name()]).await?;
        failure.map_or(Ok(()), Err)
    }

    /// Upstream: pkg/controller/statefulset/stateful_set_control.go truncateHistory
    async fn forget_revisions(
        &self,
        set: &StatefulSet,
        pods: &[Arc<Pod>],
        revisions: &[Arc<ControllerRevision>],
        used: [&str; 2],
    ) -> Result<(), client::Error> {
        let mut live: BTreeSet<String> = label_values(pods, REVISION_LABEL);
        live.extend(used.map(str::to_owned));
        let mut unused: Vec<_> = revisions.iter().filter(|r| !live.contains(r.name())).cloned().collect();
        unused.sort_by_key(|revision| revision.revision);
        let limit = set.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(10);
        let Ok(limit) = usize::try_from(limit) else { return Ok(()) };
        unused.truncate(unused.len().saturating_sub(limit));
        self.history.delete(&unused).await
    }

    /// In order; what fails ends the pass, since later pods wait for earlier ones.
    async fn execute(&self, set: &StatefulSet, plan: Plan) -> Result<(), Error> {
        for claim in plan.conflicts {
            let message = format!(
                "PersistentVolumeClaim {claim} has a conflicting OwnerReference that acts as a manging controller, \
                 the retention policy is ignored for this claim"
            );
            self.pods.events.warning(set, "ConflictingController", message);
        }
        for step in plan.steps {
            match step {
                Step::Create(pod, claims) => {
                    self.create_claims(set, pod.name(), claims).await?;
                    let outcome = self.pods.pods.create(&pod).await;
                    match outcome {
                        Err(error) if namespace_is_terminating(&error) => return Ok(()),
                        Err(error) if error.is_already_exists() => return Err(error.into()),
                        outcome => self.tell(set, "Create", pod.name(), outcome.map(drop))?,
                    }
                }
                Step::CreateClaims(pod, claims) => self.create_claims(set, pod.name(), claims).await?,
                Step::SetOwners(claim, owners) => {
                    // Its role lets the controller update claims, not patch them.
                    let mut owned = (*claim).clone();
                    owned.metadata.owner_references = Some(owners);
                    self.claims.update(&owned).await?;
                }
                Step::Update(pod) => {
                    let outcome = self.pods.pods.update(&pod).await;
                    self.tell(set, "Update", pod.name(), outcome.map(drop))?;
                }
                Step::Delete(pod) => {
                    let name = pod.name();
                    let tell =
                        |outcome: Result<(), &client::Error>| self.announce(set, "Delete", name, outcome);
                    self.pods.delete_silently(&pod, tell).await?;
                }
            }
        }
        Ok(())
    }

    fn tell(
        &self,
        set: &StatefulSet,
        verb: &str,
        pod: &str,
        outcome: Result<(), client::Error>,
    ) -> Result<(), client::Error> {
        self.announce(set, verb, pod, outcome.as_ref().copied());
        outcome
    }

    /// Upstream: pkg/controller/statefulset/stateful_pod_control.go recordPodEvent
    fn announce(&self, set: &StatefulSet, verb: &str, pod: &str, outcome: Result<(), &client::Error>) {
        let what = format!("{verb} Pod {pod} in StatefulSet {}", set.name());
        let events = &self.pods.events;
        match outcome {
            Ok(()) => events.normal(set, &format!("Successful{verb}"), format!("{what} successful")),
            Err(error) => {
                events.warning(set, &format!("Failed{verb}"), format!("{what} failed error: {error}"))
            }
        }
    }

    /// Upstream: pkg/controller/statefulset/stateful_pod_control.go recordClaimEvent
    async fn create_claims(
        &self,
        set: &StatefulSet,
        pod: &str,
        claims: Vec<PersistentVolumeClaim>,
    ) -> Result<(), Error> {
        for claim in claims {
            let (events, name) = (&self.pods.events, claim.name());
            match self.claims.create(&claim).await {
                Ok(_) => {
                    let what = format!("Create Claim {name} Pod {pod} in StatefulSet {} success", set.name());
                    events.normal(set, "SuccessfulCreate", what);
                }
                Err(error) if error.is_already_exists() => return Err(error.into()),
                Err(error) => {
                    let set_name = set.name();
                    let what = format!(
                        "Create Claim {name} for Pod {pod} in StatefulSet {set_name} failed error: {error}"
                    );
                    events.warning(set, "FailedCreate", what);
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    async fn update_status(&self, set: &StatefulSet, status: StatefulSetStatus) -> Result<(), client::Error> {
        if set.status.as_ref().is_some_and(|old| same(old, &status)) {
            return Ok(());
        }
        let mut updated = set.clone();
        updated.status = Some(status);
        match self.sets.update_status(&updated).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}
