//! NodeMetrics and PodMetrics: what nodes and pods use just now. They are measured when asked for, never stored. A
//! server that measures serves them beside [`crate::table`]; another may serve them in its place.
//!
//! Upstream: metrics/pkg/apis/metrics/v1beta1/types.go

use crate::prelude::*;

const VERBS: &[Verb] = &[Verb::Get, Verb::List];

pub fn rows() -> Vec<Arc<ResourceDef>> {
    let nodes = Row::cluster("metrics.k8s.io/v1beta1", "NodeMetrics", "nodes");
    let pods = Row::namespaced("metrics.k8s.io/v1beta1", "PodMetrics", "pods");
    [nodes, pods]
        .into_iter()
        .map(|row| row.verbs(VERBS).columns("Name,CPU,Memory,Window", cells).build())
        .collect()
}

fn cells(metrics: &Value, _now: i64) -> Vec<Cell> {
    let usage = |name: &str| text(metrics, &format!("usage.{name}"));
    cells![get::name(metrics), usage("cpu"), usage("memory"), text(metrics, "window")]
}
