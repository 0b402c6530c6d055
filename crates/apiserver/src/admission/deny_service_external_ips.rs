//! Services may keep the external addresses that they have and get no new ones.
//!
//! Upstream: plugin/pkg/admission/network/denyserviceexternalips/admission.go

use apimachinery::Status;

use super::tree::strings;
use super::{Context, Plugin, forbid, is_create, is_update, is_whole};
use crate::seams::AdmissionRequest;

const ADDRESSES: &str = "spec.externalIPs";

pub(super) struct DenyServiceExternalIPs;

impl Plugin for DenyServiceExternalIPs {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn validate(&self, _context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "", "services") || !(is_create(request) || is_update(request)) {
            return Ok(());
        }
        let old = request.old_object.map(|old| strings(old, ADDRESSES)).unwrap_or_default();
        match strings(request.object, ADDRESSES).iter().all(|address| old.contains(address)) {
            true => Ok(()),
            false => Err(forbid(request, "Use of external IPs is denied by admission control")),
        }
    }
}
