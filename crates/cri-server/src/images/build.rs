//! A tiny image writer: one layer from files in memory, as an archive that any engine can import.

use std::collections::BTreeMap;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::format::{CONFIG_OCI, INDEX_OCI, LAYER_OCI, MANIFEST_OCI, RunConfig, architecture};

/// A file of the layer. A mode with the directory bit makes a directory, one with the link bit a symbolic link
/// to the path in `bytes`.
#[derive(Debug, Clone)]
pub struct BuildFile {
    pub path: String,
    pub mode: u32,
    pub bytes: Vec<u8>,
}

/// How the image is to be run.
#[derive(Debug, Clone, Default)]
pub struct BuildConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub user: String,
    pub working_dir: String,
    /// Such as `8080/tcp`.
    pub exposed_ports: Vec<String>,
}

const DIRECTORY: u32 = 0o040_000;
const LINK: u32 = 0o120_000;
const KIND: u32 = 0o170_000;

/// Writes an OCI archive of an image called `name`. The same input gives the same bytes.
pub fn build(name: &str, files: &[BuildFile], config: &BuildConfig) -> std::io::Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    for file in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(file.mode & 0o7777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        let path = file.path.trim_start_matches('/');
        match file.mode & KIND {
            DIRECTORY => {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_size(0);
                layer.append_data(&mut header, format!("{path}/"), std::io::empty())?;
            }
            LINK => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                layer.append_link(&mut header, path, String::from_utf8_lossy(&file.bytes).as_ref())?;
            }
            _ => {
                header.set_size(file.bytes.len() as u64);
                layer.append_data(&mut header, path, file.bytes.as_slice())?;
            }
        }
    }
    let layer = layer.into_inner()?;
    let list = |words: &[String]| (!words.is_empty()).then(|| words.to_vec());
    let ports: BTreeMap<String, serde_json::Value> =
        config.exposed_ports.iter().map(|port| (port.clone(), json!({}))).collect();
    let run = RunConfig {
        user: config.user.clone(),
        env: list(&config.env),
        entrypoint: list(&config.entrypoint),
        cmd: list(&config.cmd),
        working_dir: config.working_dir.clone(),
        exposed_ports: (!ports.is_empty()).then_some(ports),
        ..RunConfig::default()
    };
    let config = json!({
        "architecture": architecture(), "os": "linux", "config": run,
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
    })
    .to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_OCI,
        "config": { "mediaType": CONFIG_OCI, "digest": digest(config.as_bytes()), "size": config.len() },
        "layers": [{ "mediaType": LAYER_OCI, "digest": digest(&layer), "size": layer.len() }],
    })
    .to_string();
    let index = json!({
        "schemaVersion": 2, "mediaType": INDEX_OCI,
        "manifests": [{
            "mediaType": MANIFEST_OCI, "digest": digest(manifest.as_bytes()), "size": manifest.len(),
            "annotations": { "io.containerd.image.name": name, "org.opencontainers.image.ref.name": name },
        }],
    })
    .to_string();
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, path, bytes)
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", index.as_bytes())?;
    for blob in [manifest.as_bytes(), config.as_bytes(), &layer] {
        add(&format!("blobs/{}", digest(blob).replace(':', "/")), blob)?;
    }
    archive.into_inner()
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
