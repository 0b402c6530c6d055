//! Everything that the server holds, as metadata: what the garbage collector and the namespace controller share.
//! Follows discovery: a custom kind is watched when its definition comes, and forgotten when that goes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apimachinery::GroupResource;
use client::{Client, Resource};
use controller_runtime::{ApiResource, Event, Informer, InformerFactory, Metadata, discover};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// What is told of a change of any object.
pub(crate) type Observer = dyn Fn(&Arc<ApiResource>, &Event<Metadata>) + Send + Sync;

#[derive(Default)]
struct State {
    known: HashMap<Resource, (Arc<ApiResource>, Informer<Metadata>)>,
    /// All that can be listed and deleted, watched or not.
    deletable: Vec<Arc<ApiResource>>,
    observers: Vec<Arc<Observer>>,
    /// Group versions that discovery could not ask.
    failed: Vec<String>,
}

pub(crate) struct Universe {
    client: Client,
    informers: InformerFactory,
    shutdown: CancellationToken,
    state: Mutex<State>,
    /// A definition of kinds changed.
    changed: Arc<Notify>,
    discovered: watch::Sender<bool>,
}

/// Events are not watched: there are many, nobody owns them, and they age away by themselves.
///
/// Upstream: pkg/controller/garbagecollector/graph_builder.go DefaultIgnoredResources
fn is_watched(resource: &ApiResource) -> bool {
    let gvr = &resource.resource.gvr;
    let event = gvr.resource == "events" && (gvr.group.is_empty() || gvr.group == "events.k8s.io");
    !event && is_deletable(resource) && resource.can("watch")
}

fn is_deletable(resource: &ApiResource) -> bool {
    resource.can("delete") && resource.can("list")
}

/// Whether objects of the resource define kinds.
fn defines_kinds(resource: &ApiResource) -> bool {
    let gvr = &resource.resource.gvr;
    matches!(
        (&*gvr.group, &*gvr.resource),
        ("apiextensions.k8s.io", "customresourcedefinitions") | ("apiregistration.k8s.io", "apiservices")
    )
}

impl Universe {
    pub fn new(client: Client, informers: InformerFactory, shutdown: CancellationToken) -> Arc<Self> {
        Arc::new(Universe {
            client,
            informers,
            shutdown,
            state: Mutex::default(),
            changed: Arc::default(),
            discovered: watch::Sender::new(false),
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows discovery until the shutdown.
    pub async fn run(self: Arc<Self>) {
        let mut delay = Duration::from_millis(100);
        loop {
            let refreshed = tokio::select! {
                () = self.shutdown.cancelled() => return,
                refreshed = self.refresh() => refreshed,
            };
            if refreshed {
                delay = Duration::from_millis(100);
                tokio::select! {
                    () = self.shutdown.cancelled() => return,
                    () = self.changed.notified() => {}
                }
            } else {
                delay = (delay * 2).min(Duration::from_secs(30));
            }
            // Discovery follows a definition with a moment's delay, and definitions come in bursts.
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
        }
    }

    /// True when all groups answered.
    async fn refresh(&self) -> bool {
        let (resources, failed) = match discover(&self.client).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "discovery failed");
                return false;
            }
        };
        let complete = failed.is_empty();
        let mut state = self.lock();
        let unasked = state
            .deletable
            .drain(..)
            .filter(|r| failed.contains(&r.resource.gvr.group_version().to_string()));
        let unasked: Vec<_> = unasked.collect();
        state.deletable = resources.iter().filter(|r| is_deletable(r)).cloned().map(Arc::new).collect();
        state.deletable.extend(unasked);
        state.deletable.sort_by(|a, b| a.resource.gvr.cmp(&b.resource.gvr));
        let watched: Vec<_> = resources.into_iter().filter(is_watched).collect();
        // What a group that did not answer serves is unknown: it is kept.
        let gone: Vec<_> = state
            .known
            .keys()
            .filter(|known| {
                let group_version = known.gvr.group_version().to_string();
                !failed.contains(&group_version) && !watched.iter().any(|w| w.resource == **known)
            })
            .cloned()
            .collect();
        for resource in gone {
            state.known.remove(&resource);
            self.informers.forget_metadata(&resource);
        }
        for resource in watched {
            if !state.known.contains_key(&resource.resource) {
                self.follow(&mut state, Arc::new(resource));
            }
        }
        state.failed = failed;
        drop(state);
        self.discovered.send_replace(true);
        complete
    }

    fn follow(&self, state: &mut State, resource: Arc<ApiResource>) {
        let informer = self.informers.metadata(resource.resource.clone());
        for observer in &state.observers {
            observe(&informer, &resource, observer);
        }
        if defines_kinds(&resource) {
            let changed = self.changed.clone();
            informer.subscribe(move |_| changed.notify_one());
        }
        state.known.insert(resource.resource.clone(), (resource, informer));
    }

    /// Tells the observer of everything that is, and of every change.
    pub fn subscribe(&self, observer: impl Fn(&Arc<ApiResource>, &Event<Metadata>) + Send + Sync + 'static) {
        let observer: Arc<Observer> = Arc::new(observer);
        let mut state = self.lock();
        for (resource, informer) in state.known.values() {
            observe(informer, resource, &observer);
        }
        state.observers.push(observer);
    }

    /// Waits until what the first discovery found is known. False at the shutdown.
    pub async fn synced(&self) -> bool {
        let mut discovered = self.discovered.subscribe();
        tokio::select! {
            () = self.shutdown.cancelled() => return false,
            _ = discovered.wait_for(|discovered| *discovered) => {}
        }
        let informers: Vec<_> = self.lock().known.values().map(|(_, informer)| informer.clone()).collect();
        for informer in informers {
            if !informer.synced().await {
                return false;
            }
        }
        true
    }

    /// The resource of a kind, in whichever version it is watched.
    pub fn resource_of(&self, api_version: &str, kind: &str) -> Option<Arc<ApiResource>> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        let state = self.lock();
        let mut all = state.known.values().map(|(resource, _)| resource);
        all.find(|resource| resource.kind == kind && resource.resource.gvr.group == group).cloned()
    }

    /// All namespaced resources that can be deleted, and the group versions that are unknown.
    pub fn namespaced(&self) -> (Vec<Arc<ApiResource>>, Vec<String>) {
        let state = self.lock();
        let namespaced = state.deletable.iter().filter(|resource| resource.resource.namespaced);
        (namespaced.cloned().collect(), state.failed.clone())
    }

    /// How many objects of a resource a namespace has; `None` when it is not watched.
    pub fn count(&self, resource: &GroupResource, namespace: &str) -> Option<usize> {
        let state = self.lock();
        let mut all = state.known.values();
        let (_, informer) = all.find(|(known, _)| known.resource.gvr.group_resource() == *resource)?;
        Some(informer.by_namespace(namespace).len())
    }

    /// Whether observers are told when an object of the resource goes.
    pub fn watches(&self, resource: &Resource) -> bool {
        self.lock().known.contains_key(resource)
    }
}

fn observe(informer: &Informer<Metadata>, resource: &Arc<ApiResource>, observer: &Arc<Observer>) {
    let (resource, observer) = (resource.clone(), observer.clone());
    informer.subscribe(move |event| observer(&resource, event));
}
