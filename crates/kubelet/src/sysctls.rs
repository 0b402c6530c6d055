//! Which sysctls a pod may set: those that are its own by the kernel and harm nobody else, and those that the
//! node's operator allows besides.

use api::core::v1::Pod;
use apimachinery::sysctl::{self, MAX_LENGTH, Namespace, normalize};

use crate::status::Verdict;

/// Upstream: pkg/kubelet/sysctl/safe_sysctls.go safeSysctls, all of which kernels since 4.15 have namespaced.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// What upstream's message names as the form of a pattern.
// Upstream: pkg/apis/policy/validation/validation.go SysctlContainSlashPatternFmt
const PATTERN: &str = r"([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*([a-z0-9][-_a-z0-9]*)?[a-z0-9*]";

/// What pods of this node may set.
#[derive(Clone, Debug)]
pub struct Allowed(Vec<Rule>);

#[derive(Clone, Debug)]
struct Rule {
    /// The name, or how names begin.
    name: String,
    is_prefix: bool,
    namespace: Namespace,
}

impl Rule {
    // Upstream: pkg/kubelet/sysctl/allowlist.go NewAllowlist
    fn parse(pattern: &str) -> Result<Self, String> {
        if !is_pattern(pattern) {
            return Err(format!(
                "sysctl {pattern:?} must have at most {MAX_LENGTH} characters and match regex {PATTERN}"
            ));
        }
        let name = normalize(pattern);
        let (name, is_prefix) = match name.split_once('*') {
            Some((prefix, _)) => (prefix.to_owned(), true),
            None => (name, false),
        };
        let namespace = Namespace::of(&name)
            .ok_or_else(|| format!("the sysctls {name:?} are not known to be namespaced"))?;
        Ok(Rule { name, is_prefix, namespace })
    }

    fn covers(&self, name: &str) -> bool {
        if self.is_prefix { name.starts_with(&self.name) } else { name == self.name }
    }
}

/// A name, or how names begin: a star stands where letters and digits may.
fn is_pattern(text: &str) -> bool {
    match text.strip_suffix('*') {
        Some(start) => sysctl::is_name(&format!("{start}0")),
        None => sysctl::is_name(text),
    }
}

impl Allowed {
    /// The safe ones, and those that `--allowed-unsafe-sysctls` names.
    pub fn new<'a>(unsafe_patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        SAFE.into_iter().chain(unsafe_patterns).map(Rule::parse).collect::<Result<_, _>>().map(Allowed)
    }

    /// Those that are not safe, as they were given.
    pub fn unsafe_patterns(&self) -> Vec<String> {
        let star = |rule: &Rule| if rule.is_prefix { "*" } else { "" };
        self.0.iter().skip(SAFE.len()).map(|rule| format!("{}{}", rule.name, star(rule))).collect()
    }

    fn check(&self, name: &str, host_network: bool, host_ipc: bool) -> Result<(), String> {
        let name = normalize(name);
        let exact = self.0.iter().find(|rule| !rule.is_prefix && rule.covers(&name));
        let Some(rule) = exact.or_else(|| self.0.iter().find(|rule| rule.covers(&name))) else {
            return Err(format!("{name:?} not allowlisted"));
        };
        let (of_host, namespace) = match rule.namespace {
            Namespace::Ipc => (host_ipc, "IPC"),
            Namespace::Net => (host_network, "Net"),
        };
        if of_host {
            return Err(format!("{name:?} not allowed with host {namespace} enabled"));
        }
        Ok(())
    }

    /// The refusal of a pod that sets what it may not.
    // Upstream: pkg/kubelet/sysctl/allowlist.go Admit
    pub fn refusal(&self, pod: &Pod) -> Option<Verdict> {
        let spec = pod.spec.as_ref()?;
        let (network, ipc) = (spec.host_network == Some(true), spec.host_ipc == Some(true));
        let asked = spec.security_context.as_ref()?.sysctls.as_deref().unwrap_or_default();
        let why = asked.iter().find_map(|sysctl| self.check(&sysctl.name, network, ipc).err())?;
        Some(Verdict {
            reason: "SysctlForbidden".into(),
            message: format!("forbidden sysctl: {why}"),
            ..Default::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn pods_set_what_is_safe_and_what_is_allowed() {
        let allowed = Allowed::new(["kernel.msg*", "net.core.somaxconn", "net/ipv4/conf/eth0.1/*"]).unwrap();
        let check = |spec: Value, want: Option<&str>| {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let pod: Pod = serde_json::from_value(json!({"spec": spec})).unwrap();
            let refusal = allowed.refusal(&pod).map(|verdict| verdict.message);
            assert_eq!(refusal.as_deref(), want, "{pod:?}");
        };
        let sets = |name: &str| json!({"securityContext": {"sysctls": [{"name": name, "value": "1"}]}});
        check(json!({}), None);
        check(sets("kernel.shm_rmid_forced"), None);
        check(sets("net/ipv4/tcp_syncookies"), None);
        check(sets("kernel.msgmax"), None);
        check(sets("net.core.somaxconn"), None);
        check(sets("net.ipv4.conf.eth0/1.rp_filter"), None);
        check(sets("kernel.shmmax"), Some("forbidden sysctl: \"kernel.shmmax\" not allowlisted"));
        check(sets("net.core.somaxconn2"), Some("forbidden sysctl: \"net.core.somaxconn2\" not allowlisted"));
        let mut host = sets("net.ipv4.tcp_syncookies");
        host["hostNetwork"] = json!(true);
        let why = "forbidden sysctl: \"net.ipv4.tcp_syncookies\" not allowed with host Net enabled";
        check(host, Some(why));
        let mut host = sets("kernel.msgmax");
        host["hostIPC"] = json!(true);
        check(host, Some("forbidden sysctl: \"kernel.msgmax\" not allowed with host IPC enabled"));
    }

    #[test]
    fn patterns_are_checked() {
        for (pattern, why) in [
            ("kernel.hostname", "not known to be namespaced"),
            ("*", "not known to be namespaced"),
            ("net.*.x", "match regex"),
            ("Net.core", "match regex"),
            ("", "match regex"),
        ] {
            let error = Allowed::new([pattern]).unwrap_err();
            assert!(error.contains(why), "{pattern}: {error}");
        }
    }
}
