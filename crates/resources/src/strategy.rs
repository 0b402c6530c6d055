//! What a kind does differently from the rest. Everything has a default, so that a plain kind has no strategy of
//! its own.
//!
//! Objects come as trees that were already decoded against the schema, with declared defaults filled in.

use std::collections::BTreeMap;

use apimachinery::field;
use serde_json::Value;

/// What a strategy may know of the world.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// Seconds since the epoch.
    pub now: i64,
    /// Sixteen random bytes, for what must be unique.
    pub random: [u8; 16],
    /// The requesting user's name.
    pub user: &'a str,
    /// The requesting user's uid, empty when unknown.
    pub uid: &'a str,
    pub groups: &'a [String],
    /// What else is known of the user.
    pub extra: &'a BTreeMap<String, Vec<String>>,
}

/// How an object is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// At once (finalizers allowing).
    Immediate,
    /// After so many seconds, by whoever runs it.
    Graceful { seconds: i64 },
}

/// Upstream: apiserver/pkg/registry/rest/{create,update,delete}.go
pub trait Strategy: Send + Sync + 'static {
    /// Defaults that the schema cannot declare: those that depend on other fields. Idempotent. It runs on every
    /// object that is decoded from a request, patches and mutations included.
    fn default(&self, _object: &mut Value) {}

    /// Clears what a client may not set at create (status among it) and sets what the server owns.
    fn prepare_create(&self, _context: &Context, object: &mut Value) {
        if let Some(fields) = object.as_object_mut() {
            fields.remove("status");
        }
    }

    /// All that is wrong with a new object, metadata excepted (which is checked for every kind).
    fn validate(&self, _object: &Value) -> Vec<field::Error> {
        Vec::new()
    }

    /// Whether names of this kind are checked as `DNS subdomain`s, labels or otherwise. Empty when good.
    fn validate_name(&self, name: &str) -> Vec<String> {
        apimachinery::names::dns1123_subdomain(name)
    }

    /// Carries over from `old` what an update may not change silently (the status among it).
    fn prepare_update(&self, _context: &Context, object: &mut Value, old: &Value) {
        carry_over(object, old, "status");
    }

    /// All that is wrong with an update. `validate` of the new object is not run besides: call it from here.
    fn validate_update(&self, object: &Value, _old: &Value) -> Vec<field::Error> {
        self.validate(object)
    }

    /// Carries over from `old` all but what the `status` subresource writes.
    fn prepare_status_update(&self, _context: &Context, object: &mut Value, old: &Value) {
        carry_over(object, old, "spec");
    }

    fn validate_status_update(&self, _object: &Value, _old: &Value) -> Vec<field::Error> {
        Vec::new()
    }

    /// Whether the object's spec differs, so that `metadata.generation` grows; `None` for kinds without it.
    fn generation_changed(&self, _object: &Value, _old: &Value) -> Option<bool> {
        None
    }

    /// Warnings for the client, as `Warning` headers carry them.
    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// PUT to a name that does not exist creates it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// PUT without a resourceVersion overwrites.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// How to delete `object` when the client asked for `grace_period_seconds`.
    fn deletion(&self, _object: &Value, _grace_period_seconds: Option<i64>) -> Deletion {
        Deletion::Immediate
    }

    /// What happens to dependents when the client does not say: true orphans them.
    fn orphans_by_default(&self) -> bool {
        false
    }
}

/// Makes a top-level field as it is in `old`.
pub fn carry_over(object: &mut Value, old: &Value, field: &str) {
    let Some(fields) = object.as_object_mut() else { return };
    match old.get(field) {
        // To compare is a fraction of what a copy costs.
        Some(value) if fields.get(field) == Some(value) => None,
        Some(value) => fields.insert(field.to_owned(), value.clone()),
        None => fields.remove(field),
    };
}

/// The strategy of kinds that need none.
pub struct Plain;

impl Strategy for Plain {}
