//! JSON and YAML to an object tree, in one pass directed by the tables.
//!
//! The tree that comes out has the shape of its kind: unknown fields are gone, nulls are absent, quantities
//! and times are in their canonical form, and values that upstream's `omitempty` would not write back are not
//! there. What was wrong but tolerable is told in [`Decoded::problems`].
//!
//! Upstream: sigs.k8s.io/json, whose strict errors and paths these are, and Go's encoding/json, whose type
//! errors these are.

mod scalar;
mod seed;

use api::tables::Definition;
use serde::de::DeserializeSeed;
use serde::de::Deserializer;
use serde_json::Value;

use crate::Error;
use seed::{Context, Seed, Untyped};

pub(crate) use scalar::{canonical_quantity, is_dropped};

/// Whether to look for unknown and duplicate fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// `fieldValidation=Ignore`: drop them and say nothing.
    Ignore,
    /// `Warn` and `Strict`: tell them in [`Decoded::problems`].
    Report,
}

/// An object, and what was not right with it.
#[derive(Debug)]
pub struct Decoded {
    pub object: Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.replicas"`: at most 100, each once.
    pub problems: Vec<String>,
}

impl Decoded {
    /// The message of a request refused under `fieldValidation=Strict`; `None` when nothing is wrong.
    pub fn strict_error(&self) -> Option<String> {
        strict_error(&self.problems)
    }
}

/// The one message for all of a body's problems.
pub fn strict_error(problems: &[String]) -> Option<String> {
    (!problems.is_empty()).then(|| format!("strict decoding error: {}", problems.join(", ")))
}

/// Upstream's message for a body that is no such object: goes into a 400 `BadRequest`.
// Upstream: apiserver/pkg/endpoints/handlers/create.go transformDecodeError
pub fn cannot_be_handled(kind: &str, version: &str, error: &Error) -> String {
    format!("{kind} in version {version:?} cannot be handled as a {kind}: {error}")
}

/// Reads the JSON of an object.
pub fn json(bytes: &[u8], definition: &'static Definition, strictness: Strictness) -> Result<Decoded, Error> {
    json_in(Context::new(strictness), bytes, definition)
}

/// Reads the JSON of an object that is to be written: what managers own is left as JSON text, as
/// [`crate::apply::open_owners`] finds it.
pub fn json_to_write(
    bytes: &[u8],
    definition: &'static Definition,
    strictness: Strictness,
) -> Result<Decoded, Error> {
    let mut context = Context::new(strictness);
    context.owned_as_text = true;
    json_in(context, bytes, definition)
}

fn json_in(mut context: Context, bytes: &[u8], definition: &'static Definition) -> Result<Decoded, Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let object = typed(&mut deserializer, definition, &mut context, |e| json_error(bytes, e))?;
    deserializer.end().map_err(|e| Error::Syntax(json_error(bytes, &e)))?;
    Ok(Decoded { object, problems: context.problems })
}

/// Gives a tree the shape of its kind: what decoding its JSON would give.
pub fn value(tree: Value, definition: &'static Definition, strictness: Strictness) -> Result<Decoded, Error> {
    let mut context = Context::new(strictness);
    let object = typed(tree, definition, &mut context, |e| e.to_string())?;
    Ok(Decoded { object, problems: context.problems })
}

/// Reads the YAML (or JSON, its subset) of an object.
pub fn yaml(bytes: &[u8], definition: &'static Definition, strictness: Strictness) -> Result<Decoded, Error> {
    let untyped = untyped_yaml(bytes)?;
    let mut decoded = value(untyped.object, definition, strictness)?;
    if strictness == Strictness::Report {
        decoded.problems.splice(0..0, untyped.problems);
    }
    Ok(decoded)
}

/// Reads JSON as it stands; problems are its duplicate fields.
pub fn untyped_json(bytes: &[u8]) -> Result<Decoded, Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut context = Context::new(Strictness::Report);
    let object = Untyped { context: &mut context }
        .deserialize(&mut deserializer)
        .map_err(|e| Error::Syntax(json_error(bytes, &e)))?;
    deserializer.end().map_err(|e| Error::Syntax(json_error(bytes, &e)))?;
    Ok(Decoded { object, problems: context.problems })
}

/// How much of a document aliases may repeat: what repeats more is a bomb.
const MAX_ALIASED: usize = 50_000;

/// Reads YAML as it stands; the problem, if any, is its first duplicate key, with its line.
pub fn untyped_yaml(bytes: &[u8]) -> Result<Decoded, Error> {
    let text = std::str::from_utf8(bytes).map_err(|_| Error::Syntax("yaml: invalid UTF-8".into()))?;
    let options = |duplicates| {
        let mut options = serde_saphyr::Options::default();
        options.legacy_octal_numbers = true;
        options.alias_limits.max_total_replayed_events = MAX_ALIASED;
        options.duplicate_keys = duplicates;
        options
    };
    let strict = options(serde_saphyr::DuplicateKeyPolicy::Error);
    match serde_saphyr::from_str_with_options::<Value>(text, strict) {
        Ok(object) => Ok(Decoded { object, problems: Vec::new() }),
        Err(error) => {
            let Some(problem) = duplicate_key(&error) else { return Err(yaml_error(&error)) };
            let lax = options(serde_saphyr::DuplicateKeyPolicy::LastWins);
            let object = serde_saphyr::from_str_with_options(text, lax).map_err(|e| yaml_error(&e))?;
            Ok(Decoded { object, problems: vec![problem] })
        }
    }
}

fn typed<'de, D: Deserializer<'de>>(
    deserializer: D,
    definition: &'static Definition,
    context: &mut Context,
    syntax: impl Fn(&D::Error) -> String,
) -> Result<Value, Error> {
    match Seed::root(definition, context).deserialize(deserializer) {
        Ok(object) => Ok(object.unwrap_or_default()),
        Err(error) => Err(match context.type_error.take() {
            Some(message) => Error::Type(message),
            None => Error::Syntax(syntax(&error)),
        }),
    }
}

/// As Go words a body that is not JSON.
fn json_error(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".to_owned();
    }
    let words = error.to_string();
    if words.starts_with("recursion limit") {
        return "exceeded max depth".to_owned();
    }
    let line = bytes.split(|b| *b == b'\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    let rest = String::from_utf8_lossy(line.get(error.column().saturating_sub(1)..).unwrap_or_default())
        .into_owned();
    match rest.chars().next() {
        Some(c) if words.starts_with("expected value") || words.starts_with("expected ident") => {
            format!("invalid character {c:?} looking for beginning of value")
        }
        Some(c) if words.starts_with("key must be a string") => {
            format!("invalid character {c:?} looking for beginning of object key string")
        }
        Some(c) if words.starts_with("trailing characters") => {
            format!("invalid character {c:?} after top-level value")
        }
        Some(c) if words.starts_with("expected `:`") => format!("invalid character {c:?} after object key"),
        Some(c) if words.starts_with("expected `,` or `}`") => {
            format!("invalid character {c:?} after object key:value pair")
        }
        Some(c) if words.starts_with("expected `,` or `]`") => {
            format!("invalid character {c:?} after array element")
        }
        _ => words,
    }
}

fn yaml_error(error: &serde_saphyr::Error) -> Error {
    let line = error.location().map_or(0, |l| l.line());
    Error::Syntax(format!("error converting YAML to JSON: yaml: line {line}: {}", error.without_snippet()))
}

/// As upstream words a key that a YAML mapping has twice.
fn duplicate_key(error: &serde_saphyr::Error) -> Option<String> {
    match error.without_snippet() {
        serde_saphyr::Error::DuplicateMappingKey { key, location } => {
            let key = key.as_deref().unwrap_or_default();
            Some(format!("line {}: key {key:?} already set in map", location.line()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
