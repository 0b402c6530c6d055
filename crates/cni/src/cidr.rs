//! Address ranges.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::Error;

/// A range of addresses; the bits after the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cidr {
    network: IpAddr,
    prefix_length: u8,
}

impl Cidr {
    pub fn is_ipv6(&self) -> bool {
        self.network.is_ipv6()
    }

    pub fn prefix_length(&self) -> u8 {
        self.prefix_length
    }

    fn host_bits(&self) -> u32 {
        let all = if self.is_ipv6() { 128 } else { 32 };
        all - u32::from(self.prefix_length)
    }

    fn bits(address: IpAddr) -> u128 {
        match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        }
    }

    fn mask(&self) -> u128 {
        u128::MAX.checked_shl(self.host_bits()).unwrap_or(0)
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv6() == self.is_ipv6()
            && (Self::bits(address) ^ Self::bits(self.network)) & self.mask() == 0
    }

    /// How many addresses there are to count through; a huge range is used from its start only.
    pub(crate) fn size(&self) -> u64 {
        1u64 << self.host_bits().min(63)
    }

    /// The address at `offset` from the start, which must be below [`size`](Self::size).
    pub(crate) fn nth(&self, offset: u64) -> IpAddr {
        let bits = Self::bits(self.network) + u128::from(offset);
        match self.network {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(bits as u32)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(bits)),
        }
    }
}

impl FromStr for Cidr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (address, length) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let prefix_length =
                length.parse().ok().filter(|n| *n <= if address.is_ipv6() { 128 } else { 32 })?;
            let range = Cidr { network: address, prefix_length };
            let network = Self::bits(address) & range.mask();
            let network = match address {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits(network as u32)),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(network)),
            };
            Some(Cidr { network, prefix_length })
        };
        parse().ok_or_else(|| Error::Cidr(text.to_owned()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix_length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let cases = [
            ("10.42.3.0/24", "10.42.3.255", "10.42.4.0", 256),
            ("10.42.3.77/24", "10.42.3.0", "10.42.2.255", 256),
            ("0.0.0.0/0", "255.255.255.255", "::", 1 << 32),
            ("10.0.0.1/32", "10.0.0.1", "10.0.0.2", 1),
            ("fd00::/64", "fd00::ffff:0:1", "fd00:0:0:1::", 1 << 63),
            ("::/0", "ff::", "1.2.3.4", 1 << 63),
        ];
        for (text, inside, outside, size) in cases {
            let range: Cidr = text.parse().unwrap();
            assert!(range.contains(inside.parse().unwrap()), "{text} {inside}");
            assert!(!range.contains(outside.parse().unwrap()), "{text} {outside}");
            assert_eq!(range.size(), size, "{text}");
        }
        for wrong in
            ["", "10.0.0.0", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "x/8", "10.0.0.0/-1", "10.0.0.0/"]
        {
            assert!(wrong.parse::<Cidr>().is_err(), "{wrong}");
        }
    }
}
