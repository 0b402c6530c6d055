//! What claims, classes and slices say of devices, and what may be wrong with it.
//!
//! Upstream: pkg/apis/resource/validation/validation.go

use std::collections::BTreeMap;

use cel::{Env, Type};

use crate::prelude::*;
use crate::validate::{csi_driver_name, each, one_of, required_one_of};

pub const MAX_REQUESTS: usize = 32;
pub const MAX_CONFIG: usize = 32;
const MAX_SELECTORS: usize = 32;
const MAX_ALTERNATIVES: usize = 8;
const MAX_CONSTRAINTS: usize = 32;
const MAX_EXPRESSION_BYTES: usize = 10 << 10;
const MAX_PARAMETER_BYTES: usize = 10 << 10;
const MAX_POOL_NAME: usize = 253;
const MAX_ID: usize = 32;

/// A list of at most so many items; one that is longer is not looked into.
pub fn bounded(
    object: &Value,
    field: &str,
    most: usize,
    at: &Path,
    check: impl Fn(&Value, &Path) -> Errors,
) -> Errors {
    let items = get::items(object, field, at);
    if items.len() > most {
        return vec![Error::too_many(at, items.len(), most)];
    }
    items.into_iter().flat_map(|(item, at)| check(item, &at)).collect()
}

/// As [`bounded`], and no two items have the same key.
pub fn set(
    object: &Value,
    field: &str,
    most: usize,
    at: &Path,
    key: impl Fn(&Value) -> Value,
    check: impl Fn(&Value, &Path) -> Errors,
) -> Errors {
    let mut errors = bounded(object, field, most, at, check);
    let items = get::items(object, field, at);
    if items.len() > most {
        return errors;
    }
    let mut seen: Vec<Value> = Vec::new();
    for (item, at) in items {
        let key = key(item);
        if seen.contains(&key) {
            errors.push(Error::duplicate(&at, key));
        } else {
            seen.push(key);
        }
    }
    errors
}

pub fn pool_name(name: &str, at: &Path) -> Errors {
    if name.is_empty() {
        return vec![Error::required(at, "")];
    }
    let mut errors = Errors::new();
    if name.len() > MAX_POOL_NAME {
        errors.push(Error::too_long(at, MAX_POOL_NAME));
    }
    errors.extend(name.split('/').flat_map(|part| each(names::dns1123_subdomain(part), at, part)));
    errors
}

pub fn label(name: &str, at: &Path) -> Errors {
    each(names::dns1123_label(name), at, name)
}

/// `name`, or `domain/name`.
pub fn qualified_name(name: &str, at: &Path) -> Errors {
    let identifier = |id: &str| {
        let mut errors = Errors::new();
        if id.len() > MAX_ID {
            errors.push(Error::too_long(at, MAX_ID));
        }
        errors.extend(each(names::c_identifier(id), at, id));
        errors
    };
    match name.split('/').collect::<Vec<_>>().as_slice() {
        [id] => identifier(id),
        [domain, id] => {
            let mut errors = match domain.is_empty() {
                true => vec![Error::invalid(at, "", "the domain must not be empty")],
                false => csi_driver_name(domain, at),
            };
            match id.is_empty() {
                true => errors.push(Error::invalid(at, "", "the name must not be empty")),
                false => errors.extend(identifier(id)),
            }
            errors
        }
        _ => Errors::new(),
    }
}

fn fully_qualified_name(name: &str, at: &Path) -> Errors {
    let mut errors = qualified_name(name, at);
    if !name.contains('/') {
        let detail = "a fully qualified name must be a domain and a name separated by a slash";
        errors.push(Error::invalid(at, name, detail));
    }
    errors
}

/// The requests of a claim by name, each with those of which it takes the first that can be had.
pub struct RequestNames(BTreeMap<String, Vec<String>>);

impl RequestNames {
    pub fn of(claim: &Value) -> Self {
        let names = |list: &[Value]| list.iter().map(|item| text(item, "name").to_owned()).collect();
        let requests = list(claim, "devices.requests").iter();
        let request =
            |request: &Value| (text(request, "name").to_owned(), names(list(request, "firstAvailable")));
        RequestNames(requests.map(request).collect())
    }

    pub fn check(&self, name: &str, at: &Path) -> Errors {
        let detail = "must be the name of a request in the claim or the name of a request and a subrequest separated by \
                      '/'";
        let parts: Vec<&str> = name.split('/').collect();
        let known = match parts.as_slice() {
            [request] => self.0.contains_key(*request),
            [request, of] => self.0.get(*request).is_some_and(|known| known.iter().any(|name| name == of)),
            _ => return vec![Error::invalid(at, name, detail)],
        };
        let mut errors: Errors = parts.iter().flat_map(|part| label(part, at)).collect();
        if !known {
            errors.push(Error::invalid(at, name, detail));
        }
        errors
    }

    /// The `requests` that something is for.
    pub fn check_all(&self, object: &Value, path: &Path) -> Errors {
        set(object, "requests", MAX_REQUESTS, &path.child("requests"), Value::clone, |name, at| {
            self.check(name.as_str().unwrap_or_default(), at)
        })
    }
}

/// The spec of a claim, in a claim or a template of claims.
pub fn claim_spec(spec: &Value, path: &Path) -> Errors {
    let names = RequestNames::of(spec);
    let path = path.child("devices");
    let by_name = |item: &Value| Value::from(text(item, "name"));
    let mut errors = set(spec, "devices.requests", MAX_REQUESTS, &path.child("requests"), by_name, request);
    errors.extend(bounded(
        spec,
        "devices.constraints",
        MAX_CONSTRAINTS,
        &path.child("constraints"),
        |constraint, at| {
            let mut errors = names.check_all(constraint, at);
            let attribute = |field: &str| fully_qualified_name(text(constraint, field), &at.child(field));
            match (has(constraint, "matchAttribute"), has(constraint, "distinctAttribute")) {
                (true, _) => errors.extend(attribute("matchAttribute")),
                (false, true) => errors.extend(attribute("distinctAttribute")),
                (false, false) => {
                    // Upstream's own words.
                    let detail = "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required, but multiple \
                                  fields are set";
                    errors.push(Error::required(at, detail));
                }
            }
            errors
        },
    ));
    errors.extend(bounded(spec, "devices.config", MAX_CONFIG, &path.child("config"), |config, at| {
        let mut errors = names.check_all(config, at);
        errors.extend(configuration(config, at));
        errors
    }));
    errors
}

fn request(request: &Value, path: &Path) -> Errors {
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    let mut errors = label(text(request, "name"), &path.child("name"));
    let alternatives = !list(request, "firstAvailable").is_empty();
    match (at(request, "exactly"), alternatives) {
        (None, false) => errors.push(Error::required(path, ONE)),
        (Some(_), true) => {
            let detail = format!("{ONE}, but multiple fields are set");
            errors.push(Error::invalid(path, Value::Null, detail));
        }
        (Some(exact), false) => errors.extend(wanted(exact, &path.child("exactly"))),
        (None, true) => {
            let by_name = |item: &Value| Value::from(text(item, "name"));
            let at = path.child("firstAvailable");
            errors.extend(set(request, "firstAvailable", MAX_ALTERNATIVES, &at, by_name, |one, at| {
                let mut errors = label(text(one, "name"), &at.child("name"));
                errors.extend(wanted(one, at));
                errors
            }));
        }
    }
    errors
}

/// Which devices are wanted, and how many.
fn wanted(request: &Value, path: &Path) -> Errors {
    let class = text(request, "deviceClassName");
    let mut errors = match class.is_empty() {
        true => vec![Error::required(&path.child("deviceClassName"), "")],
        false => each(names::dns1123_subdomain(class), &path.child("deviceClassName"), class),
    };
    errors.extend(selectors(request, "selectors", &path.child("selectors")));
    let (mode, count) = (text(request, "allocationMode"), number(request, "count"));
    match mode {
        "All" if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.push(Error::invalid(&path.child("count"), count, detail));
        }
        "ExactCount" if count <= 0 => {
            errors.push(Error::invalid(&path.child("count"), count, "must be greater than zero"));
        }
        "All" | "ExactCount" => {}
        other => {
            let at = path.child("allocationMode");
            errors.push(Error::not_supported(&at, other, &["All", "ExactCount"]));
        }
    }
    for (toleration, at) in get::items(request, "tolerations", &path.child("tolerations")) {
        errors.extend(toleration_of(toleration, &at));
    }
    errors
}

pub const TAINT_EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

fn toleration_of(toleration: &Value, path: &Path) -> Errors {
    let (key, value, effect) =
        (text(toleration, "key"), text(toleration, "value"), text(toleration, "effect"));
    let mut errors = Errors::new();
    if !key.is_empty() {
        errors.extend(each(names::qualified_name(key), &path.child("key"), key));
    }
    match text(toleration, "operator") {
        "Exists" if !value.is_empty() => {
            let detail = "must be empty for operator `Exists`";
            errors.push(Error::invalid(&path.child("value"), value, detail));
        }
        "Exists" => {}
        "Equal" => errors.extend(each(names::label_value(value), &path.child("value"), value)),
        other => errors.extend(required_one_of(other, &path.child("operator"), &["Equal", "Exists"])),
    }
    if !effect.is_empty() {
        errors.extend(one_of(effect, &path.child("effect"), TAINT_EFFECTS));
    }
    errors
}

pub fn selectors(object: &Value, field: &str, path: &Path) -> Errors {
    bounded(object, field, MAX_SELECTORS, path, |selector, at| {
        if !has(selector, "cel") {
            return vec![Error::required(&at.child("cel"), "")];
        }
        expression(text(selector, "cel.expression"), &at.child("cel").child("expression"))
    })
}

/// What an expression sees of a device.
///
/// Upstream: dynamic-resource-allocation/cel/compile.go
fn device() -> Type {
    let by_domain = || Type::map(Type::String, Type::map(Type::String, Type::Dyn));
    Type::object(
        "kubernetes.DRADevice",
        [
            ("driver", Type::String),
            ("attributes", by_domain()),
            ("capacity", by_domain()),
            ("allowMultipleAllocations", Type::Bool),
        ],
    )
}

fn expression(expression: &str, at: &Path) -> Errors {
    if expression.len() > MAX_EXPRESSION_BYTES {
        return vec![Error::too_long(at, MAX_EXPRESSION_BYTES)];
    }
    let program = match Env::kubernetes().variable("device", device()).compile(expression) {
        Ok(program) => program,
        Err(errors) => return vec![Error::invalid(at, expression, format!("compilation failed: {errors}"))],
    };
    match program.result_type() {
        Type::Bool | Type::Dyn => Errors::new(),
        other => {
            let detail = format!("must evaluate to bool or the unknown type, not {other}");
            vec![Error::invalid(at, expression, detail)]
        }
    }
}

/// What is handed to a driver as it is.
pub fn configuration(config: &Value, path: &Path) -> Errors {
    let path = path.child("opaque");
    let Some(opaque) = at(config, "opaque") else { return vec![Error::required(&path, "")] };
    let mut errors = csi_driver_name(text(opaque, "driver"), &path.child("driver"));
    errors.extend(raw_object(at(opaque, "parameters"), &path.child("parameters"), MAX_PARAMETER_BYTES));
    errors
}

/// An object of somebody else's.
pub fn raw_object(value: Option<&Value>, at: &Path, longest: usize) -> Errors {
    match value {
        None => vec![Error::required(at, "")],
        Some(value) if value.to_string().len() > longest => vec![Error::too_long(at, longest)],
        Some(Value::Object(_)) => Errors::new(),
        Some(_) => vec![Error::invalid(at, "<value omitted>", "must be a valid JSON object")],
    }
}

/// A taint of a device.
pub fn taint(taint: &Value, path: &Path) -> Errors {
    let (key, value) = (text(taint, "key"), text(taint, "value"));
    let mut errors = each(names::qualified_name(key), &path.child("key"), key);
    if !value.is_empty() {
        errors.extend(each(names::label_value(value), &path.child("value"), value));
    }
    errors.extend(required_one_of(text(taint, "effect"), &path.child("effect"), TAINT_EFFECTS));
    errors
}
