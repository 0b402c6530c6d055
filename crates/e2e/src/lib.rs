//! End-to-end tests: what a user does, with stock kubectl, on real namespaces, cgroups and nftables.
//!
//! [`Cluster`] is one server in a network namespace, cgroup and data directory of its own, so that tests run
//! beside each other and beside whatever the machine does; what it made is gone when it is dropped. The binary
//! is the one that `TRIERARCH` names, or the one that was built beside the tests.
//!
//! What always holds: a test waits for a condition with a deadline and says what it saw when that passes.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::mount::MountFlags;
use serde_json::Value;

pub mod dev;
pub mod images;
pub mod traffic;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const NODE_IP: &str = "10.98.0.1";
pub const NODE_READY: &str = "the node is Ready";

/// The binary under test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("TRIERARCH") {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test has a path");
    let profile = test.ancestors().nth(2).expect("tests are built into deps/ of a profile");
    let binary = profile.join("trierarch");
    assert!(binary.is_file(), "{} is not built; run the tests by `cargo xtask test`", binary.display());
    binary
}

/// A network namespace, deleted when dropped.
pub struct Namespace(String);

impl Namespace {
    /// With an interface `eth0` that has [`NODE_IP`] and a default route, as a machine has.
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(
            rustix::process::geteuid().is_root(),
            "these tests make namespaces and containers: run them as root"
        );
        let name = format!("e2e-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        succeed(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Namespace(name);
        for arguments in [
            "link set lo up",
            "link add eth0 type veth peer name uplink",
            "address add 10.98.0.1/24 dev eth0",
            "link set eth0 up",
            "link set uplink up",
            "route add default dev eth0",
        ] {
            succeed(namespace.command("ip").args(arguments.split(' ')));
        }
        namespace
    }

    /// A command inside the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        // Not `ip netns exec`: that would hide the cgroups.
        command.arg(format!("--net=/run/netns/{}", self.0)).arg("--").arg(program);
        command
    }

    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = Command::new("ip").args(["netns", "delete", &self.0]).status();
        if !deleted.is_ok_and(|status| status.success()) {
            eprintln!("cannot delete network namespace {}", self.0);
        }
    }
}

/// One server with its node.
pub struct Cluster {
    pub namespace: Namespace,
    folder: tempfile::TempDir,
    /// The folder, or one in it when it is a filesystem of its own.
    data_dir: PathBuf,
    /// What the server is told besides.
    pub flags: Vec<String>,
    server: Option<Piece>,
}

/// A process that goes on beside the test and logs to standard error; told to end when dropped.
pub struct Piece {
    child: Child,
    /// The lines that it logs.
    log: mpsc::Receiver<String>,
}

impl Cluster {
    /// Starts a server and waits until its node is Ready.
    pub fn start() -> Self {
        let mut cluster = Self::stopped();
        cluster.start_server();
        cluster
    }

    /// A namespace and a folder, no server yet.
    pub fn stopped() -> Self {
        let folder =
            tempfile::Builder::new().prefix("e2e-").tempdir().expect("a temporary folder can be made");
        let data_dir = folder.path().to_owned();
        Cluster { namespace: Namespace::new(), folder, data_dir, flags: Vec::new(), server: None }
    }

    /// The same on a filesystem of so many mebibytes.
    pub fn stopped_on_disk(mebibytes: u32) -> Self {
        let mut cluster = Self::stopped();
        let size = format!("size={mebibytes}m");
        let disk = cluster.folder.path();
        linux::mounts::mount_tmpfs(disk, MountFlags::empty(), &size).expect("a filesystem can be mounted");
        let data_dir = disk.join("data");
        std::fs::create_dir(&data_dir).expect("it has room");
        cluster.data_dir = data_dir;
        cluster
    }

    /// Takes all the room there is, until the file is dropped.
    pub fn fill_disk(&self) -> tempfile::NamedTempFile {
        let mut filler = tempfile::NamedTempFile::new_in(self.folder.path()).expect("it has some room");
        for size in [1 << 20, 4096, 1] {
            while filler.write_all(&vec![1; size]).is_ok() {}
        }
        filler
    }

    pub fn start_server(&mut self) {
        let mut command = self.trierarch("server");
        command.args(["--node-name=node-1", "--node-ip", NODE_IP, "--cgroup-root", &self.cgroup()]);
        command.args(&self.flags);
        let server = Piece::start(&mut command);
        server.wait_for(NODE_READY);
        self.server = Some(server);
    }

    /// Kills the server as a power cut would: no signal handler runs.
    pub fn kill_server(&mut self) {
        let mut server = self.server.take().expect("the server runs");
        server.child.kill().expect("the server can be killed");
        server.child.wait().expect("the server ends");
    }

    /// Stops the server as an operator would, and checks that it ends well.
    pub fn stop_server(&mut self) {
        let status = self.server.take().expect("the server runs").end();
        assert!(status.success(), "the server ended with {status}");
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub fn cgroup(&self) -> String {
        format!("/{}", self.namespace.name())
    }

    /// The processes of all containers.
    pub fn processes(&self) -> Vec<rustix::process::Pid> {
        // Version 1 has a hierarchy a controller, version 2 one for all.
        let root =
            ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(|root| Path::new(root).join(&self.cgroup()[1..]));
        let mut found = Vec::new();
        let mut folders: Vec<PathBuf> = root.into_iter().find(|root| root.is_dir()).into_iter().collect();
        while let Some(folder) = folders.pop() {
            let processes = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
            found.extend(
                processes.lines().filter_map(|pid| rustix::process::Pid::from_raw(pid.parse().ok()?)),
            );
            let below = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
            folders.extend(below.filter(|path| path.is_dir()));
        }
        found
    }

    /// What is mounted below the data directory, the last first.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the kernel tells its mounts");
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        let mut points: Vec<PathBuf> = points.filter(|point| point.starts_with(self.data_dir())).collect();
        points.reverse();
        points
    }

    /// The cgroups of pods that there are.
    pub fn pod_cgroups(&self) -> Vec<PathBuf> {
        let root =
            ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(|root| Path::new(root).join(&self.cgroup()[1..]));
        let mut folders: Vec<PathBuf> = root.into_iter().find(|root| root.is_dir()).into_iter().collect();
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            let below = std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
            folders.extend(below.filter(|path| path.is_dir()));
            let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
            if name.is_some_and(|name| name.starts_with("pod")) {
                found.push(folder);
            }
        }
        found
    }

    /// A command of the binary, for this cluster's data directory.
    pub fn trierarch(&self, command: &str) -> Command {
        let mut trierarch = self.namespace.command(binary());
        trierarch.args(command.split(' ')).arg("--data-dir").arg(self.data_dir());
        trierarch
    }

    pub fn kubectl(&self, arguments: &str) -> Command {
        self.kubectl_by("kubectl", arguments)
    }

    /// One of several kubectls of this machine.
    pub fn kubectl_by(&self, program: impl AsRef<OsStr>, arguments: &str) -> Command {
        let mut kubectl = self.namespace.command(program);
        kubectl
            .arg("--kubeconfig")
            .arg(self.data_dir().join("admin.kubeconfig"))
            .args(arguments.split_whitespace())
            // Clusters of other tests have the same address, but not the same kinds.
            .env("KUBECACHEDIR", self.data_dir().join("kubectl"));
        kubectl
    }

    /// What kubectl prints; it must succeed.
    pub fn kubectl_prints(&self, arguments: &str) -> String {
        succeed(&mut self.kubectl(arguments))
    }

    pub fn apply(&self, manifest: &str) {
        let file = self.data_dir().join("manifest.yaml");
        std::fs::write(&file, manifest).expect("the manifest can be written");
        succeed(self.kubectl("apply -f").arg(file));
    }

    /// Puts an object to a path of the API, for subresources that Debian's kubectl does not know.
    pub fn put(&self, path: &str, object: &Value) {
        let file = self.data_dir().join("object.json");
        std::fs::write(&file, object.to_string()).expect("the object can be written");
        succeed(self.kubectl("replace --raw").arg(path).arg("-f").arg(file));
    }

    /// One object, as JSON.
    pub fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.kubectl_prints(&format!("get {what} -o json")))
            .expect("kubectl prints JSON")
    }

    pub fn import(&self, archive: &[u8]) {
        let file = self.data_dir().join("image.tar");
        std::fs::write(&file, archive).expect("the archive can be written");
        succeed(self.trierarch("image import").arg(file));
    }

    /// The body that this URL answers with, from the node; `None` when nothing answers.
    pub fn curl(&self, address: &str) -> Option<String> {
        let output = self.namespace.command("curl").args(["-sS", "--max-time", "3", address]).output();
        let output = output.expect("curl can be run");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Piece {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().expect("a part can be started");
        let (told, log) = mpsc::channel();
        let stderr = BufReader::new(child.stderr.take().expect("standard error is piped"));
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                eprintln!("log: {line}");
                // Nobody may listen any more.
                let _ = told.send(line);
            }
        });
        Piece { child, log }
    }

    pub fn wait_for(&self, words: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.log.recv_timeout(left) {
                Ok(line) if line.contains(words) => return,
                Ok(_) => {}
                Err(error) => panic!("it did not say \"{words}\": {error}"),
            }
        }
    }

    /// Tells it to end, and waits until it has.
    pub fn end(mut self) -> std::process::ExitStatus {
        self.tell();
        self.child.wait().expect("a part ends")
    }

    fn tell(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.tell();
            // What it ended with is for those who asked.
            let _ = self.child.wait();
        }
    }
}

/// Stops the server and takes everything away.
impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.server.take());
        let reset = self.trierarch("reset").args(["--cgroup-root", &self.cgroup()]).status();
        if !reset.is_ok_and(|status| status.success()) {
            eprintln!("cannot reset {}", self.data_dir().display());
        }
        // Where it is no filesystem of its own, nothing is mounted.
        if let Err(error) = linux::mounts::unmount_lazy(self.folder.path()) {
            eprintln!("cannot unmount {}: {error}", self.folder.path().display());
        }
    }
}

/// Runs a command to its end; it must succeed. What it printed.
pub fn succeed(command: &mut Command) -> String {
    let output =
        command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(output.status.success(), "{command:?} failed:\n{}", said(&output));
    String::from_utf8(output.stdout).expect("the output is text")
}

/// Runs a command to its end; it must fail. What it said.
pub fn fail(command: &mut Command) -> String {
    let output =
        command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(!output.status.success(), "{command:?} succeeded:\n{}", said(&output));
    said(&output)
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Tries until `look` finds what it looks for; it says what it saw instead.
pub fn eventually<T>(what: &str, look: impl FnMut() -> Result<T, String>) -> T {
    eventually_within(PATIENCE, what, look)
}

/// The same for what takes longer.
pub fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> Result<T, String>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(Instant::now() < deadline, "{what}: still {seen}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A command that goes on beside the test, ended when dropped.
pub struct Background {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Background {
    pub fn start(command: &mut Command) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the command can be started");
        let (told, lines) = mpsc::channel();
        let stdout: Box<dyn Read + Send> = Box::new(child.stdout.take().expect("standard output is piped"));
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                // Nobody may listen any more.
                let _ = told.send(line);
            }
        });
        Background { child, lines }
    }

    /// The next line that has these words.
    pub fn line_with(&self, words: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(words) => return line,
                Ok(_) => {}
                Err(error) => panic!("no line with {words:?} came: {error}"),
            }
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
