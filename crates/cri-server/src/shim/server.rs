//! The shim's loop: poll, then turn what happened into changes of its small state.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};

use super::Options;
use super::log::Stream;
use super::protocol::{self, ContainerState, Create, Exec, Exit, Kind, Request, Response, State};
use super::runtime::{Runtime, Stdio3};

mod container;
mod peer;

use container::Container;
use peer::{Mode, Peer};

/// A runtime process that is at work, and what to do when it ends.
#[derive(Debug)]
enum Work {
    Create { create: Create, peer: u64, terminal: Option<UnixListener>, streams: container::Streams },
    Start { id: String, peer: u64 },
    Exec { id: String, exec: String, peer: u64 },
}

#[derive(Debug)]
struct Shim {
    options: Options,
    runtime: Runtime,
    listener: UnixListener,
    children: OwnedFd,
    peers: BTreeMap<u64, Peer>,
    next_peer: u64,
    containers: BTreeMap<String, Container>,
    /// Execs by process id.
    execs: BTreeMap<i32, (String, String)>,
    work: BTreeMap<i32, Work>,
    /// Peers who asked how things are while a container was being made: they are told when that is known.
    asked: Vec<u64>,
    /// Children that died before the runtime that started them was done: who they were is not known yet.
    unclaimed: BTreeMap<i32, (i32, i64)>,
    pause: Option<(i32, i32)>,
    ended: bool,
}

/// Runs until the engine says `Shutdown`.
pub(super) fn run(options: Options) -> io::Result<()> {
    // A new session: signals to the engine's terminal or group do not reach the pods.
    let _ = rustix::process::setsid();
    linux::process::become_subreaper().map_err(io::Error::other)?;
    let children = linux::process::child_signal_pipe().map_err(io::Error::other)?;
    let pause = match &options.pause {
        Some(program) => Some(start_pause(program, &options.dir)?),
        None => None,
    };
    let _ = fs::remove_file(&options.socket);
    let listener = UnixListener::bind(&options.socket)?;
    listener.set_nonblocking(true)?;
    write_whole(&options.dir.join("shim.pid"), rustix::process::getpid().to_string().as_bytes())?;
    let runtime = Runtime::new(options.runtime.clone(), &options.dir);
    let mut shim = Shim {
        runtime,
        listener,
        children,
        peers: BTreeMap::new(),
        next_peer: 0,
        containers: BTreeMap::new(),
        execs: BTreeMap::new(),
        work: BTreeMap::new(),
        asked: Vec::new(),
        unclaimed: BTreeMap::new(),
        pause,
        ended: false,
        options,
    };
    // The engine waits for this line, so that it need not try the socket again and again.
    println!("ready");
    close_stdout()?;
    while !shim.ended {
        shim.turn()?;
    }
    let _ = fs::remove_file(&shim.options.socket);
    Ok(())
}

/// The engine's pipe must not stay open here, nor may later words kill the shim when the engine is gone.
fn close_stdout() -> io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

fn start_pause(program: &std::ffi::OsStr, dir: &Path) -> io::Result<(i32, i32)> {
    let empty = dir.join("empty");
    fs::create_dir_all(&empty)?;
    let users = dir.join("ns").join(linux::namespaces::Kind::User.file_name());
    let mut child = Command::new(program)
        .args(["shim", "pause"])
        .arg(&empty)
        .args(users.exists().then_some(&users))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut line = String::new();
    let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
    io::BufRead::read_line(&mut io::BufReader::new(stdout), &mut line)?;
    let first = line.trim().parse().map_err(|_| io::Error::other("the pause process did not start"))?;
    Ok((i32::try_from(child.id()).map_err(io::Error::other)?, first))
}

/// Writes a file so that it is there whole or not at all, also after a crash of the machine's.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let file = fs::File::create(&temporary)?;
    io::Write::write_all(&mut &file, bytes)?;
    file.sync_data()?;
    fs::rename(&temporary, path)
}

/// What a polled descriptor belongs to.
#[derive(Debug, Clone)]
enum Source {
    Listener,
    Children,
    Peer(u64),
    Output(String, Stream),
    Stdin(String),
}

impl Shim {
    /// Waits for something to happen and deals with it.
    fn turn(&mut self) -> io::Result<()> {
        let ready = self.wait()?;
        for (source, flags) in ready {
            match source {
                Source::Listener => self.accept(),
                Source::Children => self.reap(),
                Source::Peer(id) => self.serve(id, flags),
                Source::Output(id, stream) => self.output(&id, stream),
                Source::Stdin(id) => {
                    if let Some(container) = self.containers.get_mut(&id) {
                        container.feed_stdin();
                    }
                }
            }
        }
        self.peers.retain(|_, peer| !peer.gone);
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = vec![Source::Listener, Source::Children];
        let mut watched =
            vec![PollFd::new(&self.listener, PollFlags::IN), PollFd::new(&self.children, PollFlags::IN)];
        for (id, peer) in &self.peers {
            let mut flags = PollFlags::empty();
            // A peer whose input cannot be passed on is not read, and one that reads slowly is not sent more.
            if !self.stdin_is_full(peer) {
                flags |= PollFlags::IN;
            }
            if peer.has_output() {
                flags |= PollFlags::OUT;
            }
            sources.push(Source::Peer(*id));
            watched.push(PollFd::new(&peer.socket, flags));
        }
        for (id, container) in &self.containers {
            let held = self.peers.values().any(|peer| peer.is_attached_to(id) && peer.is_full());
            for (stream, fd) in container.outputs() {
                if !held {
                    sources.push(Source::Output(id.clone(), stream));
                    watched.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
                }
            }
            if let Some(fd) = container.waiting_stdin() {
                sources.push(Source::Stdin(id.clone()));
                watched.push(PollFd::from_borrowed_fd(fd, PollFlags::OUT));
            }
        }
        match poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let ready = sources.into_iter().zip(watched.iter().map(PollFd::revents));
        Ok(ready.filter(|(_, flags)| !flags.is_empty()).collect())
    }

    fn stdin_is_full(&self, peer: &Peer) -> bool {
        let Mode::Attached { id, stdin: true, .. } = &peer.mode else { return false };
        self.containers.get(id).is_some_and(Container::stdin_is_full)
    }

    fn accept(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if let Ok(peer) = Peer::new(socket) {
                self.peers.insert(self.next_peer, peer);
                self.next_peer += 1;
            }
        }
    }

    fn serve(&mut self, id: u64, flags: PollFlags) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        if flags.contains(PollFlags::OUT) {
            peer.flush();
        }
        if flags.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            peer.read();
        }
        loop {
            let Some(peer) = self.peers.get_mut(&id) else { return };
            match peer.next_frame() {
                Ok(Some((kind, payload))) => self.frame(id, kind, &payload),
                Ok(None) => break,
                Err(_) => {
                    peer.gone = true;
                    break;
                }
            }
        }
        if let Some(peer) = self.peers.get(&id)
            && peer.gone
            && let Mode::Attached { id, stdin: true, .. } = &peer.mode
            && let Some(container) = self.containers.get_mut(id)
        {
            container.stdin_detached();
        }
    }

    fn frame(&mut self, peer_id: u64, kind: Kind, payload: &[u8]) {
        let Some(peer) = self.peers.get_mut(&peer_id) else { return };
        if let Mode::Attached { id, stdin, .. } = &peer.mode {
            let Some(container) = self.containers.get_mut(id) else { return };
            match kind {
                Kind::Stdin if *stdin => container.queue_stdin(payload),
                Kind::CloseStdin if *stdin => container.stdin_detached(),
                Kind::Resize => container.resize(payload),
                _ => {}
            }
            return;
        }
        let request = match kind {
            Kind::Message => serde_json::from_slice::<Request>(payload).map_err(|e| e.to_string()),
            _ => Err("a request was expected".to_owned()),
        };
        match request.and_then(|request| self.request(peer_id, request)) {
            Ok(Some(response)) => self.answer(peer_id, &response),
            Ok(None) => {}
            Err(message) => self.answer(peer_id, &Response::Failed { message }),
        }
    }

    fn answer(&mut self, peer: u64, response: &Response) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.send_message(response);
        }
    }

    /// Carries out a request; `None` when the answer comes later.
    fn request(&mut self, peer: u64, request: Request) -> Result<Option<Response>, String> {
        match request {
            Request::State if self.is_creating() => self.asked.push(peer),
            Request::State => return Ok(Some(Response::State(self.state()))),
            Request::Create(create) => self.create(peer, create)?,
            Request::Start { id } => {
                self.known(&id)?;
                let pid =
                    self.runtime.spawn(&id, &["start", &id], Stdio3::default()).map_err(|e| e.to_string())?;
                self.work.insert(pid, Work::Start { id, peer });
            }
            Request::Kill { id, exec, signal } => {
                let pid = match exec {
                    None => Some(self.known(&id)?.pid).filter(|_| self.containers[&id].exit.is_none()),
                    Some(exec) => {
                        let named = |(_, (_, name)): &(&i32, &(String, String))| *name == exec;
                        self.execs.iter().find(named).map(|(pid, _)| *pid)
                    }
                };
                // Not reaped yet, so the number still means our process.
                if let Some(pid) = pid {
                    linux::process::kill(pid, signal).map_err(|e| e.to_string())?;
                }
                return Ok(Some(Response::Done));
            }
            Request::Exec(exec) => self.exec(peer, exec)?,
            Request::Attach { id, stdin, stdout, stderr } => {
                self.known(&id)?;
                self.answer(peer, &Response::Done);
                let exit = self.containers[&id].exit.is_some();
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.mode = Mode::Attached { id, stdin, stdout, stderr };
                    peer.closing = exit;
                }
            }
            Request::ReopenLog { id } => {
                self.containers
                    .get_mut(&id)
                    .ok_or("no such container")?
                    .reopen_log()
                    .map_err(|e| e.to_string())?;
                return Ok(Some(Response::Done));
            }
            Request::Forget { id } => {
                if self.containers.get(&id).is_some_and(|container| container.exit.is_none()) {
                    return Err("the container is running".to_owned());
                }
                self.containers.remove(&id);
                return Ok(Some(Response::Done));
            }
            Request::Subscribe => {
                let state = Response::State(self.state());
                self.answer(peer, &state);
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.mode = Mode::Subscribed;
                }
            }
            Request::Shutdown => {
                if self.containers.values().any(|container| container.exit.is_none()) || !self.work.is_empty()
                {
                    return Err("a container is running".to_owned());
                }
                if let Some((parent, first)) = self.pause.take() {
                    let _ = linux::process::kill(first, libc_signal::KILL);
                    let _ = linux::process::kill(parent, libc_signal::KILL);
                }
                self.ended = true;
                let mut bytes = Vec::new();
                protocol::encode_message(&Response::Done, &mut bytes);
                if let Some(peer) = self.peers.get_mut(&peer) {
                    peer.send_last(&bytes);
                }
            }
        }
        Ok(None)
    }

    fn is_creating(&self) -> bool {
        self.work.values().any(|work| matches!(work, Work::Create { .. }))
    }

    fn known(&self, id: &str) -> Result<&Container, String> {
        self.containers.get(id).ok_or_else(|| format!("no such container {id}"))
    }

    fn state(&self) -> State {
        let container = |container: &Container| ContainerState {
            id: container.id.clone(),
            pid: container.pid,
            started_nanos: container.started_nanos,
            exit: container.exit.clone(),
        };
        State {
            pid: rustix::process::getpid().as_raw_nonzero().get(),
            pause_pid: self.pause.map(|(_, first)| first),
            containers: self.containers.values().map(container).collect(),
        }
    }

    fn create(&mut self, peer: u64, create: Create) -> Result<(), String> {
        if self.containers.contains_key(&create.id) {
            return Err(format!("container {} is there already", create.id));
        }
        let bundle = self.runtime.bundle(&create.id);
        let pid_file = bundle.join("pid");
        let (stdio, streams) = container::make_stdio(&create).map_err(|e| e.to_string())?;
        let mut arguments = vec!["create".to_owned(), "--bundle".to_owned(), bundle.display().to_string()];
        arguments.extend(["--pid-file".to_owned(), pid_file.display().to_string()]);
        let terminal = match create.terminal {
            true => {
                let _ = fs::remove_file(&create.console_socket);
                arguments.extend(["--console-socket".to_owned(), create.console_socket.clone()]);
                Some(UnixListener::bind(&create.console_socket).map_err(|e| e.to_string())?)
            }
            false => None,
        };
        arguments.push(create.id.clone());
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let pid = self.runtime.spawn(&create.id, &words, stdio).map_err(|e| e.to_string())?;
        self.work.insert(pid, Work::Create { create, peer, terminal, streams });
        Ok(())
    }

    fn exec(&mut self, peer: u64, exec: Exec) -> Result<(), String> {
        self.known(&exec.id)?;
        let mut fds = self.peers.get_mut(&peer).map(|peer| std::mem::take(&mut peer.fds)).unwrap_or_default();
        let process = self.runtime.bundle(&exec.id).join(format!("exec-{}.json", exec.exec));
        fs::write(&process, exec.process.to_string()).map_err(|e| e.to_string())?;
        let pid_file = self.exec_pid_file(&exec.id, &exec.exec);
        let mut arguments = vec!["exec".to_owned(), "--detach".to_owned()];
        arguments.extend(["--process".to_owned(), process.display().to_string()]);
        arguments.extend(["--pid-file".to_owned(), pid_file.display().to_string()]);
        let mut stdio = Stdio3::default();
        if exec.console_socket.is_empty() {
            if fds.len() != 3 {
                return Err(format!("an exec without a terminal needs 3 descriptors, {} came", fds.len()));
            }
            stdio.stderr = fds.pop();
            stdio.stdout = fds.pop();
            stdio.stdin = fds.pop();
        } else {
            arguments.extend(["--console-socket".to_owned(), exec.console_socket.clone()]);
        }
        arguments.push(exec.id.clone());
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let pid = self.runtime.spawn(&exec.exec, &words, stdio).map_err(|e| e.to_string())?;
        self.work.insert(pid, Work::Exec { id: exec.id, exec: exec.exec, peer });
        Ok(())
    }

    fn exec_pid_file(&self, id: &str, exec: &str) -> std::path::PathBuf {
        self.runtime.bundle(id).join(format!("exec-{exec}.pid"))
    }

    fn output(&mut self, id: &str, stream: Stream) {
        let Some(container) = self.containers.get_mut(id) else { return };
        while let Some(bytes) = container.read_output(stream) {
            let mut full = false;
            for peer in self.peers.values_mut() {
                peer.send_output(id, stream, &bytes);
                full |= peer.is_attached_to(id) && peer.is_full();
            }
            if full {
                break;
            }
        }
    }

    fn reap(&mut self) {
        let mut drained = [0; 64];
        while matches!(rustix::io::read(&self.children, &mut drained), Ok(1..)) {}
        while let Some(dead) = linux::process::reap() {
            let now = linux::process::realtime_nanos();
            if let Some(work) = self.work.remove(&dead.pid) {
                self.runtime_ended(work, dead.code);
            } else if !self.claim(dead.pid, dead.code, now) && !self.work.is_empty() {
                self.unclaimed.insert(dead.pid, (dead.code, now));
            }
            if self.work.is_empty() {
                self.unclaimed.clear();
            }
        }
    }

    /// Books the end of a container or exec; `false` if the process is neither.
    fn claim(&mut self, pid: i32, code: i32, now: i64) -> bool {
        let found = self.containers.values().find(|c| c.pid == pid && c.exit.is_none()).map(|c| c.id.clone());
        if let Some(id) = found {
            self.output(&id, Stream::Stdout);
            self.output(&id, Stream::Stderr);
            let exit = Exit { id: id.clone(), exec: None, code, finished_nanos: now };
            let path = self.runtime.bundle(&id).join("exit.json");
            let bytes = serde_json::to_vec(&exit).expect("an exit has only plain fields");
            // Without disk space the shim still knows, and tells for as long as it lives.
            let _ = write_whole(&path, &bytes);
            if let Some(container) = self.containers.get_mut(&id) {
                container.exited(exit.clone());
            }
            for peer in self.peers.values_mut().filter(|peer| peer.is_attached_to(&id)) {
                peer.close_when_sent();
            }
            self.publish(&exit);
            return true;
        }
        if let Some((id, exec)) = self.execs.remove(&pid) {
            self.publish(&Exit { id, exec: Some(exec), code, finished_nanos: now });
            return true;
        }
        false
    }

    fn publish(&mut self, exit: &Exit) {
        for peer in self.peers.values_mut().filter(|peer| matches!(peer.mode, Mode::Subscribed)) {
            peer.send_message(&Response::Exited(exit.clone()));
        }
    }

    fn runtime_ended(&mut self, work: Work, code: i32) {
        match work {
            Work::Create { create, peer, terminal, streams } => {
                let done = self.created(&create, terminal, streams, code);
                self.finish(&create.id, peer, done);
                if !self.is_creating() {
                    let state = Response::State(self.state());
                    for peer in std::mem::take(&mut self.asked) {
                        self.answer(peer, &state);
                    }
                }
            }
            Work::Start { id, peer } => {
                let done = if code == 0 { Ok(Response::Done) } else { Err(self.runtime.failure(&id)) };
                if let Some(container) = self.containers.get_mut(&id) {
                    container.started_nanos = linux::process::realtime_nanos();
                }
                self.finish(&id, peer, done);
            }
            Work::Exec { id, exec, peer } => {
                let pid_file = self.exec_pid_file(&id, &exec);
                let pid = read_pid(&pid_file).filter(|_| code == 0);
                let _ = fs::remove_file(pid_file);
                let _ = fs::remove_file(self.runtime.bundle(&id).join(format!("exec-{exec}.json")));
                let done = match pid {
                    Some(pid) => {
                        self.execs.insert(pid, (id, exec.clone()));
                        Ok(Response::Created { pid })
                    }
                    None => Err(self.runtime.failure(&exec)),
                };
                self.finish(&exec, peer, done);
                if let Some(pid) = pid
                    && let Some((code, now)) = self.unclaimed.remove(&pid)
                {
                    self.claim(pid, code, now);
                }
            }
        }
    }

    fn finish(&mut self, name: &str, peer: u64, done: Result<Response, String>) {
        self.runtime.forget_log(name);
        self.answer(peer, &done.unwrap_or_else(|message| Response::Failed { message }));
    }

    fn created(
        &mut self,
        create: &Create,
        terminal: Option<UnixListener>,
        mut streams: container::Streams,
        code: i32,
    ) -> Result<Response, String> {
        let bundle = self.runtime.bundle(&create.id);
        let _ = fs::remove_file(&create.console_socket);
        if code != 0 {
            return Err(self.runtime.failure(&create.id));
        }
        let pid = read_pid(&bundle.join("pid")).ok_or("the runtime left no pid file")?;
        if let Some(listener) = terminal {
            streams.terminal = Some(receive_terminal(&listener).map_err(|e| e.to_string())?);
        }
        let container = Container::new(create, pid, streams).map_err(|e| e.to_string())?;
        self.containers.insert(create.id.clone(), container);
        if let Some((code, now)) = self.unclaimed.remove(&pid) {
            self.claim(pid, code, now);
        }
        Ok(Response::Created { pid })
    }
}

mod libc_signal {
    pub(super) const KILL: i32 = 9;
}

fn read_pid(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The runtime has ended well, so its message with the terminal waits in the socket already.
fn receive_terminal(listener: &UnixListener) -> io::Result<OwnedFd> {
    listener.set_nonblocking(true)?;
    let (socket, _): (UnixStream, _) = listener.accept()?;
    socket.set_nonblocking(true)?;
    let mut fds = Vec::new();
    linux::fdpass::receive(socket.as_fd(), &mut [0; 4096], &mut fds)?;
    let fd = fds.pop().ok_or_else(|| io::Error::other("the runtime sent no terminal"))?;
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}
