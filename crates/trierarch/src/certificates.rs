//! Certificates that change while they are in use: renewed by this process ([`Current::replace`]) or in their
//! files by somebody else.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::Context;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::pki::Pair;

/// The files of a certificate and its key.
#[derive(Clone, Debug)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Files {
    /// Both flags or neither.
    pub fn of_flags(
        names: [&str; 2],
        certificate: Option<PathBuf>,
        key: Option<PathBuf>,
    ) -> anyhow::Result<Option<Self>> {
        match (certificate, key) {
            (Some(certificate), Some(key)) => Ok(Some(Files { certificate, key })),
            (None, None) => Ok(None),
            _ => anyhow::bail!("{} and {} must be given together", names[0], names[1]),
        }
    }

    fn read(&self) -> anyhow::Result<Arc<CertifiedKey>> {
        let pair = Pair { certificate: read(&self.certificate)?, key: read(&self.key)? };
        certified(&pair).with_context(|| format!("{} cannot be used", self.certificate.display()))
    }

    /// When the files were written; a renewal writes both.
    fn written(&self) -> Option<[SystemTime; 2]> {
        let at = |path: &Path| path.metadata().and_then(|metadata| metadata.modified()).ok();
        Some([at(&self.certificate)?, at(&self.key)?])
    }
}

/// A text file that a flag names.
pub fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A certificate that each new connection takes anew.
#[derive(Debug)]
pub struct Current {
    shown: Mutex<Shown>,
    files: Option<Files>,
}

#[derive(Debug)]
struct Shown {
    key: Arc<CertifiedKey>,
    written: Option<[SystemTime; 2]>,
}

impl Current {
    pub fn new(pair: &Pair) -> anyhow::Result<Arc<Self>> {
        let shown = Shown { key: certified(pair)?, written: None };
        Ok(Arc::new(Current { shown: Mutex::new(shown), files: None }))
    }

    /// Of files, which are read again when they were written since.
    pub fn of_files(files: Files) -> anyhow::Result<Arc<Self>> {
        let written = files.written();
        let shown = Shown { key: files.read()?, written };
        Ok(Arc::new(Current { shown: Mutex::new(shown), files: Some(files) }))
    }

    pub fn replace(&self, pair: &Pair) -> anyhow::Result<()> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).key = certified(pair)?;
        Ok(())
    }

    fn get(&self) -> Arc<CertifiedKey> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(files) = &self.files {
            let written = files.written();
            if written.is_some() && written != shown.written {
                // One of the two may not be written yet: then the old pair serves on, and the next looks again.
                match files.read() {
                    Ok(key) => *shown = Shown { key, written },
                    Err(error) => tracing::warn!("the certificate cannot be read again: {error:#}"),
                }
            }
        }
        shown.key.clone()
    }

    /// When what is shown ends, in seconds since 1970.
    #[cfg(test)]
    pub fn ends(&self) -> Option<i64> {
        let key = self.get();
        let (_, certificate) = x509_parser::parse_x509_certificate(key.cert.first()?).ok()?;
        Some(certificate.validity().not_after.timestamp())
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

/// A certificate and its key, which must belong together.
fn certified(pair: &Pair) -> anyhow::Result<Arc<CertifiedKey>> {
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).context("the key is not PEM")?;
    let key =
        rustls::crypto::ring::sign::any_supported_type(&key).context("the key is of no supported type")?;
    let certified = CertifiedKey::new(chain(&pair.certificate)?, key);
    match certified.keys_match() {
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => {
            anyhow::bail!("the key is not the certificate's")
        }
        _ => Ok(Arc::new(certified)),
    }
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

/// A certificate that nobody vouches for, for a server that was given none.
pub fn self_signed(names: Vec<String>) -> anyhow::Result<Pair> {
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names)?;
    Ok(Pair { certificate: cert.pem(), key: signing_key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_again_when_both_are_written() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files { certificate: dir.path().join("tls.crt"), key: dir.path().join("tls.key") };
        let write = |pair: &Pair, after: u64| {
            for (path, text) in [(&files.certificate, &pair.certificate), (&files.key, &pair.key)] {
                std::fs::write(path, text).unwrap();
                let file = std::fs::File::options().write(true).open(path).unwrap();
                file.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(after)).unwrap();
            }
        };
        let (first, second) =
            (self_signed(vec!["one".into()]).unwrap(), self_signed(vec!["two".into()]).unwrap());
        write(&first, 1);
        let current = Current::of_files(files.clone()).unwrap();
        let shown = || current.get().cert[0].clone();
        assert_eq!(shown(), chain(&first.certificate).unwrap()[0]);
        std::fs::write(&files.certificate, &second.certificate).unwrap();
        assert_eq!(shown(), chain(&first.certificate).unwrap()[0], "half a renewal changes nothing");
        write(&second, 2);
        assert_eq!(shown(), chain(&second.certificate).unwrap()[0]);
    }
}
