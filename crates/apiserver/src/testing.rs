//! An API server over memory storage for tests and simulations: the real one, in the same process, with everybody
//! allowed to do everything unless told otherwise.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apimachinery::Status;
use async_trait::async_trait;
use resources::features::{Features, Versions};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::handle::{ApiServer, Config};
use crate::negotiate::Forms;
use crate::registry::Registry;
use crate::seams::{
    AdmissionRequest, Admit, Attributes, Authenticate, Authorize, Decision, UserInfo, Verdict,
};

/// Knows nobody.
pub struct Nobody;

#[async_trait]
impl Authenticate for Nobody {
    async fn authenticate(
        &self,
        _: &http::HeaderMap,
        _: &http::Uri,
        _: &[CertificateDer<'static>],
    ) -> Result<Option<UserInfo>, Status> {
        Ok(None)
    }
}

/// Allows everything to all but anonymous users, who may see the server's health.
pub struct AllowAll;

impl Authorize for AllowAll {
    fn authorize<'a>(&'a self, user: &'a UserInfo, attributes: &'a Attributes) -> Verdict<'a> {
        let health = ["/healthz", "/livez", "/readyz", "/version"]
            .iter()
            .any(|path| attributes.path.starts_with(path));
        if user.name != crate::authn::ANONYMOUS || (!attributes.is_resource && health) {
            return Decision::Allow { reason: String::new() }.into();
        }
        Decision::NoOpinion { reason: String::new() }.into()
    }

    fn rules(&self, _: &UserInfo, _: &str) -> Value {
        json!({"resourceRules": [], "nonResourceRules": [], "incomplete": false})
    }
}

/// Admits everything as it is.
pub struct AdmitAll;

#[async_trait]
impl Admit for AdmitAll {
    async fn mutate(&self, _: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }

    async fn validate(&self, _: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }
}

/// A clock that stands still, and randomness that repeats.
pub fn config() -> Config {
    let counter = AtomicU64::new(0x9E37_79B9_7F4A_7C15);
    Config {
        authenticate: Arc::new(Nobody),
        authorize: Arc::new(AllowAll),
        admit: Arc::new(AdmitAll),
        issuer: None,
        review_token: None,
        service_cidrs: vec![([10, 43, 0, 0].into(), 16)],
        node_ports: 30000..=32767,
        advertise: ([192, 0, 2, 1].into(), 6443),
        kubelet_tls: None,
        front_proxy: None,
        max_in_flight: 600,
        authentication_data: Vec::new(),
        event_ttl: crate::expiry::EVENT_TTL,
        audit: None,
        forms: Forms::default(),
        clock: Arc::new(|| jiff::Timestamp::from_second(1_700_000_000).expect("a time in range")),
        random: Arc::new(move |bytes| {
            for chunk in bytes.chunks_mut(8) {
                let mut word = counter.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
                word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                word ^= word >> 31;
                chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
            }
        }),
    }
}

/// A server with all kinds over memory storage, fed by a task that ends with the returned server's token.
pub async fn server() -> Arc<ApiServer> {
    server_of(config()).await
}

/// The same with a configuration of its own.
pub async fn server_of(config: Config) -> Arc<ApiServer> {
    server_with(Arc::new(storage::memory::Memory::new()), config).await
}

/// A server over memory storage as a cluster has it: with upstream's admission, and what a cluster starts with.
pub async fn cluster(config: Config) -> Arc<ApiServer> {
    cluster_with(config, Features::NONE).await
}

/// The same with features that are off by default, and all their kinds.
pub async fn cluster_with(config: Config, features: Features) -> Arc<ApiServer> {
    let shutdown = CancellationToken::new();
    let versions = Versions::parse(["api/all=true"]).expect("it is known");
    let table = resources::features::table(features, &versions);
    let registry = Registry::new(Arc::new(storage::memory::Memory::new()), table).await;
    let registry = registry.expect("memory storage can be read");
    let authorizer = Arc::new(crate::authz::Authorizer::new(registry.clone()));
    let chain = Arc::new(crate::admission::Chain::new(registry.clone(), authorizer, config.random.clone()));
    let server =
        ApiServer::new(registry.clone(), Config { admit: chain.clone(), ..config }, shutdown.clone());
    server.tasks.spawn(async move {
        if let Err(error) = registry.run(shutdown).await {
            tracing::error!(error = &error as &dyn std::error::Error, "the caches are no longer fed");
        }
    });
    let user = crate::bootstrap::loopback_user();
    let own = client::Client::new(server.in_process(user), "apiserver");
    chain.client().set(own).unwrap_or_else(|_| unreachable!("the chain is new"));
    server
        .bootstrap(crate::authz::bootstrap_objects_with(features))
        .await
        .expect("an empty cluster can be filled");
    server
}

pub async fn server_with(store: Arc<dyn storage::Store>, config: Config) -> Arc<ApiServer> {
    let shutdown = CancellationToken::new();
    let table = resources::table().to_vec();
    let registry = Registry::new(store, table).await.expect("memory storage can be read");
    let server = ApiServer::new(registry.clone(), config, shutdown.clone());
    server.tasks.spawn(async move {
        if let Err(error) = registry.run(shutdown).await {
            tracing::error!(error = &error as &dyn std::error::Error, "the caches are no longer fed");
        }
    });
    server
}
