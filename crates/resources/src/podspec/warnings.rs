//! What is likely a mistake in a pod, or a field that will go.
//!
//! Upstream: pkg/api/pod/warnings.go warningsForPodSpecAndMeta

use std::collections::BTreeSet;
use std::fmt::{self, Display};

use apimachinery::names;
use serde_json::Value;

use crate::get::{at, entries, has, int, list, number, text, texts};
use crate::validate::quantities;

/// The lists of containers, in the order in which upstream visits them.
const CONTAINERS: &[&str] = &["initContainers", "containers", "ephemeralContainers"];
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// The warnings for the template of a workload.
pub fn template_warnings(object: &Value) -> Vec<String> {
    template_warnings_at(object, "spec.template")
}

/// The warnings for a template of pods at a path of an object.
pub fn template_warnings_at(object: &Value, path: &str) -> Vec<String> {
    let part = |field: &str| at(object, &format!("{path}.{field}")).unwrap_or(&Value::Null);
    warnings(part("spec"), part("metadata"), &format!("{path}.spec"))
}

/// The warnings for a pod spec at a path such as `spec` or `spec.template.spec`.
pub fn warnings(spec: &Value, metadata: &Value, at_spec: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    node_labels(spec, at_spec, &mut warnings);
    volume_plugins(spec, at_spec, &mut warnings);
    overlapping_paths(spec, &mut warnings);
    let aliases = list(spec, "hostAliases").iter().map(|alias| text(alias, "ip"));
    duplicates(
        aliases,
        |at, ip| format!("{at_spec}.hostAliases[{at}].ip: duplicate ip {ip:?}"),
        &mut warnings,
    );
    let secrets = || list(spec, "imagePullSecrets").iter().map(|secret| text(secret, "name"));
    let told =
        |at: usize, name: &str| format!("{at_spec}.imagePullSecrets[{at}].name: duplicate name {name:?}");
    duplicates(secrets(), told, &mut warnings);
    let unnamed = secrets().enumerate().filter(|(_, name)| name.is_empty());
    warnings.extend(
        unnamed
            .map(|(at, name)| format!("{at_spec}.imagePullSecrets[{at}].name: invalid empty name {name:?}")),
    );
    for name in ["memory", "ephemeral-storage"] {
        let value = spec.get("overhead").and_then(|overhead| overhead.get(name));
        warnings.extend(fraction(value, format_args!("{at_spec}.overhead[{name}]")));
    }
    let containers = containers(spec, &at_spec);
    profile_annotations(spec, metadata, at_spec, &containers, &mut warnings);
    for (container, at) in &containers {
        container_warnings(container, at, &mut warnings);
    }
    port_warnings(&containers, &mut warnings);
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        warnings.push(format!(
            "{at_spec}.terminationGracePeriodSeconds: must be >= 0; negative values are invalid and will be treated as 1"
        ));
    }
    affinity(spec, at_spec, &mut warnings);
    warnings
}

/// Where an item stands, written only when there is something to say of it.
#[derive(Clone, Copy)]
struct Place<'a> {
    at: &'a dyn Display,
    field: &'static str,
    index: usize,
}

impl Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}[{}]", self.at, self.field, self.index)
    }
}

/// The items of a list, and where each stands.
fn placed<'a>(
    object: &'a Value,
    field: &'static str,
    at: &'a dyn Display,
) -> impl Iterator<Item = (&'a Value, Place<'a>)> {
    list(object, field).iter().enumerate().map(move |(index, item)| (item, Place { at, field, index }))
}

fn containers<'a>(spec: &'a Value, at_spec: &'a &str) -> Vec<(&'a Value, Place<'a>)> {
    CONTAINERS.iter().flat_map(|field| placed(spec, field, at_spec)).collect()
}

/// Why a label of nodes should no longer be used.
///
/// Upstream: pkg/api/node/util.go deprecatedNodeLabels
fn deprecation(label: &str) -> Option<&'static str> {
    Some(match label {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        "app.kubernetes.io/created-by" => "deprecated since v1.9",
        "scheduler.alpha.kubernetes.io/preferAvoidPods" => {
            "deprecated since v1.22; use Taints and Tolerations instead"
        }
        "node-role.kubernetes.io/master" => "use \"node-role.kubernetes.io/control-plane\" instead",
        _ => return None,
    })
}

fn node_labels(spec: &Value, at_spec: &str, warnings: &mut Vec<String>) {
    for (label, _) in entries(spec, "nodeSelector") {
        warnings.extend(deprecation(label).map(|why| format!("{at_spec}.nodeSelector[{label}]: {why}")));
    }
    if let Some(affinity) = at(spec, "affinity.nodeAffinity") {
        let path = format!("{at_spec}.affinity.nodeAffinity");
        let required = format!("{path}.{REQUIRED}.nodeSelectorTerms");
        for (index, term) in list(affinity, &format!("{REQUIRED}.nodeSelectorTerms")).iter().enumerate() {
            warnings.extend(node_term(term, false, &format!("{required}[{index}]")));
        }
        for (index, term) in list(affinity, PREFERRED).iter().enumerate() {
            let preference = term.get("preference").unwrap_or(&Value::Null);
            warnings.extend(node_term(preference, true, &format!("{path}.{PREFERRED}[{index}].preference")));
        }
    }
    for (constraint, path) in placed(spec, "topologySpreadConstraints", &at_spec) {
        let key = text(constraint, "topologyKey");
        warnings.extend(deprecation(key).map(|why| format!("{path}.topologyKey: {key} is {why}")));
        warnings.extend(matches_nothing(constraint, path));
    }
}

/// The warnings for what nodes are asked for.
///
/// Upstream: pkg/api/node/util.go GetWarningsForNodeSelectorTerm
pub fn node_term(term: &Value, check_values: bool, path: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    for (index, expression) in list(term, "matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{index}]");
        let key = text(expression, "key");
        warnings.extend(deprecation(key).map(|why| format!("{path}.key: {key} is {why}")));
        for (index, value) in texts(expression, "values").into_iter().enumerate().filter(|_| check_values) {
            let wrong = names::label_value(value).into_iter();
            warnings.extend(wrong.map(|why| format!("{path}.values[{index}]: {value} is invalid, {why}")));
        }
    }
    warnings
}

fn matches_nothing(term: &Value, path: impl Display) -> Option<String> {
    let nothing = || format!("{path}.labelSelector: a null labelSelector results in matching no pod");
    (!has(term, "labelSelector")).then(nothing)
}

fn affinity(spec: &Value, at_spec: &str, warnings: &mut Vec<String>) {
    for field in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = spec.get("affinity").and_then(|affinity| affinity.get(field)) else { continue };
        let path = format_args!("{at_spec}.affinity.{field}");
        for (term, path) in placed(affinity, REQUIRED, &path) {
            warnings.extend(matches_nothing(term, path));
        }
        for (term, path) in placed(affinity, PREFERRED, &path) {
            let term = term.get("podAffinityTerm").unwrap_or(&Value::Null);
            warnings.extend(matches_nothing(term, format_args!("{path}.podAffinityTerm")));
        }
    }
}

/// Plugins that work no longer: the field, its name in the warning, since when, and what has become of it.
const PLUGINS: &[(&str, &str, &str)] = &[
    ("photonPersistentDisk", "photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "storageOS", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("ephemeral", "ephemeral", ""),
    ("cephfs", "cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// The warning for a plugin that a volume of pods or a PersistentVolume uses.
pub fn plugin(field: &str) -> Option<(&'static str, &'static str)> {
    PLUGINS
        .iter()
        .find(|(name, _, why)| *name == field && !why.is_empty())
        .map(|(_, shown, why)| (*shown, *why))
}

fn volume_plugins(spec: &Value, at_spec: &str, warnings: &mut Vec<String>) {
    for (volume, path) in placed(spec, "volumes", &at_spec) {
        for (field, _, _) in PLUGINS.iter().filter(|(field, _, _)| has(volume, field)) {
            if let Some((shown, why)) = plugin(field) {
                warnings.push(format!("{path}.{shown}: {why}"));
            } else if let Some(template) = at(volume, "ephemeral.volumeClaimTemplate") {
                warnings
                    .extend(claim_fractions(template, &format!("{path}.ephemeral.volumeClaimTemplate.spec")));
            }
        }
    }
}

/// The warnings for the spec of a claim, in a claim or a template of claims.
///
/// Upstream: pkg/api/persistentvolumeclaim/util.go GetWarningsForPersistentVolumeClaimSpec
pub fn claim_fractions(claim: &Value, path: &str) -> Vec<String> {
    let of = |field: &str| {
        let value = at(claim, &format!("spec.resources.{field}.storage"));
        fraction(value, format_args!("{path}.resources.{field}[storage]"))
    };
    ["requests", "limits"].into_iter().filter_map(of).collect()
}

/// Bytes are counted whole.
fn fraction(value: Option<&Value>, path: impl Display) -> Option<String> {
    let quantity = value.and_then(quantities::read).filter(|quantity| !quantity.is_whole())?;
    Some(format!("{path}: fractional byte value {:?} is invalid, must be an integer", quantity.to_string()))
}

/// A file that several keys are written to, or that is a folder of another's path.
///
/// Upstream: pkg/api/pod/warnings.go warningsForOverlappingVirtualPaths
fn overlapping_paths(spec: &Value, warnings: &mut Vec<String>) {
    for volume in list(spec, "volumes") {
        let name = text(volume, "name");
        for (field, kind, named) in [
            ("configMap", "ConfigMap", "name"),
            ("secret", "Secret", "secretName"),
            ("downwardAPI", "DownwardAPI", ""),
        ] {
            let Some(source) = at(volume, field) else { continue };
            let what = match named {
                "" => kind.to_owned(),
                named => format!("{kind} {:?}", text(source, named)),
            };
            let mut seen = Vec::new();
            for item in list(source, "items") {
                for (path, other) in overlaps(text(item, "path"), "", &mut seen) {
                    warnings
                        .push(format!("volume {name:?} ({what}): overlapping paths: {path} with {other}"));
                }
            }
        }
        let mut seen = Vec::new();
        for source in list(volume, "projected.sources") {
            if source.as_object().is_none_or(|fields| fields.values().all(Value::is_null)) {
                warnings.push(format!("volume {name:?} (Projected) has no sources provided"));
            }
            for (path, what) in projected_paths(source) {
                for (path, other) in overlaps(path, &what, &mut seen) {
                    warnings
                        .push(format!("volume {name:?} (Projected): overlapping paths: {path} with {other}"));
                }
            }
        }
    }
}

fn projected_paths(source: &Value) -> Vec<(&str, String)> {
    let items = |field: &str, what: String| {
        let items = list(source, &format!("{field}.items"));
        items.iter().map(|item| (text(item, "path"), what.clone())).collect()
    };
    for (field, kind) in [("configMap", "ConfigMap"), ("secret", "Secret")] {
        if let Some(of) = at(source, field) {
            return items(field, format!("{kind} {:?}", text(of, "name")));
        }
    }
    if has(source, "serviceAccountToken") {
        return vec![(text(source, "serviceAccountToken.path"), "ServiceAccountToken".to_owned())];
    }
    items("downwardAPI", "DownwardAPI".to_owned())
}

/// Which of the paths before the path meets, as they are shown; it is remembered.
fn overlaps<'a>(path: &'a str, what: &str, seen: &mut Vec<(&'a str, String)>) -> Vec<(String, String)> {
    let path = path.trim_end_matches('/');
    let shown = |path: &str, what: &str| match what {
        "" => format!("{path:?}"),
        what => format!("{path:?} ({what})"),
    };
    let within = |a: &str, b: &str| format!("{a}/").starts_with(&format!("{b}/"));
    let met = seen
        .iter()
        .filter(|(other, _)| !path.is_empty() && !other.is_empty())
        .filter(|(other, _)| within(other, path) || within(path, other))
        .map(|(other, of)| (shown(path, what), shown(other, of)))
        .collect();
    seen.push((path, what.to_owned()));
    met
}

/// Annotations that fields have taken the place of.
fn profile_annotations(
    spec: &Value,
    metadata: &Value,
    at_spec: &str,
    containers: &[(&Value, Place<'_>)],
    warnings: &mut Vec<String>,
) {
    let Some(annotations) = metadata.get("annotations").filter(|annotations| !annotations.is_null()) else {
        return;
    };
    let meta = match at_spec.rsplit_once('.') {
        Some((path, _)) => format!("{path}.metadata"),
        None => "metadata".to_owned(),
    };
    let mut tell = |key: &str, why: &str| {
        if annotations.get(key).is_some() {
            warnings.push(format!("{meta}.annotations[{key}]: {why}"));
        }
    };
    let critical = "non-functional in v1.16+; use the \"priorityClassName\" field instead";
    tell("scheduler.alpha.kubernetes.io/critical-pod", critical);
    let seccomp = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    if !has(spec, "securityContext.seccompProfile") {
        tell("seccomp.security.alpha.kubernetes.io/pod", seccomp);
    }
    let app_armor = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
    for (container, _) in containers {
        let name = text(container, "name");
        if !has(container, "securityContext.seccompProfile") {
            tell(&format!("container.seccomp.security.alpha.kubernetes.io/{name}"), seccomp);
        }
        if !has(container, "securityContext.appArmorProfile") {
            tell(&format!("container.apparmor.security.beta.kubernetes.io/{name}"), app_armor);
        }
    }
}

fn container_warnings(container: &Value, path: &Place<'_>, warnings: &mut Vec<String>) {
    let resources = container.get("resources").unwrap_or(&Value::Null);
    for name in ["memory", "ephemeral-storage"] {
        for field in ["limits", "requests"] {
            let value = resources.get(field).and_then(|amounts| amounts.get(name));
            warnings.extend(fraction(value, format_args!("{path}.resources.{field}[{name}]")));
        }
    }
    // The later of two environment variables of one name hides the earlier, unless it is made of it.
    let mut seen = BTreeSet::new();
    for (index, variable) in list(container, "env").iter().enumerate() {
        let (name, value) = (text(variable, "name"), text(variable, "value"));
        if seen.insert(name) {
            continue;
        }
        let reference = format!("$({name})");
        if has(variable, "valueFrom") || value == reference || !value.contains(&reference) {
            warnings.push(format!(
                "{path}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
}

fn port_warnings(containers: &[(&Value, Place<'_>)], warnings: &mut Vec<String>) {
    let ports = || containers.iter().flat_map(|(container, path)| placed(container, "ports", path));
    let mut seen: Vec<(&Value, Place<'_>)> = Vec::new();
    for (port, path) in ports() {
        fn place(port: &Value) -> (&str, i64) {
            (text(port, "hostIP"), number(port, "hostPort"))
        }
        fn key(port: &Value) -> (i64, &str) {
            (number(port, "containerPort"), text(port, "protocol"))
        }
        let (host_ip, host_port) = place(port);
        if !host_ip.is_empty() && host_port == 0 {
            let (name, protocol) = (text(port, "name"), text(port, "protocol"));
            let container_port = number(port, "containerPort");
            warnings.push(format!(
                "{path}: hostIP set without hostPort: {{Name:{name} HostPort:0 ContainerPort:{container_port} \
                 Protocol:{protocol} HostIP:{host_ip}}}"
            ));
        }
        for (other, at_other) in seen.iter().filter(|(other, _)| key(other) == key(port)) {
            let (other_ip, other_port) = place(other);
            let how = if (host_ip, host_port) == (other_ip, other_port) {
                "duplicate"
            } else if host_port == 0 || other_port == 0 {
                "overlapping"
            } else if host_port == other_port && host_ip.is_empty() != other_ip.is_empty() {
                "dangerously ambiguous"
            } else {
                continue;
            };
            warnings.push(format!("{path}: {how} port definition with {at_other}"));
        }
        seen.push((port, path));
    }
    let mut named: Vec<(&str, Place<'_>)> = Vec::new();
    for (port, path) in ports() {
        let name = text(port, "name");
        match named.iter().find(|(other, _)| *other == name) {
            _ if name.is_empty() => {}
            Some((_, other)) => warnings.push(format!(
                "{path}: duplicate port name {name:?} with {other}, services and probes that select ports by name will \
                 use {other}"
            )),
            None => named.push((name, path)),
        }
    }
}

fn duplicates<'a>(
    values: impl Iterator<Item = &'a str>,
    told: impl Fn(usize, &str) -> String,
    warnings: &mut Vec<String>,
) {
    let mut seen = BTreeSet::new();
    for (index, value) in values.enumerate() {
        if !seen.insert(value) {
            warnings.push(told(index, value));
        }
    }
}
