//! The API server over the store of a data directory, with certificates that renew themselves.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use apiserver::admission::Chain;
use apiserver::authn::{self, Authenticators, RequestHeaders, SigningKey, TokenIssuer};
use apiserver::authz::Authorizer;
use apiserver::seams::UserInfo;
use apiserver::{ApiServer, Registry};
use client::Client;
use rustls_pki_types::CertificateDer;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::certificates::{self, Current};
use crate::pki::{self, Leaf, Names, Pki};
use crate::{cli, host, parts};

/// The issuer of ServiceAccount tokens, and their audience.
const ISSUER_HOST: &str = "https://kubernetes.default.svc";
/// Node ports are handed out from here.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30000..=32767;
/// History that clients may still ask for.
///
/// Upstream: apiserver/pkg/storage/etcd3/compact.go, by kube-apiserver's --etcd-compaction-interval
const HISTORY: Duration = Duration::from_secs(5 * 60);

/// Certificates are looked at no more often than this, should one be due that cannot be issued.
const MIN_RENEWAL_WAIT: Duration = Duration::from_secs(60);

/// What a control plane is told.
#[derive(Clone)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub kubeconfig: PathBuf,
    /// Where the listener is; unspecified for all addresses.
    pub bind_address: IpAddr,
    pub port: u16,
    pub node_name: String,
    pub node_ip: IpAddr,
    /// The ClusterIP of the `kubernetes` Service.
    pub service_ip: IpAddr,
    pub network: cli::ClusterNetwork,
}

impl Settings {
    /// How clients on this machine reach the API.
    fn url(&self) -> String {
        let address = if self.bind_address.is_unspecified() { self.node_ip } else { self.bind_address };
        format!("https://{}", SocketAddr::new(address, self.port))
    }

    fn names(&self) -> anyhow::Result<Names> {
        Ok(Names {
            node_name: self.node_name.clone(),
            host_name: host::hostname()?,
            node_ips: vec![self.node_ip, self.bind_address]
                .into_iter()
                .filter(|ip| !ip.is_unspecified())
                .collect(),
            service_ip: self.service_ip,
            cluster_domain: self.network.cluster_domain.clone(),
            extra: Vec::new(),
        })
    }
}

pub struct ControlPlane {
    api: Arc<ApiServer>,
    pki: Mutex<Pki>,
    certificates: BTreeMap<Leaf, Arc<Current>>,
    tasks: JoinSet<()>,
}

impl ControlPlane {
    /// Opens the store, makes what certificates are missing, and starts the API server on the listener.
    pub async fn start(
        settings: &Settings,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let data_dir = &settings.data_dir;
        parts::make_private(data_dir)?;
        let store = match parts::open_store(data_dir) {
            Err(storage::Error::InUse { .. }) => {
                anyhow::bail!("the data directory {} is in use by another process", data_dir.display())
            }
            opened => Arc::new(opened?),
        };
        let pki = Pki::load_or_create(&data_dir.join("pki"), &settings.names()?, host::clock().now())?;
        let mut certificates = BTreeMap::new();
        for leaf in [Leaf::ApiServer, Leaf::ApiServerKubeletClient, Leaf::KubeletServer] {
            certificates.insert(leaf, Current::new(pki.pair(leaf))?);
        }

        let registry = Registry::new(store, resources::table().to_vec()).await?;
        let clock = host::clock();
        let clock: authn::Clock = Arc::new(move || clock.now());
        let random: authn::Random = Arc::new(|bytes| rand::fill(bytes));
        let authorizer = Arc::new(Authorizer::new(registry.clone()));
        let chain = Arc::new(Chain::new(registry.clone(), authorizer.clone(), random.clone()));
        let issuer_url = format!("{ISSUER_HOST}.{}", settings.network.cluster_domain);
        let signing_key = SigningKey::from_pem(pki.service_account_key())?;
        let issuer = Arc::new(TokenIssuer::new(
            signing_key,
            issuer_url.clone(),
            vec![issuer_url.clone()],
            clock.clone(),
            random.clone(),
        ));
        let authority = certificates::chain(pki.authority())?;
        let front_proxy = certificates::chain(pki.front_proxy_authority())?;
        let config = authn::Config {
            client_authorities: authority.clone(),
            request_headers: Some(RequestHeaders::usual(
                front_proxy.clone(),
                vec!["front-proxy-client".into()],
            )),
            service_account_keys: vec![issuer.verifying_key().clone()],
            issuers: vec![issuer_url.clone()],
            audiences: vec![issuer_url],
            bootstrap_tokens: true,
            ..Default::default()
        };
        let authenticators = Arc::new(Authenticators::new(config, registry.clone(), clock.clone())?);
        let review = authenticators.clone();
        let api = ApiServer::new(
            registry.clone(),
            apiserver::Config {
                authenticate: authenticators,
                authorize: authorizer,
                admit: chain.clone(),
                issuer: Some(issuer),
                review_token: Some(Arc::new(move |token, audiences| {
                    review.authenticate_token(token, audiences)
                })),
                service_cidr: host::cidr("--service-cidr", &settings.network.service_cidr)?,
                node_ports: NODE_PORTS,
                advertise: (settings.node_ip, settings.port),
                kubelet_tls: Some(certificates::client_config(
                    pki.authority(),
                    certificates[&Leaf::ApiServerKubeletClient].clone(),
                )?),
                authentication_data: authentication_data(&pki),
                clock,
                random,
            },
            shutdown.clone(),
        );
        let mut control_plane =
            ControlPlane { api, pki: Mutex::new(pki), certificates, tasks: JoinSet::new() };
        // The quota of a namespace is charged through the API, as an administrator.
        let charged = chain.client().set(control_plane.client("system:apiserver", &["system:masters"]));
        charged.map_err(|_| anyhow::anyhow!("the admission chain has a client already"))?;
        control_plane.serve(settings, listener, &[authority, front_proxy].concat(), shutdown).await?;
        Ok(control_plane)
    }

    /// Feeds the caches, accepts connections, and makes what a cluster starts with.
    async fn serve(
        &mut self,
        settings: &Settings,
        listener: TcpListener,
        client_authorities: &[CertificateDer<'static>],
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
        let tls =
            apiserver::server::tls_config(self.certificates[&Leaf::ApiServer].clone(), client_authorities)?;
        let (api, stop) = (self.api.clone(), shutdown.clone());
        self.tasks.spawn(async move {
            if let Err(error) = api.registry.run(stop.clone()).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the caches cannot be fed any more"
                );
            }
            stop.cancel();
        });
        let (api, stop) = (self.api.clone(), shutdown.clone());
        self.tasks.spawn(async move {
            if let Err(error) = api.serve(listener, tls).await {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "the API cannot be served any more"
                );
            }
            stop.cancel();
        });
        self.tasks.spawn(forget_history(self.api.clone(), shutdown));
        self.api
            .bootstrap(apiserver::authz::bootstrap_objects())
            .await
            .context("cannot make what a cluster starts with")?;
        self.write_kubeconfig(settings)?;
        tracing::info!(address = settings.url(), kubeconfig = %settings.kubeconfig.display(), "the API is ready");
        Ok(())
    }

    fn write_kubeconfig(&self, settings: &Settings) -> anyhow::Result<()> {
        let pki = self.pki();
        pki::write_kubeconfig(
            &settings.kubeconfig,
            &settings.url(),
            pki.authority(),
            "admin",
            pki.pair(Leaf::Admin),
        )
    }

    /// Waits until the server has ended, which it does some seconds after its shutdown at the latest.
    pub async fn stopped(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }

    pub fn pki(&self) -> MutexGuard<'_, Pki> {
        self.pki.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn certificate(&self, leaf: Leaf) -> Arc<Current> {
        self.certificates[&leaf].clone()
    }

    /// The way to the API for a part of this process, as this user.
    pub fn client(&self, user: &str, groups: &[&str]) -> Client {
        let groups = groups.iter().copied().chain([authn::AUTHENTICATED]).map(str::to_owned).collect();
        let identity = UserInfo { name: user.into(), groups, ..Default::default() };
        let agent = user.trim_start_matches("system:").split(':').next().unwrap_or_default();
        Client::new(self.api.in_process(identity), agent)
    }

    /// Issues certificates again when they are due, and shows the new ones from then on.
    pub fn renewal(
        self: &Arc<Self>,
        settings: Settings,
        shutdown: CancellationToken,
    ) -> impl Future<Output = anyhow::Result<()>> + use<> {
        let this = self.clone();
        async move {
            loop {
                let now = host::clock().now();
                let due = this.pki().next_renewal().unwrap_or(now);
                let wait = due.duration_since(now).max(MIN_RENEWAL_WAIT.try_into()?).try_into()?;
                tokio::select! {
                    () = shutdown.cancelled() => return Ok(()),
                    () = tokio::time::sleep(wait) => {}
                }
                let renewed = this.pki().renew(&settings.names()?, host::clock().now())?;
                for leaf in &renewed {
                    if let Some(current) = this.certificates.get(leaf) {
                        current.replace(this.pki().pair(*leaf))?;
                    }
                }
                if renewed.contains(&Leaf::Admin) {
                    this.write_kubeconfig(&settings)?;
                }
                if !renewed.is_empty() {
                    tracing::info!(?renewed, "certificates were renewed");
                }
            }
        }
    }
}

/// Compacts what is older than clients may ask for, every so often, while there is something to compact.
async fn forget_history(api: Arc<ApiServer>, shutdown: CancellationToken) {
    let store = api.registry.store().clone();
    let mut keep_after = api.registry.progress();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(HISTORY) => {}
        }
        let newest = api.registry.progress();
        if let Err(error) = store.compact(keep_after).await {
            tracing::warn!(error = &error as &dyn std::error::Error, "history cannot be compacted");
        }
        keep_after = newest;
    }
}

/// What extension API servers need to check those whom this server believes.
///
/// Upstream: pkg/controlplane/controller/clusterauthenticationtrust/cluster_authentication_trust_controller.go
fn authentication_data(pki: &Pki) -> Vec<(String, String)> {
    let data = [
        ("client-ca-file", pki.authority().to_owned()),
        ("requestheader-client-ca-file", pki.front_proxy_authority().to_owned()),
        ("requestheader-allowed-names", "[\"front-proxy-client\"]".to_owned()),
        ("requestheader-extra-headers-prefix", "[\"X-Remote-Extra-\"]".to_owned()),
        ("requestheader-group-headers", "[\"X-Remote-Group\"]".to_owned()),
        ("requestheader-username-headers", "[\"X-Remote-User\"]".to_owned()),
        ("requestheader-uid-headers", "[\"X-Remote-Uid\"]".to_owned()),
    ];
    data.map(|(key, value)| (key.to_owned(), value)).to_vec()
}
