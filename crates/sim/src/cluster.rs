//! The control plane: a server that stays, controllers and a scheduler that may crash at any instant.

use std::sync::Arc;
use std::time::Duration;

use apiserver::ApiServer;
use apiserver::seams::UserInfo;
use client::{Client, Transport};
use controller_runtime::{Clock, InformerFactory};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::faults::{Faults, Line};

/// So long without a request is rest.
const QUIET: Duration = Duration::from_secs(20 * 60);
/// What has not come to rest by then never will.
const PATIENCE: Duration = Duration::from_secs(4 * 3600);

/// An incarnation of a part.
struct Part {
    stop: CancellationToken,
    dead: CancellationToken,
}

impl Part {
    /// Nothing that the part still does reaches anybody.
    fn crash(&self) {
        self.dead.cancel();
        self.stop.cancel();
    }
}

pub struct Cluster {
    server: Arc<ApiServer>,
    clock: Clock,
    faults: Faults,
    random: StdRng,
    controllers: Part,
    scheduler: Part,
}

pub fn scheduler_config(clock: Clock, seed: u64) -> scheduler::Config {
    scheduler::Config {
        configuration: scheduler::Configuration::default(),
        clock,
        seed,
        metrics: scheduler::Metrics::default(),
        host: "sim".into(),
        identity: None,
    }
}

impl Cluster {
    pub async fn start(seed: u64) -> Self {
        let mut cluster = Self::without_parts(seed).await;
        cluster.start_controllers();
        cluster.start_scheduler();
        cluster
    }

    /// The server alone.
    pub async fn without_parts(seed: u64) -> Self {
        let began = Instant::now();
        let epoch: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().expect("a moment");
        let now = move || epoch + began.elapsed();
        let config = apiserver::Config { clock: Arc::new(now), ..apiserver::testing::config() };
        let server = apiserver::testing::cluster(config).await;
        let mut random = StdRng::seed_from_u64(seed);
        let faults = Faults::new(random.random());
        let none = || Part { stop: CancellationToken::new(), dead: CancellationToken::new() };
        Cluster { server, clock: Clock::new(now), faults, random, controllers: none(), scheduler: none() }
    }

    fn user(name: &str) -> UserInfo {
        let groups = vec!["system:masters".to_owned(), "system:authenticated".to_owned()];
        UserInfo { name: name.to_owned(), groups, ..Default::default() }
    }

    /// A way to the server that is never broken.
    pub fn client(&self, name: &str) -> Client {
        Client::new(self.transport(name), name)
    }

    pub fn transport(&self, name: &str) -> Arc<dyn Transport> {
        self.server.in_process(Self::user(name))
    }

    pub fn clock(&self) -> Clock {
        self.clock.clone()
    }

    pub fn faults(&self) -> &Faults {
        &self.faults
    }

    fn part(&self, name: &str) -> (Part, Client) {
        let dead = CancellationToken::new();
        let inner = self.transport(name);
        let line = Line { inner, faults: self.faults.clone(), dead: dead.clone() };
        (Part { stop: CancellationToken::new(), dead }, Client::new(Arc::new(line), name))
    }

    fn start_controllers(&mut self) {
        let (part, client) = self.part("controllers");
        let informers = InformerFactory::new(client, part.stop.clone());
        let running =
            controllers::run(controllers::Config::plain(self.clock()), informers, part.stop.clone());
        self.server.tasks.spawn(async move { running.await.expect("the configuration is right") });
        self.controllers = part;
    }

    fn start_scheduler(&mut self) {
        let (part, client) = self.part("scheduler");
        let config = scheduler_config(self.clock(), self.random.random());
        let informers = InformerFactory::new(client.clone(), part.stop.clone());
        let running = scheduler::run(config, client, informers, part.stop.clone());
        self.server.tasks.spawn(async move { running.await.expect("the configuration is right") });
        self.scheduler = part;
    }

    pub fn crash_controllers(&mut self) {
        self.controllers.crash();
        self.start_controllers();
    }

    pub fn crash_scheduler(&mut self) {
        self.scheduler.crash();
        self.start_scheduler();
    }

    /// Waits until nothing is asked any more; else what is.
    pub async fn rest(&self) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let quiet = self.faults.quiet_since() + QUIET;
            if Instant::now() >= quiet {
                return Ok(());
            }
            if began.elapsed() > PATIENCE {
                self.faults.most_asked();
                tokio::time::sleep(QUIET).await;
                return Err(self.faults.most_asked());
            }
            tokio::time::sleep_until(quiet).await;
        }
    }

    pub async fn stop(self) {
        self.controllers.crash();
        self.scheduler.crash();
        self.server.shutdown.cancel();
    }
}
