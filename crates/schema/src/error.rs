//! [`Error`]: why an input has no tree.

/// Why an input was refused. Displays as upstream words it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Not JSON or YAML at all, or too deeply nested.
    #[error("{0}")]
    Syntax(String),
    /// A value that its field cannot hold: `json: cannot unmarshal string into Go struct field …`.
    #[error("{0}")]
    Type(String),
    /// A patch that cannot be applied to this object.
    #[error("{0}")]
    Patch(String),
    /// A patch that is not a patch.
    #[error("{0}")]
    BadPatch(String),
    /// A patch that does not go with the object or with itself, in words that upstream gives no reason for.
    #[error("{0}")]
    UnfitPatch(String),
    /// A patch with too many operations or too large a result.
    #[error("{0}")]
    TooLarge(String),
    /// A strategic merge patch for a kind that has no merge rules.
    #[error("strategic merge patch format is not supported")]
    NotStrategic,
    /// Bytes that are not the protobuf form of an object.
    #[error("{0}")]
    Protobuf(String),
}
