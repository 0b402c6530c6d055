//! Deployments: ReplicaSets, one per pod template, rolled over from the old to the new.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use api::core::v1::{Pod, PodTemplateSpec};
use api::meta::ObjectMeta;
use api::{IntOrString, Object};
use client::DeleteOptions;
use controller_runtime::{Event, EventRecorder, Informer, WorkQueue};
use jiff::Timestamp;

use crate::Error;
use crate::context::Context;
use crate::deployment_status::{count, find, is_complete, new_condition, progress, remove};
use crate::objects::{
    annotation, controller_of, controller_reference, created, is_controlled_by, is_deleting, is_terminal,
    namespace_is_terminating, same, scaled, short_hash,
};
use crate::ownership::{add_index, candidates, claim_all, concerned, controlled};
use crate::pace::Pace;
use crate::selector;

const COMPONENT: &str = "deployment-controller";
const WORKERS: usize = 5;
const HASH_LABEL: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not get.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];
/// Upstream: pkg/controller/deployment/sync.go maxRevHistoryLengthInChars
const MAX_HISTORY: usize = 2000;

pub(crate) fn wanted(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

pub(crate) fn replicas_of(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

/// Surge and unavailability in pods. Both zero would never move: then one may be unavailable.
///
/// Upstream: pkg/controller/deployment/util/deployment_util.go ResolveFenceposts
fn fenceposts(deployment: &Deployment) -> (i32, i32) {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let of =
        |value: Option<&IntOrString>, up| value.and_then(|v| scaled(v, wanted(deployment), up)).unwrap_or(0);
    let surge = of(rolling.and_then(|r| r.max_surge.as_ref()), true);
    let unavailable = of(rolling.and_then(|r| r.max_unavailable.as_ref()), false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

pub(crate) fn max_surge(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) { 0 } else { fenceposts(deployment).0 }
}

pub(crate) fn max_unavailable(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) || wanted(deployment) == 0 {
        return 0;
    }
    fenceposts(deployment).1.min(wanted(deployment))
}

/// Seconds without progress that are tolerated, if that is limited.
pub(crate) fn deadline(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)
}

/// A ReplicaSet as it shall be, and what people are told of it.
pub(crate) struct Tracked {
    pub set: ReplicaSet,
    changed: bool,
    event: Option<String>,
}

impl Tracked {
    fn annotate(&mut self, key: &str, value: String) {
        let annotations = self.set.metadata.annotations.get_or_insert_default();
        if annotations.get(key) != Some(&value) {
            annotations.insert(key.to_owned(), value);
            self.changed = true;
        }
    }

    fn annotate_sizes(&mut self, deployment: &Deployment) {
        self.annotate(DESIRED, wanted(deployment).to_string());
        self.annotate(MAX, (wanted(deployment) + max_surge(deployment)).to_string());
    }

    fn scale(&mut self, to: i32, deployment: &Deployment) {
        let from = replicas_of(&self.set);
        if from == to {
            return;
        }
        let direction = if from < to { "up" } else { "down" };
        self.event = Some(format!("Scaled {direction} replica set {} from {from} to {to}", self.set.name()));
        self.set.spec.get_or_insert_default().replicas = Some(to);
        self.annotate_sizes(deployment);
        self.changed = true;
    }
}

/// A Deployment with its ReplicaSets, oldest first, while it is decided.
pub(crate) struct Rollout<'a> {
    pub deployment: &'a Deployment,
    /// The one of the present template.
    pub new: Option<Tracked>,
    pub old: Vec<Tracked>,
    pub now: Timestamp,
}

impl Rollout<'_> {
    pub fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.old.iter().chain(&self.new).map(|tracked| &tracked.set)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Tracked> {
        self.old.iter_mut().chain(&mut self.new)
    }

    fn total(&self) -> i32 {
        self.all().map(replicas_of).sum()
    }
}

/// What is to be done, in this order.
#[derive(Default)]
pub(crate) struct Plan {
    pub create: Option<Box<ReplicaSet>>,
    /// With the event that tells of it.
    pub update: Vec<(ReplicaSet, Option<String>)>,
    pub delete: Vec<String>,
    /// The revision that the Deployment's annotation shall show.
    pub revision: Option<String>,
    pub status: Option<DeploymentStatus>,
    /// When to look again, should nothing happen.
    pub again: Option<Duration>,
}

/// Decides from the owned ReplicaSets. `old_pods_run` says whether a pod of an old template still runs.
pub(crate) fn decide(
    deployment: &Deployment,
    sets: &[Arc<ReplicaSet>],
    old_pods_run: bool,
    now: Timestamp,
) -> Plan {
    let Some(spec) = &deployment.spec else { return Plan::default() };
    let mut rollout = sort_out(deployment, sets, now);
    if is_deleting(deployment) {
        return Plan { status: changed(deployment, count(&rollout)), ..Default::default() };
    }
    let mut plan = Plan::default();
    let mut conditions = paused_condition(deployment, now).into_iter().collect::<Vec<_>>();
    let revision = next_revision(&rollout);
    if let Some(new) = &mut rollout.new {
        annotate_new(new, deployment, &revision);
        let shown = annotation(&new.set, REVISION);
        plan.revision =
            shown.filter(|shown| annotation(deployment, REVISION) != Some(*shown)).map(str::to_owned);
        let known = deployment.status.as_ref().and_then(|status| find(status, "Progressing"));
        if known.is_none() && conditions.is_empty() && deadline(deployment).is_some() {
            let message = format!("Found new replica set {:?}", new.set.name());
            conditions.push(new_condition("Progressing", "True", "FoundNewReplicaSet", message, now));
        }
    }
    let paused = spec.paused == Some(true);
    let mut rolling_out = false;
    if paused || is_scaling(&rollout) {
        scale(&mut rollout);
        if paused {
            plan.delete = outlived(&rollout);
        }
    } else if is_recreate(deployment) {
        rolling_out = true;
        recreate(&mut rollout, &mut plan, old_pods_run, &revision);
    } else {
        rolling_out = true;
        roll(&mut rollout, &mut plan, &revision);
    }
    if let Some(created) = &plan.create
        && deadline(deployment).is_some()
    {
        let message = format!("Created new replica set {:?}", created.name());
        conditions = vec![new_condition("Progressing", "True", "NewReplicaSetCreated", message, now)];
    }
    if rolling_out {
        let (status, again) = progress(&rollout, conditions);
        plan.status = changed(deployment, status);
        plan.again = again;
    } else {
        let mut status = count(&rollout);
        for condition in conditions {
            remove(&mut status, &condition.type_);
            status.conditions.get_or_insert_default().push(condition);
        }
        plan.status = changed(deployment, status);
    }
    plan.update = rollout.all_mut().filter(|t| t.changed).map(|t| (t.set.clone(), t.event.take())).collect();
    plan
}

/// The status, if it differs from what the Deployment has.
fn changed(deployment: &Deployment, status: DeploymentStatus) -> Option<DeploymentStatus> {
    Some(status).filter(|new| !deployment.status.as_ref().is_some_and(|old| same(old, new)))
}

fn sort_out<'a>(deployment: &'a Deployment, sets: &[Arc<ReplicaSet>], now: Timestamp) -> Rollout<'a> {
    let mut sets: Vec<_> = sets.to_vec();
    sets.sort_by_cached_key(|set| (created(&**set), set.name().to_owned()));
    let template = deployment.spec.as_ref().map(|spec| &spec.template);
    let new = sets.iter().position(|set| {
        let of_set = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
        matches!((template, of_set), (Some(a), Some(b)) if without_hash(a) == without_hash(b))
    });
    let track = |set: Arc<ReplicaSet>| Tracked { set: (*set).clone(), changed: false, event: None };
    let new = new.map(|at| track(sets.remove(at)));
    Rollout { deployment, new, old: sets.into_iter().map(track).collect(), now }
}

fn without_hash(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let metadata = template.metadata.get_or_insert_default();
    if let Some(labels) = &mut metadata.labels {
        labels.remove(HASH_LABEL);
    }
    metadata.labels.take_if(|labels| labels.is_empty());
    template
}

fn revision_of(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION).and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

fn next_revision(rollout: &Rollout<'_>) -> i64 {
    rollout.old.iter().map(|old| revision_of(&old.set)).max().unwrap_or(0).saturating_add(1)
}

/// Upstream: pkg/controller/deployment/util/deployment_util.go SetNewReplicaSetAnnotations
fn annotate_new(new: &mut Tracked, deployment: &Deployment, revision: &i64) {
    copy_annotations(new, deployment);
    let present = revision_of(&new.set);
    if present < *revision {
        new.annotate(REVISION, revision.to_string());
        if present > 0 {
            let history = annotation(&new.set, REVISION_HISTORY).unwrap_or_default().to_owned();
            let mut all: Vec<String> =
                history.split(',').filter(|r| !r.is_empty()).map(str::to_owned).collect();
            all.push(present.to_string());
            while all.len() > 1 && all.iter().map(|r| r.len() + 1).sum::<usize>() > MAX_HISTORY {
                all.remove(0);
            }
            new.annotate(REVISION_HISTORY, all.join(","));
        }
    }
    let min_ready = deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds).filter(|s| *s != 0);
    let spec = new.set.spec.get_or_insert_default();
    if spec.min_ready_seconds.filter(|s| *s != 0) != min_ready {
        spec.min_ready_seconds = min_ready;
        new.changed = true;
    }
}

fn copy_annotations(to: &mut Tracked, deployment: &Deployment) {
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !NOT_COPIED.contains(&key.as_str()) {
            to.annotate(key, value.clone());
        }
    }
}

/// Pausing and resuming are said, so that the time in pause is not counted as lack of progress.
fn paused_condition(deployment: &Deployment, now: Timestamp) -> Option<DeploymentCondition> {
    deadline(deployment)?;
    let current = deployment.status.as_ref().and_then(|status| find(status, "Progressing"));
    let reason = current.and_then(|c| c.reason.as_deref());
    let paused = deployment.spec.as_ref().and_then(|spec| spec.paused) == Some(true);
    let (reason, message) = match (paused, reason) {
        (_, Some("ProgressDeadlineExceeded")) | (true, Some("DeploymentPaused")) => return None,
        (true, _) => ("DeploymentPaused", "Deployment is paused"),
        (false, Some("DeploymentPaused")) => ("DeploymentResumed", "Deployment is resumed"),
        (false, _) => return None,
    };
    Some(new_condition("Progressing", "Unknown", reason, message.to_owned(), now))
}

/// The ReplicaSet of the present template, to be made.
fn make_new(rollout: &Rollout<'_>, revision: i64) -> Option<Box<ReplicaSet>> {
    let deployment = rollout.deployment;
    let spec = deployment.spec.as_ref()?;
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = short_hash(&serde_json::to_string(&spec.template).unwrap_or_default(), collisions);
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.to_owned(), hash.clone());
    // Upstream: pkg/controller/deployment/sync.go generateReplicaSetName
    let room = 253 - 1 - hash.len();
    let name = deployment.name();
    let name = format!("{}-{hash}", name.get(..room).unwrap_or(name));
    let metadata = ObjectMeta {
        name: Some(name),
        namespace: deployment.metadata.namespace.clone(),
        labels: Some(labels),
        owner_references: Some(vec![controller_reference(deployment)]),
        ..Default::default()
    };
    let replicas = if is_recreate(deployment) { wanted(deployment) } else { room_for_new(rollout, 0) };
    let spec = ReplicaSetSpec {
        replicas: Some(replicas),
        min_ready_seconds: spec.min_ready_seconds,
        selector,
        template: Some(template),
    };
    let set = ReplicaSet { metadata, spec: Some(spec), status: None };
    let mut made = Tracked { set, changed: false, event: None };
    copy_annotations(&mut made, deployment);
    made.annotate(REVISION, revision.to_string());
    made.annotate_sizes(deployment);
    Some(Box::new(made.set))
}

/// How large the new ReplicaSet may be now.
///
/// Upstream: pkg/controller/deployment/util/deployment_util.go NewRSNewReplicas
fn room_for_new(rollout: &Rollout<'_>, present: i32) -> i32 {
    let wanted = wanted(rollout.deployment);
    let most = wanted + max_surge(rollout.deployment);
    let room = most - rollout.total();
    if room <= 0 { present } else { present + room.min(wanted - present) }
}

fn recreate(rollout: &mut Rollout<'_>, plan: &mut Plan, old_pods_run: bool, revision: &i64) {
    let deployment = rollout.deployment;
    let mut scaled = false;
    for old in rollout.old.iter_mut().filter(|old| replicas_of(&old.set) != 0) {
        old.scale(0, deployment);
        scaled = true;
    }
    let remain = rollout.old.iter().any(|old| old.set.status.as_ref().is_some_and(|s| s.replicas > 0));
    if scaled || remain || old_pods_run {
        return;
    }
    match &mut rollout.new {
        Some(new) => new.scale(wanted(deployment), deployment),
        None => plan.create = make_new(rollout, *revision),
    }
    if deployment.status.as_ref().is_some_and(|status| is_complete(deployment, status)) {
        plan.delete = outlived(rollout);
    }
}

fn roll(rollout: &mut Rollout<'_>, plan: &mut Plan, revision: &i64) {
    let deployment = rollout.deployment;
    let wanted = wanted(deployment);
    let Some(present) = rollout.new.as_ref().map(|new| replicas_of(&new.set)) else {
        plan.create = make_new(rollout, *revision);
        return;
    };
    let size = if present > wanted { wanted } else { room_for_new(rollout, present) };
    if size != present {
        if let Some(new) = &mut rollout.new {
            new.scale(size, deployment);
        }
        return;
    }
    if scale_down_old(rollout) {
        return;
    }
    if deployment.status.as_ref().is_some_and(|status| is_complete(deployment, status)) {
        plan.delete = outlived(rollout);
    }
}

/// Takes from the old ReplicaSets what may go: pods that are unavailable anyway, then available ones above the
/// minimum. True when something goes.
///
/// Upstream: pkg/controller/deployment/rolling.go reconcileOldReplicaSets
fn scale_down_old(rollout: &mut Rollout<'_>) -> bool {
    let deployment = rollout.deployment;
    if rollout.old.iter().all(|old| replicas_of(&old.set) == 0) {
        return false;
    }
    let least = wanted(deployment) - max_unavailable(deployment);
    let new_unavailable = rollout.new.as_ref().map_or(0, |new| replicas_of(&new.set) - available(&new.set));
    let mut unhealthy_left = rollout.total() - least - new_unavailable;
    if unhealthy_left <= 0 {
        return false;
    }
    let mut taken = false;
    for old in &mut rollout.old {
        let (size, healthy) = (replicas_of(&old.set), available(&old.set));
        let gone = unhealthy_left.min(size - healthy);
        if gone > 0 {
            old.scale(size - gone, deployment);
            unhealthy_left -= gone;
            taken = true;
        }
    }
    let mut healthy_left = rollout.all().map(available).sum::<i32>() - least;
    for old in &mut rollout.old {
        let size = replicas_of(&old.set);
        let gone = healthy_left.min(size);
        if gone > 0 {
            old.scale(size - gone, deployment);
            healthy_left -= gone;
            taken = true;
        }
    }
    taken
}

/// Whether the wanted number changed since the ReplicaSets were last sized.
fn is_scaling(rollout: &Rollout<'_>) -> bool {
    let wanted = wanted(rollout.deployment).to_string();
    let mut active = rollout.all().filter(|set| replicas_of(set) > 0);
    active.any(|set| annotation(set, DESIRED).is_some_and(|d| d.parse::<u32>().is_ok() && d != wanted))
}

/// Sizes the ReplicaSets for a changed number, in proportion while several have pods.
///
/// Upstream: pkg/controller/deployment/sync.go scale
fn scale(rollout: &mut Rollout<'_>) {
    let deployment = rollout.deployment;
    let wanted = wanted(deployment);
    let active = rollout.all().filter(|set| replicas_of(set) > 0).count();
    if active <= 1 {
        let only = if active == 1 {
            rollout.all_mut().find(|tracked| replicas_of(&tracked.set) > 0)
        } else if rollout.new.is_some() {
            rollout.new.as_mut()
        } else {
            rollout.old.last_mut()
        };
        if let Some(only) = only {
            only.scale(wanted, deployment);
        }
        return;
    }
    let saturated = rollout.new.as_ref().is_some_and(|new| {
        replicas_of(&new.set) == wanted
            && available(&new.set) == wanted
            && annotation(&new.set, DESIRED) == Some(&wanted.to_string())
    });
    if saturated {
        rollout.old.iter_mut().for_each(|old| old.scale(0, deployment));
    } else if !is_recreate(deployment) {
        scale_in_proportion(rollout);
    }
}

fn scale_in_proportion(rollout: &mut Rollout<'_>) {
    let deployment = rollout.deployment;
    let allowed = if wanted(deployment) > 0 { wanted(deployment) + max_surge(deployment) } else { 0 };
    let to_add = allowed - rollout.total();
    let mut active: Vec<&mut Tracked> = rollout.all_mut().filter(|t| replicas_of(&t.set) > 0).collect();
    // The largest first; of equal ones the newest grows and the oldest shrinks first.
    if to_add > 0 {
        active.sort_by_key(|t| Reverse((replicas_of(&t.set), created(&t.set))));
    } else {
        active.sort_by_key(|t| (Reverse(replicas_of(&t.set)), created(&t.set)));
    }
    let mut added = 0;
    let mut sizes: Vec<i32> = Vec::new();
    for tracked in &active {
        let left = to_add - added;
        let share = fraction(&tracked.set, deployment);
        let share = if to_add > 0 { share.min(left) } else { share.max(left) };
        let share = if to_add == 0 || left == 0 { 0 } else { share };
        added += share;
        sizes.push(replicas_of(&tracked.set) + share);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + to_add - added).max(0);
    }
    for (tracked, size) in active.into_iter().zip(sizes) {
        tracked.scale(size, deployment);
        tracked.annotate_sizes(deployment);
    }
}

/// How much a ReplicaSet would change were it to keep its share.
///
/// Upstream: pkg/controller/deployment/util/deployment_util.go getReplicaSetFraction
fn fraction(set: &ReplicaSet, deployment: &Deployment) -> i32 {
    let size = replicas_of(set);
    if wanted(deployment) == 0 {
        return -size;
    }
    let before = annotation(set, MAX).and_then(|max| max.parse::<i32>().ok()).filter(|max| *max > 0);
    let before = before.or(deployment.status.as_ref().and_then(|status| status.replicas)).unwrap_or(0);
    if before <= 0 {
        return 0;
    }
    let after = wanted(deployment) + max_surge(deployment);
    let share = f64::from(size) * f64::from(after) / f64::from(before);
    share.round() as i32 - size
}

/// Old ReplicaSets beyond the history limit, of the lowest revisions, that have no pods.
fn outlived(rollout: &Rollout<'_>) -> Vec<String> {
    let limit = rollout.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit);
    let Some(limit) = limit.filter(|limit| *limit != i32::MAX) else { return Vec::new() };
    let mut old: Vec<_> = rollout.old.iter().map(|old| &old.set).filter(|set| !is_deleting(*set)).collect();
    let excess = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    old.sort_by_key(|set| revision_of(set));
    old.truncate(excess);
    old.retain(|set| {
        let status = set.status.clone().unwrap_or_default();
        status.replicas == 0 && replicas_of(set) == 0 && set.metadata.generation <= status.observed_generation
    });
    old.into_iter().map(|set| set.name().to_owned()).collect()
}

struct Controller {
    context: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    queue: WorkQueue<String>,
    pace: Pace,
    events: EventRecorder,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        deployments: context.informers.informer(),
        sets: context.informers.informer(),
        pods: context.informers.informer(),
        queue: WorkQueue::new(),
        pace: Pace::default(),
        events: context.events(COMPONENT),
        context,
    });
    add_index(&controller.sets);
    add_index(&controller.pods);
    let this = controller.clone();
    controller.deployments.subscribe(move |event| this.queue.add(Object::key(&**event.object())));
    let this = controller.clone();
    controller.sets.subscribe(move |event| this.set_event(event));
    let this = controller.clone();
    controller.pods.subscribe(move |event| this.pod_event(event));
    controller.context.work(&controller, &controller.queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    fn set_event(&self, event: &Event<ReplicaSet>) {
        let selector = |deployment: &Deployment| {
            deployment.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default()
        };
        concerned(event, &self.deployments, selector).into_iter().for_each(|key| self.queue.add(key));
    }

    /// A pod that ended may be the last one that a Recreate waits for.
    fn pod_event(&self, event: &Event<Pod>) {
        let pod = event.object();
        let ended = matches!(event, Event::Deleted(_)) || is_terminal(pod);
        let Some(owner) =
            controller_of(&pod.metadata).filter(|owner| ended && owner.kind == ReplicaSet::KIND)
        else {
            return;
        };
        let set = self.sets.get_in(pod.namespace(), &owner.name).filter(|set| set.uid() == owner.uid);
        let upper = set.as_ref().and_then(|set| controller_of(&set.metadata));
        let deployment = upper.and_then(|upper| self.deployments.get_in(pod.namespace(), &upper.name));
        if let Some(deployment) = deployment.filter(|deployment| is_recreate(deployment)) {
            self.queue.add(Object::key(&*deployment));
        }
    }

    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(deployment) = self.deployments.get(&key) else { return Ok(()) };
        let Some(spec) = &deployment.spec else { return Ok(()) };
        if selector::is_empty(&spec.selector) {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.events.warning(&*deployment, "SelectingAll", message);
            return Ok(());
        }
        let candidates = candidates(&self.sets, &*deployment);
        let sets =
            claim_all(&self.context.client, &self.sets, &*deployment, &spec.selector, candidates).await?;
        let now = self.context.clock().now();
        let plan = decide(&deployment, &sets, self.old_pods_run(&deployment, &sets), now);
        if let Some(again) = plan.again {
            self.queue.add_after(key.clone(), again);
        }
        self.execute(&deployment, plan).await
    }

    fn old_pods_run(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> bool {
        if !is_recreate(deployment) {
            return false;
        }
        let rollout = sort_out(deployment, sets, Timestamp::UNIX_EPOCH);
        let mut pods = rollout.old.iter().flat_map(|old| controlled(&self.pods, old.set.uid()));
        pods.any(|pod| !is_terminal(&pod))
    }

    async fn execute(&self, deployment: &Deployment, plan: Plan) -> Result<(), Error> {
        if let Some(set) = &plan.create {
            self.create(deployment, set).await?;
        }
        for (set, event) in &plan.update {
            self.sets.update(set).await?;
            if let Some(message) = event {
                self.events.normal(deployment, "ScalingReplicaSet", message);
            }
        }
        for name in &plan.delete {
            match self
                .context
                .client
                .delete::<ReplicaSet>(deployment.namespace(), name, &DeleteOptions::default())
                .await
            {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        if plan.revision.is_none() && plan.status.is_none() {
            return Ok(());
        }
        let heard = deployment.status.as_ref().and_then(|old| old.observed_generation)
            == plan.status.as_ref().and_then(|new| new.observed_generation);
        let only_counts = heard && plan.create.is_none() && plan.update.is_empty() && plan.revision.is_none();
        if only_counts && let Some(wait) = self.pace.wait(&deployment.key()) {
            self.queue.add_after(deployment.key(), wait);
            return Ok(());
        }
        let mut updated = deployment.clone();
        if let Some(revision) = &plan.revision {
            // Told with the status, as upstream tells it: other updates of annotations begin a new generation.
            let annotations = updated.metadata.annotations.get_or_insert_default();
            annotations.insert(REVISION.to_owned(), revision.to_string());
        }
        if let Some(status) = plan.status {
            updated.status = Some(status);
        }
        self.deployments.update_status(&updated).await?;
        Ok(())
    }

    async fn write_status(&self, deployment: &Deployment, status: DeploymentStatus) -> Result<(), Error> {
        let mut updated = deployment.clone();
        updated.status = Some(status);
        self.deployments.update_status(&updated).await?;
        Ok(())
    }

    /// Makes the new ReplicaSet. One that exists under its name is either ours, or another template has the
    /// same hash: then the next name is tried.
    async fn create(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<(), Error> {
        let error = match self.sets.create(set).await {
            Ok(created) => {
                let size = replicas_of(&created);
                if size > 0 {
                    let message = format!("Scaled up replica set {} from 0 to {size}", created.name());
                    self.events.normal(deployment, "ScalingReplicaSet", message);
                }
                return Ok(());
            }
            Err(error) => error,
        };
        let mut status = deployment.status.clone().unwrap_or_default();
        if error.is_already_exists() {
            let existing: ReplicaSet = self.context.client.get(set.namespace(), set.name()).await?;
            let template = |set: &ReplicaSet| set.spec.as_ref()?.template.as_ref().map(without_hash);
            if is_controlled_by(&existing, deployment.uid()) && template(&existing) == template(set) {
                return Ok(());
            }
            status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
            self.write_status(deployment, status).await?;
        } else if !namespace_is_terminating(&error) {
            let message = format!("Failed to create new replica set {:?}: {error}", set.name());
            self.events.warning(deployment, "ReplicaSetCreateError", message.clone());
            if deadline(deployment).is_some() {
                let now = self.context.clock().now();
                let condition = new_condition("Progressing", "False", "ReplicaSetCreateError", message, now);
                crate::deployment_status::set(&mut status, condition);
                if changed(deployment, status.clone()).is_some() {
                    self.write_status(deployment, status).await?;
                }
            }
        }
        Err(error.into())
    }
}

#[cfg(test)]
mod tests;
