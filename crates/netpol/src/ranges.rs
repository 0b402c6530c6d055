//! Disjoint ranges of numbers: of ports, and of addresses as numbers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Ranges, ends included, in ascending order; none touches another.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ranges(Vec<(u128, u128)>);

impl Ranges {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = (u128, u128)> {
        self.0.iter().copied()
    }

    pub fn contains(&self, number: u128) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&number))
    }

    /// Adds a range, and joins what it overlaps or touches.
    pub fn add(&mut self, first: u128, last: u128) {
        let (mut first, mut last) = (first, last);
        self.0.retain(|(other_first, other_last)| {
            let touches = *other_first <= last.saturating_add(1) && first <= other_last.saturating_add(1);
            if touches {
                first = first.min(*other_first);
                last = last.max(*other_last);
            }
            !touches
        });
        let at = self.0.partition_point(|(other, _)| *other < first);
        self.0.insert(at, (first, last));
    }

    pub fn add_all(&mut self, others: &Ranges) {
        others.iter().for_each(|(first, last)| self.add(first, last));
    }

    /// Takes a range out.
    pub fn remove(&mut self, first: u128, last: u128) {
        let parts = |(start, end): (u128, u128)| {
            if end < first || last < start {
                return [Some((start, end)), None];
            }
            let before = (start < first).then(|| (start, first - 1));
            let after = (last < end).then(|| (last + 1, end));
            [before, after]
        };
        self.0 = self.iter().flat_map(parts).flatten().collect();
    }
}

/// Ranges of addresses, by family.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Blocks {
    pub v4: Ranges,
    pub v6: Ranges,
}

impl Blocks {
    pub fn of(&self, ipv6: bool) -> &Ranges {
        if ipv6 { &self.v6 } else { &self.v4 }
    }

    fn of_mut(&mut self, ipv6: bool) -> &mut Ranges {
        if ipv6 { &mut self.v6 } else { &mut self.v4 }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.of(address.is_ipv6()).contains(number(address))
    }

    /// Adds an `ipBlock`: a CIDR without those excepted. What is no CIDR is left out, and so matches nothing.
    pub fn add(&mut self, cidr: &str, except: &[String]) {
        let Some((ipv6, first, last)) = cidr_ends(cidr) else { return };
        let mut block = Ranges::default();
        block.add(first, last);
        for (_, first, last) in except.iter().filter_map(|text| cidr_ends(text)).filter(|e| e.0 == ipv6) {
            block.remove(first, last);
        }
        self.of_mut(ipv6).add_all(&block);
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u32::from(address).into(),
        IpAddr::V6(address) => address.into(),
    }
}

pub fn address(ipv6: bool, number: u128) -> IpAddr {
    if ipv6 {
        Ipv6Addr::from(number).into()
    } else {
        Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into()
    }
}

/// Whether it is IPv6, the first address and the last.
fn cidr_ends(text: &str) -> Option<(bool, u128, u128)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u32 = if address.is_ipv6() { 128 } else { 32 };
    let length: u32 = length.parse().ok().filter(|length| *length <= bits)?;
    let hosts = 1u128.checked_shl(bits - length).map_or(u128::MAX, |size| size - 1);
    let first = number(address) & !hosts;
    Some((address.is_ipv6(), first, first | hosts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_join_and_part() {
        let mut ranges = Ranges::default();
        for (first, last) in [(20, 29), (5, 5), (10, 18), (6, 8), (19, 19)] {
            ranges.add(first, last);
        }
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(5, 8), (10, 29)]);
        ranges.remove(7, 12);
        ranges.remove(20, 20);
        ranges.remove(29, 99);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(5, 6), (13, 19), (21, 28)]);
        assert!(ranges.contains(13) && !ranges.contains(20));
        ranges.add(0, u128::MAX);
        assert_eq!(ranges.iter().collect::<Vec<_>>(), [(0, u128::MAX)]);
    }

    #[test]
    fn blocks_are_cidrs_without_their_exceptions() {
        let check = |blocks: &[(&str, &[&str])], inside: &[&str], outside: &[&str]| {
            let mut all = Blocks::default();
            for (cidr, except) in blocks {
                all.add(cidr, &except.iter().map(|text| text.to_string()).collect::<Vec<_>>());
            }
            for (addresses, expected) in [(inside, true), (outside, false)] {
                for address in addresses {
                    assert_eq!(all.contains(address.parse().unwrap()), expected, "{address} in {blocks:?}");
                }
            }
        };
        check(
            &[("10.1.2.3/16", &[])],
            &["10.1.0.0", "10.1.255.255"],
            &["10.0.255.255", "10.2.0.0", "::a01:1"],
        );
        check(&[("0.0.0.0/0", &["10.0.0.0/8"])], &["9.255.255.255", "11.0.0.0"], &["10.0.0.0", "::1"]);
        check(&[("10.0.0.0/24", &["10.0.0.4/30", "10.0.0.7/32"])], &["10.0.0.3", "10.0.0.8"], &["10.0.0.7"]);
        // An exception is of its own block alone.
        check(&[("10.0.0.0/24", &["10.0.0.4/32"]), ("10.0.0.4/32", &[])], &["10.0.0.4"], &[]);
        check(&[("fd00::/64", &["fd00::8/125"])], &["fd00::7", "fd00::10"], &["fd00::8", "fd00:0:0:1::"]);
        check(&[("::/0", &[])], &["::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"], &["1.2.3.4"]);
        check(&[("10.0.0.0", &[]), ("10.0.0.0/33", &[]), ("x/8", &[])], &[], &["10.0.0.0"]);
    }
}
