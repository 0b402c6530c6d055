//! The OCI runtime's description of a container, from what CRI asks and what the image says. Pure: facts of
//! the machine come in as [`Facts`].

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use cri::v1::{
    Capability, ContainerConfig, IdMapping, LinuxContainerResources, LinuxContainerSecurityContext, Mount,
    MountPropagation, NamespaceMode, UserNamespace, security_profile::ProfileType,
};
use serde_json::{Value, json};

use super::seccomp;
use super::user::User;
use crate::images::RunConfig;

/// What Docker and containerd grant by default.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is true of this machine and of this pod.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    pub rootfs: PathBuf,
    pub cgroup: PathBuf,
    /// Where the pod's namespaces are pinned.
    pub namespaces: PathBuf,
    /// Pid 1 of the namespace to join, for a shared or a target's pid namespace.
    pub pid_namespace_of: Option<i32>,
    pub resolv_conf: Option<PathBuf>,
    pub hostname_file: Option<PathBuf>,
    pub shm: Option<PathBuf>,
    /// Capabilities that this process can hand out at most.
    pub all_capabilities: BTreeSet<String>,
    pub cgroup_v2: bool,
    /// What is mounted at and below `/sys/fs/cgroup` in a container: version 1 has a mount a hierarchy, and the
    /// runtime leaves them writable.
    pub cgroup_mounts: Vec<String>,
    pub host_devices: Vec<HostDevice>,
    /// A seccomp profile that was read from the file of `Localhost`.
    pub localhost_seccomp: Option<Value>,
    pub hostname: String,
}

/// A device file of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HostDevice {
    pub path: String,
    pub kind: char,
    pub major: u64,
    pub minor: u64,
    pub permissions: String,
}

/// Builds the description.
pub(crate) fn build(
    config: &ContainerConfig,
    image: &RunConfig,
    user: &User,
    facts: &Facts,
) -> Result<Value, String> {
    let linux = config.linux.clone().unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    let resources = linux.resources.unwrap_or_default();
    let capabilities = capabilities(&security, &facts.all_capabilities)?;
    let mut spec = json!({
        "ociVersion": "1.1.0",
        "process": process(config, image, user, &security, &resources, &capabilities, &facts.hostname)?,
        "root": { "path": facts.rootfs, "readonly": security.readonly_rootfs },
        "mounts": mounts(config, &security, facts)?,
        "annotations": config.annotations,
        "linux": {
            "cgroupsPath": facts.cgroup,
            "namespaces": namespaces(&security, facts),
            "resources": oci_resources(&resources, facts, &security),
            "rootfsPropagation": rootfs_propagation(&config.mounts),
        },
    });
    let oci = &mut spec["linux"];
    if let Some(users) = users(&security) {
        oci["uidMappings"] = id_mappings(&users.uids);
        oci["gidMappings"] = id_mappings(&users.gids);
    }
    if !security.privileged {
        oci["maskedPaths"] = json!(security.masked_paths);
        oci["readonlyPaths"] = json!([&security.readonly_paths[..], &facts.cgroup_mounts[..]].concat());
        if let Some(profile) = seccomp_profile(&security, &capabilities, facts)? {
            oci["seccomp"] = profile;
        }
    }
    let devices: Vec<Value> = facts
        .host_devices
        .iter()
        .map(|d| json!({ "path": d.path, "type": d.kind.to_string(), "major": d.major, "minor": d.minor }))
        .collect();
    if !devices.is_empty() {
        oci["devices"] = json!(devices);
    }
    Ok(spec)
}

fn process(
    config: &ContainerConfig,
    image: &RunConfig,
    user: &User,
    security: &LinuxContainerSecurityContext,
    resources: &LinuxContainerResources,
    capabilities: &BTreeSet<String>,
    hostname: &str,
) -> Result<Value, String> {
    let args = arguments(config, image)?;
    let cwd = [config.working_dir.as_str(), image.working_dir.as_str(), "/"];
    let cwd = cwd.iter().find(|dir| !dir.is_empty()).copied().unwrap_or("/");
    // Capabilities of a user other than root become effective only through programs that have them.
    let effective: BTreeSet<&String> =
        if user.uid == 0 { capabilities.iter().collect() } else { BTreeSet::new() };
    let ambient = security
        .capabilities
        .as_ref()
        .map(|c| normalize_all(&c.add_ambient_capabilities))
        .unwrap_or_default();
    let mut process = json!({
        "terminal": config.tty,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.additional },
        "args": args,
        "env": environment(config, image, user, hostname),
        "cwd": cwd,
        "capabilities": {
            "bounding": capabilities, "permitted": effective, "effective": effective,
            "inheritable": ambient, "ambient": ambient,
        },
        "oomScoreAdj": resources.oom_score_adj,
    });
    if !ambient.is_empty() {
        process["capabilities"]["permitted"] =
            json!(effective.iter().copied().chain(&ambient).collect::<BTreeSet<_>>());
        process["capabilities"]["effective"] = process["capabilities"]["permitted"].clone();
    }
    // Said only when true: what is absent and what is false differ for the moment at which seccomp is loaded.
    if security.no_new_privs {
        process["noNewPrivileges"] = json!(true);
    }
    Ok(process)
}

/// The command line: CRI's command replaces the image's entrypoint and its arguments, CRI's arguments the
/// image's.
// Upstream: the same rule as Kubernetes documents for command and args
fn arguments(config: &ContainerConfig, image: &RunConfig) -> Result<Vec<String>, String> {
    let entrypoint = image.entrypoint.clone().unwrap_or_default();
    let cmd = image.cmd.clone().unwrap_or_default();
    let args: Vec<String> = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => entrypoint.into_iter().chain(cmd).collect(),
        (true, false) => entrypoint.into_iter().chain(config.args.iter().cloned()).collect(),
        (false, _) => config.command.iter().chain(&config.args).cloned().collect(),
    };
    if args.is_empty() { Err("no command specified".to_owned()) } else { Ok(args) }
}

fn environment(config: &ContainerConfig, image: &RunConfig, user: &User, hostname: &str) -> Vec<String> {
    let mut env: Vec<String> = Vec::new();
    let mut set = |entry: String| {
        let key = entry.split_once('=').map_or(entry.as_str(), |(key, _)| key);
        match env.iter_mut().find(|known| known.split_once('=').map_or(known.as_str(), |(k, _)| k) == key) {
            Some(known) => *known = entry,
            None => env.push(entry),
        }
    };
    set(DEFAULT_PATH.to_owned());
    if !hostname.is_empty() {
        set(format!("HOSTNAME={hostname}"));
    }
    if config.tty {
        set("TERM=xterm".to_owned());
    }
    set(format!("HOME={}", user.home));
    image.env.iter().flatten().cloned().for_each(&mut set);
    config.envs.iter().for_each(|env| set(format!("{}={}", env.key, env.value)));
    env
}

fn normalize_all(names: &[String]) -> BTreeSet<String> {
    names.iter().map(|name| normalize(name)).collect()
}

fn normalize(name: &str) -> String {
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") }
}

fn capabilities(
    security: &LinuxContainerSecurityContext,
    all: &BTreeSet<String>,
) -> Result<BTreeSet<String>, String> {
    if security.privileged {
        return Ok(all.clone());
    }
    let Capability { add_capabilities: add, drop_capabilities: drop, .. } =
        security.capabilities.clone().unwrap_or_default();
    let (add, drop) = (normalize_all(&add), normalize_all(&drop));
    let mut set: BTreeSet<String> = DEFAULT_CAPABILITIES.iter().map(|name| (*name).to_owned()).collect();
    if drop.contains("CAP_ALL") {
        set.clear();
    }
    if add.contains("CAP_ALL") {
        set.extend(all.iter().cloned());
    }
    set.retain(|name| !drop.contains(name));
    for name in add {
        if name != "CAP_ALL" {
            set.insert(name);
        }
    }
    // What this process does not have it cannot give; a default that is missing must not fail every pod.
    set.retain(|name| all.contains(name));
    Ok(set)
}

/// The ids of a pod that has its own.
fn users(security: &LinuxContainerSecurityContext) -> Option<&UserNamespace> {
    let users = security.namespace_options.as_ref()?.userns_options.as_ref()?;
    (users.mode() == NamespaceMode::Pod).then_some(users)
}

fn id_mappings(mappings: &[IdMapping]) -> Value {
    let one = |m: &IdMapping| json!({ "containerID": m.container_id, "hostID": m.host_id, "size": m.length });
    json!(mappings.iter().map(one).collect::<Vec<_>>())
}

fn namespaces(security: &LinuxContainerSecurityContext, facts: &Facts) -> Value {
    let options = security.namespace_options.clone().unwrap_or_default();
    let mut list = vec![json!({ "type": "mount" })];
    if users(security).is_some() {
        list.push(json!({ "type": "user", "path": facts.namespaces.join("user") }));
    }
    if facts.cgroup_v2 && !security.privileged {
        list.push(json!({ "type": "cgroup" }));
    }
    let pinned = |kind: &str| facts.namespaces.join(kind);
    if options.network() != NamespaceMode::Node {
        list.push(json!({ "type": "network", "path": pinned("net") }));
        list.push(json!({ "type": "uts", "path": pinned("uts") }));
    }
    if options.ipc() != NamespaceMode::Node {
        list.push(json!({ "type": "ipc", "path": pinned("ipc") }));
    }
    match (options.pid(), facts.pid_namespace_of) {
        (NamespaceMode::Node, _) => {}
        (NamespaceMode::Pod | NamespaceMode::Target, Some(pid)) => {
            list.push(json!({ "type": "pid", "path": format!("/proc/{pid}/ns/pid") }));
        }
        _ => list.push(json!({ "type": "pid" })),
    }
    json!(list)
}

fn oci_resources(
    resources: &LinuxContainerResources,
    facts: &Facts,
    security: &LinuxContainerSecurityContext,
) -> Value {
    let mut out = json!({ "devices": device_rules(facts, security) });
    let mut cpu = serde_json::Map::new();
    let mut put = |key: &str, set: bool, value: Value| {
        if set {
            cpu.insert(key.to_owned(), value);
        }
    };
    put("shares", resources.cpu_shares > 0, json!(resources.cpu_shares));
    put("quota", resources.cpu_quota != 0, json!(resources.cpu_quota));
    put("period", resources.cpu_period > 0, json!(resources.cpu_period));
    put("cpus", !resources.cpuset_cpus.is_empty(), json!(resources.cpuset_cpus));
    put("mems", !resources.cpuset_mems.is_empty(), json!(resources.cpuset_mems));
    if !cpu.is_empty() {
        out["cpu"] = Value::Object(cpu);
    }
    if resources.memory_limit_in_bytes > 0 {
        out["memory"] = json!({ "limit": resources.memory_limit_in_bytes });
        if resources.memory_swap_limit_in_bytes != 0 {
            out["memory"]["swap"] = json!(resources.memory_swap_limit_in_bytes);
        }
    }
    if !resources.hugepage_limits.is_empty() {
        let limit = |h: &cri::v1::HugepageLimit| json!({ "pageSize": h.page_size, "limit": h.limit });
        out["hugepageLimits"] = json!(resources.hugepage_limits.iter().map(limit).collect::<Vec<_>>());
    }
    if facts.cgroup_v2 && !resources.unified.is_empty() {
        out["unified"] = json!(resources.unified);
    }
    out
}

/// Nothing but the devices that every container has (which the runtime adds) and those that were asked for.
fn device_rules(facts: &Facts, security: &LinuxContainerSecurityContext) -> Vec<Value> {
    if security.privileged {
        return vec![json!({ "allow": true, "access": "rwm" })];
    }
    let mut rules = vec![json!({ "allow": false, "access": "rwm" })];
    rules.extend(facts.host_devices.iter().map(|d| {
        let (kind, access) = (d.kind.to_string(), &d.permissions);
        json!({ "allow": true, "type": kind, "major": d.major, "minor": d.minor, "access": access })
    }));
    rules
}

fn seccomp_profile(
    security: &LinuxContainerSecurityContext,
    capabilities: &BTreeSet<String>,
    facts: &Facts,
) -> Result<Option<Value>, String> {
    let Some(profile) = &security.seccomp else { return Ok(None) };
    match profile.profile_type() {
        ProfileType::Unconfined => Ok(None),
        ProfileType::RuntimeDefault => Ok(Some(seccomp::default_profile(capabilities))),
        ProfileType::Localhost => match &facts.localhost_seccomp {
            Some(profile) => Ok(Some(profile.clone())),
            None => Err(format!("seccomp profile {:?} cannot be read", profile.localhost_ref)),
        },
    }
}

fn rootfs_propagation(mounts: &[Mount]) -> &'static str {
    let any = |wanted| mounts.iter().any(|mount| mount.propagation() == wanted);
    if any(MountPropagation::PropagationBidirectional) {
        "shared"
    } else if any(MountPropagation::PropagationHostToContainer) {
        // Written without the r, which libcontainer does not know here.
        "slave"
    } else {
        "private"
    }
}

fn mounts(
    config: &ContainerConfig,
    security: &LinuxContainerSecurityContext,
    facts: &Facts,
) -> Result<Vec<Value>, String> {
    let sys = if security.privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let host_network =
        security.namespace_options.as_ref().is_some_and(|o| o.network() == NamespaceMode::Node);
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        match host_network {
            // sysfs shows the devices of a network namespace, and the host's may not be mounted anew.
            true => mount("/sys", "bind", "/sys", &["rbind", "nosuid", "noexec", "nodev", sys]),
            false => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
        },
    ];
    if !host_network {
        list.push(mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", sys],
        ));
    }
    let asked = |path: &str| config.mounts.iter().any(|mount| mount.container_path == path);
    let shm = facts.shm.as_ref().map_or("/dev/shm".to_owned(), |path| path.display().to_string());
    if !asked("/dev/shm") {
        list.push(mount("/dev/shm", "bind", &shm, &["rbind", "nosuid", "noexec", "nodev", "rw"]));
    }
    for (path, file) in [("/etc/resolv.conf", &facts.resolv_conf), ("/etc/hostname", &facts.hostname_file)] {
        if let Some(file) = file.as_ref().filter(|_| !asked(path)) {
            let access = if security.readonly_rootfs { "ro" } else { "rw" };
            list.push(mount(path, "bind", &file.display().to_string(), &["rbind", "rprivate", access]));
        }
    }
    // Outer mounts first, so that none hides one that was made before it.
    let mut asked: Vec<&Mount> = config.mounts.iter().collect();
    asked.sort_by_key(|mount| Path::new(&mount.container_path).components().count());
    for wanted in asked {
        // A bind on /dev or /sys replaces what would be mounted there.
        list.retain(|known| known["destination"] != json!(wanted.container_path));
        list.push(bind(wanted)?);
    }
    Ok(list)
}

fn bind(mount: &Mount) -> Result<Value, String> {
    if !mount.container_path.starts_with('/') {
        return Err(format!("mount path {:?} is not absolute", mount.container_path));
    }
    // Upstream: containerd's internal/cri/server/container_create.go
    if mount.recursive_read_only && !mount.readonly {
        return Err(format!("recursive read-only mount {:?} must be read-only", mount.container_path));
    }
    if mount.recursive_read_only && mount.propagation() != MountPropagation::PropagationPrivate {
        return Err(format!(
            "recursive read-only mount {:?} must have private propagation",
            mount.container_path
        ));
    }
    let propagation = match mount.propagation() {
        MountPropagation::PropagationPrivate => "rprivate",
        MountPropagation::PropagationHostToContainer => "rslave",
        MountPropagation::PropagationBidirectional => "rshared",
    };
    let access = match (mount.readonly, mount.recursive_read_only) {
        (true, true) => "rro",
        (true, false) => "ro",
        (false, _) => "rw",
    };
    let mut bind = json!({
        "destination": mount.container_path, "type": "bind", "source": mount.host_path,
        "options": ["rbind", propagation, access],
    });
    if !mount.uid_mappings.is_empty() {
        bind["uidMappings"] = id_mappings(&mount.uid_mappings);
        bind["gidMappings"] = id_mappings(&mount.gid_mappings);
    }
    Ok(bind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::KeyValue;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn capabilities_are_added_and_dropped_as_docker_does() {
        let all: BTreeSet<String> = DEFAULT_CAPABILITIES
            .iter()
            .chain(&["CAP_SYS_ADMIN", "CAP_NET_ADMIN"])
            .map(|c| (*c).to_owned())
            .collect();
        let cases: [(&str, &[&str], &[&str], usize, &[&str]); 5] = [
            ("default", &[], &[], 14, &["CAP_CHOWN"]),
            ("add", &["NET_ADMIN"], &[], 15, &["CAP_NET_ADMIN"]),
            ("drop all", &[], &["ALL"], 0, &[]),
            ("drop all but one", &["NET_BIND_SERVICE"], &["ALL"], 1, &["CAP_NET_BIND_SERVICE"]),
            ("add all but one", &["ALL"], &["CHOWN"], 15, &["CAP_SYS_ADMIN"]),
        ];
        for (name, add, drop, count, with) in cases {
            let security = LinuxContainerSecurityContext {
                capabilities: Some(Capability {
                    add_capabilities: names(add),
                    drop_capabilities: names(drop),
                    add_ambient_capabilities: Vec::new(),
                }),
                ..Default::default()
            };
            let set = capabilities(&security, &all).unwrap();
            assert_eq!(set.len(), count, "{name}: {set:?}");
            assert!(with.iter().all(|cap| set.contains(*cap)), "{name}");
        }
    }

    #[test]
    fn command_lines_and_environments_are_merged() {
        let image = RunConfig {
            entrypoint: Some(names(&["/e"])),
            cmd: Some(names(&["c"])),
            env: Some(names(&["A=image", "B=image"])),
            ..RunConfig::default()
        };
        for (command, args, wanted) in [
            (&[][..], &[][..], &["/e", "c"][..]),
            (&[], &["x"], &["/e", "x"]),
            (&["/k"], &[], &["/k"]),
            (&["/k"], &["x"], &["/k", "x"]),
        ] {
            let config = ContainerConfig { command: names(command), args: names(args), ..Default::default() };
            assert_eq!(arguments(&config, &image).unwrap(), names(wanted));
        }
        assert!(arguments(&ContainerConfig::default(), &RunConfig::default()).is_err());
        let config = ContainerConfig {
            envs: vec![KeyValue { key: "A".into(), value: "pod".into() }],
            ..Default::default()
        };
        let user = User { home: "/h".into(), ..User::default() };
        let env = environment(&config, &image, &user, "host");
        assert_eq!(env[1..], names(&["HOSTNAME=host", "HOME=/h", "A=pod", "B=image"]));
    }

    #[test]
    fn recursively_read_only_is_read_only_and_private() {
        let private = MountPropagation::PropagationPrivate;
        for (readonly, propagation, is_taken) in [
            (true, private, true),
            (false, private, false),
            (true, MountPropagation::PropagationHostToContainer, false),
            (true, MountPropagation::PropagationBidirectional, false),
        ] {
            let mount = Mount {
                container_path: "/x".into(),
                readonly,
                recursive_read_only: true,
                propagation: propagation as i32,
                ..Default::default()
            };
            assert_eq!(bind(&mount).is_ok(), is_taken, "{readonly} {propagation:?}");
        }
    }

    #[test]
    fn a_mount_of_the_pod_replaces_ours() {
        let mount =
            |path: &str| Mount { container_path: path.into(), host_path: "/x".into(), ..Default::default() };
        let config = ContainerConfig {
            mounts: vec![mount("/a/b"), mount("/a"), mount("/dev/shm")],
            ..Default::default()
        };
        let facts = Facts { shm: Some("/pod/shm".into()), ..Facts::default() };
        let list = mounts(&config, &LinuxContainerSecurityContext::default(), &facts).unwrap();
        let at: Vec<&str> = list.iter().filter_map(|mount| mount["destination"].as_str()).collect();
        assert_eq!(at[6..], ["/a", "/a/b", "/dev/shm"]);
        assert_eq!(at.iter().filter(|path| **path == "/dev/shm").count(), 1);
    }
}
