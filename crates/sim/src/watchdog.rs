//! Judges all the while: what nodes really run, and every state of pods and Jobs that the server ever had.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use api::Object;
use api::batch::v1::Job;
use api::core::v1::Pod;
use apimachinery::quantity::Quantity;
use controller_runtime::{Event, Informer, InformerFactory};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::cluster::Cluster;
use crate::kubelets::phase;

/// The processor time of a node, in thousandths.
const ROOM: i64 = 4000;
/// The namespace with a quota, and how many pods that allows.
pub const TIGHT: &str = "tight";
pub const TIGHT_PODS: usize = 5;
/// The label of Jobs that says whether others of their CronJob may run beside them.
pub const POLICY: &str = "policy";

/// What nodes really run, whatever anybody knows of it.
#[derive(Default)]
pub struct Reality {
    /// By node, then by the pod's key.
    running: BTreeMap<String, BTreeMap<String, String>>,
    /// Nodes of which nobody hears.
    lost: BTreeSet<String>,
    /// Pods whose containers were killed by their node, by uid.
    killed: BTreeSet<String>,
    /// The pods of a Job that ended well, by uid.
    succeeded: BTreeMap<String, BTreeSet<String>>,
    /// Jobs that have not ended, of CronJobs that allow one at a time: by uid, with their owner's.
    alone: BTreeMap<String, String>,
    /// What was ever wrong, first of all.
    wrong: Option<String>,
}

pub(crate) fn owner<'a>(pod: &'a Pod, kind: &str) -> Option<&'a str> {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    owners.find(|owner| owner.kind == kind && owner.controller == Some(true)).map(|owner| owner.uid.as_str())
}

impl Reality {
    fn accuse(&mut self, wrong: String) {
        self.wrong.get_or_insert(wrong);
    }

    fn observe_alone(&mut self, event: &Event<Job>) {
        let job = event.object();
        let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let ended = conditions
            .into_iter()
            .any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True");
        let policy = job.metadata.labels.as_ref().and_then(|labels| labels.get(POLICY));
        let owner = job.metadata.owner_references.iter().flatten().next();
        let (Some("Forbid"), Some(owner)) = (policy.map(String::as_str), owner) else { return };
        if ended || matches!(event, Event::Deleted(_)) {
            self.alone.remove(job.uid());
            return;
        }
        let other = self.alone.iter().any(|(uid, other)| uid != job.uid() && *other == owner.uid);
        self.alone.insert(job.uid().to_owned(), owner.uid.clone());
        if other {
            self.accuse(format!("{} runs beside another Job of {}", job.key(), owner.name));
        }
    }

    pub fn start(&mut self, node: &str, pod: &Pod) {
        if self.killed.contains(pod.uid()) {
            return;
        }
        let key = pod.key();
        let known =
            self.running.entry(node.to_owned()).or_default().insert(key.clone(), pod.uid().to_owned());
        if known.as_deref() == Some(pod.uid()) || owner(pod, "StatefulSet").is_none() {
            return;
        }
        let other = self.running.iter().find(|(other, pods)| *other != node && pods.contains_key(&key));
        if let Some((other, _)) = other {
            let wrong = format!("{key} runs on {other} and on {node}");
            self.accuse(wrong);
        }
    }

    pub fn end(&mut self, node: &str, pod: &Pod, well: bool) {
        self.keep_only(node, &pod.key(), None);
        if let Some(job) = owner(pod, "Job").filter(|_| well) {
            self.succeeded.entry(job.to_owned()).or_default().insert(pod.uid().to_owned());
        }
    }

    /// Stops what runs under the key but is another pod than this.
    pub fn keep_only(&mut self, node: &str, key: &str, uid: Option<&str>) {
        if let Some(pods) = self.running.get_mut(node)
            && pods.get(key).map(String::as_str) != uid
        {
            pods.remove(key);
        }
    }

    /// Kills what runs of a pod, as a node does that is short of something; false when nobody hears of the node.
    pub fn kill(&mut self, pod: &Pod) -> bool {
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        if self.lost.contains(node) {
            return false;
        }
        self.keep_only(node, &pod.key(), None);
        self.killed.insert(pod.uid().to_owned());
        true
    }

    pub fn is_killed(&self, uid: &str) -> bool {
        self.killed.contains(uid)
    }

    pub fn lose(&mut self, node: &str, lost: bool) {
        if lost {
            self.lost.insert(node.to_owned());
        } else {
            self.lost.remove(node);
        }
    }

    pub fn keys(&self, node: &str) -> Vec<String> {
        self.running.get(node).into_iter().flat_map(|pods| pods.keys().cloned()).collect()
    }

    pub fn die(&mut self, node: &str) {
        self.running.remove(node);
    }
}

/// What a pod takes.
struct Taken {
    node: String,
    milli: i64,
}

/// The pods as the server has them, each state in its order.
#[derive(Default)]
struct Books {
    pods: BTreeMap<String, Taken>,
    /// In the namespace with a quota.
    tight: BTreeSet<String>,
}

fn milli(pod: &Pod) -> i64 {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let requests =
        containers.filter_map(|container| container.resources.as_ref()?.requests.as_ref()?.get("cpu"));
    requests.filter_map(|cpu| Quantity::parse(&cpu.0).ok()).map(|cpu| cpu.milli_value()).sum()
}

impl Books {
    fn observe(&mut self, event: &Event<Pod>) -> Result<(), String> {
        let pod = event.object();
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default();
        let before = self.pods.remove(pod.uid());
        if let Some(before) = before.filter(|before| !before.node.is_empty() && before.node != node) {
            return Err(format!("{} was bound to {} and then to {node}", pod.key(), before.node));
        }
        let gone = matches!(event, Event::Deleted(_));
        let counts = !gone
            && pod.metadata.deletion_timestamp.is_none()
            && !matches!(phase(pod), "Succeeded" | "Failed");
        if pod.namespace() == TIGHT && counts {
            self.tight.insert(pod.uid().to_owned());
        } else {
            self.tight.remove(pod.uid());
        }
        if self.tight.len() > TIGHT_PODS {
            return Err(format!("the quota of {TIGHT_PODS} pods is overrun: there are {}", self.tight.len()));
        }
        if gone || matches!(phase(pod), "Succeeded" | "Failed") {
            return Ok(());
        }
        self.pods.insert(pod.uid().to_owned(), Taken { node: node.clone(), milli: milli(pod) });
        let taken: i64 = self.pods.values().filter(|pod| pod.node == node).map(|pod| pod.milli).sum();
        if !node.is_empty() && taken > ROOM {
            return Err(format!("{} is bound to {node}, whose pods take {taken} of {ROOM} then", pod.key()));
        }
        Ok(())
    }
}

pub struct Watchdog {
    reality: Arc<Mutex<Reality>>,
    pods: Informer<Pod>,
    _running: DropGuard,
}

impl Watchdog {
    pub async fn start(cluster: &Cluster) -> Self {
        let stop = CancellationToken::new();
        let informers = InformerFactory::new(cluster.client("watchdog"), stop.clone());
        let (pods, jobs) = (informers.informer::<Pod>(), informers.informer::<Job>());
        let reality = Arc::new(Mutex::new(Reality::default()));
        let (books, truth) = (Mutex::new(Books::default()), reality.clone());
        pods.subscribe(move |event| {
            if let Err(wrong) = books.lock().unwrap().observe(event) {
                truth.lock().unwrap().accuse(wrong);
            }
        });
        let truth = reality.clone();
        jobs.subscribe(move |event| {
            let job = event.object();
            let told = job.status.as_ref().and_then(|status| status.succeeded).unwrap_or(0);
            let mut truth = truth.lock().unwrap();
            truth.observe_alone(event);
            let real = truth.succeeded.get(job.uid()).map_or(0, BTreeSet::len);
            if usize::try_from(told).unwrap_or(0) > real {
                truth.accuse(format!("{} counts {told} successes of {real}", job.key()));
            }
        });
        informers.start();
        informers.synced().await;
        Watchdog { reality, pods, _running: stop.drop_guard() }
    }

    pub fn reality(&self) -> Arc<Mutex<Reality>> {
        self.reality.clone()
    }

    pub fn accuse(&self, wrong: String) {
        self.reality.lock().unwrap().accuse(wrong);
    }

    /// All pods, as they are.
    pub fn pods(&self) -> Vec<Arc<Pod>> {
        self.pods.list()
    }

    pub fn verdict(&self) -> Result<(), String> {
        match &self.reality.lock().unwrap().wrong {
            Some(wrong) => Err(wrong.clone()),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, node: &str, namespace: &str, owner: &str) -> Arc<Pod> {
        let owners =
            json!([{"kind": owner, "controller": true, "uid": "o", "name": "o", "apiVersion": "apps/v1"}]);
        let resources = json!({"requests": {"cpu": "1500m"}});
        let pod = json!({
            "metadata": {"namespace": namespace, "name": name, "uid": name, "ownerReferences": owners},
            "spec": {"nodeName": node, "containers": [{"name": "c", "resources": resources}]},
        });
        Arc::new(Pod::from_value(pod).unwrap())
    }

    #[test]
    fn a_node_that_is_overbooked_is_seen() {
        let mut books = Books::default();
        assert_eq!(books.observe(&Event::Added(pod("a", "n", "ns", "Job"))), Ok(()));
        assert_eq!(books.observe(&Event::Added(pod("b", "n", "ns", "Job"))), Ok(()));
        assert_eq!(books.observe(&Event::Added(pod("c", "", "ns", "Job"))), Ok(()));
        let bound = Event::Updated { old: pod("c", "", "ns", "Job"), new: pod("c", "n", "ns", "Job") };
        assert_eq!(
            books.observe(&bound).unwrap_err(),
            "ns/c is bound to n, whose pods take 4500 of 4000 then"
        );
        let moved = Event::Updated { old: pod("a", "n", "ns", "Job"), new: pod("a", "m", "ns", "Job") };
        assert_eq!(books.observe(&moved).unwrap_err(), "ns/a was bound to n and then to m");
    }

    #[test]
    fn a_quota_that_is_overrun_is_seen() {
        let mut books = Books::default();
        for number in 0..TIGHT_PODS {
            assert_eq!(books.observe(&Event::Added(pod(&number.to_string(), "", TIGHT, "Job"))), Ok(()));
        }
        assert!(books.observe(&Event::Added(pod("more", "", TIGHT, "Job"))).is_err());
    }

    #[test]
    fn twins_of_a_stateful_set_are_seen() {
        for (owner, expected) in [("StatefulSet", true), ("ReplicaSet", false)] {
            let mut reality = Reality::default();
            reality.start("n", &pod("s-0", "n", "ns", owner));
            reality.start("n", &pod("s-0", "n", "ns", owner));
            assert_eq!(reality.wrong, None);
            reality.start("m", &pod("s-0", "m", "ns", owner));
            assert_eq!(reality.wrong.is_some(), expected);
        }
        let mut reality = Reality::default();
        reality.start("n", &pod("s-0", "n", "ns", "StatefulSet"));
        reality.keep_only("n", "ns/s-0", None);
        reality.start("m", &pod("s-0", "m", "ns", "StatefulSet"));
        assert_eq!(reality.wrong, None);
    }
}
