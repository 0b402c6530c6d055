//! The cgroups of pods: `kubepods/{burstable,besteffort}/pod<UID>`, the guaranteed ones right below `kubepods`.

use std::path::{Path, PathBuf};

use api::Object;
use api::core::v1::Pod;
use apimachinery::quantity::Quantity;
use cri::v1 as pb;
use linux::cgroups::{Cgroup, Limits};

use crate::Config;
use crate::container::config::{huge_pages, pod_resources};
use crate::node::Machine;
use crate::node::allocatable;
use crate::pod::qos::{self, Qos};

/// The cgroup of a pod below `root`.
pub fn path(root: &Path, pod: &Pod) -> PathBuf {
    of_class(root, qos::class(pod)).join(format!("pod{}", pod.uid()))
}

fn of_class(root: &Path, class: Qos) -> PathBuf {
    let top = root.join("kubepods");
    match class {
        Qos::Guaranteed => top,
        Qos::Burstable => top.join("burstable"),
        Qos::BestEffort => top.join("besteffort"),
    }
}

/// Makes the cgroups of the classes. Best effort gets what nobody else wants.
pub fn create_classes(root: &Path, milli_cpu: i64) -> linux::Result<()> {
    for (class, shares) in [(Qos::Guaranteed, qos::cpu_shares(milli_cpu)), (Qos::BestEffort, qos::MIN_SHARES)]
    {
        let cgroup = Cgroup::new(&of_class(root, class));
        cgroup.create()?;
        cgroup.set(&Limits { cpu_shares: Some(shares.unsigned_abs()), ..Default::default() })?;
    }
    Cgroup::new(&of_class(root, Qos::Burstable)).create()
}

/// Holds all pods together to what is not reserved. The room that is kept for evictions is theirs to reach.
// Upstream: pkg/kubelet/cm/node_container_manager_linux.go enforceNodeAllocatableCgroups
pub fn enforce_allocatable(config: &Config, machine: &Machine) -> linux::Result<()> {
    if !config.enforce_pods {
        return Ok(());
    }
    let reserved = config.reserved();
    let capacity = allocatable::capacity(machine, config.max_pods);
    let left = allocatable::allocatable(&capacity, &reserved, &[]);
    let pids = |reserved: &Quantity| machine.max_pids.saturating_sub(reserved.value()).max(1);
    Cgroup::new(&of_class(&config.cgroup_root, Qos::Guaranteed)).set(&Limits {
        cpu_shares: left.get("cpu").map(|cpu| qos::cpu_shares(cpu.milli_value()).unsigned_abs()),
        memory_limit: left.get("memory").map(Quantity::value).filter(|bytes| *bytes > 0),
        pids_limit: reserved.get("pid").map(pids),
        ..Default::default()
    })
}

/// The burstable pods share the CPU in the measure of what they all request.
// Upstream: pkg/kubelet/cm/qos_container_manager_linux.go setCPUCgroupConfig
pub fn update_burstable<'a>(root: &Path, pods: impl Iterator<Item = &'a Pod>) -> linux::Result<()> {
    let burstable = pods.filter(|p| qos::class(p) == Qos::Burstable);
    let requested: i64 = burstable.map(|p| qos::pod_request(p, "cpu")).sum();
    let limits = Limits { cpu_shares: Some(qos::cpu_shares(requested).unsigned_abs()), ..Default::default() };
    Cgroup::new(&of_class(root, Qos::Burstable)).set(&limits)
}

/// Makes a pod's cgroup with its limits.
pub fn create(config: &Config, machine: &Machine, pod: &Pod) -> linux::Result<()> {
    let cgroup = Cgroup::new(&path(&config.cgroup_root, pod));
    cgroup.create()?;
    let resources = pod_resources(pod);
    let positive = |v: i64| Some(v).filter(|v| *v > 0);
    cgroup.set(&Limits {
        cpu_shares: Some(resources.cpu_shares.unsigned_abs()),
        cpu_quota: positive(resources.cpu_quota),
        cpu_period: positive(resources.cpu_period).map(i64::unsigned_abs),
        memory_limit: positive(resources.memory_limit_in_bytes),
        pids_limit: config.pod_pids_limit.map(i64::from),
        huge_pages: huge_pages(pod, &machine.huge_pages)
            .into_iter()
            .map(|page| (page.page_size, page.limit))
            .collect(),
        ..Default::default()
    })
}

/// Sets the limits of a pod's cgroup while the pod runs; where there is none, the former one is lifted.
pub fn resize(root: &Path, pod: &Pod, resources: &pb::LinuxContainerResources) -> linux::Result<()> {
    let free = |value: i64| Some(if value > 0 { value } else { -1 });
    Cgroup::new(&path(root, pod)).set(&Limits {
        cpu_shares: Some(resources.cpu_shares.unsigned_abs()).filter(|v| *v > 0),
        cpu_quota: free(resources.cpu_quota),
        cpu_period: Some(resources.cpu_period.unsigned_abs()).filter(|v| *v > 0),
        memory_limit: free(resources.memory_limit_in_bytes),
        ..Default::default()
    })
}

/// Removes a pod's cgroup, whatever its class was.
pub fn remove(root: &Path, pod_uid: &str) -> linux::Result<()> {
    for class in [Qos::Guaranteed, Qos::Burstable, Qos::BestEffort] {
        let cgroup = Cgroup::new(&of_class(root, class).join(format!("pod{pod_uid}")));
        if cgroup.exists() {
            cgroup.kill_all()?;
            cgroup.remove()?;
        }
    }
    Ok(())
}
