//! The process in which a pod's own user namespace is made, and in it the pod's other namespaces: a process with
//! threads, as the engine is, cannot enter a user namespace.
//!
//! The engine's side is [`make`]. The two talk in lines: the process says that it is in its namespace, the engine
//! gives that its ids and then says what else is wanted, the process says that all is made. The engine keeps the
//! namespaces, and the process ends.

use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cri::v1::{IdMapping, UserNamespace};
use linux::namespaces::{self, Kind};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::engine::InNamespaces;

/// What is made in the user namespace.
#[derive(Debug, Serialize, Deserialize)]
struct Wanted {
    kinds: Vec<String>,
    inside: InNamespaces,
}

const KINDS: [Kind; 3] = [Kind::Net, Kind::Ipc, Kind::Uts];

/// `shim users`: the process itself.
pub(super) fn run() -> io::Result<()> {
    namespaces::become_separate(&[Kind::User]).map_err(io::Error::other)?;
    println!("in");
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let wanted: Wanted = serde_json::from_str(&line)?;
    namespaces::become_root().map_err(io::Error::other)?;
    let is_wanted = |kind: &Kind| wanted.kinds.iter().any(|name| name == kind.file_name());
    let kinds: Vec<Kind> = KINDS.into_iter().filter(is_wanted).collect();
    namespaces::become_separate(&kinds).map_err(io::Error::other)?;
    wanted.inside.set_up().map_err(io::Error::other)?;
    println!("made");
    // The engine keeps the namespaces now, and then lets go of the other end.
    io::stdin().lock().read_line(&mut line).map(drop)
}

/// Makes a user namespace with these ids and namespaces of these kinds in it, and pins them all in `dir`.
pub(crate) fn make(
    program: &Path,
    users: &UserNamespace,
    kinds: &[Kind],
    dir: &Path,
    inside: InNamespaces,
) -> Result<(), Error> {
    let wrong = |what: &str| Error::Invalid(format!("user namespace: {what}"));
    let failed = |error: io::Error| wrong(&error.to_string());
    let mut child = Command::new(program)
        .args(["shim", "users"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let mut stdin = child.stdin.take().ok_or_else(|| wrong("no stdin"))?;
    let mut answers = BufReader::new(child.stdout.take().ok_or_else(|| wrong("no stdout"))?).lines();
    let proc = PathBuf::from(format!("/proc/{}", child.id()));
    let made = (|| {
        answers.next().ok_or_else(|| wrong("it was not made"))?.map_err(failed)?;
        for (file, mappings) in [("uid_map", &users.uids), ("gid_map", &users.gids)] {
            std::fs::write(proc.join(file), map(mappings)).map_err(Error::io(proc.join(file)))?;
        }
        let kinds_named = kinds.iter().map(|kind| kind.file_name().to_owned()).collect();
        let wanted = serde_json::to_string(&Wanted { kinds: kinds_named, inside })
            .map_err(|e| wrong(&e.to_string()))?;
        writeln!(stdin, "{wanted}").map_err(failed)?;
        answers.next().ok_or_else(|| wrong("the pod's namespaces were not made in it"))?.map_err(failed)?;
        [Kind::User].iter().chain(kinds).try_for_each(|kind| {
            namespaces::pin(&proc.join("ns"), *kind, dir).map_err(Error::kernel("pod namespaces"))
        })
    })();
    drop(stdin);
    let ended = child.wait_with_output().map_err(failed)?;
    made.map_err(|error| match String::from_utf8_lossy(&ended.stderr).trim() {
        "" => error,
        words => wrong(words),
    })
}

fn map(mappings: &[IdMapping]) -> String {
    mappings.iter().map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.length)).collect()
}
