//! The downward API: fields and resources of a pod as text.

use std::collections::BTreeMap;

use api::Object;
use api::Quantity;
use api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};

use crate::pod::{find_container, qos};

/// What is known of the pod and node beside the pod's specification.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<String>,
    /// What the node can give, for limits that the container does not set: thousandths of a CPU, bytes.
    pub allocatable_milli_cpu: i64,
    pub allocatable_memory: i64,
    pub allocatable_ephemeral_storage: i64,
}

/// The value of a field path.
// Upstream: pkg/fieldpath/fieldpath.go, pkg/kubelet/kubelet_pods.go podFieldSelectorRuntimeValue
pub fn field(selector: &ObjectFieldSelector, pod: &Pod, around: &Surroundings) -> Result<String, String> {
    let metadata = &pod.metadata;
    let path = selector.field_path.as_str();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(format!("field label not supported: {path}")),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    let spec = pod.spec.clone().unwrap_or_default();
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => lines(&metadata.labels),
        "metadata.annotations" => lines(&metadata.annotations),
        "spec.nodeName" => spec.node_name.unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.unwrap_or_default(),
        "status.hostIP" => around.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => around.host_ips.join(","),
        "status.podIP" => around.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => around.pod_ips.join(","),
        _ => return Err(format!("field label not supported: {path}")),
    })
}

/// `metadata.labels['key']` as its two parts.
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, key) = path.split_once("['")?;
    Some((map, key.strip_suffix("']")?))
}

/// A map as lines of `key="value"`, with the value quoted as Go does.
fn lines(map: &Option<BTreeMap<String, String>>) -> String {
    map.iter().flatten().map(|(k, v)| format!("{k}={}", quote(v))).collect::<Vec<_>>().join("\n")
}

/// Go's `%q` for text.
pub fn quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a container's resource, in units of the divisor, rounded up.
// Upstream: pkg/api/v1/resource/helpers.go ExtractContainerResourceValue
pub fn resource(
    selector: &ResourceFieldSelector,
    pod: &Pod,
    own: &Container,
    around: &Surroundings,
) -> Result<String, String> {
    let other = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => Some(find_container(pod, name).ok_or(format!("container {name} not found"))?.0),
        None => None,
    };
    let container = other.as_ref().unwrap_or(own);
    let (which, name) = selector.resource.split_once('.').unwrap_or_default();
    let allocatable = match name {
        "cpu" => around.allocatable_milli_cpu,
        "memory" => around.allocatable_memory,
        "ephemeral-storage" => around.allocatable_ephemeral_storage,
        _ if name.starts_with("hugepages-") => 0,
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let amount = match which {
        "limits" => qos::limit(&container.resources, name).filter(|v| *v != 0).unwrap_or(allocatable),
        "requests" => qos::request(&container.resources, name).unwrap_or(0),
        _ => return Err(format!("unsupported container resource : {}", selector.resource)),
    };
    let one = Quantity("1".into());
    let divisor = selector.divisor.as_ref().filter(|d| qos::amount(name, d) != 0).unwrap_or(&one);
    let divisor = qos::amount(name, divisor).max(1);
    Ok(((amount + divisor - 1).div_euclid(divisor)).to_string())
}

#[cfg(test)]
mod tests {
    use api::core::v1::{PodSpec, ResourceRequirements};

    use super::*;

    fn pod() -> Pod {
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        pod.metadata.labels =
            Some(BTreeMap::from([("a".into(), "x".into()), ("b".into(), "say \"hi\"\n".into())]));
        let limits = Some(BTreeMap::from([("memory".into(), Quantity("64Mi".into()))]));
        let requests = Some(BTreeMap::from([("cpu".into(), Quantity("250m".into()))]));
        let resources = Some(ResourceRequirements { limits, requests, claims: None });
        let container = Container { name: "c".into(), resources, ..Default::default() };
        pod.spec = Some(PodSpec { containers: vec![container], ..Default::default() });
        pod
    }

    #[test]
    fn fields() {
        let around = Surroundings { pod_ips: vec!["1.1.1.1".into(), "::1".into()], ..Default::default() };
        let cases = [
            ("metadata.name", Ok("p")),
            ("metadata.labels['a']", Ok("x")),
            ("metadata.labels['z']", Ok("")),
            ("metadata.labels", Ok("a=\"x\"\nb=\"say \\\"hi\\\"\\n\"")),
            ("status.podIPs", Ok("1.1.1.1,::1")),
            ("spec.containers", Err("field label not supported: spec.containers")),
        ];
        for (path, want) in cases {
            let selector = ObjectFieldSelector { field_path: path.into(), api_version: None };
            assert_eq!(field(&selector, &pod(), &around).as_deref().map_err(String::as_str), want, "{path}");
        }
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let pod = pod();
        let around = Surroundings { allocatable_milli_cpu: 1500, ..Default::default() };
        let cases = [
            ("limits.memory", "1Mi", "64"),
            ("limits.memory", "0", "67108864"),
            ("requests.cpu", "1m", "250"),
            ("requests.cpu", "1", "1"),
            ("limits.cpu", "1", "2"),
        ];
        for (name, divisor, want) in cases {
            let selector = ResourceFieldSelector {
                resource: name.into(),
                divisor: Some(Quantity(divisor.into())),
                container_name: None,
            };
            let container = &pod.spec.as_ref().unwrap().containers[0];
            assert_eq!(
                resource(&selector, &pod, container, &around).as_deref(),
                Ok(want),
                "{name} {divisor}"
            );
        }
    }
}
