//! Paths to fields of a schema: `.spec.replicas`, `.metadata.labels['app']`.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/schema/cel/validation.go ValidFieldPath

use apimachinery::field::Path;
use serde_json::Value;

/// The path as errors show it, and the schema at it.
pub fn parse<'s>(text: &str, schema: &'s Value, brackets: bool) -> Result<(Path, &'s Value), String> {
    let (mut path, mut schema) = (Path::root(), schema);
    let mut rest = text;
    while !rest.is_empty() {
        let name;
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[', ']']).unwrap_or(after.len());
            if end == 0 && after.is_empty() {
                return Err("unexpected end of JSON path".to_owned());
            }
            name = after[..end].to_owned();
            rest = &after[end..];
        } else if let Some(after) = rest.strip_prefix('[') {
            if !brackets {
                return Err("array notation is not allowed".to_owned());
            }
            let end = quoted_end(after)?;
            name = unescape(&after[1..end])?;
            let after = &after[end + 1..];
            rest = after.strip_prefix(']').ok_or_else(|| match after {
                "" => "unexpected end of JSON path".to_owned(),
                other => format!("expected ] but got {other}"),
            })?;
        } else {
            let end = rest.find(['.', '[', ']']).unwrap_or(rest.len()).max(1);
            return Err(format!("expected [ or . but got: {}", rest.get(..end).unwrap_or(rest)));
        }
        (path, schema) = step(&path, schema, &name)?;
    }
    Ok((path, schema))
}

fn step<'s>(path: &Path, schema: &'s Value, name: &str) -> Result<(Path, &'s Value), String> {
    let invalid = || "does not refer to a valid field".to_owned();
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        return Ok((path.child(name), properties.get(name).ok_or_else(invalid)?));
    }
    match schema.get("additionalProperties").filter(|inner| inner.is_object()) {
        Some(inner) => Ok((path.key(name), inner)),
        None => Err(invalid()),
    }
}

/// Where the quote that opens `text` is closed.
fn quoted_end(text: &str) -> Result<usize, String> {
    if text.is_empty() {
        return Err("unexpected end of JSON path".to_owned());
    }
    let closing = |at: usize| at > 0 && text.as_bytes().get(at - 1) != Some(&b'\\');
    let found = text
        .starts_with('\'')
        .then(|| text.match_indices('\'').map(|(at, _)| at).find(|at| *at > 0 && closing(*at)));
    found.flatten().ok_or_else(|| {
        let end = text.find(['.', '[', ']']).unwrap_or(text.len());
        format!("expected single quoted string but got {}", &text[..end])
    })
}

fn unescape(text: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            plain.push(character);
            continue;
        }
        plain.push(match characters.next() {
            Some('a') => '\u{7}',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\u{b}',
            Some('\'') => '\'',
            Some('\\') => '\\',
            Some(other) => return Err(format!("invalid string literal: invalid escape char \\{other}")),
            None => return Err("invalid string literal: invalid escape char \\".to_owned()),
        });
    }
    Ok(plain)
}
