//! What a request leaves in the audit log, from end to end.

use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::*;
use crate::handle::{ApiServer, Peer, RequestBody};
use crate::seams::{AdmissionRequest, Admit};
use crate::testing;

/// Keeps the events, or has no room for them.
#[derive(Default)]
struct Kept {
    events: Mutex<Vec<Value>>,
    full: bool,
}

#[async_trait]
impl Sink for Kept {
    async fn write(&self, event: &Event) -> bool {
        self.write_late(event);
        !self.full
    }

    fn write_late(&self, event: &Event) {
        self.events.lock().unwrap().push(serde_json::to_value(event).unwrap());
    }
}

impl Kept {
    fn take(&self) -> Vec<Value> {
        std::mem::take(&mut self.events.lock().unwrap())
    }

    /// Waits for the last line of a request that has gone.
    async fn until(&self, stage: &str) -> Vec<Value> {
        for _ in 0..200 {
            let is_there = self.events.lock().unwrap().iter().any(|event| event["stage"] == stage);
            if is_there {
                return self.take();
            }
            tokio::task::yield_now().await;
        }
        panic!("no line of {stage} came");
    }
}

/// Says something about all that it admits.
struct Talks;

#[async_trait]
impl Admit for Talks {
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        request.annotations.push(Annotation::new("example.com/said", "yes"));
        let detail =
            Annotation { from: Level::RequestResponse, ..Annotation::new("example.com/detail", "all") };
        request.annotations.push(detail);
        Ok(())
    }

    async fn validate(&self, _: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }
}

async fn server(policy: &str, full: bool) -> (Arc<ApiServer>, Arc<Kept>) {
    let kept = Arc::new(Kept { full, ..Default::default() });
    let text = format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{policy}");
    let (policy, _) = Policy::parse(text.as_bytes()).unwrap();
    let mut config = testing::config();
    config.audit = Some(Auditor { policy: Arc::new(policy), sink: kept.clone() });
    config.admit = Arc::new(Talks);
    let store = Arc::new(storage::memory::Memory::new());
    (testing::server_with(store, config).await, kept)
}

async fn send(
    server: &Arc<ApiServer>,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> crate::body::Response {
    let mut request = Request::builder().method(method).uri(path).header("user-agent", "tester");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let user = UserInfo { name: "jane".into(), groups: vec!["dev".into()], ..Default::default() };
    server.handle(request.body(RequestBody::Ready(body)).unwrap(), Peer::Local(user)).await
}

fn config_map(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "b"},
        "metadata": {"name": name, "managedFields": [{"manager": "x"}]},
    })
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[tokio::test]
async fn a_line_says_who_asked_for_what_and_what_came_of_it() {
    let (server, kept) = server("rules: [{level: Metadata}]", false).await;
    let answer = send(&server, "POST", CONFIG_MAPS, &[("audit-id", "mine")], &config_map("one")).await;
    assert_eq!(answer.headers()["audit-id"], "mine");
    let events = kept.take();
    let stages: Vec<_> = events.iter().map(|event| event["stage"].as_str().unwrap()).collect();
    assert_eq!(stages, ["RequestReceived", "ResponseComplete"]);
    assert_eq!(
        events[1],
        json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": "mine",
            "stage": "ResponseComplete", "requestURI": CONFIG_MAPS, "verb": "create",
            "user": {"username": "jane", "groups": ["dev"]}, "sourceIPs": ["127.0.0.1"], "userAgent": "tester",
            "objectRef": {"resource": "configmaps", "namespace": "default", "name": "one", "apiVersion": "v1"},
            "responseStatus": {"metadata": {}, "code": 201},
            "requestReceivedTimestamp": "2023-11-14T22:13:20.000000Z",
            "stageTimestamp": "2023-11-14T22:13:20.000000Z",
            "annotations": {
                "authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": "",
                "example.com/said": "yes",
            },
        })
    );
    send(&server, "GET", &format!("{CONFIG_MAPS}/two"), &[], &Value::Null).await;
    let missing = kept.take().pop().unwrap();
    assert_eq!(
        missing["responseStatus"],
        json!({
            "metadata": {}, "status": "Failure", "message": "configmaps \"two\" not found", "reason": "NotFound",
            "details": {"name": "two", "kind": "configmaps"}, "code": 404,
        })
    );
}

#[tokio::test]
async fn levels_say_how_much_is_told() {
    let (server, kept) = server(
        "omitStages: [RequestReceived]\nomitManagedFields: true\n\
         rules: [{level: Request, verbs: [create, patch]}, {level: RequestResponse}]",
        false,
    )
    .await;
    send(&server, "POST", CONFIG_MAPS, &[], &config_map("one")).await;
    let created = kept.take();
    assert_eq!(created.len(), 1, "{created:?}");
    assert_eq!(created[0]["requestObject"]["data"], json!({"a": "b"}));
    assert_eq!(created[0]["requestObject"]["metadata"], json!({"name": "one"}));
    assert_eq!(created[0].get("responseObject"), None);
    assert_eq!(created[0]["annotations"].get("example.com/detail"), None);
    let path = format!("{CONFIG_MAPS}/one");
    let patch = json!({"data": {"a": "c"}});
    send(&server, "PATCH", &path, &[("content-type", "application/merge-patch+json")], &patch).await;
    assert_eq!(kept.take()[0]["requestObject"], patch);
    for accept in ["application/json", "application/vnd.kubernetes.protobuf"] {
        send(&server, "GET", CONFIG_MAPS, &[("accept", accept)], &Value::Null).await;
        let listed = &kept.take()[0]["responseObject"];
        assert_eq!(listed["items"][0]["data"], json!({"a": "c"}), "{accept}: {listed}");
        assert_eq!(listed["items"][0]["metadata"].get("managedFields"), None);
    }
    send(&server, "DELETE", &path, &[], &json!({"gracePeriodSeconds": 0})).await;
    let deleted = &kept.take()[0];
    assert_eq!(deleted["requestObject"], json!({"gracePeriodSeconds": 0}));
    assert_eq!(deleted["responseStatus"]["status"], "Success");
    assert_eq!(deleted["annotations"]["example.com/detail"], "all");
}

#[tokio::test]
async fn what_lasts_is_noted_when_it_begins_and_when_it_ends() {
    let (server, kept) = server("rules: [{level: Metadata}]", false).await;
    let answer = send(&server, "GET", &format!("{CONFIG_MAPS}?watch=1"), &[], &Value::Null).await;
    let stages = |events: &[Value]| events.iter().map(|event| event["stage"].clone()).collect::<Vec<_>>();
    assert_eq!(stages(&kept.take()), ["RequestReceived", "ResponseStarted"]);
    drop(answer);
    let events = kept.until("ResponseComplete").await;
    assert_eq!(events[0]["responseStatus"], json!({"metadata": {}, "code": 200}));
    // A client that does not wait.
    let asked = send(&server, "GET", "/version", &[], &Value::Null);
    drop(tokio::time::timeout(Duration::ZERO, asked).await);
    kept.until("ResponseComplete").await;
}

#[tokio::test]
async fn a_log_without_room_fails_requests() {
    let (server, _kept) = server("rules: [{level: Metadata}]", true).await;
    let answer = send(&server, "GET", CONFIG_MAPS, &[], &Value::Null).await;
    assert_eq!(answer.status(), 500);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("failed to store audit event"));
}

#[test]
fn sources_are_those_that_proxies_tell_and_the_peer() {
    let peer: IpAddr = "192.0.2.9".parse().unwrap();
    for (headers, wanted) in [
        (&[][..], &["192.0.2.9"][..]),
        (&[("x-forwarded-for", "10.0.0.1, x, 10.0.0.2")], &["10.0.0.1", "10.0.0.2", "192.0.2.9"]),
        (&[("x-real-ip", "10.0.0.1")], &["10.0.0.1", "192.0.2.9"]),
        (&[("x-forwarded-for", "192.0.2.9")], &["192.0.2.9"]),
    ] {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(http::HeaderName::from_static(name), value.parse().unwrap());
        }
        assert_eq!(source_ips(&map, peer), wanted, "{headers:?}");
    }
}

#[test]
fn what_was_tried_to_log_in_with_is_told() {
    for (header, certificate, wanted) in [
        ("", false, "Authentication failed, no credentials provided"),
        ("Bearer abc", false, "Authentication failed, attempted: bearer"),
        ("bearer", true, "Authentication failed, attempted: x509"),
        ("Basic abc", true, "Authentication failed, attempted: basic, x509"),
    ] {
        let request = Request::builder().uri("/x").header("authorization", header).body(()).unwrap();
        let (parts, ()) = request.into_parts();
        assert_eq!(authentication_attempted(&parts, certificate), wanted);
    }
}

#[test]
fn the_older_form_is_one_sentence() {
    let event = Event {
        audit_id: "id".into(),
        stage: "ResponseComplete",
        verb: "get".into(),
        request_uri: "/api".into(),
        request_received_timestamp: "T".into(),
        ..Default::default()
    };
    assert_eq!(
        String::from_utf8(event.legacy_line()).unwrap(),
        "T AUDIT: id=\"id\" stage=\"ResponseComplete\" ip=\"<unknown>\" method=\"get\" user=\"<none>\" \
         groups=\"<none>\" as=\"<self>\" asgroups=\"<lookup>\" user-agent=\"\" namespace=\"<none>\" uri=\"/api\" \
         response=\"<deferred>\"\n"
    );
}
