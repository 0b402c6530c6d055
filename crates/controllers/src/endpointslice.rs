//! EndpointSlices: the addresses behind each Service that has a selector.

pub(crate) mod topology;

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use api::core::v1::{Container, Node, ObjectReference, Pod, Service, ServicePort};
use api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use api::meta::ObjectMeta;
use api::{IntOrString, Object};
use client::DeleteOptions;
use controller_runtime::{Deletions, Event, EventRecorder, EventType, Informer, WorkQueue};

use crate::Error;
use crate::context::Context;
use crate::objects::{
    controller_reference, is_controlled_by, is_deleting, is_ready, is_terminal, label,
    namespace_is_terminating, node_name,
};
use crate::selector::{self, Labels};
use crate::trigger_times::{TriggerTimes, tell};

const COMPONENT: &str = "endpoint-slice-controller";
const WORKERS: usize = 5;
const MAX_ENDPOINTS: usize = 100;
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const ZONE: &str = "topology.kubernetes.io/zone";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// Whether the pod belongs to a Service's endpoints, ready or not.
///
/// Upstream: endpointslice/util/controller_utils.go ShouldPodBeInEndpoints
pub(crate) fn is_endpoint(pod: &Pod, also_terminating: bool) -> bool {
    !is_terminal(pod) && pod_ips(pod).next().is_some() && (also_terminating || !is_deleting(pod))
}

pub(crate) fn pod_ips(pod: &Pod) -> impl Iterator<Item = &str> {
    let ips = pod.status.iter().flat_map(|status| status.pod_ips.iter().flatten());
    ips.map(|ip| ip.ip.as_str()).filter(|ip| !ip.is_empty())
}

/// Whether the Service has no address of its own.
pub(crate) fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref())
        .is_none_or(|ip| ip.is_empty() || ip == "None")
}

/// Whether the selector picks the Service's endpoints: a Service without one gets them from elsewhere.
pub(crate) fn service_selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref().filter(|spec| spec.type_.as_deref() != Some("ExternalName"))?;
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

/// The name of the pod in the Service's DNS zone, if it has one there.
pub(crate) fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let here = spec.subdomain.as_deref() == Some(service.name()) && pod.namespace() == service.namespace();
    spec.hostname.clone().filter(|hostname| here && !hostname.is_empty())
}

pub(crate) fn target_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// The port of the pod that a Service port leads to; `None` when the pod has no port of the name.
///
/// Upstream: pkg/api/v1/pod/util.go FindPort
pub(crate) fn target_port(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None | Some(IntOrString::Int(0)) => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => return Some(port.port),
        Some(IntOrString::String(name)) => name,
    };
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = |container: &Container| container.ports.clone().unwrap_or_default();
    let mut all = spec.containers.iter().chain(sidecars).flat_map(ports);
    let found = all.find(|p| {
        p.name.as_deref() == Some(name.as_str()) && p.protocol.as_deref().unwrap_or("TCP") == protocol
    });
    found.map(|p| p.container_port)
}

fn endpoint_ports(service: &Service, pod: &Pod) -> Vec<EndpointPort> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(target_port(pod, port)?),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

/// Ports as a key: slices hold endpoints of equal ports only.
pub(crate) type PortKey = Vec<(String, String, i32, String)>;

pub(crate) fn port_key(ports: &[EndpointPort]) -> PortKey {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut key: Vec<_> = ports
        .iter()
        .map(|p| (text(&p.name), text(&p.protocol), p.port.unwrap_or(0), text(&p.app_protocol)))
        .collect();
    key.sort();
    key
}

/// Upstream: staging/src/k8s.io/endpointslice/utils.go podToEndpoint
fn endpoint(pod: &Pod, node: Option<&Node>, service: &Service, address_type: &str) -> Option<Endpoint> {
    let of_family = |ip: &&str| ip.contains(':') == (address_type == "IPv6");
    let addresses: Vec<_> = pod_ips(pod).filter(of_family).map(str::to_owned).collect();
    if addresses.is_empty() {
        return None;
    }
    let spec = service.spec.as_ref();
    let publish = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let (serving, terminating) = (is_ready(pod), is_deleting(pod));
    let ready = publish || (serving && !terminating);
    let zone = node.and_then(|node| label(node, ZONE)).map(str::to_owned);
    let distribution = spec.and_then(|spec| spec.traffic_distribution.as_deref());
    let distribution = distribution.filter(|_| ready && !topology::is_wanted(service));
    let for_zones = zone.clone().filter(|_| distribution.is_some()).map(|name| vec![ForZone { name }]);
    let for_nodes =
        (distribution == Some("PreferSameNode")).then(|| vec![ForNode { name: node_name(pod).to_owned() }]);
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(pod, service),
        node_name: Some(node_name(pod).to_owned()).filter(|name| !name.is_empty()),
        target_ref: Some(target_ref(pod)),
        zone,
        hints: (for_zones.is_some() || for_nodes.is_some()).then_some(EndpointHints { for_nodes, for_zones }),
        deprecated_topology: None,
    })
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.remove(HEADLESS);
    labels.insert(SERVICE_NAME.to_owned(), service.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

fn new_slice(service: &Service, address_type: &str, ports: Vec<EndpointPort>) -> EndpointSlice {
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(generate_name(service.name())),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels(service)),
            owner_references: Some(vec![controller_reference(service)]),
            ..Default::default()
        },
        address_type: address_type.to_owned(),
        endpoints: Some(Vec::new()),
        ports: Some(ports),
    }
}

/// Upstream: staging/src/k8s.io/endpointslice/utils.go getEndpointSlicePrefix
fn generate_name(service: &str) -> String {
    format!("{service}-")
}

#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
    /// Whether hints for zones were given; a reason for each address type that could not have them.
    pub hints: bool,
    pub no_hints: Vec<String>,
}

/// A slice as it is to be, and as it is if it is there.
type Target = (EndpointSlice, Option<Arc<EndpointSlice>>);

fn address_types(service: &Service) -> Vec<&'static str> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    let mut types: Vec<_> = families
        .iter()
        .flat_map(|families| families.iter())
        .map(|family| if family == "IPv6" { "IPv6" } else { "IPv4" })
        .collect();
    if types.is_empty() {
        let ip = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()).unwrap_or_default();
        types.push(if ip.contains(':') { "IPv6" } else { "IPv4" });
    }
    types
}

/// Decides the slices of a Service from the pods that its selector picks. A pod whose node is not known yet is
/// left out, unless the Service wants its pods whatever their state.
pub(crate) fn decide(
    service: &Service,
    pods: &[Arc<Pod>],
    nodes: &dyn Fn(&str) -> Option<Arc<Node>>,
    existing: &[Arc<EndpointSlice>],
    shares: Option<&BTreeMap<String, f64>>,
) -> Plan {
    let mut plan = Plan::default();
    let types = address_types(service);
    plan.delete.extend(existing.iter().filter(|s| !types.contains(&s.address_type.as_str())).cloned());
    for address_type in types {
        let of_type: Vec<_> = existing.iter().filter(|s| s.address_type == address_type).cloned().collect();
        let (mut slices, surplus) = wanted(service, pods, nodes, of_type, address_type);
        if topology::is_wanted(service) {
            match topology::assign(&mut slices, shares) {
                Ok(()) => plan.hints = true,
                Err(why) => plan.no_hints.push(format!("{why}, addressType: {address_type}")),
            }
        }
        settle(slices, surplus, &mut plan);
    }
    plan
}

/// The slices of one address type as they are to be, and those that are there besides.
fn wanted(
    service: &Service,
    pods: &[Arc<Pod>],
    nodes: &dyn Fn(&str) -> Option<Arc<Node>>,
    existing: Vec<Arc<EndpointSlice>>,
    address_type: &'static str,
) -> (Vec<Target>, Vec<Arc<EndpointSlice>>) {
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let mut desired: BTreeMap<_, (Vec<EndpointPort>, BTreeMap<String, Endpoint>)> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| is_endpoint(pod, true)) {
        let node = nodes(node_name(pod));
        if node.is_none() && !publish {
            continue;
        }
        if let Some(endpoint) = endpoint(pod, node.as_deref(), service, address_type) {
            let ports = endpoint_ports(service, pod);
            let entry = desired.entry(port_key(&ports)).or_insert_with(|| (ports, BTreeMap::new()));
            entry.1.insert(pod.uid().to_owned(), endpoint);
        }
    }
    let mut left: BTreeMap<_, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    let mut surplus = Vec::new();
    for slice in existing {
        if is_controlled_by(&*slice, service.uid()) {
            left.entry(port_key(slice.ports.as_deref().unwrap_or_default())).or_default().push(slice);
        } else {
            surplus.push(slice);
        }
    }
    let mut slices = Vec::new();
    for (key, (ports, endpoints)) in desired {
        slices.extend(fill(service, address_type, ports, endpoints, left.remove(&key).unwrap_or_default()));
    }
    surplus.extend(left.into_values().flatten());
    if slices.iter().all(|(slice, _)| slice.endpoints.as_ref().is_none_or(Vec::is_empty)) {
        // One empty slice says that there are no endpoints.
        slices.retain(|(slice, _)| slice.metadata.name.is_some());
        surplus.extend(slices.drain(..).filter_map(|(_, old)| old));
        slices.push((new_slice(service, address_type, Vec::new()), None));
    }
    (slices, surplus)
}

/// Endpoints into slices: kept where they are, new ones where there is room.
fn fill(
    service: &Service,
    address_type: &str,
    ports: Vec<EndpointPort>,
    mut endpoints: BTreeMap<String, Endpoint>,
    existing: Vec<Arc<EndpointSlice>>,
) -> Vec<Target> {
    let keep_hints = topology::is_wanted(service);
    let mut slices = Vec::new();
    for old in existing {
        let mut slice = (*old).clone();
        slice.metadata.labels = Some(labels(service));
        let uid = |e: &Endpoint| e.target_ref.as_ref().and_then(|r| r.uid.clone()).unwrap_or_default();
        let present = slice.endpoints.take().unwrap_or_default();
        let now = present.into_iter().filter_map(|old| {
            let new = endpoints.remove(&uid(&old))?;
            Some(Endpoint { hints: if keep_hints { old.hints } else { new.hints }, ..new })
        });
        slice.endpoints = Some(now.collect());
        slices.push((slice, Some(old)));
    }
    let changed = |(slice, old): &Target| old.as_ref().is_none_or(|old| !same(old, slice));
    // Those that are written anyway take first, the fullest first.
    slices
        .sort_by_cached_key(|s| (!changed(s), std::cmp::Reverse(s.0.endpoints.as_ref().map_or(0, Vec::len))));
    let mut rest = endpoints.into_values();
    for (slice, _) in &mut slices {
        let list = slice.endpoints.get_or_insert_default();
        let room = MAX_ENDPOINTS.saturating_sub(list.len());
        list.extend(rest.by_ref().take(room));
    }
    loop {
        let chunk: Vec<_> = rest.by_ref().take(MAX_ENDPOINTS).collect();
        if chunk.is_empty() {
            break;
        }
        let mut slice = new_slice(service, address_type, ports.clone());
        slice.endpoints = Some(chunk);
        slices.push((slice, None));
    }
    slices
}

fn same(a: &EndpointSlice, b: &EndpointSlice) -> bool {
    let list = |s: &EndpointSlice| s.endpoints.clone().unwrap_or_default();
    let ports = |s: &EndpointSlice| port_key(s.ports.as_deref().unwrap_or_default());
    a.metadata.labels == b.metadata.labels && list(a) == list(b) && ports(a) == ports(b)
}

/// Sorts out what is written; a slice to be made takes over one to be deleted.
fn settle(slices: Vec<Target>, mut surplus: Vec<Arc<EndpointSlice>>, plan: &mut Plan) {
    for (slice, old) in slices {
        match old {
            Some(old) if slice.endpoints.as_ref().is_none_or(Vec::is_empty) => surplus.push(old),
            Some(old) if same(&old, &slice) => {}
            Some(_) => plan.update.push(slice),
            None => place(slice, &mut surplus, plan),
        }
    }
    plan.delete.append(&mut surplus);
}

fn place(mut slice: EndpointSlice, surplus: &mut Vec<Arc<EndpointSlice>>, plan: &mut Plan) {
    let owner = slice.metadata.owner_references.as_ref().and_then(|o| o.first()).map(|o| o.uid.clone());
    let reusable =
        surplus.iter().position(|old| is_controlled_by(&**old, owner.as_deref().unwrap_or_default()));
    let Some(at) = reusable else {
        plan.create.push(slice);
        return;
    };
    let old = surplus.remove(at);
    if same(&old, &slice) {
        return;
    }
    slice.metadata.name = old.metadata.name.clone();
    slice.metadata.generate_name = old.metadata.generate_name.clone();
    slice.metadata.uid = old.metadata.uid.clone();
    slice.metadata.resource_version = old.metadata.resource_version.clone();
    plan.update.push(slice);
}

struct Controller {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<EndpointSlice>,
    queue: WorkQueue<String>,
    events: EventRecorder,
    deletions: Deletions,
    /// The Services whose endpoints have hints for zones.
    hinted: Mutex<HashSet<String>>,
    times: TriggerTimes,
}

/// The Services of a pod, before and after a change.
pub(crate) fn services_of(services: &Informer<Service>, event: &Event<Pod>) -> HashSet<String> {
    if let (Some(old), Event::Updated { new, .. }) = (event.old(), event)
        && !matters(old, new)
    {
        return HashSet::new();
    }
    let mut keys = HashSet::new();
    for pod in event.old().into_iter().chain([event.object()]) {
        for service in services.by_namespace(pod.namespace()) {
            if service_selector(&service).is_some_and(|s| selector::contains(pod.metadata.labels.as_ref(), s))
            {
                keys.insert(Object::key(&*service));
            }
        }
    }
    keys
}

/// Whether a change of a pod can change an endpoint.
fn matters(old: &Pod, new: &Pod) -> bool {
    let hostname = |pod: &Pod| pod.spec.as_ref().map(|s| (s.hostname.clone(), s.subdomain.clone()));
    old.metadata.labels != new.metadata.labels
        || is_ready(old) != is_ready(new)
        || is_deleting(old) != is_deleting(new)
        || is_terminal(old) != is_terminal(new)
        || node_name(old) != node_name(new)
        || !pod_ips(old).eq(pod_ips(new))
        || hostname(old) != hostname(new)
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        services: context.informers.informer(),
        pods: context.informers.informer(),
        nodes: context.informers.informer(),
        slices: context.informers.informer(),
        queue: WorkQueue::new(),
        events: context.events(COMPONENT),
        deletions: Deletions::default(),
        hinted: Mutex::default(),
        times: TriggerTimes::default(),
        context,
    });
    controller.slices.add_index("service", |slice| {
        let service = label(slice, SERVICE_NAME).map(|name| format!("{}/{name}", slice.namespace()));
        service.into_iter().collect()
    });
    let this = controller.clone();
    controller.services.subscribe(move |event| this.queue.add(Object::key(&**event.object())));
    if !controller.context.synced().await {
        return;
    }
    controller.subscribe();
    controller.context.work(&controller, &controller.queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    fn subscribe(self: &Arc<Self>) {
        let this = self.clone();
        self.pods.subscribe(move |event| {
            services_of(&this.services, event).into_iter().for_each(|key| this.queue.add(key));
        });
        let this = self.clone();
        self.slices.subscribe(move |event| {
            this.deletions.observe(event, is_deleting);
            let slice = event.object();
            if let Some(name) =
                label(&**slice, SERVICE_NAME).filter(|_| label(&**slice, MANAGED_BY) == Some(MANAGER))
            {
                this.queue.add(format!("{}/{name}", slice.namespace()));
            }
        });
        let this = self.clone();
        self.nodes.subscribe(move |event| {
            let zone = |node: &Arc<Node>| label(&**node, ZONE).map(str::to_owned);
            let moved = event.old().is_none_or(|old| zone(old) != zone(event.object()));
            let weighs = |node: &Arc<Node>| topology::weight(node);
            if moved || event.old().map(weighs) != Some(weighs(event.object())) {
                let concerned = this.services.list().into_iter().filter(|service| {
                    service_selector(service).is_some() && (moved || topology::is_wanted(service))
                });
                concerned.for_each(|service| this.queue.add(Object::key(&*service)));
            }
        });
    }

    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(service) = self.services.get(&key) else {
            self.hinted().remove(&key);
            self.times.forget(&key);
            return Ok(());
        };
        let mut slices = self.slices.by_index("service", &key);
        slices.retain(|slice| {
            label(&**slice, MANAGED_BY) == Some(MANAGER)
                && !is_deleting(&**slice)
                && !self.deletions.contains(slice.uid())
        });
        let external = service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName");
        let plan = match service_selector(&service) {
            Some(selector) => {
                let mut pods = self.pods.by_namespace(service.namespace());
                pods.retain(|pod| selector::contains(pod.metadata.labels.as_ref(), selector));
                let moment = self.times.next(&service, pods.iter().map(|pod| &**pod));
                let shares = topology::is_wanted(&service).then(|| topology::shares(&self.nodes.list()));
                let shares = shares.flatten();
                let mut plan =
                    decide(&service, &pods, &|node| self.nodes.get(node), &slices, shares.as_ref());
                plan.create.iter_mut().chain(&mut plan.update).for_each(|slice| tell(slice, moment));
                plan
            }
            None if external => Plan { delete: slices, ..Default::default() },
            None => return Ok(()),
        };
        let told = self.tell_hints(&service, &key, &plan);
        let outcome = self.execute(&service, plan).await;
        for (kind, reason, message) in told {
            self.events.event(&*service, kind, reason, message);
        }
        if let Err(error) = &outcome
            && !error.is_conflict()
        {
            let message = format!("Error updating Endpoint Slices for Service {key}: {error}");
            self.events.warning(&*service, "FailedToUpdateEndpointSlices", message);
        }
        Ok(outcome?)
    }

    fn hinted(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.hinted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What there is to say of hints for zones.
    ///
    /// Upstream: staging/src/k8s.io/endpointslice/reconciler.go reconcileByAddressType
    fn tell_hints(
        &self,
        service: &Service,
        key: &str,
        plan: &Plan,
    ) -> Vec<(EventType, &'static str, String)> {
        let disabled = |message| (EventType::Warning, "TopologyAwareHintsDisabled", message);
        let mut told: Vec<_> = plan.no_hints.iter().cloned().map(disabled).collect();
        let mut hinted = self.hinted();
        let types = address_types(service).join(", ");
        if plan.hints && hinted.insert(key.to_owned()) {
            let message = format!("Topology Aware Hints has been enabled, addressType: {types}");
            told.push((EventType::Normal, "TopologyAwareHintsEnabled", message));
        }
        if !plan.hints && hinted.remove(key) && plan.no_hints.is_empty() {
            told.push(disabled(format!("Topology Aware Hints has been disabled, addressType: {types}")));
        }
        told
    }

    async fn execute(&self, service: &Service, plan: Plan) -> Result<(), client::Error> {
        if !is_deleting(service) {
            for slice in &plan.create {
                match self.slices.create(slice).await {
                    Err(error) if namespace_is_terminating(&error) => return Ok(()),
                    outcome => outcome?,
                };
            }
        }
        for slice in &plan.update {
            self.slices.update(slice).await?;
        }
        for slice in &plan.delete {
            self.deletions.begin(slice.uid());
            let options = DeleteOptions::uid(slice.uid());
            let deleted =
                self.context.client.delete::<EndpointSlice>(slice.namespace(), slice.name(), &options);
            if let Err(error) = deleted.await {
                self.deletions.undo(slice.uid());
                if !error.is_not_found() {
                    return Err(error);
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
