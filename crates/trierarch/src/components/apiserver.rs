//! `trierarch apiserver`: upstream's kube-apiserver.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use apiserver::authn::Random;
use clap::Args;

use crate::certificates::{Files, read};
use crate::control_plane::{ControlPlane, Settings};
use crate::trust::{self, Given, GivenRequestHeaders};
use crate::{cli, host, join};

/// Upstream: cmd/kube-apiserver/app/options, pkg/kubeapiserver/options, apiserver/pkg/server/options
#[derive(Args)]
pub struct Apiserver {
    #[command(flatten)]
    pub data: cli::DataDir,
    /// The address to listen on [default: all of this machine]
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<IpAddr>,
    /// The port to listen on
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub secure_port: u16,
    /// The address that others reach this server at [default: the one that leads to the default gateway]
    #[arg(long, value_name = "IP")]
    pub advertise_address: Option<IpAddr>,
    /// Addresses of Services: one range, or one of each family, that of the first being the usual one
    #[arg(
        long,
        visible_alias = "service-cidr",
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "10.43.0.0/16"
    )]
    pub service_cluster_ip_range: Vec<String>,
    /// Ports of Services on nodes
    #[arg(long, value_name = "FROM-TO", default_value = "30000-32767", value_parser = port_range)]
    pub service_node_port_range: RangeInclusive<u16>,
    /// The DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// Whether requests without credentials are of the user system:anonymous, rather than refused
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub anonymous_auth: bool,
    /// Whether bootstrap tokens in Secrets of kube-system name users
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub enable_bootstrap_token_auth: bool,
    /// A file with bearer tokens: lines of token,user,uid,"group,group"
    #[arg(long, value_name = "FILE")]
    pub token_auth_file: Option<PathBuf>,
    /// A file with an EncryptionConfiguration: what of the store is encrypted, and by which keys
    #[arg(long, value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
    #[command(flatten)]
    pub requests: super::ServingFlags,
    #[command(flatten)]
    pub serving: Serving,
    #[command(flatten)]
    pub tokens: Tokens,
    #[command(flatten)]
    pub oidc: super::oidc::Oidc,
    #[command(flatten)]
    pub auth: super::auth_webhooks::AuthWebhooks,
    #[command(flatten)]
    pub kubelets: Kubelets,
    #[command(flatten)]
    pub front_proxy: FrontProxy,
    /// Not possible yet: state is kept in the data directory
    #[arg(long, value_name = "URLS", hide = true)]
    pub etcd_servers: Option<String>,
}

#[derive(Args)]
#[command(next_help_heading = "Certificates")]
pub struct Serving {
    /// The server's certificate, with what leads to its authority [default: one of an authority that the server
    /// makes in its data directory, renewed before it ends]
    #[arg(long, value_name = "FILE")]
    pub tls_cert_file: Option<PathBuf>,
    /// The key of the server's certificate
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: Option<PathBuf>,
    /// The authorities of users' certificates [default: the server's own]
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
}

#[derive(Args)]
#[command(next_help_heading = "ServiceAccount tokens")]
pub struct Tokens {
    /// Keys that tokens are checked with, besides the one that signs
    #[arg(long, value_name = "FILE")]
    pub service_account_key_file: Vec<PathBuf>,
    /// The key that signs tokens [default: one that the server makes in its data directory]
    #[arg(long, value_name = "FILE")]
    pub service_account_signing_key_file: Option<PathBuf>,
    /// Who issues tokens: the first signs, those of all are accepted
    /// [default: https://kubernetes.default.svc.<CLUSTER_DOMAIN>]
    #[arg(long, value_name = "URL")]
    pub service_account_issuer: Vec<String>,
    /// For whom tokens must be [default: the issuers]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub api_audiences: Vec<String>,
}

#[derive(Args)]
#[command(next_help_heading = "Kubelets")]
pub struct Kubelets {
    /// The authorities of kubelets' certificates [default: the server's own]
    #[arg(long, value_name = "FILE")]
    pub kubelet_certificate_authority: Option<PathBuf>,
    /// The certificate to show to kubelets [default: one of the server's own authority]
    #[arg(long, value_name = "FILE")]
    pub kubelet_client_certificate: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE")]
    pub kubelet_client_key: Option<PathBuf>,
}

#[derive(Args)]
#[command(next_help_heading = "Front proxies")]
pub struct FrontProxy {
    /// The authorities of proxies that may say for whom they ask [default: one of the server's own]
    #[arg(long, value_name = "FILE")]
    pub requestheader_client_ca_file: Option<PathBuf>,
    /// The common names of such proxies [default: front-proxy-client, or any with an authority of yours]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub requestheader_allowed_names: Vec<String>,
    /// Where they say the user's name [default: X-Remote-User]
    #[arg(long, value_name = "HEADERS", value_delimiter = ',')]
    pub requestheader_username_headers: Vec<String>,
    /// Where they say the user's uid [default: X-Remote-Uid]
    #[arg(long, value_name = "HEADERS", value_delimiter = ',')]
    pub requestheader_uid_headers: Vec<String>,
    /// Where they say the user's groups [default: X-Remote-Group]
    #[arg(long, value_name = "HEADERS", value_delimiter = ',')]
    pub requestheader_group_headers: Vec<String>,
    /// What headers with more about the user begin with [default: X-Remote-Extra-]
    #[arg(long, value_name = "PREFIXES", value_delimiter = ',')]
    pub requestheader_extra_headers_prefix: Vec<String>,
    /// The certificate with which this server asks aggregated ones [default: one of an authority of its own]
    #[arg(long, value_name = "FILE")]
    pub proxy_client_cert_file: Option<PathBuf>,
    /// The key of that certificate
    #[arg(long, value_name = "FILE")]
    pub proxy_client_key_file: Option<PathBuf>,
}

/// `30000-32767`, or `30000+100` for the port and a hundred more.
///
/// Upstream: apimachinery/pkg/util/net/port_range.go Set
fn port_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let parse = || {
        if let Some((from, more)) = text.split_once('+') {
            let from: u16 = from.trim().parse().ok()?;
            return Some(from..=from.checked_add(more.trim().parse().ok()?)?);
        }
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let range = from.trim().parse().ok()?..=to.trim().parse().ok()?;
        (!range.is_empty() && *range.start() > 0).then_some(range)
    };
    parse().ok_or_else(|| format!("{text:?} is not a range of ports like 30000-32767"))
}

impl Apiserver {
    fn given(&self) -> anyhow::Result<Given> {
        let pair = |names, certificate: &Option<PathBuf>, key: &Option<PathBuf>| {
            Files::of_flags(names, certificate.clone(), key.clone())
        };
        let (serving, kubelets) = (&self.serving, &self.kubelets);
        let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
        let proxy = &self.front_proxy;
        let static_tokens = match &self.token_auth_file {
            Some(path) => trust::static_tokens(&read(path)?)
                .map_err(|error| error.context(format!("{} is not a token file", path.display())))?,
            None => Vec::new(),
        };
        let (jwt, anonymous) = self.oidc.issuers()?;
        let random: Random = Arc::new(|bytes| rand::fill(bytes));
        Ok(Given {
            serving: pair(
                ["--tls-cert-file", "--tls-private-key-file"],
                &serving.tls_cert_file,
                &serving.tls_private_key_file,
            )?,
            client_authority: serving.client_ca_file.clone(),
            service_account_keys: self.tokens.service_account_key_file.clone(),
            signing_key: self.tokens.service_account_signing_key_file.clone(),
            issuers: self.tokens.service_account_issuer.clone(),
            audiences: self.tokens.api_audiences.clone(),
            kubelet_authority: kubelets.kubelet_certificate_authority.clone(),
            kubelet_client: pair(
                ["--kubelet-client-certificate", "--kubelet-client-key"],
                &kubelets.kubelet_client_certificate,
                &kubelets.kubelet_client_key,
            )?,
            request_headers: GivenRequestHeaders {
                authority: proxy.requestheader_client_ca_file.clone(),
                allowed_names: proxy.requestheader_allowed_names.clone(),
                username_headers: lower(&proxy.requestheader_username_headers),
                uid_headers: lower(&proxy.requestheader_uid_headers),
                group_headers: lower(&proxy.requestheader_group_headers),
                extra_header_prefixes: lower(&proxy.requestheader_extra_headers_prefix),
            },
            proxy_client: pair(
                ["--proxy-client-cert-file", "--proxy-client-key-file"],
                &proxy.proxy_client_cert_file,
                &proxy.proxy_client_key_file,
            )?,
            static_tokens,
            jwt,
            anonymous: anonymous.unwrap_or(self.anonymous_auth),
            bootstrap_tokens: self.enable_bootstrap_token_auth,
            authorization: self.auth.authorization(&random)?,
            token_webhook: self.auth.tokens(&random)?,
        })
    }

    fn settings(&self) -> anyhow::Result<Settings> {
        anyhow::ensure!(
            self.etcd_servers.is_none(),
            "--etcd-servers: there is no etcd backend yet; state is kept in --data-dir"
        );
        let data_dir = std::path::absolute(&self.data.data_dir)?;
        let node_ip = self.advertise_address.map_or_else(host::node_ip, Ok)?;
        let bind_address = self.bind_address.unwrap_or_else(|| host::any_address(&[node_ip]));
        Ok(Settings {
            kubeconfig: data_dir.join("admin.kubeconfig"),
            data_dir,
            bind_address,
            port: self.secure_port,
            node_name: host::hostname()?,
            node_ips: vec![node_ip],
            service_ranges: host::cidrs("--service-cluster-ip-range", &self.service_cluster_ip_range)?,
            cluster_domain: self.cluster_domain.clone(),
            node_ports: self.service_node_port_range.clone(),
            requests: self.requests.settings()?,
            encryption: self.encryption_provider_config.clone(),
            given: self.given()?,
            in_pieces: true,
            objects: join::objects::rights(),
        })
    }
}

pub async fn run(args: Apiserver) -> anyhow::Result<()> {
    let settings = args.settings()?;
    let listener = host::listen(SocketAddr::new(settings.bind_address, args.secure_port)).await?;
    let shutdown = host::shutdown_signal()?;
    let control_plane = ControlPlane::start(&settings, listener, shutdown.clone()).await?;
    if args.enable_bootstrap_token_auth && settings.given.client_authority.is_none() {
        join::write_bootstrap_kubeconfig(&control_plane, &settings).await?;
    }
    control_plane.renewal.clone().run(shutdown).await?;
    control_plane.stopped().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_ports_are_as_upstream_reads_them() {
        for (text, range) in [("30000-32767", 30000..=32767), ("80", 80..=80), ("100+5", 100..=105)] {
            assert_eq!(port_range(text).unwrap(), range, "{text}");
        }
        for text in ["", "5-1", "a-b", "0-10", "65535+1", "1-70000"] {
            assert!(port_range(text).is_err(), "{text}");
        }
    }
}
