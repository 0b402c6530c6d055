//! Quotas: what is refused, what is charged, and who wins a race.

use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Client, Transport};
use serde_json::{Value, json};

use super::super::fake::{Case, Fake, chain};
use super::*;

/// Takes status writes into the lookup; the first few fail for a conflict.
struct Server {
    lookup: Arc<Fake>,
    conflicts: AtomicUsize,
}

#[async_trait]
impl Transport for Server {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, client::Error> {
        assert_eq!(request.uri().path(), "/api/v1/namespaces/shop/resourcequotas/q/status");
        let left = self.conflicts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        let (code, answer) = match left {
            Ok(_) => (409, Value::from(&Status::modified(&core("resourcequotas"), "q"))),
            Err(_) => {
                let quota: Value = serde_json::from_slice(request.body()).unwrap();
                self.lookup.put(quota.clone());
                (200, quota)
            }
        };
        let body = Body::Full(answer.to_string().into());
        Ok(http::Response::builder().status(code).body(body).unwrap())
    }
}

fn quota(hard: Value, used: Value, spec: Value) -> Value {
    object("ResourceQuota", "shop", "q", json!({"spec": spec, "status": {"hard": hard, "used": used}}))
}

fn charge(lookup: &Arc<Fake>, conflicts: usize, mut case: Case) -> Result<(), Status> {
    let chain = chain(lookup);
    let server = Server { lookup: lookup.clone(), conflicts: conflicts.into() };
    assert!(chain.client().set(Client::new(Arc::new(server), "test")).is_ok());
    case.run(|request| {
        futures::executor::block_on(chain.quota.charge(&**lookup, &Default::default(), request))
    })
}

fn used(lookup: &Fake) -> Value {
    lookup.get(&core("resourcequotas"), "shop", "q").unwrap()["status"]["used"].clone()
}

fn container(cpu: &str) -> Value {
    json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]})
}

#[test]
fn what_is_made_is_charged() {
    let claim = |size: &str| {
        let spec = json!({"storageClassName": "fast", "resources": {"requests": {"storage": size}}});
        object("PersistentVolumeClaim", "shop", "c", json!({"spec": spec}))
    };
    let service = |kind: &str| {
        let spec = json!({"type": kind, "ports": [{"port": 1}, {"port": 2}]});
        object("Service", "shop", "s", json!({"spec": spec}))
    };
    let deployment = object("Deployment", "shop", "d", json!({}));
    let fast = "fast.storageclass.storage.k8s.io/requests.storage";
    let cases = [
        (Case::create(pod("p", container("500m"))), json!({"pods": "2", "requests.cpu": "1500m"})),
        (Case::create(claim("1Gi")), json!({"requests.storage": "3Gi", fast: "1Gi"})),
        (Case::update(claim("1Gi"), claim("3Gi")), json!({"requests.storage": "4Gi", fast: "2Gi"})),
        (Case::update(claim("3Gi"), claim("1Gi")), json!({})),
        (Case::create(service("NodePort")), json!({"services": "1", "services.nodeports": "2"})),
        (Case::create(service("ClusterIP")), json!({"services": "1"})),
        (Case::create(deployment), json!({"count/deployments.apps": "1"})),
        (Case::create(object("Secret", "shop", "s", json!({}))), json!({"secrets": "1"})),
        (Case::create(object("ConfigMap", "shop", "s", json!({}))), json!({})),
    ];
    let start = json!({
        "pods": "1", "requests.cpu": "1", "requests.storage": "2Gi", fast: "0", "services": "0",
        "services.nodeports": "0", "count/deployments.apps": "0", "secrets": "0",
    });
    let hard: serde_json::Map<String, Value> =
        start.as_object().unwrap().keys().map(|key| (key.clone(), "100Gi".into())).collect();
    for (case, changes) in cases {
        let lookup = Fake::new([quota(hard.clone().into(), start.clone(), json!({}))]);
        charge(&lookup, 0, case).unwrap();
        let mut expected = start.clone();
        expected.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        assert_eq!(used(&lookup), expected);
    }
}

#[test]
fn what_is_too_much_is_refused() {
    let full = quota(
        json!({"pods": "3", "requests.cpu": "2"}),
        json!({"pods": "1", "requests.cpu": "1700m"}),
        json!({}),
    );
    let cases = [
        (
            full.clone(),
            container("400m"),
            "pods \"p\" is forbidden: exceeded quota: q, requested: requests.cpu=400m, used: requests.cpu=1700m, \
             limited: requests.cpu=2",
        ),
        (full.clone(), container("300m"), ""),
        (
            full,
            json!({"containers": [{"name": "b"}, {"name": "a"}]}),
            "pods \"p\" is forbidden: failed quota: q: must specify requests.cpu for: a,b",
        ),
        (
            quota(json!({"pods": "3"}), json!({}), json!({})),
            container("1"),
            "pods \"p\" is forbidden: status unknown for quota: q, resources: pods",
        ),
        (
            quota(json!({"pods": "0"}), json!({"pods": "0"}), json!({"scopes": ["BestEffort"]})),
            container("1"),
            "",
        ),
        (
            quota(json!({"pods": "0"}), json!({"pods": "0"}), json!({"scopes": ["NotBestEffort"]})),
            container("1"),
            "pods \"p\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=0, limited: pods=0",
        ),
        (quota(json!({"services": "0"}), json!({"services": "0"}), json!({})), container("1"), ""),
    ];
    for (quota, spec, expected) in cases {
        let refusal = charge(&Fake::new([quota]), 0, Case::create(pod("p", spec)));
        assert_eq!(refusal.err().map(|status| status.message).unwrap_or_default(), expected);
    }
}

#[test]
fn a_lost_race_is_run_again() {
    let lookup = Fake::new([quota(json!({"pods": "9"}), json!({"pods": "1"}), json!({}))]);
    charge(&lookup, 3, Case::create(pod("p", container("1")))).unwrap();
    assert_eq!(used(&lookup), json!({"pods": "2"}));
    let refusal = charge(&lookup, 4, Case::create(pod("p", container("1")))).unwrap_err();
    assert!(refusal.is_conflict());
    assert_eq!(used(&lookup), json!({"pods": "2"}));
}
