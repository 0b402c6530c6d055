//! Measures an API server from outside: `cargo xtask bench api`; and [`scheduler`], `cargo xtask bench scheduler`.
//!
//! The load generator shares the machine with the server, so it must be cheap: one thread, bodies that were made
//! beforehand ([`body`]), answers that are counted and dropped ([`wire`]). [`work`] is the list of what is
//! measured, [`fan_out`] the watches, [`scale`] the run with 150,000 pods; [`target`] finds or starts a server,
//! [`report`] prints.

mod body;
mod fan_out;
mod report;
mod scale;
mod scheduler;
mod target;
mod wire;
mod work;

use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use target::{Parts, Target};

/// Measure an API server: create, get, list, list pages, patch status, update, watch, delete
///
/// Without --kubeconfig, a server of our own is started for it in a fresh data directory and taken away again.
/// With --kubeconfig twice, both servers do the same work in turn, step by step, and the last column compares them.
/// Everything happens in namespaces whose names start with `bench-`, which are emptied again.
#[derive(Parser)]
#[command(name = "cargo xtask bench api", max_term_width = 100)]
struct Options {
    /// The server to measure, instead of one that is started; twice for two servers in turn
    #[arg(long, value_name = "FILE", action = clap::ArgAction::Append)]
    kubeconfig: Vec<PathBuf>,
    /// The `trierarch` to start instead of a release build of this workspace
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Start the whole control plane, `trierarch server --no-node`, instead of the API server alone: controllers and
    /// scheduler then watch what is done, and work
    #[arg(long)]
    control_plane: bool,
    /// Where to put the started server's data: a disk whose fsync is worth measuring [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Count the memory of this process too, with the last --kubeconfig: a server's external store
    #[arg(long, value_name = "PID")]
    store_pid: Vec<u32>,
    /// What bodies are encoded in
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["json", "protobuf"])]
    encoding: Vec<Encoding>,
    /// The version of HTTP: 2 is four connections with many requests each, 1 is one connection for each request
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["2"])]
    http: Vec<Http>,
    /// Only these steps
    #[arg(long, value_enum, value_delimiter = ',', value_name = "STEP,…")]
    only: Vec<work::Step>,
    /// Do so many times the usual work: 0.1 for a quick look
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    work: f64,
    /// How many writers the watch steps have
    #[arg(long, default_value_t = 1, value_name = "N")]
    writers: usize,
    /// Hold 150,000 pods and 5,000 nodes at once instead: memory, list, restart, and the cost of a write on the way
    #[arg(long)]
    scale: bool,
    /// Print JSON; progress goes to standard error either way
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Encoding {
    Json,
    Protobuf,
}

impl Encoding {
    fn content_type(self) -> &'static str {
        match self {
            Encoding::Json => "application/json",
            Encoding::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Http {
    #[value(name = "1", alias = "1.1")]
    One,
    #[value(name = "2")]
    Two,
}

fn main() -> std::process::ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = match runtime {
        Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, measure()),
        Err(error) => Err(error.into()),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// The first argument may name what is measured: the API server, if it does not.
async fn measure() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().peekable();
    let program = arguments.next();
    match arguments.next_if(|argument| argument == "scheduler") {
        Some(_) => scheduler::run(scheduler::Options::parse_from(program.into_iter().chain(arguments))).await,
        None => run(Options::parse()).await,
    }
}

async fn run(options: Options) -> anyhow::Result<()> {
    let mut targets = Vec::new();
    for file in &options.kubeconfig {
        targets.push(Target::of_kubeconfig(file).await?);
    }
    if let Some(last) = targets.last_mut() {
        last.count_also(&options.store_pid);
    }
    if targets.is_empty() {
        let binary =
            options.binary.as_ref().ok_or_else(|| anyhow::anyhow!("give --binary or --kubeconfig"))?;
        let parts = if options.control_plane { Parts::ControlPlane } else { Parts::ApiServer };
        targets.push(Target::start(binary, options.data.as_deref(), parts).await?);
    }
    if options.scale {
        let report = scale::run(&mut targets[0], options.work).await?;
        return report::print_scale(&report, options.json);
    }
    let mut rows = Vec::new();
    for &http in &options.http {
        for &encoding in &options.encoding {
            let plan = work::Plan {
                http,
                encoding,
                only: &options.only,
                scale: options.work,
                writers: options.writers,
            };
            rows.extend(plan.run(&targets).await?);
        }
    }
    report::print(&rows, &targets, options.json)
}
