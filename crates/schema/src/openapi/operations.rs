//! The routes of a kind, and what can be done on each.

use api::tables::{self, Definition, Type};
use serde_json::{Map, Value, json};

use super::render::{Body, Operation, Parameter, Place, route};
use super::schemas::{Schemas, gvk};
use super::{Dialect, Kind, Subresource};

const ALL: &[&str] = &["*/*"];
const OBJECTS: &[&str] =
    &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"];
const STREAMS: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/cbor",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
    "application/cbor-seq",
];
const LOGS: &[&str] = &[
    "text/plain",
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/cbor",
];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/apply-patch+cbor",
];
/// Custom kinds come as JSON and YAML only.
const CUSTOM_OBJECTS: &[&str] = &["application/json", "application/yaml"];
const CUSTOM_PATCHES: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

/// The kinds whose deletion answers with the object.
///
/// Upstream: a storage's `returnDeletedObject`
const TOLD_WHEN_DELETED: &[(&str, &str)] = &[
    ("", "PersistentVolume"),
    ("", "PersistentVolumeClaim"),
    ("", "Pod"),
    ("", "PodTemplate"),
    ("", "ResourceQuota"),
    ("", "Service"),
    ("", "ServiceAccount"),
    ("resource.k8s.io", "DeviceClass"),
    ("resource.k8s.io", "ResourceClaim"),
    ("resource.k8s.io", "ResourceClaimTemplate"),
    ("resource.k8s.io", "ResourceSlice"),
    ("storage.k8s.io", "CSIDriver"),
    ("storage.k8s.io", "CSINode"),
    ("storage.k8s.io", "StorageClass"),
    ("storage.k8s.io", "VolumeAttachment"),
    ("storage.k8s.io", "VolumeAttributesClass"),
];

/// What all operations on one route have in common.
struct Route<'a> {
    kind: &'a Kind,
    path: String,
    /// The end of operation ids: `NamespacedPodStatus`.
    noun: String,
    speaks: Value,
    item: Value,
    list: Value,
}

impl Route<'_> {
    fn custom(&self) -> bool {
        self.kind.schema.is_some()
    }

    fn operation(&self, method: &'static str, action: &'static str, verb: &str) -> Operation {
        let (group, tag) = group_names(&self.kind.group);
        let version = upper(&self.kind.version);
        let types = if self.custom() { CUSTOM_OBJECTS } else { OBJECTS };
        Operation {
            method,
            id: format!("{verb}{group}{version}{}", self.noun),
            tag: format!("{tag}_{}", self.kind.version),
            action: Some(action),
            speaks: Some(self.speaks.clone()),
            description: String::new(),
            parameters: vec![Parameter::pretty()],
            body: None,
            consumes: if self.custom() { CUSTOM_OBJECTS } else { ALL },
            produces: types,
            answers: vec![("200", self.item.clone())],
        }
    }

    fn add(&self, dialect: Dialect, operations: Vec<Operation>, paths: &mut Map<String, Value>) {
        route(paths, dialect, &self.path, &self.kind.kind, operations);
    }
}

pub fn add(kind: &Kind, schemas: &mut Schemas, paths: &mut Map<String, Value>) {
    let root = root(&kind.group, &kind.version);
    let (item, list) = schemas.served(kind);
    let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
    let namespaced = if kind.namespaced { "Namespaced" } else { "" };
    let dialect = schemas.dialect;
    let at = |path: String, noun: String| Route {
        kind,
        path,
        noun,
        speaks: gvk(&kind.group, &kind.version, &kind.kind),
        item: item.clone(),
        list: list.clone(),
    };
    let own = || format!("{namespaced}{}", kind.kind);
    let plural = &kind.plural;

    let collection = at(format!("{root}{scope}/{plural}"), own());
    collection.add(dialect, collection_operations(&collection, schemas), paths);
    let single = at(format!("{root}{scope}/{plural}/{{name}}"), own());
    single.add(dialect, item_operations(&single, &kind.verbs, schemas, None), paths);
    let everywhere = format!("{}ForAllNamespaces", kind.kind);
    if kind.namespaced && has(&kind.verbs, "list") {
        let all = at(format!("{root}/{plural}"), everywhere);
        all.add(dialect, vec![list_operation(&all)], paths);
    }
    if has(&kind.verbs, "watch") && kind.schema.is_none() {
        let watch = at(format!("{root}/watch{scope}/{plural}"), format!("{}List", own()));
        watch.add(dialect, vec![watch_operation(&watch, schemas, "watchlist")], paths);
        let watch = at(format!("{root}/watch{scope}/{plural}/{{name}}"), own());
        watch.add(dialect, vec![watch_operation(&watch, schemas, "watch")], paths);
        if kind.namespaced {
            let noun = format!("{}ListForAllNamespaces", kind.kind);
            let watch = at(format!("{root}/watch/{plural}"), noun);
            watch.add(dialect, vec![watch_operation(&watch, schemas, "watchlist")], paths);
        }
    }
    for subresource in &kind.subresources {
        let mut place = at(
            format!("{root}{scope}/{plural}/{{name}}/{}", subresource.name),
            format!("{}{}", own(), upper(&subresource.name)),
        );
        place.speaks = gvk(&subresource.group, &subresource.version, &subresource.kind);
        if subresource.group == kind.group && subresource.kind.ends_with("Options") {
            connect(&mut place, subresource, dialect, paths);
            continue;
        }
        if (&subresource.group, &subresource.version, &subresource.kind)
            != (&kind.group, &kind.version, &kind.kind)
        {
            place.item = schemas.kind(&subresource.group, &subresource.version, &subresource.kind);
        }
        let operations = item_operations(&place, &subresource.verbs, schemas, Some(&subresource.name));
        place.add(dialect, operations, paths);
    }
}

/// A group version's place: `/apis/apps/v1`.
pub fn root(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

fn has(verbs: &[String], verb: &str) -> bool {
    verbs.iter().any(|v| v == verb)
}

/// The scalar fields of an options kind as query parameters.
fn options(kind: &str) -> Vec<Parameter> {
    let Some(definition) = tables::kind("", "v1", kind) else { return Vec::new() };
    scalars(definition).map(|(name, ty)| Parameter::new(Place::Query, name, ty)).collect()
}

fn scalars(definition: &'static Definition) -> impl Iterator<Item = (&'static str, &'static str)> {
    fn scalar(ty: Type) -> Option<&'static str> {
        match ty {
            Type::String => Some("string"),
            Type::Bool => Some("boolean"),
            Type::Int32 | Type::Int64 => Some("integer"),
            Type::List(of) => scalar(*of),
            _ => None,
        }
    }
    let own = |name: &str| !matches!(name, "apiVersion" | "kind");
    definition.fields.iter().filter(move |f| own(f.name)).filter_map(|f| Some((f.name, scalar(f.ty)?)))
}

fn list_operation(place: &Route<'_>) -> Operation {
    let mut operation = place.operation("get", "list", "list");
    operation.parameters.extend(options("ListOptions"));
    let watched = has(&place.kind.verbs, "watch") && !place.custom();
    operation.description = if watched {
        format!("list or watch objects of kind {}", place.kind.kind)
    } else {
        format!("list objects of kind {}", place.kind.kind)
    };
    if !place.custom() {
        operation.produces = STREAMS;
    }
    operation.answers = vec![("200", place.list.clone())];
    operation
}

fn watch_operation(place: &Route<'_>, schemas: &mut Schemas, action: &'static str) -> Operation {
    let kind = &place.kind.kind;
    let mut operation = place.operation("get", action, "watch");
    operation.parameters.extend(options("ListOptions"));
    operation.description = if action == "watch" {
        format!(
            "watch changes to an object of kind {kind}. deprecated: use the 'watch' parameter with a list operation \
             instead, filtered to a single item with the 'fieldSelector' parameter."
        )
    } else {
        format!(
            "watch individual changes to a list of {kind}. deprecated: use the 'watch' parameter with a list \
             operation instead."
        )
    };
    operation.produces = STREAMS;
    operation.answers = vec![("200", schemas.meta("WatchEvent"))];
    operation
}

fn collection_operations(place: &Route<'_>, schemas: &mut Schemas) -> Vec<Operation> {
    let kind = place.kind;
    let mut operations = Vec::new();
    if has(&kind.verbs, "list") {
        operations.push(list_operation(place));
    }
    if has(&kind.verbs, "create") {
        operations.push(create_operation(place, None));
    }
    if has(&kind.verbs, "deletecollection") {
        let mut operation = place.operation("delete", "deletecollection", "delete");
        let (group, _) = group_names(&kind.group);
        operation.id = format!("delete{group}{}Collection{}", upper(&kind.version), place.noun);
        let unlike_watch = |p: &Parameter| !matches!(p.name, "allowWatchBookmarks" | "watch");
        operation.parameters.extend(options("ListOptions").into_iter().filter(unlike_watch));
        operation.parameters.extend(options("DeleteOptions"));
        operation.description = format!("delete collection of {}", kind.kind);
        operation.body = Some(Body { schema: schemas.meta("DeleteOptions"), required: false });
        operation.answers = vec![("200", schemas.meta("Status"))];
        operations.push(operation);
    }
    operations
}

fn create_operation(place: &Route<'_>, subresource: Option<&str>) -> Operation {
    let mut operation = place.operation("post", "post", "create");
    let article = article(&place.kind.kind);
    operation.description = match subresource {
        None => format!("create{article}{}", place.kind.kind),
        Some(name) => format!("create {name} of{article}{}", place.kind.kind),
    };
    operation.parameters.extend(options("CreateOptions"));
    operation.body = Some(Body { schema: place.item.clone(), required: true });
    operation.answers = ["200", "201", "202"].map(|code| (code, place.item.clone())).to_vec();
    operation
}

/// The operations on one object, or on a subresource of it.
fn item_operations(
    place: &Route<'_>,
    verbs: &[String],
    schemas: &mut Schemas,
    subresource: Option<&str>,
) -> Vec<Operation> {
    let kind = &place.kind.kind;
    let specified = match subresource {
        None => format!("the specified {kind}"),
        Some(name) => format!("{name} of the specified {kind}"),
    };
    let mut operations = Vec::new();
    if has(verbs, "get") {
        let mut operation = place.operation("get", "get", "read");
        operation.description = format!("read {specified}");
        if subresource == Some("log") {
            operation.parameters.extend(options("PodLogOptions"));
            operation.produces = LOGS;
            operation.answers = vec![("200", json!({"type": "string"}))];
        }
        operations.push(operation);
    }
    if has(verbs, "update") {
        let mut operation = place.operation("put", "put", "replace");
        operation.description = format!("replace {specified}");
        operation.parameters.extend(options("UpdateOptions"));
        operation.body = Some(Body { schema: place.item.clone(), required: true });
        operation.answers.push(("201", place.item.clone()));
        operations.push(operation);
    }
    if has(verbs, "patch") {
        let mut operation = place.operation("patch", "patch", "patch");
        operation.description = format!("partially update {specified}");
        operation.parameters.extend(options("PatchOptions"));
        operation.consumes = if place.custom() { CUSTOM_PATCHES } else { PATCHES };
        operation.body = Some(Body { schema: schemas.meta("Patch"), required: true });
        if !place.custom() {
            operation.answers.push(("201", place.item.clone()));
        }
        operations.push(operation);
    }
    if has(verbs, "delete") {
        let mut operation = place.operation("delete", "delete", "delete");
        operation.description = format!("delete{}{kind}", article(kind));
        operation.parameters.extend(options("DeleteOptions"));
        operation.body = Some(Body { schema: schemas.meta("DeleteOptions"), required: false });
        let told = TOLD_WHEN_DELETED.contains(&(&place.kind.group, kind));
        let answer = if told { place.item.clone() } else { schemas.meta("Status") };
        operation.answers = vec![("200", answer.clone()), ("202", answer)];
        operations.push(operation);
    }
    if subresource.is_some() && has(verbs, "create") {
        operations.push(create_operation(place, subresource));
    }
    operations
}

/// Ways through to a pod, a Service or a node: one operation for every method that passes, and those that pass
/// them all do so for the paths below too.
fn connect(
    place: &mut Route<'_>,
    subresource: &Subresource,
    dialect: Dialect,
    paths: &mut Map<String, Value>,
) {
    let proxies = has(&subresource.verbs, "update");
    let methods: &[&'static str] = if proxies {
        &["delete", "get", "head", "options", "patch", "post", "put"]
    } else {
        &["get", "post"]
    };
    let operations = |place: &Route<'_>, below: bool| -> Vec<Operation> {
        let one = |method: &&'static str| {
            let mut operation = place.operation(method, "connect", "connect");
            let (group, _) = group_names(&place.kind.group);
            let version = upper(&place.kind.version);
            operation.id = format!("connect{group}{version}{}{}", upper(method), place.noun);
            operation.description = format!(
                "connect {} requests to {} of {}",
                method.to_uppercase(),
                subresource.name,
                place.kind.kind
            );
            operation.parameters = options(&subresource.kind);
            if below {
                operation.parameters.push(Parameter::new(Place::Path, "path", "string"));
            }
            operation.produces = ALL;
            operation.answers = vec![("200", json!({"type": "string"}))];
            operation
        };
        methods.iter().map(one).collect()
    };
    place.add(dialect, operations(place, false), paths);
    if proxies {
        place.path.push_str("/{path}");
        place.noun.push_str("WithPath");
        place.add(dialect, operations(place, true), paths);
    }
}

/// `a` or `an` between spaces; a space alone before a plural.
///
/// Upstream: apiserver/pkg/endpoints/installer.go GetArticleForNoun
fn article(noun: &str) -> &'static str {
    if noun.ends_with('s') && !noun.ends_with("ss") {
        return " ";
    }
    if noun.starts_with(['A', 'E', 'I', 'O', 'U']) { " an " } else { " a " }
}

/// The group in operation ids and in tags: `RbacAuthorization` and `rbacAuthorization`.
pub fn group_names(group: &str) -> (String, String) {
    if group.is_empty() {
        return ("Core".into(), "core".into());
    }
    let words: Vec<&str> = group.trim_end_matches(".k8s.io").split('.').collect();
    let name: String = words.iter().map(|w| upper(w)).collect();
    let tag = words[0].to_owned() + &words[1..].iter().map(|w| upper(w)).collect::<String>();
    (name, tag)
}

pub fn upper(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + chars.as_str())
}
