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
    const MOST: usize = 512;
    const LONGEST: usize = 256 << 10;
    let driver = text(class, "driverName");
    let mut errors = match driver.is_empty() {
        true => vec![Error::required(&path("driverName"), "")],
        false => each(names::qualified_name(&driver.to_lowercase()), &path("driverName"), driver),
    };
    let at = path("parameters");
    match get::len(class, "parameters") {
        0 => errors.push(Error::required(&at, "must contain at least one key/value pair")),
        count if count > MOST => errors.push(Error::too_long(&at, MOST)),
        _ => {
            let length = |(key, value): (&str, &Value)| key.len() + value.as_str().map_or(0, str::len);
            if get::entries(class, "parameters").any(|(key, _)| key.is_empty()) {
                errors.push(Error::invalid(&at, "", "field can not be empty."));
            }
            if get::entries(class, "parameters").map(length).sum::<usize>() > LONGEST {
                errors.push(Error::too_long(&at, LONGEST));
            }
        }
    }
    errors
}

fn validate_update(class: &Value, old: &Value) -> Errors {
    let changed = |field: &&&str| class.get(**field) != old.get(**field);
    let forbidden =
        |field: &&str| Error::forbidden(&path(field), format!("updates to {field} are forbidden."));
    ["driverName", "parameters"].iter().filter(changed).map(forbidden).collect()
}
