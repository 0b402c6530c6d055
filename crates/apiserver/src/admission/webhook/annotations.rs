//! What the audit log is told of webhooks.
//!
//! Upstream: apiserver/pkg/admission/plugin/webhook/{mutating,validating}/dispatcher.go

use serde_json::{Value, json};

use super::configuration::Hook;
use crate::audit::{Annotation, Level};

/// A webhook as it is asked: the how manieth, in which round.
pub(super) struct Asked<'h> {
    pub hook: &'h Hook,
    pub place: usize,
    pub round: u32,
}

impl Asked<'_> {
    fn key(&self, what: &str) -> String {
        format!("{what}.webhook.admission.k8s.io/round_{}_index_{}", self.round, self.place)
    }

    fn value(&self) -> Value {
        json!({"configuration": self.hook.configuration, "webhook": self.hook.name})
    }

    pub fn mutated(&self, changed: bool) -> Annotation {
        let mut value = self.value();
        value["mutated"] = changed.into();
        Annotation::new(self.key("mutation"), value.to_string())
    }

    pub fn patched(&self, patch: &[u8]) -> Annotation {
        let mut value = self.value();
        value["patch"] = serde_json::from_slice(patch).unwrap_or_default();
        value["patchType"] = "JSONPatch".into();
        Annotation { from: Level::Request, ..Annotation::new(self.key("patch"), value.to_string()) }
    }

    pub fn failed_open(&self, kind: &str) -> Annotation {
        Annotation::new(self.key(&format!("failed-open.{kind}")), self.hook.name.as_str())
    }
}

/// What the webhook itself has to say.
pub(super) fn of_answer(hook: &Hook, told: Vec<(String, String)>) -> impl Iterator<Item = Annotation> {
    told.into_iter().map(|(key, value)| Annotation::new(format!("{}/{key}", hook.name), value))
}
