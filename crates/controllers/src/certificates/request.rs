//! What a PKCS#10 request asks for, and what kubelets may ask for.

use std::collections::BTreeSet;

use der::asn1::{Ia5StringRef, ObjectIdentifier, PrintableStringRef, TeletexStringRef, Utf8StringRef};
use der::{Decode, Tag, Tagged};
use x509_cert::attr::AttributeTypeAndValue;
use x509_cert::ext::Extension;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::request::CertReq;

const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");
const ORGANIZATION: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.10");
const EXTENSION_REQUEST: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.9.14");
const SUBJECT_ALTERNATIVE_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.17");
pub(super) const NODE_PREFIX: &str = "system:node:";
const NODES: &str = "system:nodes";

/// A request, and those of its parts that decide.
pub(super) struct Request {
    pub parsed: CertReq,
    /// The names beside the subject, as they stand in the request.
    pub alternative_names: Option<Extension>,
    pub common_name: String,
    organizations: Vec<String>,
    has_dns: bool,
    has_ip: bool,
    has_email: bool,
    has_uri: bool,
}

fn text(attribute: &AttributeTypeAndValue) -> String {
    let value = &attribute.value;
    match value.tag() {
        Tag::Utf8String => value.decode_as::<Utf8StringRef<'_>>().map(|s| s.as_str().to_owned()),
        Tag::PrintableString => value.decode_as::<PrintableStringRef<'_>>().map(|s| s.as_str().to_owned()),
        Tag::Ia5String => value.decode_as::<Ia5StringRef<'_>>().map(|s| s.as_str().to_owned()),
        Tag::TeletexString => value.decode_as::<TeletexStringRef<'_>>().map(|s| s.as_str().to_owned()),
        _ => return String::new(),
    }
    .unwrap_or_default()
}

impl Request {
    /// Reads the PEM block of a request.
    ///
    /// Upstream: pkg/apis/certificates/helpers.go ParseCSR
    pub fn parse(pem: &[u8]) -> Result<Self, String> {
        let block = pem::parse(pem).ok().filter(|block| block.tag() == "CERTIFICATE REQUEST");
        let block = block.ok_or("PEM block type must be CERTIFICATE REQUEST")?;
        let parsed = CertReq::from_der(block.contents()).map_err(|error| error.to_string())?;
        let alternative_names =
            extensions(&parsed)?.into_iter().find(|e| e.extn_id == SUBJECT_ALTERNATIVE_NAME);
        let names = match &alternative_names {
            Some(extension) => {
                SubjectAltName::from_der(extension.extn_value.as_bytes())
                    .map_err(|error| error.to_string())?
                    .0
            }
            None => Vec::new(),
        };
        let of_kind = |kind: ObjectIdentifier| {
            let subject = parsed.info.subject.iter();
            subject.filter(move |attribute| attribute.oid == kind).map(text).collect::<Vec<_>>()
        };
        Ok(Request {
            common_name: of_kind(COMMON_NAME).pop().unwrap_or_default(),
            organizations: of_kind(ORGANIZATION),
            has_dns: names.iter().any(|name| matches!(name, GeneralName::DnsName(_))),
            has_ip: names.iter().any(|name| matches!(name, GeneralName::IpAddress(_))),
            has_email: names.iter().any(|name| matches!(name, GeneralName::Rfc822Name(_))),
            has_uri: names.iter().any(|name| matches!(name, GeneralName::UniformResourceIdentifier(_))),
            alternative_names,
            parsed,
        })
    }

    /// Upstream: pkg/apis/certificates/helpers.go ValidateKubeletClientCSR
    pub fn check_kubelet_client(&self, usages: &[String]) -> Result<(), String> {
        let refused = [
            (self.organizations != [NODES], "subject organization is not system:nodes"),
            (self.has_dns, "DNS subjectAltNames are not allowed"),
            (self.has_email, "Email subjectAltNames are not allowed"),
            (self.has_ip, "IP subjectAltNames are not allowed"),
            (self.has_uri, "URI subjectAltNames are not allowed"),
            (
                !self.common_name.starts_with(NODE_PREFIX),
                "subject common name does not begin with system:node:",
            ),
        ];
        first(&refused)?;
        check_kubelet_usages(usages, "client auth")
    }

    /// Upstream: pkg/apis/certificates/helpers.go ValidateKubeletServingCSR
    pub fn check_kubelet_serving(&self, usages: &[String]) -> Result<(), String> {
        first(&[
            (self.organizations != [NODES], "subject organization is not system:nodes"),
            (!self.has_dns && !self.has_ip, "DNS or IP subjectAltName is required"),
            (self.has_email, "Email subjectAltNames are not allowed"),
            (self.has_uri, "URI subjectAltNames are not allowed"),
        ])?;
        check_kubelet_usages(usages, "server auth")?;
        let other = !self.common_name.starts_with(NODE_PREFIX);
        first(&[(other, "subject common name does not begin with system:node:")])
    }
}

fn extensions(request: &CertReq) -> Result<Vec<Extension>, String> {
    let mut found = Vec::new();
    for attribute in request.info.attributes.iter().filter(|a| a.oid == EXTENSION_REQUEST) {
        for value in attribute.values.iter() {
            let extensions: Result<Vec<Extension>, der::Error> = value.decode_as();
            found.extend(extensions.map_err(|error| error.to_string())?);
        }
    }
    Ok(found)
}

fn first(refused: &[(bool, &str)]) -> Result<(), String> {
    match refused.iter().find(|(is_so, _)| *is_so) {
        Some((_, why)) => Err((*why).to_owned()),
        None => Ok(()),
    }
}

fn check_kubelet_usages(usages: &[String], purpose: &str) -> Result<(), String> {
    let usages: BTreeSet<&str> = usages.iter().map(String::as_str).collect();
    let mut required = BTreeSet::from(["digital signature", "key encipherment", purpose]);
    let listed: Vec<&str> = required.iter().copied().collect();
    let message = format!("usages did not match [{}]", listed.join(" "));
    let whole = usages == required;
    required.remove("key encipherment");
    if whole || usages == required { Ok(()) } else { Err(message) }
}

/// Upstream: pkg/controller/certificates/signer/signer.go validAPIServerClientUsages
pub(super) fn check_client_usages(usages: &[String]) -> Result<(), String> {
    const PURPOSE: &str = "client auth";
    let allowed = ["digital signature", "key encipherment", PURPOSE];
    if let Some(other) = usages.iter().find(|usage| !allowed.contains(&usage.as_str())) {
        return Err(format!("invalid usage for client certificate: {other}"));
    }
    if usages.iter().any(|usage| usage == PURPOSE) {
        return Ok(());
    }
    Err(format!("missing required usage for client certificate: {PURPOSE}"))
}
