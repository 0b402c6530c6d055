//! `trierarch token`: bootstrap tokens, kept as Secrets of `kube-system`, and the join strings that hold them.
//!
//! Upstream: cluster-bootstrap/token/api/types.go, util/tokens.go

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use api::Object;
use api::core::v1::Secret;
use clap::{Args, Subcommand};
use client::kubeconfig::Kubeconfig;
use client::{Client, DeleteOptions, ListOptions};
use serde_json::json;

use super::objects::TOKEN_GROUP;
use super::pin::Pin;
use crate::{cli, components, host};

/// Upstream: cmd/kubeadm/app/constants/constants.go DefaultTokenDuration
pub const DEFAULT_LIFE: Duration = Duration::from_secs(24 * 60 * 60);
const NAMESPACE: &str = "kube-system";
const PREFIX: &str = "bootstrap-token-";
const TYPE: &str = "bootstrap.kubernetes.io/token";

/// `id.secret`: what a machine shows to ask for its first certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    id: String,
    secret: String,
}

/// What a machine needs to join: the token, and by what it knows the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    pub token: Token,
    pub pin: Pin,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |part: &str, length: usize| {
            part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        match text.split_once('.') {
            Some((id, secret)) if plain(id, 6) && plain(secret, 16) => {
                Ok(Token { id: id.to_owned(), secret: secret.to_owned() })
            }
            _ => Err("a token is of the form abcdef.0123456789abcdef".to_owned()),
        }
    }
}

impl fmt::Display for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.token, self.pin)
    }
}

impl FromStr for Join {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (token, pin) = text.split_once('@').ok_or("a join token is of the form TOKEN@sha256:HASH")?;
        Ok(Join { token: token.parse()?, pin: pin.parse()? })
    }
}

impl Token {
    /// A new one that nobody can guess.
    pub fn new() -> Self {
        const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let text = |length: usize| {
            (0..length).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
        };
        Token { id: text(6), secret: text(16) }
    }

    /// Makes the Secret that lets whoever shows this token join.
    pub async fn store(
        &self,
        client: &Client,
        until: Option<jiff::Timestamp>,
        description: &str,
    ) -> anyhow::Result<()> {
        let mut data = json!({
            "token-id": self.id, "token-secret": self.secret, "description": description,
            "usage-bootstrap-authentication": "true", "auth-extra-groups": TOKEN_GROUP,
        });
        if let Some(until) = until {
            data["expiration"] = apimachinery::time::rfc3339(until.as_second()).into();
        }
        let secret = Secret::from_value(json!({
            "apiVersion": "v1", "kind": "Secret", "type": TYPE, "stringData": data,
            "metadata": {"name": format!("{PREFIX}{}", self.id), "namespace": NAMESPACE},
        }))?;
        client.create(&secret).await?;
        Ok(())
    }
}

/// Tokens that machines join with.
#[derive(Args)]
pub struct Command {
    #[command(flatten)]
    pub data: cli::DataDir,
    /// The administrator's kubeconfig [default: <DATA_DIR>/admin.kubeconfig]
    #[arg(long, value_name = "FILE", global = true)]
    pub kubeconfig: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Verb,
}

#[derive(Subcommand)]
pub enum Verb {
    /// Make a token and print it, with the hash by which machines know the cluster
    Create {
        /// How long machines may join with it; 0s for ever
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = components::duration)]
        ttl: Duration,
        /// What it is for
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// List the tokens
    List,
    /// Delete a token, so that nobody joins with it any more; nodes that did stay
    Delete {
        /// The token, or the part before its dot
        token: String,
    },
}

pub async fn run(args: Command) -> anyhow::Result<()> {
    let kubeconfig = args.kubeconfig.unwrap_or_else(|| args.data.data_dir.join("admin.kubeconfig"));
    let client = components::client_of(&kubeconfig, "trierarch-token")?;
    match args.command {
        Verb::Create { ttl, description } => {
            let config = Kubeconfig::read(&kubeconfig)?.config(None)?;
            let client::https::Trust::Roots(authority) = config.trust else {
                bail!("{} names no authority", kubeconfig.display());
            };
            let join = Join { token: Token::new(), pin: Pin::of_pem(&authority)? };
            let until = (!ttl.is_zero()).then(|| host::clock().now() + ttl);
            join.token.store(&client, until, &description).await.context("cannot make the token")?;
            eprintln!("join a machine by: trierarch agent --server {} --token {join}", config.server);
            println!("{join}");
        }
        Verb::List => {
            println!("{:23}  {:20}  DESCRIPTION", "TOKEN", "EXPIRES");
            let of_type = ListOptions::fields(format!("type={TYPE}"));
            for secret in client.list::<Secret>(Some(NAMESPACE), &of_type).await?.items {
                let data = secret.data.unwrap_or_default();
                let text = |key: &str| {
                    data.get(key)
                        .map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
                        .unwrap_or_default()
                };
                let token = format!("{}.{}", text("token-id"), text("token-secret"));
                let expires = Some(text("expiration")).filter(|t| !t.is_empty()).unwrap_or("never".into());
                println!("{token:23}  {expires:20}  {}", text("description"));
            }
        }
        Verb::Delete { token } => {
            let id = token.split('.').next().unwrap_or_default();
            let name = format!("{PREFIX}{id}");
            client.delete::<Secret>(NAMESPACE, &name, &DeleteOptions::default()).await?;
            println!("deleted {id}");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_join_string_is_read_as_it_is_written() {
        let token = Token::new();
        assert_eq!(token.to_string().parse::<Token>().unwrap(), token);
        let text = format!("{token}@sha256:{}", "0a".repeat(32));
        assert_eq!(text.parse::<Join>().unwrap().to_string(), text);
        for wrong in ["", "abcdef.0123456789abcdef", "abcdef.0123456789abcdef@sha256:00", "ABCDEF.x@y"] {
            assert!(wrong.parse::<Join>().is_err(), "{wrong}");
        }
        assert!(!format!("{token:?}").contains(&token.secret), "no log shows the secret");
    }
}
