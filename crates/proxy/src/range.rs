//! Ranges of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of addresses, as `10.42.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub first: IpAddr,
    pub length: u8,
}

impl Range {
    pub fn parse(text: &str) -> Option<Self> {
        let (first, length) = text.split_once('/')?;
        let range = Range { first: first.parse().ok()?, length: length.parse().ok()? };
        (range.length <= if range.first.is_ipv4() { 32 } else { 128 }).then_some(range)
    }

    /// The range of this one address.
    pub fn of(address: IpAddr) -> Self {
        Range { first: address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    pub fn is_ipv6(&self) -> bool {
        self.first.is_ipv6()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.is_ipv6() == address.is_ipv6() && self.masked(self.first) == self.masked(address)
    }

    /// The bits that the range fixes, at the top of the number.
    fn masked(&self, address: IpAddr) -> u128 {
        let bits = match address {
            IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
            IpAddr::V6(address) => u128::from(address),
        };
        bits & u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0)
    }
}

/// Without the bits that the range leaves open: nft would take them for part of the address.
impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.masked(self.first);
        let first = if self.is_ipv6() {
            IpAddr::from(Ipv6Addr::from(bits))
        } else {
            IpAddr::from(Ipv4Addr::from((bits >> 96) as u32))
        };
        write!(f, "{first}/{}", self.length)
    }
}

/// Leaves out the ranges that others contain: nft refuses sets of intervals that overlap.
pub(crate) fn apart(ranges: impl IntoIterator<Item = Range>) -> Vec<Range> {
    let mut ranges: Vec<Range> = ranges.into_iter().collect();
    ranges.sort_by_key(|range| range.length);
    let mut kept: Vec<Range> = Vec::new();
    for range in ranges {
        if !kept.iter().any(|wider| wider.contains(range.first)) {
            kept.push(range);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_strictly_and_written_without_open_bits() {
        for (text, written) in [
            ("10.42.0.0/16", Some("10.42.0.0/16")),
            ("10.42.7.9/16", Some("10.42.0.0/16")),
            ("10.0.0.1/32", Some("10.0.0.1/32")),
            ("1.2.3.4/0", Some("0.0.0.0/0")),
            ("fd42::1:2/64", Some("fd42::/64")),
            ("10.42.0.0/33", None),
            ("10.42.0.0", None),
            ("10.42.0/16", None),
            ("0.0.0.0/0 accept", None),
        ] {
            assert_eq!(Range::parse(text).map(|range| range.to_string()).as_deref(), written, "{text}");
        }
    }

    #[test]
    fn no_range_is_within_another() {
        let parse = |text: &str| -> Vec<Range> { text.split(' ').filter_map(Range::parse).collect() };
        let found = apart(parse("10.1.0.0/16 10.0.0.0/8 10.9.9.9/8 fd00::/8 0.0.0.1/32"));
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.0.0.0/8", "fd00::/8", "0.0.0.1/32"]);
    }
}
