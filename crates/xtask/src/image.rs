//! Container images for tests, made without a registry: Debian packages, folders and single files become one layer
//! of an archive that `docker save` could have written. Layers and digests are made by the system's own tools.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use crate::run;

#[derive(Args)]
pub struct Options {
    /// A name of the image, such as registry.k8s.io/pause:3.10; may be given several times
    #[arg(long = "tag", value_name = "NAME", required = true)]
    tags: Vec<String>,
    /// Where to write the archive
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A Debian package that it holds, with everything that it depends on; several times
    #[arg(long = "package", value_name = "NAME")]
    packages: Vec<String>,
    /// A folder whose content it holds, over what the packages brought; several times
    #[arg(long = "directory", value_name = "DIR")]
    directories: Vec<PathBuf>,
    /// A file that it holds, and the octal mode that it gets (755); several times
    #[arg(long = "file", value_name = "SOURCE=TARGET[,MODE]", value_parser = FileSpec::parse)]
    files: Vec<FileSpec>,
    /// Make a link for every applet of its busybox
    #[arg(long)]
    applets: bool,
    /// A word of its entry point; several times
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// A word of its command; several times
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// A variable of its environment, beside PATH; several times
    #[arg(long, value_name = "NAME=VALUE")]
    env: Vec<String>,
    /// The user that it runs as, for example 65535:65535
    #[arg(long)]
    user: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
struct FileSpec {
    source: PathBuf,
    /// Relative to the image's root.
    target: PathBuf,
    mode: u32,
}

impl FileSpec {
    fn parse(text: &str) -> Result<Self, String> {
        let (source, rest) = text.split_once('=').ok_or("SOURCE=TARGET is expected")?;
        let (target, mode) = rest.split_once(',').unwrap_or((rest, "755"));
        let mode = u32::from_str_radix(mode, 8).map_err(|_| format!("{mode} is no octal mode"))?;
        let target = target.trim_start_matches('/');
        if target.is_empty() || target.split('/').any(|part| part == "..") {
            return Err(format!("{rest} is no path inside the image"));
        }
        Ok(FileSpec { source: source.into(), target: target.into(), mode })
    }
}

/// Makes the archive in a folder of its own, which it removes.
pub fn make(options: &Options) -> anyhow::Result<()> {
    let folder = std::env::temp_dir().join(format!("trierarch-image-{}", std::process::id()));
    fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let made = fill(&folder.join("root"), &folder, options).and_then(|()| archive(&folder, options));
    fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    made?;
    println!("{}: {}", options.out.display(), options.tags.join(", "));
    Ok(())
}

fn fill(root: &Path, folder: &Path, options: &Options) -> anyhow::Result<()> {
    fs::create_dir(root)?;
    unpack_packages(root, folder, &options.packages)?;
    for directory in &options.directories {
        run(Command::new("cp").arg("--archive").arg(directory.join(".")).arg(root))?;
    }
    for file in &options.files {
        let target = root.join(&file.target);
        fs::create_dir_all(target.parent().context("a file has a folder")?)?;
        fs::copy(&file.source, &target).with_context(|| format!("cannot copy {}", file.source.display()))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(file.mode))?;
    }
    if options.applets {
        link_applets(root)?;
    }
    // What programs count on, whatever package it is of.
    for folder in ["etc", "run", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    // Debian's own users, which programs such as nginx ask for, are written by a script that was not run.
    for file in ["passwd", "group"] {
        let (users, master) = (root.join("etc").join(file), format!("usr/share/base-passwd/{file}.master"));
        if !users.exists() && root.join(&master).exists() {
            fs::copy(root.join(&master), users)?;
        }
    }
    Ok(())
}

/// Has apt resolve the packages as for a machine that has none, and unpacks what it fetched. No script of a package
/// is run.
fn unpack_packages(root: &Path, folder: &Path, packages: &[String]) -> anyhow::Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let (status, fetched) = (folder.join("status"), folder.join("packages"));
    fs::write(&status, "")?;
    fs::create_dir_all(fetched.join("partial"))?;
    run(Command::new("apt-get")
        .args(["install", "--download-only", "--yes", "--no-install-recommends", "--quiet=2"])
        .args(["-o", "APT::Sandbox::User=root", "-o"])
        .arg(format!("Dir::State::status={}", status.display()))
        .arg("-o")
        .arg(format!("Dir::Cache::archives={}", fetched.display()))
        .args(["--", "base-passwd"])
        .args(packages))
    .context("the package lists may be old: apt-get update")?;
    for entry in fs::read_dir(&fetched)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            run(Command::new("dpkg-deb").arg("--extract").arg(path).arg(root))?;
        }
    }
    Ok(())
}

fn link_applets(root: &Path) -> anyhow::Result<()> {
    let busybox = root.join("bin/busybox");
    let list = Command::new(&busybox).arg("--list").output();
    let list = list.with_context(|| format!("cannot run {}", busybox.display()))?;
    for applet in String::from_utf8(list.stdout)?.lines().filter(|applet| *applet != "busybox") {
        let link = root.join("bin").join(applet);
        if !link.exists() {
            symlink("/bin/busybox", link)?;
        }
    }
    Ok(())
}

fn archive(folder: &Path, options: &Options) -> anyhow::Result<()> {
    let pack = |file: &Path, directory: &Path, names: &[&str]| {
        let mut command = Command::new("tar");
        command.args(["--create", "--sort=name", "--numeric-owner", "--mtime=@0", "--file"]).arg(file);
        run(command.arg("--directory").arg(directory).args(names))
    };
    let parts = folder.join("parts");
    fs::create_dir(&parts)?;
    let layer = folder.join("layer.tar");
    pack(&layer, &folder.join("root"), &["."])?;
    let layer_digest = sha256(&layer)?;
    let layer_name = format!("{layer_digest}.tar");
    fs::rename(&layer, parts.join(&layer_name))?;
    let config = folder.join("config.json");
    fs::write(&config, serde_json::to_vec(&config_of(options, &layer_digest))?)?;
    let config_name = format!("{}.json", sha256(&config)?);
    fs::rename(&config, parts.join(&config_name))?;
    let manifest = json!([{
        "Config": config_name,
        "RepoTags": options.tags,
        "Layers": [layer_name],
    }]);
    fs::write(parts.join("manifest.json"), serde_json::to_vec(&manifest)?)?;
    let out = std::path::absolute(&options.out)?;
    pack(&out, &parts, &["manifest.json", &config_name, &layer_name])
}

/// The image's configuration, as the OCI image specification has it.
fn config_of(options: &Options, layer_digest: &str) -> serde_json::Value {
    let mut env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    env.extend_from_slice(&options.env);
    let mut config = json!({ "Env": env, "WorkingDir": "/" });
    if !options.entrypoint.is_empty() {
        config["Entrypoint"] = json!(options.entrypoint);
    }
    if !options.cmd.is_empty() {
        config["Cmd"] = json!(options.cmd);
    }
    if let Some(user) = &options.user {
        config["User"] = json!(user);
    }
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer_digest}")] },
    })
}

fn sha256(file: &Path) -> anyhow::Result<String> {
    let output = Command::new("sha256sum").arg(file).output().context("cannot run sha256sum")?;
    match String::from_utf8(output.stdout)?.split_whitespace().next() {
        Some(digest) if output.status.success() => Ok(digest.to_owned()),
        _ => bail!("sha256sum of {} failed", file.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_with_its_place_and_mode() {
        let spec = |source: &str, target: &str, mode| {
            Ok(FileSpec { source: source.into(), target: target.into(), mode })
        };
        let cases = [
            ("a=b", spec("a", "b", 0o755)),
            ("target/a=/usr/bin/a,4755", spec("target/a", "usr/bin/a", 0o4755)),
            ("a", Err("SOURCE=TARGET is expected".to_owned())),
            ("a=/", Err("/ is no path inside the image".to_owned())),
            ("a=../b", Err("../b is no path inside the image".to_owned())),
            ("a=b,9", Err("9 is no octal mode".to_owned())),
        ];
        for (text, expected) in cases {
            assert_eq!(FileSpec::parse(text), expected, "{text}");
        }
    }
}
