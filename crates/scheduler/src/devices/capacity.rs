//! How much of a device's capacity a share of it takes.
//!
//! Upstream: staging/src/k8s.io/dynamic-resource-allocation/structured/internal/incubating/consumable_capacity.go

use std::collections::BTreeMap;

use api::resource::v1::{CapacityRequestPolicy, CapacityRequirements, Device, DeviceCapacity};
use apimachinery::quantity::Quantity;

fn quantity(text: &api::Quantity) -> Quantity {
    // The API server lets no malformed quantity in.
    Quantity::parse(&text.0).unwrap_or_default()
}

/// What a request takes of each capacity of a device; `None` when it asks for what the device does not have, or for
/// amounts that the device does not give.
pub fn taken(asked: Option<&CapacityRequirements>, device: &Device) -> Option<BTreeMap<String, Quantity>> {
    let none = BTreeMap::new();
    let capacities = device.capacity.as_ref().unwrap_or(&none);
    let asked = asked.and_then(|asked| asked.requests.as_ref());
    if asked.into_iter().flatten().any(|(name, _)| !capacities.contains_key(name)) {
        return None;
    }
    let taken = capacities.iter().map(|(name, capacity)| {
        let amount = amount(asked.and_then(|asked| asked.get(name)).map(quantity), capacity);
        let allowed = capacity.request_policy.as_ref().is_none_or(|policy| allows(policy, &amount));
        allowed.then(|| (name.clone(), amount))
    });
    taken.collect()
}

/// The whole capacity of a device under this name.
pub fn whole(device: &Device, name: &str) -> Quantity {
    device
        .capacity
        .as_ref()
        .and_then(|capacity| capacity.get(name))
        .map(|c| quantity(&c.value))
        .unwrap_or_default()
}

/// The asked amount, rounded up to one that is given; the default, or all, when nothing is asked.
fn amount(asked: Option<Quantity>, capacity: &DeviceCapacity) -> Quantity {
    let policy = capacity.request_policy.as_ref();
    let Some(asked) = asked else {
        let default = policy.and_then(|policy| policy.default.as_ref());
        return quantity(default.unwrap_or(&capacity.value));
    };
    let Some(policy) = policy else { return asked };
    if let Some(range) = &policy.valid_range {
        let min = quantity(&range.min);
        if asked < min {
            return min;
        }
        let step = range.step.as_ref().map(|step| quantity(step).value()).filter(|step| *step > 0);
        let Some(step) = step else { return asked };
        let above = asked.value().saturating_sub(min.value());
        let steps = above / step + i64::from(above % step != 0);
        return Quantity::from_bytes(min.value().saturating_add(step.saturating_mul(steps)));
    }
    let mut values = policy.valid_values.iter().flatten().map(quantity);
    values.find(|value| asked <= *value).unwrap_or(asked)
}

fn allows(policy: &CapacityRequestPolicy, amount: &Quantity) -> bool {
    if policy.default.as_ref().is_some_and(|default| quantity(default) == *amount) {
        return true;
    }
    if let Some(range) = &policy.valid_range {
        let step = range.step.as_ref().map(|step| quantity(step).value()).filter(|step| *step > 0);
        let above = amount.value().saturating_sub(quantity(&range.min).value());
        return range.max.as_ref().is_none_or(|max| *amount <= quantity(max))
            && step.is_none_or(|step| above % step == 0);
    }
    match policy.valid_values.as_deref() {
        None | Some([]) => true,
        Some(values) => values.iter().any(|value| quantity(value) == *amount),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(policy: Value, asked: Value, expected: Option<&str>) {
        let device = json!({"name": "d", "capacity": {"memory": {"value": "10Gi", "requestPolicy": policy}}});
        let device: Device = serde_json::from_value(device).unwrap();
        let asked: CapacityRequirements = serde_json::from_value(json!({ "requests": asked })).unwrap();
        let taken = taken(Some(&asked), &device).map(|taken| taken["memory"].to_string());
        assert_eq!(taken.as_deref(), expected, "{policy:?}");
    }

    #[test]
    fn what_is_asked_is_rounded_to_what_is_given() {
        let range = json!({"default": "1Gi", "validRange": {"min": "1Gi", "step": "1Gi", "max": "8Gi"}});
        check(json!(null), json!({"memory": "3Gi"}), Some("3Gi"));
        check(json!(null), json!({}), Some("10Gi"));
        check(range.clone(), json!({}), Some("1Gi"));
        check(range.clone(), json!({"memory": "10Mi"}), Some("1Gi"));
        check(range.clone(), json!({"memory": "1500Mi"}), Some("2Gi"));
        check(range.clone(), json!({"memory": "9Gi"}), None);
        check(range, json!({"cores": "1"}), None);
        let values = json!({"default": "2Gi", "validValues": ["2Gi", "4Gi"]});
        check(values.clone(), json!({"memory": "3Gi"}), Some("4Gi"));
        check(values, json!({"memory": "5Gi"}), None);
    }
}
