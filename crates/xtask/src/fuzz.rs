//! Fuzzing by libFuzzer on the stable toolchain: its instrumentation is a pass of LLVM, which needs no nightly
//! compiler. No address sanitizer, which does: this code has no `unsafe`, and a panic, a hang or a body that eats
//! memory is found without.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::Parser;

use crate::{cargo, prerequisites, run};

/// What `cargo fuzz` gives the compiler, without what only nightly takes.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Ccodegen-units=1",
    "--cfg=fuzzing",
];
/// A single input takes milliseconds: whatever needs so long would hold up a server.
const HANG_SECONDS: u32 = 10;
const MEMORY_MIB: u32 = 2048;
const MAX_INPUT_BYTES: u32 = 16 << 10;

#[derive(Parser)]
pub struct Options {
    /// The target, as fuzz/fuzz_targets names it [default: each in turn]
    target: Option<String>,
    /// How long each target runs, in seconds
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Run this input once, as a run that found something left it
    #[arg(long)]
    input: Option<PathBuf>,
}

pub fn fuzz(options: &Options) -> anyhow::Result<()> {
    prerequisites::install(prerequisites::FUZZ)?;
    let folder = Path::new("fuzz");
    let known = targets(folder)?;
    let chosen: Vec<&str> = match &options.target {
        Some(name) if known.contains(name) => vec![name],
        Some(name) => {
            bail!("no target {name}; there are {}", known.into_iter().collect::<Vec<_>>().join(", "))
        }
        None => known.iter().map(String::as_str).collect(),
    };
    let programs = build(folder, &chosen)?;
    for name in chosen {
        let mut command = Command::new(programs.join(name));
        command.args([
            format!("-timeout={HANG_SECONDS}"),
            format!("-rss_limit_mb={MEMORY_MIB}"),
            format!("-max_len={MAX_INPUT_BYTES}"),
            format!("-max_total_time={}", options.seconds),
            format!("-artifact_prefix={}/", made(folder.join("artifacts").join(name))?.display()),
            "-use_value_profile=1".to_owned(),
            "-print_final_stats=1".to_owned(),
        ]);
        match &options.input {
            Some(input) => command.arg(input),
            None => command
                .arg(format!("-dict={}", folder.join("words.dict").display()))
                .arg(made(folder.join("corpus").join(name))?)
                .args(Some(folder.join("seeds").join(name)).filter(|seeds| seeds.is_dir())),
        };
        eprintln!("fuzzing {name}");
        run(&mut command).with_context(|| format!("fuzz target {name} found something"))?;
    }
    Ok(())
}

fn targets(folder: &Path) -> anyhow::Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(folder.join("fuzz_targets"))? {
        let path = entry?.path();
        names.extend(path.file_stem().and_then(|name| name.to_str()).map(str::to_owned));
    }
    Ok(names)
}

/// Builds for an explicit target, so that the flags reach neither build scripts nor macros. Says where the programs
/// are.
fn build(folder: &Path, names: &[&str]) -> anyhow::Result<PathBuf> {
    // The versions that the workspace has are those to try.
    let lock = folder.join("Cargo.lock");
    if !lock.exists() {
        std::fs::copy("Cargo.lock", &lock)?;
    }
    let host = host()?;
    let mut command = cargo();
    command.args(["build", "--release", "--target", &host, "--manifest-path"]).arg(folder.join("Cargo.toml"));
    for name in names {
        command.args(["--bin", name]);
    }
    run(command.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f")))?;
    Ok(folder.join("target").join(host).join("release"))
}

fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let text = String::from_utf8(output.stdout)?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc names its host")?.to_owned())
}

fn made(folder: PathBuf) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    Ok(folder)
}
