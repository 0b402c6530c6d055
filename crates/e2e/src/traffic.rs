//! Clients with plain sockets in a network namespace, that count who answers and what fails.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use linux::netns::NetNs;

const PATIENCE: Duration = Duration::from_secs(5);

/// How often each pod of [`images::web`](crate::images::web) answered, by its words, and what failed.
#[derive(Debug, Default)]
pub struct Tally {
    pub answers: BTreeMap<String, usize>,
    pub failures: Vec<String>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    asked: AtomicUsize,
    tally: Mutex<Tally>,
}

/// Clients that go on asking, each connection a new one, until they are stopped.
pub struct Traffic {
    shared: Arc<Shared>,
    running: Option<JoinHandle<()>>,
}

impl Traffic {
    pub fn start(namespace: &Path, target: SocketAddr, clients: usize) -> Self {
        let namespace = NetNs::open(namespace).expect("the namespace is there");
        let shared = Arc::new(Shared::default());
        let mine = shared.clone();
        let running = std::thread::spawn(move || {
            let all = || {
                std::thread::scope(|scope| {
                    for _ in 0..clients {
                        scope.spawn(|| go_on(&mine, target));
                    }
                });
            };
            namespace.run(all).expect("the namespace can be entered");
        });
        Traffic { shared, running: Some(running) }
    }

    /// How many connections there were so far.
    pub fn asked(&self) -> usize {
        self.shared.asked.load(Ordering::Relaxed)
    }

    /// Waits until there were so many more.
    pub fn more(&self, count: usize) {
        let until = self.asked() + count;
        crate::eventually("clients go on asking", || match self.asked() {
            asked if asked >= until => Ok(()),
            asked => Err(format!("{asked} of {until}")),
        });
    }

    pub fn stop(mut self) -> Tally {
        self.end();
        std::mem::take(&mut self.shared.tally.lock().expect("no client panics"))
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(running) = self.running.take() {
            running.join().expect("no client panics");
        }
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.end();
    }
}

fn go_on(shared: &Shared, target: SocketAddr) {
    while !shared.stop.load(Ordering::Relaxed) {
        let answer = Conversation::begin(target).and_then(Conversation::end);
        let asked = shared.asked.fetch_add(1, Ordering::Relaxed);
        let mut tally = shared.tally.lock().expect("no client panics");
        match answer {
            Ok(words) => *tally.answers.entry(words).or_default() += 1,
            Err(error) => tally.failures.push(format!("connection {asked}: {error}")),
        }
    }
}

/// A connection whose request is not whole yet: the server waits for the rest.
pub struct Conversation(TcpStream);

impl Conversation {
    fn begin(target: SocketAddr) -> std::io::Result<Self> {
        let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n")?;
        Ok(Conversation(stream))
    }

    /// So many, from within a namespace.
    pub fn several(namespace: &Path, target: SocketAddr, count: usize) -> Vec<Self> {
        let namespace = NetNs::open(namespace).expect("the namespace is there");
        let begin = || (0..count).map(|_| Self::begin(target)).collect::<std::io::Result<Vec<Self>>>();
        namespace.run(begin).expect("the namespace can be entered").expect("connections can be made")
    }

    /// What the server answers.
    pub fn end(mut self) -> std::io::Result<String> {
        self.0.write_all(b"\r\n")?;
        let mut said = String::new();
        self.0.read_to_string(&mut said)?;
        match said.split_once("\r\n\r\n") {
            Some((_, body)) if body.contains(" from ") => Ok(body.trim().to_owned()),
            _ => Err(std::io::Error::other(format!("an answer like {said:?}"))),
        }
    }
}

/// Asks so often and tells who answered.
pub fn ask(namespace: &Path, target: SocketAddr, count: usize) -> Tally {
    let namespace = NetNs::open(namespace).expect("the namespace is there");
    let ask = || {
        let mut tally = Tally::default();
        for _ in 0..count {
            match Conversation::begin(target).and_then(Conversation::end) {
                Ok(words) => *tally.answers.entry(words).or_default() += 1,
                Err(error) => tally.failures.push(error.to_string()),
            }
        }
        tally
    };
    namespace.run(ask).expect("the namespace can be entered")
}
