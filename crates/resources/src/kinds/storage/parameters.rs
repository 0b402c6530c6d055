//! The parameters of classes.

use crate::prelude::*;

/// The parameters of a class, which only its driver understands.
///
/// Upstream: pkg/apis/storage/validation/validation.go validateParameters
pub fn validate(class: &Value, allow_none: bool) -> Errors {
    const MOST: usize = 512;
    const LONGEST: usize = 256 << 10;
    let at = path("parameters");
    let count = get::len(class, "parameters");
    if count > MOST {
        return vec![Error::too_long(&at, MOST)];
    }
    let mut errors = Errors::new();
    let length = |(key, value): (&str, &Value)| key.len() + value.as_str().map_or(0, str::len);
    if get::entries(class, "parameters").any(|(key, _)| key.is_empty()) {
        errors.push(Error::invalid(&at, "", "field can not be empty."));
    }
    if get::entries(class, "parameters").map(length).sum::<usize>() > LONGEST {
        errors.push(Error::too_long(&at, LONGEST));
    }
    if count == 0 && !allow_none {
        errors.push(Error::required(&at, "must contain at least one key/value pair"));
    }
    errors
}
