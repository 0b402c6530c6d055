//! The shim: one small single-threaded process per pod that is the parent of its containers.
//!
//! Start at [`main`] (`trierarch shim`), whose loop is in `server`; `protocol` is what the engine says to it,
//! `client` is the engine's side. The shim is a session leader and a subreaper: it starts the OCI runtime,
//! which leaves containers behind as the shim's children; it owns their pipes and terminals, writes their logs
//! and exit files, and answers on a unix socket. What always holds: the engine may be killed at any instant
//! without the shim or a container noticing; an exit is on disk before anybody is told of it; nothing here
//! waits for anything but `poll`.

pub(crate) mod client;
pub(crate) mod log;
mod pause;
pub(crate) mod protocol;
mod runtime;
mod server;
pub(crate) mod users;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs the shim of one pod: `--dir <sandbox dir> --socket <path> [--runtime <word>]…`; or what has to have a
/// process of its own, `pause <empty dir> [<user namespace>]` and `users`.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let result = match arguments.first().and_then(|word| word.to_str()) {
        Some("pause") => {
            let root = arguments.get(1).map_or(std::ffi::OsStr::new("/nonexistent"), OsString::as_os_str);
            pause::run(root, arguments.get(2).map(std::path::Path::new))
        }
        Some("users") => users::run(),
        _ => Options::parse(arguments).and_then(server::run),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The engine reads what the shim says before it listens.
            let _ = writeln!(std::io::stderr(), "shim: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a shim is told when it starts.
#[derive(Debug)]
pub(crate) struct Options {
    /// The pod's directory: `containers/<id>` below it hold bundles, pid and exit files.
    pub dir: PathBuf,
    pub socket: PathBuf,
    /// The OCI runtime's command with its leading arguments.
    pub runtime: Vec<String>,
    /// The program to start as `shim pause`, if the pod shares a pid namespace.
    pub pause: Option<OsString>,
}

impl Options {
    fn parse(arguments: Vec<OsString>) -> std::io::Result<Self> {
        let wrong = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidInput, what.to_owned());
        let mut options =
            Options { dir: PathBuf::new(), socket: PathBuf::new(), runtime: Vec::new(), pause: None };
        let mut arguments = arguments.into_iter();
        while let Some(flag) = arguments.next() {
            let flag = flag.into_string().map_err(|_| wrong("a flag is not UTF-8"))?;
            let value = arguments.next().ok_or_else(|| wrong("a flag needs a value"))?;
            match flag.as_str() {
                "--dir" => options.dir = value.into(),
                "--pause" => options.pause = Some(value),
                "--socket" => options.socket = value.into(),
                "--runtime" => {
                    options.runtime.push(value.into_string().map_err(|_| wrong("the runtime is not UTF-8"))?);
                }
                _ => return Err(wrong("unknown flag")),
            }
        }
        if options.dir.as_os_str().is_empty()
            || options.socket.as_os_str().is_empty()
            || options.runtime.is_empty()
        {
            return Err(wrong("--dir, --socket and --runtime are needed"));
        }
        Ok(options)
    }
}
