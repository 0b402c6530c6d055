//! ResourceSlice: devices that a node or the cluster has.

use apimachinery::quantity::Quantity;

use super::devices::{bounded, label, pool_name, qualified_name, set as check_set, taint};
use super::resourceclaims::binding_conditions;
use crate::podspec;
use crate::prelude::*;
use crate::validate::{csi_driver_name, each, immutable};

const MAX_DEVICES: usize = 128;
/// With taints, shared counters or lists of values.
const MAX_RICH_DEVICES: usize = 64;
const MAX_COUNTER_SETS: usize = 8;
const MAX_COUNTERS: usize = 32;
const MAX_CONSUMED_SETS: usize = 2;
const MAX_ATTRIBUTES: usize = 32;
const MAX_VALUES: usize = 48;
const MAX_VALUE_BYTES: usize = 64;
const MAX_TAINTS: usize = 16;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("resource.k8s.io/v1", "ResourceSlice", "resourceslices")
        .columns("Name,Node,Driver,Pool,Age", |o, now| {
            cells![
                get::name(o),
                text(o, "spec.nodeName"),
                text(o, "spec.driver"),
                text(o, "spec.pool.name"),
                age(o, now),
            ]
        })
        .fields(&["spec.nodeName", "spec.driver"])
        .strategy(Rules { validate, validate_update, generation: true, ..Rules::PLAIN })
        .build()
}

/// Upstream: pkg/apis/resource/validation/validation.go ValidateResourceSlice
fn validate(slice: &Value) -> Errors {
    let spec = path("spec");
    let mut errors = csi_driver_name(text(slice, "spec.driver"), &spec.child("driver"));
    let pool = spec.child("pool");
    errors.extend(pool_name(text(slice, "spec.pool.name"), &pool.child("name")));
    let count = number(slice, "spec.pool.resourceSliceCount");
    if count <= 0 {
        let at = pool.child("resourceSliceCount");
        errors.push(Error::invalid(&at, count, "must be greater than zero"));
    }
    let generation = number(slice, "spec.pool.generation");
    if generation < 0 {
        let at = pool.child("generation");
        errors.push(Error::invalid(&at, generation, "must be greater than or equal to zero"));
    }
    let body = at(slice, "spec").unwrap_or(&Value::Null);
    let fields = ["nodeName", "nodeSelector", "allNodes", "perDeviceNodeSelection"];
    errors.extend(which_nodes(body, &fields, "must be either unset or set to a non-empty string", &spec));
    if has(body, "nodeSelector") && list(body, "nodeSelector.nodeSelectorTerms").len() != 1 {
        let terms = at(body, "nodeSelector.nodeSelectorTerms").cloned().unwrap_or_default();
        let at = spec.child("nodeSelector").child("nodeSelectorTerms");
        errors.push(Error::invalid(&at, terms, "must have exactly one node selector term"));
    }
    if has(body, "sharedCounters") && has(body, "devices") {
        errors.push(Error::invalid(&spec, "", "only one of `sharedCounters` or `devices` is allowed"));
    }
    let by_name = |item: &Value| Value::from(text(item, "name"));
    let devices = list(body, "devices");
    let most = if devices.iter().any(is_rich) { MAX_RICH_DEVICES } else { MAX_DEVICES };
    let each_node = is_true(body, "perDeviceNodeSelection");
    errors.extend(check_set(body, "devices", most, &spec.child("devices"), by_name, |device, at| {
        validate_device(device, each_node, at)
    }));
    let counters = spec.child("sharedCounters");
    errors.extend(check_set(body, "sharedCounters", MAX_COUNTER_SETS, &counters, by_name, |set, at| {
        validate_counters(set, "name", at)
    }));
    errors
}

/// Upstream: pkg/apis/resource/validation/validation.go ValidateResourceSliceUpdate
fn validate_update(slice: &Value, old: &Value) -> Errors {
    ["spec.pool.name", "spec.driver", "spec.nodeName"]
        .iter()
        .flat_map(|field| immutable(slice, old, field))
        .collect()
}

/// Exactly one of the fields says which nodes have the devices.
fn which_nodes(object: &Value, fields: &[&str], empty_name: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut given = Vec::new();
    for field in fields.iter().filter(|field| has(object, field)) {
        let at_field = path.child(field);
        match *field {
            "nodeName" if text(object, field).is_empty() => {
                errors.push(Error::invalid(&at_field, "", empty_name));
                continue;
            }
            "nodeName" => {
                let name = text(object, field);
                errors.extend(each(names::dns1123_subdomain(name), &at_field, name));
            }
            "nodeSelector" => {
                let selector = at(object, field).unwrap_or(&Value::Null);
                errors.extend(podspec::validate_node_selector(selector, &at_field));
            }
            _ if !is_true(object, field) => {
                let detail = "must be either unset or set to true";
                errors.push(Error::invalid(&at_field, false, detail));
                continue;
            }
            _ => {}
        }
        given.push(format!("`{field}`"));
    }
    let named: Vec<String> = fields.iter().map(|field| format!("`{field}`")).collect();
    let detail = format!("exactly one of {} is required", named.join(", "));
    match given.len() {
        0 => errors.push(Error::required(path, detail)),
        1 => {}
        _ => {
            let shown = format!("{{{}}}", given.join(", "));
            errors.push(Error::invalid(path, shown, format!("{detail}, but multiple fields are set")));
        }
    }
    errors
}

const LISTS: [&str; 4] = ["bools", "ints", "strings", "versions"];

fn is_rich(device: &Value) -> bool {
    let lists = |attribute: &Value| LISTS.iter().any(|field| has(attribute, field));
    !list(device, "taints").is_empty()
        || !list(device, "consumesCounters").is_empty()
        || get::entries(device, "attributes").any(|(_, attribute)| lists(attribute))
}

fn validate_counters(set: &Value, name: &str, path: &Path) -> Errors {
    let mut errors = match text(set, name) {
        "" => vec![Error::required(&path.child(name), "")],
        given => label(given, &path.child(name)),
    };
    let (at, count) = (path.child("counters"), get::len(set, "counters"));
    match count {
        0 => errors.push(Error::required(&at, "")),
        _ if count > MAX_COUNTERS => errors.push(Error::too_many(&at, count, MAX_COUNTERS)),
        _ => errors.extend(get::entries(set, "counters").flat_map(|(name, _)| label(name, &at))),
    }
    errors
}

fn validate_device(device: &Value, each_node: bool, path: &Path) -> Errors {
    let mut errors = label(text(device, "name"), &path.child("name"));
    let total = get::len(device, "attributes") + get::len(device, "capacity");
    if total > MAX_ATTRIBUTES {
        let detail =
            format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        errors.push(Error::invalid(path, total, detail));
    }
    let values =
        |attribute: &Value| LISTS.iter().map(|field| list(attribute, field).len()).sum::<usize>().max(1);
    let total: usize = get::entries(device, "attributes").map(|(_, attribute)| values(attribute)).sum();
    if total > MAX_VALUES {
        let detail = format!("the total number of attribute values must not exceed {MAX_VALUES}");
        errors.push(Error::invalid(path, total, detail));
    }
    for (name, attribute) in get::entries(device, "attributes") {
        let at = path.child("attributes");
        errors.extend(qualified_name(name, &at));
        errors.extend(validate_attribute(attribute, &at.key(name)));
    }
    let shared = is_true(device, "allowMultipleAllocations");
    for (name, capacity) in get::entries(device, "capacity") {
        let at = path.child("capacity");
        errors.extend(qualified_name(name, &at));
        let policy = at.key(name).child("requestPolicy");
        if has(capacity, "requestPolicy") && !shared {
            errors.push(Error::forbidden(&policy, "allowMultipleAllocations must be true"));
        } else if has(capacity, "requestPolicy") {
            errors.extend(validate_policy(capacity, &policy));
        }
    }
    errors.extend(bounded(device, "taints", MAX_TAINTS, &path.child("taints"), taint));
    let by_set = |item: &Value| Value::from(text(item, "counterSet"));
    let consumed = path.child("consumesCounters");
    errors.extend(check_set(device, "consumesCounters", MAX_CONSUMED_SETS, &consumed, by_set, |set, at| {
        validate_counters(set, "counterSet", at)
    }));
    let fields = ["nodeName", "nodeSelector", "allNodes"];
    if each_node {
        errors.extend(which_nodes(device, &fields, "must not be empty", path));
    } else if fields.iter().any(|field| has(device, field)) {
        let detail = "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true \
                      in the ResourceSlice spec";
        errors.push(Error::invalid(path, Value::Null, detail));
    }
    errors.extend(binding_conditions(device, path));
    errors
}

/// Upstream: pkg/apis/resource/validation/validation.go validateDeviceAttribute
fn validate_attribute(attribute: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let check = |value: &Value, is_version: bool, at: &Path| {
        let text = value.as_str().unwrap_or_default();
        let mut errors = Errors::new();
        if is_version && !is_semver(text) {
            let detail = "must be a string compatible with semver.org spec 2.0.0";
            errors.push(Error::invalid(at, text, detail));
        }
        if text.len() > MAX_VALUE_BYTES {
            errors.push(Error::too_long(at, MAX_VALUE_BYTES));
        }
        errors
    };
    for field in ["string", "version"] {
        if let Some(value) = at(attribute, field) {
            errors.extend(check(value, field == "version", &path.child(field)));
        }
    }
    for field in LISTS.iter().filter(|field| has(attribute, field)) {
        let at = path.child(field);
        if list(attribute, field).is_empty() {
            errors.push(Error::invalid(&at, json!([]), "must not be empty if specified"));
        }
        if matches!(*field, "strings" | "versions") {
            let items = get::items(attribute, field, &at);
            errors.extend(items.iter().flat_map(|(value, at)| check(value, *field == "versions", at)));
        }
    }
    let given =
        ["bool", "int", "string", "version"].iter().chain(&LISTS).filter(|f| has(attribute, f)).count();
    match given {
        0 => errors.push(Error::invalid(path, "", "exactly one value must be specified")),
        1 => {}
        _ => errors.push(Error::invalid(path, attribute.clone(), "exactly one value must be specified")),
    }
    errors
}

/// A version as semver.org writes it: three numbers, and what may follow behind `-` and `+`.
fn is_semver(text: &str) -> bool {
    let (rest, build) = text.split_once('+').map_or((text, None), |(rest, build)| (rest, Some(build)));
    let (core, before) = rest.split_once('-').map_or((rest, None), |(core, before)| (core, Some(before)));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let plain_number = |part: &str| digits(part) && (part == "0" || !part.starts_with('0'));
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let release = |part: &str| word(part) && (!digits(part) || plain_number(part));
    core.split('.').count() == 3
        && core.split('.').all(plain_number)
        && before.is_none_or(|before| before.split('.').all(release))
        && build.is_none_or(|build| build.split('.').all(word))
}

/// How much of a capacity may be asked for.
///
/// Upstream: pkg/apis/resource/validation/validation.go validateRequestPolicy
fn validate_policy(capacity: &Value, path: &Path) -> Errors {
    let policy = &capacity["requestPolicy"];
    let values = !list(policy, "validValues").is_empty();
    let range = has(policy, "validRange");
    if values && range {
        let detail = "exactly one policy can be specified, cannot specify \"validValues\" and \"validRange\" at the \
                      same time";
        return vec![Error::forbidden(path, detail)];
    }
    let field = match (values, range) {
        (true, _) => "validValues",
        (_, true) => "validRange",
        _ => return Errors::new(),
    };
    if !has(policy, "default") {
        return vec![Error::required(&path.child("default"), format!("required when {field} is defined"))];
    }
    let read = |value: Option<&Value>| value.and_then(crate::validate::quantities::read);
    let (Some(whole), Some(default)) = (read(at(capacity, "value")), read(at(policy, "default"))) else {
        return Errors::new();
    };
    let path = path.child(field);
    if values {
        valid_values(policy, &whole, &default, &path)
    } else {
        valid_range(policy, &whole, &default, &path)
    }
}

fn valid_values(policy: &Value, whole: &Quantity, default: &Quantity, path: &Path) -> Errors {
    const MOST: usize = 10;
    let mut errors = Errors::new();
    let options: Vec<Quantity> =
        list(policy, "validValues").iter().filter_map(crate::validate::quantities::read).collect();
    for (place, pair) in options.windows(2).enumerate().filter(|(_, pair)| pair[0] > pair[1]) {
        let detail = "values must be sorted in ascending order";
        errors.push(Error::invalid(&path.index(place + 1), pair[1].to_string(), detail));
    }
    let key = |value: &Value| {
        let quantity = crate::validate::quantities::read(value);
        Value::from(quantity.map(|quantity| quantity.value().to_string()))
    };
    errors.extend(check_set(policy, "validValues", MOST, path, key, |value, at| {
        match crate::validate::quantities::read(value) {
            Some(option) if option > *whole => {
                let detail = format!("option is larger than capacity value: {whole}");
                vec![Error::invalid(at, option.to_string(), detail)]
            }
            _ => Errors::new(),
        }
    }));
    if !options.contains(default) {
        let detail = "default value is not valid according to the requestPolicy";
        errors.push(Error::invalid(path, default.to_string(), detail));
    }
    errors
}

fn valid_range(policy: &Value, whole: &Quantity, default: &Quantity, path: &Path) -> Errors {
    let read =
        |field: &str| at(policy, &format!("validRange.{field}")).and_then(crate::validate::quantities::read);
    let Some(min) = read("min") else {
        return vec![Error::required(&path.child("min"), "required when validRange is defined")];
    };
    let mut errors = Errors::new();
    let mut wrong = |field: &str, value: &Quantity, detail: String| {
        errors.push(Error::invalid(&path.child(field), value.to_string(), detail));
    };
    if min > *whole {
        wrong("min", &min, format!("min is larger than capacity value: {whole}"));
    }
    if *default < min {
        wrong("min", default, format!("default is less than min: {min}"));
    }
    let max = read("max");
    if let Some(max) = &max {
        if min > *max {
            wrong("max", &min, format!("min is larger than max: {max}"));
        }
        if max > whole {
            wrong("max", max, format!("max is larger than capacity value: {whole}"));
        }
        if default > max {
            wrong("max", default, format!("default is more than max: {max}"));
        }
    }
    let Some(step) = read("step") else { return errors };
    let mut added = min;
    added.add(&step);
    if added > *whole {
        wrong("step", &step, format!("one step {added} is larger than capacity value: {whole}"));
    }
    for value in std::iter::once(default).chain(&max) {
        let beyond = value.value().checked_sub(min.value()).and_then(|left| left.checked_rem(step.value()));
        if beyond != Some(0) {
            wrong("step", value, format!("value is not a multiple of a given step ({step}) from ({min})"));
        }
    }
    errors
}
