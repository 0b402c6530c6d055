//! The smallest strategic merge patch from one status to another.

use serde_json::{Map, Value, json};

/// The patch of `status` that makes `old` be `new`; `None` when they are equal. Conditions are merged by their
/// type on the server, so one that vanished is deleted, and what vanished from one is set to null; other lists
/// are replaced.
pub fn diff(old: &Value, new: &Value, uid: Option<&str>) -> Option<Value> {
    let empty = Map::new();
    let old = old.as_object().unwrap_or(&empty);
    let new = new.as_object().unwrap_or(&empty);
    let mut status = Map::new();
    for (key, value) in new {
        let before = old.get(key);
        if before == Some(value) {
            continue;
        }
        match (key.as_str(), before) {
            ("conditions", before) => {
                status.insert(key.clone(), conditions(before, value));
            }
            ("addresses" | "podIPs", Some(_)) => {
                // These merge by a key that may itself change: the replace directive empties the list first.
                let mut list = value.as_array().cloned().unwrap_or_default();
                list.push(json!({"$patch": "replace"}));
                status.insert(key.clone(), Value::Array(list));
            }
            _ => {
                status.insert(key.clone(), value.clone());
            }
        }
    }
    for key in old.keys().filter(|k| !new.contains_key(*k)) {
        status.insert(key.clone(), Value::Null);
    }
    if status.is_empty() {
        return None;
    }
    let mut patch = json!({ "status": status });
    if let Some(uid) = uid {
        patch["metadata"] = json!({ "uid": uid });
    }
    Some(patch)
}

fn conditions(old: Option<&Value>, new: &Value) -> Value {
    let old: Vec<&Value> = old.and_then(Value::as_array).into_iter().flatten().collect();
    let changed = new.as_array().into_iter().flatten().filter_map(|condition| {
        let before = old.iter().find(|o| o["type"] == condition["type"]);
        if before == Some(&condition) {
            return None;
        }
        let mut condition = condition.clone();
        let gone = before.and_then(|b| b.as_object()).into_iter().flatten().map(|(key, _)| key.clone());
        for key in gone.collect::<Vec<_>>() {
            if condition.get(&key).is_none() {
                condition[key] = Value::Null;
            }
        }
        Some(condition)
    });
    let kept = |kind: &Value| new.as_array().into_iter().flatten().any(|c| c["type"] == *kind);
    let gone = old.iter().map(|o| &o["type"]).filter(|kind| !kept(kind));
    let gone = gone.map(|kind| json!({"$patch": "delete", "type": kind}));
    Value::Array(changed.chain(gone).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patches() {
        let cases = [
            (json!({"phase": "Pending"}), json!({"phase": "Pending"}), None),
            (
                json!({"phase": "Pending", "reason": "x"}),
                json!({"phase": "Running"}),
                Some(json!({"status": {
                    "phase": "Running", "reason": null,
                }})),
            ),
            (
                json!({"conditions": [{"type": "A", "status": "False", "message": "m"}, {"type": "B", "status": "True"}]}),
                json!({"conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True"}]}),
                Some(json!({"status": {"conditions": [{"type": "A", "status": "True", "message": null}]}})),
            ),
            (
                json!({"conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True"}]}),
                json!({"conditions": [{"type": "B", "status": "True"}]}),
                Some(json!({"status": {"conditions": [{"$patch": "delete", "type": "A"}]}})),
            ),
            (
                json!({"podIPs": [{"ip": "1"}]}),
                json!({"podIPs": [{"ip": "2"}]}),
                Some(json!({"status": {"podIPs": [{"ip": "2"}, {"$patch": "replace"}]}})),
            ),
            (json!(null), json!({"phase": "Pending"}), Some(json!({"status": {"phase": "Pending"}}))),
        ];
        for (old, new, want) in cases {
            assert_eq!(diff(&old, &new, None), want, "{old} -> {new}");
        }
    }
}
