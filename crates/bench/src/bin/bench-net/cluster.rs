//! The cluster that is measured, and the objects in it.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use api::Object;
use api::core::v1::{Namespace, Node, Service};
use api::discovery::v1::EndpointSlice;
use client::{Client, PatchType};
use linux::netns::NetNs;
use serde_json::{Value, json};

pub const NAMESPACE: &str = "bench-net";
/// Creates in flight.
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(120);
/// A cluster that uses less than a twentieth of a core for so long is at rest.
const REST: Duration = Duration::from_millis(500);

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime starts").block_on(work)
}

/// A development cluster in a namespace that stands for the host.
pub struct Cluster {
    binary: PathBuf,
    folder: tempfile::TempDir,
    name: String,
    pub host: NetNs,
    /// The namespace of the first node.
    pub node: NetNs,
    /// The DNS server of the second: news travel to it.
    pub dns: SocketAddr,
    kubeconfig: PathBuf,
}

impl Cluster {
    pub fn up(binary: &Path, nodes: u8) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("bench-net-").tempdir()?;
        let host = NetNs::anonymous().context("making a network namespace needs root")?;
        let name = format!("b{}", std::process::id());
        let binary = std::path::absolute(binary)?;
        let mut up = Command::new(&binary);
        up.args(["dev", "--name", &name, "--dev-dir"]).arg(folder.path());
        up.args(["up", &format!("--nodes={nodes}")]).stdout(Stdio::null());
        // The namespace is that of the thread that starts the process.
        let status = host.run(|| up.status())??;
        let kubeconfig = folder.path().join(&name).join(format!("{name}-1/admin.kubeconfig"));
        let node = NetNs::open(format!("/run/netns/trierarch-{name}-1"));
        let mut cluster = Cluster {
            node: node.context("the node has a namespace")?,
            dns: SocketAddr::from(([0, 0, 0, 0], 10053)),
            binary,
            folder,
            name,
            host,
            kubeconfig,
        };
        if !status.success() {
            bail!("dev up failed");
        }
        let second = format!("{}-2", cluster.name);
        let address = cluster.api(async |client| {
            let node: Node = client.get("", &second).await?;
            let addresses = node.status.and_then(|status| status.addresses).unwrap_or_default();
            let internal = addresses.iter().find(|address| address.type_ == "InternalIP");
            Ok(internal.context("the node has an address")?.address.parse()?)
        })?;
        cluster.dns.set_ip(address);
        cluster.api(async |client| {
            let namespace = json!({"metadata": {"name": NAMESPACE}});
            client.create(&Namespace::from_value(namespace)?).await?;
            let service = service("measured", crate::MEASURED);
            client.create(&Service::from_value(service)?).await?;
            let service = json!({"metadata": {"name": "headless", "namespace": NAMESPACE},
                "spec": {"clusterIP": "None", "ports": [{"port": 80}]}});
            client.create(&Service::from_value(service)?).await?;
            Ok(())
        })?;
        Ok(cluster)
    }

    /// Works with the API from where it can be reached.
    fn api<T: Send>(&self, work: impl AsyncFnOnce(Client) -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        self.host.run(|| {
            block_on(async {
                let config = client::kubeconfig::Kubeconfig::read(&self.kubeconfig)?.config(None)?;
                let transport = client::https::HttpsTransport::new(&config)?;
                work(Client::new(std::sync::Arc::new(transport), "bench-net")).await
            })
        })?
    }

    /// Adds Services with two endpoints each until there are so many.
    pub fn fill(&self, count: usize) -> anyhow::Result<()> {
        self.api(async |client| {
            let present = client.list::<Service>(Some(NAMESPACE), &Default::default()).await?;
            let have = present.items.len().saturating_sub(2);
            let numbers: Vec<usize> = (have..count).collect();
            for chunk in numbers.chunks(AT_ONCE) {
                futures::future::try_join_all(chunk.iter().map(|number| add(&client, *number))).await?;
            }
            Ok(())
        })?;
        self.until_at_rest()
    }

    /// Waits until the cluster has dealt with what came last: what is measured next begins on idle cores.
    fn until_at_rest(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut before = self.processor_time()?;
        loop {
            std::thread::sleep(REST);
            let after = self.processor_time()?;
            if after.saturating_sub(before) * 100 < REST * 5 {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!("the cluster is not at rest after {} s", PATIENCE.as_secs());
            }
            before = after;
        }
    }

    /// What the cluster's processes have used so far: those that name its folder.
    fn processor_time(&self) -> anyhow::Result<Duration> {
        let folder = self.folder.path().as_os_str().as_encoded_bytes();
        let mut ticks = 0;
        for process in std::fs::read_dir("/proc")? {
            let path = process?.path();
            let (Ok(words), Ok(stat)) =
                (std::fs::read(path.join("cmdline")), std::fs::read_to_string(path.join("stat")))
            else {
                continue;
            };
            if words.windows(folder.len()).any(|part| part == folder) {
                // The name before the last parenthesis may hold anything; utime and stime are fields 14 and 15.
                let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
                let used = fields.split_whitespace().skip(11).take(2);
                ticks += used.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>();
            }
        }
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// Makes a Service of this address lead there.
    pub fn lead_to(&self, _service: &str, to: SocketAddr) -> anyhow::Result<()> {
        self.put_slice("measured", &[to.ip()], to.port())
    }

    /// Gives the headless Service this one endpoint.
    pub fn headless(&self, ip: IpAddr) -> anyhow::Result<()> {
        self.put_slice("headless", &[ip], 80)
    }

    fn put_slice(&self, service: &str, ips: &[IpAddr], port: u16) -> anyhow::Result<()> {
        let wanted = slice(service, ips, port);
        self.api(async |client| {
            let object = EndpointSlice::from_value(wanted.clone())?;
            match client.patch::<EndpointSlice>(NAMESPACE, service, None, PatchType::Merge, &wanted).await {
                Err(error) if error.is_not_found() => client.create(&object).await.map(drop)?,
                patched => patched.map(drop)?,
            }
            Ok(())
        })
    }

    /// A proxy alone in the namespace of the clients, once its rules are in force.
    pub fn proxy(&self) -> anyhow::Result<Proxy> {
        let mut command = Command::new(&self.binary);
        command.arg("proxy").arg("--kubeconfig").arg(&self.kubeconfig);
        // It passes for that of a node, since the proxy of no node is not healthy.
        command.arg(format!("--hostname-override={}-1", self.name));
        command.arg("--healthz-bind-address=127.0.0.1:10256");
        let child = self.host.run(|| command.spawn())?.context("cannot start a proxy")?;
        let proxy = Proxy { child };
        self.host.run(|| {
            block_on(async {
                let netlink = linux::netlink::Netlink::open()?;
                let lo = netlink.link("lo").await?.context("there is lo")?;
                anyhow::Ok(netlink.set_up(lo.index).await?)
            })
        })??;
        let health = SocketAddr::from(([127, 0, 0, 1], 10256));
        let begun = Instant::now();
        while !self.host.run(|| crate::traffic::is_healthy(health))? {
            if begun.elapsed() > PATIENCE {
                bail!("the proxy is not healthy after {} s", PATIENCE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(proxy)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let mut down = Command::new(&self.binary);
        down.args(["dev", "--name", &self.name, "--dev-dir"]).arg(self.folder.path()).arg("down");
        down.stdout(Stdio::null());
        // Nothing can be done about a failure here but to say so.
        if !matches!(self.host.run(|| down.status()), Ok(Ok(status)) if status.success()) {
            eprintln!("bench-net: the cluster {} is left behind", self.name);
        }
    }
}

async fn add(client: &Client, number: usize) -> anyhow::Result<()> {
    let name = format!("s{number}");
    let ip = format!("10.43.{}.{}", 1 + number / 250, 1 + number % 250);
    client.create(&Service::from_value(service(&name, &ip))?).await?;
    let ends = [0, 1].map(|at| IpAddr::from([10, 99, (number / 100) as u8, (number % 100 * 2 + at) as u8]));
    client.create(&EndpointSlice::from_value(slice(&name, &ends, 8080))?).await?;
    Ok(())
}

fn service(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"name": "web", "port": crate::PORT, "protocol": "TCP"}]},
    })
}

fn slice(service: &str, ips: &[IpAddr], port: u16) -> Value {
    let endpoint = |ip: &IpAddr| json!({"addresses": [ip], "conditions": {"ready": true}});
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": service, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "ports": [{"name": "web", "port": port, "protocol": "TCP"}],
        "endpoints": ips.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// A proxy that runs.
pub struct Proxy {
    child: Child,
}

impl Proxy {
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("status has VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    pub fn stop(self) {}
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself; what was measured tells.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
