//! Addresses, given out from files: one file an address in `<stateDir>/addresses`, named
//! `ADDRESS@CONTAINER@INTERFACE`, so that reading the directory is reading the whole table.
//!
//! What always holds: every call holds the lock; an address that was given back is not given out again before
//! the rest of the range was (next-fit), because peers and conntrack remember it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::config::{Attachment, PortMapping};
use crate::{Cidr, Error};

/// The first addresses of a range are the network's and the node's own.
const RESERVED: u64 = 2;

/// The table of one node, locked for as long as this lives.
pub(crate) struct Addresses {
    dir: PathBuf,
    _lock: File,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub address: IpAddr,
    pub attachment: Attachment,
}

impl Held {
    fn file_name(&self) -> String {
        format!("{}@{}@{}", self.address, self.attachment.container_id(), self.attachment.interface())
    }

    fn parse(file_name: &str) -> Option<Self> {
        let mut parts = file_name.splitn(3, '@');
        let address = parts.next()?.parse().ok()?;
        let attachment = Attachment::new(parts.next()?, parts.next()?).ok()?;
        Some(Held { address, attachment })
    }
}

impl Addresses {
    /// Opens the table and waits for its lock.
    pub fn lock(state_dir: &Path) -> Result<Self, Error> {
        let failed = || Error::io(format!("use the state directory {}", state_dir.display()));
        let dir = state_dir.join("addresses");
        std::fs::create_dir_all(&dir).map_err(failed())?;
        let lock = File::create(state_dir.join("lock")).map_err(failed())?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|errno| failed()(errno.into()))?;
        Ok(Addresses { dir, _lock: lock })
    }

    /// Every address that is given out. Files that are not ours are passed over.
    pub fn held(&self) -> Result<Vec<Held>, Error> {
        let read = || -> io::Result<Vec<Held>> {
            let mut held = Vec::new();
            for entry in std::fs::read_dir(&self.dir)? {
                held.extend(entry?.file_name().to_str().and_then(Held::parse));
            }
            Ok(held)
        };
        read().map_err(Error::io("read the addresses given out"))
    }

    pub fn held_by(&self, attachment: &Attachment) -> Result<Vec<Held>, Error> {
        Ok(self.held()?.into_iter().filter(|held| held.attachment == *attachment).collect())
    }

    /// One address from each range: those that the attachment holds already, or new ones.
    pub fn give(&self, ranges: &[Cidr], attachment: &Attachment) -> Result<Vec<IpAddr>, Error> {
        let held = self.held()?;
        let used: BTreeSet<IpAddr> = held.iter().map(|held| held.address).collect();
        let mut given = Vec::new();
        for range in ranges {
            let kept =
                held.iter().find(|held| held.attachment == *attachment && range.contains(held.address));
            given.push(match kept {
                Some(held) => held.address,
                None => self.give_one(range, &used, attachment)?,
            });
        }
        Ok(given)
    }

    fn give_one(
        &self,
        range: &Cidr,
        used: &BTreeSet<IpAddr>,
        attachment: &Attachment,
    ) -> Result<IpAddr, Error> {
        let failed = || Error::io(format!("give out an address of {range}"));
        let cursor = self.dir.with_file_name(format!("last-{}", range.to_string().replace('/', "_")));
        let last = match std::fs::read_to_string(&cursor) {
            Ok(text) => text.trim().parse().unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(failed()(error)),
        };
        let offset =
            next_fit(range.size(), !range.is_ipv6(), last, |offset| used.contains(&range.nth(offset)))
                .ok_or(Error::Exhausted(*range))?;
        // The cursor first: a crash between the two then wastes an address instead of reusing one too early.
        std::fs::write(&cursor, offset.to_string()).map_err(failed())?;
        let held = Held { address: range.nth(offset), attachment: attachment.clone() };
        File::create_new(self.dir.join(held.file_name())).map_err(failed())?;
        Ok(held.address)
    }

    /// Remembers the host ports of an attachment with its address.
    pub fn set_port_mappings(&self, held: &Held, mappings: &[PortMapping]) -> Result<(), Error> {
        let json = serde_json::to_vec(mappings).expect("port mappings are strings and numbers");
        std::fs::write(self.dir.join(held.file_name()), json).map_err(Error::io("remember host ports"))
    }

    /// The host ports remembered with an address; none when the file was cut short.
    pub fn port_mappings(&self, held: &Held) -> Vec<PortMapping> {
        let json = std::fs::read(self.dir.join(held.file_name())).unwrap_or_default();
        serde_json::from_slice(&json).unwrap_or_default()
    }

    /// Takes an address back; one that is free is no error.
    pub fn take_back(&self, held: &Held) -> Result<(), Error> {
        match std::fs::remove_file(self.dir.join(held.file_name())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("take back an address")(error))
            }
            _ => Ok(()),
        }
    }
}

/// The first free offset after `last`, around the end. IPv4 keeps its last address for broadcasts.
fn next_fit(size: u64, has_broadcast: bool, last: u64, is_used: impl Fn(u64) -> bool) -> Option<u64> {
    let end = if has_broadcast { size.saturating_sub(1) } else { size };
    let start = last.saturating_add(1).max(RESERVED);
    (start..end).chain(RESERVED..start.min(end)).find(|offset| !is_used(*offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_fit_goes_round() {
        type Case = (u64, bool, u64, &'static [u64], Option<u64>);
        let cases: [Case; 8] = [
            (8, true, 0, &[], Some(2)),
            (8, true, 2, &[], Some(3)),
            (8, true, 2, &[3, 4], Some(5)),
            (8, true, 6, &[2], Some(3)),
            (8, true, 4, &[2, 3, 4, 5, 6], None),
            (8, false, 6, &[2], Some(7)),
            (8, true, 900, &[2], Some(3)),
            (1, true, 0, &[], None),
        ];
        for (size, broadcast, last, used, expected) in cases {
            let found = next_fit(size, broadcast, last, |offset| used.contains(&offset));
            assert_eq!(found, expected, "size {size} last {last} used {used:?}");
        }
    }

    #[test]
    fn addresses_are_kept_by_container_and_not_reused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let ranges: Vec<Cidr> = vec!["10.0.0.0/29".parse().unwrap(), "fd00::/120".parse().unwrap()];
        let attachment = |name: &str| Attachment::new(name, "eth0").unwrap();
        let give = |name: &str| {
            let table = Addresses::lock(dir.path()).unwrap();
            table.give(&ranges, &attachment(name)).map(|given| given[0].to_string())
        };
        assert_eq!(give("a").unwrap(), "10.0.0.2");
        assert_eq!(give("b").unwrap(), "10.0.0.3");
        assert_eq!(give("a").unwrap(), "10.0.0.2");
        {
            let table = Addresses::lock(dir.path()).unwrap();
            for held in table.held_by(&attachment("a")).unwrap() {
                table.take_back(&held).unwrap();
                table.take_back(&held).unwrap();
            }
        }
        assert_eq!(give("c").unwrap(), "10.0.0.4");
        assert_eq!(give("d").unwrap(), "10.0.0.5");
        assert_eq!(give("e").unwrap(), "10.0.0.6");
        assert_eq!(give("f").unwrap(), "10.0.0.2");
        assert_eq!(give("g").unwrap_err().code(), 11);
    }

    #[test]
    fn concurrent_calls_never_share_an_address() {
        let dir = tempfile::tempdir().unwrap();
        let ranges: Vec<Cidr> = vec!["10.0.0.0/25".parse().unwrap()];
        let given: BTreeSet<IpAddr> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..64)
                .map(|number| {
                    let (dir, ranges) = (dir.path(), &ranges);
                    scope.spawn(move || {
                        let attachment = Attachment::new(&format!("c{number}"), "eth0").unwrap();
                        Addresses::lock(dir).unwrap().give(ranges, &attachment).unwrap()[0]
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(given.len(), 64);
    }
}
