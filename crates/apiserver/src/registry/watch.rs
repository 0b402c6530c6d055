//! Watches: a cursor into a resource's history. A watcher holds no events of its own; one that stays behind the
//! history is told to list again.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use bytes::{Bytes, BytesMut};
use futures::stream::{FuturesUnordered, StreamExt};
use storage::Revision;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

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
    /// Rings at the next of both. It is set again only when it rang: most wake-ups are changes.
    timer: Pin<Box<Sleep>>,
    /// What ends the watch from outside. They are looked at when they ring and not at each change.
    ends: FuturesUnordered<WaitForCancellationFutureOwned>,
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
        // Upstream's watch has no better word for a revision that it cannot read.
        let unreadable = |_| {
            let why = crate::options::invalid_resource_version(&options.resource_version);
            Status::failure(500, "", why)
        };
        let asked = options.revision().map_err(unreadable)?;
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
        let mut initial = self.views(resource, initial).await?;
        initial.retain(|object| options.matches(resource, object));
        initial.reverse();
        let now = Instant::now();
        let seconds = options.timeout_seconds.filter(|s| *s > 0);
        let seconds = seconds.unwrap_or(MIN_TIMEOUT_SECONDS + cursor % MIN_TIMEOUT_SECONDS);
        let deadline = now + Duration::from_secs(seconds.min(24 * 60 * 60));
        let bookmark = now + BOOKMARK_INTERVAL;
        let first = if options.bookmarks { bookmark.min(deadline) } else { deadline };
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
            deadline,
            bookmark,
            timer: Box::pin(tokio::time::sleep_until(first)),
            ends: [shutdown, resource.retired.clone()]
                .map(CancellationToken::cancelled_owned)
                .into_iter()
                .collect(),
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
            let frames = match self.resource.def.custom {
                Some(_) => self.custom_frames().await,
                None => self.history_frames(),
            };
            if let Some(frames) = frames {
                return Some(frames);
            }
            tokio::select! {
                _ = self.ends.next() => return None,
                () = self.timer.as_mut() => if let Some(last) = self.rang() {
                    return last;
                },
                changed = self.changed.changed() => if changed.is_err() {
                    return None;
                },
            }
        }
    }

    /// The watch is over, or a bookmark is due.
    fn rang(&mut self) -> Option<Option<Bytes>> {
        let now = Instant::now();
        if now >= self.deadline {
            self.ended = true;
            return Some(self.options.bookmarks.then(|| self.bookmark_frame(false)));
        }
        let due = self.options.bookmarks && now >= self.bookmark;
        if due {
            self.bookmark = now + BOOKMARK_INTERVAL;
        }
        let next = if self.options.bookmarks { self.bookmark.min(self.deadline) } else { self.deadline };
        self.timer.as_mut().reset(next);
        due.then(|| Some(self.bookmark_frame(false)))
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

    /// What happened since the cursor, as the row of a custom kind shows it.
    async fn custom_frames(&mut self) -> Option<Bytes> {
        let progress = self.registry.progress();
        let events = self.cache.read().since(self.cursor, BATCH);
        let mut events = match events {
            Ok(events) => events,
            Err(too_old) => {
                self.ended = true;
                return Some(self.encoder.error(&expired(self.cursor, too_old.oldest)));
            }
        };
        let exhausted = events.len() < BATCH;
        let last = events.last().map_or(self.cursor, |event| event.revision);
        events.retain(|event| event.object.key.starts_with(&self.prefix));
        let states = events.iter().flat_map(|event| [Some(&event.object), event.previous.as_ref()]);
        let states: Vec<Arc<Object>> = states.flatten().cloned().collect();
        let mut views = match self.registry.views(&self.resource, states).await {
            Ok(views) => views.into_iter(),
            Err(status) => {
                self.ended = true;
                return Some(self.encoder.error(&status));
            }
        };
        self.cursor = if exhausted { last.max(progress) } else { last };
        let mut block = BytesMut::new();
        for event in events {
            let object = views.next()?;
            let previous = match event.previous {
                Some(_) => Some(views.next()?),
                None => None,
            };
            let event = Event::seen(event.revision, object, previous, event.deleted);
            if let Some((kind, departed)) = visible(&self.resource, &self.options, &event) {
                block.extend_from_slice(
                    &self.encoder.object(kind, departed.as_ref().unwrap_or(&event.object)),
                );
            }
        }
        (!block.is_empty()).then(|| block.freeze())
    }

    fn bookmark_frame(&mut self, initial_end: bool) -> Bytes {
        self.encoder.bookmark(self.cursor, initial_end)
    }
}
