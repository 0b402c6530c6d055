//! nftables: tables, chains and rules by the text of `nft -f`, elements of sets and maps by netlink, since there are
//! many and they change often. Either is one transaction.
//!
//! What always holds: everything runs in the network namespace of the calling thread.

mod claims;
mod elements;

use std::io::{self, Write};
use std::process::{Command, Stdio};

pub use claims::{Claims, Difference, elements_text};
pub use elements::{Batch, Data, Element, Family, Fields, Steps, Verb, has_table};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("nft not found: install the Debian package nftables")]
    Missing,
    #[error("cannot run nft")]
    Run(#[source] io::Error),
    #[error("cannot speak with the kernel's nftables")]
    Netlink(#[source] io::Error),
    /// nft's own words, or the kernel's. Nothing of the batch took effect.
    #[error("nftables refused: {0}")]
    Refused(String),
}

impl Error {
    /// Whether the table, set or element that was named is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Refused(words) if words.contains("No such file or directory"))
    }
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// Kubernetes' name to ours; other protocols have no ports.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// As nft writes it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// How much of nft's complaint is kept: it quotes the whole offending line.
const MAX_COMPLAINT_BYTES: usize = 4096;

/// Applies a batch: all of it, or nothing.
pub fn apply(batch: &str) -> Result<(), Error> {
    run(&["-f", "-"], batch).map(drop)
}

/// A table as nft's JSON. `family` is `ip`, `ip6` or `inet`.
pub fn list_table(family: &str, table: &str) -> Result<String, Error> {
    run(&["-j", "list", "table", family, table], "")
}

/// A table as text, for people.
pub fn list_table_text(family: &str, table: &str) -> Result<String, Error> {
    run(&["list", "table", family, table], "")
}

/// Removes a table; one that is not there is no error.
pub fn delete_table(family: &str, table: &str) -> Result<(), Error> {
    // `add` first: deleting what is not there would be refused, and `destroy` is younger than Debian 12's nft.
    apply(&format!("add table {family} {table}\ndelete table {family} {table}\n"))
}

fn run(arguments: &[&str], input: &str) -> Result<String, Error> {
    let mut child = spawn(arguments)?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A writer of its own: nft may fill its output before it has read all its input.
    let (written, output) = std::thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output();
        (writer.join(), output)
    });
    let output = output.map_err(Error::Run)?;
    if !output.status.success() {
        let complaint = &output.stderr[..output.stderr.len().min(MAX_COMPLAINT_BYTES)];
        return Err(Error::Refused(String::from_utf8_lossy(complaint).trim().to_owned()));
    }
    written.unwrap_or_else(|panic| std::panic::resume_unwind(panic)).map_err(Error::Run)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A service manager's PATH often lacks `sbin`, where distributions put nft.
fn spawn(arguments: &[&str]) -> Result<std::process::Child, Error> {
    for program in ["nft", "/usr/sbin/nft", "/sbin/nft", "/usr/local/sbin/nft"] {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other.map_err(Error::Run),
        }
    }
    Err(Error::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::NetNs;

    #[test]
    fn a_batch_takes_effect_whole_or_not_at_all() {
        let namespace = NetNs::anonymous().expect("making a network namespace needs root");
        namespace
            .run(|| {
                apply("add table ip mine\nadd set ip mine numbers { type inet_service; }\n").unwrap();
                let refused =
                    apply("add element ip mine numbers { 80 }\nadd element ip other numbers { 80 }\n");
                assert!(refused.unwrap_err().is_not_found());
                assert!(!list_table("ip", "mine").unwrap().contains("80"));
                apply("add element ip mine numbers { 80 }").unwrap();
                assert!(list_table("ip", "mine").unwrap().contains("80"));
                delete_table("ip", "mine").unwrap();
                delete_table("ip", "mine").unwrap();
                assert!(list_table("ip", "mine").unwrap_err().is_not_found());
            })
            .unwrap();
    }
}
