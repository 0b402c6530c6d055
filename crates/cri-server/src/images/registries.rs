//! Which servers stand for a registry, and how to speak to each: `registries.yaml`, in the form that k3s has made
//! known. It is read at each pull, so that a change needs no restart.
//!
//! ```yaml
//! mirrors:
//!   docker.io: {endpoint: ["https://mirror.lan:5000"]}
//!   "*": {endpoint: ["http://cache.lan"]}
//! configs:
//!   "mirror.lan:5000":
//!     auth: {username: u, password: p}
//!     tls: {ca_file: /etc/mirror.pem}
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Credentials, Error};

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Registries {
    /// By registry, or `*` for those that are not named.
    mirrors: BTreeMap<String, Mirror>,
    /// By host and port.
    configs: BTreeMap<String, Host>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Mirror {
    /// Asked in this order; the registry itself comes last.
    endpoint: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Host {
    auth: Auth,
    tls: Tls,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Auth {
    username: String,
    password: String,
    /// User and password in base64, as Docker writes them.
    auth: String,
    identity_token: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tls {
    ca_file: Option<PathBuf>,
    insecure_skip_verify: bool,
}

/// A server to ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Host and port; `None` is the registry itself.
    pub host: Option<String>,
    pub plain_http: bool,
    pub credentials: Credentials,
    pub authority: Option<PathBuf>,
    pub skip_verify: bool,
}

impl Registries {
    /// Reads the file; one that is not there says nothing.
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Error::io(path)(error)),
        };
        Self::parse(&text).map_err(|why| Error::Registries { path: path.to_owned(), why })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let read: Self = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        for endpoint in read.mirrors.values().flat_map(|mirror| &mirror.endpoint) {
            split(endpoint)?;
        }
        Ok(read)
    }

    /// The servers to ask for what `registry` has, one after the other.
    pub(crate) fn endpoints(&self, registry: &str) -> Vec<Endpoint> {
        let named = self.mirrors.get(registry).or_else(|| self.mirrors.get("*"));
        let mirrors = named.into_iter().flat_map(|mirror| &mirror.endpoint);
        let mirrors = mirrors.filter_map(|endpoint| split(endpoint).ok());
        let mirrors = mirrors.map(|(plain, host)| self.endpoint(host, Some(host.to_owned()), plain));
        mirrors.chain([self.endpoint(registry, None, false)]).collect()
    }

    fn endpoint(&self, name: &str, host: Option<String>, plain_http: bool) -> Endpoint {
        let Host { auth, tls } = self.configs.get(name).cloned().unwrap_or_default();
        let credentials = Credentials::from_cri(Some(&cri::v1::AuthConfig {
            username: auth.username,
            password: auth.password,
            auth: auth.auth,
            registry_token: auth.identity_token,
            ..Default::default()
        }));
        let Tls { ca_file, insecure_skip_verify } = tls;
        Endpoint { host, plain_http, credentials, authority: ca_file, skip_verify: insecure_skip_verify }
    }
}

/// Whether an endpoint speaks HTTP without TLS, and its host.
fn split(endpoint: &str) -> Result<(bool, &str), String> {
    let (plain, rest) = match endpoint.split_once("://") {
        Some(("https", rest)) => (false, rest),
        Some(("http", rest)) => (true, rest),
        _ => return Err(format!("endpoint {endpoint:?} is no http:// or https:// address")),
    };
    let host = rest.trim_end_matches('/').trim_end_matches("/v2");
    if host.is_empty() || host.contains('/') {
        return Err(format!("endpoint {endpoint:?} must name a host, and no path below it"));
    }
    Ok((plain, host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_come_before_the_registry_itself() {
        let read = Registries::parse(
            "mirrors:\n  docker.io: {endpoint: [\"https://a.lan:5000/v2\", \"http://b.lan\"]}\n  \"*\": {endpoint: [\"http://c\"]}\n\
             configs:\n  \"a.lan:5000\": {auth: {username: u, password: p}, tls: {insecure_skip_verify: true}}\n",
        )
        .unwrap();
        let words = |registry: &str| -> Vec<String> {
            let word = |e: Endpoint| {
                let host = e.host.unwrap_or_else(|| "itself".to_owned());
                let known = if e.credentials == Credentials::None { "" } else { " known" };
                let trusting = if e.skip_verify { " trusting" } else { "" };
                format!("{host}{}{known}{trusting}", if e.plain_http { " plain" } else { "" })
            };
            read.endpoints(registry).into_iter().map(word).collect()
        };
        assert_eq!(words("docker.io"), ["a.lan:5000 known trusting", "b.lan plain", "itself"]);
        assert_eq!(words("quay.io"), ["c plain", "itself"]);
        assert_eq!(Registries::default().endpoints("quay.io").len(), 1);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (text, why) in [
            ("mirrors: {a: {endpoint: [\"ftp://x\"]}}", "no http:// or https://"),
            ("mirrors: {a: {endpoint: [\"http://x/y\"]}}", "no path below it"),
            ("mirror: {}", "mirror"),
        ] {
            let error = Registries::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
