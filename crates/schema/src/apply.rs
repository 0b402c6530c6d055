//! Server-side apply, and the tracking of who wrote which field.
//!
//! Every write goes through [`track_update`], every apply through [`apply`]. Both work on any [`Schema`]:
//! [`Typed`] is the tables', and custom resources bring their own.
//!
//! Managers that wrote in another version of the kind are compared by the paths of the version at hand, which
//! is exact as long as the versions name their fields alike.
//!
//! Upstream: apimachinery/pkg/util/managedfields, sigs.k8s.io/structured-merge-diff

mod managers;
mod set;
mod stored;
mod typed;
mod walk;

use apimachinery::status::{Cause, Details, Status};
use apimachinery::{GroupVersion, time};
use serde_json::{Map, Value};

use managers::Entry;
pub use managers::{open as open_owners, write_owned};
use set::{Element, Set};
pub use stored::read as read_stored;
pub(crate) use stored::text_of_map;
pub(crate) use typed::check_kind;
pub use typed::{Keys, Schema, Shape, Typed};

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The version that whoever writes a scale writes in.
const SCALE_VERSION: &str = "autoscaling/v1";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// What no manager owns.
const STRIPPED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "clusterName"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
];

/// Who writes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The `fieldManager` of the request, or [`manager_of_user_agent`].
    pub manager: &'a str,
    /// Empty for the resource itself.
    pub subresource: &'a str,
    /// The version that the request is in.
    pub api_version: &'a str,
    /// Seconds since the epoch.
    pub now: i64,
    /// The fields that this endpoint resets, by their JSON names: nobody owns them through it.
    pub resets: &'a [&'a [&'a str]],
}

impl Writer<'_> {
    fn of_scale(&self) -> bool {
        self.subresource == "scale"
    }
}

/// The manager of a write that names none: the user agent up to its first slash.
// Upstream: apiserver/pkg/endpoints/handlers/create.go managerOrUserAgent
pub fn manager_of_user_agent(user_agent: &str) -> String {
    let prefix = user_agent.split('/').next().unwrap_or_default();
    prefix.chars().take_while(|c| !c.is_control()).take(128).collect()
}

/// Notes in `new` who owns what, after a write other than apply made it of `live` (`None`: it is created).
///
/// When nothing changed, the managers of `live` stay as they are, so that the write is no write. What each holds
/// is left as JSON text: see [`open_owners`].
pub fn track_update<S: Schema>(schema: &S, live: Option<&Value>, new: &mut Value, writer: &Writer<'_>) {
    let sent = take_managed_fields(new);
    let zero;
    let old = match live {
        Some(live) => live,
        None => {
            zero = schema.zero();
            &zero
        }
    };
    let mut entries = managers_of(live, sent.as_ref(), writer);
    let has_uid = live.and_then(|l| l.get("metadata")).is_some_and(|m| m.get("uid").is_some());
    if entries.is_empty() && has_uid {
        return;
    }
    update(schema, old, new, &mut entries, writer);
    managers::cap(&mut entries);
    let managed = managers::encode(entries);
    managers::put(new, managed);
}

/// What an object becomes when the fields of another tree are set on it, which nobody owns for that. What can only
/// be replaced as a whole cannot be set.
///
/// Upstream: apiserver/pkg/admission/plugin/policy/mutating/patch/smd.go ApplyStructuredMergeDiff
pub fn set_fields<S: Schema>(schema: &S, live: &Value, patch: &Value) -> Result<Value, String> {
    let mut errors = Vec::new();
    walk::validate(schema, patch, "", &mut errors);
    match errors.as_slice() {
        [] => {}
        [one] => return Err(format!("failed to convert patch object to typed object: {one}")),
        many => {
            let many: String = many.iter().map(|error| format!("\n  {error}")).collect();
            return Err(format!("failed to convert patch object to typed object: errors:{many}"));
        }
    }
    let mut atomics = Vec::new();
    walk::atomics(schema, patch, "", &mut atomics);
    if !atomics.is_empty() {
        let atomics = atomics.join(", ");
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {atomics}"
        ));
    }
    Ok(walk::merge(schema, live, patch))
}

/// Applies what a manager wants of an object. `patch` is the tree as it was sent; what comes back has yet to be
/// decoded ([`crate::decode::value`]) and defaulted.
pub fn apply<S: Schema>(
    schema: &S,
    live: Option<&Value>,
    patch: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, Status> {
    check_patch(schema, patch, writer)?;
    let empty = Value::Object(Map::new());
    let old = live.map_or_else(|| empty.clone(), without_managed_fields);
    let mut entries = managers::decode(live.and_then(managers::of)).ok_or_else(|| {
        Status::failure(500, "", "failed to decode managed fields: unable to decode managedFields".to_owned())
    })?;
    let zero = schema.zero();
    if entries.is_empty() && live.is_some() {
        let before = Writer { manager: BEFORE_FIRST_APPLY, resets: &[], ..*writer };
        update(schema, &zero, &old, &mut entries, &before);
    }
    let outcome = match try_apply(schema, &old, patch, entries.clone(), writer, force) {
        Err(conflicts) if writer.manager == "kubectl" => {
            let allowed = last_applied_set(schema, &old, writer.api_version);
            let left: Vec<Conflict> = conflicts.into_iter().filter(|c| !allowed.has(&c.path)).collect();
            if left.is_empty() { try_apply(schema, &old, patch, entries, writer, true) } else { Err(left) }
        }
        outcome => outcome,
    };
    let (mut new, entries) = outcome.map_err(|conflicts| conflict_status(&conflicts))?;
    update_last_applied(&mut new, patch, writer);
    managers::put(&mut new, managers::encode(entries));
    Ok(new)
}

/// The managers to begin with: those that the writer sent, or those of the live object.
fn managers_of<'a>(live: Option<&'a Value>, sent: Option<&'a Value>, writer: &Writer<'_>) -> Vec<Entry<'a>> {
    let of_live = || managers::decode(live.and_then(managers::of)).unwrap_or_default();
    if !writer.subresource.is_empty() {
        return of_live();
    }
    if managers::is_reset(sent) {
        return Vec::new();
    }
    match managers::decode(sent) {
        Some(entries) if !entries.is_empty() => entries,
        _ => of_live(),
    }
}

fn entry_of<'a>(writer: &Writer<'a>, applied: bool) -> Entry<'a> {
    Entry {
        manager: if writer.manager.is_empty() { "unknown".into() } else { writer.manager.into() },
        applied,
        api_version: writer.api_version.into(),
        subresource: writer.subresource.into(),
        // Upstream keeps no time of who owns the replicas by way of the scale.
        time: (!writer.of_scale()).then(|| time::rfc3339(writer.now).into()),
        fields: Set::default(),
    }
}

fn update<'a, S: Schema>(
    schema: &S,
    old: &'a Value,
    new: &'a Value,
    entries: &mut Vec<Entry<'a>>,
    writer: &Writer<'a>,
) {
    let (changed, removed) = changes(schema, old, new, writer);
    for entry in entries.iter_mut() {
        entry.fields.difference(&removed);
    }
    let mut own = entry_of(writer, false);
    own.fields = changed;
    strip(&mut own.fields);
    for entry in entries.iter_mut().filter(|e| !e.is_same_manager(&own)) {
        entry.fields.difference(&own.fields);
    }
    if !own.fields.is_empty() {
        match entries.iter_mut().find(|e| e.is_same_manager(&own)) {
            Some(entry) => {
                entry.fields.union(&own.fields);
                entry.time = own.time.or(entry.time.take());
            }
            None => entries.push(own),
        }
    }
    entries.retain(|e| !e.fields.is_empty());
}

/// What was added or modified, and what was removed, less what the endpoint resets.
fn changes<'a, S: Schema>(
    schema: &S,
    old: &'a Value,
    new: &'a Value,
    writer: &Writer<'_>,
) -> (Set<'a>, Set<'a>) {
    let walk::Comparison { mut changed, mut removed } = walk::compare(schema, old, new);
    for set in [&mut changed, &mut removed] {
        ignore(set, writer);
    }
    (changed, removed)
}

fn ignore(set: &mut Set<'_>, writer: &Writer<'_>) {
    writer.resets.iter().for_each(|path| set.remove_under(path));
}

fn strip(set: &mut Set<'_>) {
    STRIPPED.iter().for_each(|path| set.remove_member(path));
}

struct Conflict {
    manager: String,
    path: Vec<Element<'static>>,
    words: String,
}

/// The paths of a set that outlive what it was made of.
fn owned_paths(set: &Set<'_>) -> impl Iterator<Item = (Vec<Element<'static>>, String)> {
    let paths = set.paths().into_iter();
    paths.map(|(path, words)| (path.into_iter().map(Element::into_owned).collect(), words))
}

/// What an apply makes of an object, with its managers; or who holds what it would change.
type Applied<'a> = Result<(Value, Vec<Entry<'a>>), Vec<Conflict>>;

fn try_apply<'a, S: Schema>(
    schema: &S,
    old: &'a Value,
    patch: &'a Value,
    mut entries: Vec<Entry<'a>>,
    writer: &Writer<'a>,
    force: bool,
) -> Applied<'a> {
    let mut own = entry_of(writer, true);
    own.fields = walk::field_set(schema, patch);
    ignore(&mut own.fields, writer);
    let last = entries.iter().position(|e| e.is_same_manager(&own)).map(|at| entries.swap_remove(at));

    let mut new = walk::merge(schema, old, patch);
    if let Some(last) = &last {
        let mut held = own.fields.clone();
        entries.iter().for_each(|e| held.union(&e.fields));
        walk::prune(schema, &mut new, &last.fields, &held);
    }
    let (changed, removed) = changes(schema, old, &new, writer);
    let mut conflicts = Vec::new();
    for entry in &mut entries {
        let taken = entry.fields.intersection(&changed);
        conflicts.extend(owned_paths(&taken).map(|(path, words)| Conflict {
            manager: entry.words(if writer.of_scale() { SCALE_VERSION } else { &entry.api_version }),
            path,
            words,
        }));
        entry.fields.difference(&taken);
        entry.fields.difference(&removed);
    }
    if !force && !conflicts.is_empty() {
        return Err(conflicts);
    }
    strip(&mut own.fields);
    if new == *old {
        // Nothing was written, so the time of the last write stays.
        own.time = last.and_then(|l| l.time);
    }
    entries.push(own);
    Ok((new, entries))
}

fn check_patch<S: Schema>(schema: &S, patch: &Value, writer: &Writer<'_>) -> Result<(), Status> {
    let text = |path: &str| patch.pointer(path).and_then(Value::as_str).unwrap_or_default();
    // Upstream: apimachinery/pkg/util/managedfields/internal/versioncheck.go
    if text("/apiVersion") != writer.api_version {
        return Err(other_type(patch));
    }
    if patch.pointer("/metadata/managedFields").is_some_and(|m| !m.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let mut errors = Vec::new();
    walk::validate(schema, patch, "", &mut errors);
    if errors.is_empty() {
        return Ok(());
    }
    errors.truncate(100);
    let listed = match errors.as_slice() {
        [one] => one.clone(),
        several => format!("errors:\n  {}", several.join("\n  ")),
    };
    Err(Status::unknown_error(format!(
        "failed to create typed patch object ({}/{}; {}): {listed}",
        text("/metadata/namespace"),
        text("/metadata/name"),
        type_words(patch)
    )))
}

/// The type that an object says it is of, as upstream writes one: `apps/v1, Kind=Deployment`.
fn type_words(object: &Value) -> String {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let version = GroupVersion::parse(text("apiVersion")).unwrap_or_default();
    format!("{}/{}, Kind={}", version.group, version.version, text("kind"))
}

/// The refusal of an apply of what is of another type.
pub fn other_type(patch: &Value) -> Status {
    Status::bad_request(format!("invalid object type: {}", type_words(patch)))
}

/// Upstream: apimachinery/pkg/util/managedfields/internal/conflict.go NewConflictError
fn conflict_status(conflicts: &[Conflict]) -> Status {
    let message = match conflicts {
        [one] => format!("Apply failed with 1 conflict: conflict with {}: {}", one.manager, one.words),
        several => {
            let mut managers: Vec<&str> = several.iter().map(|c| c.manager.as_str()).collect();
            managers.sort_unstable();
            managers.dedup();
            let mut lines = Vec::new();
            for manager in managers {
                lines.push(format!("conflicts with {manager}:"));
                lines.extend(
                    several.iter().filter(|c| c.manager == manager).map(|c| format!("- {}", c.words)),
                );
            }
            format!("Apply failed with {} conflicts: {}", several.len(), lines.join("\n"))
        }
    };
    let causes = conflicts
        .iter()
        .map(|c| Cause {
            reason: "FieldManagerConflict".into(),
            message: format!("conflict with {}", c.manager),
            field: c.words.clone(),
        })
        .collect();
    Status::failure(409, "Conflict", message).with_details(Details { causes, ..Details::default() })
}

/// What kubectl's client-side apply last wrote and nobody changed since: kubectl may take that over.
// Upstream: apimachinery/pkg/util/managedfields/internal/lastappliedmanager.go allowedConflictsFromLastApplied
fn last_applied_set<S: Schema>(schema: &S, live: &Value, api_version: &str) -> Set<'static> {
    let annotation =
        live.pointer("/metadata/annotations").and_then(|a| a.get(LAST_APPLIED)).and_then(Value::as_str);
    let Some(applied) = annotation.and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return Set::default();
    };
    if applied.get("apiVersion").and_then(Value::as_str) != Some(api_version) {
        return Set::default();
    }
    let mut fields = walk::field_set(schema, &applied);
    let comparison = walk::compare(schema, &applied, live);
    fields.difference(&comparison.changed);
    fields.difference(&comparison.removed);
    fields.into_owned()
}

/// Keeps kubectl's annotation up to date where there is one, so that client-side apply can go on.
fn update_last_applied(new: &mut Value, patch: &Value, writer: &Writer<'_>) {
    if writer.manager != "kubectl" {
        return;
    }
    let Some(annotation) = new.pointer_mut("/metadata/annotations").and_then(|a| a.get_mut(LAST_APPLIED))
    else {
        return;
    };
    let mut applied = patch.clone();
    if let Some(Value::Object(annotations)) = applied.pointer_mut("/metadata/annotations") {
        annotations.remove(LAST_APPLIED);
    }
    *annotation = format!("{applied}\n").into();
}

fn take_managed_fields(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove("managedFields")
}

fn without_managed_fields(object: &Value) -> Value {
    let mut object = object.clone();
    take_managed_fields(&mut object);
    object
}

#[cfg(test)]
mod tests;
