//! How one change stands in the file: a checksum over the rest, then what was written.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Change, Revision};

/// Checksum, created revision, kind, key length.
const HEADER_BYTES: usize = 4 + 8 + 1 + 4;
const PUT: u8 = 0;
const DELETE: u8 = 1;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub key: Arc<str>,
    /// `None` when the key was deleted.
    pub value: Option<Bytes>,
    pub created: Revision,
}

/// Replaces the contents of `out`.
pub(crate) fn encode(change: &Change, out: &mut Vec<u8>) {
    out.clear();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&change.value.as_ref().map_or(0, |entry| entry.created).to_le_bytes());
    out.push(if change.value.is_some() { PUT } else { DELETE });
    out.extend_from_slice(&(change.key.len() as u32).to_le_bytes());
    out.extend_from_slice(change.key.as_bytes());
    if let Some(entry) = &change.value {
        out.extend_from_slice(&entry.value);
    }
    let checksum = crc32fast::hash(&out[4..]);
    out[..4].copy_from_slice(&checksum.to_le_bytes());
}

impl Record {
    /// The error says what is wrong with the record, to follow its name.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (header, rest) = bytes.split_at_checked(HEADER_BYTES).ok_or("is too short")?;
        let (checksum, fields) = header.split_at(4);
        if crc32fast::hash(&bytes[4..]).to_le_bytes() != checksum {
            return Err("does not match its checksum");
        }
        let created = u64::from_le_bytes(fields[..8].try_into().expect("eight bytes"));
        let key_bytes = u32::from_le_bytes(fields[9..].try_into().expect("four bytes")) as usize;
        let (key, value) = rest.split_at_checked(key_bytes).ok_or("has a key beyond its end")?;
        let key = std::str::from_utf8(key).map_err(|_| "has a key that is not UTF-8")?;
        let value = (fields[8] == PUT).then(|| Bytes::copy_from_slice(value));
        Ok(Record { key: key.into(), value, created })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Entry;

    #[test]
    fn a_record_survives_and_any_flipped_bit_is_found() {
        let key: Arc<str> = "/registry/pods/default/web".into();
        let value =
            Some(Entry { key: key.clone(), value: Bytes::from_static(b"{}"), created: 7, modified: 9 });
        let change = Change { revision: 9, key: key.clone(), value, previous: None };
        let mut bytes = Vec::new();
        encode(&change, &mut bytes);
        let record = Record::decode(&bytes).unwrap();
        assert_eq!(record, Record { key, value: Some(Bytes::from_static(b"{}")), created: 7 });
        for bit in 0..bytes.len() * 8 {
            let mut torn = bytes.clone();
            torn[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::decode(&torn).is_err(), "bit {bit}");
        }
        for end in 0..bytes.len() {
            assert!(Record::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
    }
}
