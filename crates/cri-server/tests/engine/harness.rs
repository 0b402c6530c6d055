//! An engine in a process of its own, and what is asked of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use cri::v1;
use cri_server::images::{BuildConfig, BuildFile, build};
use cri_server::{Clock, CniConfig, Config};

pub const IMAGE: &str = "example.org/busybox:test";

/// An engine in a process of its own.
pub struct Engine {
    pub dir: PathBuf,
    /// A small filesystem that the directory lies on.
    disk: Option<PathBuf>,
    pub process: Child,
    pub clients: cri::Clients,
}

fn program() -> PathBuf {
    // Examples are built beside the tests: target/debug/examples/engine.
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples/engine")
}

impl Engine {
    pub async fn start(name: &str) -> Self {
        Self::start_in(name, None).await
    }

    /// On a filesystem of its own of so many mebibytes.
    pub async fn start_on_disk(name: &str, mebibytes: u32) -> Self {
        let disk = std::env::temp_dir().join(format!("trierarch-disk-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&disk).unwrap();
        let options = format!("size={mebibytes}m");
        linux::mounts::mount_tmpfs(&disk, rustix::mount::MountFlags::empty(), &options).unwrap();
        Self::start_in(name, Some(disk)).await
    }

    async fn start_in(name: &str, disk: Option<PathBuf>) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests run containers: run them as root");
        let parent = disk.clone().unwrap_or_else(std::env::temp_dir);
        let dir = parent.join(format!("trierarch-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (process, clients) = Self::spawn(&dir).await;
        let engine = Self { dir, disk, process, clients };
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
    pub async fn crash(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        (self.process, self.clients) = Self::spawn(&self.dir).await;
    }

    pub async fn pull(&mut self, name: &str) -> Result<(), String> {
        let image = Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() });
        let request = v1::PullImageRequest { image, ..Default::default() };
        self.clients.image.pull_image(request).await.map(drop).map_err(|e| e.message().to_owned())
    }

    pub async fn has_image(&mut self, name: &str) -> bool {
        let image = Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() });
        let request = v1::ImageStatusRequest { image, verbose: false };
        self.clients.image.image_status(request).await.unwrap().into_inner().image.is_some()
    }

    pub async fn remove_image(&mut self, name: &str) {
        let image = Some(v1::ImageSpec { image: name.to_owned(), ..Default::default() });
        self.clients.image.remove_image(v1::RemoveImageRequest { image }).await.unwrap();
    }

    /// Ends and removes every pod there is, as the kubelet does with those that it does not know.
    pub async fn clear(&mut self) {
        let list = v1::ListPodSandboxRequest::default();
        let all = self.clients.runtime.list_pod_sandbox(list).await.unwrap().into_inner().items;
        for sandbox in all {
            let id = sandbox.id;
            let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.clone() };
            self.clients.runtime.stop_pod_sandbox(request).await.unwrap();
            let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id };
            self.clients.runtime.remove_pod_sandbox(request).await.unwrap();
        }
    }

    pub async fn sandbox(&mut self, name: &str, options: v1::NamespaceOption) -> String {
        let request =
            v1::RunPodSandboxRequest { config: Some(pod(&self.dir, name, options)), ..Default::default() };
        self.clients.runtime.run_pod_sandbox(request).await.unwrap().into_inner().pod_sandbox_id
    }

    pub async fn run(&mut self, sandbox: &str, config: v1::ContainerConfig) -> String {
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

    pub async fn status(&mut self, id: &str) -> v1::ContainerStatus {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.clients.runtime.container_status(request).await.unwrap().into_inner().status.unwrap()
    }

    pub async fn exited(&mut self, id: &str) -> v1::ContainerStatus {
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

    pub async fn exec(&mut self, id: &str, script: &str) -> (String, i32) {
        let cmd = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let request = v1::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 10 };
        let answer = self.clients.runtime.exec_sync(request).await.unwrap().into_inner();
        (String::from_utf8([answer.stdout, answer.stderr].concat()).unwrap(), answer.exit_code)
    }

    pub fn config(&self) -> Config {
        let mut config = Config::new(&self.dir, program(), Clock::new(|| 0));
        config.cni = CniConfig::Disabled;
        config.cgroup_root = format!("/{}", self.dir.file_name().unwrap().display()).into();
        config
    }

    /// Takes everything away and finds nothing left.
    pub async fn finish(mut self) {
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
        if let Some(disk) = &self.disk {
            let _ = linux::mounts::remove_tree(disk);
        }
    }
}

fn image() -> Vec<u8> {
    let file = |path: &str, mode, bytes: &[u8]| BuildFile { path: path.into(), mode, bytes: bytes.into() };
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let mut files = vec![file("/bin/busybox", 0o755, &busybox)];
    for applet in "sh sleep echo id cat hostname true kill ps stty mknod mkfifo mount ls grep".split(' ') {
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

pub fn pod(dir: &Path, name: &str, options: v1::NamespaceOption) -> v1::PodSandboxConfig {
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

pub fn shell(name: &str, script: &str) -> v1::ContainerConfig {
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

pub fn own_pids() -> v1::NamespaceOption {
    v1::NamespaceOption { pid: v1::NamespaceMode::Container as i32, ..Default::default() }
}

/// What is drawn by lot, by a seed that is told.
pub struct Lot(u64);

impl Lot {
    pub fn new() -> Self {
        let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| u64::from(std::process::id()) << 20 | 1);
        eprintln!("SEED={seed}");
        Self(seed)
    }

    /// A part of the whole.
    pub fn part(&mut self, whole: Duration) -> Duration {
        // Marsaglia's xorshift.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        whole.mul_f64((self.0 >> 11) as f64 / (1u64 << 53) as f64)
    }
}

/// A registry on this machine that has one image, of several layers with one file each, and is slow to send it.
pub struct Registry {
    pub name: String,
    pub files: Vec<Vec<u8>>,
}

impl Registry {
    pub fn new(layers: usize, layer_bytes: usize, pause: Duration) -> Self {
        let files: Vec<Vec<u8>> = (0..layers)
            .map(|number| (0..layer_bytes).map(|at| (at * 31 / 7 + number * 13) as u8).collect())
            .collect();
        let served = served(&files);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let name = format!("{}/app:v1", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                // Who asked may have been killed.
                std::thread::spawn(move || answer(stream, &served, pause));
            }
        });
        Self { name, files }
    }
}

type Served = std::sync::Arc<Vec<(String, Vec<u8>)>>;

/// What is answered under which end of a path.
fn served(files: &[Vec<u8>]) -> Served {
    let digest = |bytes: &[u8]| {
        use sha2::Digest;
        let sum = sha2::Sha256::digest(bytes);
        format!("sha256:{}", sum.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    let layer = |(number, bytes): (usize, &Vec<u8>)| {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, format!("file{number}"), bytes.as_slice()).unwrap();
        archive.into_inner().unwrap()
    };
    let layers: Vec<Vec<u8>> = files.iter().enumerate().map(layer).collect();
    let descriptor = |kind: &str, bytes: &[u8]| {
        let media = format!("application/vnd.oci.image.{kind}");
        serde_json::json!({"mediaType": media, "digest": digest(bytes), "size": bytes.len()})
    };
    let ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids},
    });
    let config = config.to_string().into_bytes();
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config),
        "layers": layers.iter().map(|layer| descriptor("layer.v1.tar", layer)).collect::<Vec<_>>(),
    });
    let mut served =
        vec![("/manifests/v1".to_owned(), manifest.to_string().into_bytes()), (digest(&config), config)];
    served.extend(layers.into_iter().map(|layer| (digest(&layer), layer)));
    std::sync::Arc::new(served)
}

fn answer(mut stream: std::net::TcpStream, served: &Served, pause: Duration) -> std::io::Result<()> {
    use std::io::{BufRead, Write};
    let mut lines = std::io::BufReader::new(stream.try_clone()?).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    let _head: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let path = first.split([' ', '?']).nth(1).unwrap_or_default().to_owned();
    let found = served.iter().find(|(end, _)| path.ends_with(end.as_str())).map(|(_, bytes)| bytes);
    let body = found.map(Vec::as_slice).unwrap_or_default();
    let status = if found.is_some() || path == "/v2/" { "200 OK" } else { "404 Not Found" };
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    )?;
    for chunk in body.chunks(256 << 10) {
        stream.write_all(chunk)?;
        std::thread::sleep(pause);
    }
    Ok(())
}
