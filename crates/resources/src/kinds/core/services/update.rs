//! What an update of a Service keeps and drops.
//!
//! Upstream: pkg/registry/core/service/{strategy,storage/storage}.go patchAllocatedValues, dropTypeDependentFields,
//! pkg/registry/core/service/storage/alloc.go normalizeClusterIPs

use crate::prelude::*;

/// Makes `clusterIP` and `clusterIPs` say the same, following the one that the client changed.
pub fn normalize_cluster_ips(service: &mut Value, old: Option<&Value>) {
    let single = text(service, "spec.clusterIP").to_owned();
    let Some(old) = old else {
        if !single.is_empty() && list(service, "spec.clusterIPs").is_empty() {
            set(service, "spec.clusterIPs", json!([single]));
        }
        return;
    };
    let old_single = text(old, "spec.clusterIP");
    let same_plural = at(service, "spec.clusterIPs") == at(old, "spec.clusterIPs");
    if single == old_single {
        return;
    }
    if single.is_empty() {
        if same_plural {
            get::remove(service, "spec.clusterIPs");
        }
    } else if same_plural || list(service, "spec.clusterIPs").is_empty() {
        set(service, "spec.clusterIPs", json!([single]));
    }
}

fn has_cluster_ip(service: &Value) -> bool {
    matches!(text(service, "spec.type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn has_node_ports(service: &Value) -> bool {
    match text(service, "spec.type") {
        "NodePort" => true,
        "LoadBalancer" => get::flag(service, "spec.allocateLoadBalancerNodePorts").unwrap_or(true),
        _ => false,
    }
}

/// Fills what the client left out with what was allocated before.
pub fn keep_allocated(service: &mut Value, old: &Value) {
    if has_cluster_ip(service) && has_cluster_ip(old) {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            let at_field = format!("spec.{field}");
            let unset = text(service, &at_field).is_empty() && list(service, &at_field).is_empty();
            if unset && let Some(value) = at(old, &at_field).cloned() {
                set(service, &at_field, value);
            }
        }
    }
    if has_node_ports(service) && has_node_ports(old) {
        keep_node_ports(service, old);
    }
    let keeps_health_check = super::needs_health_check(service) && super::needs_health_check(old);
    if keeps_health_check && number(service, "spec.healthCheckNodePort") == 0 {
        let port = number(old, "spec.healthCheckNodePort");
        set(service, "spec.healthCheckNodePort", port);
    }
}

/// A port keeps its node port, recognised by its name, unless another port took it.
fn keep_node_ports(service: &mut Value, old: &Value) {
    let node_ports = |service: &Value| -> Vec<i64> {
        list(service, "spec.ports").iter().map(|p| number(p, "nodePort")).filter(|port| *port != 0).collect()
    };
    let (before, mut taken) = (node_ports(old), node_ports(service));
    taken.retain(|port| before.contains(port));
    for port in get::list_mut(service, "spec.ports") {
        if number(port, "nodePort") != 0 {
            continue;
        }
        let same = |o: &&Value| text(o, "name") == text(port, "name");
        let kept = list(old, "spec.ports").iter().rfind(same).map_or(0, |o| number(o, "nodePort"));
        if kept != 0 && !taken.contains(&kept) {
            set(port, "nodePort", kept);
        }
    }
}

/// Drops what the new type has no use for, unless the client set it just now, which validation then reports.
pub fn drop_type_dependent(service: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    let unchanged = |service: &Value, field: &str| at(service, field) == at(old, field);
    if has_cluster_ip(old) && !has_cluster_ip(service) && unchanged(service, "spec.clusterIPs") {
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            get::remove(service, &format!("spec.{field}"));
        }
    }
    let ports = |service: &Value| -> Vec<i64> {
        list(service, "spec.ports").iter().map(|p| number(p, "nodePort")).collect()
    };
    let needs_ports = matches!(text(service, "spec.type"), "NodePort" | "LoadBalancer");
    if !needs_ports && ports(service) == ports(old) {
        get::list_mut(service, "spec.ports").for_each(|port| {
            get::remove(port, "nodePort");
        });
    }
    if super::needs_health_check(old)
        && !super::needs_health_check(service)
        && unchanged(service, "spec.healthCheckNodePort")
    {
        get::remove(service, "spec.healthCheckNodePort");
    }
    let balancer = |service: &Value| text(service, "spec.type") == "LoadBalancer";
    if balancer(old) && !balancer(service) {
        for field in ["spec.allocateLoadBalancerNodePorts", "spec.loadBalancerClass"] {
            if unchanged(service, field) {
                get::remove(service, field);
            }
        }
    }
    if super::externally_accessible(old)
        && !super::externally_accessible(service)
        && unchanged(service, "spec.externalTrafficPolicy")
    {
        get::remove(service, "spec.externalTrafficPolicy");
    }
}
