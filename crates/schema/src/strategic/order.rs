//! The order of a merged list: what the patch names keeps the patch's order, what only the server has keeps
//! its own, and the two are woven by the server's order.

use serde_json::Value;

use super::{go_kind, go_value};
use crate::Error;

/// What a list holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    Scalars,
    Maps { merge_key: &'static str },
}

impl Elements {
    /// All elements must be of one kind, and no lists.
    pub fn of<'a>(items: impl Iterator<Item = &'a Value>, merge_key: &'static str) -> Result<Self, Error> {
        let mut kind = None;
        for item in items {
            if item.is_array() {
                return Err(Error::Patch("lists of lists are not supported".into()));
            }
            match kind {
                None => kind = Some(go_kind(item)),
                Some(kind) if kind == go_kind(item) => {}
                Some(_) => {
                    return Err(Error::UnfitPatch(format!(
                        "list element types are not identical: {}",
                        go_value(item)
                    )));
                }
            }
        }
        match kind {
            None => Err(Error::UnfitPatch("no elements in any of the given slices".into())),
            Some("map[string]interface {}") => Ok(Elements::Maps { merge_key }),
            Some(_) => Ok(Elements::Scalars),
        }
    }

    fn key(self, item: &Value) -> &Value {
        match self {
            Elements::Scalars => item,
            Elements::Maps { merge_key } => item.get(merge_key).unwrap_or(&Value::Null),
        }
    }
}

/// The key of an element, or the element itself when there is no merge key.
pub fn key_of<'v>(item: &'v Value, merge_key: &str) -> Result<&'v Value, Error> {
    if merge_key.is_empty() {
        return Ok(item);
    }
    if !item.is_object() {
        return Err(Error::UnfitPatch(format!(
            "expected a map[string]interface {{}}, but received a {}",
            go_kind(item)
        )));
    }
    item.get(merge_key).ok_or_else(|| {
        Error::UnfitPatch(format!("map: {} does not contain declared merge key: {merge_key}", go_value(item)))
    })
}

pub fn enforce_order(
    merged: Vec<Value>,
    patch_order: &[Value],
    server_order: &[Value],
    elements: Elements,
) -> Result<Vec<Value>, Error> {
    if let Elements::Maps { merge_key } = elements {
        for item in merged.iter().chain(patch_order).chain(server_order) {
            key_of(item, merge_key)?;
        }
    }
    let place =
        |order: &[Value], item: &Value| order.iter().position(|o| elements.key(o) == elements.key(item));
    let (mut patched, mut server_only): (Vec<(Option<usize>, Value)>, Vec<_>) = merged
        .into_iter()
        .map(|item| (place(patch_order, &item), item))
        .partition(|(place, _)| place.is_some());
    patched.sort_by_key(|(place, _)| *place);
    for (at, item) in &mut server_only {
        *at = place(server_order, item);
    }
    // What neither list knows comes last.
    server_only.sort_by_key(|(at, _)| at.unwrap_or(usize::MAX));

    let mut result = Vec::with_capacity(patched.len() + server_only.len());
    let mut patched = patched.into_iter().map(|(_, item)| (place(server_order, &item), item)).peekable();
    let mut server_only = server_only.into_iter().peekable();
    loop {
        let from_server = match (server_only.peek(), patched.peek()) {
            (None, None) => return Ok(result),
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some((Some(left), _)), Some((Some(right), _))) => left < right,
            _ => false,
        };
        let next = if from_server { server_only.next() } else { patched.next() };
        result.extend(next.map(|(_, item)| item));
    }
}
