//! What may change in a pod that exists.
//!
//! Upstream: pkg/apis/core/validation/validation.go ValidatePodUpdate, ValidatePodStatusUpdate

use std::collections::BTreeMap;

use crate::podspec;
use crate::prelude::*;
use crate::validate::same;

const CHANGEABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                          `spec.tolerations` (only additions to existing tolerations),\
                          `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub fn validate(pod: &Value, old: &Value) -> Errors {
    let (empty, none) = (Value::Null, Value::Null);
    let (spec, old_spec) = (at(pod, "spec").unwrap_or(&empty), at(old, "spec").unwrap_or(&none));
    let mut errors = podspec::validate_pod(spec);
    for field in ["containers", "initContainers"] {
        let at_field = path("spec").child(field);
        if list(spec, field).len() != list(old_spec, field).len() {
            errors.push(Error::forbidden(&at_field, "pod updates may not add or remove containers"));
            return errors;
        }
    }
    if let Some(error) = validate_deadline(spec, old_spec) {
        errors.push(error);
    }
    errors.extend(validate_tolerations(spec, old_spec));
    errors.extend(validate_gates(spec, old_spec));
    if same(Some(spec), Some(old_spec)) {
        return errors;
    }
    let munged = munge(spec, old_spec);
    if !same(Some(&munged), Some(old_spec)) {
        let changed = differing(&munged, old_spec);
        let detail = format!("pod updates may not change fields other than {CHANGEABLE}\n{changed}");
        errors.push(Error::forbidden(&path("spec"), detail));
    }
    errors
}

/// The new spec with all that may change put back as it was.
fn munge(spec: &Value, old: &Value) -> Value {
    let mut munged = spec.clone();
    for field in ["containers", "initContainers"] {
        let images: Vec<String> = list(old, field).iter().map(|c| text(c, "image").to_owned()).collect();
        for (container, image) in get::list_mut(&mut munged, field).zip(images) {
            set(container, "image", image);
        }
    }
    let mut kept = vec!["activeDeadlineSeconds", "schedulingGates", "tolerations", "serviceAccount"];
    let was_negative = number(old, "terminationGracePeriodSeconds") < 0;
    if was_negative && number(spec, "terminationGracePeriodSeconds") == 1 {
        kept.push("terminationGracePeriodSeconds");
    }
    // Until it is let go to the scheduler, where it may run can still be narrowed.
    if !list(old, "schedulingGates").is_empty() && narrows(spec, old) {
        kept.extend(["nodeSelector", "affinity"]);
    }
    for field in kept {
        match old.get(field) {
            Some(value) => set(&mut munged, field, value.clone()),
            None => {
                get::remove(&mut munged, field);
            }
        }
    }
    munged
}

/// Whether the node selector only grew and nothing but a node affinity was added.
fn narrows(spec: &Value, old: &Value) -> bool {
    let grew = get::entries(old, "nodeSelector")
        .all(|(key, value)| spec.get("nodeSelector").and_then(|s| s.get(key)) == Some(value));
    let others = ["affinity.podAffinity", "affinity.podAntiAffinity"];
    let pods_kept = others.iter().all(|field| same(at(spec, field), at(old, field)));
    let had_affinity = has(old, "affinity.nodeAffinity");
    let affinity_kept = same(at(spec, "affinity.nodeAffinity"), at(old, "affinity.nodeAffinity"));
    grew && pods_kept && (!had_affinity || affinity_kept)
}

/// The names of the fields that differ.
fn differing(spec: &Value, old: &Value) -> String {
    let fields = |value: &Value| -> Vec<String> {
        value.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let mut names: Vec<String> = fields(spec).into_iter().chain(fields(old)).collect();
    names.sort();
    names.dedup();
    names.retain(|name| !same(spec.get(name), old.get(name)));
    let shown = |value: Option<&Value>| value.map_or_else(|| "null".to_owned(), Value::to_string);
    let lines = names
        .iter()
        .map(|name| format!("- {name}: {}\n+ {name}: {}", shown(old.get(name)), shown(spec.get(name))));
    lines.collect::<Vec<_>>().join("\n")
}

fn validate_deadline(spec: &Value, old: &Value) -> Option<Error> {
    let field = path("spec.activeDeadlineSeconds");
    match (get::int(spec, "activeDeadlineSeconds"), get::int(old, "activeDeadlineSeconds")) {
        (Some(new), Some(old)) if old < new => {
            Some(Error::invalid(&field, new, "must be less than or equal to previous value"))
        }
        (None, Some(_)) => {
            Some(Error::invalid(&field, Value::Null, "must not update from a positive integer to nil value"))
        }
        _ => None,
    }
}

/// Tolerations stay, but for how long they hold; more may come.
fn validate_tolerations(spec: &Value, old: &Value) -> Errors {
    let key = |toleration: &Value| {
        let mut toleration = toleration.clone();
        get::remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let kept = list(old, "tolerations")
        .iter()
        .all(|o| list(spec, "tolerations").iter().any(|n| same(Some(&key(o)), Some(&key(n)))));
    if kept {
        return Errors::new();
    }
    let detail = "existing toleration can not be modified except its tolerationSeconds";
    vec![Error::forbidden(&path("spec.tolerations"), detail)]
}

fn validate_gates(spec: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    for (gate, at) in get::items(spec, "schedulingGates", &path("spec.schedulingGates")) {
        let name = text(gate, "name");
        if !list(old, "schedulingGates").iter().any(|g| text(g, "name") == name) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.push(Error::forbidden(&at.child("name"), detail));
        }
    }
    errors
}

/// Makes a pod as it was, but for the fields of its metadata that are the client's and one part of its spec.
///
/// Upstream: pkg/registry/core/pod/strategy.go dropNonEphemeralContainerUpdates
pub fn prepare_ephemeral_containers(pod: &mut Value, old: &Value) {
    let own = at(pod, "spec.ephemeralContainers").cloned();
    crate::strategy::carry_over(pod, old, "spec");
    crate::strategy::carry_over(pod, old, "status");
    match own {
        Some(own) => set(pod, "spec.ephemeralContainers", own),
        None => {
            get::remove(pod, "spec.ephemeralContainers");
        }
    }
}

/// Ephemeral containers only come; those that are there stay as they are.
///
/// Upstream: pkg/apis/core/validation/validation.go ValidatePodEphemeralContainersUpdate
pub fn validate_ephemeral_containers(pod: &Value, old: &Value) -> Errors {
    let mut errors = podspec::validate_pod(at(pod, "spec").unwrap_or(&Value::Null));
    let field = path("spec.ephemeralContainers");
    let annotations = at(old, "metadata.annotations");
    if annotations.is_some_and(|a| a.get("kubernetes.io/config.mirror").is_some()) {
        return vec![Error::forbidden(&Path::root(), "static pods do not support ephemeral containers")];
    }
    for was in list(old, "spec.ephemeralContainers") {
        let name = text(was, "name");
        let is = list(pod, "spec.ephemeralContainers").iter().find(|c| text(c, "name") == name);
        let done = match is {
            None => "removed",
            Some(is) if !same(Some(is), Some(was)) => "changed",
            Some(_) => continue,
        };
        let detail = format!("existing ephemeral containers {name:?} may not be {done}\n");
        errors.push(Error::forbidden(&field, detail));
    }
    errors
}

/// Makes a pod as it was, but for the resources of its containers.
///
/// Upstream: pkg/registry/core/pod/strategy.go dropNonResizeUpdates
pub fn prepare_resize(pod: &mut Value, old: &Value) {
    let wanted = pod.clone();
    crate::strategy::carry_over(pod, old, "spec");
    crate::strategy::carry_over(pod, old, "status");
    for field in ["spec.containers", "spec.initContainers"] {
        for container in get::list_mut(pod, field) {
            let name = text(container, "name").to_owned();
            let Some(wanted) = list(&wanted, field).iter().find(|c| text(c, "name") == name) else {
                continue;
            };
            for part in ["resources", "resizePolicy"] {
                crate::strategy::carry_over(container, wanted, part);
            }
        }
    }
}

/// Processors and memory may change, but neither in ways that change the class of service nor by going away.
///
/// Upstream: pkg/apis/core/validation/validation.go ValidatePodResize
pub fn validate_resize(pod: &Value, old: &Value) -> Errors {
    let (none, spec) = (Value::Null, path("spec"));
    let (new_spec, old_spec) = (at(pod, "spec").unwrap_or(&none), at(old, "spec").unwrap_or(&none));
    let mut errors = podspec::validate_pod(new_spec);
    let class = podspec::qos_class(new_spec);
    if class != podspec::qos_class(old_spec) {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.push(Error::invalid(&spec, class, detail));
    }
    for field in ["containers", "initContainers"] {
        let olds = list(old_spec, field);
        for ((container, at_one), was) in
            get::items(new_spec, field, &spec.child(field)).into_iter().zip(olds)
        {
            for amounts in ["limits", "requests"] {
                let part = format!("resources.{amounts}");
                let kept = |name: &str| at(container, &part).is_some_and(|r| r.get(name).is_some());
                if get::entries(was, &part).any(|(name, _)| !kept(name)) {
                    let detail = format!("resource {amounts} cannot be removed");
                    errors.push(Error::forbidden(&at_one.child("resources").child(amounts), detail));
                }
            }
        }
    }
    errors
}

/// A client that does not know of observed generations keeps those that are there.
///
/// Upstream: pkg/registry/core/pod/strategy.go preserveOldObservedGeneration
pub fn keep_observed_generations(pod: &mut Value, old: &Value) {
    let observed = number(old, "status.observedGeneration");
    if number(pod, "status.observedGeneration") == 0 && observed != 0 {
        set(pod, "status.observedGeneration", observed);
    }
    let mut old_generations: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for condition in list(old, "status.conditions").iter().rev() {
        let generation = number(condition, "observedGeneration");
        old_generations.entry(text(condition, "type")).or_default().push(generation);
    }
    for condition in get::list_mut(pod, "status.conditions") {
        let kind = text(condition, "type").to_owned();
        let generation = old_generations.get_mut(kind.as_str()).and_then(Vec::pop).unwrap_or(0);
        if number(condition, "observedGeneration") == 0 && generation != 0 {
            set(condition, "observedGeneration", generation);
        }
    }
}

/// Upstream: pkg/apis/core/validation/validation.go ValidatePodStatusUpdate
pub fn validate_status(pod: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let status = path("status");
    let name = text(pod, "status.nominatedNodeName");
    if !name.is_empty() {
        let at = status.child("nominatedNodeName");
        errors.extend(crate::validate::each(names::dns1123_subdomain(name), &at, name));
    }
    let observed = number(pod, "status.observedGeneration");
    if observed < 0 {
        errors.push(Error::invalid(&status.child("observedGeneration"), observed, "may not be negative"));
    }
    errors.extend(validate_no_restart(pod, old, "containerStatuses"));
    for (ip, at) in get::items(pod, "status.podIPs", &status.child("podIPs")) {
        errors.extend(crate::validate::ip(text(ip, "ip"), &at));
    }
    let qos = text(pod, "status.qosClass");
    if qos != text(old, "status.qosClass") && !text(old, "status.qosClass").is_empty() {
        errors.push(Error::invalid(&status.child("qosClass"), qos, crate::validate::IMMUTABLE));
    }
    errors
}

/// A container that ended for good does not run again.
///
/// Upstream: pkg/apis/core/validation/validation.go ValidateContainerStateTransition
fn validate_no_restart(pod: &Value, old: &Value, field: &str) -> Errors {
    let policy = text(old, "spec.restartPolicy");
    if policy == "Always" || policy.is_empty() {
        return Errors::new();
    }
    let mut errors = Errors::new();
    let statuses = list(pod, &format!("status.{field}"));
    for (index, was) in list(old, &format!("status.{field}")).iter().enumerate() {
        let Some(terminated) = at(was, "state.terminated") else { continue };
        let containers = list(old, "spec.containers");
        let own = containers.iter().find(|c| text(c, "name") == text(was, "name"));
        let restarts = own.is_some_and(|c| has(c, "restartPolicy"));
        if restarts || (policy == "OnFailure" && number(terminated, "exitCode") != 0) {
            continue;
        }
        let is = statuses.iter().find(|s| text(s, "name") == text(was, "name"));
        if is.is_some_and(|s| !has(s, "state.terminated")) {
            let at = path("status").child(field).index(index).child("state");
            errors.push(Error::forbidden(&at, "may not be transitioned to non-terminated state"));
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(change: impl FnOnce(&mut Value)) -> Value {
        let mut pod = json!({"spec": {"containers": [{"name": "c", "image": "i:1"}],
            "nodeName": "n", "tolerations": [{"key": "k", "operator": "Exists", "effect": "NoExecute"}]}});
        super::super::default(&mut pod);
        change(&mut pod);
        pod
    }

    fn check(change: impl FnOnce(&mut Value), expected: &[&str]) {
        let errors = validate(&pod(change), &pod(|_| ()));
        let shown: Vec<String> =
            errors.iter().map(|e| e.to_string().lines().next().unwrap().to_owned()).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn little_of_a_pod_may_change() {
        check(|_| (), &[]);
        check(|p| p["spec"]["containers"][0]["image"] = "i:2".into(), &[]);
        check(|p| p["spec"]["activeDeadlineSeconds"] = 5.into(), &[]);
        check(|p| p["spec"]["tolerations"][0]["tolerationSeconds"] = 5.into(), &[]);
        check(|p| p["spec"]["hostNetwork"] = false.into(), &[]);
        let forbidden = format!("spec: Forbidden: pod updates may not change fields other than {CHANGEABLE}");
        check(|p| p["spec"]["nodeName"] = "m".into(), &[&forbidden]);
        check(|p| p["spec"]["containers"][0]["args"] = json!(["a"]), &[&forbidden]);
        check(
            |p| p["spec"]["tolerations"] = json!([]),
            &[
                "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
            ],
        );
        check(
            |p| p["spec"]["containers"] = json!([]),
            &[
                "spec.containers: Required value",
                "spec.containers: Forbidden: pod updates may not add or remove containers",
            ],
        );
        check(
            |p| p["spec"]["schedulingGates"] = json!([{"name": "g"}]),
            &[
                "spec.schedulingGates[0].name: Forbidden: only deletion is allowed, but found new scheduling gate 'g'",
            ],
        );
    }

    #[test]
    fn observed_generations_are_kept() {
        let old = json!({"status": {"observedGeneration": 2, "conditions": [
            {"type": "Ready", "observedGeneration": 2}, {"type": "Other", "observedGeneration": 1}]}});
        let mut new = json!({"status": {"conditions": [{"type": "Ready"}, {"type": "Other", "observedGeneration": 3},
            {"type": "New"}]}});
        keep_observed_generations(&mut new, &old);
        let expected = json!({"observedGeneration": 2, "conditions": [{"type": "Ready", "observedGeneration": 2},
            {"type": "Other", "observedGeneration": 3}, {"type": "New"}]});
        assert_eq!(new["status"], expected);
    }
}
