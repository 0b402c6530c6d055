//! What is off by default, switched on: a server, the controllers and the scheduler together, without faults.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::coordination::v1::Lease;
use api::coordination::v1beta1::LeaseCandidate;
use api::core::v1::{Node, Pod, ServiceAccount};
use api::scheduling::v1alpha2::PodGroup;
use api::storagemigration::v1beta1::StorageVersionMigration;
use apimachinery::GroupVersionResource;
use apiserver::ApiServer;
use apiserver::seams::UserInfo;
use client::{Client, ListOptions, PatchType, Resource};
use controller_runtime::{Candidacy, Clock, InformerFactory, LeaderElector};
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

struct Cluster {
    server: Arc<ApiServer>,
    clock: Clock,
    client: Client,
}

impl Cluster {
    async fn start(features: &str) -> Self {
        let features = resources::features::Features::parse(features.split(',')).unwrap();
        let began = Instant::now();
        let epoch: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let now = move || epoch + began.elapsed();
        let config = apiserver::Config { clock: Arc::new(now), ..apiserver::testing::config() };
        let server = apiserver::testing::cluster_with(config, features).await;
        let client = Self::connect(&server, "people");
        Cluster { server, clock: Clock::new(now), client }
    }

    fn connect(server: &Arc<ApiServer>, name: &str) -> Client {
        let groups = vec!["system:masters".to_owned(), "system:authenticated".to_owned()];
        Client::new(server.in_process(UserInfo { name: name.to_owned(), groups, ..Default::default() }), name)
    }

    fn start_scheduler(&self) {
        let client = Self::connect(&self.server, "scheduler");
        let gates = scheduler::plugins::Gates { pod_groups: true, gangs: true };
        let config = scheduler::Config {
            configuration: scheduler::Configuration::with(gates),
            clock: self.clock.clone(),
            seed: 1,
            metrics: scheduler::Metrics::default(),
            host: "host".into(),
            identity: None,
        };
        let shutdown = self.server.shutdown.clone();
        let informers = InformerFactory::new(client.clone(), shutdown.clone());
        let running = scheduler::run(config, client, informers, shutdown);
        self.server.tasks.spawn(async move { running.await.unwrap() });
    }

    fn start_controllers(&self, features: &str) {
        let shutdown = self.server.shutdown.clone();
        let informers = InformerFactory::new(Self::connect(&self.server, "controllers"), shutdown.clone());
        let mut config = controllers::Config::plain(self.clock.clone());
        config.options.features = resources::features::Features::parse(features.split(',')).unwrap();
        let running = controllers::run(config, informers, shutdown);
        self.server.tasks.spawn(async move { running.await.unwrap() });
    }

    async fn create<T: Object>(&self, object: Value) {
        self.client.create(&T::from_value(object).unwrap()).await.unwrap();
    }

    /// Looks again and again until it is so.
    async fn until<T: Object>(&self, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) {
        let end = Instant::now() + Duration::from_secs(300);
        loop {
            let namespace = if T::NAMESPACED { "default" } else { "" };
            let object = self.client.get::<T>(namespace, name).await.unwrap().to_value();
            if is_so(&object) {
                return;
            }
            assert!(Instant::now() < end, "{what}: {object}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn node(&self, name: &str, cpu: &str) {
        let room = json!({"cpu": cpu, "memory": "8Gi", "pods": "10"});
        let status = json!({"capacity": room, "allocatable": room});
        self.create::<Node>(json!({"metadata": {"name": name}, "status": status})).await;
        // A new node is not ready; there is nobody here who would see that it is.
        let patch = json!({"spec": {"taints": null}});
        self.client.patch::<Node>("", name, None, PatchType::Merge, &patch).await.unwrap();
    }

    async fn member(&self, name: &str, group: &str) {
        let requests = json!({"requests": {"cpu": "1"}});
        self.create::<Pod>(json!({
            "metadata": {"namespace": "default", "name": name},
            "spec": {
                "schedulingGroup": {"podGroupName": group},
                "containers": [{"name": "c", "image": "i", "resources": requests}],
            },
        }))
        .await;
    }

    async fn bound(&self) -> usize {
        let pods = self.client.list::<Pod>(Some("default"), &ListOptions::default()).await.unwrap();
        let bound = pods.items.iter().filter(|pod| pod.spec.as_ref().unwrap().node_name.is_some());
        bound.count()
    }
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

#[tokio::test(start_paused = true)]
async fn a_gang_is_placed_whole_or_not_at_all() {
    let cluster = Cluster::start("GenericWorkload=true,GangScheduling=true").await;
    cluster.create::<ServiceAccount>(json!({"metadata": {"namespace": "default", "name": "default"}})).await;
    cluster.node("n1", "2").await;
    cluster.start_scheduler();
    for name in ["a", "b"] {
        cluster.member(name, "gang").await;
    }
    let gang = json!({"gang": {"minCount": 3}});
    let group =
        json!({"metadata": {"namespace": "default", "name": "gang"}, "spec": {"schedulingPolicy": gang}});
    cluster.create::<PodGroup>(group).await;
    // Two are not enough to be tried, and for three there is no room.
    cluster.member("c", "gang").await;
    cluster
        .until::<PodGroup>("gang", "the group says that it cannot be placed", |group| {
            condition(group, "PodGroupScheduled").is_some_and(|c| c["reason"] == "Unschedulable")
        })
        .await;
    assert_eq!(cluster.bound().await, 0);
    cluster.node("n2", "2").await;
    cluster
        .until::<PodGroup>("gang", "the group says that it is placed", |group| {
            condition(group, "PodGroupScheduled").is_some_and(|c| c["status"] == "True")
        })
        .await;
    for name in ["a", "b", "c"] {
        cluster.until::<Pod>(name, "it is bound", |pod| pod["spec"]["nodeName"].is_string()).await;
    }
    cluster.server.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn what_was_stored_comes_into_the_version_that_is_stored_now() {
    const GATES: &str = "StorageVersionMigrator=true";
    let cluster = Cluster::start(GATES).await;
    let gvr = |group, version, plural| Resource {
        gvr: GroupVersionResource::from_static(group, version, plural),
        namespaced: false,
    };
    let definitions = gvr("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let versions = |stored: &str| {
        let schema =
            json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        let version =
            |name: &str| json!({"name": name, "served": true, "storage": name == stored, "schema": schema});
        json!([version("v1"), version("v2")])
    };
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.org"},
        "spec": {"group": "example.org", "scope": "Cluster", "versions": versions("v1"),
            "names": {"plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList"}},
    });
    cluster.client.create_value(&definitions, "", None, &definition).await.unwrap();
    let widgets = gvr("example.org", "v1", "widgets");
    let widget = json!({"apiVersion": "example.org/v1", "kind": "Widget", "metadata": {"name": "w"}});
    let end = Instant::now() + Duration::from_secs(60);
    while let Err(error) = cluster.client.create_value(&widgets, "", None, &widget).await {
        assert!(Instant::now() < end, "widgets are not served: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let version = async || {
        let widget = cluster.client.get_value(&widgets, "", "w").await.unwrap();
        widget["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    };
    let first = version().await;
    let patch = json!({"spec": {"versions": versions("v2")}});
    let name = "widgets.example.org";
    cluster.client.patch_value(&definitions, "", name, None, PatchType::Merge, &patch).await.unwrap();
    cluster.start_controllers(GATES);
    let migrate = async |name: &str| {
        let resource = json!({"group": "example.org", "resource": "widgets"});
        let migration = json!({"metadata": {"name": name}, "spec": {"resource": resource}});
        cluster.create::<StorageVersionMigration>(migration).await;
        cluster
            .until::<StorageVersionMigration>(name, "the migration has ended", |migration| {
                condition(migration, "Running").is_some_and(|running| running["status"] == "False")
            })
            .await;
        cluster.client.get::<StorageVersionMigration>("", name).await.unwrap().to_value()
    };
    let migration = migrate("first").await;
    assert_eq!(condition(&migration, "Succeeded").unwrap()["status"], "True", "{migration}");
    let second = version().await;
    assert_ne!(first, second, "the widget is written anew");
    let definition = cluster.client.get_value(&definitions, "", name).await.unwrap();
    assert_eq!(definition["status"]["storedVersions"], json!(["v2"]));
    let migration = migrate("second").await;
    assert_eq!(condition(&migration, "Succeeded").unwrap()["status"], "True", "{migration}");
    assert_eq!(second, version().await, "there is nothing to write any more");
    cluster.server.shutdown.cancel();
}

/// A candidate that leads when it is chosen, until it is told to end or another is preferred.
fn run_candidate(cluster: &Cluster, identity: &str, end: &CancellationToken) {
    let client = Cluster::connect(&cluster.server, identity);
    let candidacy = Candidacy {
        client: client.clone(),
        namespace: "default".into(),
        lease: "work".into(),
        identity: identity.into(),
        clock: cluster.clock.clone(),
    };
    let mut elector = LeaderElector::new(client, "default", "work", identity, cluster.clock.clone());
    elector.coordinated = true;
    let end = end.clone();
    cluster.server.tasks.spawn(async move {
        let lead = |leading: CancellationToken| async move { leading.cancelled().await };
        tokio::select! {
            () = candidacy.stand(&end) => {}
            _ = elector.run(&end, lead) => {}
        }
    });
}

#[tokio::test(start_paused = true)]
async fn the_api_server_chooses_the_oldest_candidate_that_is_there() {
    let cluster = Cluster::start("CoordinatedLeaderElection=true").await;
    let client = Cluster::connect(&cluster.server, "apiserver");
    let choosing =
        controllers::choose_leaders(client, "server", cluster.clock.clone(), cluster.server.shutdown.clone());
    cluster.server.tasks.spawn(choosing);
    let holds = |who: &'static str| move |lease: &Value| lease["spec"]["holderIdentity"] == who;
    let new = CancellationToken::new();
    run_candidate(&cluster, "new", &new);
    let end = Instant::now() + Duration::from_secs(60);
    while cluster.client.get::<Lease>("default", "work").await.is_err() {
        assert!(Instant::now() < end, "nobody is chosen");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let acquired = |lease: &Value| !lease["spec"]["acquireTime"].is_null() && holds("new")(lease);
    cluster.until::<Lease>("work", "the only one leads", acquired).await;
    // One of an older version, that leads as soon as the newer one has been asked to go and has gone.
    let old = json!({
        "metadata": {"namespace": "default", "name": "old"},
        "spec": {"leaseName": "work", "binaryVersion": "1.35.0", "emulationVersion": "1.35.0",
            "strategy": "OldestEmulationVersion", "renewTime": format!("{:.6}", cluster.clock.now())},
    });
    cluster.create::<LeaseCandidate>(old).await;
    cluster.until::<Lease>("work", "the older one is chosen", holds("old")).await;
    // It does not renew what it holds, nor answer whether it is there.
    run_candidate(&cluster, "newer", &CancellationToken::new());
    cluster.until::<Lease>("work", "one that is there leads", holds("newer")).await;
    // What has been quiet for half an hour is no candidate any more.
    tokio::time::sleep(Duration::from_secs(31 * 60)).await;
    let left = cluster.client.list::<LeaseCandidate>(Some("default"), &ListOptions::default()).await.unwrap();
    let left: Vec<&str> = left.items.iter().map(|candidate| candidate.name()).collect();
    assert_eq!(left, ["newer"]);
}
