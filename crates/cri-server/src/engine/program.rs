//! This program as processes start it that come near containers: shims and the OCI runtime.
//!
//! A container may make the runtime run itself inside, by `/proc/self/exe`, and take hold of the file that the process
//! runs from: CVE-2019-5736. So they run from a mount of that file of its own, through which nobody can write.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use linux::mounts::{bind_read_only, is_mount_point, unmount_tree};
use rustix::fs::StatVfsMountFlags;

use crate::Error;
use crate::config::Config;

/// Lets the configuration name the program by that mount, which outlives the engine as shims do.
pub(super) fn protect(config: &mut Config) -> Result<(), Error> {
    let shown = config.state.join("program");
    if !is_protected(&shown, &config.self_exe) {
        mount(&config.self_exe, &shown)?;
    }
    let own = config.self_exe.display().to_string();
    if let Some(runtime) = config.oci_runtime.first_mut().filter(|runtime| **runtime == own) {
        *runtime = shown.display().to_string();
    }
    config.self_exe = shown;
    Ok(())
}

/// Whether an earlier engine, of the same program, made the mount to its end.
fn is_protected(shown: &Path, program: &Path) -> bool {
    let file = |path: &Path| path.metadata().ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let mount = rustix::fs::statvfs(shown);
    mount.is_ok_and(|mount| mount.f_flag.contains(StatVfsMountFlags::RDONLY))
        && is_mount_point(shown).unwrap_or(false)
        && file(shown) == file(program)
}

fn mount(program: &Path, shown: &Path) -> Result<(), Error> {
    // What still runs from an earlier one keeps it.
    unmount_tree(shown).map_err(Error::kernel("take down the program's mount"))?;
    OpenOptions::new().append(true).create(true).open(shown).map_err(Error::io(shown))?;
    bind_read_only(program, shown).map_err(Error::kernel("mount the program read-only"))
}
