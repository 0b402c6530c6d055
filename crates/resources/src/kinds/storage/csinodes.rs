//! CSINode: which storage drivers a node has.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("storage.k8s.io/v1", "CSINode", "csinodes")
        .columns("Name,Drivers:integer,Age", |o, now| {
            cells![get::name(o), get::len(o, "spec.drivers"), age(o, now)]
        })
        .strategy(Rules { unconditional_update: false, ..Rules::PLAIN })
        .build()
}
