//! Running commands in containers, and attaching to what runs.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::pipe::{PipeFlags, pipe_with};
use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::UnixListener;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::{Container, Engine, lock};
use crate::Error;
use crate::shim::client::Connection;
use crate::shim::protocol::{Exec, Request, Response};

/// A command to run in a container.
#[derive(Debug, Clone)]
pub(crate) struct ExecRequest {
    pub container: String,
    pub command: Vec<String>,
    pub terminal: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// Our ends of what a command reads and writes.
pub(crate) enum Stdio {
    Pipes { stdin: Option<pipe::Sender>, stdout: Option<pipe::Receiver>, stderr: Option<pipe::Receiver> },
    Terminal(OwnedFd),
}

/// A command that runs.
pub(crate) struct ExecStreams {
    pub stdio: Stdio,
    pub exit: oneshot::Receiver<i32>,
    pub id: String,
}

/// What `ExecSync` says.
#[derive(Debug)]
pub(crate) struct ExecOutput {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub code: i32,
}

/// More output than this is read and thrown away.
// Upstream: CRI's ExecSyncResponse asks for 16 MB
const OUTPUT_MAX: usize = 16 << 20;

/// How long output may come after the command has ended: a child that it left behind may hold the pipes open.
const DRAIN: Duration = Duration::from_secs(2);

impl Engine {
    fn running(&self, id: &str) -> Result<Arc<Container>, Error> {
        let container = self.container(id)?;
        if container.is_running() {
            return Ok(container);
        }
        Err(Error::Conflict(format!("container {id} is not running")))
    }

    /// Starts a command.
    pub(crate) async fn exec(&self, request: &ExecRequest) -> Result<ExecStreams, Error> {
        let container = self.running(&request.container)?;
        let sandbox = self.sandbox(&container.record.sandbox)?;
        if request.command.is_empty() {
            return Err(Error::Invalid("no command specified".to_owned()));
        }
        let spec: Value = super::read_json(&container.dir.join("config.json"))
            .ok_or_else(|| Error::Invalid("the container's description cannot be read".to_owned()))?;
        let id = uuid::Uuid::new_v4().simple().to_string();
        let (sender, exit) = oneshot::channel();
        // Registered first: the end may be told before the answer is read.
        lock(&self.execs).insert(id.clone(), sender);
        let exec = Exec {
            id: container.id.clone(),
            exec: id.clone(),
            process: process(&spec, &request.command, request.terminal),
            console_socket: if request.terminal { self.console_socket(&id) } else { String::new() },
        };
        let started = match request.terminal {
            true => self.exec_with_terminal(&sandbox.shim, exec).await,
            false => self.exec_with_pipes(&sandbox.shim, exec, request).await,
        };
        match started {
            Ok(stdio) => Ok(ExecStreams { stdio, exit, id }),
            Err(error) => {
                lock(&self.execs).remove(&id);
                Err(error)
            }
        }
    }

    async fn exec_with_pipes(
        &self,
        shim: &crate::shim::client::Client,
        exec: Exec,
        request: &ExecRequest,
    ) -> Result<Stdio, Error> {
        let failed = |e| exec_failed(&exec.exec, e);
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from);
        let null = || std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let (mut theirs, mut stdin, mut outputs) = (Vec::new(), None, Vec::new());
        if request.stdin {
            let (read, write) = pipe().map_err(failed)?;
            theirs.push(read);
            stdin = Some(pipe::Sender::from_owned_fd(write).map_err(failed)?);
        } else {
            theirs.push(null().map_err(failed)?);
        }
        for wanted in [request.stdout, request.stderr] {
            if wanted {
                let (read, write) = pipe().map_err(failed)?;
                theirs.push(write);
                outputs.push(Some(pipe::Receiver::from_owned_fd(read).map_err(failed)?));
            } else {
                theirs.push(null().map_err(failed)?);
                outputs.push(None);
            }
        }
        let fds: Vec<_> = theirs.iter().map(AsFd::as_fd).collect();
        shim.ask_with(&Request::Exec(exec.clone()), &fds).await.map_err(failed)?;
        let stderr = outputs.pop().flatten();
        Ok(Stdio::Pipes { stdin, stdout: outputs.pop().flatten(), stderr })
    }

    async fn exec_with_terminal(
        &self,
        shim: &crate::shim::client::Client,
        exec: Exec,
    ) -> Result<Stdio, Error> {
        let id = exec.exec.clone();
        let failed = |e| exec_failed(&id, e);
        let socket = exec.console_socket.clone();
        let listener = UnixListener::bind(&socket).map_err(Error::io(&socket))?;
        let request = Request::Exec(exec);
        let answer = shim.ask(&request);
        let terminal = async {
            let (peer, _) = listener.accept().await?;
            let mut fds = Vec::new();
            loop {
                peer.readable().await?;
                let read = peer.try_io(tokio::io::Interest::READABLE, || {
                    linux::fdpass::receive(peer.as_fd(), &mut [0; 4096], &mut fds)
                });
                match read {
                    Ok(_) => return fds.pop().ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into()),
                    Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(e),
                }
            }
        };
        // The runtime sends the terminal before it is done, so only a failed answer comes alone.
        let result = tokio::try_join!(answer, terminal).map_err(failed);
        let _ = std::fs::remove_file(&socket);
        let (_, terminal) = result?;
        rustix::io::ioctl_fionbio(&terminal, true).map_err(|e| failed(e.into()))?;
        Ok(Stdio::Terminal(terminal))
    }

    /// Ends a command; its exit is told when it has ended.
    pub(crate) async fn kill_exec(&self, container: &str, exec: &str) {
        let killed = async {
            let container = self.container(container).ok()?;
            let sandbox = self.sandbox(&container.record.sandbox).ok()?;
            let request = Request::Kill { id: container.id.clone(), exec: Some(exec.to_owned()), signal: 9 };
            sandbox.shim.ask(&request).await.ok()
        };
        if killed.await.is_none() {
            // Without a shim there is no command either, and nobody tells of its end.
            lock(&self.execs).remove(exec);
        }
    }

    /// Runs a command to its end and returns what it wrote.
    pub(crate) async fn exec_sync(
        &self,
        container: &str,
        command: Vec<String>,
        timeout_seconds: i64,
    ) -> Result<ExecOutput, Error> {
        let request = ExecRequest {
            container: container.to_owned(),
            command,
            terminal: false,
            stdin: false,
            stdout: true,
            stderr: true,
        };
        let ExecStreams { stdio, exit, id } = self.exec(&request).await?;
        let Stdio::Pipes { stdout, stderr, .. } = stdio else {
            return Err(Error::Invalid("a terminal that nobody asked for".to_owned()));
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let output = async { tokio::join!(read_capped(stdout, &mut out), read_capped(stderr, &mut err)) };
        tokio::pin!(exit);
        let work = async {
            tokio::pin!(output);
            let code = tokio::select! {
                code = &mut exit => {
                    let _ = tokio::time::timeout(DRAIN, &mut output).await;
                    code
                }
                _ = &mut output => exit.as_mut().await,
            };
            code.map_err(|_| Error::Shim { what: "exec", message: "the shim died".to_owned() })
        };
        let code = match u64::try_from(timeout_seconds) {
            Ok(seconds @ 1..) => match tokio::time::timeout(Duration::from_secs(seconds), work).await {
                Ok(code) => code?,
                Err(_) => {
                    self.kill_exec(container, &id).await;
                    // Whoever asks next shall not find it.
                    let _ = tokio::time::timeout(DRAIN, exit).await;
                    // Upstream: containerd's words, which the kubelet shows in probe events
                    return Err(Error::Deadline(format!(
                        "timeout {seconds}s exceeded: context deadline exceeded"
                    )));
                }
            },
            _ => work.await?,
        };
        Ok(ExecOutput { stdout: out, stderr: err, code })
    }

    /// Attaches to a container's own streams.
    pub(crate) async fn attach(
        &self,
        id: &str,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<(Arc<Container>, Connection), Error> {
        let container = self.running(id)?;
        let sandbox = self.sandbox(&container.record.sandbox)?;
        let request = Request::Attach { id: container.id.clone(), stdin, stdout, stderr };
        let failed = |e: std::io::Error| Error::Shim { what: "attach", message: e.to_string() };
        let mut connection = sandbox.shim.open(&request, &[]).await.map_err(failed)?;
        match connection.response().await.map_err(failed)? {
            Response::Done => Ok((container, connection)),
            _ => Err(Error::Shim { what: "attach", message: "an unexpected answer".to_owned() }),
        }
    }
}

/// Upstream: containerd's words
fn exec_failed(id: &str, error: std::io::Error) -> Error {
    Error::Exec(format!("failed to start exec {id:?}: OCI runtime exec failed: exec failed: {error}"))
}

/// The container's own process with another command.
fn process(spec: &Value, command: &[String], terminal: bool) -> Value {
    let mut process = spec["process"].clone();
    process["args"] = Value::from(command.to_vec());
    process["terminal"] = Value::Bool(terminal);
    // The oom score is inherited from the shim's; lowering it again may not be allowed.
    if let Some(fields) = process.as_object_mut() {
        fields.remove("oomScoreAdj");
    }
    if terminal && let Some(env) = process["env"].as_array_mut() {
        let has_term = env.iter().any(|entry| entry.as_str().is_some_and(|entry| entry.starts_with("TERM=")));
        if !has_term {
            env.push(Value::from("TERM=xterm"));
        }
    }
    process
}

async fn read_capped(from: Option<pipe::Receiver>, to: &mut Vec<u8>) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let room = OUTPUT_MAX.saturating_sub(to.len());
        to.extend_from_slice(&buffer[..length.min(room)]);
    }
}
