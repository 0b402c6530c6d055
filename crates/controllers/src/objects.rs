//! Questions that many controllers ask of objects.

use std::collections::BTreeMap;
use std::time::Duration;

use api::core::v1::{Pod, PodCondition, PodTemplateSpec};
use api::meta::{ObjectMeta, OwnerReference};
use api::{IntOrString, Object};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

/// Whether two statuses say the same: what is absent is zero or empty.
pub(crate) fn same<S: Serialize>(a: &S, b: &S) -> bool {
    fn plain<S: Serialize>(status: &S) -> Value {
        let mut status = serde_json::to_value(status).expect("a status is text and numbers");
        if let Value::Object(fields) = &mut status {
            fields.retain(|_, value| *value != 0 && value.as_array().is_none_or(|list| !list.is_empty()));
        }
        status
    }
    plain(a) == plain(b)
}

/// The owner that controls the object, if one does.
pub(crate) fn controller_of(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

pub(crate) fn is_controlled_by<T: Object>(object: &T, uid: &str) -> bool {
    controller_of(object.metadata()).is_some_and(|owner| owner.uid == uid)
}

/// A reference that makes `owner` the controller.
pub(crate) fn controller_reference<T: Object>(owner: &T) -> OwnerReference {
    OwnerReference {
        api_version: T::api_version(),
        kind: T::KIND.to_owned(),
        name: owner.name().to_owned(),
        uid: owner.uid().to_owned(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub(crate) fn is_deleting<T: Object>(object: &T) -> bool {
    object.metadata().deletion_timestamp.is_some()
}

pub(crate) fn created<T: Object>(object: &T) -> Timestamp {
    object.metadata().creation_timestamp.as_ref().map_or(Timestamp::MAX, |time| time.0)
}

pub(crate) fn label<'a, T: Object>(object: &'a T, key: &str) -> Option<&'a str> {
    object.metadata().labels.as_ref()?.get(key).map(String::as_str)
}

pub(crate) fn annotation<'a, T: Object>(object: &'a T, key: &str) -> Option<&'a str> {
    object.metadata().annotations.as_ref()?.get(key).map(String::as_str)
}

pub(crate) fn annotations_mut<T: Object>(object: &mut T) -> &mut BTreeMap<String, String> {
    object.metadata_mut().annotations.get_or_insert_default()
}

/// How long until a moment; zero when it is past.
pub(crate) fn until(moment: Timestamp, now: Timestamp) -> Duration {
    moment.duration_since(now).try_into().unwrap_or(Duration::ZERO)
}

pub(crate) fn split_key(key: &str) -> (&str, &str) {
    key.split_once('/').unwrap_or(("", key))
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

pub(crate) fn node_name(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Upstream: pkg/controller/controller_utils.go IsPodActive
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && !is_deleting(pod)
}

pub(crate) fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

/// Since when the pod is ready.
pub(crate) fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// How long until a ready pod has been so for `min_ready_seconds`; zero when it is available, `None` when it is
/// not ready.
pub(crate) fn until_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    if !is_ready(pod) {
        return None;
    }
    if min_ready_seconds <= 0 {
        return Some(Duration::ZERO);
    }
    let ready_for = now.duration_since(ready_since(pod)?).as_secs_f64().max(0.0);
    Some(Duration::from_secs_f64((f64::from(min_ready_seconds) - ready_for).max(0.0)))
}

/// The number of restarts of the container that restarted most.
pub(crate) fn most_restarts(pod: &Pod) -> i32 {
    let status = pod.status.as_ref();
    let all = status.into_iter().flat_map(|s| s.container_statuses.iter().flatten());
    all.map(|container| container.restart_count).max().unwrap_or(0)
}

/// A pod from a template, controlled by `owner`.
pub(crate) fn pod_from_template<T: Object>(owner: &T, template: &PodTemplateSpec) -> Pod {
    let from = template.metadata.as_ref();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name())),
            namespace: Some(owner.namespace().to_owned()),
            labels: from.and_then(|m| m.labels.clone()),
            annotations: from.and_then(|m| m.annotations.clone()),
            finalizers: from.and_then(|m| m.finalizers.clone()),
            owner_references: Some(vec![controller_reference(owner)]),
            ..Default::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// A number, or a percentage of `total`.
///
/// Upstream: apimachinery/pkg/util/intstr/intstr.go GetScaledValueFromIntOrPercent
pub(crate) fn scaled(value: &IntOrString, total: i32, round_up: bool) -> Option<i32> {
    match value {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%')?.parse().ok()?;
            let product = percent.checked_mul(i64::from(total))?;
            let rounded =
                if round_up { product.checked_add(99)?.div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(rounded).ok()
        }
    }
}

/// A short hash in the alphabet of generated names, equal for equal text.
pub(crate) fn short_hash(text: &str, collisions: Option<i32>) -> String {
    /// Upstream: apimachinery/pkg/util/rand/rand.go alphanums: no vowels, nothing that looks like another.
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let collisions = collisions.map(i32::to_le_bytes);
    let bytes = text.bytes().chain(collisions.into_iter().flatten());
    // FNV-1a of 32 bits.
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash.to_string().bytes().map(|digit| char::from(ALPHABET[usize::from(digit) % ALPHABET.len()])).collect()
}

/// Why a create was refused for good: everything in the namespace is going away.
pub(crate) fn namespace_is_terminating(error: &client::Error) -> bool {
    let details = error.status().and_then(|status| status.details.as_ref());
    details.is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use super::*;

    /// A pod in namespace `ns` with the label `app=web`.
    pub(crate) fn pod(name: &str, phase: &str, ready: bool) -> Pod {
        let ready = if ready { "True" } else { "False" };
        Pod::from_value(serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "namespace": "ns", "name": name, "uid": format!("uid-{name}"), "labels": {"app": "web"},
                "creationTimestamp": "2026-01-01T00:00:00Z",
            },
            "spec": {"containers": []},
            "status": {
                "phase": phase,
                "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            },
        }))
        .unwrap()
    }

    pub(crate) fn arcs<T>(objects: impl IntoIterator<Item = T>) -> Vec<Arc<T>> {
        objects.into_iter().map(Arc::new).collect()
    }

    pub(crate) fn at(seconds: i64) -> Timestamp {
        "2026-01-01T00:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(seconds)
    }

    #[test]
    fn percentages_are_rounded_as_asked() {
        let text = |t: &str| IntOrString::String(t.into());
        for (value, total, up, expected) in [
            (IntOrString::Int(3), 10, true, Some(3)),
            (text("25%"), 10, true, Some(3)),
            (text("25%"), 10, false, Some(2)),
            (text("0%"), 10, true, Some(0)),
            (text("100%"), 7, false, Some(7)),
            (text("nonsense"), 10, true, None),
            (text("99999999999999999999%"), 10, true, None),
        ] {
            assert_eq!(scaled(&value, total, up), expected, "{value:?}");
        }
    }

    #[test]
    fn hashes_are_stable_and_differ_by_collision() {
        assert_eq!(short_hash("a", None), short_hash("a", None));
        assert_ne!(short_hash("a", None), short_hash("b", None));
        assert_ne!(short_hash("a", None), short_hash("a", Some(1)));
    }

    #[test]
    fn availability_counts_from_readiness() {
        assert_eq!(until_available(&pod("a", "Running", false), 0, at(0)), None);
        assert_eq!(until_available(&pod("a", "Running", true), 0, at(0)), Some(Duration::ZERO));
        assert_eq!(until_available(&pod("a", "Running", true), 10, at(4)), Some(Duration::from_secs(6)));
        assert_eq!(until_available(&pod("a", "Running", true), 10, at(40)), Some(Duration::ZERO));
    }
}
