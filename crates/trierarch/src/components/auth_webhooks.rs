//! Flags of the API server about servers that say who somebody is and what he may.
//!
//! Upstream: pkg/kubeapiserver/options/{authentication,authorization}.go

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use apiserver::authn::{Random, TokenWebhook};
use apiserver::authz::config::{AuthorizationConfiguration, Flags, Means};
use apiserver::authz::reload::Reload;
use apiserver::authz::{Metrics, Policies};
use clap::{Args, ValueEnum};
use client::kubeconfig::{self, Kubeconfig};

use super::duration;
use crate::certificates::read;
use crate::trust::Authorization;

#[derive(Args)]
#[command(next_help_heading = "Authorization, and tokens that others know")]
pub struct AuthWebhooks {
    /// Who decides what a user may, in order
    #[arg(long, value_enum, value_name = "MODES", value_delimiter = ',', default_value = "Node,RBAC")]
    pub authorization_mode: Vec<AuthorizationMode>,
    /// A file with an AuthorizationConfiguration: who decides, several servers among them
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "authorization_mode",
            "authorization_webhook_config_file",
            "authorization_webhook_version",
            "authorization_webhook_cache_authorized_ttl",
            "authorization_webhook_cache_unauthorized_ttl",
        ]
    )]
    pub authorization_config: Option<PathBuf>,
    /// The policies of mode ABAC, one a line
    #[arg(long, value_name = "FILE")]
    pub authorization_policy_file: Option<PathBuf>,
    /// A kubeconfig of the server that mode Webhook asks
    #[arg(long, value_name = "FILE")]
    pub authorization_webhook_config_file: Option<PathBuf>,
    /// The version of SubjectAccessReview that it knows: v1 or v1beta1
    #[arg(long, value_name = "VERSION", default_value = "v1beta1")]
    pub authorization_webhook_version: String,
    /// How long is kept that somebody may
    #[arg(long, value_name = "DURATION", default_value = "5m0s", value_parser = duration)]
    pub authorization_webhook_cache_authorized_ttl: Duration,
    /// How long is kept that somebody may not
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub authorization_webhook_cache_unauthorized_ttl: Duration,
    /// A kubeconfig of a server that knows bearer tokens
    #[arg(long, value_name = "FILE")]
    pub authentication_token_webhook_config_file: Option<PathBuf>,
    /// The version of TokenReview that it knows: v1 or v1beta1
    #[arg(long, value_name = "VERSION", default_value = "v1beta1")]
    pub authentication_token_webhook_version: String,
    /// How long its answers are kept
    #[arg(long, value_name = "DURATION", default_value = "2m0s", value_parser = duration)]
    pub authentication_token_webhook_cache_ttl: Duration,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AuthorizationMode {
    #[value(name = "Node")]
    Node,
    #[value(name = "RBAC")]
    Rbac,
    #[value(name = "AlwaysAllow")]
    AlwaysAllow,
    #[value(name = "AlwaysDeny")]
    AlwaysDeny,
    #[value(name = "ABAC")]
    Abac,
    #[value(name = "Webhook")]
    Webhook,
}

impl AuthWebhooks {
    /// Who decides, and the file that says it, to be followed.
    pub fn authorization(&self, random: &Random) -> anyhow::Result<Authorization> {
        let wrong = |why: String| anyhow::anyhow!("{why}");
        let (text, configuration) = match &self.authorization_config {
            Some(path) => {
                let text = read(path)?;
                let read = AuthorizationConfiguration::parse(&text).map_err(wrong);
                (text, read.with_context(|| format!("cannot use {}", path.display()))?)
            }
            None => (String::new(), self.flags().configuration().map_err(wrong)?),
        };
        let by_policies = configuration.authorizers.iter().any(|authorizer| authorizer.r#type == "ABAC");
        let policies = || Policies::read(self.authorization_policy_file.as_deref().unwrap_or("".as_ref()));
        let means = Means {
            random: random.clone(),
            in_cluster: || kubeconfig::in_cluster(|name| std::env::var(name).ok()),
            policies: by_policies.then(policies).transpose().map_err(wrong)?.map(Arc::new),
            metrics: Metrics::default(),
        };
        Ok(Authorization {
            modes: configuration.modes(&means).map_err(wrong)?,
            metrics: means.metrics.clone(),
            reload: self
                .authorization_config
                .clone()
                .map(|path| Reload::new(path, text, configuration, means)),
        })
    }

    fn flags(&self) -> Flags {
        let named = |mode: &AuthorizationMode| {
            mode.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
        };
        Flags {
            modes: self.authorization_mode.iter().map(named).collect(),
            policy_file: self.authorization_policy_file.clone(),
            webhook_config_file: self.authorization_webhook_config_file.clone(),
            webhook_version: self.authorization_webhook_version.clone(),
            authorized_ttl: self.authorization_webhook_cache_authorized_ttl,
            unauthorized_ttl: self.authorization_webhook_cache_unauthorized_ttl,
        }
    }

    /// Who is asked about tokens.
    pub fn tokens(&self, random: &Random) -> anyhow::Result<Option<Arc<TokenWebhook>>> {
        let Some(path) = &self.authentication_token_webhook_config_file else { return Ok(None) };
        let config = Kubeconfig::read(path).and_then(|kubeconfig| kubeconfig.config(None))?;
        let version = &self.authentication_token_webhook_version;
        let time = self.authentication_token_webhook_cache_ttl;
        let webhook = TokenWebhook::new(&config, version, time, random.clone());
        Ok(Some(Arc::new(webhook.map_err(|why| anyhow::anyhow!("{why}"))?)))
    }
}
