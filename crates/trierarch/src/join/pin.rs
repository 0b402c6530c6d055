//! By what a machine knows the server that it joins: the hash of the key of the cluster's authority.
//!
//! Of the key, not of the certificate: the authority's certificate is renewed, its key stays. The server shows its
//! authority's certificate in the handshake; whoever knows the hash finds it there and believes nobody else.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use anyhow::Context;
use client::tls::{self, Shown};
use rustls::CertificateError;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{ServerCertVerified, ServerCertVerifier};
use rustls_pki_types::{CertificateDer, ServerName};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// SHA-256 of an authority's SubjectPublicKeyInfo, as kubeadm's `--discovery-token-ca-cert-hash` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin([u8; 32]);

impl Pin {
    fn of(certificate: &[u8]) -> Option<Self> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        Some(Pin(Sha256::digest(certificate.public_key().raw).into()))
    }

    /// Of the first certificate of a PEM text.
    pub fn of_pem(pem: &[u8]) -> anyhow::Result<Self> {
        let block = pem::parse(pem).context("the authority is not PEM")?;
        Pin::of(block.contents()).context("the authority is no certificate")
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Pin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("sha256:").filter(|d| d.len() == 64 && d.is_ascii());
        let digits = digits.ok_or("the authority's hash is of the form sha256:HEX")?;
        let mut hash = [0; 32];
        for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| "the hash is not hexadecimal")?;
        }
        Ok(Pin(hash))
    }
}

/// The authority of the pin among those that a server shows, if the server's chain leads to it.
fn authority_in(shown: &Shown<'_>, pin: Pin) -> Result<CertificateDer<'static>, rustls::Error> {
    let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
    let authority = shown
        .intermediates
        .iter()
        .find(|one| Pin::of(one) == Some(pin))
        .ok_or_else(unknown)?
        .clone()
        .into_owned();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.clone())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .map_err(|_| unknown())?;
    let Shown { end_entity, intermediates, name, ocsp_response, now } = *shown;
    verifier.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)?;
    Ok(authority)
}

/// Where a server is, of a URL.
pub fn host_and_port(server: &str) -> anyhow::Result<(String, u16)> {
    let uri: http::Uri = server.parse().with_context(|| format!("--server {server:?} is no URL"))?;
    anyhow::ensure!(uri.scheme_str() == Some("https"), "--server {server:?} must begin with https://");
    let host = uri.host().context("--server names no host")?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((host, uri.port_u16().unwrap_or(443)))
}

/// The certificate, as PEM, of the authority of the server, which must be the one of the pin. Nothing is sent.
pub async fn authority_of(server: &str, pin: Pin) -> anyhow::Result<String> {
    let (host, port) = host_and_port(server)?;
    let found = Arc::new(OnceLock::new());
    let keep = found.clone();
    let config = tls::believing(move |shown| {
        let authority = authority_in(&shown, pin)?;
        keep.get_or_init(|| authority);
        Ok(ServerCertVerified::assertion())
    });
    let name = ServerName::try_from(host.clone())?;
    let stream = TcpStream::connect((host.as_str(), port)).await.context("cannot connect")?;
    TlsConnector::from(config)
        .connect(name, stream)
        .await
        .context("the server is not the one of the token")?;
    let found = found.get().context("the handshake ended without a certificate")?;
    Ok(pem::encode(&pem::Pem::new("CERTIFICATE", found.to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificates::Current;
    use crate::pki::{Leaf, Lives, Names, Pki};

    #[tokio::test]
    async fn only_the_server_of_the_hash_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let names = Names {
            node_name: "one".into(),
            host_name: "host".into(),
            node_ips: Vec::new(),
            service_ips: vec!["10.43.0.1".parse().unwrap()],
            cluster_domain: "cluster.local".into(),
            extra: Vec::new(),
        };
        let now = crate::host::clock().now();
        let make =
            |at: &str| Pki::load_or_create(&dir.path().join(at), &names, Lives::default(), now).unwrap();
        let (ours, other) = (make("ours"), make("other"));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("https://{}", listener.local_addr().unwrap());
        let shown = Current::new(&ours.shown(Leaf::ApiServer)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(shown);
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = acceptor.accept(stream).await;
            }
        });
        let found = authority_of(&server, Pin::of_pem(ours.authority().as_bytes()).unwrap()).await.unwrap();
        assert_eq!(pem::parse(found).unwrap(), pem::parse(ours.authority()).unwrap());
        let wrong = Pin::of_pem(other.authority().as_bytes()).unwrap();
        assert!(
            authority_of(&server, wrong).await.unwrap_err().to_string().contains("not the one of the token")
        );
    }

    #[test]
    fn a_url_names_host_and_port() {
        assert_eq!(host_and_port("https://[::1]:6443").unwrap(), ("::1".into(), 6443));
        assert_eq!(host_and_port("https://a").unwrap(), ("a".into(), 443));
        assert!(host_and_port("http://a").is_err());
    }
}
