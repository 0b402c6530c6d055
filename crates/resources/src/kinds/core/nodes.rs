//! Node: a machine that runs pods. Its kubelet makes it, status and all.

use crate::prelude::*;
use crate::strategy::{Context, Strategy, carry_over};
use crate::validate::{cidr, each, quantities, taint_effect};

pub fn row() -> Arc<ResourceDef> {
    const PROXY: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update];
    Row::cluster("v1", "Node", "nodes")
        .short(&["no"])
        .prefix("minions")
        .subresource("proxy", "v1", "NodeProxyOptions", PROXY)
        .status()
        .columns(
            "Name,Status,Roles,Age,Version,+Internal-IP,+External-IP,+OS-Image,+Kernel-Version,+Container-Runtime",
            cells,
        )
        .field("spec.unschedulable", |o| is_true(o, "spec.unschedulable").to_string())
        .strategy(Nodes)
        .build()
}

fn cells(node: &Value, now: i64) -> Vec<Cell> {
    let ready = list(node, "status.conditions").iter().rev().find(|c| text(c, "type") == "Ready");
    let mut status = match ready {
        None => "Unknown".to_owned(),
        Some(c) if text(c, "status") == "True" => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
    };
    if is_true(node, "spec.unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let address = |kind: &str| {
        let found = list(node, "status.addresses").iter().find(|a| text(a, "type") == kind);
        found.map_or("<none>", |a| text(a, "address"))
    };
    let mut kernel = print::or(node, "status.nodeInfo.kernelVersion", "<unknown>").to_owned();
    let architecture = text(node, "status.nodeInfo.architecture");
    if !architecture.is_empty() {
        kernel = format!("{kernel} ({architecture})");
    }
    cells![
        get::name(node),
        status,
        roles(node),
        age(node, now),
        text(node, "status.nodeInfo.kubeletVersion"),
        address("InternalIP"),
        address("ExternalIP"),
        print::or(node, "status.nodeInfo.osImage", "<unknown>"),
        kernel,
        print::or(node, "status.nodeInfo.containerRuntimeVersion", "<unknown>"),
    ]
}

/// Upstream: pkg/printers/internalversion/printers.go findNodeRoles
fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = get::entries(node, "metadata.labels")
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

struct Nodes;

impl Strategy for Nodes {
    fn warnings(&self, node: &Value, _old: Option<&Value>) -> Vec<String> {
        let named = !text(node, "spec.externalID").is_empty();
        let why = "spec.externalID: this field is deprecated, and is unused by Kubernetes";
        named.then(|| why.to_owned()).into_iter().collect()
    }

    fn default(&self, node: &mut Value) {
        if let Some(capacity) = at(node, "status.capacity").cloned() {
            get::default(node, "status.allocatable", capacity);
        }
        // The single and the plural form of the pod range are one field.
        let single = text(node, "spec.podCIDR").to_owned();
        let plural = list(node, "spec.podCIDRs").first().and_then(Value::as_str).map(str::to_owned);
        match (single.is_empty(), plural) {
            (false, first) if first.as_deref() != Some(&*single) => {
                set(node, "spec.podCIDRs", json!([single]));
            }
            (true, Some(first)) => set(node, "spec.podCIDR", first),
            _ => {}
        }
    }

    /// The kubelet registers its node together with its status.
    fn prepare_create(&self, _context: &Context, _node: &mut Value) {}

    fn validate(&self, node: &Value) -> Errors {
        let mut errors = validate_taints(node);
        for field in ["status.capacity", "status.allocatable"] {
            for (name, value) in get::entries(node, field) {
                errors.extend(quantities::non_negative(value, &path(field).key(name)));
            }
        }
        errors.extend(validate_features(node, &path("status.declaredFeatures")));
        let ranges = path("spec.podCIDRs");
        for (range, at) in get::items(node, "spec.podCIDRs", &ranges) {
            errors.extend(cidr(range.as_str().unwrap_or_default(), &at));
        }
        let given = get::texts(node, "spec.podCIDRs");
        let is_v6 = |range: &&&str| range.contains(':');
        let sixes = given.iter().filter(is_v6).count();
        if given.len() > 2 || given.len() == 2 && sixes != 1 {
            let detail = "may specify no more than one CIDR for each IP family";
            errors.push(Error::invalid(&ranges, given, detail));
        }
        errors
    }

    fn prepare_update(&self, _context: &Context, node: &mut Value, old: &Value) {
        carry_over(node, old, "status");
    }

    /// Upstream: pkg/apis/core/validation/validation.go ValidateNodeUpdate
    fn validate_update(&self, node: &Value, old: &Value) -> Errors {
        let mut errors = self.validate(node);
        let addresses = path("status.addresses");
        for (place, (address, at)) in get::items(node, "status.addresses", &addresses).iter().enumerate() {
            if list(node, "status.addresses")[..place].contains(address) {
                errors.push(Error::duplicate(at, (*address).clone()));
            }
        }
        let had_range = !list(old, "spec.podCIDRs").is_empty();
        if had_range && at(node, "spec.podCIDRs") != at(old, "spec.podCIDRs") {
            let detail = "node updates may not change podCIDR except from \"\" to valid";
            errors.push(Error::forbidden(&path("spec.podCIDRs"), detail));
        }
        let provider = text(old, "spec.providerID");
        if !provider.is_empty() && provider != text(node, "spec.providerID") {
            let detail = "node updates may not change providerID except from \"\" to valid";
            errors.push(Error::forbidden(&path("spec.providerID"), detail));
        }
        if text(node, "spec.externalID") != text(old, "spec.externalID") {
            errors.push(Error::forbidden(&path("spec.externalID"), "may not be updated"));
        }
        errors
    }
}

/// Features are listed once each, in order.
///
/// Upstream: pkg/apis/core/validation/validation.go validateNodeDeclaredFeatures
fn validate_features(node: &Value, path: &Path) -> Errors {
    let features = get::items(node, "status.declaredFeatures", path);
    let mut errors = Errors::new();
    for pair in features.windows(2) {
        let [(feature, _), (next, at)] = pair else { continue };
        let (feature, next) = (feature.as_str().unwrap_or_default(), next.as_str().unwrap_or_default());
        if feature == next {
            errors.push(Error::duplicate(at, next));
        } else if feature > next {
            errors.push(Error::invalid(at, next, "list must be sorted alphabetically"));
        }
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go validateNodeTaints, whose path says metadata
fn validate_taints(node: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut seen = Vec::new();
    for (taint, at) in get::items(node, "spec.taints", &path("metadata.taints")) {
        let (key, effect) = (text(taint, "key"), text(taint, "effect"));
        errors.extend(each(names::qualified_name(key), &at.child("key"), key));
        let messages = names::label_value(text(taint, "value"));
        if !messages.is_empty() {
            errors.push(Error::invalid(&at.child("value"), text(taint, "value"), messages.join(";")));
        }
        if effect.is_empty() {
            errors.push(Error::required(&at.child("effect"), ""));
        } else {
            errors.extend(taint_effect(effect, &at.child("effect")));
        }
        if seen.contains(&(key, effect)) {
            let mut duplicate = Error::duplicate(&at, taint.clone());
            duplicate.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(duplicate);
        }
        seen.push((key, effect));
    }
    errors
}
