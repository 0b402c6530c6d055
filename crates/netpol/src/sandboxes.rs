//! Which sandboxes there are on this node, with their pods and addresses, as the CNI plugin says before anybody
//! else knows: it writes a file for each into the folder `pods` and asks on the socket `agent.sock`.
//!
//! A question is one line, the sandbox's id. The answer is `ok` once the rules of what the file says are in force,
//! or why they are not. A file that is gone says that the sandbox is: the files are the truth, and a question only
//! a hint to read one, so that their order does not matter and a plugin that finds nobody to ask leaves no trace.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Error;

/// Questions that are answered at once; more wait in the socket's own queue.
const MAX_QUESTIONS: usize = 64;
/// The plugin itself gives up after ten seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// A question is an id of at most 128 characters.
const MAX_QUESTION_BYTES: u64 = 256;
const FIRST_BREATH: Duration = Duration::from_millis(500);
const AFTER_FAILURE: Duration = Duration::from_millis(100);
const MAX_FILE_BYTES: u64 = 64 << 10;

/// A sandbox as the CNI plugin wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Sandbox {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub addresses: Vec<IpAddr>,
}

impl Sandbox {
    pub fn pod_key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// The folder of files.
#[derive(Clone, Debug)]
pub struct Files {
    pods: PathBuf,
}

impl Files {
    /// All sandboxes. A file that cannot be read is none of a sandbox.
    pub fn all(&self) -> io::Result<BTreeMap<String, Sandbox>> {
        let mut all = BTreeMap::new();
        for entry in std::fs::read_dir(&self.pods)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            match self.read(&name) {
                Ok(Some(sandbox)) => drop(all.insert(name, sandbox)),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(sandbox = name, %error, "the addresses of a sandbox cannot be read");
                }
            }
        }
        Ok(all)
    }

    /// The sandbox of that id, if it is there.
    pub fn read(&self, id: &str) -> io::Result<Option<Sandbox>> {
        let is_id = id.starts_with(|c: char| c.is_ascii_alphanumeric())
            && id.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !is_id {
            return Ok(None);
        }
        match std::fs::File::open(self.pods.join(id)) {
            Ok(file) => Ok(Some(serde_json::from_reader(file.take(MAX_FILE_BYTES))?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The folder and the socket.
#[derive(Debug)]
pub struct Sandboxes {
    pub files: Files,
    listener: UnixListener,
}

impl Sandboxes {
    /// Listens from now on; whoever asks waits.
    pub fn bind(dir: &Path) -> Result<Self, Error> {
        let bind = || {
            let pods = dir.join("pods");
            std::fs::create_dir_all(&pods)?;
            let socket = dir.join("agent.sock");
            // What a process that was killed left would bar the way.
            match std::fs::remove_file(&socket) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            Ok(Sandboxes { files: Files { pods }, listener: UnixListener::bind(socket)? })
        };
        bind().map_err(|source| Error::Listen { dir: dir.to_owned(), source })
    }

    /// Answers questions until the shutdown, each by `answer`, which is told the sandbox's id.
    pub async fn serve<F>(self, answer: impl Fn(String) -> F, shutdown: CancellationToken)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let tasks = TaskTracker::new();
        let places = Arc::new(Semaphore::new(MAX_QUESTIONS));
        let answer = &answer;
        let accept = async {
            while let Ok(place) = places.clone().acquire_owned().await {
                let stream = match self.listener.accept().await {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        // Most likely no descriptor is free; somebody has to close one first.
                        tracing::warn!(%error, "the CNI plugin cannot be heard");
                        tokio::time::sleep(AFTER_FAILURE).await;
                        continue;
                    }
                };
                let Some((stream, id)) = question(stream).await else { continue };
                let answer = answer(id);
                tasks.spawn(async move {
                    let _place = place;
                    reply(stream, answer).await;
                });
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = accept => {}
        }
        tasks.close();
        tasks.wait().await;
    }
}

/// Reads a question. The plugin writes it with its first breath; one that does not is let go, and so cannot hold
/// up others for long.
async fn question(mut stream: UnixStream) -> Option<(UnixStream, String)> {
    let mut line = String::new();
    let read = async { BufReader::new((&mut stream).take(MAX_QUESTION_BYTES)).read_line(&mut line).await };
    tokio::time::timeout(FIRST_BREATH, read).await.ok()?.ok()?;
    Some((stream, line.trim_end().to_owned()))
}

async fn reply(mut stream: UnixStream, answer: impl Future<Output = Result<(), String>>) {
    let answer = tokio::time::timeout(PATIENCE, answer).await;
    let line = match answer.unwrap_or_else(|_| Err("it takes too long".to_owned())) {
        Ok(()) => "ok\n".to_owned(),
        Err(words) => format!("{words}\n"),
    };
    // A plugin that went away has nobody to tell.
    let _ = stream.write_all(line.as_bytes()).await;
}
