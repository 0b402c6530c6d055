//! Calls of webhooks: one POST of a review, answered by a review. Admission and the conversion of custom objects
//! go this way.
//!
//! What always holds: an answer is read no further than [`MAX_ANSWER_BYTES`]; a call ends with its timeout,
//! connection and body included; errors read as Go's client words them, because people and tests match on them.
//!
//! Upstream: apiserver/pkg/util/webhook/client.go

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;

use crate::remote::outbound::{Address, PeerConfig, PeerTrust, Peers};

/// The largest answer that is read.
pub const MAX_ANSWER_BYTES: usize = 64 << 20;

/// How much of an answer that is no review is quoted.
const QUOTED_BYTES: usize = 2048;

/// Why a call came to nothing, in the words that follow `failed calling webhook "x": `.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The configuration names no server that could be called.
    #[error("could not get REST client: {0}")]
    Config(String),
    #[error("failed to call webhook: {0}")]
    Call(String),
}

/// Calls webhooks over connections that are kept.
#[derive(Clone)]
pub struct WebhookClient {
    peers: Arc<Peers>,
}

impl WebhookClient {
    pub fn new(peers: Arc<Peers>) -> Self {
        WebhookClient { peers }
    }

    /// Posts a review to where a `clientConfig` (`url` or `service`, with `caBundle`) leads, and reads the answer.
    pub async fn call(&self, config: &Value, review: &Value, timeout: Duration) -> Result<Value, CallError> {
        let place = Place::of(config).map_err(CallError::Config)?;
        let peer = self.peers.get(&place.peer).map_err(CallError::Config)?;
        let url = format!("{}?timeout={}s", place.url, timeout.as_secs().max(1));
        let failed = |why: &str| CallError::Call(format!("Post {url:?}: {why}"));
        let body = Full::new(Bytes::from(review.to_string())).map_err(|never| match never {});
        let request = Request::post(&url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(body.boxed_unsync())
            .map_err(|error| CallError::Config(error.to_string()))?;
        let exchange = async {
            let answer = peer.send(request).await.map_err(|why| failed(&why))?;
            let code = answer.status().as_u16();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
            let body = body.map_err(|error| failed(&error.to_string()))?.to_bytes();
            read_answer(code, &body).map_err(CallError::Call)
        };
        tokio::time::timeout(timeout, exchange)
            .await
            .unwrap_or_else(|_| Err(failed("context deadline exceeded")))
    }
}

/// The review of an answer.
///
/// Upstream: client-go/rest/request.go transformResponse, apimachinery/pkg/api/errors/errors.go
/// NewGenericServerResponse
pub(crate) fn read_answer(code: u16, body: &[u8]) -> Result<Value, String> {
    let parsed: Result<Value, _> = serde_json::from_slice(body);
    if let Ok(status) = &parsed
        && status["kind"] == "Status"
        && status["status"] != "Success"
        && let Some(message) = status["message"].as_str()
    {
        return Err(message.to_owned());
    }
    if (200..=206).contains(&code) {
        return parsed.map_err(|error| {
            let quoted = String::from_utf8_lossy(&body[..body.len().min(QUOTED_BYTES)]);
            format!("couldn't get version/kind; json parse error: {error} ({quoted})")
        });
    }
    let text = String::from_utf8_lossy(&body[..body.len().min(QUOTED_BYTES)]);
    let text = if text.trim().is_empty() { "unknown" } else { text.trim() };
    Err(match code {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => text.to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        409 => "the server reported a conflict".to_owned(),
        415 => format!("the server was unable to respond with a content type that the client supports ({text})"),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        504 => "the server was unable to return a response in the time allotted, but may still be processing the \
                request"
            .to_owned(),
        500.. => format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        _ => format!("the server responded with the status code {code} but did not return more information"),
    })
}

/// Where a webhook is.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    peer: PeerConfig,
    /// Without the query.
    url: String,
}

impl Place {
    fn of(config: &Value) -> Result<Self, String> {
        let bundle = match config["caBundle"].as_str() {
            Some(text) => STANDARD.decode(text).map_err(|error| format!("caBundle: {error}"))?,
            None => Vec::new(),
        };
        let trust = PeerTrust::Bundle(bundle);
        let text = |field: &str| config["service"][field].as_str().unwrap_or_default().to_owned();
        if config["service"].is_object() {
            let port = config["service"]["port"].as_u64().unwrap_or(443);
            let port = u16::try_from(port).map_err(|_| format!("port {port} is out of range"))?;
            let address = Address::Service { namespace: text("namespace"), name: text("name"), port };
            let url = format!("https://{}/{}", address.authority(), text("path").trim_start_matches('/'));
            return Ok(Place { peer: PeerConfig { address, trust, front_proxy: false }, url });
        }
        let Some(url) = config["url"].as_str().filter(|url| !url.is_empty()) else {
            return Err("webhook configuration must have either service or URL".to_owned());
        };
        let uri: Uri = url.parse().map_err(|error| format!("Unparsable URL: {error}"))?;
        let host = uri.host().ok_or_else(|| format!("Unparsable URL: {url}"))?;
        let port = uri.port_u16().unwrap_or(443);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let address = Address::Host { host, port };
        let shown = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        let url = format!("https://{shown}{}", uri.path());
        Ok(Place { peer: PeerConfig { address, trust, front_proxy: false }, url })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_client_config_says_where_the_webhook_is() {
        for (config, expected) in [
            (
                json!({"service": {"namespace": "n", "name": "s", "path": "/p", "port": 8443}}),
                "https://s.n.svc:8443/p",
            ),
            (json!({"service": {"namespace": "n", "name": "s"}}), "https://s.n.svc:443/"),
            (json!({"url": "https://127.0.0.1:9/x/y"}), "https://127.0.0.1:9/x/y"),
            (json!({"url": "https://host/x"}), "https://host/x"),
            (json!({}), "webhook configuration must have either service or URL"),
            (json!({"service": {"port": 70000}}), "port 70000 is out of range"),
        ] {
            let place = Place::of(&config).map(|place| place.url).unwrap_or_else(|error| error);
            assert_eq!(place, expected, "{config}");
        }
    }

    #[test]
    fn answers_that_are_no_reviews_are_told_in_upstreams_words() {
        for (code, body, expected) in [
            (200, r#"{"kind":"AdmissionReview"}"#, Ok(json!({"kind": "AdmissionReview"}))),
            (404, "404 page not found", Err("the server could not find the requested resource")),
            (
                500,
                "boom\n",
                Err(r#"an error on the server ("boom") has prevented the request from succeeding"#),
            ),
            (200, r#"{"kind":"Status","status":"Failure","message":"no"}"#, Err("no")),
        ] {
            assert_eq!(read_answer(code, body.as_bytes()), expected.map_err(str::to_owned), "{code} {body}");
        }
    }
}
