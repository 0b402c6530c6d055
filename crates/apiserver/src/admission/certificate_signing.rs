//! Who puts a certificate or a condition into a request's status must be allowed to sign for its signer.
//!
//! Upstream: plugin/pkg/admission/certificates/signing/admission.go

use apimachinery::Status;

use super::certificate_approval::{GROUP, REQUESTS, allowed_for_signer};
use super::tree::{at, same, text};
use super::{Context, Plugin, forbid, is, is_update};
use crate::seams::AdmissionRequest;

pub(super) struct CertificateSigning;

impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is(request, GROUP, REQUESTS) || request.subresource != "status" || !is_update(request) {
            return Ok(());
        }
        let Some(old) = request.old_object else { return Ok(()) };
        let unchanged = |path| same(at(old, path), at(request.object, path));
        if unchanged("status.certificate") && unchanged("status.conditions") {
            return Ok(());
        }
        let signer = text(old, "spec.signerName");
        if allowed_for_signer(context, request, "sign", signer) {
            return Ok(());
        }
        Err(forbid(request, format!("user not permitted to sign requests with signerName {signer:?}")))
    }
}
