//! All controllers against a small API server in memory: what they write, each other reads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::Object;
use apimachinery::Status;
use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Client, Error, Transport};
use controller_runtime::{Clock, InformerFactory};
use futures::StreamExt;
use http::{Method, Request, Response};
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::Config;

mod recording;
mod scripts;
mod seeds;
mod workloads;

/// Paths of collections, and the kinds in them.
const KINDS: &[(&str, &str)] = &[
    ("v1/pods", "Pod"),
    ("v1/services", "Service"),
    ("v1/endpoints", "Endpoints"),
    ("v1/configmaps", "ConfigMap"),
    ("v1/serviceaccounts", "ServiceAccount"),
    ("v1/nodes", "Node"),
    ("v1/namespaces", "Namespace"),
    ("v1/replicationcontrollers", "ReplicationController"),
    ("v1/persistentvolumeclaims", "PersistentVolumeClaim"),
    ("v1/resourcequotas", "ResourceQuota"),
    ("apps/v1/controllerrevisions", "ControllerRevision"),
    ("apps/v1/daemonsets", "DaemonSet"),
    ("apps/v1/deployments", "Deployment"),
    ("apps/v1/statefulsets", "StatefulSet"),
    ("batch/v1/cronjobs", "CronJob"),
    ("batch/v1/jobs", "Job"),
    ("apps/v1/replicasets", "ReplicaSet"),
    ("coordination.k8s.io/v1/leases", "Lease"),
    ("discovery.k8s.io/v1/endpointslices", "EndpointSlice"),
    ("resource.k8s.io/v1/resourceclaims", "ResourceClaim"),
];

/// Objects by collection, namespace and name.
type Objects = BTreeMap<(String, String, String), Value>;

struct Server {
    state: Mutex<(u64, Objects)>,
    changes: broadcast::Sender<(String, Value)>,
}

/// `/apis/apps/v1/namespaces/ns/deployments/web/status` taken apart.
struct Target {
    collection: String,
    namespace: String,
    name: String,
    subresource: String,
}

fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (version, mut rest) = match parts.as_slice() {
        ["api", "v1", rest @ ..] => ("v1".to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return None,
    };
    let mut namespace = "";
    if let ["namespaces", ns, resource, ..] = rest
        && !["status", "finalize"].contains(resource)
    {
        namespace = ns;
        rest = &rest[2..];
    }
    let at = |i: usize| rest.get(i).copied().unwrap_or_default().to_owned();
    let collection = format!("{version}/{}", rest.first()?);
    KINDS.iter().any(|(path, _)| *path == collection).then(|| Target {
        collection,
        namespace: namespace.to_owned(),
        name: at(1),
        subresource: at(2),
    })
}

fn discovery(path: &str) -> Option<Value> {
    if path == "/apis" {
        let groups = ["apps/v1", "batch/v1", "coordination.k8s.io/v1", "discovery.k8s.io/v1"];
        let groups: Vec<_> =
            groups.iter().map(|g| json!({"preferredVersion": {"groupVersion": g}})).collect();
        return Some(json!({ "groups": groups }));
    }
    let version = path.strip_prefix("/api/").filter(|v| *v == "v1").or(path.strip_prefix("/apis/"))?;
    let of_version = KINDS.iter().filter_map(|(path, kind)| {
        let name = path.strip_prefix(version)?.strip_prefix('/').filter(|name| !name.contains('/'))?;
        let namespaced = !["nodes", "namespaces"].contains(&name);
        let verbs = ["delete", "list", "watch"];
        Some(json!({"name": name, "namespaced": namespaced, "kind": kind, "verbs": verbs}))
    });
    let resources: Vec<_> = of_version.collect();
    (!resources.is_empty()).then(|| json!({ "resources": resources }))
}

fn merge(target: &mut Value, patch: &Value) {
    match (target, patch) {
        (Value::Object(target), Value::Object(patch)) => {
            for (key, value) in patch {
                if value.is_null() {
                    target.remove(key);
                } else {
                    merge(target.entry(key).or_insert(json!({})), value);
                }
            }
        }
        (target, patch) => *target = patch.clone(),
    }
}

fn refuse(code: u16, reason: &str) -> Response<Body> {
    let status = Status::failure(code, reason, reason);
    let body = serde_json::to_vec(&status).unwrap();
    Response::builder().status(code).body(Body::Full(body.into())).unwrap()
}

fn answer(value: &Value) -> Response<Body> {
    Response::new(Body::Full(value.to_string().into()))
}

impl Server {
    fn commit(&self, state: &mut (u64, Objects), key: (String, String, String), mut object: Value) -> Value {
        state.0 += 1;
        object["metadata"]["resourceVersion"] = json!(state.0.to_string());
        let metadata = &object["metadata"];
        let finalizers = metadata["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let held = finalizers || object["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty());
        let exists = state.1.contains_key(&key);
        let kind = if !metadata["deletionTimestamp"].is_null() && !held {
            "DELETED"
        } else if exists {
            "MODIFIED"
        } else {
            "ADDED"
        };
        if kind == "DELETED" {
            state.1.remove(&key);
        } else {
            state.1.insert(key.clone(), object.clone());
        }
        let _ = self.changes.send((key.0, json!({"type": kind, "object": object})));
        object
    }

    fn create(&self, target: &Target, mut object: Value) -> Response<Body> {
        let mut state = self.state.lock().unwrap();
        let next = state.0 + 1;
        if object["metadata"]["name"].is_null() {
            let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default();
            object["metadata"]["name"] = json!(format!("{prefix}{next}"));
        }
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        let key = (target.collection.clone(), target.namespace.clone(), name);
        if state.1.contains_key(&key) {
            return refuse(409, "AlreadyExists");
        }
        object["metadata"]["uid"] = json!(format!("uid-{next}"));
        object["metadata"]["generation"] = json!(1);
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        if target.collection == "v1/pods" {
            object["status"] = json!({"phase": "Pending"});
        }
        answer(&self.commit(&mut state, key, object))
    }

    fn write(&self, target: &Target, method: &Method, body: Value) -> Response<Body> {
        let mut state = self.state.lock().unwrap();
        let key = (target.collection.clone(), target.namespace.clone(), target.name.clone());
        let Some(old) = state.1.get(&key).cloned() else { return refuse(404, "NotFound") };
        if *method == Method::DELETE {
            let mut object = old;
            if body["propagationPolicy"] == "Foreground" {
                object["metadata"]["finalizers"] = json!(["foregroundDeletion"]);
            }
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            return answer(&self.commit(&mut state, key, object));
        }
        let mut new = if *method == Method::PATCH {
            let mut new = old.clone();
            merge(&mut new, &body);
            new
        } else {
            body.clone()
        };
        let expected = &body["metadata"]["resourceVersion"];
        if !expected.is_null() && *expected != old["metadata"]["resourceVersion"] {
            return refuse(409, "Conflict");
        }
        match target.subresource.as_str() {
            "status" => {
                // With a status its object's annotations are written, as by the real one.
                let (status, annotations) = (new["status"].take(), new["metadata"]["annotations"].take());
                new = old.clone();
                new["status"] = status;
                if !annotations.is_null() {
                    new["metadata"]["annotations"] = annotations;
                }
            }
            "finalize" => {}
            _ => {
                new["status"] = old["status"].clone();
                if new["spec"] != old["spec"] {
                    new["metadata"]["generation"] =
                        json!(old["metadata"]["generation"].as_i64().unwrap() + 1);
                }
            }
        }
        if new == old {
            return answer(&old);
        }
        answer(&self.commit(&mut state, key, new))
    }

    /// Namespace, field selector by name, and version apart, as the real one.
    fn watch(&self, target: &Target, query: &str) -> Response<Body> {
        let state = self.state.lock().unwrap();
        let name = query.split('&').find_map(|pair| pair.strip_prefix("fieldSelector=metadata.name%3D"));
        let (collection, namespace) = (target.collection.clone(), target.namespace.clone());
        let name = name.map(str::to_owned);
        let wanted = move |object: &Value| {
            (namespace.is_empty() || object["metadata"]["namespace"] == namespace.as_str())
                && name.as_ref().is_none_or(|name| object["metadata"]["name"] == name.as_str())
        };
        let of_kind = state.1.iter().filter(|((c, ..), object)| *c == collection && wanted(object));
        let mut first: Vec<_> =
            of_kind.map(|(_, object)| json!({"type": "ADDED", "object": object})).collect();
        first.push(json!({"type": "BOOKMARK", "object": {"metadata": {
            "resourceVersion": state.0.to_string(),
            "annotations": {"k8s.io/initial-events-end": "true"},
        }}}));
        let changes = tokio_stream(self.changes.subscribe()).filter_map(move |(kind, event)| {
            let line = (kind == collection && wanted(&event["object"])).then_some(event);
            async { line }
        });
        let lines =
            futures::stream::iter(first).chain(changes).map(|event| Ok(Bytes::from(format!("{event}\n"))));
        Response::new(Body::Stream(Box::pin(lines)))
    }
}

fn tokio_stream(
    changes: broadcast::Receiver<(String, Value)>,
) -> impl futures::Stream<Item = (String, Value)> {
    futures::stream::unfold(changes, async |mut changes| {
        changes.recv().await.ok().map(|event| (event, changes))
    })
}

struct Handle(Arc<Server>);

#[async_trait]
impl Transport for Handle {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let path = request.uri().path();
        if let Some(found) = discovery(path) {
            return Ok(answer(&found));
        }
        let Some(target) = target(path) else { return Ok(refuse(404, "NotFound")) };
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let query = request.uri().query().unwrap_or_default();
        Ok(match (request.method(), target.name.is_empty()) {
            (&Method::GET, true) if query.contains("watch=true") => self.0.watch(&target, query),
            (&Method::GET, true) => {
                let state = self.0.state.lock().unwrap();
                let items = state.1.iter().filter(|((c, ns, _), _)| {
                    *c == target.collection && (target.namespace.is_empty() || *ns == target.namespace)
                });
                let items: Vec<_> = items.map(|(_, object)| object).collect();
                answer(&json!({"metadata": {"resourceVersion": state.0.to_string()}, "items": items}))
            }
            (&Method::GET, false) => {
                let state = self.0.state.lock().unwrap();
                let key = (target.collection, target.namespace, target.name);
                state.1.get(&key).map_or_else(|| refuse(404, "NotFound"), answer)
            }
            (&Method::POST, _) => self.0.create(&target, body),
            (method, _) => self.0.write(&target, method, body),
        })
    }
}

/// A cluster without a scheduler and kubelets: `play` does their part.
struct Cluster {
    server: Arc<Server>,
    client: Client,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), crate::Error>>,
}

impl Cluster {
    async fn start() -> Self {
        let server = Arc::new(Server { state: Mutex::default(), changes: broadcast::channel(100_000).0 });
        let client = Client::new(Arc::new(Handle(server.clone())), "test");
        let shutdown = CancellationToken::new();
        let began = tokio::time::Instant::now();
        let epoch: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let clock = Clock::new(move || epoch + jiff::SignedDuration::try_from(began.elapsed()).unwrap());
        let config = Config::plain(clock);
        let informers = InformerFactory::new(client.clone(), shutdown.clone());
        let running = tokio::spawn(crate::run(config, informers, shutdown.clone()));
        Cluster { server, client, shutdown, running }
    }

    async fn create<T: Object>(&self, object: Value) -> T {
        self.client.create(&T::from_value(object).unwrap()).await.unwrap()
    }

    fn all(&self, collection: &str) -> Vec<Value> {
        let state = self.server.state.lock().unwrap();
        state.1.iter().filter(|((c, ..), _)| c == collection).map(|(_, object)| object.clone()).collect()
    }

    /// Lets everything settle, makes every pod run, and so on until nothing changes.
    async fn settle(&self) {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let before = self.server.state.lock().unwrap().0;
            self.play();
            tokio::time::sleep(Duration::from_millis(500)).await;
            if self.server.state.lock().unwrap().0 == before {
                return;
            }
        }
    }

    fn play(&self) {
        let mut state = self.server.state.lock().unwrap();
        let pending: Vec<_> = state
            .1
            .iter()
            .filter(|(_, o)| o["status"]["phase"] == "Pending")
            .map(|(k, o)| (k.clone(), o.clone()))
            .collect();
        for (key, mut pod) in pending {
            pod["spec"]["nodeName"] = json!("n1");
            let ip = format!("10.42.0.{}", state.0 % 250);
            pod["status"] = json!({
                "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            });
            self.server.commit(&mut state, key, pod);
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn deployment(image: &str, replicas: i32) -> Value {
    json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "replicas": replicas, "progressDeadlineSeconds": 600, "revisionHistoryLimit": 10,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}},
        },
    })
}

async fn begin() -> Cluster {
    let cluster = Cluster::start().await;
    let namespace = json!({"metadata": {"name": "default"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
    cluster.create::<api::core::v1::Namespace>(namespace).await;
    let node = json!({"metadata": {"name": "n1"}, "status": {"conditions": [
        {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"},
    ]}});
    cluster.create::<api::core::v1::Node>(node).await;
    cluster
}

#[tokio::test(start_paused = true)]
async fn a_deployment_is_rolled_out_over_and_collected() {
    let cluster = begin().await;
    cluster.create::<api::apps::v1::Deployment>(deployment("one", 4)).await;
    let service = json!({
        "metadata": {"namespace": "default", "name": "web"},
        "spec": {"clusterIP": "10.43.0.7", "ipFamilies": ["IPv4"], "selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP"}]},
    });
    cluster.create::<api::core::v1::Service>(service).await;
    cluster.settle().await;
    let pods = cluster.all("v1/pods");
    assert_eq!(pods.len(), 4);
    let status = cluster.all("apps/v1/deployments")[0]["status"].clone();
    assert_eq!((&status["readyReplicas"], &status["updatedReplicas"]), (&json!(4), &json!(4)), "{status}");
    let reason = |status: &Value| {
        let conditions = status["conditions"].as_array().unwrap().clone();
        conditions.into_iter().find(|c| c["type"] == "Progressing").unwrap()["reason"].clone()
    };
    assert_eq!(reason(&status), "NewReplicaSetAvailable");
    assert_eq!(
        cluster.all("discovery.k8s.io/v1/endpointslices")[0]["endpoints"].as_array().unwrap().len(),
        4
    );
    assert_eq!(cluster.all("v1/endpoints")[0]["subsets"][0]["addresses"].as_array().unwrap().len(), 4);
    assert_eq!(cluster.all("v1/nodes")[0]["spec"]["podCIDR"], "10.42.0.0/24");
    assert_eq!(cluster.all("v1/serviceaccounts").len(), 1);
    assert_eq!(cluster.all("v1/configmaps")[0]["data"]["ca.crt"], "PEM");

    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "two"}]}}}});
    let patched: Result<api::apps::v1::Deployment, _> =
        cluster.client.patch("default", "web", None, client::PatchType::Merge, &patch).await;
    patched.unwrap();
    cluster.settle().await;
    let pods = cluster.all("v1/pods");
    assert_eq!(pods.len(), 4);
    assert!(pods.iter().all(|pod| pod["spec"]["containers"][0]["image"] == "two"));
    let deployment = cluster.all("apps/v1/deployments")[0].clone();
    assert_eq!(deployment["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "2");
    assert_eq!(cluster.all("apps/v1/replicasets").len(), 2);

    let gone =
        cluster.client.delete::<api::apps::v1::Deployment>("default", "web", &Default::default()).await;
    gone.unwrap();
    cluster.settle().await;
    assert!(cluster.all("apps/v1/replicasets").is_empty() && cluster.all("v1/pods").is_empty());
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_pod_is_replaced_once() {
    let cluster = begin().await;
    cluster.create::<api::apps::v1::Deployment>(deployment("one", 30)).await;
    cluster.settle().await;
    let created = cluster.server.state.lock().unwrap().0;
    let victim = cluster.all("v1/pods")[0]["metadata"]["name"].as_str().unwrap().to_owned();
    cluster.client.delete::<api::core::v1::Pod>("default", &victim, &Default::default()).await.unwrap();
    cluster.settle().await;
    assert_eq!(cluster.all("v1/pods").len(), 30);
    assert!(cluster.server.state.lock().unwrap().0 > created);
    let scale = json!({"spec": {"replicas": 7}});
    let scaled: Result<api::apps::v1::Deployment, _> =
        cluster.client.patch("default", "web", None, client::PatchType::Merge, &scale).await;
    scaled.unwrap();
    cluster.settle().await;
    assert_eq!(cluster.all("v1/pods").len(), 7);
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_takes_its_content_along() {
    let cluster = begin().await;
    cluster.create::<api::apps::v1::Deployment>(deployment("one", 2)).await;
    cluster.settle().await;
    cluster.client.delete::<api::core::v1::Namespace>("", "default", &Default::default()).await.unwrap();
    cluster.settle().await;
    assert!(cluster.all("v1/namespaces").is_empty(), "{:?}", cluster.all("v1/namespaces"));
    assert!(cluster.all("v1/pods").is_empty() && cluster.all("v1/configmaps").is_empty());
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_node_is_tainted_while_another_lives() {
    let cluster = begin().await;
    let node = json!({"metadata": {"name": "n2"}, "status": {"conditions": [
        {"type": "Ready", "status": "True", "lastHeartbeatTime": "2026-01-01T00:00:00Z"},
    ]}});
    cluster.create::<api::core::v1::Node>(node).await;
    cluster.create::<api::apps::v1::Deployment>(deployment("one", 1)).await;
    cluster.settle().await;
    let first = cluster.all("v1/pods");
    for beat in 1..12 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let heartbeat = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "lastHeartbeatTime": format!("2026-01-01T00:{beat:02}:00Z")},
        ]}});
        let beaten: Result<api::core::v1::Node, _> =
            cluster.client.patch("", "n2", Some("status"), client::PatchType::Merge, &heartbeat).await;
        beaten.unwrap();
    }
    let nodes = cluster.all("v1/nodes");
    let taints = |node: &Value| node["spec"]["taints"].as_array().map_or(0, Vec::len);
    assert_eq!((taints(&nodes[0]), taints(&nodes[1])), (2, 0), "{nodes:?}");
    // Its pod tolerates nothing: another stands in its place.
    let pods = cluster.all("v1/pods");
    assert_eq!(pods.len(), 1);
    assert_ne!(pods[0]["metadata"]["uid"], first[0]["metadata"]["uid"]);
    cluster.stop().await;
}
