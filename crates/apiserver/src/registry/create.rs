//! Creating an object.
//!
//! Upstream: apiserver/pkg/registry/rest/create.go BeforeCreate, apiserver/pkg/registry/generic/registry/store.go
//! Create

use std::sync::Arc;

use apimachinery::{GroupKind, GroupVersion, GroupVersionKind, Status, field};
use serde_json::Value;
use storage::Expect;

use super::call::Call;
use super::metadata::{self, generate_name};
use super::object::Object;
use super::{signing_request, store_error};
use crate::encode::{Outcome, group_version};
use crate::seams::Operation;

/// How often another name is tried when a generated one is taken.
const NAME_ATTEMPTS: usize = 8;

impl Call<'_> {
    /// The object must be of the request's version, and its namespace that of the request or none.
    pub fn check_create(&self, object: &mut Value) -> Result<(), Status> {
        self.check_kind(object)?;
        metadata::check_namespace(self.def(), self.namespace(), object)
    }

    /// Fills in the kind that the route implies; another one is refused.
    pub fn check_kind(&self, object: &mut Value) -> Result<(), Status> {
        let def = self.def();
        let expected = group_version(def);
        if !object.is_object() {
            return Err(Status::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: json: cannot unmarshal {} into Go value of type {}.{}",
                def.kind,
                def.version,
                def.kind,
                json_type(object),
                def.version,
                def.kind
            )));
        }
        let mut unexpected = false;
        for (field, expected) in [("apiVersion", expected.as_str()), ("kind", &*def.kind)] {
            let given = object.get(field).and_then(Value::as_str).unwrap_or_default();
            if given.is_empty() {
                object[field] = expected.into();
            } else if given != expected {
                unexpected = true;
            }
        }
        if unexpected {
            Err(unexpected_kind(&self.def().gvk(), def.custom.is_some(), object))
        } else {
            Ok(())
        }
    }

    pub async fn create(&mut self, mut object: Value) -> Result<Outcome, Status> {
        if self.def().custom.as_ref().is_some_and(|custom| custom.versions.is_terminating()) {
            let why = "create not allowed while custom resource definition is terminating";
            let name = metadata::text(&object, "name");
            return Err(Status::forbidden(&self.def().group_resource(), name, why));
        }
        self.check_create(&mut object)?;
        self.create_checked(object).await
    }

    async fn create_checked(&mut self, mut object: Value) -> Result<Outcome, Status> {
        self.dedup_owners(&mut object);
        self.versioned = !metadata::text(&object, "resourceVersion").is_empty();
        self.complete(&mut object);
        self.fill(&mut object);
        // Who creates an object owns what it asked for, and nobody what the server adds to that.
        self.track_fields(None, &mut object);
        let asked = metadata::text(&object, "name").to_owned();
        self.mutate(Operation::Create, &asked, &mut object, None).await?;
        self.prepare(&mut object);
        let prefix = metadata::text(&object, "generateName").to_owned();
        let unlucky = |status: Status| match prefix.is_empty() {
            true => status,
            false => not_unique(status),
        };
        let generated = asked.is_empty() && !prefix.is_empty();
        if !generated {
            return self.create_named(object).await.map_err(unlucky);
        }
        for _ in 1..NAME_ATTEMPTS {
            match self.create_named(self.with_generated_name(&object, &prefix)).await {
                Err(status) if status.is_already_exists() => {}
                done => return done,
            }
        }
        self.create_named(self.with_generated_name(&object, &prefix)).await.map_err(unlucky)
    }

    /// Owners that are named twice are taken once, with a warning.
    pub fn dedup_owners(&mut self, object: &mut Value) {
        if let Some(twice) = metadata::dedup_owners(object) {
            self.warn(vec![format!(
                ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and \
                 may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {twice}"
            )]);
        }
    }

    fn with_generated_name(&self, object: &Value, prefix: &str) -> Value {
        let mut object = object.clone();
        metadata::of(&mut object).insert("name".into(), generate_name(prefix, self.random_letters()).into());
        object
    }

    fn random_letters(&self) -> [u8; 5] {
        let bytes = self.server.random_bytes();
        [bytes[0], bytes[1], bytes[2], bytes[3], bytes[4]]
    }

    /// What the server sets in every new object.
    fn prepare(&mut self, object: &mut Value) {
        let context = self.context();
        // The strategy may make use of the uid.
        let uid = uuid::Builder::from_random_bytes(context.random).into_uuid().to_string();
        let metadata = metadata::of(object);
        metadata.insert("creationTimestamp".into(), apimachinery::time::rfc3339(context.now).into());
        metadata.insert("uid".into(), uid.into());
        self.def().strategy.prepare_create(&context, object);
        let has_generation = self.def().strategy.generation_changed(object, &Value::Null).is_some();
        let metadata = metadata::of(object);
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
            metadata.remove(field);
        }
        if has_generation {
            metadata.insert("generation".into(), 1.into());
        }
    }

    async fn create_named(&mut self, mut object: Value) -> Result<Outcome, Status> {
        let name = metadata::text(&object, "name").to_owned();
        let reservation = self.server.services.prepare(self, &mut object, None)?;
        let mut errors = metadata::validate(self.def(), &object);
        errors.extend(signing_request::validate(self.def(), &object));
        errors.extend(self.def().strategy.validate(&object));
        self.invalid(&name, &errors)?;
        self.warn(self.def().strategy.warnings(&object, None));
        self.fill(&mut object);
        self.validate_admission(Operation::Create, &name, &mut object, None).await?;
        let key = self.resource.key(self.namespace(), &name);
        if self.options.dry_run {
            return match self.resource.cache()?.read().get(&key) {
                Some(taken) => Err(self.already_exists(&name, Some(taken))),
                None => Ok(Outcome::Tree(object)),
            };
        }
        if self.versioned {
            // Upstream's store says so, and no handler knows the error.
            let why = "resourceVersion should not be set on objects to be created";
            return Err(Status::failure(500, "", why));
        }
        let written = self.registry().put(&key, self.to_stored(&object).await?, Expect::Absent).await;
        drop(reservation);
        match written {
            Ok(object) => Ok(Outcome::Stored(object)),
            Err(storage::Error::Conflict(_)) => {
                Err(self.already_exists(&name, self.resource.cache()?.read().get(&key)))
            }
            Err(error) => Err(store_error(error)),
        }
    }

    /// Upstream: apiserver/pkg/registry/generic/registry/store.go Create
    fn already_exists(&self, name: &str, taken: Option<&Arc<Object>>) -> Status {
        let mut status = Status::already_exists(&self.def().group_resource(), name);
        if taken.is_some_and(|taken| metadata::is_terminating(taken.tree())) {
            status.message.insert_str(0, "object is being deleted: ");
        }
        status
    }
}

/// Why an object that says of what kind it is cannot be one of `expected`, in the words of upstream's decoder.
pub fn why_other_kind(expected: &GroupVersionKind, custom: bool, object: &Value) -> Mismatch {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let (given, kind) = (text("apiVersion"), text("kind"));
    let group_version = GroupVersion::parse(given);
    let of_group = group_version.as_ref().is_some_and(|gv| gv.group == expected.group);
    let wanted = expected.group_version().to_string();
    let known = group_version.is_some_and(|gv| api::tables::kind(&gv.group, &gv.version, kind).is_some());
    // Versions of old are still known to upstream, though nothing serves them.
    let of_old = given.contains("beta") || given.contains("alpha");
    if custom || (kind == expected.kind && of_group && !expected.group.is_empty() && (known || of_old)) {
        let (what, given, wanted) = match given == wanted {
            true => ("kind", kind, expected.kind.to_string()),
            false => ("API version", given, wanted),
        };
        return Mismatch::Version(format!(
            "the {what} in the data ({given}) does not match the expected {what} ({wanted})"
        ));
    }
    if known {
        let version = given.rsplit('/').next().unwrap_or_default();
        let group = &*expected.group;
        let internal = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or("") };
        return Mismatch::Kind(format!(
            "converting ({version}.{kind}) to ({internal}.{}): unknown conversion",
            expected.kind
        ));
    }
    // The registries of kinds are called by where upstream makes them.
    let scheme = match &*expected.group {
        "apiextensions.k8s.io" => "k8s.io/apiextensions-apiserver/pkg/apiserver/apiserver.go:55",
        "apiregistration.k8s.io" => "k8s.io/kube-aggregator/pkg/apiserver/scheme/scheme.go:28",
        _ => "pkg/api/legacyscheme/scheme.go:30",
    };
    Mismatch::Kind(format!("no kind {kind:?} is registered for version {given:?} in scheme {scheme:?}"))
}

/// How an object is not of the kind that a route takes.
pub enum Mismatch {
    /// It could be read, and is of another version.
    Version(String),
    /// It could not be read as that kind.
    Kind(String),
}

/// The object says that it is of another kind.
///
/// Upstream: apimachinery/pkg/runtime/error.go, apiserver/pkg/endpoints/handlers/rest.go transformDecodeError
pub fn unexpected_kind(expected: &GroupVersionKind, custom: bool, object: &Value) -> Status {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let version = text("apiVersion").rsplit('/').next().unwrap_or_default();
    if custom && text("apiVersion") == expected.group_version().to_string() {
        return other_custom_kind(expected, object);
    }
    Status::bad_request(match why_other_kind(expected, custom, object) {
        Mismatch::Version(words) => words,
        Mismatch::Kind(why) => {
            format!("{} in version {version:?} cannot be handled as a {}: {why}", text("kind"), expected.kind)
        }
    })
}

/// An object of a custom kind that says it is of another kind, or of another version after a patch.
///
/// Upstream: apiextensions-apiserver/pkg/registry/customresource/validator.go validateCustomResource
pub fn other_custom_kind(expected: &GroupVersionKind, object: &Value) -> Status {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let version = expected.group_version().to_string();
    let wanted = [("apiVersion", version.as_str()), ("kind", &*expected.kind)];
    let errors: Vec<field::Error> = wanted
        .iter()
        .filter(|(field, wanted)| text(field) != *wanted)
        .map(|(field, wanted)| {
            field::Error::invalid(&field::Path::new(field), text(field), format!("must be {wanted}"))
        })
        .collect();
    let kind = GroupKind::new(expected.group.clone(), text("kind").to_owned());
    Status::invalid(&kind, metadata::text(object, "name"), &errors)
}

pub fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Whose name could have been generated is told to try again.
///
/// Upstream: apimachinery/pkg/api/errors/errors.go NewGenerateNameConflict
fn not_unique(mut status: Status) -> Status {
    if status.is_already_exists() {
        status.message.push_str(", the server was not able to generate a unique name for the object");
        status.details.get_or_insert_default().retry_after_seconds = 1;
    }
    status
}
