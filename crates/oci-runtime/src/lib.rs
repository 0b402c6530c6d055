//! The OCI runtime command line over libcontainer, in a single-threaded process of its own.
//!
//! Start at [`main`], which is `trierarch oci-runtime`: it reads the same arguments as runc (`--root`, `--log`,
//! `--log-format json`, then `create`, `start`, `state`, `kill`, `delete`, `exec`, `pause`, `resume`, `list`),
//! so that runc or crun can stand in for it and it for them. Why a process: libcontainer changes the working
//! directory, the oom score and the dumpable flag of its caller and clones without at-fork care, which a
//! threaded engine must not suffer. What always holds: no thread is ever started here; a created container is
//! the child of the caller, not of this process, so that a shim can reap it; errors go to stderr and, as JSON,
//! to `--log`. There is deliberately no `run`, `checkpoint`, `events` or `update`: the engine has its own.

mod arguments;
mod devices;
mod enter;
mod fit;
mod log;
mod users;
mod workload;

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::error::LibcontainerError;
use libcontainer::signal::Signal;
use libcontainer::syscall::syscall::SyscallType;

use arguments::{Arguments, Command, Create};
use workload::Workload;

/// What went wrong, in words that runtimes' callers look for ("container does not exist").
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("container \"{0}\" does not exist")]
    NotFound(String),
    #[error("{0}")]
    Process(String),
    #[error("{what}")]
    Libcontainer { what: &'static str, source: LibcontainerError },
    #[error("{}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("unknown signal {0}")]
    Signal(String),
}

/// Runs one command of the runtime; `arguments` are those after `oci-runtime`.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::parse(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return fail(&error, None),
    };
    let details = log::start(arguments.log.as_deref());
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => match arguments.log.as_deref() {
            Some(log) => {
                log::append(log, "error", &log::with_causes(&error, &details));
                ExitCode::FAILURE
            }
            None => fail(&error, Some(&details)),
        },
    }
}

/// Tells people. Who gave a log reads it there: stderr may then be that of the container.
fn fail(error: &Error, details: Option<&log::Details>) -> ExitCode {
    let text = match details {
        Some(details) => log::with_causes(error, details),
        None => error.to_string(),
    };
    // Nothing better can be done when even stderr is gone.
    let _ = writeln!(io::stderr(), "{text}");
    ExitCode::FAILURE
}

fn run(arguments: &Arguments) -> Result<(), Error> {
    let root = &arguments.root;
    match &arguments.command {
        Command::Create(create) => self::create(root, create),
        Command::Start { id } => load(root, id)?.start().map_err(failed("start container")),
        Command::State { id } => state(root, id),
        Command::Kill { id, signal, all } => kill(root, id, signal, *all),
        Command::Delete { id, force } => delete(root, id, *force),
        Command::Exec(exec) => enter::exec(&mut load(root, &exec.id)?, exec),
        Command::Pause { id } => load(root, id)?.pause().map_err(failed("pause container")),
        Command::Resume { id } => load(root, id)?.resume().map_err(failed("resume container")),
        Command::List => list(root),
        Command::Version => print("trierarch oci-runtime\nspec: 1.2.1"),
    }
}

fn failed(what: &'static str) -> impl Fn(LibcontainerError) -> Error {
    move |source| Error::Libcontainer { what, source }
}

/// What kept a process from becoming its program: said by [`Workload`], or else by libcontainer.
fn unstarted(what: &'static str) -> impl Fn(LibcontainerError) -> Error {
    move |source| {
        let mut cause: Option<&dyn std::error::Error> = Some(&source);
        while let Some(error) = cause {
            let text = error.to_string();
            if let Some(at) = text.find(workload::PREFIX) {
                // libcontainer reads the words in chunks and pads the last of them.
                return Error::Process(text[at..].trim_end_matches('\0').to_owned());
            }
            cause = error.source();
        }
        Error::Libcontainer { what, source }
    }
}

fn file(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |source| Error::File { path: path.to_path_buf(), source }
}

fn print(text: &str) -> Result<(), Error> {
    writeln!(io::stdout(), "{text}").map_err(file(Path::new("stdout")))
}

fn container_dir(root: &Path, id: &str) -> Result<PathBuf, Error> {
    if id.is_empty() || id.contains('/') || id == "." || id == ".." {
        return Err(Error::Usage(format!("invalid container id {id:?}")));
    }
    Ok(root.join(id))
}

fn load(root: &Path, id: &str) -> Result<Container, Error> {
    let dir = container_dir(root, id)?;
    if !dir.join("state.json").exists() {
        return Err(Error::NotFound(id.to_owned()));
    }
    Container::load(dir).map_err(failed("load container"))
}

fn builder(root: &Path, id: &str) -> Result<ContainerBuilder, Error> {
    fs::create_dir_all(root).map_err(file(root))?;
    ContainerBuilder::new(id.to_owned(), SyscallType::default())
        .validate_id()
        .and_then(|builder| builder.with_root_path(root))
        .map_err(failed("prepare container"))
}

fn create(root: &Path, create: &Create) -> Result<(), Error> {
    container_dir(root, &create.id)?;
    fit::fit_bundle(&create.bundle)?;
    let needed =
        [Some(root), Some(&create.bundle), create.pid_file.as_deref(), create.console_socket.as_deref()];
    let spec: oci_spec::runtime::Spec = read_json(&create.bundle.join("config.json"))?;
    if create.console_socket.is_none()
        && let Some(process) = spec.process()
    {
        users::own_streams(&spec, process.user().uid());
    }
    let given = users::make_reachable(&create.bundle, &needed.into_iter().flatten().collect::<Vec<_>>())?;
    let built = builder(root, &create.id).and_then(|builder| {
        builder
            .with_pid_file(create.pid_file.as_ref())
            .map_err(failed("pid file"))?
            .with_console_socket(create.console_socket.as_ref())
            .with_executor(Workload)
            .as_init(&create.bundle)
            .with_systemd(false)
            .with_detach(true)
            .with_no_pivot(create.no_pivot)
            .as_sibling(true)
            .build()
            .map_err(unstarted("create container"))
    });
    if let Some(given) = given {
        users::put_back(&create.bundle, &given)?;
    }
    built?;
    devices::restrict(&spec).map_err(|why| {
        // Unrestricted it must not start. The failure is what counts, not what taking it away may add to it.
        let _ = delete(root, &create.id, true);
        Error::Process(format!("{}{why}", workload::PREFIX))
    })
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, Error> {
    let bytes = fs::read(path).map_err(file(path))?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_path_buf(), source })
}

fn kill(root: &Path, id: &str, signal: &str, all: bool) -> Result<(), Error> {
    let signal = Signal::try_from(signal).map_err(|_| Error::Signal(signal.to_owned()))?;
    load(root, id)?.kill(signal, all).map_err(failed("kill container"))
}

fn delete(root: &Path, id: &str, force: bool) -> Result<(), Error> {
    let dir = container_dir(root, id)?;
    match load(root, id) {
        Ok(mut container) => container.delete(force).map_err(failed("delete container")),
        // A create that was killed half way leaves a directory without a readable state.
        Err(_) if force => match fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file(&dir)(e)),
            _ => Ok(()),
        },
        Err(error) => Err(error),
    }
}

/// A container as `state` prints it: the names are those of the OCI runtime specification.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Printed<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: String,
    pid: i32,
    bundle: &'a Path,
}

fn printed(container: &Container) -> Printed<'_> {
    let stopped = container.status() == ContainerStatus::Stopped;
    Printed {
        oci_version: &container.state.oci_version,
        id: container.id(),
        status: container.status().to_string().to_lowercase(),
        pid: container.pid().filter(|_| !stopped).map_or(0, |pid| pid.as_raw()),
        bundle: container.bundle(),
    }
}

fn state(root: &Path, id: &str) -> Result<(), Error> {
    let container = load(root, id)?;
    print(&to_json(&printed(&container))?)
}

fn list(root: &Path) -> Result<(), Error> {
    let mut ids: Vec<String> = match fs::read_dir(root) {
        Ok(entries) => entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(file(root)(e)),
    };
    ids.sort();
    let containers: Vec<Container> = ids.iter().filter_map(|id| load(root, id).ok()).collect();
    print(&to_json(&containers.iter().map(printed).collect::<Vec<_>>())?)
}

fn to_json(value: &impl serde::Serialize) -> Result<String, Error> {
    serde_json::to_string_pretty(value).map_err(|source| Error::Json { path: "stdout".into(), source })
}
