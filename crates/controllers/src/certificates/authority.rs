//! Signing: the certificate that a request becomes.

use std::time::Duration;

use der::asn1::{BitString, Null, ObjectIdentifier, OctetString};
use der::flagset::FlagSet;
use der::{DateTime, Decode, Encode, Sequence};
use jiff::Timestamp;
use rcgen::{KeyPair, SigningKey};
use x509_cert::Certificate;
use x509_cert::certificate::Version;
use x509_cert::ext::pkix::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, KeyUsages, SubjectKeyIdentifier,
};
use x509_cert::ext::{Extension, Extensions};
use x509_cert::name::Name;
use x509_cert::serial_number::SerialNumber;
use x509_cert::spki::{AlgorithmIdentifierOwned, SubjectPublicKeyInfoOwned};
use x509_cert::time::{Time, Validity};

use super::request::Request;
use crate::SigningAuthority;

/// Clocks differ by so much.
const BACKDATE: i64 = 5 * 60;
/// What lives shorter ends when it is asked to, backdated or not.
const SHORT: i64 = 8 * 60 * 60;
const MIN_LIFE: i64 = 10 * 60;

const ECDSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.2");
const ECDSA_SHA384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.4.3.3");
const RSA_SHA256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.11");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Upstream: pkg/controller/certificates/authority/policies.go keyUsageDict
const KEY_USAGES: [(&str, KeyUsages); 10] = [
    ("signing", KeyUsages::DigitalSignature),
    ("digital signature", KeyUsages::DigitalSignature),
    ("content commitment", KeyUsages::NonRepudiation),
    ("key encipherment", KeyUsages::KeyEncipherment),
    ("key agreement", KeyUsages::KeyAgreement),
    ("data encipherment", KeyUsages::DataEncipherment),
    ("cert sign", KeyUsages::KeyCertSign),
    ("crl sign", KeyUsages::CRLSign),
    ("encipher only", KeyUsages::EncipherOnly),
    ("decipher only", KeyUsages::DecipherOnly),
];

/// Upstream: pkg/controller/certificates/authority/policies.go extKeyUsageDict
const PURPOSES: [(&str, &str); 13] = [
    ("any", "2.5.29.37.0"),
    ("server auth", "1.3.6.1.5.5.7.3.1"),
    ("client auth", "1.3.6.1.5.5.7.3.2"),
    ("code signing", "1.3.6.1.5.5.7.3.3"),
    ("email protection", "1.3.6.1.5.5.7.3.4"),
    ("s/mime", "1.3.6.1.5.5.7.3.4"),
    ("ipsec end system", "1.3.6.1.5.5.7.3.5"),
    ("ipsec tunnel", "1.3.6.1.5.5.7.3.6"),
    ("ipsec user", "1.3.6.1.5.5.7.3.7"),
    ("timestamping", "1.3.6.1.5.5.7.3.8"),
    ("ocsp signing", "1.3.6.1.5.5.7.3.9"),
    ("microsoft sgc", "1.3.6.1.4.1.311.10.3.3"),
    ("netscape sgc", "2.16.840.1.113730.4.1"),
];

/// RFC 5280 section 4.1, with all that a certificate of ours has.
#[derive(Sequence)]
struct ToBeSigned {
    #[asn1(context_specific = "0", tag_mode = "EXPLICIT")]
    version: Version,
    serial_number: SerialNumber,
    signature: AlgorithmIdentifierOwned,
    issuer: Name,
    validity: Validity,
    subject: Name,
    subject_public_key_info: SubjectPublicKeyInfoOwned,
    #[asn1(context_specific = "3", tag_mode = "EXPLICIT")]
    extensions: Extensions,
}

#[derive(Sequence)]
struct Signed {
    certificate: ToBeSigned,
    algorithm: AlgorithmIdentifierOwned,
    signature: BitString,
}

pub(super) struct Authority {
    certificate: Certificate,
    key: KeyPair,
    longest: i64,
}

fn seconds(timestamp: Timestamp) -> Result<Time, der::Error> {
    let since_1970 = Duration::from_secs(u64::try_from(timestamp.as_second()).unwrap_or(0));
    let moment = DateTime::from_unix_duration(since_1970)?;
    // RFC 5280 section 4.1.2.5: times up to 2049 are written with a year of two digits.
    Ok(match der::asn1::UtcTime::from_date_time(moment) {
        Ok(short) => Time::UtcTime(short),
        Err(_) => Time::GeneralTime(der::asn1::GeneralizedTime::from_date_time(moment)),
    })
}

fn extension(oid: &str, critical: bool, value: &impl Encode) -> der::Result<Extension> {
    Ok(Extension {
        extn_id: ObjectIdentifier::new_unwrap(oid),
        critical,
        extn_value: OctetString::new(value.to_der()?)?,
    })
}

/// The usages as extensions.
fn usages(names: &[String]) -> Result<Vec<Extension>, String> {
    let mut flags: FlagSet<KeyUsages> = FlagSet::default();
    let mut purposes = Vec::new();
    let mut unknown = Vec::new();
    for name in names {
        if let Some((_, flag)) = KEY_USAGES.iter().find(|(known, _)| known == name) {
            flags |= *flag;
        } else if let Some((_, oid)) = PURPOSES.iter().find(|(known, _)| known == name) {
            purposes.push(ObjectIdentifier::new_unwrap(oid));
        } else {
            unknown.push(name);
        }
    }
    if !unknown.is_empty() {
        return Err(format!("unrecognized usage values: {unknown:?}"));
    }
    purposes.sort();
    purposes.dedup();
    let mut found = Vec::new();
    if !flags.is_empty() {
        found.push(extension("2.5.29.15", true, &KeyUsage(flags)));
    }
    if !purposes.is_empty() {
        found.push(extension("2.5.29.37", false, &ExtendedKeyUsage(purposes)));
    }
    found.into_iter().collect::<Result<_, _>>().map_err(|error| error.to_string())
}

impl Authority {
    pub fn new(signing: &SigningAuthority) -> Result<Self, String> {
        let block = pem::parse(&signing.certificate_pem).map_err(|error| error.to_string())?;
        let certificate = Certificate::from_der(block.contents()).map_err(|error| error.to_string())?;
        let key = KeyPair::from_pem(&signing.key_pem).map_err(|error| error.to_string())?;
        let longest = i64::try_from(signing.longest.as_secs()).map_err(|error| error.to_string())?;
        Ok(Authority { certificate, key, longest })
    }

    /// Upstream: pkg/controller/certificates/signer/signer.go duration
    fn life(&self, asked: Option<i32>) -> i64 {
        match asked.map(i64::from) {
            None => self.longest,
            Some(asked) if asked > self.longest => self.longest,
            Some(asked) => asked.max(MIN_LIFE),
        }
    }

    /// Upstream: pkg/controller/certificates/authority/policies.go PermissiveSigningPolicy
    fn validity(&self, asked: Option<i32>, now: Timestamp) -> Result<Validity, String> {
        let life = self.life(asked);
        let end = self.certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs();
        let end = i64::try_from(end).unwrap_or(i64::MAX);
        let start = now.as_second() - BACKDATE;
        if now.as_second() >= end {
            return Err(format!("refusing to sign a certificate that expired in the past: NotAfter={end}"));
        }
        let until = now.as_second() + if life < SHORT { life } else { life - BACKDATE };
        let time = |moment: i64| {
            let moment = Timestamp::from_second(moment).map_err(|error| error.to_string())?;
            seconds(moment).map_err(|error| error.to_string())
        };
        Ok(Validity::new(time(start)?, time(until.min(end))?))
    }

    fn algorithm(&self) -> AlgorithmIdentifierOwned {
        let algorithm = rcgen::PublicKeyData::algorithm(&self.key);
        let (oid, parameters) = if algorithm == &rcgen::PKCS_RSA_SHA256 {
            (RSA_SHA256, Some(Null.into()))
        } else if algorithm == &rcgen::PKCS_ECDSA_P384_SHA384 {
            (ECDSA_SHA384, None)
        } else if algorithm == &rcgen::PKCS_ED25519 {
            (ED25519, None)
        } else {
            (ECDSA_SHA256, None)
        };
        AlgorithmIdentifierOwned { oid, parameters }
    }

    /// The certificate, as PEM. Of the request's extensions only the alternative names are kept.
    pub fn sign(
        &self,
        request: &Request,
        usage_names: &[String],
        expiration_seconds: Option<i32>,
        now: Timestamp,
        serial: [u8; 16],
    ) -> Result<String, String> {
        let mut extensions = usages(usage_names)?;
        let validity = self.validity(expiration_seconds, now)?;
        let encode = || -> der::Result<Vec<u8>> {
            extensions.push(extension(
                "2.5.29.19",
                true,
                &BasicConstraints { ca: false, path_len_constraint: None },
            )?);
            let issuer = self.certificate.tbs_certificate();
            if let Some((_, SubjectKeyIdentifier(id))) = issuer.get_extension::<SubjectKeyIdentifier>()? {
                let by = AuthorityKeyIdentifier { key_identifier: Some(id), ..Default::default() };
                extensions.push(extension("2.5.29.35", false, &by)?);
            }
            if let Some(names) = &request.alternative_names {
                let info = &request.parsed.info;
                // RFC 5280 section 4.2.1.6: what has no subject is named by these alone.
                extensions.push(Extension { critical: info.subject.is_empty(), ..names.clone() });
            }
            self.encode(request, validity, extensions, serial)
        };
        let der = { encode }().map_err(|error| format!("failed to sign certificate: {error}"))?;
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        Ok(pem::encode_config(&pem::Pem::new("CERTIFICATE", der), config))
    }

    fn encode(
        &self,
        request: &Request,
        validity: Validity,
        extensions: Extensions,
        mut serial: [u8; 16],
    ) -> der::Result<Vec<u8>> {
        // A serial number is positive and has no leading zero byte.
        serial[0] = (serial[0] & 0x7f) | 0x40;
        let info = &request.parsed.info;
        let certificate = ToBeSigned {
            version: Version::V3,
            serial_number: SerialNumber::new(&serial)?,
            signature: self.algorithm(),
            issuer: self.certificate.tbs_certificate().subject().clone(),
            validity,
            subject: info.subject.clone(),
            subject_public_key_info: info.public_key.clone(),
            extensions,
        };
        let signature = self.key.sign(&certificate.to_der()?).map_err(|_| der::ErrorKind::Failed)?;
        let signature = BitString::from_bytes(&signature)?;
        Signed { certificate, algorithm: self.algorithm(), signature }.to_der()
    }
}
