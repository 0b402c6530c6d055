//! ComponentStatus, which nobody stores. The kind is deprecated, and what it told is the server's own health: there is
//! nothing else that it could see.
//!
//! Upstream: pkg/registry/core/componentstatus/rest.go

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Status;
use http::StatusCode;
use serde_json::{Value, json};

use crate::body::Response;
use crate::encode::Outcome;
use crate::handle::{ApiServer, Asked};
use crate::options::ListOptions;
use crate::registry::Resource;

const NAMES: [&str; 1] = ["etcd-0"];

fn item(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ComponentStatus", "metadata": {"name": name},
        "conditions": [{"type": "Healthy", "status": "True", "message": "ok"}],
    })
}

pub fn handle(server: &ApiServer, resource: &Arc<Resource>, asked: &Asked) -> Result<Response, Status> {
    let encoder = server.encoder(resource, asked)?;
    let attributes = &asked.info.attributes;
    if attributes.verb != "list" {
        let name = NAMES.into_iter().find(|name| *name == attributes.name);
        let name = name.ok_or_else(|| {
            Status::not_found(
                &apimachinery::GroupResource::from_static("", "componentstatus"),
                &attributes.name,
            )
        })?;
        return encoder.outcome(StatusCode::OK, &Outcome::Tree(item(name)));
    }
    let options = ListOptions::parse(&asked.info.query, &resource.def, false)?;
    let selected = |name: &&str| {
        let field = |path: &str| if path == "metadata.name" { (*name).to_owned() } else { String::new() };
        options.labels.matches_map(&BTreeMap::new()) && options.fields.matches(field)
    };
    let items: Vec<Value> = NAMES.into_iter().filter(selected).map(item).collect();
    encoder.list_of(&items)
}
