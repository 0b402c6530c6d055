//! The default seccomp profile, fitted to a container's capabilities and this machine.

use std::collections::BTreeSet;

use serde_json::{Value, json};

const PROFILE: &str = include_str!("../data/seccomp-default.txt");

/// The profile `RuntimeDefault` for a container with these capabilities, in the OCI runtime's form.
pub(crate) fn default_profile(capabilities: &BTreeSet<String>) -> Value {
    let rules: Vec<Value> = PROFILE
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .filter_map(|line| rule(line, capabilities, std::env::consts::ARCH))
        .collect();
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 1,
        "architectures": architectures(),
        "syscalls": rules,
    })
}

fn architectures() -> &'static [&'static str] {
    match std::env::consts::ARCH {
        "x86_64" => &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "aarch64" => &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
        "riscv64" => &["SCMP_ARCH_RISCV64"],
        _ => &[],
    }
}

/// One line of the profile, or `None` if its condition does not hold.
fn rule(line: &str, capabilities: &BTreeSet<String>, arch: &str) -> Option<Value> {
    let mut parts = line.split('|').map(str::trim);
    let (condition, action, names) = (parts.next()?, parts.next()?, parts.next()?);
    let holds = match condition.split_once(' ') {
        Some(("cap", name)) => capabilities.contains(name),
        Some(("nocap", name)) => !capabilities.contains(name),
        Some(("arch", name)) => name == arch,
        _ => condition == "always",
    };
    if !holds {
        return None;
    }
    let names: Vec<&str> = names.split_whitespace().collect();
    let words: Vec<&str> = action.split_whitespace().collect();
    Some(match words[..] {
        ["allow", index, op, value] => json!({
            "names": names, "action": "SCMP_ACT_ALLOW", "args": [argument(index, op, value)?],
        }),
        ["errno", number] => {
            let number: u32 = number.parse().ok()?;
            json!({ "names": names, "action": "SCMP_ACT_ERRNO", "errnoRet": number })
        }
        _ => json!({ "names": names, "action": "SCMP_ACT_ALLOW" }),
    })
}

fn argument(index: &str, op: &str, value: &str) -> Option<Value> {
    let (index, value): (u32, u64) = (index.parse().ok()?, value.parse().ok()?);
    // Masked equality compares the argument under the mask `value` with `valueTwo`, which is always 0 here.
    Some(json!({ "index": index, "op": op, "value": value, "valueTwo": 0 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(profile: &Value, name: &str) -> usize {
        let allowed = |rule: &&Value| {
            rule["action"] == "SCMP_ACT_ALLOW"
                && rule["names"].as_array().unwrap().iter().any(|known| known == name)
        };
        profile["syscalls"].as_array().unwrap().iter().filter(allowed).count()
    }

    #[test]
    fn capabilities_open_their_syscalls() {
        let plain = default_profile(&BTreeSet::new());
        let admin = default_profile(&BTreeSet::from(["CAP_SYS_ADMIN".to_owned()]));
        for (name, without, with) in [("read", 1, 1), ("mount", 0, 1), ("clone", 1, 1), ("reboot", 0, 0)] {
            assert_eq!((allows(&plain, name), allows(&admin, name)), (without, with), "{name}");
        }
        assert_eq!(allows(&plain, "personality"), 5);
        let lines = PROFILE.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let malformed: Vec<&str> = lines
            .filter(|line| {
                let all = BTreeSet::from(["x".to_owned()]);
                let neutral = line.replace("nocap", "cap").replace("cap ", "nocap ");
                rule(&neutral, &all, "x86_64").is_none() && !line.starts_with("arch")
            })
            .collect();
        assert!(malformed.is_empty(), "{malformed:?}");
    }
}
