//! Creating and deleting the pods of an owner, told as events of the owner.

use std::sync::Arc;

use api::Object;
use api::core::v1::Pod;
use api::meta::Time;
use client::DeleteOptions;
use controller_runtime::{Deletions, Event, EventRecorder, Informer};
use jiff::Timestamp;

use crate::context::Context;
use crate::objects::{is_deleting, namespace_is_terminating};
use crate::ownership::add_index;

/// Upstream: pkg/controller/controller_utils.go RealPodControl
pub(crate) struct PodControl {
    pub pods: Informer<Pod>,
    pub events: EventRecorder,
    context: Context,
    deletions: Deletions,
}

impl PodControl {
    pub fn new(context: &Context, component: &str) -> Self {
        let pods = context.informers.informer::<Pod>();
        add_index(&pods);
        PodControl {
            pods,
            events: context.events(component),
            context: context.clone(),
            deletions: Deletions::default(),
        }
    }

    /// To be told of every event of pods, before anything is decided from it.
    pub fn observe(&self, event: &Event<Pod>) {
        self.deletions.observe(event, is_deleting);
    }

    /// The pods as they will be known soon: those whose deletion has been asked for are marked so.
    pub fn foresee(&self, pods: Vec<Arc<Pod>>, now: Timestamp) -> Vec<Arc<Pod>> {
        let mut pods = pods;
        for pod in &mut pods {
            if !is_deleting(&**pod) && self.deletions.contains(pod.uid()) {
                Arc::make_mut(pod).metadata.deletion_timestamp = Some(Time(now));
            }
        }
        pods
    }

    /// `None` where nothing can be made any more, and nothing needs to be.
    pub async fn create<O: Object>(&self, owner: &O, pod: &Pod) -> Result<Option<Arc<Pod>>, client::Error> {
        match self.pods.create(pod).await {
            Ok(created) => {
                let message = format!("Created pod: {}", created.name());
                self.events.normal(owner, "SuccessfulCreate", message);
                Ok(Some(created))
            }
            Err(error) if namespace_is_terminating(&error) => Ok(None),
            Err(error) => {
                self.events.warning(owner, "FailedCreate", format!("Error creating: {error}"));
                Err(error)
            }
        }
    }

    pub async fn delete<O: Object>(&self, owner: &O, pod: &Pod) -> Result<(), client::Error> {
        self.delete_silently(pod, |outcome| match outcome {
            Ok(()) => self.events.normal(owner, "SuccessfulDelete", format!("Deleted pod: {}", pod.name())),
            Err(error) => {
                self.events.warning(owner, "FailedDelete", format!("Error deleting: {error}"));
            }
        })
        .await
    }

    /// Deletes the pod and lets the caller tell of it in its own words. A pod that is gone is told of by nobody.
    pub async fn delete_silently(
        &self,
        pod: &Pod,
        tell: impl FnOnce(Result<(), &client::Error>),
    ) -> Result<(), client::Error> {
        self.deletions.begin(pod.uid());
        let options = DeleteOptions::uid(pod.uid());
        match self.context.client.delete::<Pod>(pod.namespace(), pod.name(), &options).await {
            Ok(()) => {
                tell(Ok(()));
                Ok(())
            }
            Err(error) => {
                self.deletions.undo(pod.uid());
                if error.is_not_found() {
                    return Ok(());
                }
                tell(Err(&error));
                Err(error)
            }
        }
    }
}
