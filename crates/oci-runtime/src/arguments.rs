//! The command line, as runc's: only what engines use of it.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::Error;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Arguments {
    pub root: PathBuf,
    pub log: Option<PathBuf>,
    pub command: Command,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Create(Create),
    Start { id: String },
    State { id: String },
    Kill { id: String, signal: String, all: bool },
    Delete { id: String, force: bool },
    Exec(Exec),
    Pause { id: String },
    Resume { id: String },
    List,
    Version,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Create {
    pub id: String,
    pub bundle: PathBuf,
    pub pid_file: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
    pub no_pivot: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Exec {
    pub id: String,
    pub process: PathBuf,
    pub pid_file: Option<PathBuf>,
    pub console_socket: Option<PathBuf>,
}

/// The options of all commands together: which one takes which is checked by what a command then needs.
#[derive(Default)]
struct Options {
    bundle: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    process: Option<PathBuf>,
    no_pivot: bool,
    force: bool,
    all: bool,
}

impl Arguments {
    pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Self, Error> {
        let mut arguments = arguments;
        let mut root = PathBuf::from("/run/trierarch/oci-runtime");
        let mut log = None;
        let name = loop {
            let argument = text(arguments.next().ok_or_else(|| usage("a command is missing"))?)?;
            let (flag, inline) = split(&argument);
            match flag {
                "--root" => root = value(inline, &mut arguments, flag)?.into(),
                "--log" => log = Some(value(inline, &mut arguments, flag)?.into()),
                // The log is always JSON.
                "--log-format" => drop(value(inline, &mut arguments, flag)?),
                "--debug" | "--systemd-cgroup=false" => {}
                "--version" | "-v" => break "--version".to_owned(),
                _ if flag.starts_with('-') => return Err(usage(&format!("unknown flag {flag}"))),
                _ => break argument,
            }
        };
        let (options, operands) = options(arguments)?;
        Ok(Self { root, log, command: command(&name, options, operands)? })
    }
}

fn options(mut arguments: impl Iterator<Item = OsString>) -> Result<(Options, Vec<String>), Error> {
    let mut options = Options::default();
    let mut operands = Vec::new();
    while let Some(argument) = arguments.next() {
        let argument = text(argument)?;
        let (flag, inline) = split(&argument);
        match flag {
            "--bundle" | "-b" => options.bundle = Some(value(inline, &mut arguments, flag)?.into()),
            "--pid-file" => options.pid_file = Some(value(inline, &mut arguments, flag)?.into()),
            "--console-socket" => options.console_socket = Some(value(inline, &mut arguments, flag)?.into()),
            "--process" | "-p" => options.process = Some(value(inline, &mut arguments, flag)?.into()),
            "--no-pivot" => options.no_pivot = true,
            "--force" | "-f" => options.force = true,
            "--all" | "-a" => options.all = true,
            "--detach" | "-d" => {}
            _ if flag.starts_with('-') => return Err(usage(&format!("unknown flag {flag}"))),
            _ => operands.push(argument),
        }
    }
    Ok((options, operands))
}

fn command(name: &str, options: Options, operands: Vec<String>) -> Result<Command, Error> {
    let mut operands = operands.into_iter();
    let mut id = || operands.next().ok_or_else(|| usage("a container id is missing"));
    Ok(match name {
        "create" => Command::Create(Create {
            id: id()?,
            bundle: options.bundle.unwrap_or_else(|| ".".into()),
            pid_file: options.pid_file,
            console_socket: options.console_socket,
            no_pivot: options.no_pivot,
        }),
        "start" => Command::Start { id: id()? },
        "state" => Command::State { id: id()? },
        "kill" => Command::Kill {
            id: id()?,
            signal: operands.next().unwrap_or_else(|| "SIGTERM".to_owned()),
            all: options.all,
        },
        "delete" => Command::Delete { id: id()?, force: options.force },
        "exec" => Command::Exec(Exec {
            id: id()?,
            process: options.process.ok_or_else(|| usage("exec needs --process"))?,
            pid_file: options.pid_file,
            console_socket: options.console_socket,
        }),
        "pause" => Command::Pause { id: id()? },
        "resume" => Command::Resume { id: id()? },
        "list" => Command::List,
        "--version" => Command::Version,
        _ => return Err(usage(&format!("unknown command {name}"))),
    })
}

fn usage(what: &str) -> Error {
    Error::Usage(what.to_owned())
}

fn text(argument: OsString) -> Result<String, Error> {
    argument.into_string().map_err(|argument| usage(&format!("argument {argument:?} is not UTF-8")))
}

/// `--flag=value` in its two parts.
fn split(argument: &str) -> (&str, Option<&str>) {
    match argument.split_once('=') {
        Some((flag, value)) if flag.starts_with("--") && flag != "--systemd-cgroup" => (flag, Some(value)),
        _ => (argument, None),
    }
}

fn value(
    inline: Option<&str>,
    arguments: &mut impl Iterator<Item = OsString>,
    flag: &str,
) -> Result<String, Error> {
    match inline {
        Some(value) => Ok(value.to_owned()),
        None => text(arguments.next().ok_or_else(|| usage(&format!("{flag} needs a value")))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, String> {
        Arguments::parse(line.split_whitespace().map(OsString::from)).map_err(|e| e.to_string())
    }

    #[test]
    fn lines_are_read_as_runc_reads_them() {
        let create =
            parse("--root=/r --log /l --log-format json create --bundle /b --pid-file=/p c1").unwrap();
        assert_eq!(create.root, PathBuf::from("/r"));
        assert_eq!(create.log, Some(PathBuf::from("/l")));
        let Command::Create(create) = create.command else { panic!("{create:?}") };
        assert_eq!((create.id.as_str(), create.bundle), ("c1", PathBuf::from("/b")));
        let kill = parse("kill --all c1 9").unwrap().command;
        assert_eq!(kill, Command::Kill { id: "c1".into(), signal: "9".into(), all: true });
        let delete = parse("delete c1 --force").unwrap().command;
        assert_eq!(delete, Command::Delete { id: "c1".into(), force: true });
    }

    #[test]
    fn wrong_lines_say_what_is_wrong() {
        for (line, message) in [
            ("", "a command is missing"),
            ("fly c1", "unknown command fly"),
            ("start", "a container id is missing"),
            ("exec c1", "exec needs --process"),
            ("create --bundle", "--bundle needs a value"),
            ("state --loud c1", "unknown flag --loud"),
        ] {
            assert_eq!(parse(line).unwrap_err(), message, "{line}");
        }
    }
}
