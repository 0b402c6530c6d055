//! Endpoints: the older form of a Service's addresses, one object a Service, for those who still read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Object;
use api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use client::DeleteOptions;
use controller_runtime::{EventRecorder, Informer, WorkQueue};

use crate::Error;
use crate::context::Context;
use crate::endpointslice::{
    HEADLESS, hostname, is_endpoint, is_headless, pod_ips, service_selector, services_of, target_port,
    target_ref,
};
use crate::objects::{
    annotation, is_deleting, is_ready, label, namespace_is_terminating, node_name, split_key,
};
use crate::selector::{self, Labels};
use crate::trigger_times::{TriggerTimes, tell};

const COMPONENT: &str = "endpoint-controller";
const WORKERS: usize = 5;
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
/// Upstream: pkg/controller/endpoint/endpoints_controller.go maxCapacity
const MAX_ADDRESSES: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// Decides the Endpoints of a Service from the pods that its selector picks.
pub(crate) fn decide(service: &Service, pods: &[Arc<Pod>], existing: Option<&Endpoints>) -> Endpoints {
    let spec = service.spec.clone().unwrap_or_default();
    let publish = spec.publish_not_ready_addresses == Some(true);
    let v6 = spec.ip_families.iter().flatten().next().is_some_and(|family| family == "IPv6");
    let mut by_ports: BTreeMap<Vec<(String, String, i32, String)>, EndpointSubset> = BTreeMap::new();
    let mut count = 0;
    let mut pods: Vec<_> = pods.iter().filter(|pod| is_endpoint(pod, publish)).collect();
    // Where not all have room, those that serve have it.
    pods.sort_by_key(|pod| !is_ready(pod));
    for pod in pods {
        let Some(ip) = pod_ips(pod).find(|ip| ip.contains(':') == v6) else { continue };
        let ports = spec.ports.iter().flatten();
        let mut ports: Vec<_> = ports
            .filter_map(|port| {
                let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
                let app = port.app_protocol.clone().unwrap_or_default();
                Some((port.name.clone().unwrap_or_default(), protocol, target_port(pod, port)?, app))
            })
            .collect();
        if ports.is_empty() && !spec.ports.as_ref().is_none_or(Vec::is_empty) {
            continue;
        }
        count += 1;
        if count > MAX_ADDRESSES {
            break;
        }
        ports.sort();
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(pod, service),
            node_name: Some(node_name(pod).to_owned()).filter(|name| !name.is_empty()),
            target_ref: Some(target_ref(pod)),
        };
        let subset = by_ports.entry(ports).or_default();
        let ready = publish || is_ready(pod);
        let list = if ready { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    let subsets = by_ports.into_iter().map(|(ports, mut subset)| {
        let ports = ports.into_iter().map(|(name, protocol, port, app)| EndpointPort {
            name: Some(name).filter(|name| !name.is_empty()),
            port,
            protocol: Some(protocol),
            app_protocol: Some(app).filter(|app| !app.is_empty()),
        });
        subset.ports = Some(ports.collect()).filter(|ports: &Vec<_>| !ports.is_empty());
        for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
            list.sort_by(|a, b| a.ip.cmp(&b.ip));
        }
        subset
    });
    let mut endpoints = existing.cloned().unwrap_or_default();
    endpoints.subsets = Some(subsets.collect()).filter(|subsets: &Vec<_>| !subsets.is_empty());
    endpoints.metadata.name = service.metadata.name.clone();
    endpoints.metadata.namespace = service.metadata.namespace.clone();
    endpoints.metadata.labels = Some(labels(service));
    let annotations = endpoints.metadata.annotations.get_or_insert_default();
    if count > MAX_ADDRESSES {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    } else {
        annotations.remove(OVER_CAPACITY);
    }
    endpoints.metadata.annotations.take_if(|annotations| annotations.is_empty());
    endpoints
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(MANAGED_BY.to_owned(), COMPONENT.to_owned());
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

struct Controller {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
    queue: WorkQueue<String>,
    events: EventRecorder,
    times: TriggerTimes,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        services: context.informers.informer(),
        pods: context.informers.informer(),
        endpoints: context.informers.informer(),
        queue: WorkQueue::new(),
        events: context.events(COMPONENT),
        times: TriggerTimes::default(),
        context,
    });
    let queue = controller.queue.clone();
    controller.services.subscribe(move |event| queue.add(Object::key(&**event.object())));
    let queue = controller.queue.clone();
    controller.endpoints.subscribe(move |event| queue.add(Object::key(&**event.object())));
    if !controller.context.synced().await {
        return;
    }
    let this = controller.clone();
    controller.pods.subscribe(move |event| {
        services_of(&this.services, event).into_iter().for_each(|key| this.queue.add(key));
    });
    controller.context.work(&controller, &controller.queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let existing = self.endpoints.get(&key);
        let Some(service) = self.services.get(&key) else {
            self.times.forget(&key);
            return self.delete_orphan(&key, existing).await;
        };
        let Some(selector) = service_selector(&service) else { return Ok(()) };
        if is_deleting(&*service) {
            return Ok(());
        }
        let mut pods = self.pods.by_namespace(service.namespace());
        pods.retain(|pod| selector::contains(pod.metadata.labels.as_ref(), selector));
        let moment = self.times.next(&service, pods.iter().map(|pod| &**pod));
        let mut wanted = decide(&service, &pods, existing.as_deref());
        if existing.as_ref().is_some_and(|existing| **existing == wanted) {
            return Ok(());
        }
        tell(&mut wanted, moment);
        let outcome = match existing {
            Some(_) => self.endpoints.update(&wanted).await,
            None => self.endpoints.create(&wanted).await,
        };
        match outcome {
            Err(error) if namespace_is_terminating(&error) => Ok(()),
            // The next look has what the other one wrote.
            Err(error) if error.is_conflict() => Err(error.into()),
            Err(error) => {
                let (reason, what) = match existing {
                    Some(_) => ("FailedToUpdateEndpoint", "update endpoint"),
                    None => ("FailedToCreateEndpoint", "create endpoint for service"),
                };
                self.events.warning(&wanted, reason, format!("Failed to {what} {key}: {error}"));
                Err(error.into())
            }
            Ok(_) => Ok(()),
        }
    }

    /// Without its Service, what we made goes; what others made, as the API server's own, stays. An annotated
    /// leader lock of old releases is not ours either.
    async fn delete_orphan(&self, key: &str, existing: Option<Arc<Endpoints>>) -> Result<(), Error> {
        let Some(existing) = existing else { return Ok(()) };
        let lock = annotation(&*existing, "control-plane.alpha.kubernetes.io/leader").is_some();
        if lock || label(&*existing, MANAGED_BY) != Some(COMPONENT) {
            return Ok(());
        }
        let (namespace, name) = split_key(key);
        let options = DeleteOptions::uid(existing.uid());
        match self.context.client.delete::<Endpoints>(namespace, name, &options).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::objects::tests::{arcs, pod};

    #[test]
    fn addresses_are_grouped_by_ports_and_readiness() {
        let service = Service::from_value(json!({
            "metadata": {"namespace": "ns", "name": "web", "uid": "s", "labels": {"a": "b"}},
            "spec": {"clusterIP": "10.43.0.9", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        }))
        .unwrap();
        let at = |name: &str, ready: bool, ip: &str| {
            let mut pod = pod(name, "Running", ready);
            pod.status.as_mut().unwrap().pod_ips = Some(vec![api::core::v1::PodIP { ip: ip.into() }]);
            pod
        };
        let pods = arcs([at("a", true, "10.0.0.2"), at("b", false, "10.0.0.1"), at("c", true, "10.0.0.1")]);
        let endpoints = decide(&service, &pods, None);
        let subset = &endpoints.subsets.as_ref().unwrap()[0];
        let ips = |list: &Option<Vec<EndpointAddress>>| {
            list.iter().flatten().map(|a| a.ip.clone()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(ips(&subset.addresses), "10.0.0.1 10.0.0.2");
        assert_eq!(ips(&subset.not_ready_addresses), "10.0.0.1");
        assert_eq!(subset.ports.as_ref().unwrap()[0].port, 8080);
        assert_eq!(label(&endpoints, MANAGED_BY), Some(COMPONENT));
        assert!(decide(&service, &pods, Some(&endpoints)) == endpoints);
        assert!(decide(&service, &[], None).subsets.is_none());
    }
}
