//! Service: a stable address for some pods. Its addresses and node ports are allocated by the API server; what is
//! here keeps them when an update leaves them out, and drops them when the type no longer has them.

mod update;
mod validation;

pub use validation::addresses;

use crate::prelude::*;
use crate::strategy::{Context, Strategy};

pub fn row() -> Arc<ResourceDef> {
    const PROXY: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update];
    Row::namespaced("v1", "Service", "services")
        .short(&["svc"])
        .category("all")
        .prefix("services/specs")
        .subresource("proxy", "v1", "ServiceProxyOptions", PROXY)
        .status()
        .columns("Name,Type,Cluster-IP,External-IP,Port(s),Age,+Selector", cells)
        .fields(&["spec.clusterIP", "spec.type"])
        .strategy(Services)
        .build()
}

fn cells(service: &Value, now: i64) -> Vec<Cell> {
    let cluster_ip = list(service, "spec.clusterIPs").first().and_then(Value::as_str);
    let ports: Vec<String> = list(service, "spec.ports").iter().map(port).collect();
    cells![
        get::name(service),
        text(service, "spec.type"),
        cluster_ip.unwrap_or("<none>"),
        external_ip(service),
        if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") },
        age(service, now),
        print::labels(service, "spec.selector"),
    ]
}

fn port(port: &Value) -> String {
    let (number, protocol) = (number(port, "port"), text(port, "protocol"));
    match get::number(port, "nodePort") {
        0 => format!("{number}/{protocol}"),
        node_port => format!("{number}:{node_port}/{protocol}"),
    }
}

fn external_ip(service: &Value) -> String {
    let external = get::texts(service, "spec.externalIPs").join(",");
    match text(service, "spec.type") {
        "ClusterIP" | "NodePort" if external.is_empty() => "<none>".to_owned(),
        "ClusterIP" | "NodePort" => external,
        "LoadBalancer" => match (print::load_balancer(service), external) {
            (balancer, external) if balancer.is_empty() && external.is_empty() => "<pending>".to_owned(),
            (balancer, external) if external.is_empty() => balancer,
            (balancer, external) if balancer.is_empty() => external,
            (balancer, external) => format!("{balancer},{external}"),
        },
        "ExternalName" => text(service, "spec.externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

/// Whether clients outside the cluster reach it.
///
/// Upstream: pkg/api/service/util.go ExternallyAccessible
pub fn externally_accessible(service: &Value) -> bool {
    match text(service, "spec.type") {
        "NodePort" | "LoadBalancer" => true,
        "ClusterIP" => !list(service, "spec.externalIPs").is_empty(),
        _ => false,
    }
}

/// Whether a load balancer asks the nodes which of them have endpoints.
pub fn needs_health_check(service: &Value) -> bool {
    text(service, "spec.type") == "LoadBalancer" && text(service, "spec.externalTrafficPolicy") == "Local"
}

/// Upstream: pkg/apis/core/v1/defaults.go SetDefaults_Service
fn default(service: &mut Value) {
    get::default(service, "spec.sessionAffinity", "None");
    match text(service, "spec.sessionAffinity") {
        "None" => {
            get::remove(service, "spec.sessionAffinityConfig");
        }
        "ClientIP" => get::default(service, "spec.sessionAffinityConfig.clientIP.timeoutSeconds", 10800),
        _ => {}
    }
    get::default(service, "spec.type", "ClusterIP");
    for port in get::list_mut(service, "spec.ports") {
        get::default(port, "protocol", "TCP");
        let unset = match port.get("targetPort") {
            None | Some(Value::Null) => true,
            Some(Value::String(name)) => name.is_empty(),
            Some(number) => number.as_i64() == Some(0),
        };
        if unset {
            let number = port.get("port").cloned().unwrap_or_default();
            set(port, "targetPort", number);
        }
    }
    if externally_accessible(service) {
        get::default(service, "spec.externalTrafficPolicy", "Cluster");
    }
    if matches!(text(service, "spec.type"), "NodePort" | "LoadBalancer" | "ClusterIP") {
        get::default_absent(service, "spec.internalTrafficPolicy", "Cluster");
    }
    if text(service, "spec.type") == "LoadBalancer" {
        get::default(service, "spec.allocateLoadBalancerNodePorts", true);
        for ingress in get::list_mut(service, "status.loadBalancer.ingress") {
            if !text(ingress, "ip").is_empty() {
                get::default(ingress, "ipMode", "VIP");
            }
        }
    }
}

struct Services;

/// Upstream: pkg/api/service/warnings.go GetWarningsForService
fn warnings(service: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut warn = |when: bool, what: &str| {
        if when {
            warnings.push(what.to_owned());
        }
    };
    let annotated = get::entries(service, "metadata.annotations")
        .any(|(key, _)| key == "service.kubernetes.io/topology-aware-hints");
    warn(
        annotated,
        "annotation service.kubernetes.io/topology-aware-hints is deprecated, please use \
         service.kubernetes.io/topology-mode instead",
    );
    let kind = text(service, "spec.type");
    let headless = kind == "ClusterIP" && text(service, "spec.clusterIP") == "None";
    let external = !list(service, "spec.externalIPs").is_empty();
    let by_name = kind == "ExternalName";
    let balanced = !text(service, "spec.loadBalancerIP").is_empty();
    warn(headless && balanced, "spec.loadBalancerIP is ignored for headless services");
    warn(headless && external, "spec.externalIPs is ignored for headless services");
    let affine = text(service, "spec.sessionAffinity") != "None";
    warn(headless && affine, "spec.SessionAffinity is ignored for headless services");
    let deprecated = "spec.externalIPs is deprecated and may no longer be implemented in some clusters";
    warn(external && !headless && !by_name, deprecated);
    warn(by_name && external, "spec.externalIPs is ignored when spec.type is \"ExternalName\"");
    let named = !text(service, "spec.externalName").is_empty();
    warn(named && !by_name, "spec.externalName is ignored when spec.type is not \"ExternalName\"");
    warn(
        text(service, "spec.trafficDistribution") == "PreferClose",
        "spec.trafficDistribution: \"PreferClose\" is deprecated; use \"PreferSameZone\"",
    );
    warnings
}

impl Strategy for Services {
    fn warnings(&self, service: &Value, _old: Option<&Value>) -> Vec<String> {
        warnings(service)
    }

    fn default(&self, service: &mut Value) {
        default(service);
    }

    fn prepare_create(&self, _context: &Context, service: &mut Value) {
        set(service, "status", json!({"loadBalancer": {}}));
        update::normalize_cluster_ips(service, None);
        update::drop_type_dependent(service, None);
    }

    fn validate(&self, service: &Value) -> Errors {
        validation::validate(service)
    }

    /// Upstream: RelaxedServiceNameValidation is on by default in 1.36.
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_label(name)
    }

    fn prepare_update(&self, _context: &Context, service: &mut Value, old: &Value) {
        crate::strategy::carry_over(service, old, "status");
        update::normalize_cluster_ips(service, Some(old));
        update::keep_allocated(service, old);
        update::drop_type_dependent(service, Some(old));
    }

    fn validate_update(&self, service: &Value, old: &Value) -> Errors {
        let mut errors = validation::validate_change(service, old);
        errors.extend(validation::validate(service));
        errors
    }

    fn allow_create_on_update(&self) -> bool {
        true
    }
}
