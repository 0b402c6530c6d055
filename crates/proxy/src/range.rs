//! Ranges of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A range of addresses, as `10.42.0.0/16`.
///
/// What always holds: the bits of `first` that the range leaves open are zero, so that a range is one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    first: IpAddr,
    length: u8,
}

impl Range {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (first, length) = text.split_once('/')?;
        Range::around(first.parse().ok()?, length.parse().ok()?)
    }

    /// The range of so many fixed bits that an address is in.
    pub(crate) fn around(address: IpAddr, length: u8) -> Option<Self> {
        let range = Range { first: address, length };
        let is_possible = length <= Range::of(address).length;
        is_possible.then(|| Range { first: range.address(range.fixed(address)), length })
    }

    /// The range of this one address.
    pub(crate) fn of(address: IpAddr) -> Self {
        Range { first: address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    pub(crate) fn first(&self) -> IpAddr {
        self.first
    }

    /// How many bits are fixed.
    pub(crate) fn length(&self) -> u8 {
        self.length
    }

    pub(crate) fn is_ipv6(&self) -> bool {
        self.first.is_ipv6()
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.is_ipv6() == address.is_ipv6() && bits(self.first) == self.fixed(address)
    }

    pub(crate) fn last(&self) -> IpAddr {
        self.address(bits(self.first) | !self.mask())
    }

    fn mask(&self) -> u128 {
        u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0)
    }

    /// The bits of an address that the range fixes.
    fn fixed(&self, address: IpAddr) -> u128 {
        bits(address) & self.mask()
    }

    /// The address of the range's family with these bits.
    fn address(&self, bits: u128) -> IpAddr {
        if self.is_ipv6() {
            IpAddr::from(Ipv6Addr::from(bits))
        } else {
            IpAddr::from(Ipv4Addr::from((bits >> 96) as u32))
        }
    }
}

/// The bits of an address, at the top of the number.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
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
        for (text, last) in [
            ("10.42.7.9/16", "10.42.255.255"),
            ("10.0.0.1/32", "10.0.0.1"),
            ("::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            assert_eq!(Range::parse(text).unwrap().last().to_string(), last, "{text}");
        }
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
