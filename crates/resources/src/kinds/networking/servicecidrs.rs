//! ServiceCIDR: a range that ClusterIPs come from.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("networking.k8s.io/v1", "ServiceCIDR", "servicecidrs")
        .status()
        .columns("Name,CIDRs,Age", |o, now| {
            cells![get::name(o), get::texts(o, "spec.cidrs").join(","), age(o, now)]
        })
        .strategy(Rules { validate, validate_update, ..Rules::PLAIN })
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

fn validate_update(range: &Value, old: &Value) -> Errors {
    crate::validate::immutable(range, old, "spec.cidrs")
}
