//! Volumes of a storage driver: attached, mounted into a pod, kept while the server is away, and taken away.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use e2e::{Cluster, eventually, images};
use serde_json::Value;
use testkit::csi::{Driver, NAME};

const OBJECTS: &str = "
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: d.example.com}
spec: {attachRequired: true, podInfoOnMount: true, volumeLifecycleModes: [Persistent, Ephemeral]}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: disk}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  storageClassName: ''
  csi: {driver: d.example.com, volumeHandle: handle-of-disk}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ''
  volumeName: disk
  resources: {requests: {storage: 1Gi}}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: web
    image: 'test.local/web:v1'
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: own, mountPath: /own}
  volumes:
  - {name: data, persistentVolumeClaim: {claimName: claim}}
  - {name: own, csi: {driver: d.example.com}}
";

/// Does what the driver's own attacher would.
fn attach(cluster: &Cluster) -> String {
    let attachment = eventually("the volume is to be attached", || {
        let list = cluster.get("volumeattachments");
        let found = list["items"].as_array().and_then(|all| all.first().cloned());
        found.ok_or_else(|| "no attachment".to_owned())
    });
    assert_eq!(attachment["spec"]["attacher"], NAME);
    let name = attachment["metadata"]["name"].as_str().unwrap().to_owned();
    let mut attached = attachment;
    attached["status"] = serde_json::json!({"attached": true, "attachmentMetadata": {"disk": "7"}});
    cluster.put(&format!("/apis/storage.k8s.io/v1/volumeattachments/{name}/status"), &attached);
    name
}

fn mounts_of_drivers(cluster: &Cluster) -> usize {
    let all = linux::mounts::mounts_below(cluster.data_dir()).unwrap();
    all.iter().filter(|at| at.to_string_lossy().contains("kubernetes.io~csi")).count()
}

fn volumes_of(cluster: &Cluster) -> Vec<Value> {
    let summary = cluster.kubectl_prints("get --raw /api/v1/nodes/node-1/proxy/stats/summary");
    let summary: Value = serde_json::from_str(&summary).unwrap();
    summary["pods"][0]["volume"].as_array().cloned().unwrap_or_default()
}

#[test]
fn a_drivers_volumes_live_and_end_with_their_pod() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _inside = runtime.enter();
    let mut cluster = Cluster::start();
    let tree = tempfile::tempdir().unwrap();
    let driver = Driver::new(tree.path());
    driver.world().tree = Some(tree.path().to_owned());
    driver.announce(&cluster.data_dir().join("kubelet/plugins_registry"));
    let told = eventually("the cluster knows the driver", || {
        let drivers = cluster.get("csinode node-1")["spec"]["drivers"].clone();
        if drivers[0]["name"] == NAME { Ok(drivers) } else { Err(drivers.to_string()) }
    });
    assert_eq!((told[0]["nodeID"].as_str(), &told[0]["allocatable"]["count"]), (Some("n-1"), &3.into()));
    cluster.import(&images::web("test.local/web:v1", "one"));
    cluster.apply(OBJECTS);
    let attachment = attach(&cluster);
    cluster.kubectl_prints("wait --for=condition=Ready pod/web --timeout=60s");

    let mut kubectl = cluster.kubectl("exec web --");
    e2e::succeed(kubectl.args(["/bin/sh", "-c", "echo kept > /data/file; echo lost > /own/file"]));
    let kept = |name: &str| std::fs::read_to_string(tree.path().join(name).join("file")).unwrap_or_default();
    assert_eq!(kept("handle-of-disk"), "kept\n");
    assert_eq!(driver.world().last_stage.as_ref().unwrap().publish_context["disk"], "7");
    let node = cluster.get("node node-1");
    let unique = format!("kubernetes.io/csi/{NAME}^handle-of-disk");
    assert_eq!(node["status"]["volumesInUse"], serde_json::json!([unique]));
    assert_eq!(node["status"]["volumesAttached"][0]["name"], unique.as_str());
    let by_claim = volumes_of(&cluster).into_iter().find(|volume| volume["name"] == "data").unwrap();
    assert_eq!((&by_claim["usedBytes"], &by_claim["pvcRef"]["name"]), (&30.into(), &"claim".into()));
    assert_eq!(mounts_of_drivers(&cluster), 2);

    driver.calls();
    // The volume grows while nobody looks.
    let mut kubectl = cluster.kubectl("patch pv disk --type=merge -p");
    e2e::succeed(kubectl.arg(r#"{"spec":{"capacity":{"storage":"2Gi"}}}"#));
    cluster.kill_server();
    cluster.start_server();
    eventually("the claim has grown", || {
        let has = cluster.get("pvc claim")["status"]["capacity"]["storage"].clone();
        if has == "2Gi" { Ok(()) } else { Err(has.to_string()) }
    });
    assert_eq!(driver.calls(), ["expand handle-of-disk"], "what is mounted is not mounted again");
    assert!(driver.world().registered.len() >= 2, "the driver is known again");

    cluster.kubectl_prints("delete pod web --timeout=60s");
    eventually("nothing is staged or published", || {
        let world = driver.world();
        match world.staged.is_empty() && world.published.is_empty() {
            true => Ok(()),
            false => Err(format!("{:?} {:?}", world.staged, world.published)),
        }
    });
    eventually("the volume is detached", || {
        let output = cluster.kubectl("get volumeattachment").arg(&attachment).output().unwrap();
        if output.status.success() { Err("there".to_owned()) } else { Ok(()) }
    });
    assert_eq!(mounts_of_drivers(&cluster), 0);
    assert_eq!(kept("handle-of-disk"), "kept\n", "what the driver holds is left alone");
    assert_eq!(driver.world().nonsense, Vec::<String>::new());
    let plugins = cluster.data_dir().join("kubelet/plugins/kubernetes.io/csi").join(NAME);
    assert!(!plugins.exists() || std::fs::read_dir(Path::new(&plugins)).unwrap().next().is_none());
}
