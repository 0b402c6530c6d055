//! Chooses who leads: of the candidates for a Lease, the one whose version is the oldest, so that in the middle of
//! an upgrade nobody does what others do not know yet.
//!
//! It belongs to the API server rather than to the controller manager, whose own leader it chooses. [`decision`]
//! judges; this module asks candidates, writes Leases, and takes away candidates that have been quiet for too long.

mod decision;

use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::coordination::v1::Lease;
use api::coordination::v1beta1::LeaseCandidate;
use client::{Client, DeleteOptions};
use controller_runtime::{Clock, Event, Informer, InformerFactory, LeaderElector, WorkQueue, run_workers};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use crate::Error;
use decision::Step;

/// Also the name of the Lease by which one of several API servers chooses.
const NAME: &str = "leader-election-controller";
const NAMESPACE: &str = "kube-system";
/// Candidates by `namespace/lease`.
const BY_LEASE: &str = "lease";

/// Chooses leaders until the shutdown, while no other API server does.
///
/// Upstream: pkg/controlplane/controller/leaderelection/run_with_leaderelection.go RunWithLeaderElection
pub async fn choose_leaders(elector: LeaderElector, shutdown: CancellationToken) {
    let choose = |leading| work(elector.client.clone(), elector.clock.clone(), leading);
    while !elector.run(&shutdown, choose).await {}
}

/// By which one of several API servers is the one that chooses.
pub fn leader_elector(client: Client, identity: &str, clock: Clock) -> LeaderElector {
    LeaderElector::new(client, NAMESPACE, NAME, identity, clock)
}

struct Leaders {
    client: Client,
    clock: Clock,
    leases: Informer<Lease>,
    candidates: Informer<LeaseCandidate>,
    elections: WorkQueue<String>,
    expiries: WorkQueue<String>,
}

fn lease_of(candidate: &LeaseCandidate) -> String {
    format!("{}/{}", candidate.namespace(), candidate.spec.lease_name)
}

async fn work(client: Client, clock: Clock, leading: CancellationToken) {
    let informers = InformerFactory::new(client.clone(), leading.clone());
    let leaders = Arc::new(Leaders {
        client,
        clock,
        leases: informers.informer(),
        candidates: informers.informer(),
        elections: WorkQueue::new(),
        expiries: WorkQueue::new(),
    });
    leaders.candidates.add_index(BY_LEASE, |candidate| vec![lease_of(candidate)]);
    let this = leaders.clone();
    leaders.candidates.subscribe(move |event| {
        let candidate = event.object();
        if !matches!(event, Event::Deleted(_)) {
            this.expiries.add(candidate.key());
        }
        // That it was asked is this controller's own doing.
        if !decision::owes_answer(candidate) {
            this.elections.add(lease_of(candidate));
        }
    });
    let this = leaders.clone();
    leaders.leases.subscribe(move |event| {
        if !this.candidates.by_index(BY_LEASE, &event.object().key()).is_empty() {
            this.elections.add(event.object().key());
        }
    });
    informers.start();
    if informers.synced().await {
        let (elections, expiries) = (leaders.clone(), leaders.clone());
        tokio::join!(
            run_workers(NAME, &leaders.elections, 1, &leading, move |key| elections.clone().elect(key)),
            run_workers(NAME, &leaders.expiries, 1, &leading, move |key| expiries.clone().expire(key)),
        );
    }
    informers.stopped().await;
}

/// How long until a time; nothing for one that is past.
fn until(time: Timestamp, now: Timestamp) -> Duration {
    now.duration_until(time).try_into().unwrap_or(Duration::ZERO)
}

impl Leaders {
    async fn elect(self: Arc<Self>, key: String) -> Result<(), Error> {
        let candidates = self.candidates.by_index(BY_LEASE, &key);
        let lease = self.leases.get(&key);
        let now = self.clock.now();
        let step = decision::decide(&candidates, lease.as_deref(), now).map_err(Error::Unfinished)?;
        match step {
            Step::Nothing => return Ok(()),
            Step::Wait => {}
            Step::Ask(candidates) => {
                for candidate in candidates {
                    let mut asked = (*candidate).clone();
                    asked.spec.ping_time = Some(self.clock.micro_time());
                    self.candidates.update(&asked).await?;
                }
            }
            Step::Elect { strategy, holder } => {
                self.settle(&key, lease.as_deref(), &strategy, holder.as_deref()).await?;
            }
        }
        // What lapses or is not answered makes no event.
        let election = Duration::try_from(decision::ELECTION).unwrap_or_default();
        self.elections.add_after(key, election);
        Ok(())
    }

    async fn settle(
        &self,
        key: &str,
        lease: Option<&Lease>,
        strategy: &str,
        holder: Option<&str>,
    ) -> Result<(), Error> {
        let Some(spec) = decision::elect(lease, strategy, holder, self.clock.now()) else { return Ok(()) };
        let (wanted, preferred) = (spec.holder_identity.clone(), spec.preferred_holder.clone());
        let mut elected = lease.cloned().unwrap_or_default();
        elected.spec = Some(spec);
        if lease.is_some() {
            self.leases.update(&elected).await?;
        } else {
            let (namespace, name) = key.split_once('/').unwrap_or_default();
            elected.metadata.namespace = Some(namespace.to_owned());
            elected.metadata.name = Some(name.to_owned());
            self.leases.create(&elected).await?;
        }
        tracing::info!(lease = key, strategy, holder = wanted, preferred, "a leader is chosen");
        Ok(())
    }

    /// Takes a candidate away that has said nothing for too long.
    ///
    /// Upstream: pkg/controlplane/controller/leaderelection/leasecandidategc_controller.go, which looks every so often
    async fn expire(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(candidate) = self.candidates.get(&key) else { return Ok(()) };
        let left = decision::expiry(&candidate).map_or(Duration::ZERO, |at| until(at, self.clock.now()));
        if !left.is_zero() {
            self.expiries.add_after(key, left);
            return Ok(());
        }
        let options = DeleteOptions::uid(candidate.uid());
        match self.client.delete::<LeaseCandidate>(candidate.namespace(), candidate.name(), &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error.into()),
            _ => Ok(()),
        }
    }
}
