//! What the scheduler writes: bindings, the statuses of pods, and what must be there before a binding.

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::core::v1::Pod;
use api::scheduling::v1alpha2::PodGroup;
use client::{Client, DeleteOptions, PatchType, Resource};
use controller_runtime::Clock;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::PodInfo;
use crate::extender::Extender;
use crate::framework::{Verb, Write};

/// How a write of the background ended.
pub enum Written {
    /// All that a pod needs before its binding.
    Prepared {
        key: String,
        outcome: Result<(), client::Error>,
    },
    Bound {
        pod: Arc<PodInfo>,
        node: String,
        outcome: Result<(), client::Error>,
        took: Duration,
    },
    Evicted {
        eviction: Eviction,
        gone: bool,
        took: Duration,
    },
    Reported,
}

/// A pod that leaves its node for another.
pub struct Eviction {
    pub victim: Arc<PodInfo>,
    pub scheduler_name: String,
    /// The pod that takes its place.
    pub preemptor: Arc<PodInfo>,
    /// What is told of it afterwards.
    pub message: String,
}

pub async fn prepare(client: Client, key: String, writes: Vec<Write>, clock: Clock) -> Written {
    let outcome = carry_out(&client, writes, &clock).await;
    Written::Prepared { key, outcome }
}

/// Gives back what was written for a pod that is not bound after all.
pub async fn release(client: Client, writes: Vec<Write>, clock: Clock) -> Written {
    if let Some(error) = failure(carry_out(&client, writes, &clock).await) {
        tracing::warn!(error = &error as &dyn std::error::Error, "cannot give back what a pod had reserved");
    }
    Written::Reported
}

async fn carry_out(client: &Client, writes: Vec<Write>, clock: &Clock) -> Result<(), client::Error> {
    // Of objects that were written here: the version that came of it.
    let mut versions: Vec<(Resource, String, String, Value)> = Vec::new();
    // The name of the last object that was made here.
    let mut made = String::new();
    for write in writes {
        let Write { verb, resource, namespace, mut name, subresource, mut body, stamp, made: names } = write;
        if let Some((object, key)) = stamp {
            put(&mut body, object, key, json!(clock.time()));
        }
        if let Some((object, key)) = names {
            put(&mut body, object, key, json!(made));
        }
        if name.is_empty() {
            name.clone_from(&made);
        }
        let same = |known: &&(Resource, String, String, Value)| {
            known.0 == resource && known.1 == namespace && known.2 == name
        };
        if let Some(known) = versions.iter().rfind(same)
            && let Some(version) = body.pointer_mut("/metadata/resourceVersion")
        {
            *version = known.3.clone();
        }
        let written = match verb {
            Verb::Create => client.create_value(&resource, &namespace, None, &body).await?,
            Verb::Patch(kind) => {
                client.patch_value(&resource, &namespace, &name, subresource, kind, &body).await?
            }
            Verb::Delete => {
                client.delete_value(&resource, &namespace, &name, &DeleteOptions::default()).await?;
                continue;
            }
        };
        if verb == Verb::Create {
            name = written["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            made.clone_from(&name);
        }
        versions.push((resource, namespace, name, written["metadata"]["resourceVersion"].clone()));
    }
    Ok(())
}

fn put(body: &mut Value, object: &str, key: &str, value: Value) {
    if let Some(object) = body.pointer_mut(object) {
        object[key] = value;
    }
}

/// Binds the pod; one of the extenders does it in the scheduler's place if it is given.
pub async fn bind(
    client: Client,
    extender: Option<(Arc<[Extender]>, usize)>,
    pod: Arc<PodInfo>,
    node: String,
) -> Written {
    let begun = Instant::now();
    if let Some((extenders, at)) = extender {
        let bound = extenders[at].bind(&pod.pod, &node).await;
        let outcome = bound.map_err(client::Error::Config);
        return Written::Bound { pod, node, outcome, took: begun.elapsed() };
    }
    let (namespace, name) = (pod.pod.namespace(), pod.pod.name());
    let binding = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"namespace": namespace, "name": name, "uid": pod.uid()},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    let outcome =
        client.create_value(&Resource::of::<Pod>(), namespace, Some((name, "binding")), &binding).await;
    Written::Bound { outcome: outcome.map(drop), pod, node, took: begun.elapsed() }
}

/// Which node a pod is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nomination<'a> {
    AsItIs,
    None,
    To(&'a str),
}

/// The patch that makes the pod's status say why it waits; `None` when it says so already.
pub fn unscheduled_status(
    pod: &Pod,
    message: &str,
    nomination: Nomination,
    reason: &str,
    clock: &Clock,
) -> Option<Value> {
    let status = pod.status.as_ref();
    let known =
        status.and_then(|s| s.conditions.as_ref()).into_iter().flatten().find(|c| c.type_ == "PodScheduled");
    let same_message = known.is_some_and(|c| c.status == "False" && c.message.as_deref() == Some(message));
    let nominated = status.and_then(|s| s.nominated_node_name.as_deref()).filter(|name| !name.is_empty());
    let same_node = match nomination {
        Nomination::AsItIs => true,
        Nomination::None => nominated.is_none(),
        Nomination::To(node) => nominated == Some(node),
    };
    if same_message && same_node {
        return None;
    }
    let since = known.filter(|c| c.status == "False").and_then(|c| c.last_transition_time.clone());
    let mut patch = json!({"status": {"conditions": [{
        "type": "PodScheduled",
        "status": "False",
        "reason": reason,
        "message": message,
        "observedGeneration": pod.metadata.generation,
        "lastTransitionTime": since.unwrap_or_else(|| clock.time()),
    }]}});
    match nomination {
        Nomination::AsItIs => {}
        Nomination::None => patch["status"]["nominatedNodeName"] = Value::Null,
        Nomination::To(node) => patch["status"]["nominatedNodeName"] = node.into(),
    }
    Some(patch)
}

pub async fn report(client: Client, pod: Arc<PodInfo>, patch: Value) -> Written {
    let patched = patch_status(&client, &pod, &patch).await;
    if let Some(error) = failure(patched) {
        tracing::warn!(
            pod = pod.key,
            error = &error as &dyn std::error::Error,
            "cannot report that a pod waits"
        );
    }
    Written::Reported
}

/// The same of a group.
pub async fn report_group(client: Client, group: Arc<PodGroup>, patch: Value) -> Written {
    let resource = Resource::of::<PodGroup>();
    let (namespace, name) = (group.namespace(), group.name());
    let patched =
        client.patch_value(&resource, namespace, name, Some("status"), PatchType::Strategic, &patch).await;
    if let Some(error) = failure(patched.map(drop)) {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(group = group.key(), error, "cannot report how scheduling a group went");
    }
    Written::Reported
}

/// Tells a victim why, then deletes it.
pub async fn evict(client: Client, eviction: Eviction, clock: Clock) -> Written {
    let begun = Instant::now();
    let Eviction { victim, scheduler_name, .. } = &eviction;
    let patch = json!({"status": {"conditions": [{
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "PreemptionByScheduler",
        "message": format!("{scheduler_name}: preempting to accommodate a higher priority pod"),
        "observedGeneration": victim.pod.metadata.generation,
        "lastTransitionTime": clock.time(),
    }]}});
    let mut outcome = patch_status(&client, victim, &patch).await;
    if outcome.is_ok() {
        let (namespace, name) = (victim.pod.namespace(), victim.pod.name());
        outcome = client.delete::<Pod>(namespace, name, &DeleteOptions::uid(victim.uid())).await;
    }
    let failure = failure(outcome);
    if let Some(error) = &failure {
        tracing::warn!(pod = victim.key, error = error as &dyn std::error::Error, "cannot preempt");
    }
    Written::Evicted { eviction, gone: failure.is_none(), took: begun.elapsed() }
}

async fn patch_status(client: &Client, pod: &PodInfo, patch: &Value) -> Result<(), client::Error> {
    let (namespace, name) = (pod.pod.namespace(), pod.pod.name());
    let resource = Resource::of::<Pod>();
    client
        .patch_value(&resource, namespace, name, Some("status"), PatchType::Strategic, patch)
        .await
        .map(drop)
}

/// What went wrong; a pod that is gone needs nothing more.
fn failure(outcome: Result<(), client::Error>) -> Option<client::Error> {
    outcome.err().filter(|error| !error.is_not_found())
}
