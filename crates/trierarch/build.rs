//! Compiles the demo's web server to a static program for the binary to carry.

use std::path::PathBuf;
use std::process::Command;

fn main() {
    let source = PathBuf::from("../demo-web/src/main.rs");
    println!("cargo::rerun-if-changed={}", source.display());
    let var = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let output = PathBuf::from(var("OUT_DIR")).join("demo-web");
    let status = Command::new(var("RUSTC"))
        .args(["--edition=2024", "--crate-name=demo_web", "--crate-type=bin", "--target", &var("TARGET")])
        .args([
            "-Copt-level=s",
            "-Cstrip=symbols",
            "-Cpanic=abort",
            "-Clto=fat",
            "-Ctarget-feature=+crt-static",
        ])
        .arg("-o")
        .args([&output, &source])
        .status()
        .expect("rustc runs");
    assert!(status.success(), "the demo's web server does not compile");
    // A pod starts this program four times, and a program that can be loaded anywhere has 130,000 addresses to put right
    // first, on pages that it then shares with nobody: docs/decisions/0038-fixed-address.md.
    if var("TARGET").ends_with("-linux-gnu") {
        println!("cargo::rustc-link-arg-bins=-no-pie");
    }
    // Generic code is compiled once for each crate that uses it. The linker that comes with Rust, which is the usual
    // one here, keeps one of the copies.
    if var("TARGET") == "x86_64-unknown-linux-gnu" && var("PROFILE") == "release" {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}
