//! What flags change of how the controllers work.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Args;
use controllers::{Autoscaling, EvictionRates, Options};

use super::election::duration;

macro_rules! concurrency {
    ($($field:ident: $flag:literal, $controller:literal, $what:literal;)+) => {
        /// How much is worked on at once.
        ///
        /// Upstream: cmd/kube-controller-manager/app/options
        #[derive(Args)]
        pub struct Concurrency {
            $(
                #[arg(
                    long = $flag,
                    value_name = "NUMBER",
                    help = concat!("How many ", $what, " are worked on at once")
                )]
                $field: Option<NonZeroUsize>,
            )+
        }

        impl Concurrency {
            fn workers(&self) -> BTreeMap<String, usize> {
                let all = [$(($controller, self.$field)),+];
                all.into_iter().filter_map(|(name, number)| Some((name.to_owned(), number?.get()))).collect()
            }

            #[cfg(test)]
            const CONTROLLERS: &[&str] = &[$($controller),+];
        }
    };
}

concurrency! {
    deployments: "concurrent-deployment-syncs", "deployment-controller", "Deployments";
    replica_sets: "concurrent-replicaset-syncs", "replicaset-controller", "ReplicaSets";
    replication_controllers: "concurrent_rc_syncs", "replicationcontroller-controller", "ReplicationControllers";
    daemon_sets: "concurrent-daemonset-syncs", "daemonset-controller", "DaemonSets";
    stateful_sets: "concurrent-statefulset-syncs", "statefulset-controller", "StatefulSets";
    jobs: "concurrent-job-syncs", "job-controller", "Jobs";
    cron_jobs: "concurrent-cron-job-syncs", "cronjob-controller", "CronJobs";
    finished: "concurrent-ttl-after-finished-syncs", "ttl-after-finished-controller", "ended Jobs";
    endpoints: "concurrent-endpoint-syncs", "endpoints-controller", "Services' Endpoints";
    endpoint_slices: "concurrent-service-endpoint-syncs", "endpointslice-controller", "Services' EndpointSlices";
    mirrored: "mirroring-concurrent-service-endpoint-syncs", "endpointslice-mirroring-controller",
        "mirrored Endpoints";
    namespaces: "concurrent-namespace-syncs", "namespace-controller", "Namespaces";
    garbage: "concurrent-gc-syncs", "garbage-collector-controller", "objects whose owners are gone";
    quotas: "concurrent-resource-quota-syncs", "resourcequota-controller", "ResourceQuotas";
    tokens: "concurrent-serviceaccount-token-syncs", "serviceaccount-token-controller", "token Secrets";
    autoscalers: "concurrent-horizontal-pod-autoscaler-syncs", "horizontal-pod-autoscaler-controller",
        "HorizontalPodAutoscalers";
    ephemeral_volumes: "concurrent-ephemeralvolume-syncs", "ephemeral-volume-controller",
        "pods with ephemeral volumes";
    resource_claims: "concurrent-resourceclaim-syncs", "resourceclaim-controller", "ResourceClaims";
    device_taints: "concurrent-device-taint-eviction-syncs", "device-taint-eviction-controller",
        "pods with tainted devices";
}

/// Times, rates and limits.
#[derive(Args)]
pub struct Behavior {
    #[command(flatten)]
    concurrency: Concurrency,
    /// What is off by default and is to be on: `Name=true`, as upstream names it
    #[arg(long, value_name = "GATES", value_delimiter = ',')]
    feature_gates: Vec<String>,
    /// How long a node may be silent before it counts as unwell
    #[arg(long, value_name = "DURATION", default_value = "50s", value_parser = duration)]
    node_monitor_grace_period: Duration,
    /// How long a new node may be silent
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = duration)]
    node_startup_grace_period: Duration,
    /// Nodes a second that pods are driven off in a zone that is well
    #[arg(long, value_name = "RATE", default_value_t = EvictionRates::default().normal)]
    node_eviction_rate: f32,
    /// Nodes a second that pods are driven off in a large zone that is unwell
    #[arg(long, value_name = "RATE", default_value_t = EvictionRates::default().secondary)]
    secondary_node_eviction_rate: f32,
    /// A zone of more nodes is large; in others that are unwell no pods are driven off
    #[arg(long, value_name = "NODES", default_value_t = EvictionRates::default().large_zone)]
    large_cluster_size_threshold: usize,
    /// The share of unwell nodes, three at least, from which on a zone is unwell
    #[arg(long, value_name = "SHARE", default_value_t = EvictionRates::default().unhealthy_share)]
    unhealthy_zone_threshold: f32,
    /// Pods that have ended and are kept; 0 for all
    #[arg(long, value_name = "PODS", default_value_t = 12_500)]
    terminated_pod_gc_threshold: usize,
    /// How long a ServiceAccount's token that was made by itself may be unused before it goes
    #[arg(long, value_name = "DURATION", default_value = "8760h", value_parser = duration)]
    legacy_service_account_token_clean_up_period: Duration,
    /// How often autoscalers look at their metrics
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration)]
    horizontal_pod_autoscaler_sync_period: Duration,
    /// How far a metric may be off its target without consequence, as a share
    #[arg(long, value_name = "SHARE", default_value_t = 0.1)]
    horizontal_pod_autoscaler_tolerance: f64,
    /// How long autoscalers wait before they scale down
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    horizontal_pod_autoscaler_downscale_stabilization: Duration,
    /// How long the CPU use of a pod that starts may be skipped
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    horizontal_pod_autoscaler_cpu_initialization_period: Duration,
    /// How long a change of readiness after a pod's start is its first
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    horizontal_pod_autoscaler_initial_readiness_delay: Duration,
}

impl Behavior {
    pub fn options(&self) -> anyhow::Result<Options> {
        Ok(Options {
            workers: self.concurrency.workers(),
            node_monitor_grace_period: self.node_monitor_grace_period,
            node_startup_grace_period: self.node_startup_grace_period,
            eviction_rates: EvictionRates {
                normal: self.node_eviction_rate,
                secondary: self.secondary_node_eviction_rate,
                large_zone: self.large_cluster_size_threshold,
                unhealthy_share: self.unhealthy_zone_threshold,
            },
            terminated_pod_gc_threshold: self.terminated_pod_gc_threshold,
            legacy_token_clean_up_period: self.legacy_service_account_token_clean_up_period,
            autoscaling: Autoscaling {
                sync_period: self.horizontal_pod_autoscaler_sync_period,
                tolerance: self.horizontal_pod_autoscaler_tolerance,
                downscale_stabilization: self.horizontal_pod_autoscaler_downscale_stabilization,
                cpu_initialization_period: self.horizontal_pod_autoscaler_cpu_initialization_period,
                initial_readiness_delay: self.horizontal_pod_autoscaler_initial_readiness_delay,
            },
            features: super::features(&self.feature_gates)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        behavior: Behavior,
    }

    #[test]
    fn flags_without_a_word_are_the_defaults() {
        let options = Flags::try_parse_from(["x"]).unwrap().behavior.options().unwrap();
        assert_eq!(format!("{options:?}"), format!("{:?}", Options::default()));
        let flags = ["x", "--concurrent-deployment-syncs=9", "--node-monitor-grace-period=40s"];
        let options = Flags::try_parse_from(flags).unwrap().behavior.options().unwrap();
        assert_eq!(options.workers, [("deployment-controller".to_owned(), 9)].into());
        assert_eq!(options.node_monitor_grace_period.as_secs(), 40);
        assert!(Flags::try_parse_from(["x", "--concurrent-gc-syncs=0"]).is_err());
    }

    #[test]
    fn every_flag_is_of_a_controller_that_is() {
        let known: Vec<_> = controllers::names().collect();
        let unknown: Vec<_> = Concurrency::CONTROLLERS.iter().filter(|name| !known.contains(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
}
