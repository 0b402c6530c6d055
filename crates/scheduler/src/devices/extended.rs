//! Extended resources behind which a class of devices stands: nodes that do not offer them themselves offer devices,
//! for which the pod gets a claim that nobody wrote.
//!
//! Upstream: pkg/scheduler/framework/plugins/dynamicresources/extendeddynamicresources.go

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use api::Object;
use api::core::v1::{Container, ContainerExtendedResourceRequest, Pod};
use api::meta::OwnerReference;
use api::resource::v1::{
    DeviceClaim, DeviceClass, DeviceRequest, ExactDeviceRequest, ResourceClaim, ResourceClaimSpec,
};
use apimachinery::quantity::Quantity;

/// Says of a claim that it is a pod's for its extended resources.
const ANNOTATION: &str = "resource.kubernetes.io/extended-resource-claim";
/// With the class's name behind it, an extended resource of every class.
const PREFIX: &str = "deviceclass.resource.kubernetes.io/";

/// Whether a class of devices may stand behind the resource.
pub fn is_extended(resource: &str) -> bool {
    let native = !resource.contains('/') || resource.contains("kubernetes.io/");
    resource.starts_with(PREFIX) || (!native && !resource.starts_with("requests."))
}

/// The class of devices behind an extended resource. Of several the newest stands behind it.
pub fn class_of<'a>(classes: &'a HashMap<String, Arc<DeviceClass>>, resource: &str) -> Option<&'a str> {
    if let Some(name) = resource.strip_prefix(PREFIX) {
        return classes.get_key_value(name).map(|(name, _)| name.as_str());
    }
    let created = |class: &DeviceClass| class.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let behind = classes.iter().filter(|(_, c)| c.spec.extended_resource_name.as_deref() == Some(resource));
    let newest = behind.max_by(|(a, x), (b, y)| created(x).cmp(&created(y)).then_with(|| b.cmp(a)));
    newest.map(|(name, _)| name.as_str())
}

/// The uid of the pod whose extended resources the claim is for.
pub fn pod_of(claim: &ResourceClaim) -> Option<&str> {
    let annotations = claim.metadata.annotations.as_ref()?;
    annotations.get(ANNOTATION).filter(|value| *value == "true")?;
    let owner = claim.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    owner.map(|owner| owner.uid.as_str())
}

/// The claim for these requests, which has no name yet.
pub fn claim(pod: &Pod, requests: Vec<DeviceRequest>) -> ResourceClaim {
    let mut claim = ResourceClaim::default();
    claim.metadata.namespace = Some(pod.namespace().to_owned());
    claim.metadata.generate_name = Some(format!("{}-extended-resources-", pod.name()));
    claim.metadata.annotations = Some(BTreeMap::from([(ANNOTATION.to_owned(), "true".to_owned())]));
    claim.metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        name: pod.name().to_owned(),
        uid: pod.uid().to_owned(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    let devices = DeviceClaim { requests: Some(requests), ..DeviceClaim::default() };
    claim.spec = ResourceClaimSpec { devices: Some(devices) };
    claim
}

/// What is asked of devices for these resources, each with its class, and which container has what of it.
///
/// Containers that run at the same time need devices each. Those that only initialize, one after the other, use the
/// devices of the containers that come later, and share what they need beyond.
pub fn requests(
    pod: &Pod,
    resources: &BTreeMap<&str, &str>,
) -> (Vec<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let Some(spec) = &pod.spec else { return Default::default() };
    let first: Vec<(&Container, bool)> = spec
        .init_containers
        .iter()
        .flatten()
        .map(|container| (container, container.restart_policy.as_deref() != Some("Always")))
        .collect();
    let containers: Vec<(&Container, bool)> =
        first.into_iter().chain(spec.containers.iter().map(|container| (container, false))).collect();
    let (mut all, mut mappings) = (Vec::new(), Vec::new());
    for (resource, class) in resources {
        let mut asked: Vec<Option<DeviceRequest>> = vec![None; containers.len()];
        for (at, (container, _)) in containers.iter().enumerate().filter(|(_, (_, brief))| !brief) {
            let (request, more) = ask(at, container, resource, class, &[]);
            asked[at] = request;
            mappings.extend(more);
        }
        let (mut most, mut names, mut brief_mappings) = (None, BTreeSet::new(), Vec::new());
        for (at, (container, _)) in containers.iter().enumerate().filter(|(_, (_, brief))| *brief) {
            let (request, more) = ask(at, container, resource, class, &asked[at..]);
            brief_mappings.extend(more);
            let Some(request) = request else { continue };
            names.insert(request.name.clone());
            if most.as_ref().is_none_or(|most| count(most) < count(&request)) {
                most = Some(request);
            }
        }
        if let Some(most) = &most {
            let shared = brief_mappings.iter_mut().filter(|mapping| names.contains(&mapping.request_name));
            shared.for_each(|mapping| mapping.request_name.clone_from(&most.name));
        }
        mappings.extend(brief_mappings);
        all.extend(most.into_iter().chain(asked.into_iter().flatten()));
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    (all, mappings)
}

fn count(request: &DeviceRequest) -> i64 {
    request.exactly.as_ref().and_then(|exactly| exactly.count).unwrap_or(0)
}

/// What one container asks for beyond the requests that it can use of others.
fn ask(
    at: usize,
    container: &Container,
    resource: &str,
    class: &str,
    usable: &[Option<DeviceRequest>],
) -> (Option<DeviceRequest>, Vec<ContainerExtendedResourceRequest>) {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let amount = requests.and_then(|requests| requests.get(resource));
    // The API server lets no malformed quantity in.
    let wanted = amount.and_then(|amount| Quantity::parse(&amount.0).ok()).map_or(0, |amount| amount.value());
    let mut mappings = Vec::new();
    if wanted == 0 {
        return (None, mappings);
    }
    let mapping = |request: &str| ContainerExtendedResourceRequest {
        container_name: container.name.clone(),
        resource_name: resource.to_owned(),
        request_name: request.to_owned(),
    };
    let mut there = 0;
    for request in usable.iter().flatten() {
        there += count(request);
        mappings.push(mapping(&request.name));
        if there >= wanted {
            return (None, mappings);
        }
    }
    // By its place among the names, which are sorted.
    let nth = requests.into_iter().flatten().position(|(name, _)| name == resource).unwrap_or(0);
    let name = format!("container-{at}-request-{nth}");
    mappings.push(mapping(&name));
    let exactly = ExactDeviceRequest {
        device_class_name: class.to_owned(),
        allocation_mode: Some("ExactCount".into()),
        count: Some(wanted - there),
        ..ExactDeviceRequest::default()
    };
    (Some(DeviceRequest { name, exactly: Some(exactly), first_available: None }), mappings)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const GPU: &str = "x.io/gpu";

    fn container(name: &str, gpus: &str, policy: Value) -> Value {
        json!({"name": name, "restartPolicy": policy,
            "resources": {"requests": {"cpu": "1", "memory": "1Gi", GPU: gpus}}})
    }

    /// What is asked for, and what each container has, as `name*count` and `container>request`.
    fn check(init: Value, containers: Value, asked: &str, had: &str) {
        let pod = Pod::from_value(json!({"metadata": {"name": "p", "namespace": "default", "uid": "u"},
            "spec": {"initContainers": init, "containers": containers}}))
        .unwrap();
        let (requests, mappings) = requests(&pod, &BTreeMap::from([(GPU, "gpu")]));
        let all: Vec<String> = requests.iter().map(|r| format!("{}*{}", r.name, count(r))).collect();
        assert_eq!(all.join(" "), asked);
        let all: Vec<String> =
            mappings.iter().map(|m| format!("{}>{}", m.container_name, m.request_name)).collect();
        assert_eq!(all.join(" "), had);
    }

    #[test]
    fn containers_that_come_first_use_the_devices_of_those_that_stay() {
        let stays = |name: &str, gpus: &str| container(name, gpus, json!(null));
        check(json!([]), json!([stays("a", "1")]), "container-0-request-2*1", "a>container-0-request-2");
        check(json!([]), json!([stays("a", "0")]), "", "");
        check(
            json!([]),
            json!([stays("a", "1"), stays("b", "2")]),
            "container-0-request-2*1 container-1-request-2*2",
            "a>container-0-request-2 b>container-1-request-2",
        );
        check(
            json!([stays("i", "1")]),
            json!([stays("a", "2")]),
            "container-1-request-2*2",
            "a>container-1-request-2 i>container-1-request-2",
        );
        check(
            json!([stays("i", "3"), stays("j", "5")]),
            json!([stays("a", "2")]),
            "container-1-request-2*3 container-2-request-2*2",
            "a>container-2-request-2 i>container-2-request-2 i>container-1-request-2 \
             j>container-2-request-2 j>container-1-request-2",
        );
        let sidecar = container("s", "1", json!("Always"));
        check(
            json!([sidecar, stays("i", "1")]),
            json!([stays("a", "0")]),
            "container-0-request-2*1 container-1-request-2*1",
            "s>container-0-request-2 i>container-1-request-2",
        );
    }

    #[test]
    fn the_newest_class_stands_behind_a_resource() {
        let class = |name: &str, resource: Value, created: &str| {
            let class = json!({"metadata": {"name": name, "creationTimestamp": created},
                "spec": {"extendedResourceName": resource}});
            (name.to_owned(), Arc::new(DeviceClass::from_value(class).unwrap()))
        };
        let (old, new) = ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z");
        let classes = HashMap::from([
            class("a", json!(GPU), old),
            class("b", json!(GPU), new),
            class("c", json!(GPU), new),
            class("d", json!(null), new),
        ]);
        assert_eq!(class_of(&classes, GPU), Some("b"));
        assert_eq!(class_of(&classes, "deviceclass.resource.kubernetes.io/d"), Some("d"));
        assert_eq!(class_of(&classes, "deviceclass.resource.kubernetes.io/e"), None);
        let extended =
            ["cpu", "hugepages-2Mi", "kubernetes.io/x", GPU, "deviceclass.resource.kubernetes.io/d"];
        assert_eq!(extended.map(is_extended), [false, false, false, true, true]);
    }
}
