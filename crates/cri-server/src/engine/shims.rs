//! Watching shims: what they tell of ends, and what to do when one is gone itself.

use std::sync::Arc;

use super::sandbox::Sandbox;
use super::{Container, Engine, lock};
use crate::shim::protocol::{Exit, Kind, Request, Response, State};

impl Engine {
    /// Follows a shim until it or the engine ends.
    pub(super) fn watch_shim(self: &Arc<Self>, sandbox: Arc<Sandbox>) {
        let engine = self.clone();
        self.tasks.spawn(async move {
            let shutdown = engine.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = engine.follow(&sandbox) => engine.shim_gone(&sandbox).await,
            }
        });
    }

    async fn follow(&self, sandbox: &Sandbox) {
        let Ok(mut connection) = sandbox.shim.open(&Request::Subscribe, &[]).await else { return };
        while let Ok(Some((Kind::Message, payload))) = connection.reader.frame().await {
            match serde_json::from_slice::<Response>(&payload) {
                Ok(Response::State(state)) => self.learn(&state).await,
                Ok(Response::Exited(exit)) => self.exit(exit).await,
                _ => {}
            }
        }
    }

    /// Takes over what a shim says of its containers: the pids, and the ends that nobody heard of.
    pub(super) async fn learn(&self, state: &State) {
        for known in &state.containers {
            let Ok(container) = self.container(&known.id) else { continue };
            container.change(|phase| {
                phase.pid = known.pid;
                if phase.started_at == 0 {
                    phase.started_at = known.started_nanos;
                }
            });
            if let Some(exit) = &known.exit {
                self.exit(exit.clone()).await;
            }
        }
    }

    async fn exit(&self, exit: Exit) {
        if let Some(exec) = &exit.exec {
            if let Some(waiter) = lock(&self.execs).remove(exec) {
                // Who asked may have left.
                let _ = waiter.send(exit.code);
            }
            return;
        }
        if let Ok(container) = self.container(&exit.id) {
            self.container_exited(&container, exit.code, exit.finished_nanos).await;
        }
    }

    pub(super) async fn container_exited(&self, container: &Arc<Container>, code: i32, at: i64) {
        let group = container.cgroup();
        // Processes of a shared pid namespace do not die with the first of their container.
        let counted = tokio::task::spawn_blocking(move || {
            let killed = group.kill_all();
            (group.oom_kills(), killed)
        })
        .await;
        let oom_kills = match counted {
            Ok((oom_kills, Ok(()))) => oom_kills,
            Ok((oom_kills, Err(error))) => {
                tracing::warn!(container = %container.id, %error, "processes of an ended container live on");
                oom_kills
            }
            Err(_) => 0,
        };
        // Upstream: containerd's and the kubelet's words for the reasons
        let reason = match code {
            0 => "Completed",
            _ if oom_kills > 0 => "OOMKilled",
            _ => "Error",
        };
        self.ended(container, code, at, reason, "");
    }

    /// A shim that is gone without having been told to: its containers cannot be supervised any more, so they
    /// end, and the pod is no longer ready; the kubelet makes it anew.
    async fn shim_gone(&self, sandbox: &Arc<Sandbox>) {
        if !lock(&self.pods).sandboxes.contains_key(&sandbox.id) || !sandbox.dir.join("sandbox.json").exists()
        {
            return;
        }
        // A sandbox that is being stopped or removed takes its shim along: then this is no accident.
        let _gate = sandbox.gate.lock().await;
        if !lock(&self.pods).sandboxes.contains_key(&sandbox.id) {
            return;
        }
        tracing::warn!(sandbox = %sandbox.id, "the shim of a pod died");
        self.bury(sandbox).await;
    }

    /// Ends what a dead shim left.
    pub(super) async fn bury(&self, sandbox: &Arc<Sandbox>) {
        for container in self.containers_of(&sandbox.id) {
            if container.phase().exit.is_some() {
                continue;
            }
            let left: Option<Exit> = super::read_json(&container.dir.join("exit.json"));
            match left {
                Some(exit) => self.container_exited(&container, exit.code, exit.finished_nanos).await,
                None => {
                    let group = container.cgroup();
                    let killed = tokio::task::spawn_blocking(move || group.kill_all()).await;
                    if !matches!(killed, Ok(Ok(()))) {
                        tracing::warn!(container = %container.id, "an orphaned container could not be killed");
                    }
                    self.ended(&container, 255, self.now(), "Unknown", "the container's shim died");
                }
            }
        }
        if let Err(error) = sandbox.update(|record| record.ready = false) {
            tracing::warn!(sandbox = %sandbox.id, %error, "the state of a pod was not written down");
        }
    }
}
