//! Patches: JSON, merge, strategic merge and server-side apply, all by way of [`Call::update`].
//!
//! Upstream: apiserver/pkg/endpoints/handlers/patch.go

use std::sync::Arc;

use api::tables::Definition;
use apimachinery::status::Details;
use apimachinery::{GroupResource, GroupVersionKind, Status, field};
use resources::ResourceDef;
use schema::apply::{Typed, Writer};
use schema::decode::Strictness;
use schema::structural::apply::Custom as CustomType;
use serde_json::{Map, Value, json};

use super::call::Call;
use super::create::{Mismatch, json_type, other_custom_kind, why_other_kind};
use super::metadata;
use crate::encode::{Outcome, group_version};
use crate::extensions::admit;
use crate::negotiate::Patch;
use crate::options::FieldValidation;
use crate::special::part::Part;

/// A patch as it was read from the body.
pub struct Reading {
    form: Form,
    /// What was found in the body that is not wrong enough to refuse it in any case.
    problems: Vec<String>,
}

enum Form {
    Json(Vec<u8>),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

impl Reading {
    /// An apply of this object.
    pub fn apply(object: Value) -> Self {
        Reading { form: Form::Apply(object), problems: Vec::new() }
    }
}

impl Form {
    /// Whether it may touch the owners of fields, which it knows in their usual form.
    fn is_of_owners(&self) -> bool {
        match self {
            Form::Json(_) => true,
            Form::Merge(patch) | Form::Strategic(patch) => {
                patch.get("metadata").is_some_and(|metadata| metadata.get("managedFields").is_some())
            }
            Form::Apply(_) => false,
        }
    }
}

impl Call<'_> {
    /// Reads a patch. Problems of its form are told under `fieldValidation`.
    pub fn read_patch(&mut self, kind: Patch, body: &[u8]) -> Result<Reading, Status> {
        let prefix = if kind == Patch::Strategic { "" } else { "error decoding patch: " };
        let untyped = |decoded: Result<schema::decode::Decoded, schema::Error>| {
            decoded.map_err(|error| Status::bad_request(format!("{prefix}{error}")))
        };
        let not_a = |value: &Value, wanted: &str| {
            let is = json_type(value);
            Status::bad_request(format!("{prefix}json: cannot unmarshal {is} into Go value of type {wanted}"))
        };
        const MAP: &str = "map[string]interface {}";
        if kind != Patch::Apply && self.options.force {
            let path = field::Path::new("force");
            let error = field::Error::forbidden(&path, "may not be specified for non-apply patch");
            return Err(options_error(&[error]));
        }
        let decoded = match kind {
            Patch::Json => {
                let read = untyped(schema::decode::untyped_json(body))?;
                let looked_at = self.options.field_validation != FieldValidation::Ignore;
                if looked_at && !(read.object.is_array() || read.object.is_null()) {
                    return Err(not_a(&read.object, "[]handlers.jsonPatchOp"));
                }
                let problems = read.problems.iter().map(|problem| format!("json patch {problem}")).collect();
                return Ok(Reading { form: Form::Json(body.to_vec()), problems });
            }
            Patch::Merge | Patch::Strategic => untyped(schema::decode::untyped_json(body))?,
            Patch::Apply => return self.read_apply(body).map(Reading::apply),
        };
        if !(decoded.object.is_object() || decoded.object.is_null()) {
            return Err(not_a(&decoded.object, MAP));
        }
        let form = match (kind, decoded.object) {
            // Nothing is merged without a change.
            (Patch::Strategic, Value::Null) => Form::Strategic(Value::Object(Map::new())),
            (Patch::Strategic, patch) => Form::Strategic(patch),
            (_, patch) => Form::Merge(patch),
        };
        Ok(Reading { form, problems: decoded.problems })
    }

    /// The object that is applied.
    pub fn read_apply(&mut self, body: &[u8]) -> Result<Value, Status> {
        if schema::cbor::is_cbor(body) {
            let object =
                schema::cbor::decode(body).map_err(|error| Status::bad_request(error.to_string()))?;
            return self.check_apply(object);
        }
        let decoded = schema::decode::untyped_yaml(body)
            .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?;
        if self.options.field_validation == FieldValidation::Strict && !decoded.problems.is_empty() {
            return Err(Status::bad_request(format!(
                "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  {}",
                decoded.problems.join("\n  ")
            )));
        }
        self.report(decoded.problems)?;
        match decoded.object {
            Value::Null => self.check_apply(Value::Object(Map::new())),
            object @ Value::Object(_) => self.check_apply(object),
            other => Err(Status::bad_request(format!(
                "error decoding YAML: error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value \
                 of type map[string]interface {{}}",
                json_type(&other)
            ))),
        }
    }

    fn check_apply(&self, object: Value) -> Result<Value, Status> {
        if self.options.field_manager.is_empty() {
            let error =
                field::Error::required(&field::Path::new("fieldManager"), "is required for apply patch");
            return Err(options_error(&[error]));
        }
        Ok(object)
    }

    /// Refuses under Strict, warns under Warn, and is silent under Ignore.
    pub fn report(&mut self, problems: Vec<String>) -> Result<(), Status> {
        match self.options.field_validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => self.warn(problems),
            FieldValidation::Strict => {
                if let Some(error) = schema::decode::strict_error(&problems) {
                    return Err(Status::bad_request(error));
                }
            }
        }
        Ok(())
    }

    pub async fn patch(&mut self, part: Part, reading: Reading) -> Result<(Outcome, bool), Status> {
        let name = self.attributes.name.clone();
        let applies = matches!(reading.form, Form::Apply(_));
        let patcher = Patcher {
            definition: self.resource.definition,
            def: self.resource.def.clone(),
            resource: self.def().group_resource(),
            api_version: group_version(self.def()),
            kind: self.def().kind.to_string(),
            name: name.clone(),
            namespace: self.namespace().to_owned(),
            manager: self.manager.clone(),
            subresource: self.attributes.subresource.clone(),
            now: self.server.now(),
            force: self.options.force,
            strictness: self.strictness(),
        };
        let mut problems = Vec::new();
        let strict = self.options.field_validation == FieldValidation::Strict;
        self.applied = applies;
        let mut change = |old: &Value| {
            let decoded = patcher.patched(old, &reading.form)?;
            problems = reading.problems.iter().cloned().chain(decoded.problems).collect();
            match schema::decode::strict_error(&problems).filter(|_| strict) {
                Some(error) if applies => Err(Status::bad_request(error)),
                Some(error) => Err(patcher.invalid(old, &reading.form, error)),
                None => patcher.identified(decoded.object),
            }
        };
        let create = applies && self.attributes.subresource.is_empty();
        let outcome = self.update(&name, part, create, &mut change).await;
        if self.options.field_validation == FieldValidation::Warn {
            self.warn(problems);
        }
        outcome
    }

    pub fn strictness(&self) -> Strictness {
        match self.options.field_validation {
            FieldValidation::Ignore => Strictness::Ignore,
            _ => Strictness::Report,
        }
    }

    /// Notes who owns the fields that a write other than apply changed.
    pub fn track_fields(&self, old: Option<&Value>, object: &mut Value) {
        if self.applied {
            return;
        }
        let api_version = group_version(self.def());
        let writer = Writer {
            manager: &self.manager,
            subresource: &self.attributes.subresource,
            api_version: &api_version,
            now: self.server.now(),
            resets: resets(self.def(), &self.attributes.subresource),
        };
        if let Some(custom) = &self.def().custom {
            schema::apply::track_update(&CustomType::of(&custom.schema), old, object, &writer);
            schema::apply::open_owners(object);
        } else if let Some(definition) = self.resource.definition {
            schema::apply::track_update(&Typed::of(definition), old, object, &writer);
        }
    }
}

/// The fields that nobody owns through an endpoint, because it does not write them.
fn resets(def: &ResourceDef, subresource: &str) -> &'static [&'static [&'static str]] {
    if let Some(resets) = admit::resets(def, subresource) {
        return resets;
    }
    match (subresource, &*def.group, &*def.plural) {
        ("", _, _) | ("finalize", _, _) => &[&["status"]],
        ("status", "", "pods") => {
            &[&["spec"], &["metadata", "deletionTimestamp"], &["metadata", "ownerReferences"]]
        }
        ("status", "apps", "deployments") => &[&["spec"], &["metadata", "labels"]],
        ("status", "certificates.k8s.io", _) => &[&["spec"], &["status", "conditions"]],
        ("approval", "certificates.k8s.io", _) => &[&["spec"], &["status", "certificate"]],
        (
            "status",
            "admissionregistration.k8s.io"
            | "apiextensions.k8s.io"
            | "apiregistration.k8s.io"
            | "flowcontrol.apiserver.k8s.io"
            | "resource.k8s.io"
            | "scheduling.k8s.io"
            | "storage.k8s.io"
            | "storagemigration.k8s.io",
            _,
        )
        | ("status", "networking.k8s.io", "servicecidrs") => &[&["metadata"], &["spec"]],
        ("status", _, _) => &[&["spec"]],
        _ => &[],
    }
}

/// Why a patched object is no longer of the kind that it was; what a patch took away is filled in again.
pub fn other_kind(expected: &GroupVersionKind, custom: bool, tree: &Value) -> Option<String> {
    let text = |field: &str| tree.get(field).and_then(Value::as_str).unwrap_or_default();
    let same_version =
        matches!(text("apiVersion"), "") || text("apiVersion") == expected.group_version().to_string();
    if same_version && (text("kind").is_empty() || text("kind") == expected.kind) {
        return None;
    }
    let mut whole = json!({"apiVersion": expected.group_version().to_string(), "kind": expected.kind});
    for field in ["apiVersion", "kind"] {
        if !text(field).is_empty() {
            whole[field] = text(field).into();
        }
    }
    let (Mismatch::Version(why) | Mismatch::Kind(why)) = why_other_kind(expected, custom, &whole);
    Some(why)
}

/// The refusal of what a patch made.
pub fn invalid_patch(shown: String, why: String) -> Status {
    let error = field::Error::invalid(&field::Path::new("patch"), shown, why);
    Status::invalid(&apimachinery::GroupKind::from_static("", ""), "", &[error])
}

/// Upstream: apiserver/pkg/endpoints/handlers/patch.go interpretStrategicMergePatchError, applyJSPatch
pub fn refused(error: schema::Error) -> Status {
    match error {
        schema::Error::Syntax(_) | schema::Error::BadPatch(_) => Status::bad_request(error.to_string()),
        schema::Error::NotStrategic => {
            Status::failure(415, apimachinery::status::reason::UNSUPPORTED_MEDIA_TYPE, error.to_string())
        }
        schema::Error::TooLarge(why) => Status::request_entity_too_large(why),
        schema::Error::UnfitPatch(why) => Status::unknown_error(why),
        // Upstream keeps to itself what did not apply.
        _ => {
            let words = "the server rejected our request due to an error in our request";
            Status::failure(422, apimachinery::status::reason::INVALID, words)
                .with_details(Details::default())
        }
    }
}

fn options_error(errors: &[field::Error]) -> Status {
    Status::invalid(&apimachinery::GroupKind::from_static("meta.k8s.io", "PatchOptions"), "", errors)
}

/// Gives what a patch changed of an object the shape of its kind. The other fields were stored, and have it.
fn reshape(
    old: &Value,
    patched: Value,
    definition: &'static Definition,
    strictness: Strictness,
) -> Result<schema::decode::Decoded, schema::Error> {
    let Value::Object(fields) = patched else {
        return schema::decode::value(patched, definition, strictness);
    };
    let (kept, changed) = fields.into_iter().partition(|(name, value)| old.get(name) == Some(value));
    let kept: Map<String, Value> = kept;
    let mut decoded = schema::decode::value(Value::Object(changed), definition, strictness)?;
    if let Value::Object(fields) = &mut decoded.object {
        fields.extend(kept);
    }
    Ok(decoded)
}

/// A list of managers that was emptied forgets them all, as one with an empty entry does; without either, who sends
/// none leaves them alone.
///
/// Upstream: apimachinery/pkg/util/managedfields/internal/fieldmanager.go isResetManagedFields
fn forget_owners(tree: &mut Value) {
    let owners = tree.get_mut("metadata").and_then(|metadata| metadata.get_mut("managedFields"));
    if let Some(Value::Array(owners)) = owners
        && owners.is_empty()
    {
        owners.push(json!({}));
    }
}

/// All that a patch needs besides the object.
struct Patcher {
    definition: Option<&'static Definition>,
    def: Arc<ResourceDef>,
    resource: GroupResource,
    api_version: String,
    kind: String,
    name: String,
    namespace: String,
    manager: String,
    subresource: String,
    now: i64,
    force: bool,
    strictness: Strictness,
}

impl Patcher {
    fn patched(&self, old: &Value, form: &Form) -> Result<schema::decode::Decoded, Status> {
        let mut tree = self.tree(old, form)?;
        if matches!(form, Form::Strategic(_)) {
            // Of what kind an object is, no such patch says.
            tree["apiVersion"] = self.api_version.as_str().into();
            tree["kind"] = self.kind.as_str().into();
        } else if let Some(why) = other_kind(&self.def.gvk(), self.def.custom.is_some(), &tree) {
            return Err(match self.def.custom {
                Some(_) => other_custom_kind(&self.def.gvk(), &tree),
                None => self.invalid(old, form, why),
            });
        }
        for (field, value) in [("apiVersion", &self.api_version), ("kind", &self.kind)] {
            if tree.get(field).is_none_or(Value::is_null) && tree.is_object() {
                tree[field] = value.as_str().into();
            }
        }
        forget_owners(&mut tree);
        let decoded = match (&self.def.custom, self.definition) {
            (Some(custom), _) => admit::patched(custom, tree, self.strictness),
            (None, Some(definition)) => reshape(old, tree, definition, self.strictness),
            (None, None) => Ok(schema::decode::Decoded { object: tree, problems: Vec::new() }),
        };
        decoded.map_err(|error| self.invalid(old, form, error.to_string()))
    }

    /// The object, when it still is the one that the URL names.
    fn identified(&self, mut object: Value) -> Result<Value, Status> {
        metadata::check_namespace(&self.def, &self.namespace, &mut object)?;
        metadata::check_name(&self.name, &object)?;
        Ok(object)
    }

    /// What the patch makes of the object, as it stands.
    fn tree(&self, old: &Value, form: &Form) -> Result<Value, Status> {
        if old.is_null() && !matches!(form, Form::Apply(_)) {
            return Err(Status::not_found(&self.resource, &self.name));
        }
        let opened = form.is_of_owners().then(|| {
            let mut opened = old.clone();
            schema::apply::open_owners(&mut opened);
            opened
        });
        let old = opened.as_ref().unwrap_or(old);
        Ok(match form {
            Form::Json(patch) => schema::patch::json_patch(old, patch).map_err(refused)?,
            Form::Merge(patch) => schema::patch::merge_patch(old, patch).map_err(refused)?,
            Form::Strategic(patch) => {
                let definition = self.definition.ok_or_else(|| refused(schema::Error::NotStrategic))?;
                schema::strategic::merge(old, patch, definition).map_err(refused)?
            }
            Form::Apply(patch) => self.apply(old, patch)?,
        })
    }

    /// The message shows the patch where its types are known, else what it made of the object.
    ///
    /// Upstream: apiserver/pkg/endpoints/handlers/patch.go applyPatchToCurrentObject
    fn invalid(&self, old: &Value, form: &Form, why: String) -> Status {
        let shown = match form {
            Form::Strategic(patch) => schema::strategic::go_value(patch),
            _ => {
                let mut tree = self.tree(old, form).unwrap_or_default();
                schema::apply::open_owners(&mut tree);
                tree.to_string()
            }
        };
        invalid_patch(shown, why)
    }

    fn apply(&self, old: &Value, patch: &Value) -> Result<Value, Status> {
        if patch.get("kind").and_then(Value::as_str) != Some(&self.kind) {
            return Err(schema::apply::other_type(patch));
        }
        let writer = Writer {
            manager: &self.manager,
            subresource: &self.subresource,
            api_version: &self.api_version,
            now: self.now,
            resets: resets(&self.def, &self.subresource),
        };
        let live = (!old.is_null()).then_some(old);
        let mut merged = match (&self.def.custom, self.definition) {
            (Some(custom), _) => {
                let custom = CustomType::of(&custom.schema);
                let mut merged = schema::apply::apply(&custom, live, patch, &writer, self.force)?;
                schema::apply::open_owners(&mut merged);
                merged
            }
            (None, Some(definition)) => {
                schema::apply::apply(&Typed::of(definition), live, patch, &writer, self.force)?
            }
            (None, None) => return Err(Status::unsupported_media_type(&[])),
        };
        if live.is_none() {
            merged["apiVersion"] = self.api_version.as_str().into();
            merged["kind"] = self.kind.as_str().into();
        }
        Ok(merged)
    }
}
