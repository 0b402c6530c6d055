//! Namespace: a scope of names. It is emptied before it goes, for which the `kubernetes` finalizer in its spec
//! stands.

use crate::prelude::*;
use crate::strategy::{Context, Strategy, carry_over};
use crate::validate::each;

const FINALIZER: &str = "kubernetes";

pub fn row() -> Arc<ResourceDef> {
    const VERBS: &[Verb] =
        &[Verb::Create, Verb::Delete, Verb::Get, Verb::List, Verb::Patch, Verb::Update, Verb::Watch];
    Row::cluster("v1", "Namespace", "namespaces")
        .short(&["ns"])
        .verbs(VERBS)
        .subresource("finalize", "v1", "Namespace", &[Verb::Update])
        .status()
        .columns("Name,Status,Age", |o, now| cells![get::name(o), text(o, "status.phase"), age(o, now)])
        .field("status.phase", |o| text(o, "status.phase").to_owned())
        .strategy(Namespaces)
        .build()
}

struct Namespaces;

impl Strategy for Namespaces {
    /// Upstream: pkg/apis/core/v1/defaults.go SetDefaults_Namespace
    fn default(&self, namespace: &mut Value) {
        let name = get::name(namespace).to_owned();
        if name.is_empty() {
            return;
        }
        if let Some(labels) = get::fields_mut(namespace, "metadata.labels") {
            labels.insert("kubernetes.io/metadata.name".to_owned(), name.into());
        }
    }

    /// Upstream: pkg/registry/core/namespace/strategy.go PrepareForCreate
    fn prepare_create(&self, _context: &Context, namespace: &mut Value) {
        set(namespace, "status", json!({"phase": "Active"}));
        let mut finalizers: Vec<Value> = list(namespace, "spec.finalizers").to_vec();
        if !finalizers.iter().any(|f| f == FINALIZER) {
            finalizers.push(FINALIZER.into());
        }
        set(namespace, "spec.finalizers", finalizers);
        // A name that was generated only now has its label as well.
        self.default(namespace);
    }

    fn validate(&self, namespace: &Value) -> Errors {
        let at = path("spec.finalizers");
        let mut errors = Errors::new();
        for finalizer in get::texts(namespace, "spec.finalizers") {
            errors.extend(each(names::qualified_name(finalizer), &at, finalizer));
            if !finalizer.contains('/') && !matches!(finalizer, FINALIZER | "orphan" | "foregroundDeletion") {
                let detail = "name is neither a standard finalizer name nor is it fully qualified";
                errors.push(Error::invalid(&at, finalizer, detail));
            }
        }
        errors
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_label(name)
    }

    /// The finalizers of the spec change only through `finalize`.
    fn prepare_update(&self, _context: &Context, namespace: &mut Value, old: &Value) {
        carry_over(namespace, old, "spec");
        carry_over(namespace, old, "status");
    }

    fn validate_update(&self, _namespace: &Value, _old: &Value) -> Errors {
        Errors::new()
    }

    /// Upstream: pkg/apis/core/validation/validation.go ValidateNamespaceStatusUpdate
    fn validate_status_update(&self, namespace: &Value, _old: &Value) -> Errors {
        let phase = text(namespace, "status.phase");
        let deleting = has(namespace, "metadata.deletionTimestamp");
        let detail = match (deleting, phase) {
            (false, phase) if phase != "Active" => "may only be 'Active' if `deletionTimestamp` is empty",
            (true, phase) if phase != "Terminating" => {
                "may only be 'Terminating' if `deletionTimestamp` is not empty"
            }
            _ => return Errors::new(),
        };
        vec![Error::invalid(&path("status.Phase"), phase, detail)]
    }
}
