//! Flags of the API server about who of several chooses the leaders of other components.

use std::time::Duration;

use clap::Args;
use controller_runtime::LeaderElector;

use super::duration;

/// They matter with the feature CoordinatedLeaderElection only.
///
/// Upstream: pkg/controlplane/apiserver/options/options.go AddFlags
#[derive(Args, Clone)]
#[command(next_help_heading = "Coordinated leader election")]
pub struct Leadership {
    /// How long other API servers wait after the last renewal before one of them chooses leaders
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    pub coordinated_leadership_lease_duration: Duration,
    /// How long the API server that chooses leaders tries to renew before it gives up
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub coordinated_leadership_renew_deadline: Duration,
    /// How long an API server waits between two attempts to become or stay the one that chooses
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub coordinated_leadership_retry_period: Duration,
}

impl Leadership {
    /// Upstream: pkg/controlplane/apiserver/options/validation.go validateCoordinatedLeadershipFlags
    pub fn check(&self) -> anyhow::Result<()> {
        let mut refusals = Vec::new();
        if self.coordinated_leadership_lease_duration <= self.coordinated_leadership_renew_deadline {
            refusals.push(
                "--coordinated-leadership-lease-duration must be greater than --coordinated-leadership-renew-deadline",
            );
        }
        if self.coordinated_leadership_renew_deadline <= self.coordinated_leadership_retry_period {
            refusals.push(
                "--coordinated-leadership-renew-deadline must be greater than --coordinated-leadership-retry-period",
            );
        }
        anyhow::ensure!(refusals.is_empty(), "{}", refusals.join("; "));
        Ok(())
    }

    /// The elector, at this pace.
    pub fn pace(&self, elector: LeaderElector) -> LeaderElector {
        LeaderElector {
            lease_duration: self.coordinated_leadership_lease_duration,
            renew_deadline: self.coordinated_leadership_renew_deadline,
            retry_period: self.coordinated_leadership_retry_period,
            ..elector
        }
    }
}
