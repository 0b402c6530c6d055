//! Devices that plugins of the node offer as resources: [`book`] says who has which, [`checkpoint`] keeps that over
//! a restart, [`registration`] takes plugins in and follows them, [`resources`] tells monitoring.
//!
//! What always holds: a device is one container's, but for those of init containers that are over; a container has
//! the same devices for all of its life, whatever restarts.

mod book;
mod checkpoint;
mod registration;
mod resources;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::{Container, Pod};
use cri::deviceplugin as dp;
use cri::deviceplugin::device_plugin_client::DevicePluginClient;
use cri::v1 as pb;
use tokio::sync::Notify;
use tonic::transport::Channel;

use crate::objects::Wakers;
use crate::pod::{self, qos};
use crate::runtime::describe;
use book::{Allocation, Book, ContainerKey, Device, Pool};
pub use registration::run;
pub use resources::serve;

/// Upstream: pkg/kubelet/cm/devicemanager/endpoint.go, k8s.io/kubelet deviceplugin/v1beta1 constants.go
const PRE_START_TIMEOUT: Duration = Duration::from_secs(30);
const HEALTHY: &str = "Healthy";

/// A plugin that answers.
#[derive(Clone)]
struct Plugin {
    client: DevicePluginClient<Channel>,
    options: dp::DevicePluginOptions,
    /// Which of the plugins of its resource it is: a newer one takes the place of an older.
    number: u64,
}

/// The devices of this node.
pub struct Devices {
    dir: PathBuf,
    wakers: Wakers,
    book: Mutex<Book>,
    plugins: Mutex<HashMap<String, Plugin>>,
    /// One pod chooses at a time, as the plugin is asked between the choice and its being noted.
    choosing: tokio::sync::Mutex<()>,
    changed: Notify,
}

/// What a container gets with its devices.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Grants {
    pub envs: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub mounts: Vec<pb::Mount>,
    pub devices: Vec<pb::Device>,
    pub cdi_devices: Vec<pb::CdiDevice>,
}

impl Devices {
    /// Finds what a former kubelet gave out. `dir` is where plugins look for the kubelet.
    pub fn open(dir: PathBuf, wakers: Wakers) -> Self {
        let book = checkpoint::read(&dir).unwrap_or_else(|error| {
            tracing::warn!(
                error,
                "who has which devices cannot be read; running containers keep theirs unseen"
            );
            Book::default()
        });
        Devices {
            dir,
            wakers,
            book: Mutex::new(book),
            plugins: Mutex::default(),
            choosing: tokio::sync::Mutex::default(),
            changed: Notify::new(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn plugins(&self) -> MutexGuard<'_, HashMap<String, Plugin>> {
        self.plugins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there are other devices than there were.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// By resource, how many devices the node has, and how many of them can be had.
    pub fn counts(&self) -> BTreeMap<String, (usize, usize)> {
        self.book().counts()
    }

    /// The health of each device that a container has, by resource.
    pub fn health(&self, pod_uid: &str, container: &str) -> Vec<(String, Vec<(String, &'static str)>)> {
        self.book().health(&(pod_uid.to_owned(), container.to_owned()))
    }

    fn save(&self) {
        let book = self.book().clone();
        if let Err(error) = checkpoint::write(&self.dir, &book) {
            tracing::warn!(%error, "who has which devices cannot be written down");
        }
    }

    /// Gives the pod's containers the devices that they ask for. The error is why this node cannot have the pod.
    // Upstream: pkg/kubelet/cm/devicemanager/manager.go Allocate
    pub async fn allocate(&self, pod: &Pod) -> Result<(), String> {
        if !self.concerns(pod) {
            return Ok(());
        }
        let _one = self.choosing.lock().await;
        // By resource: what containers that are over before the next one starts leave.
        let mut reusable: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut any = false;
        for container in pod::init_containers(pod).iter().chain(pod::containers(pod)) {
            let is_init = pod::init_containers(pod).iter().any(|c| c.name == container.name);
            let key = (pod.uid().to_owned(), container.name.clone());
            for (resource, wanted) in self.wanted(container) {
                let left = reusable.entry(resource.clone()).or_default();
                let choice = self.book().choose(&key, &resource, wanted, left)?;
                if let Some(choice) = choice {
                    let preferred = self.preferred(&resource, &choice, wanted).await?;
                    let devices = choice.take(&preferred);
                    let response = self.ask(&resource, &devices).await?;
                    let allocation = Allocation { devices, response };
                    self.book()
                        .allocations
                        .entry(key.clone())
                        .or_default()
                        .insert(resource.clone(), allocation);
                    any = true;
                }
                let has = self.devices_of(&key, &resource);
                if is_init && !pod::is_sidecar(container) {
                    left.extend(has);
                } else {
                    left.retain(|id| !has.contains(id));
                }
            }
        }
        if any {
            self.save();
        }
        Ok(())
    }

    fn devices_of(&self, key: &ContainerKey, resource: &str) -> BTreeSet<String> {
        let book = self.book();
        let found = book.allocations.get(key).and_then(|of| of.get(resource));
        found.map(|allocation| allocation.devices.clone()).unwrap_or_default()
    }

    fn concerns(&self, pod: &Pod) -> bool {
        let all = pod::init_containers(pod).iter().chain(pod::containers(pod));
        all.into_iter().any(|container| !self.wanted(container).is_empty())
    }

    /// What the container asks for of what plugins offer.
    fn wanted(&self, container: &Container) -> Vec<(String, usize)> {
        let book = self.book();
        let limits = container.resources.iter().flat_map(|r| r.limits.iter().flatten());
        let known = limits.filter(|(name, _)| book.pools.contains_key(*name));
        let counted = known.map(|(name, quantity)| {
            (name.clone(), usize::try_from(qos::amount(name, quantity)).unwrap_or(0))
        });
        counted.filter(|(_, count)| *count > 0).collect()
    }

    fn plugin(&self, resource: &str) -> Result<Plugin, String> {
        self.plugins().get(resource).cloned().ok_or_else(|| format!("unknown Device Plugin {resource}"))
    }

    async fn preferred(
        &self,
        resource: &str,
        choice: &book::Choice,
        wanted: usize,
    ) -> Result<Vec<String>, String> {
        let mut plugin = self.plugin(resource)?;
        if !plugin.options.get_preferred_allocation_available || choice.missing == 0 {
            return Ok(Vec::new());
        }
        let request = dp::ContainerPreferredAllocationRequest {
            available_device_i_ds: choice.available.union(&choice.taken).cloned().collect(),
            must_include_device_i_ds: choice.taken.iter().cloned().collect(),
            allocation_size: i32::try_from(wanted).unwrap_or(i32::MAX),
        };
        let request = dp::PreferredAllocationRequest { container_requests: vec![request] };
        let answer = plugin.client.get_preferred_allocation(request).await.map_err(|e| {
            format!("device plugin GetPreferredAllocation rpc failed with err: {}", describe(&e))
        })?;
        let first = answer.into_inner().container_responses.into_iter().next();
        Ok(first.map(|first| first.device_i_ds).unwrap_or_default())
    }

    async fn ask(
        &self,
        resource: &str,
        devices: &BTreeSet<String>,
    ) -> Result<dp::ContainerAllocateResponse, String> {
        let mut plugin = self.plugin(resource)?;
        let request = dp::ContainerAllocateRequest { devices_ids: devices.iter().cloned().collect() };
        let request = dp::AllocateRequest { container_requests: vec![request] };
        let answer = plugin.client.allocate(request).await.map_err(|error| describe(&error))?.into_inner();
        let first = answer.container_responses.into_iter().next();
        first.ok_or_else(|| "no containers return in allocation response".to_owned())
    }

    /// What the container gets with its devices; those of plugins that wish so are told that it starts.
    // Upstream: pkg/kubelet/cm/devicemanager/manager.go GetDeviceRunContainerOptions
    pub async fn grants(&self, pod: &Pod, container: &Container) -> Result<Grants, String> {
        let key = (pod.uid().to_owned(), container.name.clone());
        if self.wanted(container).iter().any(|(resource, _)| self.devices_of(&key, resource).is_empty()) {
            // Its plugin was not there yet when the pod was admitted.
            self.allocate(pod).await?;
        }
        for (resource, _) in self.wanted(container) {
            let mut plugin = self.plugin(&resource)?;
            if !plugin.options.pre_start_required {
                continue;
            }
            let devices_ids = self.devices_of(&key, &resource).into_iter().collect();
            let asked = plugin.client.pre_start_container(dp::PreStartContainerRequest { devices_ids });
            let failed = |why: String| format!("device plugin PreStartContainer rpc failed with err: {why}");
            match tokio::time::timeout(PRE_START_TIMEOUT, asked).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(failed(describe(&error))),
                Err(_) => return Err(failed("context deadline exceeded".to_owned())),
            }
        }
        let mut grants = Grants::default();
        if let Some(of) = self.book().allocations.get(&key) {
            of.values().for_each(|allocation| grants.add(&allocation.response));
        }
        Ok(grants)
    }

    /// The pod is over, and its devices are free.
    pub fn release(&self, pod_uid: &str) {
        if self.book().release(pod_uid) {
            self.save();
        }
    }

    /// A plugin tells its devices.
    fn learn(&self, resource: &str, devices: Vec<dp::Device>) {
        let pool: Pool = devices
            .into_iter()
            .map(|device| {
                let nodes = device.topology.map(|t| t.nodes).unwrap_or_default();
                let numa_nodes = nodes.into_iter().map(|node| node.id).collect();
                (device.id, Device { healthy: device.health == HEALTHY, numa_nodes })
            })
            .collect();
        self.replace(resource, pool);
    }

    /// A plugin is gone: none of its devices can be had until it is back.
    fn lose(&self, resource: &str) {
        let mut pool = self.book().pools.get(resource).cloned().unwrap_or_default();
        pool.values_mut().for_each(|device| device.healthy = false);
        self.replace(resource, pool);
    }

    fn replace(&self, resource: &str, pool: Pool) {
        let users: Vec<String> = {
            let mut book = self.book();
            if book.pools.insert(resource.to_owned(), pool.clone()) == Some(pool) {
                return;
            }
            let users = book.allocations.iter().filter(|(_, of)| of.contains_key(resource));
            users.map(|((uid, _), _)| uid.clone()).collect()
        };
        self.save();
        self.changed.notify_one();
        // Their pods tell how their devices are.
        users.iter().for_each(|uid| self.wakers.wake(uid));
    }
}

impl Grants {
    fn add(&mut self, response: &dp::ContainerAllocateResponse) {
        self.envs.extend(response.envs.clone());
        self.annotations.extend(response.annotations.clone());
        self.mounts.extend(response.mounts.iter().map(|mount| pb::Mount {
            container_path: mount.container_path.clone(),
            host_path: mount.host_path.clone(),
            readonly: mount.read_only,
            ..Default::default()
        }));
        self.devices.extend(response.devices.iter().map(|device| pb::Device {
            container_path: device.container_path.clone(),
            host_path: device.host_path.clone(),
            permissions: device.permissions.clone(),
        }));
        self.cdi_devices
            .extend(response.cdi_devices.iter().map(|device| pb::CdiDevice { name: device.name.clone() }));
    }
}

#[cfg(test)]
mod tests;
