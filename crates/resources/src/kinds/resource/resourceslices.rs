//! ResourceSlice: devices that a node or the cluster has.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("resource.k8s.io/v1", "ResourceSlice", "resourceslices")
        .columns("Name,Node,Driver,Pool,Age", |o, now| {
            cells![
                get::name(o),
                text(o, "spec.nodeName"),
                text(o, "spec.driver"),
                text(o, "spec.pool.name"),
                age(o, now),
            ]
        })
        .fields(&["spec.nodeName", "spec.driver"])
        .strategy(Rules { generation: true, ..Rules::PLAIN })
        .build()
}
