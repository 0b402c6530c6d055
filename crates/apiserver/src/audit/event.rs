//! [`Event`]: one line of the audit log, as `audit.k8s.io/v1` has it, or in the older form of a single sentence.
//!
//! Upstream: apiserver/pkg/apis/audit/v1/types.go, apiserver/pkg/audit/format.go

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use crate::seams::UserInfo;

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    pub kind: &'static str,
    pub api_version: &'static str,
    pub level: &'static str,
    #[serde(rename = "auditID")]
    pub audit_id: String,
    pub stage: &'static str,
    #[serde(rename = "requestURI")]
    pub request_uri: String,
    pub verb: String,
    pub user: User,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub impersonated_user: Option<User>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    pub source_ips: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_agent: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object_ref: Option<ObjectReference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_status: Option<ResponseStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_object: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_object: Option<Value>,
    pub request_received_timestamp: String,
    pub stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Default for Event {
    fn default() -> Self {
        Event {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: "",
            audit_id: String::new(),
            stage: "",
            request_uri: String::new(),
            verb: String::new(),
            user: User::default(),
            impersonated_user: None,
            source_ips: Vec::new(),
            user_agent: String::new(),
            object_ref: None,
            response_status: None,
            request_object: None,
            response_object: None,
            request_received_timestamp: String::new(),
            stage_timestamp: String::new(),
            annotations: BTreeMap::new(),
        }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct User {
    #[serde(skip_serializing_if = "String::is_empty")]
    username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    groups: Vec<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra: BTreeMap<String, Vec<String>>,
}

impl User {
    pub fn of(user: Option<&UserInfo>) -> Self {
        let Some(UserInfo { name, uid, groups, extra }) = user.cloned() else { return User::default() };
        User { username: name, uid, groups, extra }
    }
}

#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReference {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub subresource: String,
}

impl ObjectReference {
    /// Takes from an object's metadata what the request's path did not tell.
    pub fn complete(&mut self, metadata: &Value) {
        for (own, field) in [
            (&mut self.namespace, "namespace"),
            (&mut self.name, "name"),
            (&mut self.uid, "uid"),
            (&mut self.resource_version, "resourceVersion"),
        ] {
            if own.is_empty() {
                *own = metadata[field].as_str().unwrap_or_default().to_owned();
            }
        }
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct ResponseStatus {
    pub metadata: Value,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub details: Value,
    pub code: u16,
}

impl Default for ResponseStatus {
    fn default() -> Self {
        ResponseStatus {
            metadata: json!({}),
            status: String::new(),
            message: String::new(),
            reason: String::new(),
            details: Value::Null,
            code: 0,
        }
    }
}

impl ResponseStatus {
    /// Of a request whose client did not wait for the answer.
    pub fn closed_early() -> Self {
        ResponseStatus {
            status: "Success".to_owned(),
            message: "Connection closed early".to_owned(),
            code: 200,
            ..Default::default()
        }
    }

    pub fn of_object(object: &Value) -> Self {
        let text = |field: &str| object[field].as_str().unwrap_or_default().to_owned();
        ResponseStatus {
            status: text("status"),
            message: text("message"),
            reason: text("reason"),
            details: object["details"].clone(),
            ..Default::default()
        }
    }
}

pub fn micro(now: jiff::Timestamp) -> String {
    apimachinery::time::rfc3339_micro(now.as_second(), now.subsec_nanosecond())
}

impl Event {
    pub fn to_value(&self) -> Value {
        serde_json::to_value(self).expect("an event has no keys but strings")
    }

    /// One line of JSON, with its end.
    pub fn json_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).expect("an event has no keys but strings");
        line.push(b'\n');
        line
    }

    /// One sentence, with its end.
    pub fn legacy_line(&self) -> Vec<u8> {
        let or = |text: &str, absent: &str| if text.is_empty() { absent.to_owned() } else { text.to_owned() };
        let quoted = |list: &[String]| list.iter().map(|g| format!("{g:?}")).collect::<Vec<_>>().join(",");
        let groups = match self.user.username.is_empty() || self.user.groups.is_empty() {
            true => "<none>".to_owned(),
            false => quoted(&self.user.groups),
        };
        let (as_user, as_groups) = match &self.impersonated_user {
            None => ("<self>".to_owned(), "<lookup>".to_owned()),
            Some(user) if user.groups.is_empty() => (user.username.clone(), "<lookup>".to_owned()),
            Some(user) => (user.username.clone(), quoted(&user.groups)),
        };
        let namespace = self.object_ref.as_ref().map(|object| object.namespace.as_str());
        let response = self.response_status.as_ref().map(|status| status.code.to_string());
        format!(
            "{} AUDIT: id={:?} stage={:?} ip={:?} method={:?} user={:?} groups={:?} as={:?} asgroups={:?} \
             user-agent={:?} namespace={:?} uri={:?} response=\"{}\"\n",
            self.request_received_timestamp,
            self.audit_id,
            self.stage,
            or(self.source_ips.first().map_or("", String::as_str), "<unknown>"),
            self.verb,
            or(&self.user.username, "<none>"),
            groups,
            as_user,
            as_groups,
            self.user_agent,
            or(namespace.unwrap_or_default(), "<none>"),
            self.request_uri,
            response.as_deref().unwrap_or("<deferred>"),
        )
        .into_bytes()
    }
}
