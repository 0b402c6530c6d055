//! What lets machines join: rights of bootstrap tokens and of nodes, and what nodes are told of the cluster.
//!
//! Upstream: cmd/kubeadm/app/phases/bootstraptoken/node/tlsbootstrap.go, phases/kubelet/config.go

use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use client::Client;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cli::NetworkBackend;

/// Those who show a token that was made for joining.
pub const TOKEN_GROUP: &str = "system:bootstrappers:trierarch:default-node-token";
const NODES_GROUP: &str = "system:nodes";
const NAMESPACE: &str = "kube-system";
const CONFIG: &str = "trierarch-cluster";

/// What the whole cluster agrees on, and every node must know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct ClusterNetwork {
    /// Where pods are, one range a family.
    #[serde(rename = "cluster-cidr", with = "commas")]
    pub cluster_cidrs: Vec<String>,
    /// Where Services are.
    #[serde(rename = "service-cidr", with = "commas")]
    pub service_cidrs: Vec<String>,
    pub cluster_domain: String,
    /// The Services' addresses of the DNS.
    #[serde(with = "commas")]
    pub cluster_dns: Vec<IpAddr>,
    #[serde(default)]
    pub network_backend: NetworkBackend,
}

/// Lists as one text: a ConfigMap holds nothing else.
mod commas {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub fn serialize<T: Display, S: Serializer>(list: &[T], to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&list.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
    }

    pub fn deserialize<'de, T, D>(from: D) -> Result<Vec<T>, D::Error>
    where
        T: FromStr,
        T::Err: Display,
        D: Deserializer<'de>,
    {
        let text = String::deserialize(from)?;
        text.split(',').map(|one| one.parse().map_err(de::Error::custom)).collect()
    }
}

fn binding(name: &str, role: &str, group: &str) -> Value {
    let api_group = "rbac.authorization.k8s.io";
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": api_group, "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": api_group, "kind": "Group", "name": group}],
    })
}

/// Who approves what kubelets answer with: a controller of ours, which upstream's policy does not know.
const SERVING_APPROVER: &str = "kubelet-serving-approver";

fn serving_approver() -> Vec<Value> {
    let api_group = "rbac.authorization.k8s.io";
    let name = format!("trierarch:{SERVING_APPROVER}");
    let requests = "certificatesigningrequests";
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
            "rules": [
                {"apiGroups": ["certificates.k8s.io"], "resources": [requests], "verbs": ["get", "list", "watch"]},
                {
                    "apiGroups": ["certificates.k8s.io"], "resources": [format!("{requests}/approval")],
                    "verbs": ["update"],
                },
                {
                    "apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
                    "resourceNames": ["kubernetes.io/kubelet-serving"], "verbs": ["approve"],
                },
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": api_group, "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": SERVING_APPROVER, "namespace": NAMESPACE}],
        }),
    ]
}

/// Policies select pods anywhere, so that whoever holds traffic to them on a node reads all pods.
fn policy_reader() -> Vec<Value> {
    let (api_group, name) = ("rbac.authorization.k8s.io", "trierarch:network-policy-reader");
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name},
            "rules": [
                {"apiGroups": [""], "resources": ["pods", "namespaces"], "verbs": ["get", "list", "watch"]},
                {
                    "apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"],
                    "verbs": ["get", "list", "watch"],
                },
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": api_group, "kind": "ClusterRole", "name": name},
            "subjects": [
                {"apiGroup": api_group, "kind": "Group", "name": NODES_GROUP},
                {"apiGroup": api_group, "kind": "User", "name": "system:kube-proxy"},
            ],
        }),
    ]
}

/// What the DNS server on a node reads beside what the proxy there does.
fn node_dns() -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": NODE_DNS},
        "rules": [{"apiGroups": [""], "resources": ["namespaces"], "verbs": ["list", "watch"]}],
    })
}

const NODE_DNS: &str = "trierarch:node-dns";

/// The rights of those who join, and of nodes beyond what the node authorizer gives them: to renew their own
/// certificate, and to read what the Service proxy, network policies and the DNS on them need.
pub fn rights() -> Vec<Value> {
    let csr = "system:certificates.k8s.io:certificatesigningrequests";
    let mut rights = serving_approver();
    rights.extend(policy_reader());
    rights.extend([
        binding("trierarch:node-bootstrap", "system:node-bootstrapper", TOKEN_GROUP),
        binding("trierarch:node-autoapprove-bootstrap", &format!("{csr}:nodeclient"), TOKEN_GROUP),
        binding("trierarch:node-autoapprove-renewal", &format!("{csr}:selfnodeclient"), NODES_GROUP),
        binding("trierarch:node-proxier", "system:node-proxier", NODES_GROUP),
        node_dns(),
        binding(NODE_DNS, NODE_DNS, NODES_GROUP),
    ]);
    rights
}

/// What nodes are told, and that they may read it.
pub fn network(network: &ClusterNetwork) -> Vec<Value> {
    let metadata = json!({"name": CONFIG, "namespace": NAMESPACE});
    let api_group = "rbac.authorization.k8s.io";
    vec![
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
            "data": serde_json::to_value(network).expect("a network is texts"),
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata,
            "rules": [{
                "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [CONFIG], "verbs": ["get"],
            }],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": api_group, "kind": "Role", "name": CONFIG},
            "subjects": [{"apiGroup": api_group, "kind": "Group", "name": NODES_GROUP}],
        }),
    ]
}

impl ClusterNetwork {
    /// As the API server tells it.
    pub async fn of_cluster(client: &Client) -> anyhow::Result<Self> {
        let map: api::core::v1::ConfigMap = client.get(NAMESPACE, CONFIG).await?;
        let data = serde_json::to_value(map.data.unwrap_or_default())?;
        serde_json::from_value(data).with_context(|| format!("ConfigMap {NAMESPACE}/{CONFIG} is damaged"))
    }

    /// Remembers it beside the node's data: for a start without the API server, and for `reset`.
    pub fn remember(&self, data_dir: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string(self)?;
        crate::pki::write_atomically(&data_dir.join("network.json"), text.as_bytes(), 0o600)
    }

    /// As it was remembered, if it was.
    pub fn remembered(data_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(data_dir.join("network.json")).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nodes_are_told_is_what_they_read() {
        let given = ClusterNetwork {
            cluster_cidrs: vec!["10.42.0.0/16".into(), "fd42::/56".into()],
            service_cidrs: vec!["10.43.0.0/16".into()],
            cluster_domain: "cluster.local".into(),
            cluster_dns: vec!["10.43.0.10".parse().unwrap(), "fd43::a".parse().unwrap()],
            network_backend: NetworkBackend::VxlanOnly,
        };
        let map = network(&given).remove(0);
        assert_eq!(serde_json::from_value::<ClusterNetwork>(map["data"].clone()).unwrap(), given);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ClusterNetwork::remembered(dir.path()), None);
        given.remember(dir.path()).unwrap();
        assert_eq!(ClusterNetwork::remembered(dir.path()), Some(given));
    }

    #[test]
    fn roles_that_are_bound_exist() {
        let mut roles = apiserver::authz::bootstrap_objects();
        roles.extend(serving_approver());
        roles.extend(policy_reader());
        roles.push(node_dns());
        for binding in rights().iter().filter(|object| object["kind"] == "ClusterRoleBinding") {
            let role = &binding["roleRef"]["name"];
            assert!(
                roles.iter().any(|r| r["kind"] == "ClusterRole" && &r["metadata"]["name"] == role),
                "{role}"
            );
        }
    }
}
