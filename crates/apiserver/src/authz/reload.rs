//! The file of `--authorization-config`, read again when it changes. A file that cannot be used changes nothing.
//!
//! What always holds: authorizers that are not webhooks stay as the server started with them, in whatever order; no
//! request is judged by half of one configuration and half of another.
//!
//! Upstream: pkg/kubeapiserver/authorizer/reload.go

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::StreamExt;
use inotify::{EventStream, Inotify, WatchMask, Watches};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::Authorizer;
use super::config::{AuthorizationConfiguration, Means};
use crate::authn::Clock;

/// A file that is followed.
#[derive(Clone)]
pub struct Reload {
    path: PathBuf,
    means: Means,
    /// What was read last, usable or not.
    text: String,
    used: AuthorizationConfiguration,
    /// Those of the types that are not webhooks, which must stay.
    types: Vec<String>,
}

/// The digest by which metrics tell one text from another.
fn digest(text: &str) -> String {
    if text.is_empty() {
        return String::new();
    }
    let digest: String = Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digest}")
}

/// Tells of whatever happens next to a file: it may be replaced, or be a link to one that is.
struct Changes {
    watches: Watches,
    events: EventStream<[u8; 4096]>,
}

impl Changes {
    fn of(path: &Path) -> std::io::Result<Self> {
        let inotify = Inotify::init()?;
        let watches = inotify.watches();
        let mut changes = Changes { watches, events: inotify.into_event_stream([0; 4096])? };
        changes.look_beside(path)?;
        Ok(changes)
    }

    /// Watches the folder of the file, and that of the file which it is a link to just now.
    fn look_beside(&mut self, path: &Path) -> std::io::Result<()> {
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE;
        let target = path.canonicalize().ok();
        for file in [Some(path), target.as_deref()].into_iter().flatten() {
            let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
            self.watches.add(folder.unwrap_or(Path::new(".")), mask)?;
        }
        Ok(())
    }
}

impl Reload {
    /// Follows a file of which `text` was used to start with.
    pub fn new(path: PathBuf, text: String, used: AuthorizationConfiguration, means: Means) -> Self {
        let types = used.lasting_types();
        Reload { path, means, text, used, types }
    }

    /// Until the shutdown. `server` is the name by which metrics tell this server from others.
    pub async fn follow(
        mut self,
        authorizer: Arc<Authorizer>,
        server: String,
        clock: Clock,
        shutdown: CancellationToken,
    ) {
        let server = digest(&server);
        self.means.metrics.configured(&server, &digest(&self.text));
        let mut changes = match Changes::of(&self.path) {
            Ok(changes) => changes,
            Err(error) => {
                tracing::error!(file = %self.path.display(), %error, "cannot watch the authorization configuration");
                return;
            }
        };
        loop {
            // Before the look: what changes after it is told.
            if let Err(error) = changes.look_beside(&self.path) {
                tracing::warn!(file = %self.path.display(), %error, "cannot watch beside the file");
            }
            match self.look(&authorizer) {
                None => {}
                Some(Ok(())) => {
                    tracing::info!(file = %self.path.display(), "the authorization configuration was read again");
                    self.means.metrics.configured(&server, &digest(&self.text));
                    self.means.metrics.reloaded(&server, true, clock());
                }
                Some(Err(why)) => {
                    tracing::error!(file = %self.path.display(), why, "the authorization configuration is not used");
                    self.means.metrics.reloaded(&server, false, clock());
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                event = changes.events.next() => if event.is_none() { return },
            }
        }
    }

    /// Takes over what the file says now; `None` when that is what is in use.
    fn look(&mut self, authorizer: &Authorizer) -> Option<Result<(), String>> {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) if text == self.text => return None,
            Ok(text) => text,
            Err(error) => return Some(Err(error.to_string())),
        };
        let read = AuthorizationConfiguration::parse_with(&text, &self.types);
        self.text = text;
        let configuration = match read {
            Ok(configuration) if configuration == self.used => return None,
            Ok(configuration) => configuration,
            Err(why) => return Some(Err(why)),
        };
        let allowed = |kind: &String| self.types.contains(kind);
        if let Some(other) = configuration.lasting_types().into_iter().find(|kind| !allowed(kind)) {
            return Some(Err(format!(
                "authorizer type {other} is not allowed if it was not enabled at initial server startup"
            )));
        }
        let made = configuration.modes(&self.means);
        Some(made.map(|modes| {
            authorizer.replace(modes);
            self.used = configuration;
        }))
    }
}
