//! What is remembered of a cluster between two commands: a file in its folder.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::ValueEnum;
use linux::process::start_ticks;
use serde::{Deserialize, Serialize};

use crate::cli::NetworkBackend;
use crate::pki::write_atomically;

const FILE: &str = "cluster.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    /// Tells its addresses and links from those of other clusters of this machine.
    pub slot: u8,
    pub nodes: Vec<NodeState>,
    #[serde(default)]
    pub ip_family: IpFamily,
    #[serde(default)]
    pub network_backend: NetworkBackend,
    #[serde(skip)]
    clusters: PathBuf,
}

/// Which addresses the nodes, pods and Services of a cluster have.
///
/// Upstream: kind's networking.ipFamily
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IpFamily {
    #[default]
    Ipv4,
    Ipv6,
    /// Of both families, IPv4 first
    Dual,
}

impl IpFamily {
    /// What is of IPv4, what is of IPv6, or both.
    fn of<T>(self, ipv4: T, ipv6: T) -> Vec<T> {
        match self {
            IpFamily::Ipv4 => vec![ipv4],
            IpFamily::Ipv6 => vec![ipv6],
            IpFamily::Dual => vec![ipv4, ipv6],
        }
    }

    pub fn cluster_cidrs(self) -> String {
        self.of("10.42.0.0/16", "fd42::/56").join(",")
    }

    pub fn service_cidrs(self) -> String {
        self.of("10.43.0.0/16", "fd43::/112").join(",")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    pub name: String,
    /// Its place in the cluster, from 1.
    pub number: u8,
    /// One of each family that the cluster has.
    pub ips: Vec<IpAddr>,
    pub process: Option<Process>,
}

/// A process, told from another one that got its id later by when it began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    pub began: u64,
}

impl Process {
    pub fn of(pid: i32) -> anyhow::Result<Self> {
        Ok(Process { pid, began: start_ticks(pid).context("the process has ended")? })
    }

    pub fn runs(&self) -> bool {
        start_ticks(self.pid) == Some(self.began)
    }
}

impl NodeState {
    pub fn runs(&self) -> bool {
        self.process.as_ref().is_some_and(Process::runs)
    }
}

/// A name of a cluster is part of names of nodes, and of files.
pub fn name(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if plain && !text.is_empty() && text.len() <= 32 && !text.starts_with('-') && !text.ends_with('-') {
        Ok(text.to_owned())
    } else {
        Err("a name consists of at most 32 of a-z, 0-9 and -".to_owned())
    }
}

fn bridge_of(slot: u8) -> String {
    format!("tridev{slot}")
}

impl Cluster {
    pub fn load(clusters: &Path, name: &str) -> anyhow::Result<Self> {
        let file = clusters.join(name).join(FILE);
        let bytes = match std::fs::read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("there is no cluster {name:?}; `trierarch dev up --name {name}` makes one")
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        };
        let cluster: Cluster =
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", file.display()))?;
        Ok(Cluster { clusters: clusters.to_owned(), ..cluster })
    }

    pub fn all(clusters: &Path) -> anyhow::Result<Vec<Self>> {
        let mut names: Vec<String> = match std::fs::read_dir(clusters) {
            Ok(entries) => {
                entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
            }
            Err(_) => Vec::new(),
        };
        names.retain(|name| clusters.join(name).join(FILE).exists());
        names.sort();
        names.iter().map(|name| Cluster::load(clusters, name)).collect()
    }

    /// The cluster of the name, or a new one. Its network is apart from those of the folder's clusters, running or
    /// not, and of all others that have links on this machine.
    pub fn load_or_new(clusters: &Path, name: &str, links: &[String]) -> anyhow::Result<Self> {
        if clusters.join(name).join(FILE).exists() {
            return Cluster::load(clusters, name);
        }
        let taken: Vec<u8> = Cluster::all(clusters)?.iter().map(|cluster| cluster.slot).collect();
        let is_free = |slot: &u8| !taken.contains(slot) && !links.contains(&bridge_of(*slot));
        let free = (0..=u8::MAX).find(is_free);
        let slot = free.context("there are too many clusters on this machine")?;
        let cluster = Cluster {
            name: name.to_owned(),
            slot,
            nodes: Vec::new(),
            ip_family: IpFamily::default(),
            network_backend: NetworkBackend::default(),
            clusters: clusters.to_owned(),
        };
        crate::parts::make_private(&cluster.folder())?;
        Ok(cluster)
    }

    /// Takes over what a cluster is made with. One that is made already stays as it is, and says so.
    pub fn settle(
        &mut self,
        ip_family: Option<IpFamily>,
        network_backend: Option<NetworkBackend>,
    ) -> anyhow::Result<()> {
        let family = ip_family.unwrap_or(self.ip_family);
        let backend = network_backend.unwrap_or(self.network_backend);
        if !self.nodes.is_empty() && (family, backend) != (self.ip_family, self.network_backend) {
            bail!("{} was made with other addresses or another backend; `dev down` it first", self.name);
        }
        (self.ip_family, self.network_backend) = (family, backend);
        Ok(())
    }

    /// Adds nodes until there are so many. A cluster never shrinks: its nodes may be at work.
    pub fn grow_to(&mut self, count: u8) {
        for number in (1..=count).skip(self.nodes.len()) {
            let name = format!("{}-{number}", self.name);
            let ips = self.addresses(number + 10);
            self.nodes.push(NodeState { name, number, ips, process: None });
        }
    }

    pub fn save(&self) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        write_atomically(&self.folder().join(FILE), text.as_bytes(), 0o600)
    }

    pub fn node(&self, name: &str) -> anyhow::Result<&NodeState> {
        let found = self.nodes.iter().find(|node| node.name == name);
        found.with_context(|| format!("{} has no node {name:?}", self.name))
    }

    pub fn node_mut(&mut self, name: &str) -> anyhow::Result<&mut NodeState> {
        let cluster = self.name.clone();
        let found = self.nodes.iter_mut().find(|node| node.name == name);
        found.with_context(|| format!("{cluster} has no node {name:?}"))
    }

    pub fn folder(&self) -> PathBuf {
        self.clusters.join(&self.name)
    }

    pub fn data_dir(&self, node: &NodeState) -> PathBuf {
        self.folder().join(&node.name)
    }

    pub fn log(&self, node: &NodeState) -> PathBuf {
        self.folder().join(format!("{}.log", node.name))
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder().join(format!("{}-1", self.name)).join("admin.kubeconfig")
    }

    /// Below which all cgroups of the cluster are.
    pub fn cgroup_parent(&self) -> PathBuf {
        Path::new("/trierarch-dev").join(&self.name)
    }

    pub fn cgroup(&self, node: &NodeState) -> PathBuf {
        self.cgroup_parent().join(&node.name)
    }

    pub fn namespace(&self, node: &NodeState) -> PathBuf {
        Path::new("/run/netns").join(format!("trierarch-{}", node.name))
    }

    /// Names of links end at 15 bytes.
    pub fn bridge(&self) -> String {
        bridge_of(self.slot)
    }

    /// The host's end of a node's link.
    pub fn port(&self, node: &NodeState) -> String {
        format!("tridev{}n{}", self.slot, node.number)
    }

    /// The host's addresses among the nodes.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.addresses(1)
    }

    /// The addresses of a place on the cluster's link: in 10.222.SLOT.0/24 and fd00:10:222:SLOT::/64.
    fn addresses(&self, place: u8) -> Vec<IpAddr> {
        let ipv4 = Ipv4Addr::new(10, 222, self.slot, place);
        let ipv6 = Ipv6Addr::new(0xfd00, 0x10, 0x222, self.slot.into(), 0, 0, 0, place.into());
        self.ip_family.of(ipv4.into(), ipv6.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_told_apart_and_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = Cluster::load_or_new(dir.path(), "one", &[]).unwrap();
        one.grow_to(2);
        one.save().unwrap();
        let mut two = Cluster::load_or_new(dir.path(), "two", &[]).unwrap();
        two.grow_to(1);
        two.save().unwrap();
        assert_ne!(one.gateways(), two.gateways());
        assert_ne!(one.bridge(), two.bridge());
        assert_ne!(one.nodes[0].ips, one.nodes[1].ips);
        one.ip_family = IpFamily::Dual;
        assert_eq!(one.gateways().len(), 2);
        one.ip_family = IpFamily::Ipv4;
        let mut again = Cluster::load_or_new(dir.path(), "one", &[]).unwrap();
        again.grow_to(1);
        assert_eq!(again.nodes, one.nodes, "a cluster never shrinks");
        again.grow_to(3);
        assert_eq!(again.nodes[2].name, "one-3");
        assert_eq!(Cluster::all(dir.path()).unwrap().len(), 2);
        assert!(Cluster::load(dir.path(), "three").unwrap_err().to_string().contains("there is no cluster"));
        let elsewhere = tempfile::tempdir().unwrap();
        let other = Cluster::load_or_new(elsewhere.path(), "one", &[one.bridge(), "eth0".into()]).unwrap();
        assert_ne!(other.bridge(), one.bridge(), "folders do not know each other");
        let mut largest = two.clone();
        (largest.slot, largest.nodes[0].number) = (255, 200);
        assert!(largest.port(&largest.nodes[0]).len() <= 15);
    }

    #[test]
    fn a_process_is_itself_only() {
        let own = Process::of(std::process::id().try_into().unwrap()).unwrap();
        assert!(own.runs());
        assert!(!Process { began: own.began + 1, ..own }.runs());
    }

    #[test]
    fn names_are_of_nodes_and_files() {
        for (text, good) in
            [("dev", true), ("a-1", true), ("", false), ("A", false), ("../x", false), ("-a", false)]
        {
            assert_eq!(name(text).is_ok(), good, "{text}");
        }
    }
}
