use serde_json::json;

use super::*;
use crate::objects::tests::{arcs, pod};

fn service(publish: bool) -> Service {
    Service::from_value(json!({
        "metadata": {"namespace": "ns", "name": "web", "uid": "s"},
        "spec": {
            "clusterIP": "10.43.0.9", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
            "publishNotReadyAddresses": publish,
            "ports": [{"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}],
        },
    }))
    .unwrap()
}

fn at_ip(mut pod: Pod, ip: &str) -> Pod {
    let container = json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]});
    pod.spec.as_mut().unwrap().containers = vec![serde_json::from_value(container).unwrap()];
    pod.spec.as_mut().unwrap().node_name = Some("n".into());
    pod.status.as_mut().unwrap().pod_ips = Some(vec![api::core::v1::PodIP { ip: ip.into() }]);
    pod
}

fn node(zone: &str) -> Arc<Node> {
    let node = json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": zone}}});
    Arc::new(Node::from_value(node).unwrap())
}

/// As the server would hold it.
fn stored(plan: &Plan) -> Vec<Arc<EndpointSlice>> {
    let mut slices: Vec<_> = plan.create.iter().chain(&plan.update).cloned().collect();
    for (i, slice) in slices.iter_mut().enumerate() {
        slice.metadata.name.get_or_insert(format!("web-{i}"));
        slice.metadata.uid.get_or_insert(format!("slice-{i}"));
    }
    arcs(slices)
}

fn numbers(plan: &Plan) -> (usize, usize, usize) {
    (plan.create.len(), plan.update.len(), plan.delete.len())
}

#[test]
fn conditions_follow_the_pod() {
    let deleting = |mut pod: Pod| {
        pod.metadata.deletion_timestamp = Some(api::meta::Time(jiff::Timestamp::UNIX_EPOCH));
        pod
    };
    // pod, publishNotReadyAddresses; ready, serving, terminating
    for (pod, publish, expected) in [
        (pod("a", "Running", true), false, (true, true, false)),
        (pod("a", "Running", false), false, (false, false, false)),
        (pod("a", "Running", false), true, (true, false, false)),
        (deleting(pod("a", "Running", true)), false, (false, true, true)),
        (deleting(pod("a", "Running", true)), true, (true, true, true)),
    ] {
        let plan =
            decide(&service(publish), &arcs([at_ip(pod, "10.0.0.1")]), &|_| Some(node("z")), &[], None);
        let slice = &plan.create[0];
        let endpoint = &slice.endpoints.as_ref().unwrap()[0];
        let c = endpoint.conditions.clone().unwrap();
        assert_eq!((c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap()), expected);
        assert_eq!(endpoint.zone.as_deref(), Some("z"));
        assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
        assert_eq!(slice.metadata.generate_name.as_deref(), Some("web-"));
    }
}

#[test]
fn ended_pods_and_pods_without_address_or_node_are_left_out() {
    let ended = at_ip(pod("a", "Succeeded", false), "10.0.0.1");
    for (pods, known) in [(arcs([ended]), true), (arcs([pod("b", "Running", true)]), true)]
        .into_iter()
        .chain([(arcs([at_ip(pod("c", "Running", true), "10.0.0.3")]), false)])
    {
        let plan = decide(&service(false), &pods, &|_| known.then(|| node("z")), &[], None);
        assert_eq!(numbers(&plan), (1, 0, 0));
        assert!(plan.create[0].endpoints.as_ref().unwrap().is_empty());
        // The empty slice stays as it is.
        let again = decide(&service(false), &pods, &|_| known.then(|| node("z")), &stored(&plan), None);
        assert_eq!(numbers(&again), (0, 0, 0));
    }
}

#[test]
fn slices_hold_a_hundred_and_are_reused() {
    let pods = |n: usize| {
        arcs((0..n).map(|i| {
            at_ip(pod(&format!("p{i:03}"), "Running", true), &format!("10.0.{}.{}", i / 250, i % 250))
        }))
    };
    let decide = |pods: &[Arc<Pod>], slices: &[Arc<EndpointSlice>]| {
        decide(&service(false), pods, &|_| Some(node("z")), slices, None)
    };
    let first = decide(&pods(150), &[]);
    let sizes: Vec<_> = first.create.iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect();
    assert_eq!(sizes, [100, 50]);
    let slices = stored(&first);
    assert_eq!(numbers(&decide(&pods(150), &slices)), (0, 0, 0));
    assert_eq!(numbers(&decide(&pods(151), &slices)), (0, 1, 0));
    assert_eq!(numbers(&decide(&pods(251), &slices)), (1, 1, 0));
    assert_eq!(numbers(&decide(&pods(90), &slices)), (0, 1, 1));
    assert_eq!(numbers(&decide(&pods(0), &slices)), (0, 1, 1));
    // The empty slice is filled again.
    let empty = stored(&decide(&[], &[]));
    assert_eq!(numbers(&decide(&pods(1), &empty)), (0, 1, 0));
}

#[test]
fn a_headless_service_is_labelled() {
    let mut service = service(false);
    service.spec.as_mut().unwrap().cluster_ip = Some("None".into());
    let plan = decide(&service, &[], &|_| None, &[], None);
    assert_eq!(label(&plan.create[0], HEADLESS), Some(""));
    assert_eq!(label(&plan.create[0], MANAGED_BY), Some(MANAGER));
}
