//! `trierarch reset`: stops what a data directory's containers still do and takes every trace of it away.

use std::path::Path;

use anyhow::{Context, bail};

use crate::{cli, host, parts};

pub async fn run(args: cli::Reset) -> anyhow::Result<()> {
    host::check_can_run_containers()?;
    let data_dir = std::path::absolute(&args.data.data_dir)?;
    if !data_dir.exists() {
        println!("there is nothing at {}", data_dir.display());
        return Ok(());
    }
    // A folder that a server never used is not ours to delete.
    let ours = ["pki", "state.redb", "engine", "images"].iter().any(|name| data_dir.join(name).exists());
    let empty = std::fs::read_dir(&data_dir)?.next().is_none();
    if !ours && !empty {
        bail!("{} is not a data directory of trierarch", data_dir.display());
    }
    if let Err(error @ storage::Error::InUse { .. }) = parts::open_store(&data_dir) {
        return Err(error).context("stop the server first");
    }
    let engine = parts::engine_config(&data_dir, &args.cgroup_root, &[])?;
    cri_server::reset(&engine).await?;
    linux::mounts::unmount_tree(&data_dir).context("cannot unmount what pods left")?;
    let cgroup_root = Path::new(&args.cgroup_root);
    for cgroup in [cgroup_root.join("kubepods"), cgroup_root.to_owned()] {
        // The machine's own root is not ours.
        if cgroup == Path::new("/") {
            continue;
        }
        if let Err(error) = linux::cgroups::Cgroup::new(&cgroup).remove() {
            eprintln!("left {}, which pods of another data directory are in: {error}", cgroup.display());
        }
    }
    let cni_state = data_dir.join("cni");
    // It starts a runtime of its own, which this one's threads must not.
    tokio::task::spawn_blocking(move || cni::reset(&cni_state)).await??;
    proxy::reset()?;
    remove_contents(&data_dir)?;
    println!("{} is empty, and nothing of it runs", data_dir.display());
    Ok(())
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
