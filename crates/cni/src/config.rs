//! What a call says: the environment and the configuration on stdin.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Cidr, Error};

/// The versions of the protocol whose results this plugin writes.
pub(crate) const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];

/// The longest configuration that is read.
pub(crate) const MAX_CONFIG_BYTES: u64 = 4 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    #[serde(default)]
    pub cni_version: String,
    #[serde(default, rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
    #[serde(default)]
    pub state_dir: PathBuf,
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Where the agent of network policies is asked before a pod is wired. Without it, nobody is.
    #[serde(default)]
    pub policy_dir: Option<PathBuf>,
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    /// GC only: what is to stay.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub valid_attachments: Option<Vec<ValidAttachment>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RuntimeConfig {
    #[serde(default)]
    port_mappings: Vec<PortMapping>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    #[serde(alias = "TCP")]
    Tcp,
    #[serde(alias = "UDP")]
    Udp,
    #[serde(alias = "SCTP")]
    Sctp,
}

impl Protocol {
    /// As nft writes it.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// A port of the host that leads to the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PortMapping {
    pub host_port: u16,
    pub container_port: u16,
    pub protocol: Protocol,
    /// Empty or unspecified: every address of the host.
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

impl PortMapping {
    /// The one host address that the port is on, if it is not on all.
    pub fn host_address(&self) -> Option<IpAddr> {
        self.host_ip.parse().ok().filter(|address: &IpAddr| !address.is_unspecified())
    }

    /// Whether the mapping is meant for addresses of that family.
    pub fn is_for(&self, ipv6: bool) -> bool {
        self.host_ip.parse().map_or(true, |address: IpAddr| address.is_ipv6() == ipv6)
    }
}

impl Config {
    pub fn parse(stdin: &[u8]) -> Result<Self, Error> {
        let config: Config = serde_json::from_slice(stdin).map_err(Error::Decode)?;
        if !config.cni_version.is_empty() && !VERSIONS.contains(&config.cni_version.as_str()) {
            return Err(Error::Version(config.cni_version));
        }
        if !config.state_dir.is_absolute() {
            return Err(Error::Config("stateDir must be an absolute path".to_owned()));
        }
        Ok(config)
    }

    /// The ranges that pods get addresses from: one a family.
    pub fn pod_cidrs(&self) -> Result<Vec<Cidr>, Error> {
        let ranges: Vec<Cidr> = self.pod_cidrs.iter().map(|text| text.parse()).collect::<Result<_, _>>()?;
        match ranges.as_slice() {
            [] => Err(Error::Config("podCIDRs is empty".to_owned())),
            [_] => Ok(ranges),
            [first, second] if first.is_ipv6() != second.is_ipv6() => Ok(ranges),
            _ => Err(Error::Config("podCIDRs must be at most one range a family".to_owned())),
        }
    }

    /// The host ports asked for; a mapping without host port asks for none.
    pub fn port_mappings(&self) -> Result<Vec<PortMapping>, Error> {
        let mappings: Vec<_> =
            self.runtime_config.port_mappings.iter().filter(|m| m.host_port != 0).cloned().collect();
        for mapping in &mappings {
            if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
                return Err(Error::Config(format!("hostIP {:?} is not an address", mapping.host_ip)));
            }
        }
        Ok(mappings)
    }
}

/// One container's interface: what addresses and host ports are held by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attachment {
    container_id: String,
    interface: String,
}

impl Attachment {
    /// Both names become parts of file names, so they are held to what the specification allows.
    pub fn new(container_id: &str, interface: &str) -> Result<Self, Error> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let starts_well = container_id.starts_with(|c: char| c.is_ascii_alphanumeric());
        if !starts_well || !container_id.chars().all(is_name) || container_id.len() > 128 {
            return Err(Error::Environment(format!(
                "CNI_CONTAINERID={container_id:?} is not a container id"
            )));
        }
        let bad_interface = |c: char| c.is_whitespace() || matches!(c, '/' | ':' | '@') || c.is_control();
        if interface.is_empty()
            || interface.len() > 15
            || interface.contains(bad_interface)
            || interface.starts_with('.')
        {
            return Err(Error::Environment(format!("CNI_IFNAME={interface:?} is not an interface name")));
        }
        Ok(Attachment { container_id: container_id.to_owned(), interface: interface.to_owned() })
    }

    pub fn container_id(&self) -> &str {
        &self.container_id
    }

    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// The host's end of the veth: named from the attachment, so that DEL finds it without any memory.
    pub fn host_link(&self) -> String {
        format!("tri{:011x}", self.hash("link") & 0xfff_ffff_ffff)
    }

    /// A locally administered hardware address for one end.
    pub fn mac(&self, end: &str) -> linux::netlink::Mac {
        let hash = self.hash(end).to_be_bytes();
        [0x02, hash[1], hash[2], hash[3], hash[4], hash[5]]
    }

    /// FNV-1a: stable over versions of the program, unlike the standard library's hashers.
    fn hash(&self, salt: &str) -> u64 {
        let parts = [salt, "\0", &self.container_id, "\0", &self.interface];
        let bytes = parts.iter().flat_map(|part| part.bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_state_directory_are_refused() {
        for (container, interface) in [
            ("", "eth0"),
            ("../x", "eth0"),
            ("a/b", "eth0"),
            ("a@b", "eth0"),
            ("a", ""),
            ("a", "e/0"),
            ("a", ".."),
        ] {
            assert!(Attachment::new(container, interface).is_err(), "{container:?} {interface:?}");
        }
        let attachment = Attachment::new("0a1b", "eth0").unwrap();
        assert_eq!(attachment.host_link().len(), 14);
        assert_ne!(attachment.mac("host"), attachment.mac("pod"));
        assert_ne!(attachment.host_link(), Attachment::new("0a1b", "eth1").unwrap().host_link());
    }

    #[test]
    fn configurations() {
        let check = |text: &str| Config::parse(text.as_bytes()).map_err(|e| e.code());
        let good = r#"{"cniVersion":"1.0.0","name":"n","type":"t","podCIDRs":["10.42.0.0/24"],"stateDir":"/s",
            "runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":8080,"protocol":"tcp","hostIP":""},
            {"hostPort":0,"containerPort":9,"protocol":"UDP"}]}}"#;
        let config = check(good).unwrap();
        assert_eq!(config.pod_cidrs().unwrap().len(), 1);
        assert_eq!(config.port_mappings().unwrap().len(), 1);
        assert_eq!(check("{").unwrap_err(), 6);
        assert_eq!(check(r#"{"cniVersion":"9.9.9","stateDir":"/s"}"#).unwrap_err(), 1);
        assert_eq!(check(r#"{"stateDir":"s"}"#).unwrap_err(), 7);
        let two = check(r#"{"stateDir":"/s","podCIDRs":["10.0.0.0/24","10.1.0.0/24"]}"#).unwrap();
        assert_eq!(two.pod_cidrs().unwrap_err().code(), 7);
    }
}
