use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use api::core::v1::ConfigMap;
use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Client, Transport};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{Event, InformerFactory};

/// Answers by a script: what a query must hold, and what is answered.
struct Script(Mutex<VecDeque<(&'static str, Answer)>>);

enum Answer {
    Refuse(u16, &'static str),
    /// A whole body.
    Full(Value),
    /// Watch events; then the watch ends.
    Ends(Vec<Value>),
    /// Watch events; then the watch stays open.
    Stays(Vec<Value>),
}

#[async_trait]
impl Transport for Script {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Error> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let (expected, answer) = self.0.lock().unwrap().pop_front().expect("the script has an answer left");
        assert!(query.contains(expected), "{query} holds {expected}");
        let lines =
            |events: Vec<Value>| futures::stream::iter(events).map(|e| Ok(Bytes::from(format!("{e}\n"))));
        Ok(match answer {
            Answer::Refuse(code, reason) => {
                let body = json!({"kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code});
                http::Response::builder().status(code).body(Body::Full(body.to_string().into())).unwrap()
            }
            Answer::Full(body) => http::Response::new(Body::Full(body.to_string().into())),
            Answer::Ends(events) => http::Response::new(Body::Stream(Box::pin(lines(events)))),
            Answer::Stays(events) => {
                let open = lines(events).chain(futures::stream::pending());
                http::Response::new(Body::Stream(Box::pin(open)))
            }
        })
    }
}

fn map(name: &str, revision: u32) -> Value {
    json!({"metadata": {"namespace": "ns", "name": name, "uid": name, "resourceVersion": revision.to_string()}})
}

fn event(kind: &str, name: &str, revision: u32) -> Value {
    json!({"type": kind, "object": map(name, revision)})
}

fn end_of_list(revision: u32) -> Value {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": revision.to_string(), "annotations": annotations}}})
}

/// Runs the script to its end and compares what a handler heard.
async fn check(script: Vec<(&'static str, Answer)>, expected: &str) {
    let script = Arc::new(Script(Mutex::new(script.into())));
    let shutdown = CancellationToken::new();
    let factory = InformerFactory::new(Client::new(script.clone(), "test"), shutdown.clone());
    let informer = factory.informer::<ConfigMap>();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = heard.clone();
    informer.subscribe(move |event| {
        let kind = match event {
            Event::Added(_) => "+",
            Event::Updated { .. } => "~",
            Event::Deleted(_) => "-",
        };
        let object = event.object();
        log.lock().unwrap().push(format!("{kind}{}@{}", object.uid(), object.resource_version()));
    });
    factory.start();
    assert!(informer.synced().await);
    while !script.0.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(heard.lock().unwrap().join(" "), expected);
    shutdown.cancel();
    factory.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_streaming_list_becomes_a_watch_and_resumes() {
    check(
        vec![
            (
                "sendInitialEvents=true",
                Answer::Ends(vec![event("ADDED", "a", 1), end_of_list(5), event("MODIFIED", "a", 6)]),
            ),
            ("resourceVersion=6", Answer::Ends(vec![event("ADDED", "b", 7)])),
            ("resourceVersion=7", Answer::Stays(vec![event("DELETED", "a", 8)])),
        ],
        "+a@1 ~a@6 +b@7 -a@8",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_streams_no_lists_is_listed_in_pages() {
    let page = |items: Value, more: &str| json!({"metadata": {"resourceVersion": "9", "continue": more}, "items": items});
    check(
        vec![
            ("sendInitialEvents=true", Answer::Refuse(422, "Invalid")),
            ("limit=500", Answer::Full(page(json!([map("a", 1)]), "more"))),
            ("continue=more", Answer::Full(page(json!([map("b", 2)]), ""))),
            ("resourceVersion=9", Answer::Stays(vec![event("MODIFIED", "b", 10)])),
        ],
        "+a@1 +b@2 ~b@10",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn lost_history_is_listed_again_and_failures_are_retried() {
    let expired = json!({"type": "ERROR", "object": {"status": "Failure", "reason": "Expired", "code": 410, "message": "too old"}});
    check(
        vec![
            ("sendInitialEvents=true", Answer::Refuse(503, "ServiceUnavailable")),
            ("sendInitialEvents=true", Answer::Ends(vec![event("ADDED", "a", 1)])),
            ("sendInitialEvents=true", Answer::Ends(vec![event("ADDED", "a", 1), end_of_list(2), expired])),
            ("sendInitialEvents=true", Answer::Stays(vec![event("ADDED", "b", 3), end_of_list(4)])),
        ],
        "+a@1 +b@3 -a@1",
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_object_of_a_wrong_shape_does_not_blind() {
    let mut wrong = event("ADDED", "w", 1);
    wrong["object"]["data"] = json!(5);
    check(
        vec![("sendInitialEvents=true", Answer::Stays(vec![wrong, event("ADDED", "a", 2), end_of_list(3)]))],
        "+a@2",
    )
    .await;
}
