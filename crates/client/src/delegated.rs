//! Who asks and whether they may, decided by the API server: for the small servers of kubelets, controllers and
//! schedulers. Answers are kept for a moment, so that a scraper costs one review in a while.
//!
//! Upstream: staging/src/k8s.io/apiserver/pkg/server/options/authorization.go, authentication.go

use std::time::Duration;

use apimachinery::GroupVersionResource;
use serde_json::{Value, json};

use crate::kept::Kept;
use crate::{Client, Error, Resource};

/// Upstream: DelegatingAuthorizationOptions.AllowCacheTTL, DenyCacheTTL; DelegatingAuthenticationOptions.CacheTTL
const TIME: Duration = Duration::from_secs(10);
/// More answers than this are not kept.
const MOST: usize = 1024;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    /// As reviews carry it.
    pub extra: Value,
}

impl User {
    /// Whom a certificate names, which the caller has verified.
    pub fn of_certificate(certificate: &[u8]) -> Option<User> {
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().last()?.as_str().ok()?.to_owned();
        let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned);
        let groups = groups.chain(["system:authenticated".to_owned()]).collect();
        Some(User { name, groups, ..User::default() })
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    Path { verb: &'a str, path: &'a str },
    Resource { verb: &'a str, resource: &'a str, subresource: &'a str, name: &'a str },
}

/// Asks the API server, and remembers for a moment.
pub struct Delegated {
    client: Client,
    users: Kept<Option<User>>,
    decisions: Kept<bool>,
}

fn reviews(group: &'static str, resource: &'static str) -> Resource {
    let gvr = GroupVersionResource { group: group.into(), version: "v1".into(), resource: resource.into() };
    Resource { gvr, namespaced: false }
}

impl Delegated {
    /// The client may create TokenReviews and SubjectAccessReviews.
    pub fn new(client: Client) -> Self {
        Delegated { client, users: Kept::new(MOST), decisions: Kept::new(MOST) }
    }

    /// Whom a bearer token names, if the API server believes it.
    pub async fn authenticate(&self, token: &str) -> Result<Option<User>, Error> {
        if let Some(known) = self.users.get(token) {
            return Ok(known);
        }
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token},
        });
        let resource = reviews("authentication.k8s.io", "tokenreviews");
        let status = self.client.create_value(&resource, "", None, &review).await?["status"].take();
        let user = (status["authenticated"] == true).then(|| user_of(&status["user"]));
        self.users.put(token.to_owned(), user.clone(), TIME);
        Ok(user)
    }

    /// Whether the user may.
    pub async fn authorize(&self, user: &User, asked: &Asked<'_>) -> Result<bool, Error> {
        let mut spec =
            json!({"user": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
        match asked {
            Asked::Path { verb, path } => {
                spec["nonResourceAttributes"] = json!({"verb": verb, "path": path});
            }
            Asked::Resource { verb, resource, subresource, name } => {
                spec["resourceAttributes"] = json!({
                    "verb": verb, "version": "v1", "resource": resource, "subresource": subresource, "name": name,
                });
            }
        }
        let key = spec.to_string();
        if let Some(known) = self.decisions.get(&key) {
            return Ok(known);
        }
        let review =
            json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec});
        let resource = reviews("authorization.k8s.io", "subjectaccessreviews");
        let answer = self.client.create_value(&resource, "", None, &review).await?;
        let allowed = answer["status"]["allowed"] == true && answer["status"]["denied"] != true;
        self.decisions.put(key, allowed, TIME);
        Ok(allowed)
    }
}

fn user_of(user: &Value) -> User {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    User {
        name: text(&user["username"]),
        uid: text(&user["uid"]),
        groups: user["groups"].as_array().into_iter().flatten().map(text).collect(),
        extra: user["extra"].clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;
    use bytes::Bytes;
    use http::{Request, Response};

    use super::*;
    use crate::{Body, Transport};

    /// Believes the token `good`, allows `alice` everything, and counts what it is asked.
    #[derive(Default)]
    struct Server(AtomicU32);

    #[async_trait]
    impl Transport for Server {
        async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
            self.0.fetch_add(1, Ordering::Relaxed);
            let review: Value = serde_json::from_slice(request.body()).unwrap();
            let status = match review["kind"].as_str().unwrap() {
                "TokenReview" if review["spec"]["token"] == "good" => {
                    json!({"authenticated": true, "user": {"username": "alice", "groups": ["a"]}})
                }
                "TokenReview" => json!({}),
                _ => json!({"allowed": review["spec"]["user"] == "alice"}),
            };
            Ok(Response::new(Body::Full(json!({"status": status}).to_string().into())))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_server_decides_and_is_asked_once_in_a_while() {
        let server = Arc::new(Server::default());
        let delegated = Delegated::new(Client::new(server.clone(), "test"));
        assert_eq!(delegated.authenticate("bad").await.unwrap(), None);
        let alice = delegated.authenticate("good").await.unwrap().unwrap();
        assert_eq!((alice.name.as_str(), alice.groups.as_slice()), ("alice", &["a".to_owned()][..]));
        let metrics = Asked::Path { verb: "get", path: "/metrics" };
        assert!(delegated.authorize(&alice, &metrics).await.unwrap());
        let bob = User { name: "bob".into(), ..User::default() };
        assert!(!delegated.authorize(&bob, &metrics).await.unwrap());
        assert_eq!(server.0.load(Ordering::Relaxed), 4);
        assert!(delegated.authorize(&alice, &metrics).await.unwrap());
        assert_eq!(server.0.load(Ordering::Relaxed), 4, "kept for a moment");
        tokio::time::advance(TIME).await;
        assert!(delegated.authorize(&alice, &metrics).await.unwrap());
        assert_eq!(server.0.load(Ordering::Relaxed), 5);
    }
}
