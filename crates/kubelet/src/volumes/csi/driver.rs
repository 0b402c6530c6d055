//! The drivers that have registered on this node, and calls of them.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cri::csi as pb;
use cri::csi::node_client::NodeClient;
use cri::csi::node_service_capability::{Type, rpc};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};

use crate::plugins::Plugin;
use crate::runtime::describe;

/// How long a driver has for one call.
// Upstream: pkg/volume/csi/csi_plugin.go csiTimeout
const TIMEOUT: Duration = Duration::from_secs(120);

/// A version as drivers tell theirs; those of the second and later may speak another language.
type Version = (u64, u64, u64);

/// A driver that can be called.
#[derive(Clone)]
pub struct Driver {
    plugin: Plugin,
    version: Version,
    client: NodeClient<Channel>,
}

/// What a driver can do beside publishing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub stage: bool,
    pub stats: bool,
    pub expand: bool,
    pub condition: bool,
    pub single_node_multi_writer: bool,
    pub volume_mount_group: bool,
}

/// A call that failed.
#[derive(Clone, Debug)]
pub struct Failure {
    pub why: String,
    pub code: Code,
}

impl Failure {
    /// Whether the driver has surely not done what it was asked, nor is about to.
    // Upstream: pkg/volume/csi/csi_client.go isFinalError
    pub fn is_final(&self) -> bool {
        use Code::{Aborted, Cancelled, DeadlineExceeded, ResourceExhausted, Unavailable};
        !matches!(self.code, Cancelled | DeadlineExceeded | Unavailable | ResourceExhausted | Aborted)
    }
}

type Called<T> = Result<T, Failure>;

async fn in_time<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Called<T> {
    let answer = tokio::time::timeout(TIMEOUT, call).await;
    let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("context deadline exceeded")));
    answer.map(Response::into_inner).map_err(|status| Failure { why: describe(&status), code: status.code() })
}

fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    request
}

impl Driver {
    /// The driver of a plugin, if it speaks a version that we do.
    // Upstream: k8s.io/apimachinery/pkg/util/version HighestSupportedVersion
    pub fn new(plugin: &Plugin) -> Result<Self, String> {
        let supported = plugin.versions.iter().filter_map(|text| parse(text)).filter(|v| v.0 == 1);
        let version = supported.max().ok_or_else(|| {
            let (name, versions) = (&plugin.name, plugin.versions.join(" "));
            if plugin.versions.is_empty() {
                return format!(
                    "CSI driver {name:?} failed. Plugin returned an empty list for supported versions"
                );
            }
            format!("CSI driver {name:?} failed. None of the versions specified [{versions}] are supported.")
        })?;
        let channel = cri::lazy(&plugin.endpoint).map_err(|error| error.to_string())?;
        Ok(Driver { plugin: plugin.clone(), version, client: NodeClient::new(channel) })
    }

    pub async fn info(&self) -> Called<pb::NodeGetInfoResponse> {
        in_time(self.client.clone().node_get_info(request(pb::NodeGetInfoRequest {}))).await
    }

    pub async fn capabilities(&self) -> Called<Capabilities> {
        let mut client = self.client.clone();
        let answer =
            in_time(client.node_get_capabilities(request(pb::NodeGetCapabilitiesRequest {}))).await?;
        let mut able = Capabilities::default();
        for capability in answer.capabilities {
            let Some(Type::Rpc(rpc)) = capability.r#type else { continue };
            match rpc.r#type() {
                rpc::Type::Unknown => {}
                rpc::Type::StageUnstageVolume => able.stage = true,
                rpc::Type::GetVolumeStats => able.stats = true,
                rpc::Type::ExpandVolume => able.expand = true,
                rpc::Type::VolumeCondition => able.condition = true,
                rpc::Type::SingleNodeMultiWriter => able.single_node_multi_writer = true,
                rpc::Type::VolumeMountGroup => able.volume_mount_group = true,
            }
        }
        Ok(able)
    }

    pub async fn stage(&self, message: pb::NodeStageVolumeRequest) -> Called<()> {
        in_time(self.client.clone().node_stage_volume(request(message))).await.map(drop)
    }

    pub async fn unstage(&self, message: pb::NodeUnstageVolumeRequest) -> Called<()> {
        in_time(self.client.clone().node_unstage_volume(request(message))).await.map(drop)
    }

    pub async fn publish(&self, message: pb::NodePublishVolumeRequest) -> Called<()> {
        in_time(self.client.clone().node_publish_volume(request(message))).await.map(drop)
    }

    pub async fn unpublish(&self, message: pb::NodeUnpublishVolumeRequest) -> Called<()> {
        in_time(self.client.clone().node_unpublish_volume(request(message))).await.map(drop)
    }

    pub async fn stats(
        &self,
        message: pb::NodeGetVolumeStatsRequest,
    ) -> Called<pb::NodeGetVolumeStatsResponse> {
        in_time(self.client.clone().node_get_volume_stats(request(message))).await
    }

    pub async fn expand(&self, message: pb::NodeExpandVolumeRequest) -> Called<()> {
        in_time(self.client.clone().node_expand_volume(request(message))).await.map(drop)
    }
}

fn parse(version: &str) -> Option<Version> {
    let mut parts = version.strip_prefix('v').unwrap_or(version).split(['.', '-', '+']);
    let mut number = || parts.next().and_then(|part| part.parse().ok());
    let (major, minor) = (number()?, number()?);
    Some((major, minor, number().unwrap_or(0)))
}

/// By name.
#[derive(Default)]
pub struct Drivers(Mutex<HashMap<String, Driver>>);

impl Drivers {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Driver>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, name: &str) -> Result<Driver, String> {
        let missing = || format!("driver name {name} not found in the list of registered CSI drivers");
        self.lock().get(name).cloned().ok_or_else(missing)
    }

    /// A second driver of one name must be a newer one.
    // Upstream: pkg/volume/csi/csi_plugin.go validateVersions
    pub fn check(&self, driver: &Driver) -> Result<(), String> {
        let name = &driver.plugin.name;
        match self
            .lock()
            .get(name)
            .map(|present| present.version)
            .filter(|present| *present >= driver.version)
        {
            Some((major, minor, patch)) => Err(format!(
                "CSI driver {name:?} failed. Another driver with the same name is already registered with a \
                 higher supported version: \"{major}.{minor}.{patch}\""
            )),
            None => Ok(()),
        }
    }

    pub fn add(&self, driver: Driver) {
        self.lock().insert(driver.plugin.name.clone(), driver);
    }

    /// Forgets the driver, unless another has taken its name. True when it is gone.
    pub fn remove(&self, plugin: &Plugin) -> bool {
        let mut drivers = self.lock();
        let same = drivers.get(&plugin.name).is_some_and(|driver| driver.plugin == *plugin);
        if same {
            drivers.remove(&plugin.name);
        }
        same
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn versions_of_drivers() {
        let plugin = |versions: &[&str]| Plugin {
            kind: "CSIPlugin".into(),
            name: "d".into(),
            endpoint: "/run/d.sock".into(),
            versions: versions.iter().map(|v| (*v).to_owned()).collect(),
        };
        let cases = [
            (vec!["1.0.0"], Some((1, 0, 0))),
            (vec!["0.3.0", "1.1.0", "2.0.0", "1.0.0"], Some((1, 1, 0))),
            (vec!["v1.2"], Some((1, 2, 0))),
            (vec!["0.3.0"], None),
            (vec!["2.0.0", "x", ""], None),
            (vec![], None),
        ];
        for (versions, want) in cases {
            assert_eq!(Driver::new(&plugin(&versions)).ok().map(|d| d.version), want, "{versions:?}");
        }
        let drivers = Drivers::default();
        let add = |versions: &[&str]| {
            let driver = Driver::new(&plugin(versions)).unwrap();
            drivers.check(&driver).map(|()| drivers.add(driver))
        };
        assert!(add(&["1.0.0"]).is_ok());
        assert!(add(&["1.0.0"]).is_err());
        assert!(add(&["1.1.0"]).is_ok());
        assert!(!drivers.remove(&plugin(&["1.0.0"])), "another one has the name now");
        assert!(drivers.remove(&plugin(&["1.1.0"])));
        assert_eq!(
            drivers.get("d").err().unwrap(),
            "driver name d not found in the list of registered CSI drivers"
        );
    }
}
