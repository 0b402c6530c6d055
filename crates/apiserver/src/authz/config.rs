//! Which authorizers are asked: an `AuthorizationConfiguration`, or the flags, which are written as one.
//!
//! Upstream: apiserver/pkg/apis/apiserver/v1/types.go, apiserver/pkg/apis/apiserver/validation/validation.go
//! ValidateAuthorizationConfiguration, pkg/kubeapiserver/options/authorization.go

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::field::{Error, Path, aggregate};
use apimachinery::time::go_duration;
use client::https::Config;
use client::kubeconfig::Kubeconfig;
use serde::{Deserialize, Deserializer};

use super::Mode;
use super::abac::Policies;
use super::metrics::Metrics;
use super::webhook::{Condition, Options, Version, Webhook};
use crate::authn::Random;
use crate::remote::review_server::ReviewServer;

const API_VERSIONS: [&str; 3] =
    ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1beta1", "apiserver.config.k8s.io/v1alpha1"];
const TYPES: [&str; 6] = ["ABAC", "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];
const MOST_CONDITIONS: usize = 64;
const LONGEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Upstream: apiserver/pkg/server/options/authentication.go DefaultAuthWebhookRetryBackoff
const PATIENCE: Duration = Duration::from_millis(500);

/// What authorizers are made of, besides what their configuration says.
#[derive(Clone)]
pub struct Means {
    pub random: Random,
    /// How a server is reached that is this cluster's own.
    pub in_cluster: fn() -> Result<Config, client::Error>,
    /// Those of `--authorization-policy-file`, where ABAC is one of the authorizers.
    pub policies: Option<Arc<Policies>>,
    pub metrics: Metrics,
}

/// The file of `--authorization-config`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorizationConfiguration {
    pub api_version: String,
    pub kind: String,
    pub authorizers: Vec<AuthorizerConfiguration>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AuthorizerConfiguration {
    pub r#type: String,
    pub name: String,
    pub webhook: Option<WebhookConfiguration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WebhookConfiguration {
    #[serde(rename = "authorizedTTL", deserialize_with = "read_duration")]
    pub authorized_ttl: Duration,
    pub cache_authorized_requests: bool,
    #[serde(rename = "unauthorizedTTL", deserialize_with = "read_duration")]
    pub unauthorized_ttl: Duration,
    pub cache_unauthorized_requests: bool,
    #[serde(deserialize_with = "read_duration")]
    pub timeout: Duration,
    pub subject_access_review_version: String,
    pub match_condition_subject_access_review_version: String,
    pub failure_policy: String,
    pub connection_info: ConnectionInfo,
    pub match_conditions: Vec<MatchCondition>,
}

impl Default for WebhookConfiguration {
    fn default() -> Self {
        WebhookConfiguration {
            authorized_ttl: Duration::ZERO,
            cache_authorized_requests: true,
            unauthorized_ttl: Duration::ZERO,
            cache_unauthorized_requests: true,
            timeout: Duration::ZERO,
            subject_access_review_version: String::new(),
            match_condition_subject_access_review_version: String::new(),
            failure_policy: String::new(),
            connection_info: ConnectionInfo::default(),
            match_conditions: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ConnectionInfo {
    pub r#type: String,
    pub kube_config_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MatchCondition {
    pub expression: String,
}

fn read_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    go_duration(&text).map_err(serde::de::Error::custom)
}

/// What the flags say of the one server of mode `Webhook`.
#[derive(Clone, Debug)]
pub struct Flags {
    pub modes: Vec<String>,
    pub policy_file: Option<PathBuf>,
    pub webhook_config_file: Option<PathBuf>,
    pub webhook_version: String,
    pub authorized_ttl: Duration,
    pub unauthorized_ttl: Duration,
}

impl Flags {
    /// The configuration that they describe.
    ///
    /// Upstream: pkg/kubeapiserver/options/authorization.go Validate, buildAuthorizationConfiguration
    pub fn configuration(self) -> Result<AuthorizationConfiguration, String> {
        for (mode, file, name, flag) in [
            ("ABAC", &self.policy_file, "policy file", "authorization-policy-file"),
            ("Webhook", &self.webhook_config_file, "config file", "authorization-webhook-config-file"),
        ] {
            match (self.modes.iter().any(|wanted| wanted == mode), file) {
                (true, None) => {
                    return Err(format!("authorization-mode {mode}'s authorization {name} not passed"));
                }
                (false, Some(_)) => return Err(format!("cannot specify --{flag} without mode {mode}")),
                _ => {}
            }
        }
        let different: BTreeSet<&String> = self.modes.iter().collect();
        if different.len() != self.modes.len() {
            return Err(format!("authorization-mode {:?} has mode specified more than once", self.modes));
        }
        let authorizer = |mode: &String| AuthorizerConfiguration {
            r#type: mode.clone(),
            name: if mode == "Webhook" { "default".to_owned() } else { usual_name(mode) },
            webhook: (mode == "Webhook").then(|| self.webhook()),
        };
        let authorizers = self.modes.iter().map(authorizer).collect();
        Ok(AuthorizationConfiguration { authorizers, ..Default::default() })
    }

    fn webhook(&self) -> WebhookConfiguration {
        WebhookConfiguration {
            authorized_ttl: self.authorized_ttl,
            cache_authorized_requests: !self.authorized_ttl.is_zero(),
            unauthorized_ttl: self.unauthorized_ttl,
            cache_unauthorized_requests: !self.unauthorized_ttl.is_zero(),
            timeout: LONGEST_TIMEOUT,
            subject_access_review_version: self.webhook_version.clone(),
            failure_policy: "NoOpinion".to_owned(),
            connection_info: ConnectionInfo {
                r#type: "KubeConfigFile".to_owned(),
                kube_config_file: self.webhook_config_file.clone(),
            },
            ..Default::default()
        }
    }
}

/// What an authorizer is called that there is only one of.
fn usual_name(kind: &str) -> String {
    kind.to_ascii_lowercase()
}

impl AuthorizationConfiguration {
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_with(text, &[])
    }

    /// Reads a configuration that must have authorizers of these types.
    ///
    /// Upstream: pkg/kubeapiserver/authorizer/config.go LoadAndValidateData
    pub(super) fn parse_with(text: &str, types: &[String]) -> Result<Self, String> {
        let unread = |why: String| format!("failed to load AuthorizationConfiguration from file: {why}");
        let mut read: Self = serde_saphyr::from_str(text).map_err(|error| unread(error.to_string()))?;
        let known = API_VERSIONS.contains(&read.api_version.as_str());
        if read.kind != "AuthorizationConfiguration" || !known {
            let why = format!("no kind {:?} is registered for version {:?}", read.kind, read.api_version);
            return Err(unread(why));
        }
        for webhook in read.authorizers.iter_mut().filter_map(|authorizer| authorizer.webhook.as_mut()) {
            webhook.fill_defaults();
        }
        let errors = read.wrong();
        if !errors.is_empty() {
            return Err(aggregate(&errors));
        }
        match read.misnamed(types).as_slice() {
            [] => Ok(read),
            errors => Err(super::rbac::aggregate(errors)),
        }
    }

    /// The types of the authorizers that are not webhooks.
    pub(super) fn lasting_types(&self) -> Vec<String> {
        let types = self.authorizers.iter().map(|authorizer| authorizer.r#type.clone());
        types.filter(|kind| kind != "Webhook").collect()
    }

    /// What is called otherwise than the flags would call it, and what of `types` is missing.
    fn misnamed(&self, types: &[String]) -> Vec<String> {
        let lasting = self.authorizers.iter().filter(|authorizer| authorizer.r#type != "Webhook");
        let mut errors: Vec<String> = lasting
            .filter(|authorizer| authorizer.name != usual_name(&authorizer.r#type))
            .map(|AuthorizerConfiguration { r#type, name, .. }| {
                format!("expected name {} for authorizer {} instead of {name}", usual_name(r#type), r#type)
            })
            .collect();
        let here = self.lasting_types();
        let missing: BTreeSet<&str> =
            types.iter().filter(|kind| !here.contains(kind)).map(String::as_str).collect();
        if !missing.is_empty() {
            let names: Vec<&str> = missing.into_iter().collect();
            errors.push(format!("missing required types: [{}]", names.join(" ")));
        }
        errors
    }

    fn wrong(&self) -> Vec<Error> {
        let mut errors = Vec::new();
        let list = Path::new("authorizers");
        if self.authorizers.is_empty() {
            errors.push(Error::required(&list, "at least one authorization mode must be defined"));
        }
        let (mut types, mut names) = (BTreeSet::new(), BTreeSet::new());
        for (index, authorizer) in self.authorizers.iter().enumerate() {
            let path = list.index(index);
            let of_type = authorizer.r#type.as_str();
            let at_type = path.child("type");
            if of_type.is_empty() {
                errors.push(Error::required(&at_type, ""));
                continue;
            }
            if !TYPES.contains(&of_type) {
                errors.push(Error::not_supported(&at_type, of_type, &TYPES));
                continue;
            }
            if !types.insert(of_type) && of_type != "Webhook" {
                errors.push(Error::duplicate(&at_type, of_type));
                continue;
            }
            let (name, at_name) = (authorizer.name.as_str(), path.child("name"));
            let malformed = apimachinery::names::dns1123_subdomain(name);
            if name.is_empty() {
                errors.push(Error::required(&at_name, ""));
            } else if !names.insert(name) {
                errors.push(Error::duplicate(&at_name, name));
            } else if !malformed.is_empty() {
                let why = format!("authorizer name is invalid: {}", malformed.join(", "));
                errors.push(Error::invalid(&at_name, name, why));
            }
            match (&authorizer.webhook, of_type) {
                (None, "Webhook") => {
                    errors.push(Error::required(&path.child("webhook"), "required when type=Webhook"));
                }
                (Some(webhook), "Webhook") => webhook.wrong(&path, &mut errors),
                (Some(_), _) => errors.push(Error::invalid(
                    &path.child("webhook"),
                    "non-null",
                    "may only be specified when type=Webhook",
                )),
                (None, _) => {}
            }
        }
        errors
    }

    /// The authorizers, ready to be asked.
    pub fn modes(&self, means: &Means) -> Result<Vec<Mode>, String> {
        let mode =
            |authorizer: &AuthorizerConfiguration| match (authorizer.r#type.as_str(), &authorizer.webhook) {
                ("AlwaysAllow", _) => Ok(Mode::AlwaysAllow),
                ("AlwaysDeny", _) => Ok(Mode::AlwaysDeny),
                ("ABAC", _) => {
                    let absent = || {
                        "authorizer type ABAC is not allowed if it was not enabled at initial server startup"
                            .to_owned()
                    };
                    means.policies.clone().map(Mode::Abac).ok_or_else(absent)
                }
                ("Node", _) => Ok(Mode::Node),
                ("RBAC", _) => Ok(Mode::Rbac),
                ("Webhook", Some(webhook)) => {
                    let made = webhook.make(&authorizer.name, means);
                    made.map(|made| Mode::Webhook(Arc::new(made)))
                        .map_err(|why| format!("authorizer {:?}: {why}", authorizer.name))
                }
                (other, _) => Err(format!("authorization-mode {other:?} is not a valid mode")),
            };
        self.authorizers.iter().map(mode).collect()
    }
}

impl WebhookConfiguration {
    /// Upstream: apiserver/pkg/apis/apiserver/v1/defaults.go SetDefaults_WebhookConfiguration
    fn fill_defaults(&mut self) {
        for (time, usual) in [(&mut self.authorized_ttl, 5 * 60), (&mut self.unauthorized_ttl, 30)] {
            if time.is_zero() {
                *time = Duration::from_secs(usual);
            }
        }
    }

    /// Upstream: ValidateWebhookConfiguration
    fn wrong(&self, path: &Path, errors: &mut Vec<Error>) {
        if self.timeout.is_zero() {
            errors.push(Error::required(&path.child("timeout"), ""));
        } else if self.timeout > LONGEST_TIMEOUT {
            let shown = format!("{}s", self.timeout.as_secs_f64());
            errors.push(Error::invalid(&path.child("timeout"), shown, "must be > 0s and <= 30s"));
        }
        let mut one_of = |field: &str, value: &str, known: &[&str], needed: Option<&str>| {
            let path = path.child(field);
            match (value, needed) {
                ("", Some(why)) => errors.push(Error::required(&path, why)),
                ("", None) => {}
                (value, _) if known.contains(&value) => {}
                (value, _) => errors.push(Error::not_supported(&path, value, known)),
            }
        };
        let version = &self.subject_access_review_version;
        one_of("subjectAccessReviewVersion", version, &["v1", "v1beta1"], Some(""));
        let why = "required if match conditions are specified";
        let needed = (!self.match_conditions.is_empty()).then_some(why);
        let version = &self.match_condition_subject_access_review_version;
        one_of("matchConditionSubjectAccessReviewVersion", version, &["v1"], needed);
        one_of("failurePolicy", &self.failure_policy, &["NoOpinion", "Deny"], Some(""));
        self.connection_info.wrong(&path.child("connectionInfo"), errors);
        self.wrong_conditions(&path.child("matchConditions"), errors);
    }

    fn wrong_conditions(&self, path: &Path, errors: &mut Vec<Error>) {
        if self.match_conditions.len() > MOST_CONDITIONS {
            errors.push(Error::too_many(path, self.match_conditions.len(), MOST_CONDITIONS));
            return;
        }
        let mut seen = BTreeSet::new();
        for (index, condition) in self.match_conditions.iter().enumerate() {
            let path = path.index(index).child("expression");
            let text = condition.expression.as_str();
            if text.trim().is_empty() {
                errors.push(Error::required(&path, ""));
            } else if !seen.insert(text) {
                errors.push(Error::duplicate(&path, text));
            } else if let Err(why) = Condition::compile(text) {
                errors.push(Error::invalid(&path, text, why));
            }
        }
    }

    fn make(&self, name: &str, means: &Means) -> Result<Webhook, String> {
        let version = &self.subject_access_review_version;
        let Some(version) = Version::named(version) else {
            return Err(format!(
                "unsupported webhook authorizer version {version:?}, supported versions are \"v1\", \"v1beta1\""
            ));
        };
        let config = match &self.connection_info.kube_config_file {
            Some(path) => Kubeconfig::read(path).and_then(|kubeconfig| kubeconfig.config(None)),
            None => (means.in_cluster)(),
        };
        let server = config
            .and_then(|config| ReviewServer::new(&config, self.timeout, PATIENCE, means.random.clone()));
        let kept = |wanted: bool, time: Duration| if wanted { time } else { Duration::ZERO };
        let options = Options {
            version,
            authorized: kept(self.cache_authorized_requests, self.authorized_ttl),
            unauthorized: kept(self.cache_unauthorized_requests, self.unauthorized_ttl),
            denies_on_failure: self.failure_policy == "Deny",
        };
        let conditions =
            self.match_conditions.iter().map(|condition| Condition::compile(&condition.expression));
        let conditions = conditions.collect::<Result<_, _>>()?;
        let server = server.map_err(|error| error.to_string())?;
        Ok(Webhook::new(name, server, options, conditions, means.metrics.clone()))
    }
}

impl ConnectionInfo {
    fn wrong(&self, path: &Path, errors: &mut Vec<Error>) {
        const TYPES: [&str; 2] = ["InClusterConfig", "KubeConfigFile"];
        let file = self.kube_config_file.as_deref().filter(|file| !file.as_os_str().is_empty());
        let at_file = path.child("kubeConfigFile");
        let mut invalid = |file: &std::path::Path, why: &str| {
            errors.push(Error::invalid(&at_file, file.to_string_lossy().into_owned(), why));
        };
        match (self.r#type.as_str(), file) {
            ("InClusterConfig", None) => {}
            ("InClusterConfig", Some(file)) => invalid(file, "can only be set when type=KubeConfigFile"),
            ("KubeConfigFile", Some(file)) if !file.is_absolute() => {
                invalid(file, "must be an absolute path");
            }
            ("KubeConfigFile", Some(file)) => match std::fs::metadata(file) {
                Err(error) => invalid(file, &format!("error loading file: {error}")),
                Ok(found) if !found.is_file() => invalid(file, "must be a regular file"),
                Ok(_) => {}
            },
            ("KubeConfigFile", None) => errors.push(Error::required(&at_file, "")),
            ("", _) => errors.push(Error::required(&path.child("type"), "")),
            (other, _) => errors.push(Error::not_supported(&path.child("type"), other, &TYPES)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n";

    fn refusal(text: &str) -> String {
        AuthorizationConfiguration::parse(&format!("{HEAD}{text}")).err().unwrap_or_default()
    }

    #[test]
    fn wrong_configurations_are_told_in_upstreams_words() {
        let webhook =
            |fields: &str| format!("authorizers: [{{type: Webhook, name: w, webhook: {{{fields}}}}}]");
        let usual = "timeout: 3s, subjectAccessReviewVersion: v1, failurePolicy: Deny, connectionInfo: {type: \
                     InClusterConfig}";
        for (text, wanted) in [
            ("", "authorizers: Required value: at least one authorization mode must be defined".to_owned()),
            ("authorizers: [{type: RBAC, name: rbac}, {type: Node, name: node}]", String::new()),
            (
                "authorizers: [{type: RBAC, name: a}, {type: RBAC, name: b}]",
                "authorizers[1].type: Duplicate value: \"RBAC\"".to_owned(),
            ),
            (
                "authorizers: [{type: Other, name: a}]",
                "authorizers[0].type: Unsupported value: \"Other\": supported values: \"ABAC\", \"AlwaysAllow\", \
                 \"AlwaysDeny\", \"Node\", \"RBAC\", \"Webhook\""
                    .to_owned(),
            ),
            (
                "authorizers: [{type: RBAC, name: a}, {type: Node, name: node}]",
                "expected name rbac for authorizer RBAC instead of a".to_owned(),
            ),
            (
                "authorizers: [{type: Webhook, name: a}]",
                "authorizers[0].webhook: Required value: required when type=Webhook".to_owned(),
            ),
        ] {
            assert_eq!(refusal(text), wanted, "{text}");
        }
        for (fields, wanted) in [
            (usual.to_owned(), ""),
            (
                format!("{usual}, matchConditions: [{{expression: 'true'}}]"),
                "authorizers[0].matchConditionSubjectAccessReviewVersion: Required value: required if match conditions \
                 are specified",
            ),
            (
                usual.replace("3s", "1m"),
                "authorizers[0].timeout: Invalid value: \"60s\": must be > 0s and <= 30s",
            ),
            (
                usual.replace("InClusterConfig", "KubeConfigFile"),
                "authorizers[0].connectionInfo.kubeConfigFile: Required value",
            ),
        ] {
            assert_eq!(refusal(&webhook(&fields)), wanted, "{fields}");
        }
    }

    #[test]
    fn flags_describe_a_configuration() {
        let flags = |modes: &[&str], file: Option<&str>| Flags {
            modes: modes.iter().map(|mode| (*mode).to_owned()).collect(),
            policy_file: None,
            webhook_config_file: file.map(PathBuf::from),
            webhook_version: "v1".into(),
            authorized_ttl: Duration::from_secs(1),
            unauthorized_ttl: Duration::ZERO,
        };
        let made = flags(&["Node", "Webhook"], Some("/f")).configuration().unwrap();
        let webhook = made.authorizers[1].webhook.as_ref().unwrap();
        assert!(webhook.cache_authorized_requests && !webhook.cache_unauthorized_requests);
        for (modes, file, wanted) in [
            (&["ABAC"][..], None, "authorization-mode ABAC's authorization policy file not passed"),
            (&["Webhook"], None, "authorization-mode Webhook's authorization config file not passed"),
            (
                &["RBAC"],
                Some("/f"),
                "cannot specify --authorization-webhook-config-file without mode Webhook",
            ),
            (
                &["RBAC", "RBAC"],
                None,
                "authorization-mode [\"RBAC\", \"RBAC\"] has mode specified more than once",
            ),
        ] {
            assert_eq!(flags(modes, file).configuration().unwrap_err(), wanted);
        }
    }

    #[test]
    fn what_the_server_started_with_must_stay() {
        let types = ["Node", "RBAC"].map(str::to_owned);
        let read = |text: &str| {
            let read = AuthorizationConfiguration::parse_with(&format!("{HEAD}{text}"), &types);
            read.err().unwrap_or_default()
        };
        assert_eq!(read("authorizers: [{type: RBAC, name: rbac}, {type: Node, name: node}]"), "");
        assert_eq!(
            read("authorizers: [{type: AlwaysAllow, name: all}]"),
            "[expected name alwaysallow for authorizer AlwaysAllow instead of all, missing required types: [Node \
             RBAC]]"
        );
    }
}
