//! [`WorkQueue`]: keys that await work, each once.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::metrics::{QueueMetrics, Seen, Times, Watched};

/// Upstream: client-go/util/workqueue/default_rate_limiters.go DefaultTypedControllerRateLimiter
const FIRST_DELAY: Duration = Duration::from_millis(5);
const LONGEST_DELAY: Duration = Duration::from_secs(1000);

/// A key that waits for its time. Ordered by time alone; the counter keeps equal times in order.
struct Delayed<K> {
    due: Instant,
    order: u64,
    key: K,
}

impl<K> PartialEq for Delayed<K> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl<K> Eq for Delayed<K> {}

impl<K> PartialOrd for Delayed<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<K> Ord for Delayed<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys in `ready`, and keys that came while they were worked on, with when they came.
    dirty: HashMap<K, Instant>,
    /// With when the work began.
    processing: HashMap<K, Instant>,
    delayed: BinaryHeap<Reverse<Delayed<K>>>,
    /// The earliest time each delayed key waits for: later entries of the heap are stale.
    due: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
    order: u64,
    closed: bool,
    adds: u64,
    retries: u64,
    waited: Times,
    worked: Times,
}

impl<K: Clone + Eq + Hash> State<K> {
    /// True when the key became ready now.
    fn add(&mut self, key: K) -> bool {
        if self.closed {
            return false;
        }
        match self.dirty.entry(key.clone()) {
            Entry::Occupied(_) => return false,
            Entry::Vacant(entry) => entry.insert(Instant::now()),
        };
        self.adds += 1;
        if self.processing.contains_key(&key) {
            return false;
        }
        self.ready.push_back(key);
        true
    }

    /// Takes the next ready key into work.
    fn begin(&mut self, now: Instant) -> Option<K> {
        let key = self.ready.pop_front()?;
        if let Some(since) = self.dirty.remove(&key) {
            self.waited.observe(now - since);
        }
        self.processing.insert(key.clone(), now);
        Some(key)
    }

    /// Moves the keys whose time has come, and says when the next one's comes.
    fn promote(&mut self, now: Instant) -> Option<Instant> {
        loop {
            let due = self.delayed.peek()?.0.due;
            if due > now {
                return Some(due);
            }
            let Reverse(Delayed { key, .. }) = self.delayed.pop()?;
            if self.due.get(&key) == Some(&due) {
                self.due.remove(&key);
                self.add(key);
            }
        }
    }
}

/// A queue of keys. A key that is added while it waits is there once; one added while it is worked on is
/// worked on again afterwards, never by two workers at a time. Clones share the queue.
///
/// Bounded by the number of distinct keys, which is the number of objects.
pub struct WorkQueue<K> {
    shared: Arc<(Mutex<State<K>>, Notify)>,
}

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        WorkQueue { shared: self.shared.clone() }
    }
}

impl<K: Clone + Eq + Hash> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Eq + Hash> WorkQueue<K> {
    pub fn new() -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashMap::new(),
            processing: HashMap::new(),
            delayed: BinaryHeap::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            order: 0,
            closed: false,
            adds: 0,
            retries: 0,
            waited: Times::default(),
            worked: Times::default(),
        };
        WorkQueue { shared: Arc::new((Mutex::new(state), Notify::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn add(&self, key: K) {
        if self.lock().add(key) {
            self.shared.1.notify_one();
        }
    }

    /// Adds the key after a time. Of several times for one key the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let mut state = self.lock();
        let due = Instant::now() + delay;
        if state.closed || state.due.get(&key).is_some_and(|earlier| *earlier <= due) {
            return;
        }
        state.due.insert(key.clone(), due);
        state.order += 1;
        let order = state.order;
        state.delayed.push(Reverse(Delayed { due, order, key }));
        drop(state);
        self.shared.1.notify_one();
    }

    /// Adds the key after a delay that doubles with every failure since the last [`forget`](Self::forget).
    pub fn add_rate_limited(&self, key: K) {
        let failures = {
            let mut state = self.lock();
            state.retries += 1;
            let failures = state.failures.entry(key.clone()).or_default();
            *failures += 1;
            *failures - 1
        };
        self.add_after(key, FIRST_DELAY.saturating_mul(1 << failures.min(18)).min(LONGEST_DELAY));
    }

    /// The key did well: its next failure is its first.
    pub fn forget(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// How often the key was added rate limited since it did well.
    pub fn failures(&self, key: &K) -> u32 {
        self.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Keys that are ready to be worked on.
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key, to be given back to [`done`](Self::done); `None` when the queue is shut down.
    pub async fn next(&self) -> Option<K> {
        loop {
            let notified = self.shared.1.notified();
            let due = {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                let now = Instant::now();
                let due = state.promote(now);
                if let Some(key) = state.begin(now) {
                    if !state.ready.is_empty() || due.is_some() {
                        // Another worker takes over the rest and the timer.
                        self.shared.1.notify_one();
                    }
                    return Some(key);
                }
                due
            };
            match due {
                Some(due) => tokio::select! {
                    () = notified => {}
                    () = tokio::time::sleep_until(due) => {}
                },
                None => notified.await,
            }
        }
    }

    /// The work on a key has ended, well or not.
    pub fn done(&self, key: &K) {
        let mut state = self.lock();
        if let Some(since) = state.processing.remove(key) {
            state.worked.observe(since.elapsed());
        }
        if state.dirty.contains_key(key) {
            state.ready.push_back(key.clone());
            drop(state);
            self.shared.1.notify_one();
        }
    }

    /// Ends all waiting; keys that wait are dropped.
    pub fn shut_down(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.ready.clear();
        state.delayed.clear();
        drop(state);
        self.shared.1.notify_waiters();
    }
}

impl<K: Clone + Eq + Hash + Send + Sync + 'static> WorkQueue<K> {
    /// Lets the queue be counted for as long as it lives.
    pub fn watch(&self, name: &'static str, metrics: &QueueMetrics) {
        let queue: Weak<dyn Watched> = Arc::downgrade(&(self.shared.clone() as Arc<dyn Watched>));
        metrics.watch(name, queue);
    }
}

impl<K: Clone + Eq + Hash + Send + Sync> Watched for (Mutex<State<K>>, Notify) {
    fn seen(&self) -> Seen {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, mut unfinished, mut longest) = (Instant::now(), 0.0, 0.0_f64);
        for since in state.processing.values() {
            let seconds = (now - *since).as_secs_f64();
            unfinished += seconds;
            longest = longest.max(seconds);
        }
        Seen {
            depth: state.ready.len() as u64,
            adds: state.adds,
            retries: state.retries,
            waited: state.waited,
            worked: state.worked,
            unfinished,
            longest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_worked_on_once_at_a_time() {
        let queue = WorkQueue::new();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        assert_eq!(queue.next().await, Some("b"));
        assert!(queue.is_empty());
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn delays_are_kept_and_the_earliest_counts() {
        let queue = WorkQueue::new();
        let began = Instant::now();
        queue.add_after("late", Duration::from_secs(9));
        queue.add_after("late", Duration::from_secs(20));
        queue.add_after("soon", Duration::from_secs(5));
        queue.add_after("soon", Duration::from_secs(2));
        assert_eq!(queue.next().await, Some("soon"));
        assert_eq!(began.elapsed().as_secs(), 2);
        queue.done(&"soon");
        assert_eq!(queue.next().await, Some("late"));
        assert_eq!(began.elapsed().as_secs(), 9);
        queue.done(&"late");
        assert!(tokio::time::timeout(Duration::from_secs(100), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_double_the_delay() {
        let queue = WorkQueue::new();
        for millis in [5, 10, 20, 40] {
            let began = Instant::now();
            queue.add_rate_limited("a");
            assert_eq!(queue.next().await, Some("a"));
            assert_eq!(began.elapsed().as_millis(), millis);
            queue.done(&"a");
        }
        queue.forget(&"a");
        assert_eq!(queue.failures(&"a"), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shut_down_ends_the_waiting() {
        let queue = WorkQueue::<u32>::new();
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await }
        });
        tokio::task::yield_now().await;
        queue.shut_down();
        assert_eq!(waiting.await.unwrap(), None);
        assert_eq!(queue.next().await, None);
    }
}
