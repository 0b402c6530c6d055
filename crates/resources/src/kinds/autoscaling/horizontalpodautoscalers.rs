//! HorizontalPodAutoscaler: as many replicas as the load asks for. Version 1 is a narrower view of version 2.

use super::validation::validate;
use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
        .short(&["hpa"])
        .category("all")
        .status()
        .columns(COLUMNS, cells)
        .strategy(Rules { default, validate, ..Rules::PLAIN })
        .build()
}

pub fn row_v1() -> Arc<ResourceDef> {
    Row::namespaced("autoscaling/v1", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
        .short(&["hpa"])
        .category("all")
        .status()
        .stored("v2")
        .columns(COLUMNS, |object, now| {
            let mut converted = object.clone();
            crate::convert::autoscaler_to_v2(&mut converted);
            cells(&converted, now)
        })
        .strategy(Rules { default: default_v1, validate: validate_v1, ..Rules::PLAIN })
        .build()
}

/// An autoscaler that names no metric goes by the processor, in either version.
fn default_v1(autoscaler: &mut Value) {
    get::default(autoscaler, "spec.minReplicas", 1);
    let metrics = autoscaler.pointer("/metadata/annotations/autoscaling.alpha.kubernetes.io~1metrics");
    if metrics.is_none() {
        get::default(autoscaler, "spec.targetCPUUtilizationPercentage", 80);
    }
}

fn validate_v1(autoscaler: &Value) -> Errors {
    let mut converted = autoscaler.clone();
    crate::convert::autoscaler_to_v2(&mut converted);
    validate(&converted)
}

const COLUMNS: &str = "Name,Reference,Targets,MinPods,MaxPods,Replicas,Age";

fn cells(autoscaler: &Value, now: i64) -> Vec<Cell> {
    cells![
        get::name(autoscaler),
        format!(
            "{}/{}",
            text(autoscaler, "spec.scaleTargetRef.kind"),
            text(autoscaler, "spec.scaleTargetRef.name")
        ),
        targets(autoscaler),
        print::plain_or(autoscaler, "spec.minReplicas", "<unset>"),
        count(autoscaler, "spec.maxReplicas"),
        count(autoscaler, "status.currentReplicas"),
        age(autoscaler, now),
    ]
}

/// Each metric as `current/wanted`.
fn targets(autoscaler: &Value) -> String {
    const SHOWN: usize = 2;
    let metrics = list(autoscaler, "spec.metrics");
    if metrics.is_empty() {
        return "<none>".to_owned();
    }
    let statuses = list(autoscaler, "status.currentMetrics");
    let texts: Vec<String> =
        metrics.iter().take(SHOWN).enumerate().map(|(i, m)| target(m, statuses.get(i))).collect();
    let joined = texts.join(", ");
    if metrics.len() > SHOWN { format!("{joined} + {} more...", metrics.len() - SHOWN) } else { joined }
}

fn target(metric: &Value, status: Option<&Value>) -> String {
    let source = match text(metric, "type") {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let wanted = |field: &str| at(metric, &format!("{source}.target.{field}"));
    let current = |field: &str| status.and_then(|s| at(s, &format!("{source}.current.{field}")));
    let shown = |value: Option<&Value>| value.map_or_else(|| "<unknown>".to_owned(), get::plain);
    let percent = |value: Option<&Value>, none: &str| {
        value.map_or_else(|| none.to_owned(), |v| format!("{}%", get::plain(v)))
    };
    if matches!(source, "resource" | "containerResource") {
        let name = text(metric, &format!("{source}.name"));
        return match wanted("averageValue") {
            Some(value) => format!("{name}: {}/{}", shown(current("averageValue")), get::plain(value)),
            None => format!(
                "{name}: {}/{}",
                percent(current("averageUtilization"), "<unknown>"),
                percent(wanted("averageUtilization"), "<auto>")
            ),
        };
    }
    match wanted("averageValue") {
        Some(value) if source == "pods" => {
            format!("{}/{}", shown(current("averageValue")), get::plain(value))
        }
        Some(value) => format!("{}/{} (avg)", shown(current("averageValue")), get::plain(value)),
        None => format!("{}/{}", shown(current("value")), shown(wanted("value"))),
    }
}

/// Upstream: pkg/apis/autoscaling/v2/defaults.go
pub fn default(autoscaler: &mut Value) {
    get::default(autoscaler, "spec.minReplicas", 1);
    if list(autoscaler, "spec.metrics").is_empty() {
        let cpu = json!([{"type": "Resource", "resource":
            {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        set(autoscaler, "spec.metrics", cpu);
    }
    if !has(autoscaler, "spec.behavior") {
        return;
    }
    let up = "spec.behavior.scaleUp";
    let down = "spec.behavior.scaleDown";
    get::default(autoscaler, &format!("{up}.stabilizationWindowSeconds"), 0);
    for rules in [up, down] {
        get::default_absent(autoscaler, &format!("{rules}.selectPolicy"), "Max");
    }
    let up_policies = json!([
        {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]);
    get::default(autoscaler, &format!("{up}.policies"), up_policies);
    let down_policies = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
    get::default(autoscaler, &format!("{down}.policies"), down_policies);
}
