//! The JSON of images, of which only what an engine needs is read; OCI and Docker spell it alike.

use std::collections::BTreeMap;

use oci_client::Reference;
use serde::{Deserialize, Serialize};

use super::Error;

pub(crate) const MANIFEST_OCI: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX_OCI: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const MANIFEST_DOCKER: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const INDEX_DOCKER: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const CONFIG_OCI: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const LAYER_OCI: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
pub(crate) const CONTAINERD_NAME: &str = "io.containerd.image.name";

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub os: String,
    pub architecture: String,
}

/// A manifest or an index: which it is shows in what it has.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    #[serde(default)]
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Descriptor>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub config: Option<RunConfig>,
    pub rootfs: RootFs,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(default, rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

/// How an image wants to be run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    pub user: String,
    pub env: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    pub working_dir: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volumes: Option<BTreeMap<String, serde_json::Value>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
}

/// Go's name of this machine's architecture, which is what images use.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The full form of a name as people write it: `busybox` is `docker.io/library/busybox:latest`.
pub fn normalize(reference: &str) -> Result<String, Error> {
    parse(reference).map(|reference| reference.whole())
}

pub(crate) fn parse(reference: &str) -> Result<Reference, Error> {
    Reference::try_from(reference)
        .map_err(|e| Error::Reference { reference: reference.to_owned(), why: e.to_string() })
}

/// `sha256:<64 hex>` split into its hex, or `None` for anything else, so that no digest can name another path.
pub(crate) fn digest_hex(digest: &str) -> Option<&str> {
    let hex = digest.strip_prefix("sha256:")?;
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (hex.len() == 64 && hex.bytes().all(lower_hex)).then_some(hex)
}

/// The entry of an index for this machine.
pub(crate) fn for_this_machine(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let fits = |platform: &Platform| platform.os == "linux" && platform.architecture == architecture();
    manifests.iter().find(|entry| entry.platform.as_ref().is_some_and(fits)).or_else(|| match manifests {
        // An index with one image that names no platform is common for what was built here.
        [only] if only.platform.is_none() => Some(only),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_digests() {
        assert_eq!(normalize("busybox").unwrap(), "docker.io/library/busybox:latest");
        assert_eq!(normalize("localhost:5000/a/b:v1").unwrap(), "localhost:5000/a/b:v1");
        assert!(normalize("Not A Name").is_err());
        assert_eq!(digest_hex("sha256:../../etc/passwd"), None);
        assert!(digest_hex(&format!("sha256:{}", "0a".repeat(32))).is_some());
    }
}
