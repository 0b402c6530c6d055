//! Names of sysctls: how they are spelled, and which of the kernel's namespaces has a value of its own for them.

pub const MAX_LENGTH: usize = 253;

/// The namespace that a sysctl is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    Ipc,
    Net,
}

impl Namespace {
    /// `None` for what the whole machine shares, and for what is not known. Either spelling will do.
    // Upstream: k8s.io/component-helpers/node/util/sysctl/namespace.go GetNamespace
    pub fn of(name: &str) -> Option<Self> {
        const OF_IPC: [&str; 10] = [
            "kernel.sem",
            "kernel.shmall",
            "kernel.shmmax",
            "kernel.shmmni",
            "kernel.shm_rmid_forced",
            "kernel.shm",
            "kernel.msgmax",
            "kernel.msgmnb",
            "kernel.msgmni",
            "kernel.msg",
        ];
        let name = normalize(name);
        match name.as_str() {
            name if OF_IPC.contains(&name) || name.starts_with("fs.mqueue.") => Some(Namespace::Ipc),
            name if name.starts_with("net.") => Some(Namespace::Net),
            _ => None,
        }
    }
}

/// Both spellings are allowed, `net.ipv4.ip_forward` and `net/ipv4/ip_forward`; the first separator tells which one
/// is meant, as the parts of a name may hold the other.
// Upstream: k8s.io/component-helpers/node/util/sysctl/sysctl.go NormalizeName
pub fn normalize(name: &str) -> String {
    let swapped = |c: char| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    match name.find(['.', '/']) {
        Some(at) if name[at..].starts_with('/') => name.chars().map(swapped).collect(),
        _ => name.to_owned(),
    }
}

/// Whether it has the form of a name, in either spelling.
// Upstream: pkg/apis/core/validation/validation.go IsValidSysctlName
pub fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let inner = |c: char| plain(c) || c == '-' || c == '_';
    let is_segment = |part: &str| part.starts_with(plain) && part.ends_with(plain) && part.chars().all(inner);
    name.len() <= MAX_LENGTH && name.split(['.', '/']).all(is_segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_form_and_a_namespace() {
        for (name, good, namespace) in [
            ("kernel.shmmax", true, Some(Namespace::Ipc)),
            ("kernel/shmmax", true, Some(Namespace::Ipc)),
            ("kernel.hostname", true, None),
            ("fs.mqueue.msg_max", true, Some(Namespace::Ipc)),
            ("fs.mqueue", true, None),
            ("net/ipv4/ip_forward", true, Some(Namespace::Net)),
            ("net.ipv4.conf.eth0/1.rp_filter", true, Some(Namespace::Net)),
            ("net", true, None),
            ("safe-and-unsafe", true, None),
            ("", false, None),
            ("foo-", false, None),
            ("bar..", false, None),
            ("A.b", false, None),
            ("_a", false, None),
        ] {
            assert_eq!((is_name(name), Namespace::of(name)), (good, namespace), "{name}");
        }
    }

    #[test]
    fn a_name_is_spelled_with_dots() {
        for (name, normal) in [
            ("net/ipv4/conf/eth0.1/rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
            ("net.ipv4.conf.eth0/1.rp_filter", "net.ipv4.conf.eth0/1.rp_filter"),
            ("net", "net"),
        ] {
            assert_eq!(normalize(name), normal);
        }
    }
}
