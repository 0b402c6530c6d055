//! Messages and services of the sockets of a node: CRI's, and those of plugins.
//!
//! CRI's messages are those of [`v1`]; [`connect`] gives a channel that any of its clients can be built on. The
//! kubelet and the command line are the callers, our own engine or another one is at the far end: nothing in
//! here knows which. Plugins make themselves known by [`registration`]; a storage driver then answers [`csi`];
//! both are reached by a channel that [`lazy`] gives.

pub use k8s_cri::v1;

/// CRI's lists as streams, which are younger than the messages of [`v1`] and belong to the same two services.
pub mod streams {
    tonic::include_proto!("runtime.v1");
}

/// What the kubelet asks of a storage driver.
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// How plugins make themselves known.
pub mod registration {
    tonic::include_proto!("pluginregistration");
}

/// What the kubelet asks of a device plugin.
pub mod deviceplugin {
    tonic::include_proto!("v1beta1");
}

/// What the kubelet asks of a driver of devices that pods claim.
pub mod dra {
    pub mod v1 {
        tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1");
    }

    /// The same messages under an older name.
    pub mod v1beta1 {
        tonic::include_proto!("k8s.io.kubelet.pkg.apis.dra.v1beta1");
    }
}

/// What the kubelet tells of who has which device.
pub mod podresources {
    tonic::include_proto!("v1");
}

use std::path::Path;

use tonic::transport::{Channel, Endpoint, Uri};

/// The largest answer that is accepted: lists of containers on a full node, and outputs of `ExecSync` with
/// both streams at their cap of 16 MiB.
// Upstream: staging/src/k8s.io/cri-client/pkg/remote_runtime.go maxMsgSize (16 MiB)
pub const MAX_MESSAGE_BYTES: usize = 40 << 20;

/// The socket that containerd listens on, for `--container-runtime-endpoint`'s help and for tests.
pub const CONTAINERD_ENDPOINT: &str = "unix:///run/containerd/containerd.sock";

/// The annotation of a mount's image that names the part of it to mount. The field that CRI has for it,
/// `image_sub_path`, is younger than the messages of [`v1`]; only our own engine reads the annotation.
pub const IMAGE_SUB_PATH: &str = "trierarch.io/image-sub-path";

/// The engine could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("container runtime endpoint {endpoint:?} is not of the form unix:///path/to.sock")]
    Endpoint { endpoint: String },
    #[error("connect to the container runtime at {endpoint}")]
    Connect { endpoint: String, source: tonic::transport::Error },
}

/// A client of each of CRI's two services, over one connection.
#[derive(Debug, Clone)]
pub struct Clients {
    pub runtime: v1::runtime_service_client::RuntimeServiceClient<Channel>,
    pub image: v1::image_service_client::ImageServiceClient<Channel>,
}

/// Connects to the engine at `endpoint`, which is `unix:///path` or a plain absolute path.
pub async fn connect(endpoint: &str) -> Result<Channel, Error> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if !path.starts_with('/') {
        return Err(Error::Endpoint { endpoint: endpoint.to_owned() });
    }
    let wrong = |source| Error::Connect { endpoint: endpoint.to_owned(), source };
    Endpoint::from_shared(format!("unix://{path}")).map_err(wrong)?.connect().await.map_err(wrong)
}

/// A channel to the socket at `path` that connects when it is first used, and again after the far end was away.
pub fn lazy(path: &Path) -> Result<Channel, Error> {
    let endpoint = format!("unix://{}", path.display());
    let wrong = |source| Error::Connect { endpoint: endpoint.clone(), source };
    let to = Endpoint::from_shared(endpoint.clone()).map_err(wrong)?;
    // Servers written in Go refuse an authority that is no host's name.
    Ok(to.origin(Uri::from_static("http://localhost")).connect_lazy())
}

/// Connects to the engine and gives both of its services.
pub async fn clients(endpoint: &str) -> Result<Clients, Error> {
    let channel = connect(endpoint).await?;
    let runtime = v1::runtime_service_client::RuntimeServiceClient::new(channel.clone())
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    let image = v1::image_service_client::ImageServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Ok(Clients { runtime, image })
}
