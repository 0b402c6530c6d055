//! What an object costs, by the names that quotas limit.
//!
//! Upstream: pkg/quota/v1/evaluator/core

use apimachinery::GroupVersionResource;
use apimachinery::quantity::Quantity;
use serde_json::Value;

use super::quantities::{Quantities, of_pod};
use crate::get::{at, flag, int, list, text, texts};

fn one() -> Quantity {
    Quantity::from_value_i64(1)
}

fn count(n: usize) -> Quantity {
    Quantity::from_value_i64(i64::try_from(n).unwrap_or(i64::MAX))
}

/// `count/deployments.apps`, `count/pods`.
pub fn count_name(gvr: &GroupVersionResource) -> String {
    format!("count/{}", gvr.group_resource())
}

/// What the object uses.
pub fn usage(gvr: &GroupVersionResource, object: &Value) -> Quantities {
    let mut used = Quantities::default();
    used.insert(count_name(gvr), one());
    match (&*gvr.group, &*gvr.resource) {
        ("", "pods") => pod_usage(object, &mut used),
        ("", "services") => service_usage(object, &mut used),
        ("", "persistentvolumeclaims") => claim_usage(object, &mut used),
        ("resource.k8s.io", "resourceclaims") => device_usage(object, &mut used),
        ("", alias @ ("configmaps" | "resourcequotas" | "replicationcontrollers" | "secrets")) => {
            used.insert(alias, one());
        }
        _ => {}
    }
    used
}

fn pod_usage(pod: &Value, used: &mut Quantities) {
    if matches!(text(pod, "status.phase"), "Failed" | "Succeeded") {
        return;
    }
    used.insert("pods", one());
    used.add(&computed(&of_pod(pod, "requests"), &of_pod(pod, "limits")));
}

/// Requests and limits under the names of quotas.
fn computed(requests: &Quantities, limits: &Quantities) -> Quantities {
    let mut used = Quantities::default();
    for (name, quantity) in requests.iter() {
        match name {
            "cpu" | "memory" | "ephemeral-storage" => {
                used.insert(name, *quantity);
                used.insert(format!("requests.{name}"), *quantity);
            }
            _ if name.starts_with("hugepages-") => {
                used.insert(name, *quantity);
                used.insert(format!("requests.{name}"), *quantity);
            }
            // Devices and other extended resources have a domain.
            _ if name.contains('/') => used.insert(format!("requests.{name}"), *quantity),
            _ => {}
        }
    }
    for name in ["cpu", "memory", "ephemeral-storage"] {
        if let Some(quantity) = limits.get(name) {
            used.insert(format!("limits.{name}"), *quantity);
        }
    }
    used
}

fn service_usage(service: &Value, used: &mut Quantities) {
    let ports = list(service, "spec.ports");
    used.insert("services", one());
    let (balancers, node_ports) = match text(service, "spec.type") {
        "NodePort" => (0, ports.len()),
        "LoadBalancer" if flag(service, "spec.allocateLoadBalancerNodePorts") == Some(false) => {
            (1, ports.iter().filter(|port| int(port, "nodePort").unwrap_or_default() != 0).count())
        }
        "LoadBalancer" => (1, ports.len()),
        _ => (0, 0),
    };
    used.insert("services.loadbalancers", count(balancers));
    used.insert("services.nodeports", count(node_ports));
}

const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// The StorageClass that a claim asks for.
pub fn class_of(claim: &Value) -> &str {
    let annotation = at(claim, "metadata.annotations").and_then(|all| all.get(CLASS_ANNOTATION));
    annotation.and_then(Value::as_str).unwrap_or_else(|| text(claim, "spec.storageClassName"))
}

fn claim_usage(claim: &Value, used: &mut Quantities) {
    used.insert("persistentvolumeclaims", one());
    let class = class_of(claim);
    let of_class = |what: &str| format!("{class}.storageclass.storage.k8s.io/{what}");
    if !class.is_empty() {
        used.insert(of_class("persistentvolumeclaims"), one());
    }
    let mut storage = Quantities::read(claim, "spec.resources.requests");
    storage.retain(|name, _| name == "storage");
    if storage.is_empty() {
        return;
    }
    // A claim that is being made smaller again still holds what was allocated.
    let mut allocated = Quantities::read(claim, "status.allocatedResources");
    allocated.retain(|name, _| name == "storage");
    storage.raise(&allocated);
    if let Some(size) = storage.get("storage") {
        used.insert("requests.storage", *size);
        if !class.is_empty() {
            used.insert(of_class("requests.storage"), *size);
        }
    }
}

const OF_DEVICE_CLASS: &str = ".deviceclass.resource.k8s.io/devices";
/// Who asks for all devices of a class may get so many.
///
/// Upstream: staging/src/k8s.io/api/resource/v1/types.go AllocationResultsMaxSize
const ALL_DEVICES: i64 = 32;

/// The devices that a claim may get, by class; of alternatives the one with the most.
///
/// Upstream: pkg/quota/v1/evaluator/core/resource_claims.go Usage
fn device_usage(claim: &Value, used: &mut Quantities) {
    let devices = |request: &Value| {
        let number = match text(request, "allocationMode") {
            "ExactCount" | "" => int(request, "count").unwrap_or(1),
            "All" => ALL_DEVICES,
            _ => 0,
        };
        let name = format!("{}{OF_DEVICE_CLASS}", text(request, "deviceClassName"));
        (name, count(usize::try_from(number).unwrap_or(0)))
    };
    for request in list(claim, "spec.devices.requests") {
        let mut asked = Quantities::default();
        let exactly = at(request, "exactly").into_iter();
        for one in exactly.chain(list(request, "firstAvailable")) {
            let mut of_one = Quantities::default();
            let (name, number) = devices(one);
            of_one.insert(name, number);
            asked.raise(&of_one);
        }
        used.add(&asked);
    }
}

/// Whether a name of a quota is about the resource of the request.
pub fn concerns(gvr: &GroupVersionResource, name: &str) -> bool {
    if name == count_name(gvr) {
        return true;
    }
    match (&*gvr.group, &*gvr.resource) {
        ("", "pods") => {
            let plain =
                name.strip_prefix("requests.").or_else(|| name.strip_prefix("limits.")).unwrap_or(name);
            matches!(plain, "cpu" | "memory" | "ephemeral-storage")
                || name == "pods"
                || plain.starts_with("hugepages-")
                || (name.starts_with("requests.") && plain.contains('/'))
        }
        ("", "services") => matches!(name, "services" | "services.loadbalancers" | "services.nodeports"),
        ("", "persistentvolumeclaims") => {
            let own = |name: &str| matches!(name, "persistentvolumeclaims" | "requests.storage");
            own(name) || name.split_once(".storageclass.storage.k8s.io/").is_some_and(|(_, what)| own(what))
        }
        ("resource.k8s.io", "resourceclaims") => name.ends_with(OF_DEVICE_CLASS),
        ("", alias @ ("configmaps" | "resourcequotas" | "replicationcontrollers" | "secrets")) => {
            name == alias
        }
        _ => false,
    }
}

/// What containers must say because a quota limits it; `None` when all is said.
pub fn unsaid(gvr: &GroupVersionResource, object: &Value, names: &[&str]) -> Option<String> {
    const REQUIRED: [&str; 6] =
        ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
    let by_pod =
        at(object, "spec.resources.requests").is_some() || at(object, "spec.resources.limits").is_some();
    if !gvr.group.is_empty() || gvr.resource != "pods" || by_pod {
        return None;
    }
    let mut messages = Vec::new();
    for name in REQUIRED.into_iter().filter(|name| names.contains(name)) {
        let containers = list(object, "spec.containers").iter().chain(list(object, "spec.initContainers"));
        let mut silent: Vec<&str> = containers
            .filter(|container| {
                let requests = Quantities::read(container, "resources.requests");
                computed(&requests, &Quantities::read(container, "resources.limits")).get(name).is_none()
            })
            .map(|container| text(container, "name"))
            .collect();
        if !silent.is_empty() {
            silent.sort_unstable();
            messages.push(format!("{name} for: {}", silent.join(",")));
        }
    }
    (!messages.is_empty()).then(|| format!("must specify {}", messages.join("; ")))
}

/// Whether all scopes of a quota hold for an object.
pub fn in_scope(quota: &Value, gvr: &GroupVersionResource, object: &Value) -> bool {
    let holds = |scope: &str, operator: &str, values: &[&str]| match (&*gvr.group, &*gvr.resource) {
        ("", "pods") => scope_holds(scope, operator, values, object),
        ("", "persistentvolumeclaims") if scope == "VolumeAttributesClass" => {
            class_holds(operator, values, object)
        }
        _ => false,
    };
    let plain = texts(quota, "spec.scopes").iter().all(|scope| holds(scope, "Exists", &[]));
    plain
        && list(quota, "spec.scopeSelector.matchExpressions").iter().all(|selector| {
            holds(text(selector, "scopeName"), text(selector, "operator"), &texts(selector, "values"))
        })
}

/// Whether a claim has, is to have or is getting a VolumeAttributesClass of these.
///
/// Upstream: pkg/quota/v1/evaluator/core/persistent_volume_claims.go pvcMatchesScopeFunc
fn class_holds(operator: &str, values: &[&str], claim: &Value) -> bool {
    let names = [
        "spec.volumeAttributesClassName",
        "status.currentVolumeAttributesClassName",
        "status.modifyVolumeStatus.targetVolumeAttributesClassName",
    ];
    let names: Vec<&str> =
        names.iter().map(|path| text(claim, path)).filter(|name| !name.is_empty()).collect();
    match operator {
        "In" => names.iter().any(|name| values.contains(name)),
        "NotIn" => names.is_empty() || names.iter().any(|name| !values.contains(name)),
        "DoesNotExist" => names.is_empty(),
        _ => !names.is_empty(),
    }
}

fn scope_holds(scope: &str, operator: &str, values: &[&str], pod: &Value) -> bool {
    let bounded = int(pod, "spec.activeDeadlineSeconds").is_some_and(|seconds| seconds >= 0);
    let best_effort = || {
        let mut containers = list(pod, "spec.containers").iter().chain(list(pod, "spec.initContainers"));
        containers.all(|container| {
            let says = |which| {
                let amounts = Quantities::read(container, which);
                amounts.iter().any(|(name, q)| matches!(name, "cpu" | "memory") && !q.is_zero())
            };
            !says("resources.requests") && !says("resources.limits")
        })
    };
    match scope {
        "Terminating" => bounded,
        "NotTerminating" => !bounded,
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => {
            let class = text(pod, "spec.priorityClassName");
            let among = values.contains(&class);
            match operator {
                "In" => !class.is_empty() && among,
                "NotIn" => !among,
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

fn crosses_namespaces(pod: &Value) -> bool {
    let crossing =
        |term: &Value| !list(term, "namespaces").is_empty() || at(term, "namespaceSelector").is_some();
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let path = |when: &str| format!("spec.affinity.{kind}.{when}DuringSchedulingIgnoredDuringExecution");
        list(pod, &path("required")).iter().any(crossing)
            || list(pod, &path("preferred"))
                .iter()
                .filter_map(|weighted| at(weighted, "podAffinityTerm"))
                .any(crossing)
    })
}
