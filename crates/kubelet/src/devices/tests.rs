//! A plugin of our own over real sockets.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use cri::deviceplugin::device_plugin_server::{DevicePlugin, DevicePluginServer};
use cri::deviceplugin::registration_client::RegistrationClient;
use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::*;

const RESOURCE: &str = "vendor.test/gpu";

/// Offers what it is told to, and notes what it is asked.
struct Mock {
    devices: watch::Receiver<Vec<dp::Device>>,
    asked: mpsc::Sender<String>,
}

impl Mock {
    async fn note(&self, what: &str, ids: &[String]) {
        let mut ids = ids.to_vec();
        ids.sort();
        self.asked.send(format!("{what} {}", ids.join(","))).await.unwrap();
    }
}

#[tonic::async_trait]
impl DevicePlugin for Mock {
    async fn get_device_plugin_options(
        &self,
        _: Request<dp::Empty>,
    ) -> Result<Response<dp::DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    type ListAndWatchStream =
        Pin<Box<dyn futures::Stream<Item = Result<dp::ListAndWatchResponse, Status>> + Send>>;

    async fn list_and_watch(
        &self,
        _: Request<dp::Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = WatchStream::new(self.devices.clone());
        let lists = futures::StreamExt::map(lists, |devices| Ok(dp::ListAndWatchResponse { devices }));
        Ok(Response::new(Box::pin(lists)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<dp::PreferredAllocationRequest>,
    ) -> Result<Response<dp::PreferredAllocationResponse>, Status> {
        let request = request.into_inner().container_requests.remove(0);
        self.note("prefer", &request.available_device_i_ds).await;
        let last = request.available_device_i_ds.into_iter().max().into_iter().collect();
        let answer = dp::ContainerPreferredAllocationResponse { device_i_ds: last };
        Ok(Response::new(dp::PreferredAllocationResponse { container_responses: vec![answer] }))
    }

    async fn allocate(
        &self,
        request: Request<dp::AllocateRequest>,
    ) -> Result<Response<dp::AllocateResponse>, Status> {
        let ids = request.into_inner().container_requests.remove(0).devices_ids;
        self.note("allocate", &ids).await;
        let device = dp::DeviceSpec {
            container_path: "/dev/gpu".into(),
            host_path: "/dev/null".into(),
            permissions: "rw".into(),
        };
        let answer = dp::ContainerAllocateResponse {
            envs: [("GPUS".to_owned(), ids.join(","))].into(),
            devices: vec![device],
            ..Default::default()
        };
        Ok(Response::new(dp::AllocateResponse { container_responses: vec![answer] }))
    }

    async fn pre_start_container(
        &self,
        request: Request<dp::PreStartContainerRequest>,
    ) -> Result<Response<dp::PreStartContainerResponse>, Status> {
        self.note("start", &request.into_inner().devices_ids).await;
        Ok(Response::new(dp::PreStartContainerResponse {}))
    }
}

fn options() -> dp::DevicePluginOptions {
    dp::DevicePluginOptions { pre_start_required: true, get_preferred_allocation_available: true }
}

struct Running {
    offer: watch::Sender<Vec<dp::Device>>,
    asked: mpsc::Receiver<String>,
    stop: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Starts a plugin and has it register.
    async fn new(dir: &Path, name: &str, devices: &[(&str, bool)]) -> Self {
        let (offer, offered) = watch::channel(list(devices));
        let (sender, asked) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let listener = UnixListener::bind(dir.join(name)).unwrap();
        let end = stop.clone().cancelled_owned();
        let served = tokio::spawn(async move {
            let mock = DevicePluginServer::new(Mock { devices: offered, asked: sender });
            let server = tonic::transport::Server::builder().add_service(mock);
            server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), end).await.unwrap();
        });
        register(dir, "v1beta1", name).await.unwrap();
        Running { offer, asked, stop, served }
    }
}

fn list(devices: &[(&str, bool)]) -> Vec<dp::Device> {
    let health = |healthy: bool| if healthy { "Healthy" } else { "Unhealthy" }.to_owned();
    let device = |(id, healthy): &(&str, bool)| dp::Device {
        id: (*id).to_owned(),
        health: health(*healthy),
        topology: None,
    };
    devices.iter().map(device).collect()
}

async fn register(dir: &Path, version: &str, name: &str) -> Result<(), Status> {
    let channel = cri::lazy(&dir.join(registration::SOCKET)).unwrap();
    let request = dp::RegisterRequest {
        version: version.into(),
        endpoint: name.into(),
        resource_name: RESOURCE.into(),
        options: Some(options()),
    };
    RegistrationClient::new(channel).register(request).await.map(drop)
}

fn pod(uid: &str, count: u32) -> Pod {
    let limits = json!({ RESOURCE: count.to_string() });
    let container = |name: &str| json!({"name": name, "resources": {"limits": limits}});
    let spec = json!({"initContainers": [container("first")], "containers": [container("main")]});
    let metadata = json!({"name": uid, "namespace": "n", "uid": uid});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

/// A kubelet's devices, and how to end what follows them.
async fn kubelet(dir: &Path) -> (Arc<Devices>, CancellationToken, tokio::task::JoinHandle<()>) {
    let devices = Arc::new(Devices::open(dir.to_owned(), Wakers::default()));
    let shutdown = CancellationToken::new();
    let (running, stop) = (devices.clone(), shutdown.clone());
    let _ = std::fs::remove_file(dir.join(registration::SOCKET));
    let task = tokio::spawn(async move { run(running, stop).await.unwrap() });
    while !dir.join(registration::SOCKET).exists() {
        tokio::task::yield_now().await;
    }
    (devices, shutdown, task)
}

/// Waits until so many devices are there and can be had.
async fn counts(devices: &Devices, want: (usize, usize)) {
    let reached = async {
        while devices.counts().get(RESOURCE) != Some(&want) {
            devices.changed().await;
        }
    };
    let outcome = tokio::time::timeout(Duration::from_secs(20), reached).await;
    assert!(outcome.is_ok(), "{want:?}: {:?}", devices.counts());
}

#[tokio::test]
async fn a_plugin_registers_gives_its_devices_and_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (devices, shutdown, task) = kubelet(dir.path()).await;
    let refused = register(dir.path(), "v1alpha", "gpu.sock").await.unwrap_err();
    assert!(refused.message().starts_with("requested API version \"v1alpha\""), "{refused}");
    let mut plugin =
        Running::new(dir.path(), "gpu.sock", &[("a", true), ("b", true), ("c", false), ("d", true)]).await;
    counts(&devices, (4, 3)).await;

    // The init container's device is its pod's other container's afterwards.
    let one = pod("one", 1);
    devices.allocate(&one).await.unwrap();
    assert_eq!(plugin.asked.recv().await.unwrap(), "prefer a,b,d");
    assert_eq!(plugin.asked.recv().await.unwrap(), "allocate d");
    assert_eq!(plugin.asked.recv().await.unwrap(), "allocate d");
    devices.allocate(&one).await.unwrap();
    let main = &pod::containers(&one)[0];
    let grants = devices.grants(&one, main).await.unwrap();
    assert_eq!(plugin.asked.recv().await.unwrap(), "start d");
    assert_eq!((grants.envs["GPUS"].as_str(), grants.devices[0].host_path.as_str()), ("d", "/dev/null"));
    let shown = devices.resources_of(&one, |_| Vec::new());
    let (container, of) = (&shown.containers[0], &shown.containers[0].devices[0]);
    let want = ("main", RESOURCE, vec!["d".to_owned()]);
    assert_eq!((container.name.as_str(), of.resource_name.as_str(), of.device_ids.clone()), want);

    let error = devices.allocate(&pod("two", 3)).await.unwrap_err();
    assert!(error.starts_with("requested number of devices unavailable"), "{error}");
    plugin.offer.send(list(&[("a", true), ("d", false)])).unwrap();
    counts(&devices, (2, 1)).await;
    let health = devices.health("one", "main");
    assert_eq!(health, [(RESOURCE.to_owned(), vec![("d".to_owned(), "Unhealthy")])]);

    // The next kubelet knows who has what, and that the plugin has to come back first.
    shutdown.cancel();
    task.await.unwrap();
    drop(devices);
    plugin.stop.cancel();
    plugin.served.await.unwrap();
    let (devices, shutdown, task) = kubelet(dir.path()).await;
    assert!(!dir.path().join("gpu.sock").exists(), "a socket that nobody answers at");
    assert_eq!(devices.counts()[RESOURCE], (0, 0));
    assert!(devices.allocate(&pod("two", 1)).await.unwrap_err().contains("no healthy devices present"));
    let plugin = Running::new(dir.path(), "gpu2.sock", &[("a", true), ("d", true)]).await;
    counts(&devices, (2, 2)).await;
    assert!(devices.allocate(&pod("two", 2)).await.unwrap_err().contains("Available: 1"));
    devices.release("one");
    devices.allocate(&pod("two", 2)).await.unwrap();

    // Its list ends with it.
    let Running { offer, stop, served, .. } = plugin;
    drop(offer);
    counts(&devices, (2, 0)).await;
    stop.cancel();
    served.await.unwrap();
    shutdown.cancel();
    task.await.unwrap();
}
