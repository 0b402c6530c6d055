//! A revisioned keyspace: what the API server keeps its objects in.
//!
//! Start with [`Store`], the contract that every backend keeps and that the suite in `tests/` checks.
//! [`memory`] is the contract in its shortest form, for tests; [`embedded`] is the default on disk; an etcd
//! cluster fits the same trait.
//!
//! What always holds: a write that was answered is durable (in the memory backend: as long as the process);
//! revisions grow by one per commit over all keys; watchers see every commit of their prefix, in order, once.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub mod disk;
pub mod embedded;
pub mod memory;
mod state;

/// The position of a commit in the history of the whole store. The empty store is at revision 1, as etcd's is.
pub type Revision = u64;

/// A key as it stands after a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: Arc<str>,
    pub value: Bytes,
    /// The commit that created the key since it was last absent.
    pub created: Revision,
    /// The commit that wrote this value.
    pub modified: Revision,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub revision: Revision,
    pub key: Arc<str>,
    /// `None` when the key was deleted.
    pub value: Option<Entry>,
    /// What the key held before, `None` when it was absent.
    pub previous: Option<Entry>,
}

/// What a write requires of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// The key was last written at this revision.
    Modified(Revision),
    /// The key may be in any state. Deleting an absent key commits nothing.
    Anything,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub entries: Vec<Entry>,
    /// The revision that this is the state of.
    pub revision: Revision,
    /// How many more keys of the prefix follow, beyond the limit.
    pub remaining: usize,
}

/// Where a range starts and ends. Keys come in byte order.
#[derive(Clone, Debug, Default)]
pub struct RangeOptions {
    /// Only keys greater than this one.
    pub after: Option<String>,
    /// At most so many entries; zero for all.
    pub limit: usize,
    /// The state as of this revision; `None` for the newest.
    pub revision: Option<Revision>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The key is not as the write expected; this is how it is.
    #[error("the key is not as the write expected")]
    Conflict(Option<Entry>),
    #[error("revision {requested} has been compacted; history begins after {compacted}")]
    Compacted { requested: Revision, compacted: Revision },
    #[error("revision {requested} is in the future; the newest is {newest}")]
    Future { requested: Revision, newest: Revision },
    #[error("the store is closed")]
    Closed,
    /// What is wrong, and where: nothing of such a store is served.
    #[error("the store is damaged: {what}")]
    Corrupt { what: String },
    #[error("the store {} is in use by another process", path.display())]
    InUse { path: PathBuf },
    #[error("cannot {action}")]
    Backend {
        action: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Is told of commits by the one who makes them, and holds them up for as long as it takes: it must be quick, and
/// must not call the store.
pub type Follower = Box<dyn Fn(&[Arc<Change>]) + Send + Sync>;

/// The contract. All keys are UTF-8 and start with `/`.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest committed revision.
    async fn revision(&self) -> Result<Revision>;

    /// A key as of now, or as of a kept revision.
    async fn get(&self, key: &str, revision: Option<Revision>) -> Result<Option<Entry>>;

    /// The keys that start with `prefix`.
    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Range>;

    /// Writes `value` when the key is as expected, and answers once the write is durable.
    async fn put(&self, key: &str, value: Bytes, expect: Expect) -> Result<Entry>;

    /// Deletes the key when it is as expected. Answers the entry that was deleted, with the revision of the
    /// deletion; `None` when the key was absent and anything was allowed.
    async fn delete(&self, key: &str, expect: Expect) -> Result<Option<(Entry, Revision)>>;

    /// Writes `value` when the key is as expected and deletes the key right after, in one commit of two revisions:
    /// watchers see what it was at last. Answers the deleted entry, with the revision of the deletion.
    async fn put_and_delete(&self, key: &str, value: Bytes, expect: Expect) -> Result<(Entry, Revision)>;

    /// All changes of keys that start with `prefix` with a revision greater than `after`.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch>;

    /// Has every change after `after` told to the follower, in order and before the write that made it is
    /// answered: a cache behind it shows all that was answered. There is one follower; a second takes the place
    /// of the first.
    fn follow(&self, after: Revision, follower: Follower) -> Result<()>;

    /// Takes no more writes and closes what lies below. What was answered is durable without it; the next opening is
    /// quicker after it.
    async fn close(&self) -> Result<()> {
        Ok(())
    }

    /// Forgets history up to and including `revision`; the newest state of every key stays.
    async fn compact(&self, revision: Revision) -> Result<()>;
}

/// A stream of changes, read with [`Watch::next`]. Dropping it ends the watch.
///
/// A reader that stays behind is not allowed to hold others up or to grow the store: once the history that it
/// has yet to read is compacted, it gets [`Error::Compacted`] and must begin again.
pub struct Watch(Box<dyn WatchSource>);

#[async_trait]
pub trait WatchSource: Send {
    /// The next changes in order: never empty, at most some hundreds. `Err(Closed)` when the store closes.
    async fn next(&mut self) -> Result<Vec<Arc<Change>>>;
}

impl Watch {
    pub fn new(source: impl WatchSource + 'static) -> Self {
        Watch(Box::new(source))
    }

    pub async fn next(&mut self) -> Result<Vec<Arc<Change>>> {
        self.0.next().await
    }
}
