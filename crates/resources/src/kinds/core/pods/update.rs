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
    keep_metadata(pod, old);
    match own {
        Some(own) => set(pod, "spec.ephemeralContainers", own),
        None => {
            get::remove(pod, "spec.ephemeralContainers");
        }
    }
}

/// What a write to a part of a pod leaves of its metadata.
///
/// Upstream: apimachinery/pkg/apis/meta/v1/helpers.go ResetObjectMetaForStatus
fn keep_metadata(pod: &mut Value, old: &Value) {
    let (Some(metadata), Some(was)) = (pod.get_mut("metadata"), old.get("metadata")) else { return };
    for field in ["deletionTimestamp", "labels", "annotations", "finalizers", "ownerReferences"] {
        crate::strategy::carry_over(metadata, was, field);
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
    const LISTS: [&str; 2] = ["spec.containers", "spec.initContainers"];
    // Who brings or takes containers is refused when the pod is checked.
    if LISTS.iter().any(|field| list(pod, field).len() != list(old, field).len()) {
        return;
    }
    let wanted = pod.clone();
    crate::strategy::carry_over(pod, old, "spec");
    crate::strategy::carry_over(pod, old, "status");
    keep_metadata(pod, old);
    match at(&wanted, "spec.resources") {
        Some(resources) => set(pod, "spec.resources", resources.clone()),
        None => drop(get::remove(pod, "spec.resources")),
    }
    for field in LISTS {
        let wanted = list(&wanted, field);
        if wanted.iter().zip(list(pod, field)).any(|(a, b)| text(a, "name") != text(b, "name")) {
            set(pod, field, wanted.to_vec());
            continue;
        }
        for (container, wanted) in get::list_mut(pod, field).zip(wanted) {
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
    let annotations = at(old, "metadata.annotations");
    if annotations.is_some_and(|a| a.get("kubernetes.io/config.mirror").is_some()) {
        return vec![Error::forbidden(&Path::root(), "static pods cannot be resized")];
    }
    if text(old_spec, "os.name") == "windows" {
        return vec![Error::forbidden(&Path::root(), "windows pods cannot be resized")];
    }
    let mut errors = podspec::validate_pod(new_spec);
    if podspec::qos_class(new_spec) != podspec::qos_class(old_spec) {
        let detail = "Pod QOS Class may not change as a result of resizing";
        // Upstream shows the class that the pod still has.
        errors.push(Error::invalid(&spec, text(pod, "status.qosClass"), detail));
    }
    errors.extend(resized_pod(new_spec, old_spec));
    let others: Errors = ["containers", "initContainers"]
        .iter()
        .flat_map(|field| other_containers(new_spec, old_spec, field))
        .collect();
    if !others.is_empty() {
        errors.extend(others);
        return errors;
    }
    for field in ["initContainers", "containers"] {
        let pairs = get::items(new_spec, field, &spec.child(field)).into_iter().zip(list(old_spec, field));
        for ((container, at_one), was) in pairs {
            errors.extend(removed_amounts(container, was, &at_one.child("resources")));
        }
    }
    for (container, was) in list(new_spec, "containers").iter().zip(list(old_spec, "containers")) {
        if !same(Some(&with_old_amounts(container, was)), Some(was)) {
            errors.push(Error::forbidden(&spec, "only cpu and memory resources are mutable"));
        }
    }
    errors.extend(resized_init_containers(new_spec, old_spec));
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go validatePodResizeContainerOrdering
fn other_containers(spec: &Value, old: &Value, field: &str) -> Errors {
    let (new, was) = (list(spec, field), list(old, field));
    let at_field = path("spec").child(field);
    if new.len() != was.len() {
        return vec![Error::forbidden(&at_field, format!("{field} may not be added or removed on resize"))];
    }
    let detail = format!("{field} may not be renamed or reordered on resize");
    let pairs = new.iter().zip(was).enumerate();
    pairs
        .filter(|(_, (new, was))| text(new, "name") != text(was, "name"))
        .map(|(index, _)| Error::forbidden(&at_field.index(index).child("name"), detail.as_str()))
        .collect()
}

/// What a pod has for all its containers is resized by the same rules.
///
/// Upstream: pkg/apis/core/validation/validation.go validatePodLevelResourcesResize
fn resized_pod(spec: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let at_resources = path("spec").child("resources");
    if !has(old, "resources") && !has(spec, "resources") {
        return errors;
    }
    if !has(spec, "resources") {
        return vec![Error::forbidden(&at_resources, "pod-level resources cannot be removed")];
    }
    for amounts in ["requests", "limits"] {
        let part = format!("resources.{amounts}");
        let kept = |name: &str| at(spec, &part).is_some_and(|r| r.get(name).is_some());
        if get::entries(old, &part).any(|(name, _)| !kept(name)) {
            let detail = format!("pod-level resource {amounts} cannot be removed");
            errors.push(Error::forbidden(&at_resources.child(amounts), detail));
        }
    }
    if !same(at(&with_old_amounts(spec, old), "resources"), at(old, "resources")) {
        errors
            .push(Error::forbidden(&path("spec"), "only cpu and memory resources are mutable at pod-level"));
    }
    errors
}

fn removed_amounts(container: &Value, was: &Value, resources: &Path) -> Errors {
    let mut errors = Errors::new();
    for amounts in ["limits", "requests"] {
        let part = format!("resources.{amounts}");
        let kept = |name: &str| at(container, &part).is_some_and(|r| r.get(name).is_some());
        if get::entries(was, &part).any(|(name, _)| !kept(name)) {
            let detail = format!("resource {amounts} cannot be removed");
            errors.push(Error::forbidden(&resources.child(amounts), detail));
        }
    }
    errors
}

/// A container with the processors and memory that it had.
///
/// Upstream: pkg/apis/core/validation/validation.go dropCPUMemoryResourcesFromContainer
fn with_old_amounts(container: &Value, was: &Value) -> Value {
    let mut kept = container.clone();
    for amounts in ["limits", "requests"] {
        let part = format!("resources.{amounts}");
        let mut map = at(container, &part).and_then(Value::as_object).cloned().unwrap_or_default();
        for name in ["cpu", "memory"] {
            match at(was, &part).and_then(|amounts| amounts.get(name)) {
                Some(amount) => map.insert(name.to_owned(), amount.clone()),
                None => map.remove(name),
            };
        }
        match map.is_empty() {
            true => drop(get::remove(&mut kept, &part)),
            false => set(&mut kept, &part, map),
        }
    }
    kept
}

/// Upstream: pkg/apis/core/validation/validation.go ValidatePodResize
fn resized_init_containers(spec: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let field = path("spec").child("initContainers");
    let pairs = get::items(spec, "initContainers", &field).into_iter().zip(list(old, "initContainers"));
    for ((container, at_one), was) in pairs {
        if !same(Some(&with_old_amounts(container, was)), Some(was)) {
            let detail = "only cpu and memory resources for init or sidecar containers are mutable";
            errors.push(Error::forbidden(&at_one, detail));
        }
        let restarts =
            list(container, "resizePolicy").iter().filter(|p| text(p, "restartPolicy") == "RestartContainer");
        if text(container, "restartPolicy") != "Always" && !same(Some(container), Some(was)) {
            let detail =
                "non-sidecar init containers with a resize policy of RestartContainer cannot be resized";
            errors.extend(restarts.map(|_| Error::forbidden(&at_one, detail)));
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
    errors.extend(validate_conditions(pod));
    let name = text(pod, "status.nominatedNodeName");
    if name != text(old, "status.nominatedNodeName") && !name.is_empty() {
        let at = status.child("nominatedNodeName");
        errors.extend(crate::validate::each(names::dns1123_subdomain(name), &at, name));
        if has(old, "spec.nodeName") {
            let detail = "may not be set on pods that are already bound to a node";
            errors.push(Error::forbidden(&at, detail));
        }
    }
    let observed = number(pod, "status.observedGeneration");
    if observed < 0 {
        let detail = "must be a non-negative integer";
        errors.push(Error::invalid(&status.child("observedGeneration"), observed, detail));
    }
    errors.extend(validate_no_restart(pod, old, "containerStatuses"));
    errors.extend(validate_claims(pod));
    for (ip, at) in get::items(pod, "status.podIPs", &status.child("podIPs")) {
        errors.extend(crate::validate::ip(text(ip, "ip"), &at));
    }
    let qos = text(pod, "status.qosClass");
    if qos != text(old, "status.qosClass") && !text(old, "status.qosClass").is_empty() {
        errors.push(Error::invalid(&status.child("qosClass"), qos, crate::validate::IMMUTABLE));
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go validatePodConditions
fn validate_conditions(pod: &Value) -> Errors {
    let mut errors = Errors::new();
    for (condition, at) in get::items(pod, "status.conditions", &path("status").child("conditions")) {
        let observed = number(condition, "observedGeneration");
        if observed < 0 {
            let detail = "must be a non-negative integer";
            errors.push(Error::invalid(&at.child("observedGeneration"), observed, detail));
        }
        let kind = text(condition, "type");
        if !matches!(kind, "PodScheduled" | "Ready" | "Initialized") {
            errors.extend(crate::validate::each(names::qualified_name(kind), &at.child("Type"), kind));
        }
    }
    errors
}

/// The claims that were made for a pod are claims that it asked for.
///
/// Upstream: pkg/apis/core/validation/validation.go validatePodResourceClaimStatuses
fn validate_claims(pod: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut seen: Vec<&str> = Vec::new();
    let field = path("status").child("resourceClaimStatuses");
    for (status, at_one) in get::items(pod, "status.resourceClaimStatuses", &field) {
        let name = text(status, "name");
        if !list(pod, "spec.resourceClaims").iter().any(|claim| text(claim, "name") == name) {
            let detail = "must match the name of an entry in `spec.resourceClaims`";
            errors.push(Error::invalid(&at_one.child("name"), name, detail));
        }
        if seen.contains(&name) {
            errors.push(Error::duplicate(&at_one.child("name"), name));
        }
        seen.push(name);
        if let Some(claim) = at(status, "resourceClaimName").and_then(Value::as_str) {
            let at_claim = at_one.child("resourceClaimName");
            errors.extend(crate::validate::each(names::dns1123_subdomain(claim), &at_claim, claim));
        }
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
    fn a_resize_is_of_processors_and_memory() {
        let sized = |cpu: &str| json!({"requests": {"cpu": cpu, "memory": "1Gi"}});
        let before = |p: &mut Value| p["spec"]["containers"][0]["resources"] = sized("1");
        let check = |change: &dyn Fn(&mut Value), expected: &[&str]| {
            let mut old = pod(before);
            old["metadata"] = json!({});
            let mut new = pod(before);
            new["metadata"] = json!({"labels": {"a": "b"}});
            change(&mut new);
            prepare_resize(&mut new, &old);
            let shown: Vec<String> = validate_resize(&new, &old).iter().map(ToString::to_string).collect();
            assert_eq!(shown, expected);
            new
        };
        let resized = check(&|p| p["spec"]["containers"][0]["resources"] = sized("2"), &[]);
        assert_eq!(resized["metadata"].get("labels"), None, "labels are not what a resize writes");
        let stored = &|p: &mut Value| {
            p["spec"]["containers"][0]["resources"]["requests"]["ephemeral-storage"] = "1Gi".into();
        };
        check(stored, &["spec: Forbidden: only cpu and memory resources are mutable"]);
        let added = &|p: &mut Value| {
            let mut other = p["spec"]["containers"][0].clone();
            other["name"] = "d".into();
            p["spec"]["containers"].as_array_mut().unwrap().push(other);
        };
        check(added, &["spec.containers: Forbidden: containers may not be added or removed on resize"]);
        let taken =
            &|p: &mut Value| p["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        check(
            taken,
            &["spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed"],
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
