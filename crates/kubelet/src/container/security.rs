//! Security contexts: the pod's and the container's, as one for CRI.

use api::core::v1::{Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext};
use cri::v1 as pb;

use crate::pod;

const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

fn of_pod(pod: &Pod) -> PodSecurityContext {
    pod.spec.as_ref().and_then(|s| s.security_context.clone()).unwrap_or_default()
}

fn int(value: i64) -> pb::Int64Value {
    pb::Int64Value { value }
}

/// Which seccomp profiles the node has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Profiles<'a> {
    /// Where those are that pods name.
    pub root: &'a str,
    /// Whether the runtime's is for all that name none.
    pub by_default: bool,
}

fn seccomp(
    profile: Option<&SeccompProfile>,
    privileged: bool,
    profiles: Profiles<'_>,
) -> pb::SecurityProfile {
    use pb::security_profile::ProfileType;
    let (kind, localhost) = match profile.map(|p| p.type_.as_str()) {
        _ if privileged => (ProfileType::Unconfined, String::new()),
        Some("RuntimeDefault") => (ProfileType::RuntimeDefault, String::new()),
        Some("Localhost") => {
            let name = profile.and_then(|p| p.localhost_profile.as_deref()).unwrap_or_default();
            (ProfileType::Localhost, format!("{}/{name}", profiles.root))
        }
        None if profiles.by_default => (ProfileType::RuntimeDefault, String::new()),
        _ => (ProfileType::Unconfined, String::new()),
    };
    pb::SecurityProfile { profile_type: kind as i32, localhost_ref: localhost }
}

/// The namespaces of the pod. `target` is the container whose processes an ephemeral one sees.
// Upstream: pkg/kubelet/kuberuntime/util/util.go NamespacesForPod
pub fn namespaces(pod: &Pod, target: Option<&str>, users: &pb::UserNamespace) -> pb::NamespaceOption {
    let spec = pod.spec.clone().unwrap_or_default();
    let node_if = |host: Option<bool>| {
        if host == Some(true) { pb::NamespaceMode::Node } else { pb::NamespaceMode::Pod }
    };
    let pid = match (spec.host_pid, spec.share_process_namespace, target) {
        (_, _, Some(_)) => pb::NamespaceMode::Target,
        (Some(true), ..) => pb::NamespaceMode::Node,
        (_, Some(true), _) => pb::NamespaceMode::Pod,
        _ => pb::NamespaceMode::Container,
    };
    pb::NamespaceOption {
        network: node_if(spec.host_network) as i32,
        pid: pid as i32,
        ipc: node_if(spec.host_ipc) as i32,
        target_id: target.unwrap_or_default().to_owned(),
        userns_options: Some(users.clone()),
    }
}

fn groups(context: &PodSecurityContext) -> Vec<i64> {
    let mut groups = context.supplemental_groups.clone().unwrap_or_default();
    groups.extend(context.fs_group);
    groups
}

fn groups_policy(context: &PodSecurityContext) -> i32 {
    let strict = context.supplemental_groups_policy.as_deref() == Some("Strict");
    if strict {
        pb::SupplementalGroupsPolicy::Strict as i32
    } else {
        pb::SupplementalGroupsPolicy::Merge as i32
    }
}

/// The security context of the sandbox: privileged if any container is.
pub fn of_sandbox(pod: &Pod, users: &pb::UserNamespace) -> pb::LinuxSandboxSecurityContext {
    let context = of_pod(pod);
    let privileged = |c: &Container| c.security_context.as_ref().and_then(|s| s.privileged).unwrap_or(false);
    pb::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, None, users)),
        run_as_user: context.run_as_user.map(int),
        run_as_group: context.run_as_user.and(context.run_as_group).map(int),
        supplemental_groups: groups(&context),
        supplemental_groups_policy: groups_policy(&context),
        privileged: pod::init_containers(pod).iter().chain(pod::containers(pod)).any(privileged),
        seccomp: Some(pb::SecurityProfile {
            profile_type: pb::security_profile::ProfileType::RuntimeDefault as i32,
            localhost_ref: String::new(),
        }),
        ..Default::default()
    }
}

/// Who the image runs as: a number or a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageUser {
    pub uid: Option<i64>,
    pub username: String,
}

/// The user that the container is told to run as, the container's word before the pod's.
fn run_as_user(pod: &PodSecurityContext, own: &SecurityContext) -> Option<i64> {
    own.run_as_user.or(pod.run_as_user)
}

/// Refuses root where the pod forbids it.
// Upstream: pkg/kubelet/kuberuntime/security_context_others.go verifyRunAsNonRoot
pub fn verify_non_root(pod: &Pod, container: &Container, image: &ImageUser) -> Result<(), String> {
    let (of_pod, own) = (of_pod(pod), container.security_context.clone().unwrap_or_default());
    if own.run_as_non_root.or(of_pod.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let who = format!("(pod: {:?}, container: {})", pod::display(pod), container.name);
    match run_as_user(&of_pod, &own) {
        Some(0) => Err(format!("container's runAsUser breaks non-root policy {who}")),
        Some(_) => Ok(()),
        None if image.uid == Some(0) => {
            Err(format!("container has runAsNonRoot and image will run as root {who}"))
        }
        None if image.uid.is_none() => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({}), cannot verify user is non-root {who}",
            image.username
        )),
        None => Ok(()),
    }
}

/// The security context of a container.
// Upstream: pkg/kubelet/kuberuntime/security_context.go determineEffectiveSecurityContext
pub fn of_container(
    pod: &Pod,
    container: &Container,
    image: &ImageUser,
    target: Option<&str>,
    users: &pb::UserNamespace,
    profiles: Profiles<'_>,
) -> pb::LinuxContainerSecurityContext {
    let (context, own) = (of_pod(pod), container.security_context.clone().unwrap_or_default());
    let privileged = own.privileged.unwrap_or(false);
    let user = run_as_user(&context, &own).or(image.uid);
    let masked = own.proc_mount.as_deref() != Some("Unmasked") && !privileged;
    let paths = |list: &[&str]| {
        if masked { list.iter().map(|p| (*p).to_owned()).collect() } else { Vec::new() }
    };
    let capabilities = own.capabilities.as_ref().map(|c| pb::Capability {
        add_capabilities: c.add.clone().unwrap_or_default(),
        drop_capabilities: c.drop.clone().unwrap_or_default(),
        ..Default::default()
    });
    let admin = own.capabilities.iter().flat_map(|c| c.add.iter().flatten()).any(|c| c == "SYS_ADMIN");
    pb::LinuxContainerSecurityContext {
        capabilities: capabilities.or_else(|| Some(pb::Capability::default())),
        privileged,
        namespace_options: Some(namespaces(pod, target, users)),
        run_as_user: user.map(int),
        run_as_group: own.run_as_group.or(context.run_as_group).map(int),
        run_as_username: if user.is_none() { image.username.clone() } else { String::new() },
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups(&context),
        supplemental_groups_policy: groups_policy(&context),
        no_new_privs: own.allow_privilege_escalation == Some(false) && !privileged && !admin,
        masked_paths: paths(&MASKED_PATHS),
        readonly_paths: paths(&READONLY_PATHS),
        seccomp: Some(seccomp(
            own.seccomp_profile.as_ref().or(context.seccomp_profile.as_ref()),
            privileged,
            profiles,
        )),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn objects(pod_context: Value, own: Value) -> (Pod, Container) {
        let container = json!({"name": "c", "securityContext": own});
        let spec = json!({"securityContext": pod_context, "containers": [container]});
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}),
        )
        .unwrap();
        let container = pod.spec.as_ref().unwrap().containers[0].clone();
        (pod, container)
    }

    #[test]
    fn the_containers_word_counts_before_the_pods() {
        let cases = [
            (json!({}), json!({}), None, None),
            (json!({"runAsUser": 1, "runAsGroup": 2}), json!({}), Some(1), Some(2)),
            (json!({"runAsUser": 1, "runAsGroup": 2}), json!({"runAsUser": 3}), Some(3), Some(2)),
        ];
        for (pod_context, own, user, group) in cases {
            let (pod, container) = objects(pod_context, own);
            let context = of_container(
                &pod,
                &container,
                &ImageUser::default(),
                None,
                &pb::UserNamespace::default(),
                Profiles::default(),
            );
            assert_eq!(context.run_as_user.map(|u| u.value), user);
            assert_eq!(context.run_as_group.map(|g| g.value), group);
        }
    }

    #[test]
    fn non_root() {
        let image = |uid, name: &str| ImageUser { uid, username: name.into() };
        let cases = [
            (json!({}), json!({}), image(Some(0), ""), true),
            (json!({"runAsNonRoot": true}), json!({}), image(Some(0), ""), false),
            (json!({"runAsNonRoot": true}), json!({}), image(Some(5), ""), true),
            (json!({"runAsNonRoot": true}), json!({}), image(None, "web"), false),
            (json!({"runAsNonRoot": true}), json!({"runAsUser": 7}), image(Some(0), ""), true),
            (json!({"runAsNonRoot": true}), json!({"runAsUser": 0}), image(Some(5), ""), false),
            (json!({"runAsNonRoot": true}), json!({"runAsNonRoot": false}), image(Some(0), ""), true),
        ];
        for (pod_context, own, image, fine) in cases {
            let (pod, container) = objects(pod_context, own);
            assert_eq!(verify_non_root(&pod, &container, &image).is_ok(), fine, "{pod:?} {image:?}");
        }
    }

    fn with(pod: &Pod, container: &Container, profiles: Profiles) -> pb::LinuxContainerSecurityContext {
        of_container(pod, container, &ImageUser::default(), None, &pb::UserNamespace::default(), profiles)
    }

    #[test]
    fn the_runtimes_profile_can_be_for_all_that_name_none() {
        let kind = |pod_context: Value, by_default: bool| {
            let (pod, container) = objects(pod_context, json!({}));
            let profiles = Profiles { root: "/p", by_default };
            with(&pod, &container, profiles).seccomp.unwrap().profile_type()
        };
        use pb::security_profile::ProfileType;
        assert_eq!(kind(json!({}), false), ProfileType::Unconfined);
        assert_eq!(kind(json!({}), true), ProfileType::RuntimeDefault);
        let named = json!({"seccompProfile": {"type": "Unconfined"}});
        assert_eq!(kind(named, true), ProfileType::Unconfined);
    }

    #[test]
    fn privilege_lifts_masks_and_seccomp() {
        let (pod, container) =
            objects(json!({}), json!({"privileged": true, "allowPrivilegeEscalation": false}));
        let context = with(&pod, &container, Profiles::default());
        assert!(context.privileged && context.masked_paths.is_empty() && !context.no_new_privs);
        let (pod, container) = objects(
            json!({"seccompProfile": {"type": "RuntimeDefault"}}),
            json!({"allowPrivilegeEscalation": false}),
        );
        let context = with(&pod, &container, Profiles::default());
        assert!(context.no_new_privs && context.masked_paths.len() == 11);
        assert_eq!(context.seccomp.unwrap().profile_type, 0);
    }
}
