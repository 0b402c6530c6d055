//! The command line: every command and flag. Commands that exist upstream have upstream's flags.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::components::{
    ServingFlags, apiserver, controller_manager, cri_server, dns, kubelet, proxy, scheduler,
};
use crate::join::{agent, token};
use crate::{demo, dev, image, reset, server};

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
#[expect(clippy::large_enum_variant, reason = "a process has one command")]
pub enum Command {
    /// Run a cluster: control plane and node in one process
    Server(Server),
    /// Make this machine a node of a cluster that runs elsewhere
    Agent(agent::Agent),
    /// Make, list and delete the tokens that machines join with
    Token(token::Command),
    /// Run clusters of several nodes on this machine
    Dev(dev::Dev),
    /// Show a web application of three replicas behind a Service, on a cluster that is started if need be
    Demo(Demo),
    /// Stop all containers of a data directory and take every trace of it away
    Reset(Reset),
    /// Bring images onto this node, list them, remove them
    Image(Image),
    /// Run the API server alone
    Apiserver(apiserver::Apiserver),
    /// Run the scheduler alone
    Scheduler(scheduler::Scheduler),
    /// Run the controllers alone
    ControllerManager(controller_manager::ControllerManager),
    /// Run the kubelet alone
    Kubelet(kubelet::Kubelet),
    /// Run the Service proxy alone
    Proxy(proxy::Proxy),
    /// Run the cluster DNS alone
    Dns(dns::Dns),
    /// Run the container engine alone, for any CRI client
    CriServer(cri_server::CriServer),
}

impl Command {
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Command::Server(args) => server::run(args).await,
            Command::Agent(args) => agent::run(args).await,
            Command::Token(args) => token::run(args).await,
            Command::Dev(args) => dev::run(args).await,
            Command::Demo(args) => demo::run(args).await,
            Command::Reset(args) => reset::run(args).await,
            Command::Image(args) => image::run(args).await,
            Command::Apiserver(args) => apiserver::run(args).await,
            Command::Scheduler(args) => scheduler::run(args).await,
            Command::ControllerManager(args) => controller_manager::run(args).await,
            Command::Kubelet(args) => kubelet::run(args).await,
            Command::Proxy(args) => proxy::run(args).await,
            Command::Dns(args) => dns::run(args).await,
            Command::CriServer(args) => cri_server::run(args).await,
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
    /// Addresses of pods: one range, or one of each family
    #[arg(long, value_name = "CIDR", value_delimiter = ',', default_value = "10.42.0.0/16")]
    pub cluster_cidr: Vec<String>,
    /// Addresses of Services: one range, or one of each family, that of the first being the usual one
    #[arg(
        long,
        visible_alias = "service-cluster-ip-range",
        value_name = "CIDR",
        value_delimiter = ',',
        default_value = "10.43.0.0/16"
    )]
    pub service_cidr: Vec<String>,
    /// How packets reach pods of other nodes
    #[arg(long, value_enum, value_name = "BACKEND", default_value_t)]
    pub network_backend: NetworkBackend,
    /// The DNS domain of the cluster
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,
}

/// How packets reach the pods of other nodes. All nodes of a cluster have the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkBackend {
    /// Plain routes where nodes share a link, VXLAN to all others
    #[default]
    Vxlan,
    /// VXLAN to every node
    VxlanOnly,
    /// Plain routes only
    HostGw,
    /// Nothing: somebody else sees to it
    None,
}

impl From<NetworkBackend> for ::proxy::routes::Backend {
    fn from(backend: NetworkBackend) -> Self {
        match backend {
            NetworkBackend::Vxlan => Self::Vxlan,
            NetworkBackend::VxlanOnly => Self::VxlanOnly,
            NetworkBackend::HostGw => Self::HostGw,
            NetworkBackend::None => Self::None,
        }
    }
}

/// What the machine is as a node.
#[derive(Args, Clone)]
pub struct Node {
    /// The name of this node [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// The addresses of this node, at most one of each family [default: those that lead to the default gateways]
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    pub node_ip: Vec<IpAddr>,
    /// Labels of the Node, as it is made
    #[arg(long, value_name = "KEY=VALUE", value_delimiter = ',')]
    pub node_labels: Vec<String>,
    /// Taints of the Node, as it is made
    #[arg(long, value_name = "KEY=VALUE:EFFECT", value_delimiter = ',')]
    pub register_with_taints: Vec<String>,
    /// The CRI socket of another container engine, as unix:///path [default: the built-in engine]
    #[arg(long, value_name = "ENDPOINT")]
    pub container_runtime_endpoint: Option<String>,
    /// The cgroup under which pods' cgroups are made
    #[arg(long, value_name = "CGROUP", default_value = "/")]
    pub cgroup_root: String,
}

#[derive(Args, Clone)]
#[command(args_override_self = true)]
pub struct Server {
    #[command(flatten)]
    pub data: DataDir,
    /// The address to listen on [default: all of this machine]
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<IpAddr>,
    /// The port to listen on
    #[arg(long, value_name = "PORT", default_value_t = 6443)]
    pub secure_port: u16,
    #[command(flatten)]
    pub node: Node,
    /// Run the control plane only; needs no root
    #[arg(long)]
    pub no_node: bool,
    #[command(flatten)]
    pub network: ClusterNetwork,
    /// Where to write the administrator's kubeconfig, mode 0600 [default: <DATA_DIR>/admin.kubeconfig]
    #[arg(long, value_name = "FILE")]
    pub write_kubeconfig: Option<PathBuf>,
    /// A file with an EncryptionConfiguration: what of the store is encrypted, and by which keys
    #[arg(long, value_name = "FILE")]
    pub encryption_provider_config: Option<PathBuf>,
    /// Which controllers run: `*` for all, `foo` for one, `-foo` for all but one
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "*",
        allow_hyphen_values = true
    )]
    pub controllers: Vec<String>,
    #[command(flatten)]
    pub requests: ServingFlags,
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
    /// The --root-dir of a kubelet that ran alone
    #[arg(long, value_name = "DIR")]
    pub root_dir: Option<PathBuf>,
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
