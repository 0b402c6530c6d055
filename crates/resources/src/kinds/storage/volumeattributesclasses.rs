//! VolumeAttributesClass: attributes of a volume that can be changed while it lives.

use crate::prelude::*;
use crate::validate::each;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("storage.k8s.io/v1", "VolumeAttributesClass", "volumeattributesclasses")
        .short(&["vac"])
        .columns("Name,DriverName,Age", |o, now| cells![get::name(o), text(o, "driverName"), age(o, now)])
        .strategy(Rules { validate, validate_update, ..Rules::PLAIN })
        .build()
}

/// Upstream: pkg/apis/storage/validation/validation.go ValidateVolumeAttributesClass
fn validate(class: &Value) -> Errors {
    let driver = text(class, "driverName");
    let mut errors = match driver.is_empty() {
        true => vec![Error::required(&path("driverName"), "")],
        false => {
            let driver = driver.to_lowercase();
            each(names::qualified_name(&driver), &path("driverName"), &driver)
        }
    };
    errors.extend(super::parameters::validate(class, false));
    errors
}

fn validate_update(class: &Value, old: &Value) -> Errors {
    let changed = |field: &&&str| class.get(**field) != old.get(**field);
    let forbidden =
        |field: &&str| Error::forbidden(&path(field), format!("updates to {field} are forbidden."));
    ["driverName", "parameters"].iter().filter(changed).map(forbidden).collect()
}
