//! Priority and fairness: how many requests run at once, of whom, and who waits. A request is classified by the
//! FlowSchemas, runs on the seats of its schema's level, or waits in one of the level's queues, or is refused.
//!
//! [`configuration`] is what is configured, as it is used; [`queues`] decides about one level; [`objects`] is what
//! a cluster starts with; [`status`] says which schemas lead nowhere; [`shown`] is what people and scrapers see.
//!
//! What always holds: a seat is given back when its request ends or its client goes away; without contention a
//! request pays for a classification and two short locks. Watches hold a seat only while they begin; other
//! requests that last (exec, logs, proxies) hold none.
//!
//! Upstream: apiserver/pkg/server/filters/priority-and-fairness.go, apiserver/pkg/util/flowcontrol

mod configuration;
pub mod objects;
mod queues;
mod shown;
mod status;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::configuration::{Configuration, Queues};
use self::queues::{Arrival, Place};
use crate::registry::Table;
use crate::request::RequestInfo;
use crate::seams::{Attributes, Lookup, UserInfo};

pub use shown::handle as debug;

const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// Upstream: apiserver/pkg/server/config.go, by a quarter of --request-timeout
const MAX_WAIT: Duration = Duration::from_secs(15);

/// How often seats move between levels, while somebody wants more than his level has.
const REBALANCE_INTERVAL: Duration = Duration::from_secs(1);

/// Upstream: apiserver/pkg/util/flowcontrol/request/config.go
const OBJECTS_PER_SEAT: usize = 100;
const MAX_LIST_SEATS: u32 = 10;

/// All levels, with the configuration that made them.
pub struct FlowControl {
    /// How many requests run at once in all.
    seats: u32,
    current: RwLock<Arc<Configuration>>,
    rebalanced: Mutex<Option<Instant>>,
}

/// Why a request does not run now.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused;

/// The seats of a request, which are given back when this is dropped.
pub struct Seat {
    configuration: Arc<Configuration>,
    schema: usize,
    taken: Option<Taken>,
}

struct Taken {
    queues: Arc<Queues>,
    place: Place,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        queues.finish(self.place);
        // Who has gone away meanwhile gives his place back himself.
        while let Some(next) = queues.next() {
            next.send(()).ok();
        }
    }
}

/// By what a request was classified, for the headers of its answer.
#[derive(Clone, Debug)]
pub struct Classified {
    schema: HeaderValue,
    level: HeaderValue,
}

impl Classified {
    pub fn write(self, headers: &mut HeaderMap) {
        headers.insert(SCHEMA_UID, self.schema);
        headers.insert(LEVEL_UID, self.level);
    }
}

impl Seat {
    pub fn classified(&self) -> Classified {
        let schema = &self.configuration.schemas[self.schema];
        let level = &self.configuration.levels[schema.level];
        Classified { schema: schema.uid.clone(), level: level.uid.clone() }
    }
}

/// Whether a request may last so long that it must not hold a seat.
///
/// Upstream: pkg/controlplane/apiserver/config.go LongRunningFunc
pub fn is_long_running(attributes: &Attributes) -> bool {
    attributes.is_resource
        && matches!(&*attributes.subresource, "attach" | "exec" | "proxy" | "log" | "portforward")
        || !attributes.is_resource && attributes.path.starts_with("/debug/pprof/")
}

/// How many seats a request takes: what must be gone through, for a list.
pub fn width(table: &Table, info: &RequestInfo) -> u32 {
    let attributes = &info.attributes;
    let lists = attributes.verb == "list"
        || attributes.verb == "watch" && matches!(info.query.get("resourceVersion"), None | Some("" | "0"));
    if !lists || !attributes.name.is_empty() {
        return 1;
    }
    let resource = table.find(&attributes.group, &attributes.version, &attributes.resource);
    let count = resource.and_then(|resource| resource.cache.as_ref()).map_or(0, |cache| cache.read().count());
    let limit = info.query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
    let count = limit.map_or(count, |limit: usize| count.min(limit));
    u32::try_from(count.div_ceil(OBJECTS_PER_SEAT)).unwrap_or(MAX_LIST_SEATS).clamp(1, MAX_LIST_SEATS)
}

impl FlowControl {
    pub fn new(seats: u32) -> Self {
        FlowControl {
            seats,
            current: RwLock::new(Arc::new(Configuration::empty())),
            rebalanced: Mutex::default(),
        }
    }

    /// What is configured now.
    fn configuration(&self, lookup: &dyn Lookup) -> Arc<Configuration> {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        if current.is_current(lookup) {
            return current;
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if !current.is_current(lookup) {
            *current = Arc::new(Configuration::read(lookup, self.seats, &current));
        }
        current.clone()
    }

    /// Waits for the seats that a request needs. `None` for one that no schema is for, which nothing holds back.
    pub async fn admit(
        &self,
        lookup: &dyn Lookup,
        user: &UserInfo,
        attributes: &Attributes,
        seats: impl FnOnce() -> u32,
    ) -> (Option<Classified>, Result<Option<Seat>, Refused>) {
        let configuration = self.configuration(lookup);
        let Some(schema) = configuration.classify(user, attributes) else { return (None, Ok(None)) };
        let mut seat = Seat { configuration: configuration.clone(), schema, taken: None };
        let classified = Some(seat.classified());
        let schema = &configuration.schemas[schema];
        let level = &configuration.levels[schema.level];
        if level.exempt {
            schema.counts.dispatched.fetch_add(1, Relaxed);
            return (classified, Ok(Some(seat)));
        }
        let (flow, seats) = (schema.flow(user, attributes), seats());
        let taken = match self.arrive(&configuration, &level.queues, flow, seats) {
            Ok((place, turn)) => {
                let taken = Taken { queues: level.queues.clone(), place };
                match turn {
                    None => Ok(taken),
                    Some(turn) => match tokio::time::timeout(MAX_WAIT, turn).await {
                        Ok(Ok(())) => Ok(taken),
                        _ => Err("time-out"),
                    },
                }
            }
            Err(reason) => Err(reason),
        };
        match taken {
            Ok(taken) => {
                schema.counts.dispatched.fetch_add(1, Relaxed);
                seat.taken = Some(taken);
                (classified, Ok(Some(seat)))
            }
            Err(reason) => {
                let count = match reason {
                    "queue-full" => &schema.counts.queue_full,
                    "time-out" => &schema.counts.timed_out,
                    _ => &schema.counts.concurrency_limit,
                };
                count.fetch_add(1, Relaxed);
                (classified, Err(Refused))
            }
        }
    }

    /// Takes the seats, or a place in a queue with what tells when its turn has come.
    fn arrive(
        &self,
        configuration: &Configuration,
        queues: &Queues,
        flow: u64,
        seats: u32,
    ) -> Result<(Place, Option<oneshot::Receiver<()>>), &'static str> {
        let try_once = || {
            let (sender, receiver) = oneshot::channel();
            let mut set = queues.lock().unwrap_or_else(PoisonError::into_inner);
            (set.arrive(flow, seats, || sender), receiver)
        };
        match try_once() {
            (Arrival::Run(place), _) => return Ok((place, None)),
            (Arrival::Wait(place), receiver) => {
                self.rebalance(configuration);
                return Ok((place, Some(receiver)));
            }
            (Arrival::Reject(reason), _) if !self.rebalance(configuration) => return Err(reason),
            (Arrival::Reject(_), _) => {}
        }
        match try_once() {
            (Arrival::Run(place), _) => Ok((place, None)),
            (Arrival::Wait(place), receiver) => Ok((place, Some(receiver))),
            (Arrival::Reject(reason), _) => Err(reason),
        }
    }

    /// Lends what levels do not use to those that want more. False when it was done a moment ago.
    ///
    /// Upstream: apiserver/pkg/util/flowcontrol/apf_controller.go updateBorrowing, which looks every ten seconds,
    /// whether or not anybody wants to borrow
    fn rebalance(&self, configuration: &Configuration) -> bool {
        let now = Instant::now();
        {
            let mut last = self.rebalanced.lock().unwrap_or_else(PoisonError::into_inner);
            if last.is_some_and(|last| now < last + REBALANCE_INTERVAL) {
                return false;
            }
            *last = Some(now);
        }
        let limited: Vec<_> = configuration.levels.iter().filter(|level| !level.exempt).collect();
        let levels: Vec<Demand> = limited
            .iter()
            .map(|level| {
                let digest = level.queues.lock().unwrap_or_else(PoisonError::into_inner).digest();
                Demand {
                    seats: digest.seats + digest.waiting_seats,
                    lower: level.lower(),
                    nominal: level.nominal,
                    upper: level.upper(),
                }
            })
            .collect();
        for (level, limit) in limited.iter().zip(lend(&levels)) {
            let mut queues = level.queues.lock().unwrap_or_else(PoisonError::into_inner);
            queues.set_limit(limit);
            while let Some(next) = queues.next() {
                next.send(()).ok();
            }
        }
        true
    }
}

/// What a level wants, and within what bounds.
struct Demand {
    seats: u32,
    lower: u32,
    nominal: u32,
    upper: u32,
}

/// The limits of the levels: who needs less than its part lends the rest, down to what it keeps at least; those
/// who want more share that by the size of their parts.
fn lend(levels: &[Demand]) -> Vec<u32> {
    let kept = |level: &Demand| level.seats.clamp(level.lower, level.nominal.max(level.lower));
    let mut spare: u32 = levels.iter().map(|level| level.nominal.saturating_sub(kept(level))).sum();
    let wants =
        |level: &Demand| level.seats.max(level.nominal).min(level.upper) - level.nominal.min(level.upper);
    let mut weight: u64 = levels.iter().filter(|l| wants(l) > 0).map(|l| u64::from(l.nominal.max(1))).sum();
    levels
        .iter()
        .map(|level| {
            let wanted = wants(level);
            if wanted == 0 {
                return kept(level);
            }
            let own = u64::from(level.nominal.max(1));
            let share = u32::try_from(u64::from(spare) * own / weight.max(1)).unwrap_or(u32::MAX);
            let borrowed = wanted.min(share);
            weight -= own;
            spare -= borrowed;
            level.nominal + borrowed
        })
        .collect()
}

#[cfg(test)]
mod tests;
