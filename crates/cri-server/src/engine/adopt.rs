//! Finding again what an earlier engine left: records on disk, shims on their sockets.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::container::{Exited, Record as ContainerRecord};
use super::sandbox::Record as SandboxRecord;
use super::{Container, Engine, Sandbox, lock, read_json};
use crate::Error;
use crate::shim::client::Client;
use crate::shim::protocol::{Request, Response};

/// How long a shim may take to answer: it first ends what it does for the engine before.
const SHIM_PATIENCE: Duration = Duration::from_secs(10);

impl Engine {
    /// Adopts every sandbox that has a record; what has none was being made or removed, and goes.
    pub(super) async fn adopt_all(self: &Arc<Self>) -> Result<(), Error> {
        let dir = self.config.sandboxes();
        let entries = std::fs::read_dir(&dir).map_err(Error::io(&dir))?;
        for entry in entries.flatten() {
            match read_json::<SandboxRecord>(&entry.path().join("sandbox.json")) {
                // One that never was ready is kept too, for the kubelet to remove.
                Some(record) => self.adopt(record, &entry.path()).await,
                None => {
                    if let Err(error) = linux::mounts::remove_tree(&entry.path()) {
                        tracing::warn!(path = %entry.path().display(), %error, "leftovers of a sandbox stay");
                    }
                }
            }
        }
        self.sweep_writable_layers()
    }

    async fn adopt(self: &Arc<Self>, record: SandboxRecord, dir: &Path) {
        let shim = Client::new(&self.config.shim_socket(&record.id));
        let was_ready = record.ready;
        let sandbox = Arc::new(Sandbox::new(record, dir.to_path_buf(), shim));
        lock(&self.pods).sandboxes.insert(sandbox.id.clone(), sandbox.clone());
        let containers = std::fs::read_dir(dir.join("containers")).into_iter().flatten().flatten();
        for entry in containers {
            let Some(record) = read_json::<ContainerRecord>(&entry.path().join("container.json")) else {
                let _ = linux::mounts::remove_tree(&entry.path());
                continue;
            };
            let container = Arc::new(Container::new(record, entry.path()));
            let ended: Option<Exited> = read_json(&entry.path().join("ended.json"));
            let resources = read_json(&entry.path().join("resources.json"));
            container.change(|phase| {
                phase.exit = ended;
                if let Some(resources) = resources {
                    phase.resources = resources;
                }
            });
            lock(&self.pods).containers.insert(container.id.clone(), container);
        }
        let asked = tokio::time::timeout(SHIM_PATIENCE, sandbox.shim.ask(&Request::State)).await;
        match asked {
            Ok(Ok(Response::State(state))) => {
                self.learn(&state).await;
                // The shim does not know a container that was never started; it waits for its start or removal.
                self.watch_shim(sandbox);
            }
            _ => {
                if was_ready {
                    tracing::warn!(sandbox = %sandbox.id, "the shim of a pod is gone");
                }
                self.bury(&sandbox).await;
            }
        }
    }

    /// Writable layers whose containers are gone.
    fn sweep_writable_layers(&self) -> Result<(), Error> {
        let dir = self.config.root.join("containers");
        for entry in std::fs::read_dir(&dir).map_err(Error::io(&dir))?.flatten() {
            let known = entry.file_name().to_str().is_some_and(|id| self.container(id).is_ok());
            if !known {
                linux::mounts::remove_tree(&entry.path()).map_err(Error::kernel("writable layer"))?;
            }
        }
        Ok(())
    }
}
