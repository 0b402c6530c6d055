//! Kubernetes as one binary: wiring, flags, PKI.
//!
//! Start with [`cli`], the table of commands. [`server`] is the whole cluster in one process; [`components`]
//! runs each part alone; [`demo`], [`image`] and [`reset`] are for the person at the keyboard. [`pki`] makes and
//! renews the certificates.
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
mod host;
mod image;
mod logging;
mod parts;
mod pki;
mod reset;
mod server;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;

/// What the container engine starts, by the first argument.
type Process = fn(&mut dyn Iterator<Item = OsString>) -> ExitCode;

const PROCESSES: &[(&str, Process)] = &[
    ("oci-runtime", |arguments| oci_runtime::main(arguments)),
    ("shim", |arguments| cri_server::shim::main(arguments)),
    ("cni", |arguments| cni::main(arguments)),
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

fn run() -> anyhow::Result<()> {
    let arguments = config_file::expand(std::env::args_os().collect())?;
    let cli = cli::Cli::parse_from(arguments);
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
