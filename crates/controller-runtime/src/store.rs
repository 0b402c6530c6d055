//! The objects of an informer by key, with secondary indexes: plain data, no I/O.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::sync::Arc;

/// What a cache needs to know of an object.
pub trait Cached: Send + Sync + 'static {
    /// `namespace/name`, or `name` for cluster-scoped objects.
    fn key(&self) -> String;
    fn uid(&self) -> &str;
    fn resource_version(&self) -> &str;
}

impl<T: api::Object> Cached for T {
    fn key(&self) -> String {
        api::Object::key(self)
    }

    fn uid(&self) -> &str {
        api::Object::uid(self)
    }

    fn resource_version(&self) -> &str {
        self.metadata().resource_version.as_deref().unwrap_or_default()
    }
}

/// A change of a cache. An object that was deleted and made again under its name is a deletion and an addition.
#[derive(Debug)]
pub enum Event<T> {
    Added(Arc<T>),
    Updated { old: Arc<T>, new: Arc<T> },
    Deleted(Arc<T>),
}

impl<T> Event<T> {
    /// The newest known state of the object.
    pub fn object(&self) -> &Arc<T> {
        match self {
            Event::Added(object) | Event::Deleted(object) | Event::Updated { new: object, .. } => object,
        }
    }

    /// The state before, where there was one.
    pub fn old(&self) -> Option<&Arc<T>> {
        match self {
            Event::Updated { old, .. } => Some(old),
            _ => None,
        }
    }
}

type IndexFn<T> = Box<dyn Fn(&T) -> Vec<String> + Send + Sync>;

struct Index<T> {
    name: &'static str,
    values_of: IndexFn<T>,
    keys: HashMap<String, BTreeSet<Arc<str>>>,
}

impl<T> Index<T> {
    fn insert(&mut self, key: &Arc<str>, object: &T) {
        for value in (self.values_of)(object) {
            self.keys.entry(value).or_default().insert(key.clone());
        }
    }

    fn remove(&mut self, key: &Arc<str>, object: &T) {
        for value in (self.values_of)(object) {
            if let Some(keys) = self.keys.get_mut(&value) {
                keys.remove(key);
                if keys.is_empty() {
                    self.keys.remove(&value);
                }
            }
        }
    }
}

/// The cache itself. Every change returns the events it means.
pub(crate) struct Store<T> {
    objects: BTreeMap<Arc<str>, Arc<T>>,
    indexes: Vec<Index<T>>,
    /// The newest revision that the watch has shown.
    observed: u64,
    /// Objects written by this process that the watch has not shown yet, with their revisions.
    assumed: HashMap<Arc<str>, u64>,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Store { objects: BTreeMap::new(), indexes: Vec::new(), observed: 0, assumed: HashMap::new() }
    }
}

fn revision(resource_version: &str) -> u64 {
    resource_version.parse().unwrap_or(0)
}

impl<T: Cached> Store<T> {
    pub fn get(&self, key: &str) -> Option<Arc<T>> {
        self.objects.get(key).cloned()
    }

    pub fn list(&self) -> Vec<Arc<T>> {
        self.objects.values().cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn by_namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        let prefix = format!("{namespace}/");
        let from = (Bound::Included(prefix.as_str()), Bound::Unbounded);
        let in_namespace = self.objects.range::<str, _>(from).take_while(|(key, _)| key.starts_with(&prefix));
        in_namespace.map(|(_, object)| object.clone()).collect()
    }

    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<T>> {
        let index = self.indexes.iter().find(|i| i.name == index);
        let keys = index.and_then(|i| i.keys.get(value));
        keys.into_iter().flatten().filter_map(|key| self.objects.get(key).cloned()).collect()
    }

    /// A second index of the same name is the first one.
    pub fn add_index(&mut self, name: &'static str, values_of: IndexFn<T>) {
        if self.indexes.iter().any(|i| i.name == name) {
            return;
        }
        let mut index = Index { name, values_of, keys: HashMap::new() };
        for (key, object) in &self.objects {
            index.insert(key, object);
        }
        self.indexes.push(index);
    }

    /// An ADDED or MODIFIED of the watch.
    pub fn observe(&mut self, object: Arc<T>) -> Vec<Event<T>> {
        let new = revision(object.resource_version());
        self.observed = self.observed.max(new);
        let key: Arc<str> = object.key().into();
        match self.assumed.get(&key) {
            Some(assumed) if new < *assumed => return Vec::new(),
            Some(_) => drop(self.assumed.remove(&key)),
            None => {}
        }
        self.put(key, object)
    }

    /// A DELETED of the watch.
    pub fn observe_deleted(&mut self, object: Arc<T>) -> Vec<Event<T>> {
        let at = revision(object.resource_version());
        self.observed = self.observed.max(at);
        let key: Arc<str> = object.key().into();
        match self.assumed.get(&key) {
            Some(assumed) if at < *assumed => return Vec::new(),
            Some(_) => drop(self.assumed.remove(&key)),
            None => {}
        }
        if self.take(&key).is_none() {
            return Vec::new();
        }
        vec![Event::Deleted(object)]
    }

    pub fn observe_bookmark(&mut self, resource_version: &str) {
        self.observed = self.observed.max(revision(resource_version));
    }

    /// What a write of this process answered. If the watch has been past it already, it has shown this or
    /// something newer.
    pub fn assume(&mut self, object: Arc<T>) -> Vec<Event<T>> {
        let new = revision(object.resource_version());
        let key: Arc<str> = object.key().into();
        if new == 0 || new <= self.observed || self.assumed.get(&key).is_some_and(|a| *a >= new) {
            return Vec::new();
        }
        self.assumed.insert(key.clone(), new);
        self.put(key, object)
    }

    /// A whole list at a revision.
    pub fn replace(&mut self, objects: Vec<T>, resource_version: &str) -> Vec<Event<T>> {
        let at = revision(resource_version);
        self.observed = at;
        self.assumed.retain(|_, assumed| *assumed > at);
        let mut gone: BTreeSet<Arc<str>> =
            self.objects.keys().filter(|key| !self.assumed.contains_key(*key)).cloned().collect();
        let mut events = Vec::new();
        for object in objects {
            let key: Arc<str> = object.key().into();
            gone.remove(&key);
            if !self.assumed.contains_key(&key) {
                events.append(&mut self.put(key, Arc::new(object)));
            }
        }
        for key in gone {
            events.extend(self.take(&key).map(Event::Deleted));
        }
        events
    }

    fn put(&mut self, key: Arc<str>, new: Arc<T>) -> Vec<Event<T>> {
        let old = match self.objects.get(&key) {
            Some(old) if old.resource_version() == new.resource_version() => return Vec::new(),
            Some(_) => self.take(&key),
            None => None,
        };
        for index in &mut self.indexes {
            index.insert(&key, &new);
        }
        self.objects.insert(key, new.clone());
        match old {
            Some(old) if old.uid() == new.uid() => vec![Event::Updated { old, new }],
            Some(old) => vec![Event::Deleted(old), Event::Added(new)],
            None => vec![Event::Added(new)],
        }
    }

    fn take(&mut self, key: &Arc<str>) -> Option<Arc<T>> {
        let old = self.objects.remove(key)?;
        for index in &mut self.indexes {
            index.remove(key, &old);
        }
        Some(old)
    }
}

#[cfg(test)]
mod tests {
    use api::core::v1::ConfigMap;

    use super::*;

    fn object(name: &str, uid: &str, revision: u64) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("ns".into());
        map.metadata.name = Some(name.into());
        map.metadata.uid = Some(uid.into());
        map.metadata.resource_version = Some(revision.to_string());
        map
    }

    fn words(events: &[Event<ConfigMap>]) -> String {
        let word = |event: &Event<ConfigMap>| match event {
            Event::Added(o) => format!("+{}@{}", Cached::uid(&**o), o.resource_version()),
            Event::Updated { old, new } => {
                format!("{}@{}>{}", Cached::uid(&**new), old.resource_version(), new.resource_version())
            }
            Event::Deleted(o) => format!("-{}", Cached::uid(&**o)),
        };
        events.iter().map(word).collect::<Vec<_>>().join(" ")
    }

    enum Step {
        Observe(ConfigMap),
        Delete(ConfigMap),
        Assume(ConfigMap),
        Replace(Vec<ConfigMap>, &'static str),
    }

    fn check(steps: Vec<(Step, &str)>) {
        let mut store = Store::default();
        for (at, (step, expected)) in steps.into_iter().enumerate() {
            let events = match step {
                Step::Observe(o) => store.observe(Arc::new(o)),
                Step::Delete(o) => store.observe_deleted(Arc::new(o)),
                Step::Assume(o) => store.assume(Arc::new(o)),
                Step::Replace(list, rv) => store.replace(list, rv),
            };
            assert_eq!(words(&events), expected, "step {at}");
        }
    }

    #[test]
    fn a_watch_is_followed() {
        check(vec![
            (Step::Replace(vec![object("a", "1", 1), object("b", "2", 2)], "3"), "+1@1 +2@2"),
            (Step::Observe(object("a", "1", 4)), "1@1>4"),
            (Step::Observe(object("a", "1", 4)), ""),
            (Step::Delete(object("b", "2", 5)), "-2"),
            (Step::Delete(object("b", "2", 5)), ""),
            (Step::Observe(object("a", "9", 6)), "-1 +9@6"),
            (Step::Replace(vec![object("c", "3", 7)], "8"), "+3@7 -9"),
        ]);
    }

    #[test]
    fn a_write_is_read_back_and_never_becomes_a_ghost() {
        check(vec![
            (Step::Replace(vec![], "3"), ""),
            (Step::Assume(object("a", "1", 5)), "+1@5"),
            (Step::Observe(object("a", "1", 5)), ""),
            (Step::Assume(object("a", "1", 8)), "1@5>8"),
            // The watch is behind the write: what it shows is older.
            (Step::Observe(object("a", "1", 7)), ""),
            (Step::Observe(object("a", "1", 8)), ""),
            (Step::Delete(object("a", "1", 9)), "-1"),
            // The watch was past the write before its answer came.
            (Step::Observe(object("b", "2", 12)), "+2@12"),
            (Step::Assume(object("c", "3", 11)), ""),
        ]);
    }

    #[test]
    fn a_relist_keeps_only_newer_writes() {
        check(vec![
            (Step::Replace(vec![], "3"), ""),
            (Step::Assume(object("a", "1", 5)), "+1@5"),
            (Step::Assume(object("b", "2", 9)), "+2@9"),
            (Step::Replace(vec![], "7"), "-1"),
            (Step::Replace(vec![], "10"), "-2"),
        ]);
    }

    #[test]
    fn indexes_follow() {
        let mut store = Store::default();
        store.observe(Arc::new(object("a", "1", 1)));
        store.add_index("uid", Box::new(|o: &ConfigMap| vec![Cached::uid(o).to_owned()]));
        store.observe(Arc::new(object("b", "2", 2)));
        let names = |store: &Store<ConfigMap>, uid: &str| store.by_index("uid", uid).len();
        assert_eq!((names(&store, "1"), names(&store, "2"), names(&store, "3")), (1, 1, 0));
        store.observe(Arc::new(object("a", "3", 3)));
        assert_eq!((names(&store, "1"), names(&store, "3")), (0, 1));
        store.observe_deleted(Arc::new(object("b", "2", 4)));
        assert_eq!(names(&store, "2"), 0);
        assert_eq!(store.by_namespace("ns").len(), 1);
        assert_eq!(store.by_namespace("n").len(), 0);
    }
}
