//! The strategy of most kinds: a record of functions of which a kind gives those it needs.

use apimachinery::field::Error;
use apimachinery::names;
use serde_json::Value;

use crate::get::{Errors, set};
use crate::strategy::{Context, Strategy, carry_over};
use crate::validate::same;

/// What a kind does, each part doing nothing unless given: `Rules { validate, ..Rules::PLAIN }`.
#[derive(Clone, Copy)]
pub struct Rules {
    pub default: fn(&mut Value),
    /// After the status was cleared.
    pub prepare_create: fn(&Context, &mut Value),
    /// After the status was carried over.
    pub prepare_update: fn(&Context, &mut Value, &Value),
    pub validate: fn(&Value) -> Errors,
    /// What is asked of new objects besides.
    pub validate_create: fn(&Value) -> Errors,
    /// What is wrong with an update besides what `validate` finds.
    pub validate_update: fn(&Value, &Value) -> Errors,
    pub validate_status: fn(&Value, &Value) -> Errors,
    pub name: fn(&str) -> Vec<String>,
    pub warnings: fn(&Value) -> Vec<String>,
    /// Whether the kind counts generations: 1 at create, one more for every change outside metadata and status.
    pub generation: bool,
    /// Whether a change of annotations counts as well.
    pub generation_of_annotations: bool,
    pub create_on_update: bool,
    pub unconditional_update: bool,
    /// Dependents stay when a client that deletes says nothing.
    pub orphans: bool,
}

impl Rules {
    pub const PLAIN: Rules = Rules {
        default: |_| (),
        prepare_create: |_, _| (),
        prepare_update: |_, _, _| (),
        validate: |_| Vec::new(),
        validate_create: |_| Vec::new(),
        validate_update: |_, _| Vec::new(),
        validate_status: |_, _| Vec::new(),
        name: names::dns1123_subdomain,
        warnings: |_| Vec::new(),
        generation: false,
        generation_of_annotations: false,
        create_on_update: false,
        unconditional_update: true,
        orphans: false,
    };
}

impl Strategy for Rules {
    fn default(&self, object: &mut Value) {
        (self.default)(object);
    }

    fn prepare_create(&self, context: &Context, object: &mut Value) {
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
        if self.generation {
            set(object, "metadata.generation", 1);
        }
        (self.prepare_create)(context, object);
    }

    fn validate(&self, object: &Value) -> Vec<Error> {
        let mut errors = (self.validate)(object);
        errors.extend((self.validate_create)(object));
        errors
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        (self.name)(name)
    }

    fn prepare_update(&self, context: &Context, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
        (self.prepare_update)(context, object, old);
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<Error> {
        let mut errors = (self.validate)(object);
        errors.extend((self.validate_update)(object, old));
        errors
    }

    fn prepare_status_update(&self, _context: &Context, object: &mut Value, old: &Value) {
        keep_all_but_status(object, old);
    }

    fn validate_status_update(&self, object: &Value, old: &Value) -> Vec<Error> {
        (self.validate_status)(object, old)
    }

    fn generation_changed(&self, object: &Value, old: &Value) -> Option<bool> {
        let annotations = |object| crate::get::at(object, "metadata.annotations");
        let annotated = || self.generation_of_annotations && !same(annotations(object), annotations(old));
        self.generation.then(|| content_changed(object, old) || annotated())
    }

    /// An update that changes nothing a warning could be about is not warned of again.
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        match old {
            Some(old) if !content_changed(object, old) => Vec::new(),
            _ => (self.warnings)(object),
        }
    }

    fn allow_create_on_update(&self) -> bool {
        self.create_on_update
    }

    fn allow_unconditional_update(&self) -> bool {
        self.unconditional_update
    }

    fn orphans_by_default(&self) -> bool {
        self.orphans
    }
}

/// Makes every top-level field but metadata and status as it is in `old`.
pub fn keep_all_but_status(object: &mut Value, old: &Value) {
    let names: Vec<String> = [&*object, old]
        .into_iter()
        .filter_map(Value::as_object)
        .flat_map(|fields| fields.keys().cloned())
        .filter(|name| !matches!(name.as_str(), "metadata" | "status" | "apiVersion" | "kind"))
        .collect();
    for name in names {
        carry_over(object, old, &name);
    }
}

/// Whether anything but the metadata and the status differs.
pub fn content_changed(object: &Value, old: &Value) -> bool {
    let names = [object, old].into_iter().filter_map(Value::as_object).flat_map(|fields| fields.keys());
    let mut content =
        names.filter(|name| !matches!(name.as_str(), "metadata" | "status" | "apiVersion" | "kind"));
    content.any(|name| !same(object.get(name), old.get(name)))
}
