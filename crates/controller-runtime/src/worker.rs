//! [`run_workers`]: takes keys from a queue and reconciles them.

use std::fmt::{Debug, Display};
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::queue::WorkQueue;

/// Conflicts and races pass with a few tries; what still fails after so many is something to be told.
const ODD_FAILURES: u32 = 8;

/// Works on the queue's keys, `workers` at a time, until the shutdown. A key whose reconciliation fails or
/// panics comes again, later each time. Work under way when the shutdown comes is finished.
pub async fn run_workers<K, E, Reconcile, Work>(
    name: &'static str,
    queue: &WorkQueue<K>,
    workers: usize,
    shutdown: &CancellationToken,
    reconcile: Reconcile,
) where
    K: Clone + Eq + Hash + Debug + Send + Sync + 'static,
    E: Display + Send,
    Reconcile: Fn(K) -> Work + Send + Sync + 'static,
    Work: Future<Output = Result<(), E>> + Send,
{
    let reconcile = Arc::new(reconcile);
    let mut tasks = JoinSet::new();
    for _ in 0..workers {
        let (queue, reconcile) = (queue.clone(), reconcile.clone());
        tasks.spawn(async move {
            while let Some(key) = queue.next().await {
                // The call itself is inside too: it may panic before the first await.
                let work = AssertUnwindSafe(async { reconcile(key.clone()).await }).catch_unwind();
                let outcome = work.await;
                match outcome {
                    Ok(Ok(())) => queue.forget(&key),
                    Ok(Err(error)) if queue.failures(&key) < ODD_FAILURES => {
                        tracing::debug!(controller = name, ?key, %error, "will try again");
                        queue.add_rate_limited(key.clone());
                    }
                    Ok(Err(error)) => {
                        tracing::warn!(controller = name, ?key, %error, "fails again and again");
                        queue.add_rate_limited(key.clone());
                    }
                    Err(_) => {
                        tracing::error!(controller = name, ?key, "reconciling panicked; will try again");
                        queue.add_rate_limited(key.clone());
                    }
                }
                queue.done(&key);
            }
        });
    }
    shutdown.cancelled().await;
    queue.shut_down();
    while tasks.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn errors_and_panics_come_again() {
        let queue = WorkQueue::new();
        let shutdown = CancellationToken::new();
        let calls = Arc::new(AtomicUsize::new(0));
        queue.add("key");
        run_workers("test", &queue, 2, &shutdown.clone(), move |_| {
            let (calls, shutdown) = (calls.clone(), shutdown.clone());
            async move {
                match calls.fetch_add(1, Ordering::SeqCst) {
                    0 => Err("an error"),
                    1 => panic!("a panic"),
                    _ => {
                        shutdown.cancel();
                        Ok(())
                    }
                }
            }
        })
        .await;
    }
}
