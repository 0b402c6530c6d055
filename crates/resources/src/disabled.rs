//! Fields of features that upstream has and leaves off: clients may send them, and they are not kept.
//!
//! Upstream: pkg/registry/*/*/strategy.go dropDisabledFields, pkg/features/kube_features.go

use serde_json::Value;

use crate::ResourceDef;
use crate::features::Feature;

/// Where the pod specs of kinds are.
const POD_SPECS: &[(&str, &str, &str)] = &[
    ("", "pods", "spec"),
    ("", "podtemplates", "template.spec"),
    ("", "replicationcontrollers", "spec.template.spec"),
    ("apps", "daemonsets", "spec.template.spec"),
    ("apps", "deployments", "spec.template.spec"),
    ("apps", "replicasets", "spec.template.spec"),
    ("apps", "statefulsets", "spec.template.spec"),
    ("batch", "cronjobs", "spec.jobTemplate.spec.template.spec"),
    ("batch", "jobs", "spec.template.spec"),
];

/// Of pod specs, kept where a feature is on.
const OF_FEATURES: &[(Feature, &str)] = &[(Feature::GenericWorkload, "schedulingGroup")];

/// Of other kinds, by what they are kept with.
const OF_KINDS: &[(Feature, &str, &str, &[&str])] = &[
    (
        Feature::CoordinatedLeaderElection,
        "coordination.k8s.io",
        "leases",
        &["spec.strategy", "spec.preferredHolder"],
    ),
    (
        Feature::TopologyAwareWorkloadScheduling,
        "scheduling.k8s.io",
        "podgroups",
        &["spec.schedulingConstraints"],
    ),
    (
        Feature::TopologyAwareWorkloadScheduling,
        "scheduling.k8s.io",
        "workloads",
        &["spec.podGroupTemplates[].schedulingConstraints"],
    ),
];

/// Of pod specs. `[]` stands for the items of a list, `{}` for the values of a map.
const IN_PODS: &[&str] = &[
    "containers[].lifecycle.stopSignal",
    "initContainers[].lifecycle.stopSignal",
    "volumes[].projected.sources[].clusterTrustBundle",
    "volumes[].projected.sources[].podCertificate",
];

const FIELDS: &[(&str, &str, &[&str])] = &[
    ("", "nodes", &["spec.configSource", "status.config"]),
    ("apps", "statefulsets", &["spec.updateStrategy.rollingUpdate.maxUnavailable"]),
    ("discovery.k8s.io", "endpointslices", &["endpoints[].deprecatedTopology"]),
    (
        "resource.k8s.io",
        "resourceslices",
        &[
            "spec.devices[].attributes{}.bools",
            "spec.devices[].attributes{}.ints",
            "spec.devices[].attributes{}.strings",
            "spec.devices[].attributes{}.versions",
            "spec.devices[].nodeAllocatableResourceMappings",
        ],
    ),
    ("storage.k8s.io", "csidrivers", &["spec.preventPodSchedulingIfMissing"]),
];

/// Takes such fields out of an object that a client sent.
pub fn drop_fields(def: &ResourceDef, object: &mut Value) {
    let of_kind = |group: &str, plural: &str| def.group == group && def.plural == plural;
    if let Some((_, _, at)) = POD_SPECS.iter().find(|(group, plural, _)| of_kind(group, plural))
        && let Some(spec) = crate::get::at_mut(object, at)
    {
        IN_PODS.iter().for_each(|path| remove(spec, path));
        let off = OF_FEATURES.iter().filter(|(feature, _)| !def.features.has(*feature));
        off.for_each(|(_, path)| remove(spec, path));
    }
    for (feature, group, plural, paths) in OF_KINDS {
        if of_kind(group, plural) && !def.features.has(*feature) {
            paths.iter().for_each(|path| remove(object, path));
        }
    }
    if let Some((_, _, paths)) = FIELDS.iter().find(|(group, plural, _)| of_kind(group, plural)) {
        paths.iter().for_each(|path| remove(object, path));
    }
}

fn remove(value: &mut Value, path: &str) {
    let Some((first, rest)) = path.split_once('.') else {
        if let Some(fields) = value.as_object_mut() {
            fields.remove(path);
        }
        return;
    };
    if let Some(list) = first.strip_suffix("[]") {
        let items = value.get_mut(list).and_then(Value::as_array_mut);
        items.into_iter().flatten().for_each(|item| remove(item, rest));
    } else if let Some(map) = first.strip_suffix("{}") {
        let values = value.get_mut(map).and_then(Value::as_object_mut);
        values.into_iter().flatten().for_each(|(_, value)| remove(value, rest));
    } else if let Some(value) = value.get_mut(first) {
        remove(value, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_off_is_not_kept() {
        let def = |plural: &str| crate::table().iter().find(|def| def.plural == plural).unwrap().clone();
        let source = json!({"clusterTrustBundle": {"path": "a"}, "secret": {"name": "s"}});
        let spec = json!({"schedulingGroup": {}, "volumes": [{"projected": {"sources": [source]}}]});
        let mut set = json!({"spec": {"template": {"spec": spec}, "updateStrategy": {"rollingUpdate": {
            "partition": 1, "maxUnavailable": 2}}}});
        drop_fields(&def("statefulsets"), &mut set);
        let kept = json!({"volumes": [{"projected": {"sources": [{"secret": {"name": "s"}}]}}]});
        assert_eq!(set["spec"]["template"]["spec"], kept);
        assert_eq!(set["spec"]["updateStrategy"]["rollingUpdate"], json!({"partition": 1}));
        let on = ResourceDef {
            features: crate::features::Features::NONE.with(Feature::GenericWorkload),
            ..(*def("pods")).clone()
        };
        let grouped = json!({"spec": {"schedulingGroup": {"podGroupName": "g"}}});
        let (mut with, mut without) = (grouped.clone(), grouped.clone());
        drop_fields(&on, &mut with);
        drop_fields(&def("pods"), &mut without);
        assert_eq!((with, without), (grouped, json!({"spec": {}})));
        let mut slice =
            json!({"spec": {"devices": [{"attributes": {"a": {"bools": [true], "bool": true}}}]}});
        drop_fields(&def("resourceslices"), &mut slice);
        assert_eq!(slice["spec"]["devices"][0]["attributes"]["a"], json!({"bool": true}));
    }
}
