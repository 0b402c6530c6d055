//! The rules of names: DNS labels and subdomains, qualified names, label values, ports, environment variables.
//!
//! Every function answers why a text does *not* follow the rule; the answer is empty when it does.
//!
//! Upstream: apimachinery/pkg/util/validation/validation.go and apimachinery/pkg/api/validate/content

/// The longest DNS subdomain, and with it the longest name of most objects.
pub const SUBDOMAIN_MAX_LENGTH: usize = 253;
/// The longest DNS label.
pub const LABEL_MAX_LENGTH: usize = 63;

const LABEL_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const SUBDOMAIN_FORMAT: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const NAME_PART: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an \
                         alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for \
                         validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";

fn alphanumeric_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            alphanumeric_lower(*first)
                && alphanumeric_lower(*last)
                && bytes.iter().all(|b| alphanumeric_lower(*b) || *b == b'-')
        }
        _ => false,
    }
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

/// Letters, digits and `-_.`, with a letter or digit at both ends.
fn is_name_part(text: &str) -> bool {
    let bytes = text.as_bytes();
    match (bytes.first(), bytes.last()) {
        (Some(first), Some(last)) => {
            first.is_ascii_alphanumeric()
                && last.is_ascii_alphanumeric()
                && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        }
        _ => false,
    }
}

/// How upstream words a broken pattern. Its examples are joined with a comma that stands before the `or`.
fn regex_error(message: &str, format: &str, examples: &[&str]) -> String {
    let examples: Vec<String> = examples.iter().map(|e| format!("'{e}', ")).collect();
    format!("{message} (e.g. {}regex used for validation is '{format}')", examples.join(" or "))
}

fn too_long(text: &str, max: usize, unit: &str, errors: &mut Vec<String>) {
    if text.len() > max {
        errors.push(format!("must be no more than {max} {unit}"));
    }
}

/// Why `name` is not a lower-case DNS subdomain (RFC 1123).
pub fn dns1123_subdomain(name: &str) -> Vec<String> {
    subdomain(name, "characters")
}

fn subdomain(name: &str, unit: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(name, SUBDOMAIN_MAX_LENGTH, unit, &mut errors);
    if !is_subdomain(name) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character",
            SUBDOMAIN_FORMAT,
            &["example.com"],
        ));
    }
    errors
}

/// Why `name` is not such a subdomain whose labels may hold underscores: a name that is only looked up.
pub fn dns1123_subdomain_with_underscore(name: &str) -> Vec<String> {
    const LABEL: &str = "_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?";
    let is_label = |label: &str| {
        let own = label.strip_prefix('_').unwrap_or(label);
        is_label(&own.replace('_', "-"))
    };
    let mut errors = Vec::new();
    too_long(name, SUBDOMAIN_MAX_LENGTH, "characters", &mut errors);
    if !name.split('.').all(is_label) {
        errors.push(regex_error(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and \
             must start and end with an alphanumeric character",
            &format!("{LABEL}(\\.{LABEL})*"),
            &["example.com"],
        ));
    }
    errors
}

/// Why `name` is not a lower-case DNS label (RFC 1123).
pub fn dns1123_label(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(name, LABEL_MAX_LENGTH, "characters", &mut errors);
    if !is_label(name) {
        if is_subdomain(name) {
            errors.push("must not contain dots".to_owned());
        } else {
            errors.push(regex_error(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
                 and end with an alphanumeric character",
                LABEL_FORMAT,
                &["my-name", "123-abc"],
            ));
        }
    }
    errors
}

/// Why `name` is not a DNS label that starts with a letter (RFC 1035).
pub fn dns1035_label(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(name, LABEL_MAX_LENGTH, "characters", &mut errors);
    if !is_label(name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
        errors.push(regex_error(
            "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
             character, and end with an alphanumeric character",
            "[a-z]([-a-z0-9]*[a-z0-9])?",
            &["my-name", "abc-123"],
        ));
    }
    errors
}

/// Why `name` is not `*.` and a DNS subdomain.
pub fn wildcard_dns1123_subdomain(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(name, SUBDOMAIN_MAX_LENGTH, "characters", &mut errors);
    if !name.strip_prefix("*.").is_some_and(is_subdomain) {
        errors.push(regex_error(
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist \
             of lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character",
            &format!("\\*\\.{SUBDOMAIN_FORMAT}"),
            &["*.example.com"],
        ));
    }
    errors
}

/// Why `name` is not a name with an optional DNS prefix: the rule of label and annotation keys, finalizers,
/// resource names.
pub fn qualified_name(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    let part = match name.split_once('/') {
        None => name,
        Some((_, rest)) if rest.contains('/') => {
            return vec![format!(
                "a valid label key {} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')",
                name_part_error()
            )];
        }
        Some((prefix, part)) => {
            if prefix.is_empty() {
                errors.push("prefix part must be non-empty".to_owned());
            } else {
                errors.extend(subdomain(prefix, "bytes").into_iter().map(|e| format!("prefix part {e}")));
            }
            part
        }
    };
    if part.is_empty() {
        errors.push("name part must be non-empty".to_owned());
    } else if part.len() > LABEL_MAX_LENGTH {
        errors.push(format!("name part must be no more than {LABEL_MAX_LENGTH} bytes"));
    }
    if !is_name_part(part) {
        errors.push(format!("name part {}", name_part_error()));
    }
    errors
}

fn name_part_error() -> &'static str {
    NAME_PART
}

/// Why `value` is not a label's value.
pub fn label_value(value: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(value, LABEL_MAX_LENGTH, "bytes", &mut errors);
    if !value.is_empty() && !is_name_part(value) {
        errors.push(regex_error(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must \
             start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            &["MyValue", "my_value", "12345"],
        ));
    }
    errors
}

/// Why `name` is not an identifier of C.
pub fn c_identifier(name: &str) -> Vec<String> {
    let good = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if good {
        return Vec::new();
    }
    vec![regex_error(
        "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
         characters or '_'",
        "[A-Za-z_][A-Za-z0-9_]*",
        &["my_name", "MY_NAME", "MyName"],
    )]
}

/// Why `name` cannot name an environment variable: anything printable in ASCII but `=` can.
///
/// Upstream: apimachinery/pkg/util/validation/validation.go IsRelaxedEnvVarName
pub fn env_var_name(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    if name.is_empty() {
        errors.push("environment variable name must be non-empty".to_owned());
    }
    if !name.bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'=') {
        errors.push(
            "a valid environment variable name must consist only of printable ASCII characters other than '='"
                .to_owned(),
        );
    }
    errors
}

/// Why `key` is not a key of a ConfigMap or Secret.
pub fn config_map_key(key: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(key, SUBDOMAIN_MAX_LENGTH, "characters", &mut errors);
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_')) {
        errors.push(regex_error(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            &["key.name", "KEY_NAME", "key-name"],
        ));
    }
    match key {
        "." => errors.push("must not be '.'".to_owned()),
        ".." => errors.push("must not be '..'".to_owned()),
        _ if key.starts_with("..") => errors.push("must not start with '..'".to_owned()),
        _ => {}
    }
    errors
}

/// Why `name` is not the name of a port.
pub fn port_name(name: &str) -> Vec<String> {
    let mut errors = Vec::new();
    too_long(name, 15, "characters", &mut errors);
    if name.is_empty() || !name.bytes().all(|b| alphanumeric_lower(b) || b == b'-') {
        errors.push("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)".to_owned());
    }
    if !name.bytes().any(|b| b.is_ascii_lowercase()) {
        errors.push("must contain at least one letter (a-z)".to_owned());
    }
    if name.contains("--") {
        errors.push("must not contain consecutive hyphens".to_owned());
    }
    if name.starts_with('-') || name.ends_with('-') {
        errors.push("must not begin or end with a hyphen".to_owned());
    }
    errors
}

/// Why `number` is not a port.
pub fn port_number(number: i64) -> Vec<String> {
    in_range(number, 1, 65535)
}

/// Why `number` is not between the two, both included.
pub fn in_range(number: i64, low: i64, high: i64) -> Vec<String> {
    if (low..=high).contains(&number) {
        return Vec::new();
    }
    vec![format!("must be between {low} and {high}, inclusive")]
}

/// Why `text` is not a whole percentage.
pub fn percent(text: &str) -> Vec<String> {
    let good = text.strip_suffix('%').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    if good {
        return Vec::new();
    }
    vec![regex_error(
        "a valid percent string must be a numeric string followed by an ending '%'",
        "[0-9]+%",
        &["1%", "93%"],
    )]
}

/// Why `name` is not the name of an HTTP header.
pub fn http_header_name(name: &str) -> Vec<String> {
    if !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec![regex_error(
        "a valid HTTP header must consist of alphanumeric characters or '-'",
        "[-A-Za-z0-9]+",
        &["X-Header-Name"],
    )]
}

/// Why `name` cannot be one segment of a URL path: the rule of RBAC names.
///
/// Upstream: apimachinery/pkg/api/validation/path/name.go IsValidPathSegmentName
pub fn path_segment(name: &str) -> Vec<String> {
    if name == "." || name == ".." {
        return vec![format!("may not be '{name}'")];
    }
    ["/", "%"].iter().filter(|c| name.contains(**c)).map(|c| format!("may not contain '{c}'")).collect()
}

/// A `generateName` prefix as it would be checked as a name: a dash at its end will be followed by more.
pub fn mask_trailing_dash(prefix: &str) -> String {
    match prefix.strip_suffix('-') {
        Some(rest) if !rest.is_empty() => format!("{rest}a"),
        _ => prefix.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_knows_its_own() {
        type Rule = fn(&str) -> Vec<String>;
        let long_label = "a".repeat(64);
        let long_name = "a".repeat(254);
        let cases: &[(&str, Rule, &[&str], &[&str])] = &[
            (
                "subdomain",
                dns1123_subdomain,
                &["a", "a.b-c.1"],
                &["", "A", "a..b", "-a", "a-", "a_b", &long_name],
            ),
            ("label", dns1123_label, &["a", "1-a"], &["", "a.b", "A", &long_label]),
            ("1035 label", dns1035_label, &["a", "a-1"], &["1a", "a-", "a.b", ""]),
            ("wildcard", wildcard_dns1123_subdomain, &["*.a.b"], &["*", "*.", "a.b", "*a.b"]),
            (
                "qualified",
                qualified_name,
                &["a", "A_b.c", "x.io/a"],
                &["", "/a", "x.io/", "a/b/c", "-a", "X/a"],
            ),
            ("label value", label_value, &["", "a", "A_b-c.d"], &["-", "a ", "ä", &long_label]),
            ("identifier", c_identifier, &["_a1"], &["", "1a", "a-b"]),
            ("env", env_var_name, &["a b", "1-x"], &["", "a=b", "ä", "a\n"]),
            ("config key", config_map_key, &["a.b_c-D", ".x"], &["", ".", "..", "..a", "a/b"]),
            ("port name", port_name, &["http", "a-1"], &["", "1", "a--b", "-a", "A", "0123456789abcdef"]),
            ("percent", percent, &["0%", "150%"], &["%", "1", "-1%", "1.5%"]),
            ("header", http_header_name, &["X-A"], &["", "a b"]),
            ("segment", path_segment, &["system:node", "a"], &[".", "..", "a/b", "a%"]),
        ];
        for (rule, check, good, bad) in cases {
            for text in *good {
                assert_eq!(check(text), Vec::<String>::new(), "{rule}: {text:?}");
            }
            for text in *bad {
                assert!(!check(text).is_empty(), "{rule}: {text:?}");
            }
        }
    }

    #[test]
    fn messages_are_upstreams() {
        assert_eq!(
            dns1123_label("A")[0],
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and \
             end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
        );
        assert_eq!(dns1123_label("a.b"), ["must not contain dots"]);
        assert_eq!(port_number(0), ["must be between 1 and 65535, inclusive"]);
        assert_eq!(qualified_name("/a"), ["prefix part must be non-empty"]);
        assert_eq!(mask_trailing_dash("web-"), "weba");
    }
}
