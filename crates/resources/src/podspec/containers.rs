//! Containers: names, images, ports, environment, mounts, security.
//!
//! Upstream: pkg/apis/core/validation/validation.go validateContainers, validateInitContainers

use apimachinery::field::{Error, Path};
use apimachinery::names;
use apimachinery::quantity::Quantity;
use serde_json::Value;

use super::handlers::{validate_lifecycle, validate_probes};
use super::volumes::{no_backsteps, validate_field_ref, validate_relative_path};
use crate::get::{self, Errors, at, has, int, is_true, list, number, path as root, text, texts};
use crate::validate::{PROTOCOLS, dns_label, each, one_of, port_number, quantities, required_one_of};

/// Whether a spec is a pod's own or a template's; a few checks are for pods alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ResourceIs {
    Pod,
    Template,
}

/// What the checks of a container need to know of its pod.
pub struct Around<'a> {
    pub spec: &'a Value,
    /// The volumes that are well-formed: a mount of another is not found.
    pub volumes: &'a [&'a Value],
}

impl Around<'_> {
    fn host_users(&self) -> bool {
        get::flag(self.spec, "hostUsers").unwrap_or(true)
    }

    fn os(&self) -> &str {
        text(self.spec, "os.name")
    }

    fn grace(&self) -> Option<i64> {
        int(self.spec, "terminationGracePeriodSeconds")
    }
}

/// All three lists of containers.
pub fn validate_all(around: &Around, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let spec = around.spec;
    let containers = get::items(spec, "containers", &path.child("containers"));
    if containers.is_empty() {
        errors.push(Error::required(&path.child("containers"), ""));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (container, at) in &containers {
        errors.extend(validate_common(container, around, at));
        errors.extend(unique_name(container, &mut seen, at));
        if let Some(lifecycle) = container.get("lifecycle") {
            let at = at.child("lifecycle");
            errors.extend(validate_lifecycle(lifecycle, around.grace(), around.os(), &at));
        }
        errors.extend(validate_probes(container, at));
        errors.extend(validate_restart_policy(container, at));
    }
    errors.extend(host_port_conflicts(list(spec, "containers"), &path.child("containers")));
    for (container, at) in get::items(spec, "initContainers", &path.child("initContainers")) {
        errors.extend(validate_init(container, around, &at));
        errors.extend(unique_name(container, &mut seen, &at));
        let one = std::slice::from_ref(container);
        errors.extend(host_port_conflicts(one, &path.child("initContainers")));
    }
    let others = seen.clone();
    for (container, at) in get::items(spec, "ephemeralContainers", &path.child("ephemeralContainers")) {
        errors.extend(validate_ephemeral(container, around, &others, &at));
        errors.extend(unique_name(container, &mut seen, &at));
    }
    errors
}

fn unique_name<'a>(container: &'a Value, seen: &mut Vec<&'a str>, at: &Path) -> Errors {
    let name = text(container, "name");
    if !name.is_empty() && seen.contains(&name) {
        return vec![Error::duplicate(&at.child("name"), name)];
    }
    seen.push(name);
    Errors::new()
}

fn validate_init(container: &Value, around: &Around, at: &Path) -> Errors {
    let mut errors = validate_common(container, around, at);
    if has(container, "restartPolicy") {
        errors.extend(validate_restart_policy(container, at));
    } else if !list(container, "restartPolicyRules").is_empty() {
        let detail = "must specify restartPolicy when restart rules are used";
        errors.push(Error::required(&at.child("restartPolicy"), detail));
    }
    if text(container, "restartPolicy") == "Always" {
        if let Some(lifecycle) = container.get("lifecycle") {
            let at = at.child("lifecycle");
            errors.extend(validate_lifecycle(lifecycle, around.grace(), around.os(), &at));
        }
        errors.extend(validate_probes(container, at));
    } else {
        for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if has(container, field) {
                let detail = "may not be set for init containers without restartPolicy=Always";
                errors.push(Error::forbidden(&at.child(field), detail));
            }
        }
    }
    errors
}

fn validate_ephemeral(container: &Value, around: &Around, others: &[&str], at: &Path) -> Errors {
    let mut errors = validate_common(container, around, at);
    let target = text(container, "targetContainerName");
    if !target.is_empty() && !others.contains(&target) {
        errors.push(Error::not_found(&at.child("targetContainerName"), target));
    }
    // In the order of upstream's type; of these only probes and hooks are there when they say nothing.
    for (field, may_be_empty) in [
        ("ports", true),
        ("resources", true),
        ("resizePolicy", true),
        ("restartPolicy", false),
        ("restartPolicyRules", true),
        ("livenessProbe", false),
        ("readinessProbe", false),
        ("startupProbe", false),
        ("lifecycle", false),
    ] {
        if has(container, field) && !(may_be_empty && get::len(container, field) == 0) {
            errors.push(Error::forbidden(&at.child(field), "cannot be set for an Ephemeral Container"));
        }
    }
    for (mount, at) in get::items(container, "volumeMounts", &at.child("volumeMounts")) {
        for field in ["subPath", "subPathExpr"] {
            if !text(mount, field).is_empty() {
                let detail = "cannot be set for an Ephemeral Container";
                errors.push(Error::forbidden(&at.child(field), detail));
            }
        }
    }
    errors
}

fn validate_restart_policy(container: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let rules = get::items(container, "restartPolicyRules", &at.child("restartPolicyRules"));
    if has(container, "restartPolicy") {
        let policy = text(container, "restartPolicy");
        errors.extend(one_of(policy, &at.child("restartPolicy"), &["Always", "Never", "OnFailure"]));
    } else if !rules.is_empty() {
        let detail = "must specify restartPolicy when restart rules are used";
        errors.push(Error::required(&at.child("restartPolicy"), detail));
    }
    if rules.len() > 20 {
        errors.push(Error::too_many(&at.child("restartPolicyRules"), rules.len(), 20));
    }
    for (rule, at) in rules {
        errors.extend(one_of(
            text(rule, "action"),
            &at.child("action"),
            &["Restart", "RestartAllContainers"],
        ));
        if has(rule, "exitCodes") {
            let at = at.child("exitCodes").child("operator");
            errors.extend(one_of(text(rule, "exitCodes.operator"), &at, &["In", "NotIn"]));
        } else {
            errors.push(Error::required(&at.child("exitCodes"), "must be specified"));
        }
    }
    errors
}

/// An image that is named, without spaces around.
pub fn validate_container_image(container: &Value, at: &Path) -> Errors {
    let image = text(container, "image");
    if image.trim().len() == image.len() {
        return Errors::new();
    }
    vec![Error::invalid(&at.child("image"), image, "must not have leading or trailing whitespace")]
}

/// Upstream: pkg/apis/core/validation/validation.go validateContainerCommon
fn validate_common(container: &Value, around: &Around, at: &Path) -> Errors {
    let mut errors = Errors::new();
    match text(container, "name") {
        "" => errors.push(Error::required(&at.child("name"), "")),
        name => errors.extend(dns_label(name, &at.child("name"))),
    }
    if text(container, "image").is_empty() {
        errors.push(Error::required(&at.child("image"), ""));
    }
    let policy = text(container, "terminationMessagePolicy");
    let at_policy = at.child("terminationMessagePolicy");
    errors.extend(required_one_of(policy, &at_policy, &["File", "FallbackToLogsOnError"]));
    errors.extend(validate_ports(container, &at.child("ports")));
    errors.extend(validate_env(container, &at.child("env")));
    errors.extend(validate_env_from(container, &at.child("envFrom")));
    errors.extend(validate_mounts(container, around, &at.child("volumeMounts")));
    errors.extend(validate_devices(container, around, &at.child("volumeDevices")));
    errors.extend(validate_pull_policy(container, "imagePullPolicy", at));
    if let Some(resources) = container.get("resources") {
        errors.extend(quantities::requirements(resources, &at.child("resources")));
        errors.extend(validate_claims(resources, around, &at.child("resources").child("claims")));
    }
    errors.extend(validate_resize_policy(container, around, &at.child("resizePolicy")));
    if let Some(context) = container.get("securityContext") {
        errors.extend(validate_security_context(context, around, &at.child("securityContext")));
    }
    errors
}

pub fn validate_pull_policy(object: &Value, field: &str, at: &Path) -> Errors {
    required_one_of(text(object, field), &at.child(field), &["Always", "IfNotPresent", "Never"])
}

fn validate_claims(resources: &Value, around: &Around, at: &Path) -> Errors {
    let known = |name: &str| list(around.spec, "resourceClaims").iter().any(|c| text(c, "name") == name);
    let mut errors = Errors::new();
    for (claim, at) in get::items(resources, "claims", at) {
        match text(claim, "name") {
            "" => errors.push(Error::required(&at, "")),
            name if !known(name) => errors.push(Error::not_found(&at, name)),
            _ => {}
        }
    }
    errors
}

fn validate_resize_policy(container: &Value, around: &Around, at: &Path) -> Errors {
    let mut errors = Errors::new();
    for item in list(container, "resizePolicy") {
        errors.extend(required_one_of(text(item, "resourceName"), at, &["cpu", "memory"]));
        let policy = text(item, "restartPolicy");
        errors.extend(required_one_of(policy, at, &["NotRequired", "RestartContainer"]));
        if text(around.spec, "restartPolicy") == "Never" && policy != "NotRequired" {
            let detail = "must be 'NotRequired' when pod `restartPolicy` is 'Never'";
            errors.push(Error::invalid(at, policy, detail));
        }
    }
    errors
}

fn validate_ports(container: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = Vec::new();
    for (port, at) in get::items(container, "ports", at) {
        let name = text(port, "name");
        if !name.is_empty() {
            let bad = each(names::port_name(name), &at.child("name"), name);
            if bad.is_empty() {
                if seen.contains(&name) {
                    errors.push(Error::duplicate(&at.child("name"), name));
                }
                seen.push(name);
            }
            errors.extend(bad);
        }
        match number(port, "containerPort") {
            0 => errors.push(Error::required(&at.child("containerPort"), "")),
            number => errors.extend(port_number(number, &at.child("containerPort"))),
        }
        if number(port, "hostPort") != 0 {
            errors.extend(port_number(number(port, "hostPort"), &at.child("hostPort")));
        }
        errors.extend(required_one_of(text(port, "protocol"), &at.child("protocol"), PROTOCOLS));
    }
    errors
}

fn host_port_conflicts(containers: &[Value], at: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen: Vec<String> = Vec::new();
    for (index, container) in containers.iter().enumerate() {
        for (port, at) in get::items(container, "ports", &at.index(index).child("ports")) {
            let host_port = number(port, "hostPort");
            if host_port == 0 {
                continue;
            }
            let key = format!("{}/{}/{host_port}", text(port, "protocol"), text(port, "hostIP"));
            if seen.contains(&key) {
                errors.push(Error::duplicate(&at.child("hostPort"), key));
            } else {
                seen.push(key);
            }
        }
    }
    errors
}

fn validate_env(container: &Value, at: &Path) -> Errors {
    let mut errors = Errors::new();
    for (variable, at) in get::items(container, "env", at) {
        match text(variable, "name") {
            "" => errors.push(Error::required(&at.child("name"), "")),
            name => errors.extend(each(names::env_var_name(name), &at.child("name"), name)),
        }
        if let Some(source) = variable.get("valueFrom").filter(|v| !v.is_null()) {
            let has_value = !text(variable, "value").is_empty();
            errors.extend(validate_value_from(source, has_value, &at.child("valueFrom")));
        }
    }
    errors
}

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn validate_value_from(source: &Value, has_value: bool, path: &Path) -> Errors {
    const SOURCES: &[&str] =
        &["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
    let mut errors = Errors::new();
    let mut given = 0;
    for field in SOURCES {
        let Some(reference) = at(source, field) else { continue };
        given += 1;
        let at_source = path.child(field);
        match *field {
            "fieldRef" => errors.extend(validate_field_ref(reference, ENV_FIELDS, &at_source)),
            "resourceFieldRef" => errors.extend(validate_resource_ref(reference, false, &at_source)),
            "fileKeyRef" => {
                type Rule = fn(&str, &Path) -> Errors;
                let rules: [(&str, Rule); 3] = [
                    ("key", |key, at| each(names::env_var_name(key), at, key)),
                    ("volumeName", dns_label),
                    ("path", no_backsteps),
                ];
                for (field, rule) in rules {
                    let at_field = at_source.child(field);
                    match text(reference, field) {
                        "" => errors.push(Error::required(&at_field, "")),
                        value => errors.extend(rule(value, &at_field)),
                    }
                }
            }
            _ => {
                let name = text(reference, "name");
                errors.extend(each(names::dns1123_subdomain(name), &at_source.child("name"), name));
                match text(reference, "key") {
                    "" => errors.push(Error::required(&at_source.child("key"), "")),
                    key => errors.extend(each(names::config_map_key(key), &at_source.child("key"), key)),
                }
            }
        }
    }
    let detail = match given {
        0 => {
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
        }
        _ if has_value => "may not be specified when `value` is not empty",
        1 => return errors,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(Error::invalid(path, "", detail));
    errors
}

/// A container's own limits and requests as an environment variable or a file.
///
/// Upstream: pkg/apis/core/validation/validation.go validateContainerResourceFieldSelector
pub fn validate_resource_ref(reference: &Value, in_volume: bool, path: &Path) -> Errors {
    const RESOURCES: &[&str] = &[
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    let resource = text(reference, "resource");
    let huge = resource.starts_with("requests.hugepages-") || resource.starts_with("limits.hugepages-");
    let mut errors = if in_volume && text(reference, "containerName").is_empty() {
        vec![Error::required(&path.child("containerName"), "")]
    } else if resource.is_empty() {
        vec![Error::required(&path.child("resource"), "")]
    } else if !RESOURCES.contains(&resource) && !huge {
        vec![Error::not_supported(&path.child("resource"), resource, RESOURCES)]
    } else {
        Errors::new()
    };
    let divisor = at(reference, "divisor").and_then(|d| Quantity::from_value(d).ok()).unwrap_or_default();
    if divisor.is_zero() {
        return errors;
    }
    let divisor = divisor.to_string();
    const SIZES: &[&str] =
        &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei", "1024"];
    let of = match resource.split_once('.').map(|(_, name)| name) {
        Some("cpu") if !["1m", "1"].contains(&divisor.as_str()) => {
            let detail = "only divisor's values 1m and 1 are supported with the cpu resource";
            errors.push(Error::invalid(&path.child("divisor"), resource, detail));
            return errors;
        }
        Some("memory") => "memory",
        Some("ephemeral-storage") => "local ephemeral storage",
        Some(name) if name.starts_with("hugepages-") => "hugepages",
        _ => return errors,
    };
    if !SIZES.contains(&divisor.as_str()) {
        let detail = format!(
            "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the {of} \
             resource"
        );
        errors.push(Error::invalid(&path.child("divisor"), resource, detail));
    }
    errors
}

fn validate_env_from(container: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (source, at_source) in get::items(container, "envFrom", path) {
        let prefix = text(source, "prefix");
        if !prefix.is_empty() {
            errors.extend(each(names::env_var_name(prefix), &at_source.child("prefix"), prefix));
        }
        let mut given = 0;
        for field in ["configMapRef", "secretRef"] {
            let Some(reference) = at(source, field) else { continue };
            given += 1;
            let at_name = at_source.child(field).child("name");
            match text(reference, "name") {
                "" => errors.push(Error::required(&at_name, "")),
                name => errors.extend(each(names::dns1123_subdomain(name), &at_name, name)),
            }
        }
        match given {
            0 => errors.push(Error::invalid(path, "", "must specify one of: `configMapRef` or `secretRef`")),
            1 => {}
            _ => {
                errors.push(Error::invalid(path, "", "may not have more than one field specified at a time"))
            }
        }
    }
    errors
}

fn validate_mounts(container: &Value, around: &Around, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let devices = list(container, "volumeDevices");
    let mut seen = Vec::new();
    for (mount, at) in get::items(container, "volumeMounts", path) {
        let (name, mount_path) = (text(mount, "name"), text(mount, "mountPath"));
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        }
        if !around.volumes.iter().any(|v| text(v, "name") == name) {
            errors.push(Error::not_found(&at.child("name"), name));
        }
        if mount_path.is_empty() {
            errors.push(Error::required(&at.child("mountPath"), ""));
        }
        if seen.contains(&mount_path) {
            errors.push(Error::invalid(&at.child("mountPath"), mount_path, "must be unique"));
        }
        seen.push(mount_path);
        if devices.iter().any(|d| text(d, "name") == name) {
            errors.push(Error::invalid(&at.child("name"), name, "must not already exist in volumeDevices"));
        }
        if devices.iter().any(|d| text(d, "devicePath") == mount_path) {
            let detail = "must not already exist as a path in volumeDevices";
            errors.push(Error::invalid(&at.child("mountPath"), mount_path, detail));
        }
        errors.extend(validate_sub_path(mount, path, &at));
        errors.extend(validate_mount_modes(mount, container, path));
    }
    errors
}

fn validate_sub_path(mount: &Value, path: &Path, at: &Path) -> Errors {
    let mut errors = Errors::new();
    let (sub_path, expression) = (text(mount, "subPath"), text(mount, "subPathExpr"));
    if !sub_path.is_empty() {
        errors.extend(validate_relative_path(sub_path, &path.child("subPath")));
    }
    if !expression.is_empty() {
        if !sub_path.is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(Error::invalid(&at.child("subPathExpr"), expression, detail));
        }
        errors.extend(validate_relative_path(expression, &path.child("subPathExpr")));
    }
    errors
}

fn validate_mount_modes(mount: &Value, container: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let propagation = text(mount, "mountPropagation");
    if has(mount, "mountPropagation") {
        const MODES: &[&str] = &["Bidirectional", "HostToContainer", "None"];
        let at = path.child("mountPropagation");
        errors.extend(one_of(propagation, &at, MODES));
        if propagation == "Bidirectional" && !is_true(container, "securityContext.privileged") {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(Error::forbidden(&at, detail));
        }
    }
    if has(mount, "recursiveReadOnly") {
        let at = path.child("recursiveReadOnly");
        match text(mount, "recursiveReadOnly") {
            "Disabled" => {}
            "Enabled" | "IfPossible" => {
                if !is_true(mount, "readOnly") {
                    errors.push(Error::forbidden(&at, "may only be specified when readOnly is true"));
                }
                if !propagation.is_empty() && propagation != "None" {
                    let detail = "may only be specified when mountPropagation is None or not specified";
                    errors.push(Error::forbidden(&at, detail));
                }
            }
            other => errors.push(Error::not_supported(&at, other, &["Disabled", "Enabled", "IfPossible"])),
        }
    }
    errors
}

fn validate_devices(container: &Value, around: &Around, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut names_seen = Vec::new();
    let mut paths_seen = Vec::new();
    for (device, at) in get::items(container, "volumeDevices", path) {
        let (name, device_path) = (text(device, "name"), text(device, "devicePath"));
        let volume = around.volumes.iter().find(|v| text(v, "name") == name);
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        }
        if names_seen.contains(&name) {
            errors.push(Error::invalid(&at.child("name"), name, "must be unique"));
        }
        match volume {
            None => errors.push(Error::not_found(&at.child("name"), name)),
            Some(v) if !has(v, "persistentVolumeClaim") && !has(v, "ephemeral") => {
                let detail =
                    "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(Error::invalid(&at.child("name"), name, detail));
            }
            Some(_) => {}
        }
        if device_path.is_empty() {
            errors.push(Error::required(&at.child("devicePath"), ""));
        }
        if paths_seen.contains(&device_path) {
            errors.push(Error::invalid(&at.child("devicePath"), device_path, "must be unique"));
        }
        names_seen.push(name);
        paths_seen.push(device_path);
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go ValidateSecurityContext
fn validate_security_context(context: &Value, around: &Around, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for field in ["runAsUser", "runAsGroup"] {
        errors.extend(validate_id(context, field, &path.child(field)));
    }
    if has(context, "procMount") {
        let mount = text(context, "procMount");
        let at = path.child("procMount");
        errors.extend(one_of(mount, &at, &["Default", "Unmasked"]));
        if mount == "Unmasked" && around.host_users() {
            errors.push(Error::invalid(&at, mount, "`hostUsers` must be false to use `Unmasked`"));
        }
    }
    errors.extend(validate_profiles(context, path));
    errors.extend(super::windows::validate_options(context, &path.child("windowsOptions")));
    if get::flag(context, "allowPrivilegeEscalation") == Some(false) {
        if is_true(context, "privileged") {
            let detail = "cannot set `allowPrivilegeEscalation` to false and `privileged` to true";
            errors.push(Error::invalid(path, context.clone(), detail));
        }
        if texts(context, "capabilities.add").contains(&"CAP_SYS_ADMIN") {
            let detail =
                "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN";
            errors.push(Error::invalid(path, context.clone(), detail));
        }
    }
    errors
}

/// A user's or group's number.
pub fn validate_id(context: &Value, field: &str, at: &Path) -> Errors {
    let Some(id) = int(context, field) else { return Errors::new() };
    let messages = names::in_range(id, 0, i64::from(i32::MAX));
    messages.into_iter().map(|m| Error::invalid(at, id, m)).collect()
}

/// The seccomp and AppArmor profiles of a pod or container.
pub fn validate_profiles(context: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (field, name) in [("seccompProfile", "seccomp"), ("appArmorProfile", "AppArmor")] {
        let Some(profile) = at(context, field) else { continue };
        let at_profile = path.child(field);
        let kind = text(profile, "type");
        const TYPES: &[&str] = &["Localhost", "RuntimeDefault", "Unconfined"];
        if kind.is_empty() {
            let detail = format!("type is required when {field} is set");
            errors.push(Error::required(&at_profile.child("type"), detail));
        } else {
            errors.extend(one_of(kind, &at_profile.child("type"), TYPES));
        }
        let localhost = at_profile.child("localhostProfile");
        let value = at(profile, "localhostProfile").and_then(Value::as_str);
        match (kind, value) {
            ("Localhost", None) => {
                let detail = format!("must be set when {name} type is Localhost");
                errors.push(Error::required(&localhost, detail));
            }
            ("Localhost", Some(value)) if name == "seccomp" => {
                errors.extend(validate_relative_path(value, &localhost));
            }
            ("Localhost", Some(value)) => errors.extend(validate_app_armor_name(value, &localhost)),
            (_, Some(value)) if name == "seccomp" => {
                // Upstream shows the profile with the names of its own type.
                let shown = format!("{{\"Type\":{kind:?},\"LocalhostProfile\":{value:?}}}");
                let detail = "can only be set when seccomp type is Localhost";
                errors.push(Error::invalid(&localhost, value, detail).showing(shown));
            }
            ("RuntimeDefault" | "Unconfined", Some(value)) => {
                let detail = "can only be set when AppArmor type is Localhost";
                errors.push(Error::invalid(&localhost, value, detail));
            }
            _ => {}
        }
    }
    errors
}

fn validate_app_armor_name(name: &str, path: &Path) -> Errors {
    const LONGEST: usize = 4095;
    let mut errors = Errors::new();
    if name.trim() != name {
        errors.push(Error::invalid(path, name, "must not be padded with whitespace"));
    } else if name.is_empty() {
        errors.push(Error::required(path, "must be set when AppArmor type is Localhost"));
    }
    if name.len() > LONGEST {
        errors.push(Error::too_long(path, LONGEST));
    }
    errors
}

/// Tokens of a ServiceAccount need one that is named.
pub fn validate_tokens(spec: &Value) -> Errors {
    let mut errors = Errors::new();
    if !text(spec, "serviceAccountName").is_empty() {
        return errors;
    }
    for (volume, at) in get::items(spec, "volumes", &root("spec.volumes")) {
        let at = at.child("projected").child("sources");
        for (source, at) in get::items(volume, "projected.sources", &at) {
            if has(source, "serviceAccountToken") {
                let detail = "must not be specified when serviceAccountName is not set";
                errors.push(Error::forbidden(&at.child("serviceAccountToken"), detail));
            }
        }
    }
    errors
}
