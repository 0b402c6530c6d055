//! How a leader is chosen among candidates.

use crate::prelude::*;
use crate::validate::each;

/// The one that upstream has: of what says it is the oldest, so that nobody leads who is newer than who follows.
pub const OLDEST: &str = "OldestEmulationVersion";

/// Names without a domain are upstream's own. It tells of the field below the field.
///
/// Upstream: pkg/apis/coordination/validation/validation.go ValidateCoordinatedLeaseStrategy
pub fn validate(strategy: &str, at: &Path) -> Errors {
    let at = at.child("strategy");
    match strategy.contains('/') {
        true => each(names::qualified_name(strategy), &at, strategy),
        false if strategy == OLDEST => Errors::new(),
        false => vec![Error::not_supported(&at, strategy, &[OLDEST])],
    }
}
