//! ServiceAccount tokens: proven by signature, and alive as long as what they are bound to.
//!
//! Upstream: pkg/serviceaccount/{jwt,claims}.go

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use apimachinery::GroupResource;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::jwt::{self, Bound, Claims};
use super::keys::VerifyingKey;
use super::legacy;
use super::{CREDENTIAL_ID, Found};
use crate::admission::tree::text;
use crate::seams::{Lookup, UserInfo};

/// Clocks differ by so much.
const LEEWAY_SECONDS: i64 = 60;

/// Proven signatures are remembered so that only the first request with a token pays for the proof.
const REMEMBERED: usize = 4096;

pub(super) const SERVICE_ACCOUNTS: GroupResource = GroupResource::from_static("", "serviceaccounts");
pub(super) const SECRETS: GroupResource = GroupResource::from_static("", "secrets");
const PODS: GroupResource = GroupResource::from_static("", "pods");
const NODES: GroupResource = GroupResource::from_static("", "nodes");

pub(super) struct ServiceAccounts {
    keys: Vec<VerifyingKey>,
    issuers: Vec<String>,
    audiences: Vec<String>,
    proven: Mutex<HashMap<[u8; 32], Claims>>,
}

/// `system:serviceaccount:NAMESPACE:NAME`.
pub(super) fn user_name(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// The groups that every account of a namespace is in.
pub(super) fn groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")]
}

impl ServiceAccounts {
    pub(super) fn new(keys: Vec<VerifyingKey>, issuers: Vec<String>, audiences: Vec<String>) -> Self {
        ServiceAccounts { keys, issuers, audiences, proven: Mutex::default() }
    }

    /// `Ok(None)` for what is no token of our issuers.
    pub(super) fn authenticate(
        &self,
        token: &str,
        audiences: &[String],
        lookup: &dyn Lookup,
        now: jiff::Timestamp,
    ) -> Found {
        match jwt::claimed_issuer(token) {
            Some(issuer) if self.issuers.contains(&issuer) => {}
            Some(issuer) if issuer == legacy::ISSUER && audiences.is_empty() => {
                return legacy::authenticate(token, &self.keys, lookup, now);
            }
            _ => return Ok(None),
        }
        let claims = self.prove(token).ok_or("the signature of the service account token is not valid")?;
        let wanted = if audiences.is_empty() { &self.audiences } else { audiences };
        if !claims.aud.iter().any(|audience| wanted.contains(audience)) {
            return Err(format!(
                "token audiences {:?} is invalid for the target audiences {wanted:?}",
                claims.aud
            ));
        }
        check_time(&claims, now)?;
        check_bindings(&claims, lookup, now)?;
        Ok(Some(user(claims)))
    }

    fn prove(&self, token: &str) -> Option<Claims> {
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        if let Some(claims) = self.proven.lock().unwrap_or_else(PoisonError::into_inner).get(&digest) {
            return Some(claims.clone());
        }
        let claims: Claims = jwt::verify(token, &self.keys)?;
        let mut proven = self.proven.lock().unwrap_or_else(PoisonError::into_inner);
        if proven.len() >= REMEMBERED {
            proven.clear();
        }
        proven.insert(digest, claims.clone());
        Some(claims)
    }
}

fn check_time(claims: &Claims, now: jiff::Timestamp) -> Result<(), String> {
    let now = now.as_second();
    if claims.nbf != 0 && now.saturating_add(LEEWAY_SECONDS) < claims.nbf {
        return Err("service account token is not valid yet".to_owned());
    }
    if now.saturating_sub(LEEWAY_SECONDS) > claims.exp {
        return Err("service account token has expired".to_owned());
    }
    if now.saturating_add(LEEWAY_SECONDS) < claims.iat {
        return Err("service account token is issued in the future".to_owned());
    }
    Ok(())
}

/// Whether an object was deleted so long ago that clocks cannot be to blame. An object whose time of deletion
/// cannot be read is gone.
pub(super) fn is_gone(object: &Value, now: jiff::Timestamp) -> bool {
    match text(object, "metadata.deletionTimestamp") {
        "" => false,
        deleted => {
            let at: Result<jiff::Timestamp, _> = deleted.parse();
            at.is_ok_and(|at| at.as_second() < now.as_second() - LEEWAY_SECONDS)
        }
    }
}

fn check_bindings(claims: &Claims, lookup: &dyn Lookup, now: jiff::Timestamp) -> Result<(), String> {
    let bindings = &claims.kubernetes;
    let namespace = &bindings.namespace;
    let account = &bindings.serviceaccount;
    if claims.sub != user_name(namespace, &account.name) {
        return Err("service account token claims could not be validated".to_owned());
    }
    let found = lookup
        .get(&SERVICE_ACCOUNTS, namespace, &account.name)
        .ok_or_else(|| format!("serviceaccounts {:?} not found", account.name))?;
    let uid = text(&found, "metadata.uid");
    if uid != account.uid {
        return Err(format!("service account UID ({uid}) does not match claim ({})", account.uid));
    }
    if is_gone(&found, now) {
        return Err(format!("service account {namespace}/{} has been deleted", account.name));
    }
    // A pod's node is told, not checked: the pod itself dies with it.
    let node = bindings.node.as_ref().filter(|_| bindings.pod.is_none());
    let bound = [
        ("secret", &SECRETS, namespace.as_str(), bindings.secret.as_ref()),
        ("pod", &PODS, namespace.as_str(), bindings.pod.as_ref()),
        ("node", &NODES, "", node),
    ];
    for (kind, resource, namespace, bound) in bound {
        if let Some(Bound { name, uid }) = bound {
            let invalidated = || "service account token has been invalidated".to_owned();
            let object = lookup.get(resource, namespace, name).ok_or_else(invalidated)?;
            let found = text(&object, "metadata.uid");
            if found != uid {
                return Err(format!(
                    "{kind} UID ({found}) does not match service account {kind} ref claim ({uid})"
                ));
            }
            if is_gone(&object, now) {
                return Err(invalidated());
            }
        }
    }
    Ok(())
}

/// Upstream: apiserver/pkg/authentication/serviceaccount/util.go UserInfo
fn user(claims: Claims) -> UserInfo {
    let bindings = claims.kubernetes;
    let mut extra = BTreeMap::new();
    let mut tell = |key: &str, value: String| {
        if !value.is_empty() {
            extra.insert(key.to_owned(), vec![value]);
        }
    };
    if !claims.jti.is_empty() {
        tell(CREDENTIAL_ID, format!("JTI={}", claims.jti));
    }
    if let Some(pod) = bindings.pod {
        tell("authentication.kubernetes.io/pod-name", pod.name);
        tell("authentication.kubernetes.io/pod-uid", pod.uid);
    }
    if let Some(node) = bindings.node {
        tell("authentication.kubernetes.io/node-name", node.name);
        tell("authentication.kubernetes.io/node-uid", node.uid);
    }
    UserInfo {
        name: user_name(&bindings.namespace, &bindings.serviceaccount.name),
        uid: bindings.serviceaccount.uid,
        groups: groups(&bindings.namespace),
        extra,
    }
}
