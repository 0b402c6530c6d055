//! EndpointSlices for Endpoints that somebody wrote by hand, for Services without a selector.
//!
//! Upstream: pkg/controller/endpointslicemirroring

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use api::Object;
use api::core::v1::{EndpointAddress, Endpoints, Service};
use api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use api::meta::ObjectMeta;
use controller_runtime::{EventRecorder, Informer, WorkQueue};

use crate::Error;
use crate::context::Context;
use crate::endpointslice::{MANAGED_BY, PortKey, SERVICE_NAME, port_key};
use crate::objects::{annotation, controller_reference, is_deleting, label, namespace_is_terminating};
use crate::selector::Labels;

const COMPONENT: &str = "endpoint-slice-mirroring-controller";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const WORKERS: usize = 5;
/// Upstream: pkg/controller/endpointslicemirroring/config/v1alpha1/defaults.go MirroringMaxEndpointsPerSubset
const MAX_ENDPOINTS: usize = 1000;
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// Locks of old are Endpoints too.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// What is said of the Endpoints alone.
const NOT_COPIED: [&str; 2] =
    ["endpoints.kubernetes.io/last-change-trigger-time", "kubectl.kubernetes.io/last-applied-configuration"];

type GroupKey = (&'static str, PortKey);

/// Endpoints of one family with the same ports.
#[derive(Default)]
struct Group {
    ports: Vec<EndpointPort>,
    endpoints: BTreeMap<String, Endpoint>,
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<String>,
    /// Addresses that are none.
    pub invalid: usize,
    /// Addresses beyond what one subset may have.
    pub skipped: usize,
}

/// Whether the Endpoints are to be mirrored at all.
fn is_mirrored(endpoints: &Endpoints, service: &Service) -> bool {
    let selects = service.spec.as_ref().is_some_and(|spec| spec.selector.is_some());
    label(endpoints, SKIP) != Some("true") && annotation(endpoints, LEADER).is_none() && !selects
}

fn endpoint(address: &EndpointAddress, ip: IpAddr, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..Default::default() }),
        hostname: address.hostname.clone().filter(|name| !name.is_empty()),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Default::default()
    }
}

fn group(endpoints: &Endpoints, plan: &mut Plan) -> BTreeMap<GroupKey, Group> {
    let mut groups: BTreeMap<GroupKey, Group> = BTreeMap::new();
    for subset in endpoints.subsets.iter().flatten() {
        let ports: Vec<_> = subset.ports.iter().flatten().collect();
        let ports: Vec<_> = ports
            .into_iter()
            .map(|port| EndpointPort {
                name: Some(port.name.clone().unwrap_or_default()),
                port: Some(port.port),
                protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
                app_protocol: port.app_protocol.clone(),
            })
            .collect();
        let key = port_key(&ports);
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let not_ready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        let mut added = 0;
        for (address, is_ready) in ready.chain(not_ready) {
            if added >= MAX_ENDPOINTS {
                plan.skipped += 1;
                continue;
            }
            let Ok(ip) = address.ip.parse::<IpAddr>() else {
                plan.invalid += 1;
                continue;
            };
            added += 1;
            let family = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
            let group = groups.entry((family, key.clone())).or_default();
            group.ports.clone_from(&ports);
            group.endpoints.insert(ip.to_string(), endpoint(address, ip, is_ready));
        }
    }
    groups
}

fn metadata(endpoints: &Endpoints) -> ObjectMeta {
    let own = &endpoints.metadata;
    let mut labels = own.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.to_owned(), endpoints.name().to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let mut annotations = own.annotations.clone().unwrap_or_default();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    ObjectMeta {
        namespace: own.namespace.clone(),
        labels: Some(labels),
        annotations: (!annotations.is_empty()).then_some(annotations),
        owner_references: Some(vec![controller_reference(endpoints)]),
        ..Default::default()
    }
}

/// A slice is made of the Endpoints; what it has been called stays.
pub(crate) fn decide(endpoints: &Endpoints, existing: &[Arc<EndpointSlice>]) -> Plan {
    let mut plan = Plan::default();
    let groups = group(endpoints, &mut plan);
    let mut left: Vec<&Arc<EndpointSlice>> = existing.iter().collect();
    for ((family, key), group) in groups {
        let of_group =
            |slice: &&Arc<EndpointSlice>| slice.address_type == family && slice_ports(slice) == key;
        let kept = left.iter().position(of_group).map(|index| left.remove(index));
        let wanted = EndpointSlice {
            metadata: metadata(endpoints),
            address_type: family.to_owned(),
            endpoints: Some(group.endpoints.into_values().collect()),
            ports: Some(group.ports),
        };
        match kept {
            None => {
                let mut created = wanted;
                created.metadata.generate_name = Some(format!("{}-", endpoints.name()));
                plan.create.push(created);
            }
            Some(slice) if is_same(slice, &wanted) => {}
            Some(slice) => {
                let mut updated = wanted;
                updated.metadata.name = slice.metadata.name.clone();
                plan.update.push(updated);
            }
        }
    }
    plan.delete = left.iter().map(|slice| slice.name().to_owned()).collect();
    plan
}

fn slice_ports(slice: &EndpointSlice) -> PortKey {
    port_key(slice.ports.as_deref().unwrap_or_default())
}

fn is_same(slice: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    fn some(map: &Option<Labels>) -> Option<&Labels> {
        map.as_ref().filter(|map| !map.is_empty())
    }
    fn sorted(slice: &EndpointSlice) -> Vec<&Endpoint> {
        let mut endpoints: Vec<_> = slice.endpoints.iter().flatten().collect();
        endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
        endpoints
    }
    sorted(slice) == sorted(wanted)
        && some(&slice.metadata.labels) == some(&wanted.metadata.labels)
        && some(&slice.metadata.annotations) == some(&wanted.metadata.annotations)
}

struct Controller {
    context: Context,
    events: EventRecorder,
    endpoints: Informer<Endpoints>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
}

const MIRRORED: &str = "mirrored";

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        events: context.events(COMPONENT),
        endpoints: context.informers.informer(),
        services: context.informers.informer(),
        slices: context.informers.informer(),
        context,
    });
    controller.slices.add_index(MIRRORED, |slice| match label(slice, MANAGED_BY) {
        Some(MANAGER) => {
            let service = label(slice, SERVICE_NAME).unwrap_or_default();
            vec![format!("{}/{service}", slice.namespace())]
        }
        _ => Vec::new(),
    });
    let queue = WorkQueue::new();
    let keys = queue.clone();
    controller.endpoints.subscribe(move |event| keys.add(Object::key(&**event.object())));
    let keys = queue.clone();
    controller.services.subscribe(move |event| {
        let selects = |service: &Service| service.spec.as_ref().is_some_and(|spec| spec.selector.is_some());
        let service = event.object();
        if event.old().is_none_or(|old| selects(old) != selects(service)) {
            keys.add(Object::key(&**service));
        }
    });
    let keys = queue.clone();
    controller.slices.subscribe(move |event| {
        let slice = event.object();
        if label(&**slice, MANAGED_BY) == Some(MANAGER) {
            keys.add(format!("{}/{}", slice.namespace(), label(&**slice, SERVICE_NAME).unwrap_or_default()));
        }
    });
    controller.context.work(&controller, &queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let existing = self.slices.by_index(MIRRORED, &key);
        let mirrored = match (self.endpoints.get(&key), self.services.get(&key)) {
            (Some(endpoints), Some(service)) if is_mirrored(&endpoints, &service) => Some(endpoints),
            _ => None,
        };
        let Some(endpoints) = mirrored else {
            for slice in existing {
                self.context.delete(&*slice).await?;
            }
            return Ok(());
        };
        let plan = decide(&endpoints, &existing);
        self.tell(&endpoints, &plan);
        if !is_deleting(&*endpoints) {
            for slice in &plan.create {
                match self.slices.create(slice).await {
                    Err(error) if namespace_is_terminating(&error) => return Ok(()),
                    created => drop(created?),
                }
            }
        }
        for slice in &plan.update {
            self.slices.update(slice).await?;
        }
        for name in &plan.delete {
            if let Some(slice) = existing.iter().find(|slice| slice.name() == name) {
                self.context.delete(&**slice).await?;
            }
        }
        Ok(())
    }

    fn tell(&self, endpoints: &Endpoints, plan: &Plan) {
        let (invalid, skipped) = (plan.invalid, plan.skipped);
        if invalid > 0 {
            let message = format!("Skipped {invalid} invalid IP addresses when mirroring to EndpointSlices");
            self.events.warning(endpoints, "InvalidIPAddress", message);
        }
        if skipped > 0 {
            let message = format!(
                "A max of {MAX_ENDPOINTS} addresses can be mirrored to EndpointSlices per Endpoints subset. \
                 {skipped} addresses were skipped"
            );
            self.events.warning(endpoints, "TooManyAddressesToMirror", message);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn endpoints(addresses: serde_json::Value) -> Endpoints {
        Endpoints::from_value(json!({
            "metadata": {"namespace": "ns", "name": "db", "uid": "e", "labels": {"app": "db"}},
            "subsets": [{"addresses": addresses, "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]}],
        }))
        .unwrap()
    }

    #[test]
    fn a_slice_a_family_that_keeps_its_name() {
        let both = endpoints(json!([{"ip": "10.0.0.1"}, {"ip": "fd00::1"}, {"ip": "nonsense"}]));
        let plan = decide(&both, &[]);
        assert_eq!((plan.create.len(), plan.invalid), (2, 1));
        let slice = &plan.create[0];
        assert_eq!(slice.address_type, "IPv4");
        assert_eq!(label(slice, SERVICE_NAME), Some("db"));
        assert_eq!(label(slice, "app"), Some("db"));
        assert_eq!(slice.metadata.generate_name.as_deref(), Some("db-"));

        let mut existing = slice.clone();
        existing.metadata.name = Some("db-1".into());
        let existing = [Arc::new(existing)];
        let same = endpoints(json!([{"ip": "10.0.0.1"}]));
        assert_eq!(decide(&same, &existing), Plan::default());
        let other = decide(&endpoints(json!([{"ip": "10.0.0.2"}])), &existing);
        assert_eq!(other.update[0].name(), "db-1");
        assert_eq!(decide(&endpoints(json!([])), &existing).delete, ["db-1"]);
    }

    #[test]
    fn what_is_beyond_the_limit_is_told() {
        let many: Vec<_> =
            (0..1003).map(|i| json!({"ip": format!("10.0.{}.{}", i / 250, i % 250)})).collect();
        let plan = decide(&endpoints(json!(many)), &[]);
        assert_eq!((plan.create[0].endpoints.as_ref().unwrap().len(), plan.skipped), (1000, 3));
    }

    #[test]
    fn selectors_labels_and_locks_are_not_mirrored() {
        let service = |spec| Service::from_value(json!({"metadata": {"name": "db"}, "spec": spec})).unwrap();
        let plain = endpoints(json!([]));
        assert!(is_mirrored(&plain, &service(json!({}))));
        assert!(!is_mirrored(&plain, &service(json!({"selector": {"app": "db"}}))));
        let mut skipped = plain.clone();
        skipped.metadata.labels.get_or_insert_default().insert(SKIP.into(), "true".into());
        assert!(!is_mirrored(&skipped, &service(json!({}))));
        let mut lock = plain;
        lock.metadata.annotations.get_or_insert_default().insert(LEADER.into(), "{}".into());
        assert!(!is_mirrored(&lock, &service(json!({}))));
    }
}
