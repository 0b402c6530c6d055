//! What a user feels first: how soon a cluster is there, what it costs when idle, how soon a pod runs; and
//! [`tool`], which builds and runs those of crate `bench`.

pub mod node;
mod pull;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::{build, cargo, run};

pub const NODE_READY: &str = "the node is Ready";
const PATIENCE: Duration = Duration::from_secs(60);
const PODS: usize = 10;

/// Runs a tool of crate `bench` (`words` are its name and first arguments), with a release build of the binary
/// unless another is named.
pub fn tool(words: &[&str], arguments: &[String]) -> anyhow::Result<()> {
    let named = |flag: &str| arguments.iter().any(|a| a == flag || a.starts_with(&format!("{flag}=")));
    let mut command = cargo();
    command
        .args(["run", "--quiet", "--release", "--package=bench", "--bin", words[0], "--"])
        .args(&words[1..]);
    if !["--help", "-h", "--kubeconfig", "--binary", "--alone"].into_iter().any(named) {
        crate::prerequisites::install(crate::prerequisites::RUN)?;
        command.arg("--binary").arg(build()?);
    }
    run(command.args(arguments))
}

/// Starts a cluster on this machine in a folder of its own, measures, and takes it away again.
pub fn start(binary: &Path, idle_seconds: u64) -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("trierarch-bench-{}", std::process::id()));
    std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let measured = measure(binary, &folder, idle_seconds);
    let reset = run(Command::new(binary).arg("reset").arg("--data-dir").arg(&folder));
    measured.and(reset)
}

fn measure(binary: &Path, folder: &Path, idle_seconds: u64) -> anyhow::Result<()> {
    let begun = Instant::now();
    let mut server = Server::start(binary, folder, &[])?;
    server.wait_for(NODE_READY)?;
    println!("server to Ready node:        {:>8.2} s", begun.elapsed().as_secs_f64());

    let kubeconfig = folder.join("admin.kubeconfig");
    run(Command::new(binary)
        .args(["demo", "--load-image-only", "--data-dir"])
        .arg(folder)
        .stdout(Stdio::null()))?;
    std::thread::sleep(Duration::from_secs(5));
    let (ticks, idle) = (server.ticks()?, Instant::now());
    std::thread::sleep(Duration::from_secs(idle_seconds));
    let share = (server.ticks()? - ticks) as f64 / ticks_per_second()? / idle.elapsed().as_secs_f64();
    println!("processor share when idle:   {:>8.2} % of a core over {idle_seconds} s", share * 100.0);
    println!("resident memory when idle:   {:>8.1} MB", server.resident_bytes()? as f64 / 1e6);

    let mut times = Vec::new();
    for at in 0..PODS {
        times.push(create_to_running(&kubeconfig, &format!("bench-{at}"))?);
    }
    times.sort();
    println!(
        "create to running of a pod:  {:>8.0} ms median, {:.0} ms worst of {PODS}",
        times[PODS / 2].as_secs_f64() * 1e3,
        times[PODS - 1].as_secs_f64() * 1e3
    );
    Ok(())
}

pub struct Server {
    child: Child,
    log: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Server {
    pub fn start(binary: &Path, folder: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        let mut command = Command::new(binary);
        command.arg("server").arg("--data-dir").arg(folder).args(flags);
        let mut child = command.stderr(Stdio::piped()).spawn()?;
        let log = BufReader::new(child.stderr.take().context("standard error is piped")?).lines();
        Ok(Server { child, log })
    }

    pub fn wait_for(&mut self, words: &str) -> anyhow::Result<()> {
        let begun = Instant::now();
        for line in self.log.by_ref() {
            let line = line?;
            if line.contains(words) {
                return Ok(());
            }
            eprintln!("{line}");
            if begun.elapsed() > PATIENCE {
                bail!("the server did not say \"{words}\" within {} s", PATIENCE.as_secs());
            }
        }
        bail!("the server ended before it said \"{words}\"")
    }

    fn proc(&self, file: &str) -> anyhow::Result<String> {
        let path: PathBuf = ["/proc", &self.child.id().to_string(), file].iter().collect();
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Processor time so far.
    fn ticks(&self) -> anyhow::Result<u64> {
        let stat = self.proc("stat")?;
        // The name in parentheses may hold spaces; what follows it does not.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let field =
            |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).context("stat has numbers");
        Ok(field(11)? + field(12)?)
    }

    fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("status has VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }
}

/// Ends the server as an operator would.
impl Drop for Server {
    fn drop(&mut self) {
        let terminated = Command::new("kill").arg(self.child.id().to_string()).status();
        if terminated.is_ok_and(|status| status.success()) {
            let _ = self.child.wait();
        }
    }
}

fn ticks_per_second() -> anyhow::Result<f64> {
    let output = Command::new("getconf").arg("CLK_TCK").output()?;
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// The time between the two events in one watch.
fn create_to_running(kubeconfig: &Path, name: &str) -> anyhow::Result<Duration> {
    let kubectl = || {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(kubeconfig);
        command
    };
    let path = format!("/api/v1/namespaces/default/pods?watch=1&fieldSelector=metadata.name%3D{name}");
    let mut watch = kubectl()
        .args(["get", "--raw", &path])
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run kubectl")?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0,
            "containers": [{"name": "web", "image": "trierarch.io/demo:latest", "imagePullPolicy": "Never"}]},
    });
    let mut create =
        kubectl().args(["create", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    serde_json::to_writer(create.stdin.take().context("standard input is piped")?, &pod)?;
    let mut created = None;
    let events = BufReader::new(watch.stdout.take().context("standard output is piped")?).lines();
    let mut took = None;
    for line in events {
        let event: Value = serde_json::from_str(&line?)?;
        let created: Instant = *created.get_or_insert_with(Instant::now);
        if event["object"]["status"]["phase"] == "Running" {
            took = Some(created.elapsed());
            break;
        }
    }
    watch.kill()?;
    watch.wait()?;
    create.wait()?;
    run(kubectl().args(["delete", "pod", name, "--wait"]).stdout(Stdio::null()))?;
    took.with_context(|| format!("the watch of pod {name} ended before it ran"))
}
