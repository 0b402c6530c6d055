//! The engine's side of the shim's socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::protocol::{self, Kind, Request, Response};

/// How to reach one shim.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    socket: PathBuf,
}

impl Client {
    pub(crate) fn new(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf() }
    }

    /// Asks and waits for the answer. A refusal is an error in the shim's words.
    pub(crate) async fn ask(&self, request: &Request) -> io::Result<Response> {
        self.ask_with(request, &[]).await
    }

    /// Asks, handing over descriptors.
    pub(crate) async fn ask_with(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<Response> {
        let mut connection = self.open(request, fds).await?;
        connection.response().await
    }

    /// Opens a connection that stays: for `Subscribe` and `Attach`.
    pub(crate) async fn open(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<Connection> {
        let stream = UnixStream::connect(&self.socket).await?;
        let mut bytes = Vec::new();
        protocol::encode_message(request, &mut bytes);
        let sent = loop {
            stream.writable().await?;
            let attempt = stream
                .try_io(tokio::io::Interest::WRITABLE, || linux::fdpass::send(stream.as_fd(), &bytes, fds));
            match attempt {
                Ok(sent) => break sent,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => return Err(e),
            }
        };
        let (read, mut write) = stream.into_split();
        write.write_all(&bytes[sent..]).await?;
        Ok(Connection { reader: Reader { read, buffer: Vec::new() }, writer: Writer { write } })
    }
}

/// An open connection, to be split when both directions are used at once.
pub(crate) struct Connection {
    pub reader: Reader,
    pub writer: Writer,
}

impl Connection {
    pub(crate) async fn response(&mut self) -> io::Result<Response> {
        match self.reader.frame().await? {
            Some((Kind::Message, payload)) => match serde_json::from_slice(&payload)? {
                Response::Failed { message } => Err(io::Error::other(message)),
                response => Ok(response),
            },
            Some(_) => Err(io::Error::other("the shim sent a stream where a message was due")),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

pub(crate) struct Reader {
    read: OwnedReadHalf,
    buffer: Vec<u8>,
}

impl Reader {
    /// The next frame; `None` when the shim has closed. Safe to drop and call again.
    pub(crate) async fn frame(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        loop {
            if let Some(frame) = protocol::decode(&mut self.buffer).map_err(io::Error::other)? {
                return Ok(Some(frame));
            }
            if self.read.read_buf(&mut self.buffer).await? == 0 {
                return Ok(None);
            }
        }
    }
}

pub(crate) struct Writer {
    write: OwnedWriteHalf,
}

impl Writer {
    pub(crate) async fn send(&mut self, kind: Kind, payload: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(payload.len() + protocol::HEADER);
        protocol::encode(kind, payload, &mut bytes);
        self.write.write_all(&bytes).await
    }
}
