//! Pods with ids of their own.

use std::time::{Duration, Instant};

use cri::v1;

use crate::harness::{Engine, shell};

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
    let pid = std::fs::read_to_string(
        engine.dir.join("engine/sandboxes").join(&sandbox).join("containers").join(&id).join("pid"),
    )
    .unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", pid.trim())).unwrap();
    assert!(status.contains("Uid:\t1048576\t"), "{status}");
    engine.finish().await;
}

/// What the machine sees of the process that calls itself `told` in a container: its `status`.
fn seen_from_outside(told: &str) -> Option<String> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut statuses =
        processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok());
    let is_it = |status: &String| {
        let numbers = status.lines().find_map(|line| line.strip_prefix("NStgid:")).unwrap_or_default();
        let numbers: Vec<&str> = numbers.split_whitespace().collect();
        numbers.len() > 1 && numbers.last() == Some(&told) && status.contains("Uid:\t1048576\t")
    };
    statuses.find(is_it)
}

#[tokio::test]
async fn a_command_in_a_pod_with_ids_of_its_own_has_those_too() {
    let mut engine = Engine::start("entered").await;
    let ids = vec![v1::IdMapping { host_id: 1_048_576, container_id: 0, length: 65536 }];
    let users =
        v1::UserNamespace { mode: v1::NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids.clone() };
    for (name, pid) in [("alone", v1::NamespaceMode::Container), ("shared", v1::NamespaceMode::Pod)] {
        let options = v1::NamespaceOption {
            pid: pid as i32,
            userns_options: Some(users.clone()),
            ..Default::default()
        };
        let sandbox = engine.sandbox(name, options.clone()).await;
        let mut config = shell(name, "exec sleep 100");
        let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).unwrap();
        security.namespace_options = Some(options.clone());
        let id = engine.run(&sandbox, config.clone()).await;
        let script = "cat /proc/self/uid_map /proc/self/gid_map; id; hostname; \
                      grep -e NoNewPrivs -e Seccomp: -e CapEff /proc/self/status; echo new > /file; \
                      ls -ln /file";
        let (told, code) = engine.exec(&id, script).await;
        assert_eq!(code, 0, "{name}: {told}");
        let lines: Vec<Vec<&str>> = told.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[..2], [["0", "1048576", "65536"], ["0", "1048576", "65536"]], "{told}");
        assert!(told.contains("uid=0(root)"), "{told}");
        assert!(told.contains(&format!("\n{name}\n")), "its own host name: {told}");
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2"] {
            assert!(told.contains(line), "{told}");
        }
        assert!(!told.contains("CapEff:\t000001ffffffffff"), "{told}");
        assert_eq!(lines.last().unwrap()[2], "0", "{told}");
        // A number that no other process has there: the kernel counts up.
        let (told, code) = engine.exec(&id, "sleep 100 & echo $!").await;
        let status = seen_from_outside(told.trim()).unwrap_or_default();
        assert!(code == 0 && status.contains("Name:\tsleep"), "{name}: {told}: {status}");
        assert!(status.contains("Gid:\t1048576\t1048576\t1048576\t1048576"), "{status}");
        let (seen, _) = engine.exec(&id, "cat /proc/1/cmdline").await;
        assert_eq!(seen.contains("sleep"), name == "alone", "{seen}");
    }
    engine.finish().await;
}
