//! Operations as they stand in a document of either version.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Dialect;

/// What can be done on a route.
pub struct Operation {
    pub method: &'static str,
    pub id: String,
    pub tag: String,
    /// `x-kubernetes-action`.
    pub action: Option<&'static str>,
    /// `x-kubernetes-group-version-kind`.
    pub speaks: Option<Value>,
    pub description: String,
    /// All but those that the path itself has.
    pub parameters: Vec<Parameter>,
    pub body: Option<Body>,
    pub consumes: &'static [&'static str],
    pub produces: &'static [&'static str],
    /// The schema for each code.
    pub answers: Vec<(&'static str, Value)>,
}

pub struct Body {
    pub schema: Value,
    pub required: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Path,
    Query,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    pub place: Place,
    pub name: &'static str,
    pub ty: &'static str,
    pub description: String,
}

impl Parameter {
    pub fn new(place: Place, name: &'static str, ty: &'static str) -> Self {
        Parameter { place, name, ty, description: String::new() }
    }

    pub fn pretty() -> Self {
        Parameter::new(Place::Query, "pretty", "string")
    }

    fn render(&self, dialect: Dialect) -> Value {
        let place = if self.place == Place::Path { "path" } else { "query" };
        let mut parameter = json!({"in": place, "name": self.name});
        if self.place == Place::Path {
            parameter["required"] = true.into();
        }
        if !self.description.is_empty() {
            parameter["description"] = self.description.as_str().into();
        }
        match dialect {
            Dialect::V2 => {
                parameter["type"] = self.ty.into();
                parameter["uniqueItems"] = true.into();
            }
            Dialect::V3 => parameter["schema"] = json!({"type": self.ty, "uniqueItems": true}),
        }
        parameter
    }
}

/// Adds a path with its operations; what all of them take is told once, for the path.
///
/// Upstream: kube-openapi/pkg/builder/openapi.go buildPaths
pub fn route(
    paths: &mut Map<String, Value>,
    dialect: Dialect,
    path: &str,
    kind: &str,
    mut operations: Vec<Operation>,
) {
    if operations.is_empty() {
        return;
    }
    for operation in &mut operations {
        for (name, description) in [("name", format!("name of the {kind}")), ("namespace", String::new())] {
            if path.contains(&format!("{{{name}}}")) {
                operation
                    .parameters
                    .push(Parameter { description, ..Parameter::new(Place::Path, name, "string") });
            }
        }
        operation.parameters.sort_by_key(|parameter| (parameter.name, parameter.place == Place::Query));
        operation.parameters.dedup();
    }
    let common: Vec<Parameter> = operations[0]
        .parameters
        .iter()
        .filter(|parameter| operations.iter().all(|operation| operation.parameters.contains(parameter)))
        .cloned()
        .collect();
    let mut item = Map::new();
    for operation in operations {
        item.insert(operation.method.to_owned(), render(dialect, operation, &common));
    }
    if !common.is_empty() {
        item.insert("parameters".into(), common.iter().map(|p| p.render(dialect)).collect());
    }
    paths.insert(path.to_owned(), Value::Object(item));
}

fn render(dialect: Dialect, operation: Operation, common: &[Parameter]) -> Value {
    let mut rendered = json!({"operationId": operation.id, "tags": [operation.tag]});
    if !operation.description.is_empty() {
        rendered["description"] = operation.description.into();
    }
    if let Some(action) = operation.action {
        rendered["x-kubernetes-action"] = action.into();
    }
    if let Some(speaks) = operation.speaks {
        rendered["x-kubernetes-group-version-kind"] = speaks;
    }
    let own = operation.parameters.iter().filter(|parameter| !common.contains(parameter));
    let mut parameters: Vec<Value> = own.map(|parameter| parameter.render(dialect)).collect();
    let mut responses = Map::new();
    for (code, schema) in operation.answers {
        let description = match code {
            "201" => "Created",
            "202" => "Accepted",
            _ => "OK",
        };
        let response = match dialect {
            Dialect::V2 => json!({"description": description, "schema": schema}),
            Dialect::V3 => {
                json!({"description": description, "content": content(&schema, operation.produces)})
            }
        };
        responses.insert(code.to_owned(), response);
    }
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    match dialect {
        Dialect::V3 => {
            if let Some(body) = operation.body {
                let mut request = json!({"content": content(&body.schema, operation.consumes)});
                if body.required {
                    request["required"] = true.into();
                }
                rendered["requestBody"] = request;
            }
        }
        Dialect::V2 => {
            rendered["schemes"] = json!(["https"]);
            if !operation.produces.is_empty() {
                rendered["produces"] = json!(operation.produces);
            }
            if !operation.consumes.is_empty() {
                rendered["consumes"] = json!(operation.consumes);
            }
            if let Some(body) = operation.body {
                let mut parameter = json!({"in": "body", "name": "body", "schema": body.schema});
                if body.required {
                    parameter["required"] = true.into();
                }
                parameters.insert(0, parameter);
            }
        }
    }
    if !parameters.is_empty() {
        rendered["parameters"] = Value::Array(parameters);
    }
    rendered["responses"] = Value::Object(responses);
    rendered
}

fn content(schema: &Value, types: &[&str]) -> Value {
    types.iter().map(|ty| ((*ty).to_owned(), json!({"schema": schema}))).collect::<Map<_, _>>().into()
}

/// Gathers the parameters that many operations take, and refers to them instead. Those that clients look for, or
/// that tell of one kind, stay where they are.
///
/// Upstream: kube-openapi/pkg/builder/parameters.go collectSharedParameters
pub fn share_parameters(paths: &mut Map<String, Value>) -> Map<String, Value> {
    let mut shared: BTreeMap<String, Value> = BTreeMap::new();
    let mut share = |parameter: &mut Value| {
        let name = parameter["name"].as_str().unwrap_or_default();
        let stays = matches!(name, "name" | "fieldValidation" | "dryRun");
        let own_body = parameter["in"] == "body"
            && !parameter["schema"]["$ref"]
                .as_str()
                .is_some_and(|schema| schema.starts_with("#/definitions/io.k8s.apimachinery"));
        if stays || own_body {
            return;
        }
        let name = format!("{name}-{:08x}", short_hash(&parameter.to_string()));
        let reference = json!({"$ref": format!("#/parameters/{name}")});
        shared.insert(name, std::mem::replace(parameter, reference));
    };
    for item in paths.values_mut().filter_map(Value::as_object_mut) {
        for (key, value) in item {
            let list = if key == "parameters" { Some(value) } else { value.get_mut("parameters") };
            list.and_then(Value::as_array_mut).into_iter().flatten().for_each(&mut share);
        }
    }
    shared.into_iter().collect()
}

/// FNV-1a.
fn short_hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}
