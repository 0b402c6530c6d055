//! What is wrong with which field. Validation gathers [`Error`]s and [`crate::Status::invalid`] reports all
//! of them at once.
//!
//! Upstream: apimachinery/pkg/util/validation/field/{path,errors}.go

use std::fmt;

use serde_json::Value;

use crate::status::Cause;

/// The way to a field: `spec.containers[0].name`, `metadata.labels[app]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    pub fn new(root: &str) -> Self {
        Path(root.to_owned())
    }

    /// The path of an object itself: errors there have no field.
    pub fn root() -> Self {
        Path::default()
    }

    pub fn child(&self, name: &str) -> Self {
        match self.0.as_str() {
            "" => Path(name.to_owned()),
            path => Path([path, ".", name].concat()),
        }
    }

    pub fn index(&self, index: usize) -> Self {
        Path(format!("{}[{index}]", self.0))
    }

    pub fn key(&self, key: &str) -> Self {
        Path([&self.0, "[", key, "]"].concat())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    TooFew,
    Internal,
    TypeInvalid,
}

impl ErrorType {
    /// The `reason` of a Status cause.
    pub fn reason(self) -> &'static str {
        match self {
            ErrorType::NotFound => "FieldValueNotFound",
            ErrorType::Required => "FieldValueRequired",
            ErrorType::Duplicate => "FieldValueDuplicate",
            ErrorType::Invalid => "FieldValueInvalid",
            ErrorType::NotSupported => "FieldValueNotSupported",
            ErrorType::Forbidden => "FieldValueForbidden",
            ErrorType::TooLong => "FieldValueTooLong",
            ErrorType::TooMany => "FieldValueTooMany",
            ErrorType::TooFew => "FieldValueTooFew",
            ErrorType::Internal => "InternalError",
            ErrorType::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn words(self) -> &'static str {
        match self {
            ErrorType::NotFound => "Not found",
            ErrorType::Required => "Required value",
            ErrorType::Duplicate => "Duplicate value",
            ErrorType::Invalid | ErrorType::TypeInvalid => "Invalid value",
            ErrorType::NotSupported => "Unsupported value",
            ErrorType::Forbidden => "Forbidden",
            ErrorType::TooLong => "Too long",
            ErrorType::TooMany => "Too many",
            ErrorType::TooFew => "Too few",
            ErrorType::Internal => "Internal error",
        }
    }

    /// Whether the message shows the offending value.
    fn shows_value(self) -> bool {
        !matches!(
            self,
            ErrorType::Required
                | ErrorType::Forbidden
                | ErrorType::TooLong
                | ErrorType::TooMany
                | ErrorType::TooFew
                | ErrorType::Internal
        )
    }
}

/// One wrong field. Displays as upstream: `spec.replicas: Invalid value: -1: must be greater than …`.
#[derive(Clone, Debug, PartialEq)]
pub struct Error {
    pub kind: ErrorType,
    pub path: Path,
    pub value: Value,
    pub detail: String,
    /// The message leaves the value out, whatever the type of the error.
    pub omits_value: bool,
    /// How the message shows the value, when not as JSON of it.
    pub shown: Option<String>,
}

impl Error {
    fn new(kind: ErrorType, path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        let (path, value, detail) = (path.clone(), value.into(), detail.into());
        Error { kind, path, value, detail, omits_value: false, shown: None }
    }

    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorType::NotFound, path, value, "")
    }

    pub fn required(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Required, path, "", detail)
    }

    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(ErrorType::Duplicate, path, value, "")
    }

    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Invalid, path, value, detail)
    }

    pub fn type_invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::TypeInvalid, path, value, detail)
    }

    /// `supported` is listed in the order given.
    pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let detail = if quoted.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(ErrorType::NotSupported, path, value, detail)
    }

    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(ErrorType::Forbidden, path, "", detail)
    }

    pub fn too_long(path: &Path, max_bytes: usize) -> Self {
        Self::new(ErrorType::TooLong, path, "", format!("may not be more than {max_bytes} bytes"))
    }

    pub fn too_many(path: &Path, actual: usize, max: usize) -> Self {
        let items = if max == 1 { "item" } else { "items" };
        Self::new(ErrorType::TooMany, path, actual, format!("must have at most {max} {items}"))
    }

    /// The same error, told without the value: for values that are too large to show.
    pub fn without_value(mut self) -> Self {
        self.omits_value = true;
        self
    }

    pub fn internal(path: &Path, why: impl fmt::Display) -> Self {
        Self::new(ErrorType::Internal, path, "", why.to_string())
    }

    /// Shows the value as upstream does, by the fields of a type of its own.
    pub fn showing(mut self, value: impl Into<String>) -> Self {
        self.shown = Some(value.into());
        self
    }

    /// The message without the field.
    pub fn body(&self) -> String {
        let words = self.kind.words();
        let mut body = match &self.value {
            _ if self.omits_value => words.to_owned(),
            _ if !self.kind.shows_value() => {
                if self.kind == ErrorType::TooMany {
                    format!("{words}: {}", self.value)
                } else {
                    words.to_owned()
                }
            }
            _ if self.shown.is_some() => format!("{words}: {}", self.shown.as_deref().unwrap_or_default()),
            Value::String(text) => format!("{words}: {text:?}"),
            Value::Null => format!("{words}: null"),
            other => format!("{words}: {other}"),
        };
        if !self.detail.is_empty() {
            body.push_str(": ");
            body.push_str(&self.detail);
        }
        body
    }

    pub fn cause(&self) -> Cause {
        Cause { reason: self.kind.reason().into(), message: self.body(), field: self.path.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.body())
    }
}

/// One message for many errors: each once, in brackets when there are several.
///
/// Upstream: apimachinery/pkg/util/errors/errors.go Aggregate
pub fn aggregate(errors: &[Error]) -> String {
    let mut messages: Vec<String> = Vec::new();
    for error in errors {
        let message = error.to_string();
        if !messages.contains(&message) {
            messages.push(message);
        }
    }
    if messages.len() == 1 { messages.remove(0) } else { format!("[{}]", messages.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_upstream_words_them() {
        let spec = Path::new("spec");
        let replicas = Error::invalid(&spec.child("replicas"), -1, "must be greater than or equal to 0");
        assert_eq!(
            replicas.to_string(),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0"
        );
        let name = Error::required(&spec.child("containers").index(0).child("name"), "");
        assert_eq!(name.to_string(), "spec.containers[0].name: Required value");
        let policy = Error::not_supported(&spec.child("policy"), "x", &["A", "B"]);
        assert_eq!(
            policy.to_string(),
            "spec.policy: Unsupported value: \"x\": supported values: \"A\", \"B\""
        );
        assert_eq!(
            aggregate(&[name.clone(), name, policy]),
            "[spec.containers[0].name: Required value, \
             spec.policy: Unsupported value: \"x\": supported values: \"A\", \"B\"]"
        );
    }
}
