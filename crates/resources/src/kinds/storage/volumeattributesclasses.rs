//! VolumeAttributesClass: attributes of a volume that can be changed while it lives.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("storage.k8s.io/v1", "VolumeAttributesClass", "volumeattributesclasses")
        .short(&["vac"])
        .columns("Name,DriverName,Age", |o, now| cells![get::name(o), text(o, "driverName"), age(o, now)])
        .strategy(Rules { validate_update, ..Rules::PLAIN })
        .build()
}

fn validate_update(class: &Value, old: &Value) -> Errors {
    let changed = |field: &&&str| class.get(**field) != old.get(**field);
    let forbidden =
        |field: &&str| Error::forbidden(&path(field), format!("updates to {field} are forbidden."));
    ["driverName", "parameters"].iter().filter(changed).map(forbidden).collect()
}
