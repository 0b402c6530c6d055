//! What is likely a mistake in a pod, or a field that will go.
//!
//! Upstream: pkg/api/pod/warnings.go warningsForPodSpecAndMeta

use std::collections::BTreeSet;

use serde_json::Value;

use crate::get::{at, has, list, text};

/// The warnings for the template of a workload.
pub fn template_warnings(object: &Value) -> Vec<String> {
    let part = |field: &str| at(object, field).unwrap_or(&Value::Null);
    warnings(part("spec.template.spec"), part("spec.template.metadata"), "spec.template.spec")
}

/// The warnings for a pod spec at a path such as `spec` or `spec.template.spec`.
pub fn warnings(spec: &Value, metadata: &Value, at_spec: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    node_labels(spec, at_spec, &mut warnings);
    let meta = if at_spec == "spec" {
        "metadata".to_owned()
    } else {
        at_spec.replacen("spec.template.spec", "spec.template.metadata", 1)
    };
    for (key, _) in crate::get::entries(metadata, "annotations") {
        if key == "scheduler.alpha.kubernetes.io/critical-pod" {
            warnings.push(format!(
                "{meta}.annotations[{key}]: non-functional in v1.16+; use the \"priorityClassName\" field instead"
            ));
        } else if key == "seccomp.security.alpha.kubernetes.io/pod"
            || key.starts_with("container.seccomp.security.alpha.kubernetes.io/")
        {
            warnings.push(format!(
                "{meta}.annotations[{key}]: non-functional in v1.27+; use the \"seccompProfile\" field instead"
            ));
        } else if key.starts_with("container.apparmor.security.beta.kubernetes.io/") {
            warnings.push(format!(
                "{meta}.annotations[{key}]: deprecated since v1.30; use the \"appArmorProfile\" field instead"
            ));
        }
    }
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        if has(volume, "gitRepo") {
            warnings.push(format!(
                "{at_spec}.volumes[{index}].gitRepo: deprecated in v1.11, and disabled by default in v1.33+"
            ));
        }
    }
    for field in ["initContainers", "containers"] {
        for (index, container) in list(spec, field).iter().enumerate() {
            duplicate_names(container, &format!("{at_spec}.{field}[{index}]"), &mut warnings);
        }
    }
    duplicates(spec, "imagePullSecrets", &format!("{at_spec}.imagePullSecrets"), &mut warnings);
    warnings
}

fn node_labels(spec: &Value, at: &str, warnings: &mut Vec<String>) {
    const DEPRECATED: &[(&str, &str)] = &[
        ("beta.kubernetes.io/arch", "use \"kubernetes.io/arch\" instead"),
        ("beta.kubernetes.io/os", "use \"kubernetes.io/os\" instead"),
        ("failure-domain.beta.kubernetes.io/region", "use \"topology.kubernetes.io/region\" instead"),
        ("failure-domain.beta.kubernetes.io/zone", "use \"topology.kubernetes.io/zone\" instead"),
        ("beta.kubernetes.io/instance-type", "use \"node.kubernetes.io/instance-type\" instead"),
    ];
    for (label, instead) in DEPRECATED {
        if spec.get("nodeSelector").is_some_and(|s| s.get(label).is_some()) {
            warnings.push(format!("{at}.nodeSelector[{label}]: deprecated since v1.17; {instead}"));
        }
    }
}

/// The later of two environment variables of one name hides the earlier.
fn duplicate_names(container: &Value, at: &str, warnings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (index, variable) in list(container, "env").iter().enumerate() {
        let name = text(variable, "name");
        if !seen.insert(name) {
            warnings.push(format!(
                "{at}.env[{index}]: hides previous definition of {name:?}, which may be dropped when using apply"
            ));
        }
    }
    let ports = list(container, "ports");
    let key = |port: &Value| (crate::get::number(port, "containerPort"), text(port, "protocol").to_owned());
    for (index, port) in ports.iter().enumerate() {
        if let Some(first) = ports[..index].iter().position(|p| key(p) == key(port)) {
            warnings.push(format!("{at}.ports[{index}]: duplicate port definition with {at}.ports[{first}]"));
        }
    }
}

fn duplicates(spec: &Value, field: &str, at: &str, warnings: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (index, item) in list(spec, field).iter().enumerate() {
        let name = text(item, "name");
        if name.is_empty() {
            warnings.push(format!("{at}[{index}].name: invalid empty name {name:?}"));
        } else if !seen.insert(name) {
            warnings.push(format!("{at}[{index}].name: duplicate name {name:?}"));
        }
    }
}
