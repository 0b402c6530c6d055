//! What webhooks are configured, read once for each change of the configurations.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use apimachinery::GroupResource;
use serde_json::Value;

use crate::admission::matching::Matcher;
use crate::admission::policy::expressions::Conditions;
use crate::admission::tree::{integer, items, strings, text};
use crate::seams::Lookup;

const GROUP: &str = "admissionregistration.k8s.io";

/// The versions of AdmissionReview that there are.
const VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// One webhook of a configuration.
pub(super) struct Hook {
    /// The configuration's name, the webhook's, and which of that name it is.
    pub id: String,
    pub configuration: String,
    pub name: String,
    pub matcher: Matcher,
    pub conditions: Conditions,
    pub client_config: Value,
    pub timeout: Duration,
    pub ignores_failures: bool,
    /// A dry run has no side effects there.
    pub dry_runs: bool,
    pub reinvoke: bool,
    versions: Vec<String>,
}

impl Hook {
    fn of(configuration: &str, webhook: &Value, place: usize) -> Self {
        let name = text(webhook, "name").to_owned();
        let seconds = integer(webhook, "timeoutSeconds").and_then(|seconds| u64::try_from(seconds).ok());
        Hook {
            id: format!("{configuration}/{name}/{place}"),
            configuration: configuration.to_owned(),
            matcher: Matcher::of_webhook(webhook),
            conditions: Conditions::of_webhook(webhook),
            client_config: webhook["clientConfig"].clone(),
            timeout: Duration::from_secs(seconds.unwrap_or(10).clamp(1, 30)),
            ignores_failures: text(webhook, "failurePolicy") == "Ignore",
            dry_runs: matches!(text(webhook, "sideEffects"), "None" | "NoneOnDryRun"),
            reinvoke: text(webhook, "reinvocationPolicy") == "IfNeeded",
            versions: strings(webhook, "admissionReviewVersions"),
            name,
        }
    }

    /// The first version that both sides know.
    pub fn review_version(&self) -> Result<&'static str, String> {
        let known = |listed: &String| VERSIONS.into_iter().find(|version| version == listed);
        self.versions.iter().find_map(known).ok_or_else(|| {
            "could not create admission objects: webhook does not accept known AdmissionReview versions (v1, v1beta1)"
                .to_owned()
        })
    }
}

/// The webhooks of one kind of configuration, by the configuration's name.
pub(super) struct Configurations {
    resource: GroupResource,
    read: Mutex<(u64, Arc<[Hook]>)>,
}

impl Configurations {
    pub fn mutating() -> Self {
        Configurations::of("mutatingwebhookconfigurations")
    }

    pub fn validating() -> Self {
        Configurations::of("validatingwebhookconfigurations")
    }

    fn of(resource: &'static str) -> Self {
        let resource = GroupResource::from_static(GROUP, resource);
        Configurations { resource, read: Mutex::new((u64::MAX, Arc::new([]))) }
    }

    pub fn hooks(&self, lookup: &dyn Lookup) -> Arc<[Hook]> {
        let revision = lookup.revision(&self.resource);
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if read.0 != revision {
            let mut configurations = lookup.list(&self.resource, None);
            configurations.sort_by(|a, b| text(a, "metadata.name").cmp(text(b, "metadata.name")));
            let hooks = configurations.iter().flat_map(|configuration| {
                let name = text(configuration, "metadata.name").to_owned();
                let webhooks = items(configuration, "webhooks").iter().enumerate();
                webhooks.map(move |(place, webhook)| Hook::of(&name, webhook, place))
            });
            *read = (revision, hooks.collect());
        }
        read.1.clone()
    }
}
