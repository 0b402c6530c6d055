//! Workload: the policies by which the groups of pods are scheduled that belong to one controller.

use super::podgroups::{UNKNOWN, constraints, policy};
use crate::prelude::*;
use crate::validate::{dns_label, each, immutable};

/// Upstream: staging/src/k8s.io/api/scheduling/v1alpha2/types.go WorkloadMaxPodGroupTemplates
const MAX_TEMPLATES: usize = 8;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("scheduling.k8s.io/v1alpha2", "Workload", "workloads")
        .columns("Name,Age", |o, now| cells![get::name(o), age(o, now)])
        .strategy(Rules {
            prepare_create: |_, o| drop_unknown(o),
            prepare_update: |_, o, _| drop_unknown(o),
            validate,
            validate_update: |o, old| {
                let fields = ["spec.controllerRef", "spec.podGroupTemplates"];
                fields.iter().flat_map(|field| immutable(o, old, field)).collect()
            },
            ..Rules::PLAIN
        })
        .build()
}

fn drop_unknown(workload: &mut Value) {
    let templates = get::at_mut(workload, "spec.podGroupTemplates").and_then(Value::as_array_mut);
    for template in templates.into_iter().flatten().filter_map(Value::as_object_mut) {
        UNKNOWN.iter().for_each(|field| drop(template.remove(*field)));
    }
}

/// Upstream: pkg/apis/scheduling/v1alpha2/zz_generated.validations.go Validate_WorkloadSpec
fn validate(workload: &Value) -> Errors {
    let mut errors = Errors::new();
    if has(workload, "spec.controllerRef") {
        let of = path("spec.controllerRef");
        let group = text(workload, "spec.controllerRef.apiGroup");
        if !group.is_empty() {
            errors.extend(each(names::dns1123_subdomain(group), &of.child("apiGroup"), group));
        }
        for field in ["kind", "name"] {
            match text(workload, &format!("spec.controllerRef.{field}")) {
                "" => errors.push(Error::required(&of.child(field), "")),
                value => errors.extend(each(names::path_segment(value), &of.child(field), value)),
            }
        }
    }
    let (at, templates) = (path("spec.podGroupTemplates"), list(workload, "spec.podGroupTemplates"));
    if templates.is_empty() {
        errors.push(Error::required(&at, ""));
    }
    if templates.len() > MAX_TEMPLATES {
        errors.push(Error::too_many(&at, templates.len(), MAX_TEMPLATES));
    }
    for (index, template) in templates.iter().enumerate() {
        let (at, name) = (at.index(index), text(template, "name"));
        if templates[..index].iter().any(|other| text(other, "name") == name) {
            errors.push(Error::duplicate(&at, json!({ "name": name })));
        }
        match name {
            "" => errors.push(Error::required(&at.child("name"), "")),
            name => errors.extend(dns_label(name, &at.child("name"))),
        }
        errors.extend(policy(template.get("schedulingPolicy"), &at.child("schedulingPolicy")));
        let within = template.get("schedulingConstraints");
        errors.extend(constraints(within, &at.child("schedulingConstraints")));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_checked() {
        let check = |templates: Value, expected: &[&str]| {
            let said = validate(&json!({"spec": {"podGroupTemplates": templates}}));
            let said: Vec<String> = said.iter().map(|error| error.cause().field).collect();
            assert_eq!(said, expected);
        };
        let basic = json!({"basic": {}});
        check(json!([]), &["spec.podGroupTemplates"]);
        check(json!([{"name": "a", "schedulingPolicy": basic}]), &[]);
        check(
            json!([{"name": "a", "schedulingPolicy": basic}, {"name": "a", "schedulingPolicy": basic}]),
            &["spec.podGroupTemplates[1]"],
        );
        check(json!([{"name": "a"}]), &["spec.podGroupTemplates[0].schedulingPolicy"]);
    }
}
