//! The quality of service of a pod, which decides who is killed first.
//!
//! Upstream: pkg/apis/core/v1/helper/qos/qos.go ComputePodQOS

use serde_json::Value;

use crate::get::{entries, has, list};
use crate::validate::quantities::read;

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn class(spec: &Value) -> &'static str {
    let containers = || list(spec, "containers").iter().chain(list(spec, "initContainers"));
    let amounts = |resources: &Value, field: &str| -> Vec<(String, apimachinery::quantity::Quantity)> {
        entries(resources, field)
            .filter(|(name, _)| matches!(*name, "cpu" | "memory"))
            .filter_map(|(name, value)| Some((name.to_owned(), read(value)?)))
            .filter(|(_, quantity)| !quantity.is_zero() && !quantity.is_negative())
            .collect()
    };
    // With resources of its own the pod is judged as a whole.
    let judged: Vec<&Value> = if has(spec, "resources") { vec![spec] } else { containers().collect() };
    let mut any = false;
    let mut guaranteed = true;
    for item in judged {
        let limits = amounts(item, "resources.limits");
        let requests = amounts(item, "resources.requests");
        any |= !limits.is_empty() || !requests.is_empty();
        let equal = requests.iter().all(|(name, quantity)| {
            limits.iter().find(|(n, _)| n == name).is_some_and(|(_, limit)| limit == quantity)
        });
        guaranteed &= limits.len() == 2 && equal;
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn classes_follow_requests_and_limits() {
        let both =
            json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        let cpu = json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}});
        for (resources, expected) in [
            (vec![json!({})], "BestEffort"),
            (vec![json!({"requests": {"cpu": "0"}})], "BestEffort"),
            (vec![both.clone()], "Guaranteed"),
            (vec![both.clone(), json!({})], "Burstable"),
            (vec![cpu], "Burstable"),
            (vec![json!({"requests": {"memory": "1Mi"}})], "Burstable"),
            (vec![json!({"requests": {"example.com/gpu": "1"}})], "BestEffort"),
        ] {
            let containers: Vec<Value> = resources.iter().map(|r| json!({"resources": r})).collect();
            assert_eq!(class(&json!({"containers": containers})), expected, "{resources:?}");
        }
        assert_eq!(class(&json!({"containers": [{}], "resources": both})), "Guaranteed");
    }
}
