//! Tokens of ServiceAccounts' Secrets: they have no end of their own, and live as long as their Secret and account.
//!
//! Upstream: pkg/serviceaccount/legacy.go

use serde::Deserialize;

use apimachinery::GroupResource;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::Found;
use super::keys::VerifyingKey;
use super::service_account::{SECRETS, SERVICE_ACCOUNTS, groups, is_gone, user_name};
use crate::admission::tree::{label, text};
use crate::seams::{Lookup, UserInfo};

pub(super) const ISSUER: &str = "kubernetes/serviceaccount";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Claims {
    sub: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
}

/// Whose the token is, which claims to be of this kind. It is for this server alone: whoever asks for another
/// audience is not answered.
pub(super) fn authenticate(
    token: &str,
    keys: &[VerifyingKey],
    lookup: &dyn Lookup,
    now: jiff::Timestamp,
) -> Found {
    let claims: Claims =
        super::jwt::verify(token, keys).ok_or("the signature of the service account token is not valid")?;
    for (value, what) in [
        (&claims.namespace, "namespace"),
        (&claims.secret, "secretName"),
        (&claims.account, "serviceAccountName"),
        (&claims.uid, "serviceAccountUID"),
    ] {
        if value.is_empty() {
            return Err(format!("{what} claim is missing"));
        }
    }
    if claims.sub != user_name(&claims.namespace, &claims.account) {
        return Err("sub claim is invalid".to_owned());
    }
    let find = |resource: &GroupResource, name: &str| lookup.get(resource, &claims.namespace, name);
    let invalidated = || "service account token has been invalidated".to_owned();
    let secret = find(&SECRETS, &claims.secret).ok_or_else(invalidated)?;
    let kept = STANDARD.decode(text(&secret, "data.token")).unwrap_or_default();
    if is_gone(&secret, now) || kept != token.as_bytes() {
        return Err(invalidated());
    }
    if label(&secret, INVALID_SINCE).is_some() {
        return Err(
            "the token in the secret has been marked invalid. Use a TokenRequest in its place".to_owned()
        );
    }
    let account = find(&SERVICE_ACCOUNTS, &claims.account)
        .ok_or_else(|| format!("serviceaccounts {:?} not found", claims.account))?;
    if is_gone(&account, now) {
        return Err(format!("service account {}/{} has been deleted", claims.namespace, claims.account));
    }
    let uid = text(&account, "metadata.uid");
    if uid != claims.uid {
        return Err(format!("service account UID ({uid}) does not match claim ({})", claims.uid));
    }
    Ok(Some(UserInfo {
        name: user_name(&claims.namespace, &claims.account),
        uid: claims.uid,
        groups: groups(&claims.namespace),
        ..Default::default()
    }))
}
