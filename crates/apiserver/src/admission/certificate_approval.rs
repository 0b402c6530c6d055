//! Who approves a request for a certificate must be allowed to for its signer.
//!
//! Upstream: plugin/pkg/admission/certificates/approval/admission.go

use apimachinery::Status;

use super::tree::text;
use super::{Context, Plugin, forbid, is, is_update};
use crate::seams::{AdmissionRequest, Attributes};

pub(super) const GROUP: &str = "certificates.k8s.io";
pub(super) const REQUESTS: &str = "certificatesigningrequests";

pub(super) struct CertificateApproval;

/// Allowed for the signer itself, or for all of its domain.
///
/// Upstream: pkg/certauthorization/certauthorization.go IsAuthorizedForSignerName
pub(super) fn allowed_for_signer(
    context: &Context,
    request: &AdmissionRequest<'_>,
    verb: &str,
    signer: &str,
) -> bool {
    let allowed = |name: String| {
        let attributes = Attributes {
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            version: "*".to_owned(),
            resource: "signers".to_owned(),
            name,
            is_resource: true,
            ..Default::default()
        };
        context.authorizer.allows(request.user, &attributes)
    };
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    allowed(signer.to_owned()) || allowed(format!("{domain}/*"))
}

impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is(request, GROUP, REQUESTS) || request.subresource != "approval" || !is_update(request) {
            return Ok(());
        }
        let signer = request.old_object.map(|old| text(old, "spec.signerName")).unwrap_or_default();
        if allowed_for_signer(context, request, "approve", signer) {
            return Ok(());
        }
        Err(forbid(request, format!("user not permitted to approve requests with signerName {signer:?}")))
    }
}
