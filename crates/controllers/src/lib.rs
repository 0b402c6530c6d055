//! The controllers: what turns the wanted state that people write into objects, step by step.
//!
//! Start with [`table::CONTROLLERS`], the list of all; each entry is one module. A module's `decide` is pure: it
//! takes what the caches hold and returns a plan; the module's executor carries the plan out. Read
//! `replication.rs` first, as the pattern of the others.
//!
//! What always holds:
//! - A controller reads caches only and writes through them, so that its next look sees what it wrote.
//! - Every decision is made from the whole state, never from an event; a lost or doubled event changes nothing.
//! - Nothing polls: a decision that depends on time puts its key back into the queue for that time.
//!
//! Names of events, conditions, annotations and messages are upstream's.

mod autoscaler;
mod bootstrap_tokens;
mod certificates;
mod clusterrole_aggregation;
mod context;
mod cron_job;
mod daemonset;
mod deployment;
mod deployment_status;
mod device_taints;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslice_mirroring;
mod eviction;
mod expiry;
mod garbage_collector;
mod garbage_graph;
mod group_protection;
mod history;
mod job;
mod leaders;
mod legacy_tokens;
mod load_balancer;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod objects;
mod options;
mod ownership;
mod pace;
mod pod_control;
mod pod_gc;
mod replicaset;
mod replication;
mod resource_claims;
mod resource_quota;
mod root_ca;
mod scale;
mod selector;
mod service_account;
mod service_account_tokens;
mod service_cidrs;
#[cfg(test)]
mod simulation;
mod statefulset;
mod storage_migration;
mod storage_protection;
mod table;
mod taint_eviction;
mod trigger_times;
mod ttl;
mod ttl_after_finished;
mod universe;
mod volumes;

use std::sync::Arc;
use std::time::Duration;

use client::Client;
use controller_runtime::{Clock, InformerFactory, QueueMetrics};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use context::Context;
pub use leaders::{choose_leaders, leader_elector};
pub use options::{Autoscaling, EvictionRates, Options};
pub use table::names;
use universe::Universe;
pub use volumes::local_path::{LocalPath, run_node as run_local_path, storage_class as local_path_class};

/// How the controllers are set up.
#[derive(Clone)]
pub struct Config {
    /// The ranges that nodes' pod ranges are cut from, parted by commas; empty to allocate none.
    pub cluster_cidr: String,
    /// The size of a node's pod range of IPv4.
    pub node_cidr_mask: u8,
    /// The size of a node's pod range of IPv6.
    pub node_cidr_mask_ipv6: u8,
    /// What pods verify the API server by.
    pub root_ca_pem: String,
    /// What approved certificate requests are signed with; without it none are.
    pub signing_authority: Option<SigningAuthority>,
    /// Makes the tokens of ServiceAccounts' Secrets; without it none are made.
    pub sign_token: Option<TokenSigner>,
    pub clock: Clock,
    /// The names of controllers that do not run.
    pub disabled: Vec<String>,
    pub options: Options,
    /// Where their queues are counted.
    pub metrics: QueueMetrics,
}

impl Config {
    /// Of a cluster of IPv4 that signs nothing, as tests and simulations have it.
    pub fn plain(clock: Clock) -> Self {
        Config {
            cluster_cidr: "10.42.0.0/16".into(),
            node_cidr_mask: 24,
            node_cidr_mask_ipv6: 64,
            root_ca_pem: "PEM".into(),
            signing_authority: None,
            sign_token: None,
            clock,
            disabled: Vec::new(),
            options: Options::default(),
            metrics: QueueMetrics::default(),
        }
    }
}

/// An authority that certificates are issued by.
#[derive(Clone)]
pub struct SigningAuthority {
    pub certificate_pem: String,
    pub key_pem: String,
    /// No certificate is issued for longer.
    pub longest: Duration,
}

/// Makes a signed token of claims.
pub type TokenSigner = Arc<dyn Fn(&serde_json::Value) -> Result<String, String> + Send + Sync>;

/// The client of the ServiceAccount of a name in `kube-system`.
pub type Accounts = Arc<dyn Fn(&str) -> Client + Send + Sync>;

/// As whom the controllers act.
#[derive(Clone)]
pub struct Clients {
    /// The caches, which others of the process may read too, and with them who feeds them: as whom the controllers
    /// act that have no account of their own.
    pub informers: InformerFactory,
    pub of_account: Accounts,
}

/// All as one.
impl From<InformerFactory> for Clients {
    fn from(informers: InformerFactory) -> Self {
        let client = informers.client().clone();
        Clients { informers, of_account: Arc::new(move |_| client.clone()) }
    }
}

/// What can go wrong in a controller's work on one key; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Client(#[from] client::Error),
    #[error("{0}")]
    Config(String),
    /// The work is not done yet for a reason that needs another look.
    #[error("{0}")]
    Unfinished(String),
}

/// Runs all controllers until the shutdown.
pub async fn run(
    config: Config,
    clients: impl Into<Clients>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    node_ipam::check(&config)?;
    let Clients { informers, of_account } = clients.into();
    let client = informers.client().clone();
    let context = Context {
        name: "",
        universe: Universe::new(client.clone(), informers.clone(), shutdown.clone()),
        informers,
        client,
        config: Arc::new(config),
        shutdown,
        tasks: TaskTracker::new(),
    };
    context.informers.start();
    context.tasks.spawn(context.universe.clone().run());
    let mut running = JoinSet::new();
    for controller in table::CONTROLLERS {
        let off = table::feature(controller.name)
            .is_some_and(|feature| !context.config.options.features.has(feature));
        if !off && !context.config.disabled.iter().any(|name| name == controller.name) {
            let client = match table::service_account(controller.name) {
                Some(account) => of_account(account),
                None => context.client.clone(),
            };
            let informers = context.informers.acting_as(client.clone());
            running.spawn((controller.run)(Context {
                name: controller.name,
                client,
                informers,
                ..context.clone()
            }));
        }
    }
    while let Some(ended) = running.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(%error, "a controller ended by a panic");
        }
    }
    context.shutdown.cancelled().await;
    context.informers.stopped().await;
    context.tasks.close();
    context.tasks.wait().await;
    Ok(())
}
