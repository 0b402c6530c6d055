//! CertificateSigningRequest: a wish for a certificate, approved and signed by others.

use crate::prelude::*;
use crate::strategy::{Context, Strategy, carry_over};

pub fn row() -> Arc<ResourceDef> {
    const VERBS: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];
    Row::cluster("certificates.k8s.io/v1", "CertificateSigningRequest", "certificatesigningrequests")
        .short(&["csr"])
        .subresource("approval", "certificates.k8s.io/v1", "CertificateSigningRequest", VERBS)
        .status()
        .columns("Name,Age,SignerName,Requestor,RequestedDuration,Condition", cells)
        .fields(&["spec.signerName"])
        .strategy(Requests)
        .build()
}

fn cells(request: &Value, now: i64) -> Vec<Cell> {
    let duration = match get::int(request, "spec.expirationSeconds") {
        Some(seconds) => apimachinery::time::human_duration(seconds),
        None => "<none>".to_owned(),
    };
    cells![
        get::name(request),
        age(request, now),
        print::or(request, "spec.signerName", "<none>"),
        text(request, "spec.username"),
        duration,
        condition(request),
    ]
}

fn condition(request: &Value) -> String {
    let has = |kind: &str| list(request, "status.conditions").iter().any(|c| text(c, "type") == kind);
    let decision = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    };
    let failed = if has("Failed") { ",Failed" } else { "" };
    let issued = if text(request, "status.certificate").is_empty() { "" } else { ",Issued" };
    format!("{decision}{failed}{issued}")
}

struct Requests;

impl Strategy for Requests {
    fn default(&self, request: &mut Value) {
        if list(request, "spec.usages").is_empty() && has(request, "spec") {
            set(request, "spec.usages", json!(["digital signature", "key encipherment"]));
        }
    }

    /// The requester is who asked, whatever the object says.
    ///
    /// Upstream: pkg/registry/certificates/certificates/strategy.go PrepareForCreate
    fn prepare_create(&self, context: &Context, request: &mut Value) {
        if let Some(fields) = request.as_object_mut() {
            fields.remove("status");
        }
        set(request, "spec.username", context.user);
        set(request, "spec.groups", context.groups.to_vec());
        if context.uid.is_empty() {
            get::remove(request, "spec.uid");
        } else {
            set(request, "spec.uid", context.uid);
        }
    }

    fn validate(&self, request: &Value) -> Errors {
        let mut errors = Errors::new();
        let spec = path("spec");
        let pem = crate::validate::decode_base64(at(request, "spec.request").unwrap_or(&Value::Null));
        let is_request =
            pem.is_some_and(|p| String::from_utf8_lossy(&p).contains("-----BEGIN CERTIFICATE REQUEST-----"));
        if !is_request {
            let detail = "PEM block type must be CERTIFICATE REQUEST";
            let value = at(request, "spec.request").cloned().unwrap_or_default();
            errors.push(Error::invalid(&spec.child("request"), value, detail));
        }
        if list(request, "spec.usages").is_empty() {
            errors.push(Error::required(&spec.child("usages"), ""));
        }
        let signer = text(request, "spec.signerName");
        if signer.is_empty() {
            errors.push(Error::required(&spec.child("signerName"), ""));
        } else if !signer.contains('/') {
            let detail = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
            errors.push(Error::invalid(&spec.child("signerName"), signer, detail));
        }
        if let Some(seconds) = get::int(request, "spec.expirationSeconds")
            && seconds < 600
        {
            let detail = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(Error::invalid(&spec.child("expirationSeconds"), seconds, detail));
        }
        errors
    }

    /// Neither the spec nor the status change by a plain update.
    fn prepare_update(&self, _context: &Context, request: &mut Value, old: &Value) {
        carry_over(request, old, "spec");
        carry_over(request, old, "status");
    }

    fn validate_update(&self, _request: &Value, _old: &Value) -> Errors {
        Errors::new()
    }
}
