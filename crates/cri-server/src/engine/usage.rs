//! What containers and pods use, for the kubelet's metrics and evictions.

use std::sync::Arc;

use cri::v1::{
    ContainerAttributes, ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage,
    LinuxPodSandboxStats, MemoryUsage, NetworkInterfaceUsage, NetworkUsage, PodSandboxAttributes,
    PodSandboxStats, ProcessUsage, SwapUsage, UInt64Value,
};
use linux::cgroups::{Cgroup, Usage};

use super::{Container, Engine, Sandbox, lock};
use crate::network::INTERFACE;
use crate::stats;

/// A disk is walked at most so often.
const DISK_EVERY_NANOS: i64 = 10_000_000_000;

/// The last reading of a container's or pod's counters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    at: i64,
    cpu_nanos: u64,
    nano_cores: u64,
    disk_at: i64,
    disk: (u64, u64),
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

impl Engine {
    pub(crate) fn container_stats(&self, container: &Container) -> ContainerStats {
        let usage = container.cgroup().usage();
        let now = self.now();
        let upper = container.writable_layer(&self.config.root).join("upper");
        let sample = self.sample(&container.id, &usage, now, || stats::disk_usage(&upper));
        ContainerStats {
            attributes: Some(ContainerAttributes {
                id: container.id.clone(),
                metadata: container.record.config.metadata.clone(),
                labels: container.record.config.labels.clone(),
                annotations: container.record.config.annotations.clone(),
            }),
            cpu: Some(cpu(&sample)),
            memory: Some(memory(&usage, now)),
            swap: Some(SwapUsage {
                timestamp: now,
                swap_available_bytes: value(0),
                swap_usage_bytes: value(usage.swap_bytes),
            }),
            writable_layer: Some(FilesystemUsage {
                timestamp: sample.disk_at,
                fs_id: Some(FilesystemIdentifier { mountpoint: self.config.root.display().to_string() }),
                used_bytes: value(sample.disk.0),
                inodes_used: value(sample.disk.1),
            }),
        }
    }

    pub(crate) fn sandbox_stats(&self, sandbox: &Arc<Sandbox>) -> PodSandboxStats {
        let record = sandbox.record();
        let now = self.now();
        let usage = Cgroup::new(&sandbox.cgroup_parent(&self.config.cgroup_root)).usage();
        let sample = self.sample(&sandbox.id, &usage, now, || (0, 0));
        let containers = self.containers_of(&sandbox.id);
        let running = containers.iter().filter(|container| container.is_running());
        PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                id: sandbox.id.clone(),
                metadata: record.config.metadata.clone(),
                labels: record.config.labels.clone(),
                annotations: record.config.annotations.clone(),
            }),
            linux: Some(LinuxPodSandboxStats {
                cpu: Some(cpu(&sample)),
                memory: Some(memory(&usage, now)),
                network: network(sandbox, now),
                process: Some(ProcessUsage { timestamp: now, process_count: value(usage.pids) }),
                containers: running.map(|container| self.container_stats(container)).collect(),
            }),
            windows: None,
        }
    }

    /// Reckons the rate since the last reading, and walks the disk if that was long ago.
    fn sample(&self, id: &str, usage: &Usage, now: i64, disk: impl FnOnce() -> (u64, u64)) -> Sample {
        let last = lock(&self.usage).get(id).copied();
        let mut sample =
            Sample { at: now, cpu_nanos: usage.cpu_nanos, nano_cores: 0, disk_at: now, disk: (0, 0) };
        match last {
            Some(last) => {
                let elapsed = u128::try_from(now - last.at).unwrap_or(0);
                let used = u128::from(usage.cpu_nanos.saturating_sub(last.cpu_nanos));
                let rate = (used * 1_000_000_000).checked_div(elapsed);
                sample.nano_cores = rate.and_then(|rate| u64::try_from(rate).ok()).unwrap_or(last.nano_cores);
                (sample.disk_at, sample.disk) = match now - last.disk_at < DISK_EVERY_NANOS {
                    true => (last.disk_at, last.disk),
                    false => (now, disk()),
                };
            }
            None => sample.disk = disk(),
        }
        lock(&self.usage).insert(id.to_owned(), sample);
        sample
    }
}

fn cpu(sample: &Sample) -> CpuUsage {
    CpuUsage {
        timestamp: sample.at,
        usage_core_nano_seconds: value(sample.cpu_nanos),
        usage_nano_cores: value(sample.nano_cores),
    }
}

fn memory(usage: &Usage, now: i64) -> MemoryUsage {
    let available =
        usage.memory_limit_bytes.map(|limit| limit.saturating_sub(usage.memory_working_set_bytes));
    MemoryUsage {
        timestamp: now,
        working_set_bytes: value(usage.memory_working_set_bytes),
        available_bytes: available.and_then(value),
        usage_bytes: value(usage.memory_bytes),
        rss_bytes: value(usage.memory_rss_bytes),
        page_faults: value(usage.page_faults),
        major_page_faults: value(usage.major_page_faults),
    }
}

fn network(sandbox: &Sandbox, now: i64) -> Option<NetworkUsage> {
    if !sandbox.has_own_network() {
        return None;
    }
    let netns = sandbox.namespaces_dir().join("net");
    let table = linux::namespaces::within(linux::namespaces::Kind::Net, &netns, || {
        Ok(std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default())
    })
    .ok()?;
    let interface = |link: stats::Link| NetworkInterfaceUsage {
        name: link.name,
        rx_bytes: value(link.rx_bytes),
        rx_errors: value(link.rx_errors),
        tx_bytes: value(link.tx_bytes),
        tx_errors: value(link.tx_errors),
    };
    let interfaces: Vec<_> = stats::links(&table).into_iter().map(interface).collect();
    let default_interface = interfaces.iter().find(|link| link.name == INTERFACE).cloned();
    Some(NetworkUsage { timestamp: now, default_interface, interfaces })
}
