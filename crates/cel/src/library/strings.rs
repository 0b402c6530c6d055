//! Texts.
//!
//! Upstream: cel-go ext/strings.go

use super::{Function, format, no_overload};
use crate::error::EvalError;
use crate::value::{List, Text, Value, equal};

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// The longest text that a function makes. What an evaluation may cost does not bound what `replace` and `join`
/// multiply.
const MAX_BYTES: usize = 16 << 20;

pub static FUNCTIONS: &[Function] = &[
    Function {
        name: "contains",
        eval: contains,
        overloads: &[("contains_string", "string.(string) -> bool")],
    },
    Function {
        name: "startsWith",
        eval: starts_with,
        overloads: &[("starts_with_string", "string.(string) -> bool")],
    },
    Function {
        name: "endsWith",
        eval: ends_with,
        overloads: &[("ends_with_string", "string.(string) -> bool")],
    },
    Function {
        name: "charAt",
        eval: char_at,
        overloads: &[("string_char_at_int", "string.(int) -> string")],
    },
    Function {
        name: "substring",
        eval: substring,
        overloads: &[
            ("string_substring_int", "string.(int) -> string"),
            ("string_substring_int_int", "string.(int, int) -> string"),
        ],
    },
    Function {
        name: "replace",
        eval: replace,
        overloads: &[
            ("string_replace_string_string", "string.(string, string) -> string"),
            ("string_replace_string_string_int", "string.(string, string, int) -> string"),
        ],
    },
    Function {
        name: "split",
        eval: split,
        overloads: &[
            ("string_split_string", "string.(string) -> list(string)"),
            ("string_split_string_int", "string.(string, int) -> list(string)"),
        ],
    },
    Function {
        name: "join",
        eval: join,
        overloads: &[
            ("list_join", "list(string).() -> string"),
            ("list_join_string", "list(string).(string) -> string"),
        ],
    },
    Function {
        name: "lowerAscii",
        eval: |args| change(args, |text| text.to_ascii_lowercase()),
        overloads: &[("string_lower_ascii", "string.() -> string")],
    },
    Function {
        name: "upperAscii",
        eval: |args| change(args, |text| text.to_ascii_uppercase()),
        overloads: &[("string_upper_ascii", "string.() -> string")],
    },
    Function {
        name: "trim",
        eval: |args| change(args, |text| text.trim().to_owned()),
        overloads: &[("string_trim", "string.() -> string")],
    },
    Function {
        name: "strings.quote",
        eval: |args| change(args, quote),
        overloads: &[("strings_quote", "(string) -> string")],
    },
    Function {
        name: "format",
        eval: format::eval,
        overloads: &[("string_format", "string.(list(dyn)) -> string")],
    },
    Function {
        name: "jsonpatch.escapeKey",
        eval: |args| change(args, |key| key.replace('~', "~0").replace('/', "~1")),
        overloads: &[("string_jsonpatch_escapeKey_string", "(string) -> string")],
    },
];

fn change<'a>(args: &[Value<'a>], how: fn(&str) -> String) -> Result<'a> {
    match args {
        [Value::String(text)] => Ok(Value::string(how(text))),
        _ => no_overload(),
    }
}

fn out_of_range(index: i64) -> EvalError {
    EvalError::new(format!("index out of range: {index}"))
}

/// A text made of parts that may come to much.
pub fn bounded(length: usize) -> std::result::Result<(), EvalError> {
    if length > MAX_BYTES { Err(EvalError::CostLimitExceeded) } else { Ok(()) }
}

fn contains<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::String(text), Value::String(part)] => Ok(Value::Bool(text.contains(&**part))),
        _ => no_overload(),
    }
}

fn starts_with<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::String(text), Value::String(part)] => Ok(Value::Bool(text.starts_with(&**part))),
        _ => no_overload(),
    }
}

fn ends_with<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::String(text), Value::String(part)] => Ok(Value::Bool(text.ends_with(&**part))),
        _ => no_overload(),
    }
}

fn char_at<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::String(text), Value::Int(index)] = args else { return no_overload() };
    let at = usize::try_from(*index).map_err(|_| out_of_range(*index))?;
    match text.chars().nth(at) {
        Some(found) => Ok(Value::string(found.to_string())),
        None if at == text.chars().count() => Ok(Value::string("")),
        None => Err(out_of_range(*index)),
    }
}

/// The byte at which a character begins, the end included.
fn byte_of(text: &str, index: i64) -> std::result::Result<usize, EvalError> {
    let at = usize::try_from(index).map_err(|_| out_of_range(index))?;
    text.char_indices().map(|(byte, _)| byte).chain([text.len()]).nth(at).ok_or_else(|| out_of_range(index))
}

fn substring<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (text, start, end) = match args {
        [Value::String(text), Value::Int(start)] => (text, *start, None),
        [Value::String(text), Value::Int(start), Value::Int(end)] => (text, *start, Some(*end)),
        _ => return no_overload(),
    };
    if let Some(end) = end.filter(|end| start > *end) {
        return Err(EvalError::new(format!("invalid substring range. start: {start}, end: {end}")));
    }
    let from = byte_of(text, start)?;
    let to = end.map_or(Ok(text.len()), |end| byte_of(text, end))?;
    Ok(Value::string(&text[from..to]))
}

fn replace<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (text, old, new, limit) = match args {
        [Value::String(text), Value::String(old), Value::String(new)] => (text, old, new, -1),
        [Value::String(text), Value::String(old), Value::String(new), Value::Int(limit)] => {
            (text, old, new, *limit)
        }
        _ => return no_overload(),
    };
    let count = text.matches(&**old).take(usize::try_from(limit).unwrap_or(usize::MAX)).count();
    bounded(text.len().saturating_add(count.saturating_mul(new.len())))?;
    Ok(Value::string(text.replacen(&**old, new, count)))
}

fn split<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (text, separator, limit) = match args {
        [Value::String(text), Value::String(separator)] => (text, separator, -1),
        [Value::String(text), Value::String(separator), Value::Int(limit)] => (text, separator, *limit),
        _ => return no_overload(),
    };
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let part = |part: &str| Value::string(part);
    let parts: Vec<Value<'a>> = match limit {
        0 => Vec::new(),
        // Between no characters there is nothing before the first or after the last.
        _ if separator.is_empty() => {
            let mut parts: Vec<Value<'a>> = Vec::new();
            let mut rest: &str = text;
            while let Some(next) = rest.chars().next() {
                let (head, tail) =
                    if parts.len() + 1 == limit { (rest, "") } else { rest.split_at(next.len_utf8()) };
                parts.push(part(head));
                rest = tail;
            }
            parts
        }
        limit => text.splitn(limit, &**separator).map(part).collect(),
    };
    Ok(Value::list(parts))
}

fn join<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (list, separator) = match args {
        [Value::List(list)] => (list, ""),
        [Value::List(list), Value::String(separator)] => (list, &**separator),
        _ => return no_overload(),
    };
    let mut joined = String::new();
    for (index, item) in list.iter().enumerate() {
        let item = item?;
        let Some(text) = item.as_str() else { return no_overload() };
        if index > 0 {
            joined.push_str(separator);
        }
        joined.push_str(text);
        bounded(joined.len())?;
    }
    Ok(Value::String(Text::from(joined)))
}

/// Where an item is in a list, or a part in a text; -1 for nowhere.
pub fn index_of<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::List(list), item] => Ok(Value::Int(position(list, item, false))),
        [Value::String(_), Value::String(part), Value::Int(offset)] if part.is_empty() => {
            Ok(Value::Int(*offset))
        }
        [Value::String(text), Value::String(part)] => find_from(text, part, 0),
        [Value::String(text), Value::String(part), Value::Int(offset)] => find_from(text, part, *offset),
        _ => no_overload(),
    }
}

fn find_from<'a>(text: &str, part: &str, offset: i64) -> Result<'a> {
    if offset < 0 {
        return Err(out_of_range(offset));
    }
    let Ok(from) = byte_of(text, offset) else { return Ok(Value::Int(-1)) };
    let found = text[from..].find(part);
    Ok(Value::Int(found.map_or(-1, |byte| offset + text[from..from + byte].chars().count() as i64)))
}

pub fn last_index_of<'a>(args: &[Value<'a>]) -> Result<'a> {
    let (text, part, offset) = match args {
        [Value::List(list), item] => return Ok(Value::Int(position(list, item, true))),
        [Value::String(text), Value::String(part)] => (text, part, None),
        [Value::String(text), Value::String(part), Value::Int(offset)] => (text, part, Some(*offset)),
        _ => return no_overload(),
    };
    let length = text.chars().count() as i64;
    if part.is_empty() {
        return Ok(Value::Int(offset.unwrap_or(length)));
    }
    if let Some(offset) = offset.filter(|offset| *offset < 0) {
        return Err(out_of_range(offset));
    }
    if offset.is_some_and(|offset| offset >= length) {
        return Ok(Value::Int(-1));
    }
    // The last place at which the part may begin and still end within the text that is looked at.
    let end = match offset {
        Some(offset) => byte_of(text, (offset + part.chars().count() as i64).min(length))?,
        None => text.len(),
    };
    let found = text[..end].rfind(&**part);
    Ok(Value::Int(found.map_or(-1, |byte| text[..byte].chars().count() as i64)))
}

fn position(list: &List<'_>, wanted: &Value<'_>, last: bool) -> i64 {
    let is = |index: &usize| list.get(*index).is_some_and(|item| item.is_ok_and(|item| equal(&item, wanted)));
    let mut indexes = 0..list.len();
    let found = if last { indexes.rev().find(is) } else { indexes.find(is) };
    found.map_or(-1, |index| index as i64)
}

/// In double quotes, with escapes.
pub fn quote(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            '\\' => quoted.push_str("\\\\"),
            '"' => quoted.push_str("\\\""),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
