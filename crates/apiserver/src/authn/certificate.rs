//! Users by client certificate, and users whom a front proxy with a certificate of its own vouches for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderMap;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, UnixTime};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{AuthorityError, CREDENTIAL_ID, Found};
use crate::seams::UserInfo;

/// A connection sends the same certificate with each request; more than this many at once are verified anew.
const REMEMBERED: usize = 1024;

/// The attribute of a subject that is the user's UID.
///
/// Upstream: apiserver/pkg/authentication/request/x509/x509.go CommonNameUserConversion
const UID_ATTRIBUTE: &str = "1.3.6.1.4.1.57683.2";

/// A chain that led to an authority, until its certificate ends.
#[derive(Clone)]
struct Verified {
    user: UserInfo,
    not_before: i64,
    not_after: i64,
}

pub(super) struct Verifier {
    verifier: Arc<dyn ClientCertVerifier>,
    /// By digest of the whole chain.
    verified: Mutex<HashMap<[u8; 32], Verified>>,
}

impl Verifier {
    pub(super) fn new(authorities: &[CertificateDer<'static>]) -> Result<Self, AuthorityError> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority.clone()).map_err(|e| AuthorityError(e.into()))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|e| AuthorityError(e.into()))?;
        Ok(Verifier { verifier, verified: Mutex::default() })
    }

    /// Verifies the chain, its time and its use for clients, and reads the subject.
    fn verify(
        &self,
        peer: &[CertificateDer<'static>],
        now: jiff::Timestamp,
    ) -> Result<Option<UserInfo>, String> {
        let [leaf, intermediates @ ..] = peer else { return Ok(None) };
        let mut digest = Sha256::new();
        peer.iter().for_each(|certificate| digest.update(certificate));
        let key: [u8; 32] = digest.finalize().into();
        let seconds = now.as_second();
        let remembered = self.verified.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(known) = remembered.filter(|v| v.not_before <= seconds && seconds <= v.not_after) {
            return Ok(Some(known.user));
        }
        let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds.try_into().unwrap_or_default()));
        self.verifier
            .verify_client_cert(leaf, intermediates, time)
            .map_err(|error| format!("x509: {error}"))?;
        let known = read(leaf)?;
        let user = known.user.clone();
        let mut verified = self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        if verified.len() >= REMEMBERED {
            verified.clear();
        }
        verified.insert(key, known);
        Ok(Some(user))
    }

    pub(super) fn authenticate(&self, peer: &[CertificateDer<'static>], now: jiff::Timestamp) -> Found {
        Ok(self.verify(peer, now)?.filter(|user| !user.name.is_empty()))
    }
}

/// CN is the name, O are the groups.
fn read(leaf: &CertificateDer<'_>) -> Result<Verified, String> {
    let (_, certificate) = X509Certificate::from_der(leaf).map_err(|error| format!("x509: {error}"))?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().last().and_then(|name| name.as_str().ok()).unwrap_or_default();
    let groups =
        subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned).collect();
    let uid = subject
        .iter_attributes()
        .find(|attribute| attribute.attr_type().to_id_string() == UID_ATTRIBUTE)
        .and_then(|attribute| attribute.as_str().ok())
        .unwrap_or_default();
    let digest: String = Sha256::digest(leaf).iter().map(|byte| format!("{byte:02x}")).collect();
    let extra = BTreeMap::from([(CREDENTIAL_ID.to_owned(), vec![format!("X509SHA256={digest}")])]);
    Ok(Verified {
        user: UserInfo { name: name.to_owned(), uid: uid.to_owned(), groups, extra },
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
    })
}

/// Which front proxies are believed, and where they say for whom they ask.
pub struct RequestHeaders {
    pub authorities: Vec<CertificateDer<'static>>,
    /// The common names of the proxies; empty for any that the authorities vouch for.
    pub allowed_names: Vec<String>,
    pub username_headers: Vec<String>,
    pub uid_headers: Vec<String>,
    pub group_headers: Vec<String>,
    pub extra_header_prefixes: Vec<String>,
}

impl RequestHeaders {
    /// Upstream's usual header names.
    pub fn usual(authorities: Vec<CertificateDer<'static>>, allowed_names: Vec<String>) -> Self {
        RequestHeaders {
            authorities,
            allowed_names,
            username_headers: vec!["x-remote-user".to_owned()],
            uid_headers: vec!["x-remote-uid".to_owned()],
            group_headers: vec!["x-remote-group".to_owned()],
            extra_header_prefixes: vec!["x-remote-extra-".to_owned()],
        }
    }
}

pub(super) struct FrontProxy {
    config: RequestHeaders,
    verifier: Verifier,
}

impl FrontProxy {
    pub(super) fn new(config: RequestHeaders) -> Result<Self, AuthorityError> {
        Ok(FrontProxy { verifier: Verifier::new(&config.authorities)?, config })
    }

    /// The user of the headers, when the peer is a proxy that may set them. From anyone else the headers mean
    /// nothing: the other ways then say who it is.
    ///
    /// Upstream: apiserver/pkg/authentication/request/headerrequest/requestheader.go
    pub(super) fn authenticate(
        &self,
        headers: &HeaderMap,
        peer: &[CertificateDer<'static>],
        now: jiff::Timestamp,
    ) -> Found {
        let values = |names: &[String]| -> Vec<String> {
            let all = names.iter().flat_map(|name| headers.get_all(name.as_str()));
            all.filter_map(|value| value.to_str().ok()).map(str::to_owned).collect()
        };
        let Some(name) = values(&self.config.username_headers).into_iter().find(|name| !name.is_empty())
        else {
            return Ok(None);
        };
        let Ok(Some(proxy)) = self.verifier.verify(peer, now) else { return Ok(None) };
        if !self.config.allowed_names.is_empty() && !self.config.allowed_names.contains(&proxy.name) {
            return Err(format!("x509: subject with cn={} is not in the allowed list", proxy.name));
        }
        let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (header, value) in headers {
            let stripped = self
                .config
                .extra_header_prefixes
                .iter()
                .find_map(|p| header.as_str().strip_prefix(p.as_str()));
            if let (Some(key), Ok(value)) = (stripped, value.to_str()) {
                extra.entry(super::impersonation::unescape(key)).or_default().push(value.to_owned());
            }
        }
        let uid = values(&self.config.uid_headers).into_iter().next().unwrap_or_default();
        Ok(Some(UserInfo { name, uid, groups: values(&self.config.group_headers), extra }))
    }
}
