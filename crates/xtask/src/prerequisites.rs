//! What the commands need of the machine, installed when it is missing: Debian packages and cargo tools.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};

use crate::{cargo, run};

/// A Debian package and a file that shows that it is there.
type Package = (&'static str, &'static str);

/// To build the binary.
pub const BUILD: &[Package] = &[
    ("gcc", "/usr/bin/gcc"),
    ("make", "/usr/bin/make"),
    ("pkg-config", "/usr/bin/pkg-config"),
    ("libseccomp-dev", "/usr/include/seccomp.h"),
    ("protobuf-compiler", "/usr/bin/protoc"),
];

/// To build and run it.
pub const RUN: &[Package] = &[
    ("gcc", "/usr/bin/gcc"),
    ("make", "/usr/bin/make"),
    ("pkg-config", "/usr/bin/pkg-config"),
    ("libseccomp-dev", "/usr/include/seccomp.h"),
    ("protobuf-compiler", "/usr/bin/protoc"),
    ("nftables", "/usr/sbin/nft"),
];

/// To build and test it. Any kubectl will do; Debian's is the fallback.
pub const TEST: &[Package] = &[
    ("gcc", "/usr/bin/gcc"),
    ("make", "/usr/bin/make"),
    ("pkg-config", "/usr/bin/pkg-config"),
    ("libseccomp-dev", "/usr/include/seccomp.h"),
    ("protobuf-compiler", "/usr/bin/protoc"),
    ("nftables", "/usr/sbin/nft"),
    ("iproute2", "/usr/sbin/ip"),
    ("busybox-static", "/bin/busybox"),
    ("curl", "/usr/bin/curl"),
    ("procps", "/usr/bin/ps"),
    ("python3-venv", "/usr/lib/python3.11/ensurepip/__init__.py"),
    ("kubernetes-client", "/usr/bin/kubectl"),
];

/// To build it with libFuzzer.
pub const FUZZ: &[Package] = &[
    ("g++", "/usr/bin/g++"),
    ("make", "/usr/bin/make"),
    ("pkg-config", "/usr/bin/pkg-config"),
    ("protobuf-compiler", "/usr/bin/protoc"),
];

/// To run tests in a virtual machine.
pub const VIRTUAL_MACHINE: &[Package] = &[
    ("gcc", "/usr/bin/gcc"),
    ("make", "/usr/bin/make"),
    ("binutils", "/usr/bin/strip"),
    ("pkg-config", "/usr/bin/pkg-config"),
    ("libseccomp-dev", "/usr/include/seccomp.h"),
    ("protobuf-compiler", "/usr/bin/protoc"),
    ("busybox-static", "/bin/busybox"),
    ("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
];

pub fn install(packages: &[Package]) -> anyhow::Result<()> {
    let missing: Vec<&str> =
        packages.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing {}", missing.join(" "));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(["--quiet=2", "--yes", "-o", "Dpkg::Use-Pty=0"]).args(arguments);
        command.env("DEBIAN_FRONTEND", "noninteractive");
        run(&mut command)
    };
    let by_hand = || format!("install them yourself: apt-get install {}", missing.join(" "));
    apt(&["update"]).with_context(by_hand)?;
    apt(&[&["install", "--no-install-recommends"], &missing[..]].concat()).with_context(by_hand)
}

/// Installs a cargo subcommand from its registry when it is missing.
pub fn install_cargo_tool(name: &str) -> anyhow::Result<()> {
    let present = Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    if present {
        return Ok(());
    }
    eprintln!("installing {name}; this takes some minutes");
    run(cargo().args(["install", "--locked", "--quiet", name]))?;
    if !Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()) {
        bail!("{name} was installed but is not on the PATH; add ~/.cargo/bin to it");
    }
    Ok(())
}
