//! Of several that would do the same work one does it, by a Lease.

use std::time::Duration;

pub use apimachinery::time::go_duration as duration;
use clap::Args;
use client::Client;
use controller_runtime::{Candidacy, LeaderElector};
use resources::features::{Feature, Features};
use tokio_util::sync::CancellationToken;

use crate::host;

/// Whether several of a kind elect one that works.
///
/// Upstream: component-base/config/options/leaderelectionconfig.go BindLeaderElectionFlags
#[derive(Args, Clone)]
pub struct Election {
    /// Work only while holding the lease, so that several can stand by
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub leader_elect: bool,
    /// How long others wait after the last renewal before they take the lease
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    pub leader_elect_lease_duration: Duration,
    /// How long the leader tries to renew before it gives up
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub leader_elect_renew_deadline: Duration,
    /// How long to wait between two attempts to take or renew the lease
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub leader_elect_retry_period: Duration,
    /// The name of the lease [default: the component's]
    #[arg(long, value_name = "NAME")]
    pub leader_elect_resource_name: Option<String>,
    /// The namespace of the lease
    #[arg(long, value_name = "NAMESPACE", default_value = "kube-system")]
    pub leader_elect_resource_namespace: String,
    /// The kind of lock: a Lease is the only one
    #[arg(long, value_name = "KIND", default_value = "leases", value_parser = ["leases"])]
    pub leader_elect_resource_lock: String,
}

impl Election {
    /// The deadlines must leave room for each other.
    ///
    /// Upstream: client-go/tools/leaderelection/leaderelection.go NewLeaderElector
    fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.leader_elect_lease_duration > self.leader_elect_renew_deadline,
            "--leader-elect-lease-duration must be greater than --leader-elect-renew-deadline"
        );
        anyhow::ensure!(
            self.leader_elect_renew_deadline > self.leader_elect_retry_period.mul_f64(1.2),
            "--leader-elect-renew-deadline must be greater than --leader-elect-retry-period by a fifth"
        );
        Ok(())
    }

    /// Works at once, or while leading. Another that takes the lease meanwhile is an error: the process ends, and
    /// whoever supervises it starts it again. With CoordinatedLeaderElection the API server says who leads.
    pub async fn run<Work>(
        &self,
        component: &str,
        features: Features,
        client: Client,
        shutdown: CancellationToken,
        work: impl FnOnce(CancellationToken) -> Work,
    ) -> anyhow::Result<()>
    where
        Work: Future<Output = anyhow::Result<()>>,
    {
        if !self.leader_elect {
            return work(shutdown).await;
        }
        self.check()?;
        let name = self.leader_elect_resource_name.as_deref().unwrap_or(component);
        let namespace = &self.leader_elect_resource_namespace;
        let identity = format!("{}_{}", host::hostname()?, uuid::Uuid::new_v4());
        let coordinated = features.has(Feature::CoordinatedLeaderElection);
        let candidacy = Candidacy {
            client: client.clone(),
            namespace: namespace.clone(),
            lease: name.to_owned(),
            identity: identity.clone(),
            clock: host::clock(),
        };
        let elector = LeaderElector {
            coordinated,
            lease_duration: self.leader_elect_lease_duration,
            renew_deadline: self.leader_elect_renew_deadline,
            retry_period: self.leader_elect_retry_period,
            ..LeaderElector::new(client, namespace, name, &identity, host::clock())
        };
        let mut outcome = Ok(());
        let lead = |leading: CancellationToken| {
            let outcome = &mut outcome;
            async move {
                tracing::info!(lease = name, "leads");
                *outcome = work(leading).await;
            }
        };
        let standing = CancellationToken::new();
        let elect = async {
            let _stood = standing.clone().drop_guard();
            elector.run(&shutdown, lead).await
        };
        let stand = async {
            if coordinated {
                candidacy.stand(&standing).await;
            }
        };
        let (held, ()) = tokio::join!(elect, stand);
        outcome?;
        anyhow::ensure!(held, "another took the lease {namespace}/{name}");
        Ok(())
    }
}
