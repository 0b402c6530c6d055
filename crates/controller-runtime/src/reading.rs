//! [`Reading`]: how a cache reads objects, from their text or from a tree. Who owns which field is nobody's concern
//! there, and is left out before it is read: it may be half of an object.

use std::borrow::Cow;

use api::{DecodeError, Object};
use memchr::memmem;
use serde_json::Value;

/// How objects become what a cache holds of them.
pub struct Reading<T> {
    pub text: fn(&[u8]) -> Result<T, DecodeError>,
    pub tree: fn(Value) -> Result<T, DecodeError>,
}

impl<T> Clone for Reading<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Reading<T> {}

impl<T: Object> Reading<T> {
    /// All of an object.
    pub fn whole() -> Self {
        Reading { text: T::from_slice, tree: T::from_value }
    }
}

impl<T> Reading<T> {
    /// Another part of the same.
    pub fn new(text: fn(&[u8]) -> Result<T, DecodeError>, tree: fn(Value) -> Result<T, DecodeError>) -> Self {
        Reading { text, tree }
    }

    pub fn of_text(self, text: &[u8]) -> Result<T, DecodeError> {
        (self.text)(&without_owners(text))
    }

    pub fn of_tree(self, mut object: Value) -> Result<T, DecodeError> {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            // An update without them keeps the server's.
            metadata.remove("managedFields");
        }
        (self.tree)(object)
    }
}

/// The text of an object without its `managedFields`; as it is when it is not plain where they end.
fn without_owners(text: &[u8]) -> Cow<'_, [u8]> {
    const KEY: &[u8] = br#""managedFields":["#;
    // In a string the quotes would be escaped.
    let Some(start) = memmem::find(text, KEY) else { return Cow::Borrowed(text) };
    let Some(length) = list_length(&text[start + KEY.len() - 1..]) else { return Cow::Borrowed(text) };
    let mut end = start + KEY.len() - 1 + length;
    let mut before = &text[..start];
    if text.get(end) == Some(&b',') {
        end += 1;
    } else if let Some(shorter) = before.strip_suffix(b",") {
        before = shorter;
    }
    Cow::Owned([before, &text[end..]].concat())
}

/// How long the list is with which the text begins.
fn list_length(text: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(byte) = text.get(at) {
        match byte {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => {
                depth = depth.checked_sub(1)?;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            b'"' => at += string_length(text.get(at + 1..)?)?,
            _ => {}
        }
        at += 1;
    }
    None
}

/// How long the rest of a string is, its closing quote included.
fn string_length(text: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        at += memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        if text[at] == b'"' {
            return Some(at + 1);
        }
        at += 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(String::from_utf8_lossy(&without_owners(text.as_bytes())), expected);
    }

    #[test]
    fn owners_are_cut_out_wherever_they_stand() {
        let owners = r#""managedFields":[{"fieldsV1":{"f:a]\"":{},"x":["\\"]},"manager":"m"}]"#;
        check(&format!(r#"{{"metadata":{{{owners},"name":"a"}}}}"#), r#"{"metadata":{"name":"a"}}"#);
        check(
            &format!(r#"{{"metadata":{{"name":"a",{owners}}},"x":1}}"#),
            r#"{"metadata":{"name":"a"},"x":1}"#,
        );
        check(&format!(r#"{{"metadata":{{{owners}}}}}"#), r#"{"metadata":{}}"#);
        check(r#"{"metadata":{"name":"a"}}"#, r#"{"metadata":{"name":"a"}}"#);
    }

    #[test]
    fn what_only_looks_like_owners_stays() {
        let quoted = r#"{"data":{"a":"\"managedFields\":[1]"}}"#;
        check(quoted, quoted);
        for broken in
            [r#"{"metadata":{"managedFields":[{"a""#, r#"{"managedFields":["\"#, r#"{"managedFields":["a\""#]
        {
            check(broken, broken);
        }
    }
}
