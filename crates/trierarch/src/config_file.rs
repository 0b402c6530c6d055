//! `--config FILE`: the flags of a command, in YAML. Each key is a flag's name without the dashes; what stands on
//! the command line counts more.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::Value;

/// Puts the file's flags before those of the command line.
pub fn expand(arguments: Vec<OsString>) -> anyhow::Result<Vec<OsString>> {
    let Some(path) = config_path(&arguments) else { return Ok(arguments) };
    let path = Path::new(&path);
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let flags = flags(&text).with_context(|| format!("{} is not a configuration", path.display()))?;
    let mut expanded = arguments;
    expanded.splice(2..2, flags);
    Ok(expanded)
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
