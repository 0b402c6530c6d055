//! What the status of a CustomResourceDefinition says: which names it got, whether its kinds are served, and what
//! is wrong with it.
//!
//! Names belong to the definition that got them first; [`decide`] looks at one definition and at the names that
//! all others of its group have.
//!
//! Upstream: apiextensions-apiserver/pkg/controller/{status,establish,nonstructuralschema,apiapproval}

use std::collections::HashSet;

use apimachinery::field::{Error, Path, aggregate};
use schema::structural::invariants;
use serde_json::{Value, json};

use super::is_true_condition;
use crate::get::{is_true, list, text, texts};
use crate::kinds::apiextensions::approval::{Approval, approval, is_protected};
use crate::kinds::apiextensions::conversion::is_valid_ca_bundle;

/// The names that are taken in one group.
#[derive(Debug, Default)]
pub struct Taken {
    resources: HashSet<String>,
    kinds: HashSet<String>,
}

impl Taken {
    /// The names that the definitions of a group have.
    pub fn of<'v>(group: &str, definitions: impl IntoIterator<Item = &'v Value>) -> Self {
        let mut taken = Taken::default();
        for definition in definitions.into_iter().filter(|d| text(d, "spec.group") == group) {
            let name = |field: &str| text(definition, &format!("status.acceptedNames.{field}")).to_owned();
            taken.resources.extend([name("plural"), name("singular")]);
            taken
                .resources
                .extend(texts(definition, "status.acceptedNames.shortNames").iter().map(|n| (*n).to_owned()));
            taken.kinds.extend([name("kind"), name("listKind")]);
        }
        taken
    }
}

/// A condition in the making.
struct Condition {
    kind: &'static str,
    status: &'static str,
    reason: String,
    message: String,
}

impl Condition {
    fn new(
        kind: &'static str,
        status: &'static str,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Condition { kind, status, reason: reason.into(), message: message.into() }
    }
}

/// Sets a condition in a status; the time changes with the status of the condition.
///
/// Upstream: apiextensions-apiserver/pkg/apihelpers/helpers.go SetCRDCondition
pub fn set_condition(status: &mut Value, now: &str, kind: &str, value: &str, reason: &str, message: &str) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    let new = |time: &Value| json!({"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": time});
    match conditions.iter_mut().find(|condition| condition["type"] == kind) {
        Some(known) => {
            let kept = known["status"] == value && known["lastTransitionTime"].is_string();
            let time = if kept { known["lastTransitionTime"].clone() } else { now.into() };
            *known = new(&time);
        }
        None => conditions.push(new(&now.into())),
    }
}

/// The status that a definition should have. `now` is for the times of what changes.
pub fn decide(definition: &Value, taken: &Taken, now: &str) -> Value {
    let mut status = definition.get("status").filter(|status| status.is_object()).cloned();
    let status = status.get_or_insert_with(|| json!({}));
    let set = |status: &mut Value, condition: Condition| {
        let Condition { kind, status: value, reason, message } = condition;
        set_condition(status, now, kind, value, &reason, &message);
    };
    let named = definition.pointer("/spec/names") == definition.pointer("/status/acceptedNames");
    if !named || !has_condition(definition, "NamesAccepted") {
        let (names, accepted) = names(definition, taken);
        status["acceptedNames"] = names;
        set(status, accepted);
    }
    set(status, established(definition, status));
    match non_structural(definition) {
        Some(condition) => set(status, condition),
        None => {
            if let Some(Value::Array(conditions)) = status.get_mut("conditions") {
                conditions.retain(|condition| condition["type"] != "NonStructuralSchema");
            }
        }
    }
    if let Some(condition) = approved(definition) {
        set(status, condition);
    }
    status.take()
}

fn has_condition(definition: &Value, kind: &str) -> bool {
    list(definition, "status.conditions").iter().any(|condition| text(condition, "type") == kind)
}

/// The names that the definition gets, and the condition about them: what is taken stays as it was.
fn names(definition: &Value, taken: &Taken) -> (Value, Condition) {
    let wanted = |field: &str| text(definition, &format!("spec.names.{field}"));
    let has = |field: &str| text(definition, &format!("status.acceptedNames.{field}"));
    let mut names = definition.pointer("/status/acceptedNames").cloned().unwrap_or_default();
    if !names.is_object() {
        names = json!({});
    }
    let mut conflict: Option<Condition> = None;
    let mut refuse = |reason: &str, message: String| {
        conflict = Some(Condition::new("NamesAccepted", "False", reason, message));
    };
    let in_use = |name: &str| format!("{name:?} is already in use");
    for (field, reason, used) in [
        ("plural", "PluralConflict", &taken.resources),
        ("singular", "SingularConflict", &taken.resources),
        ("shortNames", "ShortNamesConflict", &taken.resources),
        ("kind", "KindConflict", &taken.kinds),
        ("listKind", "ListKindConflict", &taken.kinds),
    ] {
        if field == "shortNames" {
            let known = texts(definition, "status.acceptedNames.shortNames");
            let wanted = texts(definition, "spec.names.shortNames");
            let conflicts: Vec<String> = wanted
                .iter()
                .filter(|name| !known.contains(name) && used.contains(**name))
                .map(|name| in_use(name))
                .collect();
            match conflicts.as_slice() {
                [] if wanted.is_empty() => drop(names.as_object_mut().map(|names| names.remove(field))),
                [] => names[field] = json!(wanted),
                [one] => refuse(reason, one.clone()),
                several => refuse(reason, format!("[{}]", several.join(", "))),
            }
        } else if wanted(field) != has(field) && used.contains(wanted(field)) {
            refuse(reason, in_use(wanted(field)));
        } else {
            names[field] = wanted(field).into();
        }
    }
    match definition.pointer("/spec/names/categories") {
        Some(categories) => names["categories"] = categories.clone(),
        None => drop(names.as_object_mut().map(|names| names.remove("categories"))),
    }
    let fine = || Condition::new("NamesAccepted", "True", "NoConflicts", "no conflicts found");
    (names, conflict.unwrap_or_else(fine))
}

/// Once established, a definition stays it.
fn established(definition: &Value, status: &Value) -> Condition {
    let known = list(definition, "status.conditions").iter().find(|c| text(c, "type") == "Established");
    if let Some(known) = known.filter(|known| text(known, "status") == "True") {
        return Condition::new("Established", "True", text(known, "reason"), text(known, "message"));
    }
    let accepted = is_true_condition(&json!({"status": status}), "NamesAccepted");
    if !accepted {
        return Condition::new("Established", "False", "NotAccepted", "not all names are accepted");
    }
    let bundle = text(definition, "spec.conversion.webhook.clientConfig.caBundle");
    if !is_valid_ca_bundle(bundle) {
        let message = "The conversion webhook CABundle is invalid";
        return Condition::new("Established", "False", "InvalidCABundle", message);
    }
    let message = "the initial names have been accepted";
    Condition::new("Established", "True", "InitialNamesAccepted", message)
}

fn non_structural(definition: &Value) -> Option<Condition> {
    let mut errors: Vec<Error> = Vec::new();
    if is_true(definition, "spec.preserveUnknownFields") {
        let path = Path::new("spec").child("preserveUnknownFields");
        errors.push(Error::invalid(&path, true, "must be false"));
    }
    for (at, version) in list(definition, "spec.versions").iter().enumerate() {
        let Some(schema) = version.pointer("/schema/openAPIV3Schema") else { continue };
        if let Some(why) = invariants::unsupported(schema) {
            let name = text(version, "name");
            let message = format!("failed to check validation schema for version {name}: {why}");
            return Some(Condition::new("NonStructuralSchema", "Unknown", "StructuralError", message));
        }
        let path = Path::new("spec").child("versions").index(at).child("schema").child("openAPIV3Schema");
        errors.extend(invariants::validate(&path, schema));
    }
    let message = || aggregate(&errors);
    (!errors.is_empty()).then(|| Condition::new("NonStructuralSchema", "True", "Violations", message()))
}

fn approved(definition: &Value) -> Option<Condition> {
    if !is_protected(text(definition, "spec.group")) {
        return None;
    }
    let (state, message) = approval(definition);
    let (status, reason) = match state {
        Approval::Invalid => ("False", "InvalidAnnotation"),
        Approval::Missing => ("False", "MissingAnnotation"),
        Approval::Approved => ("True", "ApprovedAnnotation"),
        Approval::Bypassed => ("False", "UnapprovedAnnotation"),
    };
    Some(Condition::new("KubernetesAPIApprovalPolicyConformant", status, reason, message))
}
