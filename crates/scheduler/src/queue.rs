//! Which pod is tried next, and when a refused one is tried again.
//!
//! A pod is in one of four places: ready (by priority, then age), backing off until a moment, asleep until a
//! change may help it, or held back by a plugin. Time is a parameter.
//!
//! Upstream: pkg/scheduler/backend/queue/scheduling_queue.go

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::PodInfo;

/// A pod that nothing woke for so long is tried all the same.
const MAX_SLEEP: Duration = Duration::from_secs(5 * 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Ready,
    Until(Instant),
    Asleep(Instant),
    HeldBack,
    /// Taken by the scheduler.
    Tried,
}

struct Waiting {
    pod: Arc<PodInfo>,
    place: Place,
    /// When it came, for order among equals.
    arrival: u64,
    attempts: u32,
    /// The plugins that refused it last.
    refused_by: Vec<&'static str>,
    /// Something happened while it was tried that may help it.
    helped: bool,
}

type Order = (Reverse<i32>, u64, String);

pub struct Queue {
    backoff: Backoff,
    pods: HashMap<String, Waiting>,
    ready: BTreeSet<Order>,
    /// Pods with a moment: of back-off, or the end of their sleep.
    timed: BTreeSet<(Instant, String)>,
    arrivals: u64,
}

/// How long a pod waits after its first failed attempt; twice as long after each more, up to a maximum.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub initial: Duration,
    pub max: Duration,
}

impl Backoff {
    fn after(&self, attempts: u32) -> Duration {
        self.initial.saturating_mul(1 << attempts.saturating_sub(1).min(20)).min(self.max)
    }
}

impl Queue {
    pub fn new(backoff: Backoff) -> Self {
        Queue { backoff, pods: HashMap::new(), ready: BTreeSet::new(), timed: BTreeSet::new(), arrivals: 0 }
    }

    /// Takes note of a pod that has no node: a new one, or a change of a known one. A plugin may hold it back.
    pub fn set(&mut self, pod: Arc<PodInfo>, held_back: bool) {
        let key = pod.key.clone();
        let Some(known) = self.pods.get_mut(&key) else {
            self.arrivals += 1;
            let place = if held_back { Place::HeldBack } else { Place::Ready };
            let arrival = self.arrivals;
            let waiting = Waiting {
                pod,
                place: Place::Tried,
                arrival,
                attempts: 0,
                refused_by: Vec::new(),
                helped: false,
            };
            self.pods.insert(key.clone(), waiting);
            self.move_to(&key, place);
            return;
        };
        let spec_changed =
            known.pod.pod.spec != pod.pod.spec || known.pod.pod.metadata.labels != pod.pod.metadata.labels;
        let place = known.place;
        self.move_to(&key, Place::Tried);
        let known = self.pods.get_mut(&key).expect("it was there just now");
        known.pod = pod;
        match place {
            Place::HeldBack if !held_back => self.move_to(&key, Place::Ready),
            Place::Asleep(_) if spec_changed => self.move_to(&key, Place::Ready),
            Place::Tried => known.helped |= spec_changed,
            _ => self.move_to(&key, place),
        }
    }

    pub fn remove(&mut self, key: &str) {
        self.move_to(key, Place::Tried);
        self.pods.remove(key);
    }

    pub fn get(&self, key: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(key).map(|waiting| &waiting.pod)
    }

    /// The next pod to try.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        while let Some((_, key)) = self.timed.first().filter(|(at, _)| *at <= now).cloned() {
            self.move_to(&key, Place::Ready);
        }
        let (_, _, key) = self.ready.first().cloned()?;
        self.move_to(&key, Place::Tried);
        let waiting = self.pods.get_mut(&key)?;
        waiting.attempts += 1;
        waiting.helped = false;
        Some(waiting.pod.clone())
    }

    /// When [`Queue::pop`] will have a pod though nothing happens.
    pub fn next_moment(&self) -> Option<Instant> {
        self.timed.first().map(|(at, _)| *at)
    }

    /// A tried pod found no node.
    pub fn refused(&mut self, key: &str, refused_by: Vec<&'static str>, now: Instant) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        waiting.refused_by = refused_by;
        let place = if waiting.helped {
            Place::Until(now + self.backoff.after(waiting.attempts))
        } else {
            Place::Asleep(now + MAX_SLEEP)
        };
        self.move_to(key, place);
    }

    /// A tried pod could not be placed for no fault of its own.
    pub fn failed(&mut self, key: &str, now: Instant) {
        if let Some(waiting) = self.pods.get(key) {
            let until = now + self.backoff.after(waiting.attempts);
            self.move_to(key, Place::Until(until));
        }
    }

    /// Wakes the sleeping pods that something may help; `may_help` is asked with the plugins that refused.
    pub fn wake(&mut self, may_help: impl Fn(&PodInfo, &[&str]) -> bool, now: Instant) {
        let helps =
            |waiting: &Waiting| waiting.refused_by.is_empty() || may_help(&waiting.pod, &waiting.refused_by);
        let mut woken = Vec::new();
        for (key, waiting) in &mut self.pods {
            match waiting.place {
                Place::Asleep(since) if helps(waiting) => {
                    let refused_at = since - MAX_SLEEP;
                    woken.push((key.clone(), refused_at + self.backoff.after(waiting.attempts)));
                }
                Place::Tried => waiting.helped = true,
                _ => {}
            }
        }
        for (key, until) in woken {
            self.move_to(&key, if until <= now { Place::Ready } else { Place::Until(until) });
        }
    }

    fn move_to(&mut self, key: &str, place: Place) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let order = (Reverse(waiting.pod.priority), waiting.arrival, key.to_owned());
        match waiting.place {
            Place::Ready => drop(self.ready.remove(&order)),
            Place::Until(at) | Place::Asleep(at) => drop(self.timed.remove(&(at, key.to_owned()))),
            Place::HeldBack | Place::Tried => {}
        }
        waiting.place = place;
        match place {
            Place::Ready => drop(self.ready.insert(order)),
            Place::Until(at) | Place::Asleep(at) => drop(self.timed.insert((at, key.to_owned()))),
            Place::HeldBack | Place::Tried => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use api::Object;
    use api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::cluster::Change;
    use crate::profile::Profile;

    const BACKOFF: Backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(10) };

    fn wake(queue: &mut Queue, change: Change, now: Instant) {
        let profile = Profile::default();
        queue.wake(|pod, refused_by| profile.may_help(refused_by, pod, &change), now);
    }

    fn set(queue: &mut Queue, pod: Arc<PodInfo>) {
        let held_back = Profile::default().is_held_back(&pod);
        queue.set(pod, held_back);
    }

    fn pod(name: &str, priority: i32, gated: bool) -> Arc<PodInfo> {
        let gates = if gated { json!([{"name": "wait"}]) } else { json!([]) };
        let pod = json!({"metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [], "priority": priority, "schedulingGates": gates}});
        Arc::new(PodInfo::new(Pod::from_value(pod).unwrap().into()))
    }

    fn pop(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|pod| pod.pod.name().to_owned())
    }

    #[test]
    fn higher_priority_first_then_age() {
        let (mut queue, now) = (Queue::new(BACKOFF), Instant::now());
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            set(&mut queue, pod(name, priority, false));
        }
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, now)).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn a_refused_pod_sleeps_until_a_change_may_help() {
        let (mut queue, now) = (Queue::new(BACKOFF), Instant::now());
        set(&mut queue, pod("a", 0, false));
        assert_eq!(pop(&mut queue, now).as_deref(), Some("a"));
        queue.refused("default/a", vec!["NodeResourcesFit"], now);
        wake(&mut queue, Change::PodPlaced(pod("x", 0, false)), now);
        assert_eq!(queue.next_moment(), Some(now + MAX_SLEEP));
        wake(&mut queue, Change::PodGone(pod("x", 0, false)), now);
        assert_eq!(pop(&mut queue, now), None, "it still backs off");
        assert_eq!(queue.next_moment(), Some(now + BACKOFF.initial));
        assert_eq!(pop(&mut queue, now + BACKOFF.initial).as_deref(), Some("a"));
    }

    #[test]
    fn a_change_while_a_pod_is_tried_is_not_missed() {
        let (mut queue, now) = (Queue::new(BACKOFF), Instant::now());
        set(&mut queue, pod("a", 0, false));
        pop(&mut queue, now);
        wake(&mut queue, Change::PodGone(pod("x", 0, false)), now);
        queue.refused("default/a", vec!["NodeResourcesFit"], now);
        assert_eq!(queue.next_moment(), Some(now + BACKOFF.initial));
    }

    #[test]
    fn a_gated_pod_is_held_back_until_its_gates_go() {
        let (mut queue, now) = (Queue::new(BACKOFF), Instant::now());
        set(&mut queue, pod("a", 0, true));
        assert_eq!(pop(&mut queue, now), None);
        set(&mut queue, pod("a", 0, false));
        assert_eq!(pop(&mut queue, now).as_deref(), Some("a"));
    }

    #[test]
    fn back_off_doubles_to_ten_seconds() {
        let seconds: Vec<u64> = (1..=6).map(|attempts| BACKOFF.after(attempts).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 10, 10]);
    }
}
