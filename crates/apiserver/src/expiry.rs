//! Events are forgotten an hour after they were last written, or when the server is told to.
//!
//! Nothing is looked through for what is old: each event has a moment, the moments are in order, and the next one is
//! slept for. An event that was written since is found to be younger at its moment, and gets a later one.
//!
//! Upstream: pkg/registry/core/event/storage/storage.go NewREST, by leases of etcd

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use storage::{Expect, Revision};

use crate::handle::ApiServer;
use crate::registry::cache::Cache;
use crate::registry::object::Object;

/// Upstream: cmd/kube-apiserver/app/options/options.go NewServerRunOptions
pub const EVENT_TTL: Duration = Duration::from_secs(60 * 60);

/// How many changes are taken in at once.
const CHANGES: usize = 512;

/// When each event is to be looked at, the next first. An event is in it once.
#[derive(Default)]
struct Moments {
    next: BinaryHeap<Reverse<(i64, Arc<str>)>>,
    known: HashSet<Arc<str>>,
}

impl Moments {
    /// Takes in an event that was not there before.
    fn add(&mut self, key: &Arc<str>, moment: i64) {
        if self.known.insert(key.clone()) {
            self.next.push(Reverse((moment, key.clone())));
        }
    }

    /// What has to be looked at by now.
    fn due(&mut self, now: i64) -> Option<Arc<str>> {
        self.next.peek().filter(|Reverse((moment, _))| *moment <= now)?;
        let Reverse((_, key)) = self.next.pop()?;
        self.known.remove(&key);
        Some(key)
    }

    fn first(&self) -> Option<i64> {
        self.next.peek().map(|Reverse((moment, _))| *moment)
    }
}

/// When an event was last written, in seconds since the epoch: its owners' times tell, or that it was made.
fn written(event: &Value) -> i64 {
    let metadata = &event["metadata"];
    let owners = metadata["managedFields"].as_array().into_iter().flatten();
    let times = owners.map(|owner| &owner["time"]).chain([&metadata["creationTimestamp"]]);
    times.filter_map(|time| apimachinery::time::parse_rfc3339(time.as_str()?)).max().unwrap_or(0)
}

struct Expiry {
    server: Arc<ApiServer>,
    cache: Arc<Cache>,
    ttl: i64,
    moments: Moments,
    /// All changes up to here are taken in.
    seen: Revision,
}

/// Runs until the server's shutdown.
pub async fn run(server: Arc<ApiServer>) {
    let shutdown = server.shutdown.clone();
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = follow(server) => {}
    }
}

async fn follow(server: Arc<ApiServer>) {
    let ttl = i64::try_from(server.config.event_ttl.as_secs()).unwrap_or(i64::MAX);
    let table = server.registry.table();
    let Some(cache) = table.find("", "v1", "events").and_then(|row| row.cache.clone()) else { return };
    drop(table);
    let mut changed = cache.subscribe();
    let mut expiry = Expiry { server, cache, ttl, moments: Moments::default(), seen: 0 };
    expiry.read_all();
    loop {
        let next = expiry.moments.first().map(|moment| expiry.until(moment));
        tokio::select! {
            told = changed.changed() => match told {
                Ok(()) => expiry.take_in(),
                Err(_) => return,
            },
            () = tokio::time::sleep(next.unwrap_or_default()), if next.is_some() => expiry.forget().await,
        }
    }
}

impl Expiry {
    /// A second later than the moment at most, so that it has passed.
    fn until(&self, moment: i64) -> Duration {
        let seconds = moment.saturating_sub(self.server.now());
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    fn moment_of(&self, object: &Object) -> i64 {
        written(&object.open()).saturating_add(self.ttl)
    }

    fn read_all(&mut self) {
        let (objects, newest): (Vec<Arc<Object>>, _) = {
            let state = self.cache.read();
            (state.range(&self.cache.prefix, None).cloned().collect(), state.newest())
        };
        for object in objects {
            self.moments.add(&object.key, self.moment_of(&object));
        }
        self.seen = newest;
    }

    fn take_in(&mut self) {
        loop {
            let changes = self.cache.read().since(self.seen, CHANGES);
            let Ok(changes) = changes else { return self.read_all() };
            let Some(last) = changes.last() else { return };
            self.seen = last.revision;
            for change in changes.iter().filter(|change| !change.deleted && change.previous.is_none()) {
                self.moments.add(&change.object.key, self.moment_of(&change.object));
            }
        }
    }

    /// Removes what is due, unless it was written since.
    async fn forget(&mut self) {
        while let Some(key) = self.moments.due(self.server.now()) {
            let Some(object) = self.cache.read().get(&key).cloned() else { continue };
            let moment = self.moment_of(&object);
            if moment > self.server.now() {
                self.moments.add(&key, moment);
                continue;
            }
            match self.server.registry.remove(&key, Expect::Modified(object.revision)).await {
                Ok(_) => {}
                // It was written at this very moment.
                Err(storage::Error::Conflict(Some(_))) => {
                    self.moments.add(&key, self.server.now() + self.ttl)
                }
                Err(storage::Error::Conflict(None)) => {}
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "an old event cannot be forgotten"
                    );
                    self.moments.add(&key, self.server.now() + self.ttl);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_as_old_as_its_last_writing() {
        for (event, wanted) in [
            (json!({}), 0),
            (json!({"metadata": {"creationTimestamp": "1970-01-01T00:00:10Z"}}), 10),
            (
                json!({"metadata": {
                    "creationTimestamp": "1970-01-01T00:00:10Z",
                    "managedFields": [{"time": "1970-01-01T00:01:00Z"}, {"time": "1970-01-01T00:00:30Z"}],
                }}),
                60,
            ),
        ] {
            assert_eq!(written(&event), wanted, "{event}");
        }
    }

    #[test]
    fn moments_come_in_order_and_each_event_once() {
        let mut moments = Moments::default();
        for (key, moment) in [("a", 30), ("b", 10), ("a", 5), ("c", 20)] {
            moments.add(&key.into(), moment);
        }
        assert_eq!(moments.first(), Some(10));
        assert_eq!(moments.due(9), None);
        assert_eq!(moments.due(20).as_deref(), Some("b"));
        assert_eq!(moments.due(20).as_deref(), Some("c"));
        assert_eq!(moments.due(20), None);
        moments.add(&"b".into(), 40);
        assert_eq!(moments.due(100).as_deref(), Some("a"));
        assert_eq!(moments.due(100).as_deref(), Some("b"));
    }
}
