//! The public keys of issuers, as JSON Web Key Sets tell them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;

/// A key that tokens are checked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    pub id: String,
    /// The only algorithm that the key is for; empty for any that fits.
    algorithm: String,
    material: Material,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    kty: String,
    kid: String,
    alg: String,
    #[serde(rename = "use")]
    purpose: String,
    crv: String,
    n: String,
    e: String,
    x: String,
    y: String,
}

/// The keys of a set that are for signatures and of a kind that is known; others are passed over.
pub fn keys(body: &[u8]) -> Result<Vec<Key>, String> {
    let set: Set = serde_json::from_slice(body).map_err(|error| format!("failed to decode keys: {error}"))?;
    let entries = set.keys.into_iter().filter_map(|entry| serde_json::from_value::<Entry>(entry).ok());
    Ok(entries.filter(|entry| entry.purpose != "enc").filter_map(key).collect())
}

fn key(entry: Entry) -> Option<Key> {
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok();
    let point = |length: usize| {
        let (x, y) = (decode(&entry.x)?, decode(&entry.y)?);
        (x.len() == length && y.len() == length).then(|| [&[4], x.as_slice(), &y].concat())
    };
    let material = match (entry.kty.as_str(), entry.crv.as_str()) {
        ("RSA", _) => Material::Rsa { modulus: decode(&entry.n)?, exponent: decode(&entry.e)? },
        ("EC", "P-256") => Material::P256(point(32)?),
        ("EC", "P-384") => Material::P384(point(48)?),
        _ => return None,
    };
    Some(Key { id: entry.kid, algorithm: entry.alg, material })
}

impl Key {
    /// Whether the key made the proof of a message by this algorithm.
    pub fn verifies(&self, algorithm: &str, message: &[u8], proof: &[u8]) -> bool {
        if !self.algorithm.is_empty() && self.algorithm != algorithm {
            return false;
        }
        let rsa: &signature::RsaParameters = match (algorithm, &self.material) {
            ("ES256", Material::P256(point)) => {
                let key = UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point);
                return key.verify(message, proof).is_ok();
            }
            ("ES384", Material::P384(point)) => {
                let key = UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point);
                return key.verify(message, proof).is_ok();
            }
            ("RS256", _) => &signature::RSA_PKCS1_2048_8192_SHA256,
            ("RS384", _) => &signature::RSA_PKCS1_2048_8192_SHA384,
            ("RS512", _) => &signature::RSA_PKCS1_2048_8192_SHA512,
            ("PS256", _) => &signature::RSA_PSS_2048_8192_SHA256,
            ("PS384", _) => &signature::RSA_PSS_2048_8192_SHA384,
            ("PS512", _) => &signature::RSA_PSS_2048_8192_SHA512,
            _ => return false,
        };
        match &self.material {
            Material::Rsa { modulus, exponent } => {
                RsaPublicKeyComponents { n: modulus, e: exponent }.verify(rsa, message, proof).is_ok()
            }
            _ => false,
        }
    }
}
