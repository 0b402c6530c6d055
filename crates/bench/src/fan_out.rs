//! Watches: how soon, and how many times a second, a hundred watchers are told of each write.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt;
use memchr::memmem;
use tokio::sync::Notify;

use crate::Encoding;
use crate::body::{self, Marks};
use crate::target::Target;
use crate::wire::{Ask, Lane};
use crate::work::{self, LISTED, Measured, Plan, micros};

const WATCHERS: usize = 100;
const PATIENCE: Duration = Duration::from_secs(30);

/// What the watchers have in common.
struct Seen {
    begun: Instant,
    latencies: RefCell<Vec<u32>>,
    bytes: Cell<usize>,
    wanted: usize,
    all: Notify,
}

/// Operations are events received; the latency is from the write's begin to the receipt.
pub async fn run(
    target: &Target,
    namespace: &str,
    plan: &Plan<'_>,
    writes: usize,
) -> anyhow::Result<Measured> {
    let revision = newest(target, namespace).await?;
    let path = format!("{}?watch=1&resourceVersion={revision}", work::pods(namespace));
    let seen = Rc::new(Seen {
        begun: Instant::now(),
        latencies: RefCell::new(Vec::with_capacity(writes * WATCHERS)),
        bytes: Cell::new(0),
        wanted: writes * WATCHERS,
        all: Notify::new(),
    });
    let mut watchers = Vec::new();
    for lane in target.address.lanes(plan.http, WATCHERS).await? {
        watchers.push(tokio::task::spawn_local(watch(lane, path.clone(), plan.encoding, seen.clone())));
    }
    let lanes = target.address.lanes(plan.http, plan.writers).await?;
    let bar = plan.progress("watch, 100 watchers", target, writes);
    let (pods, clock) = (work::pods(namespace), seen.clone());
    let job = Rc::new(move |mut lane: Lane, number: usize| {
        let path = format!("{pods}/{}", body::name(number % LISTED));
        let now = clock.begun.elapsed().as_micros();
        async move {
            let body = body::mark_patch(u64::try_from(now)?);
            let mut ask = Ask::send(Method::PATCH, &path, Encoding::Json, body);
            ask.content_type = "application/merge-patch+json";
            let (status, length) = lane.count(ask).await?;
            if !status.is_success() {
                bail!("the server answered {status}");
            }
            Ok((lane, length))
        }
    });
    let begun = Instant::now();
    work::drive(lanes, writes, &bar, job).await?;
    let all = tokio::time::timeout(PATIENCE, seen.all.notified()).await;
    let elapsed = begun.elapsed();
    watchers.iter().for_each(|watcher| watcher.abort());
    for watcher in watchers {
        if let Ok(ended) = watcher.await {
            ended?;
            bail!("the server ended a watch");
        }
    }
    let latencies = seen.latencies.take();
    if all.is_err() {
        bail!("only {} of {} events came", latencies.len(), seen.wanted);
    }
    Ok(Measured::new(latencies.len(), elapsed, latencies, seen.bytes.get()))
}

async fn watch(mut lane: Lane, path: String, encoding: Encoding, seen: Rc<Seen>) -> anyhow::Result<()> {
    let mut ask = Ask::get(&path, encoding);
    if encoding == Encoding::Protobuf {
        ask.accept = "application/vnd.kubernetes.protobuf;stream=watch";
    }
    let mut response = lane.open(ask).await?;
    if !response.status().is_success() {
        bail!("a watch was answered {}", response.status());
    }
    let mut marks = Marks::default();
    while let Some(frame) = response.body_mut().frame().await {
        let frame = frame?;
        let data = frame.data_ref().map_or(&[][..], Bytes::as_ref);
        let now = seen.begun.elapsed();
        let mut latencies = seen.latencies.borrow_mut();
        marks.of(data, |at| latencies.push(micros(now).saturating_sub(u32::try_from(at).unwrap_or(0))));
        seen.bytes.set(seen.bytes.get() + data.len());
        if latencies.len() >= seen.wanted {
            seen.all.notify_one();
        }
    }
    Ok(())
}

/// The revision of the present state.
async fn newest(target: &Target, namespace: &str) -> anyhow::Result<String> {
    let path = format!("{}?limit=1", work::pods(namespace));
    let list = target.address.lane().await?.read(Ask::get(&path, Encoding::Json)).await?;
    let field = br#""resourceVersion":""#;
    let at = memmem::find(&list, field).context("a list has a resourceVersion")? + field.len();
    let digits = list[at..].iter().take_while(|byte| byte.is_ascii_digit()).copied().collect();
    Ok(String::from_utf8(digits)?)
}
