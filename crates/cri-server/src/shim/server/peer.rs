//! One connection of the engine's: its framing, and what it is for.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use serde::Serialize;

use crate::shim::log::Stream;
use crate::shim::protocol::{self, Kind, Malformed};

/// A peer with more than this unsent holds up the streams it is attached to.
const UNSENT_MAX: usize = 256 * 1024;
const READ_CHUNK: usize = 32 * 1024;

#[derive(Debug)]
pub(super) enum Mode {
    Asking,
    Subscribed,
    Attached { id: String, stdin: bool, stdout: bool, stderr: bool },
}

#[derive(Debug)]
pub(super) struct Peer {
    pub socket: UnixStream,
    pub mode: Mode,
    /// Descriptors that came with a request.
    pub fds: Vec<OwnedFd>,
    pub gone: bool,
    /// The connection ends once everything is sent.
    pub closing: bool,
    input: Vec<u8>,
    unsent: Vec<u8>,
}

impl Peer {
    pub(super) fn new(socket: UnixStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            mode: Mode::Asking,
            fds: Vec::new(),
            gone: false,
            closing: false,
            input: Vec::new(),
            unsent: Vec::new(),
        })
    }

    pub(super) fn read(&mut self) {
        let mut buffer = [0; READ_CHUNK];
        match linux::fdpass::receive(&self.socket, &mut buffer, &mut self.fds) {
            Ok(0) => self.gone = true,
            Ok(length) => self.input.extend_from_slice(&buffer[..length]),
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.gone = true,
        }
    }

    pub(super) fn next_frame(&mut self) -> Result<Option<(Kind, Vec<u8>)>, Malformed> {
        protocol::decode(&mut self.input)
    }

    pub(super) fn has_output(&self) -> bool {
        !self.unsent.is_empty() || self.closing
    }

    pub(super) fn is_full(&self) -> bool {
        !self.gone && self.unsent.len() > UNSENT_MAX
    }

    pub(super) fn is_attached_to(&self, container: &str) -> bool {
        matches!(&self.mode, Mode::Attached { id, .. } if id == container)
    }

    pub(super) fn send_message(&mut self, message: &impl Serialize) {
        protocol::encode_message(message, &mut self.unsent);
        self.flush();
    }

    pub(super) fn send_output(&mut self, container: &str, stream: Stream, bytes: &[u8]) {
        let Mode::Attached { id, stdout, stderr, .. } = &self.mode else { return };
        let kind = match stream {
            Stream::Stdout if *stdout => Kind::Stdout,
            Stream::Stderr if *stderr => Kind::Stderr,
            _ => return,
        };
        if id == container {
            protocol::encode(kind, bytes, &mut self.unsent);
            self.flush();
        }
    }

    pub(super) fn flush(&mut self) {
        while !self.unsent.is_empty() {
            match linux::fdpass::send(&self.socket, &self.unsent, &[]) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
        if self.closing {
            let _ = self.socket.shutdown(Shutdown::Both);
            self.gone = true;
        }
    }

    pub(super) fn close_when_sent(&mut self) {
        self.closing = true;
        self.flush();
    }

    /// The last words before the shim ends: sent at once or not at all.
    pub(super) fn send_last(&mut self, bytes: &[u8]) {
        self.unsent.extend_from_slice(bytes);
        self.flush();
    }
}
