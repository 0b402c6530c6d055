//! What the cluster is told of the drivers of this node: its CSINode, and the node's labels and annotation.

use std::collections::BTreeMap;
use std::time::Duration;

use api::Object;
use api::core::v1::Node;
use api::meta::{ObjectMeta, OwnerReference};
use api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec, VolumeNodeResources};
use client::{Client, DeleteOptions, PatchType};
use cri::csi::NodeGetInfoResponse;
use serde_json::{Value, json};

/// The node's ids with its drivers, by the drivers' names.
const NODE_IDS: &str = "csi.volume.kubernetes.io/nodeid";
/// The kinds of volumes that drivers provide now: all that were once in the tree.
// Upstream: pkg/volume/csi/csi_plugin.go migratedPlugins
const MIGRATED: (&str, &str) = (
    "storage.alpha.kubernetes.io/migrated-plugins",
    "kubernetes.io/aws-ebs,kubernetes.io/azure-disk,kubernetes.io/azure-file,kubernetes.io/cinder,\
     kubernetes.io/gce-pd,kubernetes.io/portworx-volume,kubernetes.io/vsphere-volume",
);

// Upstream: pkg/volume/csi/nodeinfomanager/nodeinfomanager.go updateBackoff
const TRIES: u32 = 4;
const FIRST_DELAY: Duration = Duration::from_millis(10);
const FACTOR: u32 = 5;

/// What a driver says of this node.
#[derive(Clone, Debug, PartialEq)]
pub struct DriverNode {
    pub driver: String,
    pub node_id: String,
    pub topology: BTreeMap<String, String>,
    /// How many volumes the node can have; none said when zero.
    pub limit: i64,
}

impl DriverNode {
    pub fn new(driver: &str, info: NodeGetInfoResponse) -> Self {
        let topology = info.accessible_topology.map(|t| t.segments).unwrap_or_default();
        DriverNode {
            driver: driver.to_owned(),
            node_id: info.node_id,
            topology: topology.into_iter().collect(),
            limit: info.max_volumes_per_node,
        }
    }
}

/// The CSINode of a node without drivers.
fn fresh(node: &Node) -> CSINode {
    let owner = OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.name().to_owned(),
        uid: node.uid().to_owned(),
        ..Default::default()
    };
    CSINode {
        metadata: ObjectMeta {
            name: Some(node.name().to_owned()),
            owner_references: Some(vec![owner]),
            annotations: Some(BTreeMap::from([(MIGRATED.0.to_owned(), MIGRATED.1.to_owned())])),
            ..Default::default()
        },
        spec: CSINodeSpec::default(),
    }
}

fn is_of(csi_node: &CSINode, node: &Node) -> bool {
    let owners = csi_node.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|o| o.kind == "Node" && o.name == node.name() && o.uid == node.uid())
}

/// The CSINode with the driver as it is now, or without it; `None` if that changes nothing.
// Upstream: pkg/volume/csi/nodeinfomanager/nodeinfomanager.go installDriverToCSINode
fn with_driver(csi_node: &CSINode, name: &str, present: Option<&DriverNode>) -> Option<CSINode> {
    let mut changed = csi_node.clone();
    let annotations = changed.metadata.annotations.get_or_insert_with(BTreeMap::new);
    annotations.insert(MIGRATED.0.to_owned(), MIGRATED.1.to_owned());
    let entry = present.map(|told| CSINodeDriver {
        name: told.driver.clone(),
        node_id: told.node_id.clone(),
        topology_keys: (!told.topology.is_empty()).then(|| told.topology.keys().cloned().collect()),
        allocatable: (told.limit > 0)
            .then(|| VolumeNodeResources { count: Some(i32::try_from(told.limit).unwrap_or(i32::MAX)) }),
    });
    let drivers = &mut changed.spec.drivers;
    if entry.is_none() || !drivers.iter().any(|driver| Some(driver) == entry.as_ref()) {
        drivers.retain(|driver| driver.name != name);
        drivers.extend(entry);
    }
    (changed != *csi_node).then_some(changed)
}

/// The patch of the Node; `None` if there is nothing to change.
// Upstream: pkg/volume/csi/nodeinfomanager/nodeinfomanager.go updateNodeIDInNode, updateTopologyLabels
fn node_patch(node: &Node, name: &str, present: Option<&DriverNode>) -> Result<Option<Value>, String> {
    let annotation = node.metadata.annotations.as_ref().and_then(|a| a.get(NODE_IDS));
    let before: BTreeMap<String, String> = match annotation {
        Some(text) => serde_json::from_str(text).map_err(|e| {
            format!("failed to parse node's {NODE_IDS:?} annotation value ({text:?}) err={e}")
        })?,
        None => BTreeMap::new(),
    };
    let mut after = before.clone();
    after.remove(name);
    after.extend(present.map(|told| (name.to_owned(), told.node_id.clone())));
    let none = BTreeMap::new();
    let topology = present.map_or(&none, |told| &told.topology);
    let labels = node.metadata.labels.clone().unwrap_or_default();
    for (key, value) in topology {
        if let Some(label) = labels.get(key).filter(|label| *label != value) {
            return Err(format!(
                "detected topology value collision: driver reported {key:?}:{value:?} but existing label is \
                 {key:?}:{label:?}"
            ));
        }
    }
    if before == after && topology.keys().all(|key| labels.contains_key(key)) {
        return Ok(None);
    }
    let text = serde_json::to_string(&after).map_err(|e| e.to_string())?;
    let value = if after.is_empty() { Value::Null } else { Value::String(text) };
    // Another driver's registration may be under way: the version keeps one from undoing the other.
    Ok(Some(json!({"metadata": {
        "resourceVersion": node.metadata.resource_version,
        "annotations": {NODE_IDS: value},
        "labels": topology,
    }})))
}

/// Tries something a few times, with growing pauses.
async fn persist<T, Try, Tried>(what: &str, attempt: Try) -> Result<T, String>
where
    Try: Fn() -> Tried,
    Tried: Future<Output = Result<T, String>>,
{
    let mut errors = Vec::new();
    for number in 0..TRIES {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(error) => errors.push(error),
        }
        tokio::time::sleep(FIRST_DELAY * FACTOR.pow(number)).await;
    }
    errors.dedup();
    Err(format!(
        "error updating {what}: timed out waiting for the condition; caused by: [{}]",
        errors.join(", ")
    ))
}

/// The node's CSINode, made if it is missing or another node's of the same name.
// Upstream: pkg/volume/csi/nodeinfomanager/nodeinfomanager.go ensureNodeOwnsCSINode
async fn own(client: &Client, node: &Node) -> Result<CSINode, client::Error> {
    match client.get::<CSINode>("", node.name()).await {
        Ok(found) if is_of(&found, node) => return Ok(found),
        Ok(foreign) => {
            client.delete::<CSINode>("", node.name(), &DeleteOptions::uid(foreign.uid())).await?;
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    client.create(&fresh(node)).await
}

async fn update(
    client: &Client,
    node: &Node,
    name: &str,
    present: Option<&DriverNode>,
) -> Result<(), String> {
    let csi_node = own(client, node).await.map_err(|e| e.to_string())?;
    let Some(changed) = with_driver(&csi_node, name, present) else { return Ok(()) };
    client.update(&changed).await.map(drop).map_err(|e| e.to_string())
}

async fn get(client: &Client, node_name: &str) -> Result<Node, String> {
    client.get::<Node>("", node_name).await.map_err(|e| e.to_string())
}

/// Makes the node's CSINode be there.
pub async fn ensure(client: &Client, node_name: &str) -> Result<(), String> {
    persist("CSINode", || async {
        let node = get(client, node_name).await?;
        let csi_node = own(client, &node).await.map_err(|e| e.to_string())?;
        let annotated = csi_node.metadata.annotations.as_ref().and_then(|a| a.get(MIGRATED.0));
        if annotated.map(String::as_str) == Some(MIGRATED.1) {
            return Ok(());
        }
        let patch = json!({"metadata": {"annotations": {MIGRATED.0: MIGRATED.1}}});
        let patched = client.patch::<CSINode>("", node_name, None, PatchType::Merge, &patch).await;
        patched.map(drop).map_err(|e| e.to_string())
    })
    .await
}

/// Tells the cluster of a driver.
pub async fn install(client: &Client, node_name: &str, told: &DriverNode) -> Result<(), String> {
    if told.node_id.is_empty() {
        return Err("error adding CSI driver node info: driverNodeID must not be empty".to_owned());
    }
    let label = patch_node(client, node_name, &told.driver, Some(told)).await;
    label.map_err(|e| format!("error updating Node object with CSI driver node info: {e}"))?;
    refresh(client, node_name, told).await
}

/// Tells the cluster what a driver says of the node now.
pub async fn refresh(client: &Client, node_name: &str, told: &DriverNode) -> Result<(), String> {
    let updated = persist("CSINode", || async {
        update(client, &get(client, node_name).await?, &told.driver, Some(told)).await
    });
    updated.await.map_err(|e| format!("error updating CSINode object with CSI driver node info: {e}"))
}

/// Tells the cluster that the driver is gone.
pub async fn uninstall(client: &Client, node_name: &str, driver: &str) -> Result<(), String> {
    let updated =
        persist("CSINode", || async { update(client, &get(client, node_name).await?, driver, None).await });
    updated.await.map_err(|e| format!("error uninstalling CSI driver from CSINode object {e}"))?;
    let patched = patch_node(client, node_name, driver, None).await;
    patched.map_err(|e| format!("error removing CSI driver node info from Node object {e}"))
}

async fn patch_node(
    client: &Client,
    node_name: &str,
    driver: &str,
    present: Option<&DriverNode>,
) -> Result<(), String> {
    persist("node", || async {
        let Some(patch) = node_patch(&get(client, node_name).await?, driver, present)? else { return Ok(()) };
        let patched = client.patch::<Node>("", node_name, None, PatchType::Merge, &patch).await;
        patched.map(drop).map_err(|e| e.to_string())
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(driver: &str, id: &str, limit: i64) -> DriverNode {
        let topology = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        DriverNode { driver: driver.into(), node_id: id.into(), topology, limit }
    }

    fn node(metadata: Value) -> Node {
        let mut node: Node = serde_json::from_value(json!({ "metadata": metadata })).unwrap();
        node.metadata.name = Some("n".into());
        node.metadata.uid = Some("u".into());
        node
    }

    #[test]
    fn drivers_of_a_node() {
        let empty = fresh(&node(json!({})));
        let words = |csi_node: &CSINode| -> Vec<String> {
            let count = |d: &CSINodeDriver| d.allocatable.as_ref().and_then(|a| a.count).unwrap_or(0);
            csi_node.spec.drivers.iter().map(|d| format!("{} {} {}", d.name, d.node_id, count(d))).collect()
        };
        assert!(with_driver(&empty, "a", None).is_none());
        let one = with_driver(&empty, "a", Some(&told("a", "1", 3))).unwrap();
        assert_eq!(words(&one), ["a 1 3"]);
        assert!(with_driver(&one, "a", Some(&told("a", "1", 3))).is_none());
        let two = with_driver(&one, "b", Some(&told("b", "2", 0))).unwrap();
        let changed = with_driver(&two, "a", Some(&told("a", "9", i64::MAX))).unwrap();
        assert_eq!(words(&changed), ["b 2 0".to_owned(), format!("a 9 {}", i32::MAX)]);
        assert_eq!(words(&with_driver(&changed, "b", None).unwrap()).len(), 1);
        assert!(is_of(&one, &node(json!({}))));
        assert!(!is_of(
            &one,
            &Node { metadata: ObjectMeta { uid: Some("v".into()), ..Default::default() }, ..node(json!({})) }
        ));
    }

    #[test]
    fn labels_and_ids_of_a_node() {
        let ids = |text: &str| json!({"annotations": {NODE_IDS: text}, "labels": {"zone": "a"}});
        let patched = |node: &Node, name: &str, told: Option<&DriverNode>| {
            let patch = node_patch(node, name, told).map(|p| p.unwrap_or_default());
            patch.map(|p| (p["metadata"]["annotations"][NODE_IDS].clone(), p["metadata"]["labels"].clone()))
        };
        let one = told("a", "1", 0);
        let new = patched(&node(json!({})), "a", Some(&one)).unwrap();
        assert_eq!(new, (json!(r#"{"a":"1"}"#), json!({"zone": "a"})));
        assert_eq!(node_patch(&node(ids(r#"{"a":"1"}"#)), "a", Some(&one)), Ok(None));
        let more = patched(&node(ids(r#"{"b":"2"}"#)), "a", Some(&one)).unwrap();
        assert_eq!(more.0, json!(r#"{"a":"1","b":"2"}"#));
        assert_eq!(patched(&node(ids(r#"{"a":"1","b":"2"}"#)), "a", None).unwrap().0, json!(r#"{"b":"2"}"#));
        assert_eq!(patched(&node(ids(r#"{"a":"1"}"#)), "a", None).unwrap().0, Value::Null);
        assert_eq!(node_patch(&node(json!({})), "a", None), Ok(None));
        assert!(patched(&node(json!({"labels": {"zone": "b"}})), "a", Some(&one)).is_err());
        assert!(patched(&node(ids("garbage")), "a", Some(&one)).is_err());
    }
}
