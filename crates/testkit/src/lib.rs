//! Stand-ins for tests. [`FakeServer`] is an API server of a few objects: lists, watches and creation, no more
//! than informers need. Where a test needs more, the real server runs in the same process:
//! `apiserver::testing`. [`network`] makes hosts and pods of network namespaces, [`csi`] is a storage driver, [`https`]
//! a webhook.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod csi;
pub mod https;
pub mod network;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use client::{Body, Client, Error, Transport};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::broadcast;

pub struct FakeServer {
    /// By collection, such as `/api/v1/services`.
    objects: Mutex<HashMap<String, Vec<Value>>>,
    events: broadcast::Sender<(String, String)>,
}

fn line(kind: &str, object: &Value) -> String {
    format!("{}\n", json!({"type": kind, "object": object}))
}

/// The collection of all namespaces.
fn collection(path: &str) -> String {
    match path.split_once("/namespaces/").and_then(|(before, after)| Some((before, after.split_once('/')?.1)))
    {
        Some((before, plural)) => format!("{before}/{plural}"),
        None => path.to_owned(),
    }
}

impl FakeServer {
    pub fn new() -> (Arc<Self>, Client) {
        let server = Arc::new(FakeServer { objects: Mutex::default(), events: broadcast::Sender::new(64) });
        (server.clone(), Client::new(server, "test"))
    }

    /// Adds an object, or puts it in place of the one of its name.
    pub fn put(&self, collection: &str, mut object: Value) {
        let mut objects = self.objects.lock().unwrap();
        let all = objects.entry(collection.to_owned()).or_default();
        let name = object["metadata"]["name"].clone();
        let old = all.iter().position(|other| other["metadata"]["name"] == name);
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        object["metadata"]["uid"] = name;
        object["metadata"]["resourceVersion"] = json!((self.events.len() + all.len() + 10).to_string());
        old.map(|index| all.remove(index));
        all.push(object.clone());
        // Nobody watching is no failure.
        let _ = self.events.send((collection.to_owned(), line(kind, &object)));
    }
}

impl FakeServer {
    /// What is at a path, if that is of one object in a collection that has had any.
    fn object(&self, path: &str) -> Option<Option<Value>> {
        let (collection, name) = path.rsplit_once('/')?;
        let objects = self.objects.lock().unwrap();
        Some(objects.get(collection)?.iter().find(|object| object["metadata"]["name"] == name).cloned())
    }
}

fn not_found() -> http::Response<Body> {
    let status = json!({"status": "Failure", "reason": "NotFound", "code": 404, "message": "not found"});
    http::Response::builder().status(404).body(Body::Full(status.to_string().into())).unwrap()
}

#[async_trait::async_trait]
impl Transport for FakeServer {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Error> {
        let path = collection(request.uri().path());
        if request.method() == http::Method::POST {
            let object: Value = serde_json::from_slice(request.body()).unwrap();
            self.put(&path, object);
            return Ok(http::Response::new(Body::Full(request.into_body())));
        }
        if request.method() == http::Method::PATCH {
            // Nothing that is looked for is here yet.
            return Ok(not_found());
        }
        if let Some(found) = self.object(&path) {
            let answer = |object: Value| http::Response::new(Body::Full(object.to_string().into()));
            return Ok(found.map_or_else(not_found, answer));
        }
        let objects = self.objects.lock().unwrap().get(&path).cloned().unwrap_or_default();
        let query = request.uri().query().unwrap_or_default();
        if !query.contains("watch=true") {
            let list = json!({"metadata": {"resourceVersion": "9"}, "items": objects});
            return Ok(http::Response::new(Body::Full(list.to_string().into())));
        }
        let mut first = Vec::new();
        if query.contains("sendInitialEvents=true") {
            first.extend(objects.iter().map(|object| line("ADDED", object)));
            let annotations = json!({"k8s.io/initial-events-end": "true"});
            let end = json!({"metadata": {"resourceVersion": "9", "annotations": annotations}});
            first.push(line("BOOKMARK", &end));
        }
        let live = futures::stream::unfold((self.events.subscribe(), path), |(mut events, path)| async {
            loop {
                let (of, line) = events.recv().await.ok()?;
                if of == path {
                    return Some((line, (events, path)));
                }
            }
        });
        let lines = futures::stream::iter(first).chain(live).map(|line| Ok(Bytes::from(line)));
        Ok(http::Response::new(Body::Stream(Box::pin(lines))))
    }
}
