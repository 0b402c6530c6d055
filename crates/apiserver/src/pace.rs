//! [`Pace`]: a bucket of turns that fills as time goes on.
//!
//! Upstream: client-go/util/flowcontrol/throttle.go NewTokenBucketRateLimiter

use std::time::Duration;

use tokio::time::Instant;

/// How fast a bucket fills.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Throttle {
    pub per_second: f64,
    /// How many turns there are after a quiet while.
    pub burst: u32,
}

#[derive(Clone, Debug)]
pub struct Pace {
    throttle: Throttle,
    /// Below zero for turns that were promised.
    turns: f64,
    /// When they were counted.
    at: Instant,
}

impl Pace {
    pub fn new(throttle: Throttle, now: Instant) -> Self {
        Pace { throttle, turns: f64::from(throttle.burst), at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        let filled = self.turns + passed * self.throttle.per_second;
        self.turns = filled.min(f64::from(self.throttle.burst));
        self.at = now;
    }

    /// Takes a turn if there is one.
    pub fn try_take(&mut self, now: Instant) -> bool {
        self.fill(now);
        let there_is = self.turns >= 1.0;
        if there_is {
            self.turns -= 1.0;
        }
        there_is
    }

    /// Takes a turn, and says how long to wait for it.
    pub fn take(&mut self, now: Instant) -> Duration {
        self.fill(now);
        self.turns -= 1.0;
        Duration::try_from_secs_f64((-self.turns).max(0.0) / self.throttle.per_second).unwrap_or_default()
    }

    /// When a turn was last taken.
    pub fn at(&self) -> Instant {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_come_back_as_time_goes_on() {
        let now = Instant::now();
        let later = |milliseconds| now + Duration::from_millis(milliseconds);
        let throttle = Throttle { per_second: 10.0, burst: 2 };
        let mut pace = Pace::new(throttle, now);
        let waits = [0, 0, 0, 1000].map(|at| pace.take(later(at)).as_millis());
        assert_eq!(waits, [0, 0, 100, 0]);
        let mut pace = Pace::new(throttle, now);
        let taken = [0, 0, 0, 50, 100, 150].map(|at| pace.try_take(later(at)));
        assert_eq!(taken, [true, true, false, false, true, false]);
    }
}
