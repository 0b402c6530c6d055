//! Which pod is tried next, and when a refused one is tried again.
//!
//! A pod is in one of these places: ready (by priority, then by how long it waits), backing off until a moment,
//! asleep until a change may help it, or held back by a plugin. Time is a parameter.
//!
//! Upstream: pkg/scheduler/backend/queue/scheduling_queue.go

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::PodInfo;

/// A pod that nothing woke for so long is tried all the same.
const MAX_SLEEP: Duration = Duration::from_secs(5 * 60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Ready,
    /// Something may have helped it; it is tried before its time when nothing else is ready.
    BackingOff(Instant),
    /// It failed for no fault of its own.
    Failed(Instant),
    Asleep(Instant),
    HeldBack,
    /// Taken by the scheduler.
    Tried,
}

struct Waiting {
    pod: Arc<PodInfo>,
    place: Place,
    /// When it came to wait, for order among equals.
    arrival: u64,
    attempts: u32,
    /// When it came first.
    since: Instant,
    /// The plugins that refused it last.
    refused_by: Vec<&'static str>,
    /// How many changes there had been when it was taken.
    changes: u64,
    /// It was tried for no other reason than that it had slept for long.
    overslept: bool,
}

type Order = (Reverse<i32>, u64, String);

pub struct Queue {
    backoff: Backoff,
    pods: HashMap<String, Waiting>,
    ready: BTreeSet<Order>,
    backing_off: BTreeSet<(Instant, String)>,
    failed: BTreeSet<(Instant, String)>,
    /// By the end of their sleep.
    asleep: BTreeSet<(Instant, String)>,
    /// The sleeping pods by who refused them.
    refused: HashMap<Vec<&'static str>, HashSet<String>>,
    held_back: usize,
    arrivals: u64,
    changes: u64,
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

/// How many pods wait where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Depth {
    pub active: usize,
    pub backoff: usize,
    pub unschedulable: usize,
    pub gated: usize,
}

impl Queue {
    pub fn new(backoff: Backoff) -> Self {
        Queue {
            backoff,
            pods: HashMap::new(),
            ready: BTreeSet::new(),
            backing_off: BTreeSet::new(),
            failed: BTreeSet::new(),
            asleep: BTreeSet::new(),
            refused: HashMap::new(),
            held_back: 0,
            arrivals: 0,
            changes: 0,
        }
    }

    /// Takes note of a pod that has no node: a new one, or a change of a known one. A plugin may hold it back. True
    /// for a new one.
    pub fn set(&mut self, pod: Arc<PodInfo>, held_back: bool, now: Instant) -> bool {
        let key = pod.key.clone();
        let Some(known) = self.pods.get_mut(&key) else {
            let place = if held_back { Place::HeldBack } else { Place::Ready };
            let waiting = Waiting {
                pod,
                place: Place::Tried,
                arrival: self.next_arrival(),
                attempts: 0,
                since: now,
                refused_by: Vec::new(),
                changes: 0,
                overslept: false,
            };
            self.pods.insert(key.clone(), waiting);
            self.move_to(&key, place);
            return true;
        };
        let changed =
            known.pod.pod.spec != pod.pod.spec || known.pod.pod.metadata.labels != pod.pod.metadata.labels;
        let place = known.place;
        self.move_to(&key, Place::Tried);
        let known = self.pods.get_mut(&key).expect("it was there just now");
        known.pod = pod;
        match place {
            Place::HeldBack if !held_back => self.move_to(&key, Place::Ready),
            Place::Asleep(_) if changed => self.move_to(&key, Place::Ready),
            Place::Tried if changed => self.changes += 1,
            _ => self.move_to(&key, place),
        }
        false
    }

    pub fn remove(&mut self, key: &str) {
        self.move_to(key, Place::Tried);
        self.pods.remove(key);
    }

    pub fn get(&self, key: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(key).map(|waiting| &waiting.pod)
    }

    pub fn depth(&self) -> Depth {
        Depth {
            active: self.ready.len(),
            backoff: self.backing_off.len() + self.failed.len(),
            unschedulable: self.asleep.len(),
            gated: self.held_back,
        }
    }

    /// How often the pod was tried, since when it waits, and whether nothing but its long sleep had it tried.
    pub fn attempts(&self, key: &str) -> Option<(u32, Instant, bool)> {
        self.pods.get(key).map(|waiting| (waiting.attempts, waiting.since, waiting.overslept))
    }

    /// The next pod to try.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<PodInfo>> {
        for key in self.due(now) {
            if let Some(waiting) = self.pods.get_mut(&key) {
                waiting.overslept = matches!(waiting.place, Place::Asleep(_));
            }
            self.move_to(&key, Place::Ready);
        }
        let ready = self.ready.first().map(|(_, _, key)| key);
        // Upstream: scheduling_queue.go, feature SchedulerPopFromBackoffQ
        let key = ready.or(self.backing_off.first().map(|(_, key)| key)).cloned()?;
        self.move_to(&key, Place::Tried);
        self.tried(&key)
    }

    /// Takes one pod that waits, whatever for but not held back.
    pub fn take(&mut self, key: &str) -> Option<Arc<PodInfo>> {
        let waits = |w: &&Waiting| !matches!(w.place, Place::HeldBack | Place::Tried);
        self.pods.get(key).filter(waits)?;
        self.move_to(key, Place::Tried);
        self.tried(key)
    }

    /// An attempt with the pod begins.
    fn tried(&mut self, key: &str) -> Option<Arc<PodInfo>> {
        let changes = self.changes;
        let waiting = self.pods.get_mut(key)?;
        waiting.attempts += 1;
        waiting.changes = changes;
        Some(waiting.pod.clone())
    }

    fn due(&self, now: Instant) -> Vec<String> {
        let timed = [&self.backing_off, &self.failed, &self.asleep].into_iter();
        let due = timed.flat_map(|timed| timed.iter().take_while(|(at, _)| *at <= now));
        due.map(|(_, key)| key.clone()).collect()
    }

    /// When [`Queue::pop`] will have a pod though nothing happens.
    pub fn next_moment(&self) -> Option<Instant> {
        let timed = [&self.backing_off, &self.failed, &self.asleep].into_iter();
        timed.filter_map(|timed| timed.first().map(|(at, _)| *at)).min()
    }

    /// A tried pod found no node. True when it sleeps now.
    pub fn refused(&mut self, key: &str, mut refused_by: Vec<&'static str>, now: Instant) -> bool {
        let (changes, arrival) = (self.changes, self.next_arrival());
        let Some(waiting) = self.pods.get_mut(key).filter(|waiting| waiting.place == Place::Tried) else {
            return false;
        };
        refused_by.sort_unstable();
        waiting.overslept = false;
        waiting.refused_by = refused_by;
        waiting.arrival = arrival;
        // What happened while it was tried may have helped it.
        let place = if waiting.changes != changes {
            Place::BackingOff(now + self.backoff.after(waiting.attempts))
        } else {
            Place::Asleep(now + MAX_SLEEP)
        };
        self.move_to(key, place);
        matches!(place, Place::Asleep(_))
    }

    /// A tried pod could not be placed for no fault of its own.
    pub fn failed(&mut self, key: &str, now: Instant) {
        let arrival = self.next_arrival();
        let Some(waiting) = self.pods.get_mut(key).filter(|waiting| waiting.place == Place::Tried) else {
            return;
        };
        waiting.arrival = arrival;
        let until = now + self.backoff.after(waiting.attempts);
        self.move_to(key, Place::Failed(until));
    }

    /// Wakes the sleeping pods that something may help: of those refused by plugins that are `concerned`, the ones
    /// for which `may_help`, asked with these plugins, says so. How many are ready now, and how many back off.
    pub fn wake(
        &mut self,
        concerned: impl Fn(&str) -> bool,
        may_help: impl Fn(&PodInfo, &[&str]) -> bool,
        now: Instant,
    ) -> (usize, usize) {
        self.changes += 1;
        let mut woken = Vec::new();
        for (refused_by, keys) in &self.refused {
            if !refused_by.is_empty() && !refused_by.iter().any(|plugin| concerned(plugin)) {
                continue;
            }
            for key in keys {
                let Some(waiting) = self.pods.get(key) else { continue };
                let Place::Asleep(until) = waiting.place else { continue };
                if refused_by.is_empty() || may_help(&waiting.pod, refused_by) {
                    let refused_at = until - MAX_SLEEP;
                    woken.push((key.clone(), refused_at + self.backoff.after(waiting.attempts)));
                }
            }
        }
        let (all, ready) = (woken.len(), woken.iter().filter(|(_, until)| *until <= now).count());
        for (key, until) in woken {
            self.move_to(&key, if until <= now { Place::Ready } else { Place::BackingOff(until) });
        }
        (ready, all - ready)
    }

    /// A pod that waits, for whatever, is tried now.
    pub fn activate(&mut self, key: &str) {
        let waits =
            |w: &Waiting| matches!(w.place, Place::Asleep(_) | Place::BackingOff(_) | Place::Failed(_));
        if self.pods.get(key).is_some_and(waits) {
            self.move_to(key, Place::Ready);
        }
    }

    /// Whether the pod waits for a change that may help it.
    pub fn is_asleep(&self, key: &str) -> bool {
        self.pods.get(key).is_some_and(|waiting| matches!(waiting.place, Place::Asleep(_)))
    }

    fn next_arrival(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    fn move_to(&mut self, key: &str, place: Place) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let order = (Reverse(waiting.pod.priority), waiting.arrival, key.to_owned());
        let place_before = std::mem::replace(&mut waiting.place, place);
        match place_before {
            Place::Ready => drop(self.ready.remove(&order)),
            Place::BackingOff(at) => drop(self.backing_off.remove(&(at, key.to_owned()))),
            Place::Failed(at) => drop(self.failed.remove(&(at, key.to_owned()))),
            Place::Asleep(at) => {
                self.asleep.remove(&(at, key.to_owned()));
                if let Some(keys) = self.refused.get_mut(&waiting.refused_by) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.refused.remove(&waiting.refused_by);
                    }
                }
            }
            Place::HeldBack => self.held_back -= 1,
            Place::Tried => {}
        }
        match place {
            Place::Ready => drop(self.ready.insert(order)),
            Place::BackingOff(at) => drop(self.backing_off.insert((at, key.to_owned()))),
            Place::Failed(at) => drop(self.failed.insert((at, key.to_owned()))),
            Place::Asleep(at) => {
                self.asleep.insert((at, key.to_owned()));
                self.refused.entry(waiting.refused_by.clone()).or_default().insert(key.to_owned());
            }
            Place::HeldBack => self.held_back += 1,
            Place::Tried => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use api::Object;
    use api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::cluster::{Change, Cluster};
    use crate::profile::Profile;

    const BACKOFF: Backoff = Backoff { initial: Duration::from_secs(1), max: Duration::from_secs(10) };

    fn wake(queue: &mut Queue, change: Change, now: Instant) {
        let profile = Profile::default();
        let concerned = |plugin: &str| profile.is_concerned(plugin, change.kind());
        queue.wake(concerned, |pod, refused_by| profile.may_help(refused_by, pod, &change), now);
    }

    fn set(queue: &mut Queue, pod: Arc<PodInfo>) {
        let held_back = Profile::default().is_held_back(&pod, &Cluster::default());
        queue.set(pod, held_back, Instant::now());
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
        assert_eq!(queue.next_moment(), Some(now + BACKOFF.initial));
        set(&mut queue, pod("b", 0, false));
        assert_eq!(pop(&mut queue, now).as_deref(), Some("b"), "a still backs off");
        assert_eq!(pop(&mut queue, now).as_deref(), Some("a"), "but nothing else is ready");
    }

    #[test]
    fn a_pod_that_failed_waits_its_time_out() {
        let (mut queue, now) = (Queue::new(BACKOFF), Instant::now());
        set(&mut queue, pod("a", 0, false));
        pop(&mut queue, now);
        queue.failed("default/a", now);
        assert_eq!(pop(&mut queue, now), None);
        assert_eq!(pop(&mut queue, now + BACKOFF.initial).as_deref(), Some("a"));
    }

    #[test]
    fn a_pod_that_was_refused_waits_behind_those_that_came_since() {
        let (mut queue, now) = (Queue::new(BACKOFF), Instant::now());
        set(&mut queue, pod("a", 0, false));
        pop(&mut queue, now);
        set(&mut queue, pod("b", 0, false));
        queue.refused("default/a", vec!["NodeResourcesFit"], now);
        wake(&mut queue, Change::PodGone(pod("x", 0, false)), now + BACKOFF.max);
        assert_eq!(pop(&mut queue, now).as_deref(), Some("b"));
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
    fn a_pod_of_a_group_is_taken_out_of_its_sleep_with_the_others() {
        let (mut queue, now) = (Queue::new(BACKOFF), Instant::now());
        set(&mut queue, pod("a", 0, false));
        set(&mut queue, pod("b", 0, true));
        pop(&mut queue, now);
        assert!(queue.take("default/a").is_none(), "it is being tried");
        queue.refused("default/a", vec!["NodeResourcesFit"], now);
        assert!(queue.take("default/a").is_some());
        assert!(queue.take("default/b").is_none(), "it is held back");
        assert_eq!(queue.attempts("default/a").unwrap().0, 2);
    }

    #[test]
    fn back_off_doubles_to_ten_seconds() {
        let seconds: Vec<u64> = (1..=6).map(|attempts| BACKOFF.after(attempts).as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 10, 10]);
    }
}
