//! Makes volumes be there. All of it may be done again at any time: what is right already is left as it is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use api::Object;
use api::core::v1::{
    ConfigMap, EmptyDirVolumeSource, ImageVolumeSource, Node, Pod, ProjectedVolumeSource, Secret, Volume,
};
use client::Client;
use controller_runtime::Clock;
use jiff::Timestamp;
use linux::mounts;
use rustix::mount::MountFlags;

use super::claims::{Held, HeldKey};
use super::csi::Csi;
use super::payload::{self, FileContent, Payload};
use super::tokens::Tokens;
use super::{VolumeError, atomic, host_path};
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
    /// A raw device, for `volumeDevices`.
    pub is_device: bool,
}

impl Mounted {
    pub fn at(path: PathBuf, read_only: bool) -> Self {
        Mounted { path, read_only, image: None, is_device: false }
    }
}

/// Sets up the volumes of all pods.
pub struct Volumes {
    pub paths: Paths,
    pub client: Client,
    pub clock: Clock,
    pub config_maps: ObjectCache<ConfigMap>,
    pub secrets: ObjectCache<Secret>,
    pub tokens: Arc<Tokens>,
    pub csi: Arc<Csi>,
    pub(super) held: Mutex<HashMap<HeldKey, Held>>,
}

impl Volumes {
    pub fn new(
        paths: Paths,
        client: Client,
        clock: Clock,
        config_maps: ObjectCache<ConfigMap>,
        secrets: ObjectCache<Secret>,
        tokens: Arc<Tokens>,
        csi: Arc<Csi>,
    ) -> Self {
        Volumes { paths, client, clock, config_maps, secrets, tokens, csi, held: Mutex::default() }
    }

    /// Sets up or brings up to date all volumes of a pod, none waiting for another. The errors name those that
    /// failed.
    pub async fn setup(
        &self,
        pod: &Pod,
        around: &Surroundings,
        node: Option<&Node>,
    ) -> Result<BTreeMap<String, Mounted>, Vec<(String, VolumeError)>> {
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let all = volumes.map(|volume| async move {
            (volume.name.clone(), self.setup_one(pod, volume, around, node).await)
        });
        let (mut mounted, mut failed) = (BTreeMap::new(), Vec::new());
        for (name, outcome) in futures::future::join_all(all).await {
            match outcome {
                Ok(one) => drop(mounted.insert(name, one)),
                Err(error) => failed.push((name, error)),
            }
        }
        if failed.is_empty() { Ok(mounted) } else { Err(failed) }
    }

    async fn setup_one(
        &self,
        pod: &Pod,
        volume: &Volume,
        around: &Surroundings,
        node: Option<&Node>,
    ) -> Result<Mounted, VolumeError> {
        if let Some(source) = &volume.empty_dir {
            return self.empty_dir(pod, &volume.name, source, around.allocatable_memory);
        }
        if let Some(source) = &volume.host_path {
            return host_path::check(source);
        }
        if let Some(source) = &volume.image {
            let mut mounted = Mounted::at(PathBuf::new(), true);
            mounted.image = Some(source.clone());
            return Ok(mounted);
        }
        if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() || volume.csi.is_some() {
            return self.held_volume(pod, volume, node).await;
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
        memory: i64,
    ) -> Result<Mounted, VolumeError> {
        let dir = self.paths.volume(pod.uid(), "empty-dir", name);
        let fresh = !dir.exists();
        fs::create_dir_all(&dir).map_err(|e| VolumeError::io("making an emptyDir", e))?;
        if source.medium.as_deref() == Some("Memory") {
            // Upstream: pkg/volume/emptydir/empty_dir.go calculateEmptyDirMemorySize
            let own = source.size_limit.as_ref().map(|q| qos::amount("memory", q));
            let bounds = [own, qos::pod_limit(pod, "memory"), Some(memory)];
            let size = bounds.into_iter().flatten().filter(|bound| *bound > 0).min();
            let options = size.map_or("mode=0777".to_owned(), |size| format!("mode=0777,size={size}"));
            ensure_tmpfs(&dir, &options)?;
        } else if let Some(size) = page_size(pod, source).map_err(VolumeError::Refused)? {
            let what = || "mounting huge pages".to_owned();
            let options = format!("mode=0777,pagesize={size}");
            if !is_mounted(&dir)? {
                mounts::mount_huge_pages(&dir, &options)
                    .map_err(|source| VolumeError::Kernel { what: what(), source })?;
            }
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
                let audience = s.audience.as_deref().unwrap_or_default();
                let token = self.tokens.get(pod, audience, s.expiration_seconds).await?;
                all.insert(s.path.clone(), token_file(pod, token.text, mode));
            }
            if part.cluster_trust_bundle.is_some() || part.pod_certificate.is_some() {
                let why =
                    "projected cluster trust bundles and pod certificates are not supported by this kubelet";
                return Err(VolumeError::Refused(why.into()));
            }
        }
        Ok(all)
    }

    /// When a pod's volumes must be looked at again: tokens that end, volumes that may have grown.
    pub fn next_refresh(&self, pod_uid: &str) -> Option<Timestamp> {
        self.tokens.next_refresh(pod_uid).into_iter().chain(self.held_until(pod_uid)).min()
    }

    /// Takes all that a pod left on this node away: mounts first.
    pub async fn teardown(&self, pod_uid: &str) -> Result<(), VolumeError> {
        self.config_maps.release(pod_uid);
        self.secrets.release(pod_uid);
        self.tokens.forget(pod_uid);
        let dir = self.paths.pod(pod_uid);
        let remove = |part: &str| {
            let kernel = |source| VolumeError::Kernel { what: format!("removing {}", dir.display()), source };
            mounts::remove_tree(&dir.join(part)).map_err(kernel)
        };
        // What was bound from volumes goes before them, and what drivers mounted before the directories.
        remove("volume-subpaths")?;
        self.csi.teardown(pod_uid).await?;
        self.let_go(pod_uid);
        // These go at once; the rest of the directory holds what a restart might ask for.
        remove("volumes")?;
        remove("volumeDevices")
    }
}

pub fn fs_group(pod: &Pod) -> Option<u32> {
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

/// The size of the huge pages that an emptyDir is to be of, if it is to be of such.
// Upstream: pkg/volume/emptydir/empty_dir.go getPageSizeMountOption
fn page_size(pod: &Pod, source: &EmptyDirVolumeSource) -> Result<Option<String>, String> {
    let medium = source.medium.as_deref().unwrap_or_default();
    let Some(wanted) = medium.strip_prefix("HugePages") else { return Ok(None) };
    let containers = crate::pod::containers(pod).iter().chain(crate::pod::init_containers(pod));
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    let requests = containers.filter_map(|c| c.resources.as_ref()).chain(of_pod);
    let requests = requests.filter_map(|resources| resources.requests.as_ref());
    let sizes: BTreeSet<&str> =
        requests.flat_map(|r| r.keys()).filter_map(|name| name.strip_prefix("hugepages-")).collect();
    match (wanted.strip_prefix('-'), sizes.len()) {
        (Some(size), _) if sizes.contains(size) => Ok(Some(size.to_owned())),
        (None, 1) => Ok(sizes.first().map(|size| (*size).to_owned())),
        (None, 2..) => {
            Err(format!("medium: {medium} can't be used if container requests multiple huge page sizes"))
        }
        _ => Err(format!(
            "medium {medium}: hugePages storage requested, but there is no resource request for huge pages"
        )),
    }
}

/// Whether something is mounted at the directory: then it is on another device than its parent.
fn is_mounted(dir: &Path) -> Result<bool, VolumeError> {
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev());
    let what = |e| VolumeError::io("reading a volume's directory", e);
    let parent = dir.parent().unwrap_or(dir);
    Ok(device(dir).map_err(what)? != device(parent).map_err(what)?)
}

/// Mounts a tmpfs unless one is there.
fn ensure_tmpfs(dir: &Path, options: &str) -> Result<(), VolumeError> {
    if is_mounted(dir)? {
        return Ok(());
    }
    mounts::mount_tmpfs(dir, MountFlags::NOSUID | MountFlags::NODEV, options)
        .map_err(|source| VolumeError::Kernel { what: "mounting a tmpfs".into(), source })
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
    use serde_json::json;

    use super::*;

    #[test]
    fn huge_pages() {
        let pod = |sizes: &[&str]| -> Pod {
            let requests: BTreeMap<String, &str> =
                sizes.iter().map(|size| (format!("hugepages-{size}"), "1Gi")).collect();
            let container = json!({"name": "c", "resources": {"requests": requests}});
            serde_json::from_value(json!({"spec": {"containers": [container]}})).unwrap()
        };
        let cases = [
            ("", &["2Mi"][..], Ok(None)),
            ("Memory", &["2Mi"], Ok(None)),
            ("HugePages", &["2Mi"], Ok(Some("2Mi"))),
            ("HugePages-1Gi", &["2Mi", "1Gi"], Ok(Some("1Gi"))),
            ("HugePages-1Gi", &["2Mi"], Err("no resource request for huge pages")),
            ("HugePages", &["2Mi", "1Gi"], Err("multiple huge page sizes")),
            ("HugePages", &[], Err("no resource request for huge pages")),
        ];
        for (medium, sizes, want) in cases {
            let source = EmptyDirVolumeSource { medium: Some(medium.to_owned()), ..Default::default() };
            match (page_size(&pod(sizes), &source), want) {
                (Ok(got), Ok(want)) => assert_eq!(got.as_deref(), want, "{medium} {sizes:?}"),
                (Err(why), Err(want)) => assert!(why.contains(want), "{why}"),
                (got, want) => panic!("{medium} {sizes:?}: {got:?} is not {want:?}"),
            }
        }
    }
}
