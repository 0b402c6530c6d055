//! Plugins without an opinion, and with one only. Upstream keeps them for those who name them.
//!
//! Upstream: plugin/pkg/admission/{admit,deny}/admission.go

use apimachinery::Status;

use super::{Context, Plugin, forbid};
use crate::seams::AdmissionRequest;

pub(super) struct AlwaysAdmit;

impl Plugin for AlwaysAdmit {
    fn name(&self) -> &'static str {
        "AlwaysAdmit"
    }

    fn is_default(&self) -> bool {
        false
    }
}

pub(super) struct AlwaysDeny;

impl Plugin for AlwaysDeny {
    fn name(&self) -> &'static str {
        "AlwaysDeny"
    }

    fn is_default(&self) -> bool {
        false
    }

    fn mutate(&self, _context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Err(forbid(request, "admission control is denying all modifications"))
    }
}
