//! A command or an attachment, whatever wire carries it: input comes in, output and a final status go out.

use bytes::Bytes;
use serde_json::json;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::Work;
use crate::SharedEngine;
use crate::engine::{ExecStreams, Stdio};
use crate::shim::protocol::Kind;

/// What a client sends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Input {
    Stdin(Bytes),
    CloseStdin,
    Resize { columns: u16, rows: u16 },
}

/// What a client gets. After the status comes nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
    Status(Bytes),
}

/// The container's side of a session.
pub(super) struct Session {
    input: mpsc::Receiver<Input>,
    output: mpsc::Sender<Output>,
}

/// The wire's side.
pub(super) struct Ends {
    pub input: mpsc::Sender<Input>,
    pub output: mpsc::Receiver<Output>,
}

const QUEUE: usize = 16;
const CHUNK: usize = 32 * 1024;
/// How long output may come after the command has ended.
const DRAIN: Duration = Duration::from_secs(2);

pub(super) fn channel() -> (Session, Ends) {
    let (input_sender, input) = mpsc::channel(QUEUE);
    let (output, output_receiver) = mpsc::channel(QUEUE);
    (Session { input, output }, Ends { input: input_sender, output: output_receiver })
}

/// The status that ends a session: success, the command's exit code, or what went wrong.
// Upstream: staging/src/k8s.io/apimachinery/pkg/util/remotecommand/constants.go NonZeroExitCodeReason
pub(super) fn status(result: Result<i32, String>) -> Bytes {
    let status = match result {
        Ok(0) => json!({ "metadata": {}, "status": "Success" }),
        Ok(code) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Err(message) => json!({
            "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500, "message": message,
        }),
    };
    Bytes::from(status.to_string())
}

/// Parses the size that clients send as JSON; zero means nothing.
pub(super) fn resize(bytes: &[u8]) -> Option<Input> {
    let size: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let field = |name: &str| u16::try_from(size[name].as_u64()?).ok().filter(|value| *value > 0);
    Some(Input::Resize { columns: field("Width")?, rows: field("Height")? })
}

/// Runs the work to its end or until the client has left.
pub(super) async fn run(engine: &SharedEngine, work: &Work, session: Session) {
    let output = session.output.clone();
    let result = match work {
        Work::Exec(request) => match engine.exec(request).await {
            Ok(streams) => exec(&request.container, streams, session).await,
            Err(error) => Some(Err(crate::service::status(error).message().to_owned())),
        },
        Work::Attach { container, stdin, stdout, stderr, .. } => {
            match engine.attach(container, *stdin, *stdout, *stderr).await {
                Ok((_, connection)) => attach(connection, session).await,
                Err(error) => Some(Err(crate::service::status(error).message().to_owned())),
            }
        }
        Work::PortForward { .. } => None,
    };
    if let Some(result) = result {
        let _ = output.send(Output::Status(status(result))).await;
    }
}

async fn exec(container: &str, streams: ExecStreams, session: Session) -> Option<Result<i32, String>> {
    let ExecStreams { stdio, mut exit, id } = streams;
    let Session { input, output } = session;
    let left = output.clone();
    let work = async {
        match stdio {
            Stdio::Pipes { stdin, stdout, stderr } => {
                let feed = feed(stdin, input);
                let copy = async {
                    tokio::join!(copy(stdout, &output, Output::Stdout), copy(stderr, &output, Output::Stderr))
                };
                until_exit(&mut exit, feed, copy).await
            }
            Stdio::Terminal(terminal) => match linux::process::watch(terminal) {
                Ok(terminal) => {
                    until_exit(&mut exit, type_into(&terminal, input), read_terminal(&terminal, &output))
                        .await
                }
                Err(error) => Err(error.to_string()),
            },
        }
    };
    tokio::select! {
        result = work => Some(result),
        // Nobody reads any more. The command goes on, as it does with other engines, unless it sees its input end.
        () = left.closed() => {
            tracing::debug!(container, exec = %id, "the client of a command left");
            None
        }
    }
}

/// Waits for the command's end, and then for the rest of its output, but not for ever: a child that it left in
/// the background may hold the streams open.
async fn until_exit<T>(
    exit: &mut tokio::sync::oneshot::Receiver<i32>,
    feed: impl Future<Output = ()>,
    copy: impl Future<Output = T>,
) -> Result<i32, String> {
    tokio::pin!(feed);
    tokio::pin!(copy);
    let (mut fed, mut copied) = (false, false);
    let code = loop {
        tokio::select! {
            code = &mut *exit => break code,
            () = &mut feed, if !fed => fed = true,
            _ = &mut copy, if !copied => copied = true,
        }
    };
    if !copied {
        let _ = tokio::time::timeout(DRAIN, &mut copy).await;
    }
    code.map_err(|_| "the pod's shim died".to_owned())
}

async fn feed(stdin: Option<tokio::net::unix::pipe::Sender>, mut input: mpsc::Receiver<Input>) {
    let mut stdin = stdin;
    while let Some(input) = input.recv().await {
        match input {
            Input::Stdin(bytes) => {
                if let Some(pipe) = &mut stdin
                    && pipe.write_all(&bytes).await.is_err()
                {
                    stdin = None;
                }
            }
            Input::CloseStdin => stdin = None,
            Input::Resize { .. } => {}
        }
    }
}

async fn copy(
    from: Option<tokio::net::unix::pipe::Receiver>,
    to: &mpsc::Sender<Output>,
    wrap: impl Fn(Bytes) -> Output,
) {
    let Some(mut from) = from else { return };
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if to.send(wrap(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
            return;
        }
    }
}

async fn type_into(terminal: &AsyncFd<OwnedFd>, mut input: mpsc::Receiver<Input>) {
    while let Some(input) = input.recv().await {
        let done = match input {
            Input::Stdin(bytes) => write_terminal(terminal, &bytes).await,
            Input::Resize { columns, rows } => {
                linux::process::set_terminal_size(terminal.get_ref(), rows, columns).map_err(io::Error::other)
            }
            // What Ctrl-D is to a shell.
            Input::CloseStdin => write_terminal(terminal, &[4]).await,
        };
        if done.is_err() {
            return;
        }
    }
}

async fn write_terminal(terminal: &AsyncFd<OwnedFd>, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut guard = terminal.writable().await?;
        match guard.try_io(|fd| rustix::io::write(fd.get_ref(), rest).map_err(io::Error::from)) {
            Ok(written) => rest = &rest[written?..],
            Err(_would_block) => {}
        }
    }
    Ok(())
}

async fn read_terminal(terminal: &AsyncFd<OwnedFd>, to: &mpsc::Sender<Output>) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let Ok(mut guard) = terminal.readable().await else { return };
        match guard.try_io(|fd| rustix::io::read(fd.get_ref(), &mut buffer).map_err(io::Error::from)) {
            Ok(Ok(length @ 1..)) => {
                if to.send(Output::Stdout(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
                    return;
                }
            }
            // The end, or an error, which is how a terminal tells that its last process is gone.
            Ok(_) => return,
            Err(_would_block) => {}
        }
    }
}

async fn attach(
    connection: crate::shim::client::Connection,
    session: Session,
) -> Option<Result<i32, String>> {
    let Session { mut input, output } = session;
    let crate::shim::client::Connection { mut reader, mut writer } = connection;
    let send = async {
        while let Some(input) = input.recv().await {
            let sent = match input {
                Input::Stdin(bytes) => writer.send(Kind::Stdin, &bytes).await,
                Input::CloseStdin => writer.send(Kind::CloseStdin, &[]).await,
                Input::Resize { columns, rows } => {
                    let ([a, b], [c, d]) = (rows.to_be_bytes(), columns.to_be_bytes());
                    writer.send(Kind::Resize, &[a, b, c, d]).await
                }
            };
            if sent.is_err() {
                return;
            }
        }
        // The client is gone or has no more to say; what the container writes still goes out.
        std::future::pending::<()>().await;
    };
    let receive = async {
        while let Ok(Some((kind, payload))) = reader.frame().await {
            let wrapped = match kind {
                Kind::Stdout => Output::Stdout(payload.into()),
                Kind::Stderr => Output::Stderr(payload.into()),
                _ => continue,
            };
            if output.send(wrapped).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = send => {}
        () = receive => {}
        () = output.closed() => return None,
    }
    Some(Ok(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_those_that_clients_parse() {
        let text = |result| String::from_utf8(status(result).to_vec()).unwrap();
        assert_eq!(text(Ok(0)), r#"{"metadata":{},"status":"Success"}"#);
        let failure: serde_json::Value = serde_json::from_str(&text(Ok(3))).unwrap();
        assert_eq!(failure["reason"], "NonZeroExitCode");
        assert_eq!(failure["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "3" }));
        assert_eq!(resize(br#"{"Width":80,"Height":24}"#), Some(Input::Resize { columns: 80, rows: 24 }));
        assert_eq!(resize(b"{}"), None);
    }
}
