//! [`Type`]: what the checker knows of an expression.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A type. Objects compare by name alone, as upstream's do.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    Dyn,
    Any,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Duration,
    Timestamp,
    List(Arc<Type>),
    Map(Arc<(Type, Type)>),
    /// An object with declared fields.
    Object(Arc<ObjectType>),
    /// A type of a library, such as `kubernetes.URL`, with its parameters: `optional_type` has one.
    Opaque(&'static str, Vec<Type>),
    /// The type of a type, if known of which.
    Type(Option<Arc<Type>>),
    /// A type not known yet, by name.
    Param(Arc<str>),
    /// What the checker could not type; it has been reported.
    Error,
}

/// The fields of an object, by their CEL identifiers.
#[derive(Clone, Debug)]
pub struct ObjectType {
    pub name: String,
    pub fields: BTreeMap<String, Type>,
    /// Whether the fields are not known beforehand: any name is a field of type dyn.
    pub open: bool,
}

impl PartialEq for ObjectType {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

/// The name of the optional type.
pub(crate) const OPTIONAL: &str = "optional_type";

impl Type {
    pub fn list(items: Type) -> Type {
        Type::List(Arc::new(items))
    }

    pub fn map(keys: Type, values: Type) -> Type {
        Type::Map(Arc::new((keys, values)))
    }

    pub fn optional(of: Type) -> Type {
        Type::Opaque(OPTIONAL, vec![of])
    }

    pub fn type_of(of: Type) -> Type {
        Type::Type(Some(Arc::new(of)))
    }

    /// The type of the `authorizer` variable.
    pub fn authorizer() -> Type {
        Type::Opaque("kubernetes.authorization.Authorizer", Vec::new())
    }

    /// The type of the `authorizer.requestResource` variable.
    pub fn resource_check() -> Type {
        Type::Opaque("kubernetes.authorization.ResourceCheck", Vec::new())
    }

    /// An object type of these fields.
    pub fn object<'a>(name: &str, fields: impl IntoIterator<Item = (&'a str, Type)>) -> Type {
        let fields = fields.into_iter().map(|(name, ty)| (name.to_owned(), ty)).collect();
        Type::Object(Arc::new(ObjectType { name: name.to_owned(), fields, open: false }))
    }

    /// What an optional holds.
    pub(crate) fn optional_item(&self) -> Option<&Type> {
        match self {
            Type::Opaque(OPTIONAL, items) => items.first(),
            _ => None,
        }
    }

    pub(crate) fn is_dyn(&self) -> bool {
        matches!(self, Type::Dyn | Type::Any)
    }

    pub(crate) fn is_dyn_or_error(&self) -> bool {
        self.is_dyn() || matches!(self, Type::Error)
    }

    /// The name of a value of this type in `type(value)`.
    pub(crate) fn runtime_name(&self) -> &str {
        match self {
            Type::Dyn => "dyn",
            Type::Any => "google.protobuf.Any",
            Type::Null => "null_type",
            Type::Bool => "bool",
            Type::Int => "int",
            Type::Uint => "uint",
            Type::Double => "double",
            Type::String => "string",
            Type::Bytes => "bytes",
            Type::Duration => "google.protobuf.Duration",
            Type::Timestamp => "google.protobuf.Timestamp",
            Type::List(_) => "list",
            Type::Map(_) => "map",
            Type::Object(object) => &object.name,
            Type::Opaque(name, _) => name,
            Type::Type(_) => "type",
            Type::Param(name) => name,
            Type::Error => "!error!",
        }
    }
}

/// As the checker's messages show it.
///
/// Upstream: cel-go checker/format.go FormatCELType
impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Type::Any => f.write_str("any"),
            Type::Null => f.write_str("null"),
            Type::Duration => f.write_str("duration"),
            Type::Timestamp => f.write_str("timestamp"),
            Type::List(items) => write!(f, "list({items})"),
            Type::Map(entry) => write!(f, "map({}, {})", entry.0, entry.1),
            Type::Type(Some(of)) => write!(f, "type({of})"),
            Type::Opaque(name, items) if !items.is_empty() => {
                let items: Vec<String> = items.iter().map(Type::to_string).collect();
                write!(f, "{name}({})", items.join(", "))
            }
            other => f.write_str(other.runtime_name()),
        }
    }
}
