//! The keys of ServiceAccount tokens: ECDSA P-256 (ES256) and RSA (RS256), and how they are shown to others.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{self, EcdsaKeyPair, KeyPair, RsaKeyPair};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the key file is not PEM")]
    Pem(#[source] pem::PemError),
    #[error("the key is neither RSA of 2048 bits or more nor ECDSA P-256")]
    Unsupported,
    #[error("the key is rejected: {0}")]
    Rejected(ring::error::KeyRejected),
    #[error("signing failed")]
    Sign,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Algorithm {
    Es256,
    Rs256,
}

impl Algorithm {
    pub(super) fn name(self) -> &'static str {
        match self {
            Algorithm::Es256 => "ES256",
            Algorithm::Rs256 => "RS256",
        }
    }
}

/// What checks signatures.
#[derive(Clone, Debug)]
pub struct VerifyingKey {
    /// Base64url of the SHA-256 of the public key's DER, as upstream names keys.
    pub id: String,
    pub(super) algorithm: Algorithm,
    /// The point or the PKCS#1 public key, as ring takes it.
    bytes: Vec<u8>,
}

/// The DER of `SEQUENCE { SEQUENCE { id-ecPublicKey, prime256v1 }, BIT STRING }` up to the 65-byte point.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// `SEQUENCE { rsaEncryption, NULL }`.
const RSA_ALGORITHM: [u8; 15] =
    [0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

/// A DER value with its length.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = vec![tag];
    if length < 0x80 {
        out.push(length as u8);
    } else {
        let bytes: Vec<u8> = length.to_be_bytes().into_iter().skip_while(|b| *b == 0).collect();
        out.push(0x80 | bytes.len() as u8);
        out.extend(bytes);
    }
    out.extend_from_slice(content);
    out
}

impl VerifyingKey {
    fn new(algorithm: Algorithm, bytes: Vec<u8>) -> Self {
        let info = match algorithm {
            Algorithm::Es256 => [P256_PREFIX.as_slice(), &bytes].concat(),
            Algorithm::Rs256 => {
                let bits = der(0x03, &[&[0], bytes.as_slice()].concat());
                der(0x30, &[RSA_ALGORITHM.as_slice(), &bits].concat())
            }
        };
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(&info));
        VerifyingKey { id, algorithm, bytes }
    }

    /// Reads `PUBLIC KEY`, `PRIVATE KEY` or `RSA PRIVATE KEY` blocks, of which there may be several.
    pub fn all_from_pem(text: &str) -> Result<Vec<Self>, KeyError> {
        pem::parse_many(text).map_err(KeyError::Pem)?.iter().map(Self::from_block).collect()
    }

    fn from_block(block: &pem::Pem) -> Result<Self, KeyError> {
        if block.tag() != "PUBLIC KEY" {
            return Ok(SigningKey::from_block(block)?.verifying);
        }
        let (_, info) =
            SubjectPublicKeyInfo::from_der(block.contents()).map_err(|_| KeyError::Unsupported)?;
        match info.parsed() {
            Ok(PublicKey::EC(point)) if point.data().len() == 65 && info.raw.starts_with(&P256_PREFIX) => {
                Ok(Self::new(Algorithm::Es256, point.data().to_vec()))
            }
            Ok(PublicKey::RSA(_)) => Ok(Self::new(Algorithm::Rs256, info.subject_public_key.data.to_vec())),
            _ => Err(KeyError::Unsupported),
        }
    }

    pub(super) fn verify(&self, message: &[u8], proof: &[u8]) -> bool {
        let algorithm: &dyn signature::VerificationAlgorithm = match self.algorithm {
            Algorithm::Es256 => &signature::ECDSA_P256_SHA256_FIXED,
            Algorithm::Rs256 => &signature::RSA_PKCS1_2048_8192_SHA256,
        };
        signature::UnparsedPublicKey::new(algorithm, &self.bytes).verify(message, proof).is_ok()
    }

    /// The key as an entry of a JSON Web Key Set.
    fn to_jwk(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut jwk = json!({"use": "sig", "kid": self.id, "alg": self.algorithm.name()});
        match self.algorithm {
            Algorithm::Es256 => {
                jwk["kty"] = "EC".into();
                jwk["crv"] = "P-256".into();
                // An uncompressed point: one byte of form, then the two coordinates.
                jwk["x"] = encode(self.bytes.get(1..33).unwrap_or_default()).into();
                jwk["y"] = encode(self.bytes.get(33..65).unwrap_or_default()).into();
            }
            Algorithm::Rs256 => {
                jwk["kty"] = "RSA".into();
                if let Ok((_, key)) = x509_parser::public_key::RSAPublicKey::from_der(&self.bytes) {
                    let plain =
                        |number: &[u8]| encode(&number[number.iter().take_while(|b| **b == 0).count()..]);
                    jwk["n"] = plain(key.modulus).into();
                    jwk["e"] = plain(key.exponent).into();
                }
            }
        }
        jwk
    }
}

enum Private {
    Ec(Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>),
}

/// What makes signatures.
pub struct SigningKey {
    private: Private,
    pub verifying: VerifyingKey,
    random: SystemRandom,
}

impl SigningKey {
    /// Reads a `PRIVATE KEY` (PKCS#8) or `RSA PRIVATE KEY` block.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        Self::from_block(&pem::parse(text).map_err(KeyError::Pem)?)
    }

    fn from_block(block: &pem::Pem) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let contents = block.contents();
        let rsa = match block.tag() {
            "PRIVATE KEY" => {
                let algorithm = &signature::ECDSA_P256_SHA256_FIXED_SIGNING;
                if let Ok(pair) = EcdsaKeyPair::from_pkcs8(algorithm, contents, &random) {
                    let verifying = VerifyingKey::new(Algorithm::Es256, pair.public_key().as_ref().to_vec());
                    return Ok(SigningKey { private: Private::Ec(Box::new(pair)), verifying, random });
                }
                RsaKeyPair::from_pkcs8(contents).map_err(KeyError::Rejected)?
            }
            "RSA PRIVATE KEY" => RsaKeyPair::from_der(contents).map_err(KeyError::Rejected)?,
            _ => return Err(KeyError::Unsupported),
        };
        let components: PublicKeyComponents<Vec<u8>> = rsa.public().into();
        if components.n.len() < 256 {
            return Err(KeyError::Unsupported);
        }
        let verifying = VerifyingKey::new(Algorithm::Rs256, rsa.public().as_ref().to_vec());
        Ok(SigningKey { private: Private::Rsa(Box::new(rsa)), verifying, random })
    }

    /// A signed token of any claims.
    pub fn token(&self, claims: &Value) -> Result<String, KeyError> {
        super::jwt::sign(self, claims)
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.private {
            Private::Ec(pair) => {
                Ok(pair.sign(&self.random, message).map_err(|_| KeyError::Sign)?.as_ref().to_vec())
            }
            Private::Rsa(pair) => {
                let mut proof = vec![0; pair.public().modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &self.random, message, &mut proof)
                    .map_err(|_| KeyError::Sign)?;
                Ok(proof)
            }
        }
    }
}

/// The body of `/openid/v1/jwks`.
pub fn jwks(keys: &[VerifyingKey]) -> Value {
    json!({"keys": keys.iter().map(VerifyingKey::to_jwk).collect::<Vec<_>>()})
}

/// The body of `/.well-known/openid-configuration`.
///
/// Upstream: pkg/serviceaccount/openidmetadata.go
pub fn openid_configuration(issuer: &str, jwks_uri: &str, keys: &[VerifyingKey]) -> Value {
    let mut algorithms: Vec<&str> = keys.iter().map(|key| key.algorithm.name()).collect();
    algorithms.sort_unstable();
    algorithms.dedup();
    json!({
        "issuer": issuer,
        "jwks_uri": jwks_uri,
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": algorithms,
    })
}
