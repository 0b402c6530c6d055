//! What a node needs once, not per pod: forwarding, masquerading; and how every trace is taken away.

use std::io;
use std::path::Path;

use crate::ipam::Addresses;
use crate::{Cidr, Error, attach, rules};

/// Lets the node forward, and masquerades what leaves the cluster's ranges. Can be called again at any time,
/// with other ranges too. Acts in the network namespace of the calling thread.
pub fn setup_host(cluster_cidrs: &[Cidr]) -> Result<(), Error> {
    for ipv6 in [false, true] {
        if !cluster_cidrs.iter().any(|range| range.is_ipv6() == ipv6) {
            continue;
        }
        enable_forwarding(ipv6)?;
        let batch = rules::skeleton(ipv6) + &rules::cluster_ranges(ipv6, cluster_cidrs);
        linux::nft::apply(&batch).map_err(Error::Masquerade)?;
    }
    Ok(())
}

/// Turns forwarding on in the network namespace of the calling thread. It is left alone where it is on: writing it
/// resets other settings of the family.
pub fn enable_forwarding(ipv6: bool) -> Result<(), Error> {
    let path = if ipv6 { "/proc/sys/net/ipv6/conf/all/forwarding" } else { "/proc/sys/net/ipv4/ip_forward" };
    let enable = || match std::fs::read_to_string(path)?.trim() {
        "0" => {
            if ipv6 {
                keep_router_advertisements()?;
            }
            std::fs::write(path, "1")
        }
        _ => Ok(()),
    };
    enable().map_err(Error::io(format!("turn on forwarding in {path}")))
}

/// A host that forwards believes no router unless it is told to: it would lose the routes that it got from one.
fn keep_router_advertisements() -> io::Result<()> {
    for link in std::fs::read_dir("/proc/sys/net/ipv6/conf")? {
        let path = link?.path().join("accept_ra");
        match std::fs::read_to_string(&path) {
            Ok(text) if text.trim() == "1" => std::fs::write(&path, "2")?,
            // The link may go at any moment.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(())
}

/// Takes away what the plugin made on this node: the links of every attachment in the state directory, the
/// tables and the state. What is gone already is no error.
pub fn reset(state_dir: &Path) -> Result<(), Error> {
    if state_dir.exists() {
        let table = Addresses::lock(state_dir)?;
        let runtime = attach::runtime()?;
        for held in table.held()? {
            runtime.block_on(attach::delete_link(&held.attachment))?;
        }
        match std::fs::remove_dir_all(state_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", state_dir.display()))(error));
            }
            _ => {}
        }
    }
    for ipv6 in [false, true] {
        match linux::nft::delete_table(rules::family(ipv6), rules::TABLE) {
            // Without nft there was never a table.
            Ok(()) | Err(linux::nft::Error::Missing) => {}
            Err(error) => return Err(Error::Masquerade(error)),
        }
    }
    Ok(())
}
