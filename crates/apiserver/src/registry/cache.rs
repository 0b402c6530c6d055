//! [`Cache`]: the present state of one resource, ordered by key, and its recent changes, ordered by revision.
//!
//! What always holds: a change enters the state and the history under one lock; the history is bounded, and a
//! reader that stays behind its beginning is told so instead of being waited for.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::{Bound, RangeInclusive};
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::{Bytes, BytesMut};
use storage::{Change, Revision};
use tokio::sync::watch;

use super::object::Object;

/// How much of its past a resource keeps: enough for a watcher to come back after a broken connection, and for one
/// that falls behind in a burst to catch up. As many bytes as there are of the present state, within these bounds.
///
/// Upstream: apiserver/pkg/storage/cacher/watch_cache.go defaultUpperBoundCapacity
const HISTORY_EVENTS: usize = 100 * 1024;
const HISTORY_BYTES: RangeInclusive<usize> = 8 << 20..=64 << 20;
/// So many of the newest events keep the frames that watchers were sent: who comes later has them made again.
const FRESH: usize = 1024;

/// What a watcher sees of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Added,
    Modified,
    Deleted,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Added => "ADDED",
            Kind::Modified => "MODIFIED",
            Kind::Deleted => "DELETED",
        }
    }
}

/// One change, with the frames that watchers are sent, each encoded once for all of them.
pub struct Event {
    pub revision: Revision,
    pub object: Arc<Object>,
    /// What was there before; `None` for a new object.
    pub previous: Option<Arc<Object>>,
    pub deleted: bool,
    /// By form and kind.
    frames: [[OnceLock<Bytes>; 3]; 2],
}

/// The forms of events that watchers share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Json,
    Protobuf,
}

impl Event {
    /// The change as a row shows it, in whose form both states are.
    pub fn seen(
        revision: Revision,
        object: Arc<Object>,
        previous: Option<Arc<Object>>,
        deleted: bool,
    ) -> Self {
        Event { revision, object, previous, deleted, frames: Default::default() }
    }

    pub fn kind(&self) -> Kind {
        match (&self.previous, self.deleted) {
            (_, true) => Kind::Deleted,
            (Some(_), false) => Kind::Modified,
            (None, false) => Kind::Added,
        }
    }

    /// The event as watchers are sent it, which `make` makes the first time.
    pub fn frame(&self, form: Form, kind: Kind, make: impl FnOnce() -> Bytes) -> &Bytes {
        self.frames[form as usize][kind as usize].get_or_init(make)
    }

    /// The deleted state of the object as the watcher last saw it, for one that stopped matching.
    pub fn departed(&self) -> Option<Arc<Object>> {
        let previous = self.previous.as_ref()?;
        let entry = storage::Entry {
            key: previous.key.clone(),
            value: previous.stored().clone(),
            created: 0,
            modified: self.revision,
        };
        Some(Arc::new(Object::at(&entry, self.revision)))
    }

    /// What only the history holds of it: the present state is there anyhow.
    fn bytes(&self) -> usize {
        self.previous.as_ref().map_or(0, |previous| previous.stored().len()) + 512
    }
}

/// One event as a line of JSON.
pub fn frame(kind: Kind, object: &Object) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + 40);
    out.extend_from_slice(br#"{"type":""#);
    out.extend_from_slice(kind.as_str().as_bytes());
    out.extend_from_slice(br#"","object":"#);
    object.write(&mut out);
    out.extend_from_slice(b"}\n");
    out.freeze()
}

pub struct State {
    objects: BTreeMap<Arc<str>, Arc<Object>>,
    history: VecDeque<Arc<Event>>,
    history_bytes: usize,
    /// What the present objects come to.
    bytes: usize,
    /// The state began with this revision.
    loaded: Revision,
    /// All changes after this revision are in the history.
    complete_after: Revision,
    /// The newest change.
    newest: Revision,
}

/// History does not reach back to the asked revision, but only to this one.
#[derive(Debug, PartialEq, Eq)]
pub struct TooOld {
    pub oldest: Revision,
}

impl State {
    pub fn new(objects: impl IntoIterator<Item = Object>, revision: Revision) -> Self {
        let objects: BTreeMap<_, _> = objects.into_iter().map(|o| (o.key.clone(), Arc::new(o))).collect();
        let newest = objects.values().map(|o| o.revision).max().unwrap_or(0);
        let bytes = objects.values().map(|o| o.stored().len()).sum();
        State {
            objects,
            history: VecDeque::new(),
            history_bytes: 0,
            bytes,
            loaded: revision,
            complete_after: revision,
            newest,
        }
    }

    /// Puts the past of the present objects before them: all changes after `oldest`, in order.
    pub fn recall(&mut self, oldest: Revision, changes: &[Arc<Change>]) {
        self.complete_after = oldest;
        // The objects as they were, so that what two changes tell of is one.
        let mut seen: HashMap<&str, Arc<Object>> = HashMap::new();
        for change in changes {
            let present = self.objects.get(&change.key).filter(|o| o.revision == change.revision).cloned();
            let previous = change
                .previous
                .as_ref()
                .map(|entry| seen.remove(&*change.key).unwrap_or_else(|| Arc::new(Object::new(entry))));
            let object = match (&change.value, &change.previous) {
                (Some(entry), _) => present.unwrap_or_else(|| Arc::new(Object::new(entry))),
                (None, Some(entry)) => Arc::new(Object::at(entry, change.revision)),
                (None, None) => continue,
            };
            let deleted = change.value.is_none();
            if !deleted {
                seen.insert(&change.key, object.clone());
            }
            let frames = Default::default();
            self.remember(Event { revision: change.revision, object, previous, deleted, frames });
        }
    }

    pub fn apply(&mut self, change: &Change) {
        // A cache that was loaded late is told again what it knows.
        if change.revision <= self.loaded {
            return;
        }
        let previous = self.objects.get(&change.key).cloned();
        let length = |object: &Arc<Object>| object.stored().len();
        self.bytes -= previous.as_ref().map_or(0, length);
        let object = match &change.value {
            Some(entry) => {
                let object = Arc::new(Object::new(entry));
                self.objects.insert(change.key.clone(), object.clone());
                self.bytes += length(&object);
                object
            }
            None => {
                self.objects.remove(&change.key);
                let Some(entry) = &change.previous else { return };
                Arc::new(Object::at(entry, change.revision))
            }
        };
        self.newest = change.revision;
        let deleted = change.value.is_none();
        let frames = Default::default();
        self.remember(Event { revision: change.revision, object, previous, deleted, frames });
    }

    fn remember(&mut self, event: Event) {
        self.history_bytes += event.bytes();
        self.history.push_back(Arc::new(event));
        if let Some(stale) = self.history.len().checked_sub(FRESH + 1).map(|at| &mut self.history[at]) {
            let Event { revision, object, previous, deleted, .. } = &**stale;
            *stale = Arc::new(Event::seen(*revision, object.clone(), previous.clone(), *deleted));
        }
        let most = self.bytes.clamp(*HISTORY_BYTES.start(), *HISTORY_BYTES.end());
        while self.history.len() > HISTORY_EVENTS || (self.history_bytes > most && self.history.len() > 64) {
            let Some(oldest) = self.history.pop_front() else { return };
            self.history_bytes -= oldest.bytes();
            self.complete_after = oldest.revision;
        }
    }

    pub fn get(&self, key: &str) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// The objects whose key starts with `prefix` and is greater than `after`.
    pub fn range<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        let start = match after {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(prefix),
        };
        self.objects
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(_, object)| object)
    }

    pub fn newest(&self) -> Revision {
        self.newest
    }

    /// At most `limit` changes after `after`, oldest first.
    pub fn since(&self, after: Revision, limit: usize) -> Result<Vec<Arc<Event>>, TooOld> {
        if after < self.complete_after {
            return Err(TooOld { oldest: self.complete_after });
        }
        let from = self.history.partition_point(|event| event.revision <= after);
        Ok(self.history.range(from..).take(limit).cloned().collect())
    }

    pub fn count(&self) -> usize {
        self.objects.len()
    }
}

/// The state of one resource, behind a lock that is only ever held for short synchronous sections.
pub struct Cache {
    /// `/registry/pods/`.
    pub prefix: String,
    state: RwLock<State>,
    /// Told the newest revision of this resource.
    changed: watch::Sender<Revision>,
}

impl Cache {
    pub fn new(prefix: String, state: State) -> Self {
        let changed = watch::Sender::new(state.newest);
        Cache { prefix, state: RwLock::new(state), changed }
    }

    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Enters changes of this resource, in order.
    pub fn apply(&self, changes: &[Arc<Change>]) {
        let newest = {
            let mut state = self.write();
            for change in changes {
                state.apply(change);
            }
            state.newest
        };
        self.changed.send_replace(newest);
    }

    /// Begins again with a new state; who watches must list again.
    pub fn reset(&self, state: State) {
        let newest = state.newest.max(state.complete_after);
        *self.write() = state;
        self.changed.send_replace(newest);
    }

    /// Wakes when the resource changes.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage::Entry;

    fn change(revision: u64, value: Option<&str>) -> Change {
        let entry = |v: &str| Entry {
            key: "/registry/pods/a/b".into(),
            value: Bytes::from(v.to_owned()),
            created: 2,
            modified: revision,
        };
        Change {
            revision,
            key: "/registry/pods/a/b".into(),
            value: value.map(entry),
            previous: value.is_none().then(|| entry(r#"{"metadata":{}}"#)),
        }
    }

    #[test]
    fn history_answers_what_came_after_a_revision_and_says_when_it_cannot() {
        let mut state = State::new([], 5);
        state.apply(&change(6, Some(r#"{"metadata":{"x":1}}"#)));
        state.apply(&change(8, Some(r#"{"metadata":{"x":2}}"#)));
        state.apply(&change(9, None));
        let kinds = |after| {
            let events = state.since(after, 10)?;
            Ok(events.iter().map(|e| (e.revision, e.kind())).collect::<Vec<_>>())
        };
        assert_eq!(kinds(5), Ok(vec![(6, Kind::Added), (8, Kind::Modified), (9, Kind::Deleted)]));
        assert_eq!(kinds(7), Ok(vec![(8, Kind::Modified), (9, Kind::Deleted)]));
        assert_eq!(kinds(9), Ok(vec![]));
        assert_eq!(kinds(4), Err(TooOld { oldest: 5 }));
        assert_eq!(state.count(), 0);
    }

    #[test]
    fn a_burst_of_ten_thousand_is_remembered_and_an_endless_one_is_not() {
        let mut state = State::new([], 0);
        let value = format!(r#"{{"metadata":{{"x":"{}"}}}}"#, "x".repeat(3_000));
        let put = |state: &mut State, revision: u64, number: u64| {
            let mut change = change(revision, Some(&value));
            change.key = format!("/registry/pods/a/{number}").into();
            state.apply(&change);
        };
        (1..=10_000).for_each(|number| put(&mut state, number, number));
        assert_eq!(state.since(0, usize::MAX).map(|events| events.len()), Ok(10_000));
        (10_001..=40_000).for_each(|revision| put(&mut state, revision, revision % 10_000));
        let kept = state.history.len();
        assert!((5_000..20_000).contains(&kept), "{kept}");
        assert!(state.history_bytes <= state.bytes);
    }

    #[test]
    fn a_recalled_past_is_as_if_it_had_been_seen() {
        let changes = [
            change(6, Some(r#"{"metadata":{"x":1}}"#)),
            Change { previous: change(6, Some(r#"{"metadata":{"x":1}}"#)).value, ..change(8, Some("{}")) },
        ]
        .map(Arc::new);
        let present = Object::new(changes[1].value.as_ref().unwrap());
        let mut state = State::new([present], 8);
        state.recall(5, &changes);
        let events = state.since(5, 10).unwrap();
        let kinds: Vec<_> = events.iter().map(|e| (e.revision, e.kind())).collect();
        assert_eq!(kinds, [(6, Kind::Added), (8, Kind::Modified)]);
        assert_eq!(events[1].previous.as_ref().map(|o| o.revision), Some(6));
        assert!(Arc::ptr_eq(&events[1].object, state.get("/registry/pods/a/b").unwrap()));
        assert_eq!(state.since(4, 10).err(), Some(TooOld { oldest: 5 }));
    }

    #[test]
    fn history_is_bounded_and_forgets_its_oldest() {
        let mut state = State::new([], 0);
        for revision in 1..=(HISTORY_EVENTS as u64 + 10) {
            state.apply(&change(revision, Some(r#"{"metadata":{}}"#)));
        }
        assert!(state.since(0, 1).is_err());
        assert!(state.history.len() <= HISTORY_EVENTS);
    }
}
