//! From an autoscaler's metrics to a proposal: the highest of what each asks for.
//!
//! Upstream: pkg/controller/podautoscaler/horizontal.go computeReplicasForMetrics

use std::sync::Arc;

use api::Object;
use api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler, MetricIdentifier,
    MetricSpec, MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus,
    ResourceMetricStatus,
};
use api::core::v1::Pod;
use api::meta::LabelSelector as Selector;
use apimachinery::quantity::Quantity;
use apimachinery::selector::LabelSelector;
use jiff::Timestamp;

use super::replicas::{Now, Starting, Tolerances};
use super::status::set_condition;
use super::{Controller, metrics, replicas};
use crate::scale::Scale;
use crate::selector;

/// What the metrics together ask for.
pub(super) struct Proposal {
    pub replicas: i32,
    /// Which metric asks for so many.
    pub metric: String,
    pub statuses: Vec<MetricStatus>,
}

/// What one metric asks for.
struct Asked {
    replicas: i32,
    name: String,
    status: MetricStatus,
}

/// Why a metric asks for nothing: the reason told, what is told, and what is said of it all.
struct Unknown {
    reason: &'static str,
    why: String,
    whole: String,
}

/// The pods that are measured, and the state of their target.
struct Target<'a> {
    namespace: &'a str,
    selector: &'a str,
    pods: &'a [Arc<Pod>],
    now: Now,
    /// By what the target says that runs, not by what it wants.
    running: Now,
}

fn text(selector: Option<&Selector>) -> String {
    let Some(selector) = selector else { return String::new() };
    let value = serde_json::to_value(selector).unwrap_or_default();
    LabelSelector::from_object(&value).map(|parsed| parsed.to_string()).unwrap_or_default()
}

fn quantity(milli: i64) -> api::Quantity {
    api::Quantity(Quantity::from_milli(milli).to_string())
}

/// Memory is told in binary units.
///
/// Upstream: pkg/controller/podautoscaler/horizontal.go buildQuantity
fn usage_quantity(resource: &str, milli: i64) -> api::Quantity {
    match resource {
        "memory" => {
            api::Quantity(Quantity::from_bytes(milli.saturating_add(999).div_euclid(1000)).to_string())
        }
        _ => quantity(milli),
    }
}

fn milli(quantity: &api::Quantity) -> i64 {
    Quantity::parse(&quantity.0).map(|quantity| quantity.milli_value()).unwrap_or(0)
}

fn tolerances(autoscaler: &HorizontalPodAutoscaler, default: f64) -> Tolerances {
    let behavior = autoscaler.spec.behavior.as_ref();
    let of = |rules: Option<&api::autoscaling::v2::HPAScalingRules>| {
        let tolerance = rules.and_then(|rules| rules.tolerance.as_ref());
        tolerance.and_then(|quantity| Quantity::parse(&quantity.0).ok()).map_or(default, |q| q.as_f64())
    };
    Tolerances {
        down: of(behavior.and_then(|behavior| behavior.scale_down.as_ref())),
        up: of(behavior.and_then(|behavior| behavior.scale_up.as_ref())),
    }
}

impl Controller {
    pub(super) async fn proposal(
        &self,
        key: &str,
        autoscaler: &mut HorizontalPodAutoscaler,
        scale: &Scale,
        now: Timestamp,
    ) -> Result<Proposal, (Vec<MetricStatus>, String)> {
        let pods = match self.pods_of(key, autoscaler, scale.selector(), now) {
            Ok(pods) => pods,
            Err(why) => return Err((Vec::new(), why)),
        };
        let tolerances = tolerances(autoscaler, self.options().tolerance);
        let starting = Starting::of(self.options());
        let state = |replicas: i32| Now { replicas, tolerances, starting, at: now };
        let namespace = autoscaler.namespace().to_owned();
        let target = Target {
            namespace: &namespace,
            selector: scale.selector(),
            pods: &pods,
            now: state(scale.wanted()),
            running: state(scale.running()),
        };
        let specs = autoscaler.spec.metrics.clone().unwrap_or_default();
        let mut proposal = Proposal { replicas: 0, metric: String::new(), statuses: Vec::new() };
        let mut unknown: Vec<Unknown> = Vec::new();
        for spec in &specs {
            match self.ask(&target, spec).await {
                Ok(asked) => {
                    proposal.statuses.push(asked.status);
                    if proposal.replicas == 0 || asked.replicas > proposal.replicas {
                        proposal.replicas = asked.replicas;
                        proposal.metric = asked.name;
                    }
                }
                Err(failed) => {
                    self.events.warning(&*autoscaler, failed.reason, failed.why.clone());
                    proposal.statuses.push(MetricStatus::default());
                    unknown.push(failed);
                }
            }
        }
        // Some unknown metric might ask for more than the known ones: there is no going down without it.
        let blind = unknown.len() >= specs.len() || proposal.replicas < scale.wanted();
        if let Some(first) = unknown.first().filter(|_| blind) {
            let message = format!("the HPA was unable to compute the replica count: {}", first.why);
            set_condition(autoscaler, now, "ScalingActive", false, first.reason, message);
            let (failed, all) = (unknown.len(), specs.len());
            let why =
                format!("invalid metrics ({failed} invalid out of {all}), first error is: {}", first.whole);
            return Err((proposal.statuses, why));
        }
        let message =
            format!("the HPA was able to successfully calculate a replica count from {}", proposal.metric);
        set_condition(autoscaler, now, "ScalingActive", true, "ValidMetricFound", message);
        Ok(proposal)
    }

    /// The pods of the target, which no other autoscaler may have.
    ///
    /// Upstream: pkg/controller/podautoscaler/horizontal.go validateAndParseSelector
    fn pods_of(
        &self,
        key: &str,
        autoscaler: &mut HorizontalPodAutoscaler,
        selector: &str,
        now: Timestamp,
    ) -> Result<Vec<Arc<Pod>>, String> {
        let mut refuse = |event: &str, reason: &str, why: &str, condition: &str| {
            self.events.warning(&*autoscaler, event, why.to_owned());
            set_condition(autoscaler, now, "ScalingActive", false, reason, condition.to_owned());
            Err(why.to_owned())
        };
        if selector.is_empty() {
            let condition = "the HPA target's scale is missing a selector";
            return refuse("SelectorRequired", "InvalidSelector", "selector is required", condition);
        }
        let parsed = match LabelSelector::parse(selector) {
            Ok(parsed) => parsed,
            Err(error) => {
                let why = format!(
                    "couldn't convert selector into a corresponding internal selector object: {error}"
                );
                return refuse("InvalidSelector", "InvalidSelector", &why, &why);
            }
        };
        let namespace = crate::objects::split_key(key).0.to_owned();
        let selects = |selector: &LabelSelector, pod: &Pod| {
            selector.matches_map(pod.metadata.labels.as_ref().unwrap_or(&Default::default()))
        };
        let pods: Vec<_> =
            self.pods.by_namespace(&namespace).into_iter().filter(|pod| selects(&parsed, pod)).collect();
        self.with_memory(key, |memory| memory.selector = Some((namespace.clone(), parsed)));
        let memories = self.memories.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let selecting: Vec<_> = memories
            .iter()
            .filter(|(_, memory)| {
                let selector = memory.selector.as_ref().filter(|(other, _)| *other == namespace);
                selector.is_some_and(|(_, selector)| pods.iter().any(|pod| selects(selector, pod)))
            })
            .map(|(key, _)| crate::objects::split_key(key))
            .map(|(namespace, name)| format!("{{{name} {namespace}}}"))
            .collect();
        drop(memories);
        if selecting.len() > 1 {
            let all = selecting.join(" ");
            let why = format!("pods by selector {selector} are controlled by multiple HPAs: [{all}]");
            return refuse("AmbiguousSelector", "AmbiguousSelector", &why, &why);
        }
        Ok(pods)
    }

    async fn ask(&self, target: &Target<'_>, spec: &MetricSpec) -> Result<Asked, Unknown> {
        let unknown = |reason, whole: String| {
            move |why: String| Unknown { reason, whole: format!("{whole}: {why}"), why }
        };
        match (spec.type_.as_str(), spec) {
            ("Resource", MetricSpec { resource: Some(source), .. }) => {
                let whole = format!("failed to get {} resource metric value", source.name);
                let asked = self.ask_resource(target, &source.name, "", &source.target).await;
                let (replicas, current) = asked.map_err(unknown("FailedGetResourceMetric", whole))?;
                let name = resource_name(&source.name, "resource", &source.target);
                let status = ResourceMetricStatus { name: source.name.clone(), current };
                let status =
                    MetricStatus { type_: "Resource".into(), resource: Some(status), ..Default::default() };
                Ok(Asked { replicas, name, status })
            }
            ("ContainerResource", MetricSpec { container_resource: Some(source), .. }) => {
                let whole = format!("failed to get {} container metric value", source.container);
                let asked = self.ask_resource(target, &source.name, &source.container, &source.target).await;
                let (replicas, current) =
                    asked.map_err(unknown("FailedGetContainerResourceMetric", whole))?;
                let name = resource_name(&source.name, "container resource", &source.target);
                let (container, of) = (source.container.clone(), source.name.clone());
                let status = ContainerResourceMetricStatus { name: of, container, current };
                let status = MetricStatus {
                    type_: "ContainerResource".into(),
                    container_resource: Some(status),
                    ..Default::default()
                };
                Ok(Asked { replicas, name, status })
            }
            ("Pods", MetricSpec { pods: Some(source), .. }) => {
                let asked = self.ask_pods(target, &source.metric, &source.target).await;
                let whole = "failed to get pods metric value".to_owned();
                let (replicas, current) = asked.map_err(unknown("FailedGetPodsMetric", whole))?;
                let name = format!("pods metric {}", source.metric.name);
                let status = PodsMetricStatus { metric: source.metric.clone(), current };
                let status = MetricStatus { type_: "Pods".into(), pods: Some(status), ..Default::default() };
                Ok(Asked { replicas, name, status })
            }
            ("Object", MetricSpec { object: Some(source), .. }) => {
                let asked =
                    self.ask_object(target, &source.metric, &source.described_object, &source.target).await;
                let whole = "failed to get object metric value".to_owned();
                let (replicas, current) = asked.map_err(unknown("FailedGetObjectMetric", whole))?;
                let name = match current.value {
                    Some(_) => format!("{} metric {}", source.described_object.kind, source.metric.name),
                    None => external_name(&source.metric),
                };
                let described_object = source.described_object.clone();
                let status = ObjectMetricStatus { metric: source.metric.clone(), current, described_object };
                let status =
                    MetricStatus { type_: "Object".into(), object: Some(status), ..Default::default() };
                Ok(Asked { replicas, name, status })
            }
            ("External", MetricSpec { external: Some(source), .. }) => {
                let asked = self.ask_external(target, &source.metric, &source.target).await;
                let whole = format!("failed to get {} external metric value", source.metric.name);
                let (replicas, current) = asked.map_err(unknown("FailedGetExternalMetric", whole))?;
                let name = external_name(&source.metric);
                let status = ExternalMetricStatus { metric: source.metric.clone(), current };
                let status =
                    MetricStatus { type_: "External".into(), external: Some(status), ..Default::default() };
                Ok(Asked { replicas, name, status })
            }
            (other, _) => {
                let why = format!("unknown metric source type {other:?}");
                Err(Unknown { reason: "InvalidMetricSourceType", whole: why.clone(), why })
            }
        }
    }

    async fn ask_resource(
        &self,
        target: &Target<'_>,
        resource: &str,
        container: &str,
        wanted: &MetricTarget,
    ) -> Result<(i32, MetricValueStatus), String> {
        let of_cpu = resource == "cpu";
        let client = &self.context.client;
        let measured = metrics::resource(client, target.namespace, target.selector, resource, container);
        let unable = |why| format!("unable to get metrics for resource {resource}: {why}");
        if let Some(average) = &wanted.average_value {
            let asked = measured
                .await
                .map_err(unable)
                .and_then(|m| replicas::by_average(target.now, milli(average), m, target.pods, of_cpu));
            let (count, usage) = asked.map_err(|why| format!("failed to get {resource} usage: {why}"))?;
            let average_value = Some(usage_quantity(resource, usage));
            return Ok((count, MetricValueStatus { average_value, ..Default::default() }));
        }
        let Some(utilization) = wanted.average_utilization else {
            return Err(
                "invalid resource metric source: neither an average utilization target nor an average \
                value (usage) target was set"
                    .to_owned(),
            );
        };
        let requests = || replicas::requests(target.pods, container, resource);
        let asked = measured.await.map_err(unable).and_then(|measured| {
            replicas::by_utilization(target.now, utilization, measured, target.pods, requests, of_cpu)
        });
        let (count, (percent, usage)) =
            asked.map_err(|why| format!("failed to get {resource} utilization: {why}"))?;
        let status = MetricValueStatus {
            average_utilization: Some(percent),
            average_value: Some(usage_quantity(resource, usage)),
            value: None,
        };
        Ok((count, status))
    }

    async fn ask_pods(
        &self,
        target: &Target<'_>,
        metric: &MetricIdentifier,
        wanted: &MetricTarget,
    ) -> Result<(i32, MetricValueStatus), String> {
        let selector = text(metric.selector.as_ref());
        let measured =
            metrics::pods(&self.context.client, target.namespace, &metric.name, target.selector, &selector);
        let measured =
            measured.await.map_err(|why| format!("unable to get metric {}: {why}", metric.name))?;
        let wanted = wanted.average_value.as_ref().map_or(0, milli);
        let (count, usage) = replicas::by_average(target.now, wanted, measured, target.pods, false)?;
        Ok((count, MetricValueStatus { average_value: Some(quantity(usage)), ..Default::default() }))
    }

    async fn ask_object(
        &self,
        target: &Target<'_>,
        metric: &MetricIdentifier,
        about: &api::autoscaling::v2::CrossVersionObjectReference,
        wanted: &MetricTarget,
    ) -> Result<(i32, MetricValueStatus), String> {
        let selector = text(metric.selector.as_ref());
        let (client, universe) = (&self.context.client, &self.context.universe);
        let usage = metrics::object(client, universe, target.namespace, &metric.name, about, &selector);
        let usage = usage.await.map_err(|why| {
            let (namespace, kind, name) = (target.namespace, &about.kind, &about.name);
            format!("unable to get metric {}: {kind} on {namespace} {name}/{why}", metric.name)
        });
        match (wanted.type_.as_str(), &wanted.value, &wanted.average_value) {
            ("Value", Some(value), _) => {
                let usage = usage?;
                let count = replicas::by_value(target.now, milli(value), usage, target.pods)?;
                Ok((count, MetricValueStatus { value: Some(quantity(usage)), ..Default::default() }))
            }
            ("AverageValue", _, Some(average)) => {
                let usage =
                    usage.map_err(|why| format!("failed to get {} object metric: {why}", metric.name))?;
                let (count, share) = replicas::by_share(target.running, milli(average), usage);
                Ok((count, MetricValueStatus { average_value: Some(quantity(share)), ..Default::default() }))
            }
            _ => Err(
                "invalid object metric source: neither a value target nor an average value target was set"
                    .to_owned(),
            ),
        }
    }

    async fn ask_external(
        &self,
        target: &Target<'_>,
        metric: &MetricIdentifier,
        wanted: &MetricTarget,
    ) -> Result<(i32, MetricValueStatus), String> {
        let selector = text(metric.selector.as_ref());
        let usage = metrics::external(&self.context.client, target.namespace, &metric.name, &selector);
        let usage = usage.await.map_err(|why| {
            let selector = selector::as_go(metric.selector.as_ref());
            format!("unable to get external metric {}/{}/{selector}: {why}", target.namespace, metric.name)
        });
        if let Some(average) = &wanted.average_value {
            let usage =
                usage.map_err(|why| format!("failed to get {} external metric: {why}", metric.name))?;
            let (count, share) = replicas::by_share(target.running, milli(average), usage);
            return Ok((
                count,
                MetricValueStatus { average_value: Some(quantity(share)), ..Default::default() },
            ));
        }
        let Some(value) = &wanted.value else {
            return Err(
                "invalid external metric source: neither a value target nor an average value target was \
                set"
                .to_owned(),
            );
        };
        let failed = |why| format!("failed to get external metric {}: {why}", metric.name);
        let usage = usage.map_err(failed)?;
        let count = replicas::by_value(target.now, milli(value), usage, target.pods).map_err(failed)?;
        Ok((count, MetricValueStatus { value: Some(quantity(usage)), ..Default::default() }))
    }
}

fn external_name(metric: &MetricIdentifier) -> String {
    format!("external metric {}({})", metric.name, selector::as_go(metric.selector.as_ref()))
}

fn resource_name(resource: &str, what: &str, target: &MetricTarget) -> String {
    match target.average_value {
        Some(_) => format!("{resource} resource"),
        None => format!("{resource} {what} utilization (percentage of request)"),
    }
}
