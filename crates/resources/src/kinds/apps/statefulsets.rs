//! StatefulSet: pods with names and storage of their own.

use super::validate_selector;
use crate::podspec;
use crate::prelude::*;
use crate::validate::{int_or_percent, int_or_percent_value, non_negative, same};

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("apps/v1", "StatefulSet", "statefulsets")
        .short(&["sts"])
        .category("all")
        .scale()
        .status()
        .columns("Name,Ready,Age,+Containers,+Images", cells)
        .strategy(Rules {
            default,
            validate_create: |set| validate(set, true),
            validate_update,
            validate_status,
            name: names::dns1123_label,
            generation: true,
            warnings,
            ..Rules::PLAIN
        })
        .build()
}

fn cells(set: &Value, now: i64) -> Vec<Cell> {
    let (names, images) = print::containers(set, "spec.template.spec");
    let ready = format!("{}/{}", number(set, "status.readyReplicas"), number(set, "spec.replicas"));
    cells![get::name(set), ready, age(set, now), names, images]
}

/// Upstream: pkg/registry/apps/statefulset/strategy.go WarningsOnCreate
fn warnings(set: &Value) -> Vec<String> {
    let mut warnings = podspec::template_warnings(set);
    for (index, claim) in list(set, "spec.volumeClaimTemplates").iter().enumerate() {
        warnings.extend(podspec::claim_fractions(claim, &format!("spec.volumeClaimTemplates[{index}]")));
    }
    if number(set, "spec.revisionHistoryLimit") < 0 {
        let why = "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended";
        warnings.push(why.to_owned());
    }
    warnings
}

/// Upstream: pkg/apis/apps/v1/defaults.go SetDefaults_StatefulSet
fn default(set: &mut Value) {
    podspec::default_template(set, "spec.template");
    get::default(set, "spec.podManagementPolicy", "OrderedReady");
    if text(set, "spec.updateStrategy.type").is_empty() {
        get::set(set, "spec.updateStrategy.type", "RollingUpdate");
        get::default(set, "spec.updateStrategy.rollingUpdate", json!({}));
    }
    let rolling = text(set, "spec.updateStrategy.type") == "RollingUpdate";
    if rolling && has(set, "spec.updateStrategy.rollingUpdate") {
        get::default(set, "spec.updateStrategy.rollingUpdate.partition", 0);
    }
    for field in ["whenDeleted", "whenScaled"] {
        get::default(set, &format!("spec.persistentVolumeClaimRetentionPolicy.{field}"), "Retain");
    }
    get::default(set, "spec.replicas", 1);
    get::default(set, "spec.revisionHistoryLimit", 10);
    for claim in get::list_mut(set, "spec.volumeClaimTemplates") {
        get::set(claim, "apiVersion", "v1");
        get::set(claim, "kind", "PersistentVolumeClaim");
        crate::kinds::core::persistentvolumeclaims::default_spec(claim, "spec");
        get::default(claim, "status.phase", "Pending");
    }
}

/// Upstream: pkg/apis/apps/validation/validation.go ValidateStatefulSetSpec
fn validate(set: &Value, is_new: bool) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    match text(set, "spec.podManagementPolicy") {
        "" => errors.push(Error::required(&spec.child("podManagementPolicy"), "")),
        "OrderedReady" | "Parallel" => {}
        other => {
            let detail = "must be 'OrderedReady' or 'Parallel'";
            errors.push(Error::invalid(&spec.child("podManagementPolicy"), other, detail));
        }
    }
    errors.extend(validate_update_strategy(set));
    for field in ["whenDeleted", "whenScaled"] {
        let at = spec.child("persistentVolumeClaimRetentionPolicy").child(field);
        let value = text(set, &format!("spec.persistentVolumeClaimRetentionPolicy.{field}"));
        errors.extend(crate::validate::one_of(value, &at, &["Retain", "Delete"]));
    }
    for field in ["replicas", "minReadySeconds", "ordinals.start"] {
        errors.extend(non_negative(set, &format!("spec.{field}")));
    }
    let service = text(set, "spec.serviceName");
    // What cannot change is looked at when it comes.
    if !service.is_empty() && is_new {
        errors.extend(crate::validate::dns_label(service, &spec.child("serviceName")));
    }
    let claims = get::items(set, "spec.volumeClaimTemplates", &spec.child("volumeClaimTemplates"));
    for (claim, at) in claims.into_iter().filter(|_| is_new) {
        errors.extend(crate::kinds::core::persistentvolumeclaims::validate_spec(claim, &at.child("spec")));
    }
    errors.extend(validate_selector(set, "statefulset"));
    errors.extend(podspec::validate_workload_template(&with_claims(set), "StatefulSet"));
    errors
}

/// The set as its pods will be: each template of a claim is a volume as well, and their names are not the template's.
fn with_claims(set: &Value) -> Value {
    let mut whole = set.clone();
    for field in ["hostname", "subdomain"] {
        get::remove(&mut whole, &format!("spec.template.spec.{field}"));
    }
    let claims: Vec<String> =
        list(set, "spec.volumeClaimTemplates").iter().map(|c| get::name(c).to_owned()).collect();
    if claims.is_empty() {
        return whole;
    }
    let mut volumes: Vec<Value> = claims
        .iter()
        .map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}}))
        .collect();
    let own = list(set, "spec.template.spec.volumes").iter();
    volumes.extend(own.filter(|v| !claims.iter().any(|c| c == text(v, "name"))).cloned());
    get::set(&mut whole, "spec.template.spec.volumes", volumes);
    whole
}

fn validate_update_strategy(set: &Value) -> Errors {
    let mut errors = Errors::new();
    let strategy = path("spec.updateStrategy");
    let rolling = strategy.child("rollingUpdate");
    match text(set, "spec.updateStrategy.type") {
        "" => errors.push(Error::required(&strategy, "")),
        "OnDelete" => {
            if let Some(value) = at(set, "spec.updateStrategy.rollingUpdate") {
                let detail = "only allowed for updateStrategy 'RollingUpdate'";
                errors.push(Error::invalid(&rolling, value.clone(), detail));
            }
        }
        "RollingUpdate" => {
            errors.extend(non_negative(set, "spec.updateStrategy.rollingUpdate.partition"));
            if let Some(value) = at(set, "spec.updateStrategy.rollingUpdate.maxUnavailable") {
                let at = rolling.child("maxUnavailable");
                errors.extend(int_or_percent(value, &at, true));
                if int_or_percent_value(value) == 0 {
                    errors.push(Error::invalid(&at, value.clone(), "cannot be 0"));
                }
            }
        }
        _ => {
            let value = at(set, "spec.updateStrategy").cloned().unwrap_or_default();
            errors.push(Error::invalid(&strategy, value, "must be 'RollingUpdate' or 'OnDelete'"));
        }
    }
    errors
}

/// Upstream: pkg/apis/apps/validation/validation.go ValidateStatefulSetUpdate
fn validate_update(set: &Value, old: &Value) -> Errors {
    const MUTABLE: &[&str] = &[
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "minReadySeconds",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
    ];
    let fixed = |value: &Value| {
        let mut spec = at(value, "spec").cloned().unwrap_or_default();
        MUTABLE.iter().for_each(|field| {
            get::remove(&mut spec, field);
        });
        spec
    };
    let mut errors = validate(set, false);
    if same(Some(&fixed(set)), Some(&fixed(old))) {
        return errors;
    }
    let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                  'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                  'minReadySeconds' are forbidden";
    errors.push(Error::forbidden(&path("spec"), detail));
    errors
}

fn validate_status(set: &Value, old: &Value) -> Errors {
    const COUNTS: &[&str] = &["readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
    let mut errors = super::validate_counts(set, COUNTS);
    let collisions = number(set, "status.collisionCount");
    if collisions < number(old, "status.collisionCount") {
        errors.push(Error::invalid(&path("status.collisionCount"), collisions, "cannot be decremented"));
    }
    errors
}
