//! The newest state and the recent history in memory: what both backends of this crate read from.
//!
//! Every commit is one revision, so that history is a queue in which a revision's place is known by
//! subtraction: watchers read it in place, each from its own position, and need no buffers of their own.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::{Bound, RangeInclusive};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    Change, Entry, Error, Expect, Follower, Range, RangeOptions, Result, Revision, Watch, WatchSource,
};

/// etcd's first revision, of a store in which nothing was ever written.
pub(crate) const FIRST_REVISION: Revision = 1;
/// How much history is kept at most, whatever is asked of [`crate::Store::compact`]: as many bytes as there are of
/// the present state, within these bounds. Who pages through a large state needs the longer history.
const MAX_HISTORY_CHANGES: usize = 200_000;
const HISTORY_BYTES: RangeInclusive<usize> = 16 << 20..=64 << 20;
/// How many changes a watcher looks at in one turn, so that it does not hold the lock for long.
const WATCH_BATCH: usize = 512;

/// The state behind its lock, and the bell that rings after each commit.
pub(crate) struct Shared {
    state: RwLock<State>,
    newest: watch::Sender<Revision>,
    /// Locked for the whole of a commit, before the state is.
    follower: Mutex<Option<Follower>>,
}

pub(crate) struct State {
    keys: BTreeMap<Arc<str>, Entry>,
    /// The changes of the revisions `compacted + 1 ..= revision`.
    history: VecDeque<Arc<Change>>,
    /// What the values of the present state come to.
    bytes: usize,
    /// What the values that only history still holds come to.
    history_bytes: usize,
    compacted: Revision,
    revision: Revision,
}

impl State {
    /// An empty store whose history begins after `compacted`.
    pub(crate) fn new(compacted: Revision) -> Self {
        State {
            keys: BTreeMap::new(),
            bytes: 0,
            history: VecDeque::new(),
            history_bytes: 0,
            compacted,
            revision: compacted,
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(crate) fn current(&self, key: &str) -> Option<&Entry> {
        self.keys.get(key)
    }

    /// Puts an entry of before the kept history: only while a store is opened.
    pub(crate) fn restore(&mut self, entry: Entry) {
        self.bytes += entry.value.len();
        self.keys.insert(entry.key.clone(), entry);
    }

    /// The state at the beginning of history.
    pub(crate) fn oldest(&self) -> (Revision, Vec<Entry>) {
        let all = RangeOptions { revision: Some(self.compacted), ..RangeOptions::default() };
        let range = self.range("", all).expect("history begins there");
        (range.revision, range.entries)
    }

    /// Makes a change part of the state. Its revision is the next one.
    pub(crate) fn apply(&mut self, change: Arc<Change>) {
        debug_assert_eq!(change.revision, self.revision + 1, "every commit is one revision");
        match &change.value {
            Some(entry) => self.keys.insert(change.key.clone(), entry.clone()),
            None => self.keys.remove(&change.key),
        };
        let bytes = |entry: &Option<Entry>| entry.as_ref().map_or(0, |entry| entry.value.len());
        self.bytes = (self.bytes + bytes(&change.value)).saturating_sub(bytes(&change.previous));
        self.revision = change.revision;
        self.history_bytes += superseded_bytes(&change);
        self.history.push_back(change);
    }

    /// Where history should now begin so that it stays within its bounds; `None` while it does.
    pub(crate) fn excess(&self) -> Option<Revision> {
        let bytes = self.bytes.clamp(*HISTORY_BYTES.start(), *HISTORY_BYTES.end());
        if self.history.len() <= MAX_HISTORY_CHANGES && self.history_bytes <= bytes {
            return None;
        }
        // A quarter at once, so that compaction is rare.
        Some(self.compacted + (self.history.len() as u64).div_ceil(4))
    }

    /// Forgets history up to `revision` and returns what was forgotten.
    pub(crate) fn compact(&mut self, revision: Revision) -> Vec<Arc<Change>> {
        let count = revision.min(self.revision).saturating_sub(self.compacted) as usize;
        let forgotten: Vec<_> = self.history.drain(..count).collect();
        self.compacted += count as u64;
        self.history_bytes -= forgotten.iter().map(|c| superseded_bytes(c)).sum::<usize>();
        if self.history.capacity() > 4 * self.history.len() + 1024 {
            self.history.shrink_to_fit();
        }
        forgotten
    }

    fn check_kept(&self, requested: Revision) -> Result<()> {
        if requested < self.compacted {
            return Err(Error::Compacted { requested, compacted: self.compacted });
        }
        if requested > self.revision {
            return Err(Error::Future { requested, newest: self.revision });
        }
        Ok(())
    }

    /// The changes after a revision that history still has.
    fn changes_after(&self, revision: Revision) -> impl Iterator<Item = &Arc<Change>> {
        self.history.range((revision - self.compacted) as usize..)
    }

    fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<Entry>> {
        if let Some(at) = at {
            self.check_kept(at)?;
            if let Some(change) = self.changes_after(at).find(|c| &*c.key == key) {
                return Ok(change.previous.clone());
            }
        }
        Ok(self.keys.get(key).cloned())
    }

    fn range(&self, prefix: &str, options: RangeOptions) -> Result<Range> {
        let at = options.revision.unwrap_or(self.revision);
        self.check_kept(at)?;
        let after = options.after.as_deref().filter(|after| *after >= prefix);
        let start = after.map_or(Bound::Included(prefix), Bound::Excluded);
        let newest = || {
            self.keys
                .range::<str, _>((start, Bound::Unbounded))
                .take_while(|(k, _)| k.starts_with(prefix))
                .map(|(_, e)| e)
        };
        let limit = if options.limit == 0 { usize::MAX } else { options.limit };
        if at == self.revision {
            let mut rest = newest();
            let entries: Vec<Entry> = rest.by_ref().take(limit).cloned().collect();
            return Ok(Range { entries, revision: at, remaining: rest.count() });
        }
        // The first change of a key after `at` holds what it was at `at`.
        let in_range = |key: &str| key.starts_with(prefix) && after.is_none_or(|after| key > after);
        let mut seen = HashSet::new();
        let mut entries: Vec<Entry> = Vec::new();
        for change in self.changes_after(at).filter(|c| in_range(&c.key)) {
            if seen.insert(&*change.key) {
                entries.extend(change.previous.clone());
            }
        }
        entries.extend(newest().filter(|e| !seen.contains(&*e.key)).cloned());
        entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let remaining = entries.len().saturating_sub(limit);
        entries.truncate(limit);
        Ok(Range { entries, revision: at, remaining })
    }
}

/// The bytes that are kept only because history has this change.
fn superseded_bytes(change: &Change) -> usize {
    change.previous.as_ref().map_or(0, |previous| previous.value.len()) + 128
}

/// The change that a put makes, or why it may not.
pub(crate) fn decide_put(
    current: Option<&Entry>,
    key: &Arc<str>,
    value: Bytes,
    expect: Expect,
    revision: Revision,
) -> Result<Change> {
    check(current, expect)?;
    let created = current.map_or(revision, |entry| entry.created);
    let entry = Entry { key: key.clone(), value, created, modified: revision };
    Ok(Change { revision, key: key.clone(), value: Some(entry), previous: current.cloned() })
}

/// The change that a delete makes, `None` when there is nothing to delete, or why it may not.
pub(crate) fn decide_delete(
    current: Option<&Entry>,
    key: &Arc<str>,
    expect: Expect,
    revision: Revision,
) -> Result<Option<Change>> {
    check(current, expect)?;
    Ok(current.map(|entry| Change { revision, key: key.clone(), value: None, previous: Some(entry.clone()) }))
}

/// What a put wrote, and the change that deletes it again.
pub(crate) fn deletion_of(put: &Change) -> (Entry, Change) {
    let last = put.value.clone().expect("a put has a value");
    let revision = put.revision + 1;
    let deletion = Change { revision, key: put.key.clone(), value: None, previous: Some(last.clone()) };
    (last, deletion)
}

fn check(current: Option<&Entry>, expect: Expect) -> Result<()> {
    let holds = match expect {
        Expect::Anything => true,
        Expect::Absent => current.is_none(),
        Expect::Modified(revision) => current.is_some_and(|entry| entry.modified == revision),
    };
    if holds { Ok(()) } else { Err(Error::Conflict(current.cloned())) }
}

impl Shared {
    pub(crate) fn new(state: State) -> Arc<Self> {
        let newest = watch::Sender::new(state.revision);
        Arc::new(Shared { state: RwLock::new(state), newest, follower: Mutex::default() })
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&State) -> T) -> T {
        read(&self.state.read().expect("no holder of the state panics"))
    }

    /// Changes the state, then tells the follower and the watchers.
    pub(crate) fn write<T>(&self, write: impl FnOnce(&mut State) -> T) -> T {
        let follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        let (result, revision, changes) = {
            let mut state = self.state.write().expect("no holder of the state panics");
            let before = state.revision;
            let result = write(&mut state);
            let told = follower.is_some() && state.revision > before;
            let changes: Vec<_> = match told {
                true => state.changes_after(before.max(state.compacted)).cloned().collect(),
                false => Vec::new(),
            };
            (result, state.revision, changes)
        };
        if let (Some(follower), false) = (&*follower, changes.is_empty()) {
            follower(&changes);
        }
        drop(follower);
        self.newest.send_if_modified(|newest| std::mem::replace(newest, revision) != revision);
        result
    }

    pub(crate) fn follow(&self, after: Revision, follower: Follower) -> Result<()> {
        let mut slot = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = self.read(|state| {
            state.check_kept(after)?;
            Ok::<Vec<_>, Error>(state.changes_after(after).cloned().collect())
        })?;
        if !missed.is_empty() {
            follower(&missed);
        }
        *slot = Some(follower);
        Ok(())
    }

    pub(crate) fn revision(&self) -> Revision {
        self.read(State::revision)
    }

    pub(crate) fn get(&self, key: &str, revision: Option<Revision>) -> Result<Option<Entry>> {
        self.read(|state| state.get(key, revision))
    }

    pub(crate) fn range(&self, prefix: &str, options: RangeOptions) -> Result<Range> {
        self.read(|state| state.range(prefix, options))
    }

    pub(crate) fn watch(self: &Arc<Self>, prefix: &str, after: Revision) -> Result<Watch> {
        self.read(|state| state.check_kept(after))?;
        let source = Position {
            shared: Arc::downgrade(self),
            newest: self.newest.subscribe(),
            prefix: prefix.into(),
            after,
        };
        Ok(Watch::new(source))
    }
}

/// A watcher: a place in the history. It does not keep the store alive.
struct Position {
    shared: std::sync::Weak<Shared>,
    newest: watch::Receiver<Revision>,
    prefix: Box<str>,
    after: Revision,
}

impl Position {
    /// The next changes of the prefix that are there; empty when there are none yet.
    fn advance(&mut self) -> Result<Vec<Arc<Change>>> {
        let shared = self.shared.upgrade().ok_or(Error::Closed)?;
        loop {
            let (scanned, found) = shared.read(|state| {
                if self.after < state.compacted {
                    return Err(Error::Compacted { requested: self.after, compacted: state.compacted });
                }
                let mut scanned = 0;
                let changes = state.changes_after(self.after).take(WATCH_BATCH).inspect(|_| scanned += 1);
                let found = changes.filter(|c| c.key.starts_with(&*self.prefix)).cloned().collect::<Vec<_>>();
                Ok((scanned, found))
            })?;
            self.after += scanned;
            if !found.is_empty() || scanned == 0 {
                return Ok(found);
            }
        }
    }
}

#[async_trait]
impl WatchSource for Position {
    async fn next(&mut self) -> Result<Vec<Arc<Change>>> {
        loop {
            self.newest.borrow_and_update();
            let changes = self.advance()?;
            if !changes.is_empty() {
                return Ok(changes);
            }
            self.newest.changed().await.map_err(|_| Error::Closed)?;
        }
    }
}
