//! The devices that a container may open, on machines with version 2 cgroups: there the kernel asks a program,
//! which libcontainer leaves out. On version 1 libcontainer writes the same rules to the devices controller.

use linux::cgroups::{Cgroup, Version, version};
use linux::device_filter::{self, Access, Kind, Rule};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};

/// What every container may do with devices, whatever its description says: make any, open the harmless ones.
// Upstream: runc's libcontainer/specconv AllowedDevices
const ALWAYS: [(Option<Kind>, Option<u32>, Option<u32>, &str); 12] = [
    (Some(Kind::Character), None, None, "m"),
    (Some(Kind::Block), None, None, "m"),
    (Some(Kind::Character), Some(1), Some(3), "rwm"),
    (Some(Kind::Character), Some(1), Some(5), "rwm"),
    (Some(Kind::Character), Some(1), Some(7), "rwm"),
    (Some(Kind::Character), Some(1), Some(8), "rwm"),
    (Some(Kind::Character), Some(1), Some(9), "rwm"),
    (Some(Kind::Character), Some(5), Some(0), "rwm"),
    (Some(Kind::Character), Some(5), Some(1), "rwm"),
    (Some(Kind::Character), Some(5), Some(2), "rwm"),
    (Some(Kind::Character), Some(136), None, "rwm"),
    (Some(Kind::Character), Some(10), Some(200), "rwm"),
];

/// Puts the filter on the container's cgroup, before the container's program runs.
pub(crate) fn restrict(spec: &Spec) -> Result<(), String> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    let Some(path) = linux.cgroups_path().as_ref().filter(|_| version() == Version::V2) else {
        return Ok(());
    };
    let asked = linux.resources().as_ref().and_then(|resources| resources.devices().clone());
    let Some(asked) = asked else { return Ok(()) };
    let rules = rules(&asked)?;
    device_filter::attach(&Cgroup::new(path).dir("devices"), &rules).map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        format!("restrict devices: {error}{cause}")
    })
}

fn rules(asked: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>, String> {
    let mut rules = Vec::with_capacity(asked.len() + ALWAYS.len());
    for device in asked {
        let number = |asked: Option<i64>| {
            // -1 is how the description writes "any".
            let asked = asked.filter(|number| *number != -1);
            asked.map(|n| u32::try_from(n).map_err(|_| format!("device number {n}"))).transpose()
        };
        let access = device.access().as_deref().unwrap_or("rwm");
        rules.push(Rule {
            allow: device.allow(),
            kind: match device.typ().unwrap_or_default() {
                LinuxDeviceType::A => None,
                LinuxDeviceType::B => Some(Kind::Block),
                LinuxDeviceType::C | LinuxDeviceType::U => Some(Kind::Character),
                LinuxDeviceType::P => return Err("a pipe is no device".to_owned()),
            },
            major: number(device.major())?,
            minor: number(device.minor())?,
            access: Access::parse(access).ok_or_else(|| format!("device access {access:?}"))?,
        });
    }
    rules.extend(ALWAYS.iter().map(|(kind, major, minor, access)| Rule {
        allow: true,
        kind: *kind,
        major: *major,
        minor: *minor,
        access: Access::parse(access).expect("the table holds only letters of rwm"),
    }));
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_become_rules() {
        let asked: Vec<LinuxDeviceCgroup> = serde_json::from_str(
            r#"[{"allow": false, "access": "rwm"},
                {"allow": true, "type": "b", "major": 8, "minor": -1, "access": "r"}]"#,
        )
        .unwrap();
        let rules = rules(&asked).unwrap();
        assert_eq!(rules.len(), 2 + ALWAYS.len());
        assert_eq!((rules[0].allow, rules[0].kind, rules[0].major), (false, None, None));
        assert_eq!((rules[1].kind, rules[1].major, rules[1].minor), (Some(Kind::Block), Some(8), None));
        let wrong: Vec<LinuxDeviceCgroup> =
            serde_json::from_str(r#"[{"allow": true, "access": "x"}]"#).unwrap();
        assert!(super::rules(&wrong).is_err());
    }
}
