//! Addresses and networks.
//!
//! Upstream: apiserver/pkg/cel/library/ip.go, cidr.go

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use super::{Extension, Function, no_overload};
use crate::error::EvalError;
use crate::value::Value;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

pub static FUNCTIONS: &[Function] = &[
    Function {
        name: "ip",
        eval: to_ip,
        overloads: &[("string_to_ip", "(string) -> net.IP"), ("cidr_ip", "net.CIDR.() -> net.IP")],
    },
    Function { name: "isIP", eval: is_ip, overloads: &[("is_ip", "(string) -> bool")] },
    Function {
        name: "ip.isCanonical",
        eval: is_canonical,
        overloads: &[("ip_is_canonical", "(string) -> bool")],
    },
    Function {
        name: "family",
        eval: |args| match args {
            [Value::Extension(Extension::Ip(ip))] => Ok(Value::Int(if ip.is_ipv4() { 4 } else { 6 })),
            _ => no_overload(),
        },
        overloads: &[("ip_family", "net.IP.() -> int")],
    },
    Function {
        name: "isUnspecified",
        eval: |args| ask(args, IpAddr::is_unspecified),
        overloads: &[("ip_is_unspecified", "net.IP.() -> bool")],
    },
    Function {
        name: "isLoopback",
        eval: |args| ask(args, IpAddr::is_loopback),
        overloads: &[("ip_is_loopback", "net.IP.() -> bool")],
    },
    Function {
        name: "isLinkLocalMulticast",
        eval: |args| ask(args, is_link_local_multicast),
        overloads: &[("ip_is_link_local_multicast", "net.IP.() -> bool")],
    },
    Function {
        name: "isLinkLocalUnicast",
        eval: |args| ask(args, is_link_local_unicast),
        overloads: &[("ip_is_link_local_unicast", "net.IP.() -> bool")],
    },
    Function {
        name: "isGlobalUnicast",
        eval: |args| ask(args, is_global_unicast),
        overloads: &[("ip_is_global_unicast", "net.IP.() -> bool")],
    },
    Function { name: "cidr", eval: to_cidr, overloads: &[("string_to_cidr", "(string) -> net.CIDR")] },
    Function { name: "isCIDR", eval: is_cidr, overloads: &[("is_cidr", "(string) -> bool")] },
    Function {
        name: "containsIP",
        eval: contains_ip,
        overloads: &[
            ("cidr_contains_ip_string", "net.CIDR.(string) -> bool"),
            ("cidr_contains_ip_ip", "net.CIDR.(net.IP) -> bool"),
        ],
    },
    Function {
        name: "containsCIDR",
        eval: contains_cidr,
        overloads: &[
            ("cidr_contains_cidr_string", "net.CIDR.(string) -> bool"),
            ("cidr_contains_cidr", "net.CIDR.(net.CIDR) -> bool"),
        ],
    },
    Function {
        name: "prefixLength",
        eval: |args| match args {
            [Value::Extension(Extension::Cidr(cidr))] => Ok(Value::Int(cidr.length.into())),
            _ => no_overload(),
        },
        overloads: &[("cidr_prefix_length", "net.CIDR.() -> int")],
    },
    Function {
        name: "masked",
        eval: |args| match args {
            [Value::Extension(Extension::Cidr(cidr))] => Ok(Value::Extension(Extension::Cidr(cidr.masked()))),
            _ => no_overload(),
        },
        overloads: &[("cidr_masked", "net.CIDR.() -> net.CIDR")],
    },
];

/// An address and how many of its bits name the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    pub address: IpAddr,
    pub length: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl Cidr {
    fn masked(self) -> Cidr {
        let address = match self.address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.length)).unwrap_or(0);
                IpAddr::V4((u32::from(address) & mask).into())
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.length)).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from(u128::from(address) & mask))
            }
        };
        Cidr { address, length: self.length }
    }

    fn contains(self, address: IpAddr) -> bool {
        let other = Cidr { address, length: self.length };
        address.is_ipv4() == self.address.is_ipv4() && other.masked() == self.masked()
    }
}

fn mapped(text: &str) -> EvalError {
    EvalError::new(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
}

fn is_mapped(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

fn parse_ip(text: &str) -> std::result::Result<IpAddr, EvalError> {
    if text.contains('%') && text.split('%').next().is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
    {
        return Err(EvalError::new(format!("IP address {text:?} with zone value is not allowed")));
    }
    let address: IpAddr = text.parse().map_err(|_| {
        let why = format!("ParseAddr({text:?}): unable to parse IP");
        EvalError::new(format!("IP Address {text:?} parse error during conversion from string: {why}"))
    })?;
    if is_mapped(&address) { Err(mapped(text)) } else { Ok(address) }
}

fn parse_cidr(text: &str) -> std::result::Result<Cidr, EvalError> {
    let wrong = |why: &str| {
        let prefix = "network address parse error during conversion from string: ";
        EvalError::new(format!("{prefix}{prefix}netip.ParsePrefix({text:?}): {why}"))
    };
    let (address, length) = text.rsplit_once('/').ok_or_else(|| wrong("no '/'"))?;
    let address: IpAddr = address.parse().map_err(|_| wrong("unable to parse IP"))?;
    let plain = !length.is_empty()
        && length.bytes().all(|b| b.is_ascii_digit())
        && (length == "0" || !length.starts_with('0'));
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let length = length.parse().ok().filter(|length| plain && *length <= bits);
    let length = length.ok_or_else(|| wrong("bad bits after slash"))?;
    if is_mapped(&address) { Err(mapped(text)) } else { Ok(Cidr { address, length }) }
}

fn to_ip<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::String(text)] => parse_ip(text).map(|ip| Value::Extension(Extension::Ip(ip))),
        [Value::Extension(Extension::Cidr(cidr))] => Ok(Value::Extension(Extension::Ip(cidr.address))),
        _ => no_overload(),
    }
}

fn is_ip<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(parse_ip(text).is_ok())),
        _ => no_overload(),
    }
}

fn is_canonical<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(parse_ip(text)?.to_string() == **text)),
        _ => no_overload(),
    }
}

fn ask<'a>(args: &[Value<'a>], question: fn(&IpAddr) -> bool) -> Result<'a> {
    match args {
        [Value::Extension(Extension::Ip(address))] => Ok(Value::Bool(question(address))),
        _ => no_overload(),
    }
}

fn is_link_local_multicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..3] == [224, 0, 0],
        IpAddr::V6(address) => address.octets()[0] == 0xff && address.octets()[1] & 0x0f == 0x02,
    }
}

fn is_link_local_unicast(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments()[0] & 0xffc0 == 0xfe80,
    }
}

fn is_global_unicast(address: &IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(broadcast
        || address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || is_link_local_unicast(address))
}

fn to_cidr<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::String(text)] => parse_cidr(text).map(|cidr| Value::Extension(Extension::Cidr(cidr))),
        _ => no_overload(),
    }
}

fn is_cidr<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::String(text)] => Ok(Value::Bool(parse_cidr(text).is_ok())),
        _ => no_overload(),
    }
}

fn contains_ip<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (cidr, address) = match args {
        [Value::Extension(Extension::Cidr(cidr)), Value::String(text)] => (cidr, parse_ip(text)?),
        [Value::Extension(Extension::Cidr(cidr)), Value::Extension(Extension::Ip(address))] => {
            (cidr, *address)
        }
        _ => return no_overload(),
    };
    Ok(Value::Bool(cidr.contains(address)))
}

fn contains_cidr<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (cidr, other) = match args {
        [Value::Extension(Extension::Cidr(cidr)), Value::String(text)] => (cidr, parse_cidr(text)?),
        [Value::Extension(Extension::Cidr(cidr)), Value::Extension(Extension::Cidr(other))] => (cidr, *other),
        _ => return no_overload(),
    };
    Ok(Value::Bool(cidr.length <= other.length && cidr.contains(other.address)))
}
