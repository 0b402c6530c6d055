//! How commits stand in a file. A frame is one commit: a header, records, and a last byte that is never zero.
//!
//! ```text
//! frame:  mark 4 │ length of the records 4 │ CRC-32 of the records 4 │ CRC-32 of these twelve 4 │ records │ end 1
//! record: kind 1 │ revision 8 │ created 8 │ length of the key 4 │ length of the value 4 │ key │ value
//! ```
//!
//! Numbers are little-endian. Files are filled with zeros ahead of what is written, and one frame is in flight at a
//! time. So a frame that did not get whole onto the disk is the last one and has zeros where a sector or its end is
//! missing; anything else that does not match its checksum was damaged later.

use std::sync::Arc;

use bytes::Bytes;

use crate::disk::Medium;
use crate::{Change, Entry, Error, Result, Revision};

/// Text never holds these bytes.
const MARK: [u8; 4] = [0xFF, 0x54, 0x52, 0xFE];
const END: u8 = 0xFD;
const HEADER_BYTES: usize = 16;
const RECORD_HEADER_BYTES: usize = 25;
/// What a disk writes whole or not at all.
const SECTOR_BYTES: u64 = 512;

/// What a record says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    Put(Entry),
    Delete {
        key: Arc<str>,
        revision: Revision,
    },
    /// History up to here was forgotten.
    Compact(Revision),
    /// The last of a checkpoint of so many entries.
    Close {
        entries: u64,
    },
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const COMPACT: u8 = 3;
const CLOSE: u8 = 4;

/// Makes a frame, in a buffer that the next one takes over.
#[derive(Default)]
pub(super) struct Frame(Vec<u8>);

impl Frame {
    /// A buffer that is larger than this is not kept.
    const KEPT_BYTES: usize = 1 << 20;

    pub(super) fn begin(&mut self) {
        self.0.clear();
        self.0.shrink_to(Self::KEPT_BYTES);
        self.0.extend_from_slice(&[0; HEADER_BYTES]);
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn change(&mut self, change: &Change) {
        match &change.value {
            Some(entry) => self.entry(entry),
            None => self.record(DELETE, change.revision, 0, &change.key, &[]),
        }
    }

    pub(super) fn entry(&mut self, entry: &Entry) {
        self.record(PUT, entry.modified, entry.created, &entry.key, &entry.value);
    }

    pub(super) fn compact(&mut self, revision: Revision) {
        self.record(COMPACT, revision, 0, "", &[]);
    }

    pub(super) fn close(&mut self, entries: u64) {
        self.record(CLOSE, entries, 0, "", &[]);
    }

    fn record(&mut self, kind: u8, revision: u64, created: u64, key: &str, value: &[u8]) {
        self.0.push(kind);
        self.0.extend_from_slice(&revision.to_le_bytes());
        self.0.extend_from_slice(&created.to_le_bytes());
        self.0.extend_from_slice(&length(key.len()));
        self.0.extend_from_slice(&length(value.len()));
        self.0.extend_from_slice(key.as_bytes());
        self.0.extend_from_slice(value);
    }

    /// The frame as it is written.
    pub(super) fn finish(&mut self) -> &[u8] {
        let records = length(self.0.len() - HEADER_BYTES);
        self.0[..4].copy_from_slice(&MARK);
        self.0[4..8].copy_from_slice(&records);
        let sum = checksum(&self.0[HEADER_BYTES..]);
        self.0[8..12].copy_from_slice(&sum);
        let sum = checksum(&self.0[..12]);
        self.0[12..16].copy_from_slice(&sum);
        self.0.push(END);
        &self.0
    }
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("a batch is bounded far below four gigabytes").to_le_bytes()
}

fn checksum(bytes: &[u8]) -> [u8; 4] {
    crc32fast::hash(bytes).to_le_bytes()
}

fn number(bytes: &[u8]) -> usize {
    u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize
}

fn revision(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}

/// What a file has at a place.
enum Found {
    /// A whole frame, whose records are in the buffer.
    Frame,
    Nothing,
    /// A frame that did not get onto the disk, and where it would have ended, if that is known.
    Torn(Option<u64>),
    Damaged,
}

/// Reads a file frame by frame.
pub(super) struct Reader<'m> {
    name: &'m str,
    medium: &'m dyn Medium,
    size: u64,
    at: u64,
    buffer: Vec<u8>,
}

impl<'m> Reader<'m> {
    pub(super) fn new(name: &'m str, medium: &'m dyn Medium) -> Result<Self> {
        let size = medium.size().map_err(unreadable)?;
        Ok(Reader { name, medium, size, at: 0, buffer: Vec::new() })
    }

    /// Where the next frame is, or would be.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// Gives the records of the next frame to `take`. False at the end, which may be an unfinished frame.
    pub(super) fn next(&mut self, mut take: impl FnMut(Record) -> Result<()>) -> Result<bool> {
        match self.find()? {
            Found::Frame => {}
            Found::Nothing => return self.check_rest(None).map(|()| false),
            Found::Torn(end) => return self.check_rest(end).map(|()| false),
            Found::Damaged => return Err(self.damaged("does not match its checksum")),
        }
        let end = self.buffer.len() - 1;
        let mut rest = &self.buffer[HEADER_BYTES..end];
        while !rest.is_empty() {
            let (record, behind) = read_record(rest).map_err(|what| self.damaged(what))?;
            take(record)?;
            rest = behind;
        }
        self.at += end as u64 + 1;
        Ok(true)
    }

    /// Reads what is at the position into the buffer.
    fn find(&mut self) -> Result<Found> {
        let left = self.size - self.at;
        let header = left.min(HEADER_BYTES as u64) as usize;
        self.read(0, header)?;
        if self.buffer.iter().all(|byte| *byte == 0) {
            return Ok(Found::Nothing);
        }
        if header < HEADER_BYTES {
            return Ok(Found::Torn(None));
        }
        if self.buffer[..4] != MARK || checksum(&self.buffer[..12]) != self.buffer[12..16] {
            return Ok(if self.lacks_sector() { Found::Torn(None) } else { Found::Damaged });
        }
        let records = number(&self.buffer[4..8]);
        let whole = HEADER_BYTES + records + 1;
        let there = left.min(whole as u64) as usize;
        self.read(HEADER_BYTES, there)?;
        if there < whole {
            return Ok(Found::Torn(None));
        }
        let is_sound = self.buffer[whole - 1] == END
            && checksum(&self.buffer[HEADER_BYTES..whole - 1]) == self.buffer[8..12];
        Ok(match is_sound {
            true => Found::Frame,
            false if self.lacks_sector() => Found::Torn(Some(self.at + whole as u64)),
            false => Found::Damaged,
        })
    }

    /// Lengthens the buffer to so many bytes from the position on.
    fn read(&mut self, from: usize, to: usize) -> Result<()> {
        self.buffer.resize(to, 0);
        let at = self.at + from as u64;
        self.medium.read_at(at, &mut self.buffer[from..to]).map_err(unreadable)
    }

    /// Whether a sector below the buffer is zeros.
    fn lacks_sector(&self) -> bool {
        let first = (SECTOR_BYTES - self.at % SECTOR_BYTES) as usize;
        let (head, rest) = self.buffer.split_at(first.min(self.buffer.len()));
        let mut sectors = std::iter::once(head).chain(rest.chunks(SECTOR_BYTES as usize));
        sectors.any(|sector| sector.iter().all(|byte| *byte == 0))
    }

    /// Behind the last frame there is nothing, and no frame behind one of unknown length: else one is missing, and not
    /// because it was the last.
    fn check_rest(&mut self, known_end: Option<u64>) -> Result<()> {
        const BLOCK_BYTES: usize = 1 << 20;
        let (end, size) = (self.at, self.size);
        let mut block = vec![0; BLOCK_BYTES];
        let mut from = known_end.unwrap_or(end + 1);
        while from < size {
            let length = (size - from).min(BLOCK_BYTES as u64) as usize;
            self.medium.read_at(from, &mut block[..length]).map_err(unreadable)?;
            if known_end.is_some() && block[..length].iter().any(|byte| *byte != 0) {
                return Err(self.damaged("is missing"));
            }
            for offset in marks(&block[..length]) {
                self.at = from + offset as u64;
                if matches!(self.find()?, Found::Frame) {
                    self.at = end;
                    return Err(self.damaged("is missing"));
                }
            }
            // A mark may lie across two blocks.
            let step = if length < BLOCK_BYTES { length } else { length - MARK.len() + 1 };
            from += step as u64;
        }
        self.at = end;
        Ok(())
    }

    fn damaged(&self, what: &str) -> Error {
        Error::Corrupt { what: format!("the commit at byte {} of {} {what}", self.at, self.name) }
    }
}

fn marks(block: &[u8]) -> impl Iterator<Item = usize> {
    let starts = block.iter().enumerate().filter(|(_, byte)| **byte == MARK[0]).map(|(at, _)| at);
    starts.filter(|at| block[*at..].starts_with(&MARK))
}

pub(super) fn unreadable(source: std::io::Error) -> Error {
    Error::Backend { action: "read the store", source: source.into() }
}

/// The error says what is wrong with the commit, to follow its place.
fn read_record(bytes: &[u8]) -> Result<(Record, &[u8]), &'static str> {
    let (header, rest) = bytes.split_at_checked(RECORD_HEADER_BYTES).ok_or("ends within a record")?;
    let (key, rest) = rest.split_at_checked(number(&header[17..21])).ok_or("has a key beyond its end")?;
    let (value, rest) = rest.split_at_checked(number(&header[21..25])).ok_or("has a value beyond its end")?;
    let key = || std::str::from_utf8(key).map(Arc::from).map_err(|_| "has a key that is not UTF-8");
    let at = revision(&header[1..9]);
    let record = match header[0] {
        PUT => Record::Put(Entry {
            key: key()?,
            value: Bytes::copy_from_slice(value),
            created: revision(&header[9..17]),
            modified: at,
        }),
        DELETE => Record::Delete { key: key()?, revision: at },
        COMPACT => Record::Compact(at),
        CLOSE => Record::Close { entries: at },
        _ => return Err("has a record of a kind that this version does not know"),
    };
    Ok((record, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Memory(Vec<u8>);

    impl Medium for Memory {
        fn size(&self) -> std::io::Result<u64> {
            Ok(self.0.len() as u64)
        }

        fn read_at(&self, at: u64, out: &mut [u8]) -> std::io::Result<()> {
            out.copy_from_slice(&self.0[at as usize..at as usize + out.len()]);
            Ok(())
        }

        fn write_at(&self, _: u64, _: &[u8]) -> std::io::Result<()> {
            unreachable!("only read")
        }

        fn set_size(&self, _: u64) -> std::io::Result<()> {
            unreachable!("only read")
        }

        fn sync(&self) -> std::io::Result<()> {
            unreachable!("only read")
        }
    }

    fn entry(revision: u64) -> Entry {
        let value = Bytes::from(format!("{{\"revision\":{revision}}}").repeat(60));
        Entry { key: "/registry/pods/default/web".into(), value, created: 2, modified: revision }
    }

    /// Three commits, where each ends, and the zeros behind them.
    fn file() -> (Vec<u8>, Vec<usize>) {
        let (mut file, mut ends) = (Vec::new(), Vec::new());
        for revision in 2..5 {
            let mut frame = Frame::default();
            frame.begin();
            frame.entry(&entry(revision));
            file.extend_from_slice(frame.finish());
            ends.push(file.len());
        }
        file.resize(file.len() + 2000, 0);
        (file, ends)
    }

    /// The revisions that are read.
    fn read(file: Vec<u8>) -> Result<Vec<u64>> {
        let medium = Memory(file);
        let mut reader = Reader::new("log", &medium)?;
        let mut revisions = Vec::new();
        while reader.next(|record| {
            let Record::Put(found) = record else { panic!("only puts were written") };
            assert_eq!(found, entry(found.modified), "what is read was written");
            revisions.push(found.modified);
            Ok(())
        })? {}
        Ok(revisions)
    }

    #[test]
    fn commits_are_read_and_any_flipped_bit_in_one_is_reported() {
        let (whole, ends) = file();
        assert_eq!(read(whole.clone()).unwrap(), [2, 3, 4]);
        for bit in 0..ends[2] * 8 {
            let mut file = whole.clone();
            file[bit / 8] ^= 1 << (bit % 8);
            let found = read(file);
            assert!(matches!(found, Err(Error::Corrupt { .. })), "bit {bit}: {found:?}");
        }
    }

    #[test]
    fn a_last_commit_that_lacks_sectors_is_taken_back_and_an_earlier_one_reported() {
        let (whole, ends) = file();
        for sector in 0..whole.len().div_ceil(512) {
            let range = sector * 512..whole.len().min(sector * 512 + 512);
            let mut file = whole.clone();
            file[range.clone()].fill(0);
            let found = read(file);
            match range {
                range if range.start >= ends[2] => assert_eq!(found.unwrap(), [2, 3, 4]),
                range if range.start >= ends[1] => assert_eq!(found.unwrap(), [2, 3]),
                range => assert!(found.is_err(), "{range:?}: {found:?}"),
            }
        }
        for end in ends[1]..ends[2] {
            assert_eq!(read(whole[..end].to_vec()).unwrap(), [2, 3], "cut at {end}");
        }
    }
}
