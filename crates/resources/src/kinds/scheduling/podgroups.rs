//! PodGroup: pods that are scheduled by one policy, for example all or none.

use crate::prelude::*;
use crate::validate::{conditions, dns_label, each, immutable};

/// Fields of features that upstream has and this does not.
pub(super) const UNKNOWN: &[&str] = &["resourceClaims", "disruptionMode", "priorityClassName", "priority"];

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("scheduling.k8s.io/v1alpha2", "PodGroup", "podgroups")
        .columns("Name,Policy,Workload,Status,Age", |o, now| {
            let policy = if has(o, "spec.schedulingPolicy.gang") { "Gang" } else { "Basic" };
            let workload = print::or(o, "spec.podGroupTemplateRef.workload.workloadName", "<none>");
            cells![get::name(o), policy, workload, phase(o), age(o, now)]
        })
        .strategy(Rules {
            prepare_create: |_, o| drop_unknown(o),
            prepare_update: |_, o, _| drop_unknown(o),
            validate,
            validate_update: |o, old| {
                let fields =
                    ["spec.podGroupTemplateRef", "spec.schedulingPolicy", "spec.schedulingConstraints"];
                fields.iter().flat_map(|field| immutable(o, old, field)).collect()
            },
            validate_status: |o, _| conditions(list(o, "status.conditions"), &path("status.conditions")),
            ..Rules::PLAIN
        })
        .status()
        .build()
}

fn drop_unknown(group: &mut Value) {
    if let Some(spec) = get::fields_mut(group, "spec") {
        UNKNOWN.iter().for_each(|field| drop(spec.remove(*field)));
    }
}

/// Upstream: pkg/printers/internalversion/printers.go printPodGroup
fn phase(group: &Value) -> &str {
    let said = |kind: &str| list(group, "status.conditions").iter().rfind(|c| text(c, "type") == kind);
    if let Some(condition) = said("DisruptionTarget") {
        return text(condition, "reason");
    }
    match said("PodGroupScheduled") {
        None => "Pending",
        Some(condition) if text(condition, "status") == "True" => "Scheduled",
        Some(_) => "Unschedulable",
    }
}

/// Upstream: pkg/apis/scheduling/v1alpha2/zz_generated.validations.go Validate_PodGroupSpec
fn validate(group: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    let of = spec.child("podGroupTemplateRef");
    if let Some(reference) = at(group, "spec.podGroupTemplateRef").filter(|reference| !reference.is_null()) {
        if !has(reference, "workload") {
            errors.push(Error::invalid(&of, "", "must specify one of: `workload`"));
        } else {
            let of = of.child("workload");
            let name = text(reference, "workload.workloadName");
            match name {
                "" => errors.push(Error::required(&of.child("workloadName"), "")),
                name => errors.extend(each(names::dns1123_subdomain(name), &of.child("workloadName"), name)),
            }
            let template = of.child("podGroupTemplateName");
            match text(reference, "workload.podGroupTemplateName") {
                "" => errors.push(Error::required(&template, "")),
                name => errors.extend(dns_label(name, &template)),
            }
        }
    }
    errors.extend(policy(at(group, "spec.schedulingPolicy"), &spec.child("schedulingPolicy")));
    errors.extend(constraints(at(group, "spec.schedulingConstraints"), &spec.child("schedulingConstraints")));
    errors
}

/// Upstream: pkg/apis/scheduling/v1alpha2/zz_generated.validations.go Validate_PodGroupSchedulingConstraints
pub(super) fn constraints(constraints: Option<&Value>, path: &Path) -> Errors {
    const MAX: usize = 1;
    let path = path.child("topology");
    let topology = constraints.map_or(&[][..], |constraints| list(constraints, "topology"));
    if topology.len() > MAX {
        return vec![Error::too_many(&path, topology.len(), MAX)];
    }
    let keys = topology.iter().enumerate().map(|(index, constraint)| {
        let at = path.index(index).child("key");
        match text(constraint, "key") {
            "" => vec![Error::required(&at, "")],
            key => each(names::qualified_name(key), &at, key),
        }
    });
    keys.flatten().collect()
}

/// Upstream: pkg/apis/scheduling/v1alpha2/zz_generated.validations.go Validate_PodGroupSchedulingPolicy
pub(super) fn policy(policy: Option<&Value>, path: &Path) -> Errors {
    let set = |name: &str| policy.is_some_and(|policy| has(policy, name));
    match (set("basic"), set("gang")) {
        (false, false) => vec![Error::invalid(path, "", "must specify one of: `basic`, `gang`")],
        (true, true) => {
            let both = "{`basic`, `gang`}";
            vec![Error::invalid(path, both, "must specify exactly one of: `basic`, `gang`")]
        }
        (true, false) => Errors::new(),
        (false, true) => {
            let least = path.child("gang").child("minCount");
            match policy.map_or(0, |policy| number(policy, "gang.minCount")) {
                0 => vec![Error::required(&least, "")],
                count if count < 1 => {
                    vec![Error::invalid(&least, count, "must be greater than or equal to 1")]
                }
                _ => Errors::new(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_one_policy() {
        let check = |spec: Value, expected: &[&str]| {
            let said: Vec<String> =
                validate(&json!({ "spec": spec })).iter().map(|error| error.cause().field).collect();
            assert_eq!(said, expected);
        };
        check(json!({"schedulingPolicy": {"basic": {}}}), &[]);
        check(json!({"schedulingPolicy": {"gang": {"minCount": 3}}}), &[]);
        check(
            json!({"schedulingPolicy": {"gang": {"minCount": -1}}}),
            &["spec.schedulingPolicy.gang.minCount"],
        );
        check(json!({"schedulingPolicy": {}}), &["spec.schedulingPolicy"]);
        check(
            json!({"schedulingPolicy": {"basic": {}, "gang": {"minCount": 3}}}),
            &["spec.schedulingPolicy"],
        );
        let within = |keys: Value| json!({"schedulingPolicy": {"basic": {}}, "schedulingConstraints": {"topology": keys}});
        check(within(json!([{"key": "example.org/rack"}])), &[]);
        check(within(json!([{}])), &["spec.schedulingConstraints.topology[0].key"]);
        check(within(json!([{"key": "-"}])), &["spec.schedulingConstraints.topology[0].key"]);
        check(within(json!([{"key": "a"}, {"key": "b"}])), &["spec.schedulingConstraints.topology"]);
        let reference = json!({"workload": {"workloadName": "w", "podGroupTemplateName": "a.b"}});
        check(
            json!({"schedulingPolicy": {"basic": {}}, "podGroupTemplateRef": reference}),
            &["spec.podGroupTemplateRef.workload.podGroupTemplateName"],
        );
    }
}
