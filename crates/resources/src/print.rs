//! What the cells of several kinds have in common.
//!
//! Upstream: pkg/printers/internalversion/printers.go

use apimachinery::selector::LabelSelector;
use apimachinery::time;
use serde_json::Value;

use crate::definition::Cell;
use crate::get::{at, entries, list, plain, text};

/// A row of cells of different types.
macro_rules! cells {
    ($($cell:expr),+ $(,)?) => { vec![$($crate::definition::Cell::from($cell)),+] };
}
pub(crate) use cells;

/// How long ago the object was made.
pub fn age(object: &Value, now: i64) -> String {
    since(object, "metadata.creationTimestamp", now)
}

/// How long ago the time at a path was.
pub fn since(object: &Value, path: &str, now: i64) -> String {
    match time::parse_rfc3339(text(object, path)) {
        Some(then) => time::human_duration(now.saturating_sub(then)),
        None => "<unknown>".to_owned(),
    }
}

/// The text at a path, or what stands for none.
pub fn or<'a>(object: &'a Value, path: &str, none: &'a str) -> &'a str {
    match text(object, path) {
        "" => none,
        text => text,
    }
}

/// An `IntOrString` or quantity at a path, or what stands for none.
pub fn plain_or(object: &Value, path: &str, none: &str) -> String {
    at(object, path).map_or_else(|| none.to_owned(), plain)
}

/// The number at a path as a cell, 0 when unset.
pub fn count(object: &Value, path: &str) -> Cell {
    crate::get::number(object, path).into()
}

/// Names and images of the containers of the pod spec at a path.
pub fn containers(object: &Value, pod_spec: &str) -> (String, String) {
    let containers = list(object, &format!("{pod_spec}.containers"));
    let join = |field: &str| containers.iter().map(|c| text(c, field)).collect::<Vec<_>>().join(",");
    (join("name"), join("image"))
}

/// A map of labels at a path.
///
/// Upstream: apimachinery/pkg/labels/labels.go FormatLabels
pub fn labels(object: &Value, path: &str) -> String {
    let pairs: Vec<String> = entries(object, path).map(|(k, v)| format!("{k}={}", plain(v))).collect();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

/// The label selector object at a path.
///
/// Upstream: apimachinery/pkg/apis/meta/v1/helpers.go FormatLabelSelector
pub fn selector(object: &Value, path: &str) -> String {
    match LabelSelector::from_object(at(object, path).unwrap_or(&Value::Null)) {
        Err(_) => "<error>".to_owned(),
        Ok(selector) if selector.requirements().is_empty() => "<none>".to_owned(),
        Ok(selector) => selector.to_string(),
    }
}

/// A list that may have been cut after `max` of `count` items.
pub fn with_more(items: &[String], count: usize, max: usize) -> String {
    let joined = items.join(",");
    if count > items.len() && items.len() >= max {
        format!("{joined} + {} more...", count - max)
    } else if joined.is_empty() {
        "<unset>".to_owned()
    } else {
        joined
    }
}

/// Whether a condition of the type is in the list at `status.conditions` and has the status.
pub fn condition(object: &Value, condition_type: &str, status: &str) -> bool {
    list(object, "status.conditions")
        .iter()
        .find(|c| text(c, "type") == condition_type)
        .is_some_and(|c| text(c, "status") == status)
}

/// The addresses of a load balancer, cut to what `get` shows.
pub fn load_balancer(object: &Value) -> String {
    const WIDTH: usize = 16;
    let mut addresses: Vec<&str> = list(object, "status.loadBalancer.ingress")
        .iter()
        .map(|i| if text(i, "ip").is_empty() { text(i, "hostname") } else { text(i, "ip") })
        .filter(|a| !a.is_empty())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    let joined = addresses.join(",");
    match joined.get(..WIDTH - 3) {
        Some(start) if joined.len() > WIDTH => format!("{start}..."),
        _ => joined,
    }
}

/// `RWO,ROX` for a list of access modes at a path.
pub fn access_modes(object: &Value, path: &str) -> String {
    const MODES: &[(&str, &str)] = &[
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let has = |mode: &str| list(object, path).iter().any(|m| m.as_str() == Some(mode));
    MODES.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short).collect::<Vec<_>>().join(",")
}
