//! DeviceClass: a kind of device that pods can ask for.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("resource.k8s.io/v1", "DeviceClass", "deviceclasses")
        .columns("Name,Age", |o, now| cells![get::name(o), age(o, now)])
        .strategy(Rules { generation: true, ..Rules::PLAIN })
        .build()
}
