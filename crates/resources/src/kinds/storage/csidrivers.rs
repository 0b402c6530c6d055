//! CSIDriver: what a storage driver can do.

use crate::prelude::*;
use crate::validate::one_of;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("storage.k8s.io/v1", "CSIDriver", "csidrivers")
        .columns(
            "Name,AttachRequired:boolean,PodInfoOnMount:boolean,StorageCapacity:boolean,TokenRequests,\
             RequiresRepublish:boolean,Modes,Age",
            cells,
        )
        .strategy(Rules {
            default,
            validate,
            warnings,
            validate_update,
            unconditional_update: false,
            ..Rules::PLAIN
        })
        .build()
}

fn cells(driver: &Value, now: i64) -> Vec<Cell> {
    let audiences: Vec<&str> =
        list(driver, "spec.tokenRequests").iter().map(|t| text(t, "audience")).collect();
    let tokens = if has(driver, "spec.tokenRequests") { audiences.join(",") } else { "<unset>".to_owned() };
    let modes = get::texts(driver, "spec.volumeLifecycleModes");
    cells![
        get::name(driver),
        get::flag(driver, "spec.attachRequired").unwrap_or(true),
        is_true(driver, "spec.podInfoOnMount"),
        is_true(driver, "spec.storageCapacity"),
        tokens,
        is_true(driver, "spec.requiresRepublish"),
        if modes.is_empty() { "<none>".to_owned() } else { modes.join(",") },
        age(driver, now),
    ]
}

fn warnings(driver: &Value) -> Vec<String> {
    let asks = !list(driver, "spec.tokenRequests").is_empty();
    let why = "spec.serviceAccountTokenInSecrets is unset; if supported by this CSI driver, set to true to prevent \
               possible logging of tokens in volume attributes";
    let silent = !has(driver, "spec.serviceAccountTokenInSecrets");
    (asks && silent).then(|| why.to_owned()).into_iter().collect()
}

/// Upstream: pkg/apis/storage/v1/defaults.go SetDefaults_CSIDriver
fn default(driver: &mut Value) {
    get::default(driver, "spec.attachRequired", true);
    for field in ["podInfoOnMount", "storageCapacity", "requiresRepublish", "seLinuxMount"] {
        get::default(driver, &format!("spec.{field}"), false);
    }
    get::default_absent(driver, "spec.fsGroupPolicy", "ReadWriteOnceWithFSType");
    if list(driver, "spec.volumeLifecycleModes").is_empty() {
        set(driver, "spec.volumeLifecycleModes", json!(["Persistent"]));
    }
}

/// Upstream: pkg/apis/storage/validation/validation.go ValidateCSIDriver
fn validate(driver: &Value) -> Errors {
    const NAME: usize = 63;
    const POLICIES: &[&str] = &["File", "None", "ReadWriteOnceWithFSType"];
    let mut errors = Errors::new();
    let name = get::name(driver);
    if name.len() > NAME {
        errors.push(Error::too_long(&path("metadata.name"), NAME));
    }
    let spec = path("spec");
    for field in ["attachRequired", "podInfoOnMount", "storageCapacity"] {
        if !has(driver, &format!("spec.{field}")) {
            errors.push(Error::required(&spec.child(field), ""));
        }
    }
    match at(driver, "spec.fsGroupPolicy").and_then(Value::as_str) {
        None => errors.push(Error::required(&spec.child("fsGroupPolicy"), "")),
        Some(policy) => errors.extend(one_of(policy, &spec.child("fsGroupPolicy"), POLICIES)),
    }
    let mut audiences = Vec::new();
    for (token, at) in get::items(driver, "spec.tokenRequests", &spec.child("tokenRequests")) {
        let audience = text(token, "audience");
        if audiences.contains(&audience) {
            errors.push(Error::duplicate(&at.child("audience"), audience));
        }
        audiences.push(audience);
        if let Some(seconds) = get::int(token, "expirationSeconds") {
            let at = at.child("expirationSeconds");
            if seconds < 600 {
                errors.push(Error::invalid(&at, seconds, "may not specify a duration less than 10 minutes"));
            } else if seconds > 1 << 32 {
                errors.push(Error::invalid(
                    &at,
                    seconds,
                    "may not specify a duration larger than 2^32 seconds",
                ));
            }
        }
    }
    for mode in get::texts(driver, "spec.volumeLifecycleModes") {
        errors.extend(one_of(mode, &spec.child("volumeLifecycleModes"), &["Persistent", "Ephemeral"]));
    }
    if let Some(seconds) = get::int(driver, "spec.nodeAllocatableUpdatePeriodSeconds")
        && seconds < 10
    {
        let at = spec.child("nodeAllocatableUpdatePeriodSeconds");
        errors.push(Error::invalid(&at, seconds, "must be greater than or equal to 10 seconds"));
    }
    errors
}

/// Upstream: pkg/apis/storage/validation/validation.go ValidateCSIDriverUpdate
fn validate_update(driver: &Value, old: &Value) -> Errors {
    ["attachRequired", "volumeLifecycleModes"]
        .iter()
        .flat_map(|field| crate::validate::immutable(driver, old, &format!("spec.{field}")))
        .collect()
}
