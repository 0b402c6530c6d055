//! The API as a ServiceAccount that this process acts for: its token is asked for when it is first needed, and
//! again before it ends.
//!
//! Upstream: staging/src/k8s.io/controller-manager/pkg/clientbuilder/client_builder_dynamic.go

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use serde_json::json;
use tokio::time::Instant;

use crate::{Body, Client, Error, Resource, Transport};

const TOKEN_SECONDS: u64 = 60 * 60;
/// A token is asked for anew when less than a fifth of its life is left.
const RENEWAL_PARTS: (u32, u32) = (4, 5);

/// Makes clients of ServiceAccounts of one namespace. `issuer` may make accounts and ask for their tokens;
/// `anonymous` is a way to the same server that carries no credentials.
#[derive(Clone)]
pub struct ServiceAccounts {
    pub issuer: Client,
    pub anonymous: Arc<dyn Transport>,
    pub namespace: String,
}

impl ServiceAccounts {
    pub fn client(&self, name: &str) -> Client {
        let account = Account { accounts: self.clone(), name: name.to_owned(), token: Mutex::new(None) };
        Client::new(Arc::new(account), name)
    }
}

/// One account. It is made when it is not there.
struct Account {
    accounts: ServiceAccounts,
    name: String,
    token: Mutex<Option<(HeaderValue, Instant)>>,
}

impl Account {
    fn cached(&self) -> Option<HeaderValue> {
        let token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        token.as_ref().filter(|(_, until)| Instant::now() < *until).map(|(token, _)| token.clone())
    }

    /// Several that need a token at once may each ask for one: all of them are good.
    async fn token(&self) -> Result<HeaderValue, Error> {
        if let Some(token) = self.cached() {
            return Ok(token);
        }
        let asked = Instant::now();
        let review = match self.request().await {
            Err(error) if error.is_not_found() => {
                self.create().await?;
                self.request().await?
            }
            review => review?,
        };
        let text = review["status"]["token"].as_str().unwrap_or_default();
        let mut token = HeaderValue::try_from(format!("Bearer {text}"))
            .map_err(|_| Error::Config(format!("the token of {} is no header", self.name)))?;
        token.set_sensitive(true);
        let seconds = review["spec"]["expirationSeconds"].as_u64().unwrap_or(TOKEN_SECONDS);
        let life = Duration::from_secs(seconds) * RENEWAL_PARTS.0 / RENEWAL_PARTS.1;
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some((token.clone(), asked + life));
        Ok(token)
    }

    async fn request(&self) -> Result<serde_json::Value, Error> {
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [], "expirationSeconds": TOKEN_SECONDS},
        });
        let resource = Resource::of::<api::core::v1::ServiceAccount>();
        let of = Some((self.name.as_str(), "token"));
        self.accounts.issuer.create_value(&resource, &self.accounts.namespace, of, &request).await
    }

    async fn create(&self) -> Result<(), Error> {
        let mut account = api::core::v1::ServiceAccount::default();
        account.metadata.name = Some(self.name.clone());
        account.metadata.namespace = Some(self.accounts.namespace.clone());
        match self.accounts.issuer.create(&account).await {
            Err(error) if !error.is_already_exists() => Err(error),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Transport for Account {
    async fn send(&self, mut request: Request<Bytes>) -> Result<Response<Body>, Error> {
        request.headers_mut().insert(header::AUTHORIZATION, self.token().await?);
        let response = self.accounts.anonymous.send(request).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Ok(response)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// Knows no account until it is created; then gives out tokens by number, and answers with the one it is shown.
    #[derive(Default)]
    struct Server {
        created: AtomicU32,
        tokens: AtomicU32,
        refuses: AtomicU32,
    }

    fn answer(code: u16, body: serde_json::Value) -> Result<Response<Body>, Error> {
        let response = Response::builder().status(code).body(Body::Full(body.to_string().into()));
        Ok(response.expect("a code and a body make a response"))
    }

    #[async_trait]
    impl Transport for Server {
        async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
            let path = request.uri().path();
            if path.ends_with("/token") {
                if self.created.load(Ordering::Relaxed) == 0 {
                    return answer(404, json!({"code": 404, "reason": "NotFound", "status": "Failure"}));
                }
                let number = self.tokens.fetch_add(1, Ordering::Relaxed);
                let spec = json!({"expirationSeconds": 1000});
                return answer(201, json!({"spec": spec, "status": {"token": format!("t{number}")}}));
            }
            if path.ends_with("/serviceaccounts") {
                self.created.fetch_add(1, Ordering::Relaxed);
                return answer(201, json!({"metadata": {}}));
            }
            if self.refuses.swap(0, Ordering::Relaxed) == 1 {
                return answer(401, json!({"code": 401, "status": "Failure"}));
            }
            answer(200, json!(request.headers()[header::AUTHORIZATION].to_str().unwrap()))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_account_is_made_and_its_token_renewed() {
        let server = Arc::new(Server::default());
        let accounts = ServiceAccounts {
            issuer: Client::new(server.clone(), "root"),
            anonymous: server.clone(),
            namespace: "kube-system".into(),
        };
        let client = accounts.client("job-controller");
        let shown = async || {
            let body = client.raw(http::Method::GET, "/api", None).await?;
            Ok::<_, Error>(String::from_utf8(body.to_vec()).unwrap())
        };
        assert_eq!(shown().await.unwrap(), "\"Bearer t0\"");
        assert_eq!(server.created.load(Ordering::Relaxed), 1);
        tokio::time::advance(Duration::from_secs(799)).await;
        assert_eq!(shown().await.unwrap(), "\"Bearer t0\"");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(shown().await.unwrap(), "\"Bearer t1\"", "less than a fifth of its life is left");
        server.refuses.store(1, Ordering::Relaxed);
        assert_eq!(shown().await.unwrap_err().status().unwrap().code, 401);
        assert_eq!(shown().await.unwrap(), "\"Bearer t2\"", "a refused token is not shown again");
    }
}
