//! Webhooks: servers that are asked about requests. [`Webhooks::mutate`] asks those that may change the object,
//! one after the other; [`Webhooks::validate`] those that may only refuse, all at once.
//!
//! [`configuration`] reads what is configured, [`review`] writes questions and reads answers, [`client`] carries
//! them as whom [`identities`] says, [`versions`] speaks of an object in the version that a webhook knows, [`annotations`] tells the audit log.
//!
//! What always holds: without a configured webhook a request pays for two comparisons of revisions; a webhook is
//! never asked about webhooks and policies themselves, so that nobody locks himself out.
//!
//! Upstream: apiserver/pkg/admission/plugin/webhook/{generic,mutating,validating}

mod annotations;
pub mod client;
mod configuration;
pub mod identities;
pub(crate) mod metrics;
mod review;
pub(crate) mod versions;

use std::sync::Arc;
use std::time::Duration;

use apimachinery::Status;
use serde_json::Value;
use tokio::time::Instant;

use self::annotations::Asked;
use self::client::{CallError, WebhookClient};
use self::configuration::{Configurations, Hook};
use self::identities::Identities;
use self::metrics::{Asking, Metrics};
use self::review::{Answer, Question};
use super::matching::{Matched, operation};
use super::policy::conditions_hold;
use crate::authn::Random;
use crate::authz::Authorizer;
use crate::extensions::convert::Converter;
use crate::remote::outbound::Peers;
use crate::remote::resolve::Resolver;
use crate::seams::{AdmissionRequest, Lookup};

/// All configured webhooks, and the way to them.
pub(crate) struct Webhooks {
    converter: Converter,
    authorizer: Arc<Authorizer>,
    mutating: Configurations,
    validating: Configurations,
    /// The ways to those that may change and to those that may only refuse, when it is said who asks them.
    callers: [Option<WebhookClient>; 2],
    pub metrics: Metrics,
}

/// What has to be remembered when the mutating plugins run a second time.
#[derive(Default)]
pub(crate) struct Reinvocation {
    /// Who has been asked and wants to be asked again after changes.
    asked: Vec<String>,
    /// Who is to be asked again.
    wanted: Vec<String>,
    /// The object as the last webhook left it.
    output: Option<Value>,
    second: bool,
}

impl Reinvocation {
    /// Everybody who was asked so far sees the change that was made after it.
    fn require_all(&mut self) {
        self.wanted.append(&mut self.asked);
    }

    /// Whether another round is to be run, which is then begun.
    pub(crate) fn again(&mut self, changed: bool) -> bool {
        let again = changed && !self.second;
        self.second |= again;
        again
    }
}

/// How a webhook's answer can fail a request.
enum Refusal {
    /// It could not be asked, or its answer not be read; the failure policy decides.
    Call(String),
    /// It said no.
    Denied(Box<Status>),
    /// It cannot be asked about this, or what it said cannot be done.
    Internal(Box<Status>),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal::Internal(Box::new(status))
    }
}

/// How a question ended, and how long that took.
struct Ended {
    refusal: Option<Refusal>,
    time: Duration,
}

impl Webhooks {
    pub(crate) fn new(client: WebhookClient, random: Random, authorizer: Arc<Authorizer>) -> Self {
        Webhooks {
            converter: Converter { webhooks: client, random },
            authorizer,
            mutating: Configurations::mutating(),
            validating: Configurations::validating(),
            callers: [None, None],
            metrics: Metrics::default(),
        }
    }

    /// Asks as others than nobody: mutating webhooks as the first, validating ones as the second.
    pub(crate) fn identify(&mut self, resolver: &Resolver, identities: [&Identities; 2]) {
        self.callers = identities.map(|identities| {
            let peers = Peers::with_identities(resolver.clone(), identities.clone());
            (!identities.is_empty()).then(|| WebhookClient::new(Arc::new(peers)))
        });
    }

    /// The way to the versions of custom kinds.
    pub(crate) fn converter(&self) -> &Converter {
        &self.converter
    }

    fn caller(&self, mutating: bool) -> &WebhookClient {
        let [mutator, validator] = &self.callers;
        let caller = if mutating { mutator } else { validator };
        caller.as_ref().unwrap_or(&self.converter.webhooks)
    }

    /// Has the object changed by those who may. True when it was.
    pub(crate) async fn mutate(
        &self,
        lookup: &dyn Lookup,
        request: &mut AdmissionRequest<'_>,
        rounds: &mut Reinvocation,
    ) -> Result<bool, Status> {
        let hooks = self.mutating.hooks(lookup);
        if hooks.is_empty() || is_exempt(request) {
            return Ok(false);
        }
        if rounds.second && rounds.output.as_ref().is_some_and(|output| output != request.object) {
            rounds.require_all();
        }
        let mut any = false;
        for (place, hook) in hooks.iter().enumerate() {
            let Some(matched) = self.should_call(hook, lookup, request).await? else { continue };
            if rounds.second && !rounds.wanted.contains(&hook.id) {
                continue;
            }
            let asked = Asked { hook, place, round: u32::from(rounds.second) };
            let since = Instant::now();
            let mutated = self.mutate_by(&asked, &matched, request).await;
            let time = since.elapsed();
            let (changed, refusal) = mutated.map_or_else(|why| (false, Some(why)), |changed| (changed, None));
            let failed_open = self.judge(hook, "admit", request, Ended { refusal, time })?;
            request.annotations.extend(failed_open.then(|| asked.failed_open("mutation")));
            request.annotations.push(asked.mutated(changed));
            if changed {
                any = true;
                rounds.require_all();
            }
            if hook.reinvoke {
                rounds.asked.push(hook.id.clone());
            }
        }
        rounds.output = Some(request.object.clone());
        Ok(any)
    }

    async fn mutate_by(
        &self,
        asked: &Asked<'_>,
        matched: &Matched,
        request: &mut AdmissionRequest<'_>,
    ) -> Result<bool, Refusal> {
        let hook = asked.hook;
        let question = self.question(hook, matched, request).await?;
        let answer = self.ask(hook, &question, true).await?;
        request.warnings.extend(answer.warnings);
        request.annotations.extend(annotations::of_answer(hook, answer.audit_annotations));
        if let Some(denied) = answer.denied {
            return Err(Refusal::Denied(denied));
        }
        let Some(patch) = answer.patch else { return Ok(false) };
        if question.object.is_null() {
            return Err(Refusal::from(Status::internal(format!(
                "admission webhook {:?} attempted to modify the object, which is not supported for this operation",
                hook.name
            ))));
        }
        request.annotations.push(asked.patched(&patch));
        let patched = schema::patch::json_patch(&question.object, &patch).map_err(Status::internal)?;
        let changed = versions::read(&matched.gvk, request, patched)?;
        if changed == question.object {
            return Ok(false);
        }
        let (known, wanted) = (&matched.gvk, request.gvk.clone());
        *request.object = versions::convert(&self.converter, request, known, &wanted, changed).await?;
        Ok(true)
    }

    /// Has the request judged by those who may refuse it. They are asked at once; of several refusals the first
    /// in the order of their names is told.
    pub(crate) async fn validate(
        &self,
        lookup: &dyn Lookup,
        request: &mut AdmissionRequest<'_>,
    ) -> Result<(), Status> {
        let hooks = self.validating.hooks(lookup);
        if hooks.is_empty() || is_exempt(request) {
            return Ok(());
        }
        let mut asked = Vec::new();
        for hook in hooks.iter() {
            if let Some(matched) = self.should_call(hook, lookup, request).await? {
                asked.push((hook, self.question(hook, &matched, request).await));
            }
        }
        let answers = asked.into_iter().map(|(hook, question)| async move {
            let since = Instant::now();
            let answer = match question {
                Ok(question) => self.ask(hook, &question, false).await,
                Err(refusal) => Err(refusal),
            };
            (hook, answer, since.elapsed())
        });
        let mut result = Ok(());
        let answers = futures::future::join_all(answers).await;
        for (place, (hook, answer, time)) in answers.into_iter().enumerate() {
            let refusal = match answer {
                Ok(answer) => {
                    request.warnings.extend(answer.warnings);
                    request.annotations.extend(annotations::of_answer(hook, answer.audit_annotations));
                    answer.denied.map(Refusal::Denied)
                }
                Err(refusal) => Some(refusal),
            };
            let judged = self.judge(hook, "validating", request, Ended { refusal, time });
            let judged = judged.map(|failed_open| {
                let asked = Asked { hook, place, round: 0 };
                request.annotations.extend(failed_open.then(|| asked.failed_open("validating")));
            });
            result = result.and(judged);
        }
        result
    }

    /// As what the hook is to be asked about the request; `None` when it is not to be asked.
    async fn should_call(
        &self,
        hook: &Hook,
        lookup: &dyn Lookup,
        request: &AdmissionRequest<'_>,
    ) -> Result<Option<Matched>, Status> {
        let Some(matched) = hook.matcher.matches(request, lookup)? else { return Ok(None) };
        let holds = conditions_hold(&hook.conditions, &self.authorizer, request, &matched, &self.converter);
        match holds.await {
            Ok(true) => Ok(Some(matched)),
            Ok(false) => Ok(None),
            Err(_) if hook.ignores_failures => Ok(None),
            Err(why) => Err(Status::forbidden(&request.gvr.group_resource(), request.name, why)),
        }
    }

    async fn question(
        &self,
        hook: &Hook,
        matched: &Matched,
        request: &AdmissionRequest<'_>,
    ) -> Result<Question, Refusal> {
        if request.dry_run && !hook.dry_runs {
            let why = format!("admission webhook {:?} does not support dry run", hook.name);
            return Err(Refusal::from(Status::bad_request(why)));
        }
        let mut bytes = [0; 16];
        (self.converter.random)(&mut bytes);
        let uid = uuid::Builder::from_random_bytes(bytes).into_uuid().to_string();
        let version = hook.review_version().map_err(Refusal::Call)?;
        let (own, known, converter) = (&request.gvk, &matched.gvk, &self.converter);
        let object = versions::convert(converter, request, own, known, request.object.clone()).await?;
        let old = request.old_object.cloned().unwrap_or_default();
        let old = versions::convert(converter, request, own, known, old).await?;
        Ok(Question::new(uid, version, matched, request, object, old))
    }

    async fn ask(&self, hook: &Hook, question: &Question, mutating: bool) -> Result<Answer, Refusal> {
        let caller = self.caller(mutating);
        let review = caller.call(&hook.client_config, &question.review, hook.timeout).await;
        let review = review.map_err(|error: CallError| Refusal::Call(error.to_string()))?;
        let answer = Answer::read(&hook.name, question, mutating, &review);
        answer.map_err(|why| Refusal::Call(format!("received invalid webhook response: {why}")))
    }

    /// What an answer means by the hook's failure policy: true when its failure is passed over.
    fn judge(
        &self,
        hook: &Hook,
        kind: &'static str,
        request: &AdmissionRequest<'_>,
        ended: Ended,
    ) -> Result<bool, Status> {
        let asking = Asking { name: &hook.name, kind, operation: operation(request.operation) };
        let asked = |code, rejected| self.metrics.asked(asking, ended.time, code, rejected);
        match ended.refusal {
            None => {
                asked(200, None);
                Ok(false)
            }
            Some(Refusal::Denied(status)) => {
                asked(status.code, Some("no_error"));
                Err(*status)
            }
            Some(Refusal::Internal(status)) => {
                asked(0, Some("apiserver_internal_error"));
                Err(*status)
            }
            Some(Refusal::Call(why)) if hook.ignores_failures => {
                tracing::warn!(webhook = hook.name, why, "failed calling webhook, failing open");
                asked(500, None);
                self.metrics.failed_open(&hook.name, kind);
                Ok(true)
            }
            Some(Refusal::Call(why)) => {
                tracing::warn!(webhook = hook.name, why, "failed calling webhook, failing closed");
                asked(500, Some("calling_webhook_error"));
                Err(Status::internal(format!("failed calling webhook {:?}: {why}", hook.name)))
            }
        }
    }
}

/// Upstream: apiserver/pkg/admission/plugin/webhook/predicates/rules/rules.go
/// IsExemptAdmissionConfigurationResource
pub(crate) fn is_exempt(request: &AdmissionRequest<'_>) -> bool {
    request.gvk.group == "admissionregistration.k8s.io"
        && matches!(
            &*request.gvk.kind,
            "ValidatingWebhookConfiguration"
                | "MutatingWebhookConfiguration"
                | "ValidatingAdmissionPolicy"
                | "ValidatingAdmissionPolicyBinding"
                | "MutatingAdmissionPolicy"
                | "MutatingAdmissionPolicyBinding"
        )
}

#[cfg(test)]
mod tests;
