//! Policies: expressions of the cluster's administrators that judge requests ([`validating`]) or change objects
//! ([`mutating`]). [`definitions`] keeps those that are in force compiled, [`params`] finds what a binding gives to
//! its policy, [`expressions`] evaluates; match conditions of webhooks are evaluated there too.
//!
//! What always holds: a policy decides from caches alone, and waits for nothing but the conversion of a custom object
//! into the version that it knows; without policies a request pays for two
//! comparisons of revisions; a policy is never asked about policies, so that nobody locks himself out.
//!
//! Upstream: apiserver/pkg/admission/plugin/policy

mod definitions;
pub(crate) mod expressions;
mod mutating;
mod params;
mod validating;

use std::sync::Arc;

use apimachinery::{GroupResource, Status};
use serde_json::Value;

use self::definitions::Definitions;
use self::expressions::{Conditions, Input, Questioner, request_value};
use super::Context;
use super::matching::Matched;
use super::webhook::versions;
use crate::authz::Authorizer;
use crate::extensions::convert::Converter;
use crate::seams::{AdmissionRequest, Lookup};

const NAMESPACES: GroupResource = GroupResource::from_static("", "namespaces");

/// Resources that policies are never asked about: policies themselves, and reviews, on which the cluster stands.
///
/// Upstream: pkg/kubeapiserver/admission/exclusion/resources.go, plugin/policy/generic/plugin.go isPolicyResource
const EXEMPT: &[(&str, &str)] = &[
    ("admissionregistration.k8s.io", "validatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "validatingadmissionpolicybindings"),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicies"),
    ("admissionregistration.k8s.io", "mutatingadmissionpolicybindings"),
    ("authentication.k8s.io", "selfsubjectreviews"),
    ("authentication.k8s.io", "tokenreviews"),
    ("authorization.k8s.io", "localsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectaccessreviews"),
    ("authorization.k8s.io", "selfsubjectrulesreviews"),
    ("authorization.k8s.io", "subjectaccessreviews"),
];

/// All policies that are in force.
pub(super) struct Policies {
    validating: Definitions,
    mutating: Definitions,
}

/// What has to be remembered when the mutating plugins run a second time.
///
/// Upstream: apiserver/pkg/admission/plugin/policy/mutating/reinvocationcontext.go
#[derive(Default)]
pub(super) struct Rounds {
    /// Who was invoked and wants to be again after changes.
    invoked: Vec<String>,
    /// Who is to be invoked again.
    wanted: Vec<String>,
    /// The object as the last round left it.
    output: Option<Value>,
    second: bool,
}

impl Rounds {
    fn begin(&mut self, object: &Value) {
        self.second = self.output.is_some();
        if self.output.as_ref().is_some_and(|output| output != object) {
            self.require_all();
        }
    }

    fn end(&mut self, object: &Value) {
        self.output = Some(object.clone());
    }

    fn require_all(&mut self) {
        self.wanted.append(&mut self.invoked);
    }

    fn wants(&self, key: &str) -> bool {
        !self.second || self.wanted.iter().any(|wanted| wanted == key)
    }

    fn invoked(&mut self, key: &str) {
        self.invoked.push(key.to_owned());
    }
}

/// A request as a policy sees it, in the version that the policy knows.
struct Subject {
    object: Value,
    old_object: Value,
    namespace: Option<Arc<Value>>,
    request: Value,
}

impl Subject {
    async fn new(
        context: &Context,
        request: &AdmissionRequest<'_>,
        matched: &Matched,
        converter: &Converter,
    ) -> Result<Self, Status> {
        let namespace = namespace_of(request, &*context.lookup)?;
        Ok(Subject { namespace, ..Subject::without_namespace(request, matched, converter).await? })
    }

    async fn without_namespace(
        request: &AdmissionRequest<'_>,
        matched: &Matched,
        converter: &Converter,
    ) -> Result<Self, Status> {
        let (own, known) = (&request.gvk, &matched.gvk);
        let object = versions::convert(converter, request, own, known, request.object.clone()).await?;
        let old = request.old_object.cloned().unwrap_or_default();
        let old_object = versions::convert(converter, request, own, known, old).await?;
        Ok(Subject { object, old_object, request: request_value(request, matched), namespace: None })
    }

    fn input<'s>(&'s self, params: Option<&'s Value>, authorizer: Option<Questioner<'s>>) -> Input<'s> {
        Input {
            object: &self.object,
            old_object: &self.old_object,
            params,
            namespace: self.namespace.as_deref().unwrap_or(&Value::Null),
            request: self.request.clone(),
            authorizer,
        }
    }
}

/// The namespace of a request; none of a request about a namespace itself.
fn namespace_of(request: &AdmissionRequest<'_>, lookup: &dyn Lookup) -> Result<Option<Arc<Value>>, Status> {
    let about_namespace =
        request.gvk.group.is_empty() && request.gvk.version == "v1" && request.gvk.kind == "Namespace";
    if request.namespace.is_empty() || about_namespace {
        return Ok(None);
    }
    let namespace = lookup.get(&NAMESPACES, "", request.namespace);
    namespace.map(Some).ok_or_else(|| Status::not_found(&NAMESPACES, request.namespace))
}

/// Whether a webhook's match conditions hold for a request that it matched.
pub(crate) async fn conditions_hold(
    conditions: &Conditions,
    authorizer: &Authorizer,
    request: &AdmissionRequest<'_>,
    matched: &Matched,
    converter: &Converter,
) -> Result<bool, String> {
    if conditions.is_empty() {
        return Ok(true);
    }
    let subject = Subject::without_namespace(request, matched, converter).await;
    let subject = subject.map_err(|status| status.message)?;
    conditions.hold(&subject.input(None, Some(Questioner::new(authorizer, request))), &[])
}

fn is_exempt(request: &AdmissionRequest<'_>) -> bool {
    EXEMPT.iter().any(|(group, resource)| super::is(request, group, resource))
}

impl Policies {
    pub(super) fn new() -> Self {
        Policies { validating: Definitions::validating(), mutating: Definitions::mutating() }
    }

    /// Has the object changed. True when it was.
    pub(super) async fn mutate(
        &self,
        context: &Context,
        request: &mut AdmissionRequest<'_>,
        rounds: &mut Rounds,
        converter: &Converter,
    ) -> Result<bool, Status> {
        let hooks = self.mutating.hooks(&*context.lookup);
        if hooks.is_empty() || is_exempt(request) {
            return Ok(false);
        }
        mutating::mutate(&hooks, context, request, rounds, converter).await
    }

    /// Has the request judged.
    pub(super) async fn validate(
        &self,
        context: &Context,
        request: &mut AdmissionRequest<'_>,
        converter: &Converter,
    ) -> Result<(), Status> {
        let hooks = self.validating.hooks(&*context.lookup);
        if hooks.is_empty() || is_exempt(request) {
            return Ok(());
        }
        validating::validate(&hooks, context, request, converter).await
    }
}

#[cfg(test)]
mod tests;
