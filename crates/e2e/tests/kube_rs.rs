//! What a controller written with kube-rs does: objects, conflicts of apply, custom resources, a watch that outlives
//! the server, streams of a container.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread::JoinHandle;

use e2e::{Cluster, PATIENCE, images};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    Api, ApiResource, AttachParams, DeleteParams, DynamicObject, GroupVersionKind, ListParams, LogParams,
    Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;

/// Does work in the cluster's network namespace, on a thread of its own: a thread does not come back from there.
fn inside(cluster: &Cluster, work: impl AsyncFnOnce(kube::Client) + Send + 'static) -> JoinHandle<()> {
    let namespace = File::open(format!("/run/netns/{}", cluster.namespace.name())).unwrap();
    let kubeconfig = Kubeconfig::read_from(cluster.data_dir().join("admin.kubeconfig")).unwrap();
    std::thread::spawn(move || {
        let network = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), network).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
            work(kube::Client::try_from(config.unwrap()).unwrap()).await;
        });
    })
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

fn of<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn code(error: kube::Error) -> u16 {
    match error {
        kube::Error::Api(status) => status.code,
        other => panic!("not an answer of the API: {other}"),
    }
}

async fn objects(client: kube::Client) {
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let map = |value: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": value}});
    let create = PostParams::default();
    let stale = maps.create(&create, &of(map("1"))).await.unwrap();
    assert_eq!(code(maps.create(&create, &of(map("1"))).await.unwrap_err()), 409);
    let mut fresh = stale.clone();
    fresh.data = Some([("k".to_owned(), "2".to_owned())].into());
    maps.replace("a", &create, &fresh).await.unwrap();
    assert_eq!(code(maps.replace("a", &create, &stale).await.unwrap_err()), 409, "a stale object is refused");

    let (mine, theirs) = (PatchParams::apply("me"), PatchParams::apply("them"));
    let mut applied = map("3");
    applied["metadata"]["name"] = json!("applied");
    maps.patch("applied", &mine, &Patch::Apply(&applied)).await.unwrap();
    applied["data"]["k"] = json!("4");
    let conflict = maps.patch("applied", &theirs, &Patch::Apply(&applied)).await.unwrap_err();
    assert!(conflict.to_string().contains("conflict with \"me\": .data.k"), "{conflict}");
    let forced = maps.patch("applied", &theirs.force(), &Patch::Apply(&applied)).await.unwrap();
    assert_eq!(forced.data.unwrap()["k"], "4");

    let mut pages = Vec::new();
    let mut ask = ListParams::default().limit(2);
    loop {
        let page = maps.list(&ask).await.unwrap();
        pages.extend(page.items.into_iter().filter_map(|map| map.metadata.name));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => ask = ask.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(pages, ["a", "applied", "kube-root-ca.crt"]);

    let deployments: Api<Deployment> = Api::default_namespaced(client);
    let template =
        json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": template});
    deployments.create(&create, &of(json!({"metadata": {"name": "web"}, "spec": spec}))).await.unwrap();
    let scaled = Patch::Merge(json!({"spec": {"replicas": 1}}));
    deployments.patch_scale("web", &PatchParams::default(), &scaled).await.unwrap();
    let observed = |found: Option<&Deployment>| {
        found.and_then(|d| d.status.as_ref()).and_then(|status| status.replicas) == Some(1)
    };
    in_time("a scaled deployment", await_condition(deployments.clone(), "web", observed)).await.unwrap();
    deployments.delete("web", &DeleteParams::foreground()).await.unwrap();
    let gone = |found: Option<&Deployment>| found.is_none();
    in_time("a deleted deployment", await_condition(deployments, "web", gone)).await.unwrap();
}

async fn custom_resources(client: kube::Client) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let schema = json!({"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"size": {"type": "integer", "minimum": 1, "default": 7}}},
        "status": {"type": "object", "properties": {"seen": {"type": "integer"}}}}});
    let version = json!({"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema},
                         "subresources": {"status": {}}});
    let names = json!({"plural": "whales", "singular": "whale", "kind": "Whale"});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "whales.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": names, "versions": [version]}});
    let apply = PatchParams::apply("operator");
    definitions.patch("whales.example.com", &apply, &Patch::Apply(definition)).await.unwrap();
    let served = await_condition(definitions.clone(), "whales.example.com", conditions::is_crd_established());
    in_time("an established definition", served).await.unwrap();

    let kind =
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("example.com", "v1", "Whale"), "whales");
    let whales: Api<DynamicObject> = Api::default_namespaced_with(client, &kind);
    let moby = DynamicObject::new("moby", &kind).data(json!({"spec": {}}));
    let whale = whales.create(&PostParams::default(), &moby).await.unwrap();
    assert_eq!(whale.data["spec"]["size"], 7, "the default of the schema");
    let seen = Patch::Merge(json!({"status": {"seen": 3}, "spec": {"size": 9}}));
    let whale = whales.patch_status("moby", &PatchParams::default(), &seen).await.unwrap();
    assert_eq!((&whale.data["status"]["seen"], &whale.data["spec"]["size"]), (&json!(3), &json!(7)));
    let wrong =
        whales.patch("moby", &PatchParams::default(), &Patch::Merge(json!({"spec": {"size": 0}}))).await;
    assert_eq!(code(wrong.unwrap_err()), 422);
    let version = whale.metadata.resource_version.unwrap();
    let mut changes = whales.watch(&WatchParams::default().timeout(20), &version).await.unwrap().boxed();
    whales.delete("moby", &DeleteParams::default()).await.unwrap();
    let change = in_time("the deletion's event", changes.try_next()).await.unwrap();
    assert!(matches!(change, Some(WatchEvent::Deleted(_))), "{change:?}");
    definitions.delete("whales.example.com", &DeleteParams::default()).await.unwrap();
}

async fn streams(client: kube::Client) {
    let pods: Api<Pod> = Api::default_namespaced(client);
    let containers = json!([{"name": "c", "image": "test.local/web:v1"}]);
    let pod = json!({"metadata": {"name": "web"}, "spec": {"containers": containers, "terminationGracePeriodSeconds": 1}});
    pods.create(&PostParams::default(), &of(pod)).await.unwrap();
    in_time("a running pod", await_condition(pods.clone(), "web", conditions::is_pod_running()))
        .await
        .unwrap();

    let follow = LogParams { follow: true, ..LogParams::default() };
    let mut lines = pods.log_stream("web", &follow).await.unwrap().lines();
    assert_eq!(in_time("a line of the log", lines.try_next()).await.unwrap().unwrap(), "one serves");

    let command = ["sh", "-c", "echo said; cat; exit 3"];
    let mut process =
        pods.exec("web", command, &AttachParams::default().stdin(true).stderr(false)).await.unwrap();
    let ended = process.take_status().unwrap();
    let (mut input, mut output) = (process.stdin().unwrap(), process.stdout().unwrap());
    let mut said = [0; 5];
    in_time("output", output.read_exact(&mut said)).await.unwrap();
    assert_eq!(&said, b"said\n");
    input.write_all(b"echoed").await.unwrap();
    let mut echoed = [0; 6];
    in_time("input come back", output.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"echoed");
    input.shutdown().await.unwrap();
    let status = in_time("the end", ended).await.unwrap();
    assert_eq!(status.reason.as_deref(), Some("NonZeroExitCode"), "{status:?}");
    pods.delete("web", &DeleteParams::default()).await.unwrap();
}

#[test]
fn a_controller_does_its_work() {
    let cluster = Cluster::start();
    cluster.import(&images::web("test.local/web:v1", "one"));
    let work = async |client: kube::Client| {
        objects(client.clone()).await;
        custom_resources(client.clone()).await;
        streams(client).await;
    };
    inside(&cluster, work).join().unwrap();
}

/// The name of the object that changed, with a mark when it was listed anew.
fn told(event: &watcher::Event<ConfigMap>) -> Option<String> {
    match event {
        watcher::Event::Apply(map) => map.metadata.name.clone(),
        watcher::Event::Delete(map) => map.metadata.name.as_ref().map(|name| format!("{name} deleted")),
        watcher::Event::InitDone => Some("listed".to_owned()),
        watcher::Event::Init | watcher::Event::InitApply(_) => None,
    }
}

/// What happened before a restart is not told again, and nothing after it is missed.
#[test]
fn a_watcher_outlives_a_restart() {
    let mut cluster = Cluster::start();
    let (started, watches) = mpsc::channel();
    let (restarted, goes_on) = oneshot::channel();
    let watching = inside(&cluster, async move |client| {
        let maps: Api<ConfigMap> = Api::namespaced(client, "kube-public");
        let create = async |name: &str| {
            let map = of(json!({"metadata": {"name": name}}));
            maps.create(&PostParams::default(), &map).await.unwrap();
        };
        let changes = watcher(maps.clone(), watcher::Config::default()).default_backoff();
        // What breaks off is told as an error, and then goes on.
        let mut changes = changes.filter_map(async |change| change.ok().as_ref().and_then(told)).boxed();
        let mut until = async |name: &str| {
            let mut seen = Vec::new();
            while seen.last().is_none_or(|last| last != name) {
                seen.push(in_time(name, changes.next()).await.unwrap());
            }
            seen
        };
        assert_eq!(until("listed").await, ["listed"]);
        create("early").await;
        assert_eq!(until("early").await, ["early"]);
        started.send(()).unwrap();
        goes_on.await.unwrap();
        create("late").await;
        assert_eq!(until("late").await, ["late"]);
    });
    watches.recv_timeout(PATIENCE).expect("a watch that runs");
    cluster.stop_server();
    cluster.start_server();
    restarted.send(()).unwrap();
    watching.join().unwrap();
}
