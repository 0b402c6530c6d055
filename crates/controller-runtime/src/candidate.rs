//! [`Candidacy`]: wants to hold a Lease whose holder others choose.

use std::sync::Arc;
use std::time::Duration;

use api::coordination::v1beta1::LeaseCandidate;
use client::{Client, Error};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::informer::{Filter, InformerFactory};

/// The version that components of this program are and act as.
const VERSION: &str = "1.36.0";
/// How often a candidate says that it is there, unasked.
///
/// Upstream: client-go/tools/leaderelection/leasecandidate.go requeueInterval
const RENEWAL: Duration = Duration::from_secs(5 * 60);
const RETRY: Duration = Duration::from_secs(1);

/// A candidate for a Lease, by a LeaseCandidate of its own, kept while it is there.
pub struct Candidacy {
    pub client: Client,
    /// Of the candidate and of the Lease.
    pub namespace: String,
    pub lease: String,
    /// The candidate's name, and the Lease's holder if it is chosen.
    pub identity: String,
    pub clock: Clock,
}

impl Candidacy {
    /// Stands until the shutdown: answers whenever it is asked whether it is there, and every five minutes.
    pub async fn stand(&self, shutdown: &CancellationToken) {
        let informers = InformerFactory::new(self.client.clone(), shutdown.clone());
        let own = Filter {
            namespace: Some(self.namespace.clone()),
            ..Filter::fields(format!("metadata.name={}", self.identity))
        };
        let candidates = informers.filtered::<LeaseCandidate>(own);
        let asked = Arc::new(Notify::new());
        let ask = asked.clone();
        candidates.subscribe(move |event| {
            if owes_answer(event.object()) {
                ask.notify_one();
            }
        });
        informers.start();
        if candidates.synced().await {
            loop {
                let known = candidates.get(&format!("{}/{}", self.namespace, self.identity));
                let pause = match self.renew(known.as_deref()).await {
                    Ok(renewed) => {
                        candidates.assume(renewed);
                        RENEWAL
                    }
                    Err(error) => {
                        tracing::debug!(lease = self.lease, %error, "the candidacy cannot be renewed");
                        RETRY
                    }
                };
                tokio::select! {
                    () = shutdown.cancelled() => break,
                    () = asked.notified() => {}
                    () = tokio::time::sleep(pause) => {}
                }
            }
        }
        informers.stopped().await;
    }

    async fn renew(&self, known: Option<&LeaseCandidate>) -> Result<LeaseCandidate, Error> {
        let mut candidate = known.cloned().unwrap_or_default();
        let spec = &mut candidate.spec;
        spec.renew_time = Some(self.clock.micro_time());
        if known.is_some() {
            return self.client.update(&candidate).await;
        }
        spec.lease_name = self.lease.clone();
        spec.binary_version = VERSION.to_owned();
        spec.emulation_version = Some(VERSION.to_owned());
        spec.strategy = "OldestEmulationVersion".to_owned();
        candidate.metadata.namespace = Some(self.namespace.clone());
        candidate.metadata.name = Some(self.identity.clone());
        self.client.create(&candidate).await
    }
}

/// Whether it was asked whether it is there since it last said so.
fn owes_answer(candidate: &LeaseCandidate) -> bool {
    let (asked, renewed) = (&candidate.spec.ping_time, &candidate.spec.renew_time);
    asked.as_ref().is_some_and(|asked| renewed.as_ref().is_none_or(|renewed| renewed.0 < asked.0))
}
