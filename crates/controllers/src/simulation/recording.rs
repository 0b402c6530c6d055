//! What parts write, told as sentences: who did what to which object, and what became different by it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Error, Transport};
use http::{Method, Request, Response};
use serde_json::Value;
use tokio::time::Instant;

/// Kinds whose content says nothing new when they are made: they come from templates.
const LONG: &[&str] = &["pods", "replicasets", "jobs", "controllerrevisions", "persistentvolumeclaims"];
/// Ends of paths that say nothing to a reader.
const HIDDEN: &[&str] = &[".managedFields", ".resourceVersion", ".uid", ".generation", "Time"];
/// Ends of paths whose values differ each time.
const UNREADABLE: &[&str] = &["Timestamp", ".certificate", "kubernetes.io/last-used"];

/// A write that succeeded.
pub struct Line {
    at: Instant,
    who: String,
    order: usize,
    text: String,
    /// The prefix and the name that the server made of it, if it did.
    generated: Option<(String, String)>,
}

/// Records the writes that go this way.
pub struct Recorder {
    pub who: String,
    /// Tells apart those who act as one.
    pub order: usize,
    pub inner: Arc<dyn Transport>,
    pub log: Arc<Mutex<Vec<Line>>>,
}

/// `/apis/apps/v1/namespaces/ns/deployments/web/status` as `deployments`, `ns/web` and `status`.
fn target(path: &str) -> (String, String, String) {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let rest = match parts.as_slice() {
        ["api", _, rest @ ..] | ["apis", _, _, rest @ ..] => rest,
        rest => rest,
    };
    let (namespace, rest) = match rest {
        ["namespaces", namespace, resource, rest @ ..] if !["status", "finalize"].contains(resource) => {
            (format!("{namespace}/"), [&[*resource], rest].concat())
        }
        rest => (String::new(), rest.to_vec()),
    };
    let at = |at: usize| rest.get(at).copied().unwrap_or_default();
    (at(0).to_owned(), format!("{namespace}{}", at(1)), at(2).to_owned())
}

/// Paths and values of all leaves that a reader wants to see. Members of lists are told apart by what names them.
fn leaves(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    if HIDDEN.iter().any(|end| path.ends_with(end)) {
        return;
    }
    match value {
        Value::Null => {}
        Value::Object(fields) => {
            for (name, value) in fields {
                leaves(&format!("{path}.{name}"), value, into);
            }
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            for (at, item) in items.iter().enumerate() {
                let name = ["type", "name", "key"].iter().find_map(|key| item[key].as_str());
                let name = name.filter(|name| !name.is_empty());
                let name = name.map_or_else(|| at.to_string(), str::to_owned);
                leaves(&format!("{path}[{name}]"), item, into);
            }
        }
        Value::Array(items) if items.is_empty() => {}
        Value::Array(items) if path.contains(".uncountedTerminatedPods.") => {
            into.insert(path.to_owned(), items.len().to_string());
        }
        Value::String(text) if !text.is_empty() && UNREADABLE.iter().any(|end| path.ends_with(end)) => {
            into.insert(path.to_owned(), "set".to_owned());
        }
        value => {
            into.insert(path.to_owned(), value.to_string());
        }
    }
}

/// What an object is made with, a line for each field.
fn content(object: &Value) -> String {
    let mut content = object.clone();
    for common in ["apiVersion", "kind", "metadata", "status"] {
        content.as_object_mut().map(|fields| fields.remove(common));
    }
    difference(&Value::Null, &content)
}

/// What became different, a line for each field.
fn difference(before: &Value, after: &Value) -> String {
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    if !before.is_null() {
        leaves("", before, &mut old);
    }
    leaves("", after, &mut new);
    let paths: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let lines = paths.into_iter().filter_map(|path| {
        let name = path.trim_start_matches('.');
        match (old.get(path), new.get(path)) {
            (Some(old), Some(new)) if old == new => None,
            (Some(old), Some(new)) => Some(format!("\n    {name}: {old} -> {new}")),
            (None, Some(new)) => Some(format!("\n    {name}: {new}")),
            (Some(old), None) => Some(format!("\n    {name}: {old} -> none")),
            (None, None) => None,
        }
    });
    lines.collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// An event, as `kubectl describe` would tell it.
fn event(object: &Value) -> String {
    let (regarding, note) = match object.get("regarding") {
        Some(regarding) => (regarding, &object["note"]),
        None => (&object["involvedObject"], &object["message"]),
    };
    format!(
        "says of {} {}: {} {}: {}",
        text(&regarding["kind"]),
        text(&regarding["name"]),
        text(&object["type"]),
        text(&object["reason"]),
        text(note)
    )
}

fn sentence(method: &Method, path: &str, asked: &Value, before: &Value, after: &Value) -> Option<String> {
    let (resource, name, subresource) = target(path);
    if resource == "events" {
        return (*method == Method::POST).then(|| event(asked));
    }
    let part = if subresource.is_empty() { String::new() } else { format!("{subresource} of ") };
    Some(match *method {
        Method::POST if subresource.is_empty() => {
            let owner = &after["metadata"]["ownerReferences"][0];
            let owner = match owner["kind"].as_str() {
                Some(kind) => format!(" for {kind} {}", text(&owner["name"])),
                None => String::new(),
            };
            let content = if LONG.contains(&resource.as_str()) { String::new() } else { content(after) };
            format!("creates {resource} {name}{}{owner}{content}", text(&after["metadata"]["name"]))
        }
        Method::POST => format!("posts {part}{resource} {name}"),
        Method::DELETE if name.is_empty() || name.ends_with('/') => {
            format!("deletes all {resource} in {}", name.trim_end_matches('/'))
        }
        Method::DELETE => match text(&asked["propagationPolicy"]) {
            "" => format!("deletes {resource} {name}"),
            policy => format!("deletes {resource} {name} ({})", policy.to_lowercase()),
        },
        _ => {
            let difference = difference(before, after);
            if difference.is_empty() {
                format!("writes {part}{resource} {name} as it was")
            } else {
                format!("changes {part}{resource} {name}:{difference}")
            }
        }
    })
}

#[async_trait]
impl Transport for Recorder {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        if method == Method::GET {
            return self.inner.send(request).await;
        }
        let asked: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let mut before = Value::Null;
        if method == Method::PUT || method == Method::PATCH {
            let (_, _, subresource) = target(&path);
            // The scale has a shape of its own; the others are parts of the object.
            let part = if subresource == "scale" { String::new() } else { format!("/{subresource}") };
            let of = path.strip_suffix(&part).unwrap_or(&path);
            let get = Request::builder().uri(of).body(Bytes::new()).unwrap();
            if let Body::Full(bytes) = self.inner.send(get).await?.into_body() {
                before = serde_json::from_slice(&bytes).unwrap_or_default();
            }
        }
        let response = self.inner.send(request).await?;
        if !response.status().is_success() {
            return Ok(response);
        }
        let Body::Full(bytes) = response.body() else { return Ok(response) };
        let after: Value = serde_json::from_slice(bytes).unwrap_or_default();
        if let Some(text) = sentence(&method, &path, &asked, &before, &after) {
            let prefix = asked["metadata"]["generateName"].as_str().filter(|_| method == Method::POST);
            let name = after["metadata"]["name"].as_str();
            let generated = prefix.zip(name).map(|(prefix, name)| (prefix.to_owned(), name.to_owned()));
            let line = Line { at: Instant::now(), who: self.who.clone(), order: self.order, text, generated };
            self.log.lock().unwrap().push(line);
        }
        Ok(response)
    }
}

/// A text with the names in it that the script knows.
pub fn aliased(aliases: &BTreeMap<String, String>, text: &str) -> String {
    aliases.iter().fold(text.to_owned(), |text, (real, alias)| text.replace(real, alias))
}

/// The lines of a log. What several do at one moment is told one after the other; made-up names become numbers.
pub fn told(mut log: Vec<Line>, aliases: &mut BTreeMap<String, String>) -> String {
    log.sort_by(|a, b| (a.at, &a.who, a.order).cmp(&(b.at, &b.who, b.order)));
    for (prefix, name) in log.iter().filter_map(|line| line.generated.as_ref()) {
        let number = aliases.values().filter(|alias| alias.starts_with(prefix)).count() + 1;
        aliases.entry(name.clone()).or_insert_with(|| format!("{prefix}{number}"));
    }
    let going = going(&log);
    log.retain(|line| {
        let of = line.text.strip_prefix("changes status of ").and_then(|rest| rest.lines().next());
        let goes_by = of.and_then(|object| going.get(object.trim_end_matches(':')));
        goes_by.is_none_or(|who| *who == line.who)
    });
    // What goes in one moment goes in any order.
    let go_together = |a: &Line, b: &Line| {
        (a.at, &a.who) == (b.at, &b.who) && [a, b].into_iter().all(|line| line.text.starts_with("deletes "))
    };
    for lines in log.chunk_by_mut(go_together) {
        lines.sort_by_cached_key(|line| aliased(aliases, &line.text));
    }
    log.iter().map(|line| format!("{} {}\n", line.who, aliased(aliases, &line.text))).collect()
}

/// The objects that somebody deletes or lets go, and who: whether another has still written a status of one of them is
/// chance.
fn going(log: &[Line]) -> BTreeMap<String, String> {
    let gone = |line: &Line| {
        let object = match line.text.strip_prefix("deletes ") {
            Some(rest) => rest.split(' ').take(2).collect::<Vec<_>>().join(" "),
            None => {
                let (object, change) = line.text.strip_prefix("changes ")?.split_once(":\n")?;
                let lets_go =
                    change.lines().any(|l| l.contains("metadata.finalizers: ") && l.ends_with("-> none"));
                lets_go.then(|| object.to_owned())?
            }
        };
        Some((object, line.who.clone()))
    };
    log.iter().filter_map(gone).collect()
}
