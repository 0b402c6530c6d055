//! managedFields: who holds which fields of an object.

use std::borrow::Cow;
use std::cmp::Reverse;

use apimachinery::time;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::set::Set;

/// Objects keep so many managers of operation Update; older ones become [`ANCIENT`].
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";

/// An entry of managedFields.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry<'a> {
    pub manager: Cow<'a, str>,
    pub applied: bool,
    pub api_version: Cow<'a, str>,
    pub subresource: Cow<'a, str>,
    pub time: Option<Cow<'a, str>>,
    pub fields: Set<'a>,
}

impl Entry<'_> {
    /// An applier is the same whatever version it applies in.
    pub fn is_same_manager(&self, other: &Entry<'_>) -> bool {
        self.manager == other.manager
            && self.applied == other.applied
            && self.subresource == other.subresource
            && (self.applied || self.api_version == other.api_version)
    }

    /// As conflicts name the manager.
    pub fn words(&self, api_version: &str) -> String {
        let mut words = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            words.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if !self.applied {
            words.push_str(&format!(" using {api_version}"));
        }
        words
    }

    fn seconds(&self) -> i64 {
        self.time.as_deref().and_then(time::parse_rfc3339).unwrap_or(0)
    }
}

/// The managedFields of an object.
pub fn of(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get("managedFields")
}

/// Reads managedFields; `None` when they are malformed.
pub fn decode(managed: Option<&Value>) -> Option<Vec<Entry<'_>>> {
    managed.and_then(Value::as_array).into_iter().flatten().map(decode_entry).collect()
}

/// Whether the writer asks to forget all managers, with one empty entry.
pub fn is_reset(managed: Option<&Value>) -> bool {
    let entries = managed.and_then(Value::as_array).map(Vec::as_slice);
    matches!(entries, Some([Value::Object(entry)]) if entry.is_empty())
}

fn decode_entry(entry: &Value) -> Option<Entry<'_>> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
    if text("fieldsType") != "FieldsV1" || !matches!(text("operation"), "Apply" | "Update") {
        return None;
    }
    let fields = match entry.get("fieldsV1") {
        None => Set::default(),
        Some(Value::String(json)) => serde_json::from_str(json).ok()?,
        Some(tree) => Set::deserialize(tree).ok()?,
    };
    Some(Entry {
        manager: text("manager").into(),
        applied: text("operation") == "Apply",
        api_version: text("apiVersion").into(),
        subresource: text("subresource").into(),
        time: entry.get("time").and_then(Value::as_str).map(Cow::Borrowed),
        fields,
    })
}

/// What managedFields are to be: appliers first, then by time and name; `None` when nobody holds anything.
pub fn encode(mut entries: Vec<Entry<'_>>) -> Option<Value> {
    entries.retain(|e| !e.fields.is_empty());
    if entries.len() > 1 {
        entries.sort_by(|a, b| {
            let key = |e: &Entry<'_>| (Reverse(e.applied), e.seconds());
            key(a)
                .cmp(&key(b))
                .then_with(|| a.manager.cmp(&b.manager))
                .then_with(|| a.api_version.cmp(&b.api_version))
                .then_with(|| a.subresource.cmp(&b.subresource))
        });
    }
    let items: Vec<Value> = entries.into_iter().map(encode_entry).collect();
    (!items.is_empty()).then_some(Value::Array(items))
}

/// Puts them into the metadata.
pub fn put(object: &mut Value, managed: Option<Value>) {
    let Value::Object(object) = object else { return };
    let metadata = object.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(metadata) = metadata else { return };
    match managed {
        Some(managed) => metadata.insert("managedFields".into(), managed),
        None => metadata.remove("managedFields"),
    };
}

fn encode_entry(entry: Entry<'_>) -> Value {
    let mut map = Map::new();
    let operation = if entry.applied { "Apply" } else { "Update" };
    map.insert("manager".into(), entry.manager.into());
    map.insert("operation".into(), operation.into());
    map.insert("apiVersion".into(), entry.api_version.into());
    if let Some(time) = entry.time {
        map.insert("time".into(), time.into());
    }
    map.insert("fieldsType".into(), "FieldsV1".into());
    map.insert("fieldsV1".into(), entry.fields.json().into());
    if !entry.subresource.is_empty() {
        map.insert("subresource".into(), entry.subresource.into());
    }
    Value::Object(map)
}

/// Gives the owners of an object the form in which others know them: [`encode`] leaves what each holds as JSON
/// text, because hardly anybody between a write's decoding and its storing looks inside.
pub fn open(object: &mut Value) {
    let Some(Value::Array(items)) = object.get_mut("metadata").and_then(|m| m.get_mut("managedFields"))
    else {
        return;
    };
    for fields in items.iter_mut().filter_map(|entry| entry.get_mut("fieldsV1")) {
        if let Value::String(json) = fields
            && let Ok(tree) = serde_json::from_str(json)
        {
            *fields = tree;
        }
    }
}

/// Writes what an entry of managedFields says its manager owns, in whichever form that is. A text that is no JSON
/// object, which only a client can have sent, stays a text.
pub fn write_owned(out: &mut Vec<u8>, fields: &Value) -> serde_json::Result<()> {
    match fields {
        Value::String(json) if json.starts_with('{') && serde_json::from_str::<IgnoredAny>(json).is_ok() => {
            out.extend_from_slice(json.as_bytes());
            Ok(())
        }
        tree => serde_json::to_writer(out, tree),
    }
}

/// Joins the oldest updaters of one version into one, while there are too many.
// Upstream: apimachinery/pkg/util/managedfields/internal/capmanagers.go capUpdateManagers
pub fn cap(entries: &mut Vec<Entry<'_>>) {
    let mut updaters = entries.iter().filter(|e| !e.applied).count();
    if updaters <= MAX_UPDATERS {
        return;
    }
    let mut order: Vec<(i64, String, usize)> = entries
        .iter()
        .enumerate()
        .filter(|(_, e)| !e.applied)
        .map(|(at, e)| (e.seconds(), e.manager.to_string(), at))
        .collect();
    order.sort();
    let mut buckets: Vec<(String, usize)> = Vec::new();
    let mut gone = vec![false; entries.len()];
    for (_, _, at) in order {
        if updaters <= MAX_UPDATERS {
            break;
        }
        let version = entries[at].api_version.to_string();
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
        bucket.subresource = "".into();
        bucket.time = time;
        bucket.fields.union(&fields);
    }
    let mut gone = gone.into_iter();
    entries.retain(|_| !gone.next().unwrap_or(false));
}
