//! Devices by the Container Device Interface: vendors lay down files that say what a container with one of their
//! devices is to have besides, and CRI names the devices as `vendor.com/class=name`.
//!
//! Start at [`inject`]. Of two files that describe one device that one counts which lies in the later directory;
//! in one directory they are a conflict, and the device cannot be had.
// Upstream: tags.cncf.io/container-device-interface pkg/cdi, SPEC.md

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::engine::device_at;

/// Where vendors lay their files, the later before the earlier.
pub(crate) const DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// A file that is larger is not one of a vendor's.
const MAX_FILE: u64 = 4 << 20;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    kind: String,
    devices: Vec<Device>,
    container_edits: Edits,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Device {
    name: String,
    container_edits: Edits,
}

/// What changes in the description of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Node {
    path: String,
    host_path: String,
    #[serde(rename = "type")]
    kind: String,
    major: u64,
    minor: u64,
    file_mode: Option<u32>,
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(rename = "type")]
    kind: String,
    options: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hook {
    hook_name: String,
    #[serde(flatten)]
    what: Command,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
struct Command {
    path: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    args: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<i64>,
}

/// All devices that files describe.
#[derive(Debug, Default)]
struct Known {
    /// By full name: the edits of its file and its own; none where files of one directory contradict each other.
    devices: BTreeMap<String, Option<(PathBuf, Edits, Edits)>>,
}

impl Known {
    fn read(directories: &[PathBuf]) -> Self {
        let mut known = Known::default();
        for directory in directories {
            let mut here = BTreeMap::new();
            for (path, file) in files(directory) {
                for device in file.devices {
                    let name = format!("{}={}", file.kind, device.name);
                    let edits = (path.clone(), file.container_edits.clone(), device.container_edits);
                    let entry = here.entry(name);
                    entry.and_modify(|known| *known = None).or_insert(Some(edits));
                }
            }
            known.devices.extend(here);
        }
        known
    }
}

/// The files of a directory that can be read; one that cannot has no devices.
fn files(directory: &Path) -> Vec<(PathBuf, File)> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let read = |path: PathBuf| {
        let is_text = path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_FILE);
        let text = std::fs::read_to_string(&path).ok().filter(|_| is_text)?;
        let parsed = match path.extension()?.to_str()? {
            "json" => serde_json::from_str::<File>(&text).map_err(|e| e.to_string()),
            "yaml" => serde_saphyr::from_str::<File>(&text).map_err(|e| e.to_string()),
            _ => return None,
        };
        match parsed {
            Ok(file) => Some((path, file)),
            Err(error) => {
                tracing::warn!(path = %path.display(), error, "a description of devices cannot be read");
                None
            }
        }
    };
    paths.into_iter().filter_map(read).collect()
}

/// Gives a container the devices of these names: changes its description.
pub(crate) fn inject(spec: &mut Value, names: &[String], directories: &[PathBuf]) -> Result<(), String> {
    if names.is_empty() {
        return Ok(());
    }
    let known = Known::read(directories);
    let (mut unknown, mut found) = (Vec::new(), Vec::new());
    for name in names {
        match known.devices.get(name) {
            Some(Some(edits)) => found.push(edits),
            _ => unknown.push(name.as_str()),
        }
    }
    if !unknown.is_empty() {
        // Upstream: containerd's words
        return Err(format!("CDI device injection failed: unresolvable CDI devices {}", unknown.join(", ")));
    }
    let mut common = BTreeSet::new();
    for (file, of_file, of_device) in found {
        if common.insert(file) {
            of_file.apply(spec).map_err(|why| format!("CDI device injection failed: {why}"))?;
        }
        of_device.apply(spec).map_err(|why| format!("CDI device injection failed: {why}"))?;
    }
    Ok(())
}

/// The list in a field, made where there is none.
fn list<'v>(value: &'v mut Value, pointer: &[&str]) -> &'v mut Vec<Value> {
    let mut at = value;
    for field in pointer {
        at = &mut at[*field];
    }
    if !at.is_array() {
        *at = json!([]);
    }
    at.as_array_mut().expect("it was just made one")
}

impl Edits {
    fn apply(&self, spec: &mut Value) -> Result<(), String> {
        let env = list(spec, &["process", "env"]);
        for entry in &self.env {
            let name = entry.split_once('=').map_or(entry.as_str(), |(name, _)| name);
            env.retain(|known| {
                known.as_str().and_then(|known| known.split_once('=')).map(|k| k.0) != Some(name)
            });
            env.push(json!(entry));
        }
        for node in &self.device_nodes {
            let (device, rule) = node.described()?;
            let devices = list(spec, &["linux", "devices"]);
            devices.retain(|known| known["path"] != device["path"]);
            devices.push(device);
            list(spec, &["linux", "resources", "devices"]).push(rule);
        }
        for mount in &self.mounts {
            let kind = if mount.kind.is_empty() { "bind" } else { &mount.kind };
            let mounts = list(spec, &["mounts"]);
            mounts.retain(|known| known["destination"] != json!(mount.container_path));
            let (to, from) = (&mount.container_path, &mount.host_path);
            mounts.push(json!({"destination": to, "source": from, "type": kind, "options": mount.options}));
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return Err(format!("unknown hook name {:?}", hook.hook_name));
            }
            list(spec, &["hooks", &hook.hook_name]).push(json!(hook.what));
        }
        let groups = list(spec, &["process", "user", "additionalGids"]);
        for group in self.additional_gids.iter().filter(|group| **group != 0) {
            if !groups.contains(&json!(group)) {
                groups.push(json!(group));
            }
        }
        Ok(())
    }
}

const HOOKS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

impl Node {
    /// The device and the rule that allows it. What the file does not say is as on the machine.
    fn described(&self) -> Result<(Value, Value), String> {
        let source = if self.host_path.is_empty() { &self.path } else { &self.host_path };
        let (mut kind, mut major, mut minor) = (self.kind.clone(), self.major, self.minor);
        if kind.is_empty() || (major == 0 && minor == 0 && kind != "p") {
            let found = device_at(Path::new(source), &self.path, "")
                .ok_or_else(|| format!("failed to stat CDI host device {source:?}"))?;
            if !kind.is_empty() && kind != found.kind.to_string() {
                return Err(format!("CDI device {source:?}, host type mismatch ({kind}, {})", found.kind));
            }
            (kind, major, minor) = (found.kind.to_string(), found.major, found.minor);
        }
        let access = if self.permissions.is_empty() { "rwm" } else { &self.permissions };
        let mut device = json!({"path": self.path, "type": kind, "major": major, "minor": minor});
        for (field, value) in [("fileMode", self.file_mode), ("uid", self.uid), ("gid", self.gid)] {
            if let Some(value) = value {
                device[field] = json!(value);
            }
        }
        let rule = json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access});
        Ok((device, rule))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: &str = r#"{
        "cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
        "containerEdits": {"env": ["VENDOR=all"], "mounts": [
            {"hostPath": "/opt/lib", "containerPath": "/usr/lib/gpu", "options": ["ro", "rbind"]}]},
        "devices": [
            {"name": "0", "containerEdits": {
                "env": ["GPU=0"], "additionalGids": [44, 0],
                "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null", "permissions": "rw"}],
                "hooks": [{"hookName": "createContainer", "path": "/bin/true", "args": ["true"]}]}},
            {"name": "1", "containerEdits": {
                "deviceNodes": [{"path": "/dev/gpu1", "type": "c", "major": 195, "minor": 1}]}}
        ]
    }"#;

    fn spec() -> Value {
        json!({
            "process": {"env": ["PATH=/bin", "GPU=none"], "user": {"additionalGids": [44]}},
            "mounts": [{"destination": "/usr/lib/gpu", "source": "old"}],
            "linux": {"resources": {"devices": []}},
        })
    }

    fn write(dir: &Path, name: &str, text: &str) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join(name), text).unwrap();
    }

    #[test]
    fn a_container_gets_what_the_files_say() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "gpu.json", GPU);
        let mut spec = spec();
        let names = ["vendor.com/gpu=0", "vendor.com/gpu=1"].map(str::to_owned);
        inject(&mut spec, &names, &[dir.path().to_owned()]).unwrap();
        assert_eq!(spec["process"]["env"], json!(["PATH=/bin", "VENDOR=all", "GPU=0"]));
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([44]));
        let mounts = json!([{"destination": "/usr/lib/gpu", "source": "/opt/lib", "type": "bind",
            "options": ["ro", "rbind"]}]);
        assert_eq!(spec["mounts"], mounts, "once, though two devices have it");
        let devices = json!([
            {"path": "/dev/gpu0", "type": "c", "major": 1, "minor": 3},
            {"path": "/dev/gpu1", "type": "c", "major": 195, "minor": 1},
        ]);
        assert_eq!(spec["linux"]["devices"], devices);
        assert_eq!(spec["linux"]["resources"]["devices"][0]["access"], "rw");
        assert_eq!(spec["hooks"]["createContainer"], json!([{"path": "/bin/true", "args": ["true"]}]));
    }

    #[test]
    fn files_are_ranked_and_may_contradict_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let (low, high) = (dir.path().join("low"), dir.path().join("high"));
        let yaml = |value: &str| {
            format!("kind: v/c\ndevices:\n- name: d\n  containerEdits:\n    env: [\"FROM={value}\"]\n")
        };
        write(&low, "a.yaml", &yaml("low"));
        write(&high, "a.yaml", &yaml("high"));
        write(&high, "broken.yaml", "devices: 7");
        let names = ["v/c=d".to_owned()];
        let directories = [low, high.clone()];
        let mut described = json!({});
        inject(&mut described, &names, &directories).unwrap();
        assert_eq!(described["process"]["env"], json!(["FROM=high"]));
        write(&high, "b.yaml", &yaml("other"));
        let why = inject(&mut described, &names, &directories).unwrap_err();
        assert_eq!(why, "CDI device injection failed: unresolvable CDI devices v/c=d");
    }
}
