//! JSON Web Tokens: signing and reading the compact form, and the claims of ServiceAccount tokens.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use super::keys::{KeyError, SigningKey, VerifyingKey};

/// No token of ours comes near; what is longer is not read.
const MAX_LENGTH: usize = 64 * 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Claims {
    #[serde(deserialize_with = "one_or_many")]
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Kubernetes,
    pub nbf: i64,
    pub sub: String,
}

/// To what the token is bound: it dies with any of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kubernetes {
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Bound>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Bound>,
    pub serviceaccount: Bound,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Bound {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Audience {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Audience::deserialize(deserializer)? {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    })
}

pub(super) fn sign(key: &SigningKey, claims: &impl Serialize) -> Result<String, KeyError> {
    let header = serde_json::json!({"alg": key.verifying.algorithm.name(), "kid": key.verifying.id});
    let encode = |json: &[u8]| URL_SAFE_NO_PAD.encode(json);
    let claims = serde_json::to_vec(claims).expect("claims are strings and numbers");
    let mut token = format!("{}.{}", encode(header.to_string().as_bytes()), encode(&claims));
    let proof = key.sign(token.as_bytes())?;
    token.push('.');
    token.push_str(&encode(&proof));
    Ok(token)
}

/// The issuer that a token claims, unproven: whether the token is for us to judge. `None` when it is no token.
pub(super) fn claimed_issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Issuer {
        iss: String,
    }
    if token.len() > MAX_LENGTH {
        return None;
    }
    let mut parts = token.split('.');
    let claims = (parts.next()?, parts.next()?, parts.next()?, parts.next()).1;
    let issuer: Issuer = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
    Some(issuer.iss)
}

/// The claims of a token that one of the keys signed. The header's algorithm must be the key's own.
pub(super) fn verify<T: DeserializeOwned>(token: &str, keys: &[VerifyingKey]) -> Option<T> {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
        #[serde(default)]
        kid: String,
    }
    let (message, proof) = token.rsplit_once('.')?;
    let (header, claims) = message.split_once('.')?;
    let header: Header = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(header).ok()?).ok()?;
    let proof = URL_SAFE_NO_PAD.decode(proof).ok()?;
    let fits = |key: &&VerifyingKey| {
        key.algorithm.name() == header.alg && (header.kid.is_empty() || header.kid == key.id)
    };
    keys.iter().filter(fits).find(|key| key.verify(message.as_bytes(), &proof))?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}
