//! What is counted, by upstream's names: requests answered and how long they took, those that are being answered,
//! open watches, stored objects.
//!
//! What always holds: counting a request takes one short lock and, for built-in kinds, allocates nothing.
//!
//! Upstream: apiserver/pkg/endpoints/metrics/metrics.go

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use apimachinery::gvk::Name;
use http::{Method, StatusCode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::time::Instant;

use crate::handle::ApiServer;
use crate::registry::Resource;
use crate::seams::Attributes;

/// Seconds.
///
/// Upstream: endpoints/metrics/metrics.go requestLatencies
const BUCKETS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];

/// What a request was for, once that is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Target {
    verb: &'static str,
    group: Name,
    version: Name,
    resource: Name,
    subresource: Name,
    scope: &'static str,
}

impl Target {
    pub fn new(resource: &Resource, attributes: &Attributes) -> Self {
        let def = &resource.def;
        let subresource =
            def.subresource(&attributes.subresource).map(|subresource| subresource.name.clone());
        let whole = matches!(&*attributes.verb, "list" | "watch" | "deletecollection");
        Target {
            verb: verb(&attributes.verb),
            group: def.group.clone(),
            version: def.version.clone(),
            resource: def.plural.clone(),
            subresource: subresource.unwrap_or_default(),
            scope: match (whole, attributes.namespace.is_empty()) {
                (true, true) => "cluster",
                (true, false) => "namespace",
                (false, _) => "resource",
            },
        }
    }
}

/// As metrics call a verb.
///
/// Upstream: endpoints/metrics/metrics.go canonicalVerb
fn verb(name: &str) -> &'static str {
    match name {
        "create" => "POST",
        "update" => "PUT",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        _ => "other",
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Key {
    target: Target,
    code: u16,
}

#[derive(Clone, Copy, Debug, Default)]
struct Times {
    count: u64,
    sum: f64,
    buckets: [u64; BUCKETS.len() + 1],
}

/// How many requests are being answered, by whether they change something.
#[derive(Debug, Default)]
struct InFlight {
    reading: AtomicI64,
    mutating: AtomicI64,
}

/// What is counted.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    requests: Arc<Mutex<HashMap<Key, Times>>>,
    in_flight: Arc<InFlight>,
    watches: Arc<AtomicI64>,
    others: Others,
}

/// Adds what else is counted in the same process.
type Teller = Box<dyn Fn(&mut MetricsRegistry) + Send + Sync>;

/// What else of the same process is told with the server's own.
#[derive(Clone, Default)]
struct Others(Arc<Mutex<Vec<Teller>>>);

impl std::fmt::Debug for Others {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Others").finish_non_exhaustive()
    }
}

/// Counts an open watch for as long as it lives.
pub struct Open(Arc<AtomicI64>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A request that is being answered.
pub struct Asked<'a> {
    metrics: &'a Metrics,
    mutating: bool,
    method: &'static str,
    since: Instant,
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.metrics.counter(self.mutating).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Asked<'_> {
    pub fn answered(self, code: StatusCode, target: Option<Target>) {
        let target = target.unwrap_or_else(|| Target { verb: self.method, ..Target::default() });
        let seconds = self.since.elapsed().as_secs_f64();
        let mut requests = self.metrics.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let times = requests.entry(Key { target, code: code.as_u16() }).or_default();
        times.count += 1;
        times.sum += seconds;
        times.buckets[BUCKETS.partition_point(|bound| *bound < seconds)] += 1;
    }
}

impl Metrics {
    fn counter(&self, mutating: bool) -> &AtomicI64 {
        if mutating { &self.in_flight.mutating } else { &self.in_flight.reading }
    }

    pub fn asked(&self, method: &Method) -> Asked<'_> {
        let method = match *method {
            Method::GET => "GET",
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            _ => "other",
        };
        let mutating = !matches!(method, "GET" | "HEAD" | "other");
        self.counter(mutating).fetch_add(1, Ordering::Relaxed);
        Asked { metrics: self, mutating, method, since: Instant::now() }
    }

    pub fn watching(&self) -> Open {
        self.watches.fetch_add(1, Ordering::Relaxed);
        Open(self.watches.clone())
    }

    /// Has something else of the process told of, too: what `register` adds to the registry of each scrape.
    pub fn also(&self, register: impl Fn(&mut MetricsRegistry) + Send + Sync + 'static) {
        self.others.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::new(register));
    }

    /// Everything, for one scrape.
    pub fn text(&self, server: &ApiServer) -> String {
        let mut registry = MetricsRegistry::default();
        registry.register_collector(Box::new(self.clone()));
        let in_flight = Family::<Vec<(&str, &str)>, Gauge>::default();
        for (kind, mutating) in [("readOnly", false), ("mutating", true)] {
            let now = self.counter(mutating).load(Ordering::Relaxed);
            in_flight.get_or_create(&vec![("request_kind", kind)]).set(now);
        }
        registry.register(
            "apiserver_current_inflight_requests",
            "Requests that are being answered, by whether they change something",
            in_flight,
        );
        let watches = Gauge::<i64>::default();
        watches.set(self.watches.load(Ordering::Relaxed));
        registry.register("apiserver_longrunning_requests", "Open watches", watches);
        let objects = Family::<Vec<(&str, String)>, Gauge>::default();
        for row in server.registry.table().rows() {
            if let Some(cache) = &row.cache {
                let labels = vec![("resource", row.def.group_resource().to_string())];
                objects.get_or_create(&labels).set(i64::try_from(cache.read().count()).unwrap_or(i64::MAX));
            }
        }
        registry.register("apiserver_storage_objects", "Stored objects, by resource", objects);
        server.flow_control.register(&mut registry);
        server.config.admit.register(&mut registry);
        for register in &*self.others.0.lock().unwrap_or_else(PoisonError::into_inner) {
            register(&mut registry);
        }
        let mut text = String::new();
        encode(&mut text, &registry).expect("writing to a String cannot fail");
        text
    }
}

impl Collector for Metrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let labels = |target: &Target| {
            vec![
                ("verb", target.verb.to_owned()),
                ("group", target.group.to_string()),
                ("version", target.version.to_string()),
                ("resource", target.resource.to_string()),
                ("subresource", target.subresource.to_string()),
                ("scope", target.scope.to_owned()),
                ("component", "apiserver".to_owned()),
            ]
        };
        let help = "Requests answered";
        let mut counters = encoder.encode_descriptor("apiserver_request", help, None, MetricType::Counter)?;
        for (key, times) in &requests {
            let mut labels = labels(&key.target);
            labels.push(("code", key.code.to_string()));
            labels.push(("dry_run", String::new()));
            counters.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&times.count, None)?;
        }
        let mut by_target: HashMap<&Target, Times> = HashMap::new();
        for (key, times) in &requests {
            let all = by_target.entry(&key.target).or_default();
            all.count += times.count;
            all.sum += times.sum;
            all.buckets.iter_mut().zip(times.buckets).for_each(|(all, one)| *all += one);
        }
        let (name, help) = ("apiserver_request_duration_seconds", "How long answers took");
        let mut histograms = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (target, times) in by_target {
            let mut labels = labels(target);
            labels.push(("dry_run", String::new()));
            let bounds = BUCKETS.into_iter().chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(times.buckets).collect();
            let mut family = histograms.encode_family(&labels)?;
            family.encode_histogram::<NoLabelSet>(times.sum, times.count, &buckets, None)?;
        }
        Ok(())
    }
}
