//! What is measured: the steps in their order, and the loop that drives each.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::ValueEnum;
use http::Method;
use indicatif::{ProgressBar, ProgressStyle};

use crate::body::{self, Template};
use crate::target::Target;
use crate::wire::{Ask, Lane};
use crate::{Encoding, Http, fan_out};

/// Requests in flight, for all but long lists.
pub const IN_FLIGHT: usize = 64;
/// The objects of the list.
pub const LISTED: usize = 3_000;
/// How much is made and taken away again.
const CREATED: usize = 10_000;

const HOT: &str = "bench-hot";
const CREATE: &str = "bench-create";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Step {
    Create,
    Get,
    List,
    Pages,
    Patch,
    Update,
    Watch,
    Delete,
}

impl Step {
    pub fn title(self) -> &'static str {
        match self {
            Step::Create => "create pods",
            Step::Get => "get",
            Step::List => "list 3,000 pods",
            Step::Pages => "list page of 500",
            Step::Patch => "status patch",
            Step::Update => "update (get, put)",
            Step::Watch => "watch, 100 watchers",
            Step::Delete => "delete",
        }
    }

    /// How often, and how many at once: what keeps upstream busy for about ten seconds.
    fn load(self) -> (usize, usize) {
        match self {
            Step::Create | Step::Delete => (CREATED, IN_FLIGHT),
            Step::Get => (50_000, IN_FLIGHT),
            Step::List => (160, 4),
            Step::Pages => (1_000, 16),
            Step::Patch => (10_000, IN_FLIGHT),
            Step::Update => (5_000, IN_FLIGHT),
            Step::Watch => (2_000, 1),
        }
    }
}

/// What a step came to.
pub struct Measured {
    pub operations: usize,
    pub elapsed: Duration,
    /// Microseconds, sorted.
    pub latencies: Vec<u32>,
    pub bytes: usize,
    /// What the server and its store used of the processor.
    pub cpu_seconds: f64,
}

impl Measured {
    pub fn new(operations: usize, elapsed: Duration, mut latencies: Vec<u32>, bytes: usize) -> Self {
        latencies.sort_unstable();
        Measured { operations, elapsed, latencies, bytes, cpu_seconds: 0.0 }
    }

    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }

    /// What one operation cost the server, in microseconds of one core. It says more than the rate does on a
    /// machine that is busy with other things.
    pub fn cpu_micros(&self) -> f64 {
        self.cpu_seconds * 1e6 / self.operations.max(1) as f64
    }

    /// In milliseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let last = self.latencies.len().saturating_sub(1);
        let at = (last as f64 * share).round() as usize;
        f64::from(self.latencies.get(at).copied().unwrap_or_default()) / 1e3
    }
}

/// A line of the report.
pub struct Row {
    pub step: Step,
    pub http: Http,
    pub encoding: Encoding,
    /// One for each target.
    pub measured: Vec<Measured>,
    pub resident_bytes: Vec<u64>,
}

pub struct Plan<'a> {
    pub http: Http,
    pub encoding: Encoding,
    pub only: &'a [Step],
    pub scale: f64,
    pub writers: usize,
}

pub fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

impl Plan<'_> {
    /// All steps; each on all targets before the next.
    pub async fn run(&self, targets: &[Target]) -> anyhow::Result<Vec<Row>> {
        for target in targets {
            self.prepare(target).await.with_context(|| format!("cannot prepare {}", target.name))?;
        }
        let mut rows = Vec::new();
        for &step in Step::value_variants() {
            let needed = self.only.contains(&Step::Delete) && step == Step::Create;
            if !self.only.is_empty() && !self.only.contains(&step) && !needed {
                continue;
            }
            let mut row = Row {
                step,
                http: self.http,
                encoding: self.encoding,
                measured: Vec::new(),
                resident_bytes: Vec::new(),
            };
            for target in targets {
                let cpu_before = target.cpu_seconds();
                let measured = self.step(step, target).await;
                let mut measured =
                    measured.with_context(|| format!("{} on {}", step.title(), target.name))?;
                measured.cpu_seconds = target.cpu_seconds() - cpu_before;
                row.measured.push(measured);
                row.resident_bytes.push(target.resident_bytes());
            }
            rows.push(row);
        }
        for target in targets {
            target.empty(HOT).await?;
            target.empty(CREATE).await?;
        }
        Ok(rows)
    }

    /// The pods that are read and changed.
    async fn prepare(&self, target: &Target) -> anyhow::Result<()> {
        target.namespace(HOT).await?;
        target.namespace(CREATE).await?;
        target.empty(HOT).await?;
        target.empty(CREATE).await?;
        self.create(target, HOT, LISTED, "prepare").await.map(drop)
    }

    async fn step(&self, step: Step, target: &Target) -> anyhow::Result<Measured> {
        let (count, _) = step.load();
        let count = ((count as f64 * self.scale) as usize).max(IN_FLIGHT);
        match step {
            Step::Create => self.create(target, CREATE, count, step.title()).await,
            Step::Watch => fan_out::run(target, HOT, self, count).await,
            _ => self.simple(step, target, count).await,
        }
    }

    async fn simple(&self, step: Step, target: &Target, count: usize) -> anyhow::Result<Measured> {
        let (encoding, hot, list) = (self.encoding, pods(HOT), format!("{}?limit=500", pods(HOT)));
        let job = Rc::new(move |mut lane: Lane, number: usize| {
            let (hot, list) = (hot.clone(), list.clone());
            async move {
                let pod = format!("{hot}/{}", body::name(number % LISTED));
                let bytes = match step {
                    Step::Get => expect(lane.count(Ask::get(&pod, encoding)).await?)?,
                    Step::List => expect(lane.count(Ask::get(&hot, encoding)).await?)?,
                    Step::Pages => expect(lane.count(Ask::get(&list, encoding)).await?)?,
                    Step::Patch => {
                        let path = format!("{pod}/status");
                        let mut ask = Ask::send(Method::PATCH, &path, encoding, body::status_patch(number));
                        ask.content_type = "application/merge-patch+json";
                        expect(lane.count(ask).await?)?
                    }
                    Step::Update => {
                        let read = lane.read(Ask::get(&pod, encoding)).await?;
                        let body = body::mark(&read, number as u64)?;
                        expect(lane.count(Ask::send(Method::PUT, &pod, encoding, body)).await?)?
                    }
                    _ => {
                        let path = format!("{}/{}", pods(CREATE), body::name(number));
                        expect(lane.count(Ask::send(Method::DELETE, &path, encoding, Bytes::new())).await?)?
                    }
                };
                Ok((lane, bytes))
            }
        });
        let lanes = target.address.lanes(self.http, step.load().1).await?;
        drive(lanes, count, &self.progress(step.title(), target, count), job).await
    }

    pub async fn create(
        &self,
        target: &Target,
        namespace: &str,
        count: usize,
        title: &str,
    ) -> anyhow::Result<Measured> {
        let template = Arc::new(Template::pod(self.encoding)?);
        create(
            target,
            self.http,
            self.encoding,
            template,
            0..count,
            &pods(namespace),
            &self.progress(title, target, count),
        )
        .await
    }

    pub fn progress(&self, title: &str, target: &Target, count: usize) -> ProgressBar {
        let what = format!("{:?} over HTTP/{:?} · {} · {title}", self.encoding, self.http, target.name);
        progress(what, count)
    }
}

pub fn progress(what: String, count: usize) -> ProgressBar {
    let bar = ProgressBar::new(count as u64).with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{msg:55} {bar:30} {pos}/{len}  {per_sec}") {
        bar.set_style(style);
    }
    bar
}

/// Creates the objects of these numbers.
pub async fn create(
    target: &Target,
    http: Http,
    encoding: Encoding,
    template: Arc<Template>,
    numbers: std::ops::Range<usize>,
    path: &str,
    bar: &ProgressBar,
) -> anyhow::Result<Measured> {
    let path: Rc<str> = path.into();
    let first = numbers.start;
    let job = Rc::new(move |mut lane: Lane, number: usize| {
        let (path, body) = (path.clone(), template.named(first + number));
        async move {
            let bytes = expect(lane.count(Ask::send(Method::POST, &path, encoding, body)).await?)?;
            Ok((lane, bytes))
        }
    });
    drive(target.address.lanes(http, IN_FLIGHT).await?, numbers.len(), bar, job).await
}

fn expect((status, bytes): (http::StatusCode, usize)) -> anyhow::Result<usize> {
    if !status.is_success() {
        bail!("the server answered {status}");
    }
    Ok(bytes)
}

/// Does a job so many times, each lane one after the other.
pub async fn drive<F>(
    lanes: Vec<Lane>,
    count: usize,
    bar: &ProgressBar,
    job: Rc<impl Fn(Lane, usize) -> F + 'static>,
) -> anyhow::Result<Measured>
where
    F: Future<Output = anyhow::Result<(Lane, usize)>> + 'static,
{
    let next = Rc::new(Cell::new(0));
    let latencies = Rc::new(RefCell::new(Vec::with_capacity(count)));
    let bytes = Rc::new(Cell::new(0));
    let begun = Instant::now();
    let workers: Vec<_> = lanes
        .into_iter()
        .map(|mut lane| {
            let (next, latencies, bytes) = (next.clone(), latencies.clone(), bytes.clone());
            let (job, bar) = (job.clone(), bar.clone());
            tokio::task::spawn_local(async move {
                while next.get() < count {
                    let number = next.replace(next.get() + 1);
                    let begun = Instant::now();
                    let (back, length) = job(lane, number).await?;
                    lane = back;
                    latencies.borrow_mut().push(micros(begun.elapsed()));
                    bytes.set(bytes.get() + length);
                    if number % 64 == 0 {
                        bar.set_position(number as u64);
                    }
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for worker in workers {
        worker.await??;
    }
    let elapsed = begun.elapsed();
    bar.finish();
    Ok(Measured::new(count, elapsed, latencies.take(), bytes.get()))
}

pub fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}
