//! The files of a store: segments of a log of commits, and at most one checkpoint, the state at a revision.
//!
//! ```text
//! state-00000000000000081920   all keys at that revision
//! log-00000000000000070001     commits from that revision on
//! log-00000000000000090412     the newest are here
//! ```
//!
//! What always holds: the newest checkpoint and the commits after it make the state; segments whose commits history
//! has forgotten go once a checkpoint stands for them. A commit that was refused is not in the log: it is cut off
//! again, or nothing is written any more.

use std::io;
use std::sync::Arc;

use super::frame::{Frame, Reader, Record, unreadable};
use crate::disk::{Disk, Medium};
use crate::state::{FIRST_REVISION, State};
use crate::{Change, Entry, Error, Result, Revision};

/// A file is lengthened by zeros so far ahead: writing over them changes nothing of the file but its contents, which
/// spares most commits the sync of its metadata.
const AHEAD_BYTES: usize = 1 << 20;
const ZEROS: &[u8] = &[0; 64 << 10];

const SEGMENT: &str = "log-";
const CHECKPOINT: &str = "state-";
/// A checkpoint that is not whole yet.
const UNFINISHED: &str = "unfinished";

/// When the log goes on in another file, and when a checkpoint stands for the old ones.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// A file of the log is full with so many bytes.
    pub segment: u64,
    /// A checkpoint is written when it lets go so many bytes, and as many as the last one has.
    pub dead: u64,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes { segment: 16 << 20, dead: 64 << 20 }
    }
}

/// How much of a checkpoint is one frame.
const CHECKPOINT_FRAME_BYTES: usize = 1 << 20;

fn name_of(kind: &str, revision: Revision) -> String {
    format!("{kind}{revision:020}")
}

fn revision_of(kind: &str, name: &str) -> Option<Revision> {
    name.strip_prefix(kind)?.parse().ok()
}

/// A segment that is not written any more.
struct Segment {
    name: String,
    last: Revision,
    bytes: u64,
}

pub(super) struct Log {
    disk: Arc<dyn Disk>,
    sizes: Sizes,
    /// The oldest first.
    closed: Vec<Segment>,
    current: Current,
    frame: Frame,
    /// How large the newest checkpoint is.
    checkpoint_bytes: u64,
    /// Why nothing can be written any more.
    broken: Option<Arc<io::Error>>,
}

/// The segment that is written.
struct Current {
    name: String,
    medium: Box<dyn Medium>,
    /// Where the next frame goes.
    end: u64,
    /// How much of the file there is: zeros from the end on.
    size: u64,
    last: Revision,
}

impl Log {
    /// Reads everything. Makes the first segment of a new store.
    pub(super) fn open(disk: Arc<dyn Disk>, sizes: Sizes) -> Result<(Self, State)> {
        let names = disk.names().map_err(unreadable)?;
        let newest = |kind| names.iter().filter_map(move |name| revision_of(kind, name)).max();
        let (mut state, checkpoint_bytes) = match newest(CHECKPOINT) {
            Some(revision) => read_checkpoint(&*disk, revision)?,
            None => (State::new(FIRST_REVISION), 0),
        };
        let base = state.compacted();
        let mut starts: Vec<Revision> = names.iter().filter_map(|name| revision_of(SEGMENT, name)).collect();
        starts.sort_unstable();
        if starts.is_empty() && checkpoint_bytes > 0 {
            return Err(Error::Corrupt { what: "there is no log beside the checkpoint".into() });
        }
        let mut segments: Vec<Current> = Vec::new();
        let mut forgotten = base;
        for start in starts {
            segments.push(read_segment(&*disk, start, &mut state, &mut forgotten)?);
        }
        state.compact(forgotten);
        while let Some(excess) = state.excess() {
            state.compact(excess);
        }
        let mut log = Log {
            current: match segments.pop() {
                Some(last) => last,
                None => Current::create(&*disk, state.revision() + 1).map_err(unwritable)?,
            },
            closed: segments.into_iter().map(Current::close).collect(),
            frame: Frame::default(),
            disk,
            sizes,
            checkpoint_bytes,
            broken: None,
        };
        log.current.cut().map_err(unwritable)?;
        let dead = log.take_dead(base);
        let old = names.iter().filter(|name| {
            *name == UNFINISHED || revision_of(CHECKPOINT, name).is_some_and(|revision| revision < base)
        });
        remove(&*log.disk, old.map(String::as_str).chain(dead.iter().map(|segment| segment.name.as_str())));
        Ok((log, state))
    }

    /// Makes changes durable, and with them that history was forgotten up to a revision.
    pub(super) fn append(
        &mut self,
        changes: &[Arc<Change>],
        forgotten: Option<Revision>,
    ) -> Result<(), Arc<io::Error>> {
        if let Some(broken) = &self.broken {
            return Err(broken.clone());
        }
        if self.current.end >= self.sizes.segment {
            self.turn();
        }
        self.frame.begin();
        changes.iter().for_each(|change| self.frame.change(change));
        forgotten.into_iter().for_each(|revision| self.frame.compact(revision));
        let last = changes.last().map_or(self.current.last, |change| change.revision);
        self.current.append(self.frame.finish(), last).map_err(|failure| {
            let error = Arc::new(failure.error);
            if !failure.is_undone {
                self.broken = Some(error.clone());
            }
            error
        })
    }

    /// Goes on in another segment. Where there is no room for one, this one grows.
    fn turn(&mut self) {
        let first = self.current.last + 1;
        if self.current.name == name_of(SEGMENT, first) {
            return;
        }
        let next = match Current::create(&*self.disk, first) {
            Ok(next) => next,
            Err(error) => return tracing::warn!(%error, "cannot begin another file of the store's log"),
        };
        let full = std::mem::replace(&mut self.current, next);
        // The zeros at its end are only waste.
        full.medium.set_size(full.end).ok();
        self.closed.push(full.close());
    }

    /// Leaves no zeros behind the last commit.
    pub(super) fn close(mut self) {
        if self.broken.is_none()
            && let Err(error) = self.current.cut()
        {
            tracing::warn!(%error, "cannot cut off the end of the store's log");
        }
    }

    /// A checkpoint to be made at the beginning of history, once that lets go enough of the log.
    pub(super) fn due(&mut self, compacted: Revision) -> Option<Checkpoint> {
        let dead: u64 =
            self.closed.iter().take_while(|segment| segment.last <= compacted).map(|s| s.bytes).sum();
        if dead < self.sizes.dead.max(self.checkpoint_bytes) {
            return None;
        }
        Some(Checkpoint { disk: self.disk.clone(), dead: self.take_dead(compacted) })
    }

    fn take_dead(&mut self, compacted: Revision) -> Vec<Segment> {
        let count = self.closed.iter().take_while(|segment| segment.last <= compacted).count();
        self.closed.drain(..count).collect()
    }

    /// Takes note of a checkpoint, or takes back what it was to let go.
    pub(super) fn checkpointed(&mut self, made: Made) {
        match made.result {
            Ok(bytes) => self.checkpoint_bytes = bytes,
            Err(error) => {
                tracing::warn!(%error, "cannot write a checkpoint of the store; its log grows on");
                self.closed.splice(..0, made.dead);
            }
        }
    }
}

/// Why a commit was refused.
struct Failure {
    error: io::Error,
    /// Nothing of the commit is left.
    is_undone: bool,
}

impl Current {
    fn create(disk: &dyn Disk, first: Revision) -> io::Result<Self> {
        let name = name_of(SEGMENT, first);
        let medium = disk.create(&name)?;
        disk.sync()?;
        Ok(Current { name, medium, end: 0, size: 0, last: first - 1 })
    }

    fn close(self) -> Segment {
        Segment { name: self.name, last: self.last, bytes: self.end }
    }

    /// Cuts off what is behind the last commit: zeros, and perhaps an unfinished one.
    fn cut(&mut self) -> io::Result<()> {
        self.medium.set_size(self.end)?;
        self.medium.sync()?;
        self.size = self.end;
        Ok(())
    }

    fn append(&mut self, frame: &[u8], last: Revision) -> Result<(), Failure> {
        let end = self.end + frame.len() as u64;
        let written = match end > self.size {
            true => self.lengthen(end).and_then(|()| self.medium.write_at(self.end, frame)),
            false => self.medium.write_at(self.end, frame),
        };
        if let Err(error) = written {
            return Err(Failure { error, is_undone: self.cut().is_ok() });
        }
        // What a disk holds after a sync that failed is not known.
        self.medium.sync().map_err(|error| Failure { error, is_undone: false })?;
        (self.end, self.last) = (end, last);
        Ok(())
    }

    fn lengthen(&mut self, needed: u64) -> io::Result<()> {
        let wanted = needed.max(self.size + AHEAD_BYTES as u64);
        // A failure in the middle leaves zeros that are cut off.
        while self.size < wanted {
            let length = (wanted - self.size).min(ZEROS.len() as u64) as usize;
            self.medium.write_at(self.size, &ZEROS[..length])?;
            self.size += length as u64;
        }
        Ok(())
    }
}

fn unwritable(source: io::Error) -> Error {
    Error::Backend { action: "write to the store", source: source.into() }
}

/// Files that nobody needs any more. One that stays is met again at the next opening.
fn remove<'n>(disk: &dyn Disk, names: impl Iterator<Item = &'n str>) {
    for name in names {
        if let Err(error) = disk.remove(name) {
            tracing::warn!(%error, name, "cannot remove an old file of the store");
        }
    }
}

/// Makes the commits of a segment part of the state, but for those that the checkpoint stands for.
fn read_segment(
    disk: &dyn Disk,
    start: Revision,
    state: &mut State,
    forgotten: &mut Revision,
) -> Result<Current> {
    let name = name_of(SEGMENT, start);
    let medium = disk.open(&name).map_err(unreadable)?;
    let base = state.compacted();
    let mut last = start - 1;
    let mut reader = Reader::new(&name, &*medium)?;
    while reader.next(|record| {
        let (key, revision, value) = match record {
            Record::Put(entry) => (entry.key.clone(), entry.modified, Some(entry)),
            Record::Delete { key, revision } => (key, revision, None),
            Record::Compact(revision) => {
                *forgotten = revision.max(*forgotten);
                return Ok(());
            }
            Record::Close { .. } => return Ok(()),
        };
        last = revision;
        if revision <= base { Ok(()) } else { replay(state, key, revision, value) }
    })? {}
    let (end, size) = (reader.position(), medium.size().map_err(unreadable)?);
    Ok(Current { name, medium, end, size, last })
}

fn replay(state: &mut State, key: Arc<str>, revision: Revision, value: Option<Entry>) -> Result<()> {
    let expected = state.revision() + 1;
    if revision != expected {
        return Err(Error::Corrupt { what: format!("revision {expected} is missing from the store") });
    }
    let previous = state.current(&key).cloned();
    state.apply(Arc::new(Change { revision, key, value, previous }));
    Ok(())
}

fn read_checkpoint(disk: &dyn Disk, revision: Revision) -> Result<(State, u64)> {
    let name = name_of(CHECKPOINT, revision);
    let medium = disk.open(&name).map_err(unreadable)?;
    let mut state = State::new(revision);
    let (mut entries, mut closed) = (0, None);
    let mut reader = Reader::new(&name, &*medium)?;
    while reader.next(|record| {
        match record {
            Record::Put(entry) => {
                state.restore(entry);
                entries += 1;
            }
            Record::Close { entries } => closed = Some(entries),
            Record::Delete { .. } | Record::Compact(_) => {}
        }
        Ok(())
    })? {}
    if closed != Some(entries) {
        return Err(Error::Corrupt { what: format!("{name} ends after {entries} entries") });
    }
    Ok((state, reader.position()))
}

/// The state at the beginning of history, to be written while the log goes on.
pub(super) struct Checkpoint {
    disk: Arc<dyn Disk>,
    /// What the checkpoint lets go.
    dead: Vec<Segment>,
}

/// What became of a checkpoint: its size.
pub(super) struct Made {
    result: io::Result<u64>,
    dead: Vec<Segment>,
}

impl Checkpoint {
    /// Writes these entries as the state at a revision, until `stopped` says otherwise.
    pub(super) fn write(self, revision: Revision, entries: &[Entry], stopped: impl Fn() -> bool) -> Made {
        let result = self.try_write(revision, entries, stopped);
        if result.is_err() {
            remove(&*self.disk, std::iter::once(UNFINISHED));
        }
        Made { result, dead: self.dead }
    }

    fn try_write(
        &self,
        revision: Revision,
        entries: &[Entry],
        stopped: impl Fn() -> bool,
    ) -> io::Result<u64> {
        let medium = self.disk.create(UNFINISHED)?;
        let mut frame = Frame::default();
        let mut end = 0;
        let mut put = |frame: &mut Frame| {
            let bytes = frame.finish();
            medium.write_at(end, bytes)?;
            end += bytes.len() as u64;
            frame.begin();
            io::Result::Ok(())
        };
        frame.begin();
        for entry in entries {
            if frame.len() >= CHECKPOINT_FRAME_BYTES {
                if stopped() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                put(&mut frame)?;
            }
            frame.entry(entry);
        }
        frame.close(entries.len() as u64);
        put(&mut frame)?;
        medium.sync()?;
        self.disk.rename(UNFINISHED, &name_of(CHECKPOINT, revision))?;
        self.disk.sync()?;
        let names = self.disk.names()?;
        let old = |name: &&String| revision_of(CHECKPOINT, name).is_some_and(|is| is < revision);
        let dead = self.dead.iter().map(|segment| segment.name.as_str());
        remove(&*self.disk, names.iter().filter(old).map(String::as_str).chain(dead));
        Ok(end)
    }
}
