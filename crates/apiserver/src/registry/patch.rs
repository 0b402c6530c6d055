//! Patches: JSON, merge, strategic merge and server-side apply, all by way of [`Call::update`].
//!
//! Upstream: apiserver/pkg/endpoints/handlers/patch.go

use std::sync::Arc;

use api::tables::Definition;
use apimachinery::{GroupResource, Status, field};
use resources::ResourceDef;
use schema::apply::{Typed, Writer};
use schema::decode::Strictness;
use schema::structural::apply::Custom as CustomType;
use serde_json::{Map, Value};

use super::call::Call;
use super::metadata;
use crate::encode::{Outcome, definition, group_version};
use crate::extensions::admit;
use crate::negotiate::Patch;
use crate::options::FieldValidation;
use crate::special::part::Part;

/// A patch as it was read from the body.
pub enum Reading {
    Json(Vec<u8>),
    Merge(Value),
    Strategic(Value),
    Apply(Value),
}

impl Reading {
    /// Whether it may touch the owners of fields, which it knows in their usual form.
    fn is_of_owners(&self) -> bool {
        match self {
            Reading::Json(_) => true,
            Reading::Merge(patch) | Reading::Strategic(patch) => {
                patch.get("metadata").is_some_and(|metadata| metadata.get("managedFields").is_some())
            }
            Reading::Apply(_) => false,
        }
    }
}

impl Call<'_> {
    /// Reads a patch. Problems of its form are told under `fieldValidation`.
    pub fn read_patch(&mut self, kind: Patch, body: &[u8]) -> Result<Reading, Status> {
        let untyped = |decoded: Result<schema::decode::Decoded, schema::Error>| {
            decoded.map_err(|error| Status::bad_request(format!("error decoding patch: {error}")))
        };
        if kind != Patch::Apply && self.options.force {
            let path = field::Path::new("force");
            let error = field::Error::forbidden(&path, "may not be specified for non-apply patch");
            return Err(options_error(&[error]));
        }
        let decoded = match kind {
            Patch::Json => return Ok(Reading::Json(body.to_vec())),
            Patch::Merge | Patch::Strategic => untyped(schema::decode::untyped_json(body))?,
            Patch::Apply if schema::cbor::is_cbor(body) => {
                let object =
                    schema::cbor::decode(body).map_err(|error| Status::bad_request(error.to_string()))?;
                schema::decode::Decoded { object, problems: Vec::new() }
            }
            Patch::Apply => schema::decode::untyped_yaml(body)
                .map_err(|error| Status::bad_request(format!("error decoding YAML: {error}")))?,
        };
        self.report(decoded.problems)?;
        match kind {
            Patch::Strategic => Ok(Reading::Strategic(decoded.object)),
            Patch::Apply => self.check_apply(decoded.object).map(Reading::Apply),
            _ => Ok(Reading::Merge(decoded.object)),
        }
    }

    fn check_apply(&self, mut object: Value) -> Result<Value, Status> {
        if self.options.field_manager.is_empty() {
            let error =
                field::Error::required(&field::Path::new("fieldManager"), "is required for apply patch");
            return Err(options_error(&[error]));
        }
        let name = &self.attributes.name;
        let given = metadata::text(&object, "name");
        if !given.is_empty() && given != name {
            return Err(Status::bad_request(format!(
                "metadata.name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
        metadata::of(&mut object).insert("name".into(), name.as_str().into());
        if self.def().namespaced() {
            metadata::of(&mut object).entry("namespace").or_insert_with(|| self.namespace().into());
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
        let applies = matches!(reading, Reading::Apply(_));
        let patcher = Patcher {
            definition: definition(self.def()),
            def: self.resource.def.clone(),
            resource: self.def().group_resource(),
            api_version: group_version(self.def()),
            kind: self.def().kind.to_string(),
            name: name.clone(),
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
            let decoded = patcher.patched(old, &reading)?;
            problems = decoded.problems;
            if strict && let Some(error) = schema::decode::strict_error(&problems) {
                return Err(Status::bad_request(error));
            }
            Ok(decoded.object)
        };
        let outcome = self.update(&name, part, applies, &mut change).await;
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
        } else if let Some(definition) = definition(self.def()) {
            schema::apply::track_update(&Typed::of(definition), old, object, &writer);
        }
    }
}

/// The fields that nobody owns through an endpoint, because it does not write them.
fn resets(def: &ResourceDef, subresource: &str) -> &'static [&'static [&'static str]] {
    if let Some(resets) = admit::resets(def, subresource) {
        return resets;
    }
    match subresource {
        "" => &[&["status"]],
        "status" => &[&["spec"]],
        _ => &[],
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

/// All that a patch needs besides the object.
struct Patcher {
    definition: Option<&'static Definition>,
    def: Arc<ResourceDef>,
    resource: GroupResource,
    api_version: String,
    kind: String,
    name: String,
    manager: String,
    subresource: String,
    now: i64,
    force: bool,
    strictness: Strictness,
}

impl Patcher {
    fn patched(&self, old: &Value, reading: &Reading) -> Result<schema::decode::Decoded, Status> {
        if old.is_null() && !matches!(reading, Reading::Apply(_)) {
            return Err(Status::not_found(&self.resource, &self.name));
        }
        let opened = reading.is_of_owners().then(|| {
            let mut opened = old.clone();
            schema::apply::open_owners(&mut opened);
            opened
        });
        let old = opened.as_ref().unwrap_or(old);
        let tree = match reading {
            Reading::Json(patch) => schema::patch::json_patch(old, patch).map_err(|e| self.refused(e))?,
            Reading::Merge(patch) => schema::patch::merge_patch(old, patch).map_err(|e| self.refused(e))?,
            Reading::Strategic(patch) => {
                let definition = self.definition.ok_or_else(|| self.refused(schema::Error::NotStrategic))?;
                schema::strategic::merge(old, patch, definition).map_err(|e| self.refused(e))?
            }
            Reading::Apply(patch) => self.apply(old, patch)?,
        };
        if let Some(custom) = &self.def.custom {
            return admit::patched(custom, tree, self.strictness);
        }
        let Some(definition) = self.definition else {
            return Ok(schema::decode::Decoded { object: tree, problems: Vec::new() });
        };
        reshape(old, tree, definition, self.strictness)
            .map_err(|error| Status::failure(422, apimachinery::status::reason::INVALID, error.to_string()))
    }

    fn apply(&self, old: &Value, patch: &Value) -> Result<Value, Status> {
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

    /// Upstream: apiserver/pkg/endpoints/handlers/patch.go interpretStrategicMergePatchError
    fn refused(&self, error: schema::Error) -> Status {
        match error {
            schema::Error::Syntax(_) | schema::Error::BadPatch(_) => Status::bad_request(error.to_string()),
            schema::Error::NotStrategic => {
                Status::failure(415, apimachinery::status::reason::UNSUPPORTED_MEDIA_TYPE, error.to_string())
            }
            schema::Error::TooLarge(why) => Status::request_entity_too_large(why),
            error => Status::failure(
                422,
                apimachinery::status::reason::INVALID,
                format!("the server rejected our request due to an error in our request: {error}"),
            ),
        }
    }
}
