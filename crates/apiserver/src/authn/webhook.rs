//! Tokens that another server knows: it is asked by a TokenReview, and what it says is kept for a while.
//!
//! What always holds: tokens are kept as digests with a secret of this process, so that memory tells none of them;
//! what went wrong is not kept.
//!
//! Upstream: apiserver/plugin/pkg/authenticator/token/webhook/webhook.go,
//! apiserver/pkg/authentication/token/cache/cached_token_authenticator.go

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use client::https::Config;
use client::kept::Kept;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Found, Random};
use crate::admission::tree::strings;
use crate::remote::review_server::ReviewServer;
use crate::seams::UserInfo;

const MOST_TOKENS: usize = 32 << 10;
const TIMEOUT: Duration = Duration::from_secs(30);
/// Upstream: apiserver/pkg/server/options/authentication.go DefaultAuthWebhookRetryBackoff
const PATIENCE: Duration = Duration::from_millis(500);

/// A server that knows tokens.
pub struct TokenWebhook {
    server: ReviewServer,
    api_version: String,
    /// How long its answers are kept; zero for not at all.
    time: Duration,
    secret: [u8; 32],
    kept: Kept<Option<UserInfo>>,
}

impl TokenWebhook {
    /// `version` is that of the TokenReviews that it knows: `v1` or `v1beta1`.
    pub fn new(config: &Config, version: &str, time: Duration, random: Random) -> Result<Self, String> {
        if !matches!(version, "v1" | "v1beta1") {
            return Err(format!(
                "unsupported authentication webhook version {version:?}, supported versions are \"v1\", \"v1beta1\""
            ));
        }
        let mut secret = [0; 32];
        random(&mut secret);
        let server = ReviewServer::new(config, TIMEOUT, PATIENCE, random);
        Ok(TokenWebhook {
            server: server.map_err(|error| error.to_string())?,
            api_version: format!("authentication.k8s.io/{version}"),
            time,
            secret,
            kept: Kept::new(MOST_TOKENS),
        })
    }

    /// Who a token names, for one of these audiences; `own` are the server's, which an answer without audiences is
    /// for.
    pub(super) async fn authenticate(&self, token: &str, audiences: &[String], own: &[String]) -> Found {
        let wanted = if audiences.is_empty() { own } else { audiences };
        let key = self.key(token, wanted);
        if let Some(known) = self.kept.get(&key) {
            return Ok(known);
        }
        let mut spec = json!({"token": token});
        if !wanted.is_empty() {
            spec["audiences"] = json!(wanted);
        }
        let review = json!({
            "kind": "TokenReview", "apiVersion": self.api_version, "metadata": {}, "spec": spec,
            "status": {"user": {}},
        });
        let answer = self.server.ask(&review).await.map_err(String::from);
        let answer =
            answer.inspect_err(|why| tracing::error!(why, "failed to make webhook authenticator request"))?;
        let found = named(&answer, wanted, own)?;
        self.kept.put(key, found.clone(), self.time);
        Ok(found)
    }

    fn key(&self, token: &str, audiences: &[String]) -> String {
        let mut digest = Sha256::new();
        digest.update(self.secret);
        for text in [token].into_iter().chain(audiences.iter().map(String::as_str)) {
            digest.update(text.len().to_le_bytes());
            digest.update(text);
        }
        STANDARD_NO_PAD.encode(digest.finalize())
    }
}

/// Whom an answer names; nobody when it is for others.
fn named(review: &Value, wanted: &[String], own: &[String]) -> Found {
    if review.get("kind").is_some_and(|kind| kind != "TokenReview") {
        return Err(format!("the answer is a {}, not a TokenReview", review["kind"]));
    }
    let status = &review["status"];
    let said = strings(status, "audiences");
    let audiences = if said.is_empty() { own } else { &said };
    if !wanted.is_empty() && !wanted.iter().any(|one| audiences.contains(one)) {
        return Ok(None);
    }
    if status["authenticated"] != true {
        return match status["error"].as_str() {
            None | Some("") => Ok(None),
            Some(error) => Err(error.to_owned()),
        };
    }
    let user = &status["user"];
    let text = |field: &str| user[field].as_str().unwrap_or_default().to_owned();
    let extra: BTreeMap<String, Vec<String>> = user["extra"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, values)| (key.clone(), values.as_array().into_iter().flatten()))
        .map(|(key, values)| (key, values.filter_map(Value::as_str).map(str::to_owned).collect()))
        .collect();
    Ok(Some(UserInfo { name: text("username"), uid: text("uid"), groups: strings(user, "groups"), extra }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_somebody_or_nobody() {
        let user = json!({"username": "jane", "uid": "7", "groups": ["devs"], "extra": {"a.b/c": ["d"]}});
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let jane = UserInfo {
            name: "jane".into(),
            uid: "7".into(),
            groups: list(&["devs"]),
            extra: [("a.b/c".to_owned(), list(&["d"]))].into(),
        };
        for (status, wanted, own, expected) in [
            (
                json!({"authenticated": true, "user": user}),
                &["k8s"][..],
                &["k8s"][..],
                Ok(Some(jane.clone())),
            ),
            (json!({"authenticated": true, "user": user}), &["other"], &["k8s"], Ok(None)),
            (
                json!({"authenticated": true, "user": user, "audiences": ["other"]}),
                &["other"],
                &["k8s"],
                Ok(Some(jane.clone())),
            ),
            (
                json!({"authenticated": true, "user": user, "audiences": ["other"]}),
                &["k8s"],
                &["k8s"],
                Ok(None),
            ),
            (json!({"authenticated": false}), &["k8s"], &["k8s"], Ok(None)),
            (json!({"error": "down"}), &["k8s"], &["k8s"], Err("down".to_owned())),
        ] {
            let review = json!({"kind": "TokenReview", "status": status});
            assert_eq!(named(&review, &list(wanted), &list(own)), expected, "{review}");
        }
    }
}
