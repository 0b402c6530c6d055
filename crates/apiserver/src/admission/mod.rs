//! Admission: what the server changes in a request and what it refuses, after authorization and around
//! validation. [`Chain`] runs the [`PLUGINS`], one file each, in upstream's order; then each kind of [`policy`]
//! before its kind of [`webhook`]; then the quota, which is charged by a write of its own. [`matching`] says which
//! requests a webhook or a policy is for.
//!
//! What always holds: a plugin decides from the request and from [`Lookup`] alone and never waits. Waiting is
//! the chain's: for a new namespace's `default` account or for the namespace itself, for webhooks and the server of
//! the image policy, and for the quota's write.
//!
//! Which plugins run is a [`selection`] of them: upstream's defaults, unless told otherwise; a [`configuration`] may
//! tell them more.
//!
//! Upstream: pkg/kubeapiserver/options/plugins.go AllOrderedPlugins

mod always;
mod always_pull_images;
mod certificate_approval;
mod certificate_signing;
mod certificate_subject_restriction;
mod claim_resize;
pub mod configuration;
mod default_ingress_class;
mod default_storage_class;
mod default_toleration_seconds;
mod deny_service_external_ips;
mod event_rate_limit;
mod extended_resource_toleration;
mod image_policy;
mod limit_pod_hard_anti_affinity;
mod limit_ranger;
pub(crate) mod matching;
mod namespace_autoprovision;
mod namespace_exists;
mod namespace_lifecycle;
mod node_restriction;
mod owner_references;
pub(crate) mod pod;
mod pod_groups;
mod pod_node_selector;
mod pod_resize;
mod pod_security;
mod pod_security_checks;
mod pod_toleration_restriction;
mod pod_topology_labels;
pub(crate) mod policy;
mod priority;
mod resource_quota;
mod runtime_class;
pub mod selection;
mod service_account;
mod storage_protection;
mod taint_nodes;
pub(crate) mod tree;
mod unserved;
pub mod webhook;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use apimachinery::{GroupResource, Status};
use async_trait::async_trait;
use serde_json::Value;

use self::configuration::Settings;
use self::selection::Selection;
use crate::authn::Random;
use crate::authz::{Authorizer, escalation};
use crate::remote::outbound::Peers;
use crate::remote::resolve::Resolver;
use crate::seams::{AdmissionRequest, Admit, Lookup, Operation};

/// What plugins may ask.
pub(crate) struct Context {
    pub lookup: Arc<dyn Lookup>,
    pub authorizer: Arc<Authorizer>,
    pub random: Random,
    /// What they were told at the start.
    pub settings: Arc<Settings>,
}

/// One admission plugin. Both steps do nothing unless said.
pub(crate) trait Plugin: Sync {
    /// Upstream's name of it.
    fn name(&self) -> &'static str;

    /// Whether it runs unless it is disabled, rather than only when it is enabled.
    fn is_default(&self) -> bool {
        true
    }

    fn mutate(&self, _context: &Context, _request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }

    fn validate(&self, _context: &Context, _request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        Ok(())
    }
}

/// All plugins, in order.
pub(crate) static PLUGINS: &[&dyn Plugin] = &[
    &always::AlwaysAdmit,
    &namespace_autoprovision::NamespaceAutoProvision,
    &namespace_lifecycle::NamespaceLifecycle,
    &namespace_exists::NamespaceExists,
    &limit_pod_hard_anti_affinity::LimitPodHardAntiAffinityTopology,
    &limit_ranger::LimitRanger,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &taint_nodes::TaintNodesByCondition,
    &always_pull_images::AlwaysPullImages,
    &image_policy::ImagePolicyWebhook,
    &pod_security::PodSecurity,
    &pod_node_selector::PodNodeSelector,
    &priority::Priority,
    &default_toleration_seconds::DefaultTolerationSeconds,
    &pod_toleration_restriction::PodTolerationRestriction,
    &event_rate_limit::EventRateLimit,
    &extended_resource_toleration::ExtendedResourceToleration,
    &default_storage_class::DefaultStorageClass,
    &storage_protection::StorageObjectInUseProtection,
    &pod_groups::PodGroupProtection,
    &owner_references::OwnerReferencesPermissionEnforcement,
    &claim_resize::PersistentVolumeClaimResize,
    &runtime_class::RuntimeClass,
    &certificate_approval::CertificateApproval,
    &certificate_signing::CertificateSigning,
    &unserved::Unserved("ClusterTrustBundleAttest"),
    &certificate_subject_restriction::CertificateSubjectRestriction,
    &default_ingress_class::DefaultIngressClass,
    &deny_service_external_ips::DenyServiceExternalIPs,
    &pod_topology_labels::PodTopologyLabels,
    &pod_groups::PodGroupWorkloadExists,
    &pod_resize::NodeDeclaredFeatureValidator,
    &unserved::Unserved("JobValidation"),
    &pod_resize::PodResizeValidator,
    &always::AlwaysDeny,
];

/// The plugins that wait for others, which the chain runs itself behind all [`PLUGINS`].
const WAITING: [&str; 5] = [
    "MutatingAdmissionPolicy",
    "MutatingAdmissionWebhook",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionWebhook",
    "ResourceQuota",
];

/// How long a missing account is waited for. A namespace's `default` account is made by a controller a moment after
/// the namespace itself.
///
/// Upstream: plugin/pkg/admission/serviceaccount/admission.go getServiceAccount
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(1);

/// The plugins with what they may ask.
pub struct Chain {
    /// Those of [`PLUGINS`] that run.
    plugins: Vec<&'static dyn Plugin>,
    /// Those that wait for others and run.
    waiting: Waiting,
    context: Context,
    policies: policy::Policies,
    webhooks: webhook::Webhooks,
    quota: resource_quota::ResourceQuota,
}

/// Which of [`WAITING`] run, and whether namespaces are made before all else.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    namespaces: bool,
    mutating_policies: bool,
    mutating_webhooks: bool,
    validating_policies: bool,
    validating_webhooks: bool,
    quota: bool,
}

impl Waiting {
    fn of(selection: &Selection) -> Self {
        let [mutating_policies, mutating_webhooks, validating_policies, validating_webhooks, quota] =
            WAITING.map(|name| selection.has(name));
        let namespaces = selection.has(namespace_autoprovision::NAME);
        Waiting {
            namespaces,
            mutating_policies,
            mutating_webhooks,
            validating_policies,
            validating_webhooks,
            quota,
        }
    }
}

impl Chain {
    /// With the plugins that run by default.
    pub fn new(lookup: Arc<dyn Lookup>, authorizer: Arc<Authorizer>, random: Random) -> Self {
        let peers = Arc::new(Peers::new(Resolver::new(lookup.clone()), None));
        let selection = Selection::default();
        Chain {
            plugins: selection.plugins(),
            waiting: Waiting::of(&selection),
            policies: policy::Policies::new(),
            webhooks: webhook::Webhooks::new(
                webhook::client::WebhookClient::new(peers),
                random.clone(),
                authorizer.clone(),
            ),
            context: Context { lookup, authorizer, random, settings: Arc::default() },
            quota: resource_quota::ResourceQuota::default(),
        }
    }

    /// With these plugins and no others, told this.
    pub fn with(mut self, selection: &Selection, settings: Settings) -> Self {
        self.plugins = selection.plugins();
        self.waiting = Waiting::of(selection);
        let identities = [&settings.mutating_identities, &settings.validating_identities];
        self.webhooks.identify(&Resolver::new(self.context.lookup.clone()), identities);
        self.context.settings = Arc::new(settings);
        self
    }

    /// The way to write quotas. It is a way to this same server, so it exists only after the chain; until it is
    /// set quotas are checked and not charged.
    pub fn client(&self) -> &OnceLock<client::Client> {
        self.quota.client()
    }

    async fn wait_for_account(&self, request: &AdmissionRequest<'_>) {
        let Some(account) = service_account::default_account_wanted(request) else { return };
        let present = || {
            self.context.lookup.get(&service_account::SERVICE_ACCOUNTS, request.namespace, account).is_some()
        };
        let mut changes = self.context.lookup.changes(&service_account::SERVICE_ACCOUNTS);
        let arrival = async {
            while !present() {
                let Some(changes) = &mut changes else { return };
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        // Whether it came or not is for the plugin to see.
        drop(tokio::time::timeout(ACCOUNT_PATIENCE, arrival).await);
    }
}

#[async_trait]
impl Admit for Chain {
    async fn mutate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if self.waiting.namespaces {
            namespace_autoprovision::provide(self.client().get(), &*self.context.lookup, request).await?;
        }
        // Nothing is waited for on behalf of a namespace that does not exist.
        let account = self.plugins.iter().position(|plugin| plugin.name() == service_account::NAME);
        let (first, rest) = self.plugins.split_at(account.unwrap_or(0));
        for plugin in first {
            plugin.mutate(&self.context, request)?;
        }
        if account.is_some() {
            self.wait_for_account(request).await;
        }
        let mut rounds = webhook::Reinvocation::default();
        let mut policy_rounds = policy::Rounds::default();
        loop {
            for plugin in rest {
                plugin.mutate(&self.context, request)?;
            }
            let by_policies = self.waiting.mutating_policies
                && self
                    .policies
                    .mutate(&self.context, request, &mut policy_rounds, self.webhooks.converter())
                    .await?;
            let by_webhooks = self.waiting.mutating_webhooks
                && self.webhooks.mutate(&*self.context.lookup, request, &mut rounds).await?;
            // Upstream: apiserver/pkg/admission/reinvocation.go: one more round for what changed behind a plugin
            if !rounds.again(by_webhooks || by_policies) {
                break;
            }
        }
        escalation::check(&self.context.authorizer, request)
    }

    async fn validate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        for plugin in &self.plugins {
            if let Some(policy) = &self.context.settings.image_policy
                && plugin.name() == image_policy::NAME
            {
                policy.validate(request).await?;
            }
            plugin.validate(&self.context, request)?;
        }
        if self.waiting.validating_policies {
            self.policies.validate(&self.context, request, self.webhooks.converter()).await?;
        }
        if self.waiting.validating_webhooks {
            self.webhooks.validate(&*self.context.lookup, request).await?;
        }
        match self.waiting.quota {
            true => {
                let limited = &self.context.settings.limited_resources;
                self.quota.charge(&*self.context.lookup, limited, request).await
            }
            false => Ok(()),
        }
    }

    fn register(&self, metrics: &mut prometheus_client::registry::Registry) {
        self.webhooks.metrics.register(metrics);
    }
}

/// Whether the request is for this resource, whatever the subresource.
fn is(request: &AdmissionRequest<'_>, group: &str, resource: &str) -> bool {
    request.gvr.group == group && request.gvr.resource == resource
}

/// Whether the request is for this resource itself.
fn is_whole(request: &AdmissionRequest<'_>, group: &str, resource: &str) -> bool {
    is(request, group, resource) && request.subresource.is_empty()
}

fn is_create(request: &AdmissionRequest<'_>) -> bool {
    request.operation == Operation::Create
}

fn is_update(request: &AdmissionRequest<'_>) -> bool {
    request.operation == Operation::Update
}

/// The 403 of a plugin.
///
/// Upstream: apiserver/pkg/admission/errors.go NewForbidden
fn forbid(request: &AdmissionRequest<'_>, why: impl std::fmt::Display) -> Status {
    let candidates = [
        request.name,
        tree::text(request.object, "metadata.name"),
        tree::text(request.object, "metadata.generateName"),
    ];
    let name = candidates.into_iter().find(|name| !name.is_empty()).unwrap_or("Unknown");
    Status::forbidden(&request.gvr.group_resource(), name, why)
}

/// As Go joins errors: one alone, many in brackets.
pub(crate) fn join_errors(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// A resource of the core group.
const fn core(resource: &'static str) -> GroupResource {
    GroupResource::from_static("", resource)
}

/// Of the classes that an annotation marks as default, the newest; of those made in the same second, the first
/// by name.
fn default_class(lookup: &dyn Lookup, resource: &GroupResource, annotations: &[&str]) -> Option<Arc<Value>> {
    let is_default =
        |class: &Arc<Value>| annotations.iter().any(|key| tree::annotation(class, key) == Some("true"));
    let key = |class: &Arc<Value>| {
        let made: Option<jiff::Timestamp> = tree::text(class, "metadata.creationTimestamp").parse().ok();
        (std::cmp::Reverse(made), tree::text(class, "metadata.name").to_owned())
    };
    lookup.list(resource, None).into_iter().filter(is_default).min_by_key(key)
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
