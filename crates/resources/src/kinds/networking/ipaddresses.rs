//! IPAddress: an address of a Service range that is taken, and by what.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("networking.k8s.io/v1", "IPAddress", "ipaddresses")
        .short(&["ip"])
        .columns("Name,ParentRef,Age", cells)
        .strategy(Rules { name, validate, validate_update, ..Rules::PLAIN })
        .build()
}

/// Upstream forgets to declare the age column that it fills; clients are better served with it declared.
fn cells(address: &Value, now: i64) -> Vec<Cell> {
    let Some(parent) = at(address, "spec.parentRef") else {
        return cells![get::name(address), "<none>", age(address, now)];
    };
    let mut shown = text(parent, "resource").to_lowercase();
    if !text(parent, "group").is_empty() {
        shown = format!("{shown}.{}", text(parent, "group").to_lowercase());
    }
    if !text(parent, "namespace").is_empty() {
        shown = format!("{shown}/{}", text(parent, "namespace"));
    }
    cells![get::name(address), format!("{shown}/{}", text(parent, "name")), age(address, now)]
}

/// The name is the address in its canonical form.
fn name(name: &str) -> Vec<String> {
    match name.parse::<std::net::IpAddr>() {
        Ok(address) if address.to_string() == name => Vec::new(),
        Ok(address) => vec![format!("must be in canonical form (\"{address}\")")],
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

fn validate(address: &Value) -> Errors {
    let mut errors = Errors::new();
    if !has(address, "spec.parentRef") {
        return vec![Error::required(&path("spec.parentRef"), "")];
    }
    for field in ["resource", "name"] {
        if text(address, &format!("spec.parentRef.{field}")).is_empty() {
            errors.push(Error::required(&path("spec.parentRef").child(field), ""));
        }
    }
    errors
}

fn validate_update(address: &Value, old: &Value) -> Errors {
    crate::validate::immutable(address, old, "spec.parentRef")
}
