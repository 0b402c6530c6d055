//! Sees to it that a container's image is there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::Object;
use api::core::v1::{Container, Pod, Secret};
use base64::Engine;
use controller_runtime::Clock;
use cri::v1 as pb;
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, go_duration};
use crate::container::security::ImageUser;
use crate::events::PodEvents;
use crate::node::Ages;
use crate::pulled_images::{PullSecret, PulledImages};
use crate::runtime::{self, Runtime};
use crate::status::Waiting;

/// Whose credentials are verified for an image that is there: all but those of images that the kubelet did not pull.
pub const VERIFICATION: &str = "NeverVerifyPreloadedImages";

/// A present image.
#[derive(Clone, Debug)]
pub struct Image {
    pub reference: String,
    pub user: ImageUser,
}

/// Pulls images, and waits ever longer before it tries again what failed.
pub struct Images {
    runtime: Arc<dyn Runtime>,
    clock: Clock,
    state: Mutex<State>,
    pub pulled: PulledImages,
    pub ages: Mutex<Ages>,
}

struct State {
    backoff: Backoff,
    /// By back-off key: what the last pull died of.
    errors: HashMap<String, String>,
}

impl Images {
    pub fn new(runtime: Arc<dyn Runtime>, clock: Clock, pulled: PulledImages) -> Self {
        let backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        let state = Mutex::new(State { backoff, errors: HashMap::new() });
        Images { runtime, clock, state, pulled, ages: Mutex::default() }
    }

    /// The image, pulled if the policy says so. `Err` is what the container waits for.
    // Upstream: pkg/kubelet/images/image_manager.go EnsureImageExists
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        secrets: &[Arc<Secret>],
        sandbox: &pb::PodSandboxConfig,
        events: &PodEvents<'_>,
        cancel: &CancellationToken,
    ) -> Result<Image, Waiting> {
        let asked = container.image.as_deref().unwrap_or_default();
        let image = match with_default_tag(asked) {
            Ok(image) => image,
            Err(why) => {
                let message = format!("Failed to apply default image tag {asked:?}: {why}");
                events.warning(&container.name, "InspectFailed", &message);
                return Err(waiting("InvalidImageName", message));
            }
        };
        let policy = container.image_pull_policy.as_deref().unwrap_or("IfNotPresent");
        let credentials: Vec<Credentials> = secrets
            .iter()
            .filter_map(|s| credentials_for(s, &image).map(|auth| (PullSecret::new(s, &auth), auth)))
            .collect();
        let source = Source { pod_uid: pod.uid(), asked, image: &image };
        if policy != "Always" {
            let held: Vec<PullSecret> = credentials.iter().map(|(secret, _)| secret.clone()).collect();
            if let Some(present) =
                self.present(&source, policy == "Never", &container.name, &held, events).await?
            {
                return Ok(present);
            }
        }
        self.check_backoff(&source.key(), asked, &container.name, events)?;
        self.pull(source, container, credentials, sandbox, events, cancel).await
    }

    /// The image as it is here, for a pod with these secrets; `None` when it is to be pulled.
    async fn present(
        &self,
        source: &Source<'_>,
        never_pull: bool,
        container: &str,
        held: &[PullSecret],
        events: &PodEvents<'_>,
    ) -> Result<Option<Image>, Waiting> {
        let asked = source.asked;
        let found = self.runtime.image(source.image).await.map_err(|error| {
            let message = format!("Failed to inspect image {asked:?}: {}", runtime::describe(&error));
            events.warning(container, "InspectFailed", &message);
            waiting("ImageInspectError", message)
        })?;
        // It is there for those who could have pulled it; to others it is not.
        let now = self.clock.now();
        match found.filter(|image| !self.pulled.must_pull(asked, &image.id, held, now)) {
            Some(present) => {
                let message = format!(
                    "Container image {asked:?} already present on machine and can be accessed by the pod"
                );
                events.normal(container, "Pulled", &message);
                Ok(Some(describe(&present)))
            }
            None if never_pull => {
                let message = format!("Container image {asked:?} is not present with pull policy of Never");
                events.warning(container, "ErrImageNeverPull", &message);
                Err(waiting("ErrImageNeverPull", message))
            }
            None => Ok(None),
        }
    }

    fn check_backoff(
        &self,
        key: &str,
        asked: &str,
        container: &str,
        events: &PodEvents,
    ) -> Result<(), Waiting> {
        let now = self.clock.now();
        let mut state = self.lock();
        let since = state.backoff.updated(key).unwrap_or(now);
        if state.backoff.remaining(key, since, now).is_none() {
            state.errors.remove(key);
            return Ok(());
        }
        let mut message = format!("Back-off pulling image {asked:?}");
        events.normal(container, "BackOff", &message);
        if let Some(error) = state.errors.get(key) {
            message = format!("{message}: {error}");
        }
        Err(waiting("ImagePullBackOff", message))
    }

    /// How long until a pull of this pod may be tried again.
    pub fn remaining(&self, pod: &Pod, container: &Container) -> Option<Duration> {
        let key = format!("{}_{}", pod.uid(), container.image.as_deref().unwrap_or_default());
        let state = self.lock();
        state.backoff.remaining(&key, state.backoff.updated(&key)?, self.clock.now())
    }

    async fn pull(
        &self,
        source: Source<'_>,
        container: &Container,
        credentials: Vec<Credentials>,
        sandbox: &pb::PodSandboxConfig,
        events: &PodEvents<'_>,
        cancel: &CancellationToken,
    ) -> Result<Image, Waiting> {
        let Source { asked, image, .. } = source;
        events.normal(&container.name, "Pulling", &format!("Pulling image {asked:?}"));
        let begun = self.clock.now();
        if let Err(error) = self.pulled.begin(asked) {
            let message =
                format!("Failed to record image pull intent for container image {asked:?}: {error}");
            return Err(waiting("ErrImagePull", message));
        }
        let mut credentials: Vec<Option<Credentials>> = credentials.into_iter().map(Some).collect();
        if credentials.is_empty() {
            credentials.push(None);
        }
        let mut failure = String::new();
        for pair in credentials {
            let (secret, auth) = pair.unzip();
            let pulled = tokio::select! {
                pulled = self.runtime.pull_image(image, auth, sandbox) => pulled,
                () = cancel.cancelled() => {
                    self.pulled.end(asked, None, self.clock.now());
                    return Err(waiting("ErrImagePull", "pull cancelled".to_owned()));
                }
            };
            match pulled {
                Ok(reference) => {
                    let taken =
                        Duration::try_from(self.clock.now().duration_since(begun)).unwrap_or_default();
                    let present = self.runtime.image(&reference).await.ok().flatten();
                    let present =
                        present.unwrap_or_else(|| pb::Image { id: reference, ..Default::default() });
                    self.pulled.end(asked, Some((present.id.as_str(), secret)), self.clock.now());
                    let taken = go_duration(taken);
                    let message = format!(
                        "Successfully pulled image {asked:?} in {taken} ({taken} including waiting). Image size: {} \
                         bytes.",
                        present.size
                    );
                    events.normal(&container.name, "Pulled", &message);
                    return Ok(describe(&present));
                }
                Err(error) => failure = runtime::describe(&error),
            }
        }
        self.pulled.end(asked, None, self.clock.now());
        events.warning(&container.name, "Failed", &format!("Failed to pull image {asked:?}: {failure}"));
        let mut state = self.lock();
        state.backoff.next(&source.key(), self.clock.now());
        state.errors.insert(source.key(), format!("ErrImagePull: {failure}"));
        Err(waiting("ErrImagePull", failure))
    }

    /// The pod is gone.
    pub fn forget(&self, pod_uid: &str) {
        let mut state = self.lock();
        state.backoff.forget(pod_uid);
        state.errors.retain(|key, _| !key.starts_with(pod_uid));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wanted by which pod: the image as asked for, and with its tag.
struct Source<'a> {
    pod_uid: &'a str,
    asked: &'a str,
    image: &'a str,
}

impl Source<'_> {
    /// The key of its back-off.
    fn key(&self) -> String {
        format!("{}_{}", self.pod_uid, self.asked)
    }
}

/// A secret and what it holds for the image's registry.
type Credentials = (PullSecret, pb::AuthConfig);

fn waiting(reason: &str, message: String) -> Waiting {
    Waiting { reason: reason.into(), message }
}

fn describe(image: &pb::Image) -> Image {
    // Upstream: pkg/kubelet/kuberuntime/helpers.go getImageUser: who names nobody means root.
    let root = image.username.is_empty().then_some(0);
    let uid = image.uid.as_ref().map(|uid| uid.value).or(root);
    let user = ImageUser { uid, username: image.username.clone() };
    Image { reference: image.id.clone(), user }
}

/// The image with `:latest` unless it has a tag or digest; refuses what is no image name.
// Upstream: pkg/util/parsers/parsers.go ParseImageName
pub fn with_default_tag(image: &str) -> Result<String, String> {
    let invalid = || Err(format!("couldn't parse image name {image:?}: invalid reference format"));
    let (name, digest) = image.split_once('@').map_or((image, None), |(n, d)| (n, Some(d)));
    if digest.is_some_and(|d| !d.contains(':')) {
        return invalid();
    }
    let last_slash = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name[last_slash..].split_once(':') {
        Some((last, tag)) => (format!("{}{last}", &name[..last_slash]), Some(tag)),
        None => (name.to_owned(), None),
    };
    let (host, repository) = match path.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("", path.as_str()),
    };
    let good_host = host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c));
    let good_part = |part: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(part.chars().next())
            && edge(part.chars().last())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
    };
    let good_tag = |tag: &str| {
        !tag.is_empty()
            && tag.len() <= 128
            && !tag.starts_with(['.', '-'])
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    if !good_host || !repository.split('/').all(good_part) || !tag.is_none_or(good_tag) {
        return invalid();
    }
    Ok(if tag.is_some() || digest.is_some() { image.to_owned() } else { format!("{image}:latest") })
}

/// What a pull secret holds for the registry of an image.
// Upstream: pkg/credentialprovider/config.go
fn credentials_for(secret: &Secret, image: &str) -> Option<pb::AuthConfig> {
    let data = secret.data.as_ref()?;
    let entries = if let Some(json) = data.get(".dockerconfigjson") {
        serde_json::from_slice::<serde_json::Value>(&json.0).ok()?.get("auths")?.clone()
    } else {
        serde_json::from_slice::<serde_json::Value>(&data.get(".dockercfg")?.0).ok()?
    };
    let matching = |(registry, _): &(&String, &serde_json::Value)| matches_registry(registry, image);
    let (registry, entry) = entries.as_object()?.iter().filter(matching).max_by_key(|(r, _)| r.len())?;
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let (mut username, mut password) = (text("username"), text("password"));
    if username.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (user, pass) = decoded.split_once(':')?;
        (username, password) = (user.to_owned(), pass.to_owned());
    }
    Some(pb::AuthConfig { username, password, server_address: registry.clone(), ..Default::default() })
}

fn matches_registry(registry: &str, image: &str) -> bool {
    let bare = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let first = image.split('/').next().unwrap_or_default();
    let has_host = image.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let full = if has_host { image.to_owned() } else { format!("docker.io/{image}") };
    let bare = match bare {
        "index.docker.io/v1" | "index.docker.io" | "docker.io/v1" => "docker.io",
        other => other,
    };
    if let Some(suffix) = bare.strip_prefix("*.") {
        return full
            .split('/')
            .next()
            .is_some_and(|host| host.split_once('.').is_some_and(|(_, rest)| rest == suffix));
    }
    full == bare || full.starts_with(&format!("{bare}/")) || full.starts_with(&format!("{bare}:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let cases = [
            ("web", Ok("web:latest")),
            ("web:1", Ok("web:1")),
            ("reg:5000/a/web", Ok("reg:5000/a/web:latest")),
            ("web@sha256:abc", Ok("web@sha256:abc")),
            ("Web", Err(())),
            ("a//b", Err(())),
            ("web:", Err(())),
            ("", Err(())),
        ];
        for (image, want) in cases {
            assert_eq!(with_default_tag(image).as_deref().map_err(|_| ()), want, "{image}");
        }
    }

    #[test]
    fn registries() {
        let cases = [
            ("https://index.docker.io/v1/", "web:1", true),
            ("reg.io", "reg.io/a:1", true),
            ("reg.io/a", "reg.io/a/b:1", true),
            ("reg.io/a", "reg.io/ab:1", false),
            ("*.reg.io", "x.reg.io/a", true),
            ("other.io", "reg.io/a:1", false),
        ];
        for (registry, image, want) in cases {
            assert_eq!(matches_registry(registry, image), want, "{registry} {image}");
        }
    }
}
