//! Puts files into a directory all at once: they live in a timestamped directory, `..data` is a link to it, and
//! what users see are links through `..data`. A change makes a new directory and moves the one link.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;

use jiff::Timestamp;

use super::VolumeError;
use super::payload::{Payload, check_path};

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Makes `target` hold just `payload`. True when anything changed. `group` is the volume's fsGroup.
// Upstream: pkg/volume/util/atomic_writer.go AtomicWriter.Write
pub fn write(
    target: &Path,
    payload: &Payload,
    group: Option<u32>,
    now: Timestamp,
) -> Result<bool, VolumeError> {
    let io = |what: &str| {
        let what = format!("{what} in {}", target.display());
        move |source| VolumeError::Io { what, source }
    };
    payload.keys().try_for_each(|path| check_path(path)).map_err(VolumeError::Refused)?;
    let old = fs::read_link(target.join(DATA)).ok();
    if old.as_ref().is_some_and(|old| same(&target.join(old), payload)) {
        return Ok(false);
    }
    let stamp = now.strftime("%Y_%m_%d_%H_%M_%S");
    let name = format!("..{stamp}.{:09}", rand::random::<u32>());
    let fresh = target.join(&name);
    fs::create_dir(&fresh).map_err(io("making a directory"))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).map_err(io("setting permissions"))?;
    for (path, file) in payload {
        let at = fresh.join(path);
        if let Some(parent) = at.parent() {
            fs::create_dir_all(parent).map_err(io("making a directory"))?;
        }
        fs::write(&at, &file.data).map_err(io("writing a file"))?;
        // The group may read what the owner may: containers of the pod run with it.
        let mode = if group.is_some() { file.mode | (file.mode & 0o400) >> 3 } else { file.mode };
        fs::set_permissions(&at, fs::Permissions::from_mode(mode & 0o777))
            .map_err(io("setting permissions"))?;
        if file.owner.is_some() || group.is_some() {
            chown(&at, file.owner, group).map_err(io("changing an owner"))?;
        }
    }
    let _ = fs::remove_file(target.join(NEW_DATA));
    symlink(&name, target.join(NEW_DATA)).map_err(io("making a link"))?;
    fs::rename(target.join(NEW_DATA), target.join(DATA)).map_err(io("moving a link"))?;
    show(target, payload).map_err(io("making links"))?;
    if let Some(old) = old.filter(|old| old.to_string_lossy().starts_with("..")) {
        fs::remove_dir_all(target.join(old)).map_err(io("removing old data"))?;
    }
    Ok(true)
}

/// Makes the links that users see be those of the payload's first path elements.
fn show(target: &Path, payload: &Payload) -> std::io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let at = target.join(name);
        if fs::symlink_metadata(&at).is_err() {
            symlink(Path::new(DATA).join(name), &at)?;
        }
    }
    for entry in fs::read_dir(target)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn same(data: &Path, payload: &Payload) -> bool {
    let equal = |(path, file): (&String, &super::payload::FileContent)| {
        let at = data.join(path);
        fs::read(&at).is_ok_and(|present| present == file.data)
    };
    payload.iter().all(equal) && count_files(data) == payload.len()
}

fn count_files(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    let count = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => count_files(&entry.path()),
        Ok(_) => 1,
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(count).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volumes::payload::FileContent;

    #[test]
    fn files_change_all_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let payload = |pairs: &[(&str, &str)]| -> Payload {
            pairs.iter().map(|(p, d)| ((*p).to_owned(), FileContent::new(*d, 0o640))).collect()
        };
        let write = |pairs| super::write(dir.path(), &payload(pairs), None, Timestamp::UNIX_EPOCH).unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).ok();
        assert!(write(&[("a", "1"), ("d/b", "2")]));
        assert_eq!((read("a").as_deref(), read("d/b").as_deref()), (Some("1"), Some("2")));
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o640);
        let before = fs::read_link(dir.path().join(DATA)).unwrap();
        assert!(!write(&[("a", "1"), ("d/b", "2")]));
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), before);
        assert!(write(&[("a", "3")]));
        assert_eq!((read("a").as_deref(), read("d/b")), (Some("3"), None));
        assert!(!dir.path().join(before).exists() && fs::symlink_metadata(dir.path().join("d")).is_err());
        assert!(super::write(dir.path(), &payload(&[("../x", "1")]), None, Timestamp::UNIX_EPOCH).is_err());
    }
}
