//! Another server says which images may run.
//!
//! Upstream: plugin/pkg/admission/imagepolicy/{admission,config}.go

use std::path::PathBuf;
use std::time::Duration;

use apimachinery::Status;
use client::kept::Kept;
use client::kubeconfig::Kubeconfig;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::tree::{entries, items, map_mut, text};
use super::{Plugin, forbid, is, is_create, is_update};
use crate::audit::Annotation;
use crate::authn::Random;
use crate::remote::review_server::ReviewServer;
use crate::seams::AdmissionRequest;

pub(super) const NAME: &str = "ImagePolicyWebhook";
const AUDIT_PREFIX: &str = "imagepolicywebhook.image-policy.k8s.io/";
const FAILED_OPEN: &str = "alpha.image-policy.k8s.io/failed-open";
const MOST_ANSWERS: usize = 1024;
const TIMEOUT: Duration = Duration::from_secs(30);

/// Its place among the plugins; what it does is the chain's, which waits for it.
pub(super) struct ImagePolicyWebhook;

impl Plugin for ImagePolicyWebhook {
    fn name(&self) -> &'static str {
        NAME
    }

    fn is_default(&self) -> bool {
        false
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Configuration {
    image_policy: Webhook,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Webhook {
    kube_config_file: PathBuf,
    #[serde(rename = "allowTTL")]
    allow_ttl: i64,
    #[serde(rename = "denyTTL")]
    deny_ttl: i64,
    retry_backoff: i64,
    default_allow: bool,
}

/// The server, and what it said lately.
pub(super) struct ImagePolicy {
    server: ReviewServer,
    allow: Duration,
    deny: Duration,
    /// Whether images run when the server cannot be asked.
    default_allow: bool,
    kept: Kept<Value>,
}

pub(super) fn configured(document: Option<&Value>, random: &Random) -> Result<ImagePolicy, String> {
    let document = document.ok_or("no config specified")?;
    let Configuration { image_policy: webhook } =
        Configuration::deserialize(document).map_err(|error| error.to_string())?;
    let milliseconds = |count| Duration::from_millis(count);
    let minutes = |count: u64| Duration::from_secs(60 * count);
    let backoff =
        time(webhook.retry_backoff, milliseconds, milliseconds(500), (Duration::from_nanos(1), minutes(5)))?;
    let range = (Duration::from_secs(1), minutes(30));
    let allow = time(webhook.allow_ttl, Duration::from_secs, minutes(5), range)?;
    let deny = time(webhook.deny_ttl, Duration::from_secs, Duration::from_secs(30), range)?;
    let config = Kubeconfig::read(&webhook.kube_config_file).and_then(|kubeconfig| kubeconfig.config(None));
    let server = config.and_then(|config| ReviewServer::new(&config, TIMEOUT, backoff, random.clone()));
    Ok(ImagePolicy {
        server: server.map_err(|error| error.to_string())?,
        allow,
        deny,
        default_allow: webhook.default_allow,
        kept: Kept::new(MOST_ANSWERS),
    })
}

/// A time of the configuration: -1 is none, 0 the usual one.
fn time(
    given: i64,
    unit: impl Fn(u64) -> Duration,
    usual: Duration,
    (least, most): (Duration, Duration),
) -> Result<Duration, String> {
    let wrong = || format!("valid value is between {least:?} and {most:?}, got {given}");
    match given {
        -1 => Ok(Duration::ZERO),
        0 => Ok(usual),
        given => {
            let time = unit(u64::try_from(given).map_err(|_| wrong())?);
            if (least..=most).contains(&time) { Ok(time) } else { Err(wrong()) }
        }
    }
}

/// What is asked about a request; `None` when it is none of the server's business.
fn spec(request: &AdmissionRequest<'_>) -> Option<Value> {
    let lists: &[&str] = match request.subresource {
        "" => &["spec.containers", "spec.initContainers"],
        "ephemeralcontainers" => &["spec.ephemeralContainers"],
        _ => return None,
    };
    if !is(request, "", "pods") || !(is_create(request) || is_update(request)) {
        return None;
    }
    let containers = lists.iter().flat_map(|list| items(request.object, list));
    let containers: Vec<Value> =
        containers.map(|container| json!({"image": text(container, "image")})).collect();
    let annotations: Map<String, Value> = entries(request.object, "metadata.annotations")
        .filter(|(key, _)| key.contains(".image-policy.k8s.io/"))
        .map(|(key, value)| (key.to_owned(), value.clone()))
        .collect();
    let mut spec = json!({"containers": containers});
    if !annotations.is_empty() {
        spec["annotations"] = Value::Object(annotations);
    }
    if !request.namespace.is_empty() {
        spec["namespace"] = request.namespace.into();
    }
    Some(spec)
}

impl ImagePolicy {
    pub(super) async fn validate(&self, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        let Some(spec) = spec(request) else { return Ok(()) };
        let key = spec.to_string();
        let status = match self.kept.get(&key) {
            Some(known) => known,
            None => match self.ask(spec).await {
                Err(why) => return self.failed(request, &why),
                Ok(status) => {
                    let time = if status["allowed"] == true { self.allow } else { self.deny };
                    self.kept.put(key, status.clone(), time);
                    status
                }
            },
        };
        for (key, value) in entries(&status, "auditAnnotations") {
            let value = value.as_str().unwrap_or_default();
            request.annotations.push(Annotation::new(format!("{AUDIT_PREFIX}{key}"), value));
        }
        if status["allowed"] == true {
            return Ok(());
        }
        Err(forbid(
            request,
            match text(&status, "reason") {
                "" => "one or more images rejected by webhook backend".to_owned(),
                reason => format!("image policy webhook backend denied one or more images: {reason}"),
            },
        ))
    }

    async fn ask(&self, spec: Value) -> Result<Value, String> {
        let review = json!({
            "kind": "ImageReview", "apiVersion": "imagepolicy.k8s.io/v1alpha1", "metadata": {}, "spec": spec,
            "status": {"allowed": false},
        });
        let mut answer = self.server.ask(&review).await?;
        if answer.get("kind").is_some_and(|kind| kind != "ImageReview") {
            return Err(format!("the answer is a {}, not an ImageReview", answer["kind"]));
        }
        Ok(answer["status"].take())
    }

    fn failed(&self, request: &mut AdmissionRequest<'_>, why: &str) -> Result<(), Status> {
        tracing::warn!(why, "the image policy's server cannot be asked");
        if !self.default_allow {
            return Err(forbid(request, why));
        }
        request.annotations.push(Annotation::new(format!("{AUDIT_PREFIX}failed-open"), "true"));
        if let Some(annotations) = map_mut(request.object, "metadata.annotations") {
            annotations.insert(FAILED_OPEN.to_owned(), "true".into());
        }
        Ok(())
    }
}
