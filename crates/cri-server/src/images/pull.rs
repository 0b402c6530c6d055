//! Pulling from registries.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use futures::{StreamExt, TryStreamExt};
use oci_client::Reference;
use oci_client::client::{Certificate, CertificateEncoding, Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;

use super::Error;
use super::build::digest;
use super::format::{
    Descriptor, INDEX_DOCKER, INDEX_OCI, MANIFEST_DOCKER, MANIFEST_OCI, Manifest, architecture,
    for_this_machine, parse,
};
use super::registries::{Endpoint, Registries};
use super::store::Store;

/// As many layers of an image at once as upstream's engines fetch.
const LAYERS_AT_ONCE: usize = 3;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A registry that sends nothing for so long is not going to.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a registry did not give an image.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    #[error("failed to pull image {reference:?}: not found")]
    NotFound { reference: String, source: OciDistributionError },
    #[error("failed to pull image {reference:?}: authorization failed")]
    Denied { reference: String, source: OciDistributionError },
    #[error("failed to pull image {reference:?}: registry unreachable")]
    Unreachable { reference: String, source: OciDistributionError },
    #[error("failed to pull image {reference:?}")]
    Registry { reference: String, source: OciDistributionError },
}

/// How to log in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Credentials {
    #[default]
    None,
    Basic {
        username: String,
        password: String,
    },
    Bearer(String),
}

impl Credentials {
    /// Reads CRI's form: a user and password, both in one base64 string, or a registry's token.
    pub fn from_cri(auth: Option<&cri::v1::AuthConfig>) -> Self {
        let Some(auth) = auth else { return Credentials::None };
        if !auth.registry_token.is_empty() {
            return Credentials::Bearer(auth.registry_token.clone());
        }
        if !auth.username.is_empty() {
            return Credentials::Basic { username: auth.username.clone(), password: auth.password.clone() };
        }
        let decoded = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim()).ok();
        let pair = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        match pair.as_deref().and_then(|pair| pair.split_once(':')) {
            Some((username, password)) => Credentials::Basic {
                username: username.to_owned(),
                password: password.trim_end_matches('\0').to_owned(),
            },
            None => Credentials::None,
        }
    }

    fn registry(&self) -> RegistryAuth {
        match self {
            Credentials::None => RegistryAuth::Anonymous,
            Credentials::Basic { username, password } => {
                RegistryAuth::Basic(username.clone(), password.clone())
            }
            Credentials::Bearer(token) => RegistryAuth::Bearer(token.clone()),
        }
    }
}

/// How an image is pulled.
#[derive(Debug, Clone, Default)]
pub(crate) struct How {
    pub credentials: Credentials,
    /// Registries that are spoken to without TLS, besides those on this machine.
    pub plain_http: Vec<String>,
    /// The file that says which servers stand for which registry.
    pub registries: PathBuf,
}

/// Whether a registry is spoken to without TLS: this machine itself, and those that were named.
fn is_plain(registry: &str, plain_http: &[String]) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    matches!(host, "localhost" | "127.0.0.1" | "[::1]") || plain_http.iter().any(|named| named == registry)
}

/// Pulls an image into the store and returns its id. When the registry cannot be reached at all, an image that
/// was imported from an archive under this very name stands for it.
pub(crate) async fn pull(store: &Arc<Store>, reference: &str, how: &How) -> Result<String, Error> {
    let underway = store.begin();
    let fetched = fetch_from_any(store, &parse(reference)?, how).await;
    drop(underway);
    match fetched {
        Err(error) if error.is_storage_full() => {
            // What came so far would serve the next try, but others need the room.
            let store = store.clone();
            if let Err(error) = blocking(move || store.sweep()).await {
                tracing::warn!(%error, "cannot delete what a pull left");
            }
            Err(error)
        }
        Err(Error::Pull(PullError::Unreachable { reference: name, source })) => {
            let full = parse(reference)?.whole();
            match store.find(reference).filter(|_| store.was_imported(&full)) {
                Some(image) => Ok(image.id),
                None => Err(PullError::Unreachable { reference: name, source }.into()),
            }
        }
        other => other,
    }
}

/// Asks the registry's mirrors and then itself. What the last of them says counts.
async fn fetch_from_any(store: &Arc<Store>, reference: &Reference, how: &How) -> Result<String, Error> {
    let mut endpoints = Registries::read(&how.registries)?.endpoints(reference.registry()).into_iter();
    let mut endpoint = endpoints.next().expect("the registry itself is always among them");
    loop {
        let fetched = fetch(store, reference, &endpoint, how).await;
        let (Err(error), Some(next)) = (&fetched, endpoints.next()) else { return fetched };
        tracing::info!(mirror = endpoint.host, image = %reference, error = %error, "a mirror did not give an image");
        endpoint = next;
    }
}

async fn fetch(
    store: &Arc<Store>,
    reference: &Reference,
    endpoint: &Endpoint,
    how: &How,
) -> Result<String, Error> {
    // One provider for the whole process; a second call finds it set.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let whole = reference.whole();
    let mut reference = reference.clone();
    if let Some(host) = &endpoint.host {
        reference.set_mirror_registry(host.clone());
    }
    let reference = &reference;
    let plain = endpoint.plain_http || is_plain(reference.resolve_registry(), &how.plain_http);
    let authority = endpoint.authority.as_ref().map(|path| {
        let data = std::fs::read(path).map_err(Error::io(path))?;
        Ok::<_, Error>(Certificate { encoding: CertificateEncoding::Pem, data })
    });
    let client = Client::new(ClientConfig {
        protocol: if plain { ClientProtocol::Http } else { ClientProtocol::Https },
        accept_invalid_certificates: endpoint.skip_verify,
        extra_root_certificates: authority.transpose()?.into_iter().collect(),
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: "trierarch",
        ..ClientConfig::default()
    });
    // The pod's credentials are for its registry, not for whoever stands for that.
    let credentials = match endpoint.host {
        None if how.credentials != Credentials::None => &how.credentials,
        _ => &endpoint.credentials,
    };
    let manifest = manifest(store, &client, reference, credentials).await?;
    let content = read_manifest(store, &manifest).await?;
    let config = content.config.ok_or_else(|| Error::Malformed("the manifest has no config".to_owned()))?;
    let blobs = std::iter::once(config).chain(content.layers);
    futures::stream::iter(blobs.map(|blob| fetch_blob(store, &client, reference, blob)))
        .buffer_unordered(LAYERS_AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    let (name, store) = (whole, store.clone());
    blocking(move || {
        let id = store.register(Some(&name), &manifest, false)?;
        // Unpacked now, so that the first container does not wait for it.
        store.layers(&id)?;
        Ok(id)
    })
    .await
}

async fn read_manifest(store: &Arc<Store>, manifest: &Descriptor) -> Result<Manifest, Error> {
    let path = store.blob(&manifest.digest)?;
    let bytes = tokio::fs::read(&path).await.map_err(Error::io(&path))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::Malformed(format!("manifest: {e}")))
}

/// Fetches the manifest for this machine, through an index if the name leads to one.
async fn manifest(
    store: &Arc<Store>,
    client: &Client,
    reference: &Reference,
    credentials: &Credentials,
) -> Result<Descriptor, Error> {
    let accepted = [MANIFEST_OCI, MANIFEST_DOCKER, INDEX_OCI, INDEX_DOCKER];
    let auth = credentials.registry();
    let mut at = reference.clone();
    // An index leads to a manifest; an index of indexes is not something to follow for ever.
    for _ in 0..2 {
        let (bytes, _) =
            client.pull_manifest_raw(&at, &auth, &accepted).await.map_err(|e| explain(reference, e))?;
        let actual = digest(&bytes);
        if let Some(expected) = at.digest().filter(|expected| *expected != actual) {
            return Err(Error::Digest { what: at.whole(), expected: expected.to_owned(), actual });
        }
        let content: Manifest =
            serde_json::from_slice(&bytes).map_err(|e| Error::Malformed(format!("manifest: {e}")))?;
        if content.config.is_some() {
            let size = bytes.len() as u64;
            let media_type = Some(content.media_type).filter(|kind| !kind.is_empty());
            let store = store.clone();
            blocking(move || store.put(bytes.as_ref(), None)).await?;
            return Ok(Descriptor {
                media_type: media_type.unwrap_or_else(|| MANIFEST_OCI.to_owned()),
                digest: actual,
                size,
                ..Descriptor::default()
            });
        }
        let chosen = for_this_machine(&content.manifests).ok_or_else(|| Error::Platform {
            reference: reference.whole(),
            os: "linux",
            architecture: architecture(),
        })?;
        at = reference.clone_with_digest(chosen.digest.clone());
    }
    Err(Error::Malformed("an index that leads to an index".to_owned()))
}

async fn fetch_blob(
    store: &Arc<Store>,
    client: &Client,
    reference: &Reference,
    blob: Descriptor,
) -> Result<(), Error> {
    if store.has_blob(&blob.digest) {
        return Ok(());
    }
    let to = store.blob(&blob.digest)?;
    let temporary = store.temporary()?;
    let file = temporary.file.try_clone().map_err(Error::io(&temporary.path))?;
    let wanted = OciDescriptor {
        digest: blob.digest.clone(),
        media_type: blob.media_type,
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        ..OciDescriptor::default()
    };
    // The client hashes what comes and compares it with the digest that was asked for.
    client
        .pull_blob(reference, &wanted, tokio::fs::File::from_std(file))
        .await
        .map_err(|e| explain(reference, e))?;
    blocking(move || temporary.commit(&to)).await
}

fn explain(reference: &Reference, source: OciDistributionError) -> Error {
    let reference = reference.whole();
    let not_found = |code: &OciErrorCode| {
        matches!(code, OciErrorCode::ManifestUnknown | OciErrorCode::NameUnknown | OciErrorCode::NotFound)
    };
    Error::Pull(match &source {
        OciDistributionError::ImageManifestNotFoundError(_)
        | OciDistributionError::ServerError { code: 404, .. } => PullError::NotFound { reference, source },
        OciDistributionError::RegistryError { envelope, .. }
            if envelope.errors.iter().any(|e| not_found(&e.code)) =>
        {
            PullError::NotFound { reference, source }
        }
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            PullError::Denied { reference, source }
        }
        OciDistributionError::RequestError(error) if error.is_connect() || error.is_timeout() => {
            PullError::Unreachable { reference, source }
        }
        _ => PullError::Registry { reference, source },
    })
}

/// Runs file work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Malformed(format!("the work was cut short: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_and_named_registries_are_plain() {
        let named = ["registry.lan:5000".to_owned()];
        for (registry, plain) in
            [("localhost:5000", true), ("127.0.0.1", true), ("registry.lan:5000", true), ("docker.io", false)]
        {
            assert_eq!(is_plain(registry, &named), plain, "{registry}");
        }
    }

    #[tokio::test]
    async fn an_unreachable_registry_gives_only_what_was_imported() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        // A port that was free a moment ago: nothing listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let name = format!("127.0.0.1:{port}/app:v1");
        let how = How::default();
        let refused = pull(&store, &name, &how).await;
        assert!(matches!(refused, Err(Error::Pull(PullError::Unreachable { .. }))), "{refused:?}");
        let archive = crate::images::build(&name, &[], &crate::images::BuildConfig::default()).unwrap();
        store.import(archive.as_slice()).unwrap();
        assert!(pull(&store, &name, &how).await.is_ok());
    }

    /// A registry on this machine that has one image, for those who show the password, and counts what it is asked
    /// for. It gives no blob more than `budget` times altogether, and then hangs up.
    struct Served {
        address: String,
        asked: Arc<std::sync::Mutex<Vec<String>>>,
    }

    impl Served {
        fn new(image: &[(&str, Vec<u8>)], password: Option<&str>, budget: usize) -> Self {
            use std::io::{BufRead, Write};
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let asked: Arc<std::sync::Mutex<Vec<String>>> = Arc::default();
            let seen = asked.clone();
            let image: Vec<(String, Vec<u8>)> =
                image.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
            let wanted = password.map(|password| {
                format!("authorization: basic {}", base64::engine::general_purpose::STANDARD.encode(password))
                    .to_lowercase()
            });
            std::thread::spawn(move || {
                for mut stream in listener.incoming().flatten() {
                    let mut lines = std::io::BufReader::new(stream.try_clone().unwrap()).lines();
                    let Some(Ok(first)) = lines.next() else { continue };
                    let head: Vec<String> =
                        lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                    let path = first.split(' ').nth(1).unwrap_or_default();
                    let path = path.split('?').next().unwrap_or_default();
                    let known =
                        wanted.as_ref().is_none_or(|wanted| head.iter().any(|h| h.to_lowercase() == *wanted));
                    let blobs = seen.lock().unwrap().iter().filter(|path| path.contains("/blobs/")).count();
                    let found = image.iter().find(|(name, _)| path.ends_with(name.as_str()));
                    let kind =
                        "Content-Type: application/vnd.oci.image.manifest.v1+json\r\nConnection: close";
                    let (status, extra, body) = match found {
                        _ if !known => ("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"", &[][..]),
                        _ if path == "/v2/" => ("200 OK", "", &[][..]),
                        Some(_) if path.contains("/blobs/") && blobs >= budget => continue,
                        Some((_, bytes)) => ("200 OK", "", &bytes[..]),
                        None => ("404 Not Found", "", &[][..]),
                    };
                    if known {
                        seen.lock().unwrap().push(path.to_owned());
                    }
                    let extra = if extra.is_empty() { String::new() } else { format!("{extra}\r\n") };
                    let length = body.len();
                    let head =
                        format!("HTTP/1.1 {status}\r\n{kind}\r\n{extra}Content-Length: {length}\r\n\r\n");
                    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
                }
            });
            Self { address, asked }
        }

        fn blobs(&self) -> usize {
            self.asked.lock().unwrap().iter().filter(|path| path.contains("/blobs/")).count()
        }
    }

    /// An image of three layers, as a registry has it: what it answers under which end of a path.
    fn served_image() -> Vec<(&'static str, Vec<u8>)> {
        let descriptor = |kind: &str, bytes: &[u8]| serde_json::json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
        let layers: Vec<Vec<u8>> = (0..3)
            .map(|number: u8| {
                let mut archive = tar::Builder::new(Vec::new());
                let mut header = tar::Header::new_gnu();
                header.set_size(1);
                header.set_mode(0o644);
                archive.append_data(&mut header, format!("file{number}"), &[number][..]).unwrap();
                archive.into_inner().unwrap()
            })
            .collect();
        let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = serde_json::json!({"architecture": architecture(), "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": ids}})
        .to_string()
        .into_bytes();
        let of_layers: Vec<_> =
            layers.iter().map(|l| descriptor("application/vnd.oci.image.layer.v1.tar", l)).collect();
        let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST_OCI,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "layers": of_layers})
        .to_string()
        .into_bytes();
        let mut all = vec![("/manifests/v1", manifest)];
        for blob in layers.into_iter().chain([config]) {
            all.push((Box::leak(digest(&blob).into_boxed_str()), blob));
        }
        all
    }

    #[tokio::test]
    async fn a_registry_that_asks_for_a_password_gets_it() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(dir.path()).unwrap());
        let served = Served::new(&served_image(), Some("u:p"), usize::MAX);
        let name = format!("{}/app:v1", served.address);
        let refused = pull(&store, &name, &How::default()).await;
        assert!(matches!(refused, Err(Error::Pull(PullError::Denied { .. }))), "{refused:?}");
        let credentials = Credentials::Basic { username: "u".into(), password: "p".into() };
        pull(&store, &name, &How { credentials, ..How::default() }).await.unwrap();
        assert_eq!(served.blobs(), 4);
    }

    #[tokio::test]
    async fn a_pull_that_was_cut_short_goes_on_where_it_was() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let served = Served::new(&served_image(), None, 2);
        let name = format!("{}/app:v1", served.address);
        let store = Arc::new(Store::open(dir.path()).unwrap());
        assert!(pull(&store, &name, &How::default()).await.is_err());
        let had = std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count();
        drop(store);
        // What the next engine finds it does not fetch again; a file that was begun is gone.
        let store = Arc::new(Store::open(dir.path()).unwrap());
        assert_eq!(std::fs::read_dir(dir.path().join("tmp")).unwrap().count(), 0);
        let mirror = Served::new(&served_image(), None, usize::MAX);
        let registries = dir.path().join("registries.yaml");
        let text =
            format!("mirrors: {{\"{}\": {{endpoint: [\"http://{}\"]}}}}", served.address, mirror.address);
        std::fs::write(&registries, text).unwrap();
        pull(&store, &name, &How { registries, ..How::default() }).await.unwrap();
        // The manifest is one of those that are there.
        assert_eq!(mirror.blobs(), 4 - (had - 1), "{had}");
        let image = store.find(&name).unwrap();
        assert_eq!(image.repo_tags, [name]);
    }
}
