//! [`LeaderElector`]: one of many replicas acts, by a Lease.

use std::time::Duration;

use api::coordination::v1::{Lease, LeaseSpec};
use client::{Client, Error};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// A candidate for a Lease. The timing is upstream's by default.
///
/// Upstream: component-base/config/v1alpha1/defaults.go RecommendedDefaultLeaderElectionConfiguration
pub struct LeaderElector {
    pub client: Client,
    pub namespace: String,
    pub name: String,
    /// Unique among the candidates.
    pub identity: String,
    pub clock: Clock,
    pub lease_duration: Duration,
    pub renew_deadline: Duration,
    pub retry_period: Duration,
    /// Whether the holder is chosen by the API server among the candidates: it is waited for, and renewed until
    /// another is preferred.
    pub coordinated: bool,
}

/// What was last seen of the Lease, and when by our own clock: others' clocks are not trusted.
#[derive(Default)]
struct Observed {
    spec: LeaseSpec,
    at: Option<Instant>,
}

/// Why a leader stopped leading.
#[derive(PartialEq)]
enum End {
    Done,
    Shutdown,
    Lost,
}

/// What to do with a Lease as it stands.
#[derive(Debug, PartialEq)]
enum Claim {
    /// Another holds it and may still be alive.
    Wait,
    Write(Box<LeaseSpec>),
}

impl LeaderElector {
    pub fn new(client: Client, namespace: &str, name: &str, identity: &str, clock: Clock) -> Self {
        LeaderElector {
            client,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            clock,
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
            coordinated: false,
        }
    }

    /// Waits to become the leader, then runs `lead` until it ends, the leadership is lost, or the shutdown
    /// comes. The token that `lead` gets is cancelled in the latter two cases, and it is then awaited. True when
    /// it ended by the shutdown or by itself, false when the leadership was lost.
    pub async fn run<Lead, Work>(&self, shutdown: &CancellationToken, lead: Lead) -> bool
    where
        Lead: FnOnce(CancellationToken) -> Work,
        Work: Future<Output = ()>,
    {
        let mut observed = Observed::default();
        while !self.try_claim(&mut observed).await.unwrap_or(false) {
            let jittered = self.retry_period.mul_f64(1.0 + 1.2 * rand::random::<f64>());
            tokio::select! {
                () = shutdown.cancelled() => return true,
                () = tokio::time::sleep(jittered) => {}
            }
        }
        tracing::info!(lease = self.name, identity = self.identity, "became the leader");
        let leading = shutdown.child_token();
        let work = lead(leading.clone());
        tokio::pin!(work);
        let end = tokio::select! {
            () = &mut work => End::Done,
            () = shutdown.cancelled() => End::Shutdown,
            () = self.renew(&mut observed) => End::Lost,
        };
        if end == End::Lost {
            tracing::error!(lease = self.name, "lost the leadership");
        }
        leading.cancel();
        if end != End::Done {
            work.await;
        }
        if end != End::Lost || self.coordinated {
            self.release(&observed).await;
        }
        end != End::Lost
    }

    /// Renews until that has failed for the whole deadline.
    async fn renew(&self, observed: &mut Observed) {
        let mut renewed = Instant::now();
        loop {
            tokio::time::sleep(self.retry_period).await;
            let left = self.renew_deadline.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.try_claim(observed)).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => return,
                Ok(Err(error)) => tracing::debug!(lease = self.name, %error, "cannot renew the lease"),
                Err(_) => {}
            }
            if renewed.elapsed() >= self.renew_deadline {
                return;
            }
        }
    }

    /// One attempt to take or renew the Lease. True when we hold it now.
    async fn try_claim(&self, observed: &mut Observed) -> Result<bool, Error> {
        let mut lease = match self.client.get::<Lease>(&self.namespace, &self.name).await {
            Ok(lease) => lease,
            Err(error) if error.is_not_found() && self.coordinated => return Ok(false),
            Err(error) if error.is_not_found() => {
                let mut lease = Lease::default();
                lease.metadata.namespace = Some(self.namespace.clone());
                lease.metadata.name = Some(self.name.clone());
                lease.spec = Some(self.first_spec());
                let created = self.client.create(&lease).await?;
                *observed = Observed { spec: created.spec.unwrap_or_default(), at: Some(Instant::now()) };
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let spec = lease.spec.take().unwrap_or_default();
        if observed.at.is_none() || observed.spec != spec {
            *observed = Observed { spec: spec.clone(), at: Some(Instant::now()) };
        }
        let age = observed.at.map(|at| at.elapsed()).unwrap_or_default();
        let Claim::Write(claim) = self.claim(&spec, age) else { return Ok(false) };
        lease.spec = Some(*claim);
        match self.client.update(&lease).await {
            Ok(updated) => {
                *observed = Observed { spec: updated.spec.unwrap_or_default(), at: Some(Instant::now()) };
                Ok(true)
            }
            Err(error) => Err(error),
        }
    }

    fn first_spec(&self) -> LeaseSpec {
        let now = self.clock.micro_time();
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(self.lease_duration.as_secs() as i32),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(0),
            ..Default::default()
        }
    }

    /// Upstream: client-go/tools/leaderelection/leaderelection.go tryAcquireOrRenew, tryCoordinatedRenew
    fn claim(&self, spec: &LeaseSpec, seen_unchanged_for: Duration) -> Claim {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        let ours = holder == self.identity;
        let duration = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0);
        let is_over = seen_unchanged_for >= Duration::from_secs(duration);
        let is_free = match self.coordinated {
            true => ours && !is_over && spec.preferred_holder.as_deref().unwrap_or_default().is_empty(),
            false => holder.is_empty() || ours || is_over,
        };
        if !is_free {
            return Claim::Wait;
        }
        let mut claim = self.first_spec();
        claim.lease_transitions = spec.lease_transitions.or(Some(0));
        if ours {
            claim.acquire_time = spec.acquire_time.clone().or(claim.acquire_time);
        } else {
            claim.lease_transitions = claim.lease_transitions.map(|n| n.saturating_add(1));
        }
        claim.preferred_holder = spec.preferred_holder.clone();
        claim.strategy = spec.strategy.clone();
        Claim::Write(Box::new(claim))
    }

    /// Gives the Lease up, so that the next leader need not wait for it to lapse.
    async fn release(&self, observed: &Observed) {
        if observed.spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            return;
        }
        let release = async {
            let mut lease = self.client.get::<Lease>(&self.namespace, &self.name).await?;
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(self.identity.as_str()) {
                spec.holder_identity = Some(String::new());
                spec.lease_duration_seconds = Some(1);
                self.client.update(&lease).await?;
            }
            Ok::<_, Error>(())
        };
        if !matches!(tokio::time::timeout(Duration::from_secs(2), release).await, Ok(Ok(()))) {
            tracing::debug!(lease = self.name, "the lease is not released; it will lapse");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;

    struct Nowhere;

    #[async_trait]
    impl client::Transport for Nowhere {
        async fn send(&self, _: http::Request<Bytes>) -> Result<http::Response<client::Body>, Error> {
            Err(Error::Config("nowhere".into()))
        }
    }

    #[test]
    fn a_lease_is_taken_only_when_free_or_lapsed() {
        let client = Client::new(Arc::new(Nowhere), "test");
        let clock = Clock::new(|| jiff::Timestamp::UNIX_EPOCH);
        let mut elector = LeaderElector::new(client, "kube-system", "lease", "me", clock);
        // whether others choose, holder, preferred holder, seconds unchanged, transitions written
        for (coordinated, holder, preferred, age, expected) in [
            (false, "", "", 0, Some(4)),
            (false, "me", "", 0, Some(3)),
            (false, "other", "", 0, None),
            (false, "other", "", 14, None),
            (false, "other", "", 15, Some(4)),
            (true, "", "", 0, None),
            (true, "me", "", 0, Some(3)),
            (true, "me", "", 15, None),
            (true, "me", "other", 0, None),
            (true, "other", "", 15, None),
        ] {
            elector.coordinated = coordinated;
            let mut spec = elector.first_spec();
            spec.holder_identity = Some(holder.into());
            spec.preferred_holder = Some(preferred.into());
            spec.lease_transitions = Some(3);
            let transitions = match elector.claim(&spec, Duration::from_secs(age)) {
                Claim::Wait => None,
                Claim::Write(spec) => spec.lease_transitions,
            };
            assert_eq!(transitions, expected, "{coordinated} {holder} {preferred} {age}");
        }
    }
}
