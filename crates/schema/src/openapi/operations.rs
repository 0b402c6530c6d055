//! The routes of a kind as operations.

use serde_json::{Map, Value, json};

use super::schemas::{Schemas, gvk};
use super::{Dialect, Kind};

const WRITTEN: &[&str] =
    &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"];
const STREAMED: &[&str] = &[
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
    "application/cbor-seq",
];
const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "application/apply-patch+cbor",
];

const LIST_PARAMETERS: &[(&str, &str)] = &[
    ("allowWatchBookmarks", "boolean"),
    ("continue", "string"),
    ("fieldSelector", "string"),
    ("labelSelector", "string"),
    ("limit", "integer"),
    ("resourceVersion", "string"),
    ("resourceVersionMatch", "string"),
    ("sendInitialEvents", "boolean"),
    ("timeoutSeconds", "integer"),
    ("watch", "boolean"),
];
const WRITE_PARAMETERS: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string")];
const PATCH_PARAMETERS: &[(&str, &str)] =
    &[("dryRun", "string"), ("fieldManager", "string"), ("fieldValidation", "string"), ("force", "boolean")];
const DELETE_PARAMETERS: &[(&str, &str)] = &[
    ("dryRun", "string"),
    ("gracePeriodSeconds", "integer"),
    ("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean"),
    ("orphanDependents", "boolean"),
    ("propagationPolicy", "string"),
];

/// One way to call a route.
struct Call<'a> {
    method: &'a str,
    /// `x-kubernetes-action`.
    action: &'a str,
    /// The operation's name: `read`, `replace`, …
    verb: &'a str,
    parameters: Vec<(&'a str, &'a str)>,
    /// The schema of the body and the media types it may come in.
    body: Option<(Value, &'a [&'a str])>,
    answer: Value,
    /// Whether `201` answers too.
    creates: bool,
    streams: bool,
}

/// Where a route stands.
struct Place<'a> {
    kind: &'a Kind,
    /// What comes after the group version, for operation ids: `NamespacedPodStatus`.
    noun: String,
    speaks: Value,
}

pub fn add(kind: &Kind, schemas: &mut Schemas, paths: &mut Map<String, Value>) {
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let (item, list) = schemas.served(kind);
    let collection = if kind.namespaced {
        format!("{root}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{root}/{}", kind.plural)
    };
    let namespaced = if kind.namespaced { "Namespaced" } else { "" };
    let place = |noun: String| Place { kind, noun, speaks: gvk(&kind.group, &kind.version, &kind.kind) };

    let calls = collection_calls(kind, schemas, &item, &list);
    route(paths, schemas.dialect, &collection, &place(format!("{namespaced}{}", kind.kind)), calls);
    let calls = item_calls(&kind.verbs, schemas, &item);
    route(
        paths,
        schemas.dialect,
        &format!("{collection}/{{name}}"),
        &place(format!("{namespaced}{}", kind.kind)),
        calls,
    );
    if kind.namespaced && has(&kind.verbs, "list") {
        let calls = vec![list_call(&list)];
        let noun = format!("{}ForAllNamespaces", kind.kind);
        route(paths, schemas.dialect, &format!("{root}/{}", kind.plural), &place(noun), calls);
    }
    for subresource in &kind.subresources {
        let schema = if subresource.group == kind.group
            && subresource.version == kind.version
            && subresource.kind == kind.kind
        {
            item.clone()
        } else {
            schemas.kind(&subresource.group, &subresource.version, &subresource.kind)
        };
        let place = Place {
            kind,
            noun: format!("{namespaced}{}{}", kind.kind, upper(&subresource.name)),
            speaks: gvk(&subresource.group, &subresource.version, &subresource.kind),
        };
        let mut calls = item_calls(&subresource.verbs, schemas, &schema);
        if has(&subresource.verbs, "create") {
            calls.push(create_call(&schema));
        }
        route(paths, schemas.dialect, &format!("{collection}/{{name}}/{}", subresource.name), &place, calls);
    }
}

fn has(verbs: &[String], verb: &str) -> bool {
    verbs.iter().any(|v| v == verb)
}

fn list_call<'a>(list: &Value) -> Call<'a> {
    Call {
        method: "get",
        action: "list",
        verb: "list",
        parameters: LIST_PARAMETERS.to_vec(),
        body: None,
        answer: list.clone(),
        creates: false,
        streams: true,
    }
}

fn create_call<'a>(item: &Value) -> Call<'a> {
    Call {
        method: "post",
        action: "post",
        verb: "create",
        parameters: WRITE_PARAMETERS.to_vec(),
        body: Some((item.clone(), WRITTEN)),
        answer: item.clone(),
        creates: true,
        streams: false,
    }
}

fn collection_calls<'a>(kind: &Kind, schemas: &mut Schemas, item: &Value, list: &Value) -> Vec<Call<'a>> {
    let mut calls = Vec::new();
    if has(&kind.verbs, "list") {
        calls.push(list_call(list));
    }
    if has(&kind.verbs, "create") {
        calls.push(create_call(item));
    }
    if has(&kind.verbs, "deletecollection") {
        let unlike_watch = |p: &&(&str, &str)| !matches!(p.0, "allowWatchBookmarks" | "watch");
        let mut parameters: Vec<_> = LIST_PARAMETERS.iter().filter(unlike_watch).copied().collect();
        parameters.extend(DELETE_PARAMETERS);
        calls.push(Call {
            method: "delete",
            action: "deletecollection",
            verb: "deleteCollection",
            parameters,
            body: Some((schemas.meta("DeleteOptions"), WRITTEN)),
            answer: schemas.meta("Status"),
            creates: false,
            streams: false,
        });
    }
    calls
}

fn item_calls<'a>(verbs: &[String], schemas: &mut Schemas, item: &Value) -> Vec<Call<'a>> {
    let plain = |method, action, verb| Call {
        method,
        action,
        verb,
        parameters: Vec::new(),
        body: None,
        answer: item.clone(),
        creates: false,
        streams: false,
    };
    let mut calls = Vec::new();
    if has(verbs, "get") {
        calls.push(plain("get", "get", "read"));
    }
    if has(verbs, "update") {
        calls.push(Call {
            parameters: WRITE_PARAMETERS.to_vec(),
            body: Some((item.clone(), WRITTEN)),
            creates: true,
            ..plain("put", "put", "replace")
        });
    }
    if has(verbs, "patch") {
        calls.push(Call {
            parameters: PATCH_PARAMETERS.to_vec(),
            body: Some((schemas.meta("Patch"), PATCHES)),
            creates: true,
            ..plain("patch", "patch", "patch")
        });
    }
    if has(verbs, "delete") {
        calls.push(Call {
            parameters: DELETE_PARAMETERS.to_vec(),
            body: Some((schemas.meta("DeleteOptions"), WRITTEN)),
            answer: schemas.meta("Status"),
            ..plain("delete", "delete", "delete")
        });
    }
    calls
}

fn route(
    paths: &mut Map<String, Value>,
    dialect: Dialect,
    path: &str,
    place: &Place<'_>,
    calls: Vec<Call<'_>>,
) {
    if calls.is_empty() {
        return;
    }
    let mut item = Map::new();
    for call in calls {
        item.insert(call.method.to_owned(), operation(dialect, place, call));
    }
    let mut shared = Vec::new();
    for name in ["name", "namespace"] {
        if path.contains(&format!("{{{name}}}")) {
            let mut parameter = parameter(dialect, "path", name, "string");
            parameter["required"] = true.into();
            shared.push(parameter);
        }
    }
    shared.push(parameter(dialect, "query", "pretty", "string"));
    item.insert("parameters".into(), Value::Array(shared));
    paths.insert(path.to_owned(), Value::Object(item));
}

fn parameter(dialect: Dialect, place: &str, name: &str, ty: &str) -> Value {
    match dialect {
        Dialect::V2 => json!({"in": place, "name": name, "type": ty, "uniqueItems": true}),
        Dialect::V3 => json!({"in": place, "name": name, "schema": {"type": ty, "uniqueItems": true}}),
    }
}

fn operation(dialect: Dialect, place: &Place<'_>, call: Call<'_>) -> Value {
    let mut answers: Vec<&str> = WRITTEN.to_vec();
    if call.streams {
        answers.extend(STREAMED);
    }
    let mut parameters: Vec<Value> =
        call.parameters.iter().map(|(name, ty)| parameter(dialect, "query", name, ty)).collect();
    let mut responses = Map::new();
    let mut respond = |code: &str, description: &str, schema: Option<&Value>| {
        let response = match (dialect, schema) {
            (_, None) => json!({"description": description}),
            (Dialect::V2, Some(schema)) => json!({"description": description, "schema": schema}),
            (Dialect::V3, Some(schema)) => {
                json!({"description": description, "content": content(schema, &answers)})
            }
        };
        responses.insert(code.to_owned(), response);
    };
    respond("200", "OK", Some(&call.answer));
    if call.creates {
        respond("201", "Created", Some(&call.answer));
    }
    if matches!(call.method, "post" | "delete") && call.action != "deletecollection" {
        respond("202", "Accepted", Some(&call.answer));
    }
    respond("401", "Unauthorized", None);

    let (group, tag) = group_names(&place.kind.group);
    let version = upper(&place.kind.version);
    let mut operation = json!({
        "operationId": match call.verb {
            "deleteCollection" => format!("delete{group}{version}Collection{}", place.noun),
            verb => format!("{verb}{group}{version}{}", place.noun),
        },
        "tags": [format!("{tag}_{}", place.kind.version)],
        "x-kubernetes-action": call.action,
        "x-kubernetes-group-version-kind": place.speaks,
    });
    match dialect {
        Dialect::V3 => {
            if let Some((schema, types)) = &call.body {
                let required = call.method != "delete";
                operation["requestBody"] = json!({"content": content(schema, types), "required": required});
            }
        }
        Dialect::V2 => {
            operation["schemes"] = json!(["https"]);
            operation["produces"] = json!(answers);
            operation["consumes"] = json!(["*/*"]);
            if let Some((schema, types)) = &call.body {
                operation["consumes"] = json!(types);
                parameters.push(json!({
                    "in": "body", "name": "body", "schema": schema, "required": call.method != "delete"
                }));
            }
        }
    }
    operation["parameters"] = Value::Array(parameters);
    operation["responses"] = Value::Object(responses);
    operation
}

fn content(schema: &Value, types: &[&str]) -> Value {
    types.iter().map(|ty| ((*ty).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
}

/// The group in operation ids and in tags: `RbacAuthorization` and `rbacAuthorization`.
fn group_names(group: &str) -> (String, String) {
    if group.is_empty() {
        return ("Core".into(), "core".into());
    }
    let words: Vec<&str> = group.trim_end_matches(".k8s.io").split('.').collect();
    let name: String = words.iter().map(|w| upper(w)).collect();
    let tag = words[0].to_owned() + &words[1..].iter().map(|w| upper(w)).collect::<String>();
    (name, tag)
}

fn upper(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + chars.as_str())
}
