//! Certificates that kubelets answer with: approved for a node's own name and for addresses that are nobody
//! else's. Upstream leaves these to people; here nodes join without any.
//!
//! What always holds: a node gets no certificate by which it could be taken for another node or for the API
//! server, whatever it says of itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use api::Object;
use api::certificates::v1::CertificateSigningRequest;
use api::core::v1::{Node, Service};
use api::discovery::v1::EndpointSlice;
use client::Resource;
use controller_runtime::{Informer, WorkQueue};
use der::Decode;
use serde_json::json;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::request::{NODE_PREFIX, Request};
use super::{APPROVED, KUBELET_SERVING, WORKERS, has_condition, is_issued, unless_gone, with_condition};
use crate::Error;
use crate::context::Context;

/// The addresses that are not for a node to have, each with whose it is.
#[derive(Default)]
struct Taken(Vec<(IpAddr, String)>);

impl Taken {
    /// Those of nodes, of Services, and of the API server.
    fn of(nodes: &[Arc<Node>], services: &[Arc<Service>], api_server: Option<&EndpointSlice>) -> Self {
        let mut taken = Vec::new();
        for node in nodes {
            let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
            let parsed = addresses.filter_map(|address| address.address.parse().ok());
            taken.extend(parsed.map(|ip| (ip, format!("{NODE_PREFIX}{}", node.name()))));
        }
        for service in services {
            let addresses = service.spec.iter().flat_map(|spec| spec.cluster_ips.iter().flatten());
            let parsed = addresses.filter_map(|address| address.parse().ok());
            taken
                .extend(parsed.map(|ip| (ip, format!("Service {}/{}", service.namespace(), service.name()))));
        }
        let endpoints = api_server.iter().flat_map(|slice| slice.endpoints.iter().flatten());
        let parsed =
            endpoints.flat_map(|endpoint| &endpoint.addresses).filter_map(|address| address.parse().ok());
        for ip in parsed {
            // A node that runs the API server has this address as its own.
            if !taken.iter().any(|(known, _)| *known == ip) {
                taken.push((ip, "the API server".to_owned()));
            }
        }
        Taken(taken)
    }

    fn by_other(&self, ip: IpAddr, user: &str) -> Option<&str> {
        self.0.iter().find(|(taken, whose)| *taken == ip && whose != user).map(|(_, whose)| whose.as_str())
    }
}

/// The names that a request asks for, DNS and addresses.
fn names(request: &Request) -> Result<(BTreeSet<String>, BTreeSet<IpAddr>), String> {
    let mut found = (BTreeSet::new(), BTreeSet::new());
    let Some(extension) = &request.alternative_names else { return Ok(found) };
    let names =
        SubjectAltName::from_der(extension.extn_value.as_bytes()).map_err(|error| error.to_string())?;
    for name in names.0 {
        match name {
            GeneralName::DnsName(name) => {
                found.0.insert(name.as_str().to_owned());
            }
            GeneralName::IpAddress(bytes) => {
                let bytes = bytes.as_bytes();
                let v4 = <[u8; 4]>::try_from(bytes).map(|b| IpAddr::V4(Ipv4Addr::from(b)));
                let v6 = || <[u8; 16]>::try_from(bytes).map(|b| IpAddr::V6(Ipv6Addr::from(b)));
                found.1.insert(v4.or_else(|_| v6()).map_err(|_| "an address of odd length")?);
            }
            other => return Err(format!("{other:?} is no name of a node")),
        }
    }
    Ok(found)
}

/// Why the request is not for us to approve; it is left to people then.
fn refusal(csr: &CertificateSigningRequest, taken: &Taken) -> Option<String> {
    let check = || -> Result<(), String> {
        let spec = &csr.spec;
        let request = Request::parse(&spec.request.0)?;
        request.check_kubelet_serving(spec.usages.as_deref().unwrap_or_default())?;
        let user = spec.username.as_deref().unwrap_or_default();
        if user != request.common_name {
            return Err(format!("{user:?} asks for {:?}", request.common_name));
        }
        let node = user.strip_prefix(NODE_PREFIX).ok_or("the requester is no node")?;
        let (dns, addresses) = names(&request)?;
        if let Some(other) = dns.iter().find(|name| *name != node) {
            return Err(format!("the name {other:?} is not the node's"));
        }
        for ip in addresses {
            if ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
                return Err(format!("{ip} is no node's address"));
            }
            if let Some(whose) = taken.by_other(ip, user) {
                return Err(format!("{ip} is of {whose}"));
            }
        }
        Ok(())
    };
    check().err()
}

struct Approver {
    context: Context,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    services: Informer<Service>,
    slices: Informer<EndpointSlice>,
}

impl Approver {
    async fn approve(self: Arc<Self>, name: String) -> Result<(), Error> {
        let Some(csr) = self.requests.get(&name) else { return Ok(()) };
        let decided = is_issued(&csr) || has_condition(&csr, APPROVED) || has_condition(&csr, "Denied");
        if decided || csr.spec.signer_name != KUBELET_SERVING {
            return Ok(());
        }
        let api_server = self.slices.get("default/kubernetes");
        let taken = Taken::of(&self.nodes.list(), &self.services.list(), api_server.as_deref());
        if let Some(why) = refusal(&csr, &taken) {
            tracing::warn!(
                csr = name,
                why,
                "a kubelet's request for a serving certificate is left to people"
            );
            return Ok(());
        }
        let condition = json!({
            "type": APPROVED, "status": "True", "reason": "AutoApproved",
            "message": "Auto approving kubelet serving certificate of a node's own name and addresses.",
        });
        let mut approved = csr.to_value();
        approved["status"]["conditions"] = with_condition(&csr, condition);
        let requests = Resource::of::<CertificateSigningRequest>();
        let written =
            self.context.client.update_value(&requests, "", &name, Some("approval"), &approved).await;
        unless_gone(written.map(drop))
    }
}

/// Approves until the shutdown.
pub(crate) async fn run(context: Context) {
    let informers = &context.informers;
    let approver = Arc::new(Approver {
        requests: informers.informer(),
        nodes: informers.informer(),
        services: informers.informer(),
        slices: informers.informer(),
        context: context.clone(),
    });
    let queue = WorkQueue::new();
    let names = queue.clone();
    approver.requests.subscribe(move |event| names.add(event.object().name().to_owned()));
    context.work(&approver, &queue, WORKERS, Approver::approve).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(user: &str, common_name: &str, names: &[&str]) -> CertificateSigningRequest {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(rcgen::DnType::CommonName, common_name);
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let pem = params.serialize_request(&key).unwrap().pem().unwrap();
        let mut csr = CertificateSigningRequest::default();
        csr.spec.request = api::ByteString(pem.into_bytes());
        csr.spec.signer_name = KUBELET_SERVING.to_owned();
        csr.spec.usages = Some(vec!["digital signature".into(), "server auth".into()]);
        csr.spec.username = Some(user.to_owned());
        csr
    }

    #[test]
    fn a_node_is_certified_as_itself_only() {
        let node = |name: &str, ip: &str| {
            let node = json!({
                "metadata": {"name": name},
                "status": {"addresses": [{"type": "InternalIP", "address": ip}]},
            });
            Arc::new(Node::from_value(node).unwrap())
        };
        let service = json!({
            "metadata": {"name": "kubernetes", "namespace": "default"},
            "spec": {"clusterIPs": ["10.43.0.1"]},
        });
        let slice = json!({
            "metadata": {"name": "kubernetes"}, "addressType": "IPv4",
            "endpoints": [{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.9"]}],
        });
        let taken = Taken::of(
            &[node("a", "192.0.2.1"), node("b", "192.0.2.2")],
            &[Arc::new(Service::from_value(service).unwrap())],
            Some(&EndpointSlice::from_value(slice).unwrap()),
        );
        let (a, c) = ("system:node:a", "system:node:c");
        for (user, common_name, names, refused) in [
            (a, a, &["a", "192.0.2.1"][..], None),
            (c, c, &["c", "192.0.2.3"], None),
            (c, a, &["c"], Some("asks for")),
            (c, c, &["a"], Some("is not the node's")),
            (c, c, &["c", "192.0.2.2"], Some("192.0.2.2 is of system:node:b")),
            (c, c, &["c", "10.43.0.1"], Some("is of Service default/kubernetes")),
            (c, c, &["c", "192.0.2.9"], Some("is of the API server")),
            (c, c, &["c", "127.0.0.1"], Some("is no node's address")),
            ("alice", c, &["c"], Some("asks for")),
        ] {
            let why = refusal(&request(user, common_name, names), &taken);
            let as_hoped = match refused {
                Some(words) => why.as_deref().is_some_and(|why| why.contains(words)),
                None => why.is_none(),
            };
            assert!(as_hoped, "{user} {common_name} {names:?}: {why:?}");
        }
    }
}
