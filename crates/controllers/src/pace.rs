//! [`Pace`]: a burst of changes is told of in a few statuses rather than in one for each.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Nobody notices so little, and a rollout takes dozens of steps in it.
const BETWEEN: Duration = Duration::from_millis(100);
/// What is past is swept out when there is so much of it.
const MANY: usize = 1024;

/// When the status of each key was last written.
#[derive(Default)]
pub(crate) struct Pace(Mutex<HashMap<String, Instant>>);

impl Pace {
    /// How long the key's next status has to wait; `None` when it may be written now, which is noted.
    pub fn wait(&self, key: &str) -> Option<Duration> {
        let now = Instant::now();
        let mut written = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = written.get(key) {
            let wait = BETWEEN.saturating_sub(now - *last);
            if !wait.is_zero() {
                return Some(wait);
            }
        }
        if written.len() >= MANY {
            written.retain(|_, last| now - *last < BETWEEN);
        }
        written.insert(key.to_owned(), now);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_first_goes_at_once_and_the_others_together() {
        let pace = Pace::default();
        assert_eq!(pace.wait("a"), None);
        assert_eq!(pace.wait("b"), None);
        tokio::time::advance(Duration::from_millis(30)).await;
        assert_eq!(pace.wait("a"), Some(Duration::from_millis(70)));
        tokio::time::advance(Duration::from_millis(70)).await;
        assert_eq!(pace.wait("a"), None);
        assert_eq!(pace.wait("a"), Some(BETWEEN));
    }
}
