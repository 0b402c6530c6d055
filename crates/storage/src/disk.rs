//! Where the files of an [`crate::embedded::Embedded`] store lie: a folder, or in tests a disk that fails.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Files by name.
pub trait Disk: Send + Sync + 'static {
    fn names(&self) -> io::Result<Vec<String>>;

    fn open(&self, name: &str) -> io::Result<Box<dyn Medium>>;

    /// A new file, or an empty one in the place of another.
    fn create(&self, name: &str) -> io::Result<Box<dyn Medium>>;

    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    fn remove(&self, name: &str) -> io::Result<()>;

    /// Makes durable which files there are.
    fn sync(&self) -> io::Result<()>;
}

/// One file.
pub trait Medium: Send {
    fn size(&self) -> io::Result<u64>;

    /// Fills `out` from there on; the file must be long enough.
    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()>;

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()>;

    /// Cuts the file off, or lengthens it by zeros.
    fn set_size(&self, size: u64) -> io::Result<()>;

    /// Makes durable what was written.
    fn sync(&self) -> io::Result<()>;
}

/// Held locked while the folder is in use.
const LOCK: &str = "lock";

/// A folder of a file system, which one process uses at a time.
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder when there is none.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source: io::Error| Error::Backend { action: "open the store", source: source.into() };
        std::fs::create_dir_all(path).map_err(failed)?;
        let lock = options().open(path.join(LOCK)).map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Folder { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

/// For what only its owner may read: the store holds every Secret.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options
}

impl Disk for Folder {
    fn names(&self) -> io::Result<Vec<String>> {
        let name = |entry: io::Result<std::fs::DirEntry>| Ok(entry?.file_name().into_string().ok());
        std::fs::read_dir(&self.path)?.filter_map(|entry| name(entry).transpose()).collect()
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Medium>> {
        Ok(Box::new(options().create(false).open(self.path.join(name))?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Medium>> {
        Ok(Box::new(options().truncate(true).open(self.path.join(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path.join(from), self.path.join(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl Medium for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, at)
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
