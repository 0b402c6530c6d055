//! What the node has, and what of it pods may have: all but what is reserved for the machine and for the moment
//! before pods are evicted.

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;

use super::Machine;
use crate::pressure::Threshold;

pub type Resources = BTreeMap<String, Quantity>;

const HUGE_PAGES: &str = "hugepages-";

/// What the machine has.
// Upstream: pkg/kubelet/nodestatus/setters.go MachineInfo
pub fn capacity(machine: &Machine, max_pods: u32) -> Resources {
    let mut capacity = BTreeMap::from([
        ("cpu".to_owned(), Quantity::from_milli(machine.milli_cpu)),
        ("memory".to_owned(), Quantity::from_bytes(machine.memory)),
        ("ephemeral-storage".to_owned(), Quantity::from_bytes(machine.ephemeral_storage)),
        ("pods".to_owned(), Quantity::from_value_i64(i64::from(max_pods))),
    ]);
    capacity.extend(machine.huge_pages.iter().map(|(size, count)| {
        let bytes = i64::try_from(size.saturating_mul(*count)).unwrap_or(i64::MAX);
        let size = i64::try_from(*size).unwrap_or(i64::MAX);
        (format!("{HUGE_PAGES}{}", Quantity::from_bytes(size)), Quantity::from_bytes(bytes))
    }));
    capacity
}

/// What pods may have of it.
// Upstream: pkg/kubelet/cm/node_container_manager_linux.go GetNodeAllocatableReservation
pub fn allocatable(capacity: &Resources, reserved: &Resources, eviction: &[Threshold]) -> Resources {
    let mut left = capacity.clone();
    let mut take = |name: &str, amount: &Quantity| {
        let Some(quantity) = left.get_mut(name) else { return };
        quantity.sub(amount);
        if quantity.is_negative() {
            *quantity = Quantity::from_value_i64(0);
        }
    };
    for (name, amount) in reserved {
        take(name, amount);
    }
    for threshold in eviction.iter().filter(|threshold| threshold.is_hard()) {
        let name = match threshold.signal.name() {
            "memory.available" => "memory",
            "nodefs.available" => "ephemeral-storage",
            _ => continue,
        };
        let whole = capacity.get(name).map_or(0, Quantity::value);
        let kept = threshold.amount(u64::try_from(whole).unwrap_or(0));
        take(name, &Quantity::from_bytes(i64::try_from(kept).unwrap_or(i64::MAX)));
    }
    // What lies in huge pages is no memory for others.
    for (_, amount) in capacity.iter().filter(|(name, _)| name.starts_with(HUGE_PAGES)) {
        take("memory", amount);
    }
    left
}

/// What is reserved by both of two.
pub fn sum(one: &Resources, other: &Resources) -> Resources {
    let mut sum = one.clone();
    for (name, amount) in other {
        match sum.get_mut(name) {
            Some(known) => known.add(amount),
            None => drop(sum.insert(name.clone(), *amount)),
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pressure::{self, Statements};

    fn resources(pairs: &[(&str, &str)]) -> Resources {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), Quantity::parse(text).unwrap())).collect()
    }

    #[test]
    fn pods_may_have_what_is_not_reserved() {
        let machine = Machine {
            milli_cpu: 2000,
            memory: 4 << 30,
            ephemeral_storage: 100 << 30,
            huge_pages: BTreeMap::from([(2 << 20, 512), (1 << 30, 0)]),
            ..Default::default()
        };
        let capacity = capacity(&machine, 110);
        let told = |all: &Resources| -> Vec<String> {
            all.iter().map(|(name, quantity)| format!("{name}={quantity}")).collect()
        };
        assert_eq!(
            told(&capacity),
            [
                "cpu=2",
                "ephemeral-storage=100Gi",
                "hugepages-1Gi=0",
                "hugepages-2Mi=1Gi",
                "memory=4Gi",
                "pods=110"
            ]
        );
        let hard = [("memory.available", "100Mi"), ("nodefs.available", "10%"), ("imagefs.available", "15%")];
        let hard = hard.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        let eviction = pressure::parse(&Statements { hard, ..Default::default() }).unwrap();
        let reserved = sum(&resources(&[("cpu", "100m"), ("memory", "1Gi")]), &resources(&[("cpu", "50m")]));
        assert_eq!(
            told(&allocatable(&capacity, &reserved, &eviction)),
            [
                "cpu=1850m",
                "ephemeral-storage=90Gi",
                "hugepages-1Gi=0",
                "hugepages-2Mi=1Gi",
                "memory=1948Mi",
                "pods=110"
            ]
        );
        let much = resources(&[("memory", "9Gi"), ("pid", "5")]);
        assert_eq!(allocatable(&capacity, &much, &[])["memory"].to_string(), "0");
    }
}
