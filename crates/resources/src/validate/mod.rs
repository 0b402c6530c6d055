//! Checks that several kinds share, in upstream's words.
//!
//! Upstream: pkg/apis/core/validation/validation.go, apimachinery/pkg/apis/meta/v1/validation/validation.go

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::LazyLock;

use api::tables::{Field, Type};
use apimachinery::field::{Error, Path};
use apimachinery::names;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::get::{self, Errors, at, list, text};

mod conditions;
pub mod quantities;

pub use conditions::conditions;

pub const IMMUTABLE: &str = "field is immutable";
pub const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];

/// A resource that somebody else than Kubernetes counts: a device.
///
/// Upstream: pkg/apis/core/helper/helpers.go IsExtendedResourceName
pub fn is_extended_resource(name: &str) -> bool {
    name.contains('/')
        && !name.contains("kubernetes.io/")
        && !name.starts_with("requests.")
        && names::qualified_name(&format!("requests.{name}")).is_empty()
}

/// The messages of a rule of names as errors of a field.
pub fn each(messages: Vec<String>, at: &Path, value: &str) -> Errors {
    messages.into_iter().map(|m| Error::invalid(at, value, m)).collect()
}

/// One of a few values, which are listed in the order that upstream lists them.
pub fn one_of(value: &str, at: &Path, supported: &[&str]) -> Errors {
    if supported.contains(&value) { Errors::new() } else { vec![Error::not_supported(at, value, supported)] }
}

/// As [`one_of`], but nothing at all is its own error.
pub fn required_one_of(value: &str, at: &Path, supported: &[&str]) -> Errors {
    if value.is_empty() { vec![Error::required(at, "")] } else { one_of(value, at, supported) }
}

/// Something must be at the path: text, items or entries.
pub fn required(object: &Value, field: &str) -> Errors {
    let empty = match at(object, field) {
        None => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(_) => false,
    };
    if empty { vec![Error::required(&Path::new(field), "")] } else { Errors::new() }
}

/// The number at the path of an object, if any, is not below zero.
pub fn non_negative(object: &Value, field: &str) -> Errors {
    non_negative_at(object, field, &Path::new(field))
}

pub fn non_negative_at(object: &Value, field: &str, at: &Path) -> Errors {
    match get::int(object, field) {
        Some(n) if n < 0 => vec![Error::invalid(at, n, "must be greater than or equal to 0")],
        _ => Errors::new(),
    }
}

pub fn positive(value: i64, at: &Path) -> Errors {
    if value > 0 { Errors::new() } else { vec![Error::invalid(at, value, "must be greater than zero")] }
}

/// A field that keeps the value it had.
pub fn immutable(object: &Value, old: &Value, field: &str) -> Errors {
    if same(at(object, field), at(old, field)) {
        return Errors::new();
    }
    vec![Error::invalid(&Path::new(field), at(object, field).cloned().unwrap_or_default(), IMMUTABLE)]
}

/// Whether two values mean the same: what is absent equals what is empty, and a flag or number that upstream
/// does not hold by pointer equals its zero.
///
/// Upstream: apimachinery/pkg/api/equality/semantic.go
pub fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    // Most that is compared is equal, which is seen sooner.
    a == b || means_same(a, b)
}

/// The fields that upstream holds by pointer to a struct wherever they are: one that is there and says nothing is
/// something else than none.
static OPTIONAL_STRUCTS: LazyLock<HashSet<&str>> = LazyLock::new(|| {
    let fields = || api::tables::definitions().iter().flat_map(|definition| definition.fields);
    let by_pointer = |field: &Field| matches!(field.ty, Type::Object(_)) && field.pointer();
    let held_otherwise: HashSet<&str> =
        fields().filter(|field| !by_pointer(field)).map(|field| field.name).collect();
    fields()
        .filter(|field| by_pointer(field))
        .map(|field| field.name)
        .filter(|n| !held_otherwise.contains(n))
        .collect()
});

fn means_same(a: Option<&Value>, b: Option<&Value>) -> bool {
    const BY_VALUE: &[&str] = &[
        "hostNetwork",
        "hostPID",
        "hostIPC",
        "stdin",
        "stdinOnce",
        "tty",
        "readOnly",
        "initialDelaySeconds",
        "minReadySeconds",
        "hostPort",
        "nodePort",
    ];
    fn empty(value: Option<&Value>) -> bool {
        match value {
            None | Some(Value::Null) => true,
            Some(Value::String(text)) => text.is_empty(),
            Some(Value::Array(items)) => items.is_empty(),
            Some(Value::Object(fields)) => fields.values().all(|v| empty(Some(v))),
            Some(_) => false,
        }
    }
    fn zero(value: Option<&Value>) -> bool {
        empty(value) || value == Some(&Value::Bool(false)) || value.and_then(Value::as_i64) == Some(0)
    }
    match (a, b) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let parted = |name: &str, a: Option<&Value>, b: Option<&Value>| {
                let there = |value: Option<&Value>| value.is_some_and(Value::is_object);
                there(a) != there(b) && OPTIONAL_STRUCTS.contains(name)
            };
            // Each name once: what is below is compared so often as its name comes up.
            let added = b.keys().filter(|name| !a.contains_key(*name));
            a.keys().chain(added).all(|name| {
                let (a, b) = (a.get(name), b.get(name));
                (BY_VALUE.contains(&name.as_str()) && zero(a) && zero(b))
                    || (means_same(a, b) && !parted(name, a, b))
            })
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| means_same(Some(a), Some(b)))
        }
        (Some(a), Some(b)) if a == b => true,
        (a, b) => empty(a) && empty(b),
    }
}

/// The `labels` or another map whose keys and values follow the rules of labels.
pub fn labels(object: &Value, field: &str, at: &Path) -> Errors {
    let mut errors = Errors::new();
    for (key, value) in get::entries(object, field) {
        errors.extend(each(names::qualified_name(key), at, key));
        let value = value.as_str().unwrap_or_default();
        errors.extend(each(names::label_value(value), at, value));
    }
    errors
}

/// A `LabelSelector`.
pub fn selector(selector: &Value, path: &Path) -> Errors {
    let mut errors = labels(selector, "matchLabels", &path.child("matchLabels"));
    for (expression, at) in get::items(selector, "matchExpressions", &path.child("matchExpressions")) {
        let values = list(expression, "values");
        match text(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(Error::required(&at.child("values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(Error::forbidden(&at.child("values"), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(Error::invalid(&at.child("operator"), other, "not a valid selector operator"))
            }
        }
        let key = text(expression, "key");
        errors.extend(each(names::qualified_name(key), &at.child("key"), key));
        for (value, at) in get::items(expression, "values", &at.child("values")) {
            let value = value.as_str().unwrap_or_default();
            errors.extend(each(names::label_value(value), &at, value));
        }
    }
    errors
}

/// A number that is not negative, or a percentage.
///
/// Upstream: pkg/apis/apps/validation/validation.go ValidatePositiveIntOrPercent
pub fn int_or_percent(value: &Value, at: &Path, at_most_100: bool) -> Errors {
    match value {
        Value::String(text) => {
            let mut errors = each(names::percent(text), at, text);
            if at_most_100 && errors.is_empty() && int_or_percent_value(value) > 100 {
                errors.push(Error::invalid(at, text.as_str(), "must not be greater than 100%"));
            }
            errors
        }
        Value::Number(n) if n.as_i64().is_some_and(|n| n >= 0) => Errors::new(),
        other => vec![Error::invalid(at, other.clone(), "must be greater than or equal to 0")],
    }
}

/// The number itself, or the number of percents.
pub fn int_or_percent_value(value: &Value) -> i64 {
    match value {
        Value::String(text) => text.strip_suffix('%').and_then(|n| n.parse().ok()).unwrap_or(0),
        other => other.as_i64().unwrap_or(0),
    }
}

/// A port by number or by name.
///
/// Upstream: pkg/apis/core/validation/validation.go ValidatePortNumOrName
pub fn port_number_or_name(port: Option<&Value>, at: &Path) -> Errors {
    match port {
        Some(Value::String(name)) => each(names::port_name(name), at, name),
        port => {
            let number = port.and_then(Value::as_i64).unwrap_or(0);
            port_number(number, at)
        }
    }
}

pub fn port_number(number: i64, at: &Path) -> Errors {
    names::port_number(number).into_iter().map(|m| Error::invalid(at, number, m)).collect()
}

pub fn dns_label(value: &str, at: &Path) -> Errors {
    each(names::dns1123_label(value), at, value)
}

/// A domain, a slash, and a name of the domain's own.
///
/// Upstream: apimachinery/pkg/util/validation/validation.go IsDomainPrefixedPath
pub fn domain_prefixed_path(value: &str, at: &Path) -> Errors {
    if value.is_empty() {
        return vec![Error::required(at, "")];
    }
    let Some((host, rest)) =
        value.split_once('/').filter(|(host, rest)| !host.is_empty() && !rest.is_empty())
    else {
        return vec![Error::invalid(at, value, "must be a domain-prefixed path (such as \"acme.io/foo\")")];
    };
    let mut errors = each(names::dns1123_subdomain(host), at, host);
    let good = |c: char| c.is_ascii_alphanumeric() || "/:@._~!$&'()*+,;=%-".contains(c);
    if !rest.chars().all(good) {
        errors.push(Error::invalid(at, rest, "Invalid path (e.g. 'acme.io/foo')"));
    }
    errors
}

/// The name of a driver of volumes or devices.
///
/// Upstream: pkg/apis/core/validation/validation.go ValidateCSIDriverName
pub fn csi_driver_name(name: &str, at: &Path) -> Errors {
    const LONGEST: usize = 63;
    if name.is_empty() {
        return vec![Error::required(at, "")];
    }
    let mut errors = Errors::new();
    if name.len() > LONGEST {
        errors.push(Error::too_long(at, LONGEST));
    }
    errors.extend(each(names::dns1123_subdomain(&name.to_lowercase()), at, name));
    errors
}

/// Upstream: apimachinery/pkg/util/validation/ip.go IsValidIP
pub fn ip(value: &str, at: &Path) -> Errors {
    match value.parse::<IpAddr>() {
        Ok(_) => Errors::new(),
        Err(_) => {
            vec![Error::invalid(at, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")]
        }
    }
}

/// Upstream: apimachinery/pkg/util/validation/ip.go IsValidCIDR
pub fn cidr(value: &str, at: &Path) -> Errors {
    let good = value.split_once('/').is_some_and(|(address, length)| {
        let longest = match address.parse::<IpAddr>() {
            Ok(IpAddr::V4(_)) => 32,
            Ok(IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        length.parse::<u8>().is_ok_and(|l| l <= longest) && !length.starts_with('+')
    });
    if good {
        return Errors::new();
    }
    let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    vec![Error::invalid(at, value, detail)]
}

/// An address that traffic can be sent to.
///
/// Upstream: pkg/apis/core/validation/validation.go ValidateEndpointIP
pub fn endpoint_ip(value: &str, at: &Path) -> Errors {
    let Ok(address) = value.parse::<IpAddr>() else {
        return vec![Error::invalid(at, value, "must be a valid IP address")];
    };
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    };
    let link_local_multicast = match address {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let detail = if address.is_unspecified() {
        format!("may not be unspecified ({value})")
    } else if address.is_loopback() {
        "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned()
    } else if link_local {
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned()
    } else if link_local_multicast {
        "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned()
    } else {
        return Errors::new();
    };
    vec![Error::invalid(at, value, detail)]
}

/// Upstream: pkg/apis/core/validation/validation.go validateTaintEffect
pub fn taint_effect(effect: &str, at: &Path) -> Errors {
    one_of(effect, at, &["NoSchedule", "PreferNoSchedule", "NoExecute"])
}

/// Bytes as objects hold them.
pub fn encode_base64(text: &str) -> String {
    STANDARD.encode(text)
}

pub fn decode_base64(value: &Value) -> Option<Vec<u8>> {
    STANDARD.decode(value.as_str()?).ok()
}

/// How many bytes a base64 text stands for.
pub fn decoded_length(value: &Value) -> usize {
    let text = value.as_str().unwrap_or_default();
    let padding = text.bytes().rev().take_while(|b| *b == b'=').count();
    (text.len() / 4 * 3).saturating_sub(padding)
}
