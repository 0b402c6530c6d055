//! [`InformerFactory`] and its [`Informer`]s: shared caches of the kinds that somebody reads.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use api::Object;
use client::{Client, Decode, Error, ListOptions, PatchType, Resource, WatchStream};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metadata::Metadata;
use crate::reading::Reading;
use crate::reflector;
use crate::store::{Cached, Event, Store};

/// Which objects of a kind an informer holds; all by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    pub namespace: Option<String>,
    pub labels: Option<String>,
    pub fields: Option<String>,
}

impl Filter {
    pub fn namespace(namespace: &str) -> Self {
        Filter { namespace: Some(namespace.to_owned()), ..Default::default() }
    }

    pub fn fields(selector: impl Into<String>) -> Self {
        Filter { fields: Some(selector.into()), ..Default::default() }
    }

    pub fn labels(selector: impl Into<String>) -> Self {
        Filter { labels: Some(selector.into()), ..Default::default() }
    }
}

/// An object of a watch; `None` when it does not have the shape of its kind.
pub(crate) struct Shown<T> {
    pub resource_version: String,
    pub object: Option<T>,
}

fn read<T>(reading: Reading<T>, resource: &Resource, object: Value) -> Option<T> {
    let read = reading.of_tree(object);
    if let Err(error) = &read {
        tracing::warn!(resource = %resource.gvr.resource, %error, "an object is left out of the cache");
    }
    read.ok()
}

type Handler<T> = Box<dyn Fn(&Event<T>) + Send + Sync>;

/// What an informer's handles and its reflector share.
///
/// Two locks: `handlers` is held while the store changes and its events are told, so that every handler sees
/// every change once and in order; `store` only while the store itself is touched, so that handlers may read.
pub(crate) struct Shared<T> {
    pub client: Client,
    pub resource: Resource,
    pub filter: Filter,
    pub stop: CancellationToken,
    reading: Reading<T>,
    store: RwLock<Store<T>>,
    handlers: Mutex<Vec<Handler<T>>>,
    synced: watch::Sender<bool>,
}

impl<T: Cached> Shared<T> {
    pub fn options(&self) -> ListOptions {
        ListOptions {
            label_selector: self.filter.labels.clone(),
            field_selector: self.filter.fields.clone(),
            ..Default::default()
        }
    }

    /// `None` for an object that does not have the shape of its kind: it must not blind us for the others.
    pub fn decode(&self, object: Value) -> Option<T> {
        read(self.reading, &self.resource, object)
    }

    /// What the server shows, and from then on what changes.
    pub async fn watch(&self, options: &ListOptions) -> Result<WatchStream<Shown<T>>, Error> {
        let (reading, resource) = (self.reading, self.resource.clone());
        let decode = Decode {
            text: Box::new(move |text| {
                let object = reading.of_text(text).ok()?;
                Some(Shown { resource_version: object.resource_version().to_owned(), object: Some(object) })
            }),
            tree: Box::new(move |object: Value| {
                let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                Ok(Shown { resource_version: version, object: read(reading, &resource, object) })
            }),
        };
        self.client.watch_read(&self.resource, self.filter.namespace.as_deref(), options, decode).await
    }

    pub fn observe(&self, object: T) {
        self.change(|store| store.observe(Arc::new(object)));
    }

    pub fn observe_deleted(&self, object: T) {
        self.change(|store| store.observe_deleted(Arc::new(object)));
    }

    pub fn observe_bookmark(&self, resource_version: &str) {
        self.store.write().unwrap_or_else(PoisonError::into_inner).observe_bookmark(resource_version);
    }

    pub fn replace(&self, objects: Vec<T>, resource_version: &str) {
        self.change(|store| store.replace(objects, resource_version));
        self.synced.send_replace(true);
    }

    fn change(&self, change: impl FnOnce(&mut Store<T>) -> Vec<Event<T>>) {
        let handlers = self.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let events = change(&mut self.store.write().unwrap_or_else(PoisonError::into_inner));
        for event in &events {
            handlers.iter().for_each(|handler| handler(event));
        }
    }

    fn read<R>(&self, read: impl FnOnce(&Store<T>) -> R) -> R {
        read(&self.store.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A handle to the cache of one kind. Clones share it. Objects are decoded once and shared.
pub struct Informer<T> {
    shared: Arc<Shared<T>>,
    /// As whom this handle writes.
    writer: Client,
}

impl<T> Clone for Informer<T> {
    fn clone(&self) -> Self {
        Informer { shared: self.shared.clone(), writer: self.writer.clone() }
    }
}

impl<T: Cached> Informer<T> {
    fn new(factory: &FactoryInner, resource: Resource, filter: Filter, reading: Reading<T>) -> Self {
        let shared = Shared {
            client: factory.client.clone(),
            resource,
            filter,
            stop: factory.shutdown.child_token(),
            reading,
            store: RwLock::default(),
            handlers: Mutex::default(),
            synced: watch::Sender::new(false),
        };
        Informer { shared: Arc::new(shared), writer: factory.client.clone() }
    }

    /// By `namespace/name`, or `name` for cluster-scoped kinds.
    pub fn get(&self, key: &str) -> Option<Arc<T>> {
        self.shared.read(|store| store.get(key))
    }

    pub fn get_in(&self, namespace: &str, name: &str) -> Option<Arc<T>> {
        self.get(&format!("{namespace}/{name}"))
    }

    /// All objects, in the order of their keys.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.shared.read(Store::list)
    }

    pub fn len(&self) -> usize {
        self.shared.read(Store::len)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn by_namespace(&self, namespace: &str) -> Vec<Arc<T>> {
        self.shared.read(|store| store.by_namespace(namespace))
    }

    /// Indexes the objects by what `values_of` says. An index that exists under the name stays as it is.
    pub fn add_index(
        &self,
        name: &'static str,
        values_of: impl Fn(&T) -> Vec<String> + Send + Sync + 'static,
    ) {
        let mut store = self.shared.store.write().unwrap_or_else(PoisonError::into_inner);
        store.add_index(name, Box::new(values_of));
    }

    /// The objects for which an index holds the value, in the order of their keys.
    pub fn by_index(&self, index: &str, value: &str) -> Vec<Arc<T>> {
        self.shared.read(|store| store.by_index(index, value))
    }

    /// Calls `handler` for every change from now on, and first with an addition for every object that is here.
    /// Handlers run in the informer's own task: they may read informers, and put keys into queues; they must
    /// not block or subscribe.
    pub fn subscribe(&self, handler: impl Fn(&Event<T>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        for object in self.list() {
            handler(&Event::Added(object));
        }
        handlers.push(Box::new(handler));
    }

    pub fn has_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// Waits until the cache holds the server's state and every handler has been told. False when the
    /// informer is stopped before.
    pub async fn synced(&self) -> bool {
        let mut synced = self.shared.synced.subscribe();
        tokio::select! {
            () = self.shared.stop.cancelled() => false,
            result = synced.wait_for(|synced| *synced) => result.is_ok(),
        }
    }

    /// Makes the cache hold what a write answered, if its watch has not been there yet.
    pub fn assume(&self, object: T) -> Arc<T> {
        let object = Arc::new(object);
        self.shared.change(|store| store.assume(object.clone()));
        object
    }
}

/// Writes that are read back at once.
impl<T: Object> Informer<T> {
    pub async fn create(&self, object: &T) -> Result<Arc<T>, Error> {
        self.writer.create(object).await.map(|object| self.keep(object))
    }

    pub async fn update(&self, object: &T) -> Result<Arc<T>, Error> {
        self.writer.update(object).await.map(|object| self.keep(object))
    }

    pub async fn update_status(&self, object: &T) -> Result<Arc<T>, Error> {
        self.writer.update_status(object).await.map(|object| self.keep(object))
    }

    pub async fn patch(
        &self,
        object: &T,
        subresource: Option<&str>,
        patch_type: PatchType,
        patch: &Value,
    ) -> Result<Arc<T>, Error> {
        let patched = self.writer.patch(object.namespace(), object.name(), subresource, patch_type, patch);
        patched.await.map(|object| self.keep(object))
    }

    fn keep(&self, mut object: T) -> Arc<T> {
        object.metadata_mut().managed_fields = None;
        self.assume(object)
    }
}

/// An informer whatever its kind.
trait AnyInformer: Any + Send + Sync {
    fn start(&self, tasks: &TaskTracker);
    fn stop(&self);
    fn as_any(&self) -> &dyn Any;
}

impl<T: Cached> AnyInformer for Informer<T> {
    fn start(&self, tasks: &TaskTracker) {
        let shared = self.shared.clone();
        tasks.spawn(async move { reflector::run(&shared).await });
    }

    fn stop(&self) {
        self.shared.stop.cancel();
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

type InformerKey = (TypeId, Resource, Filter);

#[derive(Default)]
struct Informers {
    started: bool,
    all: HashMap<InformerKey, Box<dyn AnyInformer>>,
}

struct FactoryInner {
    client: Client,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    informers: Mutex<Informers>,
}

/// Makes informers: one per kind and filter, however often it is asked for. Clones share them.
#[derive(Clone)]
pub struct InformerFactory {
    inner: Arc<FactoryInner>,
    writer: Client,
    /// Whether those have synced that this part was given.
    given: Arc<Mutex<Vec<watch::Receiver<bool>>>>,
}

impl InformerFactory {
    pub fn new(client: Client, shutdown: CancellationToken) -> Self {
        let writer = client.clone();
        let inner = FactoryInner { client, shutdown, tasks: TaskTracker::new(), informers: Mutex::default() };
        InformerFactory { inner: Arc::new(inner), writer, given: Arc::default() }
    }

    /// The same informers for a part that writes as somebody else than who feeds the caches, and that
    /// [waits](Self::synced) for those alone that it asks for.
    pub fn acting_as(&self, writer: Client) -> Self {
        InformerFactory { inner: self.inner.clone(), writer, given: Arc::default() }
    }

    /// Who feeds the caches.
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The informer of all objects of a kind.
    pub fn informer<T: Object>(&self) -> Informer<T> {
        self.filtered(Filter::default())
    }

    /// The informer of those objects of a kind that pass the filter.
    pub fn filtered<T: Object>(&self, filter: Filter) -> Informer<T> {
        self.get_or_make(Resource::of::<T>(), filter, Reading::whole())
    }

    /// The informer of all objects of a kind, of which only a part is kept.
    pub fn reduced<K: Object, T: Cached + From<K>>(&self, filter: Filter) -> Informer<T> {
        let reading = Reading::new(
            |text| K::from_slice(text).map(T::from),
            |object| K::from_value(object).map(T::from),
        );
        self.get_or_make(Resource::of::<K>(), filter, reading)
    }

    /// The informer of the metadata of any kind, built-in or custom.
    pub fn metadata(&self, resource: Resource) -> Informer<Metadata> {
        let reading = Reading::new(Metadata::from_slice, Metadata::from_value);
        self.get_or_make(resource, Filter::default(), reading)
    }

    /// Stops the metadata informer of a kind that is no longer served.
    pub fn forget_metadata(&self, resource: &Resource) {
        let key = (TypeId::of::<Metadata>(), resource.clone(), Filter::default());
        if let Some(informer) = self.lock().all.remove(&key) {
            informer.stop();
        }
    }

    fn get_or_make<T: Cached>(&self, resource: Resource, filter: Filter, reading: Reading<T>) -> Informer<T> {
        let key = (TypeId::of::<T>(), resource.clone(), filter.clone());
        let mut informers = self.lock();
        let known = informers.all.get(&key).and_then(|i| i.as_any().downcast_ref::<Informer<T>>()).cloned();
        let informer = known.unwrap_or_else(|| {
            let informer = Informer::new(&self.inner, resource, filter, reading);
            if informers.started {
                informer.start(&self.inner.tasks);
            }
            informers.all.insert(key, Box::new(informer.clone()));
            informer
        });
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that nobody holds any more are not waited for.
        given.retain(|synced| synced.has_changed().is_ok());
        given.push(informer.shared.synced.subscribe());
        Informer { writer: self.writer.clone(), ..informer }
    }

    /// Starts the informers that were made so far; those made later start at once.
    pub fn start(&self) {
        let mut informers = self.lock();
        if !std::mem::replace(&mut informers.started, true) {
            informers.all.values().for_each(|informer| informer.start(&self.inner.tasks));
        }
    }

    /// Waits until all informers that this part was given so far hold the server's state. False when the factory is
    /// shut down before.
    pub async fn synced(&self) -> bool {
        let waiting = self.given.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all = async {
            for mut synced in waiting {
                if synced.wait_for(|synced| *synced).await.is_err() {
                    return false;
                }
            }
            true
        };
        tokio::select! {
            () = self.inner.shutdown.cancelled() => false,
            all = all => all,
        }
    }

    /// Waits until every informer's task has ended, after the shutdown.
    pub async fn stopped(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Informers> {
        self.inner.informers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
