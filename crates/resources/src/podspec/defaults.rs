//! Defaults of pods and templates of pods. All are idempotent: they run on every object that is decoded.
//!
//! Upstream: pkg/apis/core/v1/defaults.go

use serde_json::{Value, json};

use crate::get::{at, default, entries, fields_mut, has, is_true, list_mut, number, set, text};

const CONTAINERS: &[&str] = &["initContainers", "containers", "ephemeralContainers"];

/// The template of pods at a field, which is made when it is not there.
pub fn default_template(object: &mut Value, field: &str) {
    if fields_mut(object, &format!("{field}.spec")).is_none() {
        return;
    }
    if let Some(spec) = crate::get::at_mut(object, &format!("{field}.spec")) {
        default_spec(spec);
    }
}

/// The defaults that pods and templates share.
pub fn default_spec(spec: &mut Value) {
    default(spec, "dnsPolicy", "ClusterFirst");
    default(spec, "restartPolicy", "Always");
    default(spec, "securityContext", json!({}));
    default(spec, "terminationGracePeriodSeconds", 30);
    default(spec, "schedulerName", "default-scheduler");
    mirror_service_account(spec);
    for field in CONTAINERS {
        list_mut(spec, field).for_each(default_container);
    }
    list_mut(spec, "volumes").for_each(default_volume);
}

/// `serviceAccount` is the old name of `serviceAccountName`; clients read either.
pub fn mirror_service_account(spec: &mut Value) {
    let old = text(spec, "serviceAccount").to_owned();
    if !old.is_empty() {
        default(spec, "serviceAccountName", old);
    }
    let name = text(spec, "serviceAccountName").to_owned();
    if !name.is_empty() {
        set(spec, "serviceAccount", name);
    }
}

/// What holds for pods only: templates keep what the user wrote.
///
/// Upstream: pkg/apis/core/v1/defaults.go SetDefaults_Pod
pub fn default_pod_only(spec: &mut Value) {
    mirror_service_account(spec);
    default(spec, "enableServiceLinks", true);
    let host_network = is_true(spec, "hostNetwork");
    for field in ["containers", "initContainers"] {
        for container in list_mut(spec, field) {
            default_requests(container, "resources");
            if !host_network {
                continue;
            }
            for port in list_mut(container, "ports") {
                if number(port, "hostPort") == 0 {
                    let same = number(port, "containerPort");
                    set(port, "hostPort", same);
                }
            }
        }
    }
    if has(spec, "resources.limits") {
        default_requests(spec, "resources");
    }
}

/// Requests that are not given are the limits.
fn default_requests(object: &mut Value, resources: &str) {
    let limits: Vec<(String, Value)> = entries(object, &format!("{resources}.limits"))
        .map(|(name, quantity)| (name.to_owned(), quantity.clone()))
        .collect();
    if limits.is_empty() {
        return;
    }
    if let Some(requests) = fields_mut(object, &format!("{resources}.requests")) {
        for (name, quantity) in limits {
            requests.entry(name).or_insert(quantity);
        }
    }
}

fn default_container(container: &mut Value) {
    let policy = if is_latest(text(container, "image")) { "Always" } else { "IfNotPresent" };
    default(container, "imagePullPolicy", policy);
    default(container, "terminationMessagePath", "/dev/termination-log");
    default(container, "terminationMessagePolicy", "File");
    default(container, "resources", json!({}));
    list_mut(container, "ports").for_each(|port| default(port, "protocol", "TCP"));
    for variable in list_mut(container, "env") {
        default_field_ref(variable, "valueFrom.fieldRef");
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = crate::get::at_mut(container, probe) {
            default_probe(probe);
        }
    }
    for hook in ["lifecycle.postStart", "lifecycle.preStop"] {
        default_http_get(container, &format!("{hook}.httpGet"));
    }
}

fn default_field_ref(object: &mut Value, field: &str) {
    if has(object, field) {
        default(object, &format!("{field}.apiVersion"), "v1");
    }
}

fn default_http_get(object: &mut Value, field: &str) {
    if has(object, field) {
        default(object, &format!("{field}.path"), "/");
        default(object, &format!("{field}.scheme"), "HTTP");
    }
}

fn default_probe(probe: &mut Value) {
    for (field, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        if number(probe, field) == 0 {
            set(probe, field, value);
        }
    }
    default_http_get(probe, "httpGet");
    if has(probe, "grpc") && probe["grpc"].get("service").is_none() {
        set(probe, "grpc.service", "");
    }
}

/// 0644: files that all may read.
const FILE_MODE: i32 = 0o644;

fn default_volume(volume: &mut Value) {
    let has_source = volume.as_object().is_some_and(|v| v.iter().any(|(k, v)| k != "name" && !v.is_null()));
    if !has_source {
        set(volume, "emptyDir", json!({}));
    }
    for field in ["secret", "configMap", "downwardAPI", "projected"] {
        if has(volume, field) {
            default(volume, &format!("{field}.defaultMode"), FILE_MODE);
        }
    }
    for item in list_mut(volume, "downwardAPI.items") {
        default_field_ref(item, "fieldRef");
    }
    for source in list_mut(volume, "projected.sources") {
        if has(source, "serviceAccountToken") {
            default(source, "serviceAccountToken.expirationSeconds", 3600);
        }
        list_mut(source, "downwardAPI.items").for_each(|item| default_field_ref(item, "fieldRef"));
    }
    if has(volume, "hostPath") {
        default(volume, "hostPath.type", "");
    }
    if has(volume, "image") {
        let policy = if is_latest(text(volume, "image.reference")) { "Always" } else { "IfNotPresent" };
        default(volume, "image.pullPolicy", policy);
    }
    if at(volume, "ephemeral.volumeClaimTemplate").is_some() {
        let field = "ephemeral.volumeClaimTemplate.spec";
        crate::kinds::core::persistentvolumeclaims::default_spec(volume, field);
    }
    for (source, field, value) in
        [("iscsi", "iscsiInterface", "default"), ("rbd", "pool", "rbd"), ("rbd", "user", "admin")]
    {
        if has(volume, source) {
            default(volume, &format!("{source}.{field}"), value);
        }
    }
}

/// Whether an image name means the tag `latest`: said so, or neither a tag nor a digest is given.
fn is_latest(image: &str) -> bool {
    if image.is_empty() || image.contains('@') {
        return image.split_once('@').is_some_and(|(name, _)| name.ends_with(":latest"));
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_is_what_no_tag_means() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.27", false),
            ("registry:5000/nginx", true),
            ("registry:5000/nginx:1", false),
            ("nginx@sha256:00", false),
            ("", false),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn a_bare_pod_is_filled_in() {
        let mut spec = json!({"containers": [{"name": "c", "image": "nginx:1",
            "ports": [{"containerPort": 80}],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
            "readinessProbe": {"httpGet": {"port": 80}},
            "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}],
            "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "s"}}],
            "serviceAccount": "robot", "hostNetwork": true});
        default_spec(&mut spec);
        default_pod_only(&mut spec);
        for (pointer, value) in [
            ("/restartPolicy", json!("Always")),
            ("/dnsPolicy", json!("ClusterFirst")),
            ("/terminationGracePeriodSeconds", json!(30)),
            ("/schedulerName", json!("default-scheduler")),
            ("/securityContext", json!({})),
            ("/enableServiceLinks", json!(true)),
            ("/serviceAccountName", json!("robot")),
            ("/containers/0/imagePullPolicy", json!("IfNotPresent")),
            ("/containers/0/terminationMessagePath", json!("/dev/termination-log")),
            ("/containers/0/ports/0/protocol", json!("TCP")),
            ("/containers/0/ports/0/hostPort", json!(80)),
            ("/containers/0/resources/requests", json!({"cpu": "100m", "memory": "1Gi"})),
            ("/containers/0/readinessProbe/periodSeconds", json!(10)),
            ("/containers/0/readinessProbe/httpGet/scheme", json!("HTTP")),
            ("/containers/0/env/0/valueFrom/fieldRef/apiVersion", json!("v1")),
            ("/volumes/0/emptyDir", json!({})),
            ("/volumes/1/secret/defaultMode", json!(420)),
        ] {
            assert_eq!(spec.pointer(pointer), Some(&value), "{pointer}");
        }
        let once = spec.clone();
        default_spec(&mut spec);
        default_pod_only(&mut spec);
        assert_eq!(spec, once, "defaults are idempotent");
    }
}
