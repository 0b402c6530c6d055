//! What plugins are told: an `AdmissionConfiguration` with a document for each, of its own file or within.
//!
//! Upstream: apiserver/pkg/admission/config.go ReadAdmissionConfiguration

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::event_rate_limit::EventLimits;
use super::image_policy::ImagePolicy;
use super::pod_node_selector::NodeSelectors;
use super::pod_security::Security;
use super::pod_toleration_restriction::Tolerations;
use super::resource_quota::LimitedResources;
use super::selection::Selection;
use super::webhook::identities::Identities;
use super::{event_rate_limit, image_policy, pod_node_selector, pod_security};
use super::{pod_toleration_restriction, resource_quota};
use crate::authn::Random;

const API_VERSIONS: [&str; 2] = ["apiserver.config.k8s.io/v1", "apiserver.k8s.io/v1alpha1"];
/// Plugins whose document may be the whole file, from before there was a kind for it.
const UNVERSIONED: [(&str, &str); 2] =
    [("ImagePolicyWebhook", "imagePolicy"), ("PodNodeSelector", "podNodeSelectorPluginConfig")];

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AdmissionConfiguration {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    plugins: Vec<PluginConfiguration>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginConfiguration {
    name: String,
    #[serde(default)]
    path: String,
    #[serde(default)]
    configuration: Option<Value>,
}

/// The documents, by plugin.
#[derive(Debug, Default)]
pub struct Documents(BTreeMap<String, Value>);

impl Documents {
    /// Reads the file, and those that it names, which count from where it lies.
    pub fn read(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let read = |path: &Path| -> Result<Value, String> {
            let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
            serde_saphyr::from_str(&text).map_err(|error| error.to_string())
        };
        let unreadable =
            |why: String| format!("unable to read admission control configuration from \"{shown}\" [{why}]");
        let file = read(path).map_err(unreadable)?;
        let (kind, version) = (text(&file, "kind"), text(&file, "apiVersion"));
        if kind.is_empty() || version.is_empty() {
            let whole = UNVERSIONED.iter().any(|(_, field)| file.get(field).is_some());
            let documents = || UNVERSIONED.map(|(plugin, _)| (plugin.to_owned(), file.clone()));
            return match whole {
                true => Ok(Documents(documents().into())),
                false => Err(unreadable("Object 'Kind' or 'apiVersion' is missing".to_owned())),
            };
        }
        if kind != "AdmissionConfiguration" || !API_VERSIONS.contains(&version) {
            return Err(unreadable(format!("no kind {kind:?} is registered for version {version:?}")));
        }
        let configuration: AdmissionConfiguration =
            serde_json::from_value(file).map_err(|error| unreadable(error.to_string()))?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let mut documents = BTreeMap::new();
        for plugin in configuration.plugins {
            let document = match plugin.configuration {
                Some(document) => document,
                None if plugin.path.is_empty() => continue,
                None => read(&directory.join(&plugin.path)).map_err(|why| {
                    format!("couldn't open admission plugin configuration {}: {why}", plugin.path)
                })?,
            };
            // Of two documents for a plugin the first counts.
            documents.entry(plugin.name).or_insert(document);
        }
        Ok(Documents(documents))
    }

    #[cfg(test)]
    pub(super) fn of(documents: impl IntoIterator<Item = (&'static str, Value)>) -> Self {
        Documents(documents.into_iter().map(|(name, document)| (name.to_owned(), document)).collect())
    }
}

fn text<'a>(document: &'a Value, field: &str) -> &'a str {
    document[field].as_str().unwrap_or_default()
}

/// A document of a kind that has versions.
pub(super) fn versioned<T: DeserializeOwned>(
    document: &Value,
    group: &str,
    versions: &[&str],
    kind: &str,
) -> Result<T, String> {
    let (given, version) = (text(document, "kind"), text(document, "apiVersion"));
    let known = version
        .strip_prefix(group)
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(|version| versions.contains(&version));
    if given != kind || !known {
        return Err(format!("no kind {given:?} is registered for version {version:?}"));
    }
    let mut document = document.clone();
    if let Some(fields) = document.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    serde_json::from_value(document).map_err(|error| error.to_string())
}

/// What the plugins make of their documents.
#[derive(Default)]
pub struct Settings {
    pub(super) security: Security,
    pub(super) node_selectors: NodeSelectors,
    pub(super) tolerations: Tolerations,
    pub(super) event_limits: EventLimits,
    pub(super) image_policy: Option<ImagePolicy>,
    pub(super) limited_resources: LimitedResources,
    pub(super) mutating_identities: Identities,
    pub(super) validating_identities: Identities,
}

impl Settings {
    /// For the plugins that run; else what is wrong with a document of one of them.
    pub fn new(documents: &Documents, selection: &Selection, random: &Random) -> Result<Self, String> {
        /// Reads a plugin's document, if the plugin runs.
        fn of<T: Default>(
            plugin: &str,
            (documents, selection): (&Documents, &Selection),
            read: impl FnOnce(Option<&Value>) -> Result<T, String>,
        ) -> Result<T, String> {
            if !selection.has(plugin) {
                return Ok(T::default());
            }
            read(documents.0.get(plugin)).map_err(|why| {
                format!("failed to initialize admission: couldn't init admission plugin {plugin:?}: {why}")
            })
        }
        let from = (documents, selection);
        Ok(Settings {
            security: of("PodSecurity", from, pod_security::configured)?,
            node_selectors: of("PodNodeSelector", from, pod_node_selector::configured)?,
            tolerations: of("PodTolerationRestriction", from, pod_toleration_restriction::configured)?,
            event_limits: of("EventRateLimit", from, event_rate_limit::configured)?,
            image_policy: of("ImagePolicyWebhook", from, |document| {
                image_policy::configured(document, random).map(Some)
            })?,
            limited_resources: of("ResourceQuota", from, resource_quota::configured)?,
            mutating_identities: of("MutatingAdmissionWebhook", from, Identities::configured)?,
            validating_identities: of("ValidatingAdmissionWebhook", from, Identities::configured)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Documents, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("own.yaml"), "a: 1\n").unwrap();
        let path = dir.path().join("admission.yaml");
        std::fs::write(&path, text).unwrap();
        Documents::read(&path).map_err(|why| why.split_once('[').map_or(why.clone(), |(_, why)| why.into()))
    }

    #[test]
    fn documents_stand_in_the_file_or_in_files_of_their_own() {
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\n";
        let plugins = "plugins: [{name: A, path: own.yaml}, {name: B, configuration: {b: 2}}, {name: C}]\n";
        let documents = read(&format!("{head}{plugins}")).unwrap();
        let shown: Vec<String> = documents.0.iter().map(|(name, one)| format!("{name} {one}")).collect();
        assert_eq!(shown, [r#"A {"a":1}"#, r#"B {"b":2}"#]);
        let legacy = read("imagePolicy: {kubeConfigFile: x}\n").unwrap();
        assert!(legacy.0.contains_key("ImagePolicyWebhook") && legacy.0.contains_key("PodNodeSelector"));
        for (text, wanted) in [
            ("a: 1\n".to_owned(), "Object 'Kind' or 'apiVersion' is missing]"),
            ("apiVersion: v1\nkind: Pod\n".to_owned(), "no kind \"Pod\" is registered for version \"v1\"]"),
            (format!("{head}other: 1\n"), "unknown field `other`"),
            (
                format!("{head}plugins: [{{name: A, path: absent}}]\n"),
                "couldn't open admission plugin configuration absent",
            ),
        ] {
            let why = read(&text).unwrap_err();
            assert!(why.starts_with(wanted), "{why}");
        }
    }
}
