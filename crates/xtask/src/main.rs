//! The project's own commands: `cargo xtask …`.
//!
//! [`demo`] and [`test`] are the two commands of the README: they install what they need first
//! ([`prerequisites`]). [`tidy`] holds the workspace to its rules, [`codegen`] makes the schema tables, [`bench`]
//! measures, [`cgroup_v2`] tests on another kernel, [`conformance`] runs upstream's own tests, with images that
//! [`image`] makes, and [`fuzz`] looks for inputs that break what reads them.

mod bench;
mod cgroup_v2;
mod codegen;
mod conformance;
mod fuzz;
mod image;
mod prerequisites;
mod tidy;

use std::path::PathBuf;
use std::process::Command as Process;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

/// The project's own commands.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
enum Command {
    /// Build Trierarch and show a cluster at work on this machine
    Demo {
        /// Arguments for `trierarch demo`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run all tests; those of the node need root
    Test {
        /// Arguments for `cargo nextest run`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the node's tests on cgroups of version 2, in a virtual machine with Debian's kernel
    TestV2,
    /// Check the workspace's rules: layers of crates, unsafe code, sizes of files
    Tidy,
    /// Check format, lints, the workspace's rules and the licences of dependencies
    Lint,
    /// Generate the schema tables of crate `api`
    Codegen {
        /// Upstream's schema-facts.json
        #[arg(long)]
        facts: PathBuf,
        /// Fail when the committed tables differ, and write nothing
        #[arg(long)]
        check: bool,
    },
    /// Measure
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
    /// Let the whole control plane live through faults by seed, in one thread and on a clock that does not wait
    #[command(disable_help_flag = true)]
    Sim {
        /// Arguments for the simulation: `--seed N`, `--count N`, `--hours H`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run upstream's conformance tests against a cluster that is started for them
    Conformance(conformance::Options),
    /// Feed readers of outside input with what coverage finds, until something breaks or the time is up
    Fuzz(fuzz::Options),
    /// Make a container image for tests of Debian packages, folders and files
    Image(image::Options),
}

#[derive(Subcommand)]
enum Bench {
    /// The API server, under load: operations a second, latencies, memory; `--help` says more
    #[command(disable_help_flag = true)]
    Api {
        /// Arguments for the load tool
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Controllers and scheduler: seconds and requests until much that is asked at once has come to rest
    Controllers {
        /// So many times the usual size
        #[arg(long, default_value_t = 1.0)]
        size: f64,
    },
    /// The network: Services by the thousand, connections, throughput, DNS; `--help` says more
    #[command(disable_help_flag = true)]
    Net {
        /// Arguments for the tool
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The scheduler: pods a second for each of upstream's shapes, through an API server and alone; `--help` says more
    #[command(disable_help_flag = true)]
    Scheduler {
        /// Arguments for the load tool
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// The node: one pod and a hundred from create to running, what each costs, a container's restart, and an image
    /// pulled from a registry on this machine, by containerd too where Debian's is installed
    Node {
        /// The binary to measure [default: a release build]
        #[arg(long)]
        binary: Option<PathBuf>,
    },
    /// Seconds from `server` to a Ready node, memory and processor share when idle, create-to-running of a pod
    Start {
        /// The binary to measure [default: a release build]
        #[arg(long)]
        binary: Option<PathBuf>,
        /// How long to watch the idle cluster, in seconds
        #[arg(long, default_value_t = 60)]
        idle_seconds: u64,
    },
}

fn main() -> std::process::ExitCode {
    match execute(Command::parse()) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo { arguments } => {
            prerequisites::install(prerequisites::RUN)?;
            let binary = build()?;
            run(Process::new(binary).arg("demo").args(arguments))
        }
        Command::Test { arguments } => test(&arguments),
        Command::TestV2 => cgroup_v2::run_tests(),
        Command::Tidy => tidy::run(),
        Command::Lint => lint(),
        Command::Codegen { facts, check } => codegen::run(&facts, check),
        Command::Bench { bench: Bench::Api { arguments } } => bench::tool(&["bench"], &arguments),
        Command::Bench { bench: Bench::Scheduler { arguments } } => {
            bench::tool(&["bench", "scheduler"], &arguments)
        }
        Command::Bench { bench: Bench::Controllers { size } } => {
            let size = size.to_string();
            run(cargo().args(["run", "--quiet", "--release", "--package=sim", "--", "--bench", &size]))
        }
        Command::Bench { bench: Bench::Net { arguments } } => bench::tool(&["bench-net"], &arguments),
        Command::Bench { bench: Bench::Node { binary } } => {
            prerequisites::install(prerequisites::RUN)?;
            bench::node::measure(&binary.map_or_else(build, Ok)?)
        }
        Command::Bench { bench: Bench::Start { binary, idle_seconds } } => {
            prerequisites::install(prerequisites::RUN)?;
            bench::start(&binary.map_or_else(build, Ok)?, idle_seconds)
        }
        Command::Image(options) => image::make(&options),
        Command::Fuzz(options) => fuzz::fuzz(&options),
        Command::Sim { arguments } => {
            run(cargo().args(["run", "--quiet", "-p", "sim", "--"]).args(arguments))
        }
        Command::Conformance(options) => {
            prerequisites::install(prerequisites::RUN)?;
            let binary = options.binary.clone().map_or_else(build, Ok)?;
            conformance::run_suite(&binary, &options)
        }
    }
}

/// Cargo builds the binary for the tests of its own crate, with the same dependencies as all tests; the end-to-end
/// tests run it.
fn test(arguments: &[String]) -> anyhow::Result<()> {
    prerequisites::install(prerequisites::TEST)?;
    prerequisites::install_cargo_tool("cargo-nextest")?;
    let binary = target_directory()?.join("debug/trierarch");
    run(cargo().args(["nextest", "run", "--workspace"]).args(arguments).env("TRIERARCH", binary))
}

fn lint() -> anyhow::Result<()> {
    prerequisites::install(prerequisites::BUILD)?;
    prerequisites::install_cargo_tool("cargo-deny")?;
    run(cargo().args(["fmt", "--all", "--check"]))?;
    tidy::run()?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny=warnings"]))?;
    run(cargo().args(["deny", "--offline", "check", "licenses", "bans", "sources"]))
}

/// Builds the binary as users have it and says where it is.
fn build() -> anyhow::Result<PathBuf> {
    run(cargo().args(["build", "--package=trierarch", "--release"]))?;
    Ok(target_directory()?.join("release/trierarch"))
}

fn target_directory() -> anyhow::Result<PathBuf> {
    let metadata = tidy::metadata()?;
    Ok(metadata["target_directory"].as_str().context("cargo names its target directory")?.into())
}

/// Cargo without what it told this program of its own package: build scripts that look at these variables would run
/// again, and all that depends on them be compiled again, whenever one goes from `cargo xtask` to `cargo` and back.
fn cargo() -> Process {
    let mut cargo = Process::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|n| n.starts_with("CARGO_PKG_") || n.starts_with("CARGO_MANIFEST_")) {
            cargo.env_remove(name);
        }
    }
    cargo
}

fn run(command: &mut Process) -> anyhow::Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let status = command.status().with_context(|| format!("cannot run {name}"))?;
    if !status.success() {
        let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
        bail!("{name} {} failed: {status}", arguments.join(" "));
    }
    Ok(())
}
