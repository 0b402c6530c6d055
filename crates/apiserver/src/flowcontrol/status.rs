//! Keeps the mandatory objects, and says of each schema whether its level is there.
//!
//! Upstream: apiserver/pkg/util/flowcontrol/apf_controller.go presyncFlowSchemaStatus,
//! pkg/registry/flowcontrol/rest/storage_flowcontrol.go

use std::sync::Arc;

use apimachinery::{GroupResource, GroupVersionResource};
use client::{Client, PatchType, Resource};
use serde_json::{Value, json};

use super::configuration::{LEVELS, SCHEMAS};
use super::objects::{self, MANDATORY};
use crate::admission::tree::{items, text};
use crate::bootstrap::loopback_user;
use crate::handle::ApiServer;
use crate::seams::Lookup;

fn resource(of: &GroupResource) -> Resource {
    let gvr = GroupVersionResource::new(of.group.clone(), "v1", of.resource.clone());
    Resource { gvr, namespaced: false }
}

/// The condition that a schema should have and has not; `None` when all is said.
fn dangling(schema: &Value, level_exists: bool, now: &str) -> Option<Value> {
    let level = text(schema, "spec.priorityLevelConfiguration.name");
    let about = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = match level_exists {
        true => ("False", "Found", format!("{about} and it exists")),
        false => ("True", "NotFound", format!("{about} but there is no such object")),
    };
    let present = items(schema, "status.conditions").iter().find(|c| c["type"] == "Dangling");
    let said = |c: &Value| c["status"] == status && c["reason"] == reason && c["message"] == message.as_str();
    if present.is_some_and(said) {
        return None;
    }
    let since = match present {
        Some(c) if c["status"] == status => text(c, "lastTransitionTime"),
        _ => now,
    };
    Some(json!({
        "type": "Dangling", "status": status, "reason": reason, "message": message, "lastTransitionTime": since,
    }))
}

impl ApiServer {
    /// Makes the objects that there are not, and then follows what is changed until the shutdown.
    pub(crate) async fn keep_flow_control(self: Arc<Self>) {
        let client = Client::new(self.in_process(loopback_user()), "kube-apiserver");
        let caches: Vec<_> = [&SCHEMAS, &LEVELS]
            .into_iter()
            .filter_map(|resource| self.registry.table().stored(resource)?.cache.clone())
            .collect();
        let [schemas, levels] = caches.as_slice() else { return };
        let (mut schemas, mut levels) = (schemas.subscribe(), levels.subscribe());
        self.make(&client, |_| true).await;
        loop {
            self.make(&client, |name| MANDATORY.contains(&name)).await;
            self.say(&client).await;
            tokio::select! {
                () = self.shutdown.cancelled() => return,
                changed = schemas.changed() => if changed.is_err() { return },
                changed = levels.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Makes what is absent of the wanted objects.
    async fn make(&self, client: &Client, wanted: impl Fn(&str) -> bool) {
        let levels = objects::levels().into_iter().map(|object| (LEVELS, object));
        let schemas = objects::schemas().into_iter().map(|object| (SCHEMAS, object));
        let absent = levels.chain(schemas).filter(|(of, object)| {
            let name = text(object, "metadata.name");
            wanted(name) && Lookup::get(&*self.registry, of, "", name).is_none()
        });
        let making = absent.map(|(of, object)| async move {
            match client.create_value(&resource(&of), "", None, &object).await {
                Err(error) if !error.is_already_exists() => {
                    let name = text(&object, "metadata.name");
                    tracing::warn!(error = &error as &dyn std::error::Error, %of, name, "cannot be made");
                }
                _ => {}
            }
        });
        futures::future::join_all(making).await;
    }

    async fn say(&self, client: &Client) {
        let now = apimachinery::time::rfc3339(self.now());
        let saying = Lookup::list(&*self.registry, &SCHEMAS, None).into_iter().filter_map(|schema| {
            let level = text(&schema, "spec.priorityLevelConfiguration.name");
            let exists = Lookup::get(&*self.registry, &LEVELS, "", level).is_some();
            let condition = dangling(&schema, exists, &now)?;
            let name = text(&schema, "metadata.name").to_owned();
            let patch = json!({"status": {"conditions": [condition]}});
            Some(async move {
                let of = resource(&SCHEMAS);
                let patched =
                    client.patch_value(&of, "", &name, Some("status"), PatchType::Merge, &patch).await;
                match patched {
                    Err(error) if !error.is_not_found() => {
                        tracing::warn!(error = &error as &dyn std::error::Error, name, "cannot be told");
                    }
                    _ => {}
                }
            })
        });
        futures::future::join_all(saying).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_says_once_whether_its_level_is_there() {
        let mut schema = json!({"spec": {"priorityLevelConfiguration": {"name": "l"}}});
        let found = dangling(&schema, true, "t1").expect("nothing is said yet");
        assert_eq!(
            found,
            json!({"type": "Dangling", "status": "False", "reason": "Found", "lastTransitionTime": "t1",
                   "message": "This FlowSchema references the PriorityLevelConfiguration object named \"l\" and it exists"})
        );
        schema["status"] = json!({"conditions": [found]});
        assert_eq!(dangling(&schema, true, "t2"), None);
        let lost = dangling(&schema, false, "t2").expect("it changed");
        assert_eq!(
            (&lost["status"], &lost["reason"], &lost["lastTransitionTime"]),
            (&json!("True"), &json!("NotFound"), &json!("t2"))
        );
    }
}
