//! Between the version that a kind is served in and the version that it is stored in, for the few that differ:
//! `autoscaling/v1` is stored as v2, and `events.k8s.io/v1` as the core group's v1; others are of one shape.

use serde_json::{Map, Value, json};

use crate::definition::ResourceDef;
use crate::get;

/// The group version in which a row's objects are stored.
pub fn storage_api_version(def: &ResourceDef) -> String {
    match (&*def.group, &*def.version) {
        ("events.k8s.io", _) | ("", _) => def.storage_version.to_string(),
        (group, _) => format!("{group}/{}", def.storage_version),
    }
}

/// Whether a row's objects change their form on the way to the store.
pub fn is_converted(def: &ResourceDef) -> bool {
    def.group == "events.k8s.io" || def.version != def.storage_version
}

/// Turns an object of the row's version into the stored form.
pub fn to_storage(def: &ResourceDef, object: &mut Value) {
    match (&*def.group, &*def.version) {
        ("autoscaling", "v1") => autoscaler_to_v2(object),
        ("events.k8s.io", _) => event_to_core(object),
        _ if def.custom.is_some() || !is_converted(def) => return,
        // Versions of the same shape.
        _ => {}
    }
    get::set(object, "apiVersion", storage_api_version(def));
}

/// Turns a stored object into the row's version.
pub fn from_storage(def: &ResourceDef, object: &mut Value) {
    match (&*def.group, &*def.version) {
        ("autoscaling", "v1") => autoscaler_to_v1(object),
        ("events.k8s.io", _) => event_from_core(object),
        _ if def.custom.is_some() || !is_converted(def) => return,
        _ => {}
    }
    get::set(object, "apiVersion", format!("{}/{}", def.group, def.version));
}

fn rename(object: &mut Value, from: &str, to: &str) {
    if let Some(value) = get::remove(object, from) {
        get::set(object, to, value);
    }
}

/// The names of an Event's fields in `events.k8s.io` and in the core group.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

/// Upstream: pkg/apis/events/v1/conversion.go
pub fn event_to_core(event: &mut Value) {
    EVENT_FIELDS.iter().for_each(|(new, core)| rename(event, new, core));
}

fn event_from_core(event: &mut Value) {
    EVENT_FIELDS.iter().for_each(|(new, core)| rename(event, core, new));
}

/// What version 1 cannot express travels in annotations.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

fn take_annotation(object: &mut Value, key: &str) -> Option<Value> {
    let annotations = get::at_mut(object, "metadata.annotations")?.as_object_mut()?;
    let text = annotations.remove(key)?;
    serde_json::from_str(text.as_str()?).ok()
}

fn put_annotation(object: &mut Value, key: &str, value: &Value) {
    if let Some(annotations) = get::fields_mut(object, "metadata.annotations") {
        annotations.insert(key.to_owned(), value.to_string().into());
    }
}

/// Upstream: pkg/apis/autoscaling/v1/conversion.go
pub fn autoscaler_to_v2(object: &mut Value) {
    let mut metrics = match take_annotation(object, METRICS) {
        Some(Value::Array(metrics)) => metrics,
        _ => Vec::new(),
    };
    if let Some(target) = get::remove(object, "spec.targetCPUUtilizationPercentage").filter(|v| !v.is_null())
    {
        let target = json!({"type": "Utilization", "averageUtilization": target});
        metrics.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "target": target}}));
    }
    if !metrics.is_empty() {
        get::set(object, "spec.metrics", metrics);
    }
    if let Some(behavior) = take_annotation(object, BEHAVIOR) {
        get::set(object, "spec.behavior", behavior);
    }
    if let Some(conditions) = take_annotation(object, CONDITIONS) {
        get::set(object, "status.conditions", conditions);
    }
    let mut current = match take_annotation(object, CURRENT_METRICS) {
        Some(Value::Array(metrics)) => metrics,
        _ => Vec::new(),
    };
    if let Some(value) =
        get::remove(object, "status.currentCPUUtilizationPercentage").filter(|v| !v.is_null())
    {
        let value = json!({"averageUtilization": value});
        current.insert(0, json!({"type": "Resource", "resource": {"name": "cpu", "current": value}}));
    }
    if !current.is_empty() {
        get::set(object, "status.currentMetrics", current);
    }
    if get::at(object, "metadata.annotations").and_then(Value::as_object).is_some_and(Map::is_empty) {
        get::remove(object, "metadata.annotations");
    }
    // Version 2 does not tell of none.
    if get::int(object, "status.currentReplicas") == Some(0) {
        get::remove(object, "status.currentReplicas");
    }
}

fn is_cpu_utilization(metric: &Value, value: &str) -> bool {
    get::text(metric, "type") == "Resource"
        && get::text(metric, "resource.name") == "cpu"
        && get::has(metric, &format!("resource.{value}.averageUtilization"))
}

fn autoscaler_to_v1(object: &mut Value) {
    type Way = (&'static str, &'static str, &'static str, &'static str);
    const WAYS: [Way; 2] = [
        ("spec.metrics", "target", "spec.targetCPUUtilizationPercentage", METRICS),
        ("status.currentMetrics", "current", "status.currentCPUUtilizationPercentage", CURRENT_METRICS),
    ];
    for (from, value, to, annotation) in WAYS {
        let Some(Value::Array(mut metrics)) = get::remove(object, from) else { continue };
        if let Some(index) = metrics.iter().position(|m| is_cpu_utilization(m, value)) {
            let metric = metrics.remove(index);
            let percent = get::at(&metric, &format!("resource.{value}.averageUtilization")).cloned();
            get::set(object, to, percent.unwrap_or_default());
        }
        if !metrics.is_empty() {
            put_annotation(object, annotation, &Value::Array(metrics));
        }
    }
    if get::has(object, "status") {
        get::default_absent(object, "status.currentReplicas", 0);
    }
    if let Some(behavior) = get::remove(object, "spec.behavior").filter(|v| !v.is_null()) {
        put_annotation(object, BEHAVIOR, &behavior);
    }
    if let Some(conditions) = get::remove(object, "status.conditions").filter(|v| !v.is_null()) {
        put_annotation(object, CONDITIONS, &conditions);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let cases = [
            (
                "autoscaling/v1",
                json!({"apiVersion": "autoscaling/v1", "metadata": {"name": "a"},
                    "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}}),
                "/spec/metrics/0/resource/target/averageUtilization",
                json!(50),
            ),
            (
                "events.k8s.io/v1",
                json!({"apiVersion": "events.k8s.io/v1", "metadata": {"name": "a"}, "note": "n",
                    "regarding": {"kind": "Pod"}, "reportingController": "c"}),
                "/involvedObject/kind",
                json!("Pod"),
            ),
        ];
        for (group_version, object, stored_at, stored) in cases {
            let (group, version) = group_version.split_once('/').unwrap();
            let def = crate::table().iter().find(|d| d.group == group && d.version == version).unwrap();
            assert!(is_converted(def));
            let mut converted = object.clone();
            to_storage(def, &mut converted);
            assert_eq!(converted.pointer(stored_at), Some(&stored), "{converted}");
            assert_eq!(converted["apiVersion"], storage_api_version(def));
            from_storage(def, &mut converted);
            assert_eq!(converted, object);
        }
    }
}
