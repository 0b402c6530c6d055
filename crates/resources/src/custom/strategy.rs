//! What custom kinds do differently from built-in ones.
//!
//! Upstream: apiextensions-apiserver/pkg/registry/customresource/{strategy,status_strategy,validator}.go

use std::sync::Arc;

use apimachinery::field::{Error, ErrorType, Path};
use apimachinery::{names, objectmeta};
use schema::structural::{Structural, embedded, lists, values};
use serde_json::Value;

use super::rules::Rules;
use super::{Custom, ScalePaths};
use crate::get::{Errors, texts};
use crate::strategy::{Context, Strategy, carry_over};

pub struct CustomStrategy {
    custom: Arc<Custom>,
    rules: Option<Rules>,
}

impl CustomStrategy {
    pub fn new(custom: Arc<Custom>) -> Self {
        CustomStrategy { rules: Rules::compile(&custom.declared), custom }
    }

    fn schema(&self) -> &Structural {
        &self.custom.schema
    }

    /// Expressions are not asked about an object that has not even the right types.
    fn check_rules(&self, object: &Value, old: Option<&Value>, errors: &mut Errors) {
        let Some(rules) = &self.rules else { return };
        let blocking = |error: &Error| {
            matches!(
                error.kind,
                ErrorType::NotSupported
                    | ErrorType::Required
                    | ErrorType::TooLong
                    | ErrorType::TooMany
                    | ErrorType::TypeInvalid
            )
        };
        if errors.iter().any(blocking) {
            let detail = "some validation rules were not checked because the object was invalid; correct the \
                          existing errors to complete validation";
            errors.push(Error::invalid(&Path::root(), Value::Null, detail));
        } else {
            errors.extend(rules.validate(object, old));
        }
    }

    fn check_scale(&self, object: &Value, whole: bool, errors: &mut Errors) {
        let Some(scale) = &self.custom.scale else { return };
        if whole {
            errors.extend(replicas(object, &scale.spec_replicas));
        }
        errors.extend(replicas(object, &scale.status_replicas));
        errors.extend(selector(object, scale));
    }
}

/// The value at a path of field names; an error when something on the way is no object.
fn at<'v>(object: &'v Value, path: &[String]) -> Result<Option<&'v Value>, String> {
    let mut value = object;
    for (depth, name) in path.iter().enumerate() {
        let Some(fields) = value.as_object() else {
            let shown = path[..depth].join(".");
            return Err(format!(
                ".{shown} accessor error: {value} is of the type {}, expected map[string]interface{{}}",
                go_type(value)
            ));
        };
        match fields.get(name) {
            Some(inner) => value = inner,
            None => return Ok(None),
        }
    }
    Ok(Some(value))
}

fn go_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}

fn dotted(path: &[String]) -> Path {
    Path::new(&format!(".{}", path.join(".")))
}

fn replicas(object: &Value, path: &[String]) -> Option<Error> {
    let shown = dotted(path);
    let wrong = |value: &Value| {
        format!("{shown} accessor error: {value} is of the type {}, expected int64", go_type(value))
    };
    match at(object, path) {
        Err(why) => Some(Error::invalid(&shown, 0, why)),
        Ok(None) => None,
        Ok(Some(value)) => match value.as_i64() {
            None => Some(Error::invalid(&shown, 0, wrong(value))),
            Some(count) if count < 0 => {
                Some(Error::invalid(&shown, count, "should be a non-negative integer"))
            }
            Some(count) if count > i64::from(i32::MAX) => {
                let detail = format!("should be less than or equal to {}", i32::MAX);
                Some(Error::invalid(&shown, count, detail))
            }
            Some(_) => None,
        },
    }
}

fn selector(object: &Value, scale: &ScalePaths) -> Option<Error> {
    let path = scale.label_selector.as_ref()?;
    let shown = dotted(path);
    match at(object, path) {
        Err(why) => Some(Error::invalid(&shown, "", why)),
        Ok(Some(value)) if !value.is_string() => {
            let why =
                format!("{shown} accessor error: {value} is of the type {}, expected string", go_type(value));
            Some(Error::invalid(&shown, "", why))
        }
        Ok(_) => None,
    }
}

/// Everything but the metadata, for comparing.
fn content(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten().filter(|(name, _)| *name != "metadata")
}

impl Strategy for CustomStrategy {
    fn default(&self, object: &mut Value) {
        self.custom.versions.default(object);
    }

    fn prepare_create(&self, _: &Context, object: &mut Value) {
        if self.custom.has_status
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
    }

    fn validate(&self, object: &Value) -> Errors {
        let root = Path::root();
        let mut errors = values::validate(&root, object, self.schema());
        self.check_scale(object, true, &mut errors);
        errors.extend(embedded::validate(&root, object, self.schema()));
        errors.extend(lists::validate(object, self.schema()));
        self.check_rules(object, None, &mut errors);
        errors
    }

    fn prepare_update(&self, _: &Context, object: &mut Value, old: &Value) {
        if self.custom.has_status {
            carry_over(object, old, "status");
        }
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Errors {
        let root = Path::root();
        let mut errors = values::validate_update(&root, object, old, self.schema());
        self.check_scale(object, true, &mut errors);
        errors.extend(embedded::validate(&root, object, self.schema()));
        if lists::validate(old, self.schema()).is_empty() {
            errors.extend(lists::validate(object, self.schema()));
        }
        self.check_rules(object, Some(old), &mut errors);
        errors
    }

    fn prepare_status_update(&self, _: &Context, object: &mut Value, old: &Value) {
        let status = object.get("status").cloned();
        let managed = object.pointer("/metadata/managedFields").cloned();
        let version = object.pointer("/metadata/resourceVersion").cloned();
        *object = old.clone();
        if let Some(fields) = object.as_object_mut() {
            match status {
                Some(status) => fields.insert("status".into(), status),
                None => fields.remove("status"),
            };
        }
        let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
        let Some(metadata) = metadata else { return };
        for (name, value) in [("managedFields", managed), ("resourceVersion", version)] {
            match value {
                Some(value) => metadata.insert(name.into(), value),
                None => metadata.remove(name),
            };
        }
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Errors {
        let mut errors = Errors::new();
        if let (Some(status), Some(schema)) = (object.get("status"), self.schema().properties.get("status")) {
            let path = Path::new("status");
            let old = old.get("status").unwrap_or(&Value::Null);
            errors.extend(values::validate_update(&path, status, old, schema));
        }
        self.check_scale(object, false, &mut errors);
        if lists::validate(old, self.schema()).is_empty() {
            errors.extend(lists::validate(object, self.schema()));
        }
        self.check_rules(object, Some(old), &mut errors);
        errors
    }

    /// Whatever changes but the metadata counts; a status of its own was carried over before.
    fn generation_changed(&self, object: &Value, old: &Value) -> Option<bool> {
        Some(!content(object).eq(content(old)))
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let known = old.map(|old| texts(old, "metadata.finalizers")).unwrap_or_default();
        let mut added: Vec<&str> = texts(object, "metadata.finalizers");
        added.retain(|finalizer| !known.contains(finalizer));
        added.sort_unstable();
        added.into_iter().flat_map(finalizer_warnings).collect()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

/// Upstream: apiextensions-apiserver/pkg/registry/customresource/validator.go validateKubeFinalizerName
fn finalizer_warnings(finalizer: &str) -> Vec<String> {
    let mut warnings: Vec<String> = names::qualified_name(finalizer)
        .into_iter()
        .map(|why| format!("metadata.finalizers: {finalizer:?}: {why}"))
        .collect();
    if !objectmeta::is_qualified_finalizer(finalizer) {
        let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
        warnings.push(format!(
            "metadata.finalizers: {finalizer:?}: prefer a domain-qualified finalizer name{path} to avoid accidental \
             conflicts with other finalizer writers"
        ));
    }
    warnings
}
