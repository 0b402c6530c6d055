//! What is to be known of the machine before anything is touched.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, bail};

/// The host's name, in lower case, as nodes are named.
pub fn hostname() -> anyhow::Result<String> {
    let name =
        rustix::system::uname().nodename().to_str().context("the host's name is not text")?.to_lowercase();
    if name.is_empty() || name == "(none)" {
        bail!("the host has no name; give --node-name");
    }
    Ok(name)
}

/// The address that leads to the default gateway, of IPv4 if there is one. No packet is sent.
pub fn node_ip() -> anyhow::Result<IpAddr> {
    node_ip_of(false).or_else(|none| node_ip_of(true).map_err(|_| none))
}

/// The address that leads to the default gateway of a family.
fn node_ip_of(ipv6: bool) -> anyhow::Result<IpAddr> {
    let family = if ipv6 { "IPv6" } else { "IPv4" };
    let none = || format!("this machine has no route of {family} to anywhere; give --node-ip");
    // Documentation addresses (RFC 5737, RFC 3849): connecting a datagram socket only asks the kernel for a route.
    let (own, other) = if ipv6 {
        (IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1]))
    } else {
        (IpAddr::from(Ipv4Addr::UNSPECIFIED), IpAddr::from([192, 0, 2, 1]))
    };
    let socket = UdpSocket::bind((own, 0)).with_context(none)?;
    socket.connect((other, 9)).with_context(none)?;
    Ok(socket.local_addr()?.ip())
}

/// The node's addresses: those given, at most one a family, or one of each family of these ranges.
pub fn node_ips(given: &[IpAddr], ranges: &[(IpAddr, u8)]) -> anyhow::Result<Vec<IpAddr>> {
    match given {
        [] => ranges.iter().map(|(first, _)| node_ip_of(first.is_ipv6())).collect(),
        [_] => Ok(given.to_vec()),
        [one, other] if one.is_ipv6() != other.is_ipv6() => Ok(given.to_vec()),
        _ => bail!("--node-ip: at most one address of each family"),
    }
}

/// Where to listen for whoever reaches this machine by one of these addresses.
pub fn any_address(reached_at: &[IpAddr]) -> IpAddr {
    // A socket of IPv6 takes connections of both.
    let ipv6 = reached_at.iter().any(IpAddr::is_ipv6);
    if ipv6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// A port that is ours, or one clear line.
pub async fn listen(address: SocketAddr) -> anyhow::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Fails with one line if this process may not run containers. The hint is what else could be done.
pub fn check_can_run_containers(hint: &str) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("containers need root; run as root{hint}");
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|directory| directory.join("nft").is_file()) {
        bail!("nft is not installed, and Services need it: apt-get install nftables");
    }
    Ok(())
}

/// Cancelled on SIGTERM or SIGINT.
pub fn shutdown_signal() -> anyhow::Result<tokio_util::sync::CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = tokio_util::sync::CancellationToken::new();
    let told = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        told.cancel();
    });
    Ok(shutdown)
}

/// The machine's clock: the one place that reads it.
#[expect(clippy::disallowed_methods, reason = "here the clock enters the program")]
pub fn clock() -> controller_runtime::Clock {
    controller_runtime::Clock::new(jiff::Timestamp::now)
}

/// An address range of a flag: its first address and the length of its prefix.
pub fn cidr(flag: &str, text: &str) -> anyhow::Result<(IpAddr, u8)> {
    let parse = || {
        let (address, length) = text.split_once('/')?;
        let (address, length): (IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
        let most = if address.is_ipv4() { 32 } else { 128 };
        (length <= most).then_some((address, length))
    };
    parse().with_context(|| format!("{flag} {text:?} is not a CIDR like 10.42.0.0/16"))
}

/// The address ranges of a flag: at most one of each family.
pub fn cidrs(flag: &str, texts: &[String]) -> anyhow::Result<Vec<(IpAddr, u8)>> {
    let ranges = texts.iter().map(|text| cidr(flag, text.trim())).collect::<anyhow::Result<Vec<_>>>()?;
    match ranges.as_slice() {
        [_] => Ok(ranges),
        [(one, _), (other, _)] if one.is_ipv6() != other.is_ipv6() => Ok(ranges),
        _ => bail!("{flag} must be one range, or one of each family"),
    }
}

/// Fails when two ranges of flags have an address in common.
pub fn check_apart(
    (first_flag, first): (&str, &[(IpAddr, u8)]),
    (second_flag, second): (&str, &[(IpAddr, u8)]),
) -> anyhow::Result<()> {
    let mut pairs = first.iter().flat_map(|one| second.iter().map(move |other| (*one, *other)));
    if pairs.any(|(one, other)| overlap(one, other)) {
        bail!("{first_flag} and {second_flag} overlap");
    }
    Ok(())
}

fn overlap(first: (IpAddr, u8), second: (IpAddr, u8)) -> bool {
    let bits = |(address, length): (IpAddr, u8)| match address {
        IpAddr::V4(address) => (4, u128::from(u32::from(address)) << 96, length),
        IpAddr::V6(address) => (6, u128::from(address), length),
    };
    let ((family, first, first_length), (other, second, second_length)) = (bits(first), bits(second));
    let shorter = first_length.min(second_length);
    let mask = u128::MAX.checked_shl(128 - u32::from(shorter)).unwrap_or(0);
    family == other && first & mask == second & mask
}

/// The address at this place of a range.
pub fn nth_address(range: (IpAddr, u8), nth: u8) -> IpAddr {
    match range.0 {
        IpAddr::V4(first) => IpAddr::V4((u32::from(first) + u32::from(nth)).into()),
        IpAddr::V6(first) => IpAddr::V6((u128::from(first) + u128::from(nth)).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_share_an_address_are_told() {
        for (first, second, apart) in [
            ("10.42.0.0/16", "10.43.0.0/16", true),
            ("10.42.0.0/16", "10.42.3.0/24", false),
            ("10.42.3.0/24", "10.42.0.0/15", false),
            ("0.0.0.0/0", "10.0.0.0/8", false),
            ("10.0.0.0/8", "a00::/8", true),
            ("fd00::/48", "fd00:0:0:1::/64", false),
            ("10.42.0.0/16,fd42::/56", "10.43.0.0/16,fd43::/112", true),
            ("10.42.0.0/16,fd42::/56", "fd42:0:0:3::/112,10.43.0.0/16", false),
        ] {
            let ranges = |flag, texts: &str| {
                cidrs(flag, &texts.split(',').map(str::to_owned).collect::<Vec<_>>()).unwrap()
            };
            let (first_ranges, second_ranges) = (ranges("--a", first), ranges("--b", second));
            let checked = check_apart(("--a", &first_ranges), ("--b", &second_ranges));
            assert_eq!(checked.is_ok(), apart, "{first} {second}");
        }
    }

    #[test]
    fn there_is_at_most_one_range_and_one_address_a_family() {
        let texts = |texts: &str| texts.split(',').map(str::to_owned).collect::<Vec<_>>();
        for (text, count) in [
            ("10.42.0.0/16", Some(1)),
            ("fd42::/56, 10.42.0.0/16", Some(2)),
            ("10.42.0.0/16,10.43.0.0/16", None),
            ("10.42.0.0/16,fd42::/56,fd43::/56", None),
            ("10.42.0.0", None),
        ] {
            assert_eq!(cidrs("--x", &texts(text)).ok().map(|ranges| ranges.len()), count, "{text}");
        }
        let ips = |text: &str| text.split(',').map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
        assert_eq!(node_ips(&ips("192.0.2.1,2001:db8::1"), &[]).unwrap().len(), 2);
        assert!(node_ips(&ips("192.0.2.1,192.0.2.2"), &[]).is_err());
        assert_eq!(any_address(&ips("192.0.2.1")), ips("0.0.0.0")[0]);
        assert_eq!(any_address(&ips("192.0.2.1,2001:db8::1")), ips("::")[0]);
    }
}
