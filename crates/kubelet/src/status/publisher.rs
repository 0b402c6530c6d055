//! Writes pod statuses to the API: only what changed, only the newest, each pod on its own; and removes the API
//! object of a pod whose end is told.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::{Pod, PodStatus};
use client::{Client, DeleteOptions, PatchType, Preconditions, Resource};
use serde_json::Value;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::patch;
use crate::pod;

/// Statuses that are written at the same time.
const PARALLEL: usize = 16;
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(10);

/// What is to be written for one pod.
#[derive(Clone, Debug)]
struct Job {
    namespace: String,
    name: String,
    /// `None` for static pods: their reflection has another UID.
    uid: Option<String>,
    status: Value,
    delete: bool,
}

#[derive(Default)]
struct State {
    pending: HashMap<String, Job>,
    busy: HashSet<String>,
    /// What the API holds, as far as this kubelet has seen or written it.
    base: HashMap<String, Value>,
}

/// A handle; clones write for the same node.
#[derive(Clone)]
pub struct Publisher {
    client: Client,
    state: Arc<Mutex<State>>,
    work: Arc<Notify>,
}

impl Publisher {
    pub fn new(client: Client) -> Self {
        Publisher { client, state: Arc::default(), work: Arc::default() }
    }

    /// Has the status written. With `delete`, the API object is removed afterwards: nothing is left of the pod.
    pub fn publish(&self, pod: &Pod, status: &PodStatus, delete: bool) {
        let to_value = |s: &PodStatus| serde_json::to_value(s).expect("a status has no keys but strings");
        let is_static = pod::is_static(pod);
        let job = Job {
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            uid: (!is_static).then(|| pod.uid().to_owned()),
            status: to_value(status),
            delete,
        };
        let mut state = self.lock();
        let of_api = || pod.status.as_ref().filter(|_| !is_static).map(to_value).unwrap_or_default();
        let base = state.base.entry(pod.uid().to_owned()).or_insert_with(of_api);
        if *base == job.status && !delete && !state.busy.contains(pod.uid()) {
            state.pending.remove(pod.uid());
            return;
        }
        state.pending.insert(pod.uid().to_owned(), job);
        drop(state);
        self.work.notify_one();
    }

    /// The pod is gone from the API.
    pub fn forget(&self, pod_uid: &str) {
        let mut state = self.lock();
        state.pending.remove(pod_uid);
        state.base.remove(pod_uid);
    }

    /// The reflection of a static pod was made anew: its status has to be written again.
    pub fn reset(&self, pod_uid: &str) {
        self.lock().base.remove(pod_uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes until the shutdown.
    pub async fn run(self, shutdown: CancellationToken) {
        let mut writing = JoinSet::new();
        loop {
            while writing.len() < PARALLEL {
                let Some((uid, job)) = self.take() else { break };
                let publisher = self.clone();
                writing.spawn(async move { publisher.write(uid, job).await });
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.work.notified() => {}
                Some(_) = writing.join_next() => {}
            }
        }
    }

    fn take(&self) -> Option<(String, Job)> {
        let mut state = self.lock();
        let uid = state.pending.keys().find(|uid| !state.busy.contains(*uid))?.clone();
        let job = state.pending.remove(&uid)?;
        state.busy.insert(uid.clone());
        Some((uid, job))
    }

    /// Writes one status, again after errors unless a newer one has come.
    async fn write(&self, uid: String, job: Job) {
        let mut delay = FIRST_DELAY;
        loop {
            match self.attempt(&uid, &job).await {
                Ok(()) => break,
                Err(error) if error.is_not_found() || error.is_conflict() => {
                    tracing::debug!(pod = job.name, %error, "the pod of a status is not there");
                    break;
                }
                Err(error) => tracing::warn!(pod = job.name, %error, "cannot write a pod's status yet"),
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(MAX_DELAY);
            if self.lock().pending.contains_key(&uid) {
                break;
            }
        }
        self.lock().busy.remove(&uid);
    }

    async fn attempt(&self, uid: &str, job: &Job) -> Result<(), client::Error> {
        let base = self.lock().base.get(uid).cloned().unwrap_or_default();
        let pods = Resource::of::<Pod>();
        if let Some(patch) = patch::diff(&base, &job.status, job.uid.as_deref()) {
            let (namespace, name) = (&job.namespace, &job.name);
            let kind = PatchType::Strategic;
            self.client.patch_value(&pods, namespace, name, Some("status"), kind, &patch).await?;
            if let Some(base) = self.lock().base.get_mut(uid) {
                *base = job.status.clone();
            }
        }
        if job.delete {
            let preconditions = Some(Preconditions { uid: job.uid.clone(), resource_version: None });
            let options =
                DeleteOptions { grace_period_seconds: Some(0), preconditions, propagation_policy: None };
            self.client.delete_value(&pods, &job.namespace, &job.name, &options).await?;
        }
        Ok(())
    }
}
