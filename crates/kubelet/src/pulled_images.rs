//! Which images were pulled here with whose credentials: a pod that could not have pulled an image must not get
//! it because another pod has. Records outlive the kubelet; an image that the kubelet has no record of was brought
//! by the operator and is everybody's.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::Object;
use api::core::v1::Secret;
use cri::v1 as pb;
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// As many secrets are remembered of one image; who has yet another one pulls again.
// Upstream: pkg/kubelet/images/pullmanager/image_pull_manager.go writeRecordWhileMatchingLimit
const MAX_SECRETS: usize = 100;

/// A secret by which an image was pulled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PullSecret {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Of what it holds for the image's registry.
    pub hash: String,
}

impl PullSecret {
    pub fn new(secret: &Secret, auth: &pb::AuthConfig) -> Self {
        let mut hasher = Sha256::new();
        for part in [&auth.username, &auth.password, &auth.server_address] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        PullSecret {
            uid: secret.uid().to_owned(),
            namespace: secret.namespace().to_owned(),
            name: secret.name().to_owned(),
            hash: hex(&hasher.finalize()),
        }
    }

    fn matches(&self, other: &PullSecret) -> bool {
        self.hash == other.hash || self.is_same(other)
    }

    fn is_same(&self, other: &PullSecret) -> bool {
        (&self.uid, &self.namespace, &self.name) == (&other.uid, &other.namespace, &other.name)
    }
}

/// Who may have an image.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Access {
    Everybody,
    Secrets(BTreeSet<PullSecret>),
}

/// By the image's name without tag and digest: who may have it.
type Record = BTreeMap<String, Access>;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The name that credentials are for.
fn bare(image: &str) -> &str {
    let image = image.split_once('@').map_or(image, |(name, _)| name);
    let last = image.rfind('/').map_or(0, |at| at + 1);
    image[last..].find(':').map_or(image, |at| &image[..last + at])
}

/// Whether a pod with these secrets must pull the image though it is there. `None` is an image without a record,
/// which was pulled here, or not, as `begun` says.
// Upstream: pkg/kubelet/images/pullmanager/image_pull_manager.go MustAttemptImagePull
fn must_pull(record: Option<&Record>, begun: bool, image: &str, secrets: &[PullSecret]) -> bool {
    let Some(record) = record else { return begun };
    match record.get(bare(image)) {
        None => true,
        Some(Access::Everybody) => false,
        Some(Access::Secrets(known)) => !secrets.iter().any(|s| known.iter().any(|k| k.matches(s))),
    }
}

/// The records of a node.
pub struct PulledImages {
    dir: PathBuf,
    lock: Mutex<()>,
}

impl PulledImages {
    pub fn new(dir: PathBuf) -> Self {
        PulledImages { dir, lock: Mutex::new(()) }
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, kind: &str, name: &str) -> PathBuf {
        self.dir.join(kind).join(format!("sha256-{}", hex(&Sha256::digest(name))))
    }

    fn record(&self, image_ref: &str) -> io::Result<Option<Record>> {
        match fs::read(self.file("pulled", image_ref)) {
            Ok(bytes) => Ok(Some(parse(&bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a pod with these secrets must pull an image that is there. A record that cannot be read proves
    /// nothing.
    pub fn must_pull(&self, image: &str, image_ref: &str, secrets: &[PullSecret], now: Timestamp) -> bool {
        let _one = self.lock();
        let Ok(record) = self.record(image_ref) else { return true };
        let begun = self.file("pulling", image).exists();
        let must = must_pull(record.as_ref(), begun, image, secrets);
        if let Some(Access::Secrets(known)) = record.as_ref().and_then(|record| record.get(bare(image))) {
            // The same credentials under another name, or new ones under the same.
            let fresh = |s: &&PullSecret| !known.contains(s) && known.iter().any(|k| k.matches(s));
            let fresh: Vec<PullSecret> = secrets.iter().filter(fresh).cloned().collect();
            if !fresh.is_empty() {
                self.note(image, image_ref, &fresh, now);
            }
        }
        must
    }

    /// A pull begins. Who finds this and no record knows that the image was not the operator's.
    pub fn begin(&self, image: &str) -> io::Result<()> {
        let _one = self.lock();
        let content = json!({"kind": "ImagePullIntent", "image": image}).to_string();
        write(&self.file("pulling", image), content.as_bytes())
    }

    /// It ended; with an image when it ended well, pulled by a secret or by nobody's.
    pub fn end(&self, image: &str, pulled: Option<(&str, Option<PullSecret>)>, now: Timestamp) {
        let _one = self.lock();
        if let Some((image_ref, secret)) = pulled {
            let secrets: Vec<PullSecret> = secret.into_iter().collect();
            if !self.note(image, image_ref, &secrets, now) {
                return;
            }
        }
        let _ = fs::remove_file(self.file("pulling", image));
    }

    /// Adds secrets to a record, or everybody when there is none. False when it could not be written.
    fn note(&self, image: &str, image_ref: &str, secrets: &[PullSecret], now: Timestamp) -> bool {
        let mut record = self.record(image_ref).ok().flatten().unwrap_or_default();
        let access = record.entry(bare(image).to_owned()).or_insert_with(|| Access::Secrets(BTreeSet::new()));
        match access {
            Access::Everybody => return true,
            access if secrets.is_empty() => *access = Access::Everybody,
            Access::Secrets(known) => {
                known.retain(|k| !secrets.iter().any(|s| s.is_same(k)));
                let room = MAX_SECRETS.saturating_sub(known.len());
                known.extend(secrets.iter().take(room).cloned());
            }
        }
        let written = write(&self.file("pulled", image_ref), print(image_ref, &record, now).as_bytes());
        if let Err(error) = &written {
            tracing::warn!(image, %error, "by whom an image was pulled cannot be written down");
        }
        written.is_ok()
    }

    /// Forgets images that are not there any more, of those that were pulled before `listed`.
    pub fn prune(&self, image_refs: &BTreeSet<String>, listed: Timestamp) {
        let _one = self.lock();
        let kept: BTreeSet<PathBuf> = image_refs.iter().map(|name| self.file("pulled", name)).collect();
        for entry in fs::read_dir(self.dir.join("pulled")).into_iter().flatten().flatten() {
            let path = entry.path();
            let is_old = || {
                let content: Value = serde_json::from_slice(&fs::read(&path).ok()?).ok()?;
                Some(content["lastUpdatedTime"].as_str()?.parse::<Timestamp>().ok()? < listed)
            };
            if !kept.contains(&path) && is_old().unwrap_or(true) {
                let _ = fs::remove_file(&path);
            }
        }
    }
}

/// Whole or not at all.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, content)?;
    fs::rename(temporary, path)
}

/// Upstream: pkg/kubelet/apis/config/types.go ImagePulledRecord
fn print(image_ref: &str, record: &Record, now: Timestamp) -> String {
    let access = |access: &Access| match access {
        Access::Everybody => json!({"nodePodsAccessible": true}),
        Access::Secrets(secrets) => {
            let one = |s: &PullSecret| json!({"uid": s.uid, "namespace": s.namespace, "name": s.name, "credentialHash": s.hash});
            json!({"kubernetesSecrets": secrets.iter().map(one).collect::<Vec<_>>()})
        }
    };
    let mapping: BTreeMap<&String, Value> = record.iter().map(|(name, of)| (name, access(of))).collect();
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "ImagePulledRecord",
        "lastUpdatedTime": now.to_string(),
        "imageRef": image_ref,
        "credentialMapping": mapping,
    })
    .to_string()
}

/// A record that makes no sense allows nobody anything.
fn parse(bytes: &[u8]) -> Record {
    let content: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let mut record = Record::new();
    for (name, access) in content["credentialMapping"].as_object().into_iter().flatten() {
        let text = |s: &Value, key: &str| s[key].as_str().unwrap_or_default().to_owned();
        let secret = |s: &Value| PullSecret {
            uid: text(s, "uid"),
            namespace: text(s, "namespace"),
            name: text(s, "name"),
            hash: text(s, "credentialHash"),
        };
        let secrets = access["kubernetesSecrets"].as_array().into_iter().flatten().map(secret);
        let access = match access["nodePodsAccessible"] == true {
            true => Access::Everybody,
            false => Access::Secrets(secrets.collect()),
        };
        record.insert(name.clone(), access);
    }
    record
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str, hash: &str) -> PullSecret {
        PullSecret { uid: format!("u-{name}"), namespace: "n".into(), name: name.into(), hash: hash.into() }
    }

    #[test]
    fn names_without_tags() {
        for (image, want) in [
            ("web", "web"),
            ("web:1", "web"),
            ("reg:5000/a/web", "reg:5000/a/web"),
            ("reg:5000/web:1@sha256:x", "reg:5000/web"),
        ] {
            assert_eq!(bare(image), want);
        }
    }

    #[test]
    fn only_who_could_have_pulled_it_gets_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let images = PulledImages::new(dir.path().to_owned());
        let now = Timestamp::UNIX_EPOCH;
        let must = |image: &str, id: &str, secrets: &[PullSecret]| images.must_pull(image, id, secrets, now);
        assert!(!must("brought:1", "sha256:0", &[]), "the operator's is everybody's");
        images.begin("r.io/private:1").unwrap();
        assert!(must("r.io/private:1", "sha256:1", &[secret("a", "x")]), "a pull that was cut short");
        images.end("r.io/private:1", Some(("sha256:1", Some(secret("a", "x")))), now);
        assert!(must("r.io/private:1", "sha256:1", &[]));
        assert!(must("r.io/private:1", "sha256:1", &[secret("b", "y")]));
        assert!(must("other.io/private:1", "sha256:1", &[secret("a", "x")]), "under another name");
        assert!(!must("r.io/private:1", "sha256:1", &[secret("b", "y"), secret("a", "x")]));
        assert!(!must("r.io/private:2", "sha256:1", &[secret("c", "x")]), "the same credentials");
        assert!(!must("r.io/private:1", "sha256:1", &[secret("c", "z")]), "and then what they became");
        images.begin("r.io/public:1").unwrap();
        images.end("r.io/public:1", Some(("sha256:2", None)), now);
        assert!(!must("r.io/public:1", "sha256:2", &[]));
        // The next kubelet knows.
        let images = PulledImages::new(dir.path().to_owned());
        assert!(images.must_pull("r.io/private:1", "sha256:1", &[], now));
        assert!(!images.must_pull("r.io/private:1", "sha256:1", &[secret("a", "x")], now));
        images.prune(&["sha256:2".to_owned()].into(), now);
        assert!(images.must_pull("r.io/private:1", "sha256:1", &[], now), "pulled since");
        images.prune(&["sha256:2".to_owned()].into(), Timestamp::from_second(1).unwrap());
        assert!(!images.must_pull("r.io/private:1", "sha256:1", &[], now), "forgotten with its image");
    }
}
