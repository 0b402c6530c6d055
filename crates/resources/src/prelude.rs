//! What nearly every file of `kinds/` uses.

pub(crate) use std::sync::Arc;

pub(crate) use apimachinery::field::{Error, Path};
pub(crate) use apimachinery::names;
pub(crate) use serde_json::{Value, json};

pub(crate) use crate::definition::{Cell, ResourceDef, Verb};
pub(crate) use crate::get::{self, Errors, at, has, is_true, list, number, path, set, text};
pub(crate) use crate::print::{self, age, cells, count};
pub(crate) use crate::row::Row;
pub(crate) use crate::rules::Rules;
