//! Who asks. [`Authenticators`] tries, in upstream's order, front proxy headers, the client certificate and the
//! bearer token ([`static_token`], [`service_account`], [`bootstrap_token`], [`oidc`], [`webhook`]);
//! [`impersonation`] lets those who may act as another. [`issuer`] makes the tokens of ServiceAccounts with the keys of [`keys`].
//!
//! What always holds: whoever is found is in `system:authenticated` too, or in `system:unauthenticated`; who is
//! not found and showed wrong credentials gets a 401 that does not say why.

mod bootstrap_token;
mod certificate;
pub mod impersonation;
pub mod issuer;
mod jwt;
pub mod keys;
mod legacy;
pub mod oidc;
mod service_account;
mod static_token;
mod webhook;

use std::sync::Arc;

use apimachinery::Status;
use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use rustls_pki_types::CertificateDer;

pub use certificate::RequestHeaders;
pub use impersonation::impersonate;
pub use issuer::TokenIssuer;
pub use keys::{KeyError, SigningKey, VerifyingKey};
pub use static_token::StaticToken;
pub use webhook::TokenWebhook;

use crate::seams::{Authenticate, Lookup, UserInfo};

/// The time, as a parameter.
pub type Clock = Arc<dyn Fn() -> jiff::Timestamp + Send + Sync>;

/// Fills bytes that nobody can guess.
pub type Random = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const ANONYMOUS: &str = "system:anonymous";

/// The extra in which the id of the credential that was used is told.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

/// Whom to believe.
#[derive(Default)]
pub struct Config {
    /// The authorities of client certificates; none means that client certificates name nobody.
    pub client_authorities: Vec<CertificateDer<'static>>,
    pub request_headers: Option<RequestHeaders>,
    pub static_tokens: Vec<StaticToken>,
    /// The public keys of ServiceAccount tokens, the newest first.
    pub service_account_keys: Vec<VerifyingKey>,
    /// Whose ServiceAccount tokens are accepted: the issuer's URLs.
    pub issuers: Vec<String>,
    /// The names of this server: one of them must be in a token's audience.
    pub audiences: Vec<String>,
    pub bootstrap_tokens: bool,
    /// Other issuers of tokens.
    pub oidc: oidc::Issuers,
    /// Who is asked about tokens that nobody here knows.
    pub webhook: Option<Arc<TokenWebhook>>,
}

/// All ways to be known to the server.
pub struct Authenticators {
    client_certificates: Option<certificate::Verifier>,
    front_proxy: Option<certificate::FrontProxy>,
    static_tokens: static_token::StaticTokens,
    service_accounts: service_account::ServiceAccounts,
    bootstrap_tokens: bool,
    oidc: oidc::Issuers,
    webhook: Option<Arc<TokenWebhook>>,
    audiences: Vec<String>,
    lookup: Arc<dyn Lookup>,
    clock: Clock,
}

/// Authorities that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the client certificate authorities cannot be used")]
pub struct AuthorityError(#[source] pub(crate) Box<dyn std::error::Error + Send + Sync>);

/// What one way says: nothing of its own to look at, who it is, or that what it looked at is wrong. Why it is
/// wrong is for the log only.
type Found = Result<Option<UserInfo>, String>;

impl Authenticators {
    pub fn new(config: Config, lookup: Arc<dyn Lookup>, clock: Clock) -> Result<Self, AuthorityError> {
        let client_certificates = match config.client_authorities.is_empty() {
            true => None,
            false => Some(certificate::Verifier::new(&config.client_authorities)?),
        };
        Ok(Authenticators {
            client_certificates,
            front_proxy: config.request_headers.map(certificate::FrontProxy::new).transpose()?,
            static_tokens: static_token::StaticTokens::new(config.static_tokens),
            service_accounts: service_account::ServiceAccounts::new(
                config.service_account_keys,
                config.issuers,
                config.audiences.clone(),
            ),
            bootstrap_tokens: config.bootstrap_tokens,
            oidc: config.oidc,
            webhook: config.webhook,
            audiences: config.audiences,
            lookup,
            clock,
        })
    }

    /// Who a bearer token names: for requests and for TokenReview. `audiences` are those asked for; the server's
    /// own when empty.
    pub async fn authenticate_token(
        &self,
        token: &str,
        audiences: &[String],
    ) -> Result<Option<UserInfo>, String> {
        let now = (self.clock)();
        if let Some(user) = self.static_tokens.authenticate(token) {
            return Ok(Some(user));
        }
        // Whom one does not know, or knows to be wrong, another may know.
        let mut errors = Vec::new();
        let mut hear = |found: Found| {
            found.unwrap_or_else(|error| {
                errors.push(error);
                None
            })
        };
        let account = self.service_accounts.authenticate(token, audiences, &*self.lookup, now);
        if let Some(user) = hear(account) {
            return Ok(Some(user));
        }
        if self.bootstrap_tokens
            && let Some(user) = bootstrap_token::authenticate(token, &*self.lookup, now)
        {
            return Ok(Some(user));
        }
        if let Some(user) = hear(self.oidc.authenticate(token, now).await) {
            return Ok(Some(user));
        }
        if let Some(webhook) = &self.webhook
            && let Some(user) = hear(webhook.authenticate(token, audiences, &self.audiences).await)
        {
            return Ok(Some(user));
        }
        if errors.is_empty() { Ok(None) } else { Err(crate::admission::join_errors(&errors)) }
    }

    async fn bearer(&self, headers: &HeaderMap) -> Found {
        let Some(token) = bearer_token(headers) else { return Ok(None) };
        match self.authenticate_token(&token, &[]).await? {
            Some(user) => Ok(Some(user)),
            None => Err("invalid bearer token".to_owned()),
        }
    }

    async fn find(&self, headers: &HeaderMap, peer: &[CertificateDer<'static>]) -> Found {
        let now = (self.clock)();
        let mut errors: Vec<String> = Vec::new();
        let by_proxy = || match &self.front_proxy {
            Some(proxy) => proxy.authenticate(headers, peer, now),
            None => Ok(None),
        };
        let by_certificate = || match &self.client_certificates {
            Some(verifier) => verifier.authenticate(peer, now),
            None => Ok(None),
        };
        let ways: [&(dyn Fn() -> Found + Sync); 2] = [&by_proxy, &by_certificate];
        for way in ways {
            match way() {
                Ok(Some(user)) => return Ok(Some(user)),
                Ok(None) => {}
                Err(error) => errors.push(error),
            }
        }
        match self.bearer(headers).await {
            Err(error) => errors.push(error),
            found => {
                if errors.is_empty() || matches!(found, Ok(Some(_))) {
                    return found;
                }
            }
        }
        Err(errors.join(", "))
    }
}

/// The token of `Authorization: Bearer`, or of a WebSocket's subprotocol, where browsers cannot set headers.
///
/// Upstream: apiserver/pkg/authentication/request/{bearertoken/bearertoken,websocket/protocol}.go
fn bearer_token(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(http::header::AUTHORIZATION) {
        let mut words = value.to_str().ok()?.trim().splitn(3, ' ');
        let scheme = words.next().unwrap_or_default();
        let token = words.next().unwrap_or_default();
        if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
            return Some(token.to_owned());
        }
    }
    let upgrade = headers.get(http::header::UPGRADE)?.to_str().ok()?;
    if !upgrade.eq_ignore_ascii_case("websocket") {
        return None;
    }
    let protocols = headers.get_all(http::header::SEC_WEBSOCKET_PROTOCOL);
    let encoded = protocols
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .find_map(|protocol| protocol.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    let token = String::from_utf8(URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok()?).ok()?;
    (!token.is_empty()).then_some(token)
}

/// Adds the group of those who are known.
///
/// Upstream: apiserver/pkg/authentication/group/authenticated_group_adder.go
fn with_authenticated_group(mut user: UserInfo) -> UserInfo {
    let known = |group: &String| group == AUTHENTICATED || group == UNAUTHENTICATED;
    if user.name != ANONYMOUS && !user.groups.iter().any(known) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

#[async_trait]
impl Authenticate for Authenticators {
    async fn authenticate(
        &self,
        headers: &HeaderMap,
        _uri: &http::Uri,
        peer_certificates: &[CertificateDer<'static>],
    ) -> Result<Option<UserInfo>, Status> {
        match self.find(headers, peer_certificates).await {
            Ok(user) => Ok(user.map(with_authenticated_group)),
            Err(error) => {
                tracing::info!(error, "unable to authenticate the request");
                Err(Status::unauthorized())
            }
        }
    }
}

#[cfg(test)]
mod tests;
