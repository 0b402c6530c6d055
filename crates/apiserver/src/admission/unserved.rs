//! Plugins for kinds and fields that are not served, as they are not by default upstream: nothing is ever asked of
//! them, whether they run or not.
//!
//! Upstream: plugin/pkg/admission/{certificates/ctbattest,job}/admission.go

use super::Plugin;

/// One such plugin, by its name.
pub(super) struct Unserved(pub &'static str);

impl Plugin for Unserved {
    fn name(&self) -> &'static str {
        self.0
    }
}
