//! The pods of a Job: how they are made, and which go when there are too many.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Object;
use api::batch::v1::Job;
use api::core::v1::{Container, EnvVar, EnvVarSource, ObjectFieldSelector, Pod};
use jiff::Timestamp;

use super::indexes::{INDEX, index_of};
use super::policy::{FAILURE_COUNT, IGNORED_FAILURE_COUNT, failure_counts, judge};
use crate::objects::pod_from_template;
use crate::replication::deletion_rank;

/// Keeps a pod that has ended until its Job has counted it.
pub(crate) const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
const INDEX_VARIABLE: &str = "JOB_COMPLETION_INDEX";
/// Upstream: apiserver/pkg/storage/names/generate.go MaxGeneratedNameLength
const MAX_PREFIX: usize = 58;

pub(crate) fn is_indexed(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.completion_mode.as_deref()) == Some("Indexed")
}

pub(crate) fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

/// The pod for an index, or for none. `replaced` is the failed pod whose place it takes.
pub(crate) fn make(job: &Job, index: Option<i32>, replaced: Option<&Pod>) -> Option<Pod> {
    let spec = job.spec.as_ref()?;
    let mut pod = pod_from_template(job, &spec.template);
    let finalizers = pod.metadata.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(FINALIZER.to_owned());
    }
    let Some(index) = index else { return Some(pod) };
    let suffix = format!("-{index}-");
    let room = MAX_PREFIX.saturating_sub(suffix.len());
    let name = job.name();
    let prefix = if name.len() + suffix.len() > MAX_PREFIX { name.get(..room).unwrap_or(name) } else { name };
    pod.metadata.generate_name = Some(format!("{prefix}{suffix}"));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if spec.backoff_limit_per_index.is_some() {
        let (mut counted, mut ignored) = replaced.map_or((0, 0), failure_counts);
        if let Some(replaced) = replaced {
            *if judge(spec, replaced).counts() { &mut counted } else { &mut ignored } += 1;
        }
        annotations.insert(FAILURE_COUNT.to_owned(), counted.to_string());
        if ignored > 0 {
            annotations.insert(IGNORED_FAILURE_COUNT.to_owned(), ignored.to_string());
        }
    }
    pod.metadata.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    let pod_spec = pod.spec.as_mut()?;
    pod_spec.hostname = Some(format!("{name}-{index}"));
    let init = pod_spec.init_containers.iter_mut().flatten();
    init.chain(&mut pod_spec.containers).for_each(add_index_variable);
    Some(pod)
}

/// Upstream: pkg/controller/job/indexed_job_utils.go addCompletionIndexEnvVariable
fn add_index_variable(container: &mut Container) {
    let variables = container.env.get_or_insert_default();
    if variables.iter().any(|variable| variable.name == INDEX_VARIABLE) {
        return;
    }
    let field = ObjectFieldSelector { api_version: None, field_path: format!("metadata.labels['{INDEX}']") };
    variables.push(EnvVar {
        name: INDEX_VARIABLE.to_owned(),
        value: None,
        value_from: Some(EnvVarSource { field_ref: Some(field), ..Default::default() }),
    });
}

/// The active pods that go: all without a place of their own, and others until `at_least` go.
///
/// Upstream: pkg/controller/job/job_controller.go activePodsForRemoval
pub(crate) fn surplus(job: &Job, active: &[Arc<Pod>], at_least: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let rank = |pods: &mut Vec<Arc<Pod>>| pods.sort_by_cached_key(|pod| deletion_rank(pod, 0, now));
    let mut left = active.to_vec();
    let mut gone = Vec::new();
    if is_indexed(job) {
        let completions = job.spec.as_ref().and_then(|spec| spec.completions).unwrap_or(0);
        let mut by_index: BTreeMap<i32, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in left.drain(..) {
            match index_of(&pod).filter(|index| *index < completions) {
                Some(index) => by_index.entry(index).or_default().push(pod),
                None => gone.push(pod),
            }
        }
        for mut pods in by_index.into_values() {
            rank(&mut pods);
            left.extend(pods.pop());
            gone.extend(pods);
        }
    }
    if gone.len() < at_least {
        rank(&mut left);
        left.truncate(at_least - gone.len());
        gone.extend(left);
    }
    gone
}
