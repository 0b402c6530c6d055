//! The Service by which pods know the server. The server runs in no pod, so both objects are written by hand.

use std::net::IpAddr;

use api::Object;
use api::core::v1::Service;
use api::discovery::v1::EndpointSlice;
use client::{Client, PatchType};
use serde_json::{Value, json};

use crate::Error;
use crate::cluster::SERVICE_LABEL;

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-dns";

/// Makes the Service `kube-dns` and the EndpointSlice that leads to this node's server, or brings them up to
/// date. Each node has a slice of its own.
pub async fn ensure_service(
    client: &Client,
    cluster_ip: IpAddr,
    node_name: &str,
    node_ip: IpAddr,
    port: u16,
) -> Result<(), Error> {
    ensure::<Service>(client, service(cluster_ip)).await.map_err(Error::Service)?;
    ensure::<EndpointSlice>(client, slice(node_name, node_ip, port)).await.map_err(Error::Service)
}

/// Merges ours into the object that is there, so that labels and the like of others stay, or creates it. Not the
/// other way round: a Service that is there holds its address, and creating it again would be refused for that.
async fn ensure<T: Object>(client: &Client, wanted: Value) -> Result<(), client::Error> {
    let object = T::from_value(wanted.clone()).expect("the manifest has the shape of its kind");
    match client.patch::<T>(NAMESPACE, object.name(), None, PatchType::Merge, &wanted).await {
        Err(error) if error.is_not_found() => client.create(&object).await.map(drop),
        patched => patched.map(drop),
    }
}

/// Without a selector, so that no controller writes its endpoints.
fn service(cluster_ip: IpAddr) -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "targetPort": 53});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": NAME,
            "namespace": NAMESPACE,
            "labels": {
                "k8s-app": "kube-dns",
                "kubernetes.io/cluster-service": "true",
                "kubernetes.io/name": "CoreDNS",
            },
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")],
        },
    })
}

fn slice(node_name: &str, node_ip: IpAddr, port: u16) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{NAME}-{node_name}"),
            "namespace": NAMESPACE,
            "labels": {
                SERVICE_LABEL: NAME,
                "endpointslice.kubernetes.io/managed-by": "trierarch-dns",
            },
        },
        "addressType": if node_ip.is_ipv6() { "IPv6" } else { "IPv4" },
        "ports": [
            {"name": "dns", "port": port, "protocol": "UDP"},
            {"name": "dns-tcp", "port": port, "protocol": "TCP"},
        ],
        "endpoints": [{
            "addresses": [node_ip],
            "nodeName": node_name,
            "conditions": {"ready": true, "serving": true, "terminating": false},
        }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifests_have_the_shape_of_their_kinds() {
        let address = "10.43.0.10".parse().unwrap();
        let service: Service = Object::from_value(service(address)).unwrap();
        assert_eq!(service.spec.unwrap().cluster_ip.as_deref(), Some("10.43.0.10"));
        let slice: EndpointSlice = Object::from_value(slice("one", address, 10053)).unwrap();
        assert_eq!(slice.ports.unwrap()[1].port, Some(10053));
    }
}
