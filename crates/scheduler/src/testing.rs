//! Objects for the tests of plugins.

use std::sync::Arc;

use api::Object;
use api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use api::storage::v1::{CSINode, StorageClass};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::{NodeInfo, PodInfo};

pub fn pod_info(pod: Value) -> Arc<PodInfo> {
    Arc::new(PodInfo::new(Pod::from_value(pod).unwrap().into()))
}

pub fn node_info(node: Value) -> NodeInfo {
    NodeInfo::new(Node::from_value(node).unwrap().into())
}

/// A cluster without nodes that has these volumes and claims.
pub fn cluster(objects: &[Value]) -> Cluster {
    let mut cluster = Cluster::default();
    let volumes = &mut cluster.volumes;
    for object in objects {
        let name = object["metadata"]["name"].as_str().unwrap();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        match object["kind"].as_str().unwrap() {
            "PersistentVolume" => {
                let volume = PersistentVolume::from_value(object.clone()).unwrap();
                volumes.volumes.set(name, Some(Arc::new(volume)));
            }
            "PersistentVolumeClaim" => {
                let claim = PersistentVolumeClaim::from_value(object.clone()).unwrap();
                volumes.claims.set(&format!("{namespace}/{name}"), Some(Arc::new(claim)));
            }
            "StorageClass" => {
                let class = StorageClass::from_value(object.clone()).unwrap();
                volumes.classes.insert(name.to_owned(), Arc::new(class));
            }
            "CSINode" => {
                let node = CSINode::from_value(object.clone()).unwrap();
                volumes.csi_nodes.insert(name.to_owned(), Arc::new(node));
            }
            other => panic!("no test needs a {other}"),
        }
    }
    cluster
}
