//! Which devices there are and which container has which: plain facts, and the choice of those that are free.

use std::collections::{BTreeMap, BTreeSet};

use cri::deviceplugin as dp;

/// A device of some resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    pub healthy: bool,
    pub numa_nodes: Vec<i64>,
}

/// The devices of one resource, as its plugin tells them.
pub type Pool = BTreeMap<String, Device>;

/// What one container has of one resource, and how the plugin said that it gets it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Allocation {
    pub devices: BTreeSet<String>,
    pub response: dp::ContainerAllocateResponse,
}

/// A container of a pod, by the pod's UID and its own name.
pub type ContainerKey = (String, String);

/// All devices of a node and who has them.
#[derive(Clone, Debug, Default)]
pub struct Book {
    pub pools: BTreeMap<String, Pool>,
    pub allocations: BTreeMap<ContainerKey, BTreeMap<String, Allocation>>,
}

/// What is still to be chosen for a container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Taken already: from an init container that is over when this one starts.
    pub taken: BTreeSet<String>,
    /// Free to choose from.
    pub available: BTreeSet<String>,
    pub missing: usize,
}

impl Choice {
    /// Takes what the plugin prefers, as far as it is free, and then whatever is.
    pub fn take(mut self, preferred: &[String]) -> BTreeSet<String> {
        let free =
            preferred.iter().filter(|id| self.available.contains(*id)).cloned().collect::<BTreeSet<_>>();
        let rest = self.available.difference(&free).cloned().collect::<Vec<_>>();
        self.taken.extend(free.into_iter().chain(rest).take(self.missing));
        self.taken
    }
}

impl Book {
    fn in_use(&self, resource: &str) -> BTreeSet<&String> {
        let all = self.allocations.values().filter_map(|of| of.get(resource));
        all.flat_map(|allocation| &allocation.devices).collect()
    }

    /// What to choose for a container that is to have `wanted` devices; `None` when it has them already.
    /// `reusable` are those of init containers that will be over.
    // Upstream: pkg/kubelet/cm/devicemanager/manager.go devicesToAllocate
    pub fn choose(
        &self,
        container: &ContainerKey,
        resource: &str,
        wanted: usize,
        reusable: &BTreeSet<String>,
    ) -> Result<Option<Choice>, String> {
        let had = self.allocations.get(container).and_then(|of| of.get(resource)).map(|a| &a.devices);
        let had_count = had.map_or(0, BTreeSet::len);
        if had.is_some() && had_count != wanted {
            let (pod, name) = container;
            return Err(format!(
                "pod {pod:?} container {name:?} changed request for resource {resource:?} from {had_count} to {wanted}"
            ));
        }
        let Some(pool) = self.pools.get(resource) else {
            return Err(format!("cannot allocate unregistered device {resource}"));
        };
        let healthy: BTreeSet<&String> = pool.iter().filter(|(_, d)| d.healthy).map(|(id, _)| id).collect();
        if healthy.is_empty() {
            return Err(format!("no healthy devices present; cannot allocate unhealthy devices {resource}"));
        }
        if had.is_some_and(|had| had.iter().any(|id| !healthy.contains(id))) {
            return Err(format!(
                "previously allocated devices are no longer healthy; cannot allocate unhealthy devices {resource}"
            ));
        }
        if wanted == had_count {
            return Ok(None);
        }
        let taken: BTreeSet<String> = reusable.iter().take(wanted).cloned().collect();
        let missing = wanted - taken.len();
        let in_use = self.in_use(resource);
        let available: BTreeSet<String> = healthy.difference(&in_use).map(|id| (*id).clone()).collect();
        if available.len() < missing {
            return Err(format!(
                "requested number of devices unavailable for {resource}. Requested: {missing}, Available: {}",
                available.len()
            ));
        }
        Ok(Some(Choice { taken, available, missing }))
    }

    /// By resource, how many devices there are, and how many of them can be had.
    pub fn counts(&self) -> BTreeMap<String, (usize, usize)> {
        let count = |pool: &Pool| (pool.len(), pool.values().filter(|d| d.healthy).count());
        self.pools.iter().map(|(resource, pool)| (resource.clone(), count(pool))).collect()
    }

    /// The pod has none any more. True when it had some.
    pub fn release(&mut self, pod_uid: &str) -> bool {
        let before = self.allocations.len();
        self.allocations.retain(|(uid, _), _| uid != pod_uid);
        self.allocations.len() != before
    }

    /// The health of each device that a container has, by resource: `Healthy`, `Unhealthy`, or `Unknown` when its
    /// plugin is away.
    pub fn health(&self, container: &ContainerKey) -> Vec<(String, Vec<(String, &'static str)>)> {
        let of = |resource: &String, id: &String| match self.pools.get(resource).and_then(|p| p.get(id)) {
            Some(device) if device.healthy => "Healthy",
            Some(_) => "Unhealthy",
            None => "Unknown",
        };
        let all = self.allocations.get(container).into_iter().flatten();
        all.map(|(resource, allocation)| {
            let devices = allocation.devices.iter().map(|id| (id.clone(), of(resource, id))).collect();
            (resource.clone(), devices)
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    fn book() -> Book {
        let device = |healthy| Device { healthy, numa_nodes: vec![] };
        let pool = [("a", true), ("b", true), ("c", false), ("d", true)];
        let pool: Pool = pool.into_iter().map(|(id, healthy)| (id.to_owned(), device(healthy))).collect();
        let had = Allocation { devices: set(&["a"]), ..Default::default() };
        let key = ("p".to_owned(), "first".to_owned());
        Book {
            pools: [("v/gpu".to_owned(), pool), ("v/away".to_owned(), Pool::new())].into(),
            allocations: [(key, [("v/gpu".to_owned(), had)].into())].into(),
        }
    }

    #[test]
    fn what_is_free_is_chosen() {
        let check =
            |name: &str, resource: &str, wanted, reusable: &[&str], want: Result<Option<&[&str]>, &str>| {
                let key = ("p".to_owned(), name.to_owned());
                let chosen = book().choose(&key, resource, wanted, &set(reusable));
                let chosen =
                    chosen.map(|choice| choice.map(|choice| choice.take(&["d".to_owned(), "x".to_owned()])));
                match (chosen, want) {
                    (Ok(got), Ok(want)) => assert_eq!(got, want.map(set), "{name} {wanted}"),
                    (Err(got), Err(want)) => assert!(got.starts_with(want), "{got}"),
                    (got, _) => panic!("{name} {wanted}: {got:?}"),
                }
            };
        check("first", "v/gpu", 1, &[], Ok(None));
        check("first", "v/gpu", 2, &[], Err("pod \"p\" container \"first\" changed request"));
        check("second", "v/gpu", 1, &[], Ok(Some(&["d"])));
        check("second", "v/gpu", 2, &[], Ok(Some(&["b", "d"])));
        check(
            "second",
            "v/gpu",
            3,
            &[],
            Err("requested number of devices unavailable for v/gpu. Requested: 3, Available: 2"),
        );
        check("second", "v/gpu", 3, &["a"], Ok(Some(&["a", "b", "d"])));
        check("second", "v/away", 1, &[], Err("no healthy devices present"));
        check("second", "v/none", 1, &[], Err("cannot allocate unregistered device v/none"));
    }

    #[test]
    fn a_device_that_fails_is_not_given_again_to_who_had_it() {
        let mut book = book();
        book.pools.get_mut("v/gpu").unwrap().get_mut("a").unwrap().healthy = false;
        let key = ("p".to_owned(), "first".to_owned());
        let error = book.choose(&key, "v/gpu", 1, &BTreeSet::new()).unwrap_err();
        assert!(error.starts_with("previously allocated devices are no longer healthy"), "{error}");
        assert_eq!(book.health(&key), [("v/gpu".to_owned(), vec![("a".to_owned(), "Unhealthy")])]);
        assert_eq!(book.counts()["v/gpu"], (4, 2));
        assert!(book.release("p") && !book.release("p"));
    }
}
