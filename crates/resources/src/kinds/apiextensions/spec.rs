//! What is wrong with the spec of a definition.
//!
//! What all versions have in common upstream keeps in one place, and so the paths of errors name that place:
//! `spec.validation` where there is one schema, `spec.versions[0].schema` where there are several.
//!
//! Upstream: apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go

use std::collections::HashSet;

use apimachinery::names::{dns1035_label, dns1123_subdomain};
use serde_json::Value;

use super::{conversion, names, schemas};
use crate::custom::rules::field_path;
use crate::get::{Errors, at, flag, has, is_true, list, text};
use crate::prelude::{Error, Path};
use crate::validate::required_one_of;

const MAX_SELECTABLE_FIELDS: usize = 8;
const COLUMN_TYPES: &str = "boolean,date,integer,number,string";
const COLUMN_FORMATS: &str = "byte,date,date-time,double,float,int32,int64,password";

/// What is not asked of a definition that has been accepted before.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub allow_invalid_ca_bundle: bool,
    pub require_known_review_version: bool,
    /// Versions whose schema did not change: the cost of their single rules is not looked at again.
    pub unchanged: HashSet<String>,
    /// Versions that had too many selectable fields before and still have the same.
    pub many_selectable_fields: HashSet<String>,
}

/// A field of the versions with where errors about it are told: once when all versions have the same.
fn places<'v>(versions: &'v [Value], field: &str, shared: &str) -> Vec<(&'v Value, Path, &'v str)> {
    let spec = Path::new("spec");
    let [first, rest @ ..] = versions else { return Vec::new() };
    if rest.iter().all(|version| version.get(field) == first.get(field)) {
        return vec![(first, spec.child(shared), "")];
    }
    let place = |(at, version): (usize, &'v Value)| {
        (version, spec.child("versions").index(at).child(field), text(version, "name"))
    };
    versions.iter().enumerate().map(place).collect()
}

pub fn validate(definition: &Value, options: &Options) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let versions = list(definition, "spec.versions");
    group_and_scope(definition, &path, &mut errors);
    for (at, version) in versions.iter().enumerate() {
        if !has(version, "schema.openAPIV3Schema") {
            let path = path.child("versions").index(at).child("schema").child("openAPIV3Schema");
            errors.push(Error::required(&path, ""));
        }
    }
    for (at, version) in versions.iter().enumerate() {
        let path = path.child("versions").index(at);
        let name = text(version, "name");
        let wrong = dns1035_label(name);
        if !wrong.is_empty() {
            errors.push(Error::invalid(&path.child("name"), name, wrong.join(",")));
        }
        deprecation(version, &path.child("deprecationWarning"), &mut errors);
    }
    let has_status = |version: &Value| has(version, "subresources.status");
    for (version, path, name) in places(versions, "schema", "validation") {
        // A schema for all versions must leave room for the status of any.
        let status = if name.is_empty() { versions.iter().any(has_status) } else { has_status(version) };
        let unchanged = options.unchanged.contains(text(version, "name"));
        if let Some(schema) = at(version, "schema.openAPIV3Schema") {
            errors.extend(schemas::validate(schema, &path.child("openAPIV3Schema"), status, unchanged));
        }
    }
    for (version, path, _) in places(versions, "subresources", "subresources") {
        scale(version, &path, &mut errors);
    }
    for (version, path, _) in places(versions, "additionalPrinterColumns", "additionalPrinterColumns") {
        for (at, column) in list(version, "additionalPrinterColumns").iter().enumerate() {
            self::column(column, &path.index(at), &mut errors);
        }
    }
    for (version, path, name) in places(versions, "selectableFields", "selectableFields") {
        let many = options.many_selectable_fields.contains(name)
            || (name.is_empty() && options.many_selectable_fields.contains(text(version, "name")));
        selectable_fields(version, &path, many, &mut errors);
    }
    versions_together(versions, &path.child("versions"), &mut errors);
    for field in ["plural", "singular", "kind", "listKind"] {
        if text(definition, &format!("spec.names.{field}")).is_empty() {
            errors.push(Error::required(&path.child("names").child(field), ""));
        }
    }
    let asked = at(definition, "spec.names").unwrap_or(&Value::Null);
    errors.extend(names::validate(asked, &path.child("names")));
    errors.extend(conversion::validate(definition, &path.child("conversion"), options));
    errors
}

fn group_and_scope(definition: &Value, path: &Path, errors: &mut Errors) {
    let group = text(definition, "spec.group");
    let at = path.child("group");
    if group.is_empty() {
        errors.push(Error::required(&at, ""));
    } else if let wrong @ [_, ..] = dns1123_subdomain(group).as_slice() {
        errors.push(Error::invalid(&at, group, wrong.join(",")));
    } else if !group.contains('.') {
        errors.push(Error::invalid(&at, group, "should be a domain with at least one dot"));
    }
    let scope = text(definition, "spec.scope");
    errors.extend(required_one_of(scope, &path.child("scope"), &["Cluster", "Namespaced"]));
}

fn versions_together(versions: &[Value], path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    let value = || Value::from(versions.to_vec());
    let mut unique = true;
    versions.iter().for_each(|version| unique &= seen.insert(text(version, "name")));
    if !unique {
        errors.push(Error::invalid(path, value(), "must contain unique version names"));
    }
    if versions.iter().filter(|version| is_true(version, "storage")).count() != 1 {
        let detail = "must have exactly one version marked as storage version";
        errors.push(Error::invalid(path, value(), detail));
    }
}

fn deprecation(version: &Value, path: &Path, errors: &mut Errors) {
    let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) else { return };
    let mut invalid = |detail: &str| errors.push(Error::invalid(path, warning, detail));
    if !is_true(version, "deprecated") {
        return invalid("can only be set for deprecated versions");
    }
    if warning.len() > 256 {
        invalid("must be <= 256 characters long");
    }
    if warning.is_empty() {
        invalid("must not be an empty string");
    }
    if let Some((at, _)) =
        warning.char_indices().find(|(_, c)| c.is_control() || (c.is_whitespace() && *c != ' '))
    {
        invalid(&format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {at}"
        ));
    }
}

/// A path of names after dots, as scale and columns have it.
fn simple_path(value: &str, path: &Path, errors: &mut Errors) -> bool {
    if value.starts_with('.') {
        return true;
    }
    errors.push(Error::invalid(path, value, "must be a simple json path starting with ."));
    false
}

fn scale(version: &Value, path: &Path, errors: &mut Errors) {
    let Some(scale) = at(version, "subresources.scale") else { return };
    for (field, required, roots, detail) in [
        ("specReplicasPath", true, &[".spec."][..], "should be a json path under .spec"),
        ("statusReplicasPath", true, &[".status."], "should be a json path under .status"),
        (
            "labelSelectorPath",
            false,
            &[".spec.", ".status."],
            "should be a json path under either .spec or .status",
        ),
    ] {
        let (value, path) = (text(scale, field), path.child("scale").child(field));
        if value.is_empty() {
            if required {
                errors.push(Error::required(&path, ""));
            }
        } else if simple_path(value, &path, errors) && !roots.iter().any(|root| value.starts_with(root)) {
            errors.push(Error::invalid(&path, value, detail));
        }
    }
}

fn column(column: &Value, path: &Path, errors: &mut Errors) {
    if text(column, "name").is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    let kind = text(column, "type");
    let detail = format!("must be one of {COLUMN_TYPES}");
    if kind.is_empty() {
        errors.push(Error::required(&path.child("type"), detail));
    } else if !COLUMN_TYPES.split(',').any(|known| known == kind) {
        errors.push(Error::invalid(&path.child("type"), kind, detail));
    }
    let format = text(column, "format");
    if !format.is_empty() && !COLUMN_FORMATS.split(',').any(|known| known == format) {
        let detail = format!("must be one of {COLUMN_FORMATS}");
        errors.push(Error::invalid(&path.child("format"), format, detail));
    }
    let json_path = text(column, "jsonPath");
    let path = path.child("JSONPath");
    if json_path.is_empty() {
        errors.push(Error::required(&path, ""));
    } else {
        simple_path(json_path, &path, errors);
    }
}

fn selectable_fields(version: &Value, path: &Path, many: bool, errors: &mut Errors) {
    let fields = list(version, "selectableFields");
    let Some(schema) = at(version, "schema.openAPIV3Schema") else {
        if !fields.is_empty() {
            errors.push(Error::invalid(path, "", "may only be set when validations.schema is included"));
        }
        return;
    };
    let mut seen = HashSet::new();
    for (at, field) in fields.iter().enumerate() {
        let path = path.index(at).child("jsonPath");
        let json_path = text(field, "jsonPath");
        if json_path.is_empty() {
            errors.push(Error::required(&path, ""));
            continue;
        }
        let (parsed, schema) = match field_path::parse(json_path, schema, false) {
            Ok(found) => found,
            Err(why) => {
                errors.push(Error::invalid(&path, json_path, format!("is an invalid path: {why}")));
                continue;
            }
        };
        if parsed.as_str().split('.').next() == Some("metadata") {
            errors.push(Error::invalid(&path, json_path, "must not point to fields in metadata"));
        }
        if !matches!(text(schema, "type"), "string" | "boolean" | "integer") {
            let detail = "must point to a field of type string, boolean or integer. Enum string fields and strings \
                          with formats are allowed.";
            errors.push(Error::invalid(&path, json_path, detail));
        }
        if !seen.insert(parsed.as_str().to_owned()) {
            errors.push(Error::duplicate(&path, json_path));
        }
    }
    if seen.len() > MAX_SELECTABLE_FIELDS && !many {
        errors.push(Error::too_many(path, seen.len(), MAX_SELECTABLE_FIELDS));
    }
}

/// Unknown fields are no longer kept by default: the schema itself says where they are.
pub fn preserve_unknown_fields(definition: &Value, old: Option<&Value>) -> Errors {
    let set = |definition: &Value| flag(definition, "spec.preserveUnknownFields") == Some(true);
    if !set(definition) || old.is_some_and(set) {
        return Errors::new();
    }
    let detail = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in \
                  spec.versions[*].schema instead";
    vec![Error::invalid(&Path::new("spec").child("preserveUnknownFields"), true, detail)]
}
