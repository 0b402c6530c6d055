//! What is scheduled: upstream's workloads, by name.
//!
//! Upstream: test/integration/scheduler_perf, the performance-config.yaml of misc, affinity, topology_spreading and
//! volumes, and their templates

use serde_json::{Value, json};

/// Pods of one kind, in one namespace.
#[derive(Clone, Copy)]
pub struct Pods {
    pub namespace: &'static str,
    pub pod: fn() -> Value,
    pub count: usize,
}

pub struct Size {
    pub nodes: usize,
    /// What is there before the clock runs.
    pub before: Vec<Pods>,
    pub namespace: &'static str,
    pub pod: fn() -> Value,
    pub measured: usize,
}

/// What goes on beside the measured pods.
pub enum Churn {
    /// Makes one more pod each time.
    Pods(fn() -> Value),
    /// Makes a node, a pod and a Service, and takes them away the next time.
    Mixed,
}

pub struct Shape {
    pub name: &'static str,
    /// How many pods a second upstream asks of itself.
    pub upstream: Option<u32>,
    /// The values of the nodes' zone label, in turn.
    pub zones: &'static [&'static str],
    /// Pods there before, as (namespace, kind, how many for 10,000 pods to measure on 5,000 nodes).
    before: &'static [(&'static str, fn() -> Value, usize)],
    pod: fn() -> Value,
    namespace: &'static str,
    /// How many are measured, on 5,000 nodes.
    measured: usize,
    pub churn: Option<(Churn, std::time::Duration)>,
    /// One node is named and takes all pods.
    pub one_node: bool,
}

const PLAIN: Shape = Shape {
    name: "basic",
    upstream: Some(270),
    zones: &[],
    before: &[("bench-0", basic, 1_000)],
    pod: basic,
    namespace: "bench-1",
    measured: 10_000,
    churn: None,
    one_node: false,
};
const EACH_200_MS: std::time::Duration = std::time::Duration::from_millis(200);
const EACH_SECOND: std::time::Duration = std::time::Duration::from_secs(1);
const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";
pub const NAMED_NODE: &str = "scheduler-perf-node";

pub static SHAPES: &[Shape] = &[
    PLAIN,
    Shape {
        name: "node-affinity",
        upstream: Some(220),
        zones: &["zone1"],
        before: &[("bench-0", node_affinity, 5_000)],
        pod: node_affinity,
        ..PLAIN
    },
    Shape {
        name: "pod-affinity",
        upstream: Some(35),
        zones: &["zone1"],
        before: &[("bench-0", pod_affinity, 5_000)],
        pod: pod_affinity,
        ..PLAIN
    },
    Shape {
        name: "pod-anti-affinity",
        upstream: Some(60),
        before: &[("bench-0", pod_anti_affinity, 1_000)],
        pod: pod_anti_affinity,
        measured: 2_000,
        ..PLAIN
    },
    Shape {
        name: "preferred-affinity",
        upstream: Some(90),
        before: &[("bench-0", preferred_affinity, 5_000)],
        pod: preferred_affinity,
        measured: 5_000,
        ..PLAIN
    },
    Shape {
        name: "preferred-anti-affinity",
        upstream: Some(90),
        before: &[("bench-0", preferred_anti_affinity, 5_000)],
        pod: preferred_anti_affinity,
        measured: 5_000,
        ..PLAIN
    },
    Shape {
        name: "mixed-affinity",
        upstream: Some(140),
        zones: &["zone1"],
        before: &[
            ("bench-0", basic, 2_000),
            ("bench-0", pod_affinity, 2_000),
            ("bench-0", pod_anti_affinity, 2_000),
            ("bench-0", preferred_affinity, 2_000),
            ("bench-0", preferred_anti_affinity, 2_000),
        ],
        measured: 5_000,
        ..PLAIN
    },
    Shape {
        name: "spread",
        upstream: Some(85),
        zones: &["moon-1", "moon-2", "moon-3"],
        before: &[("bench-0", basic, 5_000)],
        pod: spread,
        measured: 5_000,
        ..PLAIN
    },
    Shape {
        name: "preferred-spread",
        upstream: Some(125),
        zones: &["moon-1", "moon-2", "moon-3"],
        before: &[("bench-0", basic, 5_000)],
        pod: preferred_spread,
        measured: 5_000,
        ..PLAIN
    },
    Shape {
        name: "preemption",
        upstream: None,
        before: &[("bench-0", low_priority, 20_000)],
        pod: high_priority,
        measured: 5_000,
        ..PLAIN
    },
    Shape {
        name: "beside-preemption",
        upstream: Some(160),
        before: &[("bench-0", low_priority, 20_000)],
        measured: 5_000,
        churn: Some((Churn::Pods(high_priority), EACH_200_MS)),
        ..PLAIN
    },
    Shape {
        name: "unschedulable",
        upstream: Some(170),
        before: &[("bench-0", basic, 100)],
        churn: Some((Churn::Pods(too_large), EACH_200_MS)),
        ..PLAIN
    },
    Shape {
        name: "mixed-churn",
        upstream: Some(265),
        before: &[],
        churn: Some((Churn::Mixed, EACH_SECOND)),
        ..PLAIN
    },
    Shape {
        name: "secrets",
        upstream: Some(260),
        before: &[("bench-0", secret, 1_000)],
        pod: secret,
        ..PLAIN
    },
    Shape { name: "daemonset", upstream: Some(390), before: &[], pod: daemon, one_node: true, ..PLAIN },
];

impl Shape {
    /// The shape for so many nodes and pods: what is there before keeps its proportion to the nodes.
    pub fn size(&self, nodes: usize, pods: usize) -> Size {
        let of = |count: usize| (count * nodes).div_ceil(5_000);
        let before = self.before.iter().map(|(namespace, pod, count)| Pods {
            namespace,
            pod: *pod,
            count: of(*count),
        });
        Size {
            nodes,
            before: before.collect(),
            namespace: self.namespace,
            pod: self.pod,
            measured: of(self.measured).min(pods),
        }
    }

    /// The node of this number, which has no taints and no kubelet.
    pub fn node(&self, number: usize) -> Value {
        let named = self.one_node && number == 0;
        let name = if named { NAMED_NODE.to_owned() } else { crate::body::name(number) };
        let mut labels = json!({ HOST: name });
        if let Some(zone) = self.zones.get(number % self.zones.len().max(1)) {
            labels[ZONE] = (*zone).into();
        }
        let amounts = json!({"pods": if named { "90000" } else { "110" }, "cpu": "4", "memory": "32Gi"});
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels},
            "status": {"capacity": amounts, "allocatable": amounts,
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}})
    }
}

/// A pod whose one container asks for these.
fn pod(cpu: &str, labels: Value, mut spec: Value) -> Value {
    let amounts = json!({"cpu": cpu, "memory": "500Mi"});
    spec["containers"] = json!([{"name": "pause", "image": "registry.k8s.io/pause:3.10.2",
        "ports": [{"containerPort": 80}], "resources": {"requests": amounts, "limits": amounts}}]);
    spec["automountServiceAccountToken"] = false.into();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": crate::body::NAME, "labels": labels},
        "spec": spec})
}

fn basic() -> Value {
    pod("100m", json!({}), json!({}))
}

fn required_nodes(term: Value) -> Value {
    let terms = json!({"nodeSelectorTerms": [term]});
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
}

fn node_affinity() -> Value {
    let zones = json!([{"key": ZONE, "operator": "In", "values": ["zone1", "zone2"]}]);
    pod("100m", json!({}), required_nodes(json!({ "matchExpressions": zones })))
}

fn daemon() -> Value {
    let name = json!([{"key": "metadata.name", "operator": "In", "values": [NAMED_NODE]}]);
    let mut pod = pod("100m", json!({}), required_nodes(json!({ "matchFields": name })));
    pod["spec"]["containers"][0].as_object_mut().map(|container| container.remove("resources"));
    pod
}

/// Who wants to be where pods of its own colour are, or are not.
fn near(field: &str, required: bool, colour: &str, topology: &str) -> Value {
    let term = json!({"labelSelector": {"matchLabels": {"color": colour}}, "topologyKey": topology,
        "namespaces": ["bench-0", "bench-1"]});
    let terms = match required {
        true => json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]}),
        false => json!({"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 1, "podAffinityTerm": term}]}),
    };
    pod("100m", json!({ "color": colour }), json!({"affinity": { field: terms }}))
}

fn pod_affinity() -> Value {
    near("podAffinity", true, "blue", ZONE)
}

fn pod_anti_affinity() -> Value {
    near("podAntiAffinity", true, "green", HOST)
}

fn preferred_affinity() -> Value {
    near("podAffinity", false, "red", HOST)
}

fn preferred_anti_affinity() -> Value {
    near("podAntiAffinity", false, "yellow", HOST)
}

fn spread_by(action: &str) -> Value {
    let constraint = json!({"maxSkew": 5, "topologyKey": ZONE, "whenUnsatisfiable": action,
        "labelSelector": {"matchLabels": {"color": "blue"}}});
    pod("100m", json!({"color": "blue"}), json!({"topologySpreadConstraints": [constraint]}))
}

fn spread() -> Value {
    spread_by("DoNotSchedule")
}

fn preferred_spread() -> Value {
    spread_by("ScheduleAnyway")
}

fn low_priority() -> Value {
    pod("900m", json!({}), json!({"terminationGracePeriodSeconds": 0}))
}

fn high_priority() -> Value {
    pod("3", json!({}), json!({"priorityClassName": HIGH}))
}

pub fn too_large() -> Value {
    pod("9", json!({}), json!({"priorityClassName": HIGH}))
}

fn secret() -> Value {
    let volumes = json!([{"name": "secret", "secret": {"secretName": "secret"}}]);
    pod("100m", json!({}), json!({ "volumes": volumes }))
}

/// The class that important pods name, and its priority.
pub const HIGH: &str = "bench-high";
pub const HIGH_PRIORITY: i32 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_shrink_with_the_nodes() {
        let basic = SHAPES[0].size(50, 10_000);
        assert_eq!((basic.before[0].count, basic.measured), (10, 100));
        assert_eq!(SHAPES[0].size(5_000, 300).measured, 300);
    }

    #[test]
    fn every_shape_fits_its_nodes() {
        for shape in SHAPES.iter().filter(|shape| !shape.one_node) {
            let size = shape.size(5_000, 10_000);
            let cpu =
                |pod: fn() -> Value| match pod()["spec"]["containers"][0]["resources"]["requests"]["cpu"]
                    .as_str()
                    .unwrap()
                {
                    "100m" => 100,
                    "900m" => 900,
                    _ => 0, // makes its own room
                };
            let before: usize = size.before.iter().map(|pods| cpu(pods.pod) * pods.count).sum();
            assert!(before + cpu(size.pod) * size.measured <= 4_000 * size.nodes, "{}", shape.name);
        }
    }
}
