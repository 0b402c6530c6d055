//! How little may be left of what, and which of it is reached.

use std::collections::BTreeMap;
use std::time::Duration;

use api::core::v1::Pod;
use apimachinery::quantity::Quantity;
use tokio::time::Instant;

use super::rank;
use crate::pod::{self, qos};

/// A condition of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    Memory,
    Disk,
    Processes,
}

impl Condition {
    pub fn name(self) -> &'static str {
        match self {
            Condition::Memory => "MemoryPressure",
            Condition::Disk => "DiskPressure",
            Condition::Processes => "PIDPressure",
        }
    }
}

/// What is looked at, in the order in which it is reclaimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    NodefsAvailable,
    NodefsInodesFree,
    ImagefsAvailable,
    ImagefsInodesFree,
    PidAvailable,
}

/// Name, condition and resource of each signal.
// Upstream: pkg/kubelet/eviction/helpers.go init
const SIGNALS: [(Signal, &str, Condition, &str); 6] = [
    (Signal::MemoryAvailable, "memory.available", Condition::Memory, "memory"),
    (Signal::NodefsAvailable, "nodefs.available", Condition::Disk, "ephemeral-storage"),
    (Signal::NodefsInodesFree, "nodefs.inodesFree", Condition::Disk, "inodes"),
    (Signal::ImagefsAvailable, "imagefs.available", Condition::Disk, "ephemeral-storage"),
    (Signal::ImagefsInodesFree, "imagefs.inodesFree", Condition::Disk, "inodes"),
    (Signal::PidAvailable, "pid.available", Condition::Processes, "pids"),
];

impl Signal {
    fn row(self) -> &'static (Signal, &'static str, Condition, &'static str) {
        SIGNALS.iter().find(|row| row.0 == self).expect("the table has a row for every signal")
    }

    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    pub fn condition(self) -> Condition {
        self.row().2
    }

    pub fn resource(self) -> &'static str {
        self.row().3
    }
}

/// Less than this must not be left.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    limit: Limit,
    /// How long it must have been reached before anybody goes; at once when it is hard.
    grace: Duration,
    /// How much more than the limit must be left before all is well again.
    reclaim: Option<Limit>,
}

#[derive(Clone, Debug, PartialEq)]
enum Limit {
    Amount(u64),
    /// As a part of one.
    Part(f64),
}

impl Limit {
    fn amount(&self, capacity: u64) -> u64 {
        match self {
            Limit::Amount(amount) => *amount,
            Limit::Part(part) => (capacity as f64 * part) as u64,
        }
    }
}

impl Threshold {
    /// As the configuration writes it.
    pub fn limit(&self) -> String {
        match self.limit {
            Limit::Amount(amount) => quantity(amount),
            Limit::Part(part) => format!("{}%", (part * 1e8).round() / 1e6),
        }
    }

    /// How much must be left of so much.
    pub fn amount(&self, capacity: u64) -> u64 {
        self.limit.amount(capacity)
    }

    pub fn grace(&self) -> Duration {
        self.grace
    }

    pub fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }

    /// Whether it is reached; with `reclaimed`, whether there is still less than there should be after that.
    pub fn is_met(&self, observed: &Observations, reclaimed: bool) -> bool {
        let Some(seen) = observed.get(&self.signal) else { return false };
        let more = self.reclaim.as_ref().filter(|_| reclaimed).map_or(0, |r| r.amount(seen.capacity));
        seen.available < self.limit.amount(seen.capacity).saturating_add(more)
    }
}

/// What is left, and of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    pub available: u64,
    pub capacity: u64,
}

pub type Observations = BTreeMap<Signal, Observation>;

type Pairs = BTreeMap<String, String>;

/// Thresholds as the kubelet's configuration writes them: `memory.available` to `100Mi` or `10%`.
#[derive(Clone, Debug, Default)]
pub struct Statements {
    pub hard: Pairs,
    pub soft: Pairs,
    /// By signal, how long a soft one must have been reached.
    pub soft_grace: BTreeMap<String, Duration>,
    pub minimum_reclaim: Pairs,
}

fn signal(name: &str) -> Result<Signal, String> {
    let row = SIGNALS.iter().find(|row| row.1 == name);
    row.map(|row| row.0).ok_or_else(|| format!("unsupported eviction signal {name}"))
}

fn limit(name: &str, value: &str) -> Result<Limit, String> {
    if let Some(percent) = value.strip_suffix('%') {
        let percent: f64 = percent.parse().map_err(|_| format!("invalid percentage {value:?} of {name}"))?;
        if !(0.0..=100.0).contains(&percent) {
            return Err(format!("eviction percentage threshold {name} must be between 0% and 100%: {value}"));
        }
        return Ok(Limit::Part(percent / 100.0));
    }
    Quantity::parse(value).map_err(|_| format!("invalid quantity {value:?} of {name}"))?;
    let amount = u64::try_from(qos::amount("memory", &api::Quantity(value.to_owned())));
    amount.map(Limit::Amount).map_err(|_| format!("eviction threshold {name} must be positive: {value}"))
}

/// Reads them.
// Upstream: pkg/kubelet/eviction/helpers.go ParseThresholdConfig
pub fn parse(statements: &Statements) -> Result<Vec<Threshold>, String> {
    for name in statements.soft_grace.keys() {
        signal(name)?;
    }
    let reclaims = statements.minimum_reclaim.iter().map(|(name, value)| {
        let reclaim = limit(name, value)?;
        Ok((signal(name)?, reclaim))
    });
    let reclaims: BTreeMap<Signal, Limit> = reclaims.collect::<Result<_, String>>()?;
    let mut all = Vec::new();
    let hard = statements.hard.iter().map(|pair| (pair, true));
    for ((name, value), is_hard) in hard.chain(statements.soft.iter().map(|pair| (pair, false))) {
        let signal = signal(name)?;
        let limit = limit(name, value)?;
        let grace = match (is_hard, statements.soft_grace.get(name)) {
            (true, _) => Duration::ZERO,
            (false, Some(grace)) => *grace,
            (false, None) => {
                return Err(format!("grace period must be specified for the soft eviction threshold {name}"));
            }
        };
        // Nothing left at all is no threshold.
        if limit != Limit::Amount(0) && limit != Limit::Part(0.0) {
            all.push(Threshold { signal, limit, grace, reclaim: reclaims.get(&signal).cloned() });
        }
    }
    all.sort_by_key(|threshold| threshold.signal);
    Ok(all)
}

/// What was seen of thresholds until now.
#[derive(Debug, Default)]
pub struct Watched {
    /// Those that are reached, and since when.
    since: Vec<(Threshold, Instant)>,
    /// Those because of which somebody had to go, until enough is left again.
    due: Vec<Threshold>,
}

impl Watched {
    /// The thresholds that are reached, memory first, and those of them that were for long enough.
    pub fn look(
        &mut self,
        thresholds: &[Threshold],
        observed: &Observations,
        now: Instant,
    ) -> (Vec<Threshold>, Vec<Threshold>) {
        let is_met =
            |t: &&Threshold| t.is_met(observed, false) || (self.due.contains(t) && t.is_met(observed, true));
        let met: Vec<Threshold> = thresholds.iter().filter(is_met).cloned().collect();
        self.since.retain(|(threshold, _)| met.contains(threshold));
        for threshold in &met {
            if !self.since.iter().any(|(known, _)| known == threshold) {
                self.since.push((threshold.clone(), now));
            }
        }
        let long_enough = |threshold: &&Threshold| {
            let since = self.since.iter().find(|(known, _)| known == *threshold).map(|(_, since)| *since);
            since.is_some_and(|since| now.duration_since(since) >= threshold.grace)
        };
        self.due = met.iter().filter(long_enough).cloned().collect();
        (met, self.due.clone())
    }
}

/// Bytes as upstream prints quantities.
fn quantity(amount: u64) -> String {
    match amount {
        0 => "0".to_owned(),
        _ if amount.is_multiple_of(1 << 30) => format!("{}Gi", amount >> 30),
        _ if amount.is_multiple_of(1 << 20) => format!("{}Mi", amount >> 20),
        _ if amount.is_multiple_of(1 << 10) => format!("{}Ki", amount >> 10),
        _ => amount.to_string(),
    }
}

/// Why a pod goes.
// Upstream: pkg/kubelet/eviction/helpers.go evictionMessage
pub fn message(threshold: &Threshold, observed: &Observations, pod: &Pod, used: u64) -> String {
    let resource = threshold.signal.resource();
    let mut text = format!("The node was low on resource: {resource}. ");
    if let Some(seen) = observed.get(&threshold.signal) {
        let limit = quantity(threshold.limit.amount(seen.capacity));
        text.push_str(&format!(
            "Threshold quantity: {limit}, available: {}. ",
            quantity(seen.available / 1024 * 1024)
        ));
    }
    let requested = rank::requested(pod, threshold.signal.condition());
    if let [container] = pod::containers(pod)
        && used > requested
    {
        text.push_str(&format!(
            "Container {} was using {}, request is {}, has larger consumption of {resource}. ",
            container.name,
            quantity(used),
            quantity(requested)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Pairs {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn hard(hard: &[(&str, &str)]) -> Result<Vec<Threshold>, String> {
        parse(&Statements { hard: pairs(hard), ..Default::default() })
    }

    fn observed(memory: u64, disk: u64) -> Observations {
        BTreeMap::from([
            (Signal::MemoryAvailable, Observation { available: memory << 20, capacity: 1 << 30 }),
            (Signal::NodefsAvailable, Observation { available: disk, capacity: 1000 }),
        ])
    }

    #[tokio::test(start_paused = true)]
    async fn thresholds_are_read_and_reached() {
        let all = hard(&[("nodefs.available", "10%"), ("memory.available", "100Mi"), ("pid.available", "0")])
            .unwrap();
        assert_eq!(all.len(), 2, "nothing left is no threshold");
        for (memory, disk, want) in [
            (100, 100, vec![]),
            (99, 100, vec![Condition::Memory]),
            (100, 99, vec![Condition::Disk]),
            (0, 0, vec![Condition::Memory, Condition::Disk]),
        ] {
            let (met, due) = Watched::default().look(&all, &observed(memory, disk), Instant::now());
            let got: Vec<_> = met.iter().map(|t| t.signal.condition()).collect();
            assert_eq!((got, met == due), (want, true), "{memory} {disk}");
        }
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"spec": {"containers": [{"name": "c"}]}})).unwrap();
        assert_eq!(
            message(&all[0], &observed(50, 0), &pod, 3 << 20),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using \
             3Mi, request is 0, has larger consumption of memory. "
        );
        for (name, value) in [("memory.free", "1"), ("memory.available", "x"), ("nodefs.available", "101%")] {
            assert!(hard(&[(name, value)]).is_err(), "{name} {value}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_soft_threshold_has_patience_and_then_wants_more_than_its_limit() {
        let mut statements =
            Statements { soft: pairs(&[("memory.available", "100Mi")]), ..Default::default() };
        assert!(parse(&statements).unwrap_err().contains("grace period must be specified"));
        statements.soft_grace.insert("memory.available".into(), Duration::from_secs(30));
        statements.minimum_reclaim = pairs(&[("memory.available", "50Mi")]);
        let all = parse(&statements).unwrap();
        let mut watched = Watched::default();
        let start = Instant::now();
        // When, what is left, and whether the threshold is reached and somebody has to go.
        for (second, memory, want) in [
            (0, 99, (true, false)),
            (20, 99, (true, false)),
            (25, 100, (false, false)),
            (30, 99, (true, false)),
            (59, 99, (true, false)),
            (60, 99, (true, true)),
            (70, 149, (true, true)),
            (80, 150, (false, false)),
            (90, 149, (false, false)),
        ] {
            let now = start + Duration::from_secs(second);
            let (met, due) = watched.look(&all, &observed(memory, 1000), now);
            assert_eq!((!met.is_empty(), !due.is_empty()), want, "{second}");
        }
    }
}
