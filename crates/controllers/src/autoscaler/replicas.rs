//! How many replicas a measurement asks for.
//!
//! Upstream: pkg/controller/podautoscaler/replica_calculator.go

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::Object;
use api::core::v1::{Container, Pod};
use apimachinery::quantity::Quantity;
use jiff::{SignedDuration, Timestamp};

use super::metrics::PodMetrics;
use crate::objects::{condition, is_deleting, is_ready, phase};
use crate::options::Autoscaling;

/// How far from the target is near enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerances {
    pub down: f64,
    pub up: f64,
}

impl Tolerances {
    fn hold(self, ratio: f64) -> bool {
        (1.0 - self.down) <= ratio && ratio <= (1.0 + self.up)
    }
}

/// What the replicas are now, and how far from the target may be near enough.
#[derive(Clone, Copy)]
pub(super) struct Now {
    pub replicas: i32,
    pub tolerances: Tolerances,
    pub starting: Starting,
    pub at: Timestamp,
}

/// How long a pod that starts may use more than it will later.
#[derive(Clone, Copy)]
pub(super) struct Starting {
    pub initialization: SignedDuration,
    pub readiness_delay: SignedDuration,
}

impl Starting {
    pub fn of(options: &Autoscaling) -> Self {
        let signed = |duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        Starting {
            initialization: signed(options.cpu_initialization_period),
            readiness_delay: signed(options.initial_readiness_delay),
        }
    }
}

/// The pods of a target by what their measurements are worth.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Groups {
    pub ready: usize,
    /// Their measurements do not count.
    pub unready: BTreeSet<String>,
    /// They have none.
    pub missing: BTreeSet<String>,
    /// They do not count themselves.
    pub ignored: BTreeSet<String>,
}

/// Upstream: pkg/controller/podautoscaler/replica_calculator.go groupPods
pub(super) fn group(pods: &[Arc<Pod>], metrics: &PodMetrics, of_cpu: bool, now: Now) -> Groups {
    let mut groups = Groups::default();
    for pod in pods {
        let name = pod.name().to_owned();
        if is_deleting(&**pod) || phase(pod) == "Failed" {
            groups.ignored.insert(name);
        } else if phase(pod) == "Pending" {
            groups.unready.insert(name);
        } else if let Some(metric) = metrics.get(pod.name()) {
            if of_cpu && is_starting(pod, metric, now) {
                groups.unready.insert(name);
            } else {
                groups.ready += 1;
            }
        } else {
            groups.missing.insert(name);
        }
    }
    groups
}

fn is_starting(pod: &Pod, metric: &super::metrics::PodMetric, now: Now) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
    let (Some(started), Some(ready)) = (started, condition(pod, "Ready")) else { return true };
    let changed = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let unready = ready.status == "False";
    let Starting { initialization, readiness_delay } = now.starting;
    if now.at.duration_since(started) < initialization {
        unready || metric.timestamp.duration_since(changed) < metric.window
    } else {
        unready && changed.duration_since(started) < readiness_delay
    }
}

fn ceiling(number: f64) -> i32 {
    // Rounding saturates: what is beyond all numbers is the greatest.
    number.ceil() as i32
}

/// What a set of measurements amounts to: its part of the target, and what is told of it.
type Measured<T> = Result<(f64, T), String>;

/// `measure` says how the measurements compare with the target; `missing` what a pod counts for that has none,
/// when it is about fewer replicas.
fn scale<T>(
    now: Now,
    mut metrics: PodMetrics,
    groups: &Groups,
    measure: impl Fn(&PodMetrics) -> Measured<T>,
    missing: impl Fn(&str) -> i64,
) -> Result<(i32, T), String> {
    metrics.retain(|name, _| !groups.ignored.contains(name) && !groups.unready.contains(name));
    if metrics.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let (ratio, told) = measure(&metrics)?;
    let up_with_unready = !groups.unready.is_empty() && ratio > 1.0;
    if !up_with_unready && groups.missing.is_empty() {
        let replicas = match now.tolerances.hold(ratio) {
            true => now.replicas,
            false => ceiling(ratio * groups.ready as f64),
        };
        return Ok((replicas, told));
    }
    // Those of whom nothing is known count as what keeps the change small.
    for name in &groups.missing {
        if ratio < 1.0 {
            metrics.insert(name.clone(), super::metrics::PodMetric::of(missing(name)));
        } else if ratio > 1.0 {
            metrics.insert(name.clone(), super::metrics::PodMetric::of(0));
        }
    }
    if up_with_unready {
        for name in &groups.unready {
            metrics.insert(name.clone(), super::metrics::PodMetric::of(0));
        }
    }
    let (again, _) = measure(&metrics)?;
    let turns = (ratio < 1.0 && again > 1.0) || (ratio > 1.0 && again < 1.0);
    if now.tolerances.hold(again) || turns {
        return Ok((now.replicas, told));
    }
    let replicas = ceiling(again * metrics.len() as f64);
    let turns = (again < 1.0 && replicas > now.replicas) || (again > 1.0 && replicas < now.replicas);
    Ok((if turns { now.replicas } else { replicas }, told))
}

fn check(pods: &[Arc<Pod>]) -> Result<(), String> {
    match pods {
        [] => Err("no pods returned by selector while calculating replica count".to_owned()),
        _ => Ok(()),
    }
}

/// By the part of the pods' requests that they use: the replicas, that part in percent, and the average use.
pub(super) fn by_utilization(
    now: Now,
    target: i32,
    metrics: PodMetrics,
    pods: &[Arc<Pod>],
    requests: impl FnOnce() -> Result<BTreeMap<String, i64>, String>,
    of_cpu: bool,
) -> Result<(i32, (i32, i64)), String> {
    check(pods)?;
    let groups = group(pods, &metrics, of_cpu, now);
    let counted = |name: &String| !groups.ignored.contains(name) && !groups.unready.contains(name);
    if !metrics.keys().any(counted) {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = requests()?;
    let measure = |metrics: &PodMetrics| {
        let known = metrics.iter().filter_map(|(name, metric)| Some((metric.value, *requests.get(name)?)));
        let known: Vec<_> = known.collect();
        let used: i64 = known.iter().map(|(used, _)| used).fold(0, |sum, used| sum.saturating_add(*used));
        let requested: i64 =
            known.iter().map(|(_, asked)| asked).fold(0, |sum, asked| sum.saturating_add(*asked));
        if requested == 0 {
            return Err("no metrics returned matched known pods".to_owned());
        }
        let percent = i32::try_from(used.saturating_mul(100) / requested).unwrap_or(i32::MAX);
        let average = used / i64::try_from(known.len()).unwrap_or(i64::MAX);
        Ok((f64::from(percent) / f64::from(target), (percent, average)))
    };
    let all = i64::from(target.max(100));
    let missing = |name: &str| requests.get(name).copied().unwrap_or(0).saturating_mul(all) / 100;
    scale(now, metrics, &groups, measure, missing)
}

/// By the average of a measurement: the replicas and that average.
pub(super) fn by_average(
    now: Now,
    target: i64,
    metrics: PodMetrics,
    pods: &[Arc<Pod>],
    of_cpu: bool,
) -> Result<(i32, i64), String> {
    check(pods)?;
    let groups = group(pods, &metrics, of_cpu, now);
    let measure = |metrics: &PodMetrics| {
        let sum = metrics.values().fold(0_i64, |sum, metric| sum.saturating_add(metric.value));
        let average = sum / i64::try_from(metrics.len()).unwrap_or(i64::MAX);
        Ok((average as f64 / target as f64, average))
    };
    scale(now, metrics, &groups, measure, |_| target)
}

/// By one value that stands for all pods.
///
/// Upstream: pkg/controller/podautoscaler/replica_calculator.go getUsageRatioReplicaCount
pub(super) fn by_value(now: Now, target: i64, usage: i64, pods: &[Arc<Pod>]) -> Result<i32, String> {
    let ratio = usage as f64 / target as f64;
    if now.tolerances.hold(ratio) {
        return Ok(now.replicas);
    }
    check(pods).map_err(|why| format!("unable to calculate ready pods: {why}"))?;
    let ready = pods.iter().filter(|pod| phase(pod) == "Running" && is_ready(pod)).count();
    Ok(ceiling(ratio * ready as f64))
}

/// By one value of which each pod shall have its part: the replicas and that part.
///
/// Upstream: pkg/controller/podautoscaler/replica_calculator.go GetExternalPerPodMetricReplicas
pub(super) fn by_share(now: Now, target: i64, usage: i64) -> (i32, i64) {
    let (replicas, usage_now) = (f64::from(now.replicas), usage as f64);
    let ratio = usage_now / (target as f64 * replicas);
    let wanted = if now.tolerances.hold(ratio) { now.replicas } else { ceiling(usage_now / target as f64) };
    (wanted, (usage_now / replicas).ceil() as i64)
}

fn milli(container: &Container, resource: &str) -> Option<i64> {
    let requests = container.resources.as_ref()?.requests.as_ref()?;
    Quantity::parse(&requests.get(resource)?.0).ok().map(|quantity| quantity.milli_value())
}

/// What each pod asked for; of one container alone if that is named.
///
/// Upstream: pkg/controller/podautoscaler/replica_calculator.go calculateRequests
pub(super) fn requests(
    pods: &[Arc<Pod>],
    container: &str,
    resource: &str,
) -> Result<BTreeMap<String, i64>, String> {
    let each = pods.iter().map(|pod| Ok((pod.name().to_owned(), request(pod, container, resource)?)));
    each.collect()
}

fn request(pod: &Pod, container: &str, resource: &str) -> Result<i64, String> {
    let Some(spec) = &pod.spec else { return Ok(0) };
    let of_pod = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    if let Some(of_pod) = of_pod.filter(|requests| container.is_empty() && !requests.is_empty()) {
        let quantity = of_pod.get(resource).and_then(|quantity| Quantity::parse(&quantity.0).ok());
        return quantity
            .map(|quantity| quantity.milli_value())
            .ok_or_else(|| format!("missing pod-level request for {resource} in Pod {}", pod.name()));
    }
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let mut sum = 0_i64;
    let mut found = false;
    for one in spec.containers.iter().chain(sidecars) {
        if container.is_empty() || container == one.name {
            found = true;
            let asked = milli(one, resource).ok_or_else(|| {
                format!("missing request for {resource} in container {} of Pod {}", one.name, pod.name())
            })?;
            sum = sum.saturating_add(asked);
        }
    }
    if !container.is_empty() && !found {
        return Err(format!("container {container} not found in Pod {}", pod.name()));
    }
    Ok(sum)
}
