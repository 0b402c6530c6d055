//! The protobuf wire format: varints, tags and lengths.

use crate::Error;

/// A message written from its end to its start, as lengths come before what they measure.
#[derive(Default)]
pub struct Backward {
    /// What was written lies at the end.
    bytes: Vec<u8>,
    start: usize,
}

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

impl Backward {
    pub fn with_capacity(capacity: usize) -> Self {
        Backward { bytes: vec![0; capacity], start: capacity }
    }

    pub fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub fn finish(mut self) -> Vec<u8> {
        if self.start == 0 { self.bytes } else { self.bytes.split_off(self.start) }
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        if self.start < bytes.len() {
            self.grow(bytes.len());
        }
        self.start -= bytes.len();
        self.bytes[self.start..self.start + bytes.len()].copy_from_slice(bytes);
    }

    /// Makes room at the front.
    fn grow(&mut self, needed: usize) {
        let more = needed.max(self.bytes.len()).max(256);
        let mut bytes = Vec::with_capacity(self.bytes.len() + more);
        bytes.resize(more + self.start, 0);
        bytes.extend_from_slice(&self.bytes[self.start..]);
        self.start += more;
        self.bytes = bytes;
    }

    fn varint(&mut self, mut value: u64) {
        let mut bytes = [0u8; 10];
        let mut length = 0;
        loop {
            bytes[length] = (value & 0x7f) as u8 | if value > 0x7f { 0x80 } else { 0 };
            length += 1;
            value >>= 7;
            if value == 0 {
                break;
            }
        }
        self.raw(&bytes[..length]);
    }

    fn tag(&mut self, number: u32, wire_type: u64) {
        self.varint(u64::from(number) << 3 | wire_type);
    }

    /// Negative numbers take ten bytes, whatever their width.
    pub fn int(&mut self, number: u32, value: i64) {
        self.varint(value.cast_unsigned());
        self.tag(number, VARINT);
    }

    pub fn double(&mut self, number: u32, value: f64) {
        self.raw(&value.to_le_bytes());
        self.tag(number, FIXED64);
    }

    pub fn string(&mut self, number: u32, text: &str) {
        self.string_bytes(number, text.as_bytes());
    }

    pub fn string_bytes(&mut self, number: u32, bytes: &[u8]) {
        self.raw(bytes);
        self.varint(bytes.len() as u64);
        self.tag(number, LENGTH);
    }

    /// Turns all that was written since `start` into a nested message.
    pub fn close(&mut self, number: u32, start: usize) {
        self.varint((self.len() - start) as u64);
        self.tag(number, LENGTH);
    }
}

/// A field's value as it stands on the wire.
#[derive(Clone, Copy)]
pub enum Raw<'a> {
    Int(u64),
    Fixed64([u8; 8]),
    Fixed32,
    Bytes(&'a [u8]),
}

impl<'a> Raw<'a> {
    pub fn int(self) -> Result<i64, Error> {
        match self {
            Raw::Int(value) => Ok(value.cast_signed()),
            _ => Err(wrong_type()),
        }
    }

    pub fn double(self) -> Result<f64, Error> {
        match self {
            Raw::Fixed64(bytes) => Ok(f64::from_le_bytes(bytes)),
            _ => Err(wrong_type()),
        }
    }

    pub fn bytes(self) -> Result<&'a [u8], Error> {
        match self {
            Raw::Bytes(bytes) => Ok(bytes),
            _ => Err(wrong_type()),
        }
    }

    pub fn text(self) -> Result<&'a str, Error> {
        std::str::from_utf8(self.bytes()?).map_err(|_| Error::Protobuf("proto: invalid UTF-8".into()))
    }
}

fn wrong_type() -> Error {
    Error::Protobuf("proto: wrong wireType".into())
}

fn truncated() -> Error {
    Error::Protobuf("unexpected EOF".into())
}

/// The fields of a message, one after the other.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(message: &'a [u8]) -> Self {
        Reader { rest: message }
    }

    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or_else(truncated)?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::Protobuf("proto: integer overflow".into()))
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], Error> {
        let length = usize::try_from(length).map_err(|_| truncated())?;
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next field and its number; `None` at the end.
    pub fn next(&mut self) -> Result<Option<(u32, Raw<'a>)>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| *n > 0);
        let number = number.ok_or_else(|| Error::Protobuf(format!("proto: illegal tag {}", tag >> 3)))?;
        let value = match tag & 7 {
            VARINT => Raw::Int(self.varint()?),
            FIXED64 => Raw::Fixed64(self.take(8)?.try_into().map_err(|_| truncated())?),
            LENGTH => {
                let length = self.varint()?;
                Raw::Bytes(self.take(length)?)
            }
            FIXED32 => {
                self.take(4)?;
                Raw::Fixed32
            }
            other => return Err(Error::Protobuf(format!("proto: illegal wireType {other}"))),
        };
        Ok(Some((number, value)))
    }
}
