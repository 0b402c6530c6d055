//! `trierarch controller-manager`: upstream's kube-controller-manager.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apiserver::authn::SigningKey;
use clap::Args;
use client::Client;
use client::https::HttpsTransport;
use client::kubeconfig::Kubeconfig;
use client::service_account::ServiceAccounts;
use controller_runtime::{InformerFactory, QueueMetrics};
use tokio_util::sync::CancellationToken;

use super::controller_flags::Behavior;
use super::election::Election;
use super::secure_serving::SecureServing;
use super::{Access, client_of, say_ready};
use crate::certificates::{Files, read};
use crate::host;

/// Upstream: cmd/kube-controller-manager/app/options/options.go
#[derive(Args)]
pub struct ControllerManager {
    #[command(flatten)]
    pub access: Access,
    #[command(flatten)]
    pub election: Election,
    #[command(flatten)]
    pub serving: SecureServing,
    /// Which controllers run: `*` for all, `foo` for one, `-foo` for all but one
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "*",
        allow_hyphen_values = true
    )]
    pub controllers: Vec<String>,
    /// Act as a ServiceAccount of its own for each controller, with the rights that it needs and no more
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub use_service_account_credentials: bool,
    /// Give each node a range of pod addresses
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub allocate_node_cidrs: bool,
    /// Addresses of pods, of which each node gets a part: one range, or one of each family
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.42.0.0/16")]
    pub cluster_cidr: Vec<String>,
    /// The size of a node's part, as a prefix length [default: 24, or 64 with IPv6]
    #[arg(long, value_name = "LENGTH")]
    pub node_cidr_mask_size: Option<u8>,
    /// The size of a node's part of IPv4, as a prefix length [default: 24]
    #[arg(long, value_name = "LENGTH")]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// The size of a node's part of IPv6, as a prefix length [default: 64]
    #[arg(long, value_name = "LENGTH")]
    pub node_cidr_mask_size_ipv6: Option<u8>,
    /// The certificates that pods verify the API server by [default: the kubeconfig's]
    #[arg(long, value_name = "FILE")]
    pub root_ca_file: Option<PathBuf>,
    /// The key that signs the tokens of ServiceAccounts' Secrets; without it none are made
    #[arg(long, value_name = "FILE")]
    pub service_account_private_key_file: Option<PathBuf>,
    /// The authority that signs approved certificate requests; without it none are signed
    #[arg(long, value_name = "FILE")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// The key of that authority
    #[arg(long, value_name = "FILE")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// How long signed certificates are good for, at most
    #[arg(long, value_name = "DURATION", default_value = "8760h", value_parser = super::duration)]
    pub cluster_signing_duration: Duration,
    #[command(flatten)]
    pub behavior: Behavior,
}

/// Signs the tokens of ServiceAccounts' Secrets with a key of PEM.
pub fn token_signer(key: &str) -> anyhow::Result<controllers::TokenSigner> {
    let key = SigningKey::from_pem(key).context("the key of ServiceAccount tokens cannot be used")?;
    Ok(Arc::new(move |claims| key.token(claims).map_err(|error| error.to_string())))
}

/// The authority that the flags name.
fn signing_authority(args: &ControllerManager) -> anyhow::Result<Option<controllers::SigningAuthority>> {
    let flags = ["--cluster-signing-cert-file", "--cluster-signing-key-file"];
    let (certificate, key) = (args.cluster_signing_cert_file.clone(), args.cluster_signing_key_file.clone());
    let Some(files) = Files::of_flags(flags, certificate, key)? else { return Ok(None) };
    Ok(Some(controllers::SigningAuthority {
        certificate_pem: read(&files.certificate)?,
        key_pem: read(&files.key)?,
        longest: args.cluster_signing_duration,
    }))
}

/// The sizes of a node's parts of IPv4 and of IPv6: as given, or as upstream has them, but no larger than the
/// cluster's.
///
/// Upstream: cmd/kube-controller-manager/app/core.go setNodeCIDRMaskSizes
pub fn node_cidr_masks(cluster: &[(IpAddr, u8)], given: [Option<u8>; 3]) -> anyhow::Result<(u8, u8)> {
    let [any, ipv4, ipv6] = given;
    let has = |ipv6| cluster.iter().any(|range| range.0.is_ipv6() == ipv6);
    anyhow::ensure!(
        any.is_none() || cluster.len() < 2,
        "usage of --node-cidr-mask-size is not allowed with dual-stack clusters"
    );
    anyhow::ensure!(
        any.is_none() || (ipv4.is_none() && ipv6.is_none()),
        "usage of --node-cidr-mask-size-ipv4 and --node-cidr-mask-size-ipv6 is not allowed if --node-cidr-mask-size \
         is set. For dual-stack clusters please unset it and use IPFamily specific flags"
    );
    anyhow::ensure!(
        ipv4.is_none() || has(false),
        "usage of --node-cidr-mask-size-ipv4 is not allowed for a single-stack IPv6 cluster"
    );
    anyhow::ensure!(
        ipv6.is_none() || has(true),
        "usage of --node-cidr-mask-size-ipv6 is not allowed for a single-stack IPv4 cluster"
    );
    let usual = |ipv6, size: u8| {
        let range = cluster.iter().find(|range| range.0.is_ipv6() == ipv6);
        range.map_or(size, |range| size.max(range.1))
    };
    let size = |given: Option<u8>, ipv6, size| given.or(any).unwrap_or_else(|| usual(ipv6, size));
    Ok((size(ipv4, false, 24), size(ipv6, true, 64)))
}

/// The names of controllers that do not run, of all that there are.
pub fn disabled_controllers(asked: &[String]) -> anyhow::Result<Vec<String>> {
    disabled_of(asked, &controllers::names().collect::<Vec<_>>())
}

/// The same, of these.
///
/// Upstream: controller-manager/app/helper.go IsControllerEnabled
fn disabled_of(asked: &[String], known: &[&str]) -> anyhow::Result<Vec<String>> {
    let asked: Vec<&str> = asked.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
    for name in asked.iter().filter(|name| **name != "*") {
        let name = name.trim_start_matches('-');
        anyhow::ensure!(known.contains(&name), "{name:?} is not in the list of known controllers");
    }
    let runs = |name: &str| match asked.iter().find(|asked| asked.trim_start_matches('-') == name) {
        Some(asked) => !asked.starts_with('-'),
        None => asked.contains(&"*"),
    };
    Ok(known.iter().filter(|name| !runs(name)).map(|name| (*name).to_owned()).collect())
}

/// The certificates that the kubeconfig trusts, for who gave none.
pub fn authority_of(kubeconfig: &Path) -> anyhow::Result<String> {
    match Kubeconfig::read(kubeconfig)?.config(None)?.trust {
        client::https::Trust::Roots(pem) => Ok(String::from_utf8(pem)?),
        _ => anyhow::bail!("--root-ca-file is needed: the kubeconfig names no authority"),
    }
}

/// As whom the controllers act.
fn accounts(args: &ControllerManager, shared: &Client) -> anyhow::Result<controllers::Accounts> {
    if !args.use_service_account_credentials {
        let shared = shared.clone();
        return Ok(Arc::new(move |_| shared.clone()));
    }
    let config = Kubeconfig::read(&args.access.kubeconfig)?.config(None)?;
    let anonymous = client::https::Config { identity: None, token: None, ..config };
    let accounts = ServiceAccounts {
        issuer: shared.clone(),
        anonymous: Arc::new(HttpsTransport::new(&anonymous)?),
        namespace: "kube-system".into(),
    };
    Ok(Arc::new(move |name| accounts.client(name)))
}

pub async fn run(args: ControllerManager) -> anyhow::Result<()> {
    let disabled = disabled_controllers(&args.controllers)?;
    let metrics = QueueMetrics::default();
    let cluster = host::cidrs("--cluster-cidr", &args.cluster_cidr)?;
    let sizes = [args.node_cidr_mask_size, args.node_cidr_mask_size_ipv4, args.node_cidr_mask_size_ipv6];
    let (node_cidr_mask, node_cidr_mask_ipv6) = node_cidr_masks(&cluster, sizes)?;
    let options = args.behavior.options()?;
    let features = options.features;
    let config = controllers::Config {
        node_cidr_mask,
        node_cidr_mask_ipv6,
        cluster_cidr: if args.allocate_node_cidrs { args.cluster_cidr.join(",") } else { String::new() },
        root_ca_pem: match &args.root_ca_file {
            Some(path) => read(path)?,
            None => authority_of(&args.access.kubeconfig)?,
        },
        signing_authority: signing_authority(&args)?,
        sign_token: args
            .service_account_private_key_file
            .as_deref()
            .map(|path| token_signer(&read(path)?))
            .transpose()?,
        clock: host::clock(),
        disabled,
        options,
        metrics: metrics.clone(),
    };
    let client = client_of(&args.access.kubeconfig, "kube-controller-manager")?;
    let of_account = accounts(&args, &client)?;
    let shutdown = host::shutdown_signal()?;
    let name = "kube-controller-manager";
    let serving = args
        .serving
        .start((name, 10257), &args.access.kubeconfig, move || metrics.text(), shutdown.clone())
        .await?;
    let work = async |leading: CancellationToken| {
        let informers = InformerFactory::new(client.clone(), leading.clone());
        Ok(controllers::run(config, controllers::Clients { informers, of_account }, leading).await?)
    };
    let lead = args.election.run(name, features, client.clone(), shutdown.clone(), work);
    let ((), ()) = tokio::try_join!(lead, say_ready("controller manager", client.clone(), shutdown.clone()))?;
    shutdown.cancel();
    serving.stopped().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_get_parts_of_each_family() {
        let check = |cluster: &str, given: [Option<u8>; 3], expected: Option<(u8, u8)>| {
            let cluster: Vec<_> = cluster.split(',').map(|text| host::cidr("", text).unwrap()).collect();
            assert_eq!(node_cidr_masks(&cluster, given).ok(), expected, "{cluster:?} {given:?}");
        };
        let (four, six, both) = ("10.42.0.0/16", "fd42::/56", "10.42.0.0/16,fd42::/56");
        check(four, [None; 3], Some((24, 64)));
        check("10.42.0.0/28,fd42::/96", [None; 3], Some((28, 96)));
        check(four, [Some(25), None, None], Some((25, 25)));
        check(six, [Some(72), None, None], Some((72, 72)));
        check(both, [Some(25), None, None], None);
        check(both, [None, Some(25), Some(72)], Some((25, 72)));
        check(four, [Some(25), Some(25), None], None);
        check(six, [None, Some(25), None], None);
        check(four, [None, None, Some(72)], None);
    }

    #[test]
    fn controllers_are_chosen_by_name() {
        let known = ["a", "b", "c"];
        for (asked, off) in
            [("*", ""), ("*,-b", "b"), ("a", "b c"), ("-a,*", "a"), ("-a", "a b c"), ("a,-a,*", "")]
        {
            let asked: Vec<_> = asked.split(',').map(str::to_owned).collect();
            assert_eq!(disabled_of(&asked, &known).unwrap().join(" "), off, "{asked:?}");
        }
        let error = disabled_of(&["-x".into()], &known).unwrap_err().to_string();
        assert_eq!(error, "\"x\" is not in the list of known controllers");
    }
}
