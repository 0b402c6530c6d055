//! What a pod spec must satisfy, in a pod or a template.
//!
//! Upstream: pkg/apis/core/validation/validation.go ValidatePodSpec

use apimachinery::field::{Error, Path};
use apimachinery::{names, sysctl};
use serde_json::{Value, json};

use super::containers::{self, Around, ResourceIs, validate_id, validate_profiles};
use super::{scheduling, volumes};
use crate::get::{self, Errors, has, int, is_true, number, text, texts};
use crate::validate::{dns_label, each, ip, labels, one_of, quantities, required_one_of};

pub fn validate_spec(spec: &Value, path: &Path, resource_is: ResourceIs) -> Errors {
    let mut errors = Errors::new();
    if !has(spec, "terminationGracePeriodSeconds") {
        errors.push(Error::required(&path.child("terminationGracePeriodSeconds"), ""));
    }
    let (good_volumes, volume_errors) = volumes::validate(spec, &path.child("volumes"));
    errors.extend(volume_errors);
    errors.extend(validate_claims(spec, &path.child("resourceClaims")));
    let around = Around { spec, volumes: &good_volumes };
    errors.extend(containers::validate_all(&around, path));
    if let Some(resources) = get::at(spec, "resources") {
        let at = path.child("resources");
        if has(resources, "claims") {
            let detail = "claims may not be set for Resources at pod-level";
            errors.push(Error::forbidden(&at.child("claims"), detail));
        }
        errors.extend(quantities::pod_requirements(resources, &at));
    }
    errors.extend(validate_host_network(spec, path, resource_is));
    let policy = text(spec, "restartPolicy");
    errors.extend(required_one_of(policy, &path.child("restartPolicy"), &["Always", "OnFailure", "Never"]));
    const DNS: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    errors.extend(required_one_of(text(spec, "dnsPolicy"), &path.child("dnsPolicy"), DNS));
    errors.extend(labels(spec, "nodeSelector", &path.child("nodeSelector")));
    errors.extend(validate_security_context(spec, &path.child("securityContext")));
    errors.extend(scheduling::validate_affinity(spec, &path.child("affinity")));
    errors.extend(validate_dns_config(spec, &path.child("dnsConfig")));
    errors.extend(scheduling::validate_gates(spec, path));
    let spreading = path.child("topologySpreadConstraints");
    errors.extend(scheduling::validate_spreading(spec, &spreading));
    errors.extend(validate_host_users(spec, path));
    errors.extend(validate_host_name(spec, path));
    errors.extend(validate_names(spec, path));
    errors.extend(scheduling::validate_tolerations(spec, &path.child("tolerations")));
    errors.extend(validate_host_aliases(spec, &path.child("hostAliases")));
    let class = text(spec, "priorityClassName");
    if !class.is_empty() {
        errors.extend(each(names::dns1123_subdomain(class), &path.child("priorityClassName"), class));
    }
    if let Some(class) = get::at(spec, "runtimeClassName").and_then(Value::as_str) {
        errors.extend(each(names::dns1123_subdomain(class), &path.child("runtimeClassName"), class));
    }
    if has(spec, "preemptionPolicy") {
        let policy = text(spec, "preemptionPolicy");
        let at = path.child("preemptionPolicy");
        errors.extend(required_one_of(policy, &at, &["PreemptLowerPriority", "Never"]));
    }
    if let Some(overhead) = get::at(spec, "overhead") {
        let limits = json!({"limits": overhead});
        errors.extend(quantities::requirements(&limits, &path.child("overhead")));
    }
    if has(spec, "os") {
        match text(spec, "os.name") {
            "" => errors.push(Error::required(&path.child("os").child("name"), "")),
            name => errors.extend(one_of(name, &path.child("os"), &["linux", "windows"])),
        }
    }
    errors.extend(volumes::validate_file_keys(spec, path));
    errors
}

fn validate_claims(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = Vec::new();
    for (claim, at) in get::items(spec, "resourceClaims", path) {
        let name = text(claim, "name");
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        } else if seen.contains(&name) {
            errors.push(Error::duplicate(&at.child("name"), name));
        } else {
            errors.extend(dns_label(name, &at.child("name")));
        }
        seen.push(name);
        match (has(claim, "resourceClaimName"), has(claim, "resourceClaimTemplateName")) {
            (true, true) => {
                let detail =
                    "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified";
                errors.push(Error::invalid(&at, claim.clone(), detail));
            }
            (false, false) => {
                let detail = "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`";
                let shown = format!(
                    "{{\"Name\":{name:?},\"ResourceClaimName\":null,\"ResourceClaimTemplateName\":null}}"
                );
                errors.push(Error::invalid(&at, claim.clone(), detail).showing(shown));
            }
            _ => {}
        }
        for field in ["resourceClaimName", "resourceClaimTemplateName"] {
            if let Some(name) = crate::get::at(claim, field).and_then(Value::as_str) {
                errors.extend(each(names::dns1123_subdomain(name), &at.child(field), name));
            }
        }
    }
    errors
}

fn validate_host_network(spec: &Value, path: &Path, resource_is: ResourceIs) -> Errors {
    let mut errors = Errors::new();
    if !is_true(spec, "hostNetwork") {
        return errors;
    }
    for (container, at) in get::items(spec, "containers", &path.child("containers")) {
        for (port, at) in get::items(container, "ports", &at.child("ports")) {
            let host_port = number(port, "hostPort");
            let looked_at = resource_is == ResourceIs::Pod || host_port != 0;
            if looked_at && host_port != number(port, "containerPort") {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.push(Error::invalid(&at.child("hostPort"), host_port, detail));
            }
        }
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go validatePodSpecSecurityContext
fn validate_security_context(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let Some(context) = spec.get("securityContext") else { return errors };
    for field in ["fsGroup", "runAsUser", "runAsGroup"] {
        errors.extend(validate_id(context, field, &path.child(field)));
    }
    for (group, at) in get::items(context, "supplementalGroups", &path.child("supplementalGroups")) {
        let group = group.as_i64().unwrap_or(-1);
        let messages = names::in_range(group, 0, i64::from(i32::MAX));
        errors.extend(messages.into_iter().map(|m| Error::invalid(&at, group, m)));
    }
    if is_true(spec, "shareProcessNamespace") && is_true(spec, "hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(Error::invalid(&path.child("shareProcessNamespace"), true, detail));
    }
    let mut seen = Vec::new();
    for (setting, at) in get::items(context, "sysctls", &path.child("sysctls")) {
        let name = text(setting, "name");
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
        } else if !sysctl::is_name(name) {
            let detail = "must have at most 253 characters and match regex \
                          ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";
            errors.push(Error::invalid(&at.child("name"), name, detail));
        } else if seen.contains(&name) {
            errors.push(Error::duplicate(&at.child("name"), name));
        }
        let shared = sysctl::Namespace::of(name).map(|namespace| match namespace {
            sysctl::Namespace::Ipc => "hostIPC",
            sysctl::Namespace::Net => "hostNetwork",
        });
        if let Some(shared) = shared.filter(|shared| is_true(spec, shared)) {
            let detail = format!("may not be specified when '{shared}' is true");
            errors.push(Error::invalid(&at.child("name"), name, detail));
        }
        seen.push(name);
    }
    let policy = |field: &str, supported: &[&str]| match has(context, field) {
        true => one_of(text(context, field), &path.child(field), supported),
        false => Errors::new(),
    };
    errors.extend(policy("fsGroupChangePolicy", &["Always", "OnRootMismatch"]));
    errors.extend(validate_profiles(context, path));
    errors.extend(super::windows::validate_options(context, &path.child("windowsOptions")));
    errors.extend(policy("supplementalGroupsPolicy", &["Merge", "Strict"]));
    errors.extend(policy("seLinuxChangePolicy", &["Recursive"]));
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go validatePodDNSConfig
fn validate_dns_config(spec: &Value, path: &Path) -> Errors {
    const MAX_NAMESERVERS: usize = 3;
    const MAX_SEARCHES: usize = 32;
    const MAX_SEARCH_LENGTH: usize = 2048;
    let mut errors = Errors::new();
    let servers = texts(spec, "dnsConfig.nameservers");
    if text(spec, "dnsPolicy") == "None" {
        if !has(spec, "dnsConfig") {
            return vec![Error::required(path, "must provide `dnsConfig` when `dnsPolicy` is None")];
        }
        if servers.is_empty() {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return vec![Error::required(&path.child("nameservers"), detail)];
        }
    }
    if servers.len() > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.push(Error::invalid(&path.child("nameservers"), json!(servers), detail));
    }
    for (index, server) in servers.iter().enumerate() {
        errors.extend(ip(server, &path.child("nameservers").index(index)));
    }
    let searches = texts(spec, "dnsConfig.searches");
    if searches.len() > MAX_SEARCHES {
        let detail = format!("must not have more than {MAX_SEARCHES} search paths");
        errors.push(Error::invalid(&path.child("searches"), json!(searches), detail));
    }
    if searches.join(" ").len() > MAX_SEARCH_LENGTH {
        let detail = format!(
            "must not have more than {MAX_SEARCH_LENGTH} characters (including spaces) in the search list"
        );
        errors.push(Error::invalid(&path.child("searches"), json!(searches), detail));
    }
    for (index, search) in searches.iter().enumerate() {
        // The root alone is a search path, and underscores are fine in names that are only looked up.
        let name = search.strip_suffix('.').unwrap_or(search);
        if *search != "." {
            let messages = names::dns1123_subdomain_with_underscore(name);
            errors.extend(each(messages, &path.child("searches").index(index), name));
        }
    }
    for (option, at) in get::items(spec, "dnsConfig.options", &path.child("options")) {
        if text(option, "name").is_empty() {
            errors.push(Error::required(&at, "must not be empty"));
        }
    }
    errors
}

fn validate_host_users(spec: &Value, path: &Path) -> Errors {
    if get::flag(spec, "hostUsers") != Some(false) {
        return Errors::new();
    }
    // The paths of the last two are upstream's own spelling.
    [("hostNetwork", "hostNetwork"), ("hostPID", "HostPID"), ("hostIPC", "HostIPC")]
        .iter()
        .filter(|(field, _)| is_true(spec, field))
        .map(|(_, shown)| Error::forbidden(&path.child(shown), "when `hostUsers` is false"))
        .collect()
}

/// The names of other things that a pod mentions.
fn validate_names(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for field in ["serviceAccountName", "nodeName"] {
        let name = text(spec, field);
        if !name.is_empty() {
            errors.extend(each(names::dns1123_subdomain(name), &path.child(field), name));
        }
    }
    if let Some(seconds) = int(spec, "activeDeadlineSeconds") {
        let messages = names::in_range(seconds, 1, i64::from(i32::MAX));
        let at = path.child("activeDeadlineSeconds");
        errors.extend(messages.into_iter().map(|m| Error::invalid(&at, seconds, m)));
    }
    for field in ["hostname", "subdomain"] {
        let name = text(spec, field);
        if !name.is_empty() {
            errors.extend(dns_label(name, &path.child(field)));
        }
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go validatePodHostName
fn validate_host_name(spec: &Value, path: &Path) -> Errors {
    const LONGEST: usize = 64;
    let at = path.child("hostnameOverride");
    let Some(name) = get::at(spec, "hostnameOverride").and_then(Value::as_str) else { return Errors::new() };
    let mut errors = Errors::new();
    for field in ["setHostnameAsFQDN", "hostNetwork"] {
        if is_true(spec, field) {
            errors.push(Error::forbidden(&at, format!("may not be specified when {field} is true")));
        }
    }
    if name.len() > LONGEST {
        errors.push(Error::too_long(&at, LONGEST));
    }
    errors.extend(each(names::dns1123_subdomain(name), &at, name));
    errors
}

fn validate_host_aliases(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (alias, at) in get::items(spec, "hostAliases", path) {
        errors.extend(ip(text(alias, "ip"), &at.child("ip")));
        for (name, at) in get::items(alias, "hostnames", &at.child("hostnames")) {
            let name = name.as_str().unwrap_or_default();
            errors.extend(each(names::dns1123_subdomain(name), &at, name));
        }
    }
    errors
}

/// What holds for a pod beyond its spec alone.
pub fn validate_pod(spec: &Value) -> Errors {
    let path = Path::new("spec");
    let mut errors = validate_spec(spec, &path, ResourceIs::Pod);
    errors.extend(containers::validate_tokens(spec));
    for field in ["containers", "initContainers"] {
        for (container, at) in get::items(spec, field, &path.child(field)) {
            errors.extend(containers::validate_container_image(container, &at));
        }
    }
    errors
}
