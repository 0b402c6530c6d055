//! Carrying out plans: batches that start slow, retries of conflicts, deletions remembered until seen.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use client::Error;
use futures::stream::{FuturesUnordered, StreamExt};

use crate::store::{Cached, Event};

/// Calls `act` for 0 to `count`, first one alone, then twice as many at once each time, and stops after a batch
/// in which one failed: what is refused once is likely refused a thousand times. Says how many did well, and
/// the first error.
///
/// Upstream: pkg/controller/replicaset/replica_set.go slowStartBatch
pub async fn slow_start<Act, Work>(count: usize, act: Act) -> (usize, Option<Error>)
where
    Act: Fn(usize) -> Work,
    Work: Future<Output = Result<(), Error>>,
{
    let mut successes = 0;
    let mut next = 0;
    let mut batch = 1;
    while next < count {
        let end = count.min(next + batch);
        let mut running: FuturesUnordered<_> = (next..end).map(&act).collect();
        let mut failure = None;
        while let Some(outcome) = running.next().await {
            match outcome {
                Ok(()) => successes += 1,
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        if failure.is_some() {
            return (successes, failure);
        }
        next = end;
        batch *= 2;
    }
    (successes, None)
}

/// Runs a read-modify-write again while it loses against others, at most five times.
///
/// Upstream: client-go/util/retry/util.go DefaultRetry
pub async fn retry_on_conflict<T, Act, Work>(act: Act) -> Result<T, Error>
where
    Act: Fn() -> Work,
    Work: Future<Output = Result<T, Error>>,
{
    let mut left = 4;
    loop {
        match act().await {
            Err(error) if error.is_conflict() && left > 0 => left -= 1,
            outcome => return outcome,
        }
    }
}

/// Objects that this process has deleted and whose deletion its cache does not show yet, by uid: so that nobody
/// deletes another one in their place.
#[derive(Default)]
pub struct Deletions(Mutex<HashSet<String>>);

impl Deletions {
    fn lock(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Before the delete is sent, so that the event cannot come first.
    pub fn begin(&self, uid: &str) {
        self.lock().insert(uid.to_owned());
    }

    /// The delete failed.
    pub fn undo(&self, uid: &str) {
        self.lock().remove(uid);
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.lock().contains(uid)
    }

    /// What every event of the kind is told to; `deleting` says whether an object is marked deleted.
    pub fn observe<T: Cached>(&self, event: &Event<T>, deleting: impl Fn(&T) -> bool) {
        let seen = match event {
            Event::Deleted(_) => true,
            Event::Added(object) | Event::Updated { new: object, .. } => deleting(object),
        };
        if seen {
            self.lock().remove(event.object().uid());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[tokio::test]
    async fn batches_double_and_stop_at_a_failure() {
        for (count, fails_at, done, called) in
            [(0, None, 0, 0), (10, None, 10, 10), (10, Some(1), 2, 3), (10, Some(0), 0, 1)]
        {
            let calls = RefCell::new(0);
            let (successes, error) = slow_start(count, |i| {
                *calls.borrow_mut() += 1;
                let outcome = if Some(i) == fails_at { Err(Error::Config("no".into())) } else { Ok(()) };
                async { outcome }
            })
            .await;
            assert_eq!((successes, error.is_some()), (done, fails_at.is_some()));
            assert_eq!(*calls.borrow(), called);
        }
    }
}
