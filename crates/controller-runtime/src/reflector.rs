//! Keeps an informer's cache equal to the server's state: a streaming list where the server has it, else list
//! and watch; resumed where it broke off, begun anew when history no longer reaches back.

use std::time::Duration;

use client::{Error, ListOptions, WatchEvent, WatchStream};
use tokio::time::Instant;

use crate::informer::{Shared, Shown};
use crate::store::Cached;

/// Objects a page of a list that is not streamed.
const PAGE: u32 = 500;
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(30);
/// A watch that lived so long was a good one: the next failure is a new one.
const GOOD_WATCH: Duration = Duration::from_secs(10);

/// Exponential delays with jitter.
///
/// Upstream: client-go/tools/cache/reflector.go NewReflectorWithOptions (with a shorter first step: most first
/// failures are a server that starts beside us).
struct Backoff {
    next: Duration,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(LONGEST_DELAY);
        delay.mul_f64(1.0 + rand::random::<f64>())
    }

    fn reset(&mut self) {
        self.next = FIRST_DELAY;
    }
}

/// Where the reflector stands.
struct Position {
    /// The revision to watch from; `None` before the first list and after history was lost.
    resource_version: Option<String>,
    /// Whether the server is believed to stream lists.
    streaming: bool,
    /// Whether a watch has brought something lately.
    moved: bool,
}

/// Runs until the informer is stopped.
pub(crate) async fn run<T: Cached>(shared: &Shared<T>) {
    let mut backoff = Backoff { next: FIRST_DELAY };
    let mut position = Position { resource_version: None, streaming: true, moved: false };
    loop {
        let began = Instant::now();
        let outcome = tokio::select! {
            () = shared.stop.cancelled() => return,
            outcome = round(shared, &mut position) => outcome,
        };
        // Who falls behind in a storm of changes and has to begin anew is not to wait longer each time.
        if std::mem::take(&mut position.moved) || began.elapsed() > GOOD_WATCH {
            backoff.reset();
        }
        match outcome {
            Ok(()) => {}
            Err(error)
                if position.streaming && position.resource_version.is_none() && refuses_streaming(&error) =>
            {
                position.streaming = false;
                continue;
            }
            Err(error) if error.is_expired() => {
                tracing::debug!(resource = %shared.resource.gvr.resource, "history is lost, listing again");
                position.resource_version = None;
            }
            Err(error) => {
                tracing::debug!(resource = %shared.resource.gvr.resource, %error, "list or watch failed");
            }
        }
        tokio::select! {
            () = shared.stop.cancelled() => return,
            () = tokio::time::sleep(backoff.next()) => {}
        }
    }
}

fn refuses_streaming(error: &Error) -> bool {
    error.status().is_some_and(|status| matches!(status.code, 400 | 405 | 422 | 501))
}

/// One list where it is needed, and the watch after it until that ends.
async fn round<T: Cached>(shared: &Shared<T>, position: &mut Position) -> Result<(), Error> {
    let mut options = shared.options();
    // Upstream: client-go/tools/cache/reflector.go minWatchTimeout: between 5 and 10 minutes.
    options.timeout_seconds = Some(300 + rand::random::<u32>() % 300);
    options.bookmarks = true;
    let mut watch = match &position.resource_version {
        Some(resource_version) => {
            options.resource_version = Some(resource_version.clone());
            shared.watch(&options).await?
        }
        None if position.streaming => {
            options.send_initial_events = true;
            let mut watch = shared.watch(&options).await?;
            let resource_version = initial_events(shared, &mut watch).await?;
            position.resource_version = Some(resource_version);
            watch
        }
        None => {
            let resource_version = list(shared).await?;
            options.resource_version = Some(resource_version.clone());
            position.resource_version = Some(resource_version);
            shared.watch(&options).await?
        }
    };
    while let Some(event) = watch.next().await {
        let event = event?;
        position.moved = true;
        let at = match event {
            WatchEvent::Added(Shown { resource_version, object })
            | WatchEvent::Modified(Shown { resource_version, object }) => {
                object.into_iter().for_each(|object| shared.observe(object));
                resource_version
            }
            WatchEvent::Deleted(Shown { resource_version, object }) => {
                object.into_iter().for_each(|object| shared.observe_deleted(object));
                resource_version
            }
            WatchEvent::Bookmark { resource_version, .. } => {
                shared.observe_bookmark(&resource_version);
                resource_version
            }
        };
        if !at.is_empty() {
            position.resource_version = Some(at);
        }
    }
    Ok(())
}

/// The objects of a streaming list, up to the bookmark that ends it.
async fn initial_events<T: Cached>(
    shared: &Shared<T>,
    watch: &mut WatchStream<Shown<T>>,
) -> Result<String, Error> {
    let mut objects = std::collections::BTreeMap::new();
    while let Some(event) = watch.next().await {
        match event? {
            WatchEvent::Added(Shown { object, .. }) | WatchEvent::Modified(Shown { object, .. }) => {
                if let Some(object) = object {
                    objects.insert(object.key(), object);
                }
            }
            WatchEvent::Deleted(Shown { object, .. }) => {
                if let Some(object) = object {
                    objects.remove(&object.key());
                }
            }
            WatchEvent::Bookmark { resource_version, initial_events_end: true } => {
                shared.replace(objects.into_values().collect(), &resource_version);
                return Ok(resource_version);
            }
            WatchEvent::Bookmark { .. } => {}
        }
    }
    Err(Error::Transport("the watch ended before the initial events did".into()))
}

/// A paged list.
async fn list<T: Cached>(shared: &Shared<T>) -> Result<String, Error> {
    let mut options = ListOptions { limit: Some(PAGE), ..shared.options() };
    let mut objects = Vec::new();
    loop {
        let page =
            shared.client.list_values(&shared.resource, shared.filter.namespace.as_deref(), &options).await?;
        objects.extend(page.items.into_iter().filter_map(|object| shared.decode(object)));
        if page.continue_token.is_empty() {
            shared.replace(objects, &page.resource_version);
            return Ok(page.resource_version);
        }
        options.continue_token = Some(page.continue_token);
    }
}

#[cfg(test)]
mod tests;
