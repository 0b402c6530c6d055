//! What a pod's volume asks of its driver, read from the objects.

use std::collections::BTreeMap;

use api::Object;
use api::core::v1::{CSIVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, SecretReference};
use api::storage::v1::CSIDriver;
use cri::csi as pb;
use cri::csi::volume_capability::access_mode::Mode;
use cri::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};

use super::driver::Capabilities;
use super::record::{Identity, sha256};

/// A volume with all that its driver is told of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    pub identity: Identity,
    pub fs_type: String,
    pub read_only: bool,
    pub attributes: BTreeMap<String, String>,
    pub access_modes: Vec<String>,
    pub mount_options: Vec<String>,
    pub stage_secret: Option<SecretReference>,
    pub publish_secret: Option<SecretReference>,
    pub expand_secret: Option<SecretReference>,
    /// The objects themselves, which say whether it has grown.
    pub objects: Option<Box<(PersistentVolumeClaim, PersistentVolume)>>,
}

impl Source {
    /// A PersistentVolume, if a driver provides it.
    pub fn of_volume(
        claim: &PersistentVolumeClaim,
        volume: &PersistentVolume,
        read_only: bool,
    ) -> Option<Self> {
        let spec = volume.spec.as_ref()?;
        let csi = spec.csi.as_ref()?;
        let block = spec.volume_mode.as_deref() == Some("Block");
        Some(Source {
            identity: Identity {
                driver: csi.driver.clone(),
                handle: csi.volume_handle.clone(),
                name: volume.name().to_owned(),
                block,
                ephemeral: false,
            },
            fs_type: csi.fs_type.clone().unwrap_or_default(),
            read_only,
            attributes: csi.volume_attributes.clone().unwrap_or_default(),
            access_modes: spec.access_modes.clone().unwrap_or_default(),
            mount_options: if block { Vec::new() } else { spec.mount_options.clone().unwrap_or_default() },
            stage_secret: csi.node_stage_secret_ref.clone(),
            publish_secret: csi.node_publish_secret_ref.clone(),
            expand_secret: csi.node_expand_secret_ref.clone(),
            objects: Some(Box::new((claim.clone(), volume.clone()))),
        })
    }

    /// A volume that the pod brings itself.
    pub fn of_pod(pod: &Pod, name: &str, csi: &CSIVolumeSource) -> Self {
        let secret = csi.node_publish_secret_ref.as_ref().map(|secret| SecretReference {
            name: Some(secret.name.clone()),
            namespace: Some(pod.namespace().to_owned()),
        });
        Source {
            identity: Identity {
                driver: csi.driver.clone(),
                // Upstream: pkg/volume/csi/csi_mounter.go makeVolumeHandle
                handle: format!("csi-{}", sha256(&format!("{}{name}", pod.uid()))),
                name: name.to_owned(),
                block: false,
                ephemeral: true,
            },
            fs_type: csi.fs_type.clone().unwrap_or_default(),
            read_only: csi.read_only == Some(true),
            attributes: csi.volume_attributes.clone().unwrap_or_default(),
            access_modes: Vec::new(),
            mount_options: Vec::new(),
            stage_secret: None,
            publish_secret: secret,
            expand_secret: None,
            objects: None,
        }
    }

    /// Whether only one pod at a time may have it.
    pub fn is_for_one_pod(&self) -> bool {
        self.access_modes == ["ReadWriteOncePod"]
    }

    // Upstream: pkg/volume/csi/csi_client.go asCSIAccessModeV1, asSingleNodeMultiWriterCapableCSIAccessModeV1
    fn access_mode(&self, able: &Capabilities) -> Mode {
        match (
            self.access_modes.first().map_or("ReadWriteOnce", String::as_str),
            able.single_node_multi_writer,
        ) {
            ("ReadWriteOnce", false) | ("ReadWriteOncePod", false) => Mode::SingleNodeWriter,
            ("ReadWriteOnce", true) => Mode::SingleNodeMultiWriter,
            ("ReadWriteOncePod", true) => Mode::SingleNodeSingleWriter,
            ("ReadOnlyMany", _) => Mode::MultiNodeReaderOnly,
            ("ReadWriteMany", _) => Mode::MultiNodeMultiWriter,
            _ => Mode::Unknown,
        }
    }

    /// How the volume is to be there. `group` is told to drivers that give files to groups themselves.
    pub fn capability(&self, able: &Capabilities, group: Option<i64>) -> pb::VolumeCapability {
        let access_type = if self.identity.block {
            AccessType::Block(BlockVolume {})
        } else {
            let group = group.filter(|_| able.volume_mount_group);
            AccessType::Mount(MountVolume {
                fs_type: self.fs_type.clone(),
                mount_flags: self.mount_options.clone(),
                volume_mount_group: group.map(|group| group.to_string()).unwrap_or_default(),
            })
        };
        pb::VolumeCapability {
            access_mode: Some(AccessMode { mode: self.access_mode(able) as i32 }),
            access_type: Some(access_type),
        }
    }

    /// Whether the kubelet is to give the volume's files to the pod's group.
    // Upstream: pkg/volume/csi/csi_mounter.go supportsFSGroup
    pub fn is_given_to_group(&self, policy: &str) -> bool {
        let once = |mode: &String| mode == "ReadWriteOnce" || mode == "ReadWriteOncePod";
        match policy {
            _ if self.read_only || self.identity.block => false,
            "None" => false,
            "File" => true,
            _ => !self.fs_type.is_empty() && (self.identity.ephemeral || self.access_modes.iter().any(once)),
        }
    }
}

/// The pod as a driver is told of it.
// Upstream: pkg/volume/csi/csi_util.go getPodInfoAttrs
pub fn pod_info(pod: &Pod, ephemeral: bool) -> BTreeMap<String, String> {
    let account = pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_default();
    let pairs = [
        ("pod.name", pod.name().to_owned()),
        ("pod.namespace", pod.namespace().to_owned()),
        ("pod.uid", pod.uid().to_owned()),
        ("serviceAccount.name", account),
        ("ephemeral", ephemeral.to_string()),
    ];
    pairs.into_iter().map(|(key, value)| (format!("csi.storage.k8s.io/{key}"), value)).collect()
}

/// Why the driver does not do for the volume, if it does not. Without an object a driver provides only
/// PersistentVolumes.
// Upstream: pkg/volume/csi/csi_mounter.go supportsVolumeLifecycleMode
pub fn refusal(volume: &Identity, driver: Option<&CSIDriver>) -> Option<String> {
    let mode = if volume.ephemeral { "Ephemeral" } else { "Persistent" };
    let name = &volume.driver;
    match driver {
        None if !volume.ephemeral => None,
        None => Some(format!("volume mode {mode:?} not supported by driver {name} (no CSIDriver object)")),
        Some(driver) => {
            let modes = driver.spec.volume_lifecycle_modes.as_deref().unwrap_or_default();
            let quoted = || modes.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>().join(" ");
            (!modes.iter().any(|m| m == mode)).then(|| {
                format!("volume mode {mode:?} not supported by driver {name} (only supports [{}])", quoted())
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn source(modes: &[&str], fs_type: &str, ephemeral: bool) -> Source {
        let volume: PersistentVolume = serde_json::from_value(json!({
            "metadata": {"name": "pv"},
            "spec": {"accessModes": modes, "csi": {"driver": "d", "volumeHandle": "h", "fsType": fs_type}},
        }))
        .unwrap();
        let mut source = Source::of_volume(&PersistentVolumeClaim::default(), &volume, false).unwrap();
        source.identity.ephemeral = ephemeral;
        source
    }

    #[test]
    fn who_gives_files_to_the_group() {
        let cases = [
            (source(&["ReadWriteOnce"], "ext4", false), [true, true, false]),
            (source(&["ReadWriteOncePod"], "ext4", false), [true, true, false]),
            (source(&["ReadWriteOnce"], "", false), [false, true, false]),
            (source(&["ReadWriteMany"], "ext4", false), [false, true, false]),
            (source(&[], "ext4", false), [false, true, false]),
            (source(&[], "ext4", true), [true, true, false]),
        ];
        for (source, want) in cases {
            let got = ["ReadWriteOnceWithFSType", "File", "None"].map(|p| source.is_given_to_group(p));
            assert_eq!(got, want, "{source:?}");
            assert!(!Source { read_only: true, ..source }.is_given_to_group("File"));
        }
    }

    #[test]
    fn access_modes() {
        let plain = Capabilities::default();
        let able = Capabilities { single_node_multi_writer: true, ..Default::default() };
        let cases = [
            ("ReadWriteOnce", Mode::SingleNodeWriter, Mode::SingleNodeMultiWriter),
            ("ReadWriteOncePod", Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter),
            ("ReadOnlyMany", Mode::MultiNodeReaderOnly, Mode::MultiNodeReaderOnly),
            ("ReadWriteMany", Mode::MultiNodeMultiWriter, Mode::MultiNodeMultiWriter),
        ];
        for (mode, of_plain, of_able) in cases {
            let source = source(&[mode], "", false);
            assert_eq!(
                (source.access_mode(&plain), source.access_mode(&able)),
                (of_plain, of_able),
                "{mode}"
            );
        }
        assert_eq!(source(&[], "", false).access_mode(&plain), Mode::SingleNodeWriter);
    }

    #[test]
    fn lifecycles() {
        let driver = |modes: &[&str]| -> CSIDriver {
            serde_json::from_value(
                json!({"metadata": {"name": "d"}, "spec": {"volumeLifecycleModes": modes}}),
            )
            .unwrap()
        };
        let refused = |ephemeral, driver: Option<&CSIDriver>| {
            refusal(&source(&[], "", ephemeral).identity, driver).unwrap_or_default()
        };
        assert_eq!(refused(false, None), "");
        let want = "volume mode \"Ephemeral\" not supported by driver d (no CSIDriver object)";
        assert_eq!(refused(true, None), want);
        let want = "volume mode \"Ephemeral\" not supported by driver d (only supports [\"Persistent\"])";
        assert_eq!(refused(true, Some(&driver(&["Persistent"]))), want);
        assert_eq!(refused(true, Some(&driver(&["Persistent", "Ephemeral"]))), "");
    }
}
