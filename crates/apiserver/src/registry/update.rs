//! Changing an object: by PUT, by any patch, and by the subresources that write it. All go through one
//! compare-and-swap loop.
//!
//! Upstream: apiserver/pkg/registry/rest/update.go BeforeUpdate, apiserver/pkg/registry/generic/registry/store.go
//! Update

use std::sync::Arc;

use apimachinery::{GroupKind, Status, field};
use serde_json::Value;
use storage::Expect;

use super::call::Call;
use super::metadata::{self, finalizers, is_terminating};
use super::object::Object;
use super::store_error;
use crate::encode::Outcome;
use crate::seams::Operation;
use crate::special::part::{self, Part};

/// How often a change is tried again when others were faster.
const ATTEMPTS: usize = 64;

/// Makes the wanted object of the present one.
pub type Change<'c> = &'c mut (dyn FnMut(&Value) -> Result<Value, Status> + Send);

/// What a change came to.
enum Step {
    Done(Outcome),
    /// Another write came between.
    Again,
}

impl Call<'_> {
    /// A PUT's object must be the one that the URL names.
    pub fn check_update(&self, name: &str, object: &mut Value) -> Result<(), Status> {
        self.check_kind(object)?;
        metadata::check_namespace(self.def(), self.namespace(), object)?;
        metadata::check_name(name, object)
    }

    /// Changes an object. True when it was created.
    pub async fn update(
        &mut self,
        name: &str,
        part: Part,
        create: bool,
        change: Change<'_>,
    ) -> Result<(Outcome, bool), Status> {
        for _ in 0..ATTEMPTS {
            let Some(existing) = self.registry().get(self.resource, self.namespace(), name)? else {
                if create && part == Part::Whole {
                    let object = change(&Value::Null)?;
                    return self.create_absent(object).await.map(|outcome| (outcome, true));
                }
                return Err(self.not_found(name));
            };
            let old = self.tree(&existing).await?;
            let mut object = change(&old)?;
            self.dedup_owners(&mut object);
            self.check_preconditions(&existing.key, &object, &old)?;
            match self.change(name, part, object, &existing, &old).await? {
                Step::Done(outcome) => return Ok((outcome, false)),
                Step::Again => {}
            }
        }
        Err(Status::modified(&self.def().group_resource(), name))
    }

    /// A PUT or an apply to a name that does not exist.
    async fn create_absent(&mut self, mut object: Value) -> Result<Outcome, Status> {
        if self.applied {
            return self.create_applied(object).await;
        }
        if !metadata::text(&object, "resourceVersion").is_empty() {
            let name = metadata::text(&object, "name").to_owned();
            return Err(match metadata::text(&object, "uid") {
                "" => self.not_found(&name),
                uid => {
                    let why =
                        format!("Precondition failed: UID in precondition: {uid}, UID in object meta: ");
                    Status::conflict(&self.def().group_resource(), &name, why)
                }
            });
        }
        metadata::of(&mut object).remove("resourceVersion");
        self.create(object).await
    }

    /// Upstream: apiserver/pkg/endpoints/handlers/patch.go applyPatch
    async fn create_applied(&mut self, mut object: Value) -> Result<Outcome, Status> {
        let uid = metadata::text(&object, "uid");
        if !uid.is_empty() {
            let why = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(Status::conflict(&self.def().group_resource(), &self.attributes.name, why));
        }
        metadata::of(&mut object).remove("resourceVersion");
        self.create(object).await
    }

    fn check_preconditions(&self, key: &str, object: &Value, old: &Value) -> Result<(), Status> {
        let (resource, name) = (self.def().group_resource(), metadata::text(old, "name"));
        let (uid, was) = (metadata::text(object, "uid"), metadata::text(old, "uid"));
        // A patch changes the uid, which is refused as any such change is.
        if !uid.is_empty() && uid != was && self.attributes.verb != "patch" {
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition \
                 failed: UID in precondition: {uid}, UID in object meta: {was}"
            );
            return Err(Status::conflict(&resource, name, why));
        }
        match metadata::text(object, "resourceVersion") {
            "" | "0" if self.def().strategy.allow_unconditional_update() => Ok(()),
            "" | "0" => {
                let path = field::Path::new("metadata").child("resourceVersion");
                let error = field::Error::invalid(&path, 0, "must be specified for an update");
                // Upstream has the resource in the place of the kind here.
                let of = GroupKind { group: resource.group, kind: resource.resource };
                Err(Status::invalid(&of, name, &[error]))
            }
            version if version == metadata::text(old, "resourceVersion") => Ok(()),
            _ => Err(Status::modified(&resource, name)),
        }
    }

    async fn change(
        &mut self,
        name: &str,
        part: Part,
        mut object: Value,
        existing: &Arc<Object>,
        old: &Value,
    ) -> Result<Step, Status> {
        metadata::keep_system_fields(&mut object, old);
        metadata::of(&mut object)
            .insert("resourceVersion".into(), metadata::text(old, "resourceVersion").into());
        self.complete(&mut object);
        self.fill(&mut object);
        if part != Part::Binding {
            self.track_fields(Some(old), &mut object);
        }
        // A binding was admitted as what it is; the pod that it makes is not the client's.
        if part != Part::Binding {
            self.mutate(Operation::Update, name, &mut object, Some(old)).await?;
        }
        let context = self.context();
        part::prepare(part, self.def(), &context, &mut object, old);
        metadata::keep_system_fields(&mut object, old);
        let reservation = self.server.services.prepare(self, &mut object, Some(old))?;
        self.count_generation(part, &mut object, old);
        let mut errors = metadata::validate_update(self.def(), &object, old, part == Part::Whole);
        errors.extend(part::validate(part, self.def(), &object, old));
        self.invalid(name, &errors)?;
        self.warn(self.def().strategy.warnings(&object, Some(old)));
        self.fill(&mut object);
        if part != Part::Binding {
            self.validate_admission(Operation::Update, name, &mut object, Some(old)).await?;
        }
        let step = self.commit(name, part, object, existing).await;
        drop(reservation);
        step
    }

    fn count_generation(&self, part: Part, object: &mut Value, old: &Value) {
        if part.changes_spec() && self.def().strategy.generation_changed(object, old) == Some(true) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            metadata::of(object).insert("generation".into(), generation.into());
        }
    }

    async fn commit(
        &mut self,
        name: &str,
        part: Part,
        object: Value,
        existing: &Arc<Object>,
    ) -> Result<Step, Status> {
        if self.options.dry_run {
            return Ok(Step::Done(Outcome::Tree(object)));
        }
        if is_gone(part, self.def(), &object) {
            return self.remove_finalized(name, object, existing).await;
        }
        let bytes = self.to_stored(&object).await?;
        if bytes == *existing.stored() {
            return Ok(Step::Done(Outcome::Stored(existing.clone())));
        }
        match self.registry().put(&existing.key, bytes, Expect::Modified(existing.revision)).await {
            Ok(object) => Ok(Step::Done(Outcome::Stored(object))),
            Err(storage::Error::Conflict(_)) => {
                self.lost_race(existing).await;
                Ok(Step::Again)
            }
            Err(error) => Err(store_error(error)),
        }
    }

    /// The update took away the last finalizer of an object that is being deleted.
    async fn remove_finalized(
        &mut self,
        name: &str,
        mut object: Value,
        existing: &Arc<Object>,
    ) -> Result<Step, Status> {
        let old = self.tree(existing).await?;
        self.validate_admission(Operation::Delete, name, &mut Value::Null, Some(&old)).await?;
        match self.registry().remove(&existing.key, Expect::Modified(existing.revision)).await {
            Ok(deleted) => {
                let revision = deleted.map_or(existing.revision, |(_, revision)| revision);
                metadata::of(&mut object).insert("resourceVersion".into(), revision.to_string().into());
                Ok(Step::Done(Outcome::Tree(object)))
            }
            Err(storage::Error::Conflict(_)) => {
                self.lost_race(existing).await;
                Ok(Step::Again)
            }
            Err(error) => Err(store_error(error)),
        }
    }

    /// Waits until the cache shows the write that was faster, so that the next attempt begins from it.
    pub async fn lost_race(&self, existing: &Object) {
        let Ok(cache) = self.resource.cache() else { return };
        let mut changed = cache.subscribe();
        let moved =
            || cache.read().get(&existing.key).is_none_or(|object| object.revision != existing.revision);
        while !moved() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// Whether nothing holds an object any longer that is being deleted.
fn is_gone(part: Part, def: &resources::ResourceDef, object: &Value) -> bool {
    if !is_terminating(object) || !finalizers(object).is_empty() {
        return false;
    }
    if def.group.is_empty() && def.plural == "namespaces" {
        return part != Part::Status
            && object["spec"]["finalizers"].as_array().is_none_or(|list| list.is_empty());
    }
    object["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
}
