//! Watches: a cursor into a resource's history. A watcher holds no events of its own; one that stays behind the
//! history is told to list again.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use bytes::{Bytes, BytesMut};
use storage::Revision;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cache::{Cache, Event, Kind};
use super::object::Object;
use super::{Registry, Resource};
use crate::encode::EventEncoder;
use crate::options::ListOptions;

/// How often a quiet watcher that asked for it is told how far it is.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// Watches without a timeout of their own end after this and up to as much again.
///
/// Upstream: apiserver/pkg/server/config.go MinRequestTimeout
const MIN_TIMEOUT_SECONDS: u64 = 1800;

/// How many events are taken from the history at once.
const BATCH: usize = 256;
const BLOCK_BYTES: usize = 128 << 10;

/// What a watcher is shown of an event.
fn visible(resource: &Resource, options: &ListOptions, event: &Event) -> Option<(Kind, Option<Arc<Object>>)> {
    if options.selects_all() {
        return Some((event.kind(), None));
    }
    let matched = event.previous.as_ref().is_some_and(|previous| options.matches(resource, previous));
    if event.deleted {
        return matched.then_some((Kind::Deleted, None));
    }
    match (matched, options.matches(resource, &event.object)) {
        (false, true) => Some((Kind::Added, None)),
        (true, true) => Some((Kind::Modified, None)),
        (true, false) => Some((Kind::Deleted, event.departed())),
        (false, false) => None,
    }
}

/// An open watch.
pub struct Watcher {
    registry: Arc<Registry>,
    resource: Arc<Resource>,
    cache: Arc<Cache>,
    options: ListOptions,
    prefix: String,
    encoder: EventEncoder,
    changed: tokio::sync::watch::Receiver<Revision>,
    /// All changes up to here have been sent.
    cursor: Revision,
    /// The present objects that have yet to be sent, last first.
    initial: Vec<Arc<Object>>,
    /// A bookmark closes the initial events.
    initial_end: bool,
    deadline: Instant,
    bookmark: Instant,
    shutdown: CancellationToken,
    ended: bool,
}

impl Registry {
    /// Opens a watch: `namespace` is empty for all.
    pub async fn watch(
        self: &Arc<Self>,
        resource: &Arc<Resource>,
        namespace: &str,
        options: ListOptions,
        encoder: EventEncoder,
        shutdown: CancellationToken,
    ) -> Result<Watcher, Status> {
        let cache = resource.cache()?.clone();
        let changed = cache.subscribe();
        let prefix = resource.prefix(namespace);
        let asked = options.revision()?;
        let from_state = match options.send_initial_events {
            Some(wanted) => wanted,
            None => matches!(asked, None | Some(0)),
        };
        let mut initial = Vec::new();
        let cursor;
        if from_state {
            self.caught_up(asked.unwrap_or(0)).await?;
            let progress = self.progress();
            let state = cache.read();
            cursor = progress.max(state.newest());
            initial = state.range(&prefix, None).cloned().collect();
        } else {
            cursor = asked.filter(|revision| *revision > 0).unwrap_or_else(|| self.progress());
            // Told at once, as a Status: that history does not reach back.
            cache.read().since(cursor, 0).map_err(|too_old| expired(cursor, too_old.oldest))?;
        }
        initial.retain(|object| options.matches(resource, object));
        initial.reverse();
        let now = Instant::now();
        let seconds = options.timeout_seconds.filter(|s| *s > 0);
        let seconds = seconds.unwrap_or(MIN_TIMEOUT_SECONDS + cursor % MIN_TIMEOUT_SECONDS);
        Ok(Watcher {
            registry: self.clone(),
            resource: resource.clone(),
            cache,
            initial_end: options.send_initial_events == Some(true),
            options,
            prefix,
            encoder,
            changed,
            cursor,
            initial,
            deadline: now + Duration::from_secs(seconds.min(24 * 60 * 60)),
            bookmark: now + BOOKMARK_INTERVAL,
            shutdown,
            ended: false,
        })
    }
}

fn expired(asked: Revision, oldest: Revision) -> Status {
    Status::expired(format!("too old resource version: {asked} ({oldest})"))
}

impl Watcher {
    /// The next frames; `None` when the watch has ended.
    pub async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.ended {
                return None;
            }
            if !self.initial.is_empty() || self.initial_end {
                return Some(self.initial_frames());
            }
            self.changed.borrow_and_update();
            if let Some(frames) = self.history_frames() {
                return Some(frames);
            }
            tokio::select! {
                () = self.shutdown.cancelled() => return None,
                () = tokio::time::sleep_until(self.deadline) => {
                    self.ended = true;
                    return self.options.bookmarks.then(|| self.bookmark_frame(false));
                }
                () = tokio::time::sleep_until(self.bookmark), if self.options.bookmarks => {
                    self.bookmark = Instant::now() + BOOKMARK_INTERVAL;
                    return Some(self.bookmark_frame(false));
                }
                changed = self.changed.changed() => if changed.is_err() {
                    return None;
                },
            }
        }
    }

    fn initial_frames(&mut self) -> Bytes {
        let mut block = BytesMut::new();
        while let Some(object) = self.initial.pop() {
            block.extend_from_slice(&self.encoder.object(Kind::Added, &object));
            if block.len() >= BLOCK_BYTES {
                return block.freeze();
            }
        }
        if std::mem::take(&mut self.initial_end) {
            block.extend_from_slice(&self.bookmark_frame(true));
        }
        block.freeze()
    }

    /// What happened since the cursor; `None` when that is nothing to see.
    fn history_frames(&mut self) -> Option<Bytes> {
        let mut single: Option<Bytes> = None;
        let mut block = BytesMut::new();
        loop {
            // Read before the history is: all changes up to here are in it.
            let progress = self.registry.progress();
            let events = match self.cache.read().since(self.cursor, BATCH) {
                Ok(events) => events,
                Err(too_old) => {
                    self.ended = true;
                    return Some(self.encoder.error(&expired(self.cursor, too_old.oldest)));
                }
            };
            for event in &events {
                self.cursor = event.revision;
                if !event.object.key.starts_with(&self.prefix) {
                    continue;
                }
                let Some((kind, departed)) = visible(&self.resource, &self.options, event) else { continue };
                let frame = match departed {
                    Some(object) => self.encoder.object(kind, &object),
                    None => self.encoder.event(kind, event),
                };
                match single.take() {
                    None if block.is_empty() => single = Some(frame),
                    first => {
                        block.extend_from_slice(&first.unwrap_or_default());
                        block.extend_from_slice(&frame);
                    }
                }
            }
            let exhausted = events.len() < BATCH;
            if exhausted {
                self.cursor = self.cursor.max(progress);
            }
            if exhausted || block.len() >= BLOCK_BYTES {
                return single.or_else(|| (!block.is_empty()).then(|| block.freeze()));
            }
        }
    }

    fn bookmark_frame(&mut self, initial_end: bool) -> Bytes {
        self.encoder.bookmark(self.cursor, initial_end)
    }
}
