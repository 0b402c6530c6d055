//! What evaluation costs.
//!
//! Upstream: cel-go interpreter/runtimecost.go, apiserver/pkg/cel/library/cost.go CallCost

use crate::error::EvalError;
use crate::library::Extension;
use crate::value::{Key, List, Map, Value};

pub const LIST: u64 = 10;
pub const MAP: u64 = 30;
pub const STRUCT: u64 = 40;
/// What walking over a text costs for each character.
pub const TRAVERSAL: f64 = 0.1;
/// What a pattern costs for each of its characters.
pub const PATTERN: f64 = 0.25;
/// An authorization check, of which an expression can afford two.
pub const CHECK: u64 = 350_000;
/// How much work one unit of cost may stand for at most, over a whole evaluation. Costs that upstream takes for
/// constant are not.
const WORK_PER_COST: u64 = 500;

/// The cost so far, and the limit.
pub struct Meter {
    pub cost: u64,
    limit: u64,
    work: u64,
    paused: bool,
}

impl Meter {
    pub fn new(limit: u64) -> Self {
        Meter { cost: 0, limit, work: 0, paused: false }
    }

    pub fn charge(&mut self, cost: u64) -> Result<(), EvalError> {
        if self.paused {
            return Ok(());
        }
        self.cost = self.cost.saturating_add(cost);
        if self.cost > self.limit { Err(EvalError::CostLimitExceeded) } else { Ok(()) }
    }

    /// Charges what is refused anyway.
    pub fn note(&mut self, cost: u64) {
        if !self.paused {
            self.cost = self.cost.saturating_add(cost);
        }
    }

    /// Charges nothing from now on. What was before is to be given to [`Meter::resume`].
    pub fn pause(&mut self) -> bool {
        std::mem::replace(&mut self.paused, true)
    }

    pub fn resume(&mut self, paused: bool) {
        self.paused = paused;
    }

    /// Counts what a function walks over, which costs do not always tell.
    pub fn work(&mut self, args: &[Value<'_>]) -> Result<(), EvalError> {
        self.toil(args.iter().map(weight).fold(1, u64::saturating_add))
    }

    pub fn toil(&mut self, work: u64) -> Result<(), EvalError> {
        self.work = self.work.saturating_add(work);
        if self.work > self.limit.saturating_mul(WORK_PER_COST) {
            return Err(EvalError::CostLimitExceeded);
        }
        Ok(())
    }
}

fn weight(value: &Value<'_>) -> u64 {
    match value {
        Value::String(text) => text.len() as u64 / 8,
        Value::Bytes(bytes) => bytes.len() as u64 / 8,
        Value::List(list) => list.len() as u64,
        Value::Map(map) => map.len() as u64,
        _ => 1,
    }
}

fn scaled(size: u64, factor: f64) -> u64 {
    (size as f64 * factor).ceil() as u64
}

/// What applying a pattern of a length to a text costs. An empty text costs something too.
fn pattern_cost(text: u64, pattern: u64) -> u64 {
    scaled(text.saturating_add(1), TRAVERSAL).saturating_mul(scaled(pattern, PATTERN))
}

/// What a selector of a length costs to parse.
fn selector_cost(length: u64) -> u64 {
    LIST + scaled(length, TRAVERSAL) + scaled(scaled(length, 0.5), (LIST + STRUCT) as f64)
}

/// The cost of making a list by a walk over so many items.
fn list_cost(items: u64, factor: f64) -> u64 {
    (items as f64 * factor) as u64 + 1 + LIST
}

/// What a call costs once its result is known.
pub fn cost_of_result(function: &str, size: u64) -> u64 {
    match function {
        "join" => scaled(size, 2.0 * TRAVERSAL),
        _ => list_cost(size, 1.0),
    }
}

/// What a call costs, or nothing when its result decides.
pub fn cost_of_args(function: &str, id: &str, args: &[Value<'_>]) -> Option<u64> {
    let size = |index: usize| args.get(index).map_or(1, Value::size);
    Some(match function {
        "check" => CHECK,
        "fieldSelector" | "labelSelector" => selector_cost(size(1)),
        "isSorted" | "sum" | "max" | "min" | "indexOf" | "lastIndexOf" => args.first().map_or(0, traversal),
        "url"
        | "lowerAscii"
        | "upperAscii"
        | "substring"
        | "trim"
        | "jsonpatch.escapeKey"
        | "cidr"
        | "isIP"
        | "isCIDR"
        | "quantity"
        | "isQuantity"
        | "semver"
        | "isSemver" => scaled(size(0), TRAVERSAL),
        "ip" if id != "cidr_ip" => scaled(size(0), TRAVERSAL),
        "replace" | "split" | "ip.isCanonical" => scaled(size(0), 2.0 * TRAVERSAL),
        "join" | "slice" => return None,
        "lists.range" => match args {
            [Value::Int(count)] => list_cost(u64::try_from(*count).unwrap_or(0), 1.0),
            _ => 1,
        },
        "reverse" => list_cost(size(0), 1.0),
        "flatten" => {
            let depth = match args.get(1) {
                Some(Value::Int(depth)) => *depth as f64,
                _ => 1.0,
            };
            list_cost(size(0), depth)
        }
        "distinct" | "sort" => self_compare(args.first()),
        "@sortByAssociatedKeys" => self_compare(args.get(1)),
        "sets.contains" | "sets.intersects" => size(0).saturating_mul(size(1)).saturating_add(1),
        "sets.equivalent" => size(0).saturating_mul(size(1)).saturating_mul(2).saturating_add(1),
        "find" | "findAll" => pattern_cost(size(0), size(1)),
        "containsIP" | "containsCIDR" => {
            let mut cost = scaled(size(0).saturating_mul(2), TRAVERSAL);
            if function == "containsCIDR" {
                cost += scaled(size(0), TRAVERSAL) + 1;
            }
            if id.ends_with("_string") {
                cost += scaled(size(1), TRAVERSAL);
            }
            cost
        }
        "validate" => match args.first() {
            Some(Value::Extension(Extension::Format(format))) => pattern_cost(size(1), format.pattern_length),
            _ => 1,
        },
        "_==_" if matches!(args.first(), Some(Value::Extension(_))) => 1,
        _ => standard_cost(id, &size),
    })
}

/// Upstream: cel-go interpreter/runtimecost.go costCall
fn standard_cost(id: &str, size: &dyn Fn(usize) -> u64) -> u64 {
    match id {
        "starts_with_string" | "ends_with_string" | "string_to_bytes" | "bytes_to_string"
        | "strings_quote" | "string_format" => scaled(size(0), TRAVERSAL),
        "in_list" => size(1),
        "compare_string" | "compare_bytes" | "equals" | "not_equals" => {
            scaled(size(0).min(size(1)), TRAVERSAL)
        }
        "add_string" | "add_bytes" => scaled(size(0).saturating_add(size(1)), TRAVERSAL),
        "matches_string" => pattern_cost(size(0), size(1)),
        "contains_string" => scaled(size(0), TRAVERSAL).saturating_mul(scaled(size(1), TRAVERSAL)),
        _ => 1,
    }
}

/// A list compared with itself.
fn self_compare(list: Option<&Value<'_>>) -> u64 {
    let Some(Value::List(list)) = list else { return 1 };
    let first = list.get(0).and_then(Result::ok);
    let factor =
        if matches!(first, Some(Value::String(_) | Value::Bytes(_))) { 2.0 + TRAVERSAL } else { 2.0 };
    let size = list.len() as u64;
    list_cost(size.saturating_mul(size), factor)
}

/// What walking over all parts of a value costs. Of lists of plain parts only, it walks no further than the limit
/// of any evaluation.
///
/// Upstream: apiserver/pkg/cel/library/cost.go traversalCost
fn traversal(value: &Value<'_>) -> u64 {
    const ENOUGH: u64 = 10_000_000;
    match value {
        Value::String(text) => (text.len() as f64 * TRAVERSAL) as u64,
        Value::Bytes(bytes) => (bytes.len() as f64 * TRAVERSAL) as u64,
        Value::List(list) => {
            let mut cost: u64 = 0;
            for item in List::iter(list) {
                cost = cost.saturating_add(item.as_ref().map_or(1, traversal));
                if cost > ENOUGH {
                    break;
                }
            }
            cost
        }
        Value::Map(map) => {
            let entry = |key: Key| {
                let value = Map::get(map, &key).and_then(Result::ok);
                traversal(&key.to_value()).saturating_add(value.as_ref().map_or(1, traversal))
            };
            map.keys().into_iter().map(entry).fold(0, u64::saturating_add)
        }
        _ => 1,
    }
}
