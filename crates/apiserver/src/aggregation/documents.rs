//! What aggregated API servers say of themselves, and how it joins what this server says: discovery, plain and
//! aggregated, and OpenAPI.
//!
//! Upstream: kube-aggregator/pkg/apiserver/handler_discovery.go, handler_apis.go, pkg/controllers/openapi{,v3}

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use serde_json::{Map, Value, json};

use super::{Aggregation, integer, priorities, text};
use crate::remote::outbound::Peer;

/// The largest document that is read.
const MAX_DOCUMENT_BYTES: usize = 32 << 20;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                          application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,\
                          application/json";

/// An answer to this server itself.
pub struct Fetched {
    pub code: StatusCode,
    body: Bytes,
}

impl Fetched {
    fn json(&self) -> Option<Value> {
        self.code.is_success().then(|| serde_json::from_slice(&self.body).ok()).flatten()
    }
}

/// Asks a server as the aggregator itself, who may read everything.
pub async fn fetch(peer: &Peer, path: &str, accept: &str) -> Result<Fetched, String> {
    let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
    let request = Request::get(format!("https://{}{path}", peer.address.authority()))
        .header(header::ACCEPT, accept)
        .header("x-remote-user", "system:kube-aggregator")
        .header("x-remote-group", "system:masters")
        .body(body);
    let answer = peer.send(request.map_err(|error| error.to_string())?).await?;
    let code = answer.status();
    let body = Limited::new(answer.into_body(), MAX_DOCUMENT_BYTES).collect().await;
    Ok(Fetched { code, body: body.map_err(|error| error.to_string())?.to_bytes() })
}

/// What one group version's server said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Document {
    group: String,
    version: String,
    group_priority: i64,
    version_priority: i64,
    /// The resources, as aggregated discovery shows them.
    resources: Value,
    /// It was said at the last look, too.
    fresh: bool,
    /// Where its OpenAPI document of version 3 is, with its hash.
    openapi_v3: Option<String>,
    /// The paths and definitions of its group version.
    openapi_v2: Option<Value>,
}

/// All of them, by the name of the APIService.
#[derive(Default)]
pub struct Documents {
    all: BTreeMap<String, Document>,
    /// Grows with every change.
    generation: u64,
}

impl Documents {
    /// Takes what a look found; `None` for a server that cannot be asked, whose last words then are stale.
    pub fn put(&mut self, api_service: &Value, found: Option<Document>) {
        let name = text(api_service, "metadata.name");
        let document = match found {
            Some(found) => found,
            None => Document { fresh: false, ..self.all.get(name).cloned().unwrap_or_default() },
        };
        let document = Document {
            group: text(api_service, "spec.group").to_owned(),
            version: text(api_service, "spec.version").to_owned(),
            group_priority: integer(api_service, "spec.groupPriorityMinimum").unwrap_or(0),
            version_priority: integer(api_service, "spec.versionPriority").unwrap_or(0),
            ..document
        };
        if self.all.get(name) != Some(&document) {
            self.all.insert(name.to_owned(), document);
            self.generation += 1;
        }
    }

    /// Forgets those that are gone.
    pub fn retain(&mut self, is_there: impl Fn(&str) -> bool) {
        let before = self.all.len();
        self.all.retain(|name, _| is_there(name));
        self.generation += u64::from(self.all.len() != before);
    }

    /// Puts groups in upstream's order: those with the highest priority first, then by name.
    /// `shared` are the groups that this server serves too.
    fn sort_groups(&self, items: &mut [Value], name: impl Fn(&Value) -> &str, shared: impl Fn(&str) -> bool) {
        let mut theirs: BTreeMap<&str, i64> = BTreeMap::new();
        for document in self.all.values() {
            let priority = theirs.entry(&document.group).or_insert(document.group_priority);
            *priority = document.group_priority.max(*priority);
        }
        items.sort_by_cached_key(|item| {
            let group = name(item);
            let own = priorities::of_group(group);
            let priority = theirs
                .get(group)
                .map_or(own, |theirs| if shared(group) { own.max(*theirs) } else { *theirs });
            (std::cmp::Reverse(priority), group.to_owned())
        });
    }

    /// The documents of each group, the versions with the highest priority first.
    fn groups(&self) -> Vec<(&str, Vec<&Document>)> {
        let mut groups: BTreeMap<&str, Vec<&Document>> = BTreeMap::new();
        for document in self.all.values() {
            groups.entry(&document.group).or_default().push(document);
        }
        let mut groups: Vec<_> = groups.into_iter().collect();
        for (_, versions) in &mut groups {
            versions.sort_by_key(|document| std::cmp::Reverse(document.version_priority));
        }
        let priority = |versions: &[&Document]| versions.iter().map(|d| d.group_priority).max();
        groups.sort_by_key(|(_, versions)| std::cmp::Reverse(priority(versions)));
        groups
    }
}

/// Everything that a server says of a group version.
pub async fn read(peer: &Peer, api_service: &Value) -> Option<Document> {
    let (group, version) = (text(api_service, "spec.group"), text(api_service, "spec.version"));
    let aggregated = fetch(peer, "/apis", AGGREGATED).await.ok().and_then(|fetched| fetched.json());
    let resources = match aggregated.and_then(|list| version_entry(&list, group, version)) {
        Some(resources) => resources,
        None => {
            let plain = fetch(peer, &format!("/apis/{group}/{version}"), "application/json").await.ok()?;
            from_plain(&plain.json()?, group, version)
        }
    };
    let index = fetch(peer, "/openapi/v3", "application/json").await.ok().and_then(|fetched| fetched.json());
    let path = format!("apis/{group}/{version}");
    let openapi_v3 =
        index.and_then(|index| index["paths"][&path]["serverRelativeURL"].as_str().map(str::to_owned));
    let spec = fetch(peer, "/openapi/v2", "application/json").await.ok().and_then(|fetched| fetched.json());
    let openapi_v2 = spec.map(|spec| only(spec, &format!("/{path}")));
    Some(Document { resources, fresh: true, openapi_v3, openapi_v2, ..Document::default() })
}

fn version_entry(list: &Value, group: &str, version: &str) -> Option<Value> {
    if list["kind"] != "APIGroupDiscoveryList" {
        return None;
    }
    let groups = list["items"].as_array()?;
    let group = groups.iter().find(|item| item["metadata"]["name"] == group)?;
    let versions = group["versions"].as_array()?;
    let version = versions.iter().find(|entry| entry["version"] == version)?;
    Some(version["resources"].clone())
}

/// An APIResourceList as aggregated discovery shows the same.
///
/// Upstream: apiserver/pkg/endpoints/discovery/aggregated/... ConvertGroupVersionIntoToDiscovery
fn from_plain(list: &Value, group: &str, version: &str) -> Value {
    let mut shown: Vec<Value> = Vec::new();
    let listed = list["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let kind = |resource: &Value| {
        let or = |field: &str, default: &str| match resource[field].as_str() {
            None | Some("") => default.to_owned(),
            Some(given) => given.to_owned(),
        };
        json!({"group": or("group", group), "version": or("version", version), "kind": resource["kind"]})
    };
    for resource in listed.iter().filter(|resource| !text(resource, "name").contains('/')) {
        let mut entry = json!({
            "resource": resource["name"], "responseKind": kind(resource),
            "scope": if resource["namespaced"] == true { "Namespaced" } else { "Cluster" },
            "singularResource": resource["singularName"], "verbs": resource["verbs"],
        });
        for field in ["shortNames", "categories"] {
            if resource[field].is_array() {
                entry[field] = resource[field].clone();
            }
        }
        shown.push(entry);
    }
    for part in listed {
        let Some((resource, name)) = text(part, "name").split_once('/') else { continue };
        let Some(entry) = shown.iter_mut().find(|entry| entry["resource"] == resource) else { continue };
        let shown = json!({"subresource": name, "responseKind": kind(part), "verbs": part["verbs"]});
        match entry["subresources"].as_array_mut() {
            Some(parts) => parts.push(shown),
            None => entry["subresources"] = json!([shown]),
        }
    }
    shown.into()
}

/// The paths below one, and all definitions.
fn only(mut spec: Value, below: &str) -> Value {
    let keep =
        |path: &str| path.strip_prefix(below).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if let Some(paths) = spec["paths"].as_object_mut() {
        paths.retain(|path, _| keep(path));
    }
    json!({"paths": spec["paths"].take(), "definitions": spec["definitions"].take()})
}

fn group_entry(group: &str, version: &str) -> Value {
    json!({"groupVersion": format!("{group}/{version}"), "version": version})
}

impl Aggregation {
    /// Joins the groups of others to an APIGroupDiscoveryList.
    pub fn join_discovery(&self, list: &mut Value) {
        let documents = self.documents();
        let Some(items) = list["items"].as_array_mut() else { return };
        let own: BTreeSet<String> = items.iter().map(|item| text(item, "metadata.name").to_owned()).collect();
        for (group, versions) in documents.groups() {
            let entries = versions.iter().map(|document| {
                json!({
                    "version": document.version, "freshness": if document.fresh { "Current" } else { "Stale" },
                    "resources": match &document.resources { Value::Null => json!([]), known => known.clone() },
                })
            });
            let at = items.iter().position(|item| item["metadata"]["name"] == group);
            let at = at.unwrap_or_else(|| {
                items.push(json!({"metadata": {"name": group}, "versions": []}));
                items.len() - 1
            });
            if let Some(present) = items[at]["versions"].as_array_mut() {
                present.extend(entries);
                sort_versions(present, group, &versions);
            }
        }
        documents.sort_groups(items, |item| text(item, "metadata.name"), |group| own.contains(group));
    }

    /// Joins the groups of others to an APIGroupList.
    pub fn join_groups(&self, list: &mut Value) {
        let documents = self.documents();
        let Some(groups) = list["groups"].as_array_mut() else { return };
        let own: BTreeSet<String> = groups.iter().map(|item| text(item, "name").to_owned()).collect();
        for (group, versions) in documents.groups() {
            let present = groups.iter().position(|item| item["name"] == group);
            let own = present.map(|at| groups.remove(at));
            groups.push(api_group(group, &versions, own));
        }
        documents.sort_groups(groups, |item| text(item, "name"), |group| own.contains(group));
    }

    /// The APIGroup of a group of others, joined to this server's own.
    pub fn join_group(&self, group: &str, own: Option<Value>) -> Option<Value> {
        let documents = self.documents();
        let found = documents.groups().into_iter().find(|(name, _)| *name == group);
        let Some((_, versions)) = found else { return own };
        let mut document = api_group(group, &versions, own);
        document["kind"] = "APIGroup".into();
        document["apiVersion"] = "v1".into();
        Some(document)
    }

    /// Joins the documents of others to the index of OpenAPI version 3.
    pub fn join_openapi_v3(&self, paths: &mut Map<String, Value>) {
        for document in self.documents().all.values() {
            if let Some(url) = &document.openapi_v3 {
                let path = format!("apis/{}/{}", document.group, document.version);
                paths.insert(path, json!({"serverRelativeURL": url}));
            }
        }
    }

    /// Which state of others' documents [`Aggregation::join_openapi_v2`] joins; zero for none at all.
    pub fn openapi_generation(&self) -> u64 {
        let documents = self.documents();
        if documents.all.values().any(|document| document.openapi_v2.is_some()) {
            documents.generation
        } else {
            0
        }
    }

    /// Joins the paths and definitions of others to a document of OpenAPI version 2. Of equal names, this
    /// server's own stay.
    pub fn join_openapi_v2(&self, spec: &mut Value) {
        let documents = self.documents();
        for theirs in documents.all.values().filter_map(|document| document.openapi_v2.as_ref()) {
            for part in ["paths", "definitions"] {
                let Some(ours) = spec[part].as_object_mut() else { continue };
                for (name, value) in theirs[part].as_object().into_iter().flatten() {
                    ours.entry(name).or_insert_with(|| value.clone());
                }
            }
        }
    }
}

/// Puts the versions of a group in upstream's order: those with the highest priority first, then the most mature.
fn sort_versions(entries: &mut [Value], group: &str, theirs: &[&Document]) {
    let priority = |version: &str| {
        let document = theirs.iter().find(|document| document.version == version);
        document.map_or_else(|| priorities::of(group, version).1, |document| document.version_priority)
    };
    entries.sort_by(|a, b| {
        let (a, b) = (text(a, "version"), text(b, "version"));
        priority(b).cmp(&priority(a)).then_with(|| apimachinery::versions::compare(b, a))
    });
}

fn api_group(group: &str, versions: &[&Document], own: Option<Value>) -> Value {
    let mut entries: Vec<Value> =
        own.as_ref().and_then(|own| own["versions"].as_array().cloned()).unwrap_or_default();
    entries.extend(versions.iter().map(|document| group_entry(group, &document.version)));
    sort_versions(&mut entries, group, versions);
    let preferred = entries.first().cloned().unwrap_or_default();
    json!({"name": group, "versions": entries, "preferredVersion": preferred})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_list_shows_in_the_aggregated_form() {
        let list = json!({"kind": "APIResourceList", "groupVersion": "g/v1", "resources": [
            {"name": "fish", "singularName": "fish", "namespaced": true, "kind": "Fish", "verbs": ["get"]},
            {"name": "fish/status", "singularName": "", "namespaced": true, "kind": "Fish", "verbs": ["update"]},
        ]});
        let kind = json!({"group": "g", "version": "v1", "kind": "Fish"});
        let expected = json!([{
            "resource": "fish", "responseKind": kind, "scope": "Namespaced", "singularResource": "fish",
            "verbs": ["get"],
            "subresources": [{"subresource": "status", "responseKind": kind, "verbs": ["update"]}],
        }]);
        assert_eq!(from_plain(&list, "g", "v1"), expected);
    }

    #[test]
    fn only_the_paths_of_the_group_version_are_taken() {
        let spec = json!({"paths": {"/apis/g/v1/": 1, "/apis/g/v1": 2, "/apis/g/v12": 3, "/healthz": 4},
                          "definitions": {"d": 5}});
        let taken = only(spec, "/apis/g/v1");
        assert_eq!(taken, json!({"paths": {"/apis/g/v1/": 1, "/apis/g/v1": 2}, "definitions": {"d": 5}}));
    }
}
