//! The way from a part to the API server, which a seed makes a bad one: requests are late, refused or lost, answers
//! are lost after the deed, watches stall and break off. A part that has crashed reaches nobody any more.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use apimachinery::Status;
use async_trait::async_trait;
use bytes::Bytes;
use client::{Body, Error, Transport};
use futures::{Stream, StreamExt};
use http::{Method, Request, Response};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

/// What befalls one request.
struct Fate {
    late: Duration,
    refused: Option<(u16, &'static str)>,
    request_lost: bool,
    answer_lost: bool,
    watch_ends: Option<Instant>,
}

struct State {
    random: StdRng,
    on: bool,
    requests: u64,
    /// Since when nothing was asked but watches.
    quiet_since: Instant,
    /// What was asked how often since somebody last wanted to know.
    asked: BTreeMap<String, u32>,
}

/// The faults of a cluster. Clones share them.
#[derive(Clone)]
pub struct Faults(Arc<Mutex<State>>);

impl Faults {
    pub fn new(seed: u64) -> Self {
        Faults(Arc::new(Mutex::new(State {
            random: StdRng::seed_from_u64(seed),
            on: false,
            requests: 0,
            quiet_since: Instant::now(),
            asked: BTreeMap::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn on(&self, on: bool) {
        self.lock().on = on;
    }

    pub fn requests(&self) -> u64 {
        self.lock().requests
    }

    pub fn quiet_since(&self) -> Instant {
        self.lock().quiet_since
    }

    /// What was asked most since this was last called.
    pub fn most_asked(&self) -> String {
        let mut asked: Vec<_> = std::mem::take(&mut self.lock().asked).into_iter().collect();
        asked.sort_by_key(|(_, times)| std::cmp::Reverse(*times));
        let lines = asked.into_iter().take(12).map(|(what, times)| format!("\n  {times} times {what}"));
        lines.collect()
    }

    fn count(&self, request: &Request<Bytes>) {
        let mut state = self.lock();
        state.requests += 1;
        state.quiet_since = Instant::now();
        *state.asked.entry(format!("{} {}", request.method(), request.uri().path())).or_default() += 1;
    }

    fn fate(&self, watch: bool, method: &Method) -> Fate {
        let mut state = self.lock();
        let mut fate = Fate {
            late: Duration::ZERO,
            refused: None,
            request_lost: false,
            answer_lost: false,
            watch_ends: None,
        };
        if !state.on {
            return fate;
        }
        let random = &mut state.random;
        if random.random_bool(0.1) {
            fate.late = Duration::from_millis(random.random_range(0..300));
        }
        if watch && random.random_bool(0.3) {
            fate.watch_ends = Some(Instant::now() + Duration::from_millis(random.random_range(0..90_000)));
        }
        match random.random_range(0..100) {
            0 => fate.refused = Some((500, "InternalError")),
            1 => fate.refused = Some((503, "ServiceUnavailable")),
            2 | 3 if matches!(*method, Method::PUT | Method::PATCH) => fate.refused = Some((409, "Conflict")),
            4 => fate.request_lost = true,
            5 => fate.answer_lost = true,
            _ => {}
        }
        fate
    }

    /// How long a watch stands still now.
    fn stall(&self) -> Duration {
        let mut state = self.lock();
        if !state.on || !state.random.random_bool(0.03) {
            return Duration::ZERO;
        }
        Duration::from_millis(state.random.random_range(0..700))
    }
}

/// The way of one incarnation of a part.
pub struct Line {
    pub inner: Arc<dyn Transport>,
    pub faults: Faults,
    /// The part has crashed.
    pub dead: CancellationToken,
}

fn lost() -> Error {
    Error::Transport("the connection broke".into())
}

#[async_trait]
impl Transport for Line {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let fate = self.faults.fate(watch, request.method());
        sleep(fate.late).await;
        if self.dead.is_cancelled() || fate.request_lost {
            return Err(lost());
        }
        if !watch {
            self.faults.count(&request);
        }
        if let Some((code, reason)) = fate.refused {
            let status = Status::failure(code, reason, format!("{reason} by the seed"));
            let body = serde_json::to_vec(&status).map_err(|error| Error::Decode(error.into()))?;
            let response = Response::builder().status(code).body(Body::Full(body.into()));
            return response.map_err(|error| Error::Transport(error.into()));
        }
        let response = self.inner.send(request).await?;
        if self.dead.is_cancelled() || fate.answer_lost {
            return Err(lost());
        }
        let (faults, dead) = (self.faults.clone(), self.dead.clone());
        Ok(response.map(|body| match body {
            Body::Stream(stream) => Body::Stream(Box::pin(stalling(stream, faults, dead, fate.watch_ends))),
            full => full,
        }))
    }
}

type Chunks = std::pin::Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

fn stalling(
    chunks: Chunks,
    faults: Faults,
    dead: CancellationToken,
    ends: Option<Instant>,
) -> impl Stream<Item = Result<Bytes, Error>> + Send {
    futures::stream::unfold((chunks, faults, dead, ends), |(mut chunks, faults, dead, ends)| async move {
        let next = async {
            match ends {
                Some(at) => timeout_at(at, chunks.next()).await.unwrap_or(None),
                None => chunks.next().await,
            }
        };
        let chunk = tokio::select! {
            () = dead.cancelled() => None,
            chunk = next => chunk,
        }?;
        sleep(faults.stall()).await;
        Some((chunk, (chunks, faults, dead, ends)))
    })
}
