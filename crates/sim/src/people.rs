//! What people ask of the cluster, by seed, and whether they have got it in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use api::batch::v1::{CronJob, Job};
use api::core::v1::{Namespace, Node, Pod, ResourceQuota};
use api::policy::v1::PodDisruptionBudget;
use client::{Client, DeleteOptions, ListOptions, PatchType, Propagation, Resource};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::kubelets::{NODES, phase};
use crate::watchdog::{POLICY, TIGHT, TIGHT_PODS, Watchdog, owner};

const ROOMY: &str = "roomy";
/// The Deployment that has a budget of one unavailable pod.
const GUARDED: &str = "d0";
/// So long after something has happened to the guarded pods nobody judges their budget: whoever let an eviction
/// through could not know.
const DOUBT: Duration = Duration::from_secs(120);
const KEEP: i32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Deployment,
    StatefulSet,
    DaemonSet,
}

/// All workloads that there may be.
const WORKLOADS: [(Kind, &str, &str); 8] = [
    (Kind::Deployment, ROOMY, GUARDED),
    (Kind::Deployment, ROOMY, "d1"),
    (Kind::Deployment, ROOMY, "d2"),
    (Kind::Deployment, TIGHT, "d3"),
    (Kind::StatefulSet, ROOMY, "s0"),
    (Kind::StatefulSet, ROOMY, "s1"),
    (Kind::StatefulSet, TIGHT, "s2"),
    (Kind::DaemonSet, ROOMY, "a0"),
];

type Workload = (Kind, &'static str, &'static str);

pub struct People {
    client: Client,
    random: StdRng,
    /// How many each workload was last asked to have.
    wanted: BTreeMap<Workload, i32>,
    jobs: u32,
    /// When the guarded pods were last hurt, changed or moved.
    disturbed: Instant,
}

fn pod_template(name: &str, image: u32, restart: Option<&str>) -> Value {
    let mut template = json!({
        "metadata": {"labels": {"app": name}},
        "spec": {"containers": [{
            "name": "c", "image": format!("image-{image}"), "resources": {"requests": {"cpu": "400m"}},
        }]},
    });
    if let Some(restart) = restart {
        template["spec"]["restartPolicy"] = json!(restart);
    }
    template
}

impl People {
    pub async fn start(cluster: &Cluster, seed: u64) -> Self {
        let client = cluster.client("people");
        for name in [ROOMY, TIGHT] {
            let namespace = Namespace::from_value(json!({"metadata": {"name": name}})).unwrap();
            client.create(&namespace).await.unwrap();
        }
        let quota = json!({
            "metadata": {"namespace": TIGHT, "name": "pods"}, "spec": {"hard": {"pods": TIGHT_PODS.to_string()}},
        });
        client.create(&ResourceQuota::from_value(quota).unwrap()).await.unwrap();
        let budget = json!({
            "metadata": {"namespace": ROOMY, "name": GUARDED},
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": GUARDED}}},
        });
        client.create(&PodDisruptionBudget::from_value(budget).unwrap()).await.unwrap();
        let random = StdRng::seed_from_u64(seed);
        People { client, random, wanted: BTreeMap::new(), jobs: 0, disturbed: Instant::now() }
    }

    /// One thing that somebody does.
    pub async fn step(&mut self, watchdog: &Watchdog) {
        let workload = WORKLOADS[self.random.random_range(0..WORKLOADS.len())];
        match self.random.random_range(0..14) {
            0..=3 => self.scale(workload).await,
            4 | 5 => self.roll(workload).await,
            6 => self.delete(workload).await,
            7 => self.run_job().await,
            8 => self.cron_job().await,
            9 => self.cordon().await,
            10 | 11 => self.evict(watchdog).await,
            12 => self.hurt(watchdog, true).await,
            _ => self.hurt(watchdog, false).await,
        }
    }

    async fn patch(&self, (kind, namespace, name): Workload, patch: &Value) -> Result<(), client::Error> {
        let merge = PatchType::Merge;
        match kind {
            Kind::Deployment => {
                self.client.patch::<Deployment>(namespace, name, None, merge, patch).await.map(drop)
            }
            Kind::StatefulSet => {
                self.client.patch::<StatefulSet>(namespace, name, None, merge, patch).await.map(drop)
            }
            Kind::DaemonSet => {
                self.client.patch::<DaemonSet>(namespace, name, None, merge, patch).await.map(drop)
            }
        }
    }

    fn disturb(&mut self, name: &str) {
        if name == GUARDED {
            self.disturbed = Instant::now();
        }
    }

    async fn scale(&mut self, workload: Workload) {
        let (kind, namespace, name) = workload;
        self.disturb(name);
        let replicas = self.random.random_range(0..6);
        if !self.wanted.contains_key(&workload) {
            let parallel = self.random.random_bool(0.5);
            let template = pod_template(name, 0, None);
            let mut spec = json!({"selector": {"matchLabels": {"app": name}}, "template": template});
            let created = match kind {
                Kind::DaemonSet => {
                    let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
                    self.client.create(&DaemonSet::from_value(object).unwrap()).await.map(drop)
                }
                Kind::Deployment => {
                    spec["replicas"] = json!(replicas);
                    let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
                    self.client.create(&Deployment::from_value(object).unwrap()).await.map(drop)
                }
                Kind::StatefulSet => {
                    spec["replicas"] = json!(replicas);
                    spec["serviceName"] = json!("none");
                    spec["podManagementPolicy"] = json!(if parallel { "Parallel" } else { "OrderedReady" });
                    let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
                    self.client.create(&StatefulSet::from_value(object).unwrap()).await.map(drop)
                }
            };
            // One of the name may still be going.
            if created.is_ok() {
                self.wanted.insert(workload, replicas);
            }
        } else if kind != Kind::DaemonSet
            && self.patch(workload, &json!({"spec": {"replicas": replicas}})).await.is_ok()
        {
            self.wanted.insert(workload, replicas);
        }
    }

    async fn roll(&mut self, workload: Workload) {
        self.disturb(workload.2);
        let image = self.random.random_range(0..4);
        // It may not be there, which is fine.
        drop(
            self.patch(workload, &json!({"spec": {"template": pod_template(workload.2, image, None)}})).await,
        );
    }

    async fn delete(&mut self, workload: Workload) {
        let (kind, namespace, name) = workload;
        self.disturb(name);
        let how = [Propagation::Background, Propagation::Foreground][self.random.random_range(0..2)];
        let options = DeleteOptions { propagation_policy: Some(how), ..Default::default() };
        let deleted = match kind {
            Kind::Deployment => self.client.delete::<Deployment>(namespace, name, &options).await,
            Kind::StatefulSet => self.client.delete::<StatefulSet>(namespace, name, &options).await,
            Kind::DaemonSet => self.client.delete::<DaemonSet>(namespace, name, &options).await,
        };
        if deleted.is_ok() {
            self.wanted.remove(&workload);
        }
    }

    fn job_spec(&mut self, name: &str) -> Value {
        let completions = self.random.random_range(1..5);
        let indexed = self.random.random_bool(0.5);
        let mut spec = json!({
            "completions": completions, "parallelism": self.random.random_range(1..4), "backoffLimit": 3,
            "completionMode": if indexed { "Indexed" } else { "NonIndexed" },
            "template": pod_template(name, 0, Some("Never")),
        });
        if indexed && self.random.random_bool(0.5) {
            spec["backoffLimitPerIndex"] = json!(1);
            spec["maxFailedIndexes"] = json!(completions.min(2));
        }
        if self.random.random_bool(0.3) {
            spec["podReplacementPolicy"] = json!("Failed");
        }
        if self.random.random_bool(0.5) {
            spec["ttlSecondsAfterFinished"] = json!(300);
        }
        spec
    }

    async fn run_job(&mut self) {
        let name = format!("j{}", self.jobs);
        self.jobs += 1;
        let spec = self.job_spec(&name);
        let job = json!({"metadata": {"namespace": ROOMY, "name": name}, "spec": spec});
        self.client.create(&Job::from_value(job).unwrap()).await.unwrap();
    }

    async fn cron_job(&mut self) {
        let policy = ["Allow", "Forbid", "Replace"][self.random.random_range(0..3)];
        let job = self.job_spec("c0");
        let cron_job = json!({"metadata": {"namespace": ROOMY, "name": "c0"}, "spec": {
            "schedule": "*/2 * * * *", "concurrencyPolicy": policy,
            "jobTemplate": {"metadata": {"labels": {POLICY: policy}}, "spec": job},
        }});
        let created = self.client.create(&CronJob::from_value(cron_job).unwrap()).await;
        if created.is_err_and(|error| error.is_already_exists()) {
            drop(self.client.delete::<CronJob>(ROOMY, "c0", &DeleteOptions::default()).await);
        }
    }

    async fn cordon(&mut self) {
        let name = format!("n{}", self.random.random_range(0..NODES));
        let unschedulable = if self.random.random_bool(0.3) { json!(true) } else { Value::Null };
        let patch = json!({"spec": {"unschedulable": unschedulable}});
        // The node may be away.
        drop(self.client.patch::<Node>("", &name, None, PatchType::Merge, &patch).await);
    }

    /// Asks for a guarded pod to go, as a drain does. Whoever is let through has left as many as the budget keeps.
    async fn evict(&mut self, watchdog: &Watchdog) {
        let pods = watchdog.pods();
        let guarded: Vec<_> = pods.iter().filter(|pod| of_app(pod, ROOMY, GUARDED)).collect();
        if guarded.is_empty() {
            return;
        }
        let name = guarded[self.random.random_range(0..guarded.len())].name().to_owned();
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"namespace": ROOMY, "name": name},
        });
        let pods = Resource::of::<Pod>();
        let path = Some((name.as_str(), "eviction"));
        let let_through = self.client.create_value(&pods, ROOMY, path, &eviction).await.is_ok();
        let Some(wanted) = self.wanted.get(&(Kind::Deployment, ROOMY, GUARDED)) else { return };
        if !let_through || self.disturbed.elapsed() < DOUBT {
            return;
        }
        let left = self.list::<Pod>(ROOMY).await;
        let healthy = left.iter().filter(|pod| {
            of_app(pod, ROOMY, GUARDED) && is_ready(pod) && pod.metadata.deletion_timestamp.is_none()
        });
        let healthy = i32::try_from(healthy.count()).unwrap();
        if healthy < wanted - 1 {
            let wrong =
                format!("{name} was let go, and {healthy} of {wanted} are left, of whom one may be missing");
            watchdog.accuse(wrong);
        }
    }

    /// A pod is deleted, or fails.
    async fn hurt(&mut self, watchdog: &Watchdog, delete: bool) {
        let pods = watchdog.pods();
        if pods.is_empty() {
            return;
        }
        let pod = &pods[self.random.random_range(0..pods.len())];
        if of_app(pod, ROOMY, GUARDED) {
            self.disturb(GUARDED);
        }
        // It may be gone by now, which is fine.
        if delete {
            drop(self.client.delete::<Pod>(pod.namespace(), pod.name(), &DeleteOptions::default()).await);
        } else if !matches!(phase(pod), "Succeeded" | "Failed")
            && watchdog.reality().lock().unwrap().kill(pod)
        {
            let patch =
                json!({"metadata": {"uid": pod.uid()}, "status": {"phase": "Failed", "reason": "Evicted"}});
            let (namespace, name) = (pod.namespace(), pod.name());
            drop(self.client.patch::<Pod>(namespace, name, Some("status"), PatchType::Merge, &patch).await);
        }
    }

    /// What happens to nodes disturbs whoever runs there.
    pub fn shaken(&mut self) {
        self.disturb(GUARDED);
    }

    /// Asks for no more than there is room for, and then for nothing.
    pub async fn settle(&mut self) {
        drop(self.client.delete::<CronJob>(ROOMY, "c0", &DeleteOptions::default()).await);
        let workloads: Vec<_> = self.wanted.keys().copied().collect();
        for workload in workloads.into_iter().filter(|(kind, ..)| *kind != Kind::DaemonSet) {
            self.patch(workload, &json!({"spec": {"replicas": KEEP}})).await.unwrap();
            self.wanted.insert(workload, KEEP);
        }
    }

    async fn list<T: Object>(&self, namespace: &str) -> Vec<T> {
        self.client.list::<T>(Some(namespace), &ListOptions::default()).await.unwrap().items
    }

    /// Whether everybody has got what they asked for, and nothing else is there.
    pub async fn judge(&self, watchdog: &Watchdog) -> Result<(), String> {
        for namespace in [ROOMY, TIGHT] {
            self.judge_owners(namespace).await?;
        }
        let pods = watchdog.pods();
        for ((kind, namespace, name), wanted) in &self.wanted {
            let wanted = if *kind == Kind::DaemonSet { i32::try_from(NODES).unwrap() } else { *wanted };
            let alive = pods.iter().filter(|pod| of_app(pod, namespace, name) && phase(pod) == "Running");
            let alive: Vec<&Arc<Pod>> = alive.collect();
            if i32::try_from(alive.len()) != Ok(wanted) || !alive.iter().all(|pod| is_ready(pod)) {
                return Err(format!("{name} has {} of {wanted} pods", alive.len()));
            }
        }
        if let Some(pod) = pods.iter().find(|pod| pod.metadata.deletion_timestamp.is_some()) {
            return Err(format!("{} never goes", pod.key()));
        }
        for job in self.list::<Job>(ROOMY).await {
            let status = job.status.clone().unwrap_or_default();
            let says = |kind: &str| {
                status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True")
            };
            let spec = job.spec.clone().unwrap_or_default();
            let (wanted, got) = (spec.completions.unwrap_or(1), status.succeeded.unwrap_or(0));
            // A pod whose creation was answered by silence may have run beside the one made in its place; an index
            // is done once all the same.
            let indexed = spec.completion_mode.as_deref() == Some("Indexed");
            let enough = if indexed { got == wanted } else { got >= wanted };
            let ended = says("Failed") || (says("Complete") && enough);
            if !ended || status.active.unwrap_or(0) + status.terminating.unwrap_or(0) > 0 {
                return Err(format!("{} has not ended: {status:?}", job.key()));
            }
        }
        Ok(())
    }

    /// Nothing is there without an owner that is.
    async fn judge_owners(&self, namespace: &str) -> Result<(), String> {
        let mut owners: BTreeSet<String> = BTreeSet::new();
        fn uids<T: Object>(objects: &[T]) -> impl Iterator<Item = String> {
            objects.iter().map(|object| object.uid().to_owned())
        }
        let sets = self.list::<ReplicaSet>(namespace).await;
        let jobs = self.list::<Job>(namespace).await;
        owners.extend(uids(&self.list::<Deployment>(namespace).await));
        owners.extend(uids(&self.list::<StatefulSet>(namespace).await));
        owners.extend(uids(&self.list::<DaemonSet>(namespace).await));
        owners.extend(uids(&sets));
        owners.extend(uids(&jobs));
        let pods = self.list::<Pod>(namespace).await;
        for metadata in pods.iter().map(|pod| &pod.metadata).chain(sets.iter().map(|set| &set.metadata)) {
            let controllers =
                metadata.owner_references.iter().flatten().filter(|o| o.controller == Some(true));
            let controllers: Vec<_> = controllers.collect();
            if controllers.len() != 1 || !owners.contains(&controllers[0].uid) {
                return Err(format!("{:?} is left over", metadata.name));
            }
        }
        let from_cron = jobs.iter().find(|job| {
            job.metadata.owner_references.iter().flatten().any(|owner| owner.kind == CronJob::KIND)
        });
        match from_cron {
            Some(job) => Err(format!("{} is left over from a CronJob that is gone", job.key())),
            None => Ok(()),
        }
    }
}

fn of_app(pod: &Pod, namespace: &str, app: &str) -> bool {
    let label = pod.metadata.labels.as_ref().and_then(|labels| labels.get("app"));
    pod.namespace() == namespace && label.is_some_and(|label| label == app) && owner(pod, "Job").is_none()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
