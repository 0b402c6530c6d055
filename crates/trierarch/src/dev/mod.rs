//! `trierarch dev`: a cluster of several nodes on this machine, for tests and for trying things.
//!
//! A node is what a machine would be: a network namespace with an address of its own on a bridge that all nodes
//! share ([`network`]), a mount namespace, a cgroup and a folder ([`node`]). The first runs `server`, the others
//! join it as `agent`s, by the same token and certificates as any machine. [`state`] is what is remembered of a
//! cluster between two commands.
//!
//! What always holds: everything of a cluster is in its namespaces, below its cgroup and below its folder, so that
//! `down` takes it away whatever state it is in.

mod network;
mod node;
mod state;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use api::core::v1::Node;
use clap::{Args, Subcommand, ValueEnum};
use client::kubeconfig::Kubeconfig;
use client::{Client, ListOptions, WatchEvent};

pub use node::main as node_main;

use crate::cli::NetworkBackend;
use crate::join::token::{Join, Token};
use crate::{components, host, image};
use state::{Cluster, IpFamily};

const PATIENCE: Duration = Duration::from_secs(60);
/// How often to look whether a server that was just started has written its kubeconfig and answers.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Args)]
pub struct Dev {
    /// Where clusters are kept
    #[arg(long, value_name = "DIR", default_value = "/var/lib/trierarch-dev", global = true)]
    pub dev_dir: PathBuf,
    /// The name of the cluster
    #[arg(long, value_name = "NAME", default_value = "dev", global = true, value_parser = state::name)]
    pub name: String,
    #[command(subcommand)]
    pub command: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Start a cluster, or what of it is stopped
    Up {
        /// How many nodes it has; the first runs the control plane
        #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=200))]
        nodes: u8,
        /// Which addresses nodes, pods and Services have; a cluster keeps what it was made with [default: ipv4]
        #[arg(long, value_enum, value_name = "FAMILY")]
        ip_family: Option<IpFamily>,
        /// How packets reach pods of other nodes; a cluster keeps what it was made with [default: vxlan]
        #[arg(long, value_enum, value_name = "BACKEND")]
        network_backend: Option<NetworkBackend>,
    },
    /// Stop a cluster and take every trace of it away
    Down,
    /// List the clusters
    List,
    /// Print the kubeconfig of a cluster
    Kubeconfig,
    /// Load an image into every node of a cluster
    Load {
        /// An OCI or Docker archive, or the name of an image that docker or podman have on this machine
        image: String,
    },
    /// Stop a node at once, with all that runs on it; `up` starts it again
    StopNode {
        /// The node's name
        node: String,
    },
    /// Take a node off the network
    CutNode {
        /// The node's name
        node: String,
    },
    /// Put a node that was cut off back on the network
    HealNode {
        /// The node's name
        node: String,
    },
}

pub async fn run(args: Dev) -> anyhow::Result<()> {
    let clusters = std::path::absolute(&args.dev_dir)?;
    let existing = || Cluster::load(&clusters, &args.name);
    match args.command {
        Verb::Up { nodes, ip_family, network_backend } => {
            let mut cluster = Cluster::load_or_new(&clusters, &args.name, &network::links().await?)?;
            cluster.settle(ip_family, network_backend)?;
            return up(cluster, nodes).await;
        }
        Verb::Down => return down(existing()?).await,
        Verb::List => list(&clusters)?,
        Verb::Kubeconfig => print!("{}", crate::certificates::read(&existing()?.kubeconfig())?),
        Verb::Load { image } => load(&existing()?, &image).await?,
        Verb::StopNode { node } => {
            let mut cluster = existing()?;
            node::stop(&cluster, cluster.node(&node)?)?;
            cluster.node_mut(&node)?.process = None;
            cluster.save()?;
        }
        Verb::CutNode { node } => {
            let cluster = existing()?;
            network::cut(&cluster, cluster.node(&node)?).await?;
        }
        Verb::HealNode { node } => {
            let cluster = existing()?;
            network::heal(&cluster, cluster.node(&node)?).await?;
        }
    }
    Ok(())
}

async fn up(mut cluster: Cluster, count: u8) -> anyhow::Result<()> {
    host::check_can_run_containers("")?;
    let begun = Instant::now();
    cluster.grow_to(count);
    cluster.save()?;
    network::make(&cluster).await?;
    let first = cluster.nodes.first().context("a cluster has a node")?.clone();
    let arguments = server_arguments(&cluster, &first);
    start(&mut cluster, &first.name, &arguments)?;
    let client = api_of(&cluster).await?;
    let waiting: Vec<state::NodeState> = cluster.nodes.iter().skip(1).cloned().collect();
    if waiting.iter().any(|node| !node.runs()) {
        let server = Kubeconfig::read(&cluster.kubeconfig())?.config(None)?;
        let client::https::Trust::Roots(authority) = &server.trust else {
            bail!("the cluster has no authority")
        };
        let join = Join { token: Token::new(), pin: crate::join::Pin::of_pem(authority)? };
        let until = host::clock().now() + Duration::from_secs(60 * 60);
        join.token.store(&client, Some(until), "trierarch dev").await?;
        for node in &waiting {
            let arguments = agent_arguments(&cluster, node, &server.server, &join);
            start(&mut cluster, &node.name, &arguments)?;
        }
    }
    all_ready(&client, &cluster).await?;
    let (nodes, seconds) = (cluster.nodes.len(), begun.elapsed().as_secs_f32());
    println!("{} is up: {nodes} nodes Ready in {seconds:.1} s", cluster.name);
    println!("use it by: export KUBECONFIG={}", cluster.kubeconfig().display());
    Ok(())
}

/// Starts a node unless it runs, and remembers its process at once: whatever fails later, `down` finds it.
fn start(cluster: &mut Cluster, name: &str, arguments: &[String]) -> anyhow::Result<()> {
    if cluster.node(name)?.runs() {
        return Ok(());
    }
    let process = node::start(cluster, cluster.node(name)?, arguments)?;
    cluster.node_mut(name)?.process = Some(process);
    cluster.save()
}

fn common_arguments(cluster: &Cluster, node: &state::NodeState) -> Vec<String> {
    vec![
        format!("--data-dir={}", cluster.data_dir(node).display()),
        format!("--node-name={}", node.name),
        format!("--node-ip={}", node.ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")),
        format!("--cgroup-root={}", cluster.cgroup(node).display()),
    ]
}

fn server_arguments(cluster: &Cluster, node: &state::NodeState) -> Vec<String> {
    let backend = cluster.network_backend.to_possible_value().map(|value| value.get_name().to_owned());
    let own = vec![
        "server".to_owned(),
        format!("--cluster-cidr={}", cluster.ip_family.cluster_cidrs()),
        format!("--service-cidr={}", cluster.ip_family.service_cidrs()),
        format!("--network-backend={}", backend.unwrap_or_default()),
    ];
    [own, common_arguments(cluster, node)].concat()
}

fn agent_arguments(cluster: &Cluster, node: &state::NodeState, server: &str, join: &Join) -> Vec<String> {
    let own = vec!["agent".to_owned(), format!("--server={server}"), format!("--token={join}")];
    [own, common_arguments(cluster, node)].concat()
}

/// The API of a server that may just be starting.
async fn api_of(cluster: &Cluster) -> anyhow::Result<Client> {
    let reach = async {
        loop {
            if let Ok(client) = components::client_of(&cluster.kubeconfig(), "trierarch-dev")
                && client.raw(http::Method::GET, "/readyz", None).await.is_ok()
            {
                return Ok(client);
            }
            if !cluster.nodes.first().is_some_and(state::NodeState::runs) {
                bail!("the server ended; its log is {}", cluster.log(&cluster.nodes[0]).display());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(PATIENCE, reach).await.context("the API server does not answer")?
}

/// Waits until every node is Ready by the word of its kubelet.
async fn all_ready(client: &Client, cluster: &Cluster) -> anyhow::Result<()> {
    let ready = |node: &Node| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let mut missing: std::collections::BTreeSet<&str> =
        cluster.nodes.iter().map(|node| node.name.as_str()).collect();
    let watch = async {
        let mut watch = client.watch::<Node>(None, &ListOptions::default()).await?;
        while !missing.is_empty() {
            let event = watch.next().await.context("the watch of nodes ended")??;
            if let WatchEvent::Added(node) | WatchEvent::Modified(node) = event
                && ready(&node)
            {
                missing.remove(api::Object::name(&node));
            }
        }
        anyhow::Ok(())
    };
    match tokio::time::timeout(PATIENCE, watch).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let names: Vec<&str> = missing.into_iter().collect();
            bail!(
                "not Ready after {} s: {}; logs are in {}",
                PATIENCE.as_secs(),
                names.join(", "),
                cluster.folder().display()
            )
        }
    }
}

async fn down(cluster: Cluster) -> anyhow::Result<()> {
    host::check_can_run_containers("")?;
    for node in &cluster.nodes {
        node::stop(&cluster, node)?;
    }
    network::remove(&cluster).await?;
    node::remove_cgroup(&cluster)?;
    let folder = cluster.folder();
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    println!("{} is gone", cluster.name);
    Ok(())
}

fn list(clusters: &Path) -> anyhow::Result<()> {
    println!("{:20}  {:>7}  API", "NAME", "RUNNING");
    for cluster in Cluster::all(clusters)? {
        let running = cluster.nodes.iter().filter(|node| node.runs()).count();
        let of = format!("{running}/{}", cluster.nodes.len());
        let address = cluster.nodes.first().and_then(|node| node.ips.first());
        let api = address.map(|ip| format!("https://{}", std::net::SocketAddr::new(*ip, 6443)));
        println!("{:20}  {of:>7}  {}", cluster.name, api.unwrap_or_default());
    }
    Ok(())
}

async fn load(cluster: &Cluster, name: &str) -> anyhow::Result<()> {
    let exported;
    let archive = if Path::new(name).is_file() {
        Path::new(name)
    } else {
        exported = export(cluster, name)?;
        &exported
    };
    let mut loaded = Ok(Vec::new());
    for node in &cluster.nodes {
        let socket = image::socket(&cluster.data_dir(node));
        loaded =
            image::import(&socket, archive).await.with_context(|| format!("cannot load into {}", node.name));
        if loaded.is_err() {
            break;
        }
    }
    if archive != Path::new(name) {
        std::fs::remove_file(archive)?;
    }
    loaded?.iter().for_each(|image| println!("loaded {image}"));
    Ok(())
}

/// An image of another engine of this machine, as an archive.
fn export(cluster: &Cluster, name: &str) -> anyhow::Result<PathBuf> {
    let archive = cluster.folder().join(format!("load-{}.tar", uuid::Uuid::new_v4()));
    for engine in ["docker", "podman"] {
        let mut save = std::process::Command::new(engine);
        save.args(["save", "--output"]).arg(&archive).arg(name);
        match save.output() {
            Ok(output) if output.status.success() => return Ok(archive),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                bail!("{engine} cannot save {name:?}: {said}");
            }
            Err(_) => {}
        }
    }
    bail!("{name:?} is no file, and neither docker nor podman is here to ask for an image of that name")
}
