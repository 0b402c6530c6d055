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

const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;

fn is_plain(part: &str, length: usize) -> bool {
    part.len() == length && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

impl FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('.') {
            Some((id, secret)) if is_plain(id, ID_LENGTH) && is_plain(secret, SECRET_LENGTH) => {
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

/// A new one.
impl Default for Token {
    fn default() -> Self {
        Token::new()
    }
}

impl Token {
    /// A new one that nobody can guess.
    pub fn new() -> Self {
        const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let text = |length: usize| {
            (0..length).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect()
        };
        Token { id: text(ID_LENGTH), secret: text(SECRET_LENGTH) }
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
        /// The token to make, of the form abcdef.0123456789abcdef [default: one that nobody can guess]
        token: Option<Token>,
        /// How long machines may join with it; 0s for ever
        #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = components::duration)]
        ttl: Duration,
        /// What it is for
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// Print a token that nobody can guess, without making it
    Generate,
    /// List the tokens
    List,
    /// Delete tokens, so that nobody joins with them any more; nodes that did stay
    Delete {
        /// The tokens, or the parts before their dots
        #[arg(required = true, value_name = "TOKEN", value_parser = id)]
        tokens: Vec<String>,
    },
}

/// The part before the dot, which is all of a token that its Secret's name has.
fn id(text: &str) -> Result<String, String> {
    if is_plain(text, ID_LENGTH) {
        return Ok(text.to_owned());
    }
    let token: Token = text.parse().map_err(|error| format!("{error}, or the part before the dot"))?;
    Ok(token.id)
}

pub async fn run(args: Command) -> anyhow::Result<()> {
    if let Verb::Generate = args.command {
        println!("{}", Token::new());
        return Ok(());
    }
    let kubeconfig = args.kubeconfig.unwrap_or_else(|| args.data.data_dir.join("admin.kubeconfig"));
    let client = components::client_of(&kubeconfig, "trierarch-token")?;
    match args.command {
        Verb::Generate => {}
        Verb::Create { token, ttl, description } => {
            let config = Kubeconfig::read(&kubeconfig)?.config(None)?;
            let client::https::Trust::Roots(authority) = config.trust else {
                bail!("{} names no authority", kubeconfig.display());
            };
            let join = Join { token: token.unwrap_or_default(), pin: Pin::of_pem(&authority)? };
            let until = (!ttl.is_zero()).then(|| host::clock().now() + ttl);
            join.token.store(&client, until, &description).await.context("cannot make the token")?;
            eprintln!("join a machine by: trierarch agent --server {} --token {join}", config.server);
            println!("{join}");
        }
        Verb::List => {
            let of_type = ListOptions::fields(format!("type={TYPE}"));
            let mut rows =
                vec![["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS"].map(str::to_owned)];
            let now = host::clock().now();
            let secrets = client.list::<Secret>(Some(NAMESPACE), &of_type).await?.items;
            rows.extend(secrets.iter().map(|secret| row(secret, now)));
            print!("{}", columns(&rows));
        }
        Verb::Delete { tokens } => {
            for id in tokens {
                let name = format!("{PREFIX}{id}");
                let deleted = client.delete::<Secret>(NAMESPACE, &name, &DeleteOptions::default()).await;
                deleted.with_context(|| format!("cannot delete the token {id:?}"))?;
                println!("bootstrap token \"{id}\" deleted");
            }
        }
    }
    Ok(())
}

/// A token as `kubeadm token list` shows it.
// Upstream: cmd/kubeadm/app/cmd/token.go ttlTextPrinter
fn row(secret: &Secret, now: jiff::Timestamp) -> [String; 6] {
    let data = secret.data.clone().unwrap_or_default();
    let text = |key: &str| {
        data.get(key).map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned()).unwrap_or_default()
    };
    let or_none = |text: String| if text.is_empty() { "<none>".to_owned() } else { text };
    let expiration = text("expiration");
    let (ttl, expires) = match expiration.parse::<jiff::Timestamp>() {
        Ok(until) => (short_duration(until.as_second() - now.as_second()), expiration),
        Err(_) if expiration.is_empty() => ("<forever>".to_owned(), "<never>".to_owned()),
        Err(_) => ("<invalid>".to_owned(), expiration),
    };
    let usages = ["authentication", "signing"];
    let has = |usage: &&str| text(&format!("usage-bootstrap-{usage}")) == "true";
    let usages: Vec<&str> = usages.into_iter().filter(has).collect();
    [
        format!("{}.{}", text("token-id"), text("token-secret")),
        ttl,
        expires,
        or_none(usages.join(",")),
        or_none(text("description")),
        or_none(text("auth-extra-groups")),
    ]
}

// Upstream: apimachinery/pkg/util/duration/duration.go ShortHumanDuration
fn short_duration(seconds: i64) -> String {
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1..0 => "0s".to_owned(),
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        86_400..31_536_000 => format!("{}d", seconds / 86_400),
        _ => format!("{}y", seconds / 31_536_000),
    }
}

/// Rows whose cells stand below each other.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: Vec<usize> =
        (0..N).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("   ").trim_end())
    };
    rows.iter().map(line).collect()
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

    #[test]
    fn tokens_are_listed_as_kubeadm_lists_them() {
        let secret =
            |data: serde_json::Value| Secret::from_value(json!({"stringData": {}, "data": data})).unwrap();
        // abcdef, 0123456789abcdef, true
        let base = json!({
            "token-id": "YWJjZGVm", "token-secret": "MDEyMzQ1Njc4OWFiY2RlZg==",
            "usage-bootstrap-authentication": "dHJ1ZQ==",
        });
        let mut dated = base.clone();
        // 2026-01-02T00:00:00Z, for a friend
        dated["expiration"] = "MjAyNi0wMS0wMlQwMDowMDowMFo=".into();
        dated["description"] = "Zm9yIGEgZnJpZW5k".into();
        let now: jiff::Timestamp = "2026-01-01T00:30:00Z".parse().unwrap();
        let rows = [row(&secret(base), now), row(&secret(dated), now)];
        assert_eq!(
            columns(&rows),
            "abcdef.0123456789abcdef   <forever>   <never>                authentication   <none>         <none>\n\
             abcdef.0123456789abcdef   23h         2026-01-02T00:00:00Z   authentication   for a friend   <none>\n"
        );
        for (seconds, text) in [(-9, "<invalid>"), (0, "0s"), (61, "1m"), (90_000, "1d"), (99_999_999, "3y")]
        {
            assert_eq!(short_duration(seconds), text);
        }
        assert_eq!(id("abcdef"), Ok("abcdef".to_owned()));
        assert_eq!(id("abcdef.0123456789abcdef"), Ok("abcdef".to_owned()));
        assert!(id("abc").is_err() && id("abcdef.").is_err());
    }
}
