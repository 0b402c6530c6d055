//! The API over memory storage, asked as clients ask it: over HTTP requests, without the sockets.

#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use apiserver::ApiServer;
use apiserver::body::Body;
use apiserver::bootstrap::loopback_user;
use apiserver::handle::{Peer, RequestBody};
use apiserver::testing;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};

struct Api(Arc<ApiServer>);

struct Answer {
    code: u16,
    headers: http::HeaderMap,
    bytes: Bytes,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes)
            .unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&self.bytes)))
    }

    fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Api {
    async fn new() -> Self {
        let server = testing::server().await;
        server.bootstrap(Vec::new()).await.unwrap();
        Api(server)
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(RequestBody::Ready(body.into())).unwrap();
        let response = self.0.handle(request, Peer::Local(loopback_user())).await;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    async fn post(&self, path: &str, object: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], object.to_string()).await
    }

    async fn put(&self, path: &str, object: &Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], object.to_string()).await
    }

    async fn patch(&self, path: &str, kind: &str, patch: &Value) -> Answer {
        let content_type = format!("application/{kind}+json");
        self.send("PATCH", path, &[("content-type", &content_type)], patch.to_string()).await
    }

    async fn watch(&self, path: &str) -> Watch {
        let request = Request::builder().uri(path).body(RequestBody::Ready(Bytes::new())).unwrap();
        let response = self.0.handle(request, Peer::Local(loopback_user())).await;
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body(), lines: Default::default() }
    }
}

struct Watch {
    body: Body,
    lines: std::collections::VecDeque<Value>,
}

impl Watch {
    async fn next(&mut self) -> Value {
        while self.lines.is_empty() {
            let frame =
                tokio::time::timeout(std::time::Duration::from_secs(5), self.body.frame()).await.unwrap();
            let data = frame.unwrap().unwrap().into_data().unwrap();
            let text = String::from_utf8(data.to_vec()).unwrap();
            self.lines.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
        self.lines.pop_front().unwrap()
    }

    /// `ADDED name`
    async fn line(&mut self) -> String {
        let event = self.next().await;
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or("-").to_owned();
        format!("{} {name}", event["type"].as_str().unwrap())
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
    })
}

const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn an_object_is_created_read_changed_and_deleted() {
    let api = Api::new().await;
    let created = api.post(MAPS, &map("m")).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let object = created.json();
    for field in ["uid", "creationTimestamp", "resourceVersion", "namespace"] {
        assert!(object["metadata"][field].is_string(), "{field}");
    }
    let path = format!("{MAPS}/m");
    assert_eq!(api.get(&path).await.json(), object);

    let mut changed = object.clone();
    changed["data"]["a"] = "2".into();
    let updated = api.put(&path, &changed).await;
    assert_eq!((updated.code, &updated.json()["data"]["a"]), (200, &json!("2")));
    let again = api.put(&path, &changed).await;
    assert_eq!(again.code, 409);
    assert_eq!(
        again.message(),
        "Operation cannot be fulfilled on configmaps \"m\": the object has been modified; please apply your \
         changes to the latest version and try again"
    );
    let unchanged = api.patch(&path, "merge-patch", &json!({"data": {"a": "2"}})).await;
    assert_eq!(
        unchanged.json()["metadata"]["resourceVersion"],
        updated.json()["metadata"]["resourceVersion"]
    );

    let deleted = api.send("DELETE", &path, &[], "").await;
    assert_eq!((deleted.code, &deleted.json()["status"]), (200, &json!("Success")));
    assert_eq!(api.get(&path).await.message(), "configmaps \"m\" not found");
}

#[tokio::test]
async fn refusals_are_in_upstreams_words() {
    let api = Api::new().await;
    api.post(MAPS, &map("m")).await;
    let json = ("content-type", "application/json");
    type Case<'c> = (&'c str, &'c str, &'c [(&'c str, &'c str)], String, u16, &'c str);
    let cases: &[Case] = &[
        ("POST", MAPS, &[json], map("m").to_string(), 409, "configmaps \"m\" already exists"),
        (
            "GET",
            "/api/v1/namespaces/default/nothings",
            &[],
            String::new(),
            404,
            "the server could not find the requested resource",
        ),
        (
            "PUT",
            MAPS,
            &[json],
            map("m").to_string(),
            405,
            "the server does not allow this method on the requested resource",
        ),
        (
            "DELETE",
            "/api/v1/configmaps",
            &[],
            String::new(),
            405,
            "the server does not allow this method on the requested resource",
        ),
        (
            "GET",
            MAPS,
            &[("accept", "text/html")],
            String::new(),
            406,
            "406: Not Acceptable

Available representations: application/json, application/yaml, \
             application/vnd.kubernetes.protobuf, application/json;stream=watch, \
             application/vnd.kubernetes.protobuf;stream=watch",
        ),
        (
            "POST",
            MAPS,
            &[("content-type", "text/plain")],
            "x".into(),
            415,
            "the body of the request was in an unknown format - accepted media types include: application/json, \
             application/yaml, application/vnd.kubernetes.protobuf",
        ),
        (
            "PATCH",
            "/api/v1/namespaces/default/configmaps/m",
            &[json],
            "{}".into(),
            415,
            "415: Unsupported Media Type",
        ),
        (
            "POST",
            MAPS,
            &[json],
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "Bad_"}}).to_string(),
            422,
            "ConfigMap \"Bad_\" is invalid: metadata.name: Invalid value: \"Bad_\": a lowercase RFC 1123 subdomain must \
             consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric \
             character (e.g. 'example.com', regex used for validation is \
             '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ),
        (
            "POST",
            MAPS,
            &[json],
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": "o"}})
                .to_string(),
            400,
            "the namespace of the provided object does not match the namespace sent on the request",
        ),
        (
            "PUT",
            "/api/v1/namespaces/default/configmaps/m",
            &[json],
            map("other").to_string(),
            400,
            "the name of the object (other) does not match the name on the URL (m)",
        ),
        (
            "PUT",
            "/api/v1/namespaces/default/configmaps/m",
            &[json],
            json!({"apiVersion": "v1", "kind": "ConfigMap"}).to_string(),
            400,
            "the name of the object (m based on URL) was undeterminable: name must be provided",
        ),
        (
            "POST",
            "/api/v1/namespaces/default/configmaps?fieldValidation=Strict",
            &[json],
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "foo": 1}).to_string(),
            400,
            "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"foo\"",
        ),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps?fieldSelector=a%3Db",
            &[],
            String::new(),
            400,
            "\"a\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
        ),
        (
            "GET",
            "/api/v1/namespaces/default/configmaps?continue=x",
            &[],
            String::new(),
            400,
            "invalid continue token: continue key is not valid: illegal base64 data at input byte 0",
        ),
        (
            "POST",
            MAPS,
            &[json],
            "x".repeat(apiserver::handle::MAX_BODY_BYTES + 1),
            413,
            "Request entity too large: limit is 3145728",
        ),
        (
            "POST",
            MAPS,
            &[json],
            "{\"metadata\"".into(),
            400,
            "the object provided is unrecognized (must be of type ConfigMap): couldn't get version/kind; json parse error: unexpected end of JSON input ({\"metadata\")",
        ),
        (
            "POST",
            MAPS,
            &[json],
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}).to_string(),
            400,
            "Secret in version \"v1\" cannot be handled as a ConfigMap: converting (v1.Secret) to (core.ConfigMap): \
             unknown conversion",
        ),
    ];
    for (method, path, headers, body, code, message) in cases {
        let answer = api.send(method, path, headers, body.clone()).await;
        assert_eq!((answer.code, answer.message().as_str()), (*code, *message), "{method} {path}");
        let status = answer.json();
        assert_eq!(
            (&status["kind"], &status["status"], &status["code"]),
            (&json!("Status"), &json!("Failure"), &json!(code))
        );
    }
}

#[tokio::test]
async fn where_there_is_no_api_the_answer_is_text() {
    let api = Api::new().await;
    for path in ["/nowhere", "/apis/none/v1/things"] {
        let answer = api.get(path).await;
        assert_eq!((answer.code, &*answer.bytes), (404, &b"404 page not found\n"[..]), "{path}");
    }
}

#[tokio::test]
async fn those_without_credentials_see_health_only() {
    let api = Api::new().await;
    let peer = || Peer::Remote { certificates: [].into(), address: ([127, 0, 0, 1], 1).into() };
    let ask = |path: &'static str| {
        let request = Request::builder().uri(path).body(RequestBody::Ready(Bytes::new())).unwrap();
        api.0.handle(request, peer())
    };
    assert_eq!(ask("/readyz").await.status(), 200);
    assert_eq!(ask("/version").await.status(), 200);
    let refused = ask("/api/v1/namespaces/default/pods").await;
    assert_eq!(refused.status(), 403);
    let body = refused.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        status["message"],
        "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the \
         namespace \"default\""
    );
}

#[tokio::test]
async fn a_watch_tells_what_happened_after_a_list() {
    let api = Api::new().await;
    let list = api.get(MAPS).await.json();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watch = api.watch(&format!("{MAPS}?watch=true&resourceVersion={version}")).await;
    let mut selected =
        api.watch(&format!("{MAPS}?watch=true&resourceVersion={version}&labelSelector=x%3Dy")).await;
    api.post(MAPS, &map("m")).await;
    let path = format!("{MAPS}/m");
    api.patch(&path, "merge-patch", &json!({"metadata": {"labels": {"x": "y"}}})).await;
    api.patch(&path, "merge-patch", &json!({"data": {"b": "2"}})).await;
    api.patch(&path, "merge-patch", &json!({"metadata": {"labels": {"x": null}}})).await;
    api.send("DELETE", &path, &[], "").await;
    let mut lines = Vec::new();
    for _ in 0..5 {
        lines.push(watch.line().await);
    }
    assert_eq!(lines, ["ADDED m", "MODIFIED m", "MODIFIED m", "MODIFIED m", "DELETED m"]);
    let (added, modified, gone) = (selected.next().await, selected.next().await, selected.next().await);
    assert_eq!([&added["type"], &modified["type"], &gone["type"]], ["ADDED", "MODIFIED", "DELETED"]);
    assert_eq!(gone["object"]["metadata"]["labels"], json!({"x": "y"}));
    let version = |event: &Value| {
        event["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap()
    };
    assert!(version(&added) < version(&modified) && version(&modified) < version(&gone));
}

#[tokio::test]
async fn a_streaming_list_ends_with_its_bookmark() {
    let api = Api::new().await;
    api.post(PODS, &pod("a")).await;
    api.post(PODS, &pod("b")).await;
    let query =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = api.watch(&format!("{PODS}?{query}")).await;
    assert_eq!([watch.line().await, watch.line().await], ["ADDED a", "ADDED b"]);
    let bookmark = watch.next().await;
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    api.post(PODS, &pod("c")).await;
    assert_eq!(watch.line().await, "ADDED c");
    let refused = api.get(&format!("{PODS}?watch=true&sendInitialEvents=true")).await;
    assert_eq!(refused.code, 422);
}

#[tokio::test]
async fn pages_are_of_one_revision() {
    let api = Api::new().await;
    for name in ["a", "b", "c", "d", "e"] {
        api.post(PODS, &pod(name)).await;
    }
    let names = |list: &Value| -> Vec<String> {
        let items = list["items"].as_array().unwrap().iter();
        items.map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
    };
    let first = api.get(&format!("{PODS}?limit=2")).await.json();
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["a".into(), "b".into()], &json!(3))
    );
    api.post(PODS, &pod("c1")).await;
    api.patch(&format!("{PODS}/d"), "merge-patch", &json!({"metadata": {"labels": {"late": "yes"}}})).await;
    let next = first["metadata"]["continue"].as_str().unwrap();
    let second = api.get(&format!("{PODS}?limit=2&continue={next}")).await.json();
    assert_eq!(
        (names(&second), &second["metadata"]["remainingItemCount"]),
        (vec!["c".into(), "d".into()], &json!(1))
    );
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    assert!(second["items"][1]["metadata"]["labels"]["late"].is_null());
    let next = second["metadata"]["continue"].as_str().unwrap().to_owned();
    let third = api.get(&format!("{PODS}?limit=2&continue={next}")).await.json();
    assert_eq!((names(&third), &third["metadata"]["continue"]), (vec!["e".into()], &Value::Null));

    let revision = api.0.registry.progress();
    api.0.registry.store().compact(revision).await.unwrap();
    let expired = api.get(&format!("{PODS}?limit=2&continue={next}")).await;
    assert_eq!((expired.code, &expired.json()["reason"]), (410, &json!("Expired")));
    let next = expired.json()["metadata"]["continue"].as_str().unwrap().to_owned();
    let rest = api.get(&format!("{PODS}?limit=2&continue={next}")).await;
    assert_eq!(names(&rest.json()), ["e"], "{}", rest.message());

    // Nor does a token outlive the history when nothing of its kind has changed.
    let unchanged = api.get(&format!("{PODS}?limit=2")).await.json();
    let next = unchanged["metadata"]["continue"].as_str().unwrap();
    let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    assert_eq!(api.post(&PODS.replace("pods", "configmaps"), &other).await.code, 201);
    let path = format!("{PODS}?limit=2&continue={next}");
    assert_eq!(api.get(&path).await.code, 200);
    api.0.registry.store().compact(api.0.registry.progress()).await.unwrap();
    assert_eq!(api.get(&path).await.code, 410);
}

#[tokio::test]
async fn a_running_pod_is_deleted_by_its_kubelet() {
    let api = Api::new().await;
    let created = api.post(PODS, &pod("p")).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let path = format!("{PODS}/p");
    let deleted = api.send("DELETE", &path, &[], "").await.json();
    assert_eq!(deleted["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(deleted["metadata"]["deletionTimestamp"], "2023-11-14T22:13:50Z");
    let now = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0});
    let gone = api.send("DELETE", &path, &[("content-type", "application/json")], now.to_string()).await;
    assert_eq!(gone.code, 200);
    assert_eq!(api.get(&path).await.code, 404);
}

/// What is marked to be removed now may be removed by others before the call that marked it comes to do so.
#[tokio::test]
async fn a_deletion_that_others_finish_is_done() {
    let api = Api::new().await;
    let now = json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}).to_string();
    for round in 0..20 {
        let name = format!("p{round}");
        assert_eq!(api.post(PODS, &pod(&name)).await.code, 201);
        let path = format!("{PODS}/{name}");
        let delete = || api.send("DELETE", &path, &[("content-type", "application/json")], now.clone());
        let collector = async {
            loop {
                let seen = api.get(&path).await;
                if seen.code == 404 {
                    return;
                }
                if seen.json()["metadata"]["deletionTimestamp"].is_string() {
                    delete().await;
                }
                tokio::task::yield_now().await;
            }
        };
        let (deleted, ()) = tokio::join!(delete(), collector);
        assert_eq!(deleted.code, 200, "{}", deleted.message());
    }
}

#[tokio::test]
async fn finalizers_hold_an_object() {
    let api = Api::new().await;
    let mut held = map("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.post(MAPS, &held).await;
    let path = format!("{MAPS}/held");
    let deleted = api.send("DELETE", &path, &[], "").await.json();
    assert!(deleted["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(deleted["metadata"]["deletionGracePeriodSeconds"], 0);
    let freed = api.patch(&path, "merge-patch", &json!({"metadata": {"finalizers": null}})).await;
    assert_eq!(freed.code, 200, "{}", freed.message());
    assert_eq!(api.get(&path).await.code, 404);

    api.post(MAPS, &map("parent")).await;
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground"});
    let path = format!("{MAPS}/parent");
    let waiting =
        api.send("DELETE", &path, &[("content-type", "application/json")], options.to_string()).await.json();
    assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test]
async fn a_namespace_is_emptied_before_it_goes() {
    let api = Api::new().await;
    let path = "/api/v1/namespaces/x";
    let created = api
        .post(
            "/api/v1/namespaces",
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x"}}),
        )
        .await;
    assert_eq!(created.json()["spec"]["finalizers"], json!(["kubernetes"]), "{}", created.message());
    let deleted = api.send("DELETE", path, &[], "").await.json();
    assert_eq!(deleted["status"]["phase"], "Terminating");
    let mut finalized = api.get(path).await.json();
    finalized["spec"]["finalizers"] = json!([]);
    let answer = api.put(&format!("{path}/finalize"), &finalized).await;
    assert_eq!(answer.code, 200, "{}", answer.message());
    assert_eq!(api.get(path).await.code, 404);
}

#[tokio::test]
async fn workloads_have_scale_and_status_and_generations() {
    let api = Api::new().await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]},
        }},
    });
    let created = api.post(path, &deployment).await;
    assert_eq!(created.code, 201, "{}", created.message());
    assert_eq!(created.json()["metadata"]["generation"], 1);
    let path = format!("{path}/d");
    let scale = api.get(&format!("{path}/scale")).await.json();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["selector"]), (&json!(1), &json!("a=b")));
    let scaled = api.patch(&format!("{path}/scale"), "merge-patch", &json!({"spec": {"replicas": 4}})).await;
    assert_eq!((scaled.code, &scaled.json()["spec"]["replicas"]), (200, &json!(4)), "{}", scaled.message());
    let object = api.get(&path).await.json();
    assert_eq!((&object["spec"]["replicas"], &object["metadata"]["generation"]), (&json!(4), &json!(2)));
    let status = json!({"status": {"replicas": 4, "observedGeneration": 2}, "spec": {"replicas": 9}});
    let patched = api.patch(&format!("{path}/status"), "strategic-merge-patch", &status).await.json();
    assert_eq!((&patched["status"]["replicas"], &patched["spec"]["replicas"]), (&json!(4), &json!(4)));
    assert_eq!(patched["metadata"]["generation"], 2);
}

#[tokio::test]
async fn pods_are_bound_once() {
    let api = Api::new().await;
    let mut unbound = pod("p");
    unbound["spec"].as_object_mut().unwrap().remove("nodeName");
    api.post(PODS, &unbound).await;
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n2"}});
    let bound = api.post(&format!("{PODS}/p/binding"), &binding).await;
    assert_eq!(bound.code, 201, "{}", bound.message());
    let object = api.get(&format!("{PODS}/p")).await.json();
    assert_eq!(object["spec"]["nodeName"], "n2");
    assert_eq!(object["status"]["conditions"][0]["type"], "PodScheduled");
    let again = api.post(&format!("{PODS}/p/binding"), &binding).await;
    assert_eq!((again.code, again.message().contains("already assigned to node")), (409, true));
    let one = api.get(&format!("{PODS}?fieldSelector=spec.nodeName%3Dn2")).await.json();
    assert_eq!(one["items"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn services_get_addresses() {
    let api = Api::new().await;
    let path = "/api/v1/namespaces/default/services";
    let kubernetes = api.get(&format!("{path}/kubernetes")).await.json();
    assert_eq!(kubernetes["spec"]["clusterIP"], "10.43.0.1");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80}]},
    });
    let created = api.post(path, &service).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let spec = &created.json()["spec"];
    assert!(spec["clusterIP"].as_str().unwrap().starts_with("10.43."));
    assert!((30000..=32767).contains(&spec["ports"][0]["nodePort"].as_u64().unwrap()));
    let mut other = service.clone();
    other["metadata"]["name"] = "t".into();
    other["spec"]["clusterIP"] = spec["clusterIP"].clone();
    let refused = api.post(path, &other).await;
    assert!(
        refused.code == 422 && refused.message().contains("provided IP is already allocated"),
        "{}",
        refused.message()
    );
}

#[tokio::test]
async fn objects_come_in_every_form() {
    let api = Api::new().await;
    api.post(PODS, &pod("p")).await;
    let path = format!("{PODS}/p");
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let listed = api.send("GET", PODS, &table, "").await.json();
    assert_eq!((&listed["kind"], &listed["rows"][0]["cells"][0]), (&json!("Table"), &json!("p")));
    assert_eq!(listed["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let yaml = api.send("GET", &path, &[("accept", "application/yaml")], "").await;
    assert!(String::from_utf8_lossy(&yaml.bytes).contains("kind: Pod"));
    let protobuf = [("accept", "application/vnd.kubernetes.protobuf, */*")];
    let one = api.send("GET", &path, &protobuf, "").await;
    assert!(one.bytes.starts_with(b"k8s\0"), "{}", String::from_utf8_lossy(&one.bytes));
    let list = api.send("GET", PODS, &protobuf, "").await;
    assert!(list.bytes.starts_with(b"k8s\0"));
    let content = [("content-type", "application/vnd.kubernetes.protobuf")];
    api.send("DELETE", &format!("{path}?gracePeriodSeconds=0"), &[], "").await;
    let back = api.send("POST", PODS, &content, one.bytes).await;
    assert_eq!(
        back.code, 500,
        "an object with a resourceVersion is not created, which upstream has no word for"
    );
    let metadata = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let partial = api.send("GET", MAPS, &metadata, "").await.json();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(api.send("HEAD", &path, &[], "").await.bytes.len(), 0);
}

#[tokio::test]
async fn apply_owns_what_it_sets() {
    let api = Api::new().await;
    let path = format!("{MAPS}/applied?fieldManager=one");
    let content = [("content-type", "application/apply-patch+yaml")];
    let body = |value: &str| {
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: applied\ndata:\n  k: {value}\n")
    };
    let created = api.send("PATCH", &path, &content, body("a")).await;
    assert_eq!((created.code, &created.json()["data"]["k"]), (201, &json!("a")), "{}", created.message());
    let conflict = api.send("PATCH", &format!("{MAPS}/applied?fieldManager=two"), &content, body("b")).await;
    assert_eq!(conflict.code, 409, "{}", conflict.message());
    let forced =
        api.send("PATCH", &format!("{MAPS}/applied?fieldManager=two&force=true"), &content, body("b")).await;
    assert_eq!((forced.code, &forced.json()["data"]["k"]), (200, &json!("b")), "{}", forced.message());
}

#[tokio::test]
async fn names_are_generated_and_dry_runs_leave_nothing() {
    let api = Api::new().await;
    let mut object = map("x");
    object["metadata"] = json!({"generateName": "gen-"});
    let name = api.post(MAPS, &object).await.json()["metadata"]["name"].as_str().unwrap().to_owned();
    assert!(name.starts_with("gen-") && name.len() == 9, "{name}");
    let dry = api.post(&format!("{MAPS}?dryRun=All"), &map("dry")).await;
    assert_eq!(dry.code, 201);
    assert_eq!(api.get(&format!("{MAPS}/dry")).await.code, 404);
    let warned = api
        .post(MAPS, &json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "w"}, "foo": 1}))
        .await;
    assert_eq!(warned.code, 201);
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"foo\\\"\"");
    let gone = api.send("DELETE", MAPS, &[], "").await;
    assert_eq!(gone.code, 200, "{}", gone.message());
    assert_eq!(api.get(MAPS).await.json()["items"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn events_are_one_thing_in_two_groups() {
    let api = Api::new().await;
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"}, "message": "m", "reason": "R",
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}, "type": "Normal",
    });
    let created = api.post("/api/v1/namespaces/default/events", &event).await;
    assert_eq!(created.code, 201, "{}", created.message());
    let other = api.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.json();
    assert_eq!((&other["note"], &other["apiVersion"]), (&json!("m"), &json!("events.k8s.io/v1")));
    let list = api.get("/apis/events.k8s.io/v1/namespaces/default/events").await.json();
    assert_eq!(list["items"][0]["regarding"]["name"], "p");
}

#[tokio::test]
async fn discovery_and_openapi_answer() {
    let api = Api::new().await;
    for path in [
        "/api",
        "/apis",
        "/api/v1",
        "/apis/apps",
        "/apis/apps/v1",
        "/openapi/v2",
        "/openapi/v3",
        "/version",
        "/metrics",
        "/openapi/v3/apis/apps/v1",
        "/livez?verbose",
        "/readyz/ping",
    ] {
        assert_eq!(api.get(path).await.code, 200, "{path}");
    }
    let accept =
        [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json")];
    assert_eq!(api.send("GET", "/apis", &accept, "").await.json()["kind"], "APIGroupDiscoveryList");
    let tag = api.get("/openapi/v2").await.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(api.send("GET", "/openapi/v2", &[("if-none-match", &tag)], "").await.code, 304);
}

#[tokio::test]
async fn access_reviews_are_answered() {
    let api = Api::new().await;
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}},
    });
    let answer = api.post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", &review).await;
    assert_eq!(
        (answer.code, &answer.json()["status"]["allowed"]),
        (201, &json!(true)),
        "{}",
        answer.message()
    );
    let who = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let answer = api.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &who).await.json();
    assert_eq!(answer["status"]["userInfo"]["username"], "system:apiserver");
}

/// With the real authorizer and admission chain, a cluster starts, and only those who may do.
#[tokio::test]
async fn a_cluster_starts_with_its_roles() {
    use apiserver::seams::{Lookup, UserInfo};
    let store = Arc::new(storage::memory::Memory::new());
    let shutdown = tokio_util::sync::CancellationToken::new();
    let registry = apiserver::Registry::new(store, resources::table().to_vec()).await.unwrap();
    let lookup: Arc<dyn Lookup> = registry.clone();
    let mut config = testing::config();
    let authorizer = Arc::new(apiserver::authz::Authorizer::new(lookup.clone()));
    config.authorize = authorizer.clone();
    config.admit = Arc::new(apiserver::admission::Chain::new(lookup, authorizer, config.random.clone()));
    let server = ApiServer::new(registry.clone(), config, shutdown.clone());
    server.tasks.spawn(async move { registry.run(shutdown).await.unwrap() });
    server.bootstrap(apiserver::authz::bootstrap_objects()).await.unwrap();
    let ask = |user: &str, groups: &[&str], path: &'static str| {
        let groups = groups.iter().map(|g| (*g).to_owned()).collect();
        let user = UserInfo { name: user.into(), groups, ..Default::default() };
        let request = Request::builder().uri(path).body(RequestBody::Ready(Bytes::new())).unwrap();
        let server = server.clone();
        async move { server.handle(request, Peer::Local(user)).await.status().as_u16() }
    };
    let nodes = "/api/v1/nodes";
    assert_eq!(ask("admin", &["system:masters"], nodes).await, 200);
    assert_eq!(ask("system:kube-scheduler", &["system:authenticated"], nodes).await, 200);
    assert_eq!(ask("someone", &["system:authenticated"], nodes).await, 403);
    assert_eq!(ask("someone", &["system:authenticated"], "/apis").await, 200);
    assert_eq!(ask("system:anonymous", &["system:unauthenticated"], "/readyz").await, 200);
    assert_eq!(ask("system:anonymous", &["system:unauthenticated"], "/apis").await, 403);
}
