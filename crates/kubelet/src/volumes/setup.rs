//! Makes volumes be there. All of it may be done again at any time: what is right already is left as it is.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use api::Object;
use api::core::v1::{
    ConfigMap, EmptyDirVolumeSource, HostPathVolumeSource, ImageVolumeSource, PersistentVolume,
    PersistentVolumeClaim, Pod, ProjectedVolumeSource, Secret, ServiceAccountTokenProjection, Volume,
};
use client::{Client, Resource};
use controller_runtime::Clock;
use jiff::{SignedDuration, Timestamp};
use linux::mounts;
use rustix::mount::MountFlags;
use serde_json::json;

use super::payload::{self, FileContent, Payload};
use super::{VolumeError, atomic, ownership};
use crate::container::downward::Surroundings;
use crate::objects::ObjectCache;
use crate::paths::Paths;
use crate::pod::qos;

/// A volume that is ready to be mounted into containers.
#[derive(Clone, Debug, PartialEq)]
pub struct Mounted {
    pub path: PathBuf,
    pub read_only: bool,
    /// The image that is the volume, which the runtime mounts itself.
    pub image: Option<ImageVolumeSource>,
}

impl Mounted {
    fn at(path: PathBuf, read_only: bool) -> Self {
        Mounted { path, read_only, image: None }
    }
}

/// By pod UID, audience and requested lifetime, so that all volumes of a pod share one.
type TokenKey = (String, String, i64);

#[derive(Clone)]
struct Token {
    text: String,
    renew_at: Timestamp,
}

/// Sets up the volumes of all pods.
pub struct Volumes {
    pub paths: Paths,
    pub client: Client,
    pub clock: Clock,
    pub config_maps: ObjectCache<ConfigMap>,
    pub secrets: ObjectCache<Secret>,
    tokens: Mutex<HashMap<TokenKey, Token>>,
    /// By pod UID: the persistent volumes that are its group's already.
    given: Mutex<HashSet<(String, PathBuf)>>,
}

impl Volumes {
    pub fn new(
        paths: Paths,
        client: Client,
        clock: Clock,
        config_maps: ObjectCache<ConfigMap>,
        secrets: ObjectCache<Secret>,
    ) -> Self {
        Volumes {
            paths,
            client,
            clock,
            config_maps,
            secrets,
            tokens: Mutex::default(),
            given: Mutex::default(),
        }
    }

    /// Sets up or brings up to date all volumes of a pod. The error names the first that failed.
    pub async fn setup(
        &self,
        pod: &Pod,
        around: &Surroundings,
    ) -> Result<BTreeMap<String, Mounted>, (String, VolumeError)> {
        let mut mounted = BTreeMap::new();
        for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
            let one = self.setup_one(pod, volume, around).await.map_err(|e| (volume.name.clone(), e))?;
            mounted.insert(volume.name.clone(), one);
        }
        Ok(mounted)
    }

    async fn setup_one(
        &self,
        pod: &Pod,
        volume: &Volume,
        around: &Surroundings,
    ) -> Result<Mounted, VolumeError> {
        if let Some(source) = &volume.empty_dir {
            return self.empty_dir(pod, &volume.name, source);
        }
        if let Some(source) = &volume.host_path {
            return host_path(source);
        }
        if let Some(source) = &volume.image {
            let mut mounted = Mounted::at(PathBuf::new(), true);
            mounted.image = Some(source.clone());
            return Ok(mounted);
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            let read_only = claim.read_only == Some(true);
            return self.claim(pod, &claim.claim_name, read_only).await;
        }
        let (plugin, payload) = if let Some(source) = &volume.config_map {
            let map = self.config_map(pod, &source.name).await?;
            let (mode, optional) = (source.default_mode.unwrap_or(0o644), source.optional == Some(true));
            (
                "configmap",
                payload::of_config_map(&source.name, map.as_deref(), source.items.as_deref(), mode, optional),
            )
        } else if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().unwrap_or_default();
            let secret = self.secret(pod, name).await?;
            let (mode, optional) = (source.default_mode.unwrap_or(0o644), source.optional == Some(true));
            ("secret", payload::of_secret(name, secret.as_deref(), source.items.as_deref(), mode, optional))
        } else if let Some(source) = &volume.downward_api {
            let items = source.items.as_deref().unwrap_or_default();
            ("downward-api", payload::of_downward(items, pod, source.default_mode.unwrap_or(0o644), around))
        } else if let Some(source) = &volume.projected {
            ("projected", self.projected(pod, source, around).await.map_err(|e| e.to_string()))
        } else {
            return Err(VolumeError::Refused(unsupported(volume)));
        };
        let dir = self.paths.volume(pod.uid(), plugin, &volume.name);
        let payload = match payload {
            Ok(payload) => payload,
            // What a running pod has mounted it keeps, though its source be gone.
            Err(_) if dir.join("..data").exists() => return Ok(Mounted::at(dir, true)),
            Err(why) => return Err(VolumeError::Refused(why)),
        };
        fs::create_dir_all(&dir).map_err(|e| VolumeError::io("making a volume's directory", e))?;
        if plugin != "configmap" {
            // What is secret must not reach a disk.
            ensure_tmpfs(&dir, "mode=0755")?;
        }
        let group = fs_group(pod);
        own_by_group(&dir, group)?;
        atomic::write(&dir, &payload, group, self.clock.now())?;
        Ok(Mounted::at(dir, true))
    }

    async fn config_map(&self, pod: &Pod, name: &str) -> Result<Option<Arc<ConfigMap>>, VolumeError> {
        self.config_maps.get(pod.uid(), pod.namespace(), name).await.map_err(VolumeError::Refused)
    }

    async fn secret(&self, pod: &Pod, name: &str) -> Result<Option<Arc<Secret>>, VolumeError> {
        self.secrets.get(pod.uid(), pod.namespace(), name).await.map_err(VolumeError::Refused)
    }

    fn empty_dir(
        &self,
        pod: &Pod,
        name: &str,
        source: &EmptyDirVolumeSource,
    ) -> Result<Mounted, VolumeError> {
        let dir = self.paths.volume(pod.uid(), "empty-dir", name);
        let fresh = !dir.exists();
        fs::create_dir_all(&dir).map_err(|e| VolumeError::io("making an emptyDir", e))?;
        if source.medium.as_deref() == Some("Memory") {
            let own = source.size_limit.as_ref().map(|q| qos::amount("memory", q)).filter(|s| *s > 0);
            let of_pod = qos::pod_limit(pod, "memory").filter(|s| *s > 0);
            let size = own.into_iter().chain(of_pod).min();
            let options = size.map_or("mode=0777".to_owned(), |size| format!("mode=0777,size={size}"));
            ensure_tmpfs(&dir, &options)?;
        }
        if fresh {
            let set = fs::set_permissions(&dir, fs::Permissions::from_mode(0o777));
            set.map_err(|e| VolumeError::io("setting an emptyDir's permissions", e))?;
            own_by_group(&dir, fs_group(pod))?;
        }
        Ok(Mounted::at(dir, false))
    }

    async fn projected(
        &self,
        pod: &Pod,
        source: &ProjectedVolumeSource,
        around: &Surroundings,
    ) -> Result<Payload, VolumeError> {
        let mode = source.default_mode.unwrap_or(0o644);
        let mut all = Payload::new();
        for part in source.sources.iter().flatten() {
            if let Some(s) = &part.config_map {
                let map = self.config_map(pod, &s.name).await?;
                let optional = s.optional == Some(true);
                let files =
                    payload::of_config_map(&s.name, map.as_deref(), s.items.as_deref(), mode, optional);
                all.extend(files.map_err(VolumeError::Refused)?);
            }
            if let Some(s) = &part.secret {
                let secret = self.secret(pod, &s.name).await?;
                let optional = s.optional == Some(true);
                let files =
                    payload::of_secret(&s.name, secret.as_deref(), s.items.as_deref(), mode, optional);
                all.extend(files.map_err(VolumeError::Refused)?);
            }
            if let Some(s) = &part.downward_api {
                let files = payload::of_downward(s.items.as_deref().unwrap_or_default(), pod, mode, around);
                all.extend(files.map_err(VolumeError::Refused)?);
            }
            if let Some(s) = &part.service_account_token {
                let text = self.token(pod, s).await?;
                all.insert(s.path.clone(), token_file(pod, text, mode));
            }
            if part.cluster_trust_bundle.is_some() || part.pod_certificate.is_some() {
                let why =
                    "projected cluster trust bundles and pod certificates are not supported by this kubelet";
                return Err(VolumeError::Refused(why.into()));
            }
        }
        Ok(all)
    }

    /// A token that is bound to the pod, from the last time if it is good for long enough.
    async fn token(&self, pod: &Pod, source: &ServiceAccountTokenProjection) -> Result<String, VolumeError> {
        let audience = source.audience.clone().unwrap_or_default();
        let seconds = source.expiration_seconds.unwrap_or(3600);
        let key = (pod.uid().to_owned(), audience.clone(), seconds);
        let now = self.clock.now();
        if let Some(token) = self.lock().get(&key).filter(|t| now < t.renew_at) {
            return Ok(token.text.clone());
        }
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
        let audiences = if audience.is_empty() { json!([]) } else { json!([audience]) };
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audiences,
                "expirationSeconds": seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.name(), "uid": pod.uid()},
            },
        });
        let accounts = Resource::of::<api::core::v1::ServiceAccount>();
        let answer =
            self.client.create_value(&accounts, pod.namespace(), Some((account, "token")), &request).await;
        let what = || format!("failed to fetch token for service account {account:?}");
        let answer = answer.map_err(|source| VolumeError::Api { what: what(), source: Box::new(source) })?;
        let text = answer["status"]["token"].as_str().unwrap_or_default().to_owned();
        let expires =
            answer["status"]["expirationTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
        let expires = expires.unwrap_or(now + SignedDuration::from_secs(seconds));
        let life = expires.duration_since(now).as_secs().max(1);
        // Upstream: pkg/kubelet/token/token_manager.go: after 80 % of its life, or a day.
        let renew_at = now + SignedDuration::from_secs((life * 8 / 10).min(24 * 3600));
        self.lock().insert(key, Token { text: text.clone(), renew_at });
        Ok(text)
    }

    /// When a pod's tokens must be renewed.
    pub fn next_refresh(&self, pod_uid: &str) -> Option<Timestamp> {
        self.lock().iter().filter(|((uid, ..), _)| uid == pod_uid).map(|(_, t)| t.renew_at).min()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TokenKey, Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // Upstream: pkg/kubelet/volumemanager/populator/desired_state_of_world_populator.go getPVCExtractPV
    async fn claim(&self, pod: &Pod, name: &str, read_only: bool) -> Result<Mounted, VolumeError> {
        let namespace = pod.namespace();
        let api = |source| VolumeError::Api {
            what: format!("error processing PVC {namespace}/{name}"),
            source: Box::new(source),
        };
        let claim = self.client.get::<PersistentVolumeClaim>(namespace, name).await.map_err(api)?;
        let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
        let Some(volume) = claim.spec.and_then(|s| s.volume_name).filter(|_| bound) else {
            return Err(VolumeError::Refused(format!(
                "error processing PVC {namespace}/{name}: PVC is not bound"
            )));
        };
        let volume = self.client.get::<PersistentVolume>("", &volume).await.map_err(api)?;
        let spec = volume.spec.unwrap_or_default();
        let mut mounted = match (&spec.host_path, &spec.local) {
            (Some(source), _) => host_path(source)?,
            (_, Some(local)) => {
                let directory = Some("Directory".to_owned());
                let mounted =
                    host_path(&HostPathVolumeSource { path: local.path.clone(), type_: directory })?;
                self.give_to_group(pod, &mounted.path).await?;
                mounted
            }
            _ => return Err(VolumeError::Refused("no volume plugin matched".into())),
        };
        mounted.read_only |= read_only;
        Ok(mounted)
    }

    /// Gives a persistent volume's files to the pod's group, once for each pod.
    async fn give_to_group(&self, pod: &Pod, path: &Path) -> Result<(), VolumeError> {
        if !self
            .given
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert((pod.uid().to_owned(), path.into()))
        {
            return Ok(());
        }
        let context = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
        let policy = context.and_then(|c| c.fs_group_change_policy.as_deref());
        let (path, group, mismatch) = (path.to_owned(), fs_group(pod), policy == Some("OnRootMismatch"));
        let given = tokio::task::spawn_blocking(move || ownership::give(&path, group, mismatch)).await;
        given.unwrap_or_else(|e| Err(VolumeError::Refused(format!("applying fsGroup: {e}"))))
    }

    /// Takes all that a pod left on this node away: mounts first.
    pub fn teardown(&self, pod_uid: &str) -> Result<(), VolumeError> {
        self.config_maps.release(pod_uid);
        self.secrets.release(pod_uid);
        self.lock().retain(|(uid, ..), _| uid != pod_uid);
        self.given.lock().unwrap_or_else(PoisonError::into_inner).retain(|(uid, _)| uid != pod_uid);
        let dir = self.paths.pod(pod_uid);
        let kernel = |source| VolumeError::Kernel { what: format!("removing {}", dir.display()), source };
        // Volumes go at once; the rest of the directory holds what a restart might ask for.
        for part in ["volume-subpaths", "volumes"] {
            mounts::remove_tree(&dir.join(part)).map_err(kernel)?;
        }
        Ok(())
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec.as_ref()?.security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// A token belongs to the user of the pod when all containers run as one, and only then nobody else reads it.
// Upstream: pkg/volume/projected/projected.go collectData
fn token_file(pod: &Pod, text: String, mode: i32) -> FileContent {
    let spec = pod.spec.clone().unwrap_or_default();
    let of_pod = spec.security_context.as_ref().and_then(|s| s.run_as_user);
    let mut users = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
        .map(|c| c.security_context.as_ref().and_then(|s| s.run_as_user).or(of_pod));
    let first = users.next().flatten();
    let one = first.filter(|first| users.all(|u| u == Some(*first)));
    let mode = if one.is_some() || fs_group(pod).is_some() { 0o600 } else { mode };
    FileContent { owner: one.and_then(|u| u32::try_from(u).ok()), ..FileContent::new(text, mode) }
}

fn own_by_group(dir: &Path, group: Option<u32>) -> Result<(), VolumeError> {
    let Some(group) = group else { return Ok(()) };
    let what = |e| VolumeError::io("applying fsGroup", e);
    let metadata = fs::metadata(dir).map_err(what)?;
    if metadata.gid() != group {
        chown(dir, None, Some(group)).map_err(what)?;
    }
    let mode = metadata.permissions().mode() | 0o2070;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).map_err(what)
}

/// Mounts a tmpfs unless one is there: then the directory is on another device than its parent.
fn ensure_tmpfs(dir: &Path, options: &str) -> Result<(), VolumeError> {
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev());
    let what = |e| VolumeError::io("reading a volume's directory", e);
    let parent = dir.parent().unwrap_or(dir);
    if device(dir).map_err(what)? != device(parent).map_err(what)? {
        return Ok(());
    }
    mounts::mount_tmpfs(dir, MountFlags::NOSUID | MountFlags::NODEV, options)
        .map_err(|source| VolumeError::Kernel { what: "mounting a tmpfs".into(), source })
}

// Upstream: pkg/volume/hostpath/host_path.go checkTypeInternal
fn host_path(source: &HostPathVolumeSource) -> Result<Mounted, VolumeError> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let refuse =
        |what: &str| Err(VolumeError::Refused(format!("hostPath type check failed: {} {what}", source.path)));
    let make = |e| VolumeError::io(format!("making {}", source.path), e);
    let present = fs::metadata(path).ok();
    match (kind, &present) {
        ("DirectoryOrCreate", None) => {
            fs::create_dir_all(path).map_err(make)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(make)?;
        }
        ("FileOrCreate", None) => {
            fs::write(path, b"").map_err(make)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(make)?;
        }
        ("Directory" | "DirectoryOrCreate", found) if !found.as_ref().is_some_and(|m| m.is_dir()) => {
            return refuse("is not a directory");
        }
        ("File" | "FileOrCreate", found) if !found.as_ref().is_some_and(|m| m.is_file()) => {
            return refuse("is not a file");
        }
        ("Socket", found) if !found.as_ref().is_some_and(|m| m.file_type().is_socket()) => {
            return refuse("is not a socket file");
        }
        ("CharDevice", found) if !found.as_ref().is_some_and(|m| m.file_type().is_char_device()) => {
            return refuse("is not a character device");
        }
        ("BlockDevice", found) if !found.as_ref().is_some_and(|m| m.file_type().is_block_device()) => {
            return refuse("is not a block device");
        }
        _ => {}
    }
    Ok(Mounted::at(path.to_owned(), false))
}

/// The message for a kind of volume that this kubelet does not have.
fn unsupported(volume: &Volume) -> String {
    let object = serde_json::to_value(volume).unwrap_or_default();
    let kind = object.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).find(|k| *k != "name");
    format!(
        "no volume plugin matched: {} is not supported by this kubelet",
        kind.unwrap_or("an empty volume")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        fs::write(at("file"), b"").unwrap();
        let cases = [
            ("file", "File", true),
            ("file", "Directory", false),
            ("missing", "", true),
            ("missing", "Directory", false),
            ("made", "DirectoryOrCreate", true),
            ("made", "Directory", true),
            ("made-file", "FileOrCreate", true),
            ("file", "Socket", false),
        ];
        for (name, kind, fine) in cases {
            let source = HostPathVolumeSource { path: at(name), type_: Some(kind.into()) };
            assert_eq!(host_path(&source).is_ok(), fine, "{name} {kind}");
        }
    }
}
