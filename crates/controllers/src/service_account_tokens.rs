//! Secrets of the type `kubernetes.io/service-account-token`: filled with a token, and gone with their account.
//!
//! Upstream: pkg/controller/serviceaccount/tokens_controller.go

use std::sync::Arc;

use api::core::v1::{Secret, ServiceAccount};
use api::{ByteString, Object};
use controller_runtime::{Event, Filter, Informer, WorkQueue};
use serde_json::{Value, json};

use crate::context::Context;
use crate::objects::{annotation, annotations_mut};
use crate::{Error, TokenSigner};

const WORKERS: usize = 5;
pub(crate) const TYPE: &str = "kubernetes.io/service-account-token";
pub(crate) const ACCOUNT_NAME: &str = "kubernetes.io/service-account.name";
pub(crate) const ACCOUNT_UID: &str = "kubernetes.io/service-account.uid";
/// Upstream: pkg/serviceaccount/legacy.go LegacyIssuer
const ISSUER: &str = "kubernetes/serviceaccount";

#[derive(Debug, PartialEq)]
enum Plan {
    Nothing,
    /// There is no such account.
    Delete,
    /// It lacks what a token Secret has.
    Fill,
}

/// Upstream: pkg/controller/serviceaccount/tokens_controller.go secretUpdateNeeded
fn decide(secret: &Secret, account: Option<&ServiceAccount>, ca: &str) -> Plan {
    let has = |key: &str| secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
    let filled = |key: &str| has(key).is_some_and(|bytes| !bytes.is_empty());
    match account {
        None => Plan::Delete,
        Some(_) if has("ca.crt") == Some(ca.as_bytes()) && filled("namespace") && filled("token") => {
            Plan::Nothing
        }
        Some(_) => Plan::Fill,
    }
}

/// Upstream: pkg/serviceaccount/legacy.go LegacyClaims
fn claims(account: &ServiceAccount, secret: &Secret) -> Value {
    json!({
        "iss": ISSUER,
        "sub": format!("system:serviceaccount:{}:{}", account.namespace(), account.name()),
        "kubernetes.io/serviceaccount/namespace": account.namespace(),
        "kubernetes.io/serviceaccount/secret.name": secret.name(),
        "kubernetes.io/serviceaccount/service-account.name": account.name(),
        "kubernetes.io/serviceaccount/service-account.uid": account.uid(),
    })
}

/// The Secret with all that it lacks.
fn filled(secret: &Secret, account: &ServiceAccount, ca: &str, sign: &TokenSigner) -> Result<Secret, String> {
    let mut updated = secret.clone();
    let data = updated.data.get_or_insert_default();
    data.insert("ca.crt".to_owned(), ByteString(ca.as_bytes().to_vec()));
    let empty = |bytes: &ByteString| bytes.0.is_empty();
    if data.get("namespace").is_none_or(empty) {
        data.insert("namespace".to_owned(), ByteString(secret.namespace().as_bytes().to_vec()));
    }
    if data.get("token").is_none_or(empty) {
        let token = sign(&claims(account, secret))?;
        data.insert("token".to_owned(), ByteString(token.into_bytes()));
    }
    let annotations = annotations_mut(&mut updated);
    annotations.insert(ACCOUNT_NAME.to_owned(), account.name().to_owned());
    annotations.insert(ACCOUNT_UID.to_owned(), account.uid().to_owned());
    Ok(updated)
}

/// The informer of token Secrets alone: there may be many others, and large ones.
pub(crate) fn informer(context: &Context) -> Informer<Secret> {
    context.informers.filtered(Filter::fields(format!("type={TYPE}")))
}

pub(crate) fn account_key(secret: &Secret) -> String {
    format!("{}/{}", secret.namespace(), annotation(secret, ACCOUNT_NAME).unwrap_or_default())
}

/// The account that a token Secret is for; a uid, if it says one, is to be the account's.
pub(crate) fn is_for(secret: &Secret, account: &ServiceAccount) -> bool {
    annotation(secret, ACCOUNT_NAME) == Some(account.name())
        && annotation(secret, ACCOUNT_UID).is_none_or(|uid| uid.is_empty() || uid == account.uid())
}

struct Controller {
    context: Context,
    sign: TokenSigner,
    secrets: Informer<Secret>,
    accounts: Informer<ServiceAccount>,
}

const BY_ACCOUNT: &str = "account";

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let Some(sign) = context.config.sign_token.clone() else { return };
    let controller = Arc::new(Controller {
        sign,
        secrets: informer(&context),
        accounts: context.informers.informer(),
        context,
    });
    controller.secrets.add_index(BY_ACCOUNT, |secret| vec![account_key(secret)]);
    let queue = WorkQueue::new();
    let (secrets, this) = (queue.clone(), controller.clone());
    controller.secrets.subscribe(move |event| {
        let secret = event.object();
        match event {
            Event::Deleted(_) => {
                let account = this.accounts.get(&account_key(secret));
                let named = account.is_some_and(|account| names(&account, secret.name()));
                if named {
                    secrets.add(Key::Unlist(account_key(secret), secret.name().to_owned()));
                }
            }
            _ => secrets.add(Key::Secret(Object::key(&**secret))),
        }
    });
    let (accounts, this) = (queue.clone(), controller.clone());
    controller.accounts.subscribe(move |event| {
        if event.old().is_none() {
            let all = this.secrets.by_index(BY_ACCOUNT, &Object::key(&**event.object()));
            all.iter().for_each(|secret| accounts.add(Key::Secret(Object::key(&**secret))));
        }
    });
    let reconcile = |controller: Arc<Controller>, key| async move {
        match key {
            Key::Secret(key) => controller.reconcile(&key).await,
            Key::Unlist(account, secret) => controller.unlist(&account, &secret).await,
        }
    };
    controller.context.work(&controller, &queue, WORKERS, reconcile).await;
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Secret(String),
    /// The account named the Secret, which is gone.
    Unlist(String, String),
}

fn names(account: &ServiceAccount, secret: &str) -> bool {
    account.secrets.iter().flatten().any(|reference| reference.name.as_deref() == Some(secret))
}

impl Controller {
    async fn reconcile(&self, key: &str) -> Result<(), Error> {
        let Some(secret) = self.secrets.get(key) else { return Ok(()) };
        let account = self.account_of(&secret).await?;
        let ca = &self.context.config.root_ca_pem;
        match (decide(&secret, account.as_deref(), ca), account) {
            (Plan::Delete, _) => Ok(self.delete(&secret).await?),
            (Plan::Fill, Some(account)) => {
                let updated = filled(&secret, &account, ca, &self.sign).map_err(Error::Unfinished)?;
                match self.secrets.update(&updated).await {
                    // Who changed it makes it come again.
                    Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
                    outcome => Ok(outcome.map(drop)?),
                }
            }
            _ => Ok(()),
        }
    }

    /// The server is asked before a Secret is deleted: our cache may be behind.
    async fn account_of(&self, secret: &Secret) -> Result<Option<Arc<ServiceAccount>>, Error> {
        let known = self.accounts.get(&account_key(secret)).filter(|account| is_for(secret, account));
        if known.is_some() {
            return Ok(known);
        }
        let name = annotation(secret, ACCOUNT_NAME).unwrap_or_default();
        let client = self.context.informers.client();
        match client.get::<ServiceAccount>(secret.namespace(), name).await {
            Ok(account) => Ok(Some(Arc::new(account)).filter(|account| is_for(secret, account))),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn delete(&self, secret: &Secret) -> Result<(), client::Error> {
        let options = client::DeleteOptions::uid(secret.uid());
        let client = self.context.informers.client();
        match client.delete::<Secret>(secret.namespace(), secret.name(), &options).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => Err(error),
            _ => Ok(()),
        }
    }

    async fn unlist(&self, account: &str, secret: &str) -> Result<(), Error> {
        let Some(account) = self.accounts.get(account).filter(|account| names(account, secret)) else {
            return Ok(());
        };
        let mut updated = (*account).clone();
        let listed = updated.secrets.iter_mut();
        listed.for_each(|all| all.retain(|reference| reference.name.as_deref() != Some(secret)));
        match self.accounts.update(&updated).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(uid: Option<&str>) -> Secret {
        Secret::from_value(json!({
            "metadata": {"namespace": "ns", "name": "token", "annotations": {ACCOUNT_NAME: "bot", ACCOUNT_UID: uid.unwrap_or_default()}},
            "type": TYPE,
        }))
        .unwrap()
    }

    fn account() -> ServiceAccount {
        ServiceAccount::from_value(json!({"metadata": {"namespace": "ns", "name": "bot", "uid": "u1"}}))
            .unwrap()
    }

    #[test]
    fn a_secret_is_filled_once_and_goes_with_its_account() {
        let (secret, account) = (secret(None), account());
        assert_eq!(decide(&secret, None, "CA"), Plan::Delete);
        assert_eq!(decide(&secret, Some(&account), "CA"), Plan::Fill);
        let sign: TokenSigner = Arc::new(|claims| Ok(claims["sub"].as_str().unwrap().to_owned()));
        let full = filled(&secret, &account, "CA", &sign).unwrap();
        assert_eq!(full.data.as_ref().unwrap()["token"].0, b"system:serviceaccount:ns:bot");
        assert_eq!(annotation(&full, ACCOUNT_UID), Some("u1"));
        assert_eq!(decide(&full, Some(&account), "CA"), Plan::Nothing);
        // Another authority: the token stays.
        assert_eq!(decide(&full, Some(&account), "NEW"), Plan::Fill);
        let renewed: TokenSigner = Arc::new(|_| Ok("another".to_owned()));
        let renewed = filled(&full, &account, "NEW", &renewed).unwrap();
        assert_eq!(renewed.data.as_ref().unwrap()["token"], full.data.as_ref().unwrap()["token"]);
    }

    #[test]
    fn an_account_of_the_same_name_is_not_the_same() {
        assert!(is_for(&secret(None), &account()));
        assert!(is_for(&secret(Some("u1")), &account()));
        assert!(!is_for(&secret(Some("u0")), &account()));
    }
}
