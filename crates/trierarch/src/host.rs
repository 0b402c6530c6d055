//! What is to be known of the machine before anything is touched.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

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

/// The address that leads to the default gateway. No packet is sent.
pub fn node_ip() -> anyhow::Result<IpAddr> {
    let none = "this machine has no route to anywhere; give --node-ip";
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // A documentation address (RFC 5737): connecting a datagram socket only asks the kernel for a route.
    socket.connect(SocketAddr::from(([192, 0, 2, 1], 9))).context(none)?;
    Ok(socket.local_addr()?.ip())
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

/// Fails when two ranges of flags have an address in common.
pub fn check_apart(ranges: [(&str, (IpAddr, u8)); 2]) -> anyhow::Result<()> {
    let [(first_flag, first), (second_flag, second)] = ranges;
    let bits = |(address, length): (IpAddr, u8)| match address {
        IpAddr::V4(address) => (4, u128::from(u32::from(address)) << 96, length),
        IpAddr::V6(address) => (6, u128::from(address), length),
    };
    let ((family, first, first_length), (other, second, second_length)) = (bits(first), bits(second));
    let shorter = first_length.min(second_length);
    let mask = u128::MAX.checked_shl(128 - u32::from(shorter)).unwrap_or(0);
    if family == other && first & mask == second & mask {
        bail!("{first_flag} and {second_flag} overlap");
    }
    Ok(())
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
        ] {
            let ranges = [("--a", cidr("--a", first).unwrap()), ("--b", cidr("--b", second).unwrap())];
            assert_eq!(check_apart(ranges).is_ok(), apart, "{first} {second}");
        }
    }
}
