//! Engines that are killed at any moment, and disks that are full.

use std::path::Path;
use std::time::{Duration, Instant};

use cri::v1;

use crate::harness::{Engine, Lot, Registry, own_pids, pod, shell};

/// How often an engine is killed.
const ROUNDS: usize = 24;

fn entries(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[tokio::test]
async fn a_pull_that_is_cut_short_leaves_the_image_whole_or_not_at_all() {
    let mut engine = Engine::start("pulls").await;
    let registry = Registry::new(4, 512 << 10, Duration::from_millis(10));
    let name = registry.name.clone();
    let began = Instant::now();
    engine.pull(&name).await.unwrap();
    let usual = began.elapsed();
    let mut lot = Lot::new();
    let mut whole = 0;
    for round in 0..ROUNDS {
        engine.remove_image(&name).await;
        let mut other = engine.clients.image.clone();
        let image = Some(v1::ImageSpec { image: name.clone(), ..Default::default() });
        let request = v1::PullImageRequest { image, ..Default::default() };
        let pulling = tokio::spawn(async move { other.pull_image(request).await.map(drop) });
        tokio::time::sleep(lot.part(usual)).await;
        engine.crash().await;
        let _ = pulling.await.unwrap();
        assert_eq!(entries(&engine.dir.join("images/tmp")), [""; 0], "round {round}");
        if engine.has_image(&name).await {
            whole += 1;
        }
        engine.pull(&name).await.unwrap();
        let layers = engine.dir.join("images/layers");
        let mut found = 0;
        for layer in entries(&layers) {
            for (number, bytes) in registry.files.iter().enumerate() {
                let file = layers.join(&layer).join("fs").join(format!("file{number}"));
                if let Ok(read) = std::fs::read(file) {
                    assert!(read == *bytes, "round {round}: file {number} is another");
                    found += 1;
                }
            }
        }
        assert_eq!(found, registry.files.len(), "round {round}");
    }
    eprintln!("{whole} of {ROUNDS} pulls were done when the engine was killed; one takes {usual:?}");
    assert!(whole < ROUNDS, "no pull was cut short");
    engine.finish().await;
}

/// What there is of pods on the machine.
#[derive(Debug, Default, PartialEq, Eq)]
struct Left {
    folders: Vec<String>,
    sockets: Vec<String>,
    layers: Vec<String>,
    mounts: usize,
    cgroups: Vec<String>,
    processes: Vec<String>,
}

impl Left {
    fn of(engine: &Engine) -> Self {
        let dir = engine.dir.display().to_string();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let cgroup = linux::cgroups::Cgroup::new(&engine.config().cgroup_root);
        let groups = entries(&cgroup.dir("memory"));
        let lines = entries(Path::new("/proc")).into_iter().filter_map(|process| {
            let line = std::fs::read(Path::new("/proc").join(process).join("cmdline")).ok()?;
            Some(String::from_utf8_lossy(&line).replace('\0', " "))
        });
        // The engine itself is the one that serves.
        let ours = |line: &String| line.contains(&dir) && !line.contains(" serve ");
        Self {
            folders: entries(&engine.dir.join("engine/sandboxes")),
            sockets: entries(&engine.dir.join("engine/s")),
            layers: entries(&engine.dir.join("images/containers")),
            // The engine's own program is no pod's.
            mounts: table
                .lines()
                .filter(|line| line.contains(&dir) && !line.contains("/engine/program "))
                .count(),
            cgroups: groups.into_iter().filter(|name| name.starts_with("pod")).collect(),
            processes: lines.filter(ours).collect(),
        }
    }
}

async fn make(mut clients: cri::Clients, config: v1::PodSandboxConfig) -> Result<(), tonic::Status> {
    let request = v1::RunPodSandboxRequest { config: Some(config.clone()), ..Default::default() };
    let sandbox = clients.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
    let mut container = shell("main", "exec sleep 1000");
    let security = container.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).unwrap();
    let of_pod = config.linux.and_then(|linux| linux.security_context).unwrap();
    security.namespace_options = of_pod.namespace_options;
    let request =
        v1::CreateContainerRequest { pod_sandbox_id: sandbox, config: Some(container), sandbox_config: None };
    let container_id = clients.runtime.create_container(request).await?.into_inner().container_id;
    clients.runtime.start_container(v1::StartContainerRequest { container_id }).await.map(drop)
}

#[tokio::test]
async fn a_pod_that_is_cut_short_leaves_nothing_behind() {
    let mut engine = Engine::start("cut").await;
    let shared = v1::NamespaceOption { pid: v1::NamespaceMode::Pod as i32, ..Default::default() };
    let began = Instant::now();
    make(engine.clients.clone(), pod(&engine.dir, "first", own_pids())).await.unwrap();
    let usual = began.elapsed();
    engine.clear().await;
    assert_eq!(Left::of(&engine), Left::default());
    let mut lot = Lot::new();
    for round in 0..ROUNDS {
        let options = if round % 2 == 0 { own_pids() } else { shared.clone() };
        let making = tokio::spawn(make(engine.clients.clone(), pod(&engine.dir, "cut", options)));
        tokio::time::sleep(lot.part(usual)).await;
        engine.crash().await;
        let _ = making.await.unwrap();
        engine.clear().await;
        let give_up = Instant::now() + Duration::from_secs(10);
        loop {
            // A shim that was just starting finds that nobody waits for it.
            let left = Left::of(&engine);
            if left == Left::default() {
                break;
            }
            assert!(Instant::now() < give_up, "round {round}: {left:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    make(engine.clients.clone(), pod(&engine.dir, "last", shared)).await.unwrap();
    engine.finish().await;
}

/// Takes all the room there is.
fn fill(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("filler");
    let mut file = std::fs::File::create(&path).unwrap();
    for size in [1 << 20, 4096, 1] {
        while std::io::Write::write_all(&mut file, &vec![1; size]).is_ok() {}
    }
    path
}

#[tokio::test]
async fn a_full_disk_spoils_nothing() {
    const NO_SPACE: &str = "No space left on device";
    let mut engine = Engine::start_on_disk("full", 32).await;
    let (large, small) =
        (Registry::new(4, 12 << 20, Duration::ZERO), Registry::new(2, 1 << 20, Duration::ZERO));
    let why = engine.pull(&large.name).await.unwrap_err();
    assert!(why.contains(NO_SPACE), "{why}");
    assert!(!engine.has_image(&large.name).await);
    assert_eq!(entries(&engine.dir.join("images/tmp")), [""; 0]);
    make(engine.clients.clone(), pod(&engine.dir, "before", own_pids())).await.unwrap();
    let filler = fill(&engine.dir);
    let refused = make(engine.clients.clone(), pod(&engine.dir, "meanwhile", own_pids())).await.unwrap_err();
    assert!(refused.message().contains(NO_SPACE), "{refused}");
    let why = engine.pull(&small.name).await.unwrap_err();
    assert!(why.contains(NO_SPACE), "{why}");
    assert!(!engine.has_image(&small.name).await);
    // The pod must be able to go, or nothing would ever make room.
    engine.clear().await;
    let left = Left::of(&engine);
    // The disk itself is the one mount.
    assert_eq!(left, Left { mounts: left.mounts.min(1), ..Left::default() });
    engine.crash().await;
    std::fs::remove_file(filler).unwrap();
    engine.pull(&small.name).await.unwrap();
    make(engine.clients.clone(), pod(&engine.dir, "after", own_pids())).await.unwrap();
    engine.finish().await;
}
