use std::time::Duration;

use api::Object;
use api::certificates::v1::CertificateSigningRequest;
use der::Decode;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};
use x509_cert::Certificate;
use x509_cert::ext::pkix::{ExtendedKeyUsage, SubjectAltName};

use super::authority::Authority;
use super::request::Request;
use super::*;
use crate::SigningAuthority;
use crate::objects::tests::at;

const CLIENT: [&str; 3] = ["digital signature", "key encipherment", "client auth"];
const SERVER: [&str; 2] = ["digital signature", "server auth"];

fn pem(name: &str, organization: &str, sans: Vec<SanType>) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, organization);
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = sans;
    params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
}

fn csr(signer: &str, user: &str, usages: &[&str], pem: &str) -> CertificateSigningRequest {
    CertificateSigningRequest::from_value(json!({
        "metadata": {"name": "csr"},
        "spec": {
            "signerName": signer, "username": user, "usages": usages,
            "request": api::ByteString(pem.as_bytes().to_vec()),
        },
    }))
    .unwrap()
}

fn node(name: &str) -> String {
    pem(name, "system:nodes", Vec::new())
}

#[test]
fn kubelets_are_approved_for_themselves_or_for_others() {
    let check = |signer: &str, user: &str, usages: &[&str], pem: &str| -> Vec<&str> {
        let csr = csr(signer, user, usages, pem);
        let request = Request::parse(pem.as_bytes()).unwrap();
        approvals(&csr, &request).into_iter().map(|(subresource, _)| subresource).collect()
    };
    let n1 = node("system:node:n1");
    assert_eq!(check(KUBELET_CLIENT, "system:node:n1", &CLIENT, &n1), ["selfnodeclient", "nodeclient"]);
    assert_eq!(check(KUBELET_CLIENT, "system:bootstrap:x", &CLIENT, &n1), ["nodeclient"]);
    for (signer, usages, pem) in [
        (KUBELET_SERVING, &CLIENT[..], n1.clone()),
        (KUBELET_CLIENT, &SERVER, n1),
        (KUBELET_CLIENT, &CLIENT, node("n1")),
        (KUBELET_CLIENT, &CLIENT, pem("system:node:n1", "system:masters", Vec::new())),
    ] {
        assert!(check(signer, "system:node:n1", usages, &pem).is_empty(), "{signer} {usages:?}");
    }
}

#[test]
fn each_signer_has_its_rules() {
    let dns = || vec![SanType::DnsName("n1".try_into().unwrap())];
    let served = pem("system:node:n1", "system:nodes", dns());
    let refuse = |why: &str| Signing::Refuse(why.to_owned());
    for (signer, usages, pem, expected) in [
        (KUBELET_SERVING, &SERVER[..], &served, Signing::Sign),
        (KUBELET_SERVING, &SERVER, &node("system:node:n1"), refuse("DNS or IP subjectAltName is required")),
        (
            KUBELET_SERVING,
            &CLIENT,
            &served,
            refuse("usages did not match [digital signature key encipherment server auth]"),
        ),
        (KUBELET_CLIENT, &CLIENT, &served, refuse("DNS subjectAltNames are not allowed")),
        (KUBELET_CLIENT, &CLIENT, &node("x"), refuse("subject common name does not begin with system:node:")),
        (API_SERVER_CLIENT, &CLIENT, &node("anybody"), Signing::Sign),
        (
            API_SERVER_CLIENT,
            &SERVER,
            &node("anybody"),
            refuse("invalid usage for client certificate: server auth"),
        ),
        (LEGACY_UNKNOWN, &SERVER, &node("anybody"), Signing::Sign),
        ("example.com/mine", &SERVER, &node("anybody"), Signing::Ignore),
    ] {
        let request = Request::parse(pem.as_bytes()).unwrap();
        assert_eq!(judge(&csr(signer, "u", usages, pem), &request), expected, "{signer} {usages:?}");
    }
    assert_eq!(Request::parse(b"nonsense").err().unwrap(), "PEM block type must be CERTIFICATE REQUEST");
}

fn authority() -> Authority {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let certificate_pem = params.self_signed(&key).unwrap().pem();
    let longest = Duration::from_secs(365 * 24 * 3600);
    Authority::new(&SigningAuthority { certificate_pem, key_pem: key.serialize_pem(), longest }).unwrap()
}

fn signed(expiration: Option<i32>) -> Certificate {
    let text = pem("dev", "team", vec![SanType::DnsName("dev.example".try_into().unwrap())]);
    let request = Request::parse(text.as_bytes()).unwrap();
    let usages = CLIENT.map(str::to_owned);
    let text = authority().sign(&request, &usages, expiration, at(0), [7; 16]).unwrap();
    Certificate::from_der(::pem::parse(&text).unwrap().contents()).unwrap()
}

#[test]
fn a_certificate_is_what_was_asked_for() {
    let certificate = signed(None);
    let tbs = certificate.tbs_certificate();
    assert_eq!(tbs.subject().to_string(), "CN=dev,O=team");
    let (_, purposes) = tbs.get_extension::<ExtendedKeyUsage>().unwrap().unwrap();
    assert_eq!(purposes.0.len(), 1);
    assert!(tbs.get_extension::<SubjectAltName>().unwrap().is_some());
    let unknown = authority().sign(
        &Request::parse(node("x").as_bytes()).unwrap(),
        &["flying".to_owned()],
        None,
        at(0),
        [0; 16],
    );
    assert_eq!(unknown.unwrap_err(), "unrecognized usage values: [\"flying\"]");
}

#[test]
fn lives_are_bounded() {
    for (asked, seconds) in [
        (None, 365 * 24 * 3600 - 300),
        (Some(i32::MAX), 365 * 24 * 3600 - 300),
        (Some(60), 600),
        (Some(3600), 3600),
        (Some(9 * 3600), 9 * 3600 - 300),
    ] {
        let certificate = signed(asked);
        let validity = certificate.tbs_certificate().validity();
        let end = validity.not_after.to_unix_duration().as_secs();
        assert_eq!(i64::try_from(end).unwrap() - at(0).as_second(), seconds, "{asked:?}");
        let start = validity.not_before.to_unix_duration().as_secs();
        assert_eq!(at(0).as_second() - i64::try_from(start).unwrap(), 300);
    }
}

#[test]
fn requests_go_when_their_time_is_over() {
    let hour = 3600;
    let with = |conditions: Value, certificate: Option<&str>| {
        let certificate = certificate.map(|pem| api::ByteString(pem.as_bytes().to_vec()));
        CertificateSigningRequest::from_value(json!({
            "metadata": {"name": "csr", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"signerName": KUBELET_CLIENT, "request": ""},
            "status": {"conditions": conditions, "certificate": certificate},
        }))
        .unwrap()
    };
    let one =
        |kind: &str| json!([{"type": kind, "status": "True", "lastUpdateTime": "2026-01-01T01:00:00Z"}]);
    for (csr, expected) in [
        (with(json!([]), None), 24 * hour),
        (with(one("Approved"), None), 25 * hour),
        (with(one("Approved"), Some("PEM")), 2 * hour),
        (with(one("Denied"), None), 2 * hour),
        (with(one("Failed"), None), 2 * hour),
    ] {
        assert_eq!(cleaner::removal(&csr), Some(at(expected)), "{csr:?}");
    }
}
