//! [`Call`]: one write, with all that its steps need to know.

use std::sync::Arc;

use apimachinery::{Status, field};
use bytes::Bytes;
use resources::{Context, ResourceDef};
use serde_json::Value;

use super::object::{Object, to_stored};
use super::{Registry, Resource};
use crate::audit::Annotation;
use crate::handle::ApiServer;
use crate::options::WriteOptions;
use crate::seams::{AdmissionRequest, Attributes, Operation, UserInfo};
use crate::special::scale;

#[derive(Clone)]
pub struct Call<'a> {
    pub server: &'a ApiServer,
    pub resource: &'a Arc<Resource>,
    pub attributes: &'a Attributes,
    pub user: &'a UserInfo,
    pub options: WriteOptions,
    /// The options as admission sees them.
    pub options_value: Value,
    /// Who owns the fields that are written.
    pub manager: String,
    pub warnings: Vec<String>,
    /// What the audit log is to say of it.
    pub annotations: Vec<Annotation>,
    /// An apply has noted its owners itself.
    pub applied: bool,
    /// The object to create came with a resourceVersion.
    pub versioned: bool,
}

impl<'a> Call<'a> {
    pub fn registry(&self) -> &'a Arc<Registry> {
        &self.server.registry
    }

    pub fn def(&self) -> &'a ResourceDef {
        &self.resource.def
    }

    /// Empty for cluster-scoped kinds.
    pub fn namespace(&self) -> &'a str {
        if self.def().namespaced() { &self.attributes.namespace } else { "" }
    }

    pub fn context(&self) -> Context<'a> {
        Context {
            now: self.server.now(),
            random: self.server.random_bytes(),
            user: &self.user.name,
            uid: &self.user.uid,
            groups: &self.user.groups,
            extra: &self.user.extra,
        }
    }

    /// Fills in what the client left out, on a tree of the request's version. What admission changes is whole: its
    /// plugins write every field that they mean, and what policies and webhooks made is filled in there.
    pub fn complete(&self, object: &mut Value) {
        if let Some(definition) = self.resource.definition {
            resources::disabled::drop_fields(self.def(), object);
            schema::default::apply_declared(object, definition);
        }
        self.def().strategy.default(object);
    }

    pub async fn mutate(
        &mut self,
        operation: Operation,
        name: &str,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let server = self.server;
        if self.attributes.subresource != "scale" {
            let mut request = self.admission(operation, name, object, old);
            return server.config.admit.mutate(&mut request).await;
        }
        // What is admitted is the scale, and of it only the replicas reach the object.
        let of = |object: &Value| scale::of(self.def(), object);
        let (mut scale, old) = (of(object), old.map(of));
        let mut request = self.admission(operation, name, &mut scale, old.as_ref());
        server.config.admit.mutate(&mut request).await?;
        scale::set_replicas(self.def(), object, scale["spec"]["replicas"].clone());
        Ok(())
    }

    pub async fn validate_admission(
        &mut self,
        operation: Operation,
        name: &str,
        object: &mut Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let server = self.server;
        if self.attributes.subresource == "scale" {
            let of = |object: &Value| scale::of(self.def(), object);
            let (mut scale, old) = (of(object), old.map(of));
            let mut request = self.admission(operation, name, &mut scale, old.as_ref());
            return server.config.admit.validate(&mut request).await;
        }
        let mut request = self.admission(operation, name, object, old);
        server.config.admit.validate(&mut request).await
    }

    fn admission<'r>(
        &'r mut self,
        operation: Operation,
        name: &'r str,
        object: &'r mut Value,
        old: Option<&'r Value>,
    ) -> AdmissionRequest<'r> {
        let subresource = self.attributes.subresource.as_str();
        let gvk = match self.def().subresource(subresource) {
            Some(subresource) => subresource.kind.clone(),
            None => self.def().gvk(),
        };
        AdmissionRequest {
            operation,
            user: self.user,
            gvk,
            gvr: self.def().gvr(),
            def: Some(&self.resource.def),
            subresource,
            namespace: match &*self.def().plural {
                // Upstream: a namespace is in itself.
                "namespaces" if self.def().group.is_empty() => name,
                _ => self.namespace(),
            },
            name,
            object,
            old_object: old,
            dry_run: self.options.dry_run,
            options: &self.options_value,
            warnings: &mut self.warnings,
            annotations: &mut self.annotations,
        }
    }

    /// The object in the version of the request, to be changed: see [`Object::draft`].
    pub async fn tree(&self, object: &Arc<Object>) -> Result<Arc<Value>, Status> {
        if self.def().custom.is_some() {
            let view = self.registry().view(self.resource, object.clone()).await?;
            return Ok(view.tree().clone());
        }
        let mut tree = object.draft();
        if object.stored().starts_with(self.resource.head.as_bytes()) {
            return Ok(Arc::new(tree));
        }
        resources::convert::from_storage(self.def(), &mut tree);
        Ok(Arc::new(tree))
    }

    /// The bytes to store for an object of the request's version.
    pub async fn to_stored(&self, object: &Value) -> Result<Bytes, Status> {
        if let Some(custom) = &self.def().custom {
            let stored = self.registry().stored_form(self.resource, custom, object).await?;
            return Ok(to_stored(&stored));
        }
        if !resources::convert::is_converted(self.def()) {
            return Ok(to_stored(object));
        }
        let mut stored = object.clone();
        resources::convert::to_storage(self.def(), &mut stored);
        Ok(to_stored(&stored))
    }

    /// Sets what upstream writes even when it is zero.
    pub fn fill(&self, object: &mut Value) {
        if let Some(definition) = self.resource.definition {
            schema::default::fill_always(object, definition);
        }
    }

    pub fn invalid(&self, name: &str, errors: &[field::Error]) -> Result<(), Status> {
        if errors.is_empty() {
            return Ok(());
        }
        let mut kind = self.def().group_kind();
        // Upstream names the kind by which it keeps the object, which of these is that of the core group.
        if kind.group == "events.k8s.io" {
            kind.group = Default::default();
        }
        Err(Status::invalid(&kind, name, errors))
    }

    pub fn not_found(&self, name: &str) -> Status {
        Status::not_found(&self.def().group_resource(), name)
    }

    /// Warnings of the strategy are told once.
    pub fn warn(&mut self, warnings: Vec<String>) {
        for warning in warnings {
            if !self.warnings.contains(&warning) {
                self.warnings.push(warning);
            }
        }
    }
}
