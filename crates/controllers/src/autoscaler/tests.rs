use std::collections::BTreeMap;
use std::sync::Arc;

use api::Object;
use api::autoscaling::v2::HorizontalPodAutoscaler;
use api::core::v1::Pod;
use serde_json::{Value, json};

use super::behavior::{History, Rules};
use super::metrics::{PodMetric, PodMetrics, pod_usage};
use super::replicas::{Now, Starting, Tolerances, by_average, by_share, by_utilization, by_value, requests};
use crate::objects::tests::{at, pod};

fn now(replicas: i32) -> Now {
    let starting = Starting::of(&crate::Options::default().autoscaling);
    Now { replicas, tolerances: Tolerances { down: 0.1, up: 0.1 }, starting, at: at(3600) }
}

fn running(name: &str, request: &str) -> Arc<Pod> {
    let mut pod = pod(name, "Running", true);
    let containers = json!([{"name": "c", "resources": {"requests": {"cpu": request}}}]);
    pod.spec.as_mut().unwrap().containers = serde_json::from_value(containers).unwrap();
    pod.status.as_mut().unwrap().start_time = Some(api::meta::Time(at(0)));
    Arc::new(pod)
}

fn phase(name: &str, phase: &str) -> Arc<Pod> {
    let mut pod = (*running(name, "1")).clone();
    pod.status.as_mut().unwrap().phase = Some(phase.into());
    Arc::new(pod)
}

fn measured(values: &[(&str, i64)]) -> PodMetrics {
    values
        .iter()
        .map(|(name, value)| ((*name).to_owned(), PodMetric { timestamp: at(3600), ..PodMetric::of(*value) }))
        .collect()
}

#[test]
fn replicas_follow_the_use_of_requests() {
    let three = [running("a", "1"), running("b", "1"), running("c", "1")];
    let check = |pods: &[Arc<Pod>], metrics: &[(&str, i64)], target: i32| {
        let count = i32::try_from(pods.len()).unwrap();
        let requests = || requests(pods, "", "cpu");
        by_utilization(now(count), target, measured(metrics), pods, requests, true)
            .map(|(n, (percent, _))| (n, percent))
    };
    for (metrics, target, expected) in [
        (&[("a", 500), ("b", 500), ("c", 500)][..], 50, (3, 50)),
        (&[("a", 540), ("b", 540), ("c", 540)], 50, (3, 54)),
        (&[("a", 900), ("b", 900), ("c", 900)], 50, (6, 90)),
        (&[("a", 100), ("b", 100), ("c", 100)], 50, (1, 10)),
        // What is missing counts as all when it goes down, and as nothing when it goes up.
        (&[("a", 100), ("b", 100)], 50, (3, 10)),
        (&[("a", 900), ("b", 900)], 50, (4, 90)),
    ] {
        assert_eq!(check(&three, metrics, target), Ok(expected), "{metrics:?}");
    }
    // Those that start count as nothing when it goes up.
    let starting = [running("a", "1"), running("b", "1"), phase("c", "Pending")];
    assert_eq!(check(&starting, &[("a", 900), ("b", 900), ("c", 900)], 50), Ok((4, 90)));
    let failed = [running("a", "1"), phase("b", "Failed")];
    assert_eq!(check(&failed, &[("a", 900), ("b", 100)], 50), Ok((2, 90)));
    assert_eq!(
        check(&[], &[], 50).unwrap_err(),
        "no pods returned by selector while calculating replica count"
    );
    assert_eq!(
        check(&three[..1], &[], 50).unwrap_err(),
        "did not receive metrics for targeted pods (pods might be unready)"
    );
    let bare: [Arc<Pod>; 1] = [Arc::new(Pod::from_value(json!({
        "metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running"},
    })).unwrap())];
    assert_eq!(requests(&bare, "", "cpu").unwrap_err(), "missing request for cpu in container c of Pod a");
    assert_eq!(requests(&three[..1], "d", "cpu").unwrap_err(), "container d not found in Pod a");
}

#[test]
fn replicas_follow_values() {
    let two = [running("a", "1"), running("b", "1")];
    assert_eq!(by_average(now(2), 100, measured(&[("a", 300), ("b", 100)]), &two, false), Ok((4, 200)));
    assert_eq!(by_average(now(2), 100, measured(&[("a", 104), ("b", 104)]), &two, false), Ok((2, 104)));
    assert_eq!(by_value(now(2), 100, 300, &two), Ok(6));
    assert_eq!(by_value(now(2), 100, 105, &two), Ok(2));
    assert_eq!(by_share(now(2), 100, 500), (5, 250));
    assert_eq!(by_share(now(2), 100, 205), (2, 103));
}

#[test]
fn usage_is_the_sum_of_containers() {
    let list = json!({"items": [
        {"metadata": {"name": "a"}, "timestamp": "2026-01-01T00:00:00Z", "window": "30s", "containers": [
            {"name": "x", "usage": {"cpu": "100m"}}, {"name": "y", "usage": {"cpu": "1"}},
        ]},
        {"metadata": {"name": "b"}, "containers": []},
    ]});
    let all: BTreeMap<_, _> = pod_usage(&list, "cpu", "").into_iter().map(|(k, v)| (k, v.value)).collect();
    assert_eq!(all, [("a".to_owned(), 1100)].into());
    assert_eq!(pod_usage(&list, "cpu", "x")["a"].value, 100);
    assert_eq!(pod_usage(&list, "cpu", "x")["a"].window.as_secs(), 30);
    assert!(pod_usage(&list, "memory", "").is_empty());
}

fn rules(behavior: Value) -> Rules {
    let autoscaler = json!({
        "metadata": {"name": "a"},
        "spec": {"maxReplicas": 100, "scaleTargetRef": {"kind": "D", "name": "d"}, "behavior": behavior},
    });
    Rules::of(
        &HorizontalPodAutoscaler::from_value(autoscaler).unwrap(),
        &crate::Options::default().autoscaling,
    )
}

#[test]
fn going_down_waits_and_going_up_is_bounded() {
    let mut history = History::default();
    history.begin(5, at(0));
    let mut look = |current, desired, seconds| {
        let ((stable, _), limited) =
            history.normalize(current, desired, (1, 20), &Rules::None { down_window: 300 }, at(seconds));
        (limited.replicas, stable, limited.reason)
    };
    assert_eq!(look(5, 2, 15), (5, "ScaleDownStabilized", "DesiredWithinRange"));
    assert_eq!(look(5, 30, 30), (10, "ReadyForNewScale", "ScaleUpLimit"));
    assert_eq!(look(10, 30, 45), (20, "ReadyForNewScale", "TooManyReplicas"));
    assert_eq!(look(20, 3, 60), (20, "ScaleDownStabilized", "TooManyReplicas"));
    assert_eq!(look(20, 3, 400), (3, "ReadyForNewScale", "DesiredWithinRange"));
    assert_eq!(look(3, 0, 800), (1, "ReadyForNewScale", "TooFewReplicas"));
}

#[test]
fn behaviors_bound_the_rate() {
    let policy = |kind: &str, value: i32| json!({"type": kind, "value": value, "periodSeconds": 60});
    let up = |select: &str| json!({"selectPolicy": select, "stabilizationWindowSeconds": 0, "policies": [policy("Percent", 100), policy("Pods", 4)]});
    let look = |behavior: Value, current, desired, scaled: Option<(i32, i32)>| {
        let mut history = History::default();
        if let Some((from, to)) = scaled {
            history.scaled(from, to, at(590));
        }
        let (_, limited) = history.normalize(current, desired, (1, 100), &rules(behavior), at(600));
        (limited.replicas, limited.reason)
    };
    for (behavior, current, desired, scaled, expected) in [
        (json!({"scaleUp": up("Max")}), 3, 50, None, (7, "ScaleUpLimit")),
        (json!({"scaleUp": up("Min")}), 3, 50, None, (6, "ScaleUpLimit")),
        (json!({"scaleUp": up("Disabled")}), 3, 50, None, (3, "ScaleUpLimit")),
        (json!({"scaleUp": up("Max")}), 10, 12, None, (12, "DesiredWithinRange")),
        // It grew from 3 to 7 in this period already.
        (json!({"scaleUp": up("Max")}), 7, 50, Some((3, 7)), (7, "ScaleUpLimit")),
        (
            json!({"scaleDown": {"stabilizationWindowSeconds": 0, "policies": [policy("Pods", 2)]}}),
            10,
            1,
            None,
            (8, "ScaleDownLimit"),
        ),
        (
            json!({"scaleDown": {"stabilizationWindowSeconds": 0, "policies": [policy("Percent", 50)]}}),
            10,
            1,
            None,
            (5, "ScaleDownLimit"),
        ),
        (
            json!({"scaleDown": {"stabilizationWindowSeconds": 0, "policies": [policy("Percent", 100)]}}),
            10,
            0,
            None,
            (1, "TooFewReplicas"),
        ),
    ] {
        assert_eq!(look(behavior.clone(), current, desired, scaled), expected, "{behavior}");
    }
}

#[test]
fn a_window_upwards_takes_the_lowest() {
    let behavior = json!({"scaleUp": {
        "stabilizationWindowSeconds": 60, "policies": [{"type": "Percent", "value": 900, "periodSeconds": 15}],
    }});
    let mut history = History::default();
    history.begin(2, at(0));
    let ((reason, _), limited) = history.normalize(2, 8, (1, 20), &rules(behavior.clone()), at(15));
    assert_eq!((reason, limited.replicas), ("ScaleUpStabilized", 2));
    let ((reason, _), limited) = history.normalize(2, 8, (1, 20), &rules(behavior), at(70));
    assert_eq!((reason, limited.replicas), ("ReadyForNewScale", 8));
}
