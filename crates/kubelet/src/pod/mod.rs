//! Reading a pod's specification: what the API leaves optional, with its meaning filled in.

pub mod qos;

use api::Object;
use api::core::v1::{Container, ContainerRestartRule, ContainerStatus, Pod, PodStatus};

/// The annotation that says where a pod came from; absent means the API.
pub const CONFIG_SOURCE: &str = "kubernetes.io/config.source";
/// The annotation with the hash of a static pod's manifest.
pub const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// The annotation that marks the API's reflection of a static pod.
pub const CONFIG_MIRROR: &str = "kubernetes.io/config.mirror";

/// What a container is in its pod: it decides which status list and which rules apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContainerKind {
    Init,
    /// An init container that is restarted always and lives beside the regular ones.
    Sidecar,
    Regular,
    Ephemeral,
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().and_then(|s| s.init_containers.as_deref()).unwrap_or_default()
}

pub fn containers(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map(|s| s.containers.as_slice()).unwrap_or_default()
}

/// Ephemeral containers, in the shape of containers: their fields are the same but for the target.
pub fn ephemeral_containers(pod: &Pod) -> Vec<(Container, Option<String>)> {
    let list = pod.spec.as_ref().and_then(|s| s.ephemeral_containers.as_deref()).unwrap_or_default();
    list.iter()
        .map(|e| {
            let container = Container {
                args: e.args.clone(),
                command: e.command.clone(),
                env: e.env.clone(),
                env_from: e.env_from.clone(),
                image: e.image.clone(),
                image_pull_policy: e.image_pull_policy.clone(),
                name: e.name.clone(),
                security_context: e.security_context.clone(),
                stdin: e.stdin,
                stdin_once: e.stdin_once,
                termination_message_path: e.termination_message_path.clone(),
                termination_message_policy: e.termination_message_policy.clone(),
                tty: e.tty,
                volume_mounts: e.volume_mounts.clone(),
                working_dir: e.working_dir.clone(),
                ..Default::default()
            };
            (container, e.target_container_name.clone())
        })
        .collect()
}

/// The container of that name, and what it is.
pub fn find_container(pod: &Pod, name: &str) -> Option<(Container, ContainerKind)> {
    if let Some(container) = containers(pod).iter().find(|c| c.name == name) {
        return Some((container.clone(), ContainerKind::Regular));
    }
    if let Some(container) = init_containers(pod).iter().find(|c| c.name == name) {
        let kind = if is_sidecar(container) { ContainerKind::Sidecar } else { ContainerKind::Init };
        return Some((container.clone(), kind));
    }
    let ephemeral = ephemeral_containers(pod).into_iter().find(|(c, _)| c.name == name);
    ephemeral.map(|(container, _)| (container, ContainerKind::Ephemeral))
}

/// Whether this init container keeps running beside the regular containers.
pub fn is_sidecar(init_container: &Container) -> bool {
    init_container.restart_policy.as_deref() == Some("Always")
}

pub fn restart_policy(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.restart_policy.as_deref()).unwrap_or("Always")
}

pub fn host_network(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false)
}

/// Whether a container that exited so is started again: its own rules, then its own policy, then the pod's.
// Upstream: pkg/api/v1/pod/util.go ContainerShouldRestart
pub fn should_restart(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    let by_policy = |policy: &str| match policy {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    };
    let Some(own_policy) = container.restart_policy.as_deref() else {
        return by_policy(restart_policy(pod));
    };
    match restart_rule(container, exit_code).map(|rule| rule.action.as_str()) {
        Some("Restart" | "RestartAllContainers") => true,
        _ => by_policy(own_policy),
    }
}

/// The first of the container's own rules that is about this exit code.
// Upstream: pkg/api/v1/pod/util.go FindMatchingContainerRestartRule
pub fn restart_rule(container: &Container, exit_code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.iter().flatten().any(|v| *v == exit_code);
        match codes.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            _ => false,
        }
    })
}

/// `name_namespace(uid)`: how upstream's messages name a pod.
pub fn display(pod: &Pod) -> String {
    format!("{}_{}({})", pod.name(), pod.namespace(), pod.uid())
}

pub fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

pub fn is_static(pod: &Pod) -> bool {
    annotation(pod, CONFIG_SOURCE).is_some_and(|source| source != "api")
}

pub fn is_mirror(pod: &Pod) -> bool {
    annotation(pod, CONFIG_MIRROR).is_some()
}

/// The pod's own grace period: the deletion's when it is being deleted, else the specification's.
pub fn grace_period_seconds(pod: &Pod) -> i64 {
    let of_spec = || pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds).unwrap_or(30);
    pod.metadata.deletion_grace_period_seconds.unwrap_or_else(of_spec)
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

pub fn is_terminal_phase(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// The container statuses of a pod status, of all kinds.
pub fn all_statuses(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    let lists =
        [&status.init_container_statuses, &status.container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten()
}

/// The hash by which a running container is matched to its specification: name and image, the only fields that
/// may change for a container and must then restart it.
// Upstream: pkg/kubelet/container/helpers.go HashContainer
pub fn container_hash(container: &Container) -> String {
    let mut picked = serde_json::Map::new();
    picked.insert("name".into(), container.name.clone().into());
    if let Some(image) = container.image.as_deref().filter(|i| !i.is_empty()) {
        picked.insert("image".into(), image.into());
    }
    format!("{:x}", fnv1a_32(serde_json::Value::Object(picked).to_string().as_bytes()))
}

fn fnv1a_32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}

#[cfg(test)]
mod tests {
    use api::core::v1::{ContainerRestartRule, ContainerRestartRuleOnExitCodes, PodSpec};

    use super::*;

    fn pod(policy: &str) -> Pod {
        let spec = PodSpec { restart_policy: Some(policy.into()), ..Default::default() };
        Pod { spec: Some(spec), ..Default::default() }
    }

    #[test]
    fn restart_follows_rules_then_own_policy_then_the_pods() {
        let rule = ContainerRestartRule {
            action: "Restart".into(),
            exit_codes: Some(ContainerRestartRuleOnExitCodes {
                operator: "In".into(),
                values: Some(vec![42]),
            }),
        };
        let own = |policy: &str, rules: Vec<ContainerRestartRule>| Container {
            restart_policy: Some(policy.into()),
            restart_policy_rules: Some(rules),
            ..Default::default()
        };
        let cases = [
            ("Always", Container::default(), 0, true),
            ("OnFailure", Container::default(), 0, false),
            ("OnFailure", Container::default(), 1, true),
            ("Never", Container::default(), 1, false),
            ("Never", own("Always", vec![]), 0, true),
            ("Always", own("Never", vec![]), 1, false),
            ("Never", own("Never", vec![rule.clone()]), 42, true),
            ("Never", own("Never", vec![rule]), 43, false),
        ];
        for (policy, container, exit_code, want) in cases {
            let got = should_restart(&pod(policy), &container, exit_code);
            assert_eq!(got, want, "{policy} {container:?} {exit_code}");
        }
    }

    #[test]
    fn the_hash_changes_with_name_and_image_only() {
        let one = Container { name: "a".into(), image: Some("i:1".into()), ..Default::default() };
        let two = Container { working_dir: Some("/".into()), ..one.clone() };
        let three = Container { image: Some("i:2".into()), ..one.clone() };
        assert_eq!(container_hash(&one), container_hash(&two));
        assert_ne!(container_hash(&one), container_hash(&three));
    }
}
