//! Servers that an operator names by a kubeconfig and that answer reviews: who a token names, who may do what, whether
//! an image may run, or just that events of the audit log were taken.
//!
//! What always holds: a review is posted to exactly the URL of the kubeconfig; what fails for a moment is tried
//! again a few times, each time after a longer while; an answer is read no further than [`MAX_ANSWER_BYTES`]; errors
//! read as Go's client words them.
//!
//! Upstream: apiserver/pkg/util/webhook/webhook.go

use std::time::Duration;

use bytes::Bytes;
use client::Transport;
use client::https::{Config, HttpsTransport};
use http::{Request, StatusCode, header};
use http_body_util::LengthLimitError;
use serde_json::Value;
use tokio::time::Instant;

use super::outbound::worded;
use crate::admission::webhook::client::read_answer;
use crate::authn::Random;

/// The largest answer that is read: as much as a client may send. Upstream reads all that comes.
pub const MAX_ANSWER_BYTES: usize = crate::handle::MAX_BODY_BYTES;

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

/// What an attempt to ask came to.
///
/// Upstream: apiserver/plugin/pkg/authorizer/webhook/metrics/metrics.go WebhookMetrics
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    Success,
    Timeout,
    Error,
    /// Nobody waits for the answer any more.
    Canceled,
}

impl Attempt {
    pub fn as_str(self) -> &'static str {
        match self {
            Attempt::Success => "success",
            Attempt::Timeout => "timeout",
            Attempt::Error => "error",
            Attempt::Canceled => "canceled",
        }
    }
}

/// Is told of each attempt, and how long it took.
type Observer = Box<dyn Fn(Attempt, Duration) + Send + Sync>;

/// One such server.
pub struct ReviewServer {
    transport: HttpsTransport,
    url: String,
    timeout: Duration,
    /// How long it takes until the second attempt.
    patience: Duration,
    random: Random,
    observer: Observer,
}

/// Why a server gave no answer, or none that counts.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: String,
    transient: bool,
    timed_out: bool,
}

impl Failure {
    /// An answer that cannot be read.
    pub fn of_answer(message: String) -> Self {
        Failure { message, transient: false, timed_out: false }
    }

    /// What the last attempt is counted as.
    pub fn attempt(&self) -> Attempt {
        if self.timed_out { Attempt::Timeout } else { Attempt::Error }
    }
}

impl From<Failure> for String {
    fn from(failure: Failure) -> Self {
        failure.message
    }
}

/// Tells the observer of an attempt, also of one that is given up in its midst.
struct Observed<'a> {
    observer: &'a Observer,
    since: Instant,
    attempt: Attempt,
}

impl Drop for Observed<'_> {
    fn drop(&mut self) {
        (self.observer)(self.attempt, self.since.elapsed());
    }
}

impl ReviewServer {
    pub fn new(
        config: &Config,
        timeout: Duration,
        patience: Duration,
        random: Random,
    ) -> Result<Self, client::Error> {
        let transport = HttpsTransport::new(config)?.at_most(MAX_ANSWER_BYTES);
        let observer: Observer = Box::new(|_, _| ());
        Ok(ReviewServer { transport, url: config.server.clone(), timeout, patience, random, observer })
    }

    /// Tells of each attempt.
    pub fn observed(self, observer: impl Fn(Attempt, Duration) + Send + Sync + 'static) -> Self {
        ReviewServer { observer: Box::new(observer), ..self }
    }

    /// The answer to a review.
    pub async fn ask(&self, review: &Value) -> Result<Value, Failure> {
        self.ask_for(review, Ok).await
    }

    /// What is read in the answer to a review.
    pub async fn ask_for<T>(
        &self,
        review: &Value,
        read: impl Fn(Value) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let read =
            |answer: Bytes| read(read_answer(StatusCode::OK.as_u16(), &answer).map_err(Failure::of_answer)?);
        self.attempts(review, Retry::Transient, read).await
    }

    /// Asks for nothing but that all is well, whatever the answer says.
    pub async fn post(&self, review: &Value, retry: Retry) -> Result<(), Failure> {
        self.attempts(review, retry, |_| Ok(())).await
    }

    async fn attempts<T>(
        &self,
        review: &Value,
        retry: Retry,
        read: impl Fn(Bytes) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let body = Bytes::from(review.to_string());
        let mut patience = self.patience;
        let mut attempt = 1;
        loop {
            let mut observed =
                Observed { observer: &self.observer, since: Instant::now(), attempt: Attempt::Canceled };
            let answer = self.once(&body).await.and_then(&read);
            observed.attempt = answer.as_ref().map_or_else(Failure::attempt, |_| Attempt::Success);
            drop(observed);
            match answer {
                Err(failure) if attempt < ATTEMPTS && (retry == Retry::Always || failure.transient) => {}
                done => return done,
            }
            attempt += 1;
            tokio::time::sleep(self.jittered(patience)).await;
            patience = patience.mul_f64(FACTOR);
        }
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
            timed_out: false,
        };
        let request = Request::post(format!("/?{query}"))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver")
            .body(body.clone());
        let request = request.map_err(|error| failed(&error.to_string(), false))?;
        let answer = tokio::time::timeout(self.timeout, self.transport.send(request)).await;
        let late = |_| Failure { timed_out: true, ..failed("context deadline exceeded", false) };
        let answer = answer.map_err(late)?;
        let answer = answer.map_err(|error| {
            let too_long = matches!(&error, client::Error::Transport(why) if why.is::<LengthLimitError>());
            if too_long {
                return failed(&format!("the answer is longer than {MAX_ANSWER_BYTES} bytes"), false);
            }
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
        Err(Failure { message, transient, timed_out: code == 504 })
    }
}
