//! Pulling from registries.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use futures::{StreamExt, TryStreamExt};
use oci_client::Reference;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;

use super::Error;
use super::build::digest;
use super::format::{
    Descriptor, INDEX_DOCKER, INDEX_OCI, MANIFEST_DOCKER, MANIFEST_OCI, Manifest, architecture,
    for_this_machine, parse,
};
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

/// Whether a registry is spoken to without TLS: this machine itself, and those that were named.
fn is_plain(registry: &str, plain_http: &[String]) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    matches!(host, "localhost" | "127.0.0.1" | "[::1]") || plain_http.iter().any(|named| named == registry)
}

/// Pulls an image into the store and returns its id. When the registry cannot be reached at all, an image that
/// was imported from an archive under this very name stands for it.
pub(crate) async fn pull(
    store: &Arc<Store>,
    reference: &str,
    credentials: &Credentials,
    plain_http: &[String],
) -> Result<String, Error> {
    match fetch(store, &parse(reference)?, credentials, plain_http).await {
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

async fn fetch(
    store: &Arc<Store>,
    reference: &Reference,
    credentials: &Credentials,
    plain_http: &[String],
) -> Result<String, Error> {
    // One provider for the whole process; a second call finds it set.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let protocol = match is_plain(reference.resolve_registry(), plain_http) {
        true => ClientProtocol::Http,
        false => ClientProtocol::Https,
    };
    let client = Client::new(ClientConfig {
        protocol,
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: "trierarch",
        ..ClientConfig::default()
    });
    let manifest = manifest(store, &client, reference, credentials).await?;
    let content = read_manifest(store, &manifest).await?;
    let config = content.config.ok_or_else(|| Error::Malformed("the manifest has no config".to_owned()))?;
    let blobs = std::iter::once(config).chain(content.layers);
    futures::stream::iter(blobs.map(|blob| fetch_blob(store, &client, reference, blob)))
        .buffer_unordered(LAYERS_AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    let (name, store) = (reference.whole(), store.clone());
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
        let refused = pull(&store, &name, &Credentials::None, &[]).await;
        assert!(matches!(refused, Err(Error::Pull(PullError::Unreachable { .. }))), "{refused:?}");
        let archive = crate::images::build(&name, &[], &crate::images::BuildConfig::default()).unwrap();
        store.import(archive.as_slice()).unwrap();
        assert!(pull(&store, &name, &Credentials::None, &[]).await.is_ok());
    }
}
