//! The command line: every command and flag. Commands that exist upstream have upstream's flags.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::{components, demo, image, reset, server};

/// Kubernetes as one binary.
///
/// `trierarch demo` shows a cluster at work; `trierarch server` runs one.
#[derive(Parser)]
#[command(name = "trierarch", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,

    /// How much to log: 0 what an operator needs, 2 more, 4 to debug, 6 everything
    #[arg(short, long = "v", global = true, value_name = "LEVEL", default_value_t = 0, display_order = 100)]
    pub verbosity: u8,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a cluster: control plane and node in one process
    Server(Server),
    /// Show a web application of three replicas behind a Service, on a cluster that is started if need be
    Demo(Demo),
    /// Stop all containers of a data directory and take every trace of it away
    Reset(Reset),
    /// Bring images onto this node, list them, remove them
    Image(Image),
    /// Run the API server alone
    Apiserver(Apiserver),
    /// Run the scheduler alone
    Scheduler(Scheduler),
    /// Run the controllers alone
    ControllerManager(ControllerManager),
    /// Run the kubelet alone
    Kubelet(Kubelet),
    /// Run the Service proxy alone
    Proxy(Proxy),
    /// Run the cluster DNS alone
    Dns(Dns),
    /// Run the container engine alone, for any CRI client
    CriServer(CriServer),
}

impl Command {
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Server(args) => server::run(args).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Reset(args) => reset::run(args).await,
            Command::Image(args) => image::run(args).await,
            Command::Apiserver(args) => components::apiserver(args).await,
            Command::Scheduler(args) => components::scheduler(args).await,
            Command::ControllerManager(args) => components::controller_manager(args).await,
            Command::Kubelet(args) => components::kubelet(args).await,
            Command::Proxy(args) => components::proxy(args).await,
            Command::Dns(args) => components::dns(args).await,
            Command::CriServer(args) => components::cri_server(args).await,
        }
    }
}

pub const DEFAULT_DATA_DIR: &str = "/var/lib/trierarch";

#[derive(Args, Clone)]
pub struct DataDir {
    /// Where everything that must outlive the process is kept
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA_DIR, global = true)]
    pub data_dir: PathBuf,
}

/// What the whole cluster agrees on.
#[derive(Args, Clone)]
pub struct ClusterNetwork {
    /// Addresses of pods
    #[arg(long, value_name = "CIDR", default_value = "10.42.0.0/16")]
    pub cluster_cidr: String,
    /// Addresses of Services
    #[arg(
        long,
        visible_alias = "service-cluster-ip-range",
        value_name = "CIDR",
        default_value = "10.43.0.0/16"
    )]
    pub service_cidr: String,
    /// The DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
}

#[derive(Args, Clone)]
#[command(args_override_self = true)]
pub struct Server {
    #[command(flatten)]
    pub data: DataDir,
    /// The address to listen on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// The port to listen on
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub secure_port: u16,
    /// The name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// The address of this node [default: the one that leads to the default gateway]
    #[arg(long, value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// Run the control plane only; needs no root
    #[arg(long)]
    pub no_node: bool,
    #[command(flatten)]
    pub network: ClusterNetwork,
    /// Where to write the administrator's kubeconfig, mode 0600 [default: <DATA_DIR>/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    pub write_kubeconfig: Option<PathBuf>,
    /// The CRI socket of another container engine, as unix:///path [default: the built-in engine]
    #[arg(long, value_name = "ENDPOINT")]
    pub container_runtime_endpoint: Option<String>,
    /// The cgroup under which pods' cgroups are made
    #[arg(long, value_name = "CGROUP", default_value = "/")]
    pub cgroup_root: String,
    /// A file with these flags in YAML: `secure-port: 7443`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Args)]
pub struct Demo {
    #[command(flatten)]
    pub data: DataDir,
    /// Remove what the demo made
    #[arg(long)]
    pub cleanup: bool,
    /// Load the demo's image and do no more
    #[arg(long, conflicts_with = "cleanup")]
    pub load_image_only: bool,
}

#[derive(Args)]
pub struct Reset {
    #[command(flatten)]
    pub data: DataDir,
    /// The cgroup under which pods' cgroups were made
    #[arg(long, value_name = "CGROUP", default_value = "/")]
    pub cgroup_root: String,
}

#[derive(Args)]
pub struct Image {
    #[command(flatten)]
    pub data: DataDir,
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Subcommand)]
pub enum ImageCommand {
    /// Load images from an OCI or Docker archive
    Import {
        /// The archive, as `docker save` or `skopeo copy … oci-archive:` write it; `-` reads standard input
        archive: PathBuf,
    },
    /// Pull an image from a registry
    Pull {
        /// The image, as in a pod: `registry.example/web:1.2`
        reference: String,
        /// Speak HTTP without TLS to the registry: for local ones
        #[arg(long)]
        plain_http: bool,
    },
    /// List the images of this node
    List,
    /// Remove an image from this node
    Remove {
        /// The image's name or its id
        reference: String,
    },
}

/// How a part that runs alone reaches the API server.
#[derive(Args, Clone)]
pub struct Access {
    /// The kubeconfig file that says how to reach the API server, and as whom
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: PathBuf,
}

/// Whether several of a kind elect one that works.
#[derive(Args, Clone)]
pub struct Election {
    /// Work only while holding the lease, so that several can stand by
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, default_missing_value = "true")]
    pub leader_elect: bool,
}

#[derive(Args)]
pub struct Apiserver {
    #[command(flatten)]
    pub data: DataDir,
    /// The address to listen on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// The port to listen on
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub secure_port: u16,
    /// The address that others reach this server at [default: the one that leads to the default gateway]
    #[arg(long, value_name = "IP")]
    pub advertise_address: Option<IpAddr>,
    #[command(flatten)]
    pub network: ClusterNetwork,
}

#[derive(Args)]
pub struct Scheduler {
    #[command(flatten)]
    pub access: Access,
    #[command(flatten)]
    pub election: Election,
}

#[derive(Args)]
pub struct ControllerManager {
    #[command(flatten)]
    pub access: Access,
    #[command(flatten)]
    pub election: Election,
    /// Addresses of pods, of which each node gets a part
    #[arg(long, value_name = "CIDR", default_value = "10.42.0.0/16")]
    pub cluster_cidr: String,
    /// The certificates that pods verify the API server by
    #[arg(long, value_name = "FILE")]
    pub root_ca_file: PathBuf,
}

#[derive(Args)]
pub struct Kubelet {
    #[command(flatten)]
    pub access: Access,
    /// The name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// The address of this node [default: the one that leads to the default gateway]
    #[arg(long, value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// Where volumes and other files of pods are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/kubelet")]
    pub root_dir: PathBuf,
    /// The CRI socket of the container engine
    #[arg(long, value_name = "ENDPOINT", default_value = "unix:///run/containerd/containerd.sock")]
    pub container_runtime_endpoint: String,
    /// A directory of manifests of static pods
    #[arg(long, value_name = "DIR")]
    pub pod_manifest_path: Option<PathBuf>,
    /// The addresses of the cluster DNS
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub cluster_dns: Vec<IpAddr>,
    /// The DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
    /// The cgroup under which pods' cgroups are made
    #[arg(long, value_name = "CGROUP", default_value = "/")]
    pub cgroup_root: String,
    /// The port of the kubelet's own server
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    pub port: u16,
    /// The certificates that clients of the kubelet's server are verified by
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: PathBuf,
    /// The certificate of the kubelet's server
    #[arg(long, value_name = "FILE")]
    pub tls_cert_file: PathBuf,
    /// The key of the kubelet's server
    #[arg(long, value_name = "FILE")]
    pub tls_private_key_file: PathBuf,
}

#[derive(Args)]
pub struct Proxy {
    #[command(flatten)]
    pub access: Access,
    /// The name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,
    /// The address of this node [default: the one that leads to the default gateway]
    #[arg(long, value_name = "IP")]
    pub node_ip: Option<IpAddr>,
    /// Addresses of pods; what comes from elsewhere is masqueraded
    #[arg(long, value_name = "CIDR", default_value = "10.42.0.0/16")]
    pub cluster_cidr: String,
}

#[derive(Args)]
pub struct Dns {
    #[command(flatten)]
    pub access: Access,
    /// The address to listen on
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// The port to listen on
    #[arg(long, value_name = "PORT", default_value_t = 53)]
    pub port: u16,
    /// The DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
}

#[derive(Args)]
pub struct CriServer {
    #[command(flatten)]
    pub data: DataDir,
    /// The socket to listen on [default: <DATA_DIR>/cri.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The OCI runtime to run containers with, as `runc` or `crun` [default: the built-in one]
    #[arg(long, value_name = "COMMAND")]
    pub oci_runtime: Option<PathBuf>,
    /// Addresses of Services, which pods reach through this node
    #[arg(long, value_name = "CIDR", default_value = "10.43.0.0/16")]
    pub service_cidr: String,
    /// Where CNI plugins are configured; the built-in network is used while there is no configuration
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Where CNI plugins are
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
}
