//! Taking device plugins in: the kubelet's own socket beside theirs, and a task that follows each.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cri::deviceplugin as dp;
use cri::deviceplugin::device_plugin_client::DevicePluginClient;
use cri::deviceplugin::registration_server::{Registration, RegistrationServer};
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Devices, Plugin};
use crate::Error;
use crate::runtime::describe;

/// Upstream: k8s.io/kubelet deviceplugin/v1beta1 constants.go
pub const SOCKET: &str = "kubelet.sock";
const VERSION: &str = "v1beta1";
/// Registrations that wait to be taken up.
const WAITING: usize = 64;

/// Listens for plugins and follows them until the shutdown.
pub async fn run(devices: Arc<Devices>, shutdown: CancellationToken) -> Result<(), Error> {
    let Some(listener) = listen(&devices.dir) else {
        shutdown.cancelled().await;
        return Ok(());
    };
    let (sender, mut registrations) = mpsc::channel(WAITING);
    let served = tonic::transport::Server::builder()
        .add_service(RegistrationServer::new(Register { devices: devices.clone(), sender }))
        .serve_with_incoming_shutdown(
            tokio_stream::wrappers::UnixListenerStream::new(listener),
            shutdown.clone().cancelled_owned(),
        );
    tokio::pin!(served);
    let mut plugins = JoinSet::new();
    loop {
        tokio::select! {
            ended = &mut served => {
                if let Err(error) = ended {
                    tracing::error!(%error, "the socket for device plugins ended");
                }
                break;
            }
            Some((resource, number)) = registrations.recv() => {
                let (devices, stop) = (devices.clone(), shutdown.clone());
                plugins.spawn(async move {
                    tokio::select! {
                        () = follow(&devices, &resource, number) => {}
                        () = stop.cancelled() => {}
                    }
                });
            }
            Some(_) = plugins.join_next() => {}
        }
    }
    plugins.shutdown().await;
    let _ = std::fs::remove_file(devices.dir.join(SOCKET));
    Ok(())
}

/// The kubelet's socket in a folder, made anew: plugins watch for that, and then register again. Without it, as
/// where the path is too long for a socket, the rest of the kubelet works all the same.
pub(super) fn listen(dir: &Path) -> Option<UnixListener> {
    let made = std::fs::create_dir_all(dir).and_then(|()| remove_sockets(dir));
    match made.and_then(|()| UnixListener::bind(dir.join(SOCKET))) {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "cannot listen on the socket for others of this node");
            None
        }
    }
}

/// What an earlier kubelet and plugins that are gone left.
fn remove_sockets(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_socket() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

struct Register {
    devices: Arc<Devices>,
    sender: mpsc::Sender<(String, u64)>,
}

/// Numbers plugins, so that the end of an old one is not taken for that of its successor.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

#[tonic::async_trait]
impl Registration for Register {
    // Upstream: pkg/kubelet/cm/devicemanager/plugin/v1beta1/server.go Register
    async fn register(&self, request: Request<dp::RegisterRequest>) -> Result<Response<dp::Empty>, Status> {
        let request = request.into_inner();
        if request.version != VERSION {
            return Err(Status::unknown(format!(
                "requested API version {:?} is not supported by kubelet. Supported version is [\"{VERSION}\"]",
                request.version
            )));
        }
        let resource = request.resource_name;
        if !is_extended_resource(&resource) {
            return Err(Status::unknown(format!("the ResourceName {resource:?} is invalid")));
        }
        if request.endpoint.is_empty() || request.endpoint.contains('/') {
            return Err(Status::unknown(format!("the endpoint {:?} is no socket's name", request.endpoint)));
        }
        let at = self.devices.dir.join(&request.endpoint);
        let channel = cri::lazy(&at).map_err(|error| Status::unknown(error.to_string()))?;
        let number = NUMBERS.fetch_add(1, Ordering::Relaxed);
        let plugin = Plugin {
            client: DevicePluginClient::new(channel).max_decoding_message_size(cri::MAX_MESSAGE_BYTES),
            options: request.options.unwrap_or_default(),
            number,
        };
        self.devices.plugins().insert(resource.clone(), plugin);
        tracing::info!(resource, "a device plugin registered");
        self.sender
            .send((resource, number))
            .await
            .map_err(|_| Status::unavailable("the kubelet is stopping"))?;
        Ok(Response::new(dp::Empty {}))
    }
}

/// `vendor.domain/name`, not Kubernetes' own.
// Upstream: k8s.io/component-helpers/scheduling/corev1 IsExtendedResourceName
fn is_extended_resource(name: &str) -> bool {
    let Some((domain, local)) = name.split_once('/') else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric();
    let inner = |c: char| plain(c) || "-_.".contains(c);
    !domain.is_empty()
        && domain.split('.').all(|part| part.starts_with(plain) && part.ends_with(plain))
        && domain.chars().all(|c| plain(c) || c == '-' || c == '.')
        && local.starts_with(plain)
        && local.ends_with(plain)
        && local.chars().all(inner)
        && !domain.ends_with("kubernetes.io")
        && !domain.starts_with("requests.")
        && local.len() <= 63
}

/// Takes over what the plugin says of its devices until it is gone.
async fn follow(devices: &Devices, resource: &str, number: u64) {
    let Ok(mut plugin) = devices.plugin(resource) else { return };
    match plugin.client.list_and_watch(dp::Empty {}).await {
        Ok(answer) => {
            let mut lists = answer.into_inner();
            loop {
                match lists.message().await {
                    Ok(Some(list)) if is_current(devices, resource, number) => {
                        devices.learn(resource, list.devices);
                    }
                    Ok(Some(_)) => return,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(resource, error = %describe(&error), "a device plugin is gone");
                        break;
                    }
                }
            }
        }
        Err(error) => {
            tracing::warn!(resource, error = %describe(&error), "a device plugin does not list its devices");
        }
    }
    let mut plugins = devices.plugins();
    if plugins.get(resource).is_some_and(|plugin| plugin.number == number) {
        plugins.remove(resource);
        drop(plugins);
        devices.lose(resource);
    }
}

fn is_current(devices: &Devices, resource: &str, number: u64) -> bool {
    devices.plugins().get(resource).is_some_and(|plugin| plugin.number == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_extended_resources() {
        for (name, fine) in [
            ("vendor.com/gpu", true),
            ("vendor.com/GPU_2.x", true),
            ("gpu", false),
            ("vendor.com/", false),
            ("/gpu", false),
            ("kubernetes.io/gpu", false),
            ("requests.vendor.com/gpu", false),
            ("vendor com/gpu", false),
        ] {
            assert_eq!(is_extended_resource(name), fine, "{name}");
        }
    }
}
