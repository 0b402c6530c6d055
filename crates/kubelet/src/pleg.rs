//! Wakes pods when their containers change: by the runtime's events, or by listing again and again what a runtime
//! has that tells none, as containerd before 1.7.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cri::v1 as pb;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::Error;
use crate::core::Core;
use crate::runtime::{self, Events, POD_UID, describe};

/// How often pods look at their containers although no event came.
const LOOK: Duration = Duration::from_secs(300);
/// How often a runtime without events is asked what it has.
// Upstream: pkg/kubelet/kubelet.go genericPlegRelistPeriod
const RELIST: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(10);

/// Follows the runtime until the shutdown.
// Upstream: pkg/kubelet/pleg/evented.go, pkg/kubelet/pleg/generic.go
pub async fn run(core: Arc<Core>, shutdown: CancellationToken) -> Result<(), Error> {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = follow(&core) => {}
    }
    Ok(())
}

async fn follow(core: &Core) {
    let mut delay = Duration::from_millis(100);
    loop {
        match core.runtime.events().await {
            Ok(events) => {
                delay = Duration::from_millis(100);
                if hear(core, events).await {
                    return relist(core).await;
                }
            }
            Err(error) if error.code() == tonic::Code::Unimplemented => return relist(core).await,
            Err(error) => {
                tracing::warn!(error = %describe(&error), "the runtime tells no events");
                // Until it does again, everybody looks for himself.
                core.wakers.wake_all();
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(LONGEST_DELAY);
            }
        }
    }
}

/// Passes events on until there are no more. True when the runtime has none to tell.
async fn hear(core: &Core, mut events: Events) -> bool {
    core.wakers.wake_all();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = look.tick() => core.wakers.wake_all(),
            event = events.next() => match event {
                Some(Ok(event)) => {
                    let metadata = event.pod_sandbox_status.and_then(|s| s.metadata);
                    match metadata.map(|m| m.uid) {
                        Some(uid) => wake(core, uid),
                        // An event of nobody may be anybody's.
                        None => core.wakers.wake_all(),
                    }
                }
                Some(Err(error)) => return error.code() == tonic::Code::Unimplemented,
                None => return false,
            },
        }
    }
}

fn wake(core: &Core, uid: String) {
    core.wakers.wake(&uid);
    // Nobody may be listening.
    let _ = core.changes.send(uid);
}

/// What a runtime has of each pod: its sandboxes and containers with their states.
type Seen = BTreeMap<String, Vec<(String, i32)>>;

async fn relist(core: &Core) {
    tracing::info!("the runtime tells no events, so it is asked every second what it has");
    let mut every = tokio::time::interval(RELIST);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut before = Seen::new();
    loop {
        every.tick().await;
        let Ok(now) = list(core).await else { continue };
        for uid in changed(&before, &now) {
            wake(core, uid);
        }
        before = now;
    }
}

async fn list(core: &Core) -> runtime::Result<Seen> {
    let (sandboxes, containers) =
        futures::try_join!(core.runtime.sandboxes(None), core.runtime.containers(None))?;
    let of_sandbox = |s: pb::PodSandbox| Some((s.labels.get(POD_UID)?.clone(), (s.id, s.state)));
    let of_container = |c: pb::Container| Some((c.labels.get(POD_UID)?.clone(), (c.id, c.state)));
    let sandboxes = sandboxes.into_iter().filter_map(of_sandbox);
    let mut seen = Seen::new();
    for (uid, state) in sandboxes.chain(containers.into_iter().filter_map(of_container)) {
        seen.entry(uid).or_default().push(state);
    }
    seen.values_mut().for_each(|states| states.sort());
    Ok(seen)
}

/// The pods of which something came, went or changed.
fn changed(before: &Seen, now: &Seen) -> Vec<String> {
    let gone = before.keys().filter(|uid| !now.contains_key(*uid));
    let other = now.iter().filter(|(uid, states)| before.get(*uid) != Some(states)).map(|(uid, _)| uid);
    gone.chain(other).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_whose_containers_changed_are_found() {
        let seen = |pods: &[(&str, &[(&str, i32)])]| -> Seen {
            let states =
                |all: &[(&str, i32)]| all.iter().map(|(id, state)| ((*id).to_owned(), *state)).collect();
            pods.iter().map(|(uid, all)| ((*uid).to_owned(), states(all))).collect()
        };
        let before = seen(&[("same", &[("a", 1)]), ("gone", &[("b", 1)]), ("ended", &[("c", 1)])]);
        let now = seen(&[("same", &[("a", 1)]), ("ended", &[("c", 2)]), ("new", &[])]);
        assert_eq!(changed(&before, &now), ["gone", "ended", "new"]);
        assert_eq!(changed(&now, &now), Vec::<String>::new());
    }
}
