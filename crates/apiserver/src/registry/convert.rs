//! The few kinds that are served in more versions than the one that is stored: events, which are one thing under
//! two groups, and HorizontalPodAutoscalers.

use apimachinery::GroupVersionKind;
use serde_json::{Map, Value, json};

/// Events: the names in the core group, and those in `events.k8s.io`.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// Makes an object the same object in another version of its kind. Objects that already are stay as they are.
pub fn convert(object: &mut Value, to: &GroupVersionKind) {
    let api_version = to.group_version().to_string();
    let Some(fields) = object.as_object_mut() else { return };
    if fields.get("apiVersion").and_then(Value::as_str) == Some(api_version.as_str()) {
        return;
    }
    match (&*to.kind, &*to.group, &*to.version) {
        ("Event", "events.k8s.io", _) => EVENT_FIELDS.iter().for_each(|(core, events)| rename(fields, core, events)),
        ("Event", _, _) => EVENT_FIELDS.iter().for_each(|(core, events)| rename(fields, events, core)),
        ("HorizontalPodAutoscaler", _, "v1") => autoscaler_to_v1(fields),
        ("HorizontalPodAutoscaler", _, "v2") => autoscaler_to_v2(fields),
        _ => {}
    }
    fields.insert("apiVersion".into(), api_version.into());
    fields.insert("kind".into(), to.kind.to_string().into());
}

fn rename(fields: &mut Map<String, Value>, from: &str, to: &str) {
    if let Some(value) = fields.remove(from) {
        fields.insert(to.to_owned(), value);
    }
}

/// What v1 has no field for travels in annotations, so that it survives a client that reads and writes v1.
///
/// Upstream: pkg/apis/autoscaling/v1/conversion.go
const IN_ANNOTATIONS: &[(&str, &str, &str)] = &[
    ("spec", "metrics", "autoscaling.alpha.kubernetes.io/metrics"),
    ("spec", "behavior", "autoscaling.alpha.kubernetes.io/behavior"),
    ("status", "conditions", "autoscaling.alpha.kubernetes.io/conditions"),
    ("status", "currentMetrics", "autoscaling.alpha.kubernetes.io/current-metrics"),
];

fn cpu_utilization(metric: &Value, side: &str) -> Option<Value> {
    let resource = metric.get("resource").filter(|r| r["name"] == "cpu")?;
    resource[side]["averageUtilization"].as_i64().map(Value::from)
}

fn autoscaler_to_v1(fields: &mut Map<String, Value>) {
    for (part, name, annotation) in IN_ANNOTATIONS {
        let Some(mut value) = fields.get_mut(*part).and_then(Value::as_object_mut).and_then(|p| p.remove(*name)) else {
            continue;
        };
        let (side, field) = match *name {
            "metrics" => ("target", "targetCPUUtilizationPercentage"),
            _ => ("current", "currentCPUUtilizationPercentage"),
        };
        if let (true, Some(metrics)) = (name.to_ascii_lowercase().ends_with("metrics"), value.as_array_mut())
            && let Some(at) = metrics.iter().position(|m| cpu_utilization(m, side).is_some())
        {
            let utilization = cpu_utilization(&metrics.remove(at), side);
            fields[*part][field] = utilization.unwrap_or_default();
            if metrics.is_empty() {
                continue;
            }
        }
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
            annotations[*annotation] = value.to_string().into();
        }
    }
}

fn autoscaler_to_v2(fields: &mut Map<String, Value>) {
    for (part, name, annotation) in IN_ANNOTATIONS {
        let annotations = fields.get_mut("metadata").and_then(|m| m.get_mut("annotations"));
        let text = annotations.and_then(Value::as_object_mut).and_then(|a| a.remove(*annotation));
        let value = text.as_ref().and_then(Value::as_str).and_then(|text| serde_json::from_str(text).ok());
        if let (Some(value), Some(part)) = (value, fields.get_mut(*part).and_then(Value::as_object_mut)) {
            part.insert((*name).to_owned(), value);
        }
    }
    let sides = [
        ("spec", "metrics", "targetCPUUtilizationPercentage", "target"),
        ("status", "currentMetrics", "currentCPUUtilizationPercentage", "current"),
    ];
    for (part, name, field, side) in sides {
        let Some(part) = fields.get_mut(part).and_then(Value::as_object_mut) else { continue };
        let Some(utilization) = part.remove(field) else { continue };
        let mut value = json!({"averageUtilization": utilization});
        if side == "target" {
            value["type"] = "Utilization".into();
        }
        let metric = json!({"type": "Resource", "resource": {"name": "cpu", (side): value}});
        if let Some(metrics) = part.entry(name).or_insert_with(|| json!([])).as_array_mut() {
            metrics.insert(0, metric);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_comes_back_the_same_from_another_version() {
        let event = json!({
            "apiVersion": "v1", "kind": "Event", "message": "m", "count": 2, "involvedObject": {"name": "p"},
        });
        let autoscaler = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"annotations": {}},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}},
                {"type": "Pods", "pods": {"x": 1}},
            ]},
        });
        for (object, there, back) in [
            (event, ("events.k8s.io", "v1"), ("", "v1")),
            (autoscaler, ("autoscaling", "v1"), ("autoscaling", "v2")),
        ] {
            let kind = object["kind"].as_str().unwrap().to_owned();
            let mut other = object.clone();
            convert(&mut other, &GroupVersionKind::new(there.0, there.1, kind.clone()));
            assert_ne!(other, object);
            convert(&mut other, &GroupVersionKind::new(back.0, back.1, kind));
            assert_eq!(other, object);
        }
    }
}
