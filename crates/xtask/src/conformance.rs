//! Upstream's conformance suite against a cluster that is started for it.
//!
//! The suite is a user's own: `e2e.test` and `ginkgo` of a Kubernetes release's test archive, side by side. Tests
//! run in parallel first, those marked `[Serial]` alone afterwards. The cluster has the two nodes that the suite
//! asks for, made by `trierarch dev`. What came out is written as a page; runs that share a folder of reports add
//! up on it, the newest word on a test being the one that counts.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::Deserialize;

use crate::bench::Server;
use crate::run;

#[derive(Args)]
pub struct Options {
    /// Upstream's `e2e.test`; `ginkgo` lies beside it
    #[arg(long)]
    suite: PathBuf,
    /// The binary to test, instead of a release build of this tree
    #[arg(long, value_name = "FILE")]
    pub binary: Option<PathBuf>,
    /// Only tests whose name matches this regular expression
    #[arg(long, default_value = r"\[Conformance\]")]
    focus: String,
    /// No tests whose name matches this regular expression
    #[arg(long)]
    skip: Option<String>,
    /// How many tests run at a time
    #[arg(long, default_value_t = 4)]
    procs: usize,
    /// Image archives to load into the nodes first; `cargo xtask image` makes such
    #[arg(long, value_name = "FILE")]
    images: Vec<PathBuf>,
    /// A line for the page on images that are stand-ins for those that the suite names; several times
    #[arg(long = "stand-in", value_name = "TEXT")]
    stand_ins: Vec<String>,
    /// A cluster without a node, for the tests that need none
    #[arg(long)]
    no_node: bool,
    /// Where reports of runs are kept, to have several runs on one page
    #[arg(long, value_name = "DIR")]
    reports: Option<PathBuf>,
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
    let reports = options.reports.clone().unwrap_or_else(|| folder.join("reports"));
    std::fs::create_dir_all(&reports).with_context(|| format!("cannot make {}", reports.display()))?;
    let ran = if options.no_node {
        on_control_plane(binary, &folder, |kubeconfig| run_tests(&suite, kubeconfig, &reports, options))
    } else {
        on_nodes(binary, &folder, options, |kubeconfig| run_tests(&suite, kubeconfig, &reports, options))
    };
    let page = ran.and_then(|()| Ok(page(&specs_of(&reports)?, &version(&suite)?, options)));
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    let page = page?;
    std::fs::write(&options.page, &page)?;
    println!("{}", page.lines().filter(|line| line.starts_with('|')).collect::<Vec<_>>().join("\n"));
    Ok(())
}

fn on_control_plane(
    binary: &Path,
    folder: &Path,
    test: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut server = Server::start(binary, folder, &["--no-node"])?;
    server.wait_for("the API is ready")?;
    test(&folder.join("admin.kubeconfig"))
}

/// Runs tests on a cluster of two nodes, which is taken away whatever they say.
fn on_nodes(
    binary: &Path,
    folder: &Path,
    options: &Options,
    test: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let dev = |words: &[&str]| {
        let mut command = Command::new(binary);
        command.arg("dev").args(words).arg("--dev-dir").arg(folder).args(["--name", "conformance"]);
        command
    };
    let tested = run(&mut dev(&["up", "--nodes=2"])).and_then(|()| {
        for archive in &options.images {
            run(dev(&["load"]).arg(archive))?;
        }
        let kubeconfig = folder.join("kubeconfig");
        std::fs::write(&kubeconfig, dev(&["kubeconfig"]).output()?.stdout)?;
        test(&kubeconfig)
    });
    let gone = run(&mut dev(&["down"]));
    tested.and(gone)
}

/// Runs what is to be run in parallel, then the rest, and keeps ginkgo's reports.
fn run_tests(suite: &Path, kubeconfig: &Path, reports: &Path, options: &Options) -> anyhow::Result<()> {
    let run_at = std::time::UNIX_EPOCH.elapsed().context("the clock is set")?.as_secs();
    for serial in [false, true] {
        let report = reports.join(format!("{run_at}-{}.json", if serial { "serial" } else { "parallel" }));
        let mut command = Command::new(suite.with_file_name("ginkgo"));
        command.arg(format!("--procs={}", if serial { 1 } else { options.procs }));
        command.args(["--timeout=24h", "--no-color", "--silence-skips"]);
        command.arg(format!("--json-report={}", report.display()));
        // Ginkgo joins several focuses by "or": Serial is told apart by the name.
        let focus = if serial {
            format!(r"\[Serial\].*({0})|({0}).*\[Serial\]", options.focus)
        } else {
            options.focus.clone()
        };
        command.arg(format!("--focus={focus}"));
        let skips = options.skip.iter().map(String::as_str).chain((!serial).then_some(r"\[Serial\]"));
        command.args(skips.map(|skip| format!("--skip={skip}")));
        command.arg(suite).args(["--", "--provider=skeleton", "--num-nodes=2"]);
        command.arg(format!("--kubeconfig={}", kubeconfig.display()));
        if options.no_node {
            command.args(["--allowed-not-ready-nodes=-1", "--minStartupPods=-1"]);
        }
        // It fails when a test fails; the report says which.
        command.status().context("cannot run ginkgo")?;
        if !report.is_file() {
            bail!("ginkgo wrote no report");
        }
    }
    Ok(())
}

/// What all reports say, a test once: the later report is the one that counts.
fn specs_of(reports: &Path) -> anyhow::Result<Vec<Spec>> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(reports)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    let mut specs = BTreeMap::new();
    for file in files {
        let parsed: Vec<Report> = serde_json::from_slice(&std::fs::read(&file)?)
            .with_context(|| format!("{} is no report of ginkgo", file.display()))?;
        let ran = parsed.into_iter().flat_map(|report| report.spec_reports.unwrap_or_default());
        let tests = ran.filter(|spec| spec.leaf_node_type == "It" && spec.state != "skipped");
        specs.extend(tests.map(|spec| (spec.name(), spec)));
    }
    Ok(specs.into_values().collect())
}

fn version(suite: &Path) -> anyhow::Result<String> {
    let output = Command::new(suite).arg("--version").output().context("cannot ask the suite's version")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

fn page(specs: &[Spec], version: &str, options: &Options) -> String {
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
    let mut page = String::from("# Conformance\n\n");
    let nodes = if options.no_node { "a control plane without nodes" } else { "a cluster of two nodes" };
    let _ = writeln!(page, "Upstream's suite {version} on {nodes}, by `cargo xtask conformance`.\n");
    page.push_str("| | passed | failed | seconds |\n|---|---|---|---|\n");
    let mut total = (0, 0, Duration::ZERO);
    for (sig, (passed, failed, time)) in &sigs {
        let _ = writeln!(page, "| {sig} | {passed} | {failed} | {:.0} |", time.as_secs_f64());
        total = (total.0 + passed, total.1 + failed, total.2 + *time);
    }
    let _ = writeln!(page, "| all | {} | {} | {:.0} |", total.0, total.1, total.2.as_secs_f64());
    if !options.stand_ins.is_empty() {
        page.push_str("\n## Images that were stand-ins\n\n");
    }
    for line in &options.stand_ins {
        let _ = writeln!(page, "- {line}");
    }
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
