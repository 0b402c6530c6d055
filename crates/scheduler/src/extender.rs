//! [`Extender`]: a server of somebody else's that has a say in where pods go, over HTTP.
//!
//! Upstream: pkg/scheduler/extender.go, staging/src/k8s.io/kube-scheduler/extender/v1/types.go

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use api::core::v1::{Container, Node};
use api::{Object, core::v1::Pod};
use bytes::Bytes;
use client::https::{Config, HttpsTransport, Identity, Trust};
use client::{Body, Transport};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::preemption::Candidate;
use crate::{NodeInfo, PodInfo};

/// Upstream: extender/v1 MaxExtenderPriority against MaxNodeScore.
const SCORE_SCALE: i64 = 10;
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// What a configuration says of an extender.
#[derive(Default)]
pub struct Settings {
    pub url_prefix: String,
    pub filter_verb: String,
    pub preempt_verb: String,
    pub prioritize_verb: String,
    pub bind_verb: String,
    pub weight: i64,
    pub timeout: Duration,
    /// It keeps nodes itself and is told names only.
    pub node_cache_capable: bool,
    /// It is asked only of pods that want one of these; of all when there are none.
    pub managed_resources: Vec<String>,
    /// When it fails, pods are placed without it.
    pub ignorable: bool,
    pub trust: Trust,
    pub identity: Option<Identity>,
    pub tls_server_name: Option<String>,
}

pub struct Extender {
    settings: Settings,
    transport: HttpsTransport,
}

/// What an extender leaves of the nodes it was given.
#[derive(Debug, Default, PartialEq)]
pub struct Filtered {
    pub nodes: Vec<String>,
    /// Reasons by node, with whether evicting pods cannot help.
    pub failed: BTreeMap<String, (String, bool)>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FilterResult {
    #[serde(rename = "Nodes", alias = "nodes")]
    nodes: Option<Nodes>,
    #[serde(rename = "NodeNames", alias = "nodeNames", alias = "nodenames")]
    node_names: Option<Vec<String>>,
    #[serde(rename = "FailedNodes", alias = "failedNodes")]
    failed_nodes: Option<BTreeMap<String, String>>,
    #[serde(rename = "FailedAndUnresolvableNodes", alias = "failedAndUnresolvableNodes")]
    unresolvable_nodes: Option<BTreeMap<String, String>>,
    #[serde(rename = "Error", alias = "error")]
    error: String,
}

#[derive(Deserialize)]
struct Nodes {
    #[serde(default)]
    items: Vec<Node>,
}

#[derive(Deserialize)]
struct HostPriority {
    #[serde(rename = "Host", alias = "host")]
    host: String,
    #[serde(rename = "Score", alias = "score")]
    score: i64,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct BindResult {
    #[serde(rename = "Error", alias = "error")]
    error: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PreemptResult {
    #[serde(rename = "NodeNameToMetaVictims", alias = "nodeNameToMetaVictims")]
    victims: BTreeMap<String, MetaVictims>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct MetaVictims {
    #[serde(rename = "Pods", alias = "pods")]
    pods: Vec<MetaPod>,
}

#[derive(Deserialize)]
struct MetaPod {
    #[serde(rename = "UID", alias = "uid")]
    uid: String,
}

impl Extender {
    pub fn new(settings: Settings) -> Result<Self, client::Error> {
        let transport = HttpsTransport::new(&Config {
            server: settings.url_prefix.trim_end_matches('/').to_owned(),
            trust: settings.trust.clone(),
            identity: settings.identity.clone(),
            token: None,
            tls_server_name: settings.tls_server_name.clone(),
        })?;
        Ok(Extender { settings, transport })
    }

    pub fn is_ignorable(&self) -> bool {
        self.settings.ignorable
    }

    pub fn binds(&self) -> bool {
        !self.settings.bind_verb.is_empty()
    }

    pub fn preempts(&self) -> bool {
        !self.settings.preempt_verb.is_empty()
    }

    /// Whether the pod asks for something that the extender looks after.
    pub fn is_interested(&self, pod: &Pod) -> bool {
        let managed = &self.settings.managed_resources;
        let Some(spec) = &pod.spec else { return false };
        let wants = |container: &Container| {
            let resources = container.resources.as_ref();
            let requests = resources.and_then(|r| r.requests.as_ref()).into_iter().flatten();
            let limits = resources.and_then(|r| r.limits.as_ref()).into_iter().flatten();
            requests.chain(limits).any(|(name, _)| managed.contains(name))
        };
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        managed.is_empty() || containers.into_iter().any(wants)
    }

    pub async fn filter(&self, pod: &PodInfo, nodes: &[&NodeInfo]) -> Result<Filtered, String> {
        let names: Vec<String> = nodes.iter().map(|node| node.name().to_owned()).collect();
        if self.settings.filter_verb.is_empty() {
            return Ok(Filtered { nodes: names, ..Filtered::default() });
        }
        let result = self.ask(&self.settings.filter_verb, &self.arguments(pod, nodes)).await?;
        self.filtered(result, &names)
    }

    fn filtered(&self, result: FilterResult, names: &[String]) -> Result<Filtered, String> {
        if !result.error.is_empty() {
            return Err(result.error);
        }
        let left = match (result.node_names, result.nodes) {
            (Some(left), _) if self.settings.node_cache_capable => left,
            (_, Some(nodes)) => nodes.items.iter().map(|node| node.name().to_owned()).collect(),
            _ => Vec::new(),
        };
        if let Some(unknown) = left.iter().find(|name| !names.contains(name)) {
            return Err(format!(
                "extender {:?} claims a filtered node {unknown:?} which is not found in the input node list",
                self.settings.url_prefix
            ));
        }
        let failed = result.failed_nodes.unwrap_or_default().into_iter().map(|(n, why)| (n, (why, false)));
        let worse =
            result.unresolvable_nodes.unwrap_or_default().into_iter().map(|(n, why)| (n, (why, true)));
        Ok(Filtered { nodes: left, failed: failed.chain(worse).collect() })
    }

    /// What is to be added to the nodes' scores; an extender that fails adds nothing.
    pub async fn scores(&self, pod: &PodInfo, nodes: &[&NodeInfo]) -> HashMap<String, i64> {
        if self.settings.prioritize_verb.is_empty() {
            return HashMap::new();
        }
        let verb = &self.settings.prioritize_verb;
        match self.ask::<Vec<HostPriority>>(verb, &self.arguments(pod, nodes)).await {
            Ok(list) => {
                let weight = self.settings.weight.saturating_mul(SCORE_SCALE);
                list.into_iter().map(|one| (one.host, one.score.saturating_mul(weight))).collect()
            }
            Err(error) => {
                tracing::debug!(extender = self.settings.url_prefix, error, "no scores from an extender");
                HashMap::new()
            }
        }
    }

    pub async fn bind(&self, pod: &Pod, node: &str) -> Result<(), String> {
        let binding = json!({"PodName": pod.name(), "PodNamespace": pod.namespace(), "PodUID": pod.uid(),
            "Node": node});
        let result: BindResult = self.ask(&self.settings.bind_verb, &binding).await?;
        if result.error.is_empty() { Ok(()) } else { Err(result.error) }
    }

    /// Those of the candidates that the extender allows, with the victims that it leaves.
    pub async fn preempt(&self, pod: &PodInfo, candidates: Vec<Candidate>) -> Result<Vec<Candidate>, String> {
        let meta = self.settings.node_cache_capable;
        let victims = candidates.iter().map(|candidate| {
            let pods = candidate.victims.iter().map(|victim| match meta {
                true => json!({"UID": victim.uid()}),
                false => json!(&*victim.pod),
            });
            let pods: Vec<Value> = pods.collect();
            let violations = candidate.budget_violations;
            (candidate.node.clone(), json!({"Pods": pods, "NumPDBViolations": violations}))
        });
        let victims: serde_json::Map<String, Value> = victims.collect();
        let key = if meta { "NodeNameToMetaVictims" } else { "NodeNameToVictims" };
        let arguments = json!({"Pod": &*pod.pod, key: victims});
        let result: PreemptResult = self.ask(&self.settings.preempt_verb, &arguments).await?;
        let allowed = candidates.into_iter().filter_map(|mut candidate| {
            let left = result.victims.get(&candidate.node)?;
            candidate.victims.retain(|victim| left.pods.iter().any(|pod| pod.uid == victim.uid()));
            Some(candidate)
        });
        Ok(allowed.collect())
    }

    fn arguments(&self, pod: &PodInfo, nodes: &[&NodeInfo]) -> Value {
        if self.settings.node_cache_capable {
            let names: Vec<&str> = nodes.iter().map(|node| node.name()).collect();
            return json!({"Pod": &*pod.pod, "Nodes": null, "NodeNames": names});
        }
        let items: Vec<&Node> = nodes.iter().filter_map(|node| node.node.as_deref()).collect();
        json!({"Pod": &*pod.pod, "Nodes": {"metadata": {}, "items": items}, "NodeNames": null})
    }

    async fn ask<T: serde::de::DeserializeOwned>(&self, verb: &str, arguments: &Value) -> Result<T, String> {
        let request = http::Request::post(format!("/{verb}"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Bytes::from(arguments.to_string()))
            .map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(self.settings.timeout, self.transport.send(request));
        let url = format!("{}/{verb}", self.settings.url_prefix.trim_end_matches('/'));
        let response = match answer.await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(format!("Post {url:?}: {error}")),
            Err(_) => return Err(format!("Post {url:?}: context deadline exceeded")),
        };
        let status = response.status();
        if status != http::StatusCode::OK {
            return Err(format!(
                "failed {verb} with extender at URL {}, code {}",
                self.settings.url_prefix,
                status.as_u16()
            ));
        }
        match response.into_body() {
            Body::Full(bytes) if bytes.len() <= MAX_ANSWER_BYTES => {
                serde_json::from_slice(&bytes).map_err(|error| error.to_string())
            }
            _ => Err(format!("the answer of {url} is too long")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::pod_info;

    fn extender(settings: Settings) -> Extender {
        Extender::new(Settings { url_prefix: "http://127.0.0.1:9/x".into(), ..settings }).unwrap()
    }

    #[test]
    fn pods_without_its_resources_are_none_of_its_business() {
        let pod = pod_info(json!({"metadata": {"name": "p"}, "spec": {"containers": [
            {"name": "c", "resources": {"limits": {"x.io/gpu": "1"}}}]}}));
        for (managed, expected) in [(vec![], true), (vec!["x.io/gpu"], true), (vec!["x.io/other"], false)] {
            let managed_resources = managed.into_iter().map(str::to_owned).collect();
            let extender = extender(Settings { managed_resources, ..Settings::default() });
            assert_eq!(extender.is_interested(&pod.pod), expected);
        }
    }

    #[test]
    fn answers_are_read_in_both_forms() {
        let names = ["a".to_owned(), "b".to_owned()];
        let read = |cached: bool, answer: Value| {
            let extender = extender(Settings { node_cache_capable: cached, ..Settings::default() });
            extender.filtered(serde_json::from_value(answer).unwrap(), &names)
        };
        let left = read(true, json!({"NodeNames": ["b"], "FailedNodes": {"a": "full"}})).unwrap();
        assert_eq!(
            (left.nodes, left.failed),
            (vec!["b".into()], [("a".into(), ("full".into(), false))].into())
        );
        let left = read(false, json!({"nodes": {"items": [{"metadata": {"name": "a"}}]}})).unwrap();
        assert_eq!(left.nodes, ["a"]);
        assert!(
            read(true, json!({"NodeNames": ["z"]})).unwrap_err().contains("not found in the input node list")
        );
        assert_eq!(read(true, json!({"Error": "no"})), Err("no".into()));
    }

    #[tokio::test]
    async fn one_that_does_not_answer_is_an_error_with_its_url() {
        let extender = extender(Settings {
            bind_verb: "bind".into(),
            timeout: Duration::from_secs(5),
            ..Settings::default()
        });
        let pod = pod_info(json!({"metadata": {"name": "p"}, "spec": {"containers": []}}));
        let error = extender.bind(&pod.pod, "a").await.unwrap_err();
        assert!(error.starts_with("Post \"http://127.0.0.1:9/x/bind\": "), "{error}");
    }
}
