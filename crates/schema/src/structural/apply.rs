//! The schema of a custom resource as server-side apply looks at it.
//!
//! Upstream: kube-openapi/pkg/schemaconv, apimachinery/pkg/util/managedfields

use api::tables;
use serde_json::Value;

use super::{Additional, Kind, ListKind, Structural};
use crate::apply::{Keys, Schema, Shape, Typed};

/// A type of a custom resource.
#[derive(Clone)]
pub struct Custom<'s>(Node<'s>);

#[derive(Clone)]
enum Node<'s> {
    /// The resource itself, which has a kind and metadata besides.
    Root(&'s Structural),
    Value(&'s Structural),
    Meta(Typed),
    Text,
    /// Of no declared type.
    Any,
}

impl<'s> Custom<'s> {
    /// The type of a whole resource. One without a schema is taken as it is.
    pub fn of(schema: &'s Structural) -> Self {
        if schema.properties.is_empty() && !matches!(schema.additional, Additional::Schema(_)) {
            return Custom(Node::Any);
        }
        Custom(Node::Root(schema))
    }

    fn structural(&self) -> Option<&'s Structural> {
        match self.0 {
            Node::Root(schema) | Node::Value(schema) => Some(schema),
            _ => None,
        }
    }
}

fn shape(schema: &Structural) -> Shape {
    if schema.int_or_string {
        return Shape::Leaf;
    }
    match schema.kind {
        Kind::Object if schema.atomic_map => Shape::Leaf,
        Kind::Object if !schema.properties.is_empty() || schema.embedded => Shape::Struct,
        Kind::Object if matches!(schema.additional, Additional::Schema(_)) => Shape::Map,
        Kind::Object | Kind::Any => Shape::Deduced,
        Kind::Array => match schema.list_kind {
            ListKind::Atomic => Shape::Leaf,
            ListKind::Set => Shape::Set,
            ListKind::Map => Shape::Keyed,
        },
        _ => Shape::Leaf,
    }
}

impl Schema for Custom<'_> {
    fn shape(&self) -> Shape {
        match &self.0 {
            Node::Root(_) => Shape::Struct,
            Node::Value(schema) => shape(schema),
            Node::Meta(typed) => typed.shape(),
            Node::Text => Shape::Leaf,
            Node::Any => Shape::Deduced,
        }
    }

    fn field(&self, name: &str) -> Option<Self> {
        if let Node::Meta(typed) = &self.0 {
            return typed.field(name).map(|typed| Custom(Node::Meta(typed)));
        }
        let Some(schema) = self.structural() else {
            return matches!(self.0, Node::Any).then_some(Custom(Node::Any));
        };
        if matches!(self.0, Node::Root(_)) || schema.embedded {
            match name {
                "apiVersion" | "kind" => return Some(Custom(Node::Text)),
                "metadata" => {
                    let meta = tables::definition("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta")?;
                    return Some(Custom(Node::Meta(Typed::of(meta))));
                }
                _ => {}
            }
        }
        if let Some(field) = schema.field(name) {
            return Some(Custom(Node::Value(field)));
        }
        let open = schema.preserve_unknown || matches!(schema.additional, Additional::Any(true));
        open.then_some(Custom(Node::Any))
    }

    fn element(&self) -> Self {
        match &self.0 {
            Node::Meta(typed) => Custom(Node::Meta(typed.element())),
            Node::Root(schema) | Node::Value(schema) => match (&schema.items, &schema.additional) {
                (Some(items), _) => Custom(Node::Value(items)),
                (None, Additional::Schema(schema)) => Custom(Node::Value(schema)),
                _ => Custom(Node::Any),
            },
            Node::Text | Node::Any => Custom(Node::Any),
        }
    }

    fn keys(&self) -> Keys<'_> {
        if let Node::Meta(typed) = &self.0 {
            return typed.keys();
        }
        let Some(schema) = self.structural() else { return Vec::new() };
        let default = |key: &str| schema.items.as_ref()?.properties.get(key)?.default.clone();
        schema.list_map_keys.iter().map(|key| (key.as_str().into(), default(key))).collect()
    }

    fn check(&self, value: &Value) -> Result<(), String> {
        match &self.0 {
            Node::Meta(typed) => typed.check(value),
            Node::Root(_) => crate::apply::check_kind("map", value),
            Node::Text => crate::apply::check_kind("string", value),
            Node::Any => Ok(()),
            Node::Value(schema) if schema.int_or_string => crate::apply::check_kind("scalar", value),
            Node::Value(schema) => crate::apply::check_kind(
                match schema.kind {
                    Kind::Object => "map",
                    Kind::Array => "list",
                    Kind::String => "string",
                    Kind::Integer | Kind::Number => "numeric",
                    Kind::Boolean => "boolean",
                    Kind::Any => "",
                },
                value,
            ),
        }
    }
}
