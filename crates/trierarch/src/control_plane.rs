//! The API server over the store of a data directory, with certificates that renew themselves.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apiserver::admission::Chain;
use apiserver::authn::{self, Authenticators, TokenIssuer};
use apiserver::authz::Authorizer;
use apiserver::negotiate::Forms;
use apiserver::seams::UserInfo;
use apiserver::{ApiServer, Registry};
use client::Client;
use resources::ResourceDef;
use resources::features::Feature;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::components::ServingSettings;
use crate::pki::{Leaf, Lives, Names, Pki};
use crate::renewal::{KubeconfigFile, Renewal};
use crate::trust::{Authorization, Given, Trust};
use crate::{encryption, host, parts};

/// The issuer of ServiceAccount tokens, and their audience.
const ISSUER_HOST: &str = "https://kubernetes.default.svc";
/// Node ports are handed out from here.
pub const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;
/// History that clients may still ask for.
///
/// Upstream: apiserver/pkg/storage/etcd3/compact.go, by kube-apiserver's --etcd-compaction-interval
const HISTORY: Duration = Duration::from_secs(5 * 60);

/// The kubeconfigs of components that run alone, by file name.
const COMPONENTS: [(&str, Leaf); 3] = [
    ("controller-manager.kubeconfig", Leaf::ControllerManager),
    ("scheduler.kubeconfig", Leaf::Scheduler),
    ("proxy.kubeconfig", Leaf::Proxy),
];

/// What a control plane is told.
#[derive(Clone)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub kubeconfig: PathBuf,
    /// Where the listener is; unspecified for all addresses.
    pub bind_address: IpAddr,
    pub port: u16,
    pub node_name: String,
    /// The addresses that others reach this server at; it names the first.
    pub node_ips: Vec<IpAddr>,
    /// The ranges of Services, one a family: first address and length of the prefix.
    pub service_ranges: Vec<(IpAddr, u8)>,
    pub cluster_domain: String,
    pub node_ports: RangeInclusive<u16>,
    /// What is done with requests, and how many at once.
    pub requests: ServingSettings,
    /// What of the store is encrypted.
    pub encryption: Option<PathBuf>,
    pub given: Given,
    /// Whether components will run alone, each by a kubeconfig of its own.
    pub in_pieces: bool,
    /// Objects that the cluster starts with, besides upstream's.
    pub objects: Vec<Value>,
}

/// Who listens everywhere is reached at the node's address; else only where it listens.
fn url(bind_address: IpAddr, node_ip: IpAddr, port: u16) -> String {
    let address = if bind_address.is_unspecified() { node_ip } else { bind_address };
    format!("https://{}", SocketAddr::new(address, port))
}

impl Settings {
    /// How clients on this machine reach the API.
    pub fn url(&self) -> String {
        url(self.bind_address, self.advertised(), self.port)
    }

    /// The address by which the `kubernetes` Service leads here.
    fn advertised(&self) -> IpAddr {
        self.node_ips.first().copied().unwrap_or(self.bind_address)
    }

    /// Upstream: cmd/kube-apiserver/app/options/validation.go validatePublicIPServiceClusterIPRangeIPFamilies
    fn check_families(&self) -> anyhow::Result<()> {
        let (first, length) = *self.service_ranges.first().context("there is no range of Services")?;
        let advertised = self.advertised();
        anyhow::ensure!(
            first.is_ipv6() == advertised.is_ipv6(),
            "service IP family \"{first}/{length}\" must match public address family \"{advertised}\""
        );
        Ok(())
    }

    fn names(&self) -> anyhow::Result<Names> {
        Ok(Names {
            node_name: self.node_name.clone(),
            host_name: host::hostname()?,
            node_ips: self
                .node_ips
                .iter()
                .chain([&self.bind_address])
                .filter(|ip| !ip.is_unspecified())
                .copied()
                .collect(),
            service_ips: self.service_ranges.iter().map(|range| host::nth_address(*range, 1)).collect(),
            cluster_domain: self.cluster_domain.clone(),
            extra: Vec::new(),
        })
    }

    /// The certificates of the data directory, and what is written whenever one of them is renewed.
    fn renewal(&self) -> anyhow::Result<Renewal> {
        let names = self.names()?;
        let clock = host::clock();
        let pki = Pki::load_or_create(&self.data_dir.join("pki"), &names, Lives::default(), clock.now())?;
        let shown =
            [Leaf::ApiServer, Leaf::ApiServerKubeletClient, Leaf::FrontProxyClient, Leaf::KubeletServer];
        Renewal::new(pki, &shown, names, clock)
    }

    /// Kubeconfigs are of no use when the server believes another authority than ours.
    fn keep_kubeconfigs(&self, renewal: &mut Renewal) -> anyhow::Result<()> {
        if self.given.client_authority.is_some() || self.given.serving.is_some() {
            return Ok(());
        }
        let file = |path, leaf, holds_keys| KubeconfigFile { path, server: self.url(), leaf, holds_keys };
        renewal.keep(file(self.kubeconfig.clone(), Leaf::Admin, true))?;
        for (name, leaf) in COMPONENTS.into_iter().filter(|_| self.in_pieces) {
            renewal.keep(file(self.data_dir.join(name), leaf, false))?;
        }
        Ok(())
    }
}

/// What kept the state before there was a release.
const EARLIER_STORE: &str = "state.redb";

pub struct ControlPlane {
    api: Arc<ApiServer>,
    pub renewal: Arc<Renewal>,
    tasks: JoinSet<()>,
}

impl ControlPlane {
    /// Opens the store, makes what certificates are missing, and starts the API server on the listener.
    pub async fn start(
        settings: &Settings,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        settings.check_families()?;
        let data_dir = &settings.data_dir;
        parts::make_private(data_dir)?;
        if data_dir.join(EARLIER_STORE).exists() {
            let data_dir = data_dir.display();
            anyhow::bail!("{data_dir} holds the store of an earlier version, which this one does not read");
        }
        let store = match parts::open_store(data_dir) {
            Err(storage::Error::InUse { .. }) => {
                anyhow::bail!("the data directory {} is in use by another process", data_dir.display())
            }
            opened => Arc::new(opened?),
        };
        let store: Arc<dyn storage::Store> = match &settings.encryption {
            Some(file) => encryption::around(store, file)?,
            None => store,
        };
        let mut renewal = settings.renewal()?;
        let issuer = format!("{ISSUER_HOST}.{}", settings.cluster_domain);
        let trust = Trust::new(&settings.given, &renewal, &issuer)?;
        let handshake = trust.handshake_authorities()?;
        let tls = apiserver::server::tls_config(trust.serving.clone(), &handshake)?;
        let registry =
            Registry::new(store, [settings.requests.table(), resources::resource_metrics()].concat()).await?;
        let api = assemble(settings, trust, registry, shutdown.clone())?;
        settings.keep_kubeconfigs(&mut renewal)?;
        let mut control_plane = ControlPlane { api, renewal: Arc::new(renewal), tasks: JoinSet::new() };
        control_plane.serve(settings, listener, tls, shutdown).await?;
        Ok(control_plane)
    }

    /// Feeds the caches, accepts connections, and makes what a cluster starts with.
    async fn serve(
        &mut self,
        settings: &Settings,
        listener: TcpListener,
        tls: Arc<rustls::ServerConfig>,
        shutdown: CancellationToken,
    ) -> anyhow::Result<()> {
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
        self.tasks.spawn(forget_history(self.api.clone(), shutdown.clone()));
        let mut objects = apiserver::authz::bootstrap_objects_with(settings.requests.features);
        objects.extend(settings.objects.iter().cloned());
        self.api.bootstrap(objects).await.context("cannot make what a cluster starts with")?;
        let is_chosen_from =
            |def: &Arc<ResourceDef>| def.plural == "leasecandidates" && def.version == "v1beta1";
        if settings.requests.table().iter().any(is_chosen_from) {
            let own = Client::new(self.api.in_process(apiserver::bootstrap::loopback_user()), "apiserver");
            let identity = format!("{}_{}", host::hostname()?, uuid::Uuid::new_v4());
            let elector = controllers::leader_elector(own, &identity, host::clock());
            let elector = settings.requests.leadership.pace(elector);
            self.tasks.spawn(controllers::choose_leaders(elector, shutdown));
        }
        tracing::info!(address = settings.url(), kubeconfig = %settings.kubeconfig.display(), "the API is ready");
        Ok(())
    }

    /// Waits until the server has ended, which it does some seconds after its shutdown at the latest.
    pub async fn stopped(mut self) {
        while self.tasks.join_next().await.is_some() {}
        // Parts of the server hold each other, and with them the store: it is not dropped.
        if let Err(error) = self.api.registry.store().close().await {
            tracing::warn!(%error, "the store could not be closed");
        }
    }

    /// The way to the API for a part of this process, as this user.
    pub fn client(&self, user: &str, groups: &[&str]) -> Client {
        let groups = groups.iter().copied().chain([authn::AUTHENTICATED]).map(str::to_owned).collect();
        let identity = UserInfo { name: user.into(), groups, ..Default::default() };
        let agent = user.trim_start_matches("system:").split(':').next().unwrap_or_default();
        Client::new(self.api.in_process(identity), agent)
    }

    /// Where parts of this process have themselves counted.
    pub fn metrics(&self) -> &apiserver::metrics::Metrics {
        &self.api.metrics
    }

    /// The ways to the API as ServiceAccounts of `kube-system`.
    pub fn accounts(&self) -> Accounts {
        Accounts(self.api.clone())
    }
}

/// Makes clients of ServiceAccounts of `kube-system`, for parts of this process.
pub struct Accounts(Arc<ApiServer>);

impl Accounts {
    pub fn client(&self, name: &str) -> Client {
        let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system", authn::AUTHENTICATED];
        let identity = UserInfo {
            name: format!("system:serviceaccount:kube-system:{name}"),
            groups: groups.map(str::to_owned).to_vec(),
            ..Default::default()
        };
        Client::new(self.0.in_process(identity), name)
    }
}

/// The API server of these settings.
fn assemble(
    settings: &Settings,
    trust: Trust,
    registry: Arc<Registry>,
    shutdown: CancellationToken,
) -> anyhow::Result<Arc<ApiServer>> {
    let clock = host::clock();
    let clock: authn::Clock = Arc::new(move || clock.now());
    let random: authn::Random = Arc::new(|bytes| rand::fill(bytes));
    let Authorization { modes, metrics, reload } = settings.given.authorization.clone();
    let authorizer = Arc::new(Authorizer::counted(modes, registry.clone(), metrics.clone()));
    let chain = Chain::new(registry.clone(), authorizer.clone(), random.clone());
    let requests = &settings.requests;
    let told =
        apiserver::admission::configuration::Settings::new(&requests.admission, &requests.plugins, &random);
    let told = told.map_err(|why| anyhow::anyhow!("{why}"))?;
    let chain = Arc::new(chain.with(&requests.plugins, told));
    let audit = requests.audit.as_ref().map(|audit| audit.open(clock.clone(), random.clone())).transpose()?;
    let published = trust.published();
    let first_issuer = trust.issuers.first().cloned().context("tokens need an issuer")?;
    let key = trust.signing_key()?;
    let issuer = TokenIssuer::new(key, first_issuer, trust.audiences.clone(), clock.clone(), random.clone());
    let issuer = Arc::new(issuer);
    let authentication = trust.authentication(issuer.verifying_key(), registry.clone())?;
    let authenticators = Arc::new(Authenticators::new(authentication, registry.clone(), clock.clone())?);
    let review = authenticators.clone();
    let config = apiserver::Config {
        authenticate: trust.known_only(authenticators),
        authorize: authorizer.clone(),
        admit: chain.clone(),
        issuer: Some(issuer),
        review_token: Some(review),
        service_cidrs: settings.service_ranges.clone(),
        node_ports: settings.node_ports.clone(),
        advertise: (settings.advertised(), settings.port),
        kubelet_tls: Some(trust.kubelet_tls.clone()),
        front_proxy: Some(trust.front_proxy.clone()),
        max_in_flight: settings.requests.max_in_flight,
        event_ttl: settings.requests.event_ttl,
        forms: Forms { cbor: settings.requests.features.has(Feature::CborServingAndStorage) },
        audit,
        authentication_data: published,
        clock,
        random,
    };
    let api = ApiServer::new(registry, config, shutdown.clone());
    api.metrics.also(move |registry| metrics.register(registry));
    if let Some(reload) = reload {
        let id = format!("apiserver-{}", settings.node_name);
        api.tasks.spawn(reload.follow(authorizer, id, api.config.clock.clone(), shutdown));
    }
    // The quota of a namespace is charged through the API, by the server itself.
    let own = Client::new(api.in_process(apiserver::bootstrap::loopback_user()), "apiserver");
    let charged = chain.client().set(own);
    charged.map_err(|_| anyhow::anyhow!("the admission chain has a client already"))?;
    Ok(api)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubeconfigs_lead_to_where_the_server_listens() {
        for (bind, node, wanted) in [
            ("0.0.0.0", "192.0.2.1", "https://192.0.2.1:6443"),
            ("::", "192.0.2.1", "https://192.0.2.1:6443"),
            ("127.0.0.2", "192.0.2.1", "https://127.0.0.2:6443"),
            ("::", "fd00::1", "https://[fd00::1]:6443"),
        ] {
            assert_eq!(url(bind.parse().unwrap(), node.parse().unwrap(), 6443), wanted);
        }
    }
}
