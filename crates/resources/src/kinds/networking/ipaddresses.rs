//! IPAddress: an address of a Service range that is taken, and by what.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("networking.k8s.io/v1", "IPAddress", "ipaddresses")
        .short(&["ip"])
        .columns("Name,ParentRef", cells)
        .strategy(Rules { name, validate, validate_update, ..Rules::PLAIN })
        .build()
}

/// Upstream fills a column for the age, which it does not declare.
///
/// Upstream: pkg/printers/internalversion/printers.go printIPAddress
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

/// Upstream: pkg/apis/networking/validation/validation.go validateIPAddressParentReference
fn validate(address: &Value) -> Errors {
    let mut errors = Errors::new();
    if !has(address, "spec.parentRef") {
        return vec![Error::required(&path("spec.parentRef"), "")];
    }
    type Rule = fn(&str) -> Vec<String>;
    let fields: [(&str, bool, Rule); 4] = [
        ("group", false, names::dns1123_subdomain),
        ("resource", true, names::path_segment),
        ("name", true, names::path_segment),
        ("namespace", false, names::path_segment),
    ];
    for (field, required, rule) in fields {
        let at = path("spec.parentRef").child(field);
        match text(address, &format!("spec.parentRef.{field}")) {
            "" if required => errors.push(Error::required(&at, "")),
            "" => {}
            value => errors.extend(crate::validate::each(rule(value), &at, value)),
        }
    }
    errors
}

fn validate_update(address: &Value, old: &Value) -> Errors {
    crate::validate::immutable(address, old, "spec.parentRef")
}
