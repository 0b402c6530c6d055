//! AdmissionReviews: the question to a webhook, and what its answer means.
//!
//! Upstream: apiserver/pkg/admission/plugin/webhook/request/admissionreview.go, webhook/errors/statuserror.go

use apimachinery::{GroupVersionKind, GroupVersionResource, Status};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use crate::admission::matching::{Matched, operation};
use crate::admission::tree::{at, entries, strings, text};
use crate::seams::{AdmissionRequest, UserInfo};

const GROUP: &str = "admission.k8s.io";

/// A question to one webhook.
pub(super) struct Question {
    uid: String,
    version: &'static str,
    /// The object that is asked about, in the version of the question.
    pub object: Value,
    pub review: Value,
}

fn kind(gvk: &GroupVersionKind) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

fn resource(gvr: &GroupVersionResource) -> Value {
    json!({"group": gvr.group, "version": gvr.version, "resource": gvr.resource})
}

fn user(user: &UserInfo) -> Value {
    let mut shown = Map::new();
    let mut put = |name: &str, value: Value, empty: bool| {
        if !empty {
            shown.insert(name.to_owned(), value);
        }
    };
    put("username", json!(user.name), user.name.is_empty());
    put("uid", json!(user.uid), user.uid.is_empty());
    put("groups", json!(user.groups), user.groups.is_empty());
    put("extra", json!(user.extra), user.extra.is_empty());
    Value::Object(shown)
}

impl Question {
    pub fn new(
        uid: String,
        version: &'static str,
        matched: &Matched,
        request: &AdmissionRequest<'_>,
        object: Value,
        old: Value,
    ) -> Self {
        let mut asked = json!({
            "uid": uid,
            "kind": kind(&matched.gvk), "resource": resource(&matched.gvr),
            "requestKind": kind(&request.gvk), "requestResource": resource(&request.gvr),
            "operation": operation(request.operation),
            "userInfo": user(request.user),
            "object": object, "oldObject": old,
            "dryRun": request.dry_run, "options": request.options,
        });
        for (field, value) in [
            ("subResource", request.subresource),
            ("requestSubResource", request.subresource),
            ("name", request.name),
            ("namespace", request.namespace),
        ] {
            if !value.is_empty() {
                asked[field] = value.into();
            }
        }
        let review =
            json!({"kind": "AdmissionReview", "apiVersion": format!("{GROUP}/{version}"), "request": asked});
        Question { uid, version, object, review }
    }
}

/// What a webhook said.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// Why not, when it refused.
    pub denied: Option<Box<Status>>,
    pub patch: Option<Vec<u8>>,
    pub warnings: Vec<String>,
    /// What the audit log is to say, by key.
    pub audit_annotations: Vec<(String, String)>,
}

impl Answer {
    pub fn read(webhook: &str, question: &Question, mutating: bool, review: &Value) -> Result<Self, String> {
        let response = at(review, "response").ok_or("webhook response was absent")?;
        if question.version == "v1" {
            check_v1(question, mutating, review, response)?;
        }
        let patch = match text(response, "patch") {
            "" => None,
            _ if !mutating => None,
            encoded => Some(STANDARD.decode(encoded).map_err(|error| error.to_string())?),
        };
        let kind = text(response, "patchType");
        if patch.is_some() && question.version == "v1" && kind != "JSONPatch" {
            return Err(format!("unsupported patch type {kind:?}"));
        }
        let allowed = response["allowed"].as_bool().unwrap_or(false);
        Ok(Answer {
            denied: (!allowed).then(|| Box::new(denied(webhook, at(response, "status")))),
            patch,
            warnings: strings(response, "warnings"),
            audit_annotations: entries(response, "auditAnnotations")
                .filter_map(|(key, value)| Some((key.to_owned(), value.as_str()?.to_owned())))
                .collect(),
        })
    }
}

/// What version 1 is strict about.
fn check_v1(question: &Question, mutating: bool, review: &Value, response: &Value) -> Result<(), String> {
    let uid = text(response, "uid");
    if uid != question.uid {
        return Err(format!("expected response.uid={:?}, got {uid:?}", question.uid));
    }
    let (api_version, kind) = (text(review, "apiVersion"), text(review, "kind"));
    if api_version != "admission.k8s.io/v1" || kind != "AdmissionReview" {
        return Err(format!(
            "expected webhook response of {GROUP}/v1, Kind=AdmissionReview, got {}, Kind={kind}",
            if api_version.contains('/') { api_version.to_owned() } else { format!("/{api_version}") }
        ));
    }
    let (patch, patch_type) = (!text(response, "patch").is_empty(), at(response, "patchType"));
    match (mutating, patch, patch_type) {
        (true, true, None) => Err("webhook returned response.patch but not response.patchType".into()),
        (true, false, Some(_)) => Err("webhook returned response.patchType but not response.patch".into()),
        (true, true, Some(kind)) if kind == "" => {
            Err("webhook returned invalid response.patchType of \"\"".into())
        }
        (false, true, _) => Err("validating webhook may not return response.patch".into()),
        (false, _, Some(_)) => Err("validating webhook may not return response.patchType".into()),
        _ => Ok(()),
    }
}

/// The refusal of a webhook, as its client sees it.
fn denied(webhook: &str, result: Option<&Value>) -> Status {
    let mut status: Status =
        result.and_then(|result| serde_json::from_value(result.clone()).ok()).unwrap_or_default();
    status.code = status.code.max(400);
    if matches!(status.status.as_str(), "" | "Success") {
        status.status = "Failure".to_owned();
    }
    let denied = format!("admission webhook {webhook:?} denied the request");
    status.message = match (status.message.as_str(), status.reason.as_str()) {
        ("", "") => format!("{denied} without explanation"),
        ("", reason) => format!("{denied}: {reason}"),
        (message, _) => format!("{denied}: {message}"),
    };
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(version: &'static str, mutating: bool, review: Value, expected: Result<Answer, &str>) {
        let question = Question { uid: "u".into(), version, object: Value::Null, review: Value::Null };
        let got = Answer::read("w.x.y", &question, mutating, &review);
        assert_eq!(got, expected.map_err(str::to_owned), "{version} {mutating} {review}");
    }

    fn v1(response: Value) -> Value {
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
    }

    #[test]
    fn answers_are_checked_as_upstream_checks_them() {
        let yes = Answer::default;
        check("v1", true, json!({}), Err("webhook response was absent"));
        check(
            "v1",
            true,
            v1(json!({"uid": "x", "allowed": true})),
            Err(r#"expected response.uid="u", got "x""#),
        );
        check(
            "v1",
            true,
            json!({"response": {"uid": "u"}}),
            Err("expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /, Kind="),
        );
        check("v1", true, v1(json!({"uid": "u", "allowed": true})), Ok(yes()));
        check(
            "v1",
            true,
            v1(json!({"uid": "u", "allowed": true, "patch": "W10="})),
            Err("webhook returned response.patch but not response.patchType"),
        );
        check(
            "v1",
            false,
            v1(json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"})),
            Err("validating webhook may not return response.patch"),
        );
        let patched = Answer { patch: Some(b"[]".to_vec()), ..yes() };
        check(
            "v1",
            true,
            v1(json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"})),
            Ok(patched),
        );
        let patched = Answer { patch: Some(b"[]".to_vec()), ..yes() };
        check("v1beta1", true, json!({"response": {"allowed": true, "patch": "W10="}}), Ok(patched));
        check("v1beta1", false, json!({"response": {"allowed": true, "patch": "W10="}}), Ok(yes()));
    }

    #[test]
    fn refusals_are_at_least_bad_requests_and_name_the_webhook() {
        for (result, code, message) in [
            (None, 400, r#"admission webhook "w" denied the request without explanation"#),
            (Some(json!({"message": "no"})), 400, r#"admission webhook "w" denied the request: no"#),
            (
                Some(json!({"reason": "Busy", "code": 429})),
                429,
                r#"admission webhook "w" denied the request: Busy"#,
            ),
            (
                Some(json!({"message": "no", "code": 200, "status": "Success"})),
                400,
                r#"admission webhook "w" denied the request: no"#,
            ),
        ] {
            let status = denied("w", result.as_ref());
            assert_eq!(
                (status.code, status.message.as_str(), status.status.as_str()),
                (code, message, "Failure")
            );
        }
    }
}
