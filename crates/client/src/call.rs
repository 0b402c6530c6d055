//! The calls of a [`Client`]: paths, queries and bodies as upstream's REST client makes them.

use std::fmt::Write;
use std::sync::Arc;

use api::Object;
use apimachinery::Status;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use http::{Method, Request, Response, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::watch::{Decode, WatchStream};
use crate::{Body, Client, Error, Resource, Transport};

/// What to list or watch.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub label_selector: Option<String>,
    pub field_selector: Option<String>,
    pub resource_version: Option<String>,
    /// Objects a page; `None` for all at once.
    pub limit: Option<u32>,
    pub continue_token: Option<String>,
    /// Watch only: ask for bookmarks.
    pub bookmarks: bool,
    /// Watch only: begin with the present objects as ADDED, then a bookmark that says they are all.
    pub send_initial_events: bool,
    /// Watch only: the server ends it after so many seconds.
    pub timeout_seconds: Option<u32>,
}

impl ListOptions {
    pub fn labels(selector: impl Into<String>) -> Self {
        ListOptions { label_selector: Some(selector.into()), ..Default::default() }
    }

    pub fn fields(selector: impl Into<String>) -> Self {
        ListOptions { field_selector: Some(selector.into()), ..Default::default() }
    }

    pub(crate) fn query(&self, watch: bool) -> Query {
        let mut query = Query::default();
        query.push_option("labelSelector", self.label_selector.as_deref());
        query.push_option("fieldSelector", self.field_selector.as_deref());
        query.push_option("resourceVersion", self.resource_version.as_deref());
        query.push_option("limit", self.limit.map(|n| n.to_string()).as_deref());
        query.push_option("continue", self.continue_token.as_deref());
        if watch {
            query.push("watch", "true");
            query.push_option(
                "allowWatchBookmarks",
                (self.bookmarks || self.send_initial_events).then_some("true"),
            );
            if self.send_initial_events {
                query.push("sendInitialEvents", "true");
                query.push("resourceVersionMatch", "NotOlderThan");
            }
            query.push_option("timeoutSeconds", self.timeout_seconds.map(|n| n.to_string()).as_deref());
        }
        query
    }
}

/// A page of objects, or all of them.
#[derive(Clone, Debug)]
pub struct List<T> {
    pub items: Vec<T>,
    pub resource_version: String,
    /// Empty on the last page.
    pub continue_token: String,
    pub remaining: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchType {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl PatchType {
    pub fn content_type(self) -> &'static str {
        match self {
            PatchType::Json => "application/json-patch+json",
            PatchType::Merge => "application/merge-patch+json",
            PatchType::Strategic => "application/strategic-merge-patch+json",
            PatchType::Apply => "application/apply-patch+yaml",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Preconditions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_version: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeleteOptions {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_period_seconds: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub preconditions: Option<Preconditions>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub propagation_policy: Option<Propagation>,
}

impl DeleteOptions {
    pub fn uid(uid: impl Into<String>) -> Self {
        let preconditions = Some(Preconditions { uid: Some(uid.into()), resource_version: None });
        DeleteOptions { preconditions, ..Default::default() }
    }
}

#[derive(Default)]
pub(crate) struct Query(String);

impl Query {
    fn push(&mut self, key: &str, value: &str) {
        self.0.push(if self.0.is_empty() { '?' } else { '&' });
        self.0.push_str(key);
        self.0.push('=');
        percent_encode(&mut self.0, value);
    }

    fn push_option(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.push(key, value);
        }
    }
}

fn percent_encode(out: &mut String, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte as char),
            _ => write!(out, "%{byte:02X}").expect("writing to a String cannot fail"),
        }
    }
}

/// The path of a resource, of one object when `name` is given, of its subresource when that is given.
fn path(
    resource: &Resource,
    namespace: Option<&str>,
    name: Option<&str>,
    subresource: Option<&str>,
) -> String {
    let gvr = &resource.gvr;
    let mut path = if gvr.group.is_empty() {
        format!("/api/{}", gvr.version)
    } else {
        format!("/apis/{}/{}", gvr.group, gvr.version)
    };
    if let Some(namespace) = namespace.filter(|n| resource.namespaced && !n.is_empty()) {
        path.push_str("/namespaces/");
        percent_encode(&mut path, namespace);
    }
    path.push('/');
    path.push_str(&gvr.resource);
    for segment in [name, subresource].into_iter().flatten() {
        path.push('/');
        percent_encode(&mut path, segment);
    }
    path
}

/// Typed calls take the namespace and name from the object where there is one.
impl Client {
    pub fn new(transport: Arc<dyn Transport>, user_agent: &str) -> Self {
        Client { transport, user_agent: user_agent.into() }
    }

    /// The same way to the same server, under another user agent.
    pub fn named(&self, user_agent: &str) -> Self {
        Client { transport: self.transport.clone(), user_agent: user_agent.into() }
    }

    pub async fn get<T: Object>(&self, namespace: &str, name: &str) -> Result<T, Error> {
        let body = self
            .call(Method::GET, path(&Resource::of::<T>(), Some(namespace), Some(name), None), None)
            .await?;
        decode(&body)
    }

    /// `namespace` `None` lists all namespaces.
    pub async fn list<T: Object>(
        &self,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<List<T>, Error> {
        let list = self.list_values(&Resource::of::<T>(), namespace, options).await?;
        let items = list.items.into_iter().map(T::from_value).collect::<Result<_, _>>();
        Ok(List {
            items: items.map_err(|e| Error::Decode(e.into()))?,
            resource_version: list.resource_version,
            continue_token: list.continue_token,
            remaining: list.remaining,
        })
    }

    pub async fn create<T: Object>(&self, object: &T) -> Result<T, Error> {
        let path = path(&Resource::of::<T>(), Some(object.namespace()), None, None);
        decode(&self.call(Method::POST, path, Some(("application/json", object.to_vec()))).await?)
    }

    pub async fn update<T: Object>(&self, object: &T) -> Result<T, Error> {
        self.put(object, None).await
    }

    pub async fn update_status<T: Object>(&self, object: &T) -> Result<T, Error> {
        self.put(object, Some("status")).await
    }

    async fn put<T: Object>(&self, object: &T, subresource: Option<&str>) -> Result<T, Error> {
        let path = path(&Resource::of::<T>(), Some(object.namespace()), Some(object.name()), subresource);
        decode(&self.call(Method::PUT, path, Some(("application/json", object.to_vec()))).await?)
    }

    pub async fn patch<T: Object>(
        &self,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        patch_type: PatchType,
        patch: &Value,
    ) -> Result<T, Error> {
        let object =
            self.patch_value(&Resource::of::<T>(), namespace, name, subresource, patch_type, patch).await?;
        T::from_value(object).map_err(|e| Error::Decode(e.into()))
    }

    pub async fn delete<T: Object>(
        &self,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), Error> {
        self.delete_value(&Resource::of::<T>(), namespace, name, options).await
    }

    /// Watches; `options.resource_version` says from where.
    pub async fn watch<T: Object>(
        &self,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<WatchStream<T>, Error> {
        let decode = Decode {
            text: Box::new(|text| T::from_slice(text).ok()),
            tree: Box::new(|object| T::from_value(object).map_err(|e| Error::Decode(e.into()))),
        };
        self.watch_read(&Resource::of::<T>(), namespace, options, decode).await
    }
}

/// Untyped calls.
impl Client {
    pub async fn get_value(&self, resource: &Resource, namespace: &str, name: &str) -> Result<Value, Error> {
        parse(&self.call(Method::GET, path(resource, Some(namespace), Some(name), None), None).await?)
    }

    pub async fn list_values(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<List<Value>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire {
            #[serde(default)]
            api_version: String,
            #[serde(default)]
            kind: String,
            #[serde(default)]
            metadata: api::meta::ListMeta,
            #[serde(default)]
            items: Vec<Value>,
        }
        let path = path(resource, namespace, None, None) + &options.query(false).0;
        let mut wire: Wire = parse(&self.call(Method::GET, path, None).await?)?;
        // The list says once what its items are.
        if let Some(kind) = wire.kind.strip_suffix("List") {
            for item in wire.items.iter_mut().filter_map(Value::as_object_mut) {
                item.entry("apiVersion").or_insert_with(|| wire.api_version.as_str().into());
                item.entry("kind").or_insert_with(|| kind.into());
            }
        }
        Ok(List {
            items: wire.items,
            resource_version: wire.metadata.resource_version.unwrap_or_default(),
            continue_token: wire.metadata.continue_.unwrap_or_default(),
            remaining: wire.metadata.remaining_item_count.and_then(|n| u64::try_from(n).ok()),
        })
    }

    /// POST to the resource, or to a subresource of one object (`binding`, `eviction`, `token`).
    pub async fn create_value(
        &self,
        resource: &Resource,
        namespace: &str,
        subresource_of: Option<(&str, &str)>,
        object: &Value,
    ) -> Result<Value, Error> {
        let (name, subresource) = subresource_of.unzip();
        let path = path(resource, Some(namespace), name, subresource);
        parse(
            &self
                .call(Method::POST, path, Some(("application/json", object.to_string().into_bytes())))
                .await?,
        )
    }

    pub async fn update_value(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        object: &Value,
    ) -> Result<Value, Error> {
        let path = path(resource, Some(namespace), Some(name), subresource);
        parse(
            &self
                .call(Method::PUT, path, Some(("application/json", object.to_string().into_bytes())))
                .await?,
        )
    }

    pub async fn patch_value(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        subresource: Option<&str>,
        patch_type: PatchType,
        patch: &Value,
    ) -> Result<Value, Error> {
        let mut path = path(resource, Some(namespace), Some(name), subresource);
        if patch_type == PatchType::Apply {
            let mut query = Query::default();
            query.push("fieldManager", &self.user_agent);
            query.push("force", "true");
            path += &query.0;
        }
        let body = Some((patch_type.content_type(), patch.to_string().into_bytes()));
        parse(&self.call(Method::PATCH, path, body).await?)
    }

    pub async fn delete_value(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> Result<(), Error> {
        let body = serde_json::to_vec(options).expect("delete options are strings and numbers");
        let path = path(resource, Some(namespace), Some(name), None);
        self.call(Method::DELETE, path, Some(("application/json", body))).await.map(drop)
    }

    /// Deletes all objects of a resource in a namespace.
    pub async fn delete_collection(
        &self,
        resource: &Resource,
        namespace: &str,
        options: &DeleteOptions,
    ) -> Result<(), Error> {
        let body = serde_json::to_vec(options).expect("delete options are strings and numbers");
        let path = path(resource, Some(namespace), None, None);
        self.call(Method::DELETE, path, Some(("application/json", body))).await.map(drop)
    }

    /// Watches untyped objects.
    pub async fn watch_values(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        options: &ListOptions,
    ) -> Result<WatchStream<Value>, Error> {
        let decode = Decode { text: Box::new(|text| serde_json::from_slice(text).ok()), tree: Box::new(Ok) };
        self.watch_read(resource, namespace, options, decode).await
    }

    /// Watches objects that the caller reads itself.
    pub async fn watch_read<T>(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        options: &ListOptions,
        decode: Decode<T>,
    ) -> Result<WatchStream<T>, Error> {
        let path = path(resource, namespace, None, None) + &options.query(true).0;
        Ok(WatchStream::new(self.exchange(Method::GET, path, None).await?.into_body(), decode))
    }

    /// Any other path: discovery, health, logs. The whole body.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Bytes, Error> {
        self.call(method, path.to_owned(), body).await
    }
}

impl Client {
    async fn call(
        &self,
        method: Method,
        path: String,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Bytes, Error> {
        collect(self.exchange(method, path, body).await?.into_body()).await
    }

    /// One exchange; a failure code becomes the Status that came with it.
    async fn exchange(
        &self,
        method: Method,
        path: String,
        body: Option<(&'static str, Vec<u8>)>,
    ) -> Result<Response<Body>, Error> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, &*self.user_agent);
        let body = match body {
            Some((content_type, bytes)) => {
                request = request.header(header::CONTENT_TYPE, content_type);
                Bytes::from(bytes)
            }
            None => Bytes::new(),
        };
        let request = request.body(body).map_err(|e| Error::Config(format!("cannot form a request: {e}")))?;
        let response = self.transport.send(request).await?;
        let code = response.status();
        if code.is_success() {
            return Ok(response);
        }
        let body = collect(response.into_body()).await?;
        let status =
            serde_json::from_slice(&body).ok().filter(|s: &Status| s.code != 0).unwrap_or_else(|| {
                // A path that nobody serves is answered by a page.
                if code == http::StatusCode::NOT_FOUND {
                    return Status::page_not_found();
                }
                let text = String::from_utf8_lossy(&body[..body.len().min(1024)]).into_owned();
                Status::failure(code.as_u16(), "", text)
            });
        Err(Error::Api(status))
    }
}

async fn collect(body: Body) -> Result<Bytes, Error> {
    match body {
        Body::Full(bytes) => Ok(bytes),
        Body::Stream(chunks) => {
            let all = chunks.try_fold(BytesMut::new(), |mut all, chunk| async move {
                all.extend_from_slice(&chunk);
                Ok(all)
            });
            Ok(all.await?.freeze())
        }
    }
}

fn decode<T: Object>(body: &[u8]) -> Result<T, Error> {
    T::from_slice(body).map_err(|e| Error::Decode(e.into()))
}

fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(body).map_err(|e| Error::Decode(e.into()))
}
