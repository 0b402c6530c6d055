//! Requests do not pile up: each has a time to be handled or fetched in, and goes after it.
//!
//! Upstream: pkg/controller/certificates/cleaner/cleaner.go

use api::certificates::v1::CertificateSigningRequest;
use der::Decode;
use jiff::Timestamp;
use x509_cert::Certificate;

use super::{APPROVED, FAILED, deadline, is_issued};
use crate::context::Context;
use crate::expiry;

const DECIDED_SECONDS: i64 = 60 * 60;
const PENDING_SECONDS: i64 = 24 * 60 * 60;

/// When the certificate of a request ends.
fn expiry(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let block = pem::parse(&csr.status.as_ref()?.certificate.as_ref()?.0).ok()?;
    let certificate = Certificate::from_der(block.contents()).ok()?;
    let end = certificate.tbs_certificate().validity().not_after.to_unix_duration();
    Timestamp::from_second(i64::try_from(end.as_secs()).ok()?).ok()
}

/// From when on the request is to be removed.
pub(super) fn removal(csr: &CertificateSigningRequest) -> Option<Timestamp> {
    let conditions = csr.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    if conditions.is_empty() {
        return deadline(csr.metadata.creation_timestamp.as_ref().map(|t| t.0), PENDING_SECONDS);
    }
    let of_conditions = conditions.iter().filter_map(|condition| {
        let seconds = match condition.type_.as_str() {
            APPROVED if is_issued(csr) => DECIDED_SECONDS,
            APPROVED => PENDING_SECONDS,
            "Denied" | FAILED => DECIDED_SECONDS,
            _ => return None,
        };
        deadline(condition.last_update_time.as_ref().map(|t| t.0), seconds)
    });
    let approved = conditions.iter().any(|condition| condition.type_ == APPROVED);
    of_conditions.chain(expiry(csr).filter(|_| approved)).min()
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let requests = context.informers.informer();
    expiry::run(context, requests, removal).await;
}
