//! What is remembered of a cluster between two commands: a file in its folder.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::pki::write_atomically;

const FILE: &str = "cluster.json";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cluster {
    pub name: String,
    /// Tells its addresses and links from those of other clusters of this machine.
    pub slot: u8,
    pub nodes: Vec<NodeState>,
    #[serde(skip)]
    clusters: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeState {
    pub name: String,
    /// Its place in the cluster, from 1.
    pub number: u8,
    pub ip: IpAddr,
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
        Ok(Process { pid, began: began(pid).context("the process has ended")? })
    }

    pub fn runs(&self) -> bool {
        began(self.pid) == Some(self.began)
    }
}

/// When a process began, in ticks since the machine did; `None` when it is no more, or only waits to be reaped.
fn began(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    (fields.first() != Some(&"Z")).then(|| fields.get(19)?.parse().ok())?
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

    pub fn load_or_new(clusters: &Path, name: &str) -> anyhow::Result<Self> {
        if clusters.join(name).join(FILE).exists() {
            return Cluster::load(clusters, name);
        }
        let taken: Vec<u8> = Cluster::all(clusters)?.iter().map(|cluster| cluster.slot).collect();
        let free = (0..=u8::MAX).find(|slot| !taken.contains(slot));
        let slot = free.context("there are too many clusters on this machine")?;
        let cluster =
            Cluster { name: name.to_owned(), slot, nodes: Vec::new(), clusters: clusters.to_owned() };
        crate::parts::make_private(&cluster.folder())?;
        Ok(cluster)
    }

    /// Adds nodes until there are so many. A cluster never shrinks: its nodes may be at work.
    pub fn grow_to(&mut self, count: u8) {
        for number in (1..=count).skip(self.nodes.len()) {
            let name = format!("{}-{number}", self.name);
            let ip = IpAddr::V4(Ipv4Addr::new(10, 222, self.slot, number + 10));
            self.nodes.push(NodeState { name, number, ip, process: None });
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
        format!("tridev{}", self.slot)
    }

    /// The host's end of a node's link.
    pub fn port(&self, node: &NodeState) -> String {
        format!("tridev{}n{}", self.slot, node.number)
    }

    /// The host's address among the nodes.
    pub fn gateway(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 222, self.slot, 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clusters_are_told_apart_and_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = Cluster::load_or_new(dir.path(), "one").unwrap();
        one.grow_to(2);
        one.save().unwrap();
        let mut two = Cluster::load_or_new(dir.path(), "two").unwrap();
        two.grow_to(1);
        two.save().unwrap();
        assert_ne!(one.gateway(), two.gateway());
        assert_ne!(one.bridge(), two.bridge());
        assert_ne!(one.nodes[0].ip, one.nodes[1].ip);
        let mut again = Cluster::load_or_new(dir.path(), "one").unwrap();
        again.grow_to(1);
        assert_eq!(again.nodes, one.nodes, "a cluster never shrinks");
        again.grow_to(3);
        assert_eq!(again.nodes[2].name, "one-3");
        assert_eq!(Cluster::all(dir.path()).unwrap().len(), 2);
        assert!(Cluster::load(dir.path(), "three").unwrap_err().to_string().contains("there is no cluster"));
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
