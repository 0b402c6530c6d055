//! The node's tests on cgroups of version 2, which most machines of users have and some that build do not: Debian's
//! kernel boots in QEMU with the test programs inside. The virtual machine has no network and no disk.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{cargo, prerequisites, run, target_directory};

/// The package that depends on the newest kernel for virtual machines.
const KERNEL: &str = "linux-image-cloud-amd64";
/// Modules that the tests need, in the order in which they must be loaded.
const MODULES: &[&str] = &["overlay"];
/// What the machine says last, with the number of programs that failed.
const VERDICT: &str = "programs failed: ";
/// Test programs by package and target, and the tests of each to run; all when there is no filter.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("linux", "linux", "cgroups:: device_filter::"),
    ("oci-runtime", "oci_runtime", ""),
    ("cri-server", "engine", ""),
];

/// Builds the machine in a folder below the target directory, boots it and says how its tests went.
pub fn run_tests() -> anyhow::Result<()> {
    prerequisites::install(prerequisites::VIRTUAL_MACHINE)?;
    let folder = target_directory()?.join("cgroup-v2");
    let root = folder.join("root");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(&root)?;
    let (kernel, modules) = kernel(&folder)?;
    furnish(&root, &modules)?;
    let image = folder.join("root.cpio");
    let pack = format!("find . | busybox cpio -o -H newc > {} 2>/dev/null", image.display());
    run(Command::new("sh").args(["-c", &pack]).current_dir(&root))?;
    boot(&kernel, &image)
}

/// Debian's kernel and the folder of its modules, fetched once.
fn kernel(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf)> {
    let unpacked = folder.join("kernel");
    if !unpacked.join("boot").is_dir() {
        let depends = Command::new("apt-cache").args(["depends", KERNEL]).output()?;
        let text = String::from_utf8(depends.stdout)?;
        let package = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        let package =
            package.with_context(|| format!("{KERNEL} is not among the packages of this machine"))?;
        run(Command::new("apt-get").args(["--quiet=2", "download", package]).current_dir(folder))?;
        let archive = entry(folder, package)?;
        run(Command::new("dpkg").arg("-x").args([&archive, &unpacked]))?;
        fs::remove_file(archive)?;
    }
    Ok((entry(&unpacked.join("boot"), "vmlinuz-")?, entry(&unpacked.join("lib/modules"), "")?))
}

/// The first entry of a folder whose name begins so.
fn entry(folder: &Path, prefix: &str) -> anyhow::Result<PathBuf> {
    let found = fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix)));
    found.with_context(|| format!("{} holds no {prefix}*", folder.display()))
}

/// Puts busybox, modules, test programs and their libraries in place, and the script that runs them.
fn furnish(root: &Path, modules: &Path) -> anyhow::Result<()> {
    for dir in [
        "bin",
        "lib64",
        "modules",
        "tests/deps",
        "tests/examples",
        "proc",
        "sys",
        "dev",
        "tmp",
        "etc",
        "root",
    ] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for module in MODULES {
        let name = format!("{module}.ko");
        let found = Command::new("find").arg(modules).args(["-name", &name]).output()?;
        let path = String::from_utf8(found.stdout)?;
        fs::copy(path.trim(), root.join("modules").join(&name)).with_context(|| format!("module {name}"))?;
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    let mut script = String::from(SETUP);
    for (at, (package, target, filter)) in PROGRAMS.iter().enumerate() {
        for program in programs(package, target)? {
            let is_example = program.parent().is_some_and(|dir| dir.ends_with("examples"));
            let name = if is_example { format!("examples/{target}") } else { format!("deps/{at}-{target}") };
            let place = root.join("tests").join(&name);
            run(Command::new("strip").arg("--strip-debug").arg("-o").args([&place, &program]))?;
            libraries(&program, root)?;
            if !is_example {
                script.push_str(&format!(
                    "/tests/{name} --test-threads=1 {filter} || failed=$((failed + 1))\n"
                ));
            }
        }
    }
    script.push_str(&format!("echo \"{VERDICT}$failed\"\nreboot -f\n"));
    for (name, text) in [("init", INIT), ("main", script.as_str())] {
        fs::write(root.join(name), text)?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// The first program moves everything into a tmpfs: the kernel's first root cannot be left by pivot_root, which
/// containers do.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir /new
/bin/busybox mount -t tmpfs -o size=90% tmpfs /new
/bin/busybox cp -a /bin /lib /lib64 /modules /tests /main /proc /sys /dev /tmp /etc /root /new/
exec /bin/busybox switch_root /new /main
";

const SETUP: &str = "#!/bin/busybox sh
export PATH=/bin HOME=/root RUST_BACKTRACE=0
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm /run
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount --make-rshared /
chmod 1777 /tmp
ip link set lo up
for module in /modules/*; do insmod $module; done
failed=0
";

/// What cargo builds for a target's tests: the test program, and the example of the same name that it runs.
fn programs(package: &str, target: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut command = cargo();
    command.args(["test", "--no-run", "--message-format=json", "--package", package]);
    let built = command.stderr(Stdio::inherit()).output()?;
    if !built.status.success() {
        bail!("the tests of {package} do not compile");
    }
    let text = String::from_utf8(built.stdout)?;
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let wanted = messages.filter(|message| {
        let of_tests = message["profile"]["test"] == true || message["target"]["kind"][0] == "example";
        message["reason"] == "compiler-artifact" && message["target"]["name"] == target && of_tests
    });
    let found: Vec<PathBuf> =
        wanted.filter_map(|message| Some(message["executable"].as_str()?.into())).collect();
    if found.is_empty() { bail!("{package} has no test program {target}") } else { Ok(found) }
}

/// Copies the shared libraries of a program to the places where it looks for them.
fn libraries(program: &Path, root: &Path) -> anyhow::Result<()> {
    let listed = Command::new("ldd").arg(program).output()?;
    let text = String::from_utf8(listed.stdout)?;
    for path in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let place = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(place.parent().context("a library lies in a folder")?)?;
        fs::copy(path, place).with_context(|| path.to_owned())?;
    }
    Ok(())
}

fn boot(kernel: &Path, image: &Path) -> anyhow::Result<()> {
    let mut machine = Command::new("timeout")
        .args(["600", "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "2048", "-smp", "2"])
        .args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .args(["-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run qemu-system-x86_64")?;
    let output = machine.stdout.take().context("the machine's console is piped")?;
    let mut verdict = None;
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        println!("{}", line.trim_end());
        verdict = line.trim_end().strip_prefix(VERDICT).map(str::to_owned).or(verdict);
    }
    machine.wait()?;
    match verdict.as_deref() {
        Some("0") => Ok(()),
        Some(count) => bail!("on cgroups of version 2, test programs failed: {count}"),
        None => bail!("the virtual machine ended before its tests did"),
    }
}
