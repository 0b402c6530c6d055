//! One probe of one container: when it looks, and what becomes of what it sees.

use std::sync::Arc;
use std::time::Duration;

use api::core::v1::{Container, Pod, Probe};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::metrics::Labels;
use super::run::{Attempt, Outcome};
use super::state::ProbeState;
use super::{Board, Key, ProbeKind, Tools};
use crate::actions::ProbeResult;
use crate::events::PodEvents;

/// A container that started less than this ago is still being readied, and that it is not ready is no news.
/// Upstream's kubelet would not have seen it run yet: it lists containers once a second.
const INFANCY: Duration = Duration::from_secs(1);
/// How soon an infant is looked at again; every time twice as long.
const FIRST_RETRY: Duration = Duration::from_millis(50);

pub(super) struct Task {
    pub tools: Tools,
    pub waker: Arc<Notify>,
    pub board: Arc<Board>,
    pub key: Key,
    pub waits_for_start: bool,
    pub pod: Arc<Pod>,
    pub container: Container,
    pub probe: Probe,
    pub pod_ip: String,
    pub started_at: i64,
    /// A former kubelet has probed it already.
    pub adopted: bool,
    pub initial: Option<ProbeResult>,
}

/// When to look next, after having looked at `looked`. `infant` has the age of a container whose readiness has
/// failed and the wait before that look.
fn next_look(
    looked: Instant,
    now: Instant,
    period: Duration,
    infant: Option<(Duration, Duration)>,
) -> Instant {
    let regular = looked + period;
    match infant {
        // The last of these looks is when upstream's kubelet would look first.
        Some((age, wait)) => regular.min(now + wait.min(INFANCY.saturating_sub(age))),
        None => regular.max(now),
    }
}

impl Task {
    // Upstream: pkg/kubelet/prober/worker.go run, doProbe
    pub(super) async fn run(self) {
        let seconds = |s: Option<i32>, or: u64| {
            Duration::from_secs(s.and_then(|s| u64::try_from(s).ok()).unwrap_or(or))
        };
        let period = seconds(self.probe.period_seconds, 10).max(Duration::from_secs(1));
        let timeout = seconds(self.probe.timeout_seconds, 1);
        let alive = self.tools.clock.now().as_nanosecond() - i128::from(self.started_at);
        let alive = Duration::from_nanos(u64::try_from(alive).unwrap_or(0));
        let begun = Instant::now();
        if self.adopted {
            // All the probes of a node that begins anew would otherwise be made in one moment.
            tokio::time::sleep(period.mul_f64(rand::random::<f64>())).await;
        }
        let initial_delay = seconds(self.probe.initial_delay_seconds, 0);
        tokio::time::sleep_until(begun + initial_delay.saturating_sub(alive)).await;
        if self.waits_for_start {
            self.board.started(&self.key.0).await;
        }
        let mut state = ProbeState::new(
            self.initial,
            self.probe.success_threshold.unwrap_or(1).max(1) as u32,
            self.probe.failure_threshold.unwrap_or(3).max(1) as u32,
        );
        let labels = self.tools.metrics.labels(&self.pod, &self.container.name, self.key.1);
        let mut retry = FIRST_RETRY;
        loop {
            let looked = Instant::now();
            let age = alive + begun.elapsed();
            let outcome = self.attempt(timeout).run().await;
            let is_infant = self.key.1 == ProbeKind::Readiness && age < INFANCY;
            let infant = (is_infant && matches!(outcome, Outcome::Failure(_))).then_some((age, retry));
            retry *= 2;
            if infant.is_none() && self.take(outcome, &mut state, &labels, looked.elapsed()) {
                return std::future::pending().await;
            }
            tokio::time::sleep_until(next_look(looked, Instant::now(), period, infant)).await;
        }
    }

    /// Tells of an outcome. True when this probe has nothing more to find out about its container.
    fn take(&self, outcome: Outcome, state: &mut ProbeState, labels: &Labels, took: Duration) -> bool {
        labels.count(&outcome, took);
        let Some(success) = self.tell(outcome) else { return false };
        let Some(result) = state.observe(success) else { return false };
        self.board.set(&self.key, result);
        self.waker.notify_one();
        match self.key.1 {
            // The container restarts, or has started: either way this probe is over.
            ProbeKind::Startup => true,
            ProbeKind::Liveness => result == ProbeResult::Failure,
            ProbeKind::Readiness => false,
        }
    }

    fn attempt(&self, timeout: Duration) -> Attempt<'_> {
        Attempt {
            runtime: self.tools.runtime.as_ref(),
            container_id: &self.key.0,
            container: &self.container,
            probe: &self.probe,
            pod_ip: &self.pod_ip,
            timeout,
        }
    }

    /// Records what is worth an event; `None` when nothing can be said.
    fn tell(&self, outcome: Outcome) -> Option<bool> {
        let events = PodEvents { recorder: &self.tools.recorder, pod: &self.pod };
        let name = self.key.1.name();
        let warn = |reason: &str, message: String| events.warning(&self.container.name, reason, &message);
        match outcome {
            Outcome::Success => Some(true),
            Outcome::Warning(text) => {
                warn("ProbeWarning", format!("{name} probe warning: {text}"));
                Some(true)
            }
            Outcome::Failure(text) => {
                warn("Unhealthy", format!("{name} probe failed: {text}"));
                Some(false)
            }
            Outcome::Unknown(text) => {
                warn("Unhealthy", format!("{name} probe errored and resulted in unknown state: {text}"));
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn infants_are_looked_at_often_and_all_others_once_a_period() {
        let looked = Instant::now();
        let ms = Duration::from_millis;
        let period = Duration::from_secs(10);
        // (the look took, the infant's age and wait) and when the next look is, counted from this one.
        let cases = [
            (0, None, 10_000),
            (300, None, 10_000),
            (12_000, None, 12_000),
            (0, Some((0, 50)), 50),
            (0, Some((750, 800)), 250),
            (20, Some((100, 100)), 120),
        ];
        for (took, infant, want) in cases {
            let infant = infant.map(|(age, wait)| (ms(age), ms(wait)));
            let next = next_look(looked, looked + ms(took), period, infant);
            assert_eq!(next - looked, ms(want), "{took} {infant:?}");
        }
    }
}
