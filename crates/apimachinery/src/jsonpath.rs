//! JSON paths in the dialect of kubectl and of printer columns: `.spec.replicas`,
//! `.status.conditions[?(@.type=="Ready")].status`, `.metadata.labels['app']`.
//!
//! What always holds: parsing and finding never panic; a step that does not fit the value finds nothing.
//!
//! Upstream: client-go/util/jsonpath

use serde_json::Value;

/// How deep brackets may nest, which both the parser and the search walk by recursion.
const MAX_DEPTH: usize = 32;

/// A parsed path.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Wildcard,
    Recursive,
    Slice { start: Option<i64>, end: Option<i64>, step: i64 },
    Index(i64),
    Union(Vec<JsonPath>),
    Filter(Box<Filter>),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    left: Operand,
    /// Without a comparison, the left side only has to be there.
    compare: Option<(Comparison, Operand)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    /// Of the item at hand.
    Path(JsonPath),
    Literal(Value),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

const COMPARISONS: &[(&str, Comparison)] = &[
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<=", Comparison::LessOrEqual),
    (">=", Comparison::GreaterOrEqual),
    ("<", Comparison::Less),
    (">", Comparison::Greater),
];

/// A text that is no path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(String);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

fn malformed<T>(why: impl Into<String>) -> Result<T, Malformed> {
    Err(Malformed(why.into()))
}

impl JsonPath {
    /// Reads a path, without the braces of kubectl's templates.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        Parser { rest: text, depth: 0 }.path()
    }

    /// The values at the path, in document order.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let mut found = vec![value];
        for step in &self.steps {
            found = found.into_iter().flat_map(|value| step.take(value)).collect();
        }
        found
    }

    /// The first value at the path.
    pub fn first<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        self.find(value).into_iter().next()
    }
}

/// A value as templates print it: text as it is, objects and lists as JSON.
pub fn print(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<nil>".to_owned(),
        other => other.to_string(),
    }
}

impl Step {
    fn take<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        match (self, value) {
            (Step::Field(name), Value::Object(fields)) => fields.get(name).into_iter().collect(),
            (Step::Wildcard, Value::Object(fields)) => fields.values().collect(),
            (Step::Wildcard, Value::Array(items)) => items.iter().collect(),
            (Step::Recursive, value) => {
                let mut found = Vec::new();
                descend(value, &mut found);
                found
            }
            (Step::Index(index), Value::Array(items)) => {
                place(*index, items.len()).and_then(|at| items.get(at)).into_iter().collect()
            }
            (Step::Slice { start, end, step }, Value::Array(items)) => slice(items, *start, *end, *step),
            (Step::Union(paths), value) => paths.iter().flat_map(|path| path.find(value)).collect(),
            (Step::Filter(filter), Value::Array(items)) => {
                items.iter().filter(|item| filter.holds(item)).collect()
            }
            (Step::Filter(filter), Value::Object(fields)) => {
                fields.values().filter(|item| filter.holds(item)).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn descend<'v>(value: &'v Value, found: &mut Vec<&'v Value>) {
    found.push(value);
    match value {
        Value::Object(fields) => fields.values().for_each(|value| descend(value, found)),
        Value::Array(items) => items.iter().for_each(|value| descend(value, found)),
        _ => {}
    }
}

/// Negative indices count from the end.
fn place(index: i64, length: usize) -> Option<usize> {
    if index >= 0 {
        return usize::try_from(index).ok();
    }
    length.checked_sub(usize::try_from(index.unsigned_abs()).ok()?)
}

fn slice(items: &[Value], start: Option<i64>, end: Option<i64>, step: i64) -> Vec<&Value> {
    let bound = |index: Option<i64>, otherwise: usize| match index {
        None => otherwise,
        Some(index) => place(index, items.len()).unwrap_or(0).min(items.len()),
    };
    let (start, end) = (bound(start, 0), bound(end, items.len()));
    let step = usize::try_from(step).unwrap_or(1).max(1);
    items.get(start..end).unwrap_or_default().iter().step_by(step).collect()
}

impl Filter {
    fn holds(&self, item: &Value) -> bool {
        let Some(left) = self.left.of(item) else { return false };
        let Some((comparison, right)) = &self.compare else { return true };
        let Some(right) = right.of(item) else { return false };
        let order = match (left, right) {
            (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
            (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
            (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
            _ => None,
        };
        match comparison {
            Comparison::Equal => left == right || order.is_some_and(|o| o.is_eq()),
            Comparison::NotEqual => left != right && order.is_none_or(|o| o.is_ne()),
            Comparison::Less => order.is_some_and(|o| o.is_lt()),
            Comparison::LessOrEqual => order.is_some_and(|o| o.is_le()),
            Comparison::Greater => order.is_some_and(|o| o.is_gt()),
            Comparison::GreaterOrEqual => order.is_some_and(|o| o.is_ge()),
        }
    }
}

impl Operand {
    fn of<'v>(&'v self, item: &'v Value) -> Option<&'v Value> {
        match self {
            Operand::Literal(value) => Some(value),
            Operand::Path(path) => path.first(item),
        }
    }
}

struct Parser<'t> {
    rest: &'t str,
    depth: usize,
}

impl<'t> Parser<'t> {
    fn eat(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn path(&mut self) -> Result<JsonPath, Malformed> {
        let mut steps = Vec::new();
        let _ = self.eat("$") || self.eat("@");
        while !self.rest.is_empty() {
            if self.eat("..") {
                steps.push(Step::Recursive);
                if !self.rest.starts_with(['.', '[']) && !self.rest.is_empty() {
                    steps.push(self.name()?);
                }
            } else if self.eat("[") {
                steps.push(self.bracket()?);
            } else if self.eat(".") {
                if !self.rest.is_empty() && !self.rest.starts_with('[') {
                    steps.push(self.name()?);
                }
            } else if steps.is_empty() {
                steps.push(self.name()?);
            } else {
                return malformed(format!("unexpected {:?}", self.rest));
            }
        }
        Ok(JsonPath { steps })
    }

    /// A field name, in which a backslash takes the next character as it is.
    fn name(&mut self) -> Result<Step, Malformed> {
        let mut name = String::new();
        let mut characters = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((at, character)) = characters.next() {
            match character {
                '.' | '[' => {
                    end = at;
                    break;
                }
                '\\' => name.extend(characters.next().map(|(_, c)| c)),
                ' ' | '{' | '}' | ']' | '\'' | '"' => {
                    return malformed(format!("unexpected {character:?} in a field name"));
                }
                other => name.push(other),
            }
        }
        self.rest = &self.rest[end..];
        match name.as_str() {
            "" => malformed("a field name is missing"),
            "*" => Ok(Step::Wildcard),
            _ => Ok(Step::Field(name)),
        }
    }

    /// What stands between brackets, the first of which is eaten.
    fn bracket(&mut self) -> Result<Step, Malformed> {
        let end = closing(self.rest).ok_or_else(|| Malformed("unterminated array".into()))?;
        let inner = self.rest[..end].trim();
        self.rest = &self.rest[end + 1..];
        if self.depth >= MAX_DEPTH {
            return malformed("the path is nested too deeply");
        }
        if let Some(filter) = inner.strip_prefix("?(").and_then(|i| i.strip_suffix(')')) {
            return Ok(Step::Filter(Box::new(filter_of(filter, self.depth + 1)?)));
        }
        let parts = split(inner, ',');
        if parts.len() > 1 {
            let paths: Result<Vec<JsonPath>, Malformed> = parts
                .into_iter()
                .map(|part| Ok(JsonPath { steps: vec![self.single(part.trim())?] }))
                .collect();
            return Ok(Step::Union(paths?));
        }
        self.single(inner)
    }

    fn single(&self, inner: &str) -> Result<Step, Malformed> {
        if inner == "*" {
            return Ok(Step::Wildcard);
        }
        if let Some(name) = quoted(inner) {
            return Ok(Step::Field(name));
        }
        if let Ok(index) = inner.parse() {
            return Ok(Step::Index(index));
        }
        let parts: Vec<&str> = inner.split(':').collect();
        let number = |text: &str| match text.trim() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| Malformed(format!("invalid array index {inner}"))),
        };
        match parts.as_slice() {
            [start, end] => Ok(Step::Slice { start: number(start)?, end: number(end)?, step: 1 }),
            [start, end, step] => {
                let step = number(step)?.unwrap_or(1);
                if step <= 0 {
                    return malformed("step must be > 0");
                }
                Ok(Step::Slice { start: number(start)?, end: number(end)?, step })
            }
            _ => malformed(format!("invalid array index {inner}")),
        }
    }
}

/// The text between quotes of either kind, with its escapes resolved.
fn quoted(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut plain = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => plain.push(characters.next()?),
            other => plain.push(other),
        }
    }
    Some(plain)
}

/// Calls `visit` for each character outside of quotes, with its place and how deep in brackets it stands, until
/// `visit` gives an answer.
fn scan<T>(text: &str, mut visit: impl FnMut(usize, char, usize) -> Option<T>) -> Option<T> {
    let (mut quote, mut escaped, mut depth) = (None, false, 0usize);
    for (at, character) in text.char_indices() {
        match (quote, character) {
            _ if escaped => escaped = false,
            (_, '\\') => escaped = true,
            (Some(open), c) if open == c => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(character),
            (None, _) => {
                if let Some(answer) = visit(at, character, depth) {
                    return Some(answer);
                }
                match character {
                    '[' | '(' => depth += 1,
                    ']' | ')' => depth = depth.saturating_sub(1),
                    _ => {}
                }
            }
        }
    }
    None
}

/// Where the bracket that is open ends.
fn closing(text: &str) -> Option<usize> {
    scan(text, |at, character, depth| (character == ']' && depth == 0).then_some(at))
}

fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    scan::<()>(text, |at, character, depth| {
        if character == separator && depth == 0 {
            parts.push(&text[start..at]);
            start = at + character.len_utf8();
        }
        None
    });
    parts.push(&text[start..]);
    parts
}

fn filter_of(text: &str, depth: usize) -> Result<Filter, Malformed> {
    let found = scan(text, |at, _, deep| {
        let rest = &text[at..];
        let (words, comparison) = COMPARISONS.iter().find(|(words, _)| rest.starts_with(words))?;
        (deep == 0).then_some((at, words.len(), *comparison))
    });
    let operand = |text: &str| {
        let text = text.trim();
        if let Some(literal) = quoted(text) {
            return Ok(Operand::Literal(literal.into()));
        }
        match serde_json::from_str::<Value>(text) {
            Ok(literal) => Ok(Operand::Literal(literal)),
            Err(_) => Ok(Operand::Path(Parser { rest: text, depth }.path()?)),
        }
    };
    match found {
        None => Ok(Filter { left: operand(text)?, compare: None }),
        Some((at, length, comparison)) => Ok(Filter {
            left: operand(&text[..at])?,
            compare: Some((comparison, operand(&text[at + length..])?)),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check(path: &str, expected: Value) {
        let object = json!({
            "spec": {"replicas": 3, "list": [1, 2, 3, 4], "a.b": "dotted"},
            "status": {"conditions": [
                {"type": "Ready", "status": "True", "n": 5}, {"type": "Other", "status": "False", "n": 7},
            ]},
        });
        let found = JsonPath::parse(path).unwrap();
        let values: Value = found.find(&object).into_iter().cloned().collect();
        assert_eq!(values, expected, "{path}");
    }

    #[test]
    fn paths_find_what_they_name() {
        check(".spec.replicas", json!([3]));
        check("$.spec.replicas", json!([3]));
        check(".spec.missing.deeper", json!([]));
        check(".spec['a.b']", json!(["dotted"]));
        check(r".spec.a\.b", json!(["dotted"]));
        check(".spec.list[0]", json!([1]));
        check(".spec.list[-1]", json!([4]));
        check(".spec.list[9]", json!([]));
        check(".spec.list[1:3]", json!([2, 3]));
        check(".spec.list[::2]", json!([1, 3]));
        check(".spec.list[0,3]", json!([1, 4]));
        check(".spec.list[*]", json!([1, 2, 3, 4]));
        check(r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"]));
        check(".status.conditions[?(@.n > 5)].type", json!(["Other"]));
        check(".status.conditions[?(@.missing)].type", json!([]));
        check("..type", json!(["Ready", "Other"]));
    }

    #[test]
    fn what_is_no_path_is_refused() {
        for text in [".spec[", ".spec[a]", ".a b", ".spec[::0]", ".a['b"] {
            assert!(JsonPath::parse(text).is_err(), "{text}");
        }
        let deep = format!("{}{}", "[?(@".repeat(10_000), ")]".repeat(10_000));
        assert!(JsonPath::parse(&deep).is_err());
    }
}
