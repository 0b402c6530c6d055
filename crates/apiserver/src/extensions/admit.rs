//! Objects of custom kinds as they come in: pruned, with metadata of the right types.

use resources::ResourceDef;
use resources::custom::Custom;
use schema::decode::{Decoded, Strictness};
use schema::structural::embedded::Malformed;
use serde_json::Value;

/// Gives a decoded tree the shape of its kind; fields that the kind does not have are told as problems.
pub fn shape(
    custom: &Custom,
    mut decoded: Decoded,
    strictness: Strictness,
) -> Result<Decoded, schema::Error> {
    let unknown = custom
        .versions
        .shape(&mut decoded.object, Malformed::Refuse)
        .map_err(|why| schema::Error::Type(why.0))?;
    if strictness == Strictness::Report {
        decoded.problems.extend(unknown.iter().map(|path| format!("unknown field {path:?}")));
    } else {
        decoded.problems.clear();
    }
    Ok(decoded)
}

/// A tree that a patch made.
pub fn patched(custom: &Custom, object: Value, strictness: Strictness) -> Result<Decoded, schema::Error> {
    shape(custom, Decoded { object, problems: Vec::new() }, strictness)
}

/// The fields that nobody owns through an endpoint of a custom kind, because it does not write them.
pub fn resets(def: &ResourceDef, subresource: &str) -> Option<&'static [&'static [&'static str]]> {
    let custom = def.custom.as_ref()?;
    Some(match subresource {
        "" if custom.has_status => &[&["status"]],
        "status" => &[&["metadata"], &["spec"]],
        _ => &[],
    })
}
