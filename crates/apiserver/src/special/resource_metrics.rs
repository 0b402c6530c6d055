//! `metrics.k8s.io`: what nodes and pods use, for `kubectl top` and for autoscalers.
//!
//! Kubelets say what has been used up to now; what is used just now is the difference between two such answers. The
//! last two of each node are kept, and new ones are asked for only when somebody wants to know.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apimachinery::quantity::Quantity;
use apimachinery::selector::LabelSelector;
use apimachinery::{GroupResource, Status};
use client::Client;
use futures::StreamExt;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::bootstrap::loopback_user;
use crate::handle::{ApiServer, Asked};
use crate::registry::metadata;
use crate::seams::Lookup;

const NODES: GroupResource = GroupResource::from_static("", "nodes");
const PODS: GroupResource = GroupResource::from_static("", "pods");
const GROUP: &str = "metrics.k8s.io";
const API_VERSION: &str = "metrics.k8s.io/v1beta1";

/// An answer of this age is new enough.
const FRESH: Duration = Duration::from_secs(10);
/// What was used since an answer of this age says nothing of just now.
const STALE: Duration = Duration::from_secs(90);
/// Between the two answers of a node of which nothing is known yet.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(5);
/// So many kubelets are asked at once.
const AT_ONCE: usize = 32;

/// What something has used.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Used {
    cpu_seconds: f64,
    memory_bytes: f64,
}

/// Namespace, pod and container.
type ContainerKey = (String, String, String);

/// What a kubelet answered.
#[derive(Debug, Default, PartialEq)]
struct Sample {
    at: Timestamp,
    node: Used,
    containers: BTreeMap<ContainerKey, Used>,
}

/// The last two answers of a node.
#[derive(Clone)]
struct Known {
    before: Arc<Sample>,
    now: Arc<Sample>,
}

/// The last two answers of each node.
#[derive(Default)]
pub struct Samples(Mutex<BTreeMap<String, Known>>);

impl Samples {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads what a kubelet says at `/metrics/resource`.
fn parse(text: &str, at: Timestamp) -> Sample {
    let mut sample = Sample { at, ..Default::default() };
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((name, labels, value)) = parse_line(line) else { continue };
        let label =
            |key: &str| labels.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone()).unwrap_or_default();
        let (used, what) = match name.split_once('_') {
            Some(("node", what)) => (&mut sample.node, what),
            Some(("container", what)) => {
                let key = (label("namespace"), label("pod"), label("container"));
                (sample.containers.entry(key).or_default(), what)
            }
            _ => continue,
        };
        match what {
            "cpu_usage_seconds_total" => used.cpu_seconds = value,
            "memory_working_set_bytes" => used.memory_bytes = value,
            _ => {}
        }
    }
    sample
}

/// A line of the text format: its name, labels and value.
fn parse_line(line: &str) -> Option<(&str, Vec<(String, String)>, f64)> {
    let (head, rest) = match line.find('{') {
        Some(open) => {
            let (labels, rest) = parse_labels(&line[open + 1..])?;
            ((&line[..open], labels), rest)
        }
        None => {
            let (name, rest) = line.split_once(' ')?;
            ((name, Vec::new()), rest)
        }
    };
    let value = rest.split_ascii_whitespace().next()?.parse().ok().filter(|value: &f64| value.is_finite())?;
    Some((head.0, head.1, value))
}

/// Labels up to the closing brace, and what follows it.
fn parse_labels(mut text: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        text = text.trim_start_matches([',', ' ']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = rest.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.push((name.to_owned(), value));
        text = &rest[end + 1..];
    }
}

/// What was used a second between two answers; `None` when it began anew between them.
fn rate(before: &Used, now: &Used, seconds: f64) -> Option<Value> {
    let cores = (now.cpu_seconds - before.cpu_seconds) / seconds;
    (seconds > 0.0 && cores >= 0.0).then(|| {
        let memory = Quantity::from_bytes(now.memory_bytes as i64);
        json!({"cpu": format!("{}n", (cores * 1e9).round() as i64), "memory": memory.to_string()})
    })
}

fn seconds(known: &Known) -> f64 {
    known.now.at.duration_since(known.before.at).as_secs_f64()
}

/// The metadata of what is measured, under the time of the measurement.
fn describe(kind: &str, object: &Value, known: &Known) -> Value {
    let mut described =
        json!({"name": object["metadata"]["name"], "creationTimestamp": known.now.at.to_string()});
    for key in ["namespace", "labels"] {
        if let Some(value) = object["metadata"].get(key) {
            described[key] = value.clone();
        }
    }
    json!({
        "kind": kind, "apiVersion": API_VERSION, "metadata": described,
        "timestamp": apimachinery::time::rfc3339(known.now.at.as_second()),
        "window": format!("{:.3}s", seconds(known)),
    })
}

fn node_metrics(node: &Value, known: &Known) -> Option<Value> {
    let mut metrics = describe("NodeMetrics", node, known);
    metrics["usage"] = rate(&known.before.node, &known.now.node, seconds(known))?;
    Some(metrics)
}

/// A pod is told of whole or not at all.
fn pod_metrics(pod: &Value, known: &Known) -> Option<Value> {
    let (namespace, name) = (metadata::text(pod, "namespace"), metadata::text(pod, "name"));
    let mut containers = Vec::new();
    let of_pod = known.now.containers.iter().filter(|((ns, p, _), _)| ns == namespace && p == name);
    for (key, now) in of_pod {
        let usage = rate(known.before.containers.get(key)?, now, seconds(known))?;
        containers.push(json!({"name": key.2, "usage": usage}));
    }
    let mut metrics = describe("PodMetrics", pod, known);
    metrics["containers"] = (!containers.is_empty()).then_some(containers)?.into();
    Some(metrics)
}

pub async fn handle(server: &Arc<ApiServer>, asked: &Asked) -> Result<(StatusCode, Value), Status> {
    let attributes = &asked.info.attributes;
    let of_pods = attributes.resource == "pods";
    let registry = &*server.registry;
    let (kind, of) = if of_pods { ("PodMetricsList", &PODS) } else { ("NodeMetricsList", &NODES) };
    let asked_resource = GroupResource::new(GROUP.to_owned(), attributes.resource.clone());
    let listed = attributes.verb == "list";
    let objects = if listed {
        let selector = asked.info.query.get("labelSelector").unwrap_or_default();
        let selector = LabelSelector::parse(selector).map_err(Status::bad_request)?;
        let namespace = Some(attributes.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        let all = Lookup::list(registry, of, namespace);
        all.into_iter().filter(|object| selector.matches_object(object)).collect()
    } else {
        let found = Lookup::get(registry, of, &attributes.namespace, &attributes.name);
        found.into_iter().collect::<Vec<_>>()
    };
    let known = refresh(server, nodes_of(&objects, of_pods)).await;
    let measure = |object: &Arc<Value>| match of_pods {
        true => pod_metrics(object, known.get(object["spec"]["nodeName"].as_str()?)?),
        false => node_metrics(object, known.get(metadata::text(object, "name"))?),
    };
    let mut items: Vec<Value> = objects.iter().filter_map(measure).collect();
    if listed {
        let list = json!({"kind": kind, "apiVersion": API_VERSION, "metadata": {}, "items": items});
        return Ok((StatusCode::OK, list));
    }
    let name = match attributes.namespace.as_str() {
        "" => attributes.name.clone(),
        namespace => format!("{namespace}/{}", attributes.name),
    };
    let found = items.pop().map(|metrics| (StatusCode::OK, metrics));
    found.ok_or_else(|| Status::not_found(&asked_resource, &name))
}

/// The nodes that can say something of the objects, each once.
fn nodes_of(objects: &[Arc<Value>], of_pods: bool) -> Vec<String> {
    let name = |object: &Arc<Value>| {
        match of_pods {
            true => object["spec"]["nodeName"].as_str().filter(|_| object["status"]["phase"] == "Running"),
            false => object["metadata"]["name"].as_str(),
        }
        .map(str::to_owned)
    };
    objects.iter().filter_map(name).collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

/// What is known of the nodes, with new answers where the last are old.
async fn refresh(server: &Arc<ApiServer>, nodes: Vec<String>) -> BTreeMap<String, Known> {
    let client = Client::new(server.in_process(loopback_user()), "trierarch-resource-metrics");
    let all = futures::stream::iter(nodes).map(|node| {
        let (server, client) = (server.clone(), client.clone());
        async move { (look(&server, &client, &node).await, node) }
    });
    let looks: Vec<_> = all.buffer_unordered(AT_ONCE).collect().await;
    let known = looks.into_iter().filter_map(|(known, node)| Some((node, known?))).collect();
    // Nodes that are gone are forgotten.
    let registry = &*server.registry;
    server.resource_metrics.lock().retain(|name, _| Lookup::get(registry, &NODES, "", name).is_some());
    known
}

async fn look(server: &ApiServer, client: &Client, node: &str) -> Option<Known> {
    let last = server.resource_metrics.lock().get(node).cloned();
    let age = |sample: &Sample| {
        Duration::try_from((server.config.clock)().duration_since(sample.at)).unwrap_or(Duration::ZERO)
    };
    let before = match last {
        Some(known) if age(&known.now) < FRESH => return Some(known),
        Some(known) if age(&known.now) < STALE => known.now,
        _ => {
            let first = ask(server, client, node).await?;
            tokio::time::sleep(FIRST_WINDOW).await;
            first
        }
    };
    let known = Known { before, now: ask(server, client, node).await? };
    server.resource_metrics.lock().insert(node.to_owned(), known.clone());
    Some(known)
}

/// `None` when the kubelet does not answer: of what it runs nothing is known then.
async fn ask(server: &ApiServer, client: &Client, node: &str) -> Option<Arc<Sample>> {
    let path = format!("/api/v1/nodes/{node}/proxy/metrics/resource");
    match tokio::time::timeout(TIMEOUT, client.raw(Method::GET, &path, None)).await {
        Ok(Ok(body)) => Some(Arc::new(parse(&String::from_utf8_lossy(&body), (server.config.clock)()))),
        Ok(Err(error)) => {
            tracing::debug!(%node, %error, "a kubelet does not say what it uses");
            None
        }
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn known(before: &str, now: &str) -> Known {
        Known { before: Arc::new(parse(before, at(100))), now: Arc::new(parse(now, at(110))) }
    }

    #[test]
    fn lines_are_read_with_their_labels() {
        let text = "# HELP x\nnode_cpu_usage_seconds_total 1.5 1700000000000\nnonsense\nx{a=\"1\n\
            container_memory_working_set_bytes{container=\"a\\\"b\",namespace=\"ns\",pod=\"web\"} 2048\n";
        let sample = parse(text, at(0));
        assert_eq!(sample.node.cpu_seconds, 1.5);
        let key = ("ns".to_owned(), "web".to_owned(), "a\"b".to_owned());
        assert_eq!(sample.containers[&key].memory_bytes, 2048.0);
        assert_eq!(sample.containers.len(), 1);
    }

    #[test]
    fn use_is_the_difference_a_second() {
        let line = |container: &str, cpu: f64| {
            format!(
                "container_cpu_usage_seconds_total{{container=\"{container}\",namespace=\"ns\",pod=\"web\"}} {cpu}\n"
            )
        };
        let pod = json!({"metadata": {"namespace": "ns", "name": "web", "labels": {"app": "web"}}});
        let of = |before: &[(&str, f64)], now: &[(&str, f64)]| {
            let text =
                |list: &[(&str, f64)]| list.iter().map(|(name, cpu)| line(name, *cpu)).collect::<String>();
            pod_metrics(&pod, &known(&text(before), &text(now)))
        };
        let metrics = of(&[("a", 1.0), ("b", 0.0)], &[("a", 2.0), ("b", 5.0)]).unwrap();
        assert_eq!(
            metrics["containers"][0],
            json!({"name": "a", "usage": {"cpu": "100000000n", "memory": "0"}})
        );
        assert_eq!(metrics["containers"][1]["usage"]["cpu"], "500000000n");
        assert_eq!(
            (&metrics["window"], &metrics["timestamp"]),
            (&json!("10.000s"), &json!("1970-01-01T00:01:50Z"))
        );
        // One container is new, or began anew: then nothing is said of the pod.
        assert_eq!(of(&[("a", 1.0)], &[("a", 2.0), ("b", 5.0)]), None);
        assert_eq!(of(&[("a", 3.0)], &[("a", 2.0)]), None);
        assert_eq!(of(&[], &[]), None);
    }

    #[test]
    fn a_node_is_measured_as_a_whole() {
        let text =
            |cpu: f64| format!("node_cpu_usage_seconds_total {cpu}\nnode_memory_working_set_bytes 2097152\n");
        let node = json!({"metadata": {"name": "n1"}});
        let metrics = node_metrics(&node, &known(&text(10.0), &text(30.0))).unwrap();
        assert_eq!(metrics["usage"], json!({"cpu": "2000000000n", "memory": "2Mi"}));
    }
}
