//! OpenID Connect: tokens of issuers that the cluster trusts to know its users. [`config`] says which, [`jwk`] what
//! their tokens are signed with, [`claims`] who a token names.
//!
//! What always holds: keys are fetched when a token names one that is not known, by one task at a time and not
//! again within [`PATIENCE_SECONDS`], so that tokens made up by strangers cost an issuer nothing; an issuer that does
//! not answer refuses only its own tokens.
//!
//! Upstream: apiserver/plugin/pkg/authenticator/token/oidc/oidc.go

mod claims;
pub mod config;
mod jwk;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use serde::Deserialize;
use serde_json::Value;

use self::claims::Mapper;
use self::config::{ALGORITHMS, Jwt};
use self::jwk::Key;
use super::Found;
use super::jwt::claimed_issuer;
use crate::remote::outbound::{Address, PeerConfig, PeerTrust, Peers};
use crate::remote::resolve::Resolver;
use crate::seams::Lookup;

/// Keys that were just fetched are not fetched again.
const PATIENCE_SECONDS: i64 = 10;
const TIMEOUT: Duration = Duration::from_secs(30);
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// By so much an issuer's clock may be ahead.
const LEEWAY_SECONDS: i64 = 300;

/// All issuers that are trusted.
#[derive(Default)]
pub struct Issuers(Vec<Provider>);

struct Provider {
    url: String,
    discovery_url: String,
    audiences: Vec<String>,
    algorithms: Vec<String>,
    authority: Vec<u8>,
    mapper: Mapper,
    peers: Arc<Peers>,
    keys: Mutex<Arc<[Key]>>,
    /// When keys were fetched last; held while they are fetched.
    fetched: tokio::sync::Mutex<Option<jiff::Timestamp>>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

/// What `/.well-known/openid-configuration` says of interest.
#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Issuers {
    /// Compiles what the configurations say; all that is wrong with them.
    pub fn new(configurations: Vec<Jwt>, lookup: Arc<dyn Lookup>) -> Result<Self, Vec<String>> {
        let peers = Arc::new(Peers::new(Resolver::new(lookup), None));
        let (mut providers, mut errors) = (Vec::new(), Vec::new());
        for (index, jwt) in configurations.into_iter().enumerate() {
            let path = format!("jwt[{index}]");
            errors.extend(jwt.wrong(&path));
            match Mapper::new(&jwt, &path) {
                Ok(mapper) => providers.push(Provider::new(jwt, mapper, peers.clone())),
                Err(wrong) => errors.extend(wrong),
            }
        }
        if errors.is_empty() { Ok(Issuers(providers)) } else { Err(errors) }
    }

    /// `Ok(None)` for what is no token of these issuers.
    pub(super) async fn authenticate(&self, token: &str, now: jiff::Timestamp) -> Found {
        let Some(claimed) = claimed_issuer(token) else { return Ok(None) };
        match self.0.iter().find(|provider| provider.url == claimed) {
            None => Ok(None),
            Some(provider) => {
                let claims = provider.prove(token, now).await?;
                provider.mapper.user(&claims).map(Some)
            }
        }
    }
}

impl Provider {
    fn new(jwt: Jwt, mapper: Mapper, peers: Arc<Peers>) -> Self {
        let issuer = jwt.issuer;
        let discovery_url = match issuer.discovery_url.as_str() {
            "" => format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/')),
            url => url.to_owned(),
        };
        let all = || ALGORITHMS.iter().map(|name| (*name).to_owned()).collect();
        Provider {
            url: issuer.url,
            discovery_url,
            audiences: issuer.audiences,
            algorithms: jwt.algorithms.unwrap_or_else(all),
            authority: issuer.certificate_authority.into_bytes(),
            mapper,
            peers,
            keys: Mutex::new(Arc::new([])),
            fetched: tokio::sync::Mutex::default(),
        }
    }

    fn known(&self) -> Arc<[Key]> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The claims of a token that the issuer signed for this cluster and that is valid now.
    async fn prove(&self, token: &str, now: jiff::Timestamp) -> Result<Value, String> {
        let malformed = || "oidc: verify token: oidc: malformed jwt".to_owned();
        let (message, proof) = token.rsplit_once('.').ok_or_else(malformed)?;
        let (header, body) = message.split_once('.').ok_or_else(malformed)?;
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed());
        let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| malformed())?;
        let proof = decode(proof)?;
        let claims: Value = serde_json::from_slice(&decode(body)?).map_err(|_| malformed())?;
        if !self.algorithms.contains(&header.alg) {
            return Err(format!(
                "oidc: verify token: oidc: id token signed with unsupported algorithm, expected {:?} got {:?}",
                self.algorithms, header.alg
            ));
        }
        // What is wrong with a token anyway is no reason to ask its issuer.
        self.check_claims(&claims, now)?;
        let proves = |keys: &[Key]| {
            let mut fitting = keys.iter().filter(|key| header.kid.is_empty() || key.id == header.kid);
            fitting.any(|key| key.verifies(&header.alg, message.as_bytes(), &proof))
        };
        if proves(&self.known()) {
            return Ok(claims);
        }
        self.fetch_keys(now).await?;
        match proves(&self.known()) {
            true => Ok(claims),
            false => {
                Err("oidc: verify token: failed to verify signature: failed to verify id token signature"
                    .into())
            }
        }
    }

    fn check_claims(&self, claims: &Value, now: jiff::Timestamp) -> Result<(), String> {
        let audiences = match &claims["aud"] {
            Value::String(one) => vec![one.as_str()],
            Value::Array(many) => many.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        if !audiences.iter().any(|audience| self.audiences.iter().any(|wanted| wanted == audience)) {
            return Err(format!(
                "oidc: verify token: oidc: expected audience in {:?} got {audiences:?}",
                self.audiences
            ));
        }
        // Issuers write times as they like: as integers, or with a fraction.
        let seconds = |name: &str| claims[name].as_f64().map(|seconds| seconds as i64);
        let now = now.as_second();
        if seconds("exp").is_none_or(|expiry| now > expiry) {
            return Err("oidc: verify token: oidc: token is expired".to_owned());
        }
        if seconds("nbf").is_some_and(|start| now.saturating_add(LEEWAY_SECONDS) < start) {
            return Err(
                "oidc: verify token: oidc: current time is before the nbf (not before) time".to_owned()
            );
        }
        Ok(())
    }

    /// Asks the issuer for its keys, unless somebody just did.
    async fn fetch_keys(&self, now: jiff::Timestamp) -> Result<(), String> {
        let mut fetched = self.fetched.lock().await;
        if fetched.is_some_and(|at| now.as_second() - at.as_second() < PATIENCE_SECONDS) {
            return Ok(());
        }
        *fetched = Some(now);
        let work = async {
            let discovery: Discovery = serde_json::from_slice(&self.get(&self.discovery_url).await?)
                .map_err(|error| format!("failed to decode provider discovery object: {error}"))?;
            if discovery.issuer != self.url {
                return Err(format!(
                    "issuer did not match the issuer returned by provider, expected {:?} got {:?}",
                    self.url, discovery.issuer
                ));
            }
            jwk::keys(&self.get(&discovery.jwks_uri).await?)
        };
        let keys = match tokio::time::timeout(TIMEOUT, work).await {
            Ok(keys) => keys,
            Err(_) => Err("context deadline exceeded".to_owned()),
        };
        let keys = keys.map_err(|why| format!("oidc: authenticator not initialized: {}: {why}", self.url))?;
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = keys.into();
        Ok(())
    }

    async fn get(&self, url: &str) -> Result<Bytes, String> {
        let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
        if uri.scheme_str() != Some("https") {
            return Err(format!("{url}: URL scheme must be https"));
        }
        let host = uri.host().ok_or_else(|| format!("{url}: no host"))?;
        let address = Address::Host {
            host: host.trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: uri.port_u16().unwrap_or(443),
        };
        let trust = PeerTrust::Bundle(self.authority.clone());
        let peer = self.peers.get(&PeerConfig { address, trust, front_proxy: false })?;
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = Request::get(url).header(http::header::ACCEPT, "application/json").body(body);
        let answer = peer.send(request.map_err(|error| error.to_string())?).await?;
        if !answer.status().is_success() {
            return Err(format!("{url}: {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
        Ok(body.map_err(|error| format!("{url}: {error}"))?.to_bytes())
    }
}

#[cfg(test)]
mod tests;
