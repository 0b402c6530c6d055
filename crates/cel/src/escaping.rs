//! Names of properties as CEL identifiers: `a-b` is written `a__dash__b`.
//!
//! Upstream: apiserver/pkg/cel/escaping.go Escape

const RESERVED: &[&str] = &[
    "true",
    "false",
    "null",
    "in",
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

const ESCAPES: &[(&str, &str)] =
    &[("__", "__underscores__"), (".", "__dot__"), ("-", "__dash__"), ("/", "__slash__")];

/// The identifier for a property, or nothing when it cannot be told in CEL.
pub fn escape(name: &str) -> Option<String> {
    let first = *name.as_bytes().first()?;
    if first.is_ascii_digit() {
        return None;
    }
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    let mut escaped = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(next) = rest.chars().next() {
        if let Some((plain, code)) = ESCAPES.iter().find(|(plain, _)| rest.starts_with(plain)) {
            escaped.push_str(code);
            rest = &rest[plain.len()..];
        } else if next.is_ascii_alphanumeric() || next == '_' {
            escaped.push(next);
            rest = &rest[1..];
        } else {
            return None;
        }
    }
    Some(escaped)
}

/// The property that an identifier stands for, or nothing when it holds an escape that is none.
pub fn unescape(identifier: &str) -> Option<String> {
    let mut name = String::with_capacity(identifier.len());
    let mut rest = identifier;
    while let Some(start) = rest.find("__") {
        name.push_str(&rest[..start]);
        let tail = &rest[start + 2..];
        // A code is `__`, at least one character that is no underscore, and `__`.
        let length = tail.find('_').unwrap_or(tail.len());
        if length == 0 || !tail[length..].starts_with("__") {
            name.push('_');
            rest = &rest[start + 1..];
            continue;
        }
        let code = &rest[start..start + length + 4];
        let word = &tail[..length];
        match ESCAPES.iter().find(|(_, escape)| *escape == code) {
            Some((plain, _)) => name.push_str(plain),
            None if RESERVED.contains(&word) && code.len() == identifier.len() => name.push_str(word),
            None => return None,
        }
        rest = &rest[start + code.len()..];
    }
    name.push_str(rest);
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_the_way_there_and_back() {
        let cases = [
            ("replicas", Some("replicas")),
            ("namespace", Some("__namespace__")),
            ("a-b", Some("a__dash__b")),
            ("a.b/c", Some("a__dot__b__slash__c")),
            ("a__b", Some("a__underscores__b")),
            ("__dot__", Some("__underscores__dot__underscores__")),
            ("_a_", Some("_a_")),
            ("1a", None),
            ("", None),
            ("a b", None),
            ("ä", None),
        ];
        for (name, expected) in cases {
            assert_eq!(escape(name).as_deref(), expected, "{name}");
            if let Some(escaped) = expected {
                assert_eq!(unescape(escaped).as_deref(), Some(name), "{escaped}");
            }
        }
        for wrong in ["a__nothing__b", "a__namespace__"] {
            assert_eq!(unescape(wrong), None, "{wrong}");
        }
    }
}
