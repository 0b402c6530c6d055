//! Thresholds: how many outcomes of one kind in a row make a result.

use crate::actions::ProbeResult;

#[derive(Clone, Debug)]
pub struct ProbeState {
    result: Option<ProbeResult>,
    last: Option<bool>,
    run: u32,
    success_threshold: u32,
    failure_threshold: u32,
}

impl ProbeState {
    pub fn new(initial: Option<ProbeResult>, success_threshold: u32, failure_threshold: u32) -> Self {
        ProbeState { result: initial, last: None, run: 0, success_threshold, failure_threshold }
    }

    /// Takes the outcome of an attempt; the result when it changes.
    pub fn observe(&mut self, success: bool) -> Option<ProbeResult> {
        self.run = if self.last == Some(success) { self.run.saturating_add(1) } else { 1 };
        self.last = Some(success);
        let (threshold, result) = if success {
            (self.success_threshold, ProbeResult::Success)
        } else {
            (self.failure_threshold, ProbeResult::Failure)
        };
        if self.run < threshold || self.result == Some(result) {
            return None;
        }
        self.result = Some(result);
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        use ProbeResult::{Failure, Success};
        let cases = [
            (Some(Failure), 1, 3, "+", vec![(0, Success)]),
            (Some(Failure), 2, 3, "+-++", vec![(3, Success)]),
            (Some(Success), 1, 3, "--+---", vec![(5, Failure)]),
            (Some(Success), 1, 1, "-+-", vec![(0, Failure), (1, Success), (2, Failure)]),
            (None, 1, 2, "-+", vec![(1, Success)]),
        ];
        for (initial, success, failure, outcomes, want) in cases {
            let mut state = ProbeState::new(initial, success, failure);
            let seen: Vec<_> = outcomes
                .chars()
                .enumerate()
                .filter_map(|(i, c)| Some((i, state.observe(c == '+')?)))
                .collect();
            assert_eq!(seen, want, "{outcomes}");
        }
    }
}
