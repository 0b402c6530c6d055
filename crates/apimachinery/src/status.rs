//! [`Status`]: what the API answers when it has no object to answer with, and the one error type that
//! travels from server to client.

use serde::{Deserialize, Serialize};

use crate::gvk::{GroupKind, GroupResource};

/// A `v1.Status`. As an error it displays its message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// `Success` or `Failure`.
    pub status: String,
    pub message: String,
    /// Machine-readable, one of [`reason`]'s.
    pub reason: String,
    /// The HTTP status code.
    pub code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
    pub metadata: StatusMeta,
}

/// The list metadata of a `Status`: only `continue` is ever set, on an expired list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StatusMeta {
    #[serde(rename = "continue", skip_serializing_if = "String::is_empty")]
    pub continue_token: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    #[serde(skip_serializing_if = "is_zero")]
    pub retry_after_seconds: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
}

/// The reasons of `metav1.StatusReason`.
pub mod reason {
    pub const UNAUTHORIZED: &str = "Unauthorized";
    pub const FORBIDDEN: &str = "Forbidden";
    pub const NOT_FOUND: &str = "NotFound";
    pub const ALREADY_EXISTS: &str = "AlreadyExists";
    pub const CONFLICT: &str = "Conflict";
    pub const GONE: &str = "Gone";
    pub const EXPIRED: &str = "Expired";
    pub const INVALID: &str = "Invalid";
    pub const SERVER_TIMEOUT: &str = "ServerTimeout";
    pub const TIMEOUT: &str = "Timeout";
    pub const TOO_MANY_REQUESTS: &str = "TooManyRequests";
    pub const BAD_REQUEST: &str = "BadRequest";
    pub const METHOD_NOT_ALLOWED: &str = "MethodNotAllowed";
    pub const NOT_ACCEPTABLE: &str = "NotAcceptable";
    pub const REQUEST_ENTITY_TOO_LARGE: &str = "RequestEntityTooLarge";
    pub const UNSUPPORTED_MEDIA_TYPE: &str = "UnsupportedMediaType";
    pub const INTERNAL_ERROR: &str = "InternalError";
    pub const SERVICE_UNAVAILABLE: &str = "ServiceUnavailable";
}

/// Upstream: apimachinery/pkg/api/errors/errors.go, whose constructors and messages these are.
impl Status {
    pub fn failure(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Status {
            status: "Failure".into(),
            message: message.into(),
            reason: reason.into(),
            code,
            ..Default::default()
        }
    }

    fn about(code: u16, reason: &str, resource: &GroupResource, name: &str, message: String) -> Self {
        Self::failure(code, reason, message).with_details(Details {
            name: name.into(),
            group: resource.group.to_string(),
            kind: resource.resource.to_string(),
            ..Default::default()
        })
    }

    pub fn with_details(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    pub fn not_found(resource: &GroupResource, name: &str) -> Self {
        Self::about(404, reason::NOT_FOUND, resource, name, format!("{resource} \"{name}\" not found"))
    }

    /// No such route.
    pub fn page_not_found() -> Self {
        let mut status =
            Self::failure(404, reason::NOT_FOUND, "the server could not find the requested resource");
        status.details = Some(Box::default());
        status
    }

    pub fn already_exists(resource: &GroupResource, name: &str) -> Self {
        Self::about(
            409,
            reason::ALREADY_EXISTS,
            resource,
            name,
            format!("{resource} \"{name}\" already exists"),
        )
    }

    pub fn conflict(resource: &GroupResource, name: &str, why: impl std::fmt::Display) -> Self {
        let message = format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}");
        Self::about(409, reason::CONFLICT, resource, name, message)
    }

    /// The conflict of an update against a resourceVersion that is no longer the newest.
    pub fn modified(resource: &GroupResource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// `why` may be empty.
    pub fn forbidden(resource: &GroupResource, name: &str, why: impl std::fmt::Display) -> Self {
        let message = match (resource.resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (false, true) => format!("{resource} is forbidden: {why}"),
            (false, false) => format!("{resource} \"{name}\" is forbidden: {why}"),
        };
        Self::about(403, reason::FORBIDDEN, resource, name, message)
    }

    pub fn unauthorized() -> Self {
        Self::failure(401, reason::UNAUTHORIZED, "Unauthorized")
    }

    /// All errors of one object; each becomes a cause. See [`crate::field`].
    pub fn invalid(kind: &GroupKind, name: &str, errors: &[crate::field::Error]) -> Self {
        let message = format!("{kind} \"{name}\" is invalid: {}", crate::field::aggregate(errors));
        Self::failure(422, reason::INVALID, message).with_details(Details {
            name: name.into(),
            group: kind.group.to_string(),
            kind: kind.kind.to_string(),
            causes: errors.iter().map(crate::field::Error::cause).collect(),
            ..Default::default()
        })
    }

    /// An error that no handler knows: it has words and no reason.
    ///
    /// Upstream: apiserver/pkg/endpoints/handlers/responsewriters/status.go ErrorToAPIStatus
    pub fn unknown_error(message: impl Into<String>) -> Self {
        Self::failure(500, "", message)
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, reason::BAD_REQUEST, message)
    }

    pub fn method_not_supported(resource: &GroupResource, action: &str) -> Self {
        let message = format!("{action} is not supported on resources of kind \"{resource}\"");
        Self::about(405, reason::METHOD_NOT_ALLOWED, resource, "", message)
    }

    pub fn method_not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::failure(405, reason::METHOD_NOT_ALLOWED, message).with_details(Details::default())
    }

    /// `accepted` are the media types that the route can answer with.
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let message = format!("only the following media types are accepted: {}", accepted.join(", "));
        Self::failure(406, reason::NOT_ACCEPTABLE, message)
    }

    /// `accepted` are the media types that the route can read.
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            accepted.join(", ")
        );
        Self::failure(415, reason::UNSUPPORTED_MEDIA_TYPE, message)
    }

    pub fn request_entity_too_large(why: impl std::fmt::Display) -> Self {
        Self::failure(413, reason::REQUEST_ENTITY_TOO_LARGE, format!("Request entity too large: {why}"))
    }

    /// A revision that history no longer reaches.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, reason::EXPIRED, message)
    }

    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::failure(429, reason::TOO_MANY_REQUESTS, message)
            .with_details(Details { retry_after_seconds, ..Default::default() })
    }

    pub fn internal(why: impl std::fmt::Display) -> Self {
        let cause = Cause { message: why.to_string(), ..Default::default() };
        Self::failure(500, reason::INTERNAL_ERROR, format!("Internal error occurred: {why}"))
            .with_details(Details { causes: vec![cause], ..Default::default() })
    }

    pub fn service_unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, reason::SERVICE_UNAVAILABLE, message)
    }

    pub fn timeout(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::failure(504, reason::TIMEOUT, format!("Timeout: {}", message.into()))
            .with_details(Details { retry_after_seconds, ..Default::default() })
    }

    pub fn is_not_found(&self) -> bool {
        self.reason == reason::NOT_FOUND
    }

    pub fn is_already_exists(&self) -> bool {
        self.reason == reason::ALREADY_EXISTS
    }

    pub fn is_conflict(&self) -> bool {
        self.reason == reason::CONFLICT
    }

    /// The server no longer has the asked revision: list again.
    pub fn is_expired(&self) -> bool {
        self.reason == reason::EXPIRED || self.reason == reason::GONE
    }
}

/// The object as it goes over the wire, with `kind` and `apiVersion`.
impl From<&Status> for serde_json::Value {
    fn from(status: &Status) -> Self {
        let mut object = serde_json::to_value(status).expect("a Status has only strings and numbers");
        object["kind"] = "Status".into();
        object["apiVersion"] = "v1".into();
        object.as_object_mut().expect("a Status is an object").retain(|_, v| v != "");
        object
    }
}
