//! What a kubelet does when its machine is told to shut down: it holds the shutdown up for as long as it was given,
//! says that the node is not ready, takes no more pods, and ends those that it has, group after group by their
//! priority.
//!
//! [`periods`] decides who goes when, purely; [`run`] hears of the shutdown from [`logind`] and carries out.
// Upstream: pkg/kubelet/nodeshutdown

mod logind;
pub mod periods;
mod record;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::core::v1::Pod;
use controller_runtime::EventType;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::core::Core;
use crate::status::Verdict;
use crate::{Error, node, pod};
use logind::Logind;
use periods::{Group, Period};
pub use record::Record;

/// How long to wait before the watch for shutdowns is taken up again.
// Upstream: pkg/kubelet/nodeshutdown/nodeshutdown_manager_linux.go dbusReconnectPeriod
const RECONNECT: Duration = Duration::from_secs(1);

const MESSAGE: &str = "Pod was terminated in response to imminent node shutdown.";

/// What the rest of the kubelet may know of it.
pub struct Shutdown {
    begun: watch::Sender<bool>,
    /// The pods that are waited for, by UID.
    leaving: watch::Sender<BTreeSet<String>>,
}

impl Default for Shutdown {
    fn default() -> Self {
        Shutdown { begun: watch::Sender::new(false), leaving: watch::Sender::default() }
    }
}

impl Shutdown {
    /// Whether the machine is shutting down.
    pub fn has_begun(&self) -> bool {
        *self.begun.borrow()
    }

    /// A view of [`Self::has_begun`] that tells of changes.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.begun.subscribe()
    }

    /// The refusal of a pod that comes too late.
    pub fn refusal(&self) -> Option<Verdict> {
        let message = "Pod was rejected as the node is shutting down.".to_owned();
        self.has_begun().then(|| Verdict { reason: "NodeShutdown".into(), message, ..Default::default() })
    }

    /// Nothing of the pod runs or is mounted any more.
    pub fn left(&self, pod_uid: &str) {
        self.leaving.send_if_modified(|leaving| leaving.remove(pod_uid));
    }
}

/// Waits for shutdowns of the machine until the kubelet's own.
pub async fn run(core: Arc<Core>, shutdown: CancellationToken) -> Result<(), Error> {
    let periods = core.config.shutdown.periods();
    if periods.is_empty() {
        shutdown.cancelled().await;
        return Ok(());
    }
    let watching = async {
        // A machine that has no logind at the start will not get one.
        let mut has_one = false;
        loop {
            match logind::connect().await {
                Ok(logind) => {
                    has_one = true;
                    if let Err(error) = watch_machine(&core, &periods, logind).await {
                        tracing::warn!(%error, "cannot watch for shutdowns of the machine");
                    }
                }
                Err(error) if !has_one => {
                    tracing::error!(%error, "cannot watch for shutdowns of the machine");
                    return std::future::pending::<()>().await;
                }
                Err(error) => tracing::debug!(%error, "cannot watch for shutdowns of the machine yet"),
            }
            tokio::time::sleep(RECONNECT).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = watching => {}
    }
    Ok(())
}

/// Holds shutdowns up and deals with them, until the bus is gone.
// Upstream: pkg/kubelet/nodeshutdown/nodeshutdown_manager_linux.go start
async fn watch_machine(core: &Core, periods: &[Period], logind: Logind) -> Result<(), logind::Error> {
    let wanted = Duration::from_secs(periods.iter().map(|period| period.seconds).sum());
    logind.allow_delay(wanted).await?;
    let mut lock = Some(logind.inhibit().await?);
    let mut events = logind.shutdowns().await?;
    while let Some(begins) = events.next().await {
        let what = if begins { "event" } else { "cancellation" };
        let about = node::reference(&core.config.node_name);
        let message = format!("Shutdown manager detected shutdown {what}");
        core.recorder.event_about(about, EventType::Normal, "NodeShutdown", message);
        core.shutdown.begun.send_replace(begins);
        if begins {
            end_pods(core, periods).await;
            // The machine goes on with its shutdown as soon as nobody holds it up.
            drop(lock.take());
        } else {
            lock = Some(logind.inhibit().await?);
        }
    }
    drop(lock);
    Ok(())
}

/// Ends all pods in their order.
async fn end_pods(core: &Core, periods: &[Period]) {
    let mut record = Record { start: Some(core.config.clock.now()), end: None };
    record.write(core.paths.root());
    for group in periods::groups(periods, &core.alive()) {
        end_group(core, &group).await;
    }
    record.end = Some(core.config.clock.now());
    record.write(core.paths.root());
}

async fn end_group(core: &Core, group: &Group) {
    if group.pods.is_empty() {
        return;
    }
    let mut leaving = core.shutdown.leaving.subscribe();
    core.shutdown.leaving.send_replace(group.pods.iter().map(|pod| pod.uid().to_owned()).collect());
    for pod in &group.pods {
        core.pressure.condemn(pod.uid(), verdict(pod, group.seconds));
        core.wakers.wake(pod.uid());
    }
    let patience = Duration::from_secs(group.seconds);
    let all_left = leaving.wait_for(BTreeSet::is_empty);
    if tokio::time::timeout(patience, all_left).await.is_err() {
        tracing::warn!(
            priority = group.priority,
            seconds = group.seconds,
            "pods have not ended in their time before the shutdown"
        );
    }
}

// Upstream: pkg/kubelet/nodeshutdown/nodeshutdown_manager.go killPods
fn verdict(pod: &Pod, seconds: u64) -> Verdict {
    let most = i64::try_from(seconds).unwrap_or(i64::MAX);
    Verdict {
        reason: "Terminated".into(),
        message: MESSAGE.into(),
        disrupted: true,
        grace_seconds: Some(pod::grace_period_seconds(pod).min(most)),
    }
}

#[cfg(test)]
mod tests;
