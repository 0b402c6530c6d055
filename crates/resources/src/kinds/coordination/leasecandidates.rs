//! LeaseCandidate: who could hold a Lease, and of which version it is. Leaders are chosen among them.

use semver::Version;

use super::strategy;
use crate::prelude::*;
use crate::validate::immutable;

pub fn row() -> Arc<ResourceDef> {
    of_version("coordination.k8s.io/v1beta1").build()
}

/// Of the same shape.
pub fn row_v1alpha2() -> Arc<ResourceDef> {
    of_version("coordination.k8s.io/v1alpha2").stored("v1beta1").build()
}

fn of_version(version: &'static str) -> Row {
    Row::namespaced(version, "LeaseCandidate", "leasecandidates")
        .columns("Name,LeaseName,BinaryVersion,EmulationVersion,Age", |o, now| {
            let of = |field| text(o, field);
            cells![
                get::name(o),
                of("spec.leaseName"),
                of("spec.binaryVersion"),
                of("spec.emulationVersion"),
                age(o, now)
            ]
        })
        .fields(&["spec.leaseName"])
        .strategy(Rules {
            validate,
            validate_update: |o, old| immutable(o, old, "spec.leaseName"),
            name: names::config_map_key,
            create_on_update: true,
            unconditional_update: false,
            ..Rules::PLAIN
        })
}

/// The version in a field, if there is one; zero for what is not a version, of which it tells.
fn version(candidate: &Value, at: &str, errors: &mut Errors) -> Option<Version> {
    let written = Some(text(candidate, at)).filter(|written| !written.is_empty())?;
    Some(Version::parse(written).unwrap_or_else(|_| {
        errors.push(Error::invalid(&path(at), written, "must be a valid semantic version"));
        Version::new(0, 0, 0)
    }))
}

/// Upstream: pkg/apis/coordination/validation/validation.go ValidateLeaseCandidateSpec
fn validate(candidate: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    if text(candidate, "spec.leaseName").is_empty() {
        errors.push(Error::required(&spec.child("leaseName"), ""));
    }
    let emulated = version(candidate, "spec.emulationVersion", &mut errors);
    let binary = version(candidate, "spec.binaryVersion", &mut errors);
    let at = spec.child("binaryVersion");
    match (&binary, &emulated) {
        (None, _) => errors.push(Error::required(&at, "")),
        (Some(binary), Some(emulated)) if binary.cmp_precedence(emulated).is_lt() => {
            let why = "must be greater than or equal to `emulationVersion`";
            errors.push(Error::invalid(&at, text(candidate, "spec.binaryVersion"), why));
        }
        _ => {}
    }
    let at = spec.child("strategy");
    match text(candidate, "spec.strategy") {
        "" => errors.push(Error::required(&at, "")),
        chosen => {
            let is_zero =
                emulated.is_none_or(|version| version.cmp_precedence(&Version::new(0, 0, 0)).is_eq());
            if chosen == strategy::OLDEST && is_zero {
                let why = "must be specified when `strategy` is 'OldestEmulationVersion'";
                errors.push(Error::required(&spec.child("emulationVersion"), why));
            }
            errors.extend(strategy::validate(chosen, &at));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn candidates_are_judged_as_upstream_judges_them() {
        let whole = json!({
            "leaseName": "l", "binaryVersion": "1.36.0", "emulationVersion": "1.35.0", "strategy": "OldestEmulationVersion",
        });
        for (field, value, expected) in [
            ("leaseName", "l", &[] as &[&str]),
            ("leaseName", "", &["spec.leaseName: Required value"]),
            (
                "binaryVersion",
                "1.36",
                &[
                    "spec.binaryVersion: Invalid value: \"1.36\": must be a valid semantic version",
                    "spec.binaryVersion: Invalid value: \"1.36\": must be greater than or equal to `emulationVersion`",
                ],
            ),
            ("binaryVersion", "", &["spec.binaryVersion: Required value"]),
            (
                "binaryVersion",
                "1.34.0",
                &[
                    "spec.binaryVersion: Invalid value: \"1.34.0\": must be greater than or equal to `emulationVersion`",
                ],
            ),
            (
                "emulationVersion",
                "",
                &[
                    "spec.emulationVersion: Required value: must be specified when `strategy` is 'OldestEmulationVersion'",
                ],
            ),
            ("strategy", "", &["spec.strategy: Required value"]),
            ("strategy", "example.com/Mine", &[]),
            (
                "strategy",
                "Mine",
                &[
                    "spec.strategy.strategy: Unsupported value: \"Mine\": supported values: \"OldestEmulationVersion\"",
                ],
            ),
        ] {
            let mut candidate = json!({"spec": whole});
            candidate["spec"][field] = value.into();
            let said: Vec<String> = validate(&candidate).iter().map(ToString::to_string).collect();
            assert_eq!(said, expected, "{field}: {value}");
        }
    }
}
