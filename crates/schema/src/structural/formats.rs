//! The formats that schemas may ask of strings and numbers.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/validation/formats.go, kube-openapi/pkg/validation/strfmt

use std::net::{IpAddr, Ipv6Addr};
use std::sync::LazyLock;

use apimachinery::time;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use regex::Regex;

/// A format that is known, with its name as the schema has it.
#[derive(Clone, Debug)]
pub struct Format {
    pub name: String,
    test: Test,
}

/// Whether a string has the format; numbers are checked by their range.
#[derive(Clone, Copy, Debug)]
enum Test {
    Text(fn(&str) -> bool),
    Int32,
    Int64,
    Float,
    Double,
}

/// By the names without their dashes.
const TEXTS: &[(&str, fn(&str) -> bool)] = &[
    ("bsonobjectid", |t| t.len() == 24 && t.bytes().all(|b| b.is_ascii_hexdigit())),
    ("uri", is_request_uri),
    ("email", is_email),
    ("hostname", is_hostname),
    ("ipv4", |t| matches!(t.parse::<IpAddr>(), Ok(IpAddr::V4(_)))),
    ("ipv6", |t| t.parse::<Ipv6Addr>().is_ok()),
    ("cidr", is_cidr),
    ("mac", |t| MAC.is_match(t)),
    ("uuid", |t| UUID.is_match(t)),
    ("uuid3", |t| UUID3.is_match(t)),
    ("uuid4", |t| UUID4.is_match(t)),
    ("uuid5", |t| UUID5.is_match(t)),
    ("isbn", |t| is_isbn10(t) || is_isbn13(t)),
    ("isbn10", is_isbn10),
    ("isbn13", is_isbn13),
    ("creditcard", is_credit_card),
    ("ssn", |t| t.len() == 11 && SSN.is_match(t)),
    ("hexcolor", |t| HEX_COLOR.is_match(t)),
    ("rgbcolor", |t| RGB_COLOR.is_match(t)),
    ("byte", |t| !t.is_empty() && STANDARD.decode(t).is_ok()),
    ("password", |_| true),
    ("date", is_date),
    ("duration", is_duration),
    ("datetime", |t| time::parse(&t.to_ascii_uppercase()).is_some()),
    ("k8sshortname", |t| t.len() <= 63 && SHORT_NAME.is_match(t)),
    ("k8slongname", |t| t.len() <= 253 && LONG_NAME.is_match(t)),
];

fn test_of(kind: &str, format: &str) -> Option<Test> {
    match (kind, format) {
        ("" | "string", _) => {
            let name = format.replace('-', "");
            TEXTS.iter().find(|(known, _)| *known == name).map(|(_, test)| Test::Text(*test))
        }
        ("integer", "int32") => Some(Test::Int32),
        ("integer", "int64") => Some(Test::Int64),
        ("number", "float") => Some(Test::Float),
        ("number", "double") => Some(Test::Double),
        _ => None,
    }
}

/// Whether the format means something for values of the type.
pub fn is_recognized(kind: &str, format: &str) -> bool {
    test_of(kind, format).is_some()
}

impl Format {
    /// `None` for formats that are not known, which upstream ignores.
    pub fn of(kind: &str, name: &str) -> Option<Self> {
        test_of(kind, name).map(|test| Format { name: name.to_owned(), test })
    }

    /// Whether a string may be checked against it.
    pub fn is_textual(&self) -> bool {
        matches!(self.test, Test::Text(_))
    }

    pub fn matches(&self, text: &str) -> bool {
        match self.test {
            Test::Text(test) => test(text),
            _ => true,
        }
    }

    /// Whether a number is in the format's range.
    pub fn holds(&self, number: &serde_json::Number) -> bool {
        match self.test {
            Test::Int32 => number.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            Test::Int64 => number.as_i64().is_some(),
            Test::Float => number.as_f64().is_some_and(|n| n.abs() <= f64::from(f32::MAX)),
            Test::Double | Test::Text(_) => true,
        }
    }
}

fn regex(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is written above and tested")
}

macro_rules! patterns {
    ($($name:ident = $text:expr;)+) => {
        $(static $name: LazyLock<Regex> = LazyLock::new(|| regex($text));)+

        #[cfg(test)]
        fn compile_all() {
            $(LazyLock::force(&$name);)+
        }
    };
}

patterns! {
    HOSTNAME = r"^([a-zA-Z0-9\p{S}\p{L}]((-?[a-zA-Z0-9\p{S}\p{L}]{0,62})?)|([a-zA-Z0-9\p{S}\p{L}](([a-zA-Z0-9\p{S}\p{L}-]{0,61}[a-zA-Z0-9\p{S}\p{L}])?)(\.)){1,}([a-zA-Z\p{L}]){2,63})$";
    MAC = r"^(?:[0-9A-Fa-f]{2}(?:(?::[0-9A-Fa-f]{2}){5}|(?:-[0-9A-Fa-f]{2}){5}|(?::[0-9A-Fa-f]{2}){7}|(?:-[0-9A-Fa-f]{2}){7})|[0-9A-Fa-f]{4}(?:(?:\.[0-9A-Fa-f]{4}){2}|(?:\.[0-9A-Fa-f]{4}){3}))$";
    UUID = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID3 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?3[0-9a-f]{3}-?[0-9a-f]{4}-?[0-9a-f]{12}$";
    UUID4 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?4[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    UUID5 = r"(?i)^[0-9a-f]{8}-?[0-9a-f]{4}-?5[0-9a-f]{3}-?[89ab][0-9a-f]{3}-?[0-9a-f]{12}$";
    CREDIT_CARD = r"^(?:4[0-9]{12}(?:[0-9]{3})?|5[1-5][0-9]{14}|6(?:011|5[0-9][0-9])[0-9]{12}|3[47][0-9]{13}|3(?:0[0-5]|[68][0-9])[0-9]{11}|(?:2131|1800|35[0-9]{3})[0-9]{11})$";
    SSN = r"^[0-9]{3}[- ]?[0-9]{2}[- ]?[0-9]{4}$";
    HEX_COLOR = r"^#?([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$";
    RGB_COLOR = r"^rgb\(\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*,\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*,\s*(0|[1-9][0-9]?|1[0-9][0-9]?|2[0-4][0-9]|25[0-5])\s*\)$";
    SCALA_DURATION = r"([0-9]+)\s*([A-Za-zµ]+)";
    GO_DURATION = r"^[-+]?(0|(([0-9]+(\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$";
    SHORT_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
    LONG_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$";
}

/// An absolute URI, or an absolute path.
fn is_request_uri(text: &str) -> bool {
    if text.starts_with('/') {
        return !text.contains(char::is_control);
    }
    let Some((scheme, rest)) = text.split_once(':') else { return false };
    let mut letters = scheme.chars();
    letters.next().is_some_and(|c| c.is_ascii_alphabetic())
        && letters.all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.'))
        && !rest.contains(|c: char| c.is_control() || c == ' ')
}

/// An address with or without the name of whom it is of.
fn is_email(text: &str) -> bool {
    let address = match (text.find('<'), text.strip_suffix('>')) {
        (Some(at), Some(inner)) => &inner[at + 1..],
        (None, None) => text.trim(),
        _ => return false,
    };
    let Some((local, domain)) = address.rsplit_once('@') else { return false };
    let atom = |c: char| !c.is_whitespace() && !"()<>[]:;@\\,\"".contains(c);
    let dotted = |part: &str| part.split('.').all(|atoms| !atoms.is_empty() && atoms.chars().all(atom));
    let quoted = local.len() > 2 && local.starts_with('"') && local.ends_with('"');
    (quoted || dotted(local)) && dotted(domain)
}

fn is_hostname(text: &str) -> bool {
    HOSTNAME.is_match(text) && text.len() <= 255 && text.split('.').all(|label| label.len() <= 63)
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else { return false };
    let Ok(address) = address.parse::<IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    bits.bytes().all(|b| b.is_ascii_digit()) && bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

fn digits_of(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace() && *c != '-').collect()
}

fn is_isbn10(text: &str) -> bool {
    let text = digits_of(text);
    if text.len() != 10 || !text[..9].bytes().all(|b| b.is_ascii_digit()) {
        return false;
    }
    let sum: Option<u32> = (1..).zip(text.chars()).try_fold(0, |sum, (place, c)| {
        let digit = if place == 10 && c == 'X' { 10 } else { c.to_digit(10)? };
        Some(sum + place * digit)
    });
    sum.is_some_and(|sum| sum % 11 == 0)
}

fn is_isbn13(text: &str) -> bool {
    let text = digits_of(text);
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(10)).collect();
    digits.is_some_and(|digits| {
        let weighed = digits.iter().zip([1, 3].into_iter().cycle()).map(|(digit, weight)| digit * weight);
        digits.len() == 13 && weighed.sum::<u32>() % 10 == 0
    })
}

fn is_credit_card(text: &str) -> bool {
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    if !CREDIT_CARD.is_match(&digits) {
        return false;
    }
    let sum: u32 = digits
        .chars()
        .rev()
        .filter_map(|c| c.to_digit(10))
        .enumerate()
        .map(|(at, digit)| match at % 2 {
            0 => digit,
            _ if digit > 4 => digit * 2 - 9,
            _ => digit * 2,
        })
        .sum();
    sum.is_multiple_of(10)
}

fn is_date(text: &str) -> bool {
    text.len() == 10 && time::parse(&format!("{text}T00:00:00Z")).is_some()
}

/// A duration of Go's, or of Scala's: `3h30m`, `22 ns`, `4 days`.
fn is_duration(text: &str) -> bool {
    const UNITS: &[&str] = &[
        "ns", "nano", "us", "µs", "micro", "ms", "milli", "s", "sec", "m", "min", "h", "hr", "hour", "d",
        "day", "w", "wk", "week",
    ];
    if GO_DURATION.is_match(text) {
        return true;
    }
    let mut units = SCALA_DURATION.captures_iter(text).filter_map(|found| found.get(2)).peekable();
    units.peek().is_some()
        && units.all(|unit| {
            let unit = unit.as_str().to_lowercase();
            UNITS.iter().any(|known| unit == *known || unit == format!("{known}s"))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_know_their_own() {
        compile_all();
        for (format, good, bad) in [
            ("date-time", "2014-12-15T19:30:20.000Z", "2014-12-15"),
            ("date", "2014-12-15", "2014-13-15"),
            ("duration", "3h30m", "3 parsecs"),
            ("duration", "22 ns", "x"),
            ("uuid", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "6ba7b810"),
            ("email", "Bob <bob@example.com>", "bob"),
            ("hostname", "foo.example.com", "foo_bar.com"),
            ("ipv4", "10.0.0.1", "fd00::1"),
            ("ipv6", "fd00::1", "10.0.0.1"),
            ("cidr", "10.0.0.0/8", "10.0.0.0/33"),
            ("mac", "00:00:5e:00:53:01", "00:00:5e"),
            ("uri", "https://example.com/a", "example.com"),
            ("byte", "aGVsbG8=", "aGVsbG8"),
            ("isbn", "0321751043", "0321751041"),
            ("isbn13", "978-0321751041", "978-0321751042"),
            ("creditcard", "4111 1111 1111 1111", "4111 1111 1111 1112"),
            ("ssn", "111-11-1111", "111-11-11"),
            ("hexcolor", "#FFFFFF", "#FFFF"),
            ("rgbcolor", "rgb(255,0,10)", "rgb(256,0,10)"),
            ("bsonobjectid", "507f1f77bcf86cd799439011", "507f"),
            ("k8s-short-name", "a-b", "A"),
            ("k8s-long-name", "a.b-c", "a..b"),
        ] {
            let test = Format::of("string", format).unwrap();
            assert!(test.matches(good), "{format} {good}");
            assert!(!test.matches(bad), "{format} {bad}");
        }
        assert!(Format::of("string", "unknown").is_none());
        assert!(!Format::of("integer", "int32").unwrap().holds(&4_294_967_296_i64.into()));
    }
}
