//! Logs for people and for machines that collect standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Sets the filter that replaces `-v`, in `tracing`'s syntax: `warn,scheduler=debug`.
const VARIABLE: &str = "TRIERARCH_LOG";

/// Starts logging to standard error. `verbosity` as Kubernetes' `--v`: 0 is for operators, 4 debugs, 6 traces.
pub fn start(verbosity: u8) {
    let default = match verbosity {
        0..=1 => "warn,trierarch=info",
        2..=3 => "info",
        4..=5 => {
            "info,apiserver=debug,scheduler=debug,controllers=debug,kubelet=debug,cri_server=debug,proxy=debug,netpol=debug"
        }
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(verbosity >= 2)
        .init();
}

/// An error and its causes on one line.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let words = cause.to_string();
        // Some libraries repeat the cause in their own words.
        if !line.contains(&words) {
            if !line.is_empty() {
                line.push_str(": ");
            }
            line.push_str(&words);
        }
    }
    line.replace('\n', " ")
}
