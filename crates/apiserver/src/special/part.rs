//! [`Part`]: which part of an object a route writes. What is not in the part is carried over from before.

use apimachinery::field;
use resources::strategy::carry_over;
use resources::{Context, ResourceDef};
use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Status,
    /// `pods/ephemeralcontainers`
    EphemeralContainers,
    /// `pods/resize`
    Resize,
    /// `namespaces/finalize`
    Finalize,
    /// `certificatesigningrequests/approval`
    Approval,
    /// `pods/binding`, whose object is made here and taken as it is.
    Binding,
}

impl Part {
    /// The part that a subresource writes; `None` when it writes none.
    pub fn of(subresource: &str) -> Option<Self> {
        match subresource {
            "" => Some(Part::Whole),
            "status" => Some(Part::Status),
            "ephemeralcontainers" => Some(Part::EphemeralContainers),
            "resize" => Some(Part::Resize),
            "finalize" => Some(Part::Finalize),
            "approval" => Some(Part::Approval),
            _ => None,
        }
    }

    pub fn changes_spec(self) -> bool {
        // A binding sets the node's name, which upstream does not count as a change of what is wanted.
        matches!(self, Part::Whole | Part::EphemeralContainers | Part::Resize)
    }
}

/// Takes what the part writes from `object` and everything else from `old`.
pub fn prepare(part: Part, def: &ResourceDef, context: &Context, object: &mut Value, old: &Value) {
    match part {
        Part::Whole => def.strategy.prepare_update(context, object, old),
        Part::Status => def.strategy.prepare_status_update(context, object, old),
        Part::EphemeralContainers => resources::pods::prepare_ephemeral_containers(object, old),
        Part::Finalize => only(object, old, &[&["spec", "finalizers"]]),
        Part::Approval => only(object, old, &[&["status", "conditions"]]),
        Part::Resize => resources::pods::prepare_resize(object, old),
        Part::Binding => {}
    }
}

fn only(object: &mut Value, old: &Value, paths: &[&[&str; 2]]) {
    let new = std::mem::replace(object, old.clone());
    carry_over(object, &new, "metadata");
    for [outer, inner] in paths {
        let value = new.get(*outer).and_then(|o| o.get(*inner)).cloned();
        if !object[*outer].is_object() {
            object[*outer] = Value::Object(Default::default());
        }
        let Some(fields) = object[*outer].as_object_mut() else { continue };
        match value {
            Some(value) => fields.insert((*inner).to_owned(), value),
            None => fields.remove(*inner),
        };
    }
}

pub fn validate(part: Part, def: &ResourceDef, object: &Value, old: &Value) -> Vec<field::Error> {
    match part {
        Part::Whole => def.strategy.validate_update(object, old),
        Part::Status | Part::Approval => def.strategy.validate_status_update(object, old),
        Part::EphemeralContainers => resources::pods::validate_ephemeral_containers(object, old),
        Part::Resize => resources::pods::validate_resize(object, old),
        Part::Finalize | Part::Binding => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_part_takes_no_more_than_its_own_fields() {
        let old =
            json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "i"}], "x": 1}});
        let new = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a", "image": "other", "resources": {"limits": {"cpu": "1"}}}],
            "ephemeralContainers": [{"name": "d"}],
        }});
        let mut resized = new.clone();
        resources::pods::prepare_resize(&mut resized, &old);
        assert_eq!(
            resized["spec"],
            json!({"containers": [{"name": "a", "image": "i", "resources": {"limits": {"cpu": "1"}}}], "x": 1})
        );
        let mut debugged = new;
        only(&mut debugged, &old, &[&["spec", "ephemeralContainers"]]);
        assert_eq!(debugged["spec"]["ephemeralContainers"], json!([{"name": "d"}]));
        assert_eq!(debugged["spec"]["containers"], old["spec"]["containers"]);
    }
}
