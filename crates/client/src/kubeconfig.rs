//! kubeconfig files, and what a pod finds instead of one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::https::{Config, HttpsTransport, Identity, Token, Trust};
use crate::{Client, Error};

/// Upstream: client-go/rest/config.go InClusterConfig
const SERVICE_ACCOUNT_DIR: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// A kubeconfig as it stands in its file, or as several files make it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Kubeconfig {
    #[serde(rename = "apiVersion")]
    pub api_version: String,
    pub kind: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub clusters: Vec<NamedCluster>,
    #[serde(deserialize_with = "null_is_empty")]
    pub contexts: Vec<NamedContext>,
    pub current_context: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub users: Vec<NamedUser>,
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::<Vec<T>>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NamedCluster {
    pub name: String,
    pub cluster: Cluster,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Cluster {
    pub server: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_authority: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_authority_data: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub insecure_skip_tls_verify: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NamedContext {
    pub name: String,
    pub context: Context,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Context {
    pub cluster: String,
    pub user: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NamedUser {
    pub name: String,
    pub user: User,
}

#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct User {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key_data: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    #[serde(rename = "tokenFile", skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("User")
    }
}

impl User {
    /// What the user shows: a client certificate, a token.
    pub fn credentials(&self) -> Result<(Option<Identity>, Option<Token>), Error> {
        Ok((identity(self)?, token(self)))
    }
}

impl Kubeconfig {
    /// A kubeconfig of one cluster and one user with a client certificate; `name` names all three entries.
    pub fn single(name: &str, server: &str, ca_pem: &str, certificate_pem: &str, key_pem: &str) -> Self {
        let data = |pem: &str| Some(STANDARD.encode(pem));
        let cluster = Cluster {
            server: server.to_owned(),
            certificate_authority_data: data(ca_pem),
            ..Default::default()
        };
        let user = User {
            client_certificate_data: data(certificate_pem),
            client_key_data: data(key_pem),
            ..Default::default()
        };
        let context = Context { cluster: name.to_owned(), user: name.to_owned(), namespace: None };
        Kubeconfig {
            api_version: "v1".into(),
            kind: "Config".into(),
            clusters: vec![NamedCluster { name: name.to_owned(), cluster }],
            contexts: vec![NamedContext { name: name.to_owned(), context }],
            current_context: name.to_owned(),
            users: vec![NamedUser { name: name.to_owned(), user }],
        }
    }

    pub fn parse(yaml: &str) -> Result<Self, Error> {
        serde_saphyr::from_str(yaml).map_err(|e| Error::Config(format!("kubeconfig: {e}")))
    }

    pub fn to_yaml(&self) -> Result<String, Error> {
        serde_saphyr::to_string(self).map_err(|e| Error::Config(format!("kubeconfig: {e}")))
    }

    /// Reads a file. Paths in it count from where it lies.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::Config(format!("{}: {e}", path.display())))?;
        let mut config = Self::parse(&text).map_err(|e| Error::Config(format!("{}: {e}", path.display())))?;
        let dir = path.parent().unwrap_or(Path::new(""));
        let clusters = config.clusters.iter_mut().map(|c| &mut c.cluster.certificate_authority);
        let users = config
            .users
            .iter_mut()
            .flat_map(|u| [&mut u.user.client_certificate, &mut u.user.client_key, &mut u.user.token_file]);
        for path in clusters.chain(users).flatten() {
            if path.as_os_str().is_empty() {
                continue;
            }
            *path = dir.join(&path);
        }
        Ok(config)
    }

    /// What stands in several files, as `KUBECONFIG` lists them: of equal names the first counts. Files that do
    /// not exist are passed over.
    pub fn read_all<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Result<Self, Error> {
        let mut all = Kubeconfig::default();
        for path in paths.into_iter().filter(|path| path.exists()) {
            let one = Self::read(path)?;
            if all.current_context.is_empty() {
                all.current_context = one.current_context;
            }
            let new = |known: &[String], name: &str| !known.iter().any(|k| k == name);
            let known: Vec<_> = all.clusters.iter().map(|c| c.name.clone()).collect();
            all.clusters.extend(one.clusters.into_iter().filter(|c| new(&known, &c.name)));
            let known: Vec<_> = all.contexts.iter().map(|c| c.name.clone()).collect();
            all.contexts.extend(one.contexts.into_iter().filter(|c| new(&known, &c.name)));
            let known: Vec<_> = all.users.iter().map(|c| c.name.clone()).collect();
            all.users.extend(one.users.into_iter().filter(|c| new(&known, &c.name)));
        }
        Ok(all)
    }

    /// The context of the name, or the current one.
    pub fn context(&self, name: Option<&str>) -> Result<&Context, Error> {
        let name = name.unwrap_or(&self.current_context);
        let found = self.contexts.iter().find(|c| c.name == name).map(|c| &c.context);
        // Upstream: client-go/tools/clientcmd/client_config.go getContext
        found.ok_or_else(|| Error::Config(format!("context {name:?} does not exist")))
    }

    /// How the context of the name, or the current one, reaches its server.
    pub fn config(&self, context: Option<&str>) -> Result<Config, Error> {
        let context = self.context(context)?;
        let cluster = self.clusters.iter().find(|c| c.name == context.cluster).map(|c| &c.cluster);
        let cluster =
            cluster.ok_or_else(|| Error::Config(format!("cluster {:?} does not exist", context.cluster)))?;
        let user = match self.users.iter().find(|u| u.name == context.user).map(|u| &u.user) {
            Some(user) => user.clone(),
            None if context.user.is_empty() => User::default(),
            None => return Err(Error::Config(format!("auth info {:?} does not exist", context.user))),
        };
        let (identity, token) = user.credentials()?;
        Ok(Config {
            server: cluster.server.clone(),
            trust: trust(cluster)?,
            identity,
            token,
            tls_server_name: cluster.tls_server_name.clone().filter(|name| !name.is_empty()),
        })
    }
}

fn trust(cluster: &Cluster) -> Result<Trust, Error> {
    if cluster.insecure_skip_tls_verify {
        return Ok(Trust::Anyone);
    }
    if let Some(data) = filled(&cluster.certificate_authority_data) {
        return decode("certificate-authority-data", data).map(Trust::Roots);
    }
    match cluster.certificate_authority.as_ref().filter(|path| !path.as_os_str().is_empty()) {
        Some(path) => {
            let pem = std::fs::read(path).map_err(|e| {
                Error::Config(format!("unable to read certificate-authority {}: {e}", path.display()))
            })?;
            Ok(Trust::Roots(pem))
        }
        None => Ok(Trust::System),
    }
}

fn identity(user: &User) -> Result<Option<Identity>, Error> {
    if let (Some(certificate), Some(key)) = (&user.client_certificate, &user.client_key)
        && user.client_certificate_data.is_none()
        && user.client_key_data.is_none()
    {
        return Ok(Some(Identity::Files { certificate: certificate.clone(), key: key.clone() }));
    }
    let part = |what: &str, data: &Option<String>, path: &Option<PathBuf>| match (filled(data), path) {
        (Some(data), _) => decode(&format!("{what}-data"), data).map(Some),
        (None, Some(path)) => {
            let read = std::fs::read(path);
            read.map(Some)
                .map_err(|e| Error::Config(format!("unable to read {what} {}: {e}", path.display())))
        }
        (None, None) => Ok(None),
    };
    let certificate = part("client-certificate", &user.client_certificate_data, &user.client_certificate)?;
    let key = part("client-key", &user.client_key_data, &user.client_key)?;
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some(Identity::Pem { certificate, key })),
        (None, None) => Ok(None),
        _ => Err(Error::Config("a client certificate and its key must be given together".into())),
    }
}

/// A token file goes before a token.
fn token(user: &User) -> Option<Token> {
    let file = user.token_file.as_ref().filter(|path| !path.as_os_str().is_empty());
    file.cloned().map(Token::File).or_else(|| filled(&user.token).map(|text| Token::Text(text.to_owned())))
}

fn filled(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

fn decode(what: &str, base64: &str) -> Result<Vec<u8>, Error> {
    let compact: String = base64.split_ascii_whitespace().collect();
    STANDARD.decode(compact).map_err(|e| Error::Config(format!("{what}: {e}")))
}

/// What a pod finds of its cluster: the Service's address in the environment (given as a look-up, since
/// libraries read none), token and CA in files.
pub fn in_cluster(environment: impl Fn(&str) -> Option<String>) -> Result<Config, Error> {
    let host = environment("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty());
    let port = environment("KUBERNETES_SERVICE_PORT").filter(|port| !port.is_empty());
    let (Some(host), Some(port)) = (host, port) else {
        return Err(Error::Config(
            "unable to load in-cluster configuration, KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be \
             defined"
                .into(),
        ));
    };
    let ca = Path::new(SERVICE_ACCOUNT_DIR).join("ca.crt");
    let roots = std::fs::read(&ca).map_err(|e| Error::Config(format!("{}: {e}", ca.display())))?;
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    Ok(Config {
        server: format!("https://{host}:{port}"),
        trust: Trust::Roots(roots),
        token: Some(Token::File(Path::new(SERVICE_ACCOUNT_DIR).join("token"))),
        ..Default::default()
    })
}

/// A client by a kubeconfig's context, or its current one.
pub fn client(kubeconfig: &Kubeconfig, context: Option<&str>, user_agent: &str) -> Result<Client, Error> {
    let transport = HttpsTransport::new(&kubeconfig.config(context)?)?;
    Ok(Client::new(Arc::new(transport), user_agent))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "
apiVersion: v1
kind: Config
current-context: a
clusters:
- name: one
  cluster: {server: 'https://one:6443', insecure-skip-tls-verify: true, tls-server-name: kubernetes}
- name: two
  cluster: {server: 'https://two', certificate-authority: pki/ca.crt}
contexts:
- name: a
  context: {cluster: one, user: u, namespace: ns}
- name: b
  context: {cluster: two, user: v}
- name: c
  context: {cluster: three, user: v}
users:
- name: u
  user: {token: secret}
- name: v
  user: {tokenFile: token, client-certificate: c.pem, client-key: k.pem}
";

    #[test]
    fn contexts_lead_to_clusters_and_users() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("pki")).unwrap();
        std::fs::write(dir.path().join("pki/ca.crt"), "pem").unwrap();
        std::fs::write(dir.path().join("config"), TWO).unwrap();
        let kubeconfig = Kubeconfig::read(&dir.path().join("config")).unwrap();

        let a = kubeconfig.config(None).unwrap();
        assert_eq!(a.server, "https://one:6443");
        assert!(matches!(a.trust, Trust::Anyone));
        assert!(matches!(a.token, Some(Token::Text(t)) if t == "secret"));
        assert_eq!(a.tls_server_name.as_deref(), Some("kubernetes"));
        assert_eq!(kubeconfig.context(None).unwrap().namespace.as_deref(), Some("ns"));

        let b = kubeconfig.config(Some("b")).unwrap();
        assert!(matches!(b.trust, Trust::Roots(pem) if pem == b"pem"));
        assert!(matches!(b.token, Some(Token::File(f)) if f == dir.path().join("token")));
        assert!(matches!(b.identity, Some(Identity::Files { key, .. }) if key == dir.path().join("k.pem")));

        let error = |context| kubeconfig.config(Some(context)).unwrap_err().to_string();
        assert_eq!(error("c"), "cluster \"three\" does not exist");
        assert_eq!(error("d"), "context \"d\" does not exist");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let written = Kubeconfig::single("default", "https://h:1", "CA", "CERT", "KEY").to_yaml().unwrap();
        let config = Kubeconfig::parse(&written).unwrap().config(None).unwrap();
        assert_eq!(config.server, "https://h:1");
        assert!(matches!(config.trust, Trust::Roots(pem) if pem == b"CA"));
        assert!(matches!(config.identity, Some(Identity::Pem { key, .. }) if key == b"KEY"));
    }

    #[test]
    fn empty_and_wrong_files_are_told() {
        assert!(Kubeconfig::parse("clusters: null\nusers: null\n").unwrap().config(None).is_err());
        assert!(Kubeconfig::parse("clusters: 5").is_err());
        assert!(in_cluster(|_| None).unwrap_err().to_string().contains("must be defined"));
    }
}
