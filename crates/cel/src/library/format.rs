//! `string.format`: clauses, at check time against types and at run time against values.
//!
//! Upstream: cel-go ext/formatting.go

use super::{no_overload, standard, strings, time};
use crate::error::EvalError;
use crate::types::Type;
use crate::value::{Key, Value};

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

const DEFAULT_PRECISION: usize = 6;
/// More digits than any double has.
const MAX_PRECISION: usize = 1000;
/// How deep lists in lists are written.
const MAX_DEPTH: usize = 100;

/// One `%` clause, or text between them.
enum Piece<'t> {
    Text(&'t str),
    Clause(char, usize),
}

/// The next piece of a format and what is left after it.
fn piece(format: &str) -> std::result::Result<(Piece<'_>, &str), String> {
    if let Some(rest) = format.strip_prefix("%%") {
        return Ok((Piece::Text("%"), rest));
    }
    let Some(clause) = format.strip_prefix('%') else {
        let end = format.find('%').unwrap_or(format.len());
        return Ok((Piece::Text(&format[..end]), &format[end..]));
    };
    let (precision, rest) = match clause.strip_prefix('.') {
        None => (DEFAULT_PRECISION, clause),
        Some(digits) => {
            let count = digits.bytes().take_while(u8::is_ascii_digit).count();
            let number = digits[..count].parse().ok().filter(|precision| *precision <= MAX_PRECISION);
            let end = "could not parse formatting clause: error while parsing precision: could not find end of \
                       precision specifier";
            (number.ok_or(end)?, &digits[count..])
        }
    };
    let verb = rest.chars().next().ok_or("unexpected end of string")?;
    if !"sdfebxXo".contains(verb) {
        return Err(format!("could not parse formatting clause: unrecognized formatting clause \"{verb}\""));
    }
    Ok((Piece::Clause(verb, precision), &rest[verb.len_utf8()..]))
}

/// What a clause cannot write.
fn refusal(verb: char, given: &str) -> String {
    let what = match verb {
        's' => {
            "string clause can only be used on strings, bools, bytes, ints, doubles, maps, lists, types, durations, \
             and timestamps"
        }
        'd' => "decimal clause can only be used on integers",
        'f' => "fixed-point clause can only be used on doubles",
        'e' => "scientific clause can only be used on doubles",
        'b' => "only integers and bools can be formatted as binary",
        'o' => "octal clause can only be used on integers",
        _ => "only integers, byte buffers, and strings can be formatted as hex",
    };
    format!("error during formatting: {what}, was given {given}")
}

/// What is wrong with a literal format for arguments of these types, and with which of them.
pub fn check(format: &str, types: &[&Type]) -> std::result::Result<(), (Option<usize>, String)> {
    let mut rest = format;
    let mut used = 0;
    while !rest.is_empty() {
        if rest.starts_with('%') && !rest.starts_with("%%") {
            if rest.len() == 1 {
                return Err((None, "unexpected end of string".to_owned()));
            }
            if used >= types.len() {
                return Err((None, format!("index {used} out of range")));
            }
        }
        let (piece, tail) = piece(rest).map_err(|message| (None, message))?;
        if let Piece::Clause(verb, _) = piece {
            let ty = types[used];
            let fits = match (verb, ty) {
                (_, Type::Dyn) => true,
                ('s', Type::Opaque(..) | Type::Object(_) | Type::Any) => false,
                ('s', _) => true,
                ('d' | 'o', ty) => matches!(ty, Type::Int | Type::Uint),
                ('f' | 'e', ty) => matches!(ty, Type::Double | Type::String),
                ('b', ty) => matches!(ty, Type::Int | Type::Uint | Type::Bool),
                (_, ty) => matches!(ty, Type::Int | Type::Uint | Type::String | Type::Bytes),
            };
            if !fits {
                return Err((Some(used), refusal(verb, ty.runtime_name())));
            }
            used += 1;
        }
        rest = tail;
    }
    if types.len() > used {
        let got = types.len();
        return Err((
            None,
            format!("too many arguments supplied to string.format (expected {used}, got {got})"),
        ));
    }
    Ok(())
}

pub fn eval<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::String(format), Value::List(list)] = args else { return no_overload() };
    let mut out = String::new();
    let mut rest: &str = format;
    let mut used = 0;
    while !rest.is_empty() {
        if rest == "%" {
            return Err(EvalError::new("unexpected end of string"));
        }
        let (piece, tail) = piece(rest).map_err(EvalError::new)?;
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Clause(verb, precision) => {
                let argument = list.get(used);
                let argument =
                    argument.ok_or_else(|| EvalError::new(format!("index {used} out of range")))??;
                clause(verb, precision, &argument, &mut out)?;
                used += 1;
            }
        }
        strings::bounded(out.len())?;
        rest = tail;
    }
    Ok(Value::string(out))
}

fn clause(
    verb: char,
    precision: usize,
    value: &Value<'_>,
    out: &mut String,
) -> std::result::Result<(), EvalError> {
    let special = |text: &str| matches!(text, "NaN" | "Infinity" | "-Infinity");
    let written = match (verb, value) {
        ('s', _) => return text(value, 0, out),
        ('d', Value::Int(number)) => number.to_string(),
        ('d', Value::Uint(number)) => number.to_string(),
        ('f', Value::Double(number)) => fixed(*number, precision),
        ('e', Value::Double(number)) => padded(*number, precision),
        ('f' | 'e', Value::String(text)) if special(text) => text.replace("Infinity", "∞"),
        ('b', Value::Int(number)) => signed(*number, |n| format!("{n:b}")),
        ('b', Value::Uint(number)) => format!("{number:b}"),
        ('b', Value::Bool(flag)) => u8::from(*flag).to_string(),
        ('o', Value::Int(number)) => signed(*number, |n| format!("{n:o}")),
        ('o', Value::Uint(number)) => format!("{number:o}"),
        ('x', Value::Int(number)) => signed(*number, |n| format!("{n:x}")),
        ('x', Value::Uint(number)) => format!("{number:x}"),
        ('x', Value::String(text)) => hex(text.as_bytes()),
        ('x', Value::Bytes(bytes)) => hex(bytes),
        ('X', _) => {
            let mut lower = String::new();
            clause('x', precision, value, &mut lower)?;
            lower.to_uppercase()
        }
        (verb, other) => return Err(EvalError::new(refusal(verb, other.type_of().runtime_name()))),
    };
    out.push_str(&written);
    Ok(())
}

fn signed(number: i64, digits: fn(u64) -> String) -> String {
    let sign = if number < 0 { "-" } else { "" };
    format!("{sign}{}", digits(number.unsigned_abs()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn special(number: f64) -> Option<&'static str> {
    match number {
        n if n.is_nan() => Some("NaN"),
        n if n == f64::INFINITY => Some("∞"),
        n if n == f64::NEG_INFINITY => Some("-∞"),
        _ => None,
    }
}

/// Six digits in at least so many characters: upstream takes the precision for a width.
fn padded(number: f64, width: usize) -> String {
    let width = if width == DEFAULT_PRECISION { 0 } else { width };
    format!("{:>width$}", scientific(number))
}

/// With commas between thousands, as the English locale writes numbers.
fn fixed(number: f64, precision: usize) -> String {
    if let Some(special) = special(number) {
        return special.to_owned();
    }
    let plain = format!("{:.precision$}", number.abs());
    let (whole, fraction) = plain.split_once('.').unwrap_or((&plain, ""));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let sign = if number.is_sign_negative() { "-" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{fraction}")
}

fn scientific(number: f64) -> String {
    if let Some(special) = special(number) {
        return special.to_owned();
    }
    let plain = format!("{number:.DEFAULT_PRECISION$e}");
    let (digits, exponent) = plain.split_once('e').unwrap_or((&plain, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    let raised = |c: char| match c {
        '0'..='9' => ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'][c as usize - '0' as usize],
        _ => '⁻',
    };
    let sign = if power < 0 { "-" } else { "" };
    let exponent: String = format!("{sign}{:02}", power.abs()).chars().map(raised).collect();
    format!("{digits}×10{exponent}")
}

/// A value as `%s` writes it.
fn text(value: &Value<'_>, depth: usize, out: &mut String) -> std::result::Result<(), EvalError> {
    if depth > MAX_DEPTH {
        return Err(EvalError::CostLimitExceeded);
    }
    strings::bounded(out.len())?;
    match value {
        Value::Null => out.push_str("null"),
        Value::List(list) => {
            out.push('[');
            for (index, item) in list.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                member(&item?, depth + 1, out)?;
            }
            out.push(']');
        }
        Value::Map(map) => {
            let mut entries = Vec::new();
            for key in map.keys() {
                let mut written = match &key {
                    Key::String(key) => strings::quote(key),
                    other => other.to_string(),
                };
                written.push(':');
                if let Some(value) = map.get(&key) {
                    member(&value?, depth + 1, &mut written)?;
                }
                entries.push(written);
            }
            entries.sort();
            out.push('{');
            out.push_str(&entries.join(", "));
            out.push('}');
        }
        Value::Type(ty) => out.push_str(ty.runtime_name()),
        other => match standard::to_string(std::slice::from_ref(other)) {
            Ok(Value::String(text)) if !matches!(other, Value::Extension(_)) => out.push_str(&text),
            _ => return Err(EvalError::new(refusal('s', other.type_of().runtime_name()))),
        },
    }
    Ok(())
}

/// A value within a list or a map, where texts are quoted.
fn member(value: &Value<'_>, depth: usize, out: &mut String) -> std::result::Result<(), EvalError> {
    match value {
        Value::String(text) => out.push_str(&strings::quote(text)),
        Value::Bytes(bytes) => {
            out.push('b');
            out.push_str(&strings::quote(&String::from_utf8_lossy(bytes)));
        }
        Value::Double(number) => out.push_str(&format!("{number:.DEFAULT_PRECISION$}")),
        Value::Duration(_) => {
            out.push_str(&format!("duration({})", strings::quote(&time::format_duration(value))))
        }
        Value::Timestamp(moment) => {
            out.push_str(&format!("timestamp({})", strings::quote(&moment.to_string())))
        }
        Value::Type(ty) => out.push_str(&format!("type({})", ty.runtime_name())),
        other => text(other, depth, out)?,
    }
    Ok(())
}
