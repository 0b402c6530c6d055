//! How little may be left of what, and which of it is reached.

use std::collections::BTreeMap;

use api::core::v1::Pod;
use apimachinery::quantity::Quantity;

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
}

#[derive(Clone, Debug, PartialEq)]
enum Limit {
    Amount(u64),
    /// As a part of one.
    Part(f64),
}

impl Threshold {
    fn amount(&self, capacity: u64) -> u64 {
        match self.limit {
            Limit::Amount(amount) => amount,
            Limit::Part(part) => (capacity as f64 * part) as u64,
        }
    }
}

/// What is left, and of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observation {
    pub available: u64,
    pub capacity: u64,
}

pub type Observations = BTreeMap<Signal, Observation>;

/// Reads thresholds as the kubelet's configuration writes them: `memory.available` to `100Mi` or `10%`.
// Upstream: pkg/kubelet/eviction/helpers.go parseThresholdStatement
pub fn parse<'a>(map: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Vec<Threshold>, String> {
    let mut all = Vec::new();
    for (name, value) in map {
        let row = SIGNALS.iter().find(|row| row.1 == name);
        let signal = row.ok_or_else(|| format!("unsupported eviction signal {name}"))?.0;
        let limit = match value.strip_suffix('%') {
            Some(percent) => {
                let percent: f64 =
                    percent.parse().map_err(|_| format!("invalid percentage {value:?} of {name}"))?;
                if !(0.0..=100.0).contains(&percent) {
                    return Err(format!(
                        "eviction percentage threshold {name} must be between 0% and 100%: {value}"
                    ));
                }
                Limit::Part(percent / 100.0)
            }
            None => {
                Quantity::parse(value).map_err(|_| format!("invalid quantity {value:?} of {name}"))?;
                let amount = qos::amount("memory", &api::Quantity(value.to_owned()));
                let amount = u64::try_from(amount);
                Limit::Amount(
                    amount.map_err(|_| format!("eviction threshold {name} must be positive: {value}"))?,
                )
            }
        };
        // Nothing left at all is no threshold.
        if limit != Limit::Amount(0) && limit != Limit::Part(0.0) {
            all.push(Threshold { signal, limit });
        }
    }
    all.sort_by_key(|threshold| threshold.signal);
    Ok(all)
}

/// The thresholds that are reached, memory first.
pub fn met<'a>(thresholds: &'a [Threshold], observed: &Observations) -> Vec<&'a Threshold> {
    let is_met = |threshold: &&Threshold| {
        observed.get(&threshold.signal).is_some_and(|seen| seen.available < threshold.amount(seen.capacity))
    };
    thresholds.iter().filter(is_met).collect()
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
        let limit = quantity(threshold.amount(seen.capacity));
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

    #[test]
    fn thresholds_are_read_and_reached() {
        let all = parse([("nodefs.available", "10%"), ("memory.available", "100Mi"), ("pid.available", "0")])
            .unwrap();
        assert_eq!(all.len(), 2, "nothing left is no threshold");
        let observed = |memory: u64, disk: u64| {
            BTreeMap::from([
                (Signal::MemoryAvailable, Observation { available: memory << 20, capacity: 1 << 30 }),
                (Signal::NodefsAvailable, Observation { available: disk, capacity: 1000 }),
            ])
        };
        for (memory, disk, want) in [
            (100, 100, vec![]),
            (99, 100, vec![Condition::Memory]),
            (100, 99, vec![Condition::Disk]),
            (0, 0, vec![Condition::Memory, Condition::Disk]),
        ] {
            let got: Vec<_> =
                met(&all, &observed(memory, disk)).iter().map(|t| t.signal.condition()).collect();
            assert_eq!(got, want, "{memory} {disk}");
        }
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"spec": {"containers": [{"name": "c"}]}})).unwrap();
        assert_eq!(
            message(&all[0], &observed(50, 0), &pod, 3 << 20),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. Container c was using \
             3Mi, request is 0, has larger consumption of memory. "
        );
        for (name, value) in [("memory.free", "1"), ("memory.available", "x"), ("nodefs.available", "101%")] {
            assert!(parse([(name, value)]).is_err(), "{name} {value}");
        }
    }
}
