//! What is wrong with objects of kinds that few people write by hand, in upstream's words and all at once.

use std::collections::BTreeMap;

use resources::{Context, ResourceDef, table};
use serde_json::{Value, json};

static EXTRA: BTreeMap<String, Vec<String>> = BTreeMap::new();

fn def(plural: &str) -> &'static ResourceDef {
    let found = table().iter().find(|def| def.plural == plural && def.version == def.storage_version);
    found.unwrap_or_else(|| panic!("{plural} is in the table"))
}

/// What is wrong with a new object.
fn create(plural: &str, mut object: Value) -> Vec<String> {
    let strategy = &def(plural).strategy;
    let context = Context { now: 1_000, random: [0; 16], user: "u", uid: "", groups: &[], extra: &EXTRA };
    strategy.default(&mut object);
    strategy.prepare_create(&context, &mut object);
    strategy.validate(&object).iter().map(ToString::to_string).collect()
}

/// What is wrong with a change of a good object.
fn update(plural: &str, old: &Value, changes: &[(&str, Value)]) -> Vec<String> {
    let mut new = old.clone();
    for (pointer, value) in changes {
        let (parent, name) = pointer.rsplit_once('/').expect("a pointer");
        new.pointer_mut(parent).expect("the parent is there")[name] = value.clone();
    }
    def(plural).strategy.validate_update(&new, old).iter().map(ToString::to_string).collect()
}

fn status(plural: &str, old: &Value, new: &Value) -> Vec<String> {
    def(plural).strategy.validate_status_update(new, old).iter().map(ToString::to_string).collect()
}

#[track_caller]
fn check(got: Vec<String>, wanted: &[&str]) {
    assert_eq!(got, wanted);
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
                     start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for \
                     validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

#[test]
fn claims_ask_for_devices_by_name() {
    let good = json!({"spec": {"devices": {
        "requests": [
            {"name": "gpu", "exactly": {"deviceClassName": "gpu.example.com", "selectors": [
                {"cel": {"expression": "device.attributes['gpu.example.com'].model == 'a' && device.driver != ''"}}]}},
            {"name": "any", "firstAvailable": [{"name": "big", "deviceClassName": "c", "allocationMode": "All"}]},
        ],
        "constraints": [{"requests": ["gpu", "any/big"], "matchAttribute": "example.com/numa"}],
        "config": [{"requests": ["gpu"], "opaque": {"driver": "gpu.example.com", "parameters": {"a": 1}}}],
    }}});
    check(create("resourceclaims", good.clone()), &[]);
    check(create("resourceclaimtemplates", json!({"spec": good})), &[]);
    let bad = json!({"spec": {"devices": {
        "requests": [
            {"name": "A", "exactly": {"selectors": [{}], "count": -1}},
            {"name": "b"},
            {"name": "b", "exactly": {"deviceClassName": "c", "selectors": [{"cel": {"expression": "1"}}]}},
        ],
        "constraints": [{"requests": ["x"]}, {"matchAttribute": "numa"}],
        "config": [{}],
    }}});
    let name = format!("spec.devices.requests[0].name: Invalid value: \"A\": {LABEL}");
    check(
        create("resourceclaims", bad),
        &[
            &name,
            "spec.devices.requests[0].exactly.deviceClassName: Required value",
            "spec.devices.requests[0].exactly.selectors[0].cel: Required value",
            "spec.devices.requests[0].exactly.count: Invalid value: -1: must be greater than zero",
            "spec.devices.requests[1]: Required value: exactly one of `exactly` or `firstAvailable` is required",
            "spec.devices.requests[2].exactly.selectors[0].cel.expression: Invalid value: \"1\": must evaluate to bool \
             or the unknown type, not int",
            "spec.devices.requests[2]: Duplicate value: \"b\"",
            "spec.devices.constraints[0].requests[0]: Invalid value: \"x\": must be the name of a request in the claim \
             or the name of a request and a subrequest separated by '/'",
            "spec.devices.constraints[0]: Required value: exactly one of \"matchAttribute\" or \"distinctAttribute\" is \
             required, but multiple fields are set",
            "spec.devices.constraints[1].matchAttribute: Invalid value: \"numa\": a fully qualified name must be a \
             domain and a name separated by a slash",
            "spec.devices.config[0].opaque: Required value",
        ],
    );
}

#[test]
fn a_claim_is_allocated_once_and_reserved_only_then() {
    let claim = |status: Value| {
        json!({"spec": {"devices": {"requests": [{"name": "gpu", "exactly": {"deviceClassName": "c"}}]}},
               "status": status})
    };
    let result = json!({"request": "gpu", "driver": "d.example.com", "pool": "p", "device": "a"});
    let allocation = json!({"devices": {"results": [result]}});
    let user = json!({"resource": "pods", "name": "p", "uid": "u"});
    let fresh = claim(json!({}));
    let allocated = claim(json!({"allocation": allocation, "reservedFor": [user],
                                 "devices": [{"driver": "d.example.com", "pool": "p", "device": "a"}]}));
    check(status("resourceclaims", &fresh, &allocated), &[]);
    check(
        status("resourceclaims", &fresh, &claim(json!({"reservedFor": [{"name": "p"}]}))),
        &[
            "status.reservedFor[0].resource: Required value",
            "status.reservedFor[0].uid: Required value",
            "status.reservedFor: Forbidden: may not be specified when `allocated` is not set",
        ],
    );
    let mut other = allocated.clone();
    other["status"]["allocation"]["devices"]["results"][0]["device"] = json!("b");
    other["status"]["devices"] = json!([]);
    let errors = status("resourceclaims", &allocated, &other);
    assert!(errors.len() == 1 && errors[0].ends_with(": field is immutable"), "{errors:?}");
    let wrong = claim(json!({"allocation": {"devices": {"results": [
        {"request": "x", "driver": "", "pool": "", "device": "a", "bindingFailureConditions": ["c"]}]}}}));
    check(
        status("resourceclaims", &fresh, &wrong),
        &[
            "status.allocation.devices.results[0].request: Invalid value: \"x\": must be the name of a request in the \
             claim or the name of a request and a subrequest separated by '/'",
            "status.allocation.devices.results[0].driver: Required value",
            "status.allocation.devices.results[0].pool: Required value",
            "status.allocation.devices.results[0].bindingConditions: Invalid value: []: bindingConditions are required \
             to use bindingFailureConditions",
        ],
    );
}

#[test]
fn slices_tell_of_devices() {
    let slice = |spec: Value| json!({"spec": spec});
    let pool = json!({"name": "node/a", "resourceSliceCount": 1});
    let good = slice(json!({
        "driver": "d.example.com", "pool": pool, "nodeName": "n",
        "devices": [{"name": "a", "attributes": {"model": {"string": "x"}, "example.com/v": {"version": "1.2.3-a.1+b"}},
                     "capacity": {"memory": {"value": "1Gi"}}, "taints": [{"key": "k", "effect": "NoExecute"}]}],
    }));
    check(create("resourceslices", good.clone()), &[]);
    check(
        update("resourceslices", &good, &[("/spec/driver", json!("e.example.com"))]),
        &["spec.driver: Invalid value: \"e.example.com\": field is immutable"],
    );
    check(
        create(
            "resourceslices",
            slice(json!({"pool": {}, "nodeName": "n", "allNodes": true, "devices": [
                {"name": "a", "attributes": {"v": {"version": "1.02.3"}, "w": {}},
                 "capacity": {"c": {"value": "1", "requestPolicy": {}}}, "allNodes": true},
                {"name": "a"},
            ]})),
        ),
        &[
            "spec.driver: Required value",
            "spec.pool.name: Required value",
            "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero",
            "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, \
             `perDeviceNodeSelection` is required, but multiple fields are set",
            "spec.devices[0].attributes[v].version: Invalid value: \"1.02.3\": must be a string compatible with \
             semver.org spec 2.0.0",
            "spec.devices[0].attributes[w]: Invalid value: \"\": exactly one value must be specified",
            "spec.devices[0].capacity[c].requestPolicy: Forbidden: allowMultipleAllocations must be true",
            "spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if \
             `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
            "spec.devices[1]: Duplicate value: \"a\"",
        ],
    );
    check(
        create("deviceclasses", json!({"spec": {"extendedResourceName": "cpu", "config": [{"opaque": {}}]}})),
        &[
            "spec.config[0].opaque.driver: Required value",
            "spec.config[0].opaque.parameters: Required value",
            "spec.extendedResourceName: Invalid value: \"cpu\": must be a valid extended resource name",
        ],
    );
}

#[test]
fn limits_have_known_types_and_names() {
    let range = |limit: Value| json!({"spec": {"limits": [limit]}});
    check(create("limitranges", range(json!({"type": "Container", "max": {"cpu": "1"}}))), &[]);
    check(
        create("limitranges", range(json!({"type": "Thing", "max": {"cpus": "1"}}))),
        &[
            "spec.limits[0].type: Invalid value: \"Thing\": must be a standard limit type or fully qualified",
            "spec.limits[0].max[cpus]: Invalid value: \"cpus\": must be a standard resource type or fully qualified",
        ],
    );
    check(
        create("limitranges", range(json!({"type": "PersistentVolumeClaim", "max": {"cpu": "1"}}))),
        &[
            "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was \
           provided",
        ],
    );
}

#[test]
fn classes_of_runtimes_and_volumes_are_checked() {
    let class = json!({"handler": "runc", "overhead": {"podFixed": {"cpu": "1x"}}, "scheduling": {
        "nodeSelector": {"a": "b c"}, "tolerations": [{"key": "a", "operator": "Exists"}, {"key": "a", "operator": "Exists"}]}});
    let errors = create("runtimeclasses", class);
    let paths: Vec<&str> = errors.iter().map(|error| error.split(": ").next().unwrap_or_default()).collect();
    assert!(paths.ends_with(&["scheduling.nodeSelector", "scheduling.tolerations[1]"]), "{errors:?}");
    check(create("runtimeclasses", json!({})), &["handler: Required value"]);
    check(
        create("volumeattributesclasses", json!({})),
        &[
            "driverName: Required value",
            "parameters: Required value: must contain at least one key/value pair",
        ],
    );
    let node = json!({"spec": {"drivers": [{"name": "a.b", "nodeID": "n", "topologyKeys": ["k", "k"]}, {"name": "a.b"}]}});
    check(
        create("csinodes", node),
        &[
            "spec.drivers[0]: Duplicate value: \"k\"",
            "spec.drivers[1].nodeID: Required value",
            "spec.drivers[1].name: Duplicate value: \"a.b\"",
        ],
    );
    let volume = json!({"spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
                                 "hostPath": {"path": "/x"}, "nodeAffinity": {}}});
    check(
        create("persistentvolumes", volume),
        &["spec.nodeAffinity.required: Required value: must specify required node constraints"],
    );
}

#[test]
fn requests_for_certificates_name_known_usages_and_signers() {
    let request = |usages: Value, signer: &str| {
        let pem = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0=";
        json!({"spec": {"request": pem, "usages": usages, "signerName": signer}})
    };
    check(create("certificatesigningrequests", request(json!(["client auth"]), "example.com/a")), &[]);
    let errors = create("certificatesigningrequests", request(json!(["fly", "any", "any"]), "nowhere"));
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(
        errors[0].starts_with(
            "spec.usages[0]: Unsupported value: \"fly\": supported values: \"any\", \"cert sign\""
        )
    );
    assert_eq!(errors[1], "spec.usages[2]: Duplicate value: \"any\"");
    assert!(
        errors[2]
            .ends_with("must be a fully qualified domain and path of the form 'example.com/signer-name'")
    );
    let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}]}});
    let both = json!({"status": {"conditions": [{"type": "Approved", "status": "True"}, {"type": "Denied", "status": "False"}]}});
    check(
        status("certificatesigningrequests", &approved, &both),
        &[
            "status.conditions[1].status: Unsupported value: \"False\": supported values: \"True\"",
            "status.conditions: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive",
        ],
    );
    check(
        status("certificatesigningrequests", &approved, &json!({"status": {}})),
        &["status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""],
    );
}

#[test]
fn questions_are_about_one_thing_and_have_no_metadata() {
    let both = json!({"metadata": {"name": "x"}, "spec": {"user": "u", "resourceAttributes": {
        "labelSelector": {}, "fieldSelector": {"rawSelector": "a", "requirements": [{"operator": "In"}]}}}});
    let errors = create("subjectaccessreviews", both);
    check(
        errors[..4].to_vec(),
        &[
            "spec.resourceAttributes.fieldSelector.rawSelector: Invalid value: \"a\": may not specified at the same \
             time as requirements",
            "spec.resourceAttributes.fieldSelector.requirements[0].key: Required value: must be specified",
            "spec.resourceAttributes.fieldSelector.requirements[0].values: Required value: must be specified when \
             `operator` is 'In' or 'NotIn'",
            "spec.resourceAttributes.labelSelector.requirements: Required value: when \
             spec.resourceAttributes.labelSelector is specified, requirements or rawSelector is required",
        ],
    );
    assert!(errors[4].ends_with("must be empty"), "{errors:?}");
    check(
        create("selfsubjectaccessreviews", json!({"metadata": {}, "spec": {"resourceAttributes": {}}})),
        &[],
    );
    let local = json!({"metadata": {"namespace": "n"}, "spec": {"user": "u", "resourceAttributes": {"namespace": "n"}}});
    check(create("localsubjectaccessreviews", local), &[]);
}

#[test]
fn nodes_list_their_features_and_ranges() {
    let node = |spec: Value, status: Value| json!({"spec": spec, "status": status});
    check(
        create(
            "nodes",
            node(
                json!({"podCIDRs": ["10.0.0.0/24", "10.0.1.0/24"]}),
                json!({"declaredFeatures": ["B", "A", "A"]}),
            ),
        ),
        &[
            "status.declaredFeatures[1]: Invalid value: \"A\": list must be sorted alphabetically",
            "status.declaredFeatures[2]: Duplicate value: \"A\"",
            "spec.podCIDRs: Invalid value: [\"10.0.0.0/24\",\"10.0.1.0/24\"]: may specify no more than one CIDR for each \
             IP family",
        ],
    );
    let with_range = node(json!({"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]}), json!({}));
    check(
        update("nodes", &with_range, &[("/spec/podCIDRs", json!(["10.0.1.0/24"]))]),
        &["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"],
    );
}

#[test]
fn quotas_and_limits_name_what_they_count() {
    let quota = json!({"spec": {
        "hard": {"a": "1", "pods": "1.5", "requests.storage": "1Gi"}, "scopes": ["BestEffort", "NotBestEffort", "Odd"],
        "scopeSelector": {"matchExpressions": [{"scopeName": "PriorityClass", "operator": "In"},
                                                {"scopeName": "Terminating", "operator": "In", "values": ["x"]}]}}});
    let errors = create("resourcequotas", quota);
    let told: Vec<&str> = errors.iter().map(|error| error.split(": ").last().unwrap_or_default()).collect();
    assert_eq!(
        told,
        [
            "must be a standard resource type or fully qualified",
            "must be a standard resource for quota",
            "must be an integer",
            "unsupported scope applied to resource",
            "unsupported scope applied to resource",
            "unsupported scope",
            "conflicting scopes",
            "unsupported scope applied to resource",
            "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
            "unsupported scope applied to resource",
            "must be 'Exists' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, \
             ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
             ResourceQuotaScopeCrossNamespacePodAffinity",
        ],
        "{errors:?}"
    );
    let limits = json!({"type": "Container", "max": {"cpu": "10"}, "min": {"cpu": "1"}, "default": {"cpu": "20"},
                        "defaultRequest": {"cpu": "100m"}, "maxLimitRequestRatio": {"cpu": "11"}});
    check(
        create("limitranges", json!({"spec": {"limits": [limits]}})),
        &[
            "spec.limits[0].defaultRequest[cpu]: Invalid value: \"100m\": min value 1 is greater than default request \
             value 100m",
            "spec.limits[0].default[cpu]: Invalid value: \"10\": default value 20 is greater than max value 10",
            "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"11\": ratio 11 is greater than max/min = \
             10.000000",
        ],
    );
}

#[test]
fn what_is_held_by_pointer_may_not_be_empty() {
    for (plural, object, wanted) in [
        ("priorityclasses", json!({"preemptionPolicy": ""}), "preemptionPolicy: Required value"),
        (
            "poddisruptionbudgets",
            json!({"spec": {"unhealthyPodEvictionPolicy": ""}}),
            "spec.unhealthyPodEvictionPolicy: Unsupported value: \"\": supported values: \"AlwaysAllow\", \
             \"IfHealthyBudget\"",
        ),
        (
            "storageclasses",
            json!({"provisioner": "a", "volumeBindingMode": ""}),
            "volumeBindingMode: Unsupported value: \"\": supported values: \"Immediate\", \"WaitForFirstConsumer\"",
        ),
    ] {
        check(create(plural, object), &[wanted]);
    }
}

#[test]
fn no_two_topologies_of_a_class_are_the_same() {
    let class = |topologies: Value| json!({"provisioner": "a", "allowedTopologies": topologies});
    let term = json!({"matchLabelExpressions": [{"key": "k", "values": ["v", "v"]}, {"key": "k"}]});
    check(
        create("storageclasses", class(json!([term, {"matchLabelExpressions": [{"key": "k"}]}]))),
        &[
            "allowedTopologies[0].matchLabelExpressions[0].values[1]: Duplicate value: \"v\"",
            "allowedTopologies[0].matchLabelExpressions[1].values: Required value",
            "allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: \"k\"",
            "allowedTopologies[1].matchLabelExpressions[0].values: Required value",
            "allowedTopologies[1].matchLabelExpressions: Duplicate value: \"\"",
        ],
    );
}

#[test]
fn claims_and_volumes_keep_what_they_are() {
    let claim = json!({
        "metadata": {"name": "c", "namespace": "n"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "2Gi"}}},
        "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}},
    });
    let spec = "spec: Forbidden: spec is immutable after creation except resources.requests and \
                volumeAttributesClassName for bound claims";
    let small = "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity";
    let storage = "/spec/resources/requests/storage";
    for (phase, pointer, value, wanted) in [
        ("Bound", storage, json!("3Gi"), &[][..]),
        ("Bound", storage, json!("1500Mi"), &[]),
        ("Bound", storage, json!("1Gi"), &[small]),
        ("Pending", storage, json!("3Gi"), &[spec]),
        ("Pending", "/spec/resources/limits", json!({}), &[]),
        ("Pending", "/spec/storageClassName", json!("fast"), &[]),
        ("Pending", "/spec/volumeName", json!("v"), &[]),
        ("Pending", "/spec/accessModes", json!(["ReadOnlyMany"]), &[spec]),
    ] {
        let mut claim = claim.clone();
        claim["status"]["phase"] = phase.into();
        let found = update("persistentvolumeclaims", &claim, &[(pointer, value.clone())]);
        assert_eq!(found, wanted, "{phase} {pointer} {value}");
    }
    let other = json!({"kind": "PersistentVolumeClaim", "name": "b"});
    let mut twice = claim.clone();
    twice["spec"]["dataSource"] = json!({"kind": "PersistentVolumeClaim", "name": "a"});
    twice["spec"]["dataSourceRef"] = twice["spec"]["dataSource"].clone();
    check(
        update("persistentvolumeclaims", &twice, &[("/spec/dataSourceRef", other)]),
        &["spec: Invalid value: {}: must match dataSourceRef", spec],
    );

    let volume = json!({
        "metadata": {"name": "v"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "csi": {"driver": "d", "volumeHandle": "h"},
            "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem",
        },
    });
    let source =
        "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation";
    let secret = json!({"name": "s", "namespace": "n"});
    check(update("persistentvolumes", &volume, &[("/spec/csi/controllerExpandSecretRef", secret)]), &[]);
    check(update("persistentvolumes", &volume, &[("/spec/csi/volumeHandle", json!("i"))]), &[source]);
    check(
        update("persistentvolumes", &volume, &[("/spec/glusterfs", json!({"endpoints": "e", "path": "p"}))]),
        &["spec.csi: Forbidden: may not specify more than 1 volume type", source],
    );
    let class = json!({"metadata": {"name": "c"}, "provisioner": "p", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"});
    check(
        update("storageclasses", &class, &[("/reclaimPolicy", json!("Retain"))]),
        &["reclaimPolicy: Invalid value: \"Retain\": field is immutable"],
    );
}

#[test]
fn an_event_tells_of_the_same_for_ever() {
    let def = table().iter().find(|def| def.group == "events.k8s.io" && def.plural == "events");
    let def = def.expect("it is in the table");
    let old = json!({
        "metadata": {"name": "e", "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
        "reason": "r", "action": "a", "type": "Normal", "reportingController": "a.b/c", "reportingInstance": "i",
        "regarding": {"kind": "Pod", "namespace": "default", "name": "p"},
    });
    for (field, value, wanted) in [
        ("series", json!({"count": 2, "lastObservedTime": "2026-01-01T00:00:00.000000Z"}), &[][..]),
        (
            "series",
            json!({"count": 1}),
            &[
                "series.count: Invalid value: \"\": should be at least 2",
                "series.lastObservedTime: Required value",
            ],
        ),
        ("reason", json!("s"), &["reason: Invalid value: \"s\": field is immutable"]),
        ("note", json!("n"), &["message: Invalid value: \"n\": field is immutable"]),
        (
            "reportingController",
            json!("d.e/f"),
            &["reportingController: Invalid value: \"d.e/f\": field is immutable"],
        ),
    ] {
        let mut new = old.clone();
        new[field] = value;
        let found: Vec<String> =
            def.strategy.validate_update(&new, &old).iter().map(ToString::to_string).collect();
        assert_eq!(found, wanted, "{field}");
    }
}
