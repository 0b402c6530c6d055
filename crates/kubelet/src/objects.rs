//! The ConfigMaps and Secrets that pods of this node use: each watched by itself while a pod needs it, as a node
//! may see only those.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Object;
use client::Client;
use controller_runtime::{Filter, Informer, InformerFactory};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How long a pod waits for an object that the API server does not give.
const PATIENCE: Duration = Duration::from_secs(10);

/// Wakes the workers of pods by UID.
#[derive(Clone, Default)]
pub struct Wakers(Arc<Mutex<HashMap<String, Arc<Notify>>>>);

impl Wakers {
    pub fn add(&self, pod_uid: &str) -> Arc<Notify> {
        self.lock().entry(pod_uid.to_owned()).or_default().clone()
    }

    pub fn remove(&self, pod_uid: &str) {
        self.lock().remove(pod_uid);
    }

    pub fn wake(&self, pod_uid: &str) {
        if let Some(waker) = self.lock().get(pod_uid) {
            waker.notify_one();
        }
    }

    pub fn wake_all(&self) {
        self.lock().values().for_each(|waker| waker.notify_one());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Notify>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Entry<T> {
    informer: Informer<T>,
    stop: CancellationToken,
    pods: Arc<Mutex<BTreeSet<String>>>,
}

/// The objects of one kind that pods use.
pub struct ObjectCache<T> {
    client: Client,
    wakers: Wakers,
    shutdown: CancellationToken,
    entries: Mutex<HashMap<(String, String), Entry<T>>>,
}

impl<T: Object> ObjectCache<T> {
    pub fn new(client: Client, wakers: Wakers, shutdown: CancellationToken) -> Self {
        ObjectCache { client, wakers, shutdown, entries: Mutex::default() }
    }

    /// The object, or `None` if there is none. The pod is woken when that changes, until it is released.
    pub async fn get(&self, pod_uid: &str, namespace: &str, name: &str) -> Result<Option<Arc<T>>, String> {
        let informer = self.informer(pod_uid, namespace, name);
        match tokio::time::timeout(PATIENCE, informer.synced()).await {
            Ok(true) => Ok(informer.get_in(namespace, name)),
            Ok(false) => Err("the kubelet is stopping".to_owned()),
            Err(_) => {
                let kind = T::KIND.to_lowercase();
                Err(format!("failed to sync {kind} cache: timed out waiting for the condition"))
            }
        }
    }

    fn informer(&self, pod_uid: &str, namespace: &str, name: &str) -> Informer<T> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (namespace.to_owned(), name.to_owned());
        let entry = entries.entry(key).or_insert_with(|| self.start(namespace, name));
        entry.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(pod_uid.to_owned());
        entry.informer.clone()
    }

    fn start(&self, namespace: &str, name: &str) -> Entry<T> {
        let stop = self.shutdown.child_token();
        let factory = InformerFactory::new(self.client.clone(), stop.clone());
        let fields = Some(format!("metadata.name={name}"));
        let filter = Filter { namespace: Some(namespace.to_owned()), fields, labels: None };
        let informer = factory.filtered::<T>(filter);
        let pods: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let (subscribers, wakers) = (pods.clone(), self.wakers.clone());
        informer.subscribe(move |_| {
            let subscribers = subscribers.lock().unwrap_or_else(PoisonError::into_inner);
            subscribers.iter().for_each(|uid| wakers.wake(uid));
        });
        factory.start();
        Entry { informer, stop, pods }
    }

    /// The pod needs none of them any more.
    pub fn release(&self, pod_uid: &str) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|_, entry| {
            let mut pods = entry.pods.lock().unwrap_or_else(PoisonError::into_inner);
            pods.remove(pod_uid);
            if pods.is_empty() {
                entry.stop.cancel();
            }
            !pods.is_empty()
        });
    }
}
