//! The checks of the pod security standards: one table, from what to look at to what to say.
//!
//! Upstream: pod-security-admission/policy/check_*.go

use std::collections::BTreeSet;

use serde_json::Value;

use super::pod::containers;
use super::pod_security::{Level, Standard};
use super::tree::{annotation, at, entries, flag, integer, items, strings, text};

/// Why a pod does not meet a standard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub reason: String,
    pub detail: String,
}

/// A check: from which minor version on, until which, for which level, and what a restricted check replaces.
struct Check {
    id: &'static str,
    level: Level,
    since: u32,
    /// A restricted check does not replace a baseline one before this minor.
    overrides: Option<(&'static str, u32)>,
    check: fn(&Subject<'_>) -> Option<Finding>,
}

/// The newest version that changed anything: `latest` means this one.
const LATEST_MINOR: u32 = 35;

/// Baseline first, then restricted, each by id: the order of findings in messages.
const CHECKS: &[Check] = &[
    baseline("appArmorProfile", 0, app_armor),
    baseline("capabilities_baseline", 0, capabilities_baseline),
    baseline("hostNamespaces", 0, host_namespaces),
    baseline("hostPathVolumes", 0, host_path_volumes),
    baseline("hostPorts", 0, host_ports),
    baseline("hostProbesAndHostLifecycle", 34, host_probes),
    baseline("privileged", 0, privileged),
    baseline("procMount", 0, proc_mount),
    baseline("seLinuxOptions", 0, selinux),
    baseline("seccompProfile_baseline", 0, seccomp_baseline),
    baseline("sysctls", 0, sysctls),
    baseline("windowsHostProcess", 0, windows_host_process),
    restricted("allowPrivilegeEscalation", 8, None, allow_privilege_escalation),
    restricted("capabilities_restricted", 22, Some(("capabilities_baseline", 22)), capabilities_restricted),
    restricted("procMount_restricted", 35, Some(("procMount", 35)), proc_mount_always),
    restricted("restrictedVolumes", 0, Some(("hostPathVolumes", 0)), restricted_volumes),
    restricted("runAsNonRoot", 0, None, run_as_non_root),
    restricted("runAsUser", 23, None, run_as_user),
    restricted("seccompProfile_restricted", 19, Some(("seccompProfile_baseline", 19)), seccomp_restricted),
];

const fn baseline(id: &'static str, since: u32, check: fn(&Subject<'_>) -> Option<Finding>) -> Check {
    Check { id, level: Level::Baseline, since, overrides: None, check }
}

const fn restricted(
    id: &'static str,
    since: u32,
    overrides: Option<(&'static str, u32)>,
    check: fn(&Subject<'_>) -> Option<Finding>,
) -> Check {
    Check { id, level: Level::Restricted, since, overrides, check }
}

/// What is checked: a pod or a pod template, by a version.
struct Subject<'a> {
    pod: &'a Value,
    spec: &'a Value,
    minor: u32,
}

/// All violations of a standard by a pod or pod template.
pub(super) fn evaluate(standard: Standard, pod: &Value) -> Vec<Finding> {
    if standard.level == Level::Privileged {
        return Vec::new();
    }
    let minor = standard.minor.unwrap_or(LATEST_MINOR).min(LATEST_MINOR);
    let subject = Subject { pod, spec: at(pod, "spec").unwrap_or(&Value::Null), minor };
    let overridden = |id: &str| {
        standard.level == Level::Restricted
            && CHECKS.iter().any(|c| c.overrides.is_some_and(|(other, since)| other == id && minor >= since))
    };
    CHECKS
        .iter()
        .filter(|check| check.level <= standard.level && minor >= check.since && !overridden(check.id))
        .filter_map(|check| (check.check)(&subject))
        .collect()
}

impl<'a> Subject<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        containers(self.spec)
    }

    /// The names of the containers for which `bad` holds.
    fn bad(&self, bad: impl Fn(&Value) -> bool) -> Vec<String> {
        self.containers().filter(|c| bad(c)).map(|c| text(c, "name").to_owned()).collect()
    }

    fn is_windows(&self) -> bool {
        text(self.spec, "os.name") == "windows"
    }

    /// A pod in a user namespace of its own may be root within, since 1.35.
    fn is_relaxed(&self) -> bool {
        self.minor >= 35 && flag(self.spec, "hostUsers") == Some(false)
    }
}

fn finding(reason: impl Into<String>, detail: impl Into<String>) -> Option<Finding> {
    Some(Finding { reason: reason.into(), detail: detail.into() })
}

fn quote<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<T> = items.into_iter().collect();
    let plain: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    if plain.is_empty() { String::new() } else { format!("\"{}\"", plain.join("\", \"")) }
}

fn plural(one: &str, many: &str, count: usize) -> String {
    if count == 1 { one.to_owned() } else { many.to_owned() }
}

/// `container "a"`, `containers "a", "b"`.
fn named(containers: &[String]) -> String {
    format!("{} {}", plural("container", "containers", containers.len()), quote(containers))
}

/// `pod and containers "a", "b"`; `None` when neither is bad.
fn setters(pod: bool, containers: &[String]) -> Option<String> {
    let mut parts = Vec::new();
    if pod {
        parts.push("pod".to_owned());
    }
    if !containers.is_empty() {
        parts.push(named(containers));
    }
    (!parts.is_empty()).then(|| parts.join(" and "))
}

fn app_armor(s: &Subject<'_>) -> Option<Finding> {
    const ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";
    let mut values = BTreeSet::new();
    let mut check = |owner: &Value| {
        let Some(profile) = at(owner, "securityContext.appArmorProfile") else { return false };
        let kind = text(profile, "type");
        let bad = !matches!(kind, "RuntimeDefault" | "Localhost");
        if bad {
            values.insert(kind.to_owned());
        }
        bad
    };
    let mut parts = Vec::new();
    if check(s.spec) {
        parts.push("pod".to_owned());
    }
    let bad: Vec<String> = s.containers().filter(|c| check(c)).map(|c| text(c, "name").to_owned()).collect();
    if !bad.is_empty() {
        parts.push(named(&bad));
    }
    let fine = |profile: &str| {
        profile.is_empty() || profile == "runtime/default" || profile.starts_with("localhost/")
    };
    let annotations: Vec<String> = entries(s.pod, "metadata.annotations")
        .filter_map(|(key, value)| Some((key, value.as_str()?)))
        .filter(|(key, value)| key.starts_with(ANNOTATION) && !fine(value))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    if !annotations.is_empty() {
        parts.push(plural("annotation", "annotations", annotations.len()));
    }
    if parts.is_empty() {
        return None;
    }
    let values: Vec<String> = values.into_iter().chain(annotations).collect();
    finding(
        plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len()),
        format!("{} must not set AppArmor profile type to {}", parts.join(" and "), quote(values)),
    )
}

fn capabilities_baseline(s: &Subject<'_>) -> Option<Finding> {
    const ALLOWED: [&str; 13] = [
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let (bad, added) = adding(s, &ALLOWED);
    if bad.is_empty() {
        return None;
    }
    finding(
        "non-default capabilities",
        format!("{} must not include {} in securityContext.capabilities.add", named(&bad), quote(added)),
    )
}

/// The containers that add capabilities other than the allowed ones, and these.
fn adding(s: &Subject<'_>, allowed: &[&str]) -> (Vec<String>, BTreeSet<String>) {
    let extra = |container: &Value| -> Vec<String> {
        let added = strings(container, "securityContext.capabilities.add");
        added.into_iter().filter(|capability| !allowed.contains(&capability.as_str())).collect()
    };
    (s.bad(|c| !extra(c).is_empty()), s.containers().flat_map(extra).collect())
}

fn host_namespaces(s: &Subject<'_>) -> Option<Finding> {
    let fields = ["hostNetwork", "hostPID", "hostIPC"];
    let set: Vec<String> =
        fields.into_iter().filter(|f| flag(s.spec, f) == Some(true)).map(|f| format!("{f}=true")).collect();
    if set.is_empty() { None } else { finding("host namespaces", set.join(", ")) }
}

fn host_path_volumes(s: &Subject<'_>) -> Option<Finding> {
    let volumes = items(s.spec, "volumes").iter().filter(|volume| at(volume, "hostPath").is_some());
    let names: Vec<&str> = volumes.map(|volume| text(volume, "name")).collect();
    if names.is_empty() {
        return None;
    }
    let count = names.len();
    finding("hostPath volumes", format!("{} {}", plural("volume", "volumes", count), quote(names)))
}

fn host_ports(s: &Subject<'_>) -> Option<Finding> {
    let ports = |container: &Value| -> Vec<String> {
        let ports = items(container, "ports").iter().filter_map(|port| integer(port, "hostPort"));
        ports.filter(|port| *port != 0).map(|port| port.to_string()).collect()
    };
    let bad = s.bad(|c| !ports(c).is_empty());
    let used: BTreeSet<String> = s.containers().flat_map(ports).collect();
    if bad.is_empty() {
        return None;
    }
    let uses = plural("uses", "use", bad.len());
    let word = plural("hostPort", "hostPorts", used.len());
    let list = used.into_iter().collect::<Vec<_>>().join(", ");
    finding("hostPort", format!("{} {uses} {word} {list}", named(&bad)))
}

fn host_probes(s: &Subject<'_>) -> Option<Finding> {
    let hosts = |container: &Value| -> Vec<String> {
        let handlers =
            ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle.postStart", "lifecycle.preStop"];
        let host =
            |handler: &str, action: &str| text(container, &format!("{handler}.{action}.host")).to_owned();
        let all = handlers.into_iter().flat_map(|h| [host(h, "httpGet"), host(h, "tcpSocket")]);
        all.filter(|host| !host.is_empty()).collect()
    };
    let mut bad = s.bad(|c| !hosts(c).is_empty());
    let used: BTreeSet<String> = s.containers().flat_map(hosts).collect();
    if bad.is_empty() {
        return None;
    }
    bad.sort();
    let uses = plural("uses", "use", bad.len());
    let word = plural("probe or lifecycle host", "probe or lifecycle hosts", used.len());
    finding("probe or lifecycle host", format!("{} {uses} {word} {}", named(&bad), quote(used)))
}

fn privileged(s: &Subject<'_>) -> Option<Finding> {
    let bad = s.bad(|c| flag(c, "securityContext.privileged") == Some(true));
    if bad.is_empty() {
        return None;
    }
    finding("privileged", format!("{} must not set securityContext.privileged=true", named(&bad)))
}

fn proc_mount(s: &Subject<'_>) -> Option<Finding> {
    if s.is_relaxed() { None } else { proc_mount_always(s) }
}

fn proc_mount_always(s: &Subject<'_>) -> Option<Finding> {
    let mount = |c: &Value| text(c, "securityContext.procMount").to_owned();
    let is_bad = |mount: &str| !mount.is_empty() && mount != "Default";
    let bad = s.bad(|c| is_bad(&mount(c)));
    if bad.is_empty() {
        return None;
    }
    let types: BTreeSet<String> = s.containers().map(mount).filter(|m| is_bad(m)).collect();
    finding(
        "procMount",
        format!("{} must not set securityContext.procMount to {}", named(&bad), quote(types)),
    )
}

fn selinux(s: &Subject<'_>) -> Option<Finding> {
    let engine_allowed = s.minor >= 31;
    let allowed = |kind: &str| {
        matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (engine_allowed && kind == "container_engine_t")
    };
    let options = |owner: &Value| {
        let field = |name: &str| text(owner, &format!("securityContext.seLinuxOptions.{name}")).to_owned();
        (field("type"), field("user"), field("role"))
    };
    let is_bad = |owner: &Value| {
        let (kind, user, role) = options(owner);
        !allowed(&kind) || !user.is_empty() || !role.is_empty()
    };
    let who = setters(is_bad(s.spec), &s.bad(is_bad))?;
    let all: Vec<_> = s.containers().chain([s.spec]).map(options).collect();
    let types: BTreeSet<&str> =
        all.iter().map(|(kind, ..)| kind.as_str()).filter(|kind| !allowed(kind)).collect();
    let mut data = Vec::new();
    if !types.is_empty() {
        let count = types.len();
        data.push(format!("{} {}", plural("type", "types", count), quote(types)));
    }
    if all.iter().any(|(_, user, _)| !user.is_empty()) {
        data.push("user may not be set".to_owned());
    }
    if all.iter().any(|(.., role)| !role.is_empty()) {
        data.push("role may not be set".to_owned());
    }
    finding(
        "seLinuxOptions",
        format!("{who} set forbidden securityContext.seLinuxOptions: {}", data.join("; ")),
    )
}

/// The type of a seccomp profile, when one is set.
fn seccomp_type(owner: &Value) -> Option<&str> {
    at(owner, "securityContext.seccompProfile").map(|profile| text(profile, "type"))
}

/// Profiles set to what neither level allows.
fn seccomp_explicit(s: &Subject<'_>) -> Option<Finding> {
    let is_bad =
        |owner: &Value| seccomp_type(owner).is_some_and(|t| !matches!(t, "Localhost" | "RuntimeDefault"));
    let who = setters(is_bad(s.spec), &s.bad(is_bad))?;
    let owners = s.containers().chain([s.spec]).filter(|owner| is_bad(owner));
    let values: BTreeSet<&str> = owners.filter_map(seccomp_type).collect();
    finding(
        "seccompProfile",
        format!("{who} must not set securityContext.seccompProfile.type to {}", quote(values)),
    )
}

fn seccomp_baseline(s: &Subject<'_>) -> Option<Finding> {
    if s.minor >= 19 {
        return seccomp_explicit(s);
    }
    let mut keys = vec!["seccomp.security.alpha.kubernetes.io/pod".to_owned()];
    keys.extend(
        s.containers().map(|c| format!("container.seccomp.security.alpha.kubernetes.io/{}", text(c, "name"))),
    );
    let fine = |v: &str| matches!(v, "runtime/default" | "docker/default") || v.starts_with("localhost/");
    let bad: BTreeSet<String> = keys
        .iter()
        .filter_map(|key| Some((key, annotation(s.pod, key)?)))
        .filter(|(_, value)| !fine(value))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    if bad.is_empty() {
        return None;
    }
    let word = plural("annotation", "annotations", bad.len());
    finding("seccompProfile", format!("forbidden {word} {}", bad.into_iter().collect::<Vec<_>>().join(", ")))
}

fn seccomp_restricted(s: &Subject<'_>) -> Option<Finding> {
    if s.minor >= 25 && s.is_windows() {
        return None;
    }
    if let Some(explicit) = seccomp_explicit(s) {
        return Some(explicit);
    }
    let missing = s.bad(|c| seccomp_type(c).is_none());
    if seccomp_type(s.spec).is_some() || missing.is_empty() {
        return None;
    }
    let who = named(&missing);
    finding(
        "seccompProfile",
        format!(
            "pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\""
        ),
    )
}

fn sysctls(s: &Subject<'_>) -> Option<Finding> {
    /// What is allowed, each since a minor.
    const ALLOWED: [(&str, u32); 12] = [
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let allowed = |name: &str| ALLOWED.iter().any(|(n, since)| *n == name && s.minor >= *since);
    let names = items(s.spec, "securityContext.sysctls").iter().map(|sysctl| text(sysctl, "name"));
    let bad: Vec<&str> = names.filter(|name| !allowed(name)).collect();
    if bad.is_empty() { None } else { finding("forbidden sysctls", bad.join(", ")) }
}

fn windows_host_process(s: &Subject<'_>) -> Option<Finding> {
    let is_bad = |owner: &Value| flag(owner, "securityContext.windowsOptions.hostProcess") == Some(true);
    let who = setters(is_bad(s.spec), &s.bad(is_bad))?;
    finding("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn allow_privilege_escalation(s: &Subject<'_>) -> Option<Finding> {
    if s.minor >= 25 && s.is_windows() {
        return None;
    }
    let bad = s.bad(|c| flag(c, "securityContext.allowPrivilegeEscalation") != Some(false));
    if bad.is_empty() {
        return None;
    }
    finding(
        "allowPrivilegeEscalation != false",
        format!("{} must set securityContext.allowPrivilegeEscalation=false", named(&bad)),
    )
}

fn capabilities_restricted(s: &Subject<'_>) -> Option<Finding> {
    if s.minor >= 25 && s.is_windows() {
        return None;
    }
    let keeping = s.bad(|c| !strings(c, "securityContext.capabilities.drop").iter().any(|d| d == "ALL"));
    let (bad, added) = adding(s, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", named(&keeping)));
    }
    if !bad.is_empty() {
        let added = quote(added);
        details.push(format!("{} must not include {added} in securityContext.capabilities.add", named(&bad)));
    }
    if details.is_empty() { None } else { finding("unrestricted capabilities", details.join("; ")) }
}

fn restricted_volumes(s: &Subject<'_>) -> Option<Finding> {
    const ALLOWED: [&str; 9] = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "image",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    let has = |volume: &Value, kind: &str| at(volume, kind).is_some();
    let bad: Vec<&Value> = items(s.spec, "volumes")
        .iter()
        .filter(|volume| !ALLOWED.iter().any(|kind| has(volume, kind)))
        .collect();
    if bad.is_empty() {
        return None;
    }
    // A volume has a name and one source, called by its field.
    let kind = |volume: &&Value| {
        let fields = volume.as_object().into_iter().flatten();
        let mut sources =
            fields.filter(|(key, value)| *key != "name" && !value.is_null()).map(|(key, _)| key.clone());
        sources.next().unwrap_or_else(|| "unknown".to_owned())
    };
    let kinds: BTreeSet<String> = bad.iter().map(kind).collect();
    let volumes = plural("volume", "volumes", bad.len());
    let uses = plural("uses", "use", bad.len());
    let types = plural("restricted volume type", "restricted volume types", kinds.len());
    let names = quote(bad.iter().map(|volume| text(volume, "name")));
    finding("restricted volume types", format!("{volumes} {names} {uses} {types} {}", quote(kinds)))
}

fn run_as_non_root(s: &Subject<'_>) -> Option<Finding> {
    if s.is_relaxed() {
        return None;
    }
    let said = |owner: &Value| flag(owner, "securityContext.runAsNonRoot");
    let of_pod = said(s.spec);
    let reason = "runAsNonRoot != true";
    if let Some(who) = setters(of_pod == Some(false), &s.bad(|c| said(c) == Some(false))) {
        return finding(reason, format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let silent = s.bad(|c| said(c).is_none());
    if of_pod == Some(true) || silent.is_empty() {
        return None;
    }
    finding(reason, format!("pod or {} must set securityContext.runAsNonRoot=true", named(&silent)))
}

fn run_as_user(s: &Subject<'_>) -> Option<Finding> {
    if s.is_relaxed() {
        return None;
    }
    let root = |owner: &Value| integer(owner, "securityContext.runAsUser") == Some(0);
    let who = setters(root(s.spec), &s.bad(root))?;
    finding("runAsUser=0", format!("{who} must not set runAsUser=0"))
}
