//! Whom the API server believes, and how it shows itself: from the certificates that it makes itself, and from
//! what an operator gives in place of them.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use apimachinery::Status;
use apiserver::authn::oidc::Issuers;
use apiserver::authn::oidc::config::Jwt;
use apiserver::authn::{
    self, Authenticators, RequestHeaders, SigningKey, StaticToken, TokenWebhook, VerifyingKey,
};
use apiserver::authz::reload::Reload;
use apiserver::authz::{Metrics, Mode};
use apiserver::seams::{Authenticate, Lookup, UserInfo};
use async_trait::async_trait;
use rustls_pki_types::CertificateDer;

use crate::certificates::{self, Current, Files, read};
use crate::pki::{Leaf, Pki};
use crate::renewal::Renewal;

/// What an operator gives in place of what the server would make itself, or asks to be otherwise.
#[derive(Clone)]
pub struct Given {
    pub serving: Option<Files>,
    pub client_authority: Option<PathBuf>,
    pub service_account_keys: Vec<PathBuf>,
    pub signing_key: Option<PathBuf>,
    /// The first signs; tokens of all are accepted.
    pub issuers: Vec<String>,
    pub audiences: Vec<String>,
    pub kubelet_authority: Option<PathBuf>,
    pub kubelet_client: Option<Files>,
    pub request_headers: GivenRequestHeaders,
    pub proxy_client: Option<Files>,
    pub static_tokens: Vec<StaticToken>,
    /// Other issuers of tokens.
    pub jwt: Vec<Jwt>,
    pub anonymous: bool,
    pub bootstrap_tokens: bool,
    pub authorization: Authorization,
    /// Who is asked about tokens that nobody here knows.
    pub token_webhook: Option<Arc<TokenWebhook>>,
}

impl Default for Given {
    fn default() -> Self {
        Given {
            serving: None,
            client_authority: None,
            service_account_keys: Vec::new(),
            signing_key: None,
            issuers: Vec::new(),
            audiences: Vec::new(),
            kubelet_authority: None,
            kubelet_client: None,
            request_headers: GivenRequestHeaders::default(),
            proxy_client: None,
            static_tokens: Vec::new(),
            jwt: Vec::new(),
            anonymous: true,
            bootstrap_tokens: true,
            authorization: Authorization::default(),
            token_webhook: None,
        }
    }
}

/// Who says what users may do.
#[derive(Clone)]
pub struct Authorization {
    /// In the order in which they are asked.
    pub modes: Vec<Mode>,
    pub metrics: Metrics,
    /// The file that names them, to be followed.
    pub reload: Option<Reload>,
}

impl Default for Authorization {
    fn default() -> Self {
        Authorization { modes: vec![Mode::Node, Mode::Rbac], metrics: Metrics::default(), reload: None }
    }
}

/// The front proxies that may say for whom they ask. Empty lists mean upstream's usual headers.
#[derive(Clone, Default)]
pub struct GivenRequestHeaders {
    pub authority: Option<PathBuf>,
    pub allowed_names: Vec<String>,
    pub username_headers: Vec<String>,
    pub uid_headers: Vec<String>,
    pub group_headers: Vec<String>,
    pub extra_header_prefixes: Vec<String>,
}

/// What [`Given`] and the server's own certificates come to.
pub struct Trust {
    pub serving: Arc<Current>,
    /// PEM of the authorities of users' certificates.
    client_authority: String,
    request_headers: RequestHeaders,
    front_proxy_authority: String,
    /// PEM of the key that signs ServiceAccount tokens.
    signing_key: String,
    verifying_keys: Vec<VerifyingKey>,
    pub issuers: Vec<String>,
    pub audiences: Vec<String>,
    pub kubelet_tls: Arc<rustls::ClientConfig>,
    /// As whom this server asks aggregated ones.
    pub front_proxy: Arc<Current>,
    static_tokens: Vec<StaticToken>,
    jwt: Vec<Jwt>,
    token_webhook: Option<Arc<TokenWebhook>>,
    anonymous: bool,
    bootstrap_tokens: bool,
}

impl Trust {
    /// `issuer` is the one of ServiceAccount tokens when none is given.
    pub fn new(given: &Given, renewal: &Renewal, issuer: &str) -> anyhow::Result<Self> {
        let pki = renewal.pki();
        let own_authority = pki.authority().to_owned();
        let (signing_key, verifying_keys) = service_account_keys(given, &pki)?;
        let front_proxy_authority = match &given.request_headers.authority {
            Some(path) => read(path)?,
            None => pki.front_proxy_authority().to_owned(),
        };
        drop(pki);
        let serving = match &given.serving {
            Some(files) => Current::of_files(files.clone())?,
            None => renewal.current(Leaf::ApiServer),
        };
        let kubelet_client = match &given.kubelet_client {
            Some(files) => Current::of_files(files.clone())?,
            None => renewal.current(Leaf::ApiServerKubeletClient),
        };
        let kubelet_authority = given
            .kubelet_authority
            .as_deref()
            .map(read)
            .transpose()?
            .unwrap_or_else(|| own_authority.clone());
        let issuers = or_else(&given.issuers, &[issuer]);
        Ok(Trust {
            serving,
            client_authority: given
                .client_authority
                .as_deref()
                .map(read)
                .transpose()?
                .unwrap_or(own_authority),
            request_headers: request_headers(&given.request_headers, &front_proxy_authority)?,
            front_proxy_authority,
            signing_key,
            verifying_keys,
            audiences: if given.audiences.is_empty() { issuers.clone() } else { given.audiences.clone() },
            issuers,
            kubelet_tls: certificates::client_config(&kubelet_authority, kubelet_client)?,
            front_proxy: match &given.proxy_client {
                Some(files) => Current::of_files(files.clone())?,
                None => renewal.current(Leaf::FrontProxyClient),
            },
            static_tokens: given.static_tokens.clone(),
            jwt: given.jwt.clone(),
            token_webhook: given.token_webhook.clone(),
            anonymous: given.anonymous,
            bootstrap_tokens: given.bootstrap_tokens,
        })
    }

    /// The key that signs ServiceAccount tokens.
    pub fn signing_key(&self) -> anyhow::Result<SigningKey> {
        SigningKey::from_pem(&self.signing_key).context("the key of ServiceAccount tokens cannot be used")
    }

    /// The authorities of whoever shows a certificate in a handshake.
    pub fn handshake_authorities(&self) -> anyhow::Result<Vec<CertificateDer<'static>>> {
        Ok([certificates::chain(&self.client_authority)?, certificates::chain(&self.front_proxy_authority)?]
            .concat())
    }

    /// What authenticates requests. `own_key` is of the tokens that this server issues.
    pub fn authentication(
        &self,
        own_key: &VerifyingKey,
        lookup: Arc<dyn Lookup>,
    ) -> anyhow::Result<authn::Config> {
        let oidc = Issuers::new(self.jwt.clone(), lookup);
        let oidc =
            oidc.map_err(|errors| anyhow::anyhow!("invalid authentication config: {}", errors.join("; ")))?;
        let mut keys = vec![own_key.clone()];
        keys.extend(self.verifying_keys.iter().filter(|key| key.id != own_key.id).cloned());
        Ok(authn::Config {
            client_authorities: certificates::chain(&self.client_authority)?,
            request_headers: Some(RequestHeaders {
                authorities: self.request_headers.authorities.clone(),
                allowed_names: self.request_headers.allowed_names.clone(),
                username_headers: self.request_headers.username_headers.clone(),
                uid_headers: self.request_headers.uid_headers.clone(),
                group_headers: self.request_headers.group_headers.clone(),
                extra_header_prefixes: self.request_headers.extra_header_prefixes.clone(),
            }),
            service_account_keys: keys,
            issuers: self.issuers.clone(),
            audiences: self.audiences.clone(),
            bootstrap_tokens: self.bootstrap_tokens,
            static_tokens: self.static_tokens.clone(),
            oidc,
            webhook: self.token_webhook.clone(),
        })
    }

    /// Refuses whoever shows nothing, if so told.
    pub fn known_only(&self, authenticators: Arc<Authenticators>) -> Arc<dyn Authenticate> {
        if self.anonymous { authenticators } else { Arc::new(KnownOnly(authenticators)) }
    }

    /// What extension API servers need to check those whom this server believes.
    ///
    /// Upstream: pkg/controlplane/controller/clusterauthenticationtrust/cluster_authentication_trust_controller.go
    pub fn published(&self) -> Vec<(String, String)> {
        let headers = &self.request_headers;
        let list = |values: &[String]| serde_json::Value::from(values).to_string();
        let data = [
            ("client-ca-file", self.client_authority.clone()),
            ("requestheader-client-ca-file", self.front_proxy_authority.clone()),
            ("requestheader-allowed-names", list(&headers.allowed_names)),
            ("requestheader-extra-headers-prefix", list(&headers.extra_header_prefixes)),
            ("requestheader-group-headers", list(&headers.group_headers)),
            ("requestheader-username-headers", list(&headers.username_headers)),
            ("requestheader-uid-headers", list(&headers.uid_headers)),
        ];
        data.map(|(key, value)| (key.to_owned(), value)).to_vec()
    }
}

/// Header names are told as upstream spells them, and compared in lower case.
fn request_headers(given: &GivenRequestHeaders, authority: &str) -> anyhow::Result<RequestHeaders> {
    let allowed_names = match given.authority {
        // A given authority vouches for all that it signed, unless names are given too.
        Some(_) => given.allowed_names.clone(),
        None => or_else(&given.allowed_names, &["front-proxy-client"]),
    };
    Ok(RequestHeaders {
        authorities: certificates::chain(authority)?,
        allowed_names,
        username_headers: or_else(&given.username_headers, &["x-remote-user"]),
        uid_headers: or_else(&given.uid_headers, &["x-remote-uid"]),
        group_headers: or_else(&given.group_headers, &["x-remote-group"]),
        extra_header_prefixes: or_else(&given.extra_header_prefixes, &["x-remote-extra-"]),
    })
}

fn or_else(given: &[String], otherwise: &[&str]) -> Vec<String> {
    if given.is_empty() { otherwise.iter().map(|text| (*text).to_owned()).collect() } else { given.to_vec() }
}

/// The key that signs tokens, and those that check them.
fn service_account_keys(given: &Given, pki: &Pki) -> anyhow::Result<(String, Vec<VerifyingKey>)> {
    let signing_key = match &given.signing_key {
        Some(path) => read(path)?,
        None => pki.service_account_key().to_owned(),
    };
    let mut verifying_keys = Vec::new();
    for path in &given.service_account_keys {
        let keys = VerifyingKey::all_from_pem(&read(path)?)
            .with_context(|| format!("{} holds no key to check tokens with", path.display()))?;
        verifying_keys.extend(keys);
    }
    Ok((signing_key, verifying_keys))
}

/// `--anonymous-auth=false`.
struct KnownOnly(Arc<Authenticators>);

#[async_trait]
impl Authenticate for KnownOnly {
    async fn authenticate(
        &self,
        headers: &http::HeaderMap,
        uri: &http::Uri,
        peer_certificates: &[CertificateDer<'static>],
    ) -> Result<Option<UserInfo>, Status> {
        match self.0.authenticate(headers, uri, peer_certificates).await? {
            Some(user) => Ok(Some(user)),
            None => Err(Status::unauthorized()),
        }
    }
}

/// The lines of `--token-auth-file`: token, name, uid and, in quotes if several, the groups.
///
/// Upstream: apiserver/pkg/authentication/token/tokenfile/tokenfile.go NewCSV
pub fn static_tokens(text: &str) -> anyhow::Result<Vec<StaticToken>> {
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let fields = csv_fields(line);
        let [token, name, uid, rest @ ..] = fields.as_slice() else {
            anyhow::bail!("line {}: a token, a user and its uid are needed", number + 1);
        };
        anyhow::ensure!(!token.is_empty(), "line {}: the token is empty", number + 1);
        let groups = rest.first().map(|groups| groups.split(',').map(|g| g.trim().to_owned()).collect());
        tokens.push(StaticToken {
            token: token.clone(),
            user: UserInfo {
                name: name.clone(),
                uid: uid.clone(),
                groups: groups.unwrap_or_default(),
                ..Default::default()
            },
        });
    }
    Ok(tokens)
}

/// The fields of one line; those in double quotes may hold commas.
fn csv_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for character in line.trim().chars() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            other => fields.last_mut().expect("there is one from the start").push(other),
        }
    }
    fields.iter().map(|field| field.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_line_by_line() {
        let tokens = static_tokens("t1,alice,1\n\nt2, bob ,2,\"a, b\"\nt3,carol,3,c\n").unwrap();
        let read: Vec<_> = tokens
            .iter()
            .map(|t| (t.token.as_str(), t.user.name.as_str(), t.user.uid.as_str(), t.user.groups.join("+")))
            .collect();
        let wanted = [("t1", "alice", "1", ""), ("t2", "bob", "2", "a+b"), ("t3", "carol", "3", "c")];
        assert_eq!(read, wanted.map(|(t, n, u, g)| (t, n, u, g.to_owned())));
        for (text, line) in [("t1,alice", "line 1"), ("t,a,1\n,b,2", "line 2")] {
            let error = static_tokens(text).unwrap_err().to_string();
            assert!(error.starts_with(line), "{error}");
        }
    }
}
