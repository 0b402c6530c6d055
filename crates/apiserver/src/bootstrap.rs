//! What a cluster starts with, created when absent: the system namespaces, the default roles, the system priority
//! classes, what extension servers need to know, and the `kubernetes` Service that leads to this server.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use apimachinery::GroupVersionResource;
use client::{Client, Resource};
use serde_json::{Value, json};

use crate::handle::ApiServer;
use crate::seams::UserInfo;

/// The server acting for itself.
pub fn loopback_user() -> UserInfo {
    UserInfo {
        name: "system:apiserver".into(),
        groups: vec!["system:masters".into(), "system:authenticated".into()],
        ..Default::default()
    }
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// Upstream: pkg/apis/scheduling/helpers.go SystemPriorityClasses
fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description,
        })
    };
    [
        class(
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

fn authentication_data(data: &[(String, String)]) -> Value {
    let data: serde_json::Map<String, Value> =
        data.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
    })
}

/// Upstream: pkg/controlplane/controller/kubernetesservice/controller.go
fn kubernetes_service(server: &ApiServer) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kubernetes", "namespace": "default",
            "labels": {"provider": "kubernetes", "component": "apiserver"},
        },
        "spec": {
            "type": "ClusterIP", "clusterIP": server.services.first_address(), "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": server.config.advertise.1}],
        },
    })
}

/// The ranges that Services' addresses come from, as the API tells them.
///
/// Upstream: pkg/controlplane/controller/defaultservicecidr/default_servicecidr_controller.go
fn kubernetes_service_cidr(server: &ApiServer) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": server.services.ranges()},
    })
}

fn kubernetes_endpoints(server: &ApiServer) -> [Value; 2] {
    let (address, port) = server.config.advertise;
    let address_type = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let address = address.to_string();
    [
        json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"},
            },
            "subsets": [{"addresses": [{"ip": address}], "ports": [{"name": "https", "port": port, "protocol": "TCP"}]}],
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": {"kubernetes.io/service-name": "kubernetes"},
            },
            "addressType": address_type,
            "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
        }),
    ]
}

impl ApiServer {
    /// Creates what is absent and mends what leads elsewhere. The server is ready when this is done.
    pub async fn bootstrap(self: &Arc<Self>, roles: Vec<Value>) -> Result<(), client::Error> {
        let client = Client::new(self.in_process(loopback_user()), "trierarch-apiserver");
        for name in ["kube-system", "kube-public", "kube-node-lease", "default"] {
            self.create_absent(&client, namespace(name)).await?;
        }
        self.bootstrap_service_cidr(&client).await?;
        let mut objects = roles;
        objects.extend(priority_classes());
        objects.push(authentication_data(&self.config.authentication_data));
        objects.push(kubernetes_service(self));
        for object in objects {
            self.create_absent(&client, object).await?;
        }
        // A server on a loopback address can be reached by no pod, and is no endpoint.
        if !self.config.advertise.0.is_loopback() {
            for endpoints in kubernetes_endpoints(self) {
                self.create_or_replace(&client, endpoints).await?;
            }
        }
        self.tasks.spawn(crate::services::addresses::keep(self.clone(), client));
        self.health.bootstrapped.store(true, Ordering::Release);
        self.tasks.spawn(self.clone().keep_flow_control());
        self.tasks.spawn(self.clone().keep_aggregation());
        Ok(())
    }

    /// The ranges of Services, and that they are ready: what the server allocates from is never being prepared. A
    /// cluster may get a second family later.
    async fn bootstrap_service_cidr(&self, client: &Client) -> Result<(), client::Error> {
        let range = kubernetes_service_cidr(self);
        self.create_absent(client, range.clone()).await?;
        let Some(resource) = self.resource_of(&range) else { return Ok(()) };
        let mut current = client.get_value(&resource, "", "kubernetes").await?;
        let (had, has) = (&current["spec"]["cidrs"], &range["spec"]["cidrs"]);
        if had.as_array().is_some_and(|had| had.len() == 1) && had[0] == has[0] && had != has {
            current["spec"]["cidrs"] = has.clone();
            current = client.update_value(&resource, "", "kubernetes", None, &current).await?;
        }
        let conditions = current["status"]["conditions"].as_array();
        if conditions.is_some_and(|all| all.iter().any(|condition| condition["type"] == "Ready")) {
            return Ok(());
        }
        current["status"] = json!({"conditions": [{
            "type": "Ready", "status": "True", "reason": "", "message": "Kubernetes default Service CIDR is ready",
            "lastTransitionTime": apimachinery::time::rfc3339(self.now()),
        }]});
        client.update_value(&resource, "", "kubernetes", Some("status"), &current).await.map(drop)
    }

    /// The route of an object; `None` for kinds that this server does not serve.
    fn resource_of(&self, object: &Value) -> Option<Resource> {
        let group_version = apimachinery::GroupVersion::parse(object["apiVersion"].as_str()?)?;
        let kind = object["kind"].as_str()?;
        let table = self.registry.table();
        let row = table.rows().iter().find(|row| {
            row.def.group == group_version.group
                && row.def.version == group_version.version
                && row.def.kind == kind
        })?;
        let gvr =
            GroupVersionResource::new(row.def.group.clone(), row.def.version.clone(), row.def.plural.clone());
        Some(Resource { gvr, namespaced: row.def.namespaced() })
    }

    async fn create_absent(&self, client: &Client, object: Value) -> Result<bool, client::Error> {
        let Some(resource) = self.resource_of(&object) else { return Ok(false) };
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        // Asked first: to create it again would try to allocate its addresses again.
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        match client.get_value(&resource, namespace, name).await {
            Ok(_) => return Ok(false),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        match client.create_value(&resource, namespace, None, &object).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_already_exists() => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn create_or_replace(&self, client: &Client, object: Value) -> Result<(), client::Error> {
        let Some(resource) = self.resource_of(&object) else { return Ok(()) };
        if self.create_absent(client, object.clone()).await? {
            return Ok(());
        }
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        client.update_value(&resource, text("namespace"), text("name"), None, &object).await.map(drop)
    }
}
