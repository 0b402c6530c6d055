//! managedFields: who holds which fields of an object.

use std::cmp::Reverse;

use apimachinery::time;
use serde_json::{Map, Value};

use super::set::{self, Set};

/// Objects keep so many managers of operation Update; older ones become [`ANCIENT`].
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// An entry of managedFields.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub manager: String,
    pub applied: bool,
    pub api_version: String,
    pub subresource: String,
    pub time: Option<String>,
    pub fields: Set,
}

impl Entry {
    /// An applier is the same whatever version it applies in.
    pub fn is_same_manager(&self, other: &Entry) -> bool {
        self.manager == other.manager
            && self.applied == other.applied
            && self.subresource == other.subresource
            && (self.applied || self.api_version == other.api_version)
    }

    /// As conflicts name the manager.
    pub fn words(&self) -> String {
        let mut words = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            words.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.applied {
            words.push_str(&format!(" using {}", self.api_version));
        }
        words
    }

    fn seconds(&self) -> i64 {
        self.time.as_deref().and_then(time::parse_rfc3339).unwrap_or(0)
    }
}

/// Reads managedFields; `None` when they are malformed.
pub fn decode(object: &Value) -> Option<Vec<Entry>> {
    let Some(Value::Array(items)) = object.pointer("/metadata/managedFields") else {
        return Some(Vec::new());
    };
    items.iter().map(decode_entry).collect()
}

/// Whether the writer asks to forget all managers, with one empty entry.
pub fn is_reset(object: &Value) -> bool {
    match object.pointer("/metadata/managedFields") {
        Some(Value::Array(items)) => matches!(items.as_slice(), [Value::Object(entry)] if entry.is_empty()),
        _ => false,
    }
}

fn decode_entry(entry: &Value) -> Option<Entry> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
    let fields = entry.get("fieldsV1").cloned().unwrap_or_else(|| Value::Object(Map::new()));
    let operation = text("operation");
    if text("fieldsType") != "FieldsV1"
        || !set::is_valid(&fields)
        || !matches!(operation.as_str(), "Apply" | "Update")
    {
        return None;
    }
    let Value::Object(fields) = fields else { return None };
    Some(Entry {
        manager: text("manager"),
        applied: operation == "Apply",
        api_version: text("apiVersion"),
        subresource: text("subresource"),
        time: entry.get("time").and_then(Value::as_str).map(str::to_owned),
        fields,
    })
}

/// Writes managedFields: appliers first, then by time and name.
pub fn encode(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|e| !e.fields.is_empty());
    entries.sort_by(|a, b| {
        let key = |e: &Entry| (Reverse(e.applied), e.seconds());
        let names = |e: &Entry| (e.manager.clone(), e.api_version.clone(), e.subresource.clone());
        key(a).cmp(&key(b)).then_with(|| names(a).cmp(&names(b)))
    });
    let items: Vec<Value> = entries.into_iter().map(encode_entry).collect();
    let Value::Object(object) = object else { return };
    let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(metadata) = metadata else { return };
    if items.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".into(), Value::Array(items));
    }
}

fn encode_entry(entry: Entry) -> Value {
    let mut map = Map::new();
    let operation = if entry.applied { "Apply" } else { "Update" };
    map.insert("manager".into(), entry.manager.into());
    map.insert("operation".into(), operation.into());
    map.insert("apiVersion".into(), entry.api_version.into());
    if let Some(time) = entry.time {
        map.insert("time".into(), time.into());
    }
    map.insert("fieldsType".into(), "FieldsV1".into());
    map.insert("fieldsV1".into(), Value::Object(entry.fields));
    if !entry.subresource.is_empty() {
        map.insert("subresource".into(), entry.subresource.into());
    }
    Value::Object(map)
}

/// Joins the oldest updaters of one version into one, while there are too many.
// Upstream: apimachinery/pkg/util/managedfields/internal/capmanagers.go capUpdateManagers
pub fn cap(entries: &mut Vec<Entry>) {
    let mut updaters = entries.iter().filter(|e| !e.applied).count();
    if updaters <= MAX_UPDATERS {
        return;
    }
    let mut order: Vec<(i64, String, usize)> = entries
        .iter()
        .enumerate()
        .filter(|(_, e)| !e.applied)
        .map(|(at, e)| (e.seconds(), e.manager.clone(), at))
        .collect();
    order.sort();
    let mut buckets: Vec<(String, usize)> = Vec::new();
    let mut gone = vec![false; entries.len()];
    for (_, _, at) in order {
        if updaters <= MAX_UPDATERS {
            break;
        }
        let version = entries[at].api_version.clone();
        let Some((_, bucket)) = buckets.iter().find(|(v, _)| *v == version) else {
            buckets.push((version, at));
            continue;
        };
        let fields = std::mem::take(&mut entries[at].fields);
        let time = entries[at].time.clone();
        gone[at] = true;
        updaters -= 1;
        let bucket = &mut entries[*bucket];
        bucket.manager = ANCIENT.into();
        bucket.subresource.clear();
        bucket.time = time;
        set::union(&mut bucket.fields, &fields);
    }
    let mut gone = gone.into_iter();
    entries.retain(|_| !gone.next().unwrap_or(false));
}
