//! The mounts of a container: its volumes, the hosts file, and the place of its last words.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use api::Object;
use api::core::v1::{Container, VolumeMount};
use cri::v1 as pb;

use super::Worker;
use super::start::{MountedVolumes, Ready};
use crate::container::config::termination_message_path;
use crate::container::{dns, expansion};
use crate::pod;
use crate::pod_state::PodState;
use crate::volumes::subpath;

impl Worker {
    // Upstream: pkg/kubelet/kubelet_pods.go makeMounts
    pub(super) fn mounts(
        &self,
        container: &Container,
        restart_count: i32,
        ready: &Ready<'_>,
        environment: &BTreeMap<String, String>,
        state: &PodState,
    ) -> Result<Vec<pb::Mount>, String> {
        let mut mounts = Vec::new();
        for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
            let volume = ready.volumes.get(&mount.name);
            let volume = volume
                .ok_or_else(|| format!("cannot find volume {:?} to mount into container", mount.name))?;
            let sub_path = sub_path(mount, environment)?;
            if let (Some(source), Some(image)) = (&volume.image, ready.images.get(&mount.name)) {
                mounts.push(pb::Mount {
                    container_path: absolute(&mount.mount_path),
                    readonly: true,
                    propagation: propagation(mount) as i32,
                    image: Some(pb::ImageSpec {
                        image: image.clone(),
                        user_specified_image: source.reference.clone().unwrap_or_default(),
                        annotations: sub_path
                            .map(|p| (cri::IMAGE_SUB_PATH.to_owned(), p))
                            .into_iter()
                            .collect(),
                        ..Default::default()
                    }),
                    ..Default::default()
                });
                continue;
            }
            let host_path = match sub_path {
                None => volume.path.clone(),
                Some(sub_path) => {
                    let target = self.core.paths.subpath(self.pod.uid(), &mount.name, &container.name, index);
                    subpath::bind(&volume.path, &sub_path, &target).map_err(|e| e.to_string())?
                }
            };
            mounts.push(pb::Mount {
                container_path: absolute(&mount.mount_path),
                host_path: host_path.to_string_lossy().into_owned(),
                readonly: mount.read_only == Some(true) || volume.read_only,
                recursive_read_only: recursive_read_only(mount, self.core.recursive_read_only())?,
                propagation: propagation(mount) as i32,
                ..Default::default()
            });
        }
        let has = |mounts: &[pb::Mount], path: &str| mounts.iter().any(|m| m.container_path == path);
        if !has(&mounts, "/etc/hosts") {
            mounts.push(self.hosts_mount(state).map_err(|e| format!("cannot write the hosts file: {e}"))?);
        }
        let words = termination_message_path(container);
        if !words.is_empty() && !has(&mounts, &words) {
            let host_path =
                self.core.paths.container(self.pod.uid(), &container.name).join(restart_count.to_string());
            make_writable(&host_path).map_err(|e| format!("cannot make the termination log: {e}"))?;
            mounts.push(pb::Mount {
                container_path: words,
                host_path: host_path.to_string_lossy().into_owned(),
                ..Default::default()
            });
        }
        Ok(mounts)
    }

    fn hosts_mount(&self, state: &PodState) -> std::io::Result<pb::Mount> {
        let path = self.core.paths.hosts_file(self.pod.uid());
        let aliases = self.pod.spec.as_ref().and_then(|s| s.host_aliases.clone()).unwrap_or_default();
        let text = if pod::host_network(&self.pod) {
            dns::host_network_hosts_file(&fs::read_to_string("/etc/hosts")?, &aliases)
        } else {
            let (hostname, domain) = dns::hostname(&self.pod, &self.core.config.cluster_domain);
            dns::hosts_file(state.ips(), &hostname, &domain, &aliases)
        };
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
        Ok(pb::Mount {
            container_path: "/etc/hosts".into(),
            host_path: path.to_string_lossy().into_owned(),
            ..Default::default()
        })
    }
}

/// The raw devices that the container takes from the pod's volumes.
// Upstream: pkg/kubelet/kubelet_pods.go makeBlockVolumes
pub fn devices(container: &Container, volumes: &MountedVolumes) -> Result<Vec<pb::Device>, String> {
    let taken = container.volume_devices.iter().flatten().map(|device| {
        let volume = volumes.get(&device.name).filter(|volume| volume.is_device);
        let volume = volume.ok_or_else(|| {
            format!("cannot find volume {:?} to pass into container {:?}", device.name, container.name)
        })?;
        // The runtime is to find the device itself, whatever links there are to it.
        let at = fs::canonicalize(&volume.path)
            .map_err(|e| format!("cannot find the device of volume {:?}: {e}", device.name))?;
        Ok(pb::Device {
            container_path: device.device_path.clone(),
            host_path: at.to_string_lossy().into_owned(),
            permissions: if volume.read_only { "r" } else { "mrw" }.to_owned(),
        })
    });
    taken.collect()
}

/// A file that the container may write, whoever it runs as.
fn make_writable(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, b"")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666))
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

fn propagation(mount: &VolumeMount) -> pb::MountPropagation {
    match mount.mount_propagation.as_deref() {
        Some("HostToContainer") => pb::MountPropagation::PropagationHostToContainer,
        Some("Bidirectional") => pb::MountPropagation::PropagationBidirectional,
        _ => pb::MountPropagation::PropagationPrivate,
    }
}

/// Whether what is mounted below the volume is read-only as well.
// Upstream: pkg/kubelet/kubelet_pods.go resolveRecursiveReadOnly
pub fn recursive_read_only(mount: &VolumeMount, able: bool) -> Result<bool, String> {
    let name = &mount.name;
    let mode = mount.recursive_read_only.as_deref().unwrap_or("Disabled");
    if mode == "Disabled" {
        return Ok(false);
    }
    if mount.read_only != Some(true) {
        return Err(format!("volume {name:?} requested recursive read-only mode, but it is not read-only"));
    }
    if let Some(propagation) = mount.mount_propagation.as_deref().filter(|p| *p != "None") {
        return Err(format!(
            "volume {name:?} requested recursive read-only mode, but it is not compatible with propagation \
             {propagation:?}"
        ));
    }
    match mode {
        "IfPossible" => Ok(able),
        "Enabled" if able => Ok(true),
        "Enabled" => Err(format!(
            "volume {name:?} requested recursive read-only mode, but it is not supported by the runtime"
        )),
        other => Err(format!("unknown recursive read-only mode {other:?}")),
    }
}

/// The part of the volume to mount. An expression must not refer to a variable that does not exist.
fn sub_path(mount: &VolumeMount, environment: &BTreeMap<String, String>) -> Result<Option<String>, String> {
    if let Some(expression) = mount.sub_path_expr.as_deref().filter(|e| !e.is_empty()) {
        let missing = std::cell::Cell::new(false);
        let expanded = expansion::expand(expression, |name| {
            let value = environment.get(name).cloned();
            missing.set(missing.get() || value.is_none());
            value
        });
        if missing.get() {
            return Err(format!(
                "failed to expand subPath for volume {:?}: missing value for {expression:?}",
                mount.name
            ));
        }
        subpath::check(&expanded)?;
        return Ok(Some(expanded));
    }
    let Some(path) = mount.sub_path.as_deref().filter(|p| !p.is_empty()) else { return Ok(None) };
    subpath::check(path)?;
    Ok(Some(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_only_all_the_way_down() {
        let cases = [
            (Some(true), None, None, true, Ok(false)),
            (Some(true), Some("Disabled"), None, true, Ok(false)),
            (Some(true), Some("IfPossible"), None, true, Ok(true)),
            (Some(true), Some("IfPossible"), Some("None"), false, Ok(false)),
            (Some(true), Some("Enabled"), None, true, Ok(true)),
            (Some(true), Some("Enabled"), None, false, Err("not supported by the runtime")),
            (None, Some("IfPossible"), None, true, Err("not read-only")),
            (Some(true), Some("Enabled"), Some("HostToContainer"), true, Err("not compatible")),
        ];
        for (read_only, mode, propagation, able, want) in cases {
            let mount = VolumeMount {
                read_only,
                recursive_read_only: mode.map(str::to_owned),
                mount_propagation: propagation.map(str::to_owned),
                ..Default::default()
            };
            match (recursive_read_only(&mount, able), want) {
                (Ok(got), Ok(want)) => assert_eq!(got, want, "{mount:?}"),
                (Err(why), Err(want)) => assert!(why.contains(want), "{why}"),
                (got, want) => panic!("{mount:?}: {got:?} is not {want:?}"),
            }
        }
    }

    #[test]
    fn sub_paths() {
        let environment =
            BTreeMap::from([("POD".to_owned(), "p".to_owned()), ("BAD".to_owned(), "/abs".to_owned())]);
        let cases = [
            (None, None, Ok(None)),
            (Some("a/b"), None, Ok(Some("a/b"))),
            (Some("../a"), None, Err(())),
            (None, Some("logs/$(POD)"), Ok(Some("logs/p"))),
            (None, Some("$(NONE)"), Err(())),
            (None, Some("$(BAD)"), Err(())),
        ];
        for (path, expression, want) in cases {
            let mount = VolumeMount {
                sub_path: path.map(str::to_owned),
                sub_path_expr: expression.map(str::to_owned),
                ..Default::default()
            };
            assert_eq!(sub_path(&mount, &environment).as_ref().map(Option::as_deref).map_err(|_| ()), want);
        }
    }
}
