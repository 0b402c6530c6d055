//! What calls of functions cost, and how large their results are. A change here changes which rules may be
//! written.
//!
//! Upstream: apiserver/pkg/cel/library/cost.go EstimateCallCost, cel-go checker/cost.go functionCost, ext/lists.go

use super::{CostEstimate, Node, Size, UNKNOWN, fixed};
use crate::ast::{ExprKind, Literal};
use crate::eval::meter::{CHECK, LIST, PATTERN, STRUCT, TRAVERSAL};
use crate::types::Type;

type Estimate = (CostEstimate, Option<Size>);

/// The longest name of a format's pattern.
const MAX_NAME_PATTERN: f64 = 128.0;
/// The longest text of a named format.
const MAX_FORMAT: u64 = 64;

/// The cost without the arguments' own, and the size of the result where it has one.
pub fn estimate(function: &str, id: &str, target: Option<&Node<'_>>, args: &[Node<'_>]) -> Estimate {
    list_functions(function, id, target, args)
        .or_else(|| kubernetes(function, id, target, args))
        .unwrap_or_else(|| standard(id, target, args))
}

fn literal_int(node: &Node<'_>) -> Option<u64> {
    match &node.expr.kind {
        ExprKind::Literal(Literal::Int(number)) => Some(u64::try_from(*number).unwrap_or(0)),
        _ => None,
    }
}

fn list_cost(factor: f64, size: Size) -> Option<Estimate> {
    Some((size.scaled(factor).add(fixed(1 + LIST)), Some(size)))
}

fn list_functions(
    function: &str,
    id: &str,
    target: Option<&Node<'_>>,
    args: &[Node<'_>],
) -> Option<Estimate> {
    let compared = |list: &Node<'_>| {
        let texts = id.starts_with("list_string") || id.starts_with("list_bytes");
        let size = list.size();
        list_cost(if texts { 2.0 + TRAVERSAL } else { 2.0 }, size.times(size))
    };
    match (function, target, args) {
        ("slice", Some(list), [start, end]) => {
            let start = literal_int(start).unwrap_or(0);
            let end = literal_int(end).unwrap_or(list.size().max);
            list_cost(1.0, fixed(end.wrapping_sub(start)))
        }
        ("lists.range", None, [count]) => list_cost(1.0, fixed(literal_int(count).unwrap_or(u64::MAX))),
        ("reverse", Some(list), []) => list_cost(1.0, list.size()),
        ("flatten", Some(list), []) => list_cost(1.0, list.size()),
        ("flatten", Some(list), [depth]) => {
            list_cost(literal_int(depth).unwrap_or(u64::MAX) as f64, list.size())
        }
        ("distinct", Some(list), []) => list_cost(2.0, list.size().times(list.size())),
        ("sort", Some(list), []) => compared(list),
        ("@sortByAssociatedKeys", Some(_), [keys]) => compared(keys),
        ("sets.contains" | "sets.intersects", None, [a, b]) => {
            Some((a.size().times(b.size()).add(fixed(1)), None))
        }
        ("sets.equivalent", None, [a, b]) => Some((a.size().times(b.size()).scaled(2.0).add(fixed(1)), None)),
        _ => None,
    }
}

fn traversed(node: &Node<'_>, times: f64) -> CostEstimate {
    node.size().scaled(times * TRAVERSAL)
}

fn kubernetes(function: &str, id: &str, target: Option<&Node<'_>>, args: &[Node<'_>]) -> Option<Estimate> {
    let plain = |cost: CostEstimate| Some((cost, None));
    match (function, target, args) {
        ("check", ..) => plain(fixed(CHECK)),
        (
            "serviceAccount"
            | "path"
            | "group"
            | "resource"
            | "subresource"
            | "namespace"
            | "name"
            | "allowed"
            | "reason"
            | "error"
            | "errored"
            | "masked"
            | "prefixLength"
            | "family"
            | "isUnspecified"
            | "isLoopback"
            | "isLinkLocalMulticast"
            | "isLinkLocalUnicast"
            | "isGlobalUnicast"
            | "format.named"
            | "sign"
            | "asInteger"
            | "isInteger"
            | "asApproximateFloat"
            | "isGreaterThan"
            | "isLessThan"
            | "compareTo"
            | "add"
            | "sub"
            | "major"
            | "minor"
            | "patch"
            | "getScheme"
            | "getHostname"
            | "getHost"
            | "getPort"
            | "getEscapedPath"
            | "getQuery",
            ..,
        ) => plain(fixed(1)),
        ("fieldSelector" | "labelSelector", _, [selector]) => {
            let requirements = selector.size().scaled(0.5).scaled((LIST + STRUCT) as f64);
            plain(fixed(LIST).add(traversed(selector, 1.0)).add(requirements))
        }
        ("isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf", Some(target), _) => {
            plain(walk_over(target))
        }
        ("url" | "jsonpatch.escapeKey", _, [text]) => Some((traversed(text, 1.0), Some(text.size()))),
        ("lowerAscii" | "upperAscii" | "substring" | "trim", Some(text), _) => {
            Some((traversed(text, 1.0), Some(text.size())))
        }
        ("replace", Some(text), [old, new, ..]) => {
            Some((traversed(text, 2.0), Some(replaced(text.size(), old.size(), new.size()))))
        }
        ("split", Some(text), args) => {
            let most = args.get(1).and_then(literal_int).unwrap_or(text.size().max);
            Some((traversed(text, 2.0), Some(Size { min: 0, max: most })))
        }
        ("join", Some(list), args) => {
            let size = joined(list, args.first());
            Some((size.scaled(TRAVERSAL), Some(size)))
        }
        ("find" | "findAll", Some(text), [pattern, ..]) => {
            Some((pattern_cost(text.size(), pattern.size()), Some(Size { min: 0, max: text.size().max })))
        }
        ("ip", ..) if id == "cidr_ip" => plain(fixed(1)),
        (
            "cidr" | "isIP" | "isCIDR" | "ip" | "quantity" | "isQuantity" | "semver" | "isSemver",
            _,
            [text, ..],
        ) => plain(traversed(text, 1.0)),
        ("ip.isCanonical", _, [text]) => plain(traversed(text, 2.0)),
        ("containsIP" | "containsCIDR", _, [other]) => plain(contained(function, id, other)),
        ("validate", _, [text]) => plain(traversed(text, 1.0).scaled(MAX_NAME_PATTERN * PATTERN)),
        ("_==_", None, [a, b]) if a.ty == b.ty => equal(a, b).and_then(plain),
        _ => None,
    }
}

/// A walk over the items of a list, and over their texts; or over a text.
fn walk_over(target: &Node<'_>) -> CostEstimate {
    let Some((ty, size)) = &target.items else { return traversed(target, 1.0) };
    let mut each = fixed(1);
    if matches!(ty, Type::String | Type::Bytes) {
        each = each.add(size.scaled(TRAVERSAL));
    }
    target.size().times(each)
}

/// How long a text is after replacing: the shortest parts by the longest, as often as they fit, and the other way
/// round.
fn replaced(text: Size, old: Size, new: Size) -> Size {
    let times = |length: u64, part: u64| (length as f64 / part as f64).ceil() as u64;
    let most = if old.min == 0 {
        text.max.saturating_add(1).saturating_mul(new.max).saturating_add(text.max)
    } else if new.max <= old.min {
        text.max
    } else {
        times(text.max, old.min).saturating_mul(new.max)
    };
    let least = if old.max == 0 {
        text.min.saturating_add(1).saturating_mul(new.min).saturating_add(text.min)
    } else if old.max <= new.min {
        text.min
    } else {
        times(text.min, old.max).saturating_mul(new.min)
    };
    Size { min: least, max: most }
}

fn joined(list: &Node<'_>, separator: Option<&Node<'_>>) -> Size {
    let count = list.size();
    let items = list.items.as_ref().map_or(fixed(0), |(_, size)| *size);
    let size = if list.items.is_some() { count.times(items) } else { fixed(0) };
    match separator {
        Some(separator) => {
            let between = Size { min: count.min.saturating_sub(1), max: count.max.saturating_sub(1) };
            size.add(separator.size().times(between))
        }
        None => size,
    }
}

fn pattern_cost(text: Size, pattern: Size) -> CostEstimate {
    text.add(fixed(1)).scaled(TRAVERSAL).times(pattern.scaled(PATTERN))
}

fn contained(function: &str, id: &str, other: &Node<'_>) -> CostEstimate {
    let bytes = Size { min: 4, max: 16 };
    let mut cost = bytes.add(bytes).scaled(TRAVERSAL);
    if function == "containsCIDR" {
        cost = cost.add(bytes.scaled(TRAVERSAL)).add(fixed(1));
    }
    if id.ends_with("_string") {
        cost = cost.add(traversed(other, 1.0));
    }
    cost
}

/// Equality of values of the libraries.
fn equal(a: &Node<'_>, b: &Node<'_>) -> Option<CostEstimate> {
    let Type::Opaque(name, _) = &a.ty else { return None };
    match *name {
        "kubernetes.NamedFormat" => Some(Size { min: 1, max: MAX_FORMAT }.scaled(TRAVERSAL)),
        "kubernetes.URL" => {
            let size = b.size.unwrap_or(fixed(1));
            Some(Size { min: 1, max: size.max }.scaled(TRAVERSAL))
        }
        name if name.starts_with("kubernetes.") || name.starts_with("net.") => Some(fixed(1)),
        _ => None,
    }
}

fn standard(id: &str, target: Option<&Node<'_>>, args: &[Node<'_>]) -> Estimate {
    let size = |index: usize| args.get(index).map_or(UNKNOWN, Node::size);
    match (id, target, args) {
        ("string_format", Some(text), _) => (traversed(text, 1.0), None),
        ("string_to_bytes", _, [text]) => {
            let result = Size { min: size(0).min, max: size(0).max.wrapping_mul(4) };
            (traversed(text, 1.0), Some(result))
        }
        ("bytes_to_string", _, [bytes]) => {
            (traversed(bytes, 1.0), Some(Size { min: size(0).min / 4, max: size(0).max }))
        }
        ("strings_quote", _, [text]) => {
            let max = size(0).max.wrapping_mul(2).wrapping_add(2);
            (traversed(text, 1.0), Some(Size { min: size(0).min.wrapping_add(2), max }))
        }
        ("starts_with_string" | "ends_with_string", _, [part]) => (traversed(part, 1.0), None),
        ("in_list", _, [_, list]) => (list.size().scaled(1.0), None),
        ("matches_string", Some(text), [pattern]) => (pattern_cost(text.size(), pattern.size()), None),
        ("contains_string", Some(text), [part]) => (traversed(text, 1.0).times(traversed(part, 1.0)), None),
        ("compare_string" | "compare_bytes" | "equals" | "not_equals", _, [a, b]) => {
            let max = a.size().max.min(b.size().max);
            let smallest = Size { min: u64::from(max > 0), max };
            (smallest.scaled(TRAVERSAL), None)
        }
        _ => (fixed(1), None),
    }
}
