//! The engine from outside, over its socket, with real containers of Debian's static busybox.
//!
//! Each test has a directory and a cgroup of its own and takes everything away at its end. They need root and
//! Debian's busybox-static.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod faults;
mod harness;
mod users;

use std::time::Instant;

use cri::v1;

use harness::{Engine, IMAGE, own_pids, shell};

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
    streams_say_what_lists_say(&mut engine).await;
    let remove = v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox };
    engine.clients.runtime.remove_pod_sandbox(remove).await.unwrap();
    let left = engine.clients.runtime.list_containers(v1::ListContainersRequest::default()).await.unwrap();
    assert!(left.into_inner().containers.is_empty());
    engine.finish().await;
}

async fn streams_say_what_lists_say(engine: &mut Engine) {
    let socket = engine.dir.join("cri.sock").display().to_string();
    let channel = cri::connect(&socket).await.unwrap();
    let mut runtime = cri::streams::runtime_service_client::RuntimeServiceClient::new(channel.clone());
    let mut image = cri::streams::image_service_client::ImageServiceClient::new(channel);
    let listed = engine.clients.runtime.list_containers(v1::ListContainersRequest::default()).await.unwrap();
    let part = runtime.stream_containers(cri::streams::StreamContainersRequest::default()).await.unwrap();
    let part = part.into_inner().message().await.unwrap().unwrap();
    assert_eq!(part.containers, listed.into_inner().containers);
    let filter = Some(v1::PodSandboxFilter { id: "none".to_owned(), ..Default::default() });
    let none =
        runtime.stream_pod_sandboxes(cri::streams::StreamPodSandboxesRequest { filter }).await.unwrap();
    assert!(none.into_inner().message().await.unwrap().is_none());
    let listed = engine.clients.image.list_images(v1::ListImagesRequest::default()).await.unwrap();
    let part = image.stream_images(cri::streams::StreamImagesRequest::default()).await.unwrap();
    assert_eq!(part.into_inner().message().await.unwrap().unwrap().images, listed.into_inner().images);
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

/// CVE-2019-5736: a command that is `/proc/self/exe` is the runtime's own program, run inside. Who takes hold of its
/// file, and waits until it has ended, could write to it.
#[tokio::test]
async fn a_container_cannot_write_to_the_program_that_started_it() {
    let mut engine = Engine::start("program").await;
    let sandbox = engine.sandbox("program", own_pids()).await;
    let mut config = shell("main", "mkfifo /tmp/config.json && exec sleep 100");
    // What the program needs to run.
    for libraries in ["/lib", "/lib64"] {
        config.mounts.push(v1::Mount {
            container_path: libraries.into(),
            host_path: libraries.into(),
            readonly: true,
            ..Default::default()
        });
    }
    let id = engine.run(&sandbox, config).await;
    // It reads its bundle, which the other one holds back.
    let itself = "/proc/self/exe oci-runtime --root /tmp create --bundle /tmp x";
    let cmd = itself.split(' ').map(str::to_owned).collect();
    let mut runtime = engine.clients.runtime.clone();
    let request = v1::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 10 };
    let itself = tokio::spawn(async move { runtime.exec_sync(request).await });
    let attack = r#"
        while [ -z "$found" ]; do
            for process in /proc/[0-9]*; do
                [ -e $process/exe ] && ! [ $process/exe -ef /bin/busybox ] && found=$process
            done
        done
        exec 3<$found/exe || exit 2
        (while :; do echo '{}' >/tmp/config.json; done) >/dev/null 2>&1 &
        while [ -e $found/exe ]; do :; done
        kill $!
        echo spoiled >/proc/self/fd/3"#;
    let (said, code) = engine.exec(&id, attack).await;
    assert!(code == 1 && said.contains("Read-only file system"), "{code}: {said}");
    assert_eq!(itself.await.unwrap().unwrap().into_inner().exit_code, 1);
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
async fn a_user_can_open_the_streams_anew() {
    let mut engine = Engine::start("streams").await;
    let sandbox = engine.sandbox("streams", own_pids()).await;
    let mut config = shell("streams", "echo to the log > /dev/stdout; exec sleep 100");
    let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).unwrap();
    security.run_as_user = Some(v1::Int64Value { value: 1000 });
    let id = engine.run(&sandbox, config).await;
    let told = engine.exec(&id, "echo to the caller > /dev/stderr; id -u").await;
    assert_eq!(told, ("1000\nto the caller\n".to_owned(), 0));
    let log = engine.dir.join("logs/streams/streams.log");
    assert!(std::fs::read_to_string(log).unwrap().contains("stdout F to the log"));
    engine.finish().await;
}
