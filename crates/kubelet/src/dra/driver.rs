//! A driver of devices that pods claim, and calls of it.

use std::time::Duration;

use cri::dra::v1::dra_plugin_client::DraPluginClient;
use cri::dra::v1::{
    Claim, NodePrepareResourcesRequest, NodePrepareResourcesResponse, NodeUnprepareResourcesRequest,
    NodeUnprepareResourcesResponse,
};
use cri::dra::v1beta1::dra_plugin_client::DraPluginClient as BetaClient;
use tonic::transport::Channel;
use tonic::{Response, Status};

use crate::plugins::Plugin;
use crate::runtime::describe;

/// Upstream: pkg/kubelet/cm/dra/plugin/dra_plugin.go defaultClientCallTimeout
const TIMEOUT: Duration = Duration::from_secs(45);

/// The services that are spoken here, as drivers name them.
const SERVICES: [&str; 2] = ["v1.DRAPlugin", "v1beta1.DRAPlugin"];

#[derive(Clone)]
enum Client {
    V1(DraPluginClient<Channel>),
    Beta(BetaClient<Channel>),
}

/// A driver that can be called.
#[derive(Clone)]
pub struct Driver {
    pub plugin: Plugin,
    client: Client,
}

/// The first of a driver's services that is spoken here.
// Upstream: pkg/kubelet/cm/dra/plugin/dra_plugin_manager.go validateSupportedServices
pub fn service(plugin: &Plugin) -> Result<&'static str, String> {
    if plugin.versions.is_empty() {
        return Err("empty list of supported gRPC services (aka supported versions)".to_owned());
    }
    let known = |named: &String| SERVICES.into_iter().find(|service| service == named);
    plugin.versions.iter().find_map(known).ok_or_else(|| {
        let quoted = |all: &[&str]| all.iter().map(|one| format!("{one:?}")).collect::<Vec<_>>().join(" ");
        let offered: Vec<&str> = plugin.versions.iter().map(String::as_str).collect();
        format!(
            "none of services supported by the plugin ([{}]) are supported by the kubelet ([{}])",
            quoted(&offered),
            quoted(&SERVICES)
        )
    })
}

async fn in_time<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, String> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(answer) => answer.map(Response::into_inner).map_err(|status| describe(&status)),
        Err(_) => Err("context deadline exceeded".to_owned()),
    }
}

impl Driver {
    pub fn new(plugin: &Plugin) -> Result<Self, String> {
        let channel = cri::lazy(&plugin.endpoint).map_err(|error| error.to_string())?;
        let client = match service(plugin)? {
            "v1.DRAPlugin" => Client::V1(DraPluginClient::new(channel)),
            _ => Client::Beta(BetaClient::new(channel)),
        };
        Ok(Driver { plugin: plugin.clone(), client })
    }

    pub async fn prepare(&self, claims: Vec<Claim>) -> Result<NodePrepareResourcesResponse, String> {
        let request = NodePrepareResourcesRequest { claims };
        match self.client.clone() {
            Client::V1(mut client) => in_time(client.node_prepare_resources(request)).await,
            Client::Beta(mut client) => in_time(client.node_prepare_resources(request)).await,
        }
    }

    pub async fn unprepare(&self, claims: Vec<Claim>) -> Result<NodeUnprepareResourcesResponse, String> {
        let request = NodeUnprepareResourcesRequest { claims };
        match self.client.clone() {
            Client::V1(mut client) => in_time(client.node_unprepare_resources(request)).await,
            Client::Beta(mut client) => in_time(client.node_unprepare_resources(request)).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_service_that_is_spoken_counts() {
        let plugin = |versions: &[&str]| Plugin {
            kind: "DRAPlugin".into(),
            name: "d".into(),
            endpoint: "/s".into(),
            versions: versions.iter().map(|version| (*version).to_owned()).collect(),
        };
        assert_eq!(service(&plugin(&["v9.DRAPlugin", "v1beta1.DRAPlugin", "v1.DRAPlugin"])), Ok(SERVICES[1]));
        assert!(service(&plugin(&[])).unwrap_err().contains("empty list"));
        assert_eq!(
            service(&plugin(&["v9.DRAPlugin"])).unwrap_err(),
            "none of services supported by the plugin ([\"v9.DRAPlugin\"]) are supported by the kubelet \
             ([\"v1.DRAPlugin\" \"v1beta1.DRAPlugin\"])"
        );
    }
}
