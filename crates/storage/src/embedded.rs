//! The store on disk: the default. All reads are from memory; redb keeps what was committed.
//!
//! The file is the history itself, revision → record, so that a commit is one insertion at the right edge of a
//! B-tree and a restarted server can go on serving watches from before the restart. Compaction deletes the
//! records that a later one superseded. One thread writes: it takes all requests that wait, decides each
//! against the state that the ones before it leave, and commits them with one fsync.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use tokio::sync::{mpsc, oneshot};

use crate::record::{self, Record};
use crate::state::{FIRST_REVISION, Shared, State, decide_delete, decide_put, deletion_of};
use crate::{Change, Entry, Error, Expect, Follower, Range, RangeOptions, Result, Revision, Store, Watch};

const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// History begins after this revision.
const COMPACTED: &str = "compacted";

/// redb's own page cache: little, because reads are from the state in memory.
const CACHE_BYTES: usize = 8 << 20;
/// How many requests may wait for the writer before callers wait to send theirs.
const QUEUE: usize = 1024;
/// What failed when a transaction did.
const WRITE: &str = "write to the store";
/// The bounds of one transaction.
const BATCH_REQUESTS: usize = 512;
const BATCH_BYTES: usize = 8 << 20;

pub struct Embedded {
    shared: Arc<Shared>,
    /// `None` only while the store is dropped.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

enum Request {
    Put {
        key: Arc<str>,
        value: Bytes,
        expect: Expect,
        answer: oneshot::Sender<Result<Entry>>,
    },
    Delete {
        key: Arc<str>,
        expect: Expect,
        answer: oneshot::Sender<Result<Option<(Entry, Revision)>>>,
    },
    PutAndDelete {
        key: Arc<str>,
        value: Bytes,
        expect: Expect,
        answer: oneshot::Sender<Result<(Entry, Revision)>>,
    },
    Compact {
        revision: Revision,
        answer: oneshot::Sender<Result<()>>,
    },
    Close {
        answer: oneshot::Sender<Result<()>>,
    },
}

/// An answer that waits for its batch to be durable.
enum Answer {
    Put(oneshot::Sender<Result<Entry>>, Result<Entry>),
    Delete(oneshot::Sender<Result<Option<(Entry, Revision)>>>, Result<Option<(Entry, Revision)>>),
    PutAndDelete(oneshot::Sender<Result<(Entry, Revision)>>, Result<(Entry, Revision)>),
    Compact(oneshot::Sender<Result<()>>),
}

impl Answer {
    fn send(self, failure: Option<&Arc<redb::Error>>) {
        let failed = |action| failure.map(|error| backend(action, error.clone()));
        // A caller that went away needs no answer.
        let _ = match self {
            Answer::Put(to, result) => to.send(failed(WRITE).map_or(result, Err)).is_ok(),
            Answer::Delete(to, result) => to.send(failed(WRITE).map_or(result, Err)).is_ok(),
            Answer::PutAndDelete(to, result) => to.send(failed(WRITE).map_or(result, Err)).is_ok(),
            Answer::Compact(to) => to.send(failed("compact the store").map_or(Ok(()), Err)).is_ok(),
        };
    }
}

fn backend(action: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Backend { action, source: Box::new(source) }
}

impl Embedded {
    /// Opens the store in this file, or makes it. Reads all of it into memory and verifies every record.
    pub fn open(path: &Path) -> Result<Self> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create(path).map_err(|e| match e {
            redb::DatabaseError::DatabaseAlreadyOpen => Error::InUse { path: path.to_owned() },
            redb::DatabaseError::Storage(redb::StorageError::Corrupted(what)) => Error::Corrupt { what },
            e => backend("open the store", e),
        })?;
        Self::start(database)
    }

    /// Opens the store over any medium: for tests that fail it.
    pub fn open_on(medium: impl StorageBackend) -> Result<Self> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(medium);
        Self::start(database.map_err(|e| backend("open the store", e))?)
    }

    fn start(database: Database) -> Result<Self> {
        let shared = Shared::new(load(&database)?);
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = Writer { database, shared: shared.clone(), batch: Batch::default(), closing: None };
        let writer = std::thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run(queue))
            .map_err(|e| backend("start the store's writer", e))?;
        Ok(Embedded { shared, requests: Some(requests), writer: Some(writer) })
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(Error::Closed)?;
        requests.send(request(answer)).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }
}

/// Waits for the writer, so that the file is closed when the store is gone.
impl Drop for Embedded {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the store's writer panicked");
        }
    }
}

/// Reads the file into memory.
fn load(database: &Database) -> Result<State> {
    let read = |e: redb::Error| backend("read the store", e);
    let transaction = database.begin_write().map_err(|e| read(e.into()))?;
    transaction.open_table(LOG).map_err(|e| read(e.into()))?;
    transaction.open_table(META).map_err(|e| read(e.into()))?;
    transaction.commit().map_err(|e| read(e.into()))?;

    let transaction = database.begin_read().map_err(|e| read(e.into()))?;
    let meta = transaction.open_table(META).map_err(|e| read(e.into()))?;
    let compacted = meta.get(COMPACTED).map_err(|e| read(e.into()))?.map_or(FIRST_REVISION, |v| v.value());
    let mut state = State::new(compacted);
    let log = transaction.open_table(LOG).map_err(|e| read(e.into()))?;
    for row in log.iter().map_err(|e| read(e.into()))? {
        let (revision, bytes) = row.map_err(|e| read(e.into()))?;
        let (revision, record) = (revision.value(), Record::decode(bytes.value()));
        let record = record
            .map_err(|what| Error::Corrupt { what: format!("the record of revision {revision} {what}") })?;
        replay(&mut state, revision, record)?;
    }
    Ok(state)
}

/// Makes a record of the file part of the state: what is older than history is only a value, the rest are changes.
fn replay(state: &mut State, revision: Revision, record: Record) -> Result<()> {
    let key = record.key;
    let entry = record.value.map(|value| Entry {
        key: key.clone(),
        value,
        created: record.created,
        modified: revision,
    });
    if revision <= state.compacted() {
        if let Some(entry) = entry {
            state.restore(entry);
        }
        return Ok(());
    }
    let expected = state.revision() + 1;
    if revision != expected {
        return Err(Error::Corrupt { what: format!("revision {expected} is missing from the store") });
    }
    let previous = state.current(&key).cloned();
    state.apply(Arc::new(Change { revision, key, value: entry, previous }));
    Ok(())
}

struct Writer {
    database: Database,
    shared: Arc<Shared>,
    batch: Batch,
    /// Who is told that the file is closed.
    closing: Option<oneshot::Sender<Result<()>>>,
}

/// What one transaction will commit.
#[derive(Default)]
struct Batch {
    changes: Vec<Arc<Change>>,
    /// The keys that the batch changes, as it leaves them.
    keys: HashMap<Arc<str>, Option<Entry>>,
    compact: Option<Revision>,
    answers: Vec<Answer>,
    bytes: usize,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(request) = queue.blocking_recv() {
            self.decide(request);
            while self.closing.is_none()
                && self.batch.answers.len() < BATCH_REQUESTS
                && self.batch.bytes < BATCH_BYTES
            {
                match queue.try_recv() {
                    Ok(request) => self.decide(request),
                    Err(_) => break,
                }
            }
            self.commit();
            if let Some(closed) = self.closing.take() {
                // Requests that come later find nobody.
                drop((self, queue));
                // Who asked may have gone away.
                closed.send(Ok(())).ok();
                return;
            }
        }
    }

    /// Decides a request against the state as the batch leaves it so far.
    fn decide(&mut self, request: Request) {
        let revision = self.shared.revision() + self.batch.changes.len() as u64 + 1;
        let answer = match request {
            Request::Put { key, value, expect, answer } => {
                let change = decide_put(self.current(&key).as_ref(), &key, value, expect, revision);
                Answer::Put(
                    answer,
                    change.map(|c| self.batch.add(c).value.clone().expect("a put has a value")),
                )
            }
            Request::Delete { key, expect, answer } => {
                let change = decide_delete(self.current(&key).as_ref(), &key, expect, revision);
                let deleted = change.map(|change| {
                    let previous = self.batch.add(change?).previous.clone();
                    previous.map(|entry| (entry, revision))
                });
                Answer::Delete(answer, deleted)
            }
            Request::PutAndDelete { key, value, expect, answer } => {
                let change = decide_put(self.current(&key).as_ref(), &key, value, expect, revision);
                let deleted = change.map(|change| {
                    let (last, deletion) = deletion_of(&change);
                    self.batch.add(change);
                    (last, self.batch.add(deletion).revision)
                });
                Answer::PutAndDelete(answer, deleted)
            }
            Request::Compact { revision, answer } => {
                self.batch.compact = self.batch.compact.max(Some(revision));
                Answer::Compact(answer)
            }
            Request::Close { answer } => {
                self.closing = Some(answer);
                return;
            }
        };
        self.batch.answers.push(answer);
    }

    fn current(&self, key: &Arc<str>) -> Option<Entry> {
        match self.batch.keys.get(key) {
            Some(entry) => entry.clone(),
            None => self.shared.read(|state| state.current(key).cloned()),
        }
    }

    /// Makes the batch durable, then visible, then answers.
    fn commit(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let failure =
            if batch.changes.is_empty() { None } else { self.persist(&batch.changes).err().map(Arc::new) };
        let mut compact = batch.compact;
        if failure.is_none() && !batch.changes.is_empty() {
            let excess = self.shared.write(|state| {
                batch.changes.into_iter().for_each(|change| state.apply(change));
                state.excess()
            });
            compact = compact.max(excess);
        }
        let failure = failure.or_else(|| compact.and_then(|to| self.compact(to).err().map(Arc::new)));
        if let Some(failure) = &failure {
            tracing::error!(error = %failure, "cannot write to the store");
        }
        batch.answers.into_iter().for_each(|answer| answer.send(failure.as_ref()));
    }

    fn persist(&self, changes: &[Arc<Change>]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut log = transaction.open_table(LOG)?;
            let mut bytes = Vec::new();
            for change in changes {
                record::encode(change, &mut bytes);
                log.insert(change.revision, bytes.as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Forgets history up to `revision`, on disk first.
    fn compact(&self, revision: Revision) -> Result<(), redb::Error> {
        let (from, to) = self.shared.read(|state| (state.compacted(), revision.min(state.revision())));
        if to <= from {
            return Ok(());
        }
        let forgotten = self.shared.write(|state| state.compact(to));
        let transaction = self.database.begin_write()?;
        {
            let mut log = transaction.open_table(LOG)?;
            for change in &forgotten {
                if let Some(previous) = &change.previous {
                    log.remove(previous.modified)?;
                }
                if change.value.is_none() {
                    log.remove(change.revision)?;
                }
            }
            transaction.open_table(META)?.insert(COMPACTED, to)?;
        }
        transaction.commit()?;
        Ok(())
    }
}

impl Batch {
    fn add(&mut self, change: Change) -> &Change {
        self.bytes += change.value.as_ref().map_or(0, |entry| entry.value.len()) + change.key.len();
        self.keys.insert(change.key.clone(), change.value.clone());
        self.changes.push(Arc::new(change));
        self.changes.last().expect("a change was just added")
    }
}

#[async_trait]
impl Store for Embedded {
    async fn revision(&self) -> Result<Revision> {
        Ok(self.shared.revision())
    }

    async fn get(&self, key: &str, revision: Option<Revision>) -> Result<Option<Entry>> {
        self.shared.get(key, revision)
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Range> {
        self.shared.range(prefix, options)
    }

    async fn put(&self, key: &str, value: Bytes, expect: Expect) -> Result<Entry> {
        self.ask(|answer| Request::Put { key: key.into(), value, expect, answer }).await
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<Option<(Entry, Revision)>> {
        self.ask(|answer| Request::Delete { key: key.into(), expect, answer }).await
    }

    async fn put_and_delete(&self, key: &str, value: Bytes, expect: Expect) -> Result<(Entry, Revision)> {
        self.ask(|answer| Request::PutAndDelete { key: key.into(), value, expect, answer }).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        self.shared.watch(prefix, after)
    }

    fn follow(&self, after: Revision, follower: Follower) -> Result<()> {
        self.shared.follow(after, follower)
    }

    async fn close(&self) -> Result<()> {
        match self.ask(|answer| Request::Close { answer }).await {
            // It was closed before.
            Err(Error::Closed) => Ok(()),
            closed => closed,
        }
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.ask(|answer| Request::Compact { revision, answer }).await
    }
}
