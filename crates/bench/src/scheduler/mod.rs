//! Measures the scheduler: `cargo xtask bench scheduler`.
//!
//! [`shapes`] lists what is scheduled, which is what upstream's scheduler_perf schedules. [`live`] lets a scheduler
//! do it through an API server, from a pod's creation to its binding; [`alone`] asks the scheduler's own functions,
//! without an API, a store or a watch.

mod alone;
mod live;
mod shapes;

use std::path::PathBuf;

use anyhow::bail;
use clap::Parser;
use serde_json::json;
use shapes::{SHAPES, Shape};

/// Measure the scheduler: pods a second from creation to binding, through a real API server and alone
///
/// Every shape gets an API server and a scheduler of its own, in a fresh data directory, and nodes without kubelets.
#[derive(Parser)]
#[command(name = "cargo xtask bench scheduler", max_term_width = 100)]
pub struct Options {
    /// The `trierarch` to start instead of a release build of this workspace
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Where to put the API server's data [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How many nodes there are
    #[arg(long, default_value_t = 5_000, value_name = "N")]
    nodes: usize,
    /// How many pods are measured; shapes that nodes have less room for take fewer
    #[arg(long, default_value_t = 10_000, value_name = "N")]
    pods: usize,
    /// Only these shapes
    #[arg(long, value_delimiter = ',', value_name = "SHAPE,…")]
    only: Vec<String>,
    /// Only the scheduler's own functions, without an API server
    #[arg(long)]
    alone: bool,
    /// Let one process be API server, scheduler and controllers, as `trierarch server` is
    #[arg(long)]
    together: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What a shape came to.
struct Row {
    shape: &'static Shape,
    pods: usize,
    alone: alone::Measured,
    live: Option<live::Measured>,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    if let Some(unknown) = options.only.iter().find(|name| SHAPES.iter().all(|s| s.name != **name)) {
        let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
        bail!("there is no shape {unknown}; there are {}", names.join(", "));
    }
    let binary = match (options.alone, &options.binary) {
        (true, _) => None,
        (false, Some(binary)) => Some(binary),
        (false, None) => bail!("give --binary or --alone"),
    };
    let mut rows = Vec::new();
    for shape in SHAPES.iter().filter(|s| options.only.is_empty() || options.only.iter().any(|o| o == s.name))
    {
        let size = shape.size(options.nodes, options.pods);
        let alone = alone::run(shape, &size)?;
        let live = match binary {
            Some(binary) => {
                Some(live::run(shape, &size, binary, options.data.as_deref(), options.together).await?)
            }
            None => None,
        };
        rows.push(Row { shape, pods: size.measured, alone, live });
        if !options.json {
            print(&rows, options.nodes);
        }
    }
    if options.json {
        println!("{:#}", json_of(&rows, options.nodes));
    }
    Ok(())
}

/// Prints the last row, and the head before the first.
fn print(rows: &[Row], nodes: usize) {
    let Some(row) = rows.last() else { return };
    if rows.len() == 1 {
        println!("{nodes} nodes; pods a second, microseconds of processor time a pod, megabytes\n");
        println!(
            "{:<24} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "shape",
            "pods",
            "asked of",
            "alone/s",
            "p99 µs",
            "live/s",
            "sched µs",
            "api µs",
            "sched MB",
            "api MB"
        );
    }
    let asked = row.shape.upstream.map_or_else(|| "-".into(), |rate| rate.to_string());
    print!(
        "{:<24} {:>6} {asked:>9} {:>9.0} {:>9.0}",
        row.shape.name, row.pods, row.alone.per_second, row.alone.p99_micros
    );
    match &row.live {
        Some(live) => {
            let (micros, bytes) =
                live.scheduler.as_ref().map_or((0.0, 0), |s| (s.cpu_micros, s.resident_bytes));
            println!(
                " {:>9.0} {micros:>9.0} {:>9.0} {:>9.1} {:>9.1}",
                live.per_second,
                live.api.cpu_micros,
                bytes as f64 / 1e6,
                live.api.resident_bytes as f64 / 1e6
            );
        }
        None => println!(),
    }
}

fn json_of(rows: &[Row], nodes: usize) -> serde_json::Value {
    let process = |process: &live::Process| json!({"cpuMicrosPerPod": process.cpu_micros, "residentBytes": process.resident_bytes});
    let rows = rows.iter().map(|row| {
        let live = row.live.as_ref().map(|live| {
            json!({"podsPerSecond": live.per_second, "scheduler": live.scheduler.as_ref().map(process),
                "apiserver": process(&live.api)})
        });
        json!({"shape": row.shape.name, "nodes": nodes, "pods": row.pods, "upstreamAsks": row.shape.upstream,
            "alone": {"podsPerSecond": row.alone.per_second, "p99Micros": row.alone.p99_micros}, "live": live})
    });
    rows.collect()
}
