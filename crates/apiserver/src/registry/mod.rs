//! The registry: every resource's state and history in memory, fed by the store's commits, and the operations
//! on it that are the same for all kinds.
//!
//! Start with [`Registry`], then [`object`] (bytes first) and [`cache`] (state with history). [`list`] and
//! [`watch`] read through [`view`]; [`create`], [`update`], [`patch`] and [`delete`] write.
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
mod signing_request;
pub mod update;
pub mod view;
pub mod watch;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use api::tables::Definition;
use apimachinery::{GroupResource, GroupVersionKind, GroupVersionResource, Status};
use bytes::Bytes;
use resources::ResourceDef;
use resources::custom::Custom;
use serde_json::Value;
use storage::{Change, Entry, Expect, RangeOptions, Revision, Store};
use tokio_util::sync::CancellationToken;

use crate::admission::webhook::client::WebhookClient;
use crate::authn::Random;
use crate::encode::definition;
use crate::extensions::convert::Converter;
use crate::seams::{Changed, Lookup};
use cache::{Cache, State};
use object::Object;

/// Where upstream keeps its objects in etcd.
const ROOT: &str = "/registry/";

/// A kind with where its objects are.
pub struct Resource {
    pub def: Arc<ResourceDef>,
    /// `None` for kinds that are not stored, such as reviews.
    pub cache: Option<Arc<Cache>>,
    /// The schema of the kind, when the tables know it.
    pub definition: Option<&'static Definition>,
    /// How stored objects of this very version begin: `{"apiVersion":"apps/v1","kind":"Deployment"`.
    pub head: String,
    /// Tells this row from all that were there before.
    pub id: u64,
    /// Cancelled when the row is taken out of the table: what watches by it must begin again.
    pub retired: CancellationToken,
}

/// Rows get numbers in the order in which they are made.
static NEXT_ROW: AtomicU64 = AtomicU64::new(1);

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

    /// The CustomResourceDefinition that the row is of.
    fn definition(&self) -> Option<&str> {
        Some(&self.def.custom.as_ref()?.versions.definition)
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
        self.insert(Arc::new(Resource {
            head: format!(r#"{{"apiVersion":"{}","kind":"{}""#, def.gvk().group_version(), def.kind),
            definition: definition(&def),
            def,
            cache,
            id: NEXT_ROW.fetch_add(1, Ordering::Relaxed),
            retired: CancellationToken::new(),
        }));
    }

    /// A kind that is there already is not replaced: built-in kinds come first.
    fn insert(&mut self, resource: Arc<Resource>) {
        let def = &resource.def;
        let route = route(&def.group, &def.version, &def.plural);
        if self.by_route.contains_key(&route) {
            return;
        }
        self.by_route.insert(route, resource.clone());
        if def.version == def.storage_version || !self.by_group_resource.contains_key(&def.group_resource()) {
            self.by_group_resource.insert(def.group_resource(), resource.clone());
        }
        if let Some(cache) = &resource.cache {
            self.by_prefix.insert(def.storage_prefix.to_string(), cache.clone());
        }
        self.rows.push(resource);
    }

    /// The same table without the rows of a definition.
    fn without(&self, definition: &str) -> Self {
        let mut table = Table::default();
        let others = self.rows.iter().filter(|row| row.definition() != Some(definition));
        others.for_each(|row| table.insert(row.clone()));
        table
    }

    /// Runs of changes of one resource enter its cache under one lock.
    fn apply(&self, changes: &[Arc<Change>]) {
        let mut at = 0;
        while at < changes.len() {
            let cache = self.cache_of(&changes[at].key);
            let same = |change: &&Arc<Change>| match cache {
                Some(cache) => change.key.starts_with(&cache.prefix),
                None => self.cache_of(&change.key).is_none(),
            };
            let count = changes[at..].iter().take_while(same).count().max(1);
            if let Some(cache) = cache {
                cache.apply(&changes[at..at + count]);
            }
            at += count;
        }
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

/// The changes that the store still knows, up to a revision, and the revision after which it knows all. Watchers
/// of before a restart go on from it.
async fn history(store: &dyn Store, until: Revision) -> Result<(Revision, Vec<Arc<Change>>), Error> {
    // All keys start so: a commit of any other key would be waited for in vain.
    const ALL: &str = "/";
    let oldest = match store.watch(ALL, 0).await {
        Err(storage::Error::Compacted { compacted, .. }) => compacted,
        _ => 0,
    };
    let mut changes: Vec<Arc<Change>> = Vec::new();
    let mut watch = store.watch(ALL, oldest).await?;
    while oldest.max(changes.last().map_or(0, |last| last.revision)) < until {
        changes.extend(watch.next().await?);
    }
    changes.retain(|change| change.revision <= until);
    Ok((oldest, changes))
}

/// All state of the API server.
pub struct Registry {
    store: Arc<dyn Store>,
    table: Arc<RwLock<Arc<Table>>>,
    /// How often the table has changed.
    tables: tokio::sync::watch::Sender<u64>,
    converter: OnceLock<Converter>,
    /// All changes up to this revision are in the caches.
    progress: Arc<tokio::sync::watch::Sender<Revision>>,
}

impl Registry {
    /// Loads the state of all resources. [`Registry::run`] must then run for as long as the registry is used.
    pub async fn new(store: Arc<dyn Store>, defs: Vec<Arc<ResourceDef>>) -> Result<Arc<Self>, Error> {
        let range = store.range(ROOT, RangeOptions::default()).await?;
        let (oldest, history) = history(&*store, range.revision).await?;
        let mut table = Table::default();
        let add = |table: &mut Table, def: Arc<ResourceDef>| {
            let cache = match table.by_prefix.get(&*def.storage_prefix) {
                // Reviews and the like are answered, not kept.
                _ if !is_stored(&def) => None,
                Some(cache) => Some(cache.clone()),
                None => {
                    let prefix = format!("{ROOT}{}/", def.storage_prefix);
                    let from = range.entries.partition_point(|e| *e.key < *prefix);
                    let entries = range.entries[from..].iter().take_while(|e| e.key.starts_with(&prefix));
                    let mut state = State::new(entries.map(Object::new), range.revision);
                    let past = history.iter().filter(|change| change.key.starts_with(&prefix));
                    state.recall(oldest, &past.cloned().collect::<Vec<_>>());
                    Some(Arc::new(Cache::new(prefix, state)))
                }
            };
            table.add(def, cache);
        };
        defs.into_iter().for_each(|def| add(&mut table, def));
        // What was served before is served from the first request on.
        for definition in stored_definitions(&table).iter().filter(|d| resources::custom::is_served(d)) {
            resources::custom::rows(definition).into_iter().for_each(|def| add(&mut table, def));
        }
        let progress = tokio::sync::watch::Sender::new(range.revision);
        let table = Arc::new(RwLock::new(Arc::new(table)));
        Ok(Arc::new(Registry {
            store,
            table,
            tables: Default::default(),
            converter: OnceLock::new(),
            progress: Arc::new(progress),
        }))
    }

    /// Says how webhooks are called. Until then, no object can be converted by one.
    pub fn connect(&self, webhooks: WebhookClient, random: Random) {
        // A registry is of one server.
        let _ = self.converter.set(Converter { webhooks, random });
    }

    /// Asks webhooks for objects in another version.
    pub async fn convert(
        &self,
        custom: &Custom,
        objects: Vec<Value>,
        api_version: &str,
    ) -> Result<Vec<Value>, Status> {
        match self.converter.get() {
            Some(converter) => converter.trees(custom, objects, api_version).await,
            None => Err(Status::internal("there is no way to conversion webhooks yet")),
        }
    }

    /// Tells of every change of what is served.
    pub fn table_changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.tables.subscribe()
    }

    /// Puts these rows into the table instead of those that the definition had. One caller at a time: the loop that
    /// follows the definitions.
    pub async fn set_custom(&self, definition: &str, rows: Vec<Arc<ResourceDef>>) -> Result<(), Error> {
        let old = self.table();
        let mut table = old.without(definition);
        for def in rows {
            let prefix = &*def.storage_prefix;
            let known = table.by_prefix.get(prefix).or_else(|| old.by_prefix.get(prefix)).cloned();
            let cache = match known {
                Some(cache) => cache,
                // Nobody writes where no row is served, so that nothing is missed until the table is changed.
                None => Arc::new(self.load(format!("{ROOT}{prefix}/")).await?),
            };
            table.add(def, Some(cache));
        }
        *self.table.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Arc::new(table);
        self.tables.send_modify(|changes| *changes += 1);
        for row in old.rows.iter().filter(|row| row.definition() == Some(definition)) {
            row.retired.cancel();
        }
        Ok(())
    }

    /// A cache of what is stored now.
    async fn load(&self, prefix: String) -> Result<Cache, Error> {
        let range = self.store.range(&prefix, RangeOptions::default()).await?;
        let state = State::new(range.entries.iter().map(Object::new), range.revision);
        Ok(Cache::new(prefix, state))
    }

    /// Has the store feed the caches, until the shutdown.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<(), Error> {
        while let Err(error) = self.store.follow(self.progress(), self.follower()) {
            let storage::Error::Compacted { .. } = error else { return Err(error.into()) };
            tracing::warn!("the caches fell behind the store's history and are loaded anew");
            self.reload().await?;
        }
        shutdown.cancelled().await;
        Ok(())
    }

    /// Enters commits into the caches. It does not hold the registry, which holds the store.
    fn follower(&self) -> storage::Follower {
        let (table, progress) = (self.table.clone(), self.progress.clone());
        Box::new(move |changes| {
            let table = table.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
            table.apply(changes);
            if let Some(last) = changes.last() {
                progress.send_replace(last.revision);
            }
        })
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

    /// The present object of a cluster-scoped kind, decoded.
    pub fn get_tree(&self, resource: &GroupResource, name: &str) -> Option<Arc<Value>> {
        Lookup::get(self, resource, "", name)
    }

    /// Writes, and waits until the caches show it.
    pub async fn put(&self, key: &str, value: Bytes, expect: Expect) -> Result<Arc<Object>, storage::Error> {
        let entry = self.store.put(key, value, expect).await?;
        self.settle(entry.modified).await;
        // What the cache has is shared with all who read and watch it, unless another write came since.
        let cached = self.table().cache_of(key).and_then(|cache| cache.read().get(key).cloned());
        Ok(cached
            .filter(|object| object.revision == entry.modified)
            .unwrap_or_else(|| Arc::new(Object::new(&entry))))
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

    /// Writes the last state of an object and deletes it, as one commit. Answers that state at the revision of
    /// the deletion.
    pub async fn put_and_remove(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
    ) -> Result<(Entry, Revision), storage::Error> {
        let (last, revision) = self.store.put_and_delete(key, value, expect).await?;
        self.settle(revision).await;
        Ok((last, revision))
    }

    /// A commit cannot be taken back, so a cache that does not come along is no reason to fail it.
    async fn settle(&self, revision: Revision) {
        if self.caught_up(revision).await.is_err() {
            tracing::warn!(revision, "the caches have not caught up with a commit");
        }
    }
}

/// The CustomResourceDefinitions that are stored.
fn stored_definitions(table: &Table) -> Vec<Arc<Value>> {
    let row = table.find("apiextensions.k8s.io", "v1", "customresourcedefinitions");
    let Some(cache) = row.and_then(|row| row.cache.as_ref()) else { return Vec::new() };
    let state = cache.read();
    state.range(&cache.prefix, None).map(|object| object.tree().clone()).collect()
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
            // The cause tells what to do: that no space is left on the device, for one.
            let causes =
                std::iter::successors(Some(&other as &dyn std::error::Error), |error| error.source());
            Status::internal(causes.map(ToString::to_string).collect::<Vec<_>>().join(": "))
        }
    }
}

/// The tree of an object that the server itself looks at. There are few of most kinds and many requests that look
/// at them, so they are kept; of pods and events there are many.
fn looked_up(resource: &Resource, object: &Object) -> Arc<Value> {
    match &*resource.def.plural {
        "pods" | "events" => Arc::new(object.open().into_owned()),
        _ => object.tree().clone(),
    }
}

impl Lookup for Registry {
    fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let table = self.table();
        let resource = table.stored(resource)?;
        let object = resource.cache.as_ref()?.read().get(&resource.key(namespace, name)).cloned()?;
        Some(looked_up(resource, &object))
    }

    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>> {
        let table = self.table();
        let Some(resource) = table.stored(resource) else { return Vec::new() };
        let Some(cache) = resource.cache.as_ref() else { return Vec::new() };
        let prefix = resource.prefix(namespace.unwrap_or_default());
        let objects: Vec<Arc<Object>> = cache.read().range(&prefix, None).cloned().collect();
        objects.iter().map(|object| looked_up(resource, object)).collect()
    }

    fn revision(&self, resource: &GroupResource) -> u64 {
        let table = self.table();
        table.stored(resource).and_then(|r| r.cache.as_ref().map(|c| c.read().newest())).unwrap_or(0)
    }

    fn since(&self, resource: &GroupResource, revision: u64) -> Option<Vec<Changed>> {
        let table = self.table();
        let resource = table.stored(resource)?;
        let events = resource.cache.as_ref()?.read().since(revision, usize::MAX).ok()?;
        let changed = |event: &Arc<cache::Event>| Changed {
            namespace: event.object.namespace().to_owned(),
            name: event.object.name().to_owned(),
            object: (!event.deleted).then(|| looked_up(resource, &event.object)),
        };
        Some(events.iter().map(changed).collect())
    }

    fn changes(&self, resource: &GroupResource) -> Option<tokio::sync::watch::Receiver<u64>> {
        let table = self.table();
        Some(table.stored(resource)?.cache.as_ref()?.subscribe())
    }

    fn resource_of(&self, kind: &GroupVersionKind) -> Option<(GroupResource, bool)> {
        let table = self.table();
        let row = table.rows().iter().find(|row| row.def.gvk() == *kind)?;
        Some((row.def.group_resource(), row.def.namespaced()))
    }

    fn equivalents(
        &self,
        resource: &GroupVersionResource,
        subresource: &str,
    ) -> Vec<(GroupVersionResource, GroupVersionKind)> {
        let table = self.table();
        let Some(own) = table.find(&resource.group, &resource.version, &resource.resource) else {
            return Vec::new();
        };
        let same = |row: &&Arc<Resource>| {
            row.def.storage_prefix == own.def.storage_prefix && row.def.gvr() != *resource
        };
        let kind = |def: &ResourceDef| match subresource {
            "" => Some(def.gvk()),
            name => def.subresource(name).map(|subresource| subresource.kind.clone()),
        };
        let others = table.rows().iter().filter(same);
        others.filter_map(|row| Some((row.def.gvr(), kind(&row.def)?))).collect()
    }
}
