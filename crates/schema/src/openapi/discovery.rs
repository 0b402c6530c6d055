//! The routes of discovery and of the server itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Kind;
use super::operations::{group_names, root, upper};
use super::render::{Operation, route};
use super::schemas::Schemas;

const JSON: &[&str] = &["application/json"];
const PLAIN: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const LISTS: &[&str] =
    &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf", "application/cbor"];

fn get(
    id: String,
    tag: String,
    description: &str,
    types: (&'static [&'static str], &'static [&'static str]),
    answer: Value,
) -> Operation {
    Operation {
        method: "get",
        id,
        tag,
        action: None,
        speaks: None,
        description: description.to_owned(),
        parameters: Vec::new(),
        body: None,
        consumes: types.0,
        produces: types.1,
        answers: vec![("200", answer)],
    }
}

/// The resources of a group version: `/apis/apps/v1/`.
pub fn add_version(group: &str, version: &str, schemas: &mut Schemas, paths: &mut Map<String, Value>) {
    let (name, tag) = group_names(group);
    let id = format!("get{name}{}APIResources", upper(version));
    let answer = schemas.meta("APIResourceList");
    let operation = get(id, format!("{tag}_{version}"), "get available resources", (LISTS, LISTS), answer);
    route(paths, schemas.dialect, &format!("{}/", root(group, version)), "", vec![operation]);
}

/// The routes that version 3 tells in documents of their own, by the names of those: `apis/apps`, `version`.
pub fn documents(kinds: &[Kind]) -> Vec<String> {
    let groups: BTreeMap<&str, ()> = kinds.iter().map(|kind| (&*kind.group, ())).collect();
    let fixed = [".well-known/openid-configuration", "api", "apis", "openid/v1/jwks", "version"];
    let own = groups.keys().filter(|group| !group.is_empty()).map(|group| format!("apis/{group}"));
    fixed.into_iter().map(str::to_owned).chain(own).collect()
}

/// Adds the route of one of [`documents`]; false when it is none.
pub fn add(document: &str, schemas: &mut Schemas, paths: &mut Map<String, Value>) -> bool {
    let text = json!({"type": "string"});
    let operation = match document {
        "api" => {
            let answer = schemas.meta("APIVersions");
            get(
                "getCoreAPIVersions".into(),
                "core".into(),
                "get available API versions",
                (PLAIN, PLAIN),
                answer,
            )
        }
        "apis" => {
            let answer = schemas.meta("APIGroupList");
            get("getAPIVersions".into(), "apis".into(), "get available API versions", (PLAIN, PLAIN), answer)
        }
        "version" => {
            let answer = schemas.version_info();
            let about = "get the version information for this server";
            get("getCodeVersion".into(), "version".into(), about, (JSON, JSON), answer)
        }
        ".well-known/openid-configuration" => {
            let id = "getServiceAccountIssuerOpenIDConfiguration".into();
            let about =
                "get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'";
            get(id, "WellKnown".into(), about, (&[], JSON), text)
        }
        "openid/v1/jwks" => {
            let id = "getServiceAccountIssuerOpenIDKeyset".into();
            let about = "get service account issuer OpenID JSON Web Key Set (contains public token verification keys)";
            get(id, "openid".into(), about, (&[], &["application/jwk-set+json"]), text)
        }
        group => {
            let Some(group) = group.strip_prefix("apis/").filter(|group| !group.contains('/')) else {
                return false;
            };
            let (name, tag) = group_names(group);
            let answer = schemas.meta("APIGroup");
            get(format!("get{name}APIGroup"), tag, "get information of a group", (PLAIN, PLAIN), answer)
        }
    };
    route(paths, schemas.dialect, &format!("/{document}/"), "", vec![operation]);
    true
}
