//! Jobs: pods until enough of them have succeeded.

mod decision;
mod indexes;
mod pods;
mod policy;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use api::Object;
use api::batch::v1::{Job, JobStatus};
use api::core::v1::Pod;
use api::meta::LabelSelector;
use client::PatchType;
use controller_runtime::{Event, Informer, WorkQueue, slow_start};
use serde_json::json;

use crate::Error;
use crate::context::Context;
use crate::objects::{controller_of, is_controlled_by};
use crate::ownership::{candidates, claim_all, concerned, controlled};
use crate::pod_control::PodControl;
use crate::selector;
pub(crate) use decision::is_finished;
use decision::{Plan, decide, find};
use pods::{FINALIZER, is_tracked};
use policy::Record;

const COMPONENT: &str = "job-controller";
const WORKERS: usize = 5;

/// What is to be looked at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Job(String),
    /// A pod that may wait for a Job which will not count it any more.
    Pod(String),
}

struct Jobs {
    context: Context,
    jobs: Informer<Job>,
    pods: PodControl,
    queue: WorkQueue<Key>,
    /// Failures in a row by the Job's uid. Short sections that never wait: a plain lock.
    records: Mutex<HashMap<String, Record>>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Jobs {
        jobs: context.informers.informer::<Job>(),
        pods: PodControl::new(&context, COMPONENT),
        queue: WorkQueue::new(),
        records: Mutex::default(),
        context,
    });
    let this = controller.clone();
    controller.jobs.subscribe(move |event| this.job_event(event));
    let this = controller.clone();
    controller.pods.pods.subscribe(move |event| this.pod_event(event));
    let reconcile = |controller: Arc<Jobs>, key| async move {
        match key {
            Key::Job(key) => controller.reconcile(&key).await,
            Key::Pod(key) => controller.release_orphan(&key).await,
        }
    };
    controller.context.work(&controller, &controller.queue, WORKERS, reconcile).await;
}

fn selector_of(job: &Job) -> LabelSelector {
    job.spec.as_ref().and_then(|spec| spec.selector.clone()).unwrap_or_default()
}

/// Whether another controller has this Job in its care.
fn is_managed_elsewhere(job: &Job) -> bool {
    let manager = job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref());
    manager.is_some_and(|manager| manager != "kubernetes.io/job-controller")
}

impl Jobs {
    fn records(&self) -> MutexGuard<'_, HashMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn job_event(&self, event: &Event<Job>) {
        let job = event.object();
        self.queue.add(Key::Job(job.key()));
        if matches!(event, Event::Deleted(_)) || is_finished(job) {
            self.records().remove(job.uid());
            for pod in controlled(&self.pods.pods, job.uid()) {
                if is_tracked(&pod) {
                    self.queue.add(Key::Pod(pod.key()));
                }
            }
        }
    }

    fn pod_event(&self, event: &Event<Pod>) {
        self.pods.observe(event);
        let pod = event.object();
        let concerned = concerned(event, &self.jobs, selector_of);
        concerned.into_iter().for_each(|key| self.queue.add(Key::Job(key)));
        if !matches!(event, Event::Deleted(_)) && is_tracked(pod) {
            self.queue.add(Key::Pod(pod.key()));
        }
    }

    async fn reconcile(&self, key: &str) -> Result<(), Error> {
        let wanted = |job: &Arc<Job>| !is_finished(job) && !is_managed_elsewhere(job);
        let Some(job) = self.jobs.get(key).filter(wanted) else { return Ok(()) };
        let mode = job.spec.as_ref().and_then(|spec| spec.completion_mode.as_deref());
        if mode.is_some_and(|mode| mode != "NonIndexed" && mode != "Indexed") {
            let message = "Skipped Job sync because completion mode is unknown";
            self.pods.events.warning(&*job, "UnknownCompletionMode", message);
            return Ok(());
        }
        let selector = selector_of(&job);
        if selector::is_empty(&selector) {
            return Ok(());
        }
        let pods = self.own_pods(&job, &selector).await?;
        let now = self.context.clock().now();
        let pods = self.pods.foresee(pods, now);
        let record = self.records().get(job.uid()).copied().unwrap_or_default();
        let plan = decide(&job, &pods, record, now);
        let again = plan.again;
        self.execute(&job, plan).await?;
        if let Some(delay) = again {
            self.queue.add_after(Key::Job(key.to_owned()), delay);
        }
        Ok(())
    }

    /// The pods that the Job owns; those it has just adopted are kept until it counts them.
    async fn own_pods(&self, job: &Job, selector: &LabelSelector) -> Result<Vec<Arc<Pod>>, client::Error> {
        let informer = &self.pods.pods;
        let all = candidates(informer, job);
        let adopted: Vec<_> =
            all.iter().filter(|pod| !is_controlled_by(&***pod, job.uid())).map(|pod| pod.key()).collect();
        let mut pods = claim_all(&self.context.client, informer, job, selector, all).await?;
        for pod in pods.iter_mut().filter(|pod| adopted.contains(&pod.key()) && !is_tracked(pod)) {
            let mut finalizers = pod.metadata.finalizers.clone().unwrap_or_default();
            finalizers.push(FINALIZER.to_owned());
            let version = &pod.metadata.resource_version;
            let patch = json!({"metadata": {"resourceVersion": version, "finalizers": finalizers}});
            *pod = informer.patch(pod, None, PatchType::Merge, &patch).await?;
        }
        Ok(pods)
    }

    async fn execute(&self, job: &Job, mut plan: Plan) -> Result<(), client::Error> {
        let uncounted = plan.uncounted_deletes;
        let deletes = plan.delete.iter().map(async |pod| {
            if uncounted {
                self.release(pod).await?;
            }
            self.pods.delete(job, pod).await
        });
        let outcomes = futures::future::join_all(deletes).await;
        // What is not deleted is not to be told of as gone: all is decided again.
        outcomes.into_iter().collect::<Result<(), _>>()?;
        let create = async |i: usize| self.pods.create(job, &plan.create[i]).await.map(drop);
        let (created, refused) = slow_start(plan.create.len(), create).await;
        if let Some(status) = &mut plan.status {
            let missing = plan.create.len().saturating_sub(created) as i32;
            status.active = status.active.map(|active| active - missing).filter(|active| *active != 0);
        }
        if let Some(status) = plan.status {
            self.update_status(job, status).await?;
        }
        self.records().insert(job.uid().to_owned(), plan.record);
        for (kind, reason, message) in plan.events {
            self.pods.events.event(job, kind, &reason, message);
        }
        let outcomes = futures::future::join_all(plan.release.iter().map(|pod| self.release(pod))).await;
        refused.map_or(Ok(()), Err)?;
        outcomes.into_iter().collect()
    }

    async fn update_status(&self, job: &Job, status: JobStatus) -> Result<(), client::Error> {
        let mut updated = job.clone();
        updated.status = Some(status);
        self.jobs.update_status(&updated).await.map(drop)
    }

    /// Takes the finalizer from a pod.
    async fn release(&self, pod: &Pod) -> Result<(), client::Error> {
        // The pod as it is known now: a deletion in the same pass has changed it already.
        let Some(pod) =
            self.pods.pods.get(&pod.key()).filter(|now| now.uid() == pod.uid() && is_tracked(now))
        else {
            return Ok(());
        };
        let finalizers = pod.metadata.finalizers.iter().flatten();
        let rest: Vec<_> = finalizers.filter(|finalizer| *finalizer != FINALIZER).collect();
        let metadata = &pod.metadata;
        let patch = json!({"metadata": {
            "uid": metadata.uid, "resourceVersion": metadata.resource_version, "finalizers": rest,
        }});
        match self.pods.pods.patch(&pod, None, PatchType::Merge, &patch).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.map(drop),
        }
    }

    /// Nobody will count a pod whose Job is gone or finished: it is let go.
    ///
    /// Upstream: pkg/controller/job/job_controller.go handleSingleOrphanPod
    async fn release_orphan(&self, key: &str) -> Result<(), Error> {
        let Some(pod) = self.pods.pods.get(key).filter(|pod| is_tracked(pod)) else { return Ok(()) };
        if let Some(owner) = controller_of(&pod.metadata) {
            if owner.kind != Job::KIND || owner.api_version != Job::api_version() {
                return Ok(());
            }
            let job = self.jobs.get_in(pod.namespace(), &owner.name).filter(|job| job.uid() == owner.uid);
            if job.is_some_and(|job| is_managed_elsewhere(&job) || !is_finished(&job)) {
                return Ok(());
            }
        }
        Ok(self.release(&pod).await?)
    }
}

/// The condition that says that the Job has ended, and how.
pub(crate) fn finished_condition(job: &Job) -> Option<&api::batch::v1::JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref();
    let is_true = |kind| find(conditions, kind).filter(|condition| condition.status == "True");
    is_true("Complete").or_else(|| is_true("Failed"))
}
