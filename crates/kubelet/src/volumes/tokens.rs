//! Tokens of service accounts that are bound to pods, kept while they are good for long enough.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use api::Object;
use api::core::v1::{Pod, ServiceAccount};
use client::{Client, Resource};
use controller_runtime::Clock;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::VolumeError;

/// How long a token is asked for by those who do not say.
const USUAL_SECONDS: i64 = 3600;

/// By pod UID, audience and requested lifetime, so that all volumes of a pod share one.
type Key = (String, String, i64);

#[derive(Clone, Debug)]
pub struct Token {
    pub text: String,
    pub expires: Timestamp,
    renew_at: Timestamp,
}

pub struct Tokens {
    client: Client,
    clock: Clock,
    held: Mutex<HashMap<Key, Token>>,
}

impl Tokens {
    pub fn new(client: Client, clock: Clock) -> Self {
        Tokens { client, clock, held: Mutex::default() }
    }

    /// A token of the pod's account; an empty audience means the API server's own.
    // Upstream: pkg/kubelet/token/token_manager.go GetServiceAccountToken
    pub async fn get(&self, pod: &Pod, audience: &str, seconds: Option<i64>) -> Result<Token, VolumeError> {
        let seconds = seconds.unwrap_or(USUAL_SECONDS);
        let key = (pod.uid().to_owned(), audience.to_owned(), seconds);
        let now = self.clock.now();
        if let Some(token) = self.lock().get(&key).filter(|t| now < t.renew_at) {
            return Ok(token.clone());
        }
        let account = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref()).unwrap_or("default");
        let audiences = if audience.is_empty() { json!([]) } else { json!([audience]) };
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": audiences,
                "expirationSeconds": seconds,
                "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod.name(), "uid": pod.uid()},
            },
        });
        let accounts = Resource::of::<ServiceAccount>();
        let answer =
            self.client.create_value(&accounts, pod.namespace(), Some((account, "token")), &request).await;
        let what = || format!("failed to fetch token for service account {account:?}");
        let answer = answer.map_err(|source| VolumeError::Api { what: what(), source: Box::new(source) })?;
        let text = answer["status"]["token"].as_str().unwrap_or_default().to_owned();
        let expires =
            answer["status"]["expirationTimestamp"].as_str().and_then(|t| t.parse::<Timestamp>().ok());
        let expires = expires.unwrap_or(now + SignedDuration::from_secs(seconds));
        let life = expires.duration_since(now).as_secs().max(1);
        // Upstream: pkg/kubelet/token/token_manager.go: after 80 % of its life, or a day.
        let renew_at = now + SignedDuration::from_secs((life * 8 / 10).min(24 * 3600));
        let token = Token { text, expires, renew_at };
        self.lock().insert(key, token.clone());
        Ok(token)
    }

    /// When the first of a pod's tokens must be renewed.
    pub fn next_refresh(&self, pod_uid: &str) -> Option<Timestamp> {
        self.lock().iter().filter(|((uid, ..), _)| uid == pod_uid).map(|(_, t)| t.renew_at).min()
    }

    pub fn forget(&self, pod_uid: &str) {
        self.lock().retain(|(uid, ..), _| uid != pod_uid);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Token>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
