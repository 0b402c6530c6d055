//! The kubelet's side of drivers against a real API server in memory and a driver on a socket.

mod faults;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use api::Object;
use api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use apiserver::seams::UserInfo;
use apiserver::testing;
use client::{Client, PatchType};
use controller_runtime::{Clock, EventRecorder, InformerFactory};
use cri::csi::node_service_capability::rpc::Type;
use cri::csi::volume_capability::AccessType;
use jiff::Timestamp;
use serde_json::{Value, json};
use testkit::csi::{Driver, NAME};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::record::{self, Found};
use super::source::Source;
use super::{Csi, Parts};
use crate::objects::Wakers;
use crate::paths::Paths;
use crate::plugins::{Handler, Plugin};
use crate::volumes::VolumeError;
use crate::volumes::setup::Mounted;
use crate::volumes::tokens::Tokens;

struct Bench {
    dir: tempfile::TempDir,
    client: Client,
    mock: Driver,
    csi: Arc<Csi>,
    seconds: Arc<AtomicI64>,
    shutdown: CancellationToken,
    _server: Arc<apiserver::ApiServer>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn object<T: Object>(value: Value) -> T {
    T::from_value(value).unwrap()
}

fn plugin(driver: &Driver) -> Plugin {
    Plugin {
        kind: "CSIPlugin".into(),
        name: NAME.into(),
        endpoint: driver.socket.clone(),
        versions: vec!["1.0.0".into()],
    }
}

fn pod(uid: &str) -> Pod {
    object(json!({
        "metadata": {"name": format!("pod-{uid}"), "namespace": "n", "uid": uid},
        "spec": {
            "serviceAccountName": "sa", "containers": [],
            "securityContext": {"fsGroup": 77},
        },
    }))
}

impl Bench {
    /// A node with a driver whose object says `spec`.
    async fn new(spec: Value) -> Self {
        let server = testing::server().await;
        let user =
            UserInfo { name: "test".into(), groups: vec!["system:masters".into()], ..Default::default() };
        let client = Client::new(server.in_process(user), "test");
        let node: Node = object(json!({"metadata": {"name": "node"}}));
        client.create(&node).await.unwrap();
        let namespace = object::<api::core::v1::Namespace>(json!({"metadata": {"name": "n"}}));
        client.create(&namespace).await.unwrap();
        let driver: CSIDriver = object(json!({"metadata": {"name": NAME}, "spec": spec}));
        client.create(&driver).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let mock = Driver::new(dir.path());
        let seconds = Arc::new(AtomicI64::new(1_000_000));
        let shutdown = CancellationToken::new();
        let csi = Self::start(&dir, &client, &seconds, &shutdown).await;
        csi.register(&plugin(&mock)).await.unwrap();
        Bench { dir, client, mock, csi, seconds, shutdown, _server: server }
    }

    async fn start(
        dir: &tempfile::TempDir,
        client: &Client,
        seconds: &Arc<AtomicI64>,
        shutdown: &CancellationToken,
    ) -> Arc<Csi> {
        let seconds = seconds.clone();
        let clock = Clock::new(move || Timestamp::from_second(seconds.load(Ordering::Relaxed)).unwrap());
        let informers = InformerFactory::new(client.clone(), shutdown.clone());
        let kinds = informers.informer();
        informers.start();
        assert!(kinds.synced().await);
        Arc::new(Csi::new(Parts {
            paths: Paths::new(dir.path(), dir.path()),
            node_name: "node".into(),
            boot_id: "boot".into(),
            client: client.clone(),
            clock: clock.clone(),
            tokens: Arc::new(Tokens::new(client.clone(), clock.clone())),
            kinds,
            wakers: Wakers::default(),
            recorder: EventRecorder::new(client.clone(), "kubelet", "node", clock).0,
        }))
    }

    /// Another kubelet comes in place of the one before, which has no chance to do anything.
    async fn restart(&mut self) {
        self.csi = Self::start(&self.dir, &self.client, &self.seconds, &self.shutdown).await;
        self.csi.register(&plugin(&self.mock)).await.unwrap();
    }

    fn found(&self) -> Found {
        record::scan(&Paths::new(self.dir.path(), self.dir.path()))
    }

    /// A bound claim and its volume. `more` is put into the volume's spec.
    async fn source(&self, name: &str, more: Value) -> Source {
        let mut spec = json!({
            "capacity": {"storage": "1Gi"},
            "accessModes": ["ReadWriteOnce"],
            "csi": {"driver": NAME, "volumeHandle": name, "fsType": "ext4", "volumeAttributes": {"a": "b"}},
        });
        json_merge(&mut spec, more);
        let volume: PersistentVolume =
            object(json!({"metadata": {"name": format!("pv-{name}")}, "spec": spec}));
        let claim: PersistentVolumeClaim = object(json!({
            "metadata": {"name": format!("claim-{name}"), "namespace": "n"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
                "volumeName": format!("pv-{name}"),
            },
        }));
        let volume = self.client.create(&volume).await.unwrap();
        self.client.create(&claim).await.unwrap();
        let claim = self.tell(claim.name(), json!({"phase": "Bound", "capacity": {"storage": "1Gi"}})).await;
        Source::of_volume(&claim, &volume, false).unwrap()
    }

    /// Puts something into the status of a claim.
    async fn tell(&self, claim: &str, status: Value) -> PersistentVolumeClaim {
        let patch = json!({ "status": status });
        self.client.patch("n", claim, Some("status"), PatchType::Merge, &patch).await.unwrap()
    }

    async fn setup(&self, pod: &Pod, source: &Source) -> Result<Mounted, VolumeError> {
        self.csi.setup(pod, source, None).await
    }

    /// Takes the pod's volumes away, and unstages what nobody uses then.
    async fn teardown(&self, uid: &str) -> Result<(), String> {
        self.csi.teardown(uid).await.map_err(|error| error.to_string())?;
        let leavers = self.csi.ledger().leavers();
        for key in leavers {
            self.csi.leave(&key).await?;
        }
        Ok(())
    }

    fn after(&self, seconds: i64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Nothing is left anywhere, and nothing odd was asked.
    fn assert_clean(&self) {
        assert_eq!(self.found(), Found::default());
        assert_eq!(self.csi.in_use(), Vec::<String>::new());
        let world = self.mock.world();
        assert_eq!(world.nonsense, Vec::<String>::new());
        assert!(world.staged.is_empty() && world.published.is_empty());
    }
}

fn json_merge(base: &mut Value, more: Value) {
    match (base, more) {
        (Value::Object(base), Value::Object(more)) => {
            more.into_iter()
                .for_each(|(key, value)| json_merge(base.entry(key).or_insert(Value::Null), value));
        }
        (base, more) => *base = more,
    }
}

fn plain() -> Value {
    json!({"attachRequired": false, "fsGroupPolicy": "File"})
}

#[tokio::test]
async fn a_volume_is_staged_once_and_published_to_each_pod() {
    let bench = Bench::new(plain()).await;
    let secret: Secret =
        object(json!({"metadata": {"name": "s", "namespace": "n"}, "data": {"key": "c2VjcmV0"}}));
    bench.client.create(&secret).await.unwrap();
    let reference = json!({"name": "s", "namespace": "n"});
    let source = bench
        .source(
            "h",
            json!({
                "mountOptions": ["noatime"],
                "csi": {"nodeStageSecretRef": reference, "nodePublishSecretRef": reference},
            }),
        )
        .await;
    let mounted = bench.setup(&pod("u1"), &source).await.unwrap();
    assert!(mounted.path.is_dir() && mounted.path.ends_with("pods/u1/volumes/kubernetes.io~csi/pv-h/mount"));
    use std::os::unix::fs::MetadataExt;
    assert_eq!(
        mounted.path.metadata().unwrap().gid(),
        77,
        "the driver's policy lets us give it to the group"
    );
    bench.setup(&pod("u2"), &source).await.unwrap();
    bench.setup(&pod("u2"), &source).await.unwrap();
    assert_eq!(bench.mock.calls(), ["stage h", "publish h", "publish h"]);
    {
        let world = bench.mock.world();
        let (stage, publish) = (world.last_stage.as_ref().unwrap(), world.last_publish.as_ref().unwrap());
        assert_eq!((stage.secrets["key"].as_str(), stage.volume_context["a"].as_str()), ("secret", "b"));
        assert_eq!(publish.staging_target_path, stage.staging_target_path);
        assert_eq!(publish.secrets["key"], "secret");
        let capability = publish.volume_capability.as_ref().unwrap();
        let Some(AccessType::Mount(mount)) = &capability.access_type else { panic!("{capability:?}") };
        assert_eq!(
            (mount.fs_type.as_str(), mount.mount_flags.as_slice()),
            ("ext4", &["noatime".to_owned()][..])
        );
        assert_eq!(mount.volume_mount_group, "");
        assert!(!publish.volume_context.contains_key("csi.storage.k8s.io/pod.name"));
    }
    let usage = bench.csi.stats("u1").await;
    assert_eq!((usage[0].0.as_str(), usage[0].1.used_bytes), ("pv-h", Some(30)));
    bench.teardown("u1").await.unwrap();
    assert_eq!(bench.mock.calls(), ["unpublish h"]);
    bench.teardown("u2").await.unwrap();
    assert_eq!(bench.mock.calls(), ["unpublish h", "unstage h"]);
    bench.assert_clean();
}

#[tokio::test]
async fn a_driver_may_give_files_to_the_group_itself() {
    let bench = Bench::new(plain()).await;
    bench.mock.world().capabilities = vec![Type::VolumeMountGroup, Type::SingleNodeMultiWriter];
    let source = bench.source("h", json!({})).await;
    bench.setup(&pod("u"), &source).await.unwrap();
    assert_eq!(bench.mock.calls(), ["publish h"], "a driver that stages nothing is not asked to");
    let publish = bench.mock.world().last_publish.clone().unwrap();
    let capability = publish.volume_capability.unwrap();
    let Some(AccessType::Mount(mount)) = capability.access_type else { panic!("no files") };
    assert_eq!((mount.volume_mount_group.as_str(), publish.staging_target_path.as_str()), ("77", ""));
    let multi = cri::csi::volume_capability::access_mode::Mode::SingleNodeMultiWriter as i32;
    assert_eq!(capability.access_mode.unwrap().mode, multi);
    bench.teardown("u").await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn a_pods_own_volume_knows_its_pod() {
    let spec = json!({
        "attachRequired": true, "podInfoOnMount": true, "volumeLifecycleModes": ["Ephemeral"],
    });
    let bench = Bench::new(spec).await;
    let csi = serde_json::from_value(json!({"driver": NAME, "volumeAttributes": {"x": "y"}})).unwrap();
    let source = Source::of_pod(&pod("u"), "own", &csi);
    bench.setup(&pod("u"), &source).await.unwrap();
    assert_eq!(bench.csi.in_use(), Vec::<String>::new(), "nothing is attached for it");
    let context = bench.mock.world().last_publish.clone().unwrap().volume_context;
    let told = |key: &str| context[&format!("csi.storage.k8s.io/{key}")].clone();
    assert_eq!(
        ["pod.name", "pod.namespace", "pod.uid", "serviceAccount.name", "ephemeral"].map(told),
        ["pod-u", "n", "u", "sa", "true"]
    );
    assert_eq!(context["x"], "y");
    let persistent = bench.source("h", json!({})).await;
    let refused = super::source::refusal(&persistent.identity, bench.csi.kind(NAME).as_deref());
    let want =
        format!("volume mode \"Persistent\" not supported by driver {NAME} (only supports [\"Ephemeral\"])");
    assert_eq!(refused, Some(want));
    bench.mock.calls();
    bench.teardown("u").await.unwrap();
    assert_eq!(bench.mock.calls(), [format!("unpublish {}", source.identity.handle)]);
    bench.assert_clean();
}

#[tokio::test]
async fn a_device_is_found_by_the_pods_link() {
    let bench = Bench::new(plain()).await;
    let source = bench.source("h", json!({"volumeMode": "Block"})).await;
    let mounted = bench.setup(&pod("u"), &source).await.unwrap();
    assert!(mounted.is_device && mounted.path.ends_with("pods/u/volumeDevices/kubernetes.io~csi/pv-h"));
    let publish = bench.mock.world().last_publish.clone().unwrap();
    assert_eq!(
        std::fs::read_link(&mounted.path).unwrap(),
        std::fs::canonicalize(&publish.target_path).unwrap()
    );
    let devices = "plugins/kubernetes.io/csi/volumeDevices";
    assert!(publish.target_path.ends_with(&format!("{devices}/publish/pv-h/u")));
    assert!(publish.staging_target_path.ends_with(&format!("{devices}/staging/pv-h")));
    assert!(matches!(publish.volume_capability.unwrap().access_type, Some(AccessType::Block(_))));
    bench.teardown("u").await.unwrap();
    assert_eq!(bench.mock.calls(), ["stage h", "publish h", "unpublish h", "unstage h"]);
    assert!(std::fs::symlink_metadata(&mounted.path).is_err());
    bench.assert_clean();
}

#[tokio::test]
async fn attaching_comes_first() {
    let bench = Bench::new(json!({})).await;
    let source = bench.source("h", json!({})).await;
    let name = source.identity.unique_name();
    let node = |in_use: bool, attached: bool| -> Node {
        let attached: Vec<_> =
            attached.then(|| json!({"name": name, "devicePath": ""})).into_iter().collect();
        let in_use: Vec<_> = in_use.then(|| name.clone()).into_iter().collect();
        object(json!({"metadata": {"name": "node"},
            "status": {"volumesInUse": in_use, "volumesAttached": attached}}))
    };
    let outcome = |node: Node| {
        let (csi, source) = (bench.csi.clone(), source.clone());
        async move {
            csi.setup(&pod("u"), &source, Some(&node)).await.err().map(|e| (e.event("v"), e.to_string()))
        }
    };
    let (event, why) = outcome(node(false, false)).await.unwrap();
    assert!(event.is_none() && why.contains("VolumesInUse"), "{why}");
    assert_eq!(bench.csi.in_use(), std::slice::from_ref(&name));
    let (event, why) = outcome(node(true, false)).await.unwrap();
    assert!(event.is_none() && why.contains("not attached according to node status"), "{why}");
    let (event, _) = outcome(node(true, true)).await.unwrap();
    let attachment = super::mount::attachment_name(&source.identity, "node");
    let (reason, message) = event.unwrap();
    assert_eq!(reason, "FailedMount");
    assert!(
        message.starts_with("MountVolume.WaitForAttach failed for volume \"pv-h\" : volume h has GET error")
    );
    let made: VolumeAttachment = object(json!({
        "metadata": {"name": attachment},
        "spec": {"attacher": NAME, "nodeName": "node", "source": {"persistentVolumeName": "pv-h"}},
    }));
    let mut made = bench.client.create(&made).await.unwrap();
    made.status =
        Some(serde_json::from_value(json!({"attached": true, "attachmentMetadata": {"disk": "7"}})).unwrap());
    bench.client.update_status(&made).await.unwrap();
    assert_eq!(bench.mock.calls(), Vec::<String>::new());
    let (event, why) = outcome(node(true, true)).await.unwrap();
    assert!(event.is_none() && why.contains("waits after it failed"), "{why}");
    bench.after(1);
    assert!(outcome(node(true, true)).await.is_none());
    let world = bench.mock.world();
    assert_eq!(world.last_stage.as_ref().unwrap().publish_context["disk"], "7");
    assert_eq!(world.last_publish.as_ref().unwrap().publish_context["disk"], "7");
}

#[tokio::test]
async fn a_volume_grows_where_it_is() {
    let bench = Bench::new(plain()).await;
    let mut source = bench.source("h", json!({})).await;
    let objects = source.objects.as_ref().unwrap();
    let (claim, volume) = (objects.0.name().to_owned(), objects.1.name().to_owned());
    bench.setup(&pod("u"), &source).await.unwrap();
    assert_eq!(bench.mock.calls(), ["stage h", "publish h"]);
    let patch = json!({"spec": {"capacity": {"storage": "2Gi"}}});
    let grown =
        bench.client.patch::<PersistentVolume>("", &volume, None, PatchType::Merge, &patch).await.unwrap();
    let waiting = json!({
        "allocatedResources": {"storage": "2Gi"},
        "allocatedResourceStatuses": {"storage": "NodeResizePending"},
        "conditions": [{"type": "FileSystemResizePending", "status": "True"}],
    });
    let more = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    let claims = bench.client.patch::<PersistentVolumeClaim>("n", &claim, None, PatchType::Merge, &more);
    claims.await.unwrap();
    source.objects = Some(Box::new((bench.tell(&claim, waiting).await, grown)));
    bench.mock.world().failures.insert("expand", [Code::Internal].into());
    bench.setup(&pod("u"), &source).await.unwrap();
    let claim_now = || async { bench.client.get::<PersistentVolumeClaim>("n", &claim).await.unwrap() };
    let now = claim_now().await;
    let status = now.status.as_ref().unwrap();
    let failed = status.conditions.iter().flatten().find(|c| c.type_ == "NodeResizeError").unwrap();
    let want = "failed to expand pvc with Expander.NodeExpand failed to expand the volume : \
                rpc error: code = Internal desc = expand went wrong";
    assert_eq!(failed.message.as_deref(), Some(want));
    source.objects.as_mut().unwrap().0 = now;
    bench.setup(&pod("u"), &source).await.unwrap();
    let status = claim_now().await.status.unwrap();
    assert_eq!(status.capacity.unwrap()["storage"].0, "2Gi");
    assert_eq!(status.allocated_resource_statuses.unwrap_or_default().len(), 0);
    assert_eq!(status.conditions.unwrap_or_default().len(), 0);
    let asked = bench.mock.world().last_expand.clone().unwrap();
    assert_eq!(asked.capacity_range.unwrap().required_bytes, 2 << 30);
    assert!(asked.volume_path.ends_with("pv-h/mount") && asked.staging_target_path.ends_with("globalmount"));
    bench.setup(&pod("u"), &source).await.unwrap();
    assert_eq!(bench.mock.calls(), ["expand h", "expand h"], "it has grown, and nobody is asked again");
}

#[tokio::test]
async fn what_fails_is_left_alone_for_a_while() {
    let bench = Bench::new(plain()).await;
    let source = bench.source("h", json!({})).await;
    let p = pod("u");
    let attempt = || async { bench.setup(&p, &source).await.err().map(|error| error.event("v")) };
    let failure = "rpc error: code = Internal desc = stage went wrong";
    let message = format!("MountVolume.MountDevice failed for volume \"pv-h\" : {failure}");
    bench.mock.world().failures.insert("stage", [Code::Internal, Code::Internal].into());
    assert_eq!(attempt().await, Some(Some(("FailedMount", message.clone()))));
    assert_eq!(bench.found(), Found::default(), "the driver has surely not staged it");
    assert_eq!(attempt().await, Some(None));
    bench.after(1);
    assert_eq!(attempt().await, Some(Some(("FailedMount", message))));
    bench.after(2);
    bench.mock.world().failures.insert("publish", [Code::DeadlineExceeded].into());
    let (_, message) = attempt().await.unwrap().unwrap();
    assert!(
        message
            .starts_with("MountVolume.SetUp failed for volume \"pv-h\" : rpc error: code = DeadlineExceeded")
    );
    assert_eq!(bench.found().published.len(), 1, "the driver may have published it");
    assert_eq!(bench.mock.calls(), ["stage h", "stage h", "stage h", "publish h"]);
    bench.teardown("u").await.unwrap();
    assert_eq!(bench.mock.calls(), ["unpublish h", "unstage h"]);
    bench.assert_clean();
}

#[tokio::test]
async fn a_driver_that_is_away_is_waited_for() {
    let bench = Bench::new(plain()).await;
    let source = bench.source("h", json!({})).await;
    let plugin = plugin(&bench.mock);
    let csi_node = || async { bench.client.get::<CSINode>("", "node").await.unwrap() };
    let node = || async { bench.client.get::<Node>("", "node").await.unwrap() };
    let told = csi_node().await.spec.drivers;
    assert_eq!((told[0].name.as_str(), told[0].node_id.as_str()), (NAME, "n-1"));
    assert_eq!(told[0].allocatable.as_ref().unwrap().count, Some(3));
    let metadata = node().await.metadata;
    let annotations = metadata.annotations.unwrap();
    assert_eq!(annotations["csi.volume.kubernetes.io/nodeid"], format!("{{\"{NAME}\":\"n-1\"}}"));
    assert_eq!(metadata.labels.unwrap()["topology.d.example.com/zone"], "a");

    bench.csi.deregister(&plugin).await;
    assert!(csi_node().await.spec.drivers.is_empty());
    assert!(
        !node()
            .await
            .metadata
            .annotations
            .unwrap_or_default()
            .contains_key("csi.volume.kubernetes.io/nodeid")
    );
    let (_, message) = bench.setup(&pod("u"), &source).await.err().unwrap().event("v").unwrap();
    assert_eq!(
        message,
        format!(
            "MountVolume.MountDevice failed for volume \"pv-h\" : kubernetes.io/csi: attacher.MountDevice failed \
             to create newCsiDriverClient: driver name {NAME} not found in the list of registered CSI drivers"
        )
    );
    bench.csi.register(&plugin).await.unwrap();
    bench.setup(&pod("u"), &source).await.expect("who waited for the driver need not wait longer");
    bench.csi.deregister(&plugin).await;
    let why = bench.teardown("u").await.err().unwrap();
    assert!(why.starts_with("UnmountVolume.TearDown failed for volume \"pv-h\" : "), "{why}");
    bench.csi.register(&plugin).await.unwrap();
    bench.teardown("u").await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn what_is_for_one_pod_is_had_by_one() {
    let bench = Bench::new(plain()).await;
    let source = bench.source("h", json!({"accessModes": ["ReadWriteOncePod"]})).await;
    bench.setup(&pod("u1"), &source).await.unwrap();
    let (_, message) = bench.setup(&pod("u2"), &source).await.err().unwrap().event("v").unwrap();
    assert_eq!(
        message,
        "MountVolume.SetUp failed for volume \"pv-h\" : volume uses the ReadWriteOncePod access mode and is \
         already in use by another pod"
    );
    bench.teardown("u1").await.unwrap();
    bench.after(1);
    bench.setup(&pod("u2"), &source).await.unwrap();
}

#[tokio::test]
async fn a_driver_may_want_to_publish_again() {
    let mut spec = plain();
    spec["requiresRepublish"] = json!(true);
    let bench = Bench::new(spec).await;
    let source = bench.source("h", json!({})).await;
    bench.setup(&pod("u"), &source).await.unwrap();
    bench.mock.world().failures.insert("publish", [Code::Internal].into());
    let mounted = bench.setup(&pod("u"), &source).await.expect("the pod keeps what it has");
    assert!(mounted.path.is_dir());
    bench.setup(&pod("u"), &source).await.unwrap();
    assert_eq!(bench.mock.calls(), ["stage h", "publish h", "publish h", "publish h"]);
    bench.teardown("u").await.unwrap();
    bench.assert_clean();
}

#[tokio::test]
async fn a_node_may_have_no_room() {
    let bench = Bench::new(json!({"nodeAllocatableUpdatePeriodSeconds": 30})).await;
    let source = bench.source("h", json!({})).await;
    let unique = source.identity.unique_name();
    let node: Node = object(json!({"metadata": {"name": "node"}, "status": {"volumesInUse": [unique]}}));
    let outcome = || async { bench.csi.setup(&pod("u"), &source, Some(&node)).await.err().unwrap() };
    assert!(matches!(outcome().await, VolumeError::Pending(_)));
    let attachment: VolumeAttachment = object(json!({
        "metadata": {"name": super::mount::attachment_name(&source.identity, "node")},
        "spec": {"attacher": NAME, "nodeName": "node", "source": {"persistentVolumeName": "pv-h"}},
    }));
    let mut attachment = bench.client.create(&attachment).await.unwrap();
    let full = json!({"attached": false, "attachError": {"message": "full", "errorCode": 8}});
    attachment.status = Some(serde_json::from_value(full).unwrap());
    bench.client.update_status(&attachment).await.unwrap();
    let failed =
        [("data".to_owned(), outcome().await), ("other".to_owned(), VolumeError::Refused("no".into()))];
    assert_eq!(
        crate::volumes::exhausted(&failed).unwrap(),
        "Node has reached its volume attachment limit, rejecting pod. unmounted volumes=[data other], unattached \
         volumes=[data], failed to process volumes=[]: context deadline exceeded"
    );
    assert_eq!(crate::volumes::exhausted(&failed[1..]), None);
}
