//! Holds the number of replicas steady: neither every measurement nor every jump is followed.
//!
//! Upstream: pkg/controller/podautoscaler/horizontal.go normalizeDesiredReplicas and its WithBehaviors sibling

use api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscaler};
use jiff::{SignedDuration, Timestamp};

use crate::options::Autoscaling;

/// What is older concerns no rule: the API lets no window or period be longer.
const MEMORY_SECONDS: i64 = 3600;
const UP_FACTOR: f64 = 2.0;
const UP_MINIMUM: f64 = 4.0;

/// The rules of an autoscaler that has some.
pub(super) enum Rules {
    None { down_window: i32 },
    Some { up: Direction, down: Direction },
}

#[derive(Debug, PartialEq)]
pub(super) struct Direction {
    window: i32,
    select: Select,
    policies: Vec<Policy>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Select {
    Max,
    Min,
    Disabled,
}

#[derive(Debug, PartialEq)]
struct Policy {
    is_percent: bool,
    value: i32,
    period: i32,
}

impl Direction {
    fn of(rules: Option<&HPAScalingRules>, default_window: i32) -> Self {
        let select = match rules.and_then(|rules| rules.select_policy.as_deref()) {
            Some("Disabled") => Select::Disabled,
            Some("Min") => Select::Min,
            _ => Select::Max,
        };
        let policies = rules.and_then(|rules| rules.policies.as_deref()).unwrap_or_default();
        let policy = |policy: &api::autoscaling::v2::HPAScalingPolicy| Policy {
            is_percent: policy.type_ == "Percent",
            value: policy.value,
            period: policy.period_seconds,
        };
        Direction {
            window: rules.and_then(|rules| rules.stabilization_window_seconds).unwrap_or(default_window),
            select,
            policies: policies.iter().map(policy).collect(),
        }
    }
}

impl Rules {
    pub fn of(autoscaler: &HorizontalPodAutoscaler, options: &Autoscaling) -> Self {
        let down_window = i32::try_from(options.downscale_stabilization.as_secs()).unwrap_or(i32::MAX);
        match &autoscaler.spec.behavior {
            None => Rules::None { down_window },
            Some(behavior) => Rules::Some {
                up: Direction::of(behavior.scale_up.as_ref(), 0),
                down: Direction::of(behavior.scale_down.as_ref(), down_window),
            },
        }
    }
}

/// The number within its limits, and which of them it met.
#[derive(Debug, PartialEq)]
pub(super) struct Limited {
    pub replicas: i32,
    pub is_limited: bool,
    pub reason: &'static str,
    pub message: &'static str,
}

type Said = (&'static str, &'static str);

const WITHIN: Said = ("DesiredWithinRange", "the desired count is within the acceptable range");
const UP_LIMIT: Said =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: Said =
    ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate");
const TOO_MANY: Said =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const TOO_FEW: Said = ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const READY: Said = ("ReadyForNewScale", "recommended size matches current size");
const UP_STABILIZED: Said = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const DOWN_STABILIZED: Said = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);

/// What was recommended and done lately.
#[derive(Default)]
pub(super) struct History {
    recommendations: Vec<(Timestamp, i32)>,
    /// How many replicas were added and taken.
    added: Vec<(Timestamp, i32)>,
    taken: Vec<(Timestamp, i32)>,
}

fn ago(now: Timestamp, seconds: i32) -> Timestamp {
    now - SignedDuration::from_secs(seconds.into())
}

/// How many replicas changed within a policy's period.
fn changed(changes: &[(Timestamp, i32)], period: i32, now: Timestamp) -> i32 {
    let cutoff = ago(now, period);
    changes.iter().filter(|(at, _)| *at > cutoff).map(|(_, replicas)| replicas).sum()
}

impl History {
    /// The number that the target had when it was first seen counts as a recommendation.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
    }

    pub fn scaled(&mut self, from: i32, to: i32, now: Timestamp) {
        match to - from {
            change if change > 0 => self.added.push((now, change)),
            change => self.taken.push((now, -change)),
        }
    }

    fn forget(&mut self, now: Timestamp) {
        let cutoff = now - SignedDuration::from_secs(MEMORY_SECONDS);
        for list in [&mut self.recommendations, &mut self.added, &mut self.taken] {
            list.retain(|(at, _)| *at >= cutoff);
        }
    }

    /// What is done about a wish, and what is said of its steadiness.
    pub fn normalize(
        &mut self,
        current: i32,
        desired: i32,
        bounds: (i32, i32),
        rules: &Rules,
        now: Timestamp,
    ) -> (Said, Limited) {
        self.forget(now);
        let (stable, said) = match rules {
            Rules::None { down_window } => self.stabilize(desired, *down_window, now),
            Rules::Some { up, down } => self.stabilize_by(current, desired, up, down, now),
        };
        self.recommendations.push((now, desired));
        let (replicas, (reason, message)) = match rules {
            Rules::None { .. } => within(current, stable, bounds),
            Rules::Some { up, down } => self.within_rates(current, stable, bounds, up, down, now),
        };
        (said, Limited { replicas, is_limited: replicas != stable, reason, message })
    }

    fn stabilize(&self, desired: i32, window: i32, now: Timestamp) -> (i32, Said) {
        let cutoff = ago(now, window);
        let recent = self.recommendations.iter().filter(|(at, _)| *at >= cutoff).map(|(_, number)| *number);
        let highest = recent.fold(desired, i32::max);
        (highest, if highest == desired { READY } else { DOWN_STABILIZED })
    }

    fn stabilize_by(
        &self,
        current: i32,
        desired: i32,
        up: &Direction,
        down: &Direction,
        now: Timestamp,
    ) -> (i32, Said) {
        let since = |window: i32| {
            let cutoff = ago(now, window);
            self.recommendations.iter().filter(move |(at, _)| *at > cutoff).map(|(_, number)| *number)
        };
        let lowest = since(up.window).fold(desired, i32::min);
        let highest = since(down.window).fold(desired, i32::max);
        let stable = current.max(lowest).min(highest);
        let said = match stable == desired {
            true => READY,
            false if desired >= current => UP_STABILIZED,
            false => DOWN_STABILIZED,
        };
        (stable, said)
    }

    /// The number that a period began with.
    fn before(&self, current: i32, policy: &Policy, now: Timestamp) -> i32 {
        current - changed(&self.added, policy.period, now) + changed(&self.taken, policy.period, now)
    }

    /// The most that the policies let it be.
    fn up_limit(&self, current: i32, rules: &Direction, now: Timestamp) -> i32 {
        let proposals = rules.policies.iter().map(|policy| {
            let start = self.before(current, policy, now);
            match policy.is_percent {
                // Rounded up: else a small number would never grow.
                true => (f64::from(start) * (1.0 + f64::from(policy.value) / 100.0)).ceil() as i32,
                false => start.saturating_add(policy.value),
            }
        });
        match rules.select {
            Select::Disabled => current,
            Select::Min => proposals.min().unwrap_or(i32::MAX),
            Select::Max => proposals.max().unwrap_or(i32::MIN),
        }
    }

    /// The least that the policies let it be.
    fn down_limit(&self, current: i32, rules: &Direction, now: Timestamp) -> i32 {
        let proposals = rules.policies.iter().map(|policy| {
            let start = self.before(current, policy, now);
            match policy.is_percent {
                true => (f64::from(start) * (1.0 - f64::from(policy.value) / 100.0)) as i32,
                false => start.saturating_sub(policy.value),
            }
        });
        match rules.select {
            Select::Disabled => current,
            Select::Min => proposals.max().unwrap_or(i32::MIN),
            Select::Max => proposals.min().unwrap_or(i32::MAX),
        }
    }

    /// Upstream: pkg/controller/podautoscaler/horizontal.go convertDesiredReplicasWithBehaviorRate
    fn within_rates(
        &self,
        current: i32,
        desired: i32,
        (min, max): (i32, i32),
        up: &Direction,
        down: &Direction,
        now: Timestamp,
    ) -> (i32, Said) {
        if desired > current {
            let limit = self.up_limit(current, up, now).max(current);
            let (most, said) = if max > limit { (limit, UP_LIMIT) } else { (max, TOO_MANY) };
            if desired > most {
                return (most, said);
            }
        } else if desired < current {
            let limit = self.down_limit(current, down, now).min(current);
            let (least, said) = if min < limit { (limit, DOWN_LIMIT) } else { (min, TOO_FEW) };
            if desired < least {
                return (least, said);
            }
        }
        (desired, WITHIN)
    }
}

/// Upstream: pkg/controller/podautoscaler/horizontal.go convertDesiredReplicasWithRules
fn within(current: i32, desired: i32, (min, max): (i32, i32)) -> (i32, Said) {
    let limit = (UP_FACTOR * f64::from(current)).max(UP_MINIMUM) as i32;
    let (most, said) = if max > limit { (limit, UP_LIMIT) } else { (max, TOO_MANY) };
    match desired {
        desired if desired < min => (min, TOO_FEW),
        desired if desired > most => (most, said),
        desired => (desired, WITHIN),
    }
}
