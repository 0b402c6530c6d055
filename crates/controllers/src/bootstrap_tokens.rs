//! Tokens by which nodes join: those that may, sign the cluster's public description; those that are over, go.
//!
//! Upstream: pkg/controller/bootstrap

use std::collections::BTreeMap;
use std::sync::Arc;

use api::Object;
use api::core::v1::{ConfigMap, Secret};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use controller_runtime::{Filter, Informer, WorkQueue};
use jiff::Timestamp;
use ring::hmac;
use serde_json::json;

use crate::Error;
use crate::context::Context;
use crate::expiry;

const TYPE: &str = "bootstrap.kubernetes.io/token";
const NAME_PREFIX: &str = "bootstrap-token-";
const TOKENS: &str = "kube-system";
const PUBLIC: &str = "kube-public";
const CLUSTER_INFO: &str = "cluster-info";
const KUBECONFIG: &str = "kubeconfig";
const SIGNATURE_PREFIX: &str = "jws-kubeconfig-";

fn text<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    let bytes = secret.data.as_ref()?.get(key)?;
    std::str::from_utf8(&bytes.0).ok().filter(|text| !text.is_empty())
}

/// When the token ends. One whose end cannot be read has ended.
///
/// Upstream: cluster-bootstrap/util/secrets/secrets.go GetExpiration
fn expiration(secret: &Secret) -> Option<Timestamp> {
    text(secret, "expiration").map(|end| end.parse().unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The id and the secret of a token that signs.
///
/// Upstream: pkg/controller/bootstrap/util.go validateSecretForSigning
fn signing_token(secret: &Secret, now: Timestamp) -> Option<(&str, &str)> {
    let id = text(secret, "token-id")?;
    let key = text(secret, "token-secret")?;
    let alive = expiration(secret).is_none_or(|end| end > now);
    let signs = text(secret, "usage-bootstrap-signing") == Some("true");
    (secret.name().strip_prefix(NAME_PREFIX) == Some(id) && alive && signs).then_some((id, key))
}

/// A JSON Web Signature without its content.
///
/// Upstream: cluster-bootstrap/token/jws/jws.go ComputeDetachedSignature
fn detached_signature(content: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256", "kid": id}).to_string());
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(content));
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, signed.as_bytes())))
}

/// The description signed by all tokens that are; `None` when it is so, or describes nothing.
fn decide(info: &ConfigMap, tokens: &[Arc<Secret>], now: Timestamp) -> Option<ConfigMap> {
    let data = info.data.as_ref()?;
    let content = data.get(KUBECONFIG)?;
    let mut signed: BTreeMap<_, _> =
        data.iter().filter(|(key, _)| !key.starts_with(SIGNATURE_PREFIX)).collect();
    let signatures: Vec<_> = tokens
        .iter()
        .filter_map(|token| signing_token(token, now))
        .map(|(id, key)| (format!("{SIGNATURE_PREFIX}{id}"), detached_signature(content, id, key)))
        .collect();
    signed.extend(signatures.iter().map(|(key, signature)| (key, signature)));
    if signed.iter().map(|(key, value)| (*key, *value)).eq(data.iter()) {
        return None;
    }
    let signed = signed.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    Some(ConfigMap { data: Some(signed), ..info.clone() })
}

fn tokens(context: &Context) -> Informer<Secret> {
    let fields = Some(format!("type={TYPE}"));
    context.informers.filtered(Filter { namespace: Some(TOKENS.to_owned()), fields, ..Default::default() })
}

struct Signer {
    context: Context,
    tokens: Informer<Secret>,
    infos: Informer<ConfigMap>,
}

/// Signs the description until the shutdown.
pub(crate) async fn run_signer(context: Context) {
    let infos = context.informers.filtered(Filter {
        namespace: Some(PUBLIC.to_owned()),
        fields: Some(format!("metadata.name={CLUSTER_INFO}")),
        ..Default::default()
    });
    let signer = Arc::new(Signer { tokens: tokens(&context), infos, context });
    let queue = WorkQueue::new();
    let changed = queue.clone();
    signer.tokens.subscribe(move |_| changed.add(()));
    let changed = queue.clone();
    signer.infos.subscribe(move |_| changed.add(()));
    signer.context.work(&signer, &queue, 1, Signer::sign).await;
}

impl Signer {
    async fn sign(self: Arc<Self>, (): ()) -> Result<(), Error> {
        let Some(info) = self.infos.get_in(PUBLIC, CLUSTER_INFO) else { return Ok(()) };
        let Some(signed) = decide(&info, &self.tokens.list(), self.context.clock().now()) else {
            return Ok(());
        };
        match self.infos.update(&signed).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => outcome.map(drop).map_err(Error::from),
        }
    }
}

/// Removes tokens that are over until the shutdown.
pub(crate) async fn run_cleaner(context: Context) {
    let tokens = tokens(&context);
    expiry::run(context, tokens, expiration).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::tests::at;

    fn token(id: &str, more: &[(&str, &str)]) -> Arc<Secret> {
        let mut data: BTreeMap<_, _> =
            [("token-id", id), ("token-secret", "0123456789abcdef"), ("usage-bootstrap-signing", "true")]
                .into();
        data.extend(more.iter().copied());
        let data = data.into_iter().map(|(k, v)| (k.to_owned(), api::ByteString(v.into())));
        let metadata = json!({"namespace": TOKENS, "name": format!("{NAME_PREFIX}{id}")});
        let mut secret = Secret::from_value(json!({"metadata": metadata, "type": TYPE})).unwrap();
        secret.data = Some(data.collect());
        Arc::new(secret)
    }

    #[test]
    fn only_tokens_that_sign_sign() {
        let info = ConfigMap::from_value(json!({
            "metadata": {"name": CLUSTER_INFO},
            "data": {"kubeconfig": "content", "jws-kubeconfig-gone": "x"},
        }))
        .unwrap();
        let all = [
            token("abcdef", &[]),
            token("expire", &[("expiration", "2026-01-01T00:00:00Z")]),
            token("future", &[("expiration", "2026-01-01T00:00:10Z")]),
            token("nonono", &[("usage-bootstrap-signing", "false")]),
        ];
        let signed = decide(&info, &all, at(1)).unwrap();
        let keys: Vec<_> = signed.data.as_ref().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["jws-kubeconfig-abcdef", "jws-kubeconfig-future", "kubeconfig"]);
        assert_eq!(decide(&signed, &all, at(1)), None);
        assert!(decide(&signed, &all[..1], at(1)).is_some());
    }

    /// Upstream: cluster-bootstrap/token/jws/jws_test.go
    #[test]
    fn a_signature_is_as_upstream_makes_it() {
        let content = "Hello from the other side. I must have called a thousand times.";
        assert_eq!(
            detached_signature(content, "joshua", "my voice is my passcode"),
            "eyJhbGciOiJIUzI1NiIsImtpZCI6Impvc2h1YSJ9..VShe2taLd-YTrmWuRkcL_8QTNDHYxQIEBsAYYiIj1_8"
        );
    }
}
