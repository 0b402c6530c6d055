//! The one thread that writes: it takes all requests that wait, decides each against the state that the ones before
//! it leave, and commits them with one sync.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::log::{Checkpoint, Log, Made};
use crate::state::{Shared, State, decide_delete, decide_put, deletion_of};
use crate::{Change, Entry, Error, Expect, Result, Revision};

/// What failed when a commit did.
const WRITE: &str = "write to the store";
/// The bounds of one commit.
const BATCH_REQUESTS: usize = 512;
const BATCH_BYTES: usize = 8 << 20;

pub(super) enum Request {
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
    fn send(self, failure: Option<&Arc<io::Error>>) {
        let failed = |action| failure.map(|error| Error::Backend { action, source: Box::new(error.clone()) });
        // A caller that went away needs no answer.
        let _ = match self {
            Answer::Put(to, result) => to.send(failed(WRITE).map_or(result, Err)).is_ok(),
            Answer::Delete(to, result) => to.send(failed(WRITE).map_or(result, Err)).is_ok(),
            Answer::PutAndDelete(to, result) => to.send(failed(WRITE).map_or(result, Err)).is_ok(),
            Answer::Compact(to) => to.send(failed("compact the store").map_or(Ok(()), Err)).is_ok(),
        };
    }
}

pub(super) struct Writer {
    log: Log,
    shared: Arc<Shared>,
    batch: Batch,
    checkpointing: Checkpointing,
    /// Who is told that the files are closed.
    closing: Option<oneshot::Sender<Result<()>>>,
}

/// What one commit will write.
#[derive(Default)]
struct Batch {
    changes: Vec<Arc<Change>>,
    /// The keys that the batch changes, as it leaves them.
    keys: HashMap<Arc<str>, Option<Entry>>,
    compact: Option<Revision>,
    answers: Vec<Answer>,
    bytes: usize,
}

/// The thread that writes a checkpoint, if one does.
#[derive(Default)]
struct Checkpointing {
    thread: Option<JoinHandle<Made>>,
    stopped: Arc<AtomicBool>,
}

impl Checkpointing {
    fn start(&mut self, checkpoint: Checkpoint, shared: Arc<Shared>) {
        let stopped = self.stopped.clone();
        let write = move || {
            let (revision, entries) = shared.read(State::oldest);
            // It may take a while, and must not keep anything else of the store.
            drop(shared);
            checkpoint.write(revision, &entries, || stopped.load(Ordering::Relaxed))
        };
        match std::thread::Builder::new().name("store-checkpoint".into()).spawn(write) {
            Ok(thread) => self.thread = Some(thread),
            Err(error) => tracing::warn!(%error, "cannot write a checkpoint of the store"),
        }
    }

    /// What became of a checkpoint that has ended.
    fn ended(&mut self) -> Option<Made> {
        self.thread.take_if(|thread| thread.is_finished())?.join().ok()
    }
}

impl Drop for Checkpointing {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the writing of a checkpoint panicked");
        }
    }
}

impl Writer {
    pub(super) fn new(log: Log, shared: Arc<Shared>) -> Self {
        let (batch, checkpointing) = Default::default();
        Writer { log, shared, batch, checkpointing, closing: None }
    }

    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Request>) {
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
                drop(queue);
                self.close();
                // Who asked may have gone away.
                closed.send(Ok(())).ok();
                return;
            }
        }
        self.close();
    }

    fn close(self) {
        // It writes to the same folder.
        drop(self.checkpointing);
        self.log.close();
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
        let (compacted, revision) = self.shared.read(|state| (state.compacted(), state.revision()));
        let last = batch.changes.last().map_or(revision, |change| change.revision);
        let forgotten = batch.compact.map(|to| to.min(last)).filter(|to| *to > compacted);
        let written = match batch.changes.is_empty() && forgotten.is_none() {
            true => Ok(()),
            false => self.log.append(&batch.changes, forgotten),
        };
        match &written {
            Ok(()) => {
                // Dropped behind the lock: there may be much of it.
                let _history = self.shared.write(|state| {
                    batch.changes.into_iter().for_each(|change| state.apply(change));
                    // What is over the bounds is over them after a restart, too, and need not be in the log.
                    forgotten.max(state.excess()).map(|to| state.compact(to))
                });
            }
            Err(error) => tracing::error!(%error, "cannot write to the store"),
        }
        let failure = written.err();
        batch.answers.into_iter().for_each(|answer| answer.send(failure.as_ref()));
        self.checkpoint();
    }

    /// Begins a checkpoint when one is due.
    fn checkpoint(&mut self) {
        if let Some(made) = self.checkpointing.ended() {
            self.log.checkpointed(made);
        }
        if self.checkpointing.thread.is_none()
            && let Some(checkpoint) = self.log.due(self.shared.read(State::compacted))
        {
            self.checkpointing.start(checkpoint, self.shared.clone());
        }
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
