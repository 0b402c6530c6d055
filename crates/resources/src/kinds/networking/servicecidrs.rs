//! ServiceCIDR: a range that ClusterIPs come from.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("networking.k8s.io/v1", "ServiceCIDR", "servicecidrs")
        .status()
        .columns("Name,CIDRs,Age", |o, now| {
            cells![get::name(o), get::texts(o, "spec.cidrs").join(","), age(o, now)]
        })
        .strategy(Rules { validate_create: validate, validate_update, ..Rules::PLAIN })
        .build()
}

fn validate(range: &Value) -> Errors {
    let cidrs = get::items(range, "spec.cidrs", &path("spec.cidrs"));
    if cidrs.is_empty() {
        return vec![Error::required(&path("spec.cidrs"), "at least one CIDR required")];
    }
    let families: Vec<bool> = get::texts(range, "spec.cidrs").iter().map(|cidr| cidr.contains(':')).collect();
    if cidrs.len() > 2 || (cidrs.len() == 2 && families[0] == families[1]) {
        let value = at(range, "spec.cidrs").cloned().unwrap_or_default();
        let detail =
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
        return vec![Error::invalid(&path("spec.cidrs"), value, detail)];
    }
    cidrs.iter().flat_map(|(c, at)| crate::validate::cidr(c.as_str().unwrap_or_default(), at)).collect()
}

/// A range stays as it is; one of the other family may join the only one.
///
/// Upstream: pkg/apis/networking/validation/validation.go ValidateServiceCIDRUpdate
fn validate_update(range: &Value, old: &Value) -> Errors {
    let (new, was) = (get::texts(range, "spec.cidrs"), get::texts(old, "spec.cidrs"));
    let grows = was.len() == 1 && new.len() == 2;
    if new.len() != was.len() && !grows {
        let value = at(range, "spec.cidrs").cloned().unwrap_or_else(|| json!([]));
        return vec![Error::invalid(&path("spec.cidrs"), value, crate::validate::IMMUTABLE)];
    }
    let pairs = new.iter().zip(&was).enumerate().filter(|(_, (new, was))| new != was);
    let mut errors: Errors = pairs
        .map(|(index, (new, _))| {
            Error::invalid(&path("spec.cidrs").index(index), *new, crate::validate::IMMUTABLE)
        })
        .collect();
    if grows {
        errors.extend(validate(range));
    }
    errors
}
