//! Plugins of the node: whoever puts a socket into the registration directory is asked what it is, and handed to
//! the part of the kubelet that works with its kind. A socket that goes takes its plugin with it, and one that is
//! made anew is asked again.
//!
//! Upstream: pkg/kubelet/pluginmanager

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cri::registration::registration_client::RegistrationClient;
use cri::registration::{InfoRequest, RegistrationStatus};
use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::runtime::describe;

// Upstream: pkg/kubelet/pluginmanager/operationexecutor/operation_generator.go
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);
// Upstream: pkg/util/goroutinemap/exponentialbackoff/exponential_backoff.go
const FIRST_DELAY: Duration = Duration::from_millis(500);
const LONGEST_DELAY: Duration = Duration::from_secs(122);

/// What a plugin says that it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    pub kind: String,
    pub name: String,
    /// Where it answers.
    pub endpoint: PathBuf,
    pub versions: Vec<String>,
}

/// Works with the plugins of one kind. Its refusals are told to the plugin.
#[async_trait]
pub trait Handler: Send + Sync + 'static {
    fn validate(&self, plugin: &Plugin) -> Result<(), String>;
    async fn register(&self, plugin: &Plugin) -> Result<(), String>;
    async fn deregister(&self, plugin: &Plugin);
}

/// By kind, as plugins name it.
pub type Handlers = HashMap<&'static str, Arc<dyn Handler>>;

/// Tells a socket from another one that was made in its place.
type Identity = (u64, u64, i64, i64);

#[derive(Debug, PartialEq)]
enum State {
    /// A task is asking it, or sending it off.
    Busy,
    Registered(Plugin),
    Failed {
        until: Instant,
    },
}

#[derive(Debug)]
struct Entry {
    identity: Identity,
    state: State,
    failures: u32,
}

#[derive(Debug, PartialEq)]
enum Step {
    Ask(PathBuf),
    SendOff(PathBuf),
    Forget(PathBuf),
}

/// What is to be done, from the sockets that there are and what is known of them.
fn plan(found: &BTreeMap<PathBuf, Identity>, known: &BTreeMap<PathBuf, Entry>, now: Instant) -> Vec<Step> {
    let fresh = found.keys().filter(|path| !known.contains_key(*path)).cloned().map(Step::Ask);
    let others = known.iter().filter_map(|(path, entry)| {
        let same = found.get(path).map(|identity| *identity == entry.identity);
        match (&entry.state, same) {
            (State::Busy, _) | (State::Registered(_), Some(true)) => None,
            (State::Registered(_), _) => Some(Step::SendOff(path.clone())),
            (State::Failed { .. }, None) => Some(Step::Forget(path.clone())),
            (State::Failed { until }, Some(true)) if now < *until => None,
            (State::Failed { .. }, Some(_)) => Some(Step::Ask(path.clone())),
        }
    });
    fresh.chain(others).collect()
}

/// Follows the directory until the shutdown.
pub async fn run(dir: PathBuf, handlers: Handlers, shutdown: CancellationToken) {
    let watch = || -> std::io::Result<(inotify::Watches, EventStream<[u8; 4096]>)> {
        std::fs::create_dir_all(&dir)?;
        let inotify = Inotify::init()?;
        Ok((inotify.watches(), inotify.into_event_stream([0; 4096])?))
    };
    let (mut watches, mut events) = match watch() {
        Ok(watched) => watched,
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "cannot watch for plugins");
            return;
        }
    };
    let mut registry =
        Registry { handlers: Arc::new(handlers), known: BTreeMap::new(), tasks: JoinSet::new() };
    loop {
        // Watched before it is read, so that nothing comes unseen between.
        let found = sockets(&dir, &mut |below| {
            let mask = WatchMask::CREATE | WatchMask::DELETE | WatchMask::MOVE;
            if let Err(error) = watches.add(below, mask) {
                tracing::warn!(dir = %below.display(), %error, "cannot watch for plugins");
            }
        });
        let retry = registry.apply(&found);
        let again = async {
            match retry {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = events.next() => {}
            Some(done) = registry.tasks.join_next() => registry.note(done.ok()),
            () = again => {}
        }
    }
    registry.tasks.shutdown().await;
}

/// The sockets below a directory. Names that begin with a dot are not meant.
fn sockets(dir: &Path, watch: &mut dyn FnMut(&Path)) -> BTreeMap<PathBuf, Identity> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(dir) = pending.pop() {
        watch(&dir);
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.file_type().is_socket() {
                let identity = (metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec());
                found.insert(entry.path(), identity);
            }
        }
    }
    found
}

enum Outcome {
    Registered(Plugin),
    Failed(String),
    Gone,
}

struct Registry {
    handlers: Arc<Handlers>,
    known: BTreeMap<PathBuf, Entry>,
    tasks: JoinSet<(PathBuf, Outcome)>,
}

impl Registry {
    /// Starts what is to be done. Returns when to look again though nothing happens.
    fn apply(&mut self, found: &BTreeMap<PathBuf, Identity>) -> Option<Instant> {
        for step in plan(found, &self.known, Instant::now()) {
            match step {
                Step::Ask(path) => {
                    let Some(identity) = found.get(&path).copied() else { continue };
                    let failures = self.known.get(&path).filter(|e| e.identity == identity);
                    let failures = failures.map_or(0, |e| e.failures);
                    self.known.insert(path.clone(), Entry { identity, state: State::Busy, failures });
                    let handlers = self.handlers.clone();
                    self.tasks.spawn(async move {
                        match register(&path, &handlers).await {
                            Ok(plugin) => (path, Outcome::Registered(plugin)),
                            Err(why) => (path, Outcome::Failed(why)),
                        }
                    });
                }
                Step::SendOff(path) => {
                    let Some(entry) = self.known.get_mut(&path) else { continue };
                    let State::Registered(plugin) = std::mem::replace(&mut entry.state, State::Busy) else {
                        continue;
                    };
                    let handler = self.handlers.get(plugin.kind.as_str()).cloned();
                    self.tasks.spawn(async move {
                        if let Some(handler) = handler {
                            handler.deregister(&plugin).await;
                        }
                        (path, Outcome::Gone)
                    });
                }
                Step::Forget(path) => drop(self.known.remove(&path)),
            }
        }
        let waits = self.known.values().filter_map(|entry| match entry.state {
            State::Failed { until } => Some(until),
            _ => None,
        });
        waits.min()
    }

    fn note(&mut self, done: Option<(PathBuf, Outcome)>) {
        let Some((path, outcome)) = done else { return };
        let Some(entry) = self.known.get_mut(&path) else { return };
        match outcome {
            Outcome::Registered(plugin) => {
                tracing::info!(plugin = plugin.name, kind = plugin.kind, "a plugin registered");
                (entry.state, entry.failures) = (State::Registered(plugin), 0);
            }
            Outcome::Failed(why) => {
                tracing::warn!(socket = %path.display(), why, "a plugin could not be registered");
                let delay = FIRST_DELAY.saturating_mul(1 << entry.failures.min(8)).min(LONGEST_DELAY);
                entry.failures += 1;
                entry.state = State::Failed { until: Instant::now() + delay };
            }
            Outcome::Gone => drop(self.known.remove(&path)),
        }
    }
}

async fn register(socket: &Path, handlers: &Handlers) -> Result<Plugin, String> {
    let at = socket.display();
    let channel = cri::lazy(socket);
    let channel =
        channel.map_err(|e| format!("RegisterPlugin error -- dial failed at socket {at}, err: {e}"))?;
    let mut client = RegistrationClient::new(channel);
    let asked = tokio::time::timeout(ASK_TIMEOUT, client.get_info(InfoRequest {})).await;
    let asked = asked.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("context deadline exceeded")));
    let info = asked.map_err(|error| {
        let why = describe(&error);
        format!(
            "RegisterPlugin error -- failed to get plugin info using RPC GetInfo at socket {at}, err: {why}"
        )
    })?;
    let info = info.into_inner();
    let plugin = Plugin {
        kind: info.r#type,
        name: info.name,
        endpoint: if info.endpoint.is_empty() { socket.to_owned() } else { info.endpoint.into() },
        versions: info.supported_versions,
    };
    let kind = &plugin.kind;
    let Some(handler) = handlers.get(kind.as_str()) else {
        let why =
            format!("RegisterPlugin error -- no handler registered for plugin type: {kind} at socket {at}");
        return Err(refuse(client, why).await);
    };
    if let Err(why) = handler.validate(&plugin) {
        let why = format!("RegisterPlugin error -- plugin validation failed with err: {why}");
        return Err(refuse(client, why).await);
    }
    if let Err(why) = handler.register(&plugin).await {
        let why = format!("RegisterPlugin error -- plugin registration failed with err: {why}");
        return Err(refuse(client, why).await);
    }
    if let Err(why) = notify(&mut client, true, "").await {
        handler.deregister(&plugin).await;
        return Err(format!(
            "RegisterPlugin error -- failed to send registration status at socket {at}, err: {why}"
        ));
    }
    Ok(plugin)
}

/// Tells the plugin why it is not taken, and returns that.
async fn refuse(mut client: RegistrationClient<Channel>, why: String) -> String {
    match notify(&mut client, false, &why).await {
        Ok(()) => why,
        Err(unheard) => format!("{why}: {unheard}"),
    }
}

async fn notify(
    client: &mut RegistrationClient<Channel>,
    registered: bool,
    error: &str,
) -> Result<(), String> {
    let status = RegistrationStatus { plugin_registered: registered, error: error.to_owned() };
    match tokio::time::timeout(NOTIFY_TIMEOUT, client.notify_registration_status(status)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(describe(&status)),
        Err(_) => Err("context deadline exceeded".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use cri::registration::registration_server::{Registration, RegistrationServer};
    use cri::registration::{PluginInfo, RegistrationStatusResponse};

    use super::*;

    #[test]
    fn what_is_done_about_sockets() {
        let now = Instant::now();
        let path = || PathBuf::from("/r/a.sock");
        let plugin =
            Plugin { kind: "K".into(), name: "n".into(), endpoint: path(), versions: vec!["1.0.0".into()] };
        let failed = |until| State::Failed { until };
        let later = now + Duration::from_secs(1);
        // What is known, the identity of the socket that is there, and what follows.
        let cases = [
            (None, None, vec![]),
            (None, Some(1), vec![Step::Ask(path())]),
            (Some(State::Busy), Some(2), vec![]),
            (Some(State::Busy), None, vec![]),
            (Some(State::Registered(plugin.clone())), Some(1), vec![]),
            (Some(State::Registered(plugin.clone())), Some(2), vec![Step::SendOff(path())]),
            (Some(State::Registered(plugin)), None, vec![Step::SendOff(path())]),
            (Some(failed(later)), Some(1), vec![]),
            (Some(failed(later)), Some(2), vec![Step::Ask(path())]),
            (Some(failed(now)), Some(1), vec![Step::Ask(path())]),
            (Some(failed(later)), None, vec![Step::Forget(path())]),
        ];
        for (state, found, want) in cases {
            let said = format!("{state:?} {found:?}");
            let identity = |inode| (0, inode, 0, 0);
            let known = state.map(|state| (path(), Entry { identity: identity(1), state, failures: 0 }));
            let found = found.map(|inode| (path(), identity(inode)));
            assert_eq!(plan(&found.into_iter().collect(), &known.into_iter().collect(), now), want, "{said}");
        }
    }

    /// A plugin that answers on its socket.
    #[derive(Clone)]
    struct Fake(Arc<std::sync::Mutex<Vec<RegistrationStatus>>>);

    #[tonic::async_trait]
    impl Registration for Fake {
        async fn get_info(
            &self,
            _: tonic::Request<InfoRequest>,
        ) -> Result<tonic::Response<PluginInfo>, tonic::Status> {
            Ok(tonic::Response::new(PluginInfo {
                r#type: "K".into(),
                name: "fake".into(),
                endpoint: String::new(),
                supported_versions: vec!["1.0.0".into()],
            }))
        }

        async fn notify_registration_status(
            &self,
            request: tonic::Request<RegistrationStatus>,
        ) -> Result<tonic::Response<RegistrationStatusResponse>, tonic::Status> {
            self.0.lock().unwrap().push(request.into_inner());
            Ok(tonic::Response::new(RegistrationStatusResponse {}))
        }
    }

    /// Says what it was told; refuses the first plugin.
    struct Listener(tokio::sync::mpsc::UnboundedSender<String>, std::sync::atomic::AtomicBool);

    #[async_trait]
    impl Handler for Listener {
        fn validate(&self, _: &Plugin) -> Result<(), String> {
            match self.1.swap(true, std::sync::atomic::Ordering::Relaxed) {
                true => Ok(()),
                false => Err("not now".to_owned()),
            }
        }

        async fn register(&self, plugin: &Plugin) -> Result<(), String> {
            let _ = self.0.send(format!("+{}", plugin.name));
            Ok(())
        }

        async fn deregister(&self, plugin: &Plugin) {
            let _ = self.0.send(format!("-{}", plugin.name));
        }
    }

    #[tokio::test]
    async fn plugins_come_and_go_with_their_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let registry = dir.path().join("plugins_registry");
        let (sender, mut told) = tokio::sync::mpsc::unbounded_channel();
        let handler: Arc<dyn Handler> = Arc::new(Listener(sender, false.into()));
        let stop = CancellationToken::new();
        let running = tokio::spawn(run(registry.clone(), Handlers::from([("K", handler)]), stop.clone()));
        let fake = Fake(Arc::default());
        std::fs::create_dir_all(registry.join("below")).unwrap();
        let socket = registry.join("below/fake.sock");
        let serve = || {
            let listener = tokio::net::UnixListener::bind(&socket).unwrap();
            let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
            let server =
                tonic::transport::Server::builder().add_service(RegistrationServer::new(fake.clone()));
            tokio::spawn(async move { server.serve_with_incoming(incoming).await })
        };
        let first = serve();
        assert_eq!(told.recv().await.unwrap(), "+fake");
        first.abort();
        std::fs::remove_file(&socket).unwrap();
        assert_eq!(told.recv().await.unwrap(), "-fake");
        let second = serve();
        assert_eq!(told.recv().await.unwrap(), "+fake");
        second.abort();
        stop.cancel();
        running.await.unwrap();
        let heard = fake.0.lock().unwrap().clone();
        assert_eq!(heard[0].error, "RegisterPlugin error -- plugin validation failed with err: not now");
        assert!(!heard[0].plugin_registered && heard[1].plugin_registered);
    }
}
