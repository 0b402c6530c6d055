//! No certificate that is asked for makes its holder one of `system:masters`.
//!
//! Upstream: plugin/pkg/admission/certificates/subjectrestriction/admission.go

use apimachinery::Status;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use super::certificate_approval::{GROUP, REQUESTS};
use super::tree::text;
use super::{Context, Plugin, forbid, is_create, is_whole};
use crate::authz::SYSTEM_MASTERS;
use crate::seams::AdmissionRequest;

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client";

pub(super) struct CertificateSubjectRestriction;

/// The common name and the organizations of a request for a certificate, which an object holds as base64 of PEM.
pub(super) fn subject(encoded: &str) -> Result<(String, Vec<String>), String> {
    let text = STANDARD.decode(encoded).map_err(|error| error.to_string())?;
    let block = pem::parse(text).map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
    if block.tag() != "CERTIFICATE REQUEST" {
        return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
    }
    let (_, request) =
        X509CertificationRequest::from_der(block.contents()).map_err(|error| error.to_string())?;
    let subject = &request.certification_request_info.subject;
    let name = subject.iter_common_name().last().and_then(|name| name.as_str().ok()).unwrap_or_default();
    let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned);
    Ok((name.to_owned(), groups.collect()))
}

impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    fn validate(&self, _context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, GROUP, REQUESTS)
            || !is_create(request)
            || text(request.object, "spec.signerName") != CLIENT_SIGNER
        {
            return Ok(());
        }
        let (_, groups) = subject(text(request.object, "spec.request"))
            .map_err(|why| forbid(request, format!("failed to parse CSR: {why}")))?;
        if groups.iter().any(|group| group == SYSTEM_MASTERS) {
            let why = format!("use of {CLIENT_SIGNER} signer with {SYSTEM_MASTERS} group is not allowed");
            return Err(forbid(request, why));
        }
        Ok(())
    }
}
