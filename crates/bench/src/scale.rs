//! The run with 150,000 pods and 5,000 nodes: what they cost, and that a write does not cost more for them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::body::Template;
use crate::target::Target;
use crate::wire::Ask;
use crate::work::{self, Measured, progress};
use crate::{Encoding, Http};

const PODS: usize = 150_000;
const NODES: usize = 5_000;
/// Pods that are written to see what a write costs.
const PROBE: usize = 3_000;
/// Pods lie in so many namespaces.
const NAMESPACES: usize = 50;

/// What a write costs beside so many pods.
pub struct WriteCost {
    pub beside: usize,
    pub measured: Measured,
}

pub struct Report {
    pub server: String,
    pub pods: usize,
    pub nodes: usize,
    pub writes: Vec<WriteCost>,
    pub resident_bytes: u64,
    pub list: Duration,
    pub list_bytes: usize,
    pub page: Duration,
    pub resident_after_list: u64,
    pub restart: Option<Duration>,
    pub resident_after_restart: u64,
}

pub async fn run(target: &mut Target, scale: f64) -> anyhow::Result<Report> {
    let (pods, nodes) = ((PODS as f64 * scale) as usize, (NODES as f64 * scale) as usize);
    let template = Arc::new(Template::pod(Encoding::Protobuf)?);
    let node = Arc::new(Template::node(Encoding::Protobuf)?);
    let probe = "bench-probe";
    target.namespace(probe).await?;
    let mut writes = vec![write_cost(target, probe, 0, &template).await?];
    let bar = progress(format!("{} · nodes", target.name), nodes);
    work::create(target, Http::Two, Encoding::Protobuf, node, 0..nodes, "/api/v1/nodes", &bar).await?;
    let mut made = 0;
    for stop in [pods / 3, pods] {
        while made < stop {
            let count = pods.div_ceil(NAMESPACES).min(stop - made);
            let namespace = format!("bench-scale-{}", made * NAMESPACES / pods.max(1));
            target.namespace(&namespace).await?;
            let bar = progress(format!("{} · pods, {made} of {pods}", target.name), count);
            let numbers = made..made + count;
            let path = work::pods(&namespace);
            work::create(target, Http::Two, Encoding::Protobuf, template.clone(), numbers, &path, &bar)
                .await?;
            made += count;
        }
        writes.push(write_cost(target, probe, made, &template).await?);
    }
    let resident_bytes = target.resident_bytes();
    let (list, list_bytes) = timed(target, "/api/v1/pods").await?;
    let resident_after_list = target.resident_bytes();
    let (page, _) = timed(target, "/api/v1/pods?limit=500").await?;
    let restart = target.restart()?;
    if restart.is_some() {
        timed(target, "/api/v1/pods?limit=1").await?;
    }
    Ok(Report {
        server: target.name.clone(),
        pods,
        nodes,
        writes,
        resident_bytes,
        list,
        list_bytes,
        page,
        resident_after_list,
        restart,
        resident_after_restart: target.resident_bytes(),
    })
}

async fn timed(target: &Target, path: &str) -> anyhow::Result<(Duration, usize)> {
    let mut lane = target.address.lane().await?;
    let begun = Instant::now();
    let (status, bytes) = lane.count(Ask::get(path, Encoding::Json)).await?;
    status.is_success().then_some((begun.elapsed(), bytes)).with_context(|| format!("GET {path}: {status}"))
}

/// Creates some pods beside those that are there, and takes them away again.
async fn write_cost(
    target: &Target,
    namespace: &str,
    beside: usize,
    template: &Arc<Template>,
) -> anyhow::Result<WriteCost> {
    let bar = progress(format!("{} · writes beside {beside} pods", target.name), PROBE);
    let (path, template) = (work::pods(namespace), template.clone());
    let measured =
        work::create(target, Http::Two, Encoding::Protobuf, template, 0..PROBE, &path, &bar).await?;
    target.empty(namespace).await?;
    Ok(WriteCost { beside, measured })
}
