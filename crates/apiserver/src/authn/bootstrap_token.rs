//! Bootstrap tokens: `ID.SECRET`, kept in Secrets of `kube-system`, with which new nodes ask for a certificate.
//!
//! Upstream: plugin/pkg/auth/authenticator/token/bootstrap/bootstrap.go

use apimachinery::GroupResource;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::admission::tree::{at, entry, text};
use crate::seams::{Lookup, UserInfo};

const SECRETS: GroupResource = GroupResource::from_static("", "secrets");
const TYPE: &str = "bootstrap.kubernetes.io/token";
const DEFAULT_GROUP: &str = "system:bootstrappers";

/// `Some((id, secret))` when the token has the form `[a-z0-9]{6}.[a-z0-9]{16}`.
fn parse(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == 6 && secret.len() == 16 && plain(id) && plain(secret)).then_some((id, secret))
}

fn data(secret: &Value, key: &str) -> Option<String> {
    String::from_utf8(STANDARD.decode(entry(secret, "data", key)?).ok()?).ok()
}

/// The groups of the secret and the default one; `None` when one of them may not be given.
fn groups(secret: &Value) -> Option<Vec<String>> {
    let mut groups = vec![DEFAULT_GROUP.to_owned()];
    let extra = data(secret, "auth-extra-groups").unwrap_or_default();
    for group in extra.split(',').filter(|group| !group.is_empty()) {
        let rest = group.strip_prefix("system:bootstrappers:")?;
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b':' || b == b'-';
        let ends_well = rest.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        if rest.len() > 256 || !rest.bytes().all(plain) || !ends_well {
            return None;
        }
        groups.push(group.to_owned());
    }
    groups.sort();
    groups.dedup();
    Some(groups)
}

/// Compares in a time that depends on the lengths only.
fn equal(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

pub(super) fn authenticate(token: &str, lookup: &dyn Lookup, now: jiff::Timestamp) -> Option<UserInfo> {
    let (id, wanted) = parse(token)?;
    let secret = lookup.get(&SECRETS, "kube-system", &format!("bootstrap-token-{id}"))?;
    if at(&secret, "metadata.deletionTimestamp").is_some() || text(&secret, "type") != TYPE {
        return None;
    }
    if !equal(data(&secret, "token-secret")?.as_bytes(), wanted.as_bytes())
        || data(&secret, "token-id")? != id
    {
        return None;
    }
    // An expiry that cannot be read counts as past.
    if let Some(expiry) = data(&secret, "expiration").filter(|expiry| !expiry.is_empty()) {
        let expiry: jiff::Timestamp = expiry.parse().ok()?;
        if expiry < now {
            return None;
        }
    }
    if data(&secret, "usage-bootstrap-authentication")? != "true" {
        return None;
    }
    Some(UserInfo { name: format!("system:bootstrap:{id}"), groups: groups(&secret)?, ..Default::default() })
}
