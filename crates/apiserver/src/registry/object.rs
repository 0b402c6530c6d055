//! [`Object`]: bytes first. The stored JSON is held once and handed out as it is, with the resourceVersion put
//! in on the way; what must look inside decodes it once and shares the tree.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use bytes::{BufMut, Bytes, BytesMut};
use resources::ResourceDef;
use serde::Deserialize;
use serde_json::Value;
use storage::{Entry, Revision};

/// How many rows' views an object keeps: as many as a kind has versions, and then some.
const MAX_VIEWS: usize = 8;

/// What a row of a custom kind made of an object.
#[derive(Clone)]
pub enum View {
    /// It shows the object as it is stored.
    Same,
    Other(Arc<Object>),
}

/// Views by the rows that made them, the oldest first.
type Views = Mutex<Vec<(u64, View)>>;

/// One object as it stood after a commit.
pub struct Object {
    pub key: Arc<str>,
    /// The commit that this object shows: for a deleted one, the deletion.
    pub revision: Revision,
    value: Bytes,
    /// Where the resourceVersion goes: just behind the brace that opens `metadata`. Zero when there is none.
    splice: usize,
    labels: OnceLock<BTreeMap<String, String>>,
    tree: OnceLock<Arc<Value>>,
    protobuf: OnceLock<Bytes>,
    views: OnceLock<Box<Views>>,
    fields: OnceLock<Fields>,
}

/// The values of an object's selectable fields, by path, without those that are empty.
type Fields = Box<[(apimachinery::gvk::Name, Box<str>)]>;

impl Object {
    pub fn new(entry: &Entry) -> Self {
        Self::at(entry, entry.modified)
    }

    /// The last state of a deleted object, at the revision of its deletion.
    pub fn at(entry: &Entry, revision: Revision) -> Self {
        Object {
            key: entry.key.clone(),
            revision,
            splice: metadata_start(&entry.value).unwrap_or(0),
            value: entry.value.clone(),
            labels: OnceLock::new(),
            tree: OnceLock::new(),
            protobuf: OnceLock::new(),
            views: OnceLock::new(),
            fields: OnceLock::new(),
        }
    }

    /// The same object in another form, at the same revision.
    pub fn shown_as(&self, tree: &Value) -> Self {
        let entry =
            Entry { key: self.key.clone(), value: to_stored(tree), created: 0, modified: self.revision };
        Object::at(&entry, self.revision)
    }

    /// What the row of that id made of the object before.
    pub fn view(&self, row: u64) -> Option<View> {
        let views = self.views.get()?.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        views.iter().find(|(id, _)| *id == row).map(|(_, view)| view.clone())
    }

    pub fn keep_view(&self, row: u64, view: View) {
        let views = self.views.get_or_init(Box::default);
        let mut views = views.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if views.iter().any(|(id, _)| *id == row) {
            return;
        }
        // Rows of earlier definitions are gone and ask no more.
        if views.len() >= MAX_VIEWS {
            views.remove(0);
        }
        views.push((row, view));
    }

    /// The stored bytes, without a resourceVersion.
    pub fn stored(&self) -> &Bytes {
        &self.value
    }

    /// The length of what [`Object::write`] writes.
    pub fn len(&self) -> usize {
        if self.splice == 0 {
            return self.value.len();
        }
        self.value.len()
            + br#""resourceVersion":"""#.len()
            + decimal_len(self.revision)
            + usize::from(self.has_more())
    }

    pub fn is_empty(&self) -> bool {
        self.value.is_empty()
    }

    fn has_more(&self) -> bool {
        self.value.get(self.splice) != Some(&b'}')
    }

    /// The JSON that clients see.
    pub fn write(&self, out: &mut BytesMut) {
        if self.splice == 0 {
            out.extend_from_slice(&self.value);
            return;
        }
        out.extend_from_slice(&self.value[..self.splice]);
        self.write_revision(out);
        out.extend_from_slice(&self.value[self.splice..]);
    }

    /// The JSON that a list shows of an object whose stored bytes begin with `head`: without what the list says of all,
    /// which is what kind they are of. An empty head leaves it in.
    ///
    /// Upstream: apimachinery/pkg/runtime/serializer/versioning/versioning.go, whose typed lists have untyped items
    pub fn write_item(&self, head: &str, out: &mut BytesMut) {
        let bare = self.item_head(head);
        if bare == 0 {
            return self.write(out);
        }
        out.put_u8(b'{');
        out.extend_from_slice(&self.value[bare..self.splice]);
        self.write_revision(out);
        out.extend_from_slice(&self.value[self.splice..]);
    }

    /// The length of what [`Object::write_item`] writes.
    pub fn item_len(&self, head: &str) -> usize {
        self.len() - self.item_head(head).saturating_sub(1)
    }

    /// Where an item begins in the stored bytes; zero when it has all of them.
    fn item_head(&self, head: &str) -> usize {
        let is_more = self.value.get(head.len()) == Some(&b',') && self.splice > head.len();
        if !head.is_empty() && is_more && self.value.starts_with(head.as_bytes()) {
            head.len() + 1
        } else {
            0
        }
    }

    fn write_revision(&self, out: &mut BytesMut) {
        out.extend_from_slice(br#""resourceVersion":""#);
        put_decimal(out, self.revision);
        out.put_u8(b'"');
        if self.has_more() {
            out.put_u8(b',');
        }
    }

    pub fn json(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(self.len());
        self.write(&mut out);
        out.freeze()
    }

    /// The decoded object, with its resourceVersion, kept for all who ask: a tree takes many times the memory of
    /// its bytes, so this is for the few objects that every request looks at.
    pub fn tree(&self) -> &Arc<Value> {
        self.tree.get_or_init(|| Arc::new(self.decode()))
    }

    /// The decoded object, which is not kept.
    pub fn open(&self) -> Cow<'_, Value> {
        match self.tree.get() {
            Some(tree) => Cow::Borrowed(tree),
            None => Cow::Owned(self.decode()),
        }
    }

    /// A tree to make the next state of the object of: what its managers own is left as text, as
    /// [`schema::apply::open_owners`] finds it.
    pub fn draft(&self) -> Value {
        let mut tree = schema::apply::read_stored(&self.value).unwrap_or_default();
        self.put_revision(&mut tree);
        tree
    }

    /// A decoded object of the caller's own.
    pub fn decode(&self) -> Value {
        if let Some(tree) = self.tree.get() {
            return Value::clone(tree);
        }
        let mut tree: Value = serde_json::from_slice(&self.value).unwrap_or_default();
        self.put_revision(&mut tree);
        tree
    }

    fn put_revision(&self, tree: &mut Value) {
        if let Some(metadata) = tree.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".into(), self.revision.to_string().into());
        }
    }

    /// The protobuf message, which `make` makes the first time.
    pub fn protobuf<E>(&self, make: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        if let Some(message) = self.protobuf.get() {
            return Ok(message.clone());
        }
        let message = make()?;
        Ok(self.protobuf.get_or_init(|| message).clone())
    }

    pub fn labels(&self) -> &BTreeMap<String, String> {
        #[derive(Deserialize, Default)]
        struct Outer {
            #[serde(default)]
            metadata: Inner,
        }
        #[derive(Deserialize, Default)]
        struct Inner {
            #[serde(default)]
            labels: BTreeMap<String, String>,
        }
        self.labels.get_or_init(|| {
            let outer: Outer = serde_json::from_slice(&self.value).unwrap_or_default();
            outer.metadata.labels
        })
    }

    /// The last segment of the key.
    pub fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }

    /// The last but one segment of the key, for namespaced kinds.
    pub fn namespace(&self) -> &str {
        self.key.rsplit('/').nth(1).unwrap_or_default()
    }

    /// The value of a selectable field; empty for one that the kind does not have.
    pub fn field(&self, def: &ResourceDef, path: &str) -> String {
        match path {
            "metadata.name" => self.name().to_owned(),
            "metadata.namespace" if def.namespaced() => self.namespace().to_owned(),
            // The fields of a custom kind may be others tomorrow, and another group's events have others today.
            _ if def.custom.is_some() || def.group == "events.k8s.io" => {
                let field = def.selectable_fields.iter().find(|field| field.path == path);
                field.map_or_else(String::new, |field| (field.value)(self.tree()))
            }
            _ => {
                let fields = self.fields.get_or_init(|| self.read_fields(def));
                let found = fields.iter().find(|(name, _)| *name == *path);
                found.map_or_else(String::new, |(_, value)| value.to_string())
            }
        }
    }

    /// Versions of a kind in one group have the same selectable fields, so that one reading serves all.
    fn read_fields(&self, def: &ResourceDef) -> Fields {
        let tree = self.open();
        let fields = def.selectable_fields.iter();
        let values = fields.map(|field| (field.path.clone(), (field.value)(&tree).into_boxed_str()));
        values.filter(|(_, value)| !value.is_empty()).collect()
    }
}

fn decimal_len(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |digits| digits as usize + 1)
}

pub fn put_decimal(out: &mut BytesMut, number: u64) {
    use std::fmt::Write;
    write!(out, "{number}").expect("writing to a buffer cannot fail");
}

/// The JSON that is stored: `apiVersion`, `kind` and `metadata` first, so that the place of the resourceVersion is
/// found after a few dozen bytes; without resourceVersion.
pub fn to_stored(object: &Value) -> Bytes {
    let mut out = Vec::with_capacity(8192);
    out.push(b'{');
    let empty = serde_json::Map::new();
    let fields = object.as_object().unwrap_or(&empty);
    let first = ["apiVersion", "kind", "metadata"];
    let head = first.iter().filter_map(|name| fields.get_key_value(*name));
    let rest = fields.iter().filter(|(name, _)| !first.contains(&name.as_str()));
    for (at, (name, value)) in head.chain(rest).enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_json(&mut out, name);
        out.push(b':');
        match value.as_object().filter(|_| name == "metadata") {
            Some(metadata) => write_metadata(&mut out, metadata),
            None => write_json(&mut out, value),
        }
    }
    out.push(b'}');
    // It may be kept for long: without the room that it grew into.
    Bytes::from(out.into_boxed_slice())
}

fn write_metadata(out: &mut Vec<u8>, metadata: &serde_json::Map<String, Value>) {
    out.push(b'{');
    for (at, (name, value)) in metadata.iter().filter(|(name, _)| *name != "resourceVersion").enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_json(out, name);
        out.push(b':');
        match value {
            Value::Array(entries) if name == "managedFields" => write_managed_fields(out, entries),
            value => write_json(out, value),
        }
    }
    out.push(b'}');
}

fn write_managed_fields(out: &mut Vec<u8>, entries: &[Value]) {
    out.push(b'[');
    for (at, entry) in entries.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        let Value::Object(entry) = entry else {
            write_json(out, entry);
            continue;
        };
        out.push(b'{');
        for (at, (name, value)) in entry.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            write_json(out, name);
            out.push(b':');
            match name.as_str() {
                "fieldsV1" => schema::apply::write_owned(out, value).expect("memory takes every write"),
                _ => write_json(out, value),
            }
        }
        out.push(b'}');
    }
    out.push(b']');
}

fn write_json(out: &mut Vec<u8>, value: &(impl serde::Serialize + ?Sized)) {
    serde_json::to_writer(out, value).expect("a tree has no keys but strings, and memory takes every write");
}

/// The position behind the `{` of the top-level `metadata`.
fn metadata_start(json: &[u8]) -> Option<usize> {
    let mut depth = 0usize;
    let mut at = 0;
    let mut key = None;
    while at < json.len() {
        match json[at] {
            b'"' => {
                let start = at + 1;
                at = string_end(json, start)?;
                if depth == 1 && json.get(at + 1) == Some(&b':') {
                    key = Some(&json[start..at]);
                }
            }
            b'{' => {
                if depth == 1 && key == Some(b"metadata") {
                    return Some(at + 1);
                }
                depth += 1;
            }
            b'[' => depth += 1,
            b'}' | b']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
        at += 1;
    }
    None
}

/// The position of the quote that ends the string which begins at `at`.
fn string_end(json: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match json.get(at)? {
            b'"' => return Some(at),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(json: &str) -> Object {
        let entry = Entry {
            key: "/registry/pods/a/b".into(),
            value: Bytes::from(json.to_owned()),
            created: 1,
            modified: 42,
        };
        Object::new(&entry)
    }

    #[test]
    fn the_resource_version_is_put_into_the_metadata_of_the_object_itself() {
        for (stored, served) in [
            (r#"{"metadata":{"name":"b"}}"#, r#"{"metadata":{"resourceVersion":"42","name":"b"}}"#),
            (r#"{"metadata":{}}"#, r#"{"metadata":{"resourceVersion":"42"}}"#),
            (
                r#"{"a":{"metadata":{"x":1}},"b":"\"metadata\":{","metadata":{"n":1}}"#,
                r#"{"a":{"metadata":{"x":1}},"b":"\"metadata\":{","metadata":{"resourceVersion":"42","n":1}}"#,
            ),
            (r#"{"kind":"x"}"#, r#"{"kind":"x"}"#),
        ] {
            let object = object(stored);
            assert_eq!(object.json(), served);
            assert_eq!(object.len(), served.len());
        }
    }

    #[test]
    fn what_is_stored_begins_with_the_head_and_has_no_resource_version() {
        let object = serde_json::json!({
            "a": 1, "kind": "K", "apiVersion": "v1", "metadata": {"resourceVersion": "3", "name": "n"},
        });
        assert_eq!(to_stored(&object), r#"{"apiVersion":"v1","kind":"K","metadata":{"name":"n"},"a":1}"#);
    }
}
