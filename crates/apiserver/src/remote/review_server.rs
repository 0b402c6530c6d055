//! Servers that an operator names by a kubeconfig and that answer reviews: who a token names, who may do what, whether
//! an image may run, or just that events of the audit log were taken.
//!
//! What always holds: a review is posted to exactly the URL of the kubeconfig; what fails for a moment is tried
//! again a few times, each time after a longer while; errors read as Go's client words them.
//!
//! Upstream: apiserver/pkg/util/webhook/webhook.go

use std::time::Duration;

use bytes::Bytes;
use client::Transport;
use client::https::{Config, HttpsTransport};
use http::{Request, StatusCode, header};
use serde_json::Value;

use super::outbound::worded;
use crate::admission::webhook::client::read_answer;
use crate::authn::Random;

/// Upstream: DefaultRetryBackoffWithInitialDelay
const ATTEMPTS: u32 = 5;
const FACTOR: f64 = 1.5;
const JITTER: f64 = 0.2;

/// What is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// What is likely to pass.
    Transient,
    /// Every failure: what is not delivered is lost.
    Always,
}

/// One such server.
pub struct ReviewServer {
    transport: HttpsTransport,
    url: String,
    timeout: Duration,
    /// How long it takes until the second attempt.
    patience: Duration,
    random: Random,
}

struct Failure {
    message: String,
    transient: bool,
}

impl ReviewServer {
    pub fn new(
        config: &Config,
        timeout: Duration,
        patience: Duration,
        random: Random,
    ) -> Result<Self, client::Error> {
        let transport = HttpsTransport::new(config)?;
        Ok(ReviewServer { transport, url: config.server.clone(), timeout, patience, random })
    }

    /// The answer to a review.
    pub async fn ask(&self, review: &Value) -> Result<Value, String> {
        let answer = self.post(review, Retry::Transient).await?;
        read_answer(StatusCode::OK.as_u16(), &answer)
    }

    /// What is answered when all is well, whatever that is.
    pub async fn post(&self, review: &Value, retry: Retry) -> Result<Bytes, String> {
        let body = Bytes::from(review.to_string());
        let mut patience = self.patience;
        for attempt in 1..=ATTEMPTS {
            match self.once(&body).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => {
                    let again = attempt < ATTEMPTS && (retry == Retry::Always || failure.transient);
                    if !again {
                        return Err(failure.message);
                    }
                }
            }
            tokio::time::sleep(self.jittered(patience)).await;
            patience = patience.mul_f64(FACTOR);
        }
        Err("no attempt was made".to_owned())
    }

    /// Servers that all lost the same one do not ask it all at once.
    fn jittered(&self, patience: Duration) -> Duration {
        let mut bytes = [0; 4];
        (self.random)(&mut bytes);
        let share = f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX);
        patience.mul_f64(1.0 + JITTER * share)
    }

    async fn once(&self, body: &Bytes) -> Result<Bytes, Failure> {
        let query = format!("timeout={}s", self.timeout.as_secs_f64());
        let failed = |why: &str, transient| Failure {
            message: format!("Post \"{}?{query}\": {why}", self.url),
            transient,
        };
        let request = Request::post(format!("/?{query}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver")
            .body(body.clone());
        let request = request.map_err(|error| failed(&error.to_string(), false))?;
        let answer = tokio::time::timeout(self.timeout, self.transport.send(request)).await;
        let answer = answer.map_err(|_| failed("context deadline exceeded", false))?;
        let answer = answer.map_err(|error| {
            let (why, transient) = worded(&error, &self.url);
            failed(&why, transient)
        })?;
        let (code, well) = (answer.status().as_u16(), answer.status().is_success());
        let later = answer.headers().contains_key(header::RETRY_AFTER) && (code == 429 || code >= 500);
        let client::Body::Full(text) = answer.into_body() else {
            return Err(failed("the answer does not end", false));
        };
        if well {
            return Ok(text);
        }
        let transient = later || matches!(code, 429 | 500 | 504);
        let message = match read_answer(code, &text) {
            Err(message) => message,
            Ok(_) => format!("the server answered with the status code {code}"),
        };
        Err(Failure { message, transient })
    }
}
