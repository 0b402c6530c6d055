//! What is measured, from the three APIs of metrics.
//!
//! Upstream: pkg/controller/podautoscaler/metrics/client.go

use std::collections::BTreeMap;

use api::autoscaling::v2::CrossVersionObjectReference;
use apimachinery::quantity::Quantity;
use client::Client;
use http::Method;
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::universe::Universe;

/// Upstream: pkg/controller/podautoscaler/metrics/client.go metricServerDefaultMetricWindow
const DEFAULT_WINDOW: SignedDuration = SignedDuration::from_secs(60);
const CUSTOM: &str = "custom.metrics.k8s.io";

/// A measurement of a pod, in thousandths.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PodMetric {
    pub timestamp: Timestamp,
    pub window: SignedDuration,
    pub value: i64,
}

impl PodMetric {
    /// A value that nobody measured.
    pub fn of(value: i64) -> Self {
        PodMetric { timestamp: Timestamp::UNIX_EPOCH, window: SignedDuration::ZERO, value }
    }
}

/// By the pod's name.
pub(super) type PodMetrics = BTreeMap<String, PodMetric>;

fn milli(value: &Value) -> Option<i64> {
    Quantity::from_value(value).ok().map(|quantity| quantity.milli_value())
}

fn timestamp(item: &Value) -> Timestamp {
    let text = item["timestamp"].as_str();
    text.and_then(|text| text.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn encode(text: &str) -> String {
    let keep = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes()
        .map(|byte| if keep(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

async fn read(client: &Client, path: &str) -> Result<Value, client::Error> {
    let body = client.raw(Method::GET, path, None).await?;
    serde_json::from_slice(&body).map_err(|error| client::Error::Decode(error.into()))
}

/// The use of a resource by pods: of one container alone if that is named.
pub(super) fn pod_usage(list: &Value, resource: &str, container: &str) -> PodMetrics {
    let mut found = PodMetrics::new();
    for item in items(list) {
        let containers = item["containers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let named: Vec<_> =
            containers.iter().filter(|c| container.is_empty() || c["name"] == container).collect();
        let usages: Option<Vec<i64>> = named.iter().map(|c| milli(&c["usage"][resource])).collect();
        let Some(usages) = usages.filter(|usages| !usages.is_empty()) else { continue };
        let window = item["window"].as_str().and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_WINDOW);
        let value = usages.iter().fold(0_i64, |sum, usage| sum.saturating_add(*usage));
        let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        found.insert(name, PodMetric { timestamp: timestamp(item), window, value });
    }
    found
}

pub(super) async fn resource(
    client: &Client,
    namespace: &str,
    selector: &str,
    resource: &str,
    container: &str,
) -> Result<PodMetrics, String> {
    let path = format!(
        "/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}",
        encode(selector)
    );
    let list = read(client, &path).await.map_err(|error| {
        let error = missing(error, "pods.metrics.k8s.io");
        format!("unable to fetch metrics from resource metrics API: {error}")
    })?;
    if items(&list).is_empty() {
        return Err("no metrics returned from resource metrics API".to_owned());
    }
    Ok(pod_usage(&list, resource, container))
}

/// Clients of upstream say what they asked for when nobody serves it.
fn missing(error: client::Error, what: &str) -> String {
    let text = error.to_string();
    match text == "the server could not find the requested resource" {
        true => format!("{text} (get {what})"),
        false => text,
    }
}

/// The version of the custom metrics API that is served.
async fn custom_version(client: &Client) -> Result<String, String> {
    let group = read(client, &format!("/apis/{CUSTOM}")).await.map_err(|error| {
        let error = match error.is_not_found() {
            true => format!("no custom metrics API ({CUSTOM}) registered"),
            false => error.to_string(),
        };
        format!("unable to fetch metrics from custom metrics API: {error}")
    })?;
    Ok(group["preferredVersion"]["groupVersion"].as_str().unwrap_or(CUSTOM).to_owned())
}

async fn custom(client: &Client, path: &str) -> Result<Value, String> {
    let version = custom_version(client).await?;
    read(client, &format!("/apis/{version}/{path}"))
        .await
        .map_err(|error| format!("unable to fetch metrics from custom metrics API: {error}"))
}

/// A metric of each pod that the selector picks.
pub(super) async fn pods(
    client: &Client,
    namespace: &str,
    metric: &str,
    selector: &str,
    metric_selector: &str,
) -> Result<PodMetrics, String> {
    let path = format!(
        "namespaces/{namespace}/pods/*/{}?labelSelector={}&metricLabelSelector={}",
        encode(metric),
        encode(selector),
        encode(metric_selector)
    );
    let list = custom(client, &path).await?;
    if items(&list).is_empty() {
        return Err("no metrics returned from custom metrics API".to_owned());
    }
    let of_item = |item: &Value| {
        let name = item["describedObject"]["name"].as_str()?.to_owned();
        let window = item["windowSeconds"].as_i64().map_or(DEFAULT_WINDOW, SignedDuration::from_secs);
        Some((name, PodMetric { timestamp: timestamp(item), window, value: milli(&item["value"])? }))
    };
    Ok(items(&list).iter().filter_map(of_item).collect())
}

/// A metric of one object.
pub(super) async fn object(
    client: &Client,
    universe: &Universe,
    namespace: &str,
    metric: &str,
    about: &CrossVersionObjectReference,
    metric_selector: &str,
) -> Result<i64, String> {
    let version = about.api_version.as_deref().unwrap_or_default();
    let query = format!("?metricLabelSelector={}", encode(metric_selector));
    let path = if about.kind == "Namespace" && !version.contains('/') {
        format!("namespaces/{namespace}/metrics/{}{query}", encode(metric))
    } else {
        let resource = universe.resource_of(version, &about.kind).ok_or_else(|| {
            format!(
                "unable to fetch metrics from custom metrics API: no matches for kind {:?} in version {version:?}",
                about.kind
            )
        })?;
        let resource = resource.resource.gvr.group_resource();
        format!("namespaces/{namespace}/{resource}/{}/{}{query}", encode(&about.name), encode(metric))
    };
    let list = custom(client, &path).await?;
    let value = items(&list).first().and_then(|item| milli(&item["value"]));
    value.ok_or_else(|| {
        "unable to fetch metrics from custom metrics API: the custom metrics API server returned 0 results \
         when we asked for exactly one"
            .to_owned()
    })
}

/// The sum of an external metric.
pub(super) async fn external(
    client: &Client,
    namespace: &str,
    metric: &str,
    metric_selector: &str,
) -> Result<i64, String> {
    let path = format!(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}?labelSelector={}",
        encode(metric),
        encode(metric_selector)
    );
    let list = read(client, &path).await.map_err(|error| {
        let error = missing(error, &format!("{metric}.external.metrics.k8s.io"));
        format!("unable to fetch metrics from external metrics API: {error}")
    })?;
    if items(&list).is_empty() {
        return Err("no metrics returned from external metrics API".to_owned());
    }
    let values = items(&list).iter().filter_map(|item| milli(&item["value"]));
    Ok(values.fold(0, i64::saturating_add))
}
