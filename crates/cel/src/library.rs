//! The functions of the standard library and of Kubernetes: one file a library, each with a table of what it
//! declares and the code that computes it.
//!
//! Upstream: cel-go common/stdlib/standard.go, ext; apiserver/pkg/cel/library

pub mod authorizer;
pub mod format;
mod lists;
mod names;
mod net;
mod optional;
mod quantity;
pub mod regex;
mod semver;
mod standard;
mod strings;
pub mod time;
mod url;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};

use apimachinery::quantity::Quantity;

use crate::error::EvalError;
use crate::types::{OPTIONAL, Type};
use crate::value::Value;

pub use net::Cidr;
pub use standard::map_insert;

/// What a function computes from its arguments, the target first.
pub type Eval = for<'a> fn(&[Value<'a>]) -> Result<Value<'a>, EvalError>;

/// A function as a library's table declares it.
pub struct Function {
    pub name: &'static str,
    pub eval: Eval,
    /// Ids and signatures. `{T}` in both stands for each of the types in [`COMPARABLE`].
    pub overloads: &'static [(&'static str, &'static str)],
}

/// Types whose values have an order.
const COMPARABLE: &[&str] = &["int", "uint", "double", "bool", "duration", "timestamp", "string", "bytes"];

/// One way to call a function.
#[derive(Debug)]
pub struct Overload {
    pub id: String,
    /// Whether the first parameter is the target of a member call.
    pub member: bool,
    pub params: Vec<Type>,
    pub result: Type,
    pub type_params: Vec<Arc<str>>,
    pub eval: Eval,
}

static TABLES: &[&[Function]] = &[
    standard::OPERATORS,
    standard::CONVERSIONS,
    time::FUNCTIONS,
    strings::FUNCTIONS,
    regex::FUNCTIONS,
    lists::FUNCTIONS,
    optional::FUNCTIONS,
    url::FUNCTIONS,
    net::FUNCTIONS,
    quantity::FUNCTIONS,
    semver::FUNCTIONS,
    names::FUNCTIONS,
    authorizer::FUNCTIONS,
];

static OVERLOADS: LazyLock<BTreeMap<&'static str, Vec<Overload>>> = LazyLock::new(|| {
    let mut all: BTreeMap<&'static str, Vec<Overload>> = BTreeMap::new();
    for function in TABLES.iter().copied().flatten() {
        let overloads = all.entry(function.name).or_default();
        for (id, signature) in function.overloads {
            if id.contains("{T}") {
                overloads.extend(COMPARABLE.iter().map(|ty| {
                    parse_overload(&id.replace("{T}", ty), &signature.replace("{T}", ty), function.eval)
                }));
            } else {
                overloads.push(parse_overload(id, signature, function.eval));
            }
        }
    }
    all
});

/// The overloads of a function, if there is one of this name.
pub fn overloads(name: &str) -> Option<&'static [Overload]> {
    OVERLOADS.get(name).map(Vec::as_slice)
}

/// Reads `target.(a, b) -> result` or `(a, b) -> result`.
fn parse_overload(id: &str, signature: &str, eval: Eval) -> Overload {
    let (call, result) = signature.split_once(" -> ").expect("every signature in the tables has a result");
    let open = call.find(".(").map(|dot| (dot, dot + 2));
    let (target, params) = match open {
        Some((dot, open)) => (Some(&call[..dot]), &call[open..]),
        None => (None, &call[1..]),
    };
    let params = params.strip_suffix(')').expect("every parameter list in the tables is closed");
    let params: Vec<Type> = target.into_iter().chain(split_types(params)).map(parse_type).collect();
    let result = parse_type(result);
    let mut type_params = Vec::new();
    for ty in params.iter().chain([&result]) {
        collect_params(ty, &mut type_params);
    }
    Overload { id: id.to_owned(), member: target.is_some(), params, result, type_params, eval }
}

/// The parts of a list at its commas outside of brackets.
fn split_types(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0, 0);
    for (index, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(text[start..index].trim());
                start = index + 1;
            }
            _ => {}
        }
    }
    if !text.trim().is_empty() {
        parts.push(text[start..].trim());
    }
    parts
}

fn parse_type(text: &str) -> Type {
    if let Some((name, rest)) = text.split_once('(') {
        let inner = rest.strip_suffix(')').expect("every type in the tables is closed");
        let items: Vec<Type> = split_types(inner).into_iter().map(parse_type).collect();
        return match (name, items.as_slice()) {
            ("list", [items]) => Type::list(items.clone()),
            ("map", [keys, values]) => Type::map(keys.clone(), values.clone()),
            (OPTIONAL, [of]) => Type::optional(of.clone()),
            (_, [of, ..]) => Type::type_of(of.clone()),
            (_, []) => Type::Type(None),
        };
    }
    match text {
        "dyn" => Type::Dyn,
        "bool" => Type::Bool,
        "int" => Type::Int,
        "uint" => Type::Uint,
        "double" => Type::Double,
        "string" => Type::String,
        "bytes" => Type::Bytes,
        "duration" => Type::Duration,
        "timestamp" => Type::Timestamp,
        variable if variable.len() == 1 => Type::Param(variable.into()),
        name => {
            let known = EXTENSION_TYPES.iter().find(|known| **known == name);
            Type::Opaque(known.expect("every type in the tables is one of an extension"), Vec::new())
        }
    }
}

fn collect_params(ty: &Type, into: &mut Vec<Arc<str>>) {
    match ty {
        Type::Param(name) if !into.contains(name) => into.push(name.clone()),
        Type::List(items) => collect_params(items, into),
        Type::Map(entry) => {
            collect_params(&entry.0, into);
            collect_params(&entry.1, into);
        }
        Type::Opaque(_, items) => items.iter().for_each(|item| collect_params(item, into)),
        Type::Type(Some(of)) => collect_params(of, into),
        _ => {}
    }
}

/// The types that libraries add.
const EXTENSION_TYPES: &[&str] = &[
    "kubernetes.Quantity",
    "kubernetes.URL",
    "kubernetes.Semver",
    "kubernetes.NamedFormat",
    "net.IP",
    "net.CIDR",
    "kubernetes.authorization.Authorizer",
    "kubernetes.authorization.PathCheck",
    "kubernetes.authorization.GroupCheck",
    "kubernetes.authorization.ResourceCheck",
    "kubernetes.authorization.Decision",
];

/// A value of one of the types that libraries add.
#[derive(Clone)]
pub enum Extension<'a> {
    Quantity(Quantity),
    Url(Rc<url::Url>),
    Semver(Rc<semver::Version>),
    Format(&'static names::NamedFormat),
    Ip(IpAddr),
    Cidr(Cidr),
    Authorizer(authorizer::Subject<'a>),
    PathCheck(authorizer::Check<'a>),
    GroupCheck(authorizer::Check<'a>),
    ResourceCheck(authorizer::Check<'a>),
    Decision(authorizer::AuthorizerDecision),
}

impl Extension<'_> {
    pub fn type_name(&self) -> &'static str {
        let index = match self {
            Extension::Quantity(_) => 0,
            Extension::Url(_) => 1,
            Extension::Semver(_) => 2,
            Extension::Format(_) => 3,
            Extension::Ip(_) => 4,
            Extension::Cidr(_) => 5,
            Extension::Authorizer(_) => 6,
            Extension::PathCheck(_) => 7,
            Extension::GroupCheck(_) => 8,
            Extension::ResourceCheck(_) => 9,
            Extension::Decision(_) => 10,
        };
        EXTENSION_TYPES[index]
    }

    /// What `size()` would be, for costs.
    pub fn size(&self) -> u64 {
        let bytes = |address: &IpAddr| if address.is_ipv4() { 4 } else { 16 };
        match self {
            Extension::Ip(address) => bytes(address),
            Extension::Cidr(cidr) => u64::from(cidr.length).div_ceil(8),
            _ => 1,
        }
    }

    pub fn equals(&self, other: &Extension<'_>) -> bool {
        match (self, other) {
            (Extension::Quantity(a), Extension::Quantity(b)) => a == b,
            (Extension::Url(a), Extension::Url(b)) => a.text == b.text,
            (Extension::Semver(a), Extension::Semver(b)) => a.order(b).is_eq(),
            (Extension::Format(a), Extension::Format(b)) => a.name == b.name,
            (Extension::Ip(a), Extension::Ip(b)) => a == b,
            (Extension::Cidr(a), Extension::Cidr(b)) => a == b,
            _ => false,
        }
    }

    /// How it is written, of those that have a text.
    pub fn to_text(&self) -> Option<String> {
        match self {
            Extension::Quantity(quantity) => Some(quantity.to_string()),
            Extension::Url(url) => Some(url.text.clone()),
            Extension::Ip(address) => Some(address.to_string()),
            Extension::Cidr(cidr) => Some(cidr.to_string()),
            _ => None,
        }
    }
}

impl fmt::Debug for Extension<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.type_name(), self.to_text().unwrap_or_default())
    }
}

/// What no overload takes.
pub(crate) fn no_overload<T>() -> Result<T, EvalError> {
    Err(EvalError::no_such_overload())
}

/// Calls a function whichever of its overloads takes the arguments.
pub fn apply<'a>(function: &str, args: &[Value<'a>]) -> Result<Value<'a>, EvalError> {
    match overloads(function).and_then(<[Overload]>::first) {
        Some(overload) => (overload.eval)(args),
        None => no_overload(),
    }
}
