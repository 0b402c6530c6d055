//! The rows that `kubectl get` shows.

use expect_test::{Expect, expect};
use resources::table;
use serde_json::{Value, json};

/// Five minutes after what the objects here were made at.
const NOW: i64 = 300;

fn check(plural: &str, mut object: Value, expected: Expect) {
    object["metadata"]["creationTimestamp"] = json!("1970-01-01T00:00:00Z");
    let def = table().iter().find(|def| def.plural == plural).expect("the kind is there");
    let cells = (def.cells)(&object, NOW);
    let shown = def.columns.iter().zip(cells).map(|(column, cell)| {
        let cell = cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
        format!("{}={cell}", column.name)
    });
    expected.assert_eq(&shown.collect::<Vec<_>>().join(" | "));
}

#[test]
fn workloads() {
    let template =
        json!({"spec": {"containers": [{"name": "c", "image": "i:1"}, {"name": "d", "image": "j"}]}});
    let spec = json!({"replicas": 3, "selector": {"matchLabels": {"app": "a"}}, "template": template});
    check(
        "deployments",
        json!({"metadata": {"name": "web"}, "spec": spec, "status": {"readyReplicas": 2, "updatedReplicas": 3}}),
        expect![[
            "Name=web | Ready=2/3 | Up-to-date=3 | Available=0 | Age=5m | Containers=c,d | Images=i:1,j | Selector=app=a"
        ]],
    );
    check(
        "replicasets",
        json!({"metadata": {"name": "web"}, "spec": spec, "status": {"replicas": 3}}),
        expect![[
            "Name=web | Desired=3 | Current=3 | Ready=0 | Age=5m | Containers=c,d | Images=i:1,j | Selector=app=a"
        ]],
    );
    check(
        "jobs",
        json!({"metadata": {"name": "j"}, "spec": {"completions": 2, "template": template},
            "status": {"succeeded": 1, "startTime": "1970-01-01T00:04:00Z"}}),
        expect![[
            "Name=j | Status=Running | Completions=1/2 | Duration=60s | Age=5m | Containers=c,d | Images=i:1,j | \
             Selector=<none>"
        ]],
    );
}

#[test]
fn services_and_endpoints() {
    check(
        "services",
        json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "clusterIPs": ["10.43.0.9"],
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
            "selector": {"b": "2", "a": "1"}}}),
        expect![[
            "Name=s | Type=NodePort | Cluster-IP=10.43.0.9 | External-IP=<none> | Port(s)=80:30080/TCP,53/UDP | Age=5m \
             | Selector=a=1,b=2"
        ]],
    );
    check(
        "services",
        json!({"metadata": {"name": "s"}, "spec": {"type": "LoadBalancer"}}),
        expect![[
            "Name=s | Type=LoadBalancer | Cluster-IP=<none> | External-IP=<pending> | Port(s)=<none> | Age=5m | \
             Selector=<none>"
        ]],
    );
    let addresses: Vec<Value> = (1..6).map(|i| json!({"ip": format!("10.42.0.{i}")})).collect();
    check(
        "endpoints",
        json!({"metadata": {"name": "s"}, "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]}),
        expect![["Name=s | Endpoints=10.42.0.1:80,10.42.0.2:80,10.42.0.3:80 + 2 more... | Age=5m"]],
    );
    check(
        "endpointslices",
        json!({"metadata": {"name": "s"}, "addressType": "IPv4", "ports": [{"port": 80}],
            "endpoints": [{"addresses": ["10.42.0.1"]}, {"addresses": ["10.42.0.2"]}]}),
        expect![["Name=s | AddressType=IPv4 | Ports=80 | Endpoints=10.42.0.1,10.42.0.2 | Age=5m"]],
    );
}

#[test]
fn nodes_and_events() {
    check(
        "nodes",
        json!({"metadata": {"name": "n", "labels": {"node-role.kubernetes.io/control-plane": ""}},
            "spec": {"unschedulable": true}, "status": {"conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian", "kernelVersion": "6.1", "architecture": "amd64",
                "containerRuntimeVersion": "trierarch://0.1"}}}),
        expect![[
            "Name=n | Status=Ready,SchedulingDisabled | Roles=control-plane | Age=5m | Version=v1.36.0 | \
             Internal-IP=10.0.0.1 | External-IP=<none> | OS-Image=Debian | Kernel-Version=6.1 (amd64) | \
             Container-Runtime=trierarch://0.1"
        ]],
    );
    check(
        "events",
        json!({"metadata": {"name": "e"}, "lastTimestamp": "1970-01-01T00:04:00Z", "count": 4, "type": "Normal",
            "firstTimestamp": "1970-01-01T00:01:00Z", "reason": "Pulled", "message": " done ",
            "involvedObject": {"kind": "Pod", "name": "p"}, "source": {"component": "kubelet", "host": "n"}}),
        expect![[
            "Last Seen=60s | Type=Normal | Reason=Pulled | Object=pod/p | Subobject= | Source=kubelet, n | Message=done \
             | First Seen=4m | Count=4 | Name=e"
        ]],
    );
}

#[test]
fn storage_and_access() {
    check(
        "persistentvolumeclaims",
        json!({"metadata": {"name": "c"}, "spec": {"volumeName": "v", "storageClassName": "fast"},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]}}),
        expect![[
            "Name=c | Status=Bound | Volume=v | Capacity=1Gi | Access Modes=RWO | StorageClass=fast | \
             VolumeAttributesClass=<unset> | Age=5m | VolumeMode=<unset>"
        ]],
    );
    check(
        "clusterrolebindings",
        json!({"metadata": {"name": "b"}, "roleRef": {"kind": "ClusterRole", "name": "r"}, "subjects": [
            {"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}),
        expect![["Name=b | Role=ClusterRole/r | Age=5m | Users=u | Groups= | ServiceAccounts=n/s"]],
    );
    check("roles", json!({"metadata": {"name": "r"}}), expect![["Name=r | Created At=1970-01-01T00:00:00Z"]]);
}
