//! As whom this server asks webhooks: by the kubeconfig of a `WebhookAdmissionConfiguration`, whose users have the
//! names of servers.
//!
//! Upstream: apiserver/pkg/util/webhook/authentication.go

use std::path::PathBuf;
use std::sync::Arc;

use client::Error;
use client::https::{Identity, Token};
use client::kubeconfig::{Kubeconfig, User};
use serde::Deserialize;
use serde_json::Value;

use crate::admission::configuration::versioned;
use crate::admission::tree::text;

/// The users of a kubeconfig; by default there are none.
#[derive(Clone, Default)]
pub struct Identities(Option<Arc<Kubeconfig>>);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    #[serde(default)]
    kube_config_file: PathBuf,
}

impl Identities {
    pub(crate) fn configured(document: Option<&Value>) -> Result<Self, String> {
        let Some(document) = document else { return Ok(Identities::default()) };
        let (group, version, kind) =
            match text(document, "apiVersion").starts_with("apiserver.config.k8s.io/") {
                true => ("apiserver.config.k8s.io", "v1", "WebhookAdmissionConfiguration"),
                false => ("apiserver.k8s.io", "v1alpha1", "WebhookAdmission"),
            };
        let Configuration { kube_config_file } = versioned(document, group, &[version], kind)?;
        if kube_config_file.as_os_str().is_empty() {
            return Ok(Identities::default());
        }
        if !kube_config_file.is_absolute() {
            let shown = kube_config_file.display();
            return Err(format!("kubeConfigFile: Invalid value: \"{shown}\": must be an absolute file path"));
        }
        let kubeconfig = Kubeconfig::read(&kube_config_file).map_err(|error| error.to_string())?;
        Ok(Identities(Some(Arc::new(kubeconfig))))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// What is shown to the server at `host:port`.
    pub(crate) fn at(&self, authority: &str) -> Result<(Option<Identity>, Option<Token>), Error> {
        let user = self.0.as_ref().and_then(|kubeconfig| user(kubeconfig, authority));
        user.map_or(Ok((None, None)), User::credentials)
    }
}

/// The user of a server: of its name, of its domain, with the port or, where that is the usual one, without; then the
/// one for all, then that of the current context.
fn user<'k>(kubeconfig: &'k Kubeconfig, authority: &str) -> Option<&'k User> {
    let named = |name: &str| kubeconfig.users.iter().find(|user| user.name == name).map(|user| &user.user);
    let by_target = |target: &str| {
        let domains = target.match_indices('.').map(|(at, _)| format!("*{}", &target[at..]));
        named(target).or_else(|| domains.into_iter().find_map(|domain| named(&domain)))
    };
    let current = || named(&kubeconfig.context(None).ok()?.user);
    by_target(authority)
        .or_else(|| authority.strip_suffix(":443").and_then(by_target))
        .or_else(|| named("*"))
        .or_else(current)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_shown_the_user_of_their_name_or_domain() {
        let users = ["a.example:8443", "*.example:8443", "b.test", "*.test", "*"];
        let users: Vec<String> =
            users.iter().map(|name| format!("- {{name: '{name}', user: {{token: '{name}'}}}}")).collect();
        let kubeconfig = Kubeconfig::parse(&format!("users:\n{}\n", users.join("\n"))).unwrap();
        for (authority, wanted) in [
            ("a.example:8443", "a.example:8443"),
            ("c.d.example:8443", "*.example:8443"),
            ("b.test:443", "b.test"),
            ("c.test:443", "*.test"),
            ("b.test:8443", "*"),
        ] {
            let found = user(&kubeconfig, authority).and_then(|user| user.token.as_deref());
            assert_eq!(found, Some(wanted), "{authority}");
        }
    }
}
