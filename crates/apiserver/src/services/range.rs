//! A range of addresses, and which of it are given first.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    base: IpAddr,
    bits: u8,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.bits)
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

impl Range {
    /// The range that an address and the length of its prefix name.
    pub fn new(address: IpAddr, bits: u8) -> Self {
        let width: u8 = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.min(width);
        let mask = u128::MAX.checked_shl(u32::from(width - bits)).unwrap_or(0);
        let mut range = Range { base: address, bits };
        range.base = range.at(number(address) & mask);
        range
    }

    /// `10.43.0.0/16`.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        Some(Range::new(address.parse().ok()?, bits.parse().ok()?))
    }

    pub fn family(&self) -> &'static str {
        family(self.base)
    }

    fn at(&self, number: u128) -> IpAddr {
        match self.base {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
        }
    }

    pub fn address(&self, offset: u128) -> IpAddr {
        self.at(number(self.base).saturating_add(offset))
    }

    fn last(&self) -> u128 {
        let width: u32 = if self.base.is_ipv4() { 32 } else { 128 };
        let hosts = 1u128.checked_shl(width - u32::from(self.bits)).map_or(u128::MAX, |size| size - 1);
        number(self.base) | hosts
    }

    /// The network's own address and the broadcast address are nobody's.
    pub fn contains(&self, address: IpAddr) -> bool {
        let at = number(address);
        let last = self.last().saturating_sub(u128::from(self.base.is_ipv4()));
        address.is_ipv4() == self.base.is_ipv4() && at > number(self.base) && at <= last
    }

    /// A free address, from the upper part of the range while there is one: the lower is for those who choose.
    /// At most 2^20 addresses are looked at.
    ///
    /// Upstream: pkg/registry/core/service/ipallocator/ipallocator.go calculateRangeOffset
    pub fn free(&self, is_free: impl Fn(&IpAddr) -> bool, random: [u8; 16]) -> Option<IpAddr> {
        let hosts = self.last() - number(self.base);
        let usable = hosts.checked_sub(u128::from(self.base.is_ipv4()))?;
        let size = (hosts.saturating_add(1)).min(1 << 20);
        let usable = usable.min(size);
        let band = if size < 32 { 0 } else { (size / 16).clamp(16, 256) };
        let upper = usable.checked_sub(band).filter(|upper| *upper > 0)?;
        let start = u128::from_le_bytes(random) % upper;
        let dynamic = (0..upper).map(|step| self.address(1 + band + (start + step) % upper));
        let fixed = (0..band).map(|offset| self.address(1 + offset));
        dynamic.chain(fixed).find(is_free)
    }
}

pub fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_begin_at_their_network_and_leave_out_its_ends() {
        let check = |range: &str, shown: &str, inside: &[&str], outside: &[&str]| {
            let range = Range::parse(range).unwrap();
            assert_eq!(range.to_string(), shown);
            inside.iter().for_each(|a| assert!(range.contains(a.parse().unwrap()), "{a} in {shown}"));
            outside.iter().for_each(|a| assert!(!range.contains(a.parse().unwrap()), "{a} not in {shown}"));
        };
        check(
            "10.0.0.9/29",
            "10.0.0.8/29",
            &["10.0.0.9", "10.0.0.14"],
            &["10.0.0.8", "10.0.0.15", "fd00::1"],
        );
        check("fd00::/120", "fd00::/120", &["fd00::1", "fd00::ff"], &["fd00::", "fd00::100", "10.0.0.1"]);
        check("0.0.0.0/0", "0.0.0.0/0", &["1.2.3.4"], &["255.255.255.255"]);
    }

    #[test]
    fn all_are_given_and_the_lower_ones_last() {
        let range = Range::parse("10.0.0.0/24").unwrap();
        assert_eq!(range.free(|_| true, [0; 16]), Some("10.0.0.17".parse().unwrap()));
        let low = |address: &IpAddr| number(*address) <= number("10.0.0.16".parse().unwrap());
        assert_eq!(range.free(low, [7; 16]), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(range.free(|_| false, [7; 16]), None);
        let tiny = Range::parse("10.0.0.0/30").unwrap();
        assert_eq!(tiny.free(|_| true, [1; 16]).map(|a| tiny.contains(a)), Some(true));
        assert_eq!(Range::parse("10.0.0.0/32").unwrap().free(|_| true, [0; 16]), None);
    }
}
