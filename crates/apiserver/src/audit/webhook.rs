//! [`WebhookSink`]: the audit log as lists of events that are posted to a server.
//!
//! In batches, events wait in a queue until there are enough of them or the oldest waited long enough; a request that
//! finds the queue full goes on, and its event is lost. Otherwise each request waits until its event was taken.
//!
//! Upstream: apiserver/plugin/pkg/audit/{webhook/webhook,buffered/buffered,truncate/truncate}.go

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use client::https::Config;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Sink;
use super::event::Event;
use super::log::Mode;
use crate::authn::Random;
use crate::pace::{Pace, Throttle};
use crate::remote::review_server::{Retry, ReviewServer};

const TIMEOUT: Duration = Duration::from_secs(30);
/// So many batches are on their way at once. Upstream does not say; a server that is down must not cost memory
/// without end.
const MOST_UNDERWAY: usize = 32;

/// How events are gathered.
#[derive(Clone, Copy, Debug)]
pub struct Batching {
    /// How many may wait.
    pub buffer_size: usize,
    /// How many are posted at once.
    pub max_size: usize,
    /// How long the first of a batch waits.
    pub max_wait: Duration,
    /// How many batches are posted a second; `None` for as many as come.
    pub throttle: Option<Throttle>,
}

/// The sizes in bytes that events and batches are cut down to.
#[derive(Clone, Copy, Debug)]
pub struct Truncating {
    pub max_event: usize,
    pub max_batch: usize,
}

#[derive(Clone, Debug)]
pub struct Options {
    pub mode: Mode,
    pub batching: Batching,
    pub truncating: Option<Truncating>,
    /// How long it takes until what failed is posted again.
    pub patience: Duration,
}

pub struct WebhookSink {
    courier: Arc<Courier>,
    mode: Mode,
    queue: mpsc::Sender<Value>,
    /// Until the task runs that takes from the queue.
    waiting: Mutex<Option<(mpsc::Receiver<Value>, Batching)>>,
}

/// Posts lists of events.
struct Courier {
    server: ReviewServer,
    truncating: Option<Truncating>,
}

impl WebhookSink {
    pub fn new(config: &Config, options: Options, random: Random) -> Result<Self, client::Error> {
        let server = ReviewServer::new(config, TIMEOUT, options.patience, random)?;
        let (queue, waiting) = mpsc::channel(options.batching.buffer_size.max(1));
        Ok(WebhookSink {
            courier: Arc::new(Courier { server, truncating: options.truncating }),
            mode: options.mode,
            queue,
            waiting: Mutex::new(Some((waiting, options.batching))),
        })
    }
}

#[async_trait]
impl Sink for WebhookSink {
    async fn write(&self, event: &Event) -> bool {
        if self.mode == Mode::Batch {
            self.write_late(event);
            return true;
        }
        let well = self.courier.deliver(vec![event.to_value()]).await;
        well || self.mode == Mode::Blocking
    }

    fn write_late(&self, event: &Event) {
        if self.queue.try_send(event.to_value()).is_err() {
            tracing::warn!(event = event.audit_id, "an audit event is lost: too many wait to be posted");
        }
    }

    fn background(&self, shutdown: CancellationToken) -> Option<BoxFuture<'static, ()>> {
        let (queue, batching) = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Box::pin(post_batches(self.courier.clone(), queue, batching, shutdown)))
    }
}

/// Posts what comes, batch by batch; after the shutdown what is still there, which goes out at once.
async fn post_batches(
    courier: Arc<Courier>,
    mut queue: mpsc::Receiver<Value>,
    batching: Batching,
    shutdown: CancellationToken,
) {
    let underway = Arc::new(Semaphore::new(MOST_UNDERWAY));
    let posts = TaskTracker::new();
    let mut pace = batching.throttle.map(|throttle| Pace::new(throttle, Instant::now()));
    loop {
        let batch = next_batch(&mut queue, &batching, &shutdown).await;
        if shutdown.is_cancelled() {
            queue.close();
        }
        if batch.is_empty() {
            break;
        }
        if let Some(pace) = &mut pace {
            tokio::time::sleep(pace.take(Instant::now())).await;
        }
        let Ok(turn) = underway.clone().acquire_owned().await else { break };
        let courier = courier.clone();
        posts.spawn(async move {
            courier.deliver(batch).await;
            drop(turn);
        });
    }
    posts.close();
    posts.wait().await;
}

/// The events of the next batch; none when there will be none any more.
async fn next_batch(
    queue: &mut mpsc::Receiver<Value>,
    batching: &Batching,
    shutdown: &CancellationToken,
) -> Vec<Value> {
    let mut batch = Vec::new();
    tokio::select! {
        first = queue.recv() => batch.extend(first),
        () = shutdown.cancelled() => batch.extend(queue.try_recv().ok()),
    }
    if batch.is_empty() {
        return batch;
    }
    let until = Instant::now() + batching.max_wait;
    while batch.len() < batching.max_size {
        tokio::select! {
            biased;
            next = queue.recv() => match next {
                Some(event) => batch.push(event),
                None => break,
            },
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep_until(until) => break,
        }
    }
    batch
}

impl Courier {
    /// Whether all of them were taken.
    async fn deliver(&self, events: Vec<Value>) -> bool {
        let count = events.len();
        let batches = match self.truncating {
            Some(sizes) => cut(events, sizes),
            None => vec![events],
        };
        let mut taken = 0;
        for batch in batches {
            let list = json!({
                "kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": batch,
            });
            match self.server.post(&list, Retry::Always).await {
                Ok(_) => taken += batch.len(),
                Err(why) => tracing::error!(%why, events = batch.len(), "audit events are lost"),
            }
        }
        taken == count
    }
}

/// Events without their objects where they are too large, in batches that are not. What is too large all the same is
/// left out.
fn cut(events: Vec<Value>, sizes: Truncating) -> Vec<Vec<Value>> {
    let mut batches: Vec<Vec<Value>> = Vec::new();
    let mut filled = 0;
    for mut event in events {
        let mut size = event.to_string().len();
        if size > sizes.max_event && matches!(event["level"].as_str(), Some("Request" | "RequestResponse")) {
            if let Some(fields) = event.as_object_mut() {
                fields.remove("requestObject");
                fields.remove("responseObject");
            }
            event["annotations"]["audit.k8s.io/truncated"] = "true".into();
            size = event.to_string().len();
        }
        if size > sizes.max_event {
            let id = event["auditID"].as_str().unwrap_or_default();
            tracing::error!(event = id, "an audit event is lost: it is too large even after truncating");
            continue;
        }
        match batches.last_mut().filter(|_| filled + size <= sizes.max_batch) {
            Some(batch) => {
                batch.push(event);
                filled += size;
            }
            None => {
                batches.push(vec![event]);
                filled = size;
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(level: &str, id: &str, object: usize) -> Value {
        json!({"level": level, "auditID": id, "requestObject": "x".repeat(object)})
    }

    #[test]
    fn large_events_lose_their_objects_and_batches_are_split() {
        let sizes = Truncating { max_event: 200, max_batch: 300 };
        let shown = |events: Vec<Value>| -> Vec<Vec<(String, bool)>> {
            let told = |event: &Value| {
                (event["auditID"].as_str().unwrap().to_owned(), event.get("requestObject").is_some())
            };
            cut(events, sizes).iter().map(|batch| batch.iter().map(told).collect()).collect()
        };
        let one = |id: &str, whole: bool| (id.to_owned(), whole);
        assert_eq!(shown(vec![event("Request", "a", 10)]), [[one("a", true)]]);
        assert_eq!(shown(vec![event("Request", "a", 500)]), [[one("a", false)]]);
        assert!(shown(vec![event("Metadata", "a", 500)]).is_empty());
        let three = ["a", "b", "c"].map(|id| event("Request", id, 100));
        assert_eq!(shown(three.to_vec()), [vec![one("a", true)], vec![one("b", true)], vec![one("c", true)]]);
        let small = ["a", "b", "c"].map(|id| event("Request", id, 50));
        assert_eq!(shown(small.to_vec()), [vec![one("a", true), one("b", true)], vec![one("c", true)]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_is_full_or_waited_long_enough() {
        let batching =
            Batching { buffer_size: 10, max_size: 2, max_wait: Duration::from_secs(30), throttle: None };
        let shutdown = CancellationToken::new();
        let (events, mut queue) = mpsc::channel(10);
        for _ in 0..3 {
            events.send(Value::Null).await.unwrap();
        }
        let begun = Instant::now();
        assert_eq!(next_batch(&mut queue, &batching, &shutdown).await.len(), 2);
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert_eq!(next_batch(&mut queue, &batching, &shutdown).await.len(), 1);
        assert_eq!(begun.elapsed(), Duration::from_secs(30));
        events.send(Value::Null).await.unwrap();
        shutdown.cancel();
        assert_eq!(next_batch(&mut queue, &batching, &shutdown).await.len(), 1);
        assert!(next_batch(&mut queue, &batching, &shutdown).await.is_empty());
    }
}
