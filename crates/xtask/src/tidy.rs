//! The workspace's rules, checked from `cargo metadata` and the files themselves.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde_json::Value;

/// The layers of the workspace, from the top: a crate depends only on crates of lower layers, or, in `words` and
/// `toolkit`, on the ones to the right in its own.
const LAYERS: &[(&str, &[&str])] = &[
    ("binary", &["trierarch"]),
    (
        "parts",
        &[
            "apiserver",
            "scheduler",
            "controllers",
            "kubelet",
            "proxy",
            "netpol",
            "dns",
            "cri-server",
            "oci-runtime",
            "cni",
        ],
    ),
    ("toolkit", &["controller-runtime", "client", "resources", "schema", "cel", "storage", "cri", "linux"]),
    ("words", &["api", "apimachinery"]),
];

/// Crates that nothing depends on but tests.
const SIDE: &[&str] = &["bench", "testkit", "sim", "e2e", "xtask", "demo-web"];
/// Crates that do no I/O, no async, read no clock and no randomness.
const PURE: &[&str] = &["apimachinery", "api", "cel", "schema", "resources"];
const IMPURE_DEPENDENCIES: &[&str] =
    &["tokio", "hyper", "rand", "uuid", "rustix", "libc", "async-trait", "futures"];
/// Only these crates may have unsafe code.
const UNSAFE: &[&str] = &["linux"];
/// Only these crates link the store; the binary opens it and hands it on.
const STORE_USERS: &[&str] = &["apiserver", "trierarch"];
/// A reader holds about so much.
const MAX_LINES: usize = 1000;

pub fn metadata() -> anyhow::Result<Value> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo).args(["metadata", "--format-version=1", "--no-deps"]).output()?;
    serde_json::from_slice(&output.stdout).context("cargo metadata prints JSON")
}

pub fn run() -> anyhow::Result<()> {
    let metadata = metadata()?;
    let crates = crates(&metadata)?;
    let mut problems = rules(&crates);
    for (name, package) in &crates {
        files(name, &package.root, &mut problems)?;
    }
    if !problems.is_empty() {
        bail!("the workspace is not tidy:\n  {}", problems.join("\n  "));
    }
    Ok(())
}

struct Package {
    root: std::path::PathBuf,
    /// Names of normal dependencies.
    dependencies: Vec<String>,
    has_features: bool,
}

fn crates(metadata: &Value) -> anyhow::Result<BTreeMap<String, Package>> {
    let mut crates = BTreeMap::new();
    for package in metadata["packages"].as_array().context("cargo lists packages")? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let normal = dependencies.filter(|d| d["kind"].is_null()).map(|d| text(&d["name"]));
        let manifest = text(&package["manifest_path"]);
        let root = Path::new(&manifest).parent().context("a manifest has a folder")?.to_owned();
        let has_features = package["features"].as_object().is_some_and(|features| !features.is_empty());
        crates.insert(text(&package["name"]), Package { root, dependencies: normal.collect(), has_features });
    }
    Ok(crates)
}

/// The place of a crate: its layer, and its place in it.
fn place(name: &str) -> Option<(usize, usize)> {
    LAYERS
        .iter()
        .enumerate()
        .find_map(|(layer, (_, names))| Some((layer, names.iter().position(|n| *n == name)?)))
}

fn rules(crates: &BTreeMap<String, Package>) -> Vec<String> {
    let mut problems = Vec::new();
    for (name, package) in crates {
        let place_of_crate = place(name);
        if place_of_crate.is_none() && !SIDE.contains(&name.as_str()) {
            problems.push(format!("{name} has no place in the layers of xtask/src/tidy.rs"));
        }
        if package.has_features {
            problems.push(format!("{name} has cargo features; the workspace has none of its own"));
        }
        for dependency in &package.dependencies {
            if PURE.contains(&name.as_str()) && IMPURE_DEPENDENCIES.contains(&dependency.as_str()) {
                problems.push(format!("{name} is pure and may not use {dependency}"));
            }
            if dependency == "storage" && !STORE_USERS.contains(&name.as_str()) {
                problems.push(format!("{name} may not open the store: only the API server does"));
            }
            if !crates.contains_key(dependency) || SIDE.contains(&name.as_str()) {
                continue;
            }
            if SIDE.contains(&dependency.as_str()) {
                problems.push(format!("{name} depends on {dependency}, which is for tests"));
            }
            if let (Some(from), Some(to)) = (place_of_crate, place(dependency)) {
                let inner = from.0 == to.0 && LAYERS[from.0].0 != "parts" && from.1 < to.1;
                if from.0 >= to.0 && !inner {
                    problems.push(format!("{name} may not depend on {dependency}: arrows point down"));
                }
            }
        }
    }
    problems
}

fn files(name: &str, folder: &Path, problems: &mut Vec<String>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files(name, &path, problems)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path)?;
            let lines = text.lines().count();
            if lines > MAX_LINES && !path.ends_with("generated.rs") {
                problems.push(format!("{} has {lines} lines; split it", path.display()));
            }
            let has_unsafe = text.lines().any(|line| {
                let code = line.split("//").next().unwrap_or_default();
                code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
            });
            if has_unsafe && !UNSAFE.contains(&name) && name != "xtask" {
                problems.push(format!("{} has unsafe code; that belongs into linux", path.display()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, dependencies: &[&str], expected: &[&str]) {
        let package = |dependencies: &[&str]| Package {
            root: "/".into(),
            dependencies: dependencies.iter().map(|d| d.to_string()).collect(),
            has_features: false,
        };
        let mut crates: BTreeMap<String, Package> =
            dependencies.iter().map(|d| (d.to_string(), package(&[]))).collect();
        crates.insert(name.to_owned(), package(dependencies));
        crates.retain(|name, _| place(name).is_some() || SIDE.contains(&name.as_str()) || name == "stranger");
        assert_eq!(rules(&crates), expected);
    }

    #[test]
    fn arrows_point_down() {
        check("kubelet", &["client", "api", "tokio"], &[]);
        check("controller-runtime", &["client"], &[]);
        check(
            "client",
            &["controller-runtime"],
            &["client may not depend on controller-runtime: arrows point down"],
        );
        check("kubelet", &["cri-server"], &["kubelet may not depend on cri-server: arrows point down"]);
        check("api", &["client"], &["api may not depend on client: arrows point down"]);
        check("kubelet", &["storage"], &["kubelet may not open the store: only the API server does"]);
        check("schema", &["tokio"], &["schema is pure and may not use tokio"]);
        check("stranger", &[], &["stranger has no place in the layers of xtask/src/tidy.rs"]);
        check("kubelet", &["testkit"], &["kubelet depends on testkit, which is for tests"]);
    }
}
