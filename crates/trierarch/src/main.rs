//! Kubernetes as one binary: wiring, flags, PKI.
//!
//! Start with [`cli`], the table of commands. [`server`] is the whole cluster in one process; [`components`]
//! runs each part alone; [`join`] makes other machines nodes, [`dev`] makes nodes of one machine; [`demo`], [`image`] and [`reset`] are for the person at
//! the keyboard. [`pki`] makes the certificates, [`renewal`] makes them again, [`trust`] says whom the API server
//! believes.
//!
//! The binary also calls itself: `oci-runtime`, `shim` and `cni` are processes that the container engine
//! starts, and that must not have threads. They are told apart before anything else happens.

mod bundle;
mod certificates;
mod cli;
mod components;
mod config_file;
mod control_plane;
mod demo;
mod dev;
mod encryption;
mod host;
mod image;
mod join;
mod logging;
mod node;
mod parts;
mod pki;
mod renewal;
mod reset;
mod running;
mod server;
mod trust;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

/// Objects are trees of small pieces while they are checked: see docs/decisions/0014-jemalloc.md.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// What the container engine starts, by the first argument.
type Process = fn(&mut dyn Iterator<Item = OsString>) -> ExitCode;

const PROCESSES: &[(&str, Process)] = &[
    ("oci-runtime", |arguments| oci_runtime::main(arguments)),
    ("shim", |arguments| cri_server::shim::main(arguments)),
    ("cni", |arguments| cni::main(arguments)),
    ("dev-node", |arguments| dev::node_main(arguments)),
];

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let first = arguments.next();
    if let Some((_, process)) = PROCESSES.iter().find(|(name, _)| first.as_deref() == Some(name.as_ref())) {
        return process(&mut arguments);
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("trierarch: {}", logging::one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// A flag of a configuration file is told with its place there; anything else as the parser tells it, which also
/// prints help and ends.
fn wrong_flag(given: &[OsString], error: clap::Error) -> anyhow::Error {
    use clap::error::ContextKind;
    let flag = error.get(ContextKind::InvalidArg).map(ToString::to_string);
    match flag.and_then(|flag| config_file::place(given, flag.split(' ').next().unwrap_or_default())) {
        Some(place) => {
            let words = error.to_string();
            let first = words.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            anyhow::anyhow!("{place}: {first}")
        }
        None => error.exit(),
    }
}

fn run() -> anyhow::Result<()> {
    let given: Vec<OsString> = std::env::args_os().collect();
    let cli = match cli::Cli::try_parse_from(config_file::expand(given.clone())?) {
        Ok(cli) => cli,
        Err(error) => return Err(wrong_flag(&given, error)),
    };
    logging::start(cli.verbosity);
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is installed already"))?;
    // Two workers do for a laptop; a busy server has its cores.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("trierarch").build()?;
    let outcome = runtime.block_on(cli.command.run());
    // What still blocks in a system call must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}
