//! A storage driver of tests: it answers on a socket as drivers do, keeps account of what is staged and published,
//! and notes whatever it is asked that makes no sense. It can be told to fail, to hang before or after a call, and
//! to really mount.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use cri::csi as pb;
use cri::csi::node_server::{Node, NodeServer};
use cri::csi::node_service_capability::rpc::Type;
use cri::csi::node_service_capability::{Rpc, Type as Kind};
use cri::registration::registration_server::{Registration, RegistrationServer};
use cri::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};
use tokio::net::UnixListener;
use tokio::sync::Notify;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status};

pub const NAME: &str = "d.example.com";

#[derive(Default)]
pub struct World {
    /// `stage h`, `publish h`, …: each as it came.
    pub calls: Vec<String>,
    pub last_stage: Option<pb::NodeStageVolumeRequest>,
    pub last_publish: Option<pb::NodePublishVolumeRequest>,
    pub last_expand: Option<pb::NodeExpandVolumeRequest>,
    pub staged: BTreeMap<String, String>,
    pub published: BTreeSet<(String, String)>,
    /// What kubelets said of its registration.
    pub registered: Vec<RegistrationStatus>,
    /// What no kubelet should ask.
    pub nonsense: Vec<String>,
    pub failures: BTreeMap<&'static str, VecDeque<Code>>,
    /// The call that hangs, counted from now, and whether after it was done.
    pub hang: Option<(usize, bool)>,
    pub capabilities: Vec<Type>,
    /// The directory that holds a directory for each volume; without it nothing is mounted.
    pub tree: Option<PathBuf>,
}

/// The driver. It answers as long as the runtime lives that it was made in.
#[derive(Clone)]
pub struct Driver {
    world: Arc<Mutex<World>>,
    /// Told when a call hangs.
    pub hung: Arc<Notify>,
    pub socket: PathBuf,
}

/// Serves on a new socket.
fn serve(socket: &Path, services: tonic::service::Routes) {
    // One of an earlier driver may lie there.
    let _ = std::fs::remove_file(socket);
    let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
    tokio::spawn(tonic::transport::Server::builder().add_routes(services).serve_with_incoming(incoming));
}

impl Driver {
    /// Answers on a socket in the directory.
    pub fn new(dir: &Path) -> Self {
        let world = World {
            capabilities: vec![Type::StageUnstageVolume, Type::ExpandVolume, Type::GetVolumeStats],
            ..Default::default()
        };
        let socket = dir.join("csi.sock");
        let driver = Driver { world: Arc::new(Mutex::new(world)), hung: Arc::new(Notify::new()), socket };
        serve(&driver.socket, tonic::service::Routes::new(NodeServer::new(driver.clone())));
        driver
    }

    /// Makes itself known to the kubelet that looks into the directory.
    pub fn announce(&self, registry: &Path) {
        let socket = registry.join(format!("{NAME}-reg.sock"));
        serve(&socket, tonic::service::Routes::new(RegistrationServer::new(self.clone())));
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// What it was asked since it was last looked at.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.world().calls)
    }

    /// Does the call, unless it is to fail or to hang.
    async fn call<T>(
        &self,
        what: &'static str,
        handle: &str,
        act: impl FnOnce(&mut World) + Send,
        answer: T,
    ) -> Result<Response<T>, Status> {
        let hangs = {
            let mut world = self.world();
            world.calls.push(format!("{what} {handle}"));
            if let Some(code) = world.failures.get_mut(what).and_then(VecDeque::pop_front) {
                return Err(Status::new(code, format!("{what} went wrong")));
            }
            let now = match world.hang.as_mut() {
                Some((0, after)) => Some(*after),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            };
            if now != Some(false) {
                act(&mut world);
            }
            now.is_some()
        };
        if hangs {
            self.hung.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(Response::new(answer))
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<pb::NodeStageVolumeRequest>,
    ) -> Result<Response<pb::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let (handle, path) = (request.volume_id.clone(), request.staging_target_path.clone());
        let act = |world: &mut World| {
            if world.staged.get(&handle).is_some_and(|at| *at != path) {
                world.nonsense.push(format!("{handle} is staged twice"));
            }
            if !Path::new(&path).is_dir() {
                world.nonsense.push(format!("there is no {path}"));
            }
            world.staged.insert(handle.clone(), path);
            world.last_stage = Some(request);
        };
        self.call("stage", &handle.clone(), act, pb::NodeStageVolumeResponse {}).await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<pb::NodeUnstageVolumeRequest>,
    ) -> Result<Response<pb::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let handle = request.volume_id;
        let act = |world: &mut World| {
            if world.published.iter().any(|(published, _)| *published == handle) {
                world.nonsense.push(format!("{handle} is unstaged while published"));
            }
            world.staged.remove(&handle);
        };
        self.call("unstage", &handle.clone(), act, pb::NodeUnstageVolumeResponse {}).await
    }

    async fn node_publish_volume(
        &self,
        request: Request<pb::NodePublishVolumeRequest>,
    ) -> Result<Response<pb::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (handle, target) = (request.volume_id.clone(), request.target_path.clone());
        let act = |world: &mut World| {
            let staging = &request.staging_target_path;
            if !staging.is_empty() && world.staged.get(&handle) != Some(staging) {
                world.nonsense.push(format!("{handle} is published but not staged"));
            }
            let capability = request.volume_capability.as_ref().unwrap();
            match capability.access_type.as_ref().unwrap() {
                pb::volume_capability::AccessType::Block(_) => std::fs::write(&target, "").unwrap(),
                pb::volume_capability::AccessType::Mount(_) => std::fs::create_dir_all(&target).unwrap(),
            }
            if let Some(tree) = &world.tree {
                let source = tree.join(&handle);
                std::fs::create_dir_all(&source).unwrap();
                if !linux::mounts::is_mount_point(Path::new(&target)).unwrap() {
                    linux::mounts::bind(&source, Path::new(&target), false).unwrap();
                }
            }
            world.published.insert((handle.clone(), target));
            world.last_publish = Some(request);
        };
        self.call("publish", &handle.clone(), act, pb::NodePublishVolumeResponse {}).await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<pb::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<pb::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (handle, target) = (request.volume_id, request.target_path);
        let act = |world: &mut World| {
            linux::mounts::unmount_tree(Path::new(&target)).unwrap();
            let _ = std::fs::remove_dir(&target);
            let _ = std::fs::remove_file(&target);
            world.published.remove(&(handle.clone(), target));
        };
        self.call("unpublish", &handle.clone(), act, pb::NodeUnpublishVolumeResponse {}).await
    }

    async fn node_get_volume_stats(
        &self,
        _: Request<pb::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<pb::NodeGetVolumeStatsResponse>, Status> {
        let bytes = pb::VolumeUsage {
            available: 70,
            total: 100,
            used: 30,
            unit: pb::volume_usage::Unit::Bytes as i32,
        };
        Ok(Response::new(pb::NodeGetVolumeStatsResponse { usage: vec![bytes], volume_condition: None }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<pb::NodeExpandVolumeRequest>,
    ) -> Result<Response<pb::NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let handle = request.volume_id.clone();
        let act = |world: &mut World| world.last_expand = Some(request);
        self.call("expand", &handle, act, pb::NodeExpandVolumeResponse { capacity_bytes: 0 }).await
    }

    async fn node_get_capabilities(
        &self,
        _: Request<pb::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<pb::NodeGetCapabilitiesResponse>, Status> {
        let able =
            |kind: &Type| pb::NodeServiceCapability { r#type: Some(Kind::Rpc(Rpc { r#type: *kind as i32 })) };
        let capabilities = self.world().capabilities.iter().map(able).collect();
        Ok(Response::new(pb::NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_get_info(
        &self,
        _: Request<pb::NodeGetInfoRequest>,
    ) -> Result<Response<pb::NodeGetInfoResponse>, Status> {
        let segments = [("topology.d.example.com/zone".to_owned(), "a".to_owned())];
        Ok(Response::new(pb::NodeGetInfoResponse {
            node_id: "n-1".into(),
            max_volumes_per_node: 3,
            accessible_topology: Some(pb::Topology { segments: segments.into() }),
        }))
    }
}

#[tonic::async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".into(),
            name: NAME.into(),
            endpoint: self.socket.to_string_lossy().into_owned(),
            supported_versions: vec!["1.0.0".into()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        self.world().registered.push(request.into_inner());
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
