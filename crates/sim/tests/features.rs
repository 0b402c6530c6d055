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
use client::{Client, DeleteOptions, ListOptions, PatchType, Resource};
use controller_runtime::{Candidacy, Clock, InformerFactory, LeaderElector};
use serde_json::{Value, json};
use tokio::task::AbortHandle;
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
        let gates = scheduler::plugins::Gates { pod_groups: true, gangs: true, topologies: true };
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
        self.node_in(name, cpu, "").await;
    }

    async fn node_in(&self, name: &str, cpu: &str, rack: &str) {
        let room = json!({"cpu": cpu, "memory": "8Gi", "pods": "10"});
        let status = json!({"capacity": room, "allocatable": room});
        let labels = json!({"rack": rack});
        self.create::<Node>(json!({"metadata": {"name": name, "labels": labels}, "status": status})).await;
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
async fn a_gang_is_placed_within_one_domain_of_its_topology() {
    let gates = "GenericWorkload=true,GangScheduling=true,TopologyAwareWorkloadScheduling=true";
    let cluster = Cluster::start(gates).await;
    cluster.create::<ServiceAccount>(json!({"metadata": {"namespace": "default", "name": "default"}})).await;
    for (name, rack) in [("a1", "a"), ("b1", "b"), ("b2", "b")] {
        cluster.node_in(name, "2", rack).await;
    }
    cluster.start_scheduler();
    let make = async |name: &str, pods: usize| {
        let group = json!({"metadata": {"namespace": "default", "name": name}, "spec": {
            "schedulingPolicy": {"gang": {"minCount": pods}},
            "schedulingConstraints": {"topology": [{"key": "rack"}]},
        }});
        cluster.create::<PodGroup>(group).await;
        for pod in 0..pods {
            cluster.member(&format!("{name}-{pod}"), name).await;
        }
    };
    make("large", 5).await;
    cluster
        .until::<PodGroup>("large", "no rack has room for five", |group| {
            let words = "0/2 placements are available, first placement status: pod group is unschedulable";
            condition(group, "PodGroupScheduled").is_some_and(|c| c["message"] == words)
        })
        .await;
    make("small", 3).await;
    for pod in ["small-0", "small-1", "small-2"] {
        cluster
            .until::<Pod>(pod, "it is in the rack that has room for three", |pod| {
                pod["spec"]["nodeName"].as_str().is_some_and(|node| node.starts_with('b'))
            })
            .await;
    }
    assert_eq!(cluster.bound().await, 3);
    cluster.server.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_group_stays_while_pods_of_it_do() {
    const GATES: &str = "GenericWorkload=true";
    let cluster = Cluster::start(GATES).await;
    cluster.create::<ServiceAccount>(json!({"metadata": {"namespace": "default", "name": "default"}})).await;
    let spec = json!({"schedulingPolicy": {"basic": {}}});
    let group =
        PodGroup::from_value(json!({"metadata": {"namespace": "default", "name": "g"}, "spec": spec}));
    let group = group.unwrap();
    let made = cluster.client.create(&group).await.unwrap();
    assert_eq!(made.spec, group.spec, "nothing is made up of what was left out");
    cluster.member("a", "g").await;
    cluster.start_controllers(GATES);
    cluster.client.delete::<PodGroup>("default", "g", &DeleteOptions::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let kept = cluster.client.get::<PodGroup>("default", "g").await.unwrap();
    assert!(kept.metadata.deletion_timestamp.is_some(), "a pod of it waits");
    let now = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
    cluster.client.delete::<Pod>("default", "a", &now).await.unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while cluster.client.get::<PodGroup>("default", "g").await.is_ok() {
        assert!(Instant::now() < end, "nothing of it is left, and it stays");
        tokio::time::sleep(Duration::from_millis(100)).await;
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
fn run_candidate(cluster: &Cluster, identity: &str, end: &CancellationToken) -> AbortHandle {
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
    let running = cluster.server.tasks.spawn(async move {
        let lead = |leading: CancellationToken| async move { leading.cancelled().await };
        tokio::select! {
            () = candidacy.stand(&end) => {}
            _ = elector.run(&end, lead) => {}
        }
    });
    running.abort_handle()
}

/// Waits until somebody is chosen at all.
async fn until_there_is_a_lease(cluster: &Cluster) {
    let end = Instant::now() + Duration::from_secs(60);
    while cluster.client.get::<Lease>("default", "work").await.is_err() {
        assert!(Instant::now() < end, "nobody is chosen");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn choose_leaders(cluster: &Cluster) {
    let client = Cluster::connect(&cluster.server, "apiserver");
    let elector = controllers::leader_elector(client, "server", cluster.clock.clone());
    cluster.server.tasks.spawn(controllers::choose_leaders(elector, cluster.server.shutdown.clone()));
}

fn leads(who: &str) -> impl Fn(&Value) -> bool {
    move |lease| !lease["spec"]["acquireTime"].is_null() && lease["spec"]["holderIdentity"] == who
}

#[tokio::test(start_paused = true)]
async fn when_a_leader_is_killed_another_leads_once_its_lease_has_lapsed() {
    let cluster = Cluster::start("CoordinatedLeaderElection=true").await;
    choose_leaders(&cluster);
    let end = CancellationToken::new();
    let first = run_candidate(&cluster, "first", &end);
    until_there_is_a_lease(&cluster).await;
    cluster.until::<Lease>("work", "the first leads", leads("first")).await;
    run_candidate(&cluster, "second", &end);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let lease = cluster.client.get::<Lease>("default", "work").await.unwrap().to_value();
    assert!(leads("first")(&lease), "of equal versions the first stays: {lease}");
    first.abort();
    let killed = Instant::now();
    cluster.until::<Lease>("work", "the second leads", leads("second")).await;
    // The Lease lapses, it is looked at, and the dead one has its time to say that it is there.
    let took = killed.elapsed();
    assert!(took > Duration::from_secs(12) && took < Duration::from_secs(15 + 5 + 5 + 3), "{took:?}");
    cluster.server.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn a_candidate_is_the_same_in_both_versions() {
    let cluster = Cluster::start("CoordinatedLeaderElection=true").await;
    let of = |version| Resource {
        gvr: GroupVersionResource::from_static("coordination.k8s.io", version, "leasecandidates"),
        namespaced: true,
    };
    let candidate = json!({
        "apiVersion": "coordination.k8s.io/v1alpha2", "kind": "LeaseCandidate", "metadata": {"name": "c"},
        "spec": {"leaseName": "l", "binaryVersion": "1.36.0", "emulationVersion": "1.36.0",
            "strategy": "OldestEmulationVersion"},
    });
    let made = cluster.client.create_value(&of("v1alpha2"), "default", None, &candidate).await.unwrap();
    let read = cluster.client.get_value(&of("v1beta1"), "default", "c").await.unwrap();
    assert_eq!(made["apiVersion"], "coordination.k8s.io/v1alpha2");
    assert_eq!(read["apiVersion"], "coordination.k8s.io/v1beta1");
    assert_eq!((&made["spec"], &made["metadata"]["uid"]), (&read["spec"], &read["metadata"]["uid"]));
    assert_eq!(made["spec"], candidate["spec"]);
    let patch = json!({"spec": {"leaseName": "other"}});
    let patched =
        cluster.client.patch_value(&of("v1alpha2"), "default", "c", None, PatchType::Merge, &patch).await;
    assert!(patched.unwrap_err().to_string().contains("field is immutable"));
    cluster.server.shutdown.cancel();
}

#[tokio::test(start_paused = true)]
async fn the_api_server_chooses_the_oldest_candidate_that_is_there() {
    let cluster = Cluster::start("CoordinatedLeaderElection=true").await;
    choose_leaders(&cluster);
    let holds = |who: &'static str| move |lease: &Value| lease["spec"]["holderIdentity"] == who;
    let new = CancellationToken::new();
    run_candidate(&cluster, "new", &new);
    until_there_is_a_lease(&cluster).await;
    cluster.until::<Lease>("work", "the only one leads", leads("new")).await;
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
