//! `cargo xtask sim`.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

/// Let a cluster live through faults, by seed
#[derive(Parser)]
struct Arguments {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many seeds, one after the other
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// How long a cluster lives, by its own clock
    #[arg(long, default_value_t = 1.0)]
    hours: f64,
    /// Measure how much work changes make instead, in real time and without faults, at so many times the usual size
    #[arg(long, value_name = "FACTOR")]
    bench: Option<f64>,
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let arguments = Arguments::parse();
    if let Some(size) = arguments.bench {
        let runtime = tokio::runtime::Runtime::new();
        return match runtime {
            Ok(runtime) => {
                runtime.block_on(sim::bench::run(size));
                ExitCode::SUCCESS
            }
            Err(error) => {
                eprintln!("there is no runtime: {error}");
                ExitCode::FAILURE
            }
        };
    }
    let life = Duration::from_secs_f64(arguments.hours.clamp(0.0, 24.0 * 366.0) * 3600.0);
    let mut failed = false;
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.count) {
        match sim::simulate(seed, life) {
            Ok(report) => println!(
                "seed {seed}: {} steps, {} requests, at rest after {} s",
                report.steps,
                report.requests,
                report.rest.as_secs()
            ),
            Err(wrong) => {
                println!("{wrong}");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
