//! The options of a request: how to list, watch, write and delete.

use apimachinery::selector::{FieldSelector, LabelSelector};
use apimachinery::{GroupKind, Status, field};
use resources::ResourceDef;
use serde_json::{Value, json};

use crate::request::Query;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    NotOlderThan,
    Exact,
}

/// How to list or watch.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
    /// As given, empty when not.
    pub resource_version: String,
    pub version_match: Option<VersionMatch>,
    /// Zero for all.
    pub limit: usize,
    pub continue_token: String,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
    pub timeout_seconds: Option<u64>,
}

fn invalid_options(kind: &str, errors: &[field::Error]) -> Status {
    Status::invalid(&GroupKind::from_static("meta.k8s.io", "ListOptions"), "", errors).with_kind(kind)
}

/// Names the kind of options in a Status.
trait WithKind {
    fn with_kind(self, kind: &str) -> Status;
}

impl WithKind for Status {
    fn with_kind(mut self, kind: &str) -> Status {
        if let Some(details) = &mut self.details {
            details.kind = kind.to_owned();
        }
        self
    }
}

impl ListOptions {
    pub fn parse(query: &Query, def: &ResourceDef, watch: bool) -> Result<Self, Status> {
        let get = |name| query.get(name).unwrap_or_default();
        let labels = LabelSelector::parse(get("labelSelector")).map_err(Status::bad_request)?;
        let fields = FieldSelector::parse(get("fieldSelector")).map_err(Status::bad_request)?;
        known_fields(&fields, def)?;
        let version_match = match get("resourceVersionMatch") {
            "NotOlderThan" => Some(VersionMatch::NotOlderThan),
            "Exact" => Some(VersionMatch::Exact),
            _ => None,
        };
        let options = ListOptions {
            labels,
            fields,
            resource_version: get("resourceVersion").to_owned(),
            version_match,
            // A negative limit is none, as for upstream's store.
            limit: number::<i64>(query, "limit")?.and_then(|limit| limit.try_into().ok()).unwrap_or(0),
            continue_token: get("continue").to_owned(),
            bookmarks: query.flag("allowWatchBookmarks").unwrap_or(false),
            send_initial_events: query.flag("sendInitialEvents"),
            // A negative time is none.
            timeout_seconds: number::<i64>(query, "timeoutSeconds")?.and_then(|n| n.try_into().ok()),
        };
        options.validate(watch, get("resourceVersionMatch"))?;
        Ok(options)
    }

    /// Upstream: apimachinery/pkg/apis/meta/internalversion/validation/validation.go ValidateListOptions
    fn validate(&self, watch: bool, given: &str) -> Result<(), Status> {
        let path = field::Path::new("resourceVersionMatch");
        let mut errors = Vec::new();
        let mut check = |wrong: bool, error: field::Error| errors.extend(wrong.then_some(error));
        let forbidden = |why: &str| field::Error::forbidden(&path, why);
        let (is_given, sends) = (!given.is_empty(), self.send_initial_events.is_some());
        let not_older_than = self.version_match == Some(VersionMatch::NotOlderThan);
        let continues = forbidden("resourceVersionMatch is forbidden when continue is provided");
        if watch {
            let why = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
            check(sends && !not_older_than, forbidden(why));
            let why = "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided";
            check(is_given && !sends, forbidden(why));
            let unsupported = field::Error::not_supported(&path, given, &["NotOlderThan"]);
            check(is_given && !not_older_than, unsupported);
            check(!self.continue_token.is_empty(), continues);
        } else {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            check(is_given && self.resource_version.is_empty(), forbidden(why));
            check(is_given && !self.continue_token.is_empty(), continues);
            let unsupported = field::Error::not_supported(&path, given, &["Exact", "NotOlderThan", ""]);
            check(is_given && self.version_match.is_none(), unsupported);
            let exactly_any = self.version_match == Some(VersionMatch::Exact) && self.resource_version == "0";
            let why = "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"";
            check(exactly_any, forbidden(why));
            let initial = field::Path::new("sendInitialEvents");
            check(sends, field::Error::forbidden(&initial, "sendInitialEvents is forbidden for list"));
        }
        if errors.is_empty() { Ok(()) } else { Err(invalid_options("ListOptions", &errors)) }
    }

    /// The asked revision; `None` when none is given.
    pub fn revision(&self) -> Result<Option<u64>, Status> {
        if self.resource_version.is_empty() {
            return Ok(None);
        }
        self.resource_version.parse().map(Some).map_err(|_| {
            let why = invalid_resource_version(&self.resource_version);
            Status::bad_request(format!("invalid resource version: {why}"))
        })
    }
}

/// Upstream: apiserver/pkg/storage/etcd3/api_object_versioner.go ParseResourceVersion
pub fn invalid_resource_version(text: &str) -> String {
    format!("resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax")
}

/// Refuses fields that the kind cannot be selected by.
fn known_fields(selector: &FieldSelector, def: &ResourceDef) -> Result<(), Status> {
    for requirement in &selector.requirements {
        let path = requirement.field.as_str();
        // Kinds that upstream says nothing about are selected by either, in whatever scope they are.
        let plain = def.custom.is_none() && def.selectable_fields.is_empty();
        let known = path == "metadata.name"
            || (path == "metadata.namespace" && (plain || def.namespaced()))
            || def.selectable_fields.iter().any(|f| f.path == path);
        if !known {
            return Err(Status::bad_request(match &*def.kind {
                _ if plain => format!(
                    "{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                ),
                "Job" => format!("field label {path:?} not supported for Job"),
                "ResourceSlice" => format!("field label not supported for {}: {path}", def.gvk()),
                _ => format!("field label not supported: {path}"),
            }));
        }
    }
    Ok(())
}

fn number<T: std::str::FromStr>(query: &Query, name: &str) -> Result<Option<T>, Status> {
    match query.get(name).filter(|text| !text.is_empty()) {
        None => Ok(None),
        Some(text) => text
            .parse()
            .map(Some)
            .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))),
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// How to create, update or patch.
#[derive(Clone, Debug, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    /// Apply only.
    pub force: bool,
}

impl WriteOptions {
    /// `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    pub fn parse(query: &Query, kind: &str) -> Result<Self, Status> {
        let mut errors = Vec::new();
        let field_manager = query.get("fieldManager").unwrap_or_default().to_owned();
        errors.extend(wrong_manager(&field_manager));
        let dry_run = dry_run(query.all("dryRun"), &mut errors);
        let field_validation = match query.get("fieldValidation").unwrap_or_default() {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let path = field::Path::new("fieldValidation");
                errors.push(field::Error::not_supported(&path, other, &["", "Ignore", "Strict", "Warn"]));
                FieldValidation::Warn
            }
        };
        if !errors.is_empty() {
            let kind = GroupKind::new("meta.k8s.io", kind.to_owned());
            return Err(Status::invalid(&kind, "", &errors));
        }
        let force = query.flag("force").unwrap_or(false);
        Ok(WriteOptions { dry_run, field_manager, field_validation, force })
    }

    /// As admission sees them.
    pub fn to_value(&self, kind: &str) -> Value {
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        if !self.field_manager.is_empty() {
            options["fieldManager"] = json!(self.field_manager);
        }
        options
    }
}

/// Upstream: apimachinery/pkg/apis/meta/v1/validation/validation.go ValidateFieldManager
fn wrong_manager(manager: &str) -> Option<field::Error> {
    const LONGEST: usize = 128;
    let path = field::Path::new("fieldManager");
    if manager.len() > LONGEST {
        return Some(field::Error::too_long(&path, LONGEST));
    }
    let (at, wrong) = manager.char_indices().find(|(_, c)| c.is_control())?;
    let detail = format!("invalid character U+{:04X} (at position {at})", u32::from(wrong));
    Some(field::Error::invalid(&path, manager, detail).showing(go_quoted(manager)))
}

/// A text in quotes as Go writes it, which knows a letter for some of what cannot be seen.
fn go_quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '\x07' => quoted.push_str("\\a"),
            '\x08' => quoted.push_str("\\b"),
            '\x0b' => quoted.push_str("\\v"),
            '\x0c' => quoted.push_str("\\f"),
            '\n' | '\r' | '\t' | '"' | '\\' => quoted.extend(c.escape_default()),
            c if c.is_control() => quoted.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut Vec<field::Error>) -> bool {
    let values: Vec<&str> = values.collect();
    if values.iter().any(|value| *value != "All") {
        errors.push(field::Error::not_supported(&field::Path::new("dryRun"), json!(values), &["All"]));
    }
    !values.is_empty()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub dry_run: bool,
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub orphan_dependents: Option<bool>,
}

impl DeleteOptions {
    /// From the body when there is one, else from the query.
    pub fn parse(query: &Query, body: Option<&Value>) -> Result<Self, Status> {
        let mut errors = Vec::new();
        let empty = Value::Null;
        let body_value = body.unwrap_or(&empty);
        let of_body = |name: &str| body_value.get(name);
        let mut dry_errors = Vec::new();
        let dry = match body {
            Some(_) => {
                let values = of_body("dryRun").and_then(Value::as_array).into_iter().flatten();
                dry_run(values.filter_map(Value::as_str), &mut dry_errors)
            }
            None => dry_run(query.all("dryRun"), &mut dry_errors),
        };
        let grace_period_seconds = match body {
            Some(_) => of_body("gracePeriodSeconds").and_then(Value::as_i64),
            None => number(query, "gracePeriodSeconds")?,
        };
        let orphan_dependents = match body {
            Some(_) => of_body("orphanDependents").and_then(Value::as_bool),
            None => query.flag("orphanDependents"),
        };
        let policy = match body {
            Some(_) => of_body("propagationPolicy").and_then(Value::as_str),
            None => query.get("propagationPolicy"),
        };
        if policy.is_some_and(|policy| !policy.is_empty()) && orphan_dependents.is_some() {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(field::Error::invalid(&field::Path::new("propagationPolicy"), policy, detail));
        }
        let propagation = match policy {
            None | Some("") => None,
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                let path = field::Path::new("propagationPolicy");
                errors.push(field::Error::not_supported(
                    &path,
                    other,
                    &["Foreground", "Background", "Orphan", "nil"],
                ));
                None
            }
        };
        errors.append(&mut dry_errors);
        if !errors.is_empty() {
            return Err(Status::invalid(
                &GroupKind::from_static("meta.k8s.io", "DeleteOptions"),
                "",
                &errors,
            ));
        }
        let precondition = |name: &str| {
            let value = of_body("preconditions").and_then(|p| p.get(name)).and_then(Value::as_str);
            value.filter(|v| !v.is_empty()).map(str::to_owned)
        };
        Ok(DeleteOptions {
            dry_run: dry,
            grace_period_seconds,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            propagation,
            orphan_dependents,
        })
    }

    /// As admission sees them.
    pub fn to_value(&self) -> Value {
        let mut options = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(seconds) = self.grace_period_seconds {
            options["gracePeriodSeconds"] = json!(seconds);
        }
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        options
    }
}
