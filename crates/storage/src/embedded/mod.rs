//! The store on disk: the default. All reads are from memory; a log keeps what was committed.
//!
//! Start with [`Embedded`]; [`writer`] decides and commits, [`log`] is the files, [`frame`] the bytes in them. The log
//! is the history itself, so that a restarted server can go on serving watches from before the restart.

mod frame;
mod log;
mod writer;

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::disk::{Disk, Folder};
use crate::state::Shared;
use crate::{Entry, Error, Expect, Follower, Range, RangeOptions, Result, Revision, Store, Watch};
use log::Log;
pub use log::Sizes;
use writer::{Request, Writer};

/// How many requests may wait for the writer before callers wait to send theirs.
const QUEUE: usize = 1024;

pub struct Embedded {
    shared: Arc<Shared>,
    /// `None` only while the store is dropped.
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

impl Embedded {
    /// Opens the store in this folder, or makes it. Reads all of it into memory and verifies every commit.
    pub fn open(folder: &Path) -> Result<Self> {
        Self::open_on(Arc::new(Folder::open(folder)?), Sizes::default())
    }

    /// Opens the store on any disk, and with files of other sizes: for tests.
    pub fn open_on(disk: Arc<dyn Disk>, sizes: Sizes) -> Result<Self> {
        let (log, state) = Log::open(disk, sizes)?;
        let shared = Shared::new(state);
        let (requests, queue) = mpsc::channel(QUEUE);
        let writer = Writer::new(log, shared.clone());
        let writer = std::thread::Builder::new().name("store-writer".into()).spawn(move || writer.run(queue));
        let writer =
            writer.map_err(|e| Error::Backend { action: "start the store's writer", source: Box::new(e) })?;
        Ok(Embedded { shared, requests: Some(requests), writer: Some(writer) })
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<Result<T>>) -> Request) -> Result<T> {
        let (answer, answered) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(Error::Closed)?;
        requests.send(request(answer)).await.map_err(|_| Error::Closed)?;
        answered.await.map_err(|_| Error::Closed)?
    }
}

/// Waits for the writer, so that the files are closed when the store is gone.
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
