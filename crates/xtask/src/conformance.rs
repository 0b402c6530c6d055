//! Upstream's conformance suite against a cluster that is started for it.
//!
//! The suite is a user's own: `e2e.test` and `ginkgo` of a Kubernetes release's test archive, side by side. Tests
//! run in parallel first, those marked `[Serial]` alone afterwards. What came out is written as a page.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::Deserialize;

use crate::bench::{NODE_READY, Server};
use crate::run;

#[derive(Args)]
pub struct Options {
    /// Upstream's `e2e.test`; `ginkgo` lies beside it
    #[arg(long)]
    suite: PathBuf,
    /// Only tests whose name matches this regular expression
    #[arg(long, default_value = r"\[Conformance\]")]
    focus: String,
    /// No tests whose name matches this regular expression
    #[arg(long)]
    skip: Option<String>,
    /// How many tests run at a time
    #[arg(long, default_value_t = 4)]
    procs: usize,
    /// Image archives to load into the node first
    #[arg(long)]
    images: Vec<PathBuf>,
    /// A cluster without a node, for the tests that need none
    #[arg(long)]
    no_node: bool,
    /// Where to write the page
    #[arg(long, default_value = "docs/conformance.md")]
    page: PathBuf,
}

/// One test of ginkgo's JSON report, as far as it is read here.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    #[serde(default)]
    leaf_node_text: String,
    leaf_node_type: String,
    state: String,
    run_time: u64,
    #[serde(default)]
    failure: Option<Failure>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    #[serde(default)]
    spec_reports: Option<Vec<Spec>>,
}

impl Spec {
    fn name(&self) -> String {
        let mut name = self.container_hierarchy_texts.clone().unwrap_or_default();
        name.push(self.leaf_node_text.clone());
        name.join(" ")
    }

    /// `sig-apps` of `[sig-apps] Deployment …`.
    fn sig(&self) -> String {
        let name = self.name();
        let sig = name.strip_prefix('[').and_then(|rest| rest.split(']').next());
        sig.unwrap_or("other").to_owned()
    }
}

pub fn run_suite(binary: &Path, options: &Options) -> anyhow::Result<()> {
    let suite =
        options.suite.canonicalize().with_context(|| format!("there is no {}", options.suite.display()))?;
    let ginkgo = suite.with_file_name("ginkgo");
    if !ginkgo.is_file() {
        bail!("{} is missing; it comes with e2e.test in a release's test archive", ginkgo.display());
    }
    let folder = std::env::temp_dir().join(format!("trierarch-conformance-{}", std::process::id()));
    std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let outcome = run_in(binary, &suite, &ginkgo, &folder, options);
    let reset = if options.no_node {
        std::fs::remove_dir_all(&folder).map_err(Into::into)
    } else {
        run(Command::new(binary).arg("reset").arg("--data-dir").arg(&folder))
    };
    let specs = outcome?;
    reset?;
    let page = page(&specs, options);
    std::fs::write(&options.page, &page)?;
    println!("{}", page.lines().filter(|line| line.starts_with('|')).collect::<Vec<_>>().join("\n"));
    Ok(())
}

fn run_in(
    binary: &Path,
    suite: &Path,
    ginkgo: &Path,
    folder: &Path,
    options: &Options,
) -> anyhow::Result<Vec<Spec>> {
    let mut server = Server::start(binary, folder, if options.no_node { &["--no-node"] } else { &[] })?;
    server.wait_for(if options.no_node { "the API is ready" } else { NODE_READY })?;
    for archive in &options.images {
        run(Command::new(binary).args(["image", "import"]).arg(archive).arg("--data-dir").arg(folder))?;
    }
    let mut specs = Vec::new();
    for serial in [false, true] {
        let report = folder.join(if serial { "serial.json" } else { "parallel.json" });
        let mut command = Command::new(ginkgo);
        command.arg(format!("--procs={}", if serial { 1 } else { options.procs }));
        command.args(["--timeout=24h", "--no-color", "--silence-skips"]);
        command.arg(format!("--json-report={}", report.display()));
        // Ginkgo joins several focuses by "or": Serial is told apart by the name.
        let focus = if serial {
            format!(r"\[Serial\].*{0}|{0}.*\[Serial\]", options.focus)
        } else {
            options.focus.clone()
        };
        command.arg(format!("--focus={focus}"));
        let skips = options.skip.iter().map(String::as_str).chain((!serial).then_some(r"\[Serial\]"));
        command.args(skips.map(|skip| format!("--skip={skip}")));
        command.arg(suite).args(["--", "--provider=skeleton", "--num-nodes=2"]);
        command.arg(format!("--kubeconfig={}", folder.join("admin.kubeconfig").display()));
        if options.no_node {
            command.args(["--allowed-not-ready-nodes=-1", "--minStartupPods=-1"]);
        }
        // It fails when a test fails; the report says which.
        command.status().with_context(|| format!("cannot run {}", ginkgo.display()))?;
        if !report.is_file() {
            bail!("ginkgo wrote no report");
        }
        let reports: Vec<Report> = serde_json::from_slice(&std::fs::read(&report)?)?;
        let ran = reports.into_iter().flat_map(|report| report.spec_reports.unwrap_or_default());
        specs.extend(ran.filter(|spec| spec.leaf_node_type == "It" && spec.state != "skipped"));
    }
    Ok(specs)
}

fn page(specs: &[Spec], options: &Options) -> String {
    let mut sigs: BTreeMap<String, (usize, usize, Duration)> = BTreeMap::new();
    for spec in specs {
        let row = sigs.entry(spec.sig()).or_default();
        if spec.state == "passed" {
            row.0 += 1
        } else {
            row.1 += 1
        }
        row.2 += Duration::from_nanos(spec.run_time);
    }
    let mut page = String::from("# Conformance\n\nUpstream's suite, as `cargo xtask conformance` ran it");
    let _ = writeln!(page, " with focus `{}`.\n", options.focus);
    page.push_str("| | passed | failed | seconds |\n|---|---|---|---|\n");
    let mut total = (0, 0, Duration::ZERO);
    for (sig, (passed, failed, time)) in &sigs {
        let _ = writeln!(page, "| {sig} | {passed} | {failed} | {:.0} |", time.as_secs_f64());
        total = (total.0 + passed, total.1 + failed, total.2 + *time);
    }
    let _ = writeln!(page, "| all | {} | {} | {:.0} |", total.0, total.1, total.2.as_secs_f64());
    if total.1 > 0 {
        page.push_str("\n## What failed\n\n");
    }
    for spec in specs.iter().filter(|spec| spec.state != "passed") {
        let message = spec.failure.as_ref().map(|failure| failure.message.as_str()).unwrap_or(&spec.state);
        let line = message.lines().next().unwrap_or_default();
        let _ = writeln!(page, "- {}: {line}", spec.name());
    }
    page
}
