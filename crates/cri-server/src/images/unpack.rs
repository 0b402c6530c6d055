//! A layer's archive becomes a directory that overlayfs can stack.
//!
//! The archive is a stranger's: every path is resolved beneath the target by the kernel, links are never
//! followed out, and what only the engine may write (overlay's own attributes and whiteouts) is refused.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use linux::beneath::Root;
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod,
    fchown, linkat, makedev, mkdirat, mknodat, openat, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tar::{Entry, EntryType};

use super::Error;
use super::build::hex;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// After so many bytes it is looked again whether the disk has room for more.
const LOOK_EVERY: u64 = 4 << 20;
/// The part of the disk that a layer must leave free: small archives can unpack to anything.
const RESERVE: u64 = 20;

/// Hashes what is read through it, and ends when what is read would fill the disk.
struct Hashing<R> {
    inner: R,
    hasher: Sha256,
    /// The directory that it is unpacked to.
    target: PathBuf,
    unlooked: u64,
}

impl<R> Hashing<R> {
    fn look(&mut self) -> io::Result<()> {
        self.unlooked = 0;
        let disk = rustix::fs::statvfs(&self.target)?;
        let lacks = |free: u64, all: u64| all > 0 && free < all / RESERVE;
        if lacks(disk.f_bavail, disk.f_blocks) || lacks(disk.f_favail, disk.f_files) {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the layer does not fit on the disk"));
        }
        Ok(())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        self.unlooked += length as u64;
        if self.unlooked >= LOOK_EVERY {
            self.look()?;
        }
        Ok(length)
    }
}

/// Reads gzip, zstd or plain bytes, told apart by how they begin rather than by what a manifest claims.
pub(crate) fn decompressed<'r>(reader: impl Read + Send + 'r) -> io::Result<Box<dyn Read + Send + 'r>> {
    let mut reader = BufReader::with_capacity(64 * 1024, reader);
    let magic = io::BufRead::fill_buf(&mut reader)?;
    Ok(if magic.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::bufread::MultiGzDecoder::new(reader))
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::stream::read::Decoder::with_buffer(reader)?)
    } else {
        Box::new(reader)
    })
}

/// Unpacks the layer into the empty directory `target` and returns the digest of the uncompressed archive.
pub(crate) fn unpack(layer: File, target: &Path) -> Result<String, Error> {
    let wrong = |entry: &Path, source: Failure| Error::Unpack { entry: entry.display().to_string(), source };
    let reader = decompressed(layer).map_err(Error::io(target))?;
    let hashing = Hashing { inner: reader, hasher: Sha256::new(), target: target.into(), unlooked: 0 };
    let mut archive = tar::Archive::new(hashing);
    let root = Root::open(target).map_err(|e| wrong(Path::new("."), e.into()))?;
    // Directories get their times last, as each entry made in them changes them.
    let mut times = Vec::new();
    for entry in archive.entries().map_err(Error::io(target))? {
        let mut entry = entry.map_err(|e| wrong(Path::new("?"), e.into()))?;
        let path = entry.path().map_err(|e| wrong(Path::new("?"), e.into()))?.into_owned();
        let Some(path) = clean(&path).map_err(|e| wrong(&path, e))? else { continue };
        if let Some(time) = place(&root, &mut entry, &path).map_err(|e| wrong(&path, e))? {
            times.push((path, time));
        }
    }
    for (path, seconds) in times.into_iter().rev() {
        if let Ok((parent, name)) = root.parent(&path) {
            set_time(&parent, Path::new(name), seconds)?;
        }
    }
    let mut rest = archive.into_inner();
    io::copy(&mut rest, &mut io::sink()).map_err(Error::io(target))?;
    Ok(format!("sha256:{}", hex(&rest.hasher.finalize())))
}

/// A relative path of plain names; `None` for the root itself.
fn clean(path: &Path) -> Result<Option<PathBuf>, Failure> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err("the path leaves the layer".into()),
        }
    }
    Ok((!clean.as_os_str().is_empty()).then_some(clean))
}

/// Places one entry; returns the time of a directory, to be set later.
fn place(root: &Root, entry: &mut Entry<'_, impl Read>, path: &Path) -> Result<Option<u64>, Failure> {
    let (parent, name) = root.parent(path)?;
    if name.as_bytes() == OPAQUE {
        set_xattr(&parent, "trusted.overlay.opaque", b"y")?;
        return Ok(None);
    }
    if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
        return whiteout(&parent, hidden).map(|()| None);
    }
    let name = Path::new(name);
    let kind = entry.header().entry_type();
    let is_directory = kind == EntryType::Directory;
    make_room(&parent, name, is_directory)?;
    let permissions = Mode::from_raw_mode(entry.header().mode()? & 0o7777);
    // Some writers leave these fields blank and mean root.
    let (uid, gid) = (entry.header().uid().unwrap_or(0), entry.header().gid().unwrap_or(0));
    let owner = Some(Uid::from_raw(u32::try_from(uid)?));
    let group = Some(Gid::from_raw(u32::try_from(gid)?));
    match kind {
        EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = openat(&parent, name, flags, Mode::from_raw_mode(0o600))?;
            let mut file = File::from(file);
            io::copy(entry, &mut file)?;
            fchown(&file, owner, group)?;
            // After the owner: a change of owner clears setuid and setgid.
            fchmod(&file, permissions)?;
            for (key, value) in xattrs(entry)? {
                rustix::fs::fsetxattr(&file, key.as_str(), &value, XattrFlags::empty())?;
            }
        }
        EntryType::Directory => {
            match mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
            chownat(&parent, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
            chmodat(&parent, name, permissions, AtFlags::empty())?;
            return Ok(Some(entry.header().mtime().unwrap_or(0)));
        }
        EntryType::Symlink => {
            let target = entry.link_name()?.ok_or("a symbolic link without a target")?;
            symlinkat(target.as_ref(), &parent, name)?;
            chownat(&parent, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        EntryType::Link => {
            let target = entry.link_name()?.ok_or("a hard link without a target")?;
            let target = clean(&target)?.ok_or("a hard link to the root")?;
            let (from, old) = root.parent(&target)?;
            linkat(&from, old, &parent, name, AtFlags::empty())?;
            return Ok(None);
        }
        EntryType::Fifo => mknodat(&parent, name, FileType::Fifo, permissions, 0)?,
        EntryType::Char | EntryType::Block => {
            let (major, minor) = (entry.header().device_major()?, entry.header().device_minor()?);
            let (major, minor) = (major.unwrap_or(0), minor.unwrap_or(0));
            let kind =
                if kind == EntryType::Char { FileType::CharacterDevice } else { FileType::BlockDevice };
            if (major, minor) == (0, 0) {
                return Err("a whiteout that only the engine may make".into());
            }
            mknodat(&parent, name, kind, permissions, makedev(major, minor))?;
            chownat(&parent, name, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        // Headers for the whole archive and kinds that no file system has.
        _ => return Ok(None),
    }
    set_time(&parent, name, entry.header().mtime().unwrap_or(0))?;
    Ok(None)
}

/// A whiteout hides a name of the layers below; what this layer itself has of that name stays.
fn whiteout(parent: &OwnedFd, hidden: &[u8]) -> Result<(), Failure> {
    let name = Path::new(std::ffi::OsStr::from_bytes(hidden));
    if !matches!(name.components().collect::<Vec<_>>()[..], [Component::Normal(_)]) {
        return Err("a whiteout without a name".into());
    }
    match mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), makedev(0, 0)) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// A later entry replaces an earlier one of the same name, except that a directory keeps its content.
fn make_room(parent: &OwnedFd, name: &Path, for_directory: bool) -> Result<(), Failure> {
    let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if for_directory => Ok(()),
        // The standard library's removal does not follow links either.
        FileType::Directory => Ok(std::fs::remove_dir_all(through(parent).join(name))?),
        _ => Ok(unlinkat(parent, name, AtFlags::empty())?),
    }
}

/// A path to an open directory, for calls that take only paths.
fn through(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

fn set_xattr(fd: &OwnedFd, key: &str, value: &[u8]) -> Result<(), Failure> {
    Ok(rustix::fs::setxattr(through(fd), key, value, XattrFlags::empty())?)
}

/// Attributes that programs rely on. The rest, overlay's own first of all, is not for archives to set.
fn xattrs(entry: &mut Entry<'_, impl Read>) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut found = Vec::new();
    let Some(extensions) = entry.pax_extensions()? else { return Ok(found) };
    for extension in extensions {
        let extension = extension?;
        let Ok(key) = extension.key() else { continue };
        let Some(name) = key.strip_prefix("SCHILY.xattr.") else { continue };
        if name == "security.capability" || name.starts_with("user.") {
            found.push((name.to_owned(), extension.value_bytes().to_vec()));
        }
    }
    Ok(found)
}

fn set_time(parent: &OwnedFd, name: &Path, seconds: u64) -> Result<(), Error> {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    match utimensat(parent.as_fd(), name, &times, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(Error::io(name)(e.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileTypeExt;

    fn layer(add: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> File {
        let mut builder = tar::Builder::new(Vec::new());
        add(&mut builder);
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &builder.into_inner().unwrap()).unwrap();
        io::Seek::rewind(&mut file).unwrap();
        file
    }

    /// Writes the name into the header directly, as the builder refuses hostile ones.
    fn entry(builder: &mut tar::Builder<Vec<u8>>, path: &str, kind: EntryType, link: &str, bytes: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o4755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        builder.append(&header, bytes).unwrap();
    }

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn hostile_entries_are_refused() {
        let cases: [(&str, &[(&str, EntryType, &str)]); 5] = [
            ("parent", &[("../evil", EntryType::Regular, "")]),
            ("link out", &[("out", EntryType::Symlink, "/tmp"), ("out/evil", EntryType::Regular, "")]),
            ("link up", &[("up", EntryType::Symlink, "../.."), ("up/evil", EntryType::Regular, "")]),
            ("hard link out", &[("s", EntryType::Link, "../../etc/passwd")]),
            ("forged whiteout", &[("w", EntryType::Char, "")]),
        ];
        for (name, entries) in cases {
            let dir = tempfile::tempdir().unwrap();
            let target = dir.path().join("layer");
            std::fs::create_dir(&target).unwrap();
            let file =
                layer(|b| entries.iter().for_each(|(path, kind, link)| entry(b, path, *kind, link, b"")));
            assert!(unpack(file, &target).is_err(), "{name}");
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "{name}");
        }
    }

    #[test]
    fn a_bomb_ends_before_the_disk_is_full() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::empty();
        linux::mounts::mount_tmpfs(dir.path(), flags, "size=128m").unwrap();
        let zeros = vec![0; 200 << 20];
        let plain = layer(|b| entry(b, "bomb", EntryType::Regular, "", &zeros));
        let mut packed = tempfile::tempfile().unwrap();
        let mut encoder = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::fast());
        io::copy(&mut BufReader::new(plain), &mut encoder).unwrap();
        encoder.finish().unwrap();
        io::Seek::rewind(&mut packed).unwrap();
        let unpacked = unpack(packed, dir.path());
        let left = rustix::fs::statvfs(dir.path()).unwrap();
        linux::mounts::unmount_lazy(dir.path()).unwrap();
        let error = unpacked.unwrap_err();
        assert!(format!("{:?}", error).contains("does not fit"), "{error:?}");
        assert!(left.f_bavail > 0, "something is left for others");
    }

    #[test]
    fn files_links_and_whiteouts_are_placed() {
        if !is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let file = layer(|b| {
            entry(b, "a/b/file", EntryType::Regular, "", b"text");
            entry(b, "a/hard", EntryType::Link, "a/b/file", b"");
            entry(b, "a/soft", EntryType::Symlink, "/etc", b"");
            entry(b, "a/.wh.gone", EntryType::Regular, "", b"");
            entry(b, "a/b/.wh..wh..opq", EntryType::Regular, "", b"");
            entry(b, "a/b/file", EntryType::Regular, "", b"newer");
        });
        unpack(file, dir.path()).unwrap();
        let read = |path: &str| std::fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!((read("a/b/file").as_str(), read("a/hard").as_str()), ("newer", "text"));
        assert!(std::fs::metadata(dir.path().join("a/gone")).unwrap().file_type().is_char_device());
        let mut value = [0; 8];
        let length =
            rustix::fs::getxattr(dir.path().join("a/b"), "trusted.overlay.opaque", &mut value).unwrap();
        assert_eq!(&value[..length], b"y");
    }
}
