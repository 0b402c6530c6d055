//! ResourceClaim: devices that a pod wants.

use super::devices::{
    MAX_CONFIG, MAX_REQUESTS, RequestNames, bounded, claim_spec, configuration, label, pool_name, raw_object,
    set as check_set,
};
use crate::podspec;
use crate::prelude::*;
use crate::validate::{csi_driver_name, each, required_one_of};

const MAX_RESERVED: usize = 256;
const MAX_CONDITIONS: usize = 8;
const MAX_DATA_BYTES: usize = 10 << 10;
const MAX_ADDRESSES: usize = 16;
const MAX_BINDING_CONDITIONS: usize = 4;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("resource.k8s.io/v1", "ResourceClaim", "resourceclaims")
        .status()
        .columns("Name,State,Age", |o, now| cells![get::name(o), state(o), age(o, now)])
        .strategy(Rules {
            default: |o| default_spec(o, "spec"),
            validate_create: |o| claim_spec(at(o, "spec").unwrap_or(&Value::Null), &path("spec")),
            validate_update: |o, old| crate::validate::immutable(o, old, "spec"),
            validate_status,
            ..Rules::PLAIN
        })
        .build()
}

fn state(claim: &Value) -> String {
    let mut states = Vec::new();
    let deleted = has(claim, "metadata.deletionTimestamp");
    if deleted {
        states.push("deleted");
    }
    if has(claim, "status.allocation") {
        states.push("allocated");
        if !list(claim, "status.reservedFor").is_empty() {
            states.push("reserved");
        }
    } else if !deleted {
        states.push("pending");
    }
    states.join(",")
}

/// The defaults of a claim's spec, in a claim or a template of claims.
///
/// Upstream: pkg/apis/resource/v1/defaults.go
pub fn default_spec(object: &mut Value, spec: &str) {
    fn exact(request: &mut Value) {
        get::default(request, "allocationMode", "ExactCount");
        if text(request, "allocationMode") == "ExactCount" && number(request, "count") == 0 {
            set(request, "count", 1);
        }
    }
    for request in get::list_mut(object, &format!("{spec}.devices.requests")) {
        if let Some(value) = get::at_mut(request, "exactly") {
            exact(value);
        }
        get::list_mut(request, "firstAvailable").for_each(exact);
    }
}

/// Upstream: pkg/apis/resource/validation/validation.go validateResourceClaimStatusUpdate
fn validate_status(claim: &Value, old: &Value) -> Errors {
    let status = path("status");
    let by_uid = |consumer: &Value| Value::from(text(consumer, "uid"));
    let reserved = status.child("reservedFor");
    let mut errors =
        check_set(claim, "status.reservedFor", MAX_RESERVED, &reserved, by_uid, |consumer, at| {
            let missing = |field: &&&str| text(consumer, field).is_empty();
            let fields = ["resource", "name", "uid"];
            fields.iter().filter(missing).map(|field| Error::required(&at.child(field), "")).collect()
        });
    let allocated: Vec<Value> =
        list(claim, "status.allocation.devices.results").iter().map(device_id).collect();
    errors.extend(check_set(
        claim,
        "status.devices",
        usize::MAX,
        &status.child("devices"),
        device_id,
        |device, at| device_status(device, &allocated, at),
    ));
    let is_reserved = !list(claim, "status.reservedFor").is_empty();
    if is_reserved && !has(claim, "status.allocation") {
        let detail = "may not be specified when `allocated` is not set";
        errors.push(Error::forbidden(&reserved, detail));
    } else if has(claim, "metadata.deletionTimestamp") {
        let before = list(old, "status.reservedFor");
        if list(claim, "status.reservedFor").iter().any(|consumer| !before.contains(consumer)) {
            let detail =
                "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set";
            errors.push(Error::forbidden(&reserved, detail));
        }
    }
    match (at(claim, "status.allocation"), has(old, "status.allocation")) {
        (Some(_), true) => errors.extend(crate::validate::immutable(claim, old, "status.allocation")),
        (Some(allocation), false) => {
            let names = RequestNames::of(at(claim, "spec").unwrap_or(&Value::Null));
            errors.extend(validate_allocation(allocation, &names, &status.child("allocation")));
        }
        (None, _) => {}
    }
    errors
}

/// What tells one device from the others.
fn device_id(device: &Value) -> Value {
    let fields = ["driver", "pool", "device", "shareID"].map(|field| text(device, field));
    let [driver, pool, device, share] = fields;
    match share.is_empty() {
        true => format!("{driver}/{pool}/{device}").into(),
        false => format!("{driver}/{pool}/{device}/{share}").into(),
    }
}

fn share_id(device: &Value, at: &Path) -> Errors {
    let id = text(device, "shareID");
    let groups: Vec<usize> = id.split('-').map(str::len).collect();
    let plain = id.bytes().all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if !has(device, "shareID") || (groups == [8, 4, 4, 4, 12] && plain) {
        return Errors::new();
    }
    let detail = "uid must be in RFC 4122 normalized form, `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` with lowercase \
                  hexadecimal characters";
    vec![Error::invalid(&at.child("shareID"), id, detail)]
}

/// Which device it is.
fn device_names(device: &Value, at: &Path) -> Errors {
    let mut errors = csi_driver_name(text(device, "driver"), &at.child("driver"));
    errors.extend(pool_name(text(device, "pool"), &at.child("pool")));
    errors.extend(label(text(device, "device"), &at.child("device")));
    errors
}

fn device_status(device: &Value, allocated: &[Value], path: &Path) -> Errors {
    let mut errors = device_names(device, path);
    errors.extend(share_id(device, path));
    let id = device_id(device);
    if !allocated.contains(&id) {
        errors.push(Error::invalid(path, id, "must be an allocated device in the claim"));
    }
    let conditions = list(device, "conditions").len();
    if conditions > MAX_CONDITIONS {
        errors.push(Error::too_many(&path.child("conditions"), conditions, MAX_CONDITIONS));
    }
    if let Some(data) = at(device, "data") {
        errors.extend(raw_object(Some(data), &path.child("data"), MAX_DATA_BYTES));
    }
    let network = path.child("networkData");
    for (field, longest) in [("interfaceName", 256), ("hardwareAddress", 128)] {
        if text(device, &format!("networkData.{field}")).len() > longest {
            errors.push(Error::too_long(&network.child(field), longest));
        }
    }
    let ips = network.child("ips");
    errors.extend(check_set(device, "networkData.ips", MAX_ADDRESSES, &ips, Value::clone, |ip, at| {
        crate::validate::cidr(ip.as_str().unwrap_or_default(), at)
    }));
    errors
}

fn validate_allocation(allocation: &Value, names: &RequestNames, path: &Path) -> Errors {
    let devices = path.child("devices");
    let mut errors =
        bounded(allocation, "devices.results", MAX_REQUESTS, &devices.child("results"), |result, at| {
            let mut errors = names.check(text(result, "request"), &at.child("request"));
            errors.extend(device_names(result, at));
            errors.extend(binding_conditions(result, at));
            errors.extend(share_id(result, at));
            errors
        });
    let config = devices.child("config");
    errors.extend(bounded(allocation, "devices.config", 2 * MAX_CONFIG, &config, |config, at| {
        let source = ["FromClaim", "FromClass"];
        let mut errors = required_one_of(text(config, "source"), &at.child("source"), &source);
        errors.extend(names.check_all(config, at));
        errors.extend(configuration(config, at));
        errors
    }));
    if let Some(selector) = at(allocation, "nodeSelector") {
        errors.extend(podspec::validate_node_selector(selector, &path.child("nodeSelector")));
    }
    errors
}

/// Conditions that a device must have before its pod runs, and such that mean it never will.
pub fn binding_conditions(device: &Value, path: &Path) -> Errors {
    let (good, bad) = ("bindingConditions", "bindingFailureConditions");
    let name = |name: &Value, at: &Path| {
        let name = name.as_str().unwrap_or_default();
        each(names::qualified_name(name), at, name)
    };
    let check = |field: &str| {
        check_set(device, field, MAX_BINDING_CONDITIONS, &path.child(field), Value::clone, name)
    };
    let mut errors = check(good);
    errors.extend(check(bad));
    let wanted = list(device, good);
    for (condition, at) in get::items(device, bad, &path.child(bad)) {
        if wanted.contains(condition) {
            let detail = "bindingFailureConditions must not overlap with bindingConditions";
            errors.push(Error::invalid(&at, condition.clone(), detail));
        }
    }
    for (field, other) in [(good, bad), (bad, good)] {
        if list(device, field).is_empty() && !list(device, other).is_empty() {
            let detail = format!("{field} are required to use {other}");
            errors.push(Error::invalid(&path.child(field), json!([]), detail));
        }
    }
    errors
}
