//! The whole control plane in one thread, on a clock that does not wait: the real API server over memory storage, all
//! controllers, the real scheduler and kubelets that only pretend, while people and faults do what a seed says.
//!
//! Start with [`run`]: it lets a [`cluster`] live for some hours, lets [`people`] ask things of it and the
//! [`kubelets`] run its pods, breaks the [`faults`] of the seed into it, then lets it come to rest and judges what is
//! left. The [`watchdog`] judges all the while.
//!
//! [`bench`] has the same parts do a lot of work at once, without faults and in real time, and counts their requests.
//!
//! What always holds, or the seed fails:
//! - No pod is bound twice, or to a node without room; no quota is overrun, no budget broken.
//! - Of a StatefulSet no two pods of one ordinal run, wherever nodes may be.
//! - A Job counts no success that was not, and none twice.
//! - Once it is left in peace, everything is as it was asked for, nothing is left over, and no more request is made.

#![allow(clippy::unwrap_used, reason = "a simulation fails by panicking")]

pub mod bench;
mod cluster;
mod faults;
mod kubelets;
mod people;
mod watchdog;

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use cluster::Cluster;
use kubelets::Kubelets;
use people::People;
use watchdog::Watchdog;

/// What a simulation came to.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    /// What people did.
    pub steps: usize,
    /// Requests of controllers and scheduler, without watches.
    pub requests: u64,
    /// How long after the last step they made none any more.
    pub rest: Duration,
}

/// Lets a cluster live for so long, and says what was wrong with that.
pub async fn run(seed: u64, life: Duration) -> Result<Report, String> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut cluster = Cluster::start(random.random()).await;
    let watchdog = Watchdog::start(&cluster).await;
    let mut kubelets = Kubelets::start(&cluster, watchdog.reality(), random.random()).await;
    let mut people = People::start(&cluster, random.random()).await;
    cluster.faults().on(true);
    let end = Instant::now() + life;
    let mut steps = 0;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(random.random_range(0..20_000))).await;
        steps += 1;
        match random.random_range(0..20) {
            0 => cluster.crash_controllers(),
            1 => cluster.crash_scheduler(),
            2 | 3 => {
                people.shaken();
                kubelets.step().await;
            }
            _ => people.step(&watchdog).await,
        }
        watchdog.verdict().map_err(|wrong| format!("seed {seed}, step {steps}: {wrong}"))?;
    }
    cluster.faults().on(false);
    kubelets.recover().await;
    people.settle().await;
    let began = Instant::now();
    let outcome = cluster.rest().await;
    let rest = cluster.faults().quiet_since().saturating_duration_since(began);
    outcome.map_err(|busy| format!("seed {seed}: there is no rest: {busy}"))?;
    watchdog.verdict().map_err(|wrong| format!("seed {seed}, at the end: {wrong}"))?;
    people.judge(&watchdog).await.map_err(|wrong| format!("seed {seed}, at rest: {wrong}"))?;
    let requests = cluster.faults().requests();
    kubelets.stop();
    cluster.stop().await;
    Ok(Report { seed, steps, requests, rest })
}

/// [`run`] in a runtime of its own, whose clock goes on as soon as nobody has anything to do.
pub fn simulate(seed: u64, life: Duration) -> Result<Report, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.map_err(|error| error.to_string())?.block_on(run(seed, life))
}
