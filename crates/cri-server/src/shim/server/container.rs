//! One container as its shim holds it: its process, its streams, its log.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::pipe::{PipeFlags, pipe_with};

use crate::shim::log::{Log, Stream};
use crate::shim::protocol::{Create, Exit};
use crate::shim::runtime::Stdio3;

/// As much input as waits here for a container that does not read.
const STDIN_MAX: usize = 64 * 1024;
const READ_CHUNK: usize = 32 * 1024;

/// Our ends of a container's streams.
#[derive(Debug, Default)]
pub(super) struct Streams {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
    pub terminal: Option<OwnedFd>,
}

#[derive(Debug)]
pub(super) struct Container {
    pub id: String,
    pub pid: i32,
    pub started_nanos: i64,
    pub exit: Option<Exit>,
    streams: Streams,
    stdin_once: bool,
    queued: VecDeque<u8>,
    close_after_queue: bool,
    log: Option<Log>,
}

/// Makes the pipes of a container without a terminal: the runtime's ends and ours.
pub(super) fn make_stdio(create: &Create) -> io::Result<(Stdio3, Streams)> {
    let mut theirs = Stdio3::default();
    let mut ours = Streams::default();
    if create.terminal {
        return Ok((theirs, ours));
    }
    let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
    if create.stdin {
        let (read, write) = pipe()?;
        rustix::io::ioctl_fionbio(&write, true)?;
        (theirs.stdin, ours.stdin) = (Some(read), Some(write));
    }
    let (read, write) = pipe()?;
    rustix::io::ioctl_fionbio(&read, true)?;
    (ours.stdout, theirs.stdout) = (Some(read), Some(write));
    let (read, write) = pipe()?;
    rustix::io::ioctl_fionbio(&read, true)?;
    (ours.stderr, theirs.stderr) = (Some(read), Some(write));
    Ok((theirs, ours))
}

impl Container {
    pub(super) fn new(create: &Create, pid: i32, streams: Streams) -> io::Result<Self> {
        let log = match create.log_path.as_str() {
            "" => None,
            path => Some(Log::open(Path::new(path))?),
        };
        Ok(Self {
            id: create.id.clone(),
            pid,
            started_nanos: 0,
            exit: None,
            streams,
            stdin_once: create.stdin_once,
            queued: VecDeque::new(),
            close_after_queue: false,
            log,
        })
    }

    /// The streams that may have something to read.
    pub(super) fn outputs(&self) -> impl Iterator<Item = (Stream, BorrowedFd<'_>)> {
        let streams = [
            (Stream::Stdout, self.streams.terminal.as_ref()),
            (Stream::Stdout, self.streams.stdout.as_ref()),
            (Stream::Stderr, self.streams.stderr.as_ref()),
        ];
        streams.into_iter().filter_map(|(stream, fd)| Some((stream, fd?.as_fd())))
    }

    fn output(&mut self, stream: Stream) -> &mut Option<OwnedFd> {
        match stream {
            Stream::Stdout if self.streams.terminal.is_some() => &mut self.streams.terminal,
            Stream::Stdout => &mut self.streams.stdout,
            Stream::Stderr => &mut self.streams.stderr,
        }
    }

    /// Reads what is there and logs it; `None` when there is nothing more now.
    pub(super) fn read_output(&mut self, stream: Stream) -> Option<Vec<u8>> {
        let now = linux::process::realtime_nanos();
        let fd = self.output(stream).as_ref()?;
        let mut buffer = vec![0; READ_CHUNK];
        match rustix::io::read(fd, &mut buffer) {
            // A terminal whose last process is gone answers with an error rather than with the end.
            Ok(0) | Err(rustix::io::Errno::IO) => {
                *self.output(stream) = None;
                if let Some(log) = &mut self.log {
                    let _ = log.finish(stream, now);
                }
                None
            }
            Ok(length) => {
                buffer.truncate(length);
                // A full disk must not stop the container; the lines are lost, as they are with containerd.
                if let Some(log) = &mut self.log {
                    let _ = log.write(stream, &buffer, now);
                }
                Some(buffer)
            }
            Err(_) => None,
        }
    }

    pub(super) fn reopen_log(&mut self) -> io::Result<()> {
        self.log.as_mut().map_or(Ok(()), Log::reopen)
    }

    fn stdin(&self) -> Option<&OwnedFd> {
        self.streams.stdin.as_ref().or(self.streams.terminal.as_ref())
    }

    pub(super) fn stdin_is_full(&self) -> bool {
        self.queued.len() >= STDIN_MAX
    }

    /// The stream to poll for room, if input waits.
    pub(super) fn waiting_stdin(&self) -> Option<BorrowedFd<'_>> {
        self.stdin().filter(|_| !self.queued.is_empty()).map(AsFd::as_fd)
    }

    pub(super) fn queue_stdin(&mut self, bytes: &[u8]) {
        if self.stdin().is_some() {
            self.queued.extend(bytes);
            self.feed_stdin();
        }
    }

    pub(super) fn feed_stdin(&mut self) {
        while !self.queued.is_empty() {
            let Some(fd) = self.stdin() else { return self.queued.clear() };
            match rustix::io::write(fd, self.queued.as_slices().0) {
                Ok(written) => drop(self.queued.drain(..written)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return,
                Err(_) => {
                    self.queued.clear();
                    self.streams.stdin = None;
                }
            }
        }
        if self.close_after_queue {
            self.streams.stdin = None;
        }
    }

    /// The one who typed has left: a container with `stdinOnce` sees the end of its input.
    pub(super) fn stdin_detached(&mut self) {
        if self.stdin_once {
            self.close_after_queue = true;
            self.feed_stdin();
        }
    }

    pub(super) fn resize(&mut self, payload: &[u8]) {
        if let (Some(terminal), [a, b, c, d]) = (&self.streams.terminal, payload) {
            let (rows, columns) = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
            let _ = linux::process::set_terminal_size(terminal, rows, columns);
        }
    }

    pub(super) fn exited(&mut self, exit: Exit) {
        self.exit = Some(exit);
        self.streams.stdin = None;
        self.queued.clear();
    }
}
