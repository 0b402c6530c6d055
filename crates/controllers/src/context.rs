//! What every controller is given.

use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use api::Object;
use client::{Client, DeleteOptions};
use controller_runtime::{Clock, EventRecorder, InformerFactory, WorkQueue, run_workers};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::universe::Universe;
use crate::{Config, Error, table};

/// The world as a controller sees it. Clones share everything.
#[derive(Clone)]
pub(crate) struct Context {
    /// The controller's, as the table has it.
    pub name: &'static str,
    pub client: Client,
    pub informers: InformerFactory,
    /// The metadata of everything.
    pub universe: Arc<Universe>,
    pub config: Arc<Config>,
    pub shutdown: CancellationToken,
    /// Tasks that are awaited at shutdown.
    pub tasks: TaskTracker,
}

impl Context {
    pub fn clock(&self) -> &Clock {
        &self.config.clock
    }

    /// Deletes this very object. One that is gone, or has given its name to another, is as good as deleted.
    pub async fn delete<T: Object>(&self, object: &T) -> Result<(), client::Error> {
        let options = DeleteOptions::uid(object.uid());
        match self.client.delete::<T>(object.namespace(), object.name(), &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits until all that the controller has informers of is known. False at the shutdown.
    pub async fn synced(&self) -> bool {
        self.informers.synced().await
    }

    /// The end of every controller: waits until all that it has informers of is known, then reconciles the queue's
    /// keys until the shutdown, `workers` at a time unless the options say otherwise.
    pub async fn work<C, K, Reconcile, Work>(
        &self,
        controller: &Arc<C>,
        queue: &WorkQueue<K>,
        workers: usize,
        reconcile: Reconcile,
    ) where
        C: Send + Sync + 'static,
        K: Clone + Eq + Hash + Debug + Send + Sync + 'static,
        Reconcile: Fn(Arc<C>, K) -> Work + Send + Sync + 'static,
        Work: Future<Output = Result<(), Error>> + Send,
    {
        if !self.synced().await {
            return;
        }
        let workers = self.config.options.workers.get(self.name).copied().unwrap_or(workers);
        queue.watch(table::queue_name(self.name), &self.config.metrics);
        let controller = controller.clone();
        let reconcile = move |key| reconcile(controller.clone(), key);
        run_workers(self.name, queue, workers, &self.shutdown, reconcile).await;
    }

    /// A recorder of events under the name that upstream's controller uses.
    pub fn events(&self, component: &str) -> EventRecorder {
        let (recorder, delivery) =
            EventRecorder::new(self.client.clone(), component, "", self.clock().clone());
        self.tasks.spawn(delivery.run(self.shutdown.clone()));
        recorder
    }
}
