//! `--encryption-provider-config`: what of the store is encrypted, and how.
//!
//! This is the file; [`store`] is what it comes to.
//!
//! Upstream: apiserver/pkg/server/options/encryptionconfig/config.go

mod store;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::components;
use store::{Algorithm, Choose, Encrypted, Provider, Providers};

const ROOT: &str = "/registry/";

/// Upstream: apiserver/pkg/apis/apiserver/v1/types_encryption.go EncryptionConfiguration
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Configuration {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    resources: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    providers: Vec<Element>,
}

/// Exactly one of these.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Element {
    aescbc: Option<Keys>,
    aesgcm: Option<Keys>,
    secretbox: Option<Keys>,
    identity: Option<Empty>,
    kms: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    #[serde(default)]
    keys: Vec<Key>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    #[serde(default)]
    name: String,
    #[serde(default)]
    secret: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Empty {}

/// What a rule is about.
#[derive(Debug, PartialEq, Eq)]
enum About {
    Everything,
    Group(String),
    Resource { group: String, resource: String },
}

impl About {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let (resource, group) = text.split_once('.').unwrap_or((text, ""));
        match (resource, group) {
            ("*", _) if !text.contains('.') => bail!(
                "{text:?}: use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
            ),
            ("*", "*") => Ok(About::Everything),
            (_, "*") => bail!("{text:?}: encrypting the same resource across groups is not supported"),
            (_, "extensions") => {
                bail!("{text:?}: 'extensions' group has been removed and cannot be used for encryption")
            }
            ("*", group) => Ok(About::Group(group.to_owned())),
            ("", _) => bail!("a resource has a name"),
            _ if text.contains(|c: char| c.is_ascii_uppercase()) => {
                bail!("{text:?}: resource name should not contain capital letters")
            }
            (resource, group) => {
                Ok(About::Resource { group: group.to_owned(), resource: resource.to_owned() })
            }
        }
    }

    fn matches(&self, group: &str, resource: &str) -> bool {
        match self {
            About::Everything => true,
            About::Group(of) => of == group,
            About::Resource { group: of, resource: name } => of == group && name == resource,
        }
    }
}

fn keys(algorithm: Algorithm, keys: Keys) -> anyhow::Result<Vec<Provider>> {
    ensure!(!keys.keys.is_empty(), "at least one keys is required");
    let provider = |key: Key| {
        ensure!(!key.name.is_empty(), "name is a mandatory field for a key");
        ensure!(!key.secret.is_empty(), "key {:?}: secret is a mandatory field for a key", key.name);
        let secret = STANDARD.decode(&key.secret);
        let secret =
            secret.map_err(|_| anyhow::anyhow!("key {:?}: secrets must be base64 encoded", key.name))?;
        let lengths = algorithm.key_lengths();
        ensure!(
            lengths.contains(&secret.len()),
            "key {:?}: secret is not of the expected length, got {}, expected one of {lengths:?}",
            key.name,
            secret.len()
        );
        Ok(Provider::Key { algorithm, name: key.name, secret })
    };
    keys.keys.into_iter().map(provider).collect()
}

impl Element {
    fn providers(self) -> anyhow::Result<Vec<Provider>> {
        ensure!(self.kms.is_none(), "kms is not supported; use aescbc, aesgcm, secretbox or identity");
        match (self.aescbc, self.aesgcm, self.secretbox, self.identity) {
            (Some(cbc), None, None, None) => keys(Algorithm::AesCbc, cbc),
            (None, Some(gcm), None, None) => keys(Algorithm::AesGcm, gcm),
            (None, None, Some(secretbox), None) => keys(Algorithm::Secretbox, secretbox),
            (None, None, None, Some(Empty {})) => Ok(vec![Provider::Identity]),
            (None, None, None, None) => bail!(
                "provider does not contain any of the expected providers: AESGCM, AESCBC, Secretbox, Identity"
            ),
            _ => bail!(
                "more than one provider specified in a single element, should split into different list elements"
            ),
        }
    }
}

/// Rules in order: the first that is about an object counts.
type Rules = Vec<(Vec<About>, Arc<Providers>)>;

fn rules(configuration: Configuration) -> anyhow::Result<Rules> {
    ensure!(!configuration.resources.is_empty(), "at least one resources is required");
    let mut rules = Rules::new();
    for (index, rule) in configuration.resources.into_iter().enumerate() {
        let place = || format!("resources[{index}]");
        let read = || -> anyhow::Result<_> {
            ensure!(!rule.resources.is_empty(), "at least one resources is required");
            ensure!(!rule.providers.is_empty(), "at least one providers is required");
            let about =
                rule.resources.iter().map(|text| About::parse(text)).collect::<anyhow::Result<_>>()?;
            let mut providers = Vec::new();
            for element in rule.providers {
                providers.extend(element.providers()?);
            }
            Ok((about, Arc::new(Providers(providers))))
        };
        rules.push(read().with_context(place)?);
    }
    Ok(rules)
}

/// Which providers a key of the store has.
fn choose(rules: Rules, table: &[Arc<resources::ResourceDef>]) -> Choose {
    let find = move |group: &str, resource: &str| {
        let rule = rules.iter().find(|(about, _)| about.iter().any(|about| about.matches(group, resource)));
        rule.map(|(_, providers)| providers.clone())
    };
    let known: Vec<_> = table
        .iter()
        .map(|def| (format!("{ROOT}{}/", def.storage_prefix), find(&def.group, &def.plural)))
        .collect();
    Arc::new(move |key| {
        if let Some((_, providers)) = known.iter().find(|(prefix, _)| key.starts_with(prefix.as_str())) {
            return providers.clone();
        }
        // Custom resources lie below their group and plural.
        let mut parts = key.strip_prefix(ROOT)?.split('/');
        find(parts.next()?, parts.next()?)
    })
}

/// Puts the encryption that a file asks for around a store.
pub fn around(store: Arc<dyn storage::Store>, path: &Path) -> anyhow::Result<Arc<dyn storage::Store>> {
    let configuration =
        components::read_config(path, "apiserver.config.k8s.io/v1", "EncryptionConfiguration")?;
    let rules = rules(configuration).with_context(|| path.display().to_string())?;
    let choose = choose(rules, resources::table());
    Ok(Arc::new(Encrypted::new(store, choose, Arc::new(|bytes| rand::fill(bytes)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> anyhow::Result<Rules> {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";
        rules(serde_saphyr::from_str(&format!("{head}{text}"))?)
    }

    const KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    #[test]
    fn rules_are_about_what_they_name() {
        let rules = read(&format!(
            "resources:
- resources: [secrets, widgets.example.org]
  providers: [{{aescbc: {{keys: [{{name: a, secret: {KEY}}}, {{name: b, secret: {KEY}}}]}}}}, {{identity: {{}}}}]
- resources: ['*.apps']
  providers: [{{secretbox: {{keys: [{{name: c, secret: {KEY}}}]}}}}]
"
        ))
        .unwrap();
        let choose = choose(rules, resources::table());
        for (key, providers) in [
            ("/registry/secrets/default/a", 3),
            ("/registry/deployments/default/a", 1),
            ("/registry/example.org/widgets/default/a", 3),
            ("/registry/example.org/gadgets/default/a", 0),
            ("/registry/configmaps/default/a", 0),
            ("/registry/pods/default/a", 0),
        ] {
            assert_eq!(choose(key).map_or(0, |found| found.0.len()), providers, "{key}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let one = |resource: &str, provider: &str| {
            format!("resources:\n- resources: ['{resource}']\n  providers: [{provider}]\n")
        };
        let identity = "{identity: {}}";
        let short = "{aescbc: {keys: [{name: a, secret: AAAA}]}}";
        for (text, words) in [
            ("resources: []\n".to_owned(), "at least one resources is required"),
            (one("*", identity), "use '*.' to encrypt"),
            (one("secrets.*", identity), "across groups"),
            (one("Secrets", identity), "capital letters"),
            (one("secrets", "{kms: {name: a}}"), "kms is not supported"),
            (one("secrets", "{}"), "does not contain any of the expected providers"),
            (one("secrets", "{identity: {}, aescbc: {keys: []}}"), "more than one provider"),
            (one("secrets", "{aescbc: {keys: []}}"), "at least one keys is required"),
            (one("secrets", short), "not of the expected length, got 3"),
            (one("secrets", "{aescbc: {keys: [{name: a, secret: '!'}]}}"), "must be base64 encoded"),
        ] {
            let error = read(&text).err().unwrap();
            let error = crate::logging::one_line(&error);
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(read("wrong: 1\n").is_err());
    }
}
