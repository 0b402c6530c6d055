//! Pod: containers that run together on one node.

mod cells;
pub mod update;

use crate::podspec;
use crate::prelude::*;
use crate::strategy::{Context, Deletion, Strategy, carry_over};
use crate::validate::same;

pub fn row() -> Arc<ResourceDef> {
    const CONNECT: &[Verb] = &[Verb::Create, Verb::Get];
    const PROXY: &[Verb] = &[Verb::Create, Verb::Delete, Verb::Get, Verb::Patch, Verb::Update];
    const PART: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];
    Row::namespaced("v1", "Pod", "pods")
        .short(&["po"])
        .category("all")
        .subresource("attach", "v1", "PodAttachOptions", CONNECT)
        .subresource("binding", "v1", "Binding", &[Verb::Create])
        .subresource("ephemeralcontainers", "v1", "Pod", PART)
        .subresource("eviction", "policy/v1", "Eviction", &[Verb::Create])
        .subresource("exec", "v1", "PodExecOptions", CONNECT)
        .subresource("log", "v1", "Pod", &[Verb::Get])
        .subresource("portforward", "v1", "PodPortForwardOptions", CONNECT)
        .subresource("proxy", "v1", "PodProxyOptions", PROXY)
        .subresource("resize", "v1", "Pod", PART)
        .status()
        .columns("Name,Ready,Status,Restarts,Age,+IP,+Node,+Nominated Node,+Readiness Gates", cells::cells)
        .fields(&["spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName"])
        .field("spec.hostNetwork", |o| is_true(o, "spec.hostNetwork").to_string())
        .fields(&["status.phase"])
        .field("status.podIP", |o| {
            let first = list(o, "status.podIPs").first();
            first.map_or(text(o, "status.podIP"), |ip| text(ip, "ip")).to_owned()
        })
        // Upstream knows the label and never fills it.
        .field("status.podIPs", |_| String::new())
        .fields(&["status.nominatedNodeName"])
        .strategy(Pods)
        .build()
}

fn spec(pod: &Value) -> &Value {
    at(pod, "spec").unwrap_or(&Value::Null)
}

fn default(pod: &mut Value) {
    if get::fields_mut(pod, "spec").is_none() {
        return;
    }
    if let Some(spec) = get::at_mut(pod, "spec") {
        podspec::default_spec(spec);
        podspec::default_pod_only(spec);
    }
    mirror_addresses(pod);
}

/// `podIP` is the first of `podIPs`; clients write either.
///
/// Upstream: pkg/apis/core/v1/conversion.go Convert_v1_PodStatus_To_core_PodStatus
fn mirror_addresses(pod: &mut Value) {
    for (single, plural) in [("status.podIP", "status.podIPs"), ("status.hostIP", "status.hostIPs")] {
        let first = list(pod, plural).first().map(|ip| text(ip, "ip").to_owned());
        let one = text(pod, single).to_owned();
        match first {
            None if !one.is_empty() => set(pod, plural, json!([{"ip": one}])),
            // Who writes only the single form means all.
            Some(first) if !one.is_empty() && one != first => set(pod, plural, json!([{"ip": one}])),
            Some(first) if one.is_empty() && !first.is_empty() => set(pod, single, first),
            _ => {}
        }
    }
}

struct Pods;

impl Strategy for Pods {
    fn default(&self, pod: &mut Value) {
        default(pod);
    }

    /// Upstream: pkg/registry/core/pod/strategy.go PrepareForCreate
    fn prepare_create(&self, _context: &Context, pod: &mut Value) {
        if let Some(spec) = get::at_mut(pod, "spec") {
            podspec::mirror_service_account(spec);
        }
        set(pod, "metadata.generation", 1);
        let mut status = json!({"phase": "Pending", "qosClass": podspec::qos_class(spec(pod))});
        if !list(pod, "spec.schedulingGates").is_empty() {
            status["conditions"] = json!([{
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        set(pod, "status", status);
    }

    /// Upstream: pkg/apis/core/validation/validation.go ValidatePodCreate
    fn validate(&self, pod: &Value) -> Errors {
        let mut errors = podspec::validate_pod(spec(pod));
        if !list(pod, "spec.ephemeralContainers").is_empty() {
            errors.push(Error::forbidden(&path("spec.ephemeralContainers"), "cannot be set on create"));
        }
        if !text(pod, "spec.nodeName").is_empty() && !list(pod, "spec.schedulingGates").is_empty() {
            let detail = "cannot be set until all schedulingGates have been cleared";
            errors.push(Error::forbidden(&path("spec.nodeName"), detail));
        }
        errors
    }

    fn prepare_update(&self, _context: &Context, pod: &mut Value, old: &Value) {
        carry_over(pod, old, "status");
    }

    fn validate_update(&self, pod: &Value, old: &Value) -> Errors {
        update::validate(pod, old)
    }

    /// Upstream: pkg/registry/core/pod/strategy.go podStatusStrategy
    fn prepare_status_update(&self, _context: &Context, pod: &mut Value, old: &Value) {
        carry_over(pod, old, "spec");
        for field in ["metadata.deletionTimestamp", "metadata.ownerReferences"] {
            match at(old, field) {
                Some(value) => set(pod, field, value.clone()),
                None => {
                    get::remove(pod, field);
                }
            }
        }
        if text(pod, "status.qosClass").is_empty() && has(old, "status.qosClass") {
            set(pod, "status.qosClass", text(old, "status.qosClass"));
        }
        mirror_addresses(pod);
        update::keep_observed_generations(pod, old);
    }

    fn validate_status_update(&self, pod: &Value, old: &Value) -> Errors {
        update::validate_status(pod, old)
    }

    /// Upstream: pkg/registry/core/pod/strategy.go updatePodGeneration
    fn generation_changed(&self, pod: &Value, old: &Value) -> Option<bool> {
        Some(!same(at(pod, "spec"), at(old, "spec")))
    }

    fn warnings(&self, pod: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() {
            return Vec::new();
        }
        let mut warnings = Vec::new();
        let messages = names::dns1123_label(get::name(pod));
        if !messages.is_empty() && !get::name(pod).is_empty() {
            let joined = messages.join(" ");
            warnings.push(format!(
                "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS \
                 label is recommended: [{joined}]"
            ));
        }
        warnings.extend(podspec::warnings(spec(pod), at(pod, "metadata").unwrap_or(&Value::Null), "spec"));
        warnings
    }

    /// Who runs nothing has nothing to stop.
    ///
    /// Upstream: pkg/registry/core/pod/strategy.go CheckGracefulDelete
    fn deletion(&self, pod: &Value, grace_period_seconds: Option<i64>) -> Deletion {
        let own = get::int(pod, "spec.terminationGracePeriodSeconds");
        let wanted = grace_period_seconds.or(own).unwrap_or(0);
        let finished = matches!(text(pod, "status.phase"), "Failed" | "Succeeded");
        let seconds = if text(pod, "spec.nodeName").is_empty() || finished {
            0
        } else if wanted < 0 {
            1
        } else {
            wanted
        };
        Deletion::Graceful { seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: Value) -> Value {
        let mut pod = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec});
        default(&mut pod);
        pod
    }

    fn container(extra: Value) -> Value {
        let mut container = json!({"name": "c", "image": "i:1"});
        for (key, value) in extra.as_object().unwrap() {
            container[key] = value.clone();
        }
        container
    }

    /// A pod with one container that has these fields, and what is wrong with it.
    fn check_container(extra: Value, expected: &[&str]) {
        check(json!({"containers": [container(extra)]}), expected);
    }

    fn check(spec: Value, expected: &[&str]) {
        let errors: Vec<String> = Pods.validate(&pod(spec.clone())).iter().map(ToString::to_string).collect();
        assert_eq!(errors, expected, "{spec}");
    }

    #[test]
    fn good_pods_are_good() {
        check_container(json!({}), &[]);
        check_container(
            json!({"ports": [{"containerPort": 80, "name": "http"}], "resources": {"limits": {"cpu": "1"}},
                "livenessProbe": {"httpGet": {"port": "http"}}, "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                "env": [{"name": "A", "value": "b"}], "securityContext": {"runAsUser": 1000}}),
            &[],
        );
        check(
            json!({"containers": [container(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}))],
                "volumes": [{"name": "v", "emptyDir": {}}], "tolerations": [{"operator": "Exists"}],
                "initContainers": [{"name": "i", "image": "i:1", "restartPolicy": "Always",
                    "startupProbe": {"exec": {"command": ["true"]}}}]}),
            &[],
        );
    }

    #[test]
    fn bad_containers_say_where() {
        check(json!({}), &["spec.containers: Required value"]);
        check(
            json!({"containers": [{}]}),
            &["spec.containers[0].name: Required value", "spec.containers[0].image: Required value"],
        );
        for (extra, expected) in [
            (
                json!({"ports": [{"containerPort": 0}]}),
                "spec.containers[0].ports[0].containerPort: Required value",
            ),
            (
                json!({"ports": [{"containerPort": 70000}]}),
                "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, \
                 inclusive",
            ),
            (
                json!({"imagePullPolicy": "Sometimes"}),
                "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
                 \"IfNotPresent\", \"Never\"",
            ),
            (
                json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]}),
                "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
            ),
            (
                json!({"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}),
                "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit \
                 of 1",
            ),
            (
                json!({"livenessProbe": {}}),
                "spec.containers[0].livenessProbe: Required value: must specify a handler type",
            ),
            (
                json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}]}),
                "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": \
                 supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \
                 \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \
                 \"status.podIPs\"",
            ),
            (
                json!({"image": " i:1"}),
                "spec.containers[0].image: Invalid value: \" i:1\": must not have leading or trailing whitespace",
            ),
            (
                json!({"envFrom": [{}]}),
                "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
            ),
        ] {
            check_container(extra, &[expected]);
        }
    }

    #[test]
    fn bad_specs_say_where() {
        let containers = json!([container(json!({}))]);
        for (field, value, expected) in [
            (
                "restartPolicy",
                json!("Maybe"),
                "spec.restartPolicy: Unsupported value: \"Maybe\": supported values: \"Always\", \"OnFailure\", \
                 \"Never\"",
            ),
            (
                "volumes",
                json!([{"name": "v", "secret": {}}]),
                "spec.volumes[0].secret.secretName: Required value",
            ),
            (
                "volumes",
                json!([{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]),
                "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
            ),
            (
                "tolerations",
                json!([{"key": "k", "tolerationSeconds": 1}]),
                "spec.tolerations[0].effect: Invalid value: \"\": effect must be 'NoExecute' when \
                 `tolerationSeconds` is set",
            ),
            (
                "ephemeralContainers",
                json!([{"name": "e", "image": "i"}]),
                "spec.ephemeralContainers: Forbidden: cannot be set on create",
            ),
            (
                "affinity",
                json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}),
                "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: \
                 Required value: must have at least one node selector term",
            ),
            (
                "dnsPolicy",
                json!("None"),
                "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
            ),
        ] {
            check(json!({"containers": containers, field: value}), &[expected]);
        }
    }

    #[test]
    fn pods_are_deleted_by_their_grace() {
        let deletion = |pod: Value, wanted| match Pods.deletion(&pod, wanted) {
            Deletion::Graceful { seconds } => seconds,
            Deletion::Immediate => panic!("pods are deleted gracefully"),
        };
        let running = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        assert_eq!(deletion(running.clone(), None), 30);
        assert_eq!(deletion(running.clone(), Some(5)), 5);
        assert_eq!(deletion(running.clone(), Some(0)), 0);
        assert_eq!(deletion(running, Some(-1)), 1);
        assert_eq!(deletion(json!({"spec": {"terminationGracePeriodSeconds": 30}}), None), 0);
        let done = json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30},
            "status": {"phase": "Succeeded"}});
        assert_eq!(deletion(done, None), 0);
    }

    #[test]
    fn a_new_pod_is_pending() {
        let context =
            Context { now: 0, random: [0; 16], user: "u", uid: "", groups: &[], extra: &Default::default() };
        let mut new = pod(json!({"containers": [container(json!({}))], "schedulingGates": [{"name": "g"}]}));
        new["status"] = json!({"phase": "Running"});
        Pods.prepare_create(&context, &mut new);
        assert_eq!(new["status"]["phase"], "Pending");
        assert_eq!(new["status"]["qosClass"], "BestEffort");
        assert_eq!(new["status"]["conditions"][0]["reason"], "SchedulingGated");
        assert_eq!(new["metadata"]["generation"], 1);
    }
}
