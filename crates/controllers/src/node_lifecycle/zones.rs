//! How fast pods may be driven off the nodes of a zone: slower when much of it is unwell, and not at all when no
//! zone is well, since then the fault is likely ours.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use api::Object;
use api::core::v1::Node;
use jiff::{SignedDuration, Timestamp};

use super::taints::readiness;
use crate::objects::label;

/// Nodes a second whose pods may be driven off, and when that changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EvictionRates {
    pub normal: f32,
    /// In large zones of which too many nodes are unwell; in small ones there is none then.
    pub secondary: f32,
    /// A zone of more nodes is large.
    pub large_zone: usize,
    /// The share of unwell nodes from which on a zone is disrupted.
    pub unhealthy_share: f32,
}

impl Default for EvictionRates {
    /// Upstream: pkg/controller/nodelifecycle/config/v1alpha1/defaults.go
    fn default() -> Self {
        EvictionRates { normal: 0.1, secondary: 0.01, large_zone: 50, unhealthy_share: 0.55 }
    }
}

/// Upstream: pkg/controller/nodelifecycle/node_lifecycle_controller.go ZoneState
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Initial,
    Normal,
    PartialDisruption,
    FullDisruption,
}

/// Lets one pass at a time, so many a second.
#[derive(Clone, Copy, Debug)]
struct Limiter {
    rate: f32,
    next: Timestamp,
}

impl Limiter {
    fn interval(rate: f32) -> SignedDuration {
        SignedDuration::from_secs_f32((1.0 / rate).min(1e9))
    }

    /// Changes the rate. Whoever had to wait before does not pass at once.
    ///
    /// Upstream: pkg/controller/nodelifecycle/scheduler/rate_limited_queue.go SwapLimiter
    fn swap(&mut self, rate: f32, now: Timestamp) {
        if rate == self.rate {
            return;
        }
        let waited = self.rate <= 0.0 || now < self.next;
        self.rate = rate;
        self.next = if waited && rate > 0.0 { later(now, Self::interval(rate)) } else { now };
    }
}

fn later(now: Timestamp, by: SignedDuration) -> Timestamp {
    now.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[derive(Debug)]
struct Zone {
    ready: usize,
    unwell: usize,
    /// Nodes that say nothing about the zone's health.
    excluded: usize,
    state: State,
    limiter: Limiter,
}

impl Zone {
    fn counted(&self) -> usize {
        self.ready + self.unwell
    }

    /// Upstream: pkg/controller/nodelifecycle/node_lifecycle_controller.go ComputeZoneState
    fn compute(&self, rates: &EvictionRates) -> State {
        let share = self.unwell as f32 / self.counted() as f32;
        match (self.ready, self.unwell) {
            (0, 1..) => State::FullDisruption,
            (_, 3..) if share >= rates.unhealthy_share => State::PartialDisruption,
            _ => State::Normal,
        }
    }

    /// Upstream: pkg/controller/nodelifecycle/node_lifecycle_controller.go setLimiterInZone
    fn rate(&self, state: State, rates: &EvictionRates) -> f32 {
        match state {
            State::PartialDisruption if self.counted() > rates.large_zone => rates.secondary,
            State::PartialDisruption => 0.0,
            State::Initial | State::Normal | State::FullDisruption => rates.normal,
        }
    }
}

/// What a look at all zones has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shift {
    None,
    /// Other rates hold in some zone.
    Rates,
    /// No zone is well any more.
    AllDown,
    /// Some zone is well again: what was heard of nodes meanwhile counts for nothing.
    Recovered,
}

/// Whether pods may be driven off a node now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Now,
    After(Duration),
    /// Not before the zones change.
    Paused,
}

/// How a node counts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Member {
    zone: String,
    /// `None` for one that is excluded.
    ready: Option<bool>,
}

/// All zones with the health of their nodes.
#[derive(Debug)]
pub(super) struct Zones {
    rates: EvictionRates,
    zones: BTreeMap<String, Zone>,
    members: HashMap<String, Member>,
    all_down: bool,
}

/// Upstream: component-helpers/node/topology/helpers.go GetZoneKey
pub(super) fn zone_of(node: &Node) -> String {
    let of = |keys: [&str; 2]| keys.into_iter().find_map(|key| label(node, key)).unwrap_or_default();
    let region = of(["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]);
    let zone = of(["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]);
    if region.is_empty() && zone.is_empty() { String::new() } else { format!("{region}:\0:{zone}") }
}

fn member(node: &Node) -> Member {
    let excluded = label(node, "node.kubernetes.io/exclude-disruption").is_some();
    Member { zone: zone_of(node), ready: (!excluded).then(|| readiness(node) == "True") }
}

impl Zones {
    pub fn new(rates: EvictionRates) -> Self {
        Zones { rates, zones: BTreeMap::new(), members: HashMap::new(), all_down: false }
    }

    /// Whether no zone is well.
    pub fn all_down(&self) -> bool {
        self.all_down
    }

    pub fn set(&mut self, node: &Node, now: Timestamp) {
        let new = member(node);
        if self.members.get(node.name()) == Some(&new) {
            return;
        }
        self.remove(node.name());
        *self.counter(&new, now) += 1;
        self.members.insert(node.name().to_owned(), new);
    }

    pub fn remove(&mut self, name: &str) {
        let Some(old) = self.members.remove(name) else { return };
        *self.counter(&old, Timestamp::MIN) -= 1;
        self.zones.retain(|_, zone| zone.counted() + zone.excluded > 0);
    }

    fn counter(&mut self, member: &Member, now: Timestamp) -> &mut usize {
        let rate = if self.all_down { 0.0 } else { self.rates.normal };
        let zone = self.zones.entry(member.zone.clone()).or_insert_with(|| Zone {
            ready: 0,
            unwell: 0,
            excluded: 0,
            state: State::Initial,
            limiter: Limiter { rate, next: now },
        });
        match member.ready {
            Some(true) => &mut zone.ready,
            Some(false) => &mut zone.unwell,
            None => &mut zone.excluded,
        }
    }

    /// Looks at all zones, after changes.
    ///
    /// Upstream: pkg/controller/nodelifecycle/node_lifecycle_controller.go handleDisruption
    pub fn evaluate(&mut self, now: Timestamp) -> Shift {
        let rates = self.rates;
        let mut counted = self.zones.values().filter(|zone| zone.counted() > 0).peekable();
        let any = counted.peek().is_some();
        let all_down = any && counted.all(|zone| zone.compute(&rates) == State::FullDisruption);
        let was_down = std::mem::replace(&mut self.all_down, all_down);
        if all_down {
            for zone in self.zones.values_mut() {
                zone.state = State::FullDisruption;
                zone.limiter.swap(0.0, now);
            }
            return if was_down { Shift::None } else { Shift::AllDown };
        }
        let mut shift = if was_down { Shift::Recovered } else { Shift::None };
        for zone in self.zones.values_mut().filter(|zone| zone.counted() > 0) {
            let state = zone.compute(&rates);
            if state == zone.state && !was_down {
                continue;
            }
            zone.state = state;
            let (before, after) = (zone.limiter.rate, zone.rate(state, &rates));
            zone.limiter.swap(after, now);
            if before != after && shift == Shift::None {
                shift = Shift::Rates;
            }
        }
        shift
    }

    /// Asks for the pods of one more node of a zone to be driven off.
    pub fn admit(&mut self, zone: &str, now: Timestamp) -> Admission {
        let Some(Zone { limiter, .. }) = self.zones.get_mut(zone) else { return Admission::Paused };
        if limiter.rate <= 0.0 {
            return Admission::Paused;
        }
        if now < limiter.next {
            return Admission::After(limiter.next.duration_since(now).unsigned_abs());
        }
        limiter.next = later(now, Limiter::interval(limiter.rate));
        Admission::Now
    }

    /// Gives back what [`admit`](Self::admit) gave: nothing came of it.
    pub fn give_back(&mut self, zone: &str, now: Timestamp) {
        if let Some(zone) = self.zones.get_mut(zone) {
            zone.limiter.next = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::tests::at;

    fn node(name: &str, zone: &str, ready: &str) -> Node {
        Node::from_value(json!({
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    /// Zones of so many ready and unwell nodes.
    fn zones(sizes: &[(&str, usize, usize)]) -> Zones {
        let mut zones = Zones::new(EvictionRates::default());
        fill(&mut zones, sizes, at(0));
        zones.evaluate(at(0));
        zones
    }

    fn fill(zones: &mut Zones, sizes: &[(&str, usize, usize)], now: Timestamp) {
        for (zone, ready, unwell) in sizes {
            for i in 0..ready + unwell {
                let state = if i < *ready { "True" } else { "Unknown" };
                zones.set(&node(&format!("{zone}-{i}"), zone, state), now);
            }
        }
    }

    fn key(zone: &str) -> String {
        zone_of(&node("", zone, "True"))
    }

    #[test]
    fn a_zone_is_as_well_as_its_nodes() {
        for (ready, unwell, expected) in [
            (1, 0, State::Normal),
            (0, 1, State::FullDisruption),
            (1, 2, State::Normal),
            (1, 3, State::PartialDisruption),
            (3, 3, State::Normal),
            (4, 5, State::PartialDisruption),
            (100, 10, State::Normal),
        ] {
            let zones = zones(&[("a", ready, unwell), ("well", 1, 0)]);
            assert_eq!(zones.zones[&key("a")].state, expected, "{ready} ready, {unwell} not");
        }
    }

    #[test]
    fn a_disrupted_zone_is_slow_when_large_and_stands_still_when_small() {
        for (sizes, first, then) in [
            ((9, 1), Admission::Now, Admission::After(Duration::from_secs(10))),
            ((10, 20), Admission::Paused, Admission::Paused),
            ((10, 50), Admission::Now, Admission::After(Duration::from_secs(100))),
            ((0, 5), Admission::Now, Admission::After(Duration::from_secs(10))),
        ] {
            let mut zones = zones(&[("a", sizes.0, sizes.1), ("well", 1, 0)]);
            assert_eq!(zones.admit(&key("a"), at(0)), first, "{sizes:?}");
            assert_eq!(zones.admit(&key("a"), at(0)), then, "{sizes:?}");
        }
    }

    #[test]
    fn nothing_is_driven_off_while_all_is_down() {
        let mut zones = zones(&[("a", 2, 0), ("b", 2, 0)]);
        fill(&mut zones, &[("a", 0, 2)], at(1));
        assert_eq!((zones.evaluate(at(1)), zones.all_down()), (Shift::None, false));
        assert_eq!(zones.admit(&key("a"), at(1)), Admission::Now);
        fill(&mut zones, &[("b", 0, 2)], at(2));
        assert_eq!((zones.evaluate(at(2)), zones.all_down()), (Shift::AllDown, true));
        assert_eq!(zones.evaluate(at(2)), Shift::None);
        assert_eq!(zones.admit(&key("a"), at(20)), Admission::Paused);
        zones.set(&node("c-0", "c", "False"), at(21));
        assert_eq!(zones.evaluate(at(21)), Shift::None);
        assert_eq!(zones.admit(&key("c"), at(21)), Admission::Paused);
        fill(&mut zones, &[("b", 1, 1)], at(30));
        assert_eq!((zones.evaluate(at(30)), zones.all_down()), (Shift::Recovered, false));
        // Who had to wait goes on waiting.
        assert_eq!(zones.admit(&key("a"), at(30)), Admission::After(Duration::from_secs(10)));
        assert_eq!(zones.admit(&key("a"), at(40)), Admission::Now);
    }

    #[test]
    fn what_came_to_nothing_is_given_back() {
        let mut zones = zones(&[("a", 5, 1)]);
        assert_eq!(zones.admit(&key("a"), at(0)), Admission::Now);
        zones.give_back(&key("a"), at(0));
        assert_eq!(zones.admit(&key("a"), at(0)), Admission::Now);
    }

    #[test]
    fn nodes_may_be_left_out_and_go() {
        let mut excluded = node("x", "a", "True");
        let labels = excluded.metadata.labels.get_or_insert_default();
        labels.insert("node.kubernetes.io/exclude-disruption".into(), String::new());
        let mut zones = zones(&[("a", 0, 1)]);
        zones.set(&excluded, at(0));
        zones.evaluate(at(0));
        assert!(zones.all_down());
        zones.remove("a-0");
        assert_eq!(zones.evaluate(at(0)), Shift::Recovered);
        zones.remove("x");
        assert!(zones.zones.is_empty() && zones.members.is_empty());
    }
}
