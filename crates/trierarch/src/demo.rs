//! `trierarch demo`: a web application of three replicas behind a Service, shown as it comes up and answers.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use api::Object;
use api::apps::v1::Deployment;
use api::core::v1::{Node, Pod, Service};
use client::{Client, DeleteOptions, ListOptions, WatchEvent};
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep, timeout};

use crate::{bundle, cli, image};

const NAMESPACE: &str = "default";
const NAME: &str = "demo";
const REPLICAS: usize = 3;
/// How long a server may take to start, and the rollout to finish.
const PATIENCE: Duration = Duration::from_secs(120);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

pub async fn run(args: cli::Demo) -> anyhow::Result<()> {
    let data_dir = std::path::absolute(&args.data.data_dir)?;
    let kubeconfig = data_dir.join("admin.kubeconfig");
    if args.cleanup {
        let client = connect(&kubeconfig).await.context("no server answers at this data directory")?;
        return cleanup(&client, &data_dir).await;
    }
    let client = match connect(&kubeconfig).await {
        Ok(client) => client,
        Err(_) => start_server(&data_dir, &kubeconfig).await?,
    };
    let node = ready_node(&client).await?;
    println!("node {} is Ready", node.name());
    image::import_bytes(&image::socket(&data_dir), bundle::demo_image()?).await?;
    println!("image {} is loaded", bundle::DEMO_IMAGE);
    if args.load_image_only {
        return Ok(());
    }
    create(&client, &deployment()?).await?;
    let service = create(&client, &service()?).await?;
    rollout(&client).await?;
    for (what, address) in addresses(&client, &service, &node).await? {
        ask_until_all_answered(&what, address).await?;
    }
    println!("\nThe cluster goes on running. Look around:");
    println!("  export KUBECONFIG={}", kubeconfig.display());
    println!("  kubectl get pods -o wide");
    println!("  kubectl scale deployment demo --replicas 5");
    println!("  kubectl logs -f deployment/demo");
    let here = if data_dir == Path::new(cli::DEFAULT_DATA_DIR) {
        String::new()
    } else {
        format!(" --data-dir {}", data_dir.display())
    };
    println!("Remove the application with `trierarch demo --cleanup{here}`,");
    if pid_file(&data_dir).exists() {
        println!("stop the server with `kill $(cat {})`,", pid_file(&data_dir).display());
    }
    println!("and, once the server is stopped, take every trace away with `trierarch reset{here}`.");
    Ok(())
}

fn pid_file(data_dir: &Path) -> std::path::PathBuf {
    data_dir.join("demo-server.pid")
}

/// A client of the server that this kubeconfig leads to, if it answers.
async fn connect(kubeconfig: &Path) -> anyhow::Result<Client> {
    let client = crate::components::client_of(kubeconfig, "trierarch-demo")?;
    timeout(REQUEST_TIMEOUT, client.raw(http::Method::GET, "/readyz", None)).await??;
    Ok(client)
}

/// Starts a server that outlives this process.
async fn start_server(data_dir: &Path, kubeconfig: &Path) -> anyhow::Result<Client> {
    crate::host::check_can_run_containers("")?;
    std::fs::create_dir_all(data_dir)?;
    let log = data_dir.join("demo-server.log");
    println!("starting a server; its log is {}", log.display());
    let output = std::fs::File::create(&log)?;
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg("server").arg("--data-dir").arg(data_dir);
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
    let mut server = command.spawn()?;
    std::fs::write(pid_file(data_dir), format!("{}\n", server.id()))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = server.try_wait()? {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            let last = said.trim().lines().last().unwrap_or_default();
            bail!("the server ended ({status}): {last}");
        }
        match connect(kubeconfig).await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context("the server does not answer"));
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// The first node, once it is Ready.
async fn ready_node(client: &Client) -> anyhow::Result<Node> {
    let ready = |node: &Node| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let wait = async {
        let mut watch = client.watch::<Node>(None, &ListOptions::default()).await?;
        while let Some(event) = watch.next().await {
            if let WatchEvent::Added(node) | WatchEvent::Modified(node) = event?
                && ready(&node)
            {
                return Ok(node);
            }
        }
        bail!("the server ended the watch of its nodes")
    };
    timeout(PATIENCE, wait).await.context("no node became Ready")?
}

fn labels() -> serde_json::Value {
    json!({"app.kubernetes.io/name": NAME})
}

fn deployment() -> anyhow::Result<Deployment> {
    let probe = json!({"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 5});
    Ok(Deployment::from_value(json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels()},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": labels()},
            "template": {
                "metadata": {"labels": labels()},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "web",
                        "image": bundle::DEMO_IMAGE,
                        "imagePullPolicy": "IfNotPresent",
                        "ports": [{"name": "http", "containerPort": bundle::DEMO_PORT}],
                        "readinessProbe": probe,
                        "resources": {"requests": {"cpu": "10m", "memory": "8Mi"}, "limits": {"memory": "32Mi"}},
                    }],
                },
            },
        },
    }))?)
}

fn service() -> anyhow::Result<Service> {
    Ok(Service::from_value(json!({
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": labels()},
        "spec": {
            "type": "NodePort",
            "selector": labels(),
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    }))?)
}

/// Creates the object, or takes the one that an earlier run left.
async fn create<T: Object>(client: &Client, object: &T) -> anyhow::Result<T> {
    let kind = T::KIND.to_lowercase();
    match client.create(object).await {
        Ok(created) => {
            println!("{kind}/{} created", object.name());
            Ok(created)
        }
        Err(error) if error.is_already_exists() => {
            println!("{kind}/{} is there already", object.name());
            Ok(client.get(object.namespace(), object.name()).await?)
        }
        Err(error) => Err(error).with_context(|| format!("cannot create {kind}/{}", object.name())),
    }
}

/// Shows pods becoming ready until all are.
async fn rollout(client: &Client) -> anyhow::Result<()> {
    let begun = Instant::now();
    let selector = format!("app.kubernetes.io/name={NAME}");
    let wait = async {
        let mut watch = client.watch::<Pod>(Some(NAMESPACE), &ListOptions::labels(selector)).await?;
        let mut ready = BTreeSet::new();
        while ready.len() < REPLICAS {
            let Some(event) = watch.next().await else { bail!("the server ended the watch of the pods") };
            match event? {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) if is_ready(&pod) => {
                    if ready.insert(pod.name().to_owned()) {
                        println!(
                            "pod/{} is ready ({} of {REPLICAS}, after {:.1} s)",
                            pod.name(),
                            ready.len(),
                            begun.elapsed().as_secs_f64()
                        );
                    }
                }
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) => {
                    ready.remove(pod.name());
                }
                WatchEvent::Bookmark { .. } => {}
            }
        }
        Ok(())
    };
    timeout(PATIENCE, wait).await.context("not all pods became ready; try: kubectl describe pods")?
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The ways to the Service: by cluster address, node port and name.
async fn addresses(
    client: &Client,
    service: &Service,
    node: &Node,
) -> anyhow::Result<Vec<(String, SocketAddr)>> {
    let spec = service.spec.as_ref().context("the Service has a spec")?;
    let cluster_ip: IpAddr =
        spec.cluster_ip.as_deref().unwrap_or_default().parse().context("it has an address")?;
    let node_port =
        spec.ports.iter().flatten().find_map(|port| port.node_port).context("it has a node port")?;
    let node_addresses = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let node_ip = node_addresses.into_iter().flatten().find(|address| address.type_ == "InternalIP");
    let node_ip: IpAddr = node_ip.context("the node has an address")?.address.parse()?;
    let node_port = u16::try_from(node_port)?;
    let dns: Service = client.get("kube-system", "kube-dns").await.context("the cluster has no DNS")?;
    let dns_ip = dns.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default().parse()?;
    let name = format!("{NAME}.{NAMESPACE}.svc.cluster.local");
    let resolved = resolve(SocketAddr::new(dns_ip, 53), &name).await?;
    Ok(vec![
        (format!("ClusterIP {cluster_ip}"), SocketAddr::new(cluster_ip, 80)),
        (format!("node port {node_ip}:{node_port}"), SocketAddr::new(node_ip, node_port)),
        (format!("DNS name {name}"), SocketAddr::new(resolved, 80)),
    ])
}

/// Asks the cluster's DNS for an address.
async fn resolve(server: SocketAddr, name: &str) -> anyhow::Result<IpAddr> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match timeout(REQUEST_TIMEOUT, query(server, name)).await {
            Ok(Ok(address)) => return Ok(address),
            Ok(Err(error)) if Instant::now() > deadline => return Err(error),
            Err(_) if Instant::now() > deadline => bail!("the cluster's DNS at {server} does not answer"),
            _ => sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn query(server: SocketAddr, name: &str) -> anyhow::Result<IpAddr> {
    let mut question = Message::query();
    question.add_query(Query::query(Name::from_ascii(name)?, RecordType::A));
    let socket = UdpSocket::bind("0.0.0.0:0").await?;
    socket.connect(server).await?;
    socket.send(&question.to_vec()?).await?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).await?;
    let answer = Message::from_vec(&answer[..length])?;
    let addresses = answer.answers.iter().filter_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::from(address.0)),
        _ => None,
    });
    addresses.into_iter().next().with_context(|| format!("the cluster's DNS knows no address of {name}"))
}

/// Requests the Service, each time on a new connection, until every pod has answered.
async fn ask_until_all_answered(what: &str, address: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut answered = BTreeSet::new();
    let mut requests = 0;
    while answered.len() < REPLICAS {
        requests += 1;
        match timeout(REQUEST_TIMEOUT, get(address)).await {
            Ok(Ok(answer)) => drop(answered.insert(answer)),
            _ if Instant::now() > deadline => bail!("only {} pods answered by {what}", answered.len()),
            _ => sleep(Duration::from_millis(50)).await,
        }
        if requests > 1000 {
            bail!("only {} pods answered {requests} requests by {what}", answered.len());
        }
    }
    println!("\nby {what}, {REPLICAS} pods answered {requests} requests:");
    answered.iter().for_each(|answer| println!("  {answer}"));
    Ok(())
}

/// One HTTP request; the body of the answer.
async fn get(address: SocketAddr) -> anyhow::Result<String> {
    let mut connection = TcpStream::connect(address).await?;
    connection.write_all(b"GET / HTTP/1.1\r\nhost: demo\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    connection.take(16 << 10).read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("it is no HTTP answer")?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("{}", head.lines().next().unwrap_or_default());
    }
    Ok(body.trim().to_owned())
}

async fn cleanup(client: &Client, data_dir: &Path) -> anyhow::Result<()> {
    remove::<Service>(client).await?;
    remove::<Deployment>(client).await?;
    let selector = ListOptions::labels(format!("app.kubernetes.io/name={NAME}"));
    let gone = async {
        let list = client.list::<Pod>(Some(NAMESPACE), &selector).await?;
        let mut left: BTreeSet<String> = list.items.iter().map(|pod| pod.name().to_owned()).collect();
        let from = ListOptions { resource_version: Some(list.resource_version), ..selector.clone() };
        let mut watch = client.watch::<Pod>(Some(NAMESPACE), &from).await?;
        while !left.is_empty() {
            match watch.next().await.context("the server ended the watch of the pods")?? {
                WatchEvent::Deleted(pod) => drop(left.remove(pod.name())),
                WatchEvent::Added(pod) => drop(left.insert(pod.name().to_owned())),
                _ => {}
            }
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, gone).await.context("the pods do not go")??;
    image::remove(&image::socket(data_dir), bundle::DEMO_IMAGE).await?;
    println!("the demo is gone");
    Ok(())
}

async fn remove<T: Object>(client: &Client) -> anyhow::Result<()> {
    let kind = T::KIND.to_lowercase();
    match client.delete::<T>(NAMESPACE, NAME, &DeleteOptions::default()).await {
        Ok(()) => println!("{kind}/{NAME} deleted"),
        Err(error) if error.is_not_found() => println!("{kind}/{NAME} is not there"),
        Err(error) => return Err(error).with_context(|| format!("cannot delete {kind}/{NAME}")),
    }
    Ok(())
}
