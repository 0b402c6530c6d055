//! The registry: every resource's state and history in memory, fed by one watch of the store, and the operations
//! on it that are the same for all kinds.
//!
//! Start with [`Registry`], then [`object`] (bytes first) and [`cache`] (state with history). [`list`] and
//! [`watch`] read; [`create`], [`update`], [`patch`] and [`delete`] write.
//!
//! What always holds: a write is answered only after the caches show it, so that every reader of this server sees
//! its own writes; the caches never wait for a reader.

pub mod cache;
pub mod call;
pub mod create;
pub mod delete;
pub mod list;
pub mod metadata;
pub mod object;
pub mod patch;
pub mod update;
pub mod watch;

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use apimachinery::{GroupResource, Status};
use bytes::Bytes;
use resources::ResourceDef;
use serde_json::Value;
use storage::{Change, Entry, Expect, RangeOptions, Revision, Store};
use tokio_util::sync::CancellationToken;

use crate::seams::Lookup;
use cache::{Cache, State};
use object::Object;

/// Where upstream keeps its objects in etcd.
const ROOT: &str = "/registry/";

/// A kind with where its objects are.
pub struct Resource {
    pub def: Arc<ResourceDef>,
    /// `None` for kinds that are not stored, such as reviews.
    pub cache: Option<Arc<Cache>>,
    /// How stored objects of this very version begin: `{"apiVersion":"apps/v1","kind":"Deployment"`.
    pub head: String,
}

impl Resource {
    /// The kind as it is stored: events of both groups are stored as the core group's.
    pub fn storage_gvk(&self) -> apimachinery::GroupVersionKind {
        let api_version = resources::convert::storage_api_version(&self.def);
        let stored = apimachinery::GroupVersion::parse(&api_version).unwrap_or_default();
        apimachinery::GroupVersionKind {
            group: stored.group,
            version: stored.version,
            kind: self.def.kind.clone(),
        }
    }

    /// The key of an object. `namespace` is empty for cluster-scoped kinds.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        let prefix = &self.def.storage_prefix;
        if self.def.namespaced() {
            format!("{ROOT}{prefix}/{namespace}/{name}")
        } else {
            format!("{ROOT}{prefix}/{name}")
        }
    }

    /// What all keys of a namespace, or of the resource, start with.
    pub fn prefix(&self, namespace: &str) -> String {
        let prefix = &self.def.storage_prefix;
        if self.def.namespaced() && !namespace.is_empty() {
            format!("{ROOT}{prefix}/{namespace}/")
        } else {
            format!("{ROOT}{prefix}/")
        }
    }

    pub fn cache(&self) -> Result<&Arc<Cache>, Status> {
        self.cache.as_ref().ok_or_else(Status::method_not_allowed)
    }
}

/// The rows that are served now, and how to find one.
#[derive(Default)]
pub struct Table {
    rows: Vec<Arc<Resource>>,
    by_route: HashMap<String, Arc<Resource>>,
    by_group_resource: HashMap<GroupResource, Arc<Resource>>,
    by_prefix: HashMap<String, Arc<Cache>>,
}

/// Whether objects of a kind are kept.
fn is_stored(def: &ResourceDef) -> bool {
    let has = |verb| def.verbs.contains(&verb);
    !def.storage_prefix.is_empty() && has(resources::Verb::Create) && has(resources::Verb::Get)
}

fn route(group: &str, version: &str, plural: &str) -> String {
    format!("{group}/{version}/{plural}")
}

impl Table {
    pub fn rows(&self) -> &[Arc<Resource>] {
        &self.rows
    }

    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Resource>> {
        self.by_route.get(&route(group, version, plural))
    }

    /// The row of the version that is stored, if the resource is known.
    pub fn stored(&self, resource: &GroupResource) -> Option<&Arc<Resource>> {
        self.by_group_resource.get(resource)
    }

    pub fn serves_version(&self, group: &str, version: &str) -> bool {
        self.rows.iter().any(|r| r.def.group == group && r.def.version == version)
    }

    fn add(&mut self, def: Arc<ResourceDef>, cache: Option<Arc<Cache>>) {
        let resource = Arc::new(Resource {
            head: format!(r#"{{"apiVersion":"{}","kind":"{}""#, def.gvk().group_version(), def.kind),
            def: def.clone(),
            cache: cache.clone(),
        });
        self.by_route.insert(route(&def.group, &def.version, &def.plural), resource.clone());
        if def.version == def.storage_version || !self.by_group_resource.contains_key(&def.group_resource()) {
            self.by_group_resource.insert(def.group_resource(), resource.clone());
        }
        if let Some(cache) = cache {
            self.by_prefix.insert(def.storage_prefix.to_string(), cache);
        }
        self.rows.push(resource);
    }

    /// The cache of a key: prefixes have one segment (`pods`) or two (`services/specs`).
    fn cache_of(&self, key: &str) -> Option<&Arc<Cache>> {
        let path = key.strip_prefix(ROOT)?;
        let mut slashes = path.match_indices('/').map(|(at, _)| at);
        let first = slashes.next()?;
        if let Some(second) = slashes.next()
            && let Some(cache) = self.by_prefix.get(&path[..second])
        {
            return Some(cache);
        }
        self.by_prefix.get(&path[..first])
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read the store")]
    Store(#[from] storage::Error),
}

/// All state of the API server.
pub struct Registry {
    store: Arc<dyn Store>,
    table: RwLock<Arc<Table>>,
    /// All changes up to this revision are in the caches.
    progress: tokio::sync::watch::Sender<Revision>,
}

impl Registry {
    /// Loads the state of all resources. [`Registry::run`] must then run for as long as the registry is used.
    pub async fn new(store: Arc<dyn Store>, defs: Vec<Arc<ResourceDef>>) -> Result<Arc<Self>, Error> {
        let range = store.range(ROOT, RangeOptions::default()).await?;
        let mut table = Table::default();
        for def in defs {
            let cache = match table.by_prefix.get(&*def.storage_prefix) {
                // Reviews and the like are answered, not kept.
                _ if !is_stored(&def) => None,
                Some(cache) => Some(cache.clone()),
                None => {
                    let prefix = format!("{ROOT}{}/", def.storage_prefix);
                    let from = range.entries.partition_point(|e| *e.key < *prefix);
                    let entries = range.entries[from..].iter().take_while(|e| e.key.starts_with(&prefix));
                    let state = State::new(entries.map(Object::new), range.revision);
                    Some(Arc::new(Cache::new(prefix, state)))
                }
            };
            table.add(def, cache);
        }
        let progress = tokio::sync::watch::Sender::new(range.revision);
        Ok(Arc::new(Registry { store, table: RwLock::new(Arc::new(table)), progress }))
    }

    /// Feeds the caches from the store until the shutdown, or until the store closes.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut watch = self.store.watch(ROOT, self.progress()).await?;
        loop {
            let next = tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                next = watch.next() => next,
            };
            match next {
                Ok(changes) => self.apply(&changes),
                Err(storage::Error::Closed) => return Ok(()),
                Err(storage::Error::Compacted { .. }) => {
                    tracing::warn!("the caches fell behind the store's history and are loaded anew");
                    self.reload().await?;
                    watch = self.store.watch(ROOT, self.progress()).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Runs of changes of one resource enter its cache under one lock.
    fn apply(&self, changes: &[Arc<Change>]) {
        let table = self.table();
        let mut at = 0;
        while at < changes.len() {
            let cache = table.cache_of(&changes[at].key);
            let same = |change: &&Arc<Change>| match cache {
                Some(cache) => change.key.starts_with(&cache.prefix),
                None => table.cache_of(&change.key).is_none(),
            };
            let count = changes[at..].iter().take_while(same).count().max(1);
            if let Some(cache) = cache {
                let run: Vec<&Change> = changes[at..at + count].iter().map(|c| &**c).collect();
                cache.apply(&run);
            }
            at += count;
        }
        if let Some(last) = changes.last() {
            self.progress.send_replace(last.revision);
        }
    }

    async fn reload(&self) -> Result<(), Error> {
        let range = self.store.range(ROOT, RangeOptions::default()).await?;
        let table = self.table();
        for cache in table.by_prefix.values() {
            let from = range.entries.partition_point(|e| *e.key < *cache.prefix);
            let entries = range.entries[from..].iter().take_while(|e| e.key.starts_with(&cache.prefix));
            cache.reset(State::new(entries.map(Object::new), range.revision));
        }
        self.progress.send_replace(range.revision);
        Ok(())
    }

    pub fn table(&self) -> Arc<Table> {
        self.table.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// All changes up to here are in the caches.
    pub fn progress(&self) -> Revision {
        *self.progress.borrow()
    }

    /// Waits until the caches show everything up to `revision`.
    pub async fn caught_up(&self, revision: Revision) -> Result<(), Status> {
        if self.progress() >= revision {
            return Ok(());
        }
        let mut progress = self.progress.subscribe();
        let reached = progress.wait_for(|reached| *reached >= revision);
        match tokio::time::timeout(std::time::Duration::from_secs(3), reached).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Status::timeout(
                format!("Too large resource version: {revision}, current: {}", self.progress()),
                1,
            )
            .with_details(apimachinery::status::Details {
                retry_after_seconds: 1,
                causes: vec![apimachinery::status::Cause {
                    reason: "ResourceVersionTooLarge".into(),
                    message: "Too large resource version".into(),
                    ..Default::default()
                }],
                ..Default::default()
            })),
        }
    }

    /// The present object.
    pub fn get(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Object>>, Status> {
        Ok(resource.cache()?.read().get(&resource.key(namespace, name)).cloned())
    }

    /// Writes, and waits until the caches show it.
    pub async fn put(&self, key: &str, value: Bytes, expect: Expect) -> Result<Arc<Object>, storage::Error> {
        let entry = self.store.put(key, value, expect).await?;
        self.settle(entry.modified).await;
        Ok(Arc::new(Object::new(&entry)))
    }

    /// Deletes, and waits until the caches show it. Answers the last state at the revision of the deletion.
    pub async fn remove(
        &self,
        key: &str,
        expect: Expect,
    ) -> Result<Option<(Entry, Revision)>, storage::Error> {
        let deleted = self.store.delete(key, expect).await?;
        if let Some((_, revision)) = &deleted {
            self.settle(*revision).await;
        }
        Ok(deleted)
    }

    /// A commit cannot be taken back, so a cache that does not come along is no reason to fail it.
    async fn settle(&self, revision: Revision) {
        if self.caught_up(revision).await.is_err() {
            tracing::warn!(revision, "the caches have not caught up with a commit");
        }
    }
}

/// What a failed read or write of the store is to a client.
pub fn store_error(error: storage::Error) -> Status {
    match error {
        storage::Error::Compacted { .. } => {
            Status::expired("The provided continue parameter is too old to display a consistent list result.")
        }
        storage::Error::Future { requested, newest } => {
            Status::timeout(format!("Too large resource version: {requested}, current: {newest}"), 1)
        }
        storage::Error::Closed => Status::service_unavailable("the server is shutting down"),
        other => {
            tracing::error!(error = &other as &dyn std::error::Error, "the store failed");
            Status::internal(other)
        }
    }
}

impl Lookup for Registry {
    fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let table = self.table();
        let resource = table.stored(resource)?;
        let object = resource.cache.as_ref()?.read().get(&resource.key(namespace, name)).cloned()?;
        Some(object.tree().clone())
    }

    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let table = self.table();
        let Some(resource) = table.stored(resource) else { return Vec::new() };
        let Some(cache) = resource.cache.as_ref() else { return Vec::new() };
        let prefix = resource.prefix(namespace.unwrap_or_default());
        let objects: Vec<Arc<Object>> = cache.read().range(&prefix, None).cloned().collect();
        objects.iter().map(|object| object.tree().clone()).collect()
    }

    fn revision(&self, resource: &GroupResource) -> u64 {
        let table = self.table();
        table.stored(resource).and_then(|r| r.cache.as_ref().map(|c| c.read().newest())).unwrap_or(0)
    }
}
