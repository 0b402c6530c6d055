//! `--config FILE`: the flags of a command, in YAML. Each key is a flag's name without the dashes; what stands on
//! the command line counts more.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

/// Commands whose `--config` is such a file. That of others is a kind of upstream's.
const COMMANDS: [&str; 2] = ["server", "agent"];

/// Puts the file's flags before those of the command line.
pub fn expand(arguments: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    if !arguments.get(1).is_some_and(|command| COMMANDS.iter().any(|known| command == known)) {
        return Ok(arguments);
    }
    let Some(path) = config_path(&arguments) else { return Ok(arguments) };
    let path = Path::new(&path);
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let flags = flags(&text).with_context(|| format!("{} is not a configuration", path.display()))?;
    let mut expanded = arguments;
    expanded.splice(2..2, flags);
    Ok(expanded)
}

/// What is wrong with a flag that a configuration file gave, with the file and the line where it stands; `None`
/// when it was the command line's.
pub fn place(arguments: &[OsString], flag: &str) -> Option<String> {
    let path = config_path(arguments)?;
    let text = std::fs::read_to_string(&path).ok()?;
    let name = flag.trim_start_matches('-').split('=').next()?;
    let stands = |line: &str| line.trim_start().strip_prefix(name).is_some_and(|rest| rest.starts_with(':'));
    let line = text.lines().position(stands)? + 1;
    Some(format!("{}: line {line}", Path::new(&path).display()))
}

/// The value of `--config`, which only follows a command.
fn config_path(arguments: &[OsString]) -> Option<OsString> {
    let mut rest = arguments.iter().skip(2);
    while let Some(argument) = rest.next() {
        if argument == "--config" {
            return rest.next().cloned();
        }
        if let Some(path) = argument.to_str().and_then(|text| text.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    None
}

fn flags(text: &str) -> anyhow::Result<Vec<OsString>> {
    let Value::Object(settings) = serde_saphyr::from_str(text)? else {
        bail!("it must map flag names to values")
    };
    let mut flags = Vec::new();
    for (name, value) in settings {
        if name == "config" {
            bail!("\"config\" cannot stand in the file itself");
        }
        let texts = match value {
            Value::Array(values) => values.iter().map(|v| scalar(&name, v)).collect::<Result<Vec<_>, _>>()?,
            value => vec![scalar(&name, &value)?],
        };
        for text in texts {
            match text.as_str() {
                "true" => flags.push(format!("--{name}").into()),
                "false" => {}
                text => flags.push(format!("--{name}={text}").into()),
            }
        }
    }
    Ok(flags)
}

fn scalar(name: &str, value: &Value) -> anyhow::Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        _ => bail!("\"{name}\" must be text, a number, true, false, or a list of these"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_flags() {
        let flags =
            flags("secure-port: 7443\nno-node: true\ndata-dir: /srv/a b\nnode-label: [a=1, b=2]\n").unwrap();
        let flags: Vec<_> = flags.iter().map(|f| f.to_str().unwrap()).collect();
        assert_eq!(
            flags,
            [
                "--data-dir=/srv/a b",
                "--no-node",
                "--node-label=a=1",
                "--node-label=b=2",
                "--secure-port=7443"
            ]
        );
    }

    #[test]
    fn a_wrong_setting_is_found_in_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "secure-port: 7443\nno-such: 1\n").unwrap();
        let arguments = ["trierarch", "server", "--config"].map(OsString::from).to_vec();
        let arguments = [arguments, vec![file.path().into()]].concat();
        let found = place(&arguments, "--no-such").unwrap();
        assert!(found.ends_with(": line 2"), "{found}");
        assert_eq!(place(&arguments, "--other"), None);
    }

    #[test]
    fn what_is_no_setting_is_refused() {
        for text in ["- a", "a: {b: c}", "config: x", "a: [[1]]"] {
            assert!(super::flags(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_command_line_counts_more() {
        let directory = std::env::temp_dir().join(format!("trierarch-config-{}", std::process::id()));
        std::fs::write(&directory, "secure-port: 7443\n").unwrap();
        let given = ["trierarch", "server", "--secure-port=1", "--config"].map(OsString::from).to_vec();
        let given = [given, vec![directory.clone().into()]].concat();
        let expanded = expand(given).unwrap();
        std::fs::remove_file(directory).unwrap();
        assert_eq!(expanded[2..4], ["--secure-port=7443", "--secure-port=1"].map(OsString::from));
    }
}
