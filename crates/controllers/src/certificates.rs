//! Requests for certificates: kubelets' own are approved, approved ones are signed with the cluster's authority,
//! old ones are removed.
//!
//! Upstream: pkg/controller/certificates

mod authority;
mod cleaner;
mod request;
mod serving;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use api::Object;
use api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use client::Resource;
use controller_runtime::{Informer, WorkQueue};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Error;
use crate::context::Context;
use authority::Authority;
pub(crate) use cleaner::run as run_cleaner;
use request::Request;
pub(crate) use serving::run as run_serving_approver;

const WORKERS: usize = 2;
pub(crate) const APPROVED: &str = "Approved";
pub(crate) const FAILED: &str = "Failed";
const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
const API_SERVER_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const LEGACY_UNKNOWN: &str = "kubernetes.io/legacy-unknown";

fn has_condition(csr: &CertificateSigningRequest, kind: &str) -> bool {
    let status = csr.status.as_ref();
    status.into_iter().flat_map(|s| s.conditions.iter().flatten()).any(|condition| condition.type_ == kind)
}

fn is_issued(csr: &CertificateSigningRequest) -> bool {
    csr.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|bytes| !bytes.0.is_empty())
}

/// The conditions of a request with one more.
fn with_condition(csr: &CertificateSigningRequest, condition: Value) -> Value {
    let mut conditions = csr.to_value()["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.push(condition);
    json!(conditions)
}

/// What a kubelet's request may be approved by: the first that the requester may create.
///
/// Upstream: pkg/controller/certificates/approver/sarapprove.go recognizers
fn approvals(csr: &CertificateSigningRequest, request: &Request) -> Vec<(&'static str, &'static str)> {
    let spec = &csr.spec;
    let usages = spec.usages.as_deref().unwrap_or_default();
    if spec.signer_name != KUBELET_CLIENT || request.check_kubelet_client(usages).is_err() {
        return Vec::new();
    }
    let own = spec.username.as_deref() == Some(&request.common_name);
    let own = own.then_some((
        "selfnodeclient",
        "Auto approving self kubelet client certificate after SubjectAccessReview.",
    ));
    let any = ("nodeclient", "Auto approving kubelet client certificate after SubjectAccessReview.");
    own.into_iter().chain([any]).collect()
}

/// What a signer makes of an approved request.
#[derive(Debug, PartialEq)]
enum Signing {
    /// It is not for us.
    Ignore,
    Sign,
    Refuse(String),
}

/// Upstream: pkg/controller/certificates/signer/signer.go isRequestForSignerFn
fn judge(csr: &CertificateSigningRequest, request: &Request) -> Signing {
    let usages = csr.spec.usages.as_deref().unwrap_or_default();
    let checked = match csr.spec.signer_name.as_str() {
        KUBELET_SERVING => request.check_kubelet_serving(usages),
        KUBELET_CLIENT => request.check_kubelet_client(usages),
        API_SERVER_CLIENT => request::check_client_usages(usages),
        LEGACY_UNKNOWN => Ok(()),
        _ => return Signing::Ignore,
    };
    checked.map_or_else(Signing::Refuse, |()| Signing::Sign)
}

struct Controller {
    context: Context,
    requests: Informer<CertificateSigningRequest>,
}

impl Controller {
    fn new(context: Context) -> (Arc<Self>, WorkQueue<String>) {
        let requests: Informer<CertificateSigningRequest> = context.informers.informer();
        let queue = WorkQueue::new();
        let names = queue.clone();
        requests.subscribe(move |event| names.add(event.object().name().to_owned()));
        (Arc::new(Controller { context, requests }), queue)
    }

    /// A request that still waits for its certificate.
    fn pending(&self, name: &str) -> Option<Arc<CertificateSigningRequest>> {
        self.requests.get(name).filter(|csr| !is_issued(csr))
    }

    async fn approve(self: Arc<Self>, name: String) -> Result<(), Error> {
        let Some(csr) = self.pending(&name) else { return Ok(()) };
        if has_condition(&csr, APPROVED) || has_condition(&csr, "Denied") {
            return Ok(());
        }
        let request = Request::parse(&csr.spec.request.0)
            .map_err(|why| Error::Unfinished(format!("unable to parse csr {name:?}: {why}")))?;
        let approvals = approvals(&csr, &request);
        for (subresource, message) in &approvals {
            if self.may_create(&csr, subresource).await? {
                let condition =
                    json!({"type": APPROVED, "status": "True", "reason": "AutoApproved", "message": message});
                let mut approved = csr.to_value();
                approved["status"]["conditions"] = with_condition(&csr, condition);
                let requests = Resource::of::<CertificateSigningRequest>();
                let client = &self.context.client;
                let written = client.update_value(&requests, "", &name, Some("approval"), &approved).await;
                return unless_gone(written.map(drop));
            }
        }
        if approvals.is_empty() {
            return Ok(());
        }
        let tried: Vec<_> = approvals.iter().map(|(subresource, _)| *subresource).collect();
        Err(Error::Unfinished(format!(
            "recognized csr {name:?} as {tried:?} but subject access review was not approved"
        )))
    }

    async fn may_create(&self, csr: &CertificateSigningRequest, subresource: &str) -> Result<bool, Error> {
        let gvr = apimachinery::GroupVersionResource::from_static(
            "authorization.k8s.io",
            "v1",
            "subjectaccessreviews",
        );
        let spec = &csr.spec;
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {
                "user": spec.username, "uid": spec.uid, "groups": spec.groups, "extra": spec.extra,
                "resourceAttributes": {
                    "group": "certificates.k8s.io", "resource": "certificatesigningrequests", "verb": "create",
                    "subresource": subresource, "version": "*",
                },
            },
        });
        let reviews = Resource { gvr, namespaced: false };
        let answer = self.context.client.create_value(&reviews, "", None, &review).await?;
        Ok(answer["status"]["allowed"] == true)
    }

    async fn sign(self: Arc<Self>, authority: Arc<Authority>, name: String) -> Result<(), Error> {
        let Some(csr) = self.pending(&name) else { return Ok(()) };
        if !has_condition(&csr, APPROVED) || has_condition(&csr, FAILED) {
            return Ok(());
        }
        let request = Request::parse(&csr.spec.request.0)
            .map_err(|why| Error::Unfinished(format!("unable to parse csr {name:?}: {why}")))?;
        let now = self.context.clock().now();
        let mut updated = (*csr).clone();
        let status = updated.status.get_or_insert_default();
        match judge(&csr, &request) {
            Signing::Ignore => return Ok(()),
            Signing::Refuse(why) => {
                status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
                    type_: FAILED.to_owned(),
                    status: "True".to_owned(),
                    reason: Some("SignerValidationFailure".to_owned()),
                    message: Some(why),
                    last_update_time: Some(self.context.clock().time()),
                    last_transition_time: None,
                });
            }
            Signing::Sign => {
                let usages = csr.spec.usages.as_deref().unwrap_or_default();
                let signed = authority.sign(&request, usages, csr.spec.expiration_seconds, now, serial());
                let pem =
                    signed.map_err(|why| Error::Unfinished(format!("error auto signing csr: {why}")))?;
                status.certificate = Some(api::ByteString(pem.into_bytes()));
            }
        }
        unless_gone(self.requests.update_status(&updated).await.map(drop))
    }
}

/// A request that is gone needs nothing any more.
fn unless_gone(written: Result<(), client::Error>) -> Result<(), Error> {
    match written {
        Err(error) if !error.is_not_found() => Err(error.into()),
        _ => Ok(()),
    }
}

/// A serial number is random so that it is nobody else's; it is no secret.
fn serial() -> [u8; 16] {
    rand::random()
}

/// Approves what kubelets ask for, until the shutdown.
pub(crate) async fn run_approver(context: Context) {
    let (controller, queue) = Controller::new(context.clone());
    context.work(&controller, &queue, WORKERS, Controller::approve).await;
}

/// Signs what is approved, until the shutdown.
pub(crate) async fn run_signer(context: Context) {
    let Some(signing) = context.config.signing_authority.clone() else { return };
    let authority = match Authority::new(&signing) {
        Ok(authority) => Arc::new(authority),
        Err(why) => {
            tracing::error!(%why, "certificates cannot be signed");
            return;
        }
    };
    let (controller, queue) = Controller::new(context.clone());
    let sign = move |controller: Arc<Controller>, name| controller.sign(authority.clone(), name);
    context.work(&controller, &queue, WORKERS, sign).await;
}

/// When something that happened at `since` is older than `seconds`.
fn deadline(since: Option<Timestamp>, seconds: i64) -> Option<Timestamp> {
    since.map(|since| since + jiff::SignedDuration::from_secs(seconds))
}
