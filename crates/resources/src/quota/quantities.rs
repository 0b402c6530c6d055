//! [`Quantities`]: amounts by resource name, and the sums and maxima of pods.

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;
use serde_json::Value;

use crate::get::{entries, list, text};

/// A resource list. What is no quantity was refused or will be by validation, and is left out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Quantities(BTreeMap<String, Quantity>);

impl Quantities {
    pub fn read(object: &Value, path: &str) -> Self {
        let read = |(name, value): (&str, &Value)| Some((name.to_owned(), Quantity::from_value(value).ok()?));
        Quantities(entries(object, path).filter_map(read).collect())
    }

    pub fn get(&self, name: &str) -> Option<&Quantity> {
        self.0.get(name)
    }

    pub fn insert(&mut self, name: impl Into<String>, quantity: Quantity) {
        self.0.insert(name.into(), quantity);
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Quantity)> {
        self.0.iter().map(|(name, quantity)| (name.as_str(), quantity))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn retain(&mut self, keep: impl Fn(&str, &Quantity) -> bool) {
        self.0.retain(|name, quantity| keep(name, quantity));
    }

    pub fn add(&mut self, other: &Quantities) {
        for (name, quantity) in other.iter() {
            self.0.entry(name.to_owned()).or_default().add(quantity);
        }
    }

    /// Each by the larger.
    pub fn raise(&mut self, other: &Quantities) {
        for (name, quantity) in other.iter() {
            match self.0.get_mut(name) {
                Some(own) if *own >= *quantity => {}
                _ => drop(self.0.insert(name.to_owned(), *quantity)),
            }
        }
    }

    pub fn to_value(&self) -> Value {
        self.iter().map(|(name, quantity)| (name.to_owned(), Value::from(quantity.to_string()))).collect()
    }
}

/// What a pod needs of `requests` or `limits`: its containers together, or the most that an init container needs
/// along with the sidecars started before it, whichever is more; then what the pod itself says.
///
/// Upstream: component-helpers/resource/helpers.go AggregateContainerRequests
pub fn of_pod(pod: &Value, which: &str) -> Quantities {
    let path = format!("resources.{which}");
    let mut total = Quantities::default();
    for container in list(pod, "spec.containers") {
        total.add(&Quantities::read(container, &path));
    }
    let mut sidecars = Quantities::default();
    let mut initial = Quantities::default();
    for container in list(pod, "spec.initContainers") {
        let own = Quantities::read(container, &path);
        if text(container, "restartPolicy") == "Always" {
            total.add(&own);
            sidecars.add(&own);
            initial.raise(&sidecars);
        } else {
            let mut together = own;
            together.add(&sidecars);
            initial.raise(&together);
        }
    }
    total.raise(&initial);
    for (name, quantity) in Quantities::read(pod, &format!("spec.resources.{which}")).iter() {
        if matches!(name, "cpu" | "memory") {
            total.insert(name, *quantity);
        }
    }
    total
}
