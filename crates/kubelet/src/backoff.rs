//! Exponential back-off by key, for restarts and image pulls.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

/// How long each key has to wait. Time is a parameter.
// Upstream: client-go/util/flowcontrol/backoff.go Backoff
#[derive(Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    entries: HashMap<String, Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: Duration,
    updated: Timestamp,
}

impl Backoff {
    pub fn new(initial: Duration, max: Duration) -> Self {
        Backoff { initial, max, entries: HashMap::new() }
    }

    /// How much of the wait is left, for something that last happened at `since`.
    pub fn remaining(&self, key: &str, since: Timestamp, now: Timestamp) -> Option<Duration> {
        let entry = self.entries.get(key).filter(|e| !self.expired(e, since))?;
        let passed = elapsed(since, now);
        entry.delay.checked_sub(passed).filter(|left| !left.is_zero())
    }

    /// The present delay of a key.
    pub fn delay(&self, key: &str) -> Duration {
        self.entries.get(key).map_or(Duration::ZERO, |e| e.delay)
    }

    /// When the key's wait began.
    pub fn updated(&self, key: &str) -> Option<Timestamp> {
        self.entries.get(key).map(|e| e.updated)
    }

    /// It happened again: the next wait is twice as long. A quiet time of twice the longest wait forgives all.
    pub fn next(&mut self, key: &str, at: Timestamp) {
        let delay = match self.entries.get(key).filter(|e| !self.expired(e, at)) {
            Some(entry) => (entry.delay * 2).min(self.max),
            None => self.initial,
        };
        self.entries.insert(key.to_owned(), Entry { delay, updated: at });
    }

    /// Forgets all keys of a pod, which all begin with its UID.
    pub fn forget(&mut self, prefix: &str) {
        self.entries.retain(|key, _| !key.starts_with(prefix));
    }

    fn expired(&self, entry: &Entry, at: Timestamp) -> bool {
        elapsed(entry.updated, at) > self.max * 2
    }
}

fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO)
}

/// A duration as Go prints it: `10s`, `1m20s`, `1.5s`, `320ms`.
pub fn go_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    let fraction = |whole: u128, rest: u128, unit: &str| {
        let rest = format!("{rest:03}");
        let rest = rest.trim_end_matches('0');
        if rest.is_empty() { format!("{whole}{unit}") } else { format!("{whole}.{rest}{unit}") }
    };
    if millis == 0 {
        return "0s".into();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (hours, minutes, seconds) = (millis / 3_600_000, millis / 60_000 % 60, millis / 1000 % 60);
    let seconds = fraction(seconds, millis % 1000, "s");
    match (hours, minutes) {
        (0, 0) => seconds,
        (0, _) => format!("{minutes}m{seconds}"),
        _ => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn delays_double_to_the_maximum_and_are_forgiven() {
        let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        assert_eq!(backoff.remaining("k", at(0), at(0)), None);
        let mut seen = Vec::new();
        for second in [0, 10, 30, 70, 150, 310, 610] {
            backoff.next("k", at(second));
            seen.push(backoff.delay("k").as_secs());
        }
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.remaining("k", at(610), at(700)), Some(Duration::from_secs(210)));
        assert_eq!(backoff.remaining("k", at(610), at(911)), None);
        backoff.next("k", at(2000));
        assert_eq!(backoff.delay("k").as_secs(), 10);
    }

    #[test]
    fn durations_print_as_in_go() {
        let cases = [
            (0, "0s"),
            (320, "320ms"),
            (10_000, "10s"),
            (1_500, "1.5s"),
            (80_000, "1m20s"),
            (300_000, "5m0s"),
        ];
        for (millis, want) in cases {
            assert_eq!(go_duration(Duration::from_millis(millis)), want);
        }
    }
}
