//! The engine from outside, over its socket, with real containers of Debian's static busybox.
//!
//! Each test has a directory and a cgroup of its own and takes everything away at its end. They need root and
//! Debian's busybox-static.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use cri::v1;
use cri_server::images::{BuildConfig, BuildFile, build};
use cri_server::{Clock, CniConfig, Config};

const IMAGE: &str = "example.org/busybox:test";

/// An engine in a process of its own.
struct Engine {
    dir: PathBuf,
    process: Child,
    clients: cri::Clients,
}

fn program() -> PathBuf {
    // Examples are built beside the tests: target/debug/examples/engine.
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples/engine")
}

impl Engine {
    async fn start(name: &str) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests run containers: run them as root");
        let dir = std::env::temp_dir().join(format!("trierarch-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (process, clients) = Self::spawn(&dir).await;
        let engine = Self { dir, process, clients };
        let archive = engine.dir.join("busybox.tar");
        std::fs::write(&archive, image()).unwrap();
        let socket = engine.dir.join("cri.sock");
        assert_eq!(cri_server::cli::import(&socket, &archive).await.unwrap(), [IMAGE]);
        engine
    }

    #[allow(
        clippy::zombie_processes,
        reason = "it is waited for when the Engine is dropped, or here before a panic"
    )]
    async fn spawn(dir: &Path) -> (Child, cri::Clients) {
        let mut process = Command::new(program()).arg("serve").arg(dir).spawn().unwrap();
        let socket = dir.join("cri.sock");
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            if let Ok(mut clients) = cri::clients(&socket.display().to_string()).await
                && clients.runtime.version(v1::VersionRequest::default()).await.is_ok()
            {
                return (process, clients);
            }
            if Instant::now() > give_up {
                process.kill().unwrap();
                process.wait().unwrap();
                panic!("the engine does not answer");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Kills the engine as a crash would and starts another one.
    async fn crash(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        (self.process, self.clients) = Self::spawn(&self.dir).await;
    }

    async fn sandbox(&mut self, name: &str, options: v1::NamespaceOption) -> String {
        let request =
            v1::RunPodSandboxRequest { config: Some(pod(&self.dir, name, options)), ..Default::default() };
        self.clients.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
    }

    async fn run(&mut self, sandbox: &str, config: v1::ContainerConfig) -> String {
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: sandbox.to_owned(),
            config: Some(config),
            sandbox_config: None,
        };
        let id = self.clients.runtime.create_container(request).await.unwrap().into_inner().container_id;
        let request = v1::StartContainerRequest { container_id: id.clone() };
        self.clients.runtime.start_container(request).await.unwrap();
        id
    }

    async fn status(&mut self, id: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.clients.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    async fn exited(&mut self, id: &str) -> v1::ContainerStatus {
        let give_up = Instant::now() + Duration::from_secs(20);
        loop {
            let status = self.status(id).await;
            if status.state() == v1::ContainerState::ContainerExited {
                return status;
            }
            assert!(Instant::now() < give_up, "{id} does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn exec(&mut self, id: &str, script: &str) -> (String, i32) {
        let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 10 };
        let answer = self.clients.runtime.exec_sync(request).await.unwrap().into_inner();
        (String::from_utf8([answer.stdout, answer.stderr].concat()).unwrap(), answer.exit_code)
    }

    fn config(&self) -> Config {
        let mut config = Config::new(&self.dir, program(), Clock::new(|| 0));
        config.cni = CniConfig::Disabled;
        config.cgroup_root = format!("/{}", self.dir.file_name().unwrap().display()).into();
        config
    }

    /// Takes everything away and finds nothing left.
    async fn finish(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        cri_server::reset(&self.config()).await.unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(&self.dir.display().to_string()), "{mounts}");
        assert!(!linux::cgroups::Cgroup::new(&self.config().cgroup_root).exists());
    }
}

impl Drop for Engine {
    /// A failed test leaves nothing behind either.
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let config = self.config();
        let cleaned = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(cri_server::reset(&config)).map_err(|e| e.to_string())
        });
        if let Ok(Err(error)) = cleaned.join() {
            eprintln!("reset: {error}");
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn image() -> Vec<u8> {
    let file = |path: &str, mode, bytes: &[u8]| BuildFile { path: path.into(), mode, bytes: bytes.into() };
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let mut files = vec![file("/bin/busybox", 0o755, &busybox)];
    for applet in
        ["sh", "sleep", "echo", "id", "cat", "hostname", "true", "kill", "ps", "stty", "mknod", "mount", "ls"]
    {
        files.push(file(&format!("/bin/{applet}"), 0o120_777, b"/bin/busybox"));
    }
    files.push(file("/etc", 0o040_755, b""));
    files.push(file(
        "/etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\napp:x:1000:50000::/app:/bin/sh\n",
    ));
    files.push(file("/tmp", 0o041_777, b""));
    let config =
        BuildConfig { cmd: vec!["/bin/sh".into()], env: vec!["FROM=image".into()], ..Default::default() };
    build(IMAGE, &files, &config).unwrap()
}

fn pod(dir: &Path, name: &str, options: v1::NamespaceOption) -> v1::PodSandboxConfig {
    let security = v1::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.into(),
            uid: name.into(),
            namespace: "test".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: dir.join("logs").join(name).display().to_string(),
        linux: Some(v1::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    }
}

fn shell(name: &str, script: &str) -> v1::ContainerConfig {
    let security = v1::LinuxContainerSecurityContext {
        seccomp: Some(v1::SecurityProfile::default()),
        masked_paths: vec!["/proc/version".into()],
        readonly_paths: vec!["/proc/sys".into()],
        no_new_privs: true,
        namespace_options: Some(v1::NamespaceOption {
            pid: v1::NamespaceMode::Container as i32,
            ..Default::default()
        }),
        ..Default::default()
    };
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: IMAGE.into(), ..Default::default() }),
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        log_path: format!("{name}.log"),
        linux: Some(v1::LinuxContainerConfig { security_context: Some(security), resources: None }),
        ..Default::default()
    }
}

fn own_pids() -> v1::NamespaceOption {
    v1::NamespaceOption { pid: v1::NamespaceMode::Container as i32, ..Default::default() }
}

#[tokio::test]
async fn a_container_runs_logs_answers_and_ends() {
    let mut engine = Engine::start("run").await;
    let began = Instant::now();
    let sandbox = engine.sandbox("web", own_pids()).await;
    let id = engine.run(&sandbox, shell("main", "echo out; echo err >&2; exec sleep 100")).await;
    eprintln!("sandbox and container in {:?}", began.elapsed());
    assert_eq!(engine.exec(&id, "echo $FROM; hostname; exit 3").await, ("image\nweb\n".to_owned(), 3));
    let (ids, _) = engine.exec(&id, "echo $$; cat /proc/1/comm").await;
    assert!(ids.ends_with("sleep\n"), "{ids}");
    let (refused, code) = engine.exec(&id, "echo 1 > /proc/sys/kernel/domainname").await;
    assert_ne!(code, 0, "{refused}");
    let log = std::fs::read_to_string(engine.dir.join("logs/web/main.log")).unwrap();
    assert!(log.contains(" stdout F out\n") && log.contains(" stderr F err\n"), "{log}");
    let stop = v1::StopContainerRequest { container_id: id.clone(), timeout: 0 };
    engine.clients.runtime.stop_container(stop).await.unwrap();
    let status = engine.exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"));
    let short = engine.run(&sandbox, shell("short", "exit 7")).await;
    assert_eq!(engine.exited(&short).await.exit_code, 7);
    let remove = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox };
    engine.clients.runtime.remove_pod_sandbox(remove).await.unwrap();
    let left = engine.clients.runtime.list_containers(v1::ListContainersRequest::default()).await.unwrap();
    assert!(left.into_inner().containers.is_empty());
    engine.finish().await;
}

#[tokio::test]
async fn a_killed_engine_leaves_containers_running_and_learns_their_ends() {
    let mut engine = Engine::start("crash").await;
    let sandbox = engine.sandbox("lasting", own_pids()).await;
    let lasting = engine.run(&sandbox, shell("lasting", "exec sleep 100")).await;
    let gate = engine.dir.join("gate");
    std::fs::create_dir(&gate).unwrap();
    let mut ending = shell("ending", "while [ ! -e /gate/open ]; do sleep 0.01; done; exit 42");
    ending.mounts.push(v1::Mount {
        container_path: "/gate".into(),
        host_path: gate.display().to_string(),
        ..Default::default()
    });
    let ending = engine.run(&sandbox, ending).await;
    let before = engine.status(&lasting).await;
    engine.process.kill().unwrap();
    engine.process.wait().unwrap();
    std::fs::write(gate.join("open"), "").unwrap();
    engine.crash().await;
    let after = engine.status(&lasting).await;
    assert_eq!(after.state(), v1::ContainerState::ContainerRunning);
    assert_eq!(after.created_at, before.created_at);
    assert_eq!(engine.exec(&lasting, "echo alive").await.0, "alive\n");
    let ended = engine.exited(&ending).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (42, "Error"));
    engine.crash().await;
    assert_eq!(engine.exited(&ending).await.exit_code, 42);
    engine.finish().await;
}

#[tokio::test]
async fn a_dead_shim_ends_its_containers_and_its_pod() {
    let mut engine = Engine::start("shim").await;
    let sandbox = engine.sandbox("orphan", own_pids()).await;
    let id = engine.run(&sandbox, shell("main", "exec sleep 100")).await;
    let file = engine.dir.join("engine/sandboxes").join(&sandbox).join("shim.pid");
    let pid: i32 = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
    linux::process::kill(pid, 9).unwrap();
    let status = engine.exited(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (255, "Unknown"));
    engine.finish().await;
}

#[tokio::test]
async fn users_memory_limits_and_shared_pids_are_as_asked() {
    let mut engine = Engine::start("asked").await;
    let shared = v1::NamespaceOption { network: v1::NamespaceMode::Node as i32, ..Default::default() };
    let sandbox = engine.sandbox("asked", shared.clone()).await;
    let mut config = shell("user", "id; cat /proc/1/comm; exec sleep 100");
    if let Some(security) = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()) {
        security.run_as_user = Some(v1::Int64Value { value: 1000 });
        security.namespace_options = Some(shared.clone());
    }
    let id = engine.run(&sandbox, config).await;
    let (text, _) = engine.exec(&id, "id; cat /proc/1/comm").await;
    assert!(text.contains("uid=1000") && text.contains("gid=50000"), "{text}");
    assert!(!text.contains("sleep"), "pid 1 is the pod's: {text}");
    let mut hungry = shell("hungry", "x=xxxxxxxxxxxxxxxx; while true; do x=$x$x; done");
    if let Some(linux) = hungry.linux.as_mut() {
        linux.resources =
            Some(v1::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() });
    }
    let hungry = engine.run(&sandbox, hungry).await;
    let status = engine.exited(&hungry).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
    engine.finish().await;
}

/// What confines a process, in the kernel's words.
fn confinement(status: &str) -> Vec<String> {
    const TOLD: [&str; 10] = [
        "Uid:",
        "Gid:",
        "Groups:",
        "NoNewPrivs:",
        "Seccomp:",
        "CapInh:",
        "CapPrm:",
        "CapEff:",
        "CapBnd:",
        "CapAmb:",
    ];
    let told = |line: &&str| TOLD.iter().any(|name| line.starts_with(name));
    status.lines().filter(told).map(|line| line.trim().to_owned()).collect()
}

#[tokio::test]
async fn an_exec_is_confined_as_its_container_is() {
    let mut engine = Engine::start("confined").await;
    let sandbox = engine.sandbox("confined", own_pids()).await;
    for (name, user, no_new_privs, filter) in [
        ("root", 0, false, "2"),
        ("rootless", 1000, false, "2"),
        ("tight", 1000, true, "2"),
        ("open", 0, false, "0"),
    ] {
        let mut config = shell(name, "exec sleep 100");
        let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).unwrap();
        security.run_as_user = Some(v1::Int64Value { value: user });
        security.supplemental_groups = vec![77];
        security.no_new_privs = no_new_privs;
        security.capabilities =
            Some(v1::Capability { drop_capabilities: vec!["NET_RAW".into()], ..Default::default() });
        let profile = match filter {
            "0" => v1::security_profile::ProfileType::Unconfined,
            _ => v1::security_profile::ProfileType::RuntimeDefault,
        };
        security.seccomp = Some(v1::SecurityProfile { profile_type: profile as i32, ..Default::default() });
        let id = engine.run(&sandbox, config).await;
        let first = engine.exec(&id, "cat /proc/1/status").await.0;
        let own = engine.exec(&id, "cat /proc/self/status").await.0;
        assert_eq!(confinement(&own), confinement(&first), "{name}");
        assert!(confinement(&own).contains(&format!("Seccomp:\t{filter}")), "{name}: {own}");
        assert!(confinement(&own).contains(&format!("NoNewPrivs:\t{}", i32::from(no_new_privs))), "{own}");
        let groups = engine.exec(&id, "cat /proc/1/cgroup").await;
        assert_eq!(engine.exec(&id, "cat /proc/self/cgroup").await, groups);
        assert_ne!(engine.exec(&id, "echo 1 > /proc/sys/kernel/domainname").await.1, 0);
        let (refused, _) = engine.exec(&id, "mknod /tmp/disk b 8 0 && cat /tmp/disk").await;
        assert!(refused.contains("not permitted"), "{name} opens the machine's disk: {refused}");
        assert_eq!(engine.exec(&id, "cat /proc/version").await, (String::new(), 0), "it is masked");
    }
    engine.finish().await;
}

#[tokio::test]
async fn a_missing_program_is_told_once_and_in_upstreams_words() {
    let mut engine = Engine::start("missing").await;
    let sandbox = engine.sandbox("missing", own_pids()).await;
    let mut config = shell("wrong", "");
    config.command = vec!["nosuch".into()];
    let request = v1::CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(config),
        sandbox_config: None,
    };
    let id = engine.clients.runtime.create_container(request).await.unwrap().into_inner().container_id;
    assert_eq!(engine.status(&id).await.state(), v1::ContainerState::ContainerCreated);
    let start = v1::StartContainerRequest { container_id: id.clone() };
    let error = engine.clients.runtime.start_container(start).await.unwrap_err();
    let why = "failed to create task: OCI runtime create failed: unable to start container process: \
               exec: \"nosuch\": executable file not found in $PATH";
    assert_eq!(error.message(), format!("failed to start container \"{id}\": {why}"));
    let status = engine.status(&id).await;
    assert_eq!((status.exit_code, status.reason.as_str(), status.started_at), (128, "StartError", 0));
    assert_eq!(status.message, why);
    let remove = v1::RemoveContainerRequest { container_id: id };
    engine.clients.runtime.remove_container(remove).await.unwrap();
    let id = engine.run(&sandbox, shell("right", "exec sleep 100")).await;
    let request = v1::ExecSyncRequest { container_id: id, cmd: vec!["/no/such".into()], timeout: 10 };
    let error = engine.clients.runtime.exec_sync(request).await.unwrap_err();
    let why = "OCI runtime exec failed: exec failed: unable to start container process: \
               exec: \"/no/such\": stat /no/such: no such file or directory";
    assert!(error.message().starts_with("failed to exec in container: failed to start exec"), "{error}");
    assert!(error.message().ends_with(why), "{error}");
    assert_eq!(error.message().matches("no such file").count(), 1, "{error}");
    engine.finish().await;
}

#[tokio::test]
async fn an_image_is_mounted_as_a_volume_and_only_read() {
    let mut engine = Engine::start("volume").await;
    let sandbox = engine.sandbox("volume", own_pids()).await;
    let volume = |path: &str, part: Option<&str>| {
        let annotations = part.map(|part| (cri::IMAGE_SUB_PATH.to_owned(), part.to_owned()));
        v1::Mount {
            container_path: path.into(),
            image: Some(v1::ImageSpec {
                image: IMAGE.into(),
                annotations: annotations.into_iter().collect(),
                ..Default::default()
            }),
            ..Default::default()
        }
    };
    let mut config = shell("main", "exec sleep 100");
    config.mounts = vec![volume("/all", None), volume("/part", Some("etc"))];
    let id = engine.run(&sandbox, config).await;
    let passwd = engine.exec(&id, "cat /etc/passwd").await;
    assert_eq!(engine.exec(&id, "cat /all/etc/passwd").await, passwd);
    assert_eq!(engine.exec(&id, "cat /part/passwd").await, passwd);
    let (refused, code) = engine.exec(&id, "echo more >> /all/etc/passwd").await;
    assert!(code != 0 && refused.contains("Read-only"), "{refused}");
    let mut config = shell("missing", "true");
    config.mounts = vec![volume("/part", Some("no/such"))];
    let request =
        v1::CreateContainerRequest { pod_sandbox_id: sandbox, config: Some(config), sandbox_config: None };
    let error = engine.clients.runtime.create_container(request).await.unwrap_err();
    assert!(error.message().contains("no/such"), "{error}");
    engine.finish().await;
}

#[tokio::test]
async fn a_pod_with_ids_of_its_own_is_root_there_and_nobody_here() {
    let mut engine = Engine::start("users").await;
    let ids = vec![v1::IdMapping { host_id: 1_048_576, container_id: 0, length: 65536 }];
    let users =
        v1::UserNamespace { mode: v1::NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids.clone() };
    // A volume as the kubelet has them: closed to others, and with a file of the machine's root.
    let volume = engine.dir.join("closed/volume");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::write(volume.join("of-root"), "").unwrap();
    let closed = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(engine.dir.join("closed"), closed).unwrap();
    let options = v1::NamespaceOption {
        pid: v1::NamespaceMode::Container as i32,
        userns_options: Some(users.clone()),
        ..Default::default()
    };
    let sandbox = engine.sandbox("users", options.clone()).await;
    let script = "cat /proc/self/uid_map > /volume/told; id -u >> /volume/told; \
                  ls -ln /volume/of-root /bin/busybox >> /volume/told; mount -t tmpfs none /tmp && \
                  echo mounted >> /volume/told; exec sleep 100";
    let mut config = shell("users", script);
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).unwrap();
    security.namespace_options = Some(options);
    security.masked_paths.clear();
    security.readonly_paths.clear();
    security.capabilities =
        Some(v1::Capability { add_capabilities: vec!["SYS_ADMIN".into()], ..Default::default() });
    config.mounts.push(v1::Mount {
        container_path: "/volume".into(),
        host_path: volume.display().to_string(),
        uid_mappings: ids.clone(),
        gid_mappings: ids.clone(),
        ..Default::default()
    });
    let id = engine.run(&sandbox, config).await;
    let give_up = Instant::now() + Duration::from_secs(20);
    let told = loop {
        let told = std::fs::read_to_string(volume.join("told")).unwrap_or_default();
        if told.ends_with("mounted\n") {
            break told;
        }
        assert!(Instant::now() < give_up, "{told}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let lines: Vec<Vec<&str>> = told.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["0", "1048576", "65536"], "{told}");
    assert_eq!(lines[1], ["0"]);
    assert_eq!([lines[2][2], lines[3][2]], ["0", "0"], "{told}");
    use std::os::unix::fs::MetadataExt;
    assert_eq!(std::fs::metadata(volume.join("told")).unwrap().uid(), 0, "on the disk it is root's");
    std::fs::remove_file(volume.join("told")).unwrap();
    // It would be root of the machine.
    let cmd = vec!["/bin/true".to_owned()];
    let exec = v1::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 10 };
    let refused = engine.clients.runtime.exec_sync(exec).await.unwrap_err();
    assert!(refused.message().contains("cannot be entered"), "{refused}");
    let pid = std::fs::read_to_string(
        engine.dir.join("engine/sandboxes").join(&sandbox).join("containers").join(&id).join("pid"),
    )
    .unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap();
    assert!(status.contains("Uid:\t1048576\t"), "{status}");
    let options = v1::NamespaceOption {
        pid: v1::NamespaceMode::Pod as i32,
        userns_options: Some(users),
        ..Default::default()
    };
    let config = Some(pod(&engine.dir, "shared", options));
    let request = v1::RunPodSandboxRequest { config, ..Default::default() };
    let refused = engine.clients.runtime.run_pod_sandbox(request).await.unwrap_err();
    assert!(refused.message().contains("share its processes"), "{refused}");
    engine.finish().await;
}
