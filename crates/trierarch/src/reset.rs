//! `trierarch reset`: stops what a data directory's containers still do and takes every trace of it away.

use std::path::Path;

use anyhow::{Context, bail};

use crate::join::objects::ClusterNetwork;
use crate::{cli, host, image, parts};

pub async fn run(args: cli::Reset) -> anyhow::Result<()> {
    host::check_can_run_containers("")?;
    let data_dir = std::path::absolute(&args.data.data_dir)?;
    let root_dir = args.root_dir.as_deref().map(std::path::absolute).transpose()?;
    for (folder, marks) in [(Some(&data_dir), DATA_MARKS), (root_dir.as_ref(), KUBELET_MARKS)] {
        check_ours(folder.filter(|folder| folder.exists()), marks)?;
    }
    if data_dir.exists() {
        reset_data_dir(&data_dir, &args.cgroup_root).await?;
    } else if root_dir.is_none() {
        println!("there is nothing at {}", data_dir.display());
        return Ok(());
    }
    if let Some(root_dir) = root_dir.filter(|folder| folder.exists()) {
        linux::mounts::unmount_tree(&root_dir).context("cannot unmount what pods left")?;
        remove_contents(&root_dir)?;
        println!("{} is empty", root_dir.display());
    }
    remove_cgroups(&args.cgroup_root);
    Ok(())
}

/// What shows that a folder is a data directory.
const DATA_MARKS: &[&str] = &["pki", "state", "engine", "images"];
/// What shows that a folder is the root directory of a kubelet that ran alone.
const KUBELET_MARKS: &[&str] = &["pods"];

/// A folder that was never used by us is not ours to delete.
fn check_ours(folder: Option<&std::path::PathBuf>, marks: &[&str]) -> anyhow::Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    let ours = marks.iter().any(|name| folder.join(name).exists());
    let empty = std::fs::read_dir(folder)?.next().is_none();
    if !ours && !empty {
        bail!("{} is not a data directory of trierarch", folder.display());
    }
    Ok(())
}

async fn reset_data_dir(data_dir: &Path, cgroup_root: &str) -> anyhow::Result<()> {
    // An agent has no store, but an engine.
    let engine_answers = cri::connect(&image::socket(data_dir).display().to_string()).await.is_ok();
    let in_use = parts::store_dir(data_dir).exists()
        && matches!(parts::open_store(data_dir), Err(storage::Error::InUse { .. }));
    if engine_answers || in_use {
        bail!("stop the server first: it uses {}", data_dir.display());
    }
    let engine = parts::engine_config(data_dir, cgroup_root, &[], None)?;
    cri_server::reset(&engine).await?;
    linux::mounts::unmount_tree(data_dir).context("cannot unmount what pods left")?;
    let cni_state = data_dir.join("cni");
    // It starts a runtime of its own, which this one's threads must not.
    tokio::task::spawn_blocking(move || cni::reset(&cni_state)).await??;
    proxy::reset()?;
    netpol::reset()?;
    if let Some(network) = ClusterNetwork::remembered(data_dir) {
        proxy::routes::reset(&network.cluster_cidrs).await?;
    }
    remove_contents(data_dir)?;
    println!("{} is empty, and nothing of it runs", data_dir.display());
    Ok(())
}

/// Cgroups may be shared with another data directory, whose pods are left alone.
fn remove_cgroups(cgroup_root: &str) {
    let cgroup_root = Path::new(cgroup_root);
    for cgroup in [cgroup_root.join("kubepods"), cgroup_root.to_owned()] {
        // The machine's own root is not ours.
        if cgroup == Path::new("/") {
            continue;
        }
        if let Err(error) = linux::cgroups::Cgroup::new(&cgroup).remove() {
            eprintln!("left {}, which pods of another data directory are in: {error}", cgroup.display());
        }
    }
}

/// The folder itself may be a mount or the user's own: it stays, empty.
fn remove_contents(folder: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let removed = if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
