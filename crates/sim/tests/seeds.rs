//! Seeds that are run each time: some of no meaning, and those that once failed.

use std::time::Duration;

fn check(seed: u64, minutes: u64) {
    if let Err(wrong) = sim::simulate(seed, Duration::from_secs(minutes * 60)) {
        panic!("{wrong}");
    }
}

#[test]
fn a_third_of_an_hour_of_faults() {
    check(1, 20);
}

#[test]
fn short_lives() {
    for seed in 2..7 {
        check(seed, 5);
    }
}
