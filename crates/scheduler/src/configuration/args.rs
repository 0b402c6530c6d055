//! The arguments of plugins, with upstream's defaults and checks.
//!
//! Upstream: staging/src/k8s.io/kube-scheduler/config/v1/types_pluginargs.go,
//! pkg/scheduler/apis/config/validation/validation_pluginargs.go

use std::time::Duration;

use api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use apimachinery::field::{Error, Path, aggregate};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::profile::Preemption;

/// Reads arguments; `apiVersion` and `kind` may be there.
pub fn read<T: DeserializeOwned + Default>(args: Option<&Value>) -> Result<T, String> {
    let Some(args) = args else { return Ok(T::default()) };
    let mut args = args.clone();
    if let Some(map) = args.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
    }
    serde_json::from_value(args).map_err(|error| error.to_string())
}

/// For plugins that have no arguments: any are ignored, as upstream does.
pub fn none(_args: Option<&Value>) -> Result<(), String> {
    Ok(())
}

fn check(errors: &[Error]) -> Result<(), String> {
    if errors.is_empty() { Ok(()) } else { Err(aggregate(errors)) }
}

fn in_range(path: &str, value: i64, range: std::ops::RangeInclusive<i64>, errors: &mut Vec<Error>) {
    if !range.contains(&value) {
        let words = format!("not in valid range [{}, {}]", range.start(), range.end());
        errors.push(Error::invalid(&Path::new(path), value, words));
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct PreemptionArgs {
    min_candidate_nodes_percentage: i64,
    min_candidate_nodes_absolute: i64,
}

impl Default for PreemptionArgs {
    fn default() -> Self {
        PreemptionArgs { min_candidate_nodes_percentage: 10, min_candidate_nodes_absolute: 100 }
    }
}

pub fn preemption(args: Option<&Value>) -> Result<Preemption, String> {
    let args: PreemptionArgs = read(args)?;
    let (percentage, absolute) = (args.min_candidate_nodes_percentage, args.min_candidate_nodes_absolute);
    let mut errors = Vec::new();
    in_range("minCandidateNodesPercentage", percentage, 0..=100, &mut errors);
    let path = Path::new("minCandidateNodesAbsolute");
    if absolute < 0 {
        errors.push(Error::invalid(&path, absolute, "not in valid range [0, inf)"));
    }
    if percentage == 0 && absolute == 0 {
        let words = "cannot be zero at the same time as minCandidateNodesPercentage";
        errors.push(Error::invalid(&path, absolute, words));
    }
    check(&errors)?;
    Ok(Preemption { min_candidate_percentage: percentage as usize, min_candidates: absolute as usize })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InterPodAffinity {
    /// The weight of others' required affinity when nodes are ranked.
    pub hard_pod_affinity_weight: i64,
    pub ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for InterPodAffinity {
    fn default() -> Self {
        InterPodAffinity { hard_pod_affinity_weight: 1, ignore_preferred_terms_of_existing_pods: false }
    }
}

pub fn inter_pod_affinity(args: Option<&Value>) -> Result<InterPodAffinity, String> {
    let args: InterPodAffinity = read(args)?;
    let mut errors = Vec::new();
    in_range("hardPodAffinityWeight", args.hard_pod_affinity_weight, 0..=100, &mut errors);
    check(&errors).map(|()| args)
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NodeAffinityArgs {
    /// Asked of every pod of the profile, beside its own.
    pub added_affinity: Option<NodeAffinity>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodTopologySpread {
    pub default_constraints: Vec<TopologySpreadConstraint>,
    /// `System` for the built-in default constraints, `List` for the given ones.
    pub defaulting_type: Option<String>,
}

impl PodTopologySpread {
    /// The constraints of pods that have none of their own; `None` for the built-in ones.
    pub fn defaults(self) -> Option<Vec<TopologySpreadConstraint>> {
        (self.defaulting_type.as_deref() == Some("List")).then_some(self.default_constraints)
    }
}

pub fn pod_topology_spread(args: Option<&Value>) -> Result<PodTopologySpread, String> {
    let args: PodTopologySpread = read(args)?;
    let mut errors = Vec::new();
    let path = Path::new("defaultingType");
    match args.defaulting_type.as_deref().unwrap_or("System") {
        "List" => {}
        "System" if args.default_constraints.is_empty() => {}
        "System" => errors.push(Error::invalid(&path, "System", "when .defaultConstraints are not empty")),
        other => errors.push(Error::not_supported(&path, other, &["List", "System"])),
    }
    for (at, constraint) in args.default_constraints.iter().enumerate() {
        let path = Path::new("defaultConstraints").index(at);
        if constraint.max_skew <= 0 {
            let words = "not in valid range (0, inf)";
            errors.push(Error::invalid(&path.child("maxSkew"), constraint.max_skew, words));
        }
        if constraint.topology_key.is_empty() {
            errors.push(Error::required(&path.child("topologyKey"), "can not be empty"));
        }
        let action = constraint.when_unsatisfiable.as_str();
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&action) {
            let path = path.child("whenUnsatisfiable");
            errors.push(Error::not_supported(&path, action, &["DoNotSchedule", "ScheduleAnyway"]));
        }
        if constraint.label_selector.is_some() {
            let words = "constraint must not define a selector, as they deduced for each pod";
            errors.push(Error::forbidden(&path.child("labelSelector"), words));
        }
    }
    check(&errors).map(|()| args)
}

#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weighted {
    pub name: String,
    #[serde(default)]
    pub weight: i64,
}

/// What score a utilization has, both in per cent, from points between which the line is straight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape(Vec<(i64, i64)>);

impl Shape {
    pub fn at(&self, utilization: i64) -> i64 {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return 0 };
        match self.0.iter().position(|(at, _)| utilization <= *at) {
            None => last.1,
            Some(0) => first.1,
            Some(next) => {
                let ((x0, y0), (x1, y1)) = (self.0[next - 1], self.0[next]);
                y0 + (y1 - y0) * (utilization - x0) / (x1 - x0)
            }
        }
    }
}

#[derive(Clone)]
pub enum Strategy {
    LeastAllocated,
    MostAllocated,
    RequestedToCapacityRatio(Shape),
}

/// How the room on nodes is judged.
#[derive(Clone)]
pub struct Fit {
    pub strategy: Strategy,
    pub resources: Vec<Weighted>,
    /// Extended resources, and prefixes of such, that somebody else looks after.
    pub ignored: Vec<String>,
    pub ignored_groups: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct FitFile {
    ignored_resources: Vec<String>,
    ignored_resource_groups: Vec<String>,
    scoring_strategy: Option<StrategyFile>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct StrategyFile {
    #[serde(rename = "type")]
    kind: String,
    resources: Vec<Weighted>,
    requested_to_capacity_ratio: Option<Ratio>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Ratio {
    shape: Vec<Point>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Point {
    utilization: i64,
    score: i64,
}

fn default_resources() -> Vec<Weighted> {
    ["cpu", "memory"].map(|name| Weighted { name: name.into(), weight: 1 }).into()
}

/// Upstream's custom scores go to 10, a node's to 100.
const SCORE_SCALE: i64 = 10;

fn shape(points: &[Point], path: &Path, errors: &mut Vec<Error>) -> Shape {
    if points.is_empty() {
        errors.push(Error::required(path, "at least one point must be specified"));
    }
    for (at, pair) in points.windows(2).enumerate() {
        if pair[0].utilization >= pair[1].utilization {
            let path = path.index(at + 1).child("utilization");
            let words = "values must be sorted in increasing order";
            errors.push(Error::invalid(&path, pair[1].utilization, words));
            break;
        }
    }
    for (at, point) in points.iter().enumerate() {
        let path = path.index(at);
        in_range(path.child("utilization").as_str(), point.utilization, 0..=100, errors);
        in_range(path.child("score").as_str(), point.score, 0..=10, errors);
    }
    Shape(points.iter().map(|point| (point.utilization, point.score * SCORE_SCALE)).collect())
}

pub fn fit(args: Option<&Value>) -> Result<Fit, String> {
    let args: FitFile = read(args)?;
    let mut errors = Vec::new();
    for (at, group) in args.ignored_resource_groups.iter().enumerate() {
        if group.contains('/') {
            let path = Path::new("ignoredResourceGroups").index(at);
            errors.push(Error::invalid(&path, group.as_str(), "resource group name can't contain '/'"));
        }
    }
    let path = Path::new("scoringStrategy");
    let given = args
        .scoring_strategy
        .unwrap_or_else(|| StrategyFile { kind: "LeastAllocated".into(), ..StrategyFile::default() });
    let mut resources = if given.resources.is_empty() { default_resources() } else { given.resources };
    for (at, resource) in resources.iter_mut().enumerate() {
        resource.weight = if resource.weight == 0 { 1 } else { resource.weight };
        if !(1..=100).contains(&resource.weight) {
            let words = format!("resource weight of {} not in valid range (0, 100]", resource.name);
            let path = path.child("resources").index(at).child("weight");
            errors.push(Error::invalid(&path, resource.weight, words));
        }
    }
    let ratio = path.child("requestedToCapacityRatio");
    let strategy = match (given.kind.as_str(), &given.requested_to_capacity_ratio) {
        ("RequestedToCapacityRatio", Some(given)) => {
            Strategy::RequestedToCapacityRatio(shape(&given.shape, &ratio.child("shape"), &mut errors))
        }
        ("RequestedToCapacityRatio", None) => {
            errors.push(Error::required(&ratio, "must be specified when type is RequestedToCapacityRatio"));
            Strategy::LeastAllocated
        }
        (kind, given) => {
            if given.is_some() {
                let words = "must be nil when type is not RequestedToCapacityRatio";
                errors.push(Error::forbidden(&ratio, words));
            }
            match kind {
                "LeastAllocated" => Strategy::LeastAllocated,
                "MostAllocated" => Strategy::MostAllocated,
                other => {
                    let supported = &["LeastAllocated", "MostAllocated", "RequestedToCapacityRatio"];
                    errors.push(Error::not_supported(&path.child("type"), other, supported));
                    Strategy::LeastAllocated
                }
            }
        }
    };
    check(&errors)?;
    Ok(Fit {
        strategy,
        resources,
        ignored: args.ignored_resources,
        ignored_groups: args.ignored_resource_groups,
    })
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Balanced {
    resources: Vec<Weighted>,
}

/// The names of the resources whose use is to be even.
pub fn balanced(args: Option<&Value>) -> Result<Vec<String>, String> {
    let mut args: Balanced = read(args)?;
    if args.resources.is_empty() {
        args.resources = default_resources();
    }
    let mut errors = Vec::new();
    for (at, resource) in args.resources.iter().enumerate() {
        let path = Path::new("resources").index(at);
        if args.resources[..at].iter().any(|other| other.name == resource.name) {
            errors.push(Error::duplicate(&path.child("name"), resource.name.as_str()));
        }
        if resource.weight > 1 {
            errors.push(Error::invalid(&path.child("weight"), resource.weight, "must be 1"));
        }
    }
    check(&errors)?;
    Ok(args.resources.into_iter().map(|resource| resource.name).collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct VolumeBinding {
    /// How long volumes may take to be bound.
    pub bind_timeout_seconds: i64,
    shape: Option<Value>,
}

impl Default for VolumeBinding {
    fn default() -> Self {
        VolumeBinding { bind_timeout_seconds: 600, shape: None }
    }
}

pub fn volume_binding(args: Option<&Value>) -> Result<VolumeBinding, String> {
    let args: VolumeBinding = read(args)?;
    let mut errors = Vec::new();
    if args.bind_timeout_seconds < 0 {
        let words = "invalid BindTimeoutSeconds, should not be a negative value";
        errors.push(Error::invalid(&Path::new("bindTimeoutSeconds"), args.bind_timeout_seconds, words));
    }
    if let Some(shape) = &args.shape {
        let words = "unexpected field `shape`, remove it or turn on the feature gate StorageCapacityScoring";
        errors.push(Error::invalid(&Path::new("shape"), shape.clone(), words));
    }
    check(&errors).map(|()| args)
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct DynamicResources {
    filter_timeout: Option<String>,
    binding_timeout: Option<String>,
}

/// How long devices may take to be made ready. A search for devices is bounded by steps rather than by time.
///
/// Upstream: pkg/scheduler/apis/config/types_pluginargs.go DynamicResourcesBindingTimeoutDefault
pub fn dynamic_resources(args: Option<&Value>) -> Result<Duration, String> {
    let args: DynamicResources = read(args)?;
    let mut errors = Vec::new();
    let mut read = |path: &str, text: &Option<String>, default: u64, least: Duration| {
        let Some(text) = text else { return Duration::from_secs(default) };
        let given =
            text.parse::<jiff::SignedDuration>().ok().and_then(|given| Duration::try_from(given).ok());
        if given.is_none_or(|given| given < least) {
            let words =
                if least.is_zero() { "must be zero or positive" } else { "must be at least 1 second" };
            errors.push(Error::invalid(&Path::new(path), text.as_str(), words));
        }
        given.unwrap_or_default()
    };
    read("filterTimeout", &args.filter_timeout, 10, Duration::ZERO);
    let binding = read("bindingTimeout", &args.binding_timeout, 600, Duration::from_secs(1));
    check(&errors).map(|()| binding)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scores_lie_on_a_line_between_points() {
        let args = json!({"scoringStrategy": {"type": "RequestedToCapacityRatio", "requestedToCapacityRatio":
            {"shape": [{"utilization": 20, "score": 0}, {"utilization": 80, "score": 10}]}}});
        let Ok(Fit { strategy: Strategy::RequestedToCapacityRatio(shape), .. }) = fit(Some(&args)) else {
            panic!("the strategy is the given one");
        };
        assert_eq!([0, 20, 50, 80, 100].map(|at| shape.at(at)), [0, 0, 50, 100, 100]);
    }

    #[test]
    fn wrong_strategies_are_refused() {
        let refused = |args: Value| fit(Some(&args)).err().unwrap_or_default();
        assert_eq!(
            refused(json!({"scoringStrategy": {"type": "Best"}})),
            "scoringStrategy.type: Unsupported value: \"Best\": supported values: \"LeastAllocated\", \
             \"MostAllocated\", \"RequestedToCapacityRatio\""
        );
        assert_eq!(
            refused(json!({"scoringStrategy": {"type": "RequestedToCapacityRatio"}})),
            "scoringStrategy.requestedToCapacityRatio: Required value: must be specified when type is \
             RequestedToCapacityRatio"
        );
        assert!(refused(json!({"scoring": 1})).contains("unknown field"));
    }
}
