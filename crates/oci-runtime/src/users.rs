//! Containers in a user namespace: what they mount is brought to where their root, who is nobody on the machine,
//! can reach it, and shown as owned by their ids where that is asked for.
//!
//! libcontainer opens the sources of mounts and the pod's other namespaces only after it has entered the user
//! namespace. All folders of the engine and the kubelet are closed to others, and so are the files of the process
//! that holds the pod's process namespace; so this process, which is still root, opens them first.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use linux::id_maps::{Detached, become_reachable, open_namespace};
use oci_spec::runtime::Spec;
use rustix::fs::FileType;
use serde_json::Value;

use crate::{Error, file, read_json};

/// Folders that every machine has; one of them is covered where only this container sees it.
const PLACES: [&str; 5] = ["/mnt", "/srv", "/media", "/opt", "/run"];

/// Gives the standard streams that are pipes to the user who runs on them: else that one could not open them
/// anew, as `/dev/stdout`, where programs write their logs.
// Upstream: runc's libcontainer/init_linux.go fixStdioPermissions
pub(crate) fn own_streams(spec: &Spec, user: u32) {
    let Some(user) = on_machine(spec, user).map(rustix::process::Uid::from_raw) else { return };
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let is_pipe = rustix::fs::fstat(stream)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if is_pipe {
            // Without the capability it is as it was.
            let _ = rustix::fs::fchown(stream, Some(user), None);
        }
    }
}

/// The id on the machine of a container's user; one that the container has no id for has none.
fn on_machine(spec: &Spec, user: u32) -> Option<u32> {
    let mappings = spec.linux().as_ref().and_then(|linux| linux.uid_mappings().as_ref());
    let Some(mappings) = mappings.filter(|mappings| !mappings.is_empty()) else { return Some(user) };
    mappings.iter().find_map(|mapping| {
        let offset = user.checked_sub(mapping.container_id())?;
        (offset < mapping.size()).then(|| mapping.host_id().checked_add(offset))?
    })
}

/// A source that any user can reach.
fn is_open(source: &Path) -> bool {
    ["/dev", "/sys", "/proc"].iter().any(|open| source.starts_with(open))
}

/// Moves the sources of a bundle's mounts to a place in a new mount namespace of this process and has its
/// `config.json` say so. Returns what that is to say afterwards; nothing is done for a container without a user namespace
/// of another's making. `needed` are the paths that must stay to be seen.
pub(crate) fn make_reachable(bundle: &Path, needed: &[&Path]) -> Result<Option<Vec<u8>>, Error> {
    let mut spec: Value = read_json(&bundle.join("config.json"))?;
    let namespaces = spec["linux"]["namespaces"].as_array().into_iter().flatten();
    let users =
        namespaces.filter(|n| n["type"] == "user").find_map(|n| n["path"].as_str().map(PathBuf::from));
    let Some(users) = users else { return Ok(None) };
    let users = open_namespace(&users).map_err(|e| Error::Process(e.to_string()))?;
    let rootfs = bundle.join(spec["root"]["path"].as_str().unwrap_or_default());
    let mut trees = vec![clone(&rootfs)?];
    let mut moved = Vec::new();
    for (index, namespace) in spec["linux"]["namespaces"].as_array().into_iter().flatten().enumerate() {
        if let Some(path) = namespace["path"].as_str().filter(|_| namespace["type"] != "user") {
            trees.push(clone(Path::new(path))?);
            moved.push(format!("/linux/namespaces/{index}/path"));
        }
    }
    for (index, mount) in spec["mounts"].as_array_mut().into_iter().flatten().enumerate() {
        // The source is as it should be afterwards, also for those who enter the container later.
        let ids = mount.as_object_mut().and_then(|m| m.remove("gidMappings").and(m.remove("uidMappings")));
        let source = Path::new(mount["source"].as_str().unwrap_or_default());
        if mount["type"] != "bind" || !source.is_absolute() || is_open(source) {
            continue;
        }
        let tree = clone(source)?;
        if ids.is_some() {
            tree.map_ids(&users).map_err(|e| {
                Error::Process(format!(
                    "failed to set MOUNT_ATTR_IDMAP on {}: {e} (maybe the filesystem used doesn't support idmap \
                     mounts on this kernel?)",
                    source.display()
                ))
            })?;
        }
        moved.push(format!("/mounts/{index}/source"));
        trees.push(tree);
    }
    let given = spec.to_string().into_bytes();
    let is_free =
        |place: &&&str| Path::new(place).is_dir() && needed.iter().all(|path| !path.starts_with(place));
    let place = PLACES.iter().find(is_free);
    let place = place.ok_or_else(|| Error::Process("no folder is free to mount to".to_owned()))?;
    let places = become_reachable(Path::new(place), &trees).map_err(|e| Error::Process(e.to_string()))?;
    let mut places = places.into_iter().map(|place| Value::from(place.display().to_string()));
    if let Some(place) = places.next() {
        spec["root"]["path"] = place;
    }
    for (field, place) in moved.iter().zip(places) {
        if let Some(field) = spec.pointer_mut(field) {
            *field = place;
        }
    }
    put_back(bundle, spec.to_string().as_bytes())?;
    Ok(Some(given))
}

/// Writes the bundle's `config.json`, whole or not at all.
pub(crate) fn put_back(bundle: &Path, config: &[u8]) -> Result<(), Error> {
    let temporary = bundle.join(".config.json");
    fs::write(&temporary, config).map_err(file(&temporary))?;
    let path = bundle.join("config.json");
    fs::rename(&temporary, &path).map_err(file(&path))
}

fn clone(source: &Path) -> Result<Detached, Error> {
    Detached::clone_of(source).map_err(|e| Error::Process(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_on_the_machine() {
        let spec = |mappings: &str| -> Spec {
            let linux = format!(r#"{{"ociVersion": "1.2.1", "linux": {{"uidMappings": {mappings}}}}}"#);
            serde_json::from_str(&linux).unwrap()
        };
        assert_eq!(on_machine(&Spec::default(), 1000), Some(1000));
        let one = spec(r#"[{"containerID": 0, "hostID": 65536, "size": 1001}]"#);
        assert_eq!(on_machine(&one, 0), Some(65536));
        assert_eq!(on_machine(&one, 1000), Some(66536));
        assert_eq!(on_machine(&one, 1001), None);
    }
}
