//! CustomResourceDefinition: a kind that users add.
//!
//! Upstream: apiextensions-apiserver/pkg/registry/customresourcedefinition/strategy.go

use super::spec::{self, Options};
use super::{approval, conversion, names, schemas};
use crate::custom::is_true_condition;
use crate::prelude::*;
use crate::rules::content_changed;
use crate::strategy::{Context, Strategy, carry_over};

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions")
        .short(&["crd", "crds"])
        .category("api-extensions")
        .status()
        .prefix("apiextensions.k8s.io/customresourcedefinitions")
        .strategy(Definitions)
        .build()
}

struct Definitions;

impl Strategy for Definitions {
    /// Upstream: apiextensions-apiserver/pkg/apis/apiextensions/v1/defaults.go
    fn default(&self, definition: &mut Value) {
        let kind = text(definition, "spec.names.kind").to_owned();
        if !kind.is_empty() {
            get::default(definition, "spec.names.singular", kind.to_lowercase());
            get::default(definition, "spec.names.listKind", format!("{kind}List"));
        }
        get::default(definition, "spec.conversion.strategy", "None");
        if has(definition, "spec.conversion.webhook.clientConfig.service") {
            get::default(definition, "spec.conversion.webhook.clientConfig.service.port", 443);
        }
    }

    fn prepare_create(&self, _: &Context, definition: &mut Value) {
        if let Some(fields) = definition.as_object_mut() {
            fields.remove("status");
        }
        remember_storage_version(definition);
    }

    fn validate(&self, definition: &Value) -> Errors {
        // Nothing is stored yet that a bundle could make unreadable.
        let options = Options {
            allow_invalid_ca_bundle: true,
            require_known_review_version: true,
            ..Options::default()
        };
        let mut errors = Errors::from_iter(own_name(definition));
        errors.extend(spec::validate(definition, &options));
        errors.extend(status(definition));
        errors.extend(stored_versions(definition));
        errors.extend(approval::validate(definition, None));
        errors.extend(spec::preserve_unknown_fields(definition, None));
        errors
    }

    fn prepare_update(&self, _: &Context, definition: &mut Value, old: &Value) {
        carry_over(definition, old, "status");
        remember_storage_version(definition);
    }

    fn validate_update(&self, definition: &Value, old: &Value) -> Errors {
        let mut errors = spec::validate(definition, &options(definition, old));
        if is_true_condition(old, "Established") {
            errors.extend(crate::validate::immutable(definition, old, "spec.scope"));
            errors.extend(crate::validate::immutable(definition, old, "spec.names.kind"));
        }
        errors.extend(crate::validate::immutable(definition, old, "spec.group"));
        errors.extend(crate::validate::immutable(definition, old, "spec.names.plural"));
        errors.extend(status(definition));
        errors.extend(stored_versions(definition));
        errors.extend(approval::validate(definition, Some(old)));
        errors.extend(spec::preserve_unknown_fields(definition, Some(old)));
        errors
    }

    fn validate_status_update(&self, definition: &Value, _: &Value) -> Errors {
        status(definition)
    }

    fn generation_changed(&self, definition: &Value, old: &Value) -> Option<bool> {
        Some(content_changed(definition, old))
    }

    fn warnings(&self, definition: &Value, old: Option<&Value>) -> Vec<String> {
        let formats = |definition: &Value| -> Vec<String> {
            let versions = list(definition, "spec.versions").iter();
            versions
                .filter_map(|version| at(version, "schema.openAPIV3Schema"))
                .flat_map(schemas::unrecognized_formats)
                .collect()
        };
        let known = old.map(formats).unwrap_or_default();
        let mut new = formats(definition);
        new.retain(|format| !known.contains(format));
        new.into_iter().map(|format| format!("unrecognized format {format:?}")).collect()
    }

    fn allow_unconditional_update(&self) -> bool {
        false
    }
}

fn own_name(definition: &Value) -> Option<Error> {
    let required = format!("{}.{}", text(definition, "spec.names.plural"), text(definition, "spec.group"));
    let name = get::name(definition);
    let detail = "must be spec.names.plural+\".\"+spec.group";
    (name != required).then(|| Error::invalid(&path("metadata.name"), name, detail))
}

/// Objects may from now on be stored in the storage version.
fn remember_storage_version(definition: &mut Value) {
    let storage = list(definition, "spec.versions").iter().find(|version| is_true(version, "storage"));
    let Some(name) = storage.map(|version| text(version, "name").to_owned()) else { return };
    if get::texts(definition, "status.storedVersions").contains(&name.as_str()) {
        return;
    }
    let mut versions = list(definition, "status.storedVersions").to_vec();
    versions.push(name.into());
    set(definition, "status.storedVersions", versions);
}

fn status(definition: &Value) -> Errors {
    let accepted = at(definition, "status.acceptedNames").unwrap_or(&Value::Null);
    names::validate(accepted, &path("status").child("acceptedNames"))
}

/// Upstream: apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go
/// ValidateCustomResourceDefinitionStoredVersions
fn stored_versions(definition: &Value) -> Errors {
    let at = path("status").child("storedVersions");
    let stored = get::texts(definition, "status.storedVersions");
    if stored.is_empty() {
        return vec![Error::invalid(&at, json!([]), "must have at least one stored version")];
    }
    let versions = list(definition, "spec.versions");
    let mut errors = Errors::new();
    for version in versions.iter().filter(|version| is_true(version, "storage")) {
        let name = text(version, "name");
        if !stored.contains(&name) {
            let detail = format!("must have the storage version {name}");
            errors.push(Error::invalid(&at, json!(stored), detail));
        }
    }
    for (index, name) in stored.iter().enumerate() {
        if !versions.iter().any(|version| text(version, "name") == *name) {
            let detail = format!(
                "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions \
                 until a storage migration ensures no data remains persisted in {name} and removes {name} from \
                 status.storedVersions"
            );
            errors.push(Error::invalid(&at.index(index), *name, detail));
        }
    }
    errors
}

/// What was accepted once may stay.
fn options(definition: &Value, old: &Value) -> Options {
    let before = |version: &Value| {
        let name = text(version, "name");
        list(old, "spec.versions").iter().find(|old| text(old, "name") == name)
    };
    let names = |keep: &dyn Fn(&Value, &Value) -> bool| {
        let versions = list(definition, "spec.versions").iter();
        versions
            .filter(|version| before(version).is_some_and(|old| keep(version, old)))
            .map(|version| text(version, "name").to_owned())
            .collect()
    };
    let bundle = text(old, "spec.conversion.webhook.clientConfig.caBundle");
    let reviewed = get::texts(old, "spec.conversion.webhook.conversionReviewVersions");
    Options {
        allow_invalid_ca_bundle: !is_true_condition(old, "Established")
            || !conversion::is_valid_ca_bundle(bundle),
        require_known_review_version: reviewed.is_empty() || conversion::is_reviewable(&reviewed),
        unchanged: names(&|new, old| new.get("schema") == old.get("schema")),
        many_selectable_fields: names(&|new, old| {
            list(old, "selectableFields").len() > 8
                && new.get("selectableFields") == old.get("selectableFields")
        }),
    }
}
