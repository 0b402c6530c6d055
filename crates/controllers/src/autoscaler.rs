//! HorizontalPodAutoscaler: as many replicas as their metrics ask for.
//!
//! [`metrics`] reads what is measured, [`replicas`] says how many replicas that asks for, [`behavior`] holds the
//! answer steady; this carries it out. An autoscaler is looked at every 15 seconds, as measurements come.
//!
//! Upstream: pkg/controller/podautoscaler/horizontal.go

mod behavior;
mod compute;
mod metrics;
mod replicas;
mod status;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use api::Object;
use api::autoscaling::v2::{HorizontalPodAutoscaler, MetricStatus};
use api::core::v1::Pod;
use controller_runtime::{Event, EventRecorder, Informer, WorkQueue};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Error;
use crate::context::Context;
use crate::objects::same;
use crate::options::Autoscaling;
use crate::scale::{self, Missing, Scale};
use behavior::{History, Limited};
use status::set_condition;

const COMPONENT: &str = "horizontal-pod-autoscaler";
const WORKERS: usize = 5;

/// What is remembered of an autoscaler between looks.
#[derive(Default)]
struct Memory {
    history: History,
    /// The pods of its target.
    selector: Option<(String, apimachinery::selector::LabelSelector)>,
}

struct Controller {
    context: Context,
    events: EventRecorder,
    autoscalers: Informer<HorizontalPodAutoscaler>,
    pods: Informer<Pod>,
    queue: WorkQueue<String>,
    memories: Mutex<BTreeMap<String, Memory>>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        events: context.events(COMPONENT),
        autoscalers: context.informers.informer(),
        pods: context.informers.informer(),
        queue: WorkQueue::new(),
        memories: Mutex::default(),
        context,
    });
    let this = controller.clone();
    controller.autoscalers.subscribe(move |event| {
        let autoscaler = event.object();
        let key = Object::key(&**autoscaler);
        match event {
            Event::Deleted(_) => this.forget(&key),
            // Our own writes change the status alone.
            Event::Updated { old, new } if old.spec == new.spec => {}
            _ => this.queue.add(key),
        }
    });
    if !controller.context.universe.synced().await {
        return;
    }
    let reconcile = |controller: Arc<Controller>, key: String| async move {
        let Some(autoscaler) = controller.autoscalers.get(&key) else { return Ok(()) };
        let outcome = controller.reconcile(&key, &autoscaler).await;
        if let Err(error) = &outcome {
            tracing::debug!(%key, %error, "an autoscaler cannot do its work");
        }
        // What fails is tried again with the next measurements, not sooner.
        controller.queue.add_after(key, controller.options().sync_period);
        Ok(())
    };
    controller.context.work(&controller, &controller.queue, WORKERS, reconcile).await;
}

/// What a look at an autoscaler ends with.
struct Outcome {
    replicas: i32,
    reason: String,
    metrics: Vec<MetricStatus>,
}

impl Controller {
    fn options(&self) -> &Autoscaling {
        &self.context.config.options.autoscaling
    }

    fn forget(&self, key: &str) {
        self.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }

    fn with_memory<T>(&self, key: &str, act: impl FnOnce(&mut Memory) -> T) -> T {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        act(memories.entry(key.to_owned()).or_default())
    }

    async fn reconcile(&self, key: &str, autoscaler: &HorizontalPodAutoscaler) -> Result<(), Error> {
        let now = self.context.clock().now();
        let mut updated = autoscaler.clone();
        let scale = match self.scale(autoscaler).await {
            Ok(scale) => scale,
            Err(why) => {
                self.events.warning(autoscaler, "FailedGetScale", why.clone());
                let message =
                    format!("the HPA controller was unable to get the target's current scale: {why}");
                set_condition(&mut updated, now, "AbleToScale", false, "FailedGetScale", message);
                self.write(autoscaler, &updated).await?;
                return Err(Error::Unfinished(why));
            }
        };
        let message = "the HPA controller was able to get the target's current scale".to_owned();
        set_condition(&mut updated, now, "AbleToScale", true, "SucceededGetScale", message);
        let current = scale.wanted();
        self.with_memory(key, |memory| memory.history.begin(current, now));
        let outcome = match self.decide(key, &mut updated, &scale, now).await {
            Ok(outcome) => outcome,
            Err((metrics, why)) => {
                status::set(&mut updated, current, None, metrics, None);
                self.write(autoscaler, &updated).await?;
                self.events.warning(autoscaler, "FailedComputeMetricsReplicas", why.clone());
                return Err(Error::Unfinished(why));
            }
        };
        let rescaled = outcome.replicas != current;
        if rescaled && let Err(error) = self.rescale(scale, outcome.replicas).await {
            let (replicas, reason) = (outcome.replicas, &outcome.reason);
            let message = format!("New size: {replicas}; reason: {reason}; error: {error}");
            self.events.warning(autoscaler, "FailedRescale", message);
            let message = format!("the HPA controller was unable to update the target scale: {error}");
            set_condition(&mut updated, now, "AbleToScale", false, "FailedUpdateScale", message);
            status::set(&mut updated, current, None, outcome.metrics, None);
            self.write(autoscaler, &updated).await?;
            return Err(error.into());
        }
        if rescaled {
            let replicas = outcome.replicas;
            let message = format!("the HPA controller was able to update the target scale to {replicas}");
            set_condition(&mut updated, now, "AbleToScale", true, "SucceededRescale", message);
            let message = format!("New size: {replicas}; reason: {}", outcome.reason);
            self.events.normal(autoscaler, "SuccessfulRescale", message);
            self.with_memory(key, |memory| memory.history.scaled(current, replicas, now));
        }
        let scaled_at = rescaled.then(|| self.context.clock().time());
        status::set(&mut updated, current, Some(outcome.replicas), outcome.metrics, scaled_at);
        self.write(autoscaler, &updated).await
    }

    /// How many replicas it shall be, and why. The error comes with what was measured all the same.
    async fn decide(
        &self,
        key: &str,
        autoscaler: &mut HorizontalPodAutoscaler,
        scale: &Scale,
        now: Timestamp,
    ) -> Result<Outcome, (Vec<MetricStatus>, String)> {
        let (min, max) = (autoscaler.spec.min_replicas.unwrap_or(1), autoscaler.spec.max_replicas);
        let current = scale.wanted();
        let bounded = |replicas: i32, reason: &str| {
            Ok(Outcome { replicas, reason: reason.to_owned(), metrics: Vec::new() })
        };
        if current == 0 {
            let message = "scaling is disabled since the replica count of the target is zero".to_owned();
            set_condition(autoscaler, now, "ScalingActive", false, "ScalingDisabled", message);
            return bounded(0, "");
        }
        if current > max {
            return bounded(max, "Current number of replicas above Spec.MaxReplicas");
        }
        if current < min {
            return bounded(min, "Current number of replicas below Spec.MinReplicas");
        }
        let proposed = self.proposal(key, autoscaler, scale, now).await?;
        let reason = match proposed.replicas {
            replicas if replicas > current => format!("{} above target", proposed.metric),
            replicas if replicas < current => "All metrics below target".to_owned(),
            _ => String::new(),
        };
        let rules = behavior::Rules::of(autoscaler, self.options());
        let (stable, limited) = self.with_memory(key, |memory| {
            memory.history.normalize(current, proposed.replicas, (min, max), &rules, now)
        });
        let (kind, message) = stable;
        set_condition(autoscaler, now, "AbleToScale", true, kind, message.to_owned());
        let Limited { replicas, is_limited, reason: kind, message } = limited;
        set_condition(autoscaler, now, "ScalingLimited", is_limited, kind, message.to_owned());
        Ok(Outcome { replicas, reason, metrics: proposed.statuses })
    }

    async fn scale(&self, autoscaler: &HorizontalPodAutoscaler) -> Result<Scale, String> {
        let target = &autoscaler.spec.scale_target_ref;
        let version = target.api_version.as_deref().unwrap_or_default();
        if version.matches('/').count() > 1 {
            return Err(format!("unexpected GroupVersion string: {version}"));
        }
        let reference = (version, target.kind.as_str(), target.name.as_str());
        let found = scale::of(&self.context, autoscaler.namespace(), reference).await;
        found.map_err(|missing| match missing {
            Missing::NoKind => {
                let group = version.split_once('/').map_or("", |(group, _)| group);
                format!("no matches for kind {:?} in group {group:?}", target.kind)
            }
            Missing::Refused(_, error) => error.to_string(),
        })
    }

    /// What was read may be old by now: then it is read again.
    async fn rescale(&self, mut scale: Scale, replicas: i32) -> Result<(), client::Error> {
        let client = &self.context.client;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let metadata = &scale.object["metadata"];
        let (namespace, name) = (text(&metadata["namespace"]), text(&metadata["name"]));
        let mut left = 4;
        loop {
            scale.object["spec"]["replicas"] = json!(replicas);
            let written =
                client.update_value(&scale.resource, &namespace, &name, Some("scale"), &scale.object).await;
            match written {
                Err(error) if error.is_conflict() && left > 0 => {
                    left -= 1;
                    scale.read_again(client).await?;
                }
                outcome => return outcome.map(drop),
            }
        }
    }

    async fn write(
        &self,
        before: &HorizontalPodAutoscaler,
        after: &HorizontalPodAutoscaler,
    ) -> Result<(), Error> {
        if before
            .status
            .as_ref()
            .zip(after.status.as_ref())
            .is_some_and(|(before, after)| same(before, after))
        {
            return Ok(());
        }
        match self.autoscalers.update_status(after).await {
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => {
                self.events.warning(before, "FailedUpdateStatus", error.to_string());
                Err(error.into())
            }
            Ok(_) => Ok(()),
        }
    }
}
