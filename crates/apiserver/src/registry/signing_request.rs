//! Whether a request for a certificate is one, and whoever made it has the key.
//!
//! Upstream: pkg/apis/certificates/validation/validation.go validateCSR

use apimachinery::field::{Error, Path};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use resources::ResourceDef;
use serde_json::Value;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

const LABEL: &str = "CERTIFICATE REQUEST";

/// What is wrong with the request of a new CertificateSigningRequest, beyond its form, which the kind's own
/// validation looks at. Nothing for other kinds.
pub fn validate(def: &ResourceDef, object: &Value) -> Vec<Error> {
    if def.group != "certificates.k8s.io" || def.plural != "certificatesigningrequests" {
        return Vec::new();
    }
    let request = &object["spec"]["request"];
    let bytes = request.as_str().and_then(|text| STANDARD.decode(text).ok()).unwrap_or_default();
    let Some(block) = pem::parse_many(&bytes).ok().and_then(|blocks| blocks.into_iter().next()) else {
        return Vec::new();
    };
    if block.tag() != LABEL {
        return Vec::new();
    }
    let why = match X509CertificationRequest::from_der(block.contents()) {
        Err(_) => "asn1: structure error: the request is malformed",
        Ok((rest, _)) if !rest.is_empty() => "asn1: syntax error: trailing data",
        Ok((_, parsed)) if parsed.verify_signature().is_err() => "x509: signature verification failure",
        Ok(_) => return Vec::new(),
    };
    vec![Error::invalid(&Path::new("spec").child("request"), request.clone(), why)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wrong(der: &[u8]) -> Vec<String> {
        let table = resources::table();
        let def = table.iter().find(|def| def.plural == "certificatesigningrequests").unwrap();
        let text = pem::encode(&pem::Pem::new(LABEL, der));
        let object = json!({"spec": {"request": STANDARD.encode(text)}});
        validate(def, &object).into_iter().map(|error| error.detail).collect()
    }

    #[test]
    fn a_request_is_signed_by_its_key() {
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::new(vec!["a.example".into()]).unwrap();
        let mut der = request.serialize_request(&key).unwrap().der().to_vec();
        assert_eq!(wrong(&der), Vec::<String>::new());
        // The name within is changed, and so the signature is of something else.
        let at = der.windows(9).position(|part| part == b"a.example").unwrap();
        der[at] = b'b';
        assert_eq!(wrong(&der), ["x509: signature verification failure"]);
        assert_eq!(wrong(&der[..20]), ["asn1: structure error: the request is malformed"]);
    }
}
