//! Tells kubelets how long they may use what they know of Secrets and ConfigMaps before they ask again: longer in
//! larger clusters, so that all their questions are no load.

use std::sync::{Arc, Mutex, PoisonError};

use api::Object;
use api::core::v1::Node;
use client::PatchType;
use controller_runtime::{Event, Informer, WorkQueue};
use serde_json::json;

use crate::Error;
use crate::context::Context;
use crate::objects::annotation;

/// Upstream: cmd/kube-controller-manager/app/core.go startTTLController
const WORKERS: usize = 5;
const TTL: &str = "node.alpha.kubernetes.io/ttl";

/// Sizes of clusters and their seconds. They overlap, so that a cluster at an edge does not go to and fro.
///
/// Upstream: pkg/controller/ttl/ttl_controller.go ttlBoundaries
const STEPS: [(std::ops::RangeInclusive<usize>, u32); 5] =
    [(0..=100, 0), (90..=500, 15), (450..=1000, 30), (900..=2000, 60), (1800..=usize::MAX, 300)];

/// The step that a cluster of so many nodes is on, coming from another.
fn step(from: usize, nodes: usize) -> usize {
    let mut step = from;
    while nodes > *STEPS[step].0.end() {
        step += 1;
    }
    while nodes < *STEPS[step].0.start() {
        step -= 1;
    }
    step
}

struct Controller {
    nodes: Informer<Node>,
    step: Mutex<usize>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller { nodes: context.informers.informer(), step: Mutex::new(0) });
    if !context.synced().await {
        return;
    }
    let queue = WorkQueue::new();
    let (this, keys) = (controller.clone(), queue.clone());
    controller.nodes.subscribe(move |event| {
        let all = !matches!(event, Event::Updated { .. }) && this.resize();
        if all {
            this.nodes.list().iter().for_each(|node| keys.add(node.name().to_owned()));
        } else if !matches!(event, Event::Deleted(_)) {
            keys.add(event.object().name().to_owned());
        }
    });
    context.work(&controller, &queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    fn step(&self) -> std::sync::MutexGuard<'_, usize> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True when another step holds for all nodes now.
    fn resize(&self) -> bool {
        let mut current = self.step();
        let next = step(*current, self.nodes.len());
        std::mem::replace(&mut *current, next) != next
    }

    async fn reconcile(self: Arc<Self>, name: String) -> Result<(), Error> {
        let Some(node) = self.nodes.get(&name) else { return Ok(()) };
        let seconds = STEPS[*self.step()].1.to_string();
        if annotation(&*node, TTL) == Some(&seconds) {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": {TTL: seconds}}});
        Ok(self.nodes.patch(&node, None, PatchType::Merge, &patch).await.map(drop)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_kept_while_its_size_allows() {
        for (from, nodes, expected) in [
            (0, 0, 0),
            (0, 100, 0),
            (0, 101, 1),
            (1, 95, 1),
            (1, 89, 0),
            (0, 5000, 4),
            (4, 1700, 3),
            (4, 1, 0),
        ] {
            assert_eq!(step(from, nodes), expected, "{nodes} nodes after step {from}");
        }
    }
}
