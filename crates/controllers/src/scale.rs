//! The `scale` subresource of any kind that has one: how many replicas there are and shall be.

use client::{Error, Resource};
use http::Method;
use serde_json::Value;

use crate::context::Context;

/// How many replicas an object has and shall have, and which pods are its.
pub(crate) struct Scale {
    pub resource: Resource,
    pub object: Value,
}

fn count(value: &Value) -> i32 {
    value.as_i64().and_then(|number| i32::try_from(number).ok()).unwrap_or(0)
}

impl Scale {
    pub fn wanted(&self) -> i32 {
        count(&self.object["spec"]["replicas"])
    }

    pub fn running(&self) -> i32 {
        count(&self.object["status"]["replicas"])
    }

    pub fn selector(&self) -> &str {
        self.object["status"]["selector"].as_str().unwrap_or_default()
    }

    pub fn uid(&self) -> &str {
        self.object["metadata"]["uid"].as_str().unwrap_or_default()
    }

    pub async fn read_again(&mut self, client: &client::Client) -> Result<(), Error> {
        let metadata = &self.object["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let path = path(&self.resource, &text(&metadata["namespace"]), &text(&metadata["name"]));
        self.object = read(client, &path).await?;
        Ok(())
    }
}

fn group_path(resource: &Resource) -> String {
    let gvr = &resource.gvr;
    match &*gvr.group {
        "" => format!("/api/{}", gvr.version),
        group => format!("/apis/{group}/{}", gvr.version),
    }
}

fn path(resource: &Resource, namespace: &str, name: &str) -> String {
    format!("{}/namespaces/{namespace}/{}/{name}/scale", group_path(resource), resource.gvr.resource)
}

async fn read(client: &client::Client, path: &str) -> Result<Value, Error> {
    let body = client.raw(Method::GET, path, None).await?;
    serde_json::from_slice(&body).map_err(|error| Error::Decode(error.into()))
}

/// Why there is no scale.
pub(crate) enum Missing {
    NoKind,
    Refused(Resource, Error),
}

/// The scale of what a reference names.
pub(crate) async fn of(
    context: &Context,
    namespace: &str,
    (api_version, kind, name): (&str, &str, &str),
) -> Result<Scale, Missing> {
    let found = context.universe.resource_of(api_version, kind).ok_or(Missing::NoKind)?;
    let resource = found.resource.clone();
    match read(&context.client, &path(&resource, namespace, name)).await {
        Ok(object) => Ok(Scale { resource, object }),
        Err(error) => Err(Missing::Refused(resource, error)),
    }
}

/// Whether objects of the resource have a scale at all.
pub(crate) async fn is_served(context: &Context, resource: &Resource) -> Result<bool, Error> {
    let listed = read(&context.client, &group_path(resource)).await?;
    let scale = format!("{}/scale", resource.gvr.resource);
    Ok(listed["resources"].as_array().into_iter().flatten().any(|listed| listed["name"] == scale.as_str()))
}
