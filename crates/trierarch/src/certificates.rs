//! Serving certificates that change while they are in use.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::pki::Pair;

/// A certificate that each new connection takes anew.
#[derive(Debug)]
pub struct Current(RwLock<Arc<CertifiedKey>>);

impl Current {
    pub fn new(pair: &Pair) -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Current(RwLock::new(certified(pair)?))))
    }

    pub fn replace(&self, pair: &Pair) -> anyhow::Result<()> {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = certified(pair)?;
        Ok(())
    }

    fn get(&self) -> Arc<CertifiedKey> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

/// As a client shows it.
impl rustls::client::ResolvesClientCert for Current {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified(pair: &Pair) -> anyhow::Result<Arc<CertifiedKey>> {
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).context("the key is not PEM")?;
    let key =
        rustls::crypto::ring::sign::any_supported_type(&key).context("the key is of no supported type")?;
    Ok(Arc::new(CertifiedKey::new(chain(&pair.certificate)?, key)))
}

/// The certificates of a PEM text.
pub fn chain(pem: &str) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .context("the certificate is not PEM")
}

/// A client that trusts one authority and shows a certificate that may change.
pub fn client_config(
    authority: &str,
    certificate: Arc<Current>,
) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in chain(authority)? {
        roots.add(certificate)?;
    }
    let config = rustls::ClientConfig::builder().with_root_certificates(roots);
    Ok(Arc::new(config.with_client_cert_resolver(certificate)))
}
