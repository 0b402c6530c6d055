//! What the node costs and how fast it is: one pod, a hundred at once, what each takes, and a restart.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::{NODE_READY, Server, create_to_running, ticks_per_second};
use crate::run;

/// Single pods for the median.
const SINGLE: usize = 20;
/// Pods at once: nearly all that a node takes.
const MANY: usize = 100;
const IDLE: Duration = Duration::from_secs(20);

/// Starts a cluster on this machine in a folder of its own, measures its node, and takes it away again.
pub fn measure(binary: &Path) -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("trierarch-bench-node-{}", std::process::id()));
    std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // Beside whatever else runs pods on this machine.
    let cgroup = format!("/{}", folder.file_name().context("the folder has a name")?.display());
    let measured = measure_in(binary, &folder, &cgroup).and_then(|()| super::pull::measure(binary, &folder));
    let mut reset = Command::new(binary);
    let reset = run(reset.args(["reset", "--cgroup-root", &cgroup, "--data-dir"]).arg(&folder));
    let removed = std::fs::remove_dir_all(&folder);
    if let Err(error) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("cannot remove {}: {error}", folder.display());
    }
    measured.and(reset)
}

fn measure_in(binary: &Path, folder: &Path, cgroup: &str) -> anyhow::Result<()> {
    let mut server = Server::start(binary, folder, &["--cgroup-root", cgroup])?;
    server.wait_for(NODE_READY)?;
    let kubeconfig = folder.join("admin.kubeconfig");
    let mut load = Command::new(binary);
    run(load.args(["demo", "--load-image-only", "--data-dir"]).arg(folder).stdout(Stdio::null()))?;

    let mut times = (0..SINGLE)
        .map(|at| create_to_running(&kubeconfig, &format!("single-{at}")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    times.sort();
    let (median, worst) = (times[SINGLE / 2].as_secs_f64() * 1e3, times[SINGLE - 1].as_secs_f64() * 1e3);
    println!("create to running of a pod:  {median:>8.0} ms median, {worst:.0} ms worst of {SINGLE}");

    let idle = share(&server)?;
    let before = shims(folder)?;
    println!("{MANY} pods at once:          {:>10.2} s", many(&kubeconfig)?.as_secs_f64());
    let with_pods = share(&server)?;
    let per_pod = (shims(folder)? - before) / MANY as f64;
    println!("memory of a running pod:     {:>8.1} MB beside its own program", per_pod / 1e6);
    println!("server's memory with them:   {:>8.1} MB", server.resident_bytes()? as f64 / 1e6);
    println!("processor share, no pods:    {:>8.2} % of a core", idle * 100.0);
    println!("processor share, {MANY} pods:   {:>8.2} % of a core", with_pods * 100.0);
    println!("restart of a container:      {:>8.0} ms", restart(&kubeconfig)?.as_secs_f64() * 1e3);
    Ok(())
}

/// The server's share of a core while nothing happens.
fn share(server: &Server) -> anyhow::Result<f64> {
    // What was begun before is let finish.
    std::thread::sleep(Duration::from_secs(3));
    let (ticks, begun) = (server.ticks()?, Instant::now());
    std::thread::sleep(IDLE);
    Ok((server.ticks()? - ticks) as f64 / ticks_per_second()? / begun.elapsed().as_secs_f64())
}

/// The memory that the pods' shims have to themselves, in bytes.
fn shims(folder: &Path) -> anyhow::Result<f64> {
    let mut kilobytes = 0;
    for sandbox in std::fs::read_dir(folder.join("engine/sandboxes")).into_iter().flatten().flatten() {
        let Ok(pid) = std::fs::read_to_string(sandbox.path().join("shim.pid")) else { continue };
        let path: PathBuf = ["/proc", pid.trim(), "smaps_rollup"].iter().collect();
        let Ok(text) = std::fs::read_to_string(path) else { continue };
        let private = text.lines().filter(|line| line.starts_with("Private_"));
        kilobytes +=
            private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(kilobytes as f64 * 1024.0)
}

fn pod(name: &str, container: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"bench": "node"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    })
}

fn container() -> Value {
    json!({"name": "web", "image": "trierarch.io/demo:latest", "imagePullPolicy": "Never"})
}

/// Watches the pods of this bench, does something, and waits until `done` has seen enough events.
fn until(
    kubeconfig: &Path,
    pods: &[Value],
    mut done: impl FnMut(&Value) -> bool,
) -> anyhow::Result<Duration> {
    let kubectl = || {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(kubeconfig);
        command
    };
    let path = "/api/v1/namespaces/default/pods?watch=1&labelSelector=bench%3Dnode";
    let mut watch = kubectl().args(["get", "--raw", path]).stdout(Stdio::piped()).spawn()?;
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
    let mut create =
        kubectl().args(["create", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    serde_json::to_writer(create.stdin.take().context("standard input is piped")?, &list)?;
    let mut begun = None;
    let mut took = None;
    for line in BufReader::new(watch.stdout.take().context("standard output is piped")?).lines() {
        let event: Value = serde_json::from_str(&line?)?;
        let begun: &Instant = begun.get_or_insert_with(Instant::now);
        if done(&event["object"]) {
            took = Some(begun.elapsed());
            break;
        }
    }
    watch.kill()?;
    watch.wait()?;
    create.wait()?;
    took.context("the watch ended before the pods were there")
}

/// From the first pod that is there to the last that runs.
fn many(kubeconfig: &Path) -> anyhow::Result<Duration> {
    let pods: Vec<Value> = (0..MANY).map(|at| pod(&format!("many-{at}"), &container())).collect();
    let mut running = BTreeSet::new();
    until(kubeconfig, &pods, |pod| {
        if pod["status"]["phase"] == "Running" {
            running.insert(pod["metadata"]["name"].to_string());
        }
        running.len() == MANY
    })
}

/// From the end of a container, whose process is killed, to its next start being told.
fn restart(kubeconfig: &Path) -> anyhow::Result<Duration> {
    let program = || {
        let output = Command::new("pgrep").args(["--newest", "--exact", "demo-web"]).output()?;
        String::from_utf8(output.stdout)?.trim().parse::<u32>().context("no container's process is found")
    };
    let mut killed = None;
    let mut failure = None;
    until(kubeconfig, &[pod("dying", &container())], |pod| {
        let status = &pod["status"]["containerStatuses"][0];
        if pod["metadata"]["name"] != "dying" || status["state"]["running"].is_null() {
            return false;
        }
        if killed.is_none() {
            let ended = program().and_then(|pid| run(Command::new("kill").args(["-9", &pid.to_string()])));
            failure = ended.err();
            killed = Some(Instant::now());
        }
        failure.is_some() || status["restartCount"] == 1
    })?;
    match (failure, killed) {
        (None, Some(killed)) => Ok(killed.elapsed()),
        (Some(error), _) => Err(error),
        (None, None) => bail!("the container never ran"),
    }
}
