//! The printer columns of a custom kind.
//!
//! Upstream: apiextensions-apiserver/pkg/registry/customresource/tableconvertor/tableconvertor.go

use std::sync::Arc;

use apimachinery::jsonpath::{self, JsonPath};
use apimachinery::time;
use serde_json::{Value, json};

use super::{Column, owned};
use crate::definition::{Cell, Cells};
use crate::get::{self, list, text};

/// The columns of a version, and what fills them.
pub fn of(version: &Value) -> (Vec<Column>, Cells) {
    let age = json!([{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}]);
    let declared = match list(version, "additionalPrinterColumns") {
        [] => age.as_array().map_or(&[][..], Vec::as_slice),
        declared => declared,
    };
    let mut columns = vec![Column {
        name: "Name".into(),
        column_type: "string".into(),
        format: "name".into(),
        description: "".into(),
        priority: 0,
    }];
    let mut paths = Vec::new();
    for column in declared {
        let path = text(column, "jsonPath");
        // With a path that cannot be read, upstream shows no column but the name.
        let Ok(parsed) = JsonPath::parse(path) else { return (columns.drain(..1).collect(), Arc::new(name)) };
        paths.push((text(column, "type").to_owned(), parsed));
        columns.push(self::column(column, path));
    }
    let cells = move |object: &Value, now: i64| {
        let cells = paths.iter().map(|(kind, path)| cell(kind, path.first(object), now));
        std::iter::once(get::name(object).into()).chain(cells).collect()
    };
    (columns, Arc::new(cells))
}

fn name(object: &Value, _: i64) -> Vec<Cell> {
    vec![get::name(object).into()]
}

fn column(column: &Value, path: &str) -> Column {
    let description = match text(column, "description") {
        "" => format!("Custom resource definition column (in JSONPath format): {path}"),
        description => description.to_owned(),
    };
    Column {
        name: owned(text(column, "name")),
        column_type: owned(text(column, "type")),
        format: owned(text(column, "format")),
        description: description.into(),
        priority: i32::try_from(get::number(column, "priority")).unwrap_or(0),
    }
}

/// A value as its column's type shows it; null when it is of another.
fn cell(kind: &str, value: Option<&Value>, now: i64) -> Cell {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Value::Null };
    match (kind, value) {
        ("string", value) => jsonpath::print(value).into(),
        ("integer", Value::Number(number)) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64().map_or(Value::Null, |number| (number as i64).into()),
        },
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) => match time::parse_rfc3339(text) {
            Some(then) => time::human_duration(now.saturating_sub(then)).into(),
            None => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}
