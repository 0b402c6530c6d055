//! What the server serves, asked of the server.

use client::{Client, Error, Resource};
use http::Method;
use serde::Deserialize;

/// A resource that the server lists in discovery, in its group's preferred version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiResource {
    pub resource: Resource,
    pub kind: String,
    pub verbs: Vec<String>,
}

impl ApiResource {
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|v| v == verb)
    }
}

#[derive(Deserialize)]
struct GroupList {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    preferred_version: GroupVersion,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct GroupVersion {
    group_version: String,
}

#[derive(Deserialize)]
struct ResourceList {
    resources: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    namespaced: bool,
    kind: String,
    #[serde(default)]
    verbs: Vec<String>,
}

/// Every resource in its group's preferred version, without subresources. The groups that could not be asked
/// are named beside: what they serve is unknown, not absent.
pub async fn discover(client: &Client) -> Result<(Vec<ApiResource>, Vec<String>), Error> {
    let groups: GroupList = read(client, "/apis").await?;
    let mut versions = vec!["v1".to_owned()];
    versions.extend(groups.groups.into_iter().map(|group| group.preferred_version.group_version));
    let mut resources = Vec::new();
    let mut failed = Vec::new();
    for version in versions {
        let path = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
        match read::<ResourceList>(client, &path).await {
            Ok(list) => resources.extend(list.resources.into_iter().filter_map(|l| resource(&version, l))),
            Err(error) => {
                tracing::debug!(%version, %error, "a group version cannot be discovered");
                failed.push(version);
            }
        }
    }
    Ok((resources, failed))
}

fn resource(group_version: &str, listed: Listed) -> Option<ApiResource> {
    if listed.name.contains('/') {
        return None;
    }
    let (group, version) = group_version.split_once('/').unwrap_or(("", group_version));
    let gvr = apimachinery::GroupVersionResource::new(group.to_owned(), version.to_owned(), listed.name);
    Some(ApiResource {
        resource: Resource { gvr, namespaced: listed.namespaced },
        kind: listed.kind,
        verbs: listed.verbs,
    })
}

async fn read<T: serde::de::DeserializeOwned>(client: &Client, path: &str) -> Result<T, Error> {
    let body = client.raw(Method::GET, path, None).await?;
    serde_json::from_slice(&body).map_err(|e| Error::Decode(e.into()))
}
