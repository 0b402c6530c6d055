//! [`Groups`]: which pods belong together by the Services and controllers that select them, for spreading pods that
//! do not say themselves by what they are spread.
//!
//! Upstream: pkg/scheduler/framework/plugins/helper/spread.go DefaultSelector

use std::collections::{BTreeMap, HashMap};

use api::Object;
use api::core::v1::Pod;
use apimachinery::selector::LabelSelector;

use crate::pod::{self, Labels};

/// The kinds of controllers whose selectors count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Owner {
    ReplicaSet,
    StatefulSet,
    ReplicationController,
}

impl Owner {
    fn of(kind: &str, api_version: &str) -> Option<Self> {
        match (kind, api_version) {
            ("ReplicaSet", "apps/v1") => Some(Owner::ReplicaSet),
            ("StatefulSet", "apps/v1") => Some(Owner::StatefulSet),
            ("ReplicationController", "v1") => Some(Owner::ReplicationController),
            _ => None,
        }
    }
}

#[derive(Default)]
pub struct Groups {
    /// The selectors of Services, by namespace and name.
    services: HashMap<String, BTreeMap<String, Labels>>,
    owners: HashMap<(Owner, String), LabelSelector>,
    /// Another one after each change.
    version: u64,
}

impl Groups {
    /// Equal as long as nothing changed.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn set_service(&mut self, key: &str, selector: Option<Labels>) {
        self.version += 1;
        let (namespace, name) = key.split_once('/').unwrap_or(("", key));
        match selector.filter(|selector| !selector.is_empty()) {
            Some(selector) => {
                self.services.entry(namespace.to_owned()).or_default().insert(name.to_owned(), selector);
            }
            None => {
                if let Some(services) = self.services.get_mut(namespace) {
                    services.remove(name);
                    if services.is_empty() {
                        self.services.remove(namespace);
                    }
                }
            }
        }
    }

    pub fn set_owner(&mut self, owner: Owner, key: &str, selector: Option<LabelSelector>) {
        let known = self.owners.get(&(owner, key.to_owned()));
        if known == selector.as_ref() {
            return;
        }
        self.version += 1;
        match selector {
            Some(selector) => drop(self.owners.insert((owner, key.to_owned()), selector)),
            None => drop(self.owners.remove(&(owner, key.to_owned()))),
        }
    }

    /// What selects the pods that belong together with this one: its Services and its controller, all at once.
    pub fn selector_of(&self, pod: &Pod) -> Option<LabelSelector> {
        let (namespace, labels) = (pod.namespace(), pod::labels(pod));
        let mut selectors = Vec::new();
        for selector in self.services.get(namespace).into_iter().flat_map(BTreeMap::values) {
            if selector.iter().all(|(key, value)| labels.get(key) == Some(value)) {
                selectors
                    .push(LabelSelector::from_map(selector.iter().map(|(k, v)| (k.as_str(), v.as_str()))));
            }
        }
        let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
        if let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true))
            && let Some(kind) = Owner::of(&owner.kind, &owner.api_version)
        {
            selectors.extend(self.owners.get(&(kind, format!("{namespace}/{}", owner.name))).cloned());
        }
        let all: Vec<String> = selectors.iter().filter(|s| !s.is_empty()).map(ToString::to_string).collect();
        if all.is_empty() || selectors.iter().any(LabelSelector::is_nothing) {
            return None;
        }
        // What selectors print, they read.
        LabelSelector::parse(&all.join(",")).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn services_and_the_controller_select_together() {
        let mut groups = Groups::default();
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
        };
        groups.set_service("default/web", Some(labels(&[("app", "web")])));
        groups.set_service("default/other", Some(labels(&[("app", "other")])));
        let selector = LabelSelector::parse("hash=1").unwrap();
        groups.set_owner(Owner::ReplicaSet, "default/web-1", Some(selector));
        let pod = |owner: &str| {
            let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": "u",
                "controller": true});
            Pod::from_value(
                json!({"metadata": {"name": "p", "namespace": "default", "labels": {"app": "web"},
                "ownerReferences": [owner]}}),
            )
            .unwrap()
        };
        let said = |groups: &Groups, owner: &str| groups.selector_of(&pod(owner)).map(|s| s.to_string());
        assert_eq!(said(&groups, "web-1").as_deref(), Some("app=web,hash=1"));
        assert_eq!(said(&groups, "gone").as_deref(), Some("app=web"));
        groups.set_service("default/web", None);
        assert_eq!(said(&groups, "gone"), None);
    }
}
