//! Static pods: manifests in a directory, and their reflections in the API.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::{Node, Pod, Toleration};
use api::meta::OwnerReference;
use client::DeleteOptions;
use futures::StreamExt;
use inotify::{Inotify, WatchMask};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::pod::{CONFIG_HASH, CONFIG_MIRROR, CONFIG_SOURCE};
use crate::pods::{Change, Inbox};

/// The largest manifest that is read.
const MAX_MANIFEST_BYTES: u64 = 10 << 20;

/// The pod of a manifest: its name, UID and annotations say where it came from.
// Upstream: pkg/kubelet/config/common.go applyDefaults
pub fn from_manifest(text: &str, path: &Path, node_name: &str) -> Result<Pod, String> {
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
    if value["kind"] != "Pod" {
        return Err(format!("the manifest is not a Pod: {}", value["kind"]));
    }
    let mut pod = Pod::from_value(value).map_err(|e| e.to_string())?;
    if pod.name().is_empty() || pod.spec.as_ref().is_none_or(|s| s.containers.is_empty()) {
        return Err("the manifest has no name or no containers".to_owned());
    }
    let mut hash = Sha256::new();
    hash.update(node_name);
    hash.update(path.to_string_lossy().as_bytes());
    hash.update(text);
    let digest: String = hash.finalize().iter().take(16).map(|b| format!("{b:02x}")).collect();
    let metadata = &mut pod.metadata;
    metadata.uid = Some(metadata.uid.clone().filter(|u| !u.is_empty()).unwrap_or_else(|| digest.clone()));
    metadata.name =
        Some(format!("{}-{}", metadata.name.clone().unwrap_or_default(), node_name.to_lowercase()));
    metadata.namespace.get_or_insert_with(|| "default".into());
    let annotations = metadata.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(CONFIG_SOURCE.into(), "file".into());
    annotations.insert(CONFIG_HASH.into(), digest);
    if let Some(spec) = &mut pod.spec {
        spec.node_name = Some(node_name.to_owned());
        spec.enable_service_links.get_or_insert(true);
        spec.restart_policy.get_or_insert_with(|| "Always".into());
        spec.termination_grace_period_seconds.get_or_insert(30);
        let all = Toleration {
            operator: Some("Exists".into()),
            effect: Some("NoExecute".into()),
            ..Default::default()
        };
        spec.tolerations.get_or_insert_with(Vec::new).push(all);
    }
    Ok(pod)
}

/// Reads the manifests that are there now. One that cannot be read is told in the log.
fn read_all(dir: &Path, node_name: &str) -> HashMap<String, Arc<Pod>> {
    let mut pods = HashMap::new();
    let files = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).map(|e| e.path());
    let mut files: Vec<PathBuf> = files.collect();
    files.sort();
    for path in files {
        let hidden = path.file_name().is_none_or(|n| n.to_string_lossy().starts_with('.'));
        let small = std::fs::metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= MAX_MANIFEST_BYTES);
        if hidden || !small {
            continue;
        }
        let text = std::fs::read_to_string(&path).map_err(|e| e.to_string());
        match text.and_then(|text| from_manifest(&text, &path, node_name)) {
            Ok(pod) => {
                pods.insert(pod.uid().to_owned(), Arc::new(pod));
            }
            Err(error) => tracing::warn!(path = %path.display(), error, "cannot use a manifest"),
        }
    }
    pods
}

/// Follows the directory until the shutdown.
pub async fn run(core: Arc<Core>, inbox: Inbox, mirrors: Mirrors, shutdown: CancellationToken) {
    let Some(dir) = core.config.static_pod_path.clone() else { return };
    let watch = || -> std::io::Result<inotify::EventStream<[u8; 4096]>> {
        std::fs::create_dir_all(&dir)?;
        let inotify = Inotify::init()?;
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
        inotify.watches().add(&dir, mask)?;
        inotify.into_event_stream([0; 4096])
    };
    let mut events = match watch() {
        Ok(events) => events,
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "cannot watch the static pods' directory");
            return;
        }
    };
    let mut present: HashMap<String, Arc<Pod>> = HashMap::new();
    loop {
        let now = read_all(&dir, &core.config.node_name);
        for uid in present.keys().filter(|uid| !now.contains_key(*uid)) {
            inbox.put(uid, Change::Gone);
        }
        for (uid, pod) in now.iter().filter(|(uid, _)| !present.contains_key(*uid)) {
            inbox.put(uid, Change::Present(pod.clone()));
        }
        present = now;
        mirrors.want(&present);
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = events.next() => {}
            () = mirrors.reconcile() => {}
        }
    }
}

/// The reflections of static pods in the API: made, and made anew when somebody deletes them.
#[derive(Clone)]
pub struct Mirrors {
    core: Arc<Core>,
    state: Arc<Mutex<MirrorState>>,
    changed: Arc<tokio::sync::Notify>,
}

#[derive(Default)]
struct MirrorState {
    wanted: HashMap<String, Arc<Pod>>,
    seen: HashMap<String, Arc<Pod>>,
}

impl Mirrors {
    pub fn new(core: Arc<Core>) -> Self {
        Mirrors { core, state: Arc::default(), changed: Arc::default() }
    }

    /// A mirror was seen in the API, or its end.
    pub fn observe(&self, mirror: &Arc<Pod>, gone: bool) {
        let mut state = self.lock();
        if gone {
            state.seen.remove(&mirror.key());
        } else {
            state.seen.insert(mirror.key(), mirror.clone());
        }
        drop(state);
        self.changed.notify_one();
    }

    fn want(&self, pods: &HashMap<String, Arc<Pod>>) {
        self.lock().wanted = pods.values().map(|p| (p.key(), p.clone())).collect();
        self.changed.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, MirrorState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes and removes mirrors as changes come; never ends.
    async fn reconcile(&self) {
        let mut delay = Duration::from_millis(100);
        loop {
            self.changed.notified().await;
            while let Err(error) = self.reconcile_once().await {
                tracing::debug!(%error, "cannot reflect a static pod yet");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(Duration::from_secs(10));
            }
            delay = Duration::from_millis(100);
        }
    }

    async fn reconcile_once(&self) -> Result<(), client::Error> {
        let (wanted, seen) = {
            let state = self.lock();
            (state.wanted.clone(), state.seen.clone())
        };
        let client = &self.core.client;
        let hash = |pod: &Pod, key: &str| crate::pod::annotation(pod, key).map(str::to_owned);
        for (key, mirror) in &seen {
            let of_static = wanted.get(key).and_then(|p| hash(p, CONFIG_HASH));
            let stale =
                of_static != hash(mirror, CONFIG_MIRROR) || mirror.metadata.deletion_timestamp.is_some();
            if stale {
                let options =
                    DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::uid(mirror.uid()) };
                match client.delete::<Pod>(mirror.namespace(), mirror.name(), &options).await {
                    Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                    _ => {}
                }
            }
        }
        for (key, pod) in wanted.iter().filter(|(key, _)| !seen.contains_key(*key)) {
            let mut mirror = (**pod).clone();
            mirror.metadata.uid = None;
            // A node may only create pods that are its own.
            let node =
                self.core.node().ok_or_else(|| client::Error::Config("the Node is not there yet".into()))?;
            mirror.metadata.owner_references = Some(vec![OwnerReference {
                api_version: Node::api_version(),
                kind: Node::KIND.to_owned(),
                name: node.name().to_owned(),
                uid: node.uid().to_owned(),
                controller: Some(true),
                ..Default::default()
            }]);
            let annotations = mirror.metadata.annotations.get_or_insert_with(BTreeMap::new);
            annotations.insert(CONFIG_MIRROR.into(), hash(pod, CONFIG_HASH).unwrap_or_default());
            match client.create(&mirror).await {
                Ok(_) => {
                    self.core.publisher.reset(pod.uid());
                    self.core.wakers.wake(pod.uid());
                }
                Err(error) if error.is_already_exists() => {}
                Err(error) => return Err(error),
            }
            tracing::debug!(key, "reflected a static pod");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_become_pods() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\nspec:\n  containers:\n  - name: c\n    image: i\n";
        let pod = from_manifest(text, Path::new("/m/web.yaml"), "Node1").unwrap();
        assert_eq!(pod.key(), "default/web-node1");
        assert_eq!(pod.uid().len(), 32);
        assert!(crate::pod::is_static(&pod) && !crate::pod::is_mirror(&pod));
        let other =
            from_manifest(&text.replace("image: i", "image: j"), Path::new("/m/web.yaml"), "Node1").unwrap();
        assert_ne!(pod.uid(), other.uid());
        for bad in
            ["", "kind: Service", "kind: Pod", "{", "kind: Pod\nmetadata: {name: a}\nspec: {containers: []}"]
        {
            assert!(from_manifest(bad, Path::new("/m"), "n").is_err(), "{bad}");
        }
    }
}
