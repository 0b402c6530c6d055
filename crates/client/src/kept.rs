//! Answers that are good for a while.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// No more answers than this are kept, each for as long as it was put in for.
pub struct Kept<T> {
    most: usize,
    answers: Mutex<HashMap<String, (T, Instant)>>,
}

impl<T: Clone> Kept<T> {
    pub fn new(most: usize) -> Self {
        Kept { most, answers: Mutex::default() }
    }

    pub fn get(&self, key: &str) -> Option<T> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(key).filter(|(_, until)| Instant::now() < *until).map(|(answer, _)| answer.clone())
    }

    /// Keeps an answer; when there are too many, it takes the place of those that end first.
    pub fn put(&self, key: String, answer: T, time: Duration) {
        if time.is_zero() {
            return;
        }
        let now = Instant::now();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= self.most {
            answers.retain(|_, (_, until)| now < *until);
        }
        if answers.len() >= self.most {
            let first = answers.iter().min_by_key(|(_, (_, until))| *until).map(|(key, _)| key.clone());
            first.and_then(|first| answers.remove(&first));
        }
        answers.insert(key, (answer, now + time));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_end_and_make_room() {
        let kept = Kept::new(2);
        kept.put("a".into(), 1, Duration::from_secs(10));
        kept.put("b".into(), 2, Duration::from_secs(20));
        kept.put("none".into(), 0, Duration::ZERO);
        assert_eq!((kept.get("a"), kept.get("b"), kept.get("none")), (Some(1), Some(2), None));
        kept.put("c".into(), 3, Duration::from_secs(30));
        assert_eq!((kept.get("a"), kept.get("b"), kept.get("c")), (None, Some(2), Some(3)));
        tokio::time::advance(Duration::from_secs(20)).await;
        assert_eq!((kept.get("b"), kept.get("c")), (None, Some(3)));
    }
}
