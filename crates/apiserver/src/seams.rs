//! What the parts of the request's way know of each other: who asks ([`UserInfo`]), for what
//! ([`Attributes`]), and what the server itself may read to decide ([`Lookup`]).

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::{GroupResource, GroupVersionKind, GroupVersionResource, Status};
use async_trait::async_trait;
use futures::future::BoxFuture;
use resources::ResourceDef;
use serde_json::Value;

use crate::audit::Annotation;

/// Who asks, as authentication found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What is asked, as authorization sees it.
///
/// Upstream: apiserver/pkg/authorization/authorizer/interfaces.go Attributes
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, …; for other paths the lower-case HTTP method.
    pub verb: String,
    /// Empty for cluster-scoped objects and all-namespace lists.
    pub namespace: String,
    pub group: String,
    pub version: String,
    /// Empty when not a resource request.
    pub resource: String,
    pub subresource: String,
    pub name: String,
    pub is_resource: bool,
    pub path: String,
    pub field_selector: String,
    pub label_selector: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow {
        reason: String,
    },
    Deny {
        reason: String,
    },
    /// This authorizer has no opinion. All without opinion means denied.
    NoOpinion {
        reason: String,
    },
}

/// A decision, with what went wrong before it was reached: a request that is not allowed fails with that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    pub decision: Decision,
    pub error: Option<String>,
}

impl From<Decision> for Decided {
    fn from(decision: Decision) -> Self {
        Decided { decision, error: None }
    }
}

/// A decision that is known at once, or one that others are asked for.
pub enum Verdict<'a> {
    Now(Decided),
    Later(BoxFuture<'a, Decided>),
}

impl From<Decision> for Verdict<'_> {
    fn from(decision: Decision) -> Self {
        Verdict::Now(decision.into())
    }
}

impl Verdict<'_> {
    pub async fn decided(self) -> Decided {
        match self {
            Verdict::Now(decided) => decided,
            Verdict::Later(asking) => asking.await,
        }
    }
}

/// An object that changed.
pub struct Changed {
    pub namespace: String,
    pub name: String,
    /// As it is after the change; `None` when it was deleted.
    pub object: Option<Arc<Value>>,
}

/// Reads of the server's own state, decoded, from its caches: never blocking.
pub trait Lookup: Send + Sync + 'static {
    /// A decoded object. `namespace` is empty for cluster-scoped kinds.
    fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Arc<Value>>;

    /// All decoded objects of a resource, of one namespace or of all.
    fn list(&self, resource: &GroupResource, namespace: Option<&str>) -> Vec<Arc<Value>>;

    /// The revision of the newest change of the resource: what was derived from `list` at an equal revision
    /// still holds.
    fn revision(&self, resource: &GroupResource) -> u64;

    /// What changed after a revision, oldest first; `None` when that is not known any more, and all must be listed.
    fn since(&self, _resource: &GroupResource, _revision: u64) -> Option<Vec<Changed>> {
        None
    }

    /// Tells of every change of the resource from now on; `None` where nothing changes.
    fn changes(&self, _resource: &GroupResource) -> Option<tokio::sync::watch::Receiver<u64>> {
        None
    }

    /// The resource of a kind, and whether it is namespaced.
    fn resource_of(&self, kind: &GroupVersionKind) -> Option<(GroupResource, bool)> {
        let row = resources::table().iter().find(|row| row.gvk() == *kind)?;
        Some((row.group_resource(), row.namespaced()))
    }

    /// The other versions in which the same objects are served, with the kind that the subresource has there.
    fn equivalents(
        &self,
        _resource: &GroupVersionResource,
        _subresource: &str,
    ) -> Vec<(GroupVersionResource, GroupVersionKind)> {
        Vec::new()
    }
}

/// Who is behind a request. `peer_certificates` are those of the TLS handshake, verified against the client CA.
#[async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// `Ok(None)` when the request carries no credentials; `Err` when it carries wrong ones (a 401).
    async fn authenticate(
        &self,
        headers: &http::HeaderMap,
        uri: &http::Uri,
        peer_certificates: &[rustls_pki_types::CertificateDer<'static>],
    ) -> Result<Option<UserInfo>, Status>;
}

pub trait Authorize: Send + Sync + 'static {
    fn authorize<'a>(&'a self, user: &'a UserInfo, attributes: &'a Attributes) -> Verdict<'a>;

    /// The rules that apply to the user in a namespace, for SelfSubjectRulesReview: its `status`.
    fn rules(&self, user: &UserInfo, namespace: &str) -> Value;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// One admission request. The object is a tree; mutating plugins may change it.
pub struct AdmissionRequest<'a> {
    pub operation: Operation,
    pub user: &'a UserInfo,
    pub gvk: GroupVersionKind,
    pub gvr: GroupVersionResource,
    /// The row of the resource; `None` for a resource that is in no table.
    pub def: Option<&'a ResourceDef>,
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Empty at create with generateName.
    pub name: &'a str,
    /// `Null` at delete.
    pub object: &'a mut Value,
    /// `None` at create and connect.
    pub old_object: Option<&'a Value>,
    pub dry_run: bool,
    /// The create, update, patch or delete options.
    pub options: &'a Value,
    pub warnings: &'a mut Vec<String>,
    /// What the audit log is to say of the decision.
    pub annotations: &'a mut Vec<Annotation>,
}

/// The chain of admission plugins.
#[async_trait]
pub trait Admit: Send + Sync + 'static {
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status>;

    /// Runs after the strategy's validation; does not change the object.
    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status>;

    /// What is counted there, for one scrape.
    fn register(&self, _metrics: &mut prometheus_client::registry::Registry) {}
}
