//! Acting as another user, by the `Impersonate-*` headers.
//!
//! Upstream: apiserver/pkg/endpoints/filters/impersonation/impersonation.go

use std::collections::BTreeMap;

use apimachinery::Status;
use http::HeaderMap;

use super::service_account::{groups as account_groups, user_name};
use super::{ANONYMOUS, AUTHENTICATED, UNAUTHENTICATED};
use crate::authz::forbidden;
use crate::seams::{Attributes, Authorize, Decision, UserInfo};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA_PREFIX: &str = "impersonate-extra-";

/// One thing that the requester wants to be.
enum Wish {
    ServiceAccount { namespace: String, name: String },
    User(String),
    Group(String),
    Extra { key: String, value: String },
    Uid(String),
}

impl Wish {
    /// What must be allowed for it.
    fn attributes(&self) -> Attributes {
        let mut attributes = Attributes {
            verb: "impersonate".to_owned(),
            version: "v1".to_owned(),
            is_resource: true,
            ..Default::default()
        };
        let (resource, name) = match self {
            Wish::ServiceAccount { namespace, name } => {
                attributes.namespace = namespace.clone();
                ("serviceaccounts", name)
            }
            Wish::User(name) => ("users", name),
            Wish::Group(name) => ("groups", name),
            Wish::Extra { key, value } => {
                attributes.group = "authentication.k8s.io".to_owned();
                attributes.subresource = key.clone();
                ("userextras", value)
            }
            Wish::Uid(uid) => {
                attributes.group = "authentication.k8s.io".to_owned();
                ("uids", uid)
            }
        };
        attributes.resource = resource.to_owned();
        attributes.name = name.clone();
        attributes
    }
}

/// Decodes `%xx`; what is not well encoded stays as it is.
pub(super) fn unescape(key: &str) -> String {
    let mut bytes = Vec::with_capacity(key.len());
    let mut rest = key.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first != b'%' {
            bytes.push(*first);
            rest = tail;
            continue;
        }
        let digits = tail.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let Some(byte) = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) else {
            return key.to_owned();
        };
        bytes.push(byte);
        rest = &tail[2..];
    }
    String::from_utf8(bytes).unwrap_or_else(|_| key.to_owned())
}

fn wishes(headers: &HeaderMap) -> Result<Vec<Wish>, Status> {
    let value = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty());
    let mut wishes = Vec::new();
    let user = value(USER);
    if let Some(user) = user {
        let account = user.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
        let account = account
            .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains(':'));
        wishes.push(match account {
            Some((namespace, name)) => {
                Wish::ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() }
            }
            None => Wish::User(user.to_owned()),
        });
    }
    let groups = headers.get_all(GROUP).iter().filter_map(|group| group.to_str().ok());
    wishes.extend(groups.map(|group| Wish::Group(group.to_owned())));
    for (name, value) in headers {
        if let (Some(key), Ok(value)) = (name.as_str().strip_prefix(EXTRA_PREFIX), value.to_str()) {
            wishes.push(Wish::Extra { key: unescape(key), value: value.to_owned() });
        }
    }
    wishes.extend(value(UID).map(|uid| Wish::Uid(uid.to_owned())));
    if user.is_none() && !wishes.is_empty() {
        let asked: Vec<String> = wishes
            .iter()
            .map(|wish| {
                let attributes = wish.attributes();
                format!("{{{} {}}}", attributes.resource, attributes.name)
            })
            .collect();
        let message = format!("requested [{}] without impersonating a user", asked.join(" "));
        return Err(Status::bad_request(message));
    }
    Ok(wishes)
}

/// The user that the request is to be handled as: `user` itself when no header asks otherwise.
pub async fn impersonate(
    user: UserInfo,
    headers: &HeaderMap,
    authorize: &dyn Authorize,
) -> Result<UserInfo, Status> {
    let wishes = wishes(headers)?;
    if wishes.is_empty() {
        return Ok(user);
    }
    let mut acting = UserInfo { extra: BTreeMap::new(), ..Default::default() };
    let groups_given = wishes.iter().any(|wish| matches!(wish, Wish::Group(_)));
    for wish in wishes {
        let attributes = wish.attributes();
        match authorize.authorize(&user, &attributes).decided().await.decision {
            Decision::Allow { .. } => {}
            Decision::Deny { reason } | Decision::NoOpinion { reason } => {
                return Err(forbidden(&user, &attributes, &reason));
            }
        }
        match wish {
            Wish::ServiceAccount { namespace, name } => {
                acting.name = user_name(&namespace, &name);
                if !groups_given {
                    acting.groups = account_groups(&namespace);
                }
            }
            Wish::User(name) => acting.name = name,
            Wish::Group(name) => acting.groups.push(name),
            Wish::Extra { key, value } => acting.extra.entry(key).or_default().push(value),
            Wish::Uid(uid) => acting.uid = uid,
        }
    }
    let within = |group: &str| acting.groups.iter().any(|g| g == group);
    let implied = match acting.name == ANONYMOUS {
        true => (!within(UNAUTHENTICATED)).then_some(UNAUTHENTICATED),
        false => (!within(AUTHENTICATED) && !within(UNAUTHENTICATED)).then_some(AUTHENTICATED),
    };
    acting.groups.extend(implied.map(str::to_owned));
    Ok(acting)
}
