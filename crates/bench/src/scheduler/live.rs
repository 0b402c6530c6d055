//! Through an API server: pods are created as fast as it takes them, and a watch counts the bound ones.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use memchr::memmem;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::shapes::{Churn, HIGH, HIGH_PRIORITY, Pods, Shape, Size};
use crate::body::Template;
use crate::target::{Parts, Target, cpu_seconds_of, resident_bytes_of};
use crate::wire::{Ask, Lane};
use crate::work::{self, progress};
use crate::{Encoding, Http};

/// How long nothing may be bound before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Process {
    /// Processor time for each measured pod.
    pub cpu_micros: f64,
    pub resident_bytes: u64,
}

pub struct Measured {
    pub per_second: f64,
    /// None when it is in one process with the API server.
    pub scheduler: Option<Process>,
    pub api: Process,
}

pub async fn run(
    shape: &'static Shape,
    size: &Size,
    binary: &Path,
    data: Option<&Path>,
    together: bool,
) -> anyhow::Result<Measured> {
    let parts = if together { Parts::WithoutKubelets } else { Parts::ApiServer };
    let target = Target::start(binary, data, parts).await?;
    prepare(shape, size, &target).await?;
    let scheduler = if together { None } else { Some(Scheduler::start(binary, &target)?) };
    let pids: Vec<u32> = scheduler.iter().map(Scheduler::pid).collect();
    for (at, pods) in size.before.iter().enumerate() {
        make_and_bind(shape, &target, pods, &format!("before {}", at + 1)).await?;
    }
    let begun = (cpu_seconds_of(&pids), target.cpu_seconds());
    let churn = shape.churn.as_ref().map(|(churn, every)| {
        let work = disturb(target.address.clone(), churn, *every);
        tokio::task::spawn_local(work)
    });
    let pods = Pods { namespace: size.namespace, pod: size.pod, count: size.measured };
    let elapsed = make_and_bind(shape, &target, &pods, "measured").await?;
    if let Some(churn) = churn {
        churn.abort();
        if let Ok(ended) = churn.await {
            ended.context("what was to go on beside the measured pods failed")?;
        }
    }
    let spent = (cpu_seconds_of(&pids) - begun.0, target.cpu_seconds() - begun.1);
    let micros = |seconds: f64| seconds * 1e6 / size.measured.max(1) as f64;
    Ok(Measured {
        per_second: size.measured as f64 / elapsed.as_secs_f64(),
        scheduler: scheduler
            .is_some()
            .then(|| Process { cpu_micros: micros(spent.0), resident_bytes: resident_bytes_of(&pids) }),
        api: Process { cpu_micros: micros(spent.1), resident_bytes: target.resident_bytes() },
    })
}

/// The scheduler as a process of its own, as upstream's is.
struct Scheduler(Child);

impl Scheduler {
    fn start(binary: &Path, target: &Target) -> anyhow::Result<Self> {
        let kubeconfig = target.folder().context("the server is our own")?.join("scheduler.kubeconfig");
        // Free now, and nobody else on this machine is likely to take it in the next moment.
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut command = Command::new(binary);
        command.arg("scheduler").arg("--kubeconfig").arg(kubeconfig);
        command
            .args(["--leader-elect=false", "--bind-address=127.0.0.1"])
            .arg(format!("--secure-port={port}"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot run {}", binary.display()))?;
        Ok(Scheduler(child))
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        // It holds nothing that outlives it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn send(lane: &mut Lane, method: Method, path: &str, body: &Value) -> anyhow::Result<()> {
    let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
    let mut ask = Ask::send(method.clone(), path, Encoding::Json, body);
    if method == Method::PATCH {
        ask.content_type = "application/merge-patch+json";
    }
    lane.read(ask).await.map(drop)
}

/// Namespaces, a priority class, and nodes.
async fn prepare(shape: &Shape, size: &Size, target: &Target) -> anyhow::Result<()> {
    for namespace in ["bench-0", "bench-1", "bench-churn"] {
        target.namespace(namespace).await?;
    }
    let mut lane = target.address.lane().await?;
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": HIGH},
        "value": HIGH_PRIORITY});
    send(&mut lane, Method::POST, "/apis/scheduling.k8s.io/v1/priorityclasses", &class).await?;
    let nodes: Rc<[Value]> = (0..size.nodes).map(|number| shape.node(number)).collect();
    let bar = progress(format!("{} · nodes", shape.name), size.nodes);
    let job = Rc::new(move |mut lane: Lane, number: usize| {
        let nodes = nodes.clone();
        async move {
            make_node(&mut lane, &nodes[number]).await?;
            Ok((lane, 0))
        }
    });
    let lanes = target.address.lanes(Http::Two, work::IN_FLIGHT).await?;
    work::drive(lanes, size.nodes, &bar, job).await.map(drop)
}

/// Admission taints a new node until it is known to be ready; who would know does not run here.
async fn make_node(lane: &mut Lane, node: &Value) -> anyhow::Result<()> {
    send(lane, Method::POST, "/api/v1/nodes", node).await?;
    let name = node["metadata"]["name"].as_str().context("nodes have names")?;
    let path = format!("/api/v1/nodes/{name}");
    send(lane, Method::PATCH, &path, &json!({"spec": {"taints": null}})).await
}

/// Creates the pods and waits until all of them have a node.
async fn make_and_bind(shape: &Shape, target: &Target, pods: &Pods, title: &str) -> anyhow::Result<Duration> {
    let mut lane = target.address.lane().await?;
    let list = format!("{}?limit=1", work::pods(pods.namespace));
    let newest: Value = serde_json::from_slice(&lane.read(Ask::get(&list, Encoding::Json)).await?)?;
    let revision = newest["metadata"]["resourceVersion"].as_str().context("a list has a revision")?;
    // A pod comes into sight of this watch when it is bound.
    let path = format!(
        "{}?watch=1&resourceVersion={revision}&fieldSelector=spec.nodeName!%3D",
        work::pods(pods.namespace)
    );
    let bound = Rc::new(Bound { wanted: pods.count, seen: Cell::new(0), moved: Notify::new() });
    let watch = tokio::task::spawn_local(count_bound(lane, path, bound.clone()));
    let template = Arc::new(Template::new(&(pods.pod)(), "io.k8s.api.core.v1.Pod", Encoding::Protobuf)?);
    let bar = progress(format!("{} · {title}", shape.name), pods.count);
    let first = target.next_number(pods.count);
    let begun = Instant::now();
    let numbers = first..first + pods.count;
    let path = work::pods(pods.namespace);
    work::create(target, Http::Two, Encoding::Protobuf, template, numbers, &path, &bar).await?;
    while bound.seen.get() < pods.count {
        if tokio::time::timeout(PATIENCE, bound.moved.notified()).await.is_err() {
            bail!("{} of {} pods of shape {} were bound", bound.seen.get(), pods.count, shape.name);
        }
    }
    let elapsed = begun.elapsed();
    watch.abort();
    if let Ok(ended) = watch.await {
        ended.context("the watch of bound pods ended")?;
    }
    Ok(elapsed)
}

struct Bound {
    wanted: usize,
    seen: Cell<usize>,
    moved: Notify,
}

async fn count_bound(mut lane: Lane, path: String, bound: Rc<Bound>) -> anyhow::Result<()> {
    const ADDED: &[u8] = br#""type":"ADDED""#;
    let mut response = lane.open(Ask::get(&path, Encoding::Json)).await?;
    if !response.status().is_success() {
        bail!("GET {path}: {}", response.status());
    }
    let tail = RefCell::new(Vec::new());
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame?;
        let Some(piece) = frame.data_ref() else { continue };
        let mut joined = tail.take();
        joined.extend_from_slice(piece);
        bound.seen.set(bound.seen.get() + memmem::find_iter(&joined, ADDED).count());
        // The end may hold the beginning of another, never a whole one that was counted.
        let rest = joined.len().saturating_sub(ADDED.len() - 1);
        tail.replace(joined.split_off(rest));
        bound.moved.notify_one();
        if bound.seen.get() >= bound.wanted {
            bound.moved.notify_one();
        }
    }
    bail!("the server ended it after {} pods", bound.seen.get())
}

/// Goes on until it is dropped.
async fn disturb(
    address: crate::wire::Address,
    churn: &'static Churn,
    every: Duration,
) -> anyhow::Result<()> {
    let mut lane = address.lane().await?;
    let mut ticks = tokio::time::interval(every);
    let mut number = 0;
    loop {
        ticks.tick().await;
        number += 1;
        match churn {
            Churn::Pods(pod) => make_pod(&mut lane, pod(), number).await?,
            Churn::Mixed => mixed(&mut lane, number).await?,
        }
    }
}

async fn make_pod(lane: &mut Lane, mut pod: Value, number: usize) -> anyhow::Result<()> {
    pod["metadata"]["name"] = format!("churn-{number}").into();
    send(lane, Method::POST, &work::pods("bench-churn"), &pod).await
}

async fn mixed(lane: &mut Lane, number: usize) -> anyhow::Result<()> {
    let services = "/api/v1/namespaces/bench-churn/services";
    let before = number - 1;
    if before > 0 {
        for path in [
            format!("/api/v1/nodes/churn-{before}"),
            format!("{}/churn-{before}?gracePeriodSeconds=0", work::pods("bench-churn")),
            format!("{services}/churn-{before}"),
        ] {
            send(lane, Method::DELETE, &path, &Value::Null).await?;
        }
    }
    let name = format!("churn-{number}");
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"capacity": {"pods": "0"}, "allocatable": {"pods": "0"}}});
    make_node(lane, &node).await?;
    make_pod(lane, super::shapes::too_large(), number).await?;
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": "foo"}, "ports": [{"protocol": "TCP", "port": 8080, "targetPort": 8080}]}});
    send(lane, Method::POST, services, &service).await
}
