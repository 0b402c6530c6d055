//! Paths of the node as volumes: checked to be what the pod says that they are, and made if it says so.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use api::core::v1::HostPathVolumeSource;

use super::VolumeError;
use super::setup::Mounted;

// Upstream: pkg/volume/hostpath/host_path.go checkTypeInternal
pub fn check(source: &HostPathVolumeSource) -> Result<Mounted, VolumeError> {
    let path = Path::new(&source.path);
    let kind = source.type_.as_deref().unwrap_or_default();
    let refuse =
        |what: &str| Err(VolumeError::Refused(format!("hostPath type check failed: {} {what}", source.path)));
    let make = |e| VolumeError::io(format!("making {}", source.path), e);
    let present = fs::metadata(path).ok();
    match (kind, &present) {
        ("DirectoryOrCreate", None) => {
            fs::create_dir_all(path).map_err(make)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).map_err(make)?;
        }
        ("FileOrCreate", None) => {
            fs::write(path, b"").map_err(make)?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(make)?;
        }
        ("Directory" | "DirectoryOrCreate", found) if !found.as_ref().is_some_and(|m| m.is_dir()) => {
            return refuse("is not a directory");
        }
        ("File" | "FileOrCreate", found) if !found.as_ref().is_some_and(|m| m.is_file()) => {
            return refuse("is not a file");
        }
        ("Socket", found) if !found.as_ref().is_some_and(|m| m.file_type().is_socket()) => {
            return refuse("is not a socket file");
        }
        ("CharDevice", found) if !found.as_ref().is_some_and(|m| m.file_type().is_char_device()) => {
            return refuse("is not a character device");
        }
        ("BlockDevice", found) if !found.as_ref().is_some_and(|m| m.file_type().is_block_device()) => {
            return refuse("is not a block device");
        }
        _ => {}
    }
    Ok(Mounted::at(path.to_owned(), false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        fs::write(at("file"), b"").unwrap();
        let cases = [
            ("file", "File", true),
            ("file", "Directory", false),
            ("missing", "", true),
            ("missing", "Directory", false),
            ("made", "DirectoryOrCreate", true),
            ("made", "Directory", true),
            ("made-file", "FileOrCreate", true),
            ("file", "Socket", false),
        ];
        for (name, kind, fine) in cases {
            let source = HostPathVolumeSource { path: at(name), type_: Some(kind.into()) };
            assert_eq!(check(&source).is_ok(), fine, "{name} {kind}");
        }
    }
}
