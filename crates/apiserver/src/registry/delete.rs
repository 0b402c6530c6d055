//! Deleting an object: at once, after a grace period, or when its finalizers are gone. [`decide`] says which.
//!
//! Upstream: apiserver/pkg/registry/rest/delete.go BeforeDelete, apiserver/pkg/registry/generic/registry/store.go
//! Delete

use std::sync::Arc;

use apimachinery::status::Details;
use apimachinery::time::{parse_rfc3339, rfc3339};
use apimachinery::{GroupResource, Status};
use futures::StreamExt;
use resources::ResourceDef;
use resources::strategy::Deletion;
use serde_json::{Value, json};
use storage::{Entry, Expect, Revision};

use super::call::Call;
use super::metadata::{self, finalizers, is_terminating};
use super::object::Object;
use super::store_error;
use crate::encode::Outcome;
use crate::options::{DeleteOptions, ListOptions, Propagation};
use crate::seams::Operation;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const ATTEMPTS: usize = 64;
/// How many of a collection are deleted at once, so that they share commits.
const AT_ONCE: usize = 16;

/// What a deletion does to the object now.
#[derive(Debug, PartialEq)]
pub enum Plan {
    /// It is being deleted already, and nothing changes.
    Pending,
    /// Somebody else finishes it: a kubelet, or those whose finalizers it has.
    Mark(Value),
    /// Marked for those who watch, then removed.
    MarkAndRemove(Value),
    Remove,
}

/// What to do with `object` when it is deleted with `options` at `now`.
pub fn decide(def: &ResourceDef, object: &Value, options: &DeleteOptions, now: i64) -> Plan {
    let wanted = wanted_finalizers(def, object, options);
    let same_finalizers = wanted == finalizers(object);
    let held = !wanted.is_empty();
    let marked = || {
        let mut marked = object.clone();
        if !same_finalizers {
            set_finalizers(&mut marked, &wanted);
        }
        marked
    };
    let grace = match def.strategy.deletion(object, options.grace_period_seconds) {
        Deletion::Immediate => None,
        Deletion::Graceful { seconds } => Some(seconds.max(0)),
    };
    let Some(grace) = grace else {
        if !held {
            return Plan::Remove;
        }
        if is_terminating(object) && same_finalizers {
            return Plan::Pending;
        }
        let mut marked = marked();
        mark(&mut marked, now, 0);
        return Plan::Mark(marked);
    };
    if is_terminating(object) {
        return shorten(object, marked, options, held, same_finalizers);
    }
    let mut marked = marked();
    mark(&mut marked, now + grace, grace);
    if grace > 0 || held { Plan::Mark(marked) } else { Plan::MarkAndRemove(marked) }
}

/// An object that is being deleted gracefully can only be deleted sooner.
fn shorten(
    object: &Value,
    marked: impl FnOnce() -> Value,
    options: &DeleteOptions,
    held: bool,
    same_finalizers: bool,
) -> Plan {
    let left = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
    let was = left.unwrap_or(0);
    let asked = options.grace_period_seconds.map_or(was, |seconds| seconds.max(0));
    if asked < was {
        let started = parse_rfc3339(metadata::text(object, "deletionTimestamp")).unwrap_or_default() - was;
        if asked == 0 && !held {
            return Plan::Remove;
        }
        let mut marked = marked();
        let fields = metadata::of(&mut marked);
        fields.insert("deletionTimestamp".into(), rfc3339(started + asked).into());
        fields.insert("deletionGracePeriodSeconds".into(), asked.into());
        return Plan::Mark(marked);
    }
    if was == 0 && !held {
        return Plan::Remove;
    }
    if same_finalizers { Plan::Pending } else { Plan::Mark(marked()) }
}

/// A definition goes when its objects are gone, which its finalizer waits for.
///
/// Upstream: apiextensions-apiserver/pkg/registry/customresourcedefinition/etcd.go Delete
fn decide_definition(definition: &Value, now: i64) -> Option<Plan> {
    if is_terminating(definition) {
        return None;
    }
    let mut marked = definition.clone();
    let now = rfc3339(now);
    let fields = metadata::of(&mut marked);
    fields.insert("deletionTimestamp".into(), now.as_str().into());
    let mut held = finalizers(definition);
    if !held.contains(&crate::extensions::FINALIZER) {
        held.push(crate::extensions::FINALIZER);
    }
    set_finalizers(&mut marked, &held);
    let message = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
    resources::custom::status::set_condition(
        &mut marked["status"],
        &now,
        "Terminating",
        "True",
        "InstanceDeletionPending",
        message,
    );
    Some(Plan::Mark(marked))
}

fn mark(object: &mut Value, at: i64, grace: i64) {
    let generation = object["metadata"]["generation"].as_i64().filter(|g| *g > 0);
    let fields = metadata::of(object);
    if !fields.contains_key("deletionTimestamp") {
        fields.insert("deletionTimestamp".into(), rfc3339(at).into());
        if let Some(generation) = generation {
            fields.insert("generation".into(), (generation + 1).into());
        }
    }
    fields.insert("deletionGracePeriodSeconds".into(), grace.into());
}

fn set_finalizers(object: &mut Value, wanted: &[&str]) {
    let fields = metadata::of(object);
    if wanted.is_empty() {
        fields.remove("finalizers");
    } else {
        fields.insert("finalizers".into(), json!(wanted));
    }
}

/// The finalizers with those of garbage collection as the propagation policy wants them.
///
/// Upstream: apiserver/pkg/registry/generic/registry/store.go deletionFinalizersForGarbageCollection
fn wanted_finalizers<'o>(def: &ResourceDef, object: &'o Value, options: &DeleteOptions) -> Vec<&'o str> {
    let had = finalizers(object);
    let policy = options.propagation.or(options.orphan_dependents.map(|orphan| match orphan {
        true => Propagation::Orphan,
        false => Propagation::Background,
    }));
    let (orphan, foreground) = match policy {
        Some(policy) => (policy == Propagation::Orphan, policy == Propagation::Foreground),
        None => {
            let kept = had.contains(&ORPHAN) || had.contains(&FOREGROUND);
            let orphan = had.contains(&ORPHAN) || (!kept && def.strategy.orphans_by_default());
            (orphan, had.contains(&FOREGROUND))
        }
    };
    let wants = |finalizer: &str| match finalizer {
        ORPHAN => orphan,
        FOREGROUND => foreground,
        _ => true,
    };
    let mut wanted: Vec<&str> = had.iter().copied().filter(|f| wants(f)).collect();
    for (finalizer, add) in [(ORPHAN, orphan), (FOREGROUND, foreground)] {
        if add && !wanted.contains(&finalizer) {
            wanted.push(finalizer);
        }
    }
    wanted
}

/// A namespace is deleted by its controller, which empties it first.
///
/// Upstream: pkg/registry/core/namespace/storage/storage.go Delete
fn decide_namespace(
    def: &ResourceDef,
    object: &Value,
    options: &DeleteOptions,
    now: i64,
) -> Result<Plan, Status> {
    let spec_finalizers = object["spec"]["finalizers"].as_array().map_or(0, Vec::len);
    if !is_terminating(object) {
        let mut marked = object.clone();
        let wanted: Vec<&str> = wanted_finalizers(def, object, options);
        set_finalizers(&mut marked, &wanted);
        mark(&mut marked, now, 0);
        metadata::of(&mut marked).remove("deletionGracePeriodSeconds");
        marked["status"]["phase"] = "Terminating".into();
        return Ok(if spec_finalizers == 0 && wanted.is_empty() { Plan::Remove } else { Plan::Mark(marked) });
    }
    if spec_finalizers > 0 {
        let why = "The system is ensuring all content is removed from this namespace.  Upon completion, this \
                   namespace will automatically be purged by the system.";
        return Err(Status::conflict(&def.group_resource(), metadata::text(object, "name"), why));
    }
    Ok(if finalizers(object).is_empty() { Plan::Remove } else { Plan::Pending })
}

/// Kinds whose deletion answers the object instead of a Status.
fn returns_object(def: &ResourceDef) -> bool {
    let core = [
        "pods",
        "services",
        "serviceaccounts",
        "resourcequotas",
        "podtemplates",
        "persistentvolumes",
        "persistentvolumeclaims",
    ];
    match &*def.group {
        "" => core.contains(&&*def.plural),
        "storage.k8s.io" | "resource.k8s.io" => true,
        _ => false,
    }
}

impl Call<'_> {
    /// Deletes an object. False when it is still there.
    pub async fn delete(&mut self, name: &str, options: &DeleteOptions) -> Result<(Outcome, bool), Status> {
        for _ in 0..ATTEMPTS {
            let existing = self.registry().get(self.resource, self.namespace(), name)?;
            let Some(existing) = existing else { return Err(self.not_found(name)) };
            if let Some(done) = self.delete_once(name, options, &existing).await? {
                return Ok(done);
            }
        }
        Err(Status::modified(&self.def().group_resource(), name))
    }

    /// `None` when another write came between.
    async fn delete_once(
        &mut self,
        name: &str,
        options: &DeleteOptions,
        existing: &Arc<Object>,
    ) -> Result<Option<(Outcome, bool)>, Status> {
        let tree = self.tree(existing).await?;
        self.check_delete(name, options, &tree)?;
        self.mutate(Operation::Delete, name, &mut Value::Null, Some(&tree)).await?;
        self.validate_admission(Operation::Delete, name, &mut Value::Null, Some(&tree)).await?;
        let now = self.server.now();
        let plan = match (&*self.def().group, &*self.def().plural) {
            ("", "namespaces") => decide_namespace(self.def(), &tree, options, now)?,
            ("apiextensions.k8s.io", "customresourcedefinitions") => {
                decide_definition(&tree, now).unwrap_or_else(|| decide(self.def(), &tree, options, now))
            }
            _ => decide(self.def(), &tree, options, now),
        };
        let expect = Expect::Modified(existing.revision);
        let written = match plan {
            Plan::Pending => return Ok(Some((Outcome::Stored(existing.clone()), false))),
            Plan::Mark(marked) | Plan::MarkAndRemove(marked) if self.options.dry_run => {
                return Ok(Some((Outcome::Tree(marked), false)));
            }
            Plan::Remove if self.options.dry_run => {
                let last = self.removed(name, &tree, || Outcome::Tree(Value::clone(&tree)));
                return Ok(Some((last, true)));
            }
            Plan::Mark(marked) => {
                let bytes = self.to_stored(&marked).await?;
                let written = self.registry().put(&existing.key, bytes, expect).await;
                written.map(|object| Some((Outcome::Stored(object), false)))
            }
            Plan::MarkAndRemove(marked) => {
                let bytes = self.to_stored(&marked).await?;
                let deleted = self.registry().put_and_remove(&existing.key, bytes, expect).await;
                deleted.map(|deleted| Some((self.gone(name, &tree, &deleted), true)))
            }
            Plan::Remove => {
                let deleted = self.registry().remove(&existing.key, expect).await;
                deleted.map(|deleted| deleted.map(|deleted| (self.gone(name, &tree, &deleted), true)))
            }
        };
        match written {
            Ok(Some(done)) => Ok(Some(done)),
            Ok(None) | Err(storage::Error::Conflict(_)) => {
                self.lost_race(existing).await;
                Ok(None)
            }
            Err(error) => Err(store_error(error)),
        }
    }

    /// The answer to a deletion that is done, at its revision.
    fn gone(&self, name: &str, tree: &Value, (last, revision): &(Entry, Revision)) -> Outcome {
        self.removed(name, tree, || Outcome::Stored(Arc::new(Object::at(last, *revision))))
    }

    /// The answer to a deletion: the last state of the object, or a Status about it.
    fn removed(&self, name: &str, tree: &Value, last: impl FnOnce() -> Outcome) -> Outcome {
        if returns_object(self.def()) {
            return last();
        }
        let details = Details {
            name: name.to_owned(),
            group: self.def().group.to_string(),
            kind: self.def().plural.to_string(),
            uid: metadata::text(tree, "uid").to_owned(),
            ..Default::default()
        };
        let mut status = Status { status: "Success".into(), ..Default::default() }.with_details(details);
        status.code = 200;
        let mut value = Value::from(&status);
        if let Some(fields) = value.as_object_mut() {
            fields.remove("code");
        }
        Outcome::Tree(value)
    }

    fn check_delete(&self, name: &str, options: &DeleteOptions, tree: &Value) -> Result<(), Status> {
        // Upstream has the kind in the place of the resource here.
        let of = GroupResource { group: self.def().group.clone(), resource: self.def().kind.clone() };
        let preconditions = [
            ("UID", &options.uid, "uid", "The object might have been deleted and then recreated"),
            (
                "ResourceVersion",
                &options.resource_version,
                "resourceVersion",
                "The object might have been modified",
            ),
        ];
        for (what, wanted, field, perhaps) in preconditions {
            let is = metadata::text(tree, field);
            if let Some(wanted) = wanted.as_deref().filter(|wanted| *wanted != is) {
                let why = format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({is}). {perhaps}"
                );
                return Err(Status::conflict(&of, name, why));
            }
        }
        Ok(())
    }

    /// Deletes all that match. Answers them as a list.
    pub async fn delete_collection(
        &mut self,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> Result<super::list::Listing, Status> {
        let listing = self.registry().list(self.resource, self.namespace(), list).await?;
        let one = |object: &Arc<Object>| {
            let mut call = Call { warnings: Vec::new(), annotations: Vec::new(), ..self.clone() };
            let name = object.name().to_owned();
            async move {
                let deleted = call.delete(&name, options).await;
                (call.warnings, call.annotations, deleted)
            }
        };
        let (mut warnings, mut annotations) = (Vec::new(), Vec::new());
        {
            let mut deletions = futures::stream::iter(listing.objects.iter().map(one)).buffered(AT_ONCE);
            while let Some((told, noted, deleted)) = deletions.next().await {
                warnings.extend(told);
                annotations.extend(noted);
                match deleted {
                    Err(status) if !status.is_not_found() => return Err(status),
                    _ => {}
                }
            }
        }
        self.warn(warnings);
        self.annotations.append(&mut annotations);
        Ok(listing)
    }
}
