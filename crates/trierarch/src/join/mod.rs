//! How a machine becomes a node: [`token`] makes what it needs to know, [`agent`] joins with it.
//!
//! A join string is a bootstrap token and the hash of the cluster's authority. With the hash the machine knows
//! the server ([`pin`]) before it shows the token to anyone; with the token it may ask for a certificate as a
//! node ([`certificates`]) and for nothing else. [`objects`] are the rights that all of this needs.

pub mod agent;
mod certificates;
pub mod objects;
mod pin;
pub mod token;

use anyhow::Context;
use client::kubeconfig::{Kubeconfig, NamedUser, User};

pub use certificates::NodeCertificates;
pub use pin::Pin;

use crate::control_plane::{ControlPlane, Settings};
use crate::renewal::write_private;

/// Where kubelets that run alone find a token.
const BOOTSTRAP_KUBECONFIG: &str = "bootstrap-kubelet.kubeconfig";
const BOOTSTRAP_USER: &str = "kubelet-bootstrap";

/// Writes the kubeconfig with which kubelets that run alone ask for their first certificate, with a token that is
/// good for a day.
pub async fn write_bootstrap_kubeconfig(
    control_plane: &ControlPlane,
    settings: &Settings,
) -> anyhow::Result<()> {
    let admin = control_plane.client("system:apiserver", &["system:masters"]);
    let token = token::Token::new();
    let until = crate::host::clock().now() + token::DEFAULT_LIFE;
    token.store(&admin, Some(until), "for kubelets that run alone").await.context("cannot make a token")?;
    let authority = control_plane.renewal.pki().authority().to_owned();
    let config = kubeconfig_of_token(&settings.url(), &authority, &token);
    write_private(&settings.data_dir.join(BOOTSTRAP_KUBECONFIG), &config)
}

fn kubeconfig_of_token(server: &str, authority: &str, token: &token::Token) -> Kubeconfig {
    let mut config = Kubeconfig::single("trierarch", server, authority, "", "");
    let user = User { token: Some(token.to_string()), ..User::default() };
    config.users = vec![NamedUser { name: BOOTSTRAP_USER.to_owned(), user }];
    config.contexts[0].context.user = BOOTSTRAP_USER.to_owned();
    config
}
