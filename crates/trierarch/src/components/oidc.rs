//! Flags of the API server about users that other issuers know.
//!
//! Upstream: pkg/kubeapiserver/options/authentication.go

use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use apiserver::authn::oidc::config::{AuthenticationConfiguration, Flags, Jwt};
use clap::Args;

use crate::certificates::read;

#[derive(Args)]
#[command(next_help_heading = "Users of other issuers")]
pub struct Oidc {
    /// A file with an AuthenticationConfiguration: issuers of tokens, and what their claims say of users
    #[arg(long, value_name = "FILE")]
    pub authentication_config: Option<PathBuf>,
    /// The URL of an OpenID issuer whose ID tokens name users; it begins with https
    #[arg(long, value_name = "URL", requires = "oidc_client_id")]
    pub oidc_issuer_url: Option<String>,
    /// The audience that its tokens must be for
    #[arg(long, value_name = "ID", requires = "oidc_issuer_url")]
    pub oidc_client_id: Option<String>,
    /// The authorities of the issuer's certificate [default: the machine's]
    #[arg(long, value_name = "FILE")]
    pub oidc_ca_file: Option<PathBuf>,
    /// The claim that is the user's name
    #[arg(long, value_name = "CLAIM", default_value = "sub")]
    pub oidc_username_claim: String,
    /// What is put before names; - for nothing [default: the issuer and #, but for the claim email]
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub oidc_username_prefix: String,
    /// The claim that names the user's groups
    #[arg(long, value_name = "CLAIM", default_value = "", hide_default_value = true)]
    pub oidc_groups_claim: String,
    /// What is put before groups
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    pub oidc_groups_prefix: String,
    /// The algorithms that its tokens may be signed with
    #[arg(long, value_name = "NAMES", value_delimiter = ',', default_value = "RS256")]
    pub oidc_signing_algs: Vec<String>,
    /// A claim that tokens must have, with its value; may be given several times
    #[arg(long, value_name = "CLAIM=VALUE", value_delimiter = ',')]
    pub oidc_required_claim: Vec<String>,
}

impl Oidc {
    /// The issuers, and whether strangers are let in when the file says so.
    pub fn issuers(&self) -> anyhow::Result<(Vec<Jwt>, Option<bool>)> {
        let Some(path) = &self.authentication_config else {
            return Ok((self.of_flags()?.into_iter().collect(), None));
        };
        let configuration = AuthenticationConfiguration::parse(&read(path)?);
        let configuration = configuration.map_err(|errors| anyhow::anyhow!(errors.join("; ")));
        let configuration = configuration.with_context(|| format!("cannot use {}", path.display()))?;
        if self.oidc_issuer_url.is_some() {
            bail!("authentication-config file and oidc-* flags are mutually exclusive");
        }
        let anonymous = configuration.anonymous;
        ensure!(
            anonymous.as_ref().is_none_or(|anonymous| anonymous.conditions.is_empty()),
            "{}: anonymous.conditions are not possible yet",
            path.display()
        );
        Ok((configuration.jwt, anonymous.map(|anonymous| anonymous.enabled)))
    }

    fn of_flags(&self) -> anyhow::Result<Option<Jwt>> {
        let (Some(issuer_url), Some(client_id)) = (&self.oidc_issuer_url, &self.oidc_client_id) else {
            return Ok(None);
        };
        let claim = |text: &String| {
            let (claim, value) =
                text.split_once('=').with_context(|| format!("{text:?} is not CLAIM=VALUE"))?;
            anyhow::Ok((claim.to_owned(), value.to_owned()))
        };
        Ok(Some(
            Flags {
                issuer_url: issuer_url.clone(),
                client_id: client_id.clone(),
                username_claim: self.oidc_username_claim.clone(),
                username_prefix: self.oidc_username_prefix.clone(),
                groups_claim: self.oidc_groups_claim.clone(),
                groups_prefix: self.oidc_groups_prefix.clone(),
                required_claims: self.oidc_required_claim.iter().map(claim).collect::<Result<_, _>>()?,
                signing_algorithms: self.oidc_signing_algs.clone(),
                authority: self.oidc_ca_file.as_deref().map(read).transpose()?.unwrap_or_default(),
            }
            .issuer(),
        ))
    }
}
