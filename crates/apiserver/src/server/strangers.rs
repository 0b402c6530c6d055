//! Connections that have asked nothing yet. There are never many: who opens thousands and says nothing loses the
//! oldest of them, and everybody else goes on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio_util::sync::CancellationToken;

/// A connection may have asked nothing until so many others came after it.
const MAX_STRANGERS: usize = 1024;

#[derive(Default)]
pub struct Strangers(Mutex<VecDeque<Weak<Stranger>>>);

/// A connection from its acceptance on.
#[derive(Default)]
pub struct Stranger {
    known: AtomicBool,
    /// The connection must end.
    pub dismissed: CancellationToken,
}

impl Stranger {
    /// The connection asked something.
    pub fn introduce(&self) {
        self.known.store(true, Ordering::Relaxed);
    }
}

impl Strangers {
    /// Takes in a new connection, and sends the oldest away that is too long without a request.
    pub fn admit(&self) -> Arc<Stranger> {
        let stranger = Arc::new(Stranger::default());
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back(Arc::downgrade(&stranger));
        if queue.len() > MAX_STRANGERS
            && let Some(oldest) = queue.pop_front().and_then(|oldest| oldest.upgrade())
            && !oldest.known.load(Ordering::Relaxed)
        {
            oldest.dismissed.cancel();
        }
        stranger
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_that_asked_nothing_goes_first() {
        let strangers = Strangers::default();
        let silent = strangers.admit();
        let known = strangers.admit();
        known.introduce();
        let others: Vec<_> = (0..MAX_STRANGERS - 2).map(|_| strangers.admit()).collect();
        assert!(!silent.dismissed.is_cancelled());
        let last = [strangers.admit(), strangers.admit()];
        assert!(silent.dismissed.is_cancelled());
        assert!(!known.dismissed.is_cancelled());
        assert!(others.iter().chain(&last).all(|other| !other.dismissed.is_cancelled()));
    }
}
