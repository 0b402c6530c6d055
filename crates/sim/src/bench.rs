//! How much work a change makes: seconds until all has come to rest, requests by kind, and what was refused.
//! Controllers and scheduler are the real ones, in one process with the API server; kubelets answer at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::Object;
use api::apps::v1::Deployment;
use api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret};
use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Client, DeleteOptions, Error, PatchType, Transport};
use controller_runtime::{InformerFactory, WorkQueue};
use futures::StreamExt;
use http::{Request, Response};
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::{self, Cluster};
use crate::kubelets::{BEAT, beat_once, phase};

const DEPLOYMENTS: usize = 500;
const REPLICAS: i32 = 20;
const OBJECTS: usize = 10_000;
const NODES: usize = 100;
const LOST: &str = "lost";
const LOST_PODS: i32 = 100;
/// Requests of people and kubelets under way at once.
const AT_ONCE: usize = 64;
/// So long without a request is rest.
const QUIET: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(1200);

#[derive(Default)]
struct Counts {
    /// By part, method and resource.
    asked: BTreeMap<String, u64>,
    refused: BTreeMap<String, u64>,
    last: Option<Instant>,
}

/// Counts what a part asks.
struct Counting {
    part: &'static str,
    inner: Arc<dyn Transport>,
    counts: Arc<Mutex<Counts>>,
}

/// The resource of a path, with its subresource.
fn resource(path: &str) -> String {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let rest = match parts.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        _ => return path.to_owned(),
    };
    let rest = match rest {
        ["namespaces", _, "status" | "finalize"] => rest,
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    match rest {
        [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
        [resource, ..] => (*resource).to_owned(),
        [] => String::new(),
    }
}

#[async_trait]
impl Transport for Counting {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let what = format!("{} {} {}", self.part, request.method(), resource(request.uri().path()));
        let response = self.inner.send(request).await?;
        if !watch {
            let mut counts = self.counts.lock().unwrap();
            if response.status().is_success() {
                *counts.asked.entry(what).or_default() += 1;
            } else {
                *counts.refused.entry(format!("{what} {}", response.status().as_u16())).or_default() += 1;
            }
            counts.last = Some(Instant::now());
        }
        Ok(response)
    }
}

struct Bench {
    client: Client,
    counts: Arc<Mutex<Counts>>,
    pods: controller_runtime::Informer<Pod>,
}

/// Runs all, at so many times the usual size.
pub async fn run(size: f64) {
    let scaled = |number: usize| ((number as f64 * size) as usize).max(1);
    let cluster = Cluster::without_parts(1).await;
    let counts = Arc::new(Mutex::new(Counts::default()));
    let counting = |part: &'static str| {
        let inner = cluster.transport(part);
        Client::new(Arc::new(Counting { part, inner, counts: counts.clone() }), part)
    };
    let stop = CancellationToken::new();
    let shared = InformerFactory::new(counting("controllers"), stop.clone());
    let config = controllers::Config::plain(cluster.clock());
    let controllers = tokio::spawn(controllers::run(config, shared.clone(), stop.clone()));
    let config = cluster::scheduler_config(cluster.clock(), 1);
    let scheduler = tokio::spawn(scheduler::run(config, counting("scheduler"), shared, stop.clone()));
    let client = cluster.client("people");
    // What kubelets do is counted too: while they are busy there is no rest.
    let informers = InformerFactory::new(counting("kubelets"), stop.clone());
    let pods = informers.informer::<Pod>();
    let bench = Bench { client: client.clone(), counts: counts.clone(), pods: pods.clone() };
    let kubelets = tokio::spawn(kubelets(counting("kubelets"), pods, stop.clone()));
    informers.start();
    let hearts = tokio::spawn(hearts(cluster.client("hearts"), cluster.clock(), stop.clone()));
    bench.nodes(NODES).await;
    bench.rest().await;
    let (deployments, objects) = (scaled(DEPLOYMENTS), scaled(OBJECTS));
    bench.deployments(deployments).await;
    bench.namespace(objects).await;
    bench.lost_node().await;
    stop.cancel();
    drop(tokio::join!(controllers, scheduler, kubelets, hearts));
    cluster.stop().await;
}

/// Runs what has a node, and lets go what is deleted, except on the lost node.
async fn kubelets(client: Client, pods: controller_runtime::Informer<Pod>, stop: CancellationToken) {
    let queue = WorkQueue::new();
    let keys = queue.clone();
    pods.subscribe(move |event| keys.add(event.object().key()));
    let work = move |key: String| {
        let (client, pod) = (client.clone(), pods.get(&key));
        async move {
            let Some(pod) = pod else { return Ok::<_, Error>(()) };
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
            // The lost node's kubelet ran its pods before it was lost, and does nothing since.
            if node.is_empty() || node == LOST && phase(&pod) != "Pending" {
                return Ok(());
            }
            if pod.metadata.deletion_timestamp.is_some() {
                let options =
                    DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::uid(pod.uid()) };
                drop(client.delete::<Pod>(pod.namespace(), pod.name(), &options).await);
            } else if phase(&pod) == "Pending" {
                let status = json!({
                    "phase": "Running", "podIP": "10.42.0.9", "podIPs": [{"ip": "10.42.0.9"}],
                    "conditions": [{"type": "Ready", "status": "True"}],
                });
                let patch = json!({"metadata": {"uid": pod.uid()}, "status": status});
                let (namespace, name) = (pod.namespace(), pod.name());
                drop(
                    client.patch::<Pod>(namespace, name, Some("status"), PatchType::Strategic, &patch).await,
                );
            }
            Ok(())
        }
    };
    controller_runtime::run_workers("kubelets", &queue, AT_ONCE, &stop, work).await;
}

/// Lets all nodes but the lost one be heard of.
async fn hearts(client: Client, clock: controller_runtime::Clock, stop: CancellationToken) {
    let mut beat = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = beat.tick() => {}
        }
        let nodes = client.list::<Node>(None, &Default::default()).await.unwrap();
        for node in nodes.items.iter().filter(|node| node.name() != LOST) {
            beat_once(&client, &clock, node.name()).await;
        }
    }
}

impl Bench {
    async fn nodes(&self, number: usize) {
        for at in 0..number {
            self.node(&format!("n{at}"), json!({})).await;
        }
    }

    async fn node(&self, name: &str, labels: serde_json::Value) {
        let room = json!({"cpu": "64", "memory": "256Gi", "pods": "500"});
        let ready = json!([{"type": "Ready", "status": "True"}]);
        let status = json!({"capacity": room, "allocatable": room, "conditions": ready});
        let node = json!({"metadata": {"name": name, "labels": labels}, "status": status});
        self.client.create(&Node::from_value(node).unwrap()).await.unwrap();
    }

    /// Waits until controllers, scheduler and kubelets ask nothing any more.
    async fn rest(&self) -> Duration {
        let began = Instant::now();
        loop {
            let last = self.counts.lock().unwrap().last.unwrap_or(began).max(began);
            if last.elapsed() >= QUIET {
                return last - began;
            }
            assert!(began.elapsed() < PATIENCE, "there is no rest");
            tokio::time::sleep_until(last + QUIET).await;
        }
    }

    /// Does the work, waits for the rest, and prints what it took.
    async fn measure(&self, what: &str, work: impl Future<Output = ()>) {
        *self.counts.lock().unwrap() = Counts::default();
        let began = Instant::now();
        work.await;
        let asked = began.elapsed();
        let rest = self.rest().await;
        println!("{what}: asked in {:.1} s, at rest {:.1} s later", asked.as_secs_f64(), rest.as_secs_f64());
        let counts = self.counts.lock().unwrap();
        for (what, times) in &counts.asked {
            println!("  {times:>7} {what}");
        }
        for (what, times) in &counts.refused {
            println!("  {times:>7} {what}, refused");
        }
    }

    async fn all<F: Future<Output = ()>>(&self, number: usize, act: impl Fn(usize) -> F) {
        futures::stream::iter(0..number).map(act).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
    }

    async fn create_namespace(&self, name: &str) {
        let namespace = Namespace::from_value(json!({"metadata": {"name": name}})).unwrap();
        self.client.create(&namespace).await.unwrap();
        self.rest().await;
    }

    async fn deploy(&self, namespace: &str, name: &str, replicas: i32, selector: serde_json::Value) {
        let template = json!({
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "c", "image": "i"}], "nodeSelector": selector},
        });
        let deployment = json!({
            "metadata": {"namespace": namespace, "name": name},
            "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
        });
        self.client.create(&Deployment::from_value(deployment).unwrap()).await.unwrap();
    }

    async fn deployments(&self, number: usize) {
        let namespace = "bench-deployments";
        self.create_namespace(namespace).await;
        let scale = async |replicas: i32| {
            self.all(number, |at| async move {
                let patch = json!({"spec": {"replicas": replicas}});
                let name = format!("d{at}");
                let scaled =
                    self.client.patch::<Deployment>(namespace, &name, None, PatchType::Merge, &patch);
                scaled.await.unwrap();
            })
            .await;
        };
        self.measure(&format!("{number} Deployments of {REPLICAS} made"), async {
            self.all(number, |at| async move {
                self.deploy(namespace, &format!("d{at}"), REPLICAS, json!({})).await
            })
            .await;
        })
        .await;
        self.expect(number * REPLICAS as usize);
        self.measure(&format!("{number} Deployments scaled from {REPLICAS} to none"), scale(0)).await;
        self.expect(0);
        self.measure(&format!("{number} Deployments scaled from none to {REPLICAS}"), scale(REPLICAS)).await;
        self.expect(number * REPLICAS as usize);
        let delete = async {
            self.client.delete::<Namespace>("", namespace, &DeleteOptions::default()).await.unwrap()
        };
        self.measure(&format!("their namespace deleted, with {} pods", number * REPLICAS as usize), delete)
            .await;
        self.expect(0);
    }

    fn expect(&self, pods: usize) {
        let running = self.pods.list().iter().filter(|pod| phase(pod) == "Running").count();
        assert_eq!((running, self.pods.len()), (pods, pods), "running pods, and all pods");
    }

    async fn namespace(&self, number: usize) {
        let namespace = "bench-objects";
        self.create_namespace(namespace).await;
        self.all(number, |at| async move {
            let metadata = json!({"namespace": namespace, "name": format!("o{at}")});
            if at % 2 == 0 {
                let object = json!({"metadata": metadata, "data": {"key": "value"}});
                self.client.create(&ConfigMap::from_value(object).unwrap()).await.unwrap();
            } else {
                let object = json!({"metadata": metadata, "stringData": {"key": "value"}});
                self.client.create(&Secret::from_value(object).unwrap()).await.unwrap();
            }
        })
        .await;
        self.rest().await;
        let delete = async {
            self.client.delete::<Namespace>("", namespace, &DeleteOptions::default()).await.unwrap()
        };
        self.measure(&format!("a namespace of {number} objects deleted"), delete).await;
    }

    async fn lost_node(&self) {
        let namespace = "bench-lost";
        self.create_namespace(namespace).await;
        self.node(LOST, json!({"pool": "lost"})).await;
        self.node("spare", json!({"pool": "lost"})).await;
        let cordon = |unschedulable: bool| {
            let patch = json!({"spec": {"unschedulable": unschedulable}});
            async move { self.client.patch::<Node>("", "spare", None, PatchType::Merge, &patch).await.map(drop) }
        };
        cordon(true).await.unwrap();
        self.rest().await;
        self.deploy(namespace, "d", LOST_PODS, json!({"pool": "lost"})).await;
        self.rest().await;
        cordon(false).await.unwrap();
        self.rest().await;
        let lose = async {
            // What the node controller does after its grace, and people who do not want to wait for it.
            let taint = json!([{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]);
            let patch = json!({"spec": {"taints": taint}});
            self.client.patch::<Node>("", LOST, None, PatchType::Merge, &patch).await.unwrap();
            let silent = json!({"status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}});
            let patched = self.client.patch::<Node>("", LOST, Some("status"), PatchType::Strategic, &silent);
            patched.await.unwrap();
        };
        self.measure(&format!("a node of {LOST_PODS} pods lost"), lose).await;
        self.expect(LOST_PODS as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_resource() {
        for (path, expected) in [
            ("/api/v1/namespaces/ns/pods/p/status", "pods/status"),
            ("/api/v1/namespaces/ns/pods", "pods"),
            ("/apis/apps/v1/namespaces/ns/deployments/d", "deployments"),
            ("/api/v1/nodes/n/status", "nodes/status"),
            ("/api/v1/namespaces/ns/finalize", "namespaces/finalize"),
            ("/api/v1/namespaces/ns", "namespaces"),
            ("/apis/apps/v1/deployments", "deployments"),
            ("/apis", "/apis"),
        ] {
            assert_eq!(resource(path), expected, "{path}");
        }
    }
}
