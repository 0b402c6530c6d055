//! The certificates of a node, asked for by certificate signing requests and again before they end.
//!
//! Upstream: pkg/kubelet/certificate/bootstrap/bootstrap.go, client-go/util/certificate/certificate_manager.go

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use api::Object;
use api::certificates::v1::CertificateSigningRequest;
use client::kubeconfig::Kubeconfig;
use client::{Client, ListOptions, WatchEvent};
use controller_runtime::Clock;
use rcgen::{CertificateParams, DnType, KeyPair};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::certificates::{Current, Files, read};
use crate::pki::{Pair, write_atomically};
use crate::renewal::write_private;
use crate::{components, parts, pki};

/// A request that nobody signs is made anew.
///
/// Upstream: client-go/util/certificate/certificate_manager.go certificateWaitTimeout
const PATIENCE: Duration = Duration::from_secs(15 * 60);
const RETRY: Duration = Duration::from_secs(5);

/// One of the two certificates of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// With which the kubelet asks.
    Client,
    /// With which the kubelet answers.
    Serving,
}

impl Kind {
    fn file(self) -> &'static str {
        match self {
            Kind::Client => "kubelet-client",
            Kind::Serving => "kubelet-server",
        }
    }

    fn signer(self) -> &'static str {
        match self {
            Kind::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Kind::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    fn usage(self) -> &'static str {
        match self {
            Kind::Client => "client auth",
            Kind::Serving => "server auth",
        }
    }
}

/// The certificates of one node, in a folder.
#[derive(Clone)]
pub struct NodeCertificates {
    folder: PathBuf,
    node_name: String,
    node_ips: Vec<IpAddr>,
    clock: Clock,
}

impl NodeCertificates {
    pub fn new(folder: &Path, node_name: &str, node_ips: &[IpAddr], clock: Clock) -> Self {
        NodeCertificates {
            folder: std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned()),
            node_name: node_name.to_owned(),
            node_ips: node_ips.to_vec(),
            clock,
        }
    }

    fn files(&self, kind: Kind) -> Files {
        let path = |extension: &str| self.folder.join(format!("{}.{extension}", kind.file()));
        Files { certificate: path("crt"), key: path("key") }
    }

    /// Asks for the node's first client certificate as the user of `bootstrap`, and writes the kubeconfig that
    /// goes by it from then on.
    pub async fn join(
        &self,
        bootstrap: &Path,
        kubeconfig: &Path,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<()> {
        let mut config = Kubeconfig::read(bootstrap)?;
        parts::make_private(&self.folder)?;
        if !self.is_current(Kind::Client) {
            let client = components::client_of(bootstrap, "kubelet")?;
            let asked = self.ask(Kind::Client, &client, shutdown).await;
            asked.map_err(|error| match error.downcast_ref::<client::Error>() {
                Some(refused) if refused.status().is_some_and(|status| status.code == 401) => {
                    anyhow::anyhow!(
                        "cannot join the cluster: the token is wrong, has expired or was deleted; \
                     `trierarch token create` on the server makes a new one"
                    )
                }
                _ => error.context("cannot join the cluster"),
            })?;
            tracing::info!(node = self.node_name, "the cluster gave this node a certificate");
        }
        let context = config.context(None)?.clone();
        let files = self.files(Kind::Client);
        for user in config.users.iter_mut().filter(|user| user.name == context.user) {
            user.user = client::kubeconfig::User {
                client_certificate: Some(files.certificate.clone()),
                client_key: Some(files.key.clone()),
                ..Default::default()
            };
        }
        write_private(kubeconfig, &config)
    }

    /// The certificate that the kubelet's server shows, asked for when there is none that is good.
    pub async fn serving(
        &self,
        client: &Client,
        shutdown: &CancellationToken,
    ) -> anyhow::Result<Arc<Current>> {
        parts::make_private(&self.folder)?;
        if !self.is_current(Kind::Serving) {
            self.ask(Kind::Serving, client, shutdown).await.context("cannot get a serving certificate")?;
        }
        Current::of_files(self.files(Kind::Serving))
    }

    /// Whether there is a certificate that is neither near its end nor of another node.
    fn is_current(&self, kind: Kind) -> bool {
        let check = || -> Option<bool> {
            let files = self.files(kind);
            let certificate = read(&files.certificate).ok()?;
            files.key.exists().then_some(())?;
            let block = pem::parse(&certificate).ok()?;
            let (_, parsed) = x509_parser::parse_x509_certificate(block.contents()).ok()?;
            let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
            let now = self.clock.now().as_second();
            Some(name == self.user() && now < renewal(&certificate, 1.0)?)
        };
        check().unwrap_or(false)
    }

    fn user(&self) -> String {
        format!("system:node:{}", self.node_name)
    }

    /// A new key, and the request to certify it.
    ///
    /// Upstream: pkg/kubelet/certificate/kubelet.go newGetTemplateFn
    fn request(&self, kind: Kind) -> anyhow::Result<(KeyPair, CertificateSigningRequest)> {
        let names = match kind {
            Kind::Client => Vec::new(),
            Kind::Serving => {
                let addresses = self.node_ips.iter().map(IpAddr::to_string);
                std::iter::once(self.node_name.clone()).chain(addresses).collect()
            }
        };
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, self.user());
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let request = params.serialize_request(&key)?.pem()?;
        let request = json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": {"generateName": "csr-"},
            "spec": {
                "request": base64::Engine::encode(&base64::engine::general_purpose::STANDARD, request),
                "signerName": kind.signer(), "usages": ["digital signature", kind.usage()],
            },
        });
        Ok((key, CertificateSigningRequest::from_value(request)?))
    }

    /// Asks until it is answered, and keeps the answer. A refusal is final.
    async fn ask(&self, kind: Kind, client: &Client, shutdown: &CancellationToken) -> anyhow::Result<()> {
        let (key, request) = self.request(kind)?;
        let mut complained = false;
        let certificate = loop {
            let waited = tokio::select! {
                () = shutdown.cancelled() => bail!("stopped before a certificate was given"),
                waited = tokio::time::timeout(PATIENCE, submit(client, &request)) => waited,
            };
            match waited {
                Ok(Ok(certificate)) => break certificate,
                // A wrong token stays wrong.
                Ok(Err(error)) if is_final(&error) => return Err(error),
                Ok(Err(error)) if !complained => {
                    tracing::warn!("waits for a certificate: {}", crate::logging::one_line(&error));
                    complained = true;
                }
                Ok(Err(_)) => {}
                Err(_) => tracing::warn!("nobody signs this node's request for a certificate"),
            }
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = tokio::time::sleep(RETRY) => {}
            }
        };
        self.keep(kind, &Pair { certificate, key: key.serialize_pem() })
    }

    /// The key first: a certificate that is not the key's is passed over by whoever reads them.
    fn keep(&self, kind: Kind, pair: &Pair) -> anyhow::Result<()> {
        let files = self.files(kind);
        write_atomically(&files.key, pair.key.as_bytes(), 0o600)?;
        write_atomically(&files.certificate, pair.certificate.as_bytes(), 0o644)
    }

    /// Renews both certificates before they end, until the shutdown. Whoever uses them reads the files again.
    pub async fn renew(
        &self,
        client: Client,
        serves: bool,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let one = async |kind: Kind| {
            let jitter: f64 = rand::random();
            loop {
                let due = read(&self.files(kind).certificate).ok().and_then(|text| renewal(&text, jitter));
                let seconds = due.map_or(0, |due| due - self.clock.now().as_second());
                let wait = Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).max(RETRY);
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep(wait) => {}
                }
                match self.ask(kind, &client, &shutdown).await {
                    Ok(()) => tracing::info!(?kind, "the node's certificate was renewed"),
                    Err(_) if shutdown.is_cancelled() => return,
                    Err(error) => tracing::error!("the node's certificate cannot be renewed: {error:#}"),
                }
            }
        };
        let serving = async {
            if serves {
                one(Kind::Serving).await;
            }
        };
        tokio::join!(one(Kind::Client), serving);
        Ok(())
    }
}

/// When a certificate is to be renewed: after 70 to 90 percent of its life, so that nodes that joined together do
/// not ask together.
///
/// Upstream: client-go/util/certificate/certificate_manager.go nextRotationDeadline
fn renewal(certificate: &str, jitter: f64) -> Option<i64> {
    let block = pem::parse(certificate).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(block.contents()).ok()?;
    let start = parsed.validity().not_before.timestamp();
    let life = pki::ends(certificate)? - start;
    Some(start + (life as f64 * (0.7 + 0.2 * jitter)).round() as i64)
}

fn is_final(error: &anyhow::Error) -> bool {
    let status = error.downcast_ref::<client::Error>().and_then(client::Error::status);
    error.is::<Refused>() || status.is_some_and(|status| matches!(status.code, 401 | 403))
}

/// The cluster's no to a request.
#[derive(Debug, thiserror::Error)]
#[error("certificate signing request was {verdict}: {message}")]
struct Refused {
    verdict: String,
    message: String,
}

/// Makes the request and waits for its certificate.
async fn submit(client: &Client, request: &CertificateSigningRequest) -> anyhow::Result<String> {
    let made = client.create(request).await?;
    let only = ListOptions::fields(format!("metadata.name={}", made.name()));
    loop {
        let mut watch = client.watch::<CertificateSigningRequest>(None, &only).await?;
        while let Some(event) = watch.next().await {
            match event? {
                WatchEvent::Added(csr) | WatchEvent::Modified(csr) => {
                    if let Some(certificate) = issued(&csr)? {
                        return Ok(certificate);
                    }
                }
                WatchEvent::Deleted(_) => bail!("the request was deleted"),
                _ => {}
            }
        }
    }
}

/// The certificate, if it is there.
fn issued(csr: &CertificateSigningRequest) -> anyhow::Result<Option<String>> {
    let Some(status) = &csr.status else { return Ok(None) };
    for condition in status.conditions.iter().flatten() {
        if matches!(condition.type_.as_str(), "Denied" | "Failed") {
            let message = condition.message.clone().unwrap_or_default();
            return Err(Refused { verdict: condition.type_.to_lowercase(), message }.into());
        }
    }
    let certificate = status.certificate.as_ref().filter(|bytes| !bytes.0.is_empty());
    Ok(certificate.map(|bytes| String::from_utf8(bytes.0.clone())).transpose()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(folder: &Path, now: i64) -> NodeCertificates {
        let clock = Clock::new(move || jiff::Timestamp::from_second(now).unwrap());
        NodeCertificates::new(folder, "n1", &["192.0.2.7".parse().unwrap()], clock)
    }

    #[test]
    fn requests_name_the_node() {
        let dir = tempfile::tempdir().unwrap();
        for (kind, signer) in [
            (Kind::Client, "kubernetes.io/kube-apiserver-client-kubelet"),
            (Kind::Serving, "kubernetes.io/kubelet-serving"),
        ] {
            let (_, csr) = node(dir.path(), 0).request(kind).unwrap();
            assert_eq!(csr.spec.signer_name, signer);
            let block = pem::parse(&csr.spec.request.0).unwrap();
            let text = String::from_utf8_lossy(block.contents()).into_owned();
            assert!(text.contains("system:node:n1") && text.contains("system:nodes"));
        }
    }

    #[test]
    fn a_certificate_is_current_until_most_of_its_life_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "system:node:n1");
        params.not_before = rcgen::date_time_ymd(2030, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 11);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let start = params.not_before.unix_timestamp();
        let day = 24 * 60 * 60;
        let at = |days: i64| node(dir.path(), start + days * day);
        assert!(!at(0).is_current(Kind::Client), "there is none yet");
        at(0)
            .keep(Kind::Client, &Pair { certificate: certificate.clone(), key: key.serialize_pem() })
            .unwrap();
        assert!(at(8).is_current(Kind::Client));
        assert!(!at(9).is_current(Kind::Client));
        assert_eq!(renewal(&certificate, 0.0), Some(start + 7 * day));
        assert_eq!(renewal(&certificate, 1.0), Some(start + 9 * day));
    }

    #[test]
    fn an_answer_is_a_certificate_or_a_refusal() {
        let csr = |status: serde_json::Value| {
            CertificateSigningRequest::from_value(json!({
                "metadata": {"name": "a"}, "status": status,
                "spec": {"request": "", "signerName": "a"},
            }))
            .unwrap()
        };
        assert_eq!(issued(&csr(json!({}))).unwrap(), None);
        assert_eq!(issued(&csr(json!({"certificate": "UEVN"}))).unwrap().as_deref(), Some("PEM"));
        let denied = json!({"conditions": [{"type": "Denied", "status": "True", "message": "no"}]});
        let error = issued(&csr(denied)).unwrap_err();
        assert!(is_final(&error));
        assert_eq!(error.to_string(), "certificate signing request was denied: no");
    }
}
