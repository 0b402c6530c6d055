//! Bearer tokens given to the server at its start.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::seams::UserInfo;

/// A token and whom it names.
#[derive(Clone, Debug)]
pub struct StaticToken {
    pub token: String,
    pub user: UserInfo,
}

/// Looked up by digest, so that the time it takes tells nothing of the tokens.
pub(super) struct StaticTokens(HashMap<[u8; 32], UserInfo>);

impl StaticTokens {
    pub(super) fn new(tokens: Vec<StaticToken>) -> Self {
        StaticTokens(
            tokens.into_iter().map(|t| (Sha256::digest(t.token.as_bytes()).into(), t.user)).collect(),
        )
    }

    pub(super) fn authenticate(&self, token: &str) -> Option<UserInfo> {
        if self.0.is_empty() {
            return None;
        }
        let digest: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        self.0.get(&digest).cloned()
    }
}
