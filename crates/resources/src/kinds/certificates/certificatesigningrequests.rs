//! CertificateSigningRequest: a wish for a certificate, approved and signed by others.

use crate::prelude::*;
use crate::strategy::{Context, Strategy, carry_over};
use crate::validate::{one_of, required_one_of};

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

/// Conditions that are true or absent, and stay.
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];

/// In the order in which upstream lists them.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

fn validate_usages(request: &Value, path: &Path) -> Errors {
    let usages = get::items(request, "spec.usages", path);
    if usages.is_empty() {
        return vec![Error::required(path, "")];
    }
    let mut errors: Errors = usages
        .iter()
        .flat_map(|(usage, at)| one_of(usage.as_str().unwrap_or_default(), at, USAGES))
        .collect();
    for (place, (usage, at)) in usages.iter().enumerate() {
        if usages[..place].iter().any(|(before, _)| before == usage) {
            errors.push(Error::duplicate(at, (*usage).clone()));
        }
    }
    errors
}

/// Upstream: pkg/apis/core/validation/validation.go ValidateSignerName
fn validate_signer(signer: &str, at: &Path) -> Errors {
    const FORM: &str = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
    const LONGEST_DOMAIN: usize = 253;
    const LONGEST: usize = LONGEST_DOMAIN + 1 + 63 + 1 + 253;
    if signer == "kubernetes.io/legacy-unknown" {
        return vec![Error::invalid(at, signer, "the legacy signerName is not allowed via this API version")];
    }
    if signer.is_empty() {
        return vec![Error::required(at, "")];
    }
    let (Some((domain, rest)), 1) = (signer.split_once('/'), signer.matches('/').count()) else {
        return vec![Error::invalid(at, signer, FORM)];
    };
    let mut errors = Errors::new();
    if signer.len() > LONGEST {
        errors.push(Error::too_long(at, LONGEST));
    }
    let messages = names::dns1123_subdomain(domain);
    errors.extend(
        messages
            .into_iter()
            .map(|why| Error::invalid(at, domain, format!("validating label {domain:?}: {why}"))),
    );
    if !domain.contains('.') {
        let detail = "should be a domain with at least two segments separated by dots";
        errors.push(Error::invalid(at, domain, detail));
    }
    for label in rest.split('.') {
        let messages = names::dns1123_label(label);
        errors.extend(
            messages
                .into_iter()
                .map(|why| Error::invalid(at, rest, format!("validating label {label:?}: {why}"))),
        );
    }
    errors
}

fn validate_conditions(request: &Value, old: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let conditions = get::items(request, "status.conditions", path);
    let has = |request: &Value, kind: &str| {
        list(request, "status.conditions").iter().any(|condition| text(condition, "type") == kind)
    };
    for (place, (condition, at)) in conditions.iter().enumerate() {
        let (kind, status) = (text(condition, "type"), text(condition, "status"));
        if kind.is_empty() {
            errors.push(Error::required(&at.child("type"), ""));
        }
        let allowed: &[&str] = if FINAL.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        errors.extend(required_one_of(status, &at.child("status"), allowed));
        if conditions[..place].iter().any(|(before, _)| text(before, "type") == kind) {
            errors.push(Error::duplicate(&at.child("type"), kind));
        }
    }
    let both = |request: &Value| has(request, "Approved") && has(request, "Denied");
    if both(request) && !both(old) {
        let order = conditions.iter().map(|(condition, _)| text(condition, "type"));
        let second = order.filter(|kind| matches!(*kind, "Approved" | "Denied")).nth(1).unwrap_or_default();
        let detail = "Approved and Denied conditions are mutually exclusive";
        errors.push(Error::invalid(path, second, detail));
    }
    errors
}

struct Requests;

impl Strategy for Requests {
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::path_segment(name)
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
        get::remove(request, "spec.extra");
        if !context.extra.is_empty() {
            set(request, "spec.extra", json!(context.extra));
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
        errors.extend(validate_usages(request, &spec.child("usages")));
        errors.extend(validate_signer(text(request, "spec.signerName"), &spec.child("signerName")));
        if let Some(seconds) = get::int(request, "spec.expirationSeconds")
            && seconds < 600
        {
            let detail = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.push(Error::invalid(&spec.child("expirationSeconds"), seconds, detail));
        }
        errors
    }

    /// Of both the status and the approval, which write conditions.
    ///
    /// Upstream: pkg/apis/certificates/validation/validation.go validateCertificateSigningRequestUpdate
    fn validate_status_update(&self, request: &Value, old: &Value) -> Errors {
        let at_conditions = path("status.conditions");
        let mut errors = validate_conditions(request, old, &at_conditions);
        let count = |request: &Value, kind: &str| {
            list(request, "status.conditions").iter().filter(|c| text(c, "type") == kind).count()
        };
        for kind in FINAL.iter().filter(|kind| count(request, kind) < count(old, kind)) {
            let detail = format!("updates may not remove a condition of type {kind:?}");
            errors.push(Error::forbidden(&at_conditions, detail));
        }
        let (certificate, before) = (text(request, "status.certificate"), text(old, "status.certificate"));
        if certificate != before && !before.is_empty() {
            let detail = "updates may not modify existing certificate content";
            errors.push(Error::forbidden(&path("status.certificate"), detail));
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
