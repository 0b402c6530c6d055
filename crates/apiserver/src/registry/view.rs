//! An object as the rows of its kind show it. Built-in kinds show what is stored. A custom kind shows every object
//! in the row's version, with the defaults and without the fields that its definition no longer names: a stored
//! object is looked at once by each row, and what the row made of it is kept with it.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/customresource_handler.go crdConversionRESTOptionsGetter

use std::sync::Arc;

use apimachinery::Status;
use resources::custom::{Conversion, Custom};
use schema::structural::embedded::Malformed;
use serde_json::Value;

use super::object::{Object, View};
use super::{Registry, Resource};
use crate::encode::{Outcome, group_version};

/// What a row makes of a stored object without asking anybody.
enum Quick {
    Done(Arc<Object>),
    /// A webhook must convert it.
    Convert(Value),
}

impl Resource {
    fn quick(&self, custom: &Custom, object: &Arc<Object>) -> Quick {
        match object.view(self.id) {
            Some(View::Same) => return Quick::Done(object.clone()),
            Some(View::Other(view)) => return Quick::Done(view),
            None => {}
        }
        let was = object.tree();
        let mut tree = Value::clone(was);
        custom.versions.read(&mut tree);
        let api_version = group_version(&self.def);
        if tree["apiVersion"] == api_version.as_str() {
            if tree == **was {
                object.keep_view(self.id, View::Same);
                return Quick::Done(object.clone());
            }
        } else {
            if custom.versions.conversion != Conversion::None {
                return Quick::Convert(tree);
            }
            tree["apiVersion"] = api_version.into();
            // The metadata had its shape before, and the rest is pruned, not refused.
            let _ = custom.versions.shape(&mut tree, Malformed::Drop);
        }
        Quick::Done(self.keep(object, &tree))
    }

    fn keep(&self, object: &Arc<Object>, tree: &Value) -> Arc<Object> {
        let view = Arc::new(object.shown_as(tree));
        object.keep_view(self.id, View::Other(view.clone()));
        view
    }
}

impl Registry {
    /// The objects as the row shows them, in their order: all of them, or none with the reason.
    pub async fn views(
        &self,
        resource: &Resource,
        objects: Vec<Arc<Object>>,
    ) -> Result<Vec<Arc<Object>>, Status> {
        let Some(custom) = &resource.def.custom else { return Ok(objects) };
        let mut shown = Vec::with_capacity(objects.len());
        let (mut places, mut trees) = (Vec::new(), Vec::new());
        for object in objects {
            match resource.quick(custom, &object) {
                Quick::Done(view) => shown.push(view),
                Quick::Convert(tree) => {
                    places.push(shown.len());
                    trees.push(tree);
                    shown.push(object);
                }
            }
        }
        if trees.is_empty() {
            return Ok(shown);
        }
        let converted = self.convert(custom, trees, &group_version(&resource.def)).await?;
        for (at, mut tree) in places.into_iter().zip(converted) {
            let _ = custom.versions.shape(&mut tree, Malformed::Drop);
            shown[at] = resource.keep(&shown[at], &tree);
        }
        Ok(shown)
    }

    pub async fn view(&self, resource: &Resource, object: Arc<Object>) -> Result<Arc<Object>, Status> {
        if resource.def.custom.is_none() {
            return Ok(object);
        }
        let mut views = self.views(resource, vec![object]).await?;
        views.pop().ok_or_else(|| Status::internal("an object has no view"))
    }

    /// What an operation came to, as the row shows it.
    pub async fn shown(&self, resource: &Resource, outcome: Outcome) -> Result<Outcome, Status> {
        match outcome {
            Outcome::Stored(object) => self.view(resource, object).await.map(Outcome::Stored),
            tree => Ok(tree),
        }
    }

    /// An object of the row's version as it is stored.
    pub async fn stored_form(
        &self,
        resource: &Resource,
        custom: &Custom,
        object: &Value,
    ) -> Result<Value, Status> {
        let storage = &resource.def.storage_version;
        let mut stored = object.clone();
        if resource.def.version != *storage {
            let api_version = format!("{}/{storage}", resource.def.group);
            if custom.versions.conversion == Conversion::None {
                stored["apiVersion"] = api_version.into();
            } else {
                let converted = self.convert(custom, vec![stored], &api_version).await?;
                stored = converted.into_iter().next().unwrap_or_default();
            }
        }
        custom.versions.shape(&mut stored, Malformed::Refuse).map_err(|why| Status::internal(why.0))?;
        Ok(stored)
    }
}
