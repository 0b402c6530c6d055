//! CSIStorageCapacity: how much a driver has left, and where.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("storage.k8s.io/v1", "CSIStorageCapacity", "csistoragecapacities")
        .strategy(Rules { validate, validate_update, unconditional_update: false, ..Rules::PLAIN })
        .build()
}

fn validate(capacity: &Value) -> Errors {
    let class = text(capacity, "storageClassName");
    let messages = names::dns1123_subdomain(class);
    let mut errors: Errors =
        messages.into_iter().map(|m| Error::invalid(&path("storageClassName"), class, m)).collect();
    if let Some(value) = at(capacity, "capacity") {
        errors.extend(crate::validate::quantities::non_negative(value, &path("capacity")));
    }
    if let Some(topology) = at(capacity, "nodeTopology") {
        errors.extend(crate::validate::selector(topology, &path("nodeTopology")));
    }
    errors
}

fn validate_update(capacity: &Value, old: &Value) -> Errors {
    let mut errors = crate::validate::immutable(capacity, old, "nodeTopology");
    errors.extend(crate::validate::immutable(capacity, old, "storageClassName"));
    errors
}
