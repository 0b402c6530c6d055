//! The canonical forms of scalars, and what upstream's `omitempty` leaves out.

use api::tables::{Field, Type};
use apimachinery::quantity::Quantity;
use apimachinery::time;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Number, Value};

/// What a scalar in JSON can be.
pub enum Scalar<'a> {
    Bool(bool),
    Int(i64),
    /// Beyond an `i64`.
    Uint(u64),
    Float(f64),
    Text(&'a str),
}

/// Why a scalar does not fit.
pub enum Misfit {
    /// Go's word for what was found, to be told with the field.
    Found(String),
    /// A message of its own.
    Message(String),
}

impl Scalar<'_> {
    fn word(&self) -> String {
        match self {
            Scalar::Bool(_) => "bool".into(),
            Scalar::Text(_) => "string".into(),
            _ => "number".into(),
        }
    }

    fn number(&self) -> String {
        match self {
            Scalar::Int(n) => format!("number {n}"),
            Scalar::Uint(n) => format!("number {n}"),
            Scalar::Float(n) => format!("number {n}"),
            other => other.word(),
        }
    }

    fn text(&self) -> String {
        match self {
            Scalar::Bool(b) => b.to_string(),
            Scalar::Int(n) => n.to_string(),
            Scalar::Uint(n) => n.to_string(),
            Scalar::Float(n) => n.to_string(),
            Scalar::Text(t) => (*t).to_owned(),
        }
    }

    pub fn into_value(self) -> Value {
        match self {
            Scalar::Bool(b) => Value::Bool(b),
            Scalar::Int(n) => n.into(),
            Scalar::Uint(n) => n.into(),
            Scalar::Float(n) => Number::from_f64(n).map_or(Value::Null, Value::Number),
            Scalar::Text(t) => t.into(),
        }
    }
}

/// The canonical value of a scalar in a field of that type.
pub fn convert(ty: Type, scalar: Scalar<'_>) -> Result<Value, Misfit> {
    match (ty, &scalar) {
        (Type::String, Scalar::Text(_)) | (Type::Bool, Scalar::Bool(_)) => Ok(scalar.into_value()),
        (Type::SchemaOrBool, Scalar::Bool(_)) => Ok(scalar.into_value()),
        (Type::Int64, Scalar::Int(_)) => Ok(scalar.into_value()),
        (Type::Int32, Scalar::Int(n)) if i32::try_from(*n).is_ok() => Ok(scalar.into_value()),
        (Type::Int32 | Type::Int64, Scalar::Int(_) | Scalar::Uint(_) | Scalar::Float(_)) => {
            Err(Misfit::Found(scalar.number()))
        }
        (Type::Double, Scalar::Int(_) | Scalar::Uint(_) | Scalar::Float(_)) => Ok(scalar.into_value()),
        (Type::Json | Type::Raw | Type::FieldsV1, _) => Ok(scalar.into_value()),
        (Type::IntOrString, Scalar::Text(_)) => Ok(scalar.into_value()),
        (Type::IntOrString, Scalar::Int(n)) if i32::try_from(*n).is_ok() => Ok(scalar.into_value()),
        (Type::IntOrString, _) => Err(Misfit::Message(format!(
            "json: cannot unmarshal {} into Go value of type int32",
            scalar.number()
        ))),
        (Type::Quantity, Scalar::Bool(_)) => Err(Misfit::Message(quantity_error("true"))),
        (Type::Quantity, _) => canonical_quantity(&scalar.text()).map(Value::String).map_err(Misfit::Message),
        (Type::Time, Scalar::Text(text)) => canonical_time(text).map_err(Misfit::Message),
        (Type::MicroTime, Scalar::Text(text)) => canonical_micro_time(text).map_err(Misfit::Message),
        (Type::Time | Type::MicroTime, _) => Err(Misfit::Message(format!(
            "json: cannot unmarshal {} into Go value of type string",
            scalar.word()
        ))),
        (Type::Bytes, Scalar::Text(text)) => {
            canonical_bytes(text).map(Value::String).map_err(Misfit::Message)
        }
        _ => Err(Misfit::Found(scalar.word())),
    }
}

fn quantity_error(text: &str) -> String {
    Quantity::parse(text).err().map(|e| e.to_string()).unwrap_or_default()
}

/// As upstream writes the quantity back.
pub fn canonical_quantity(text: &str) -> Result<String, String> {
    if is_canonical_quantity(text) {
        return Ok(text.to_owned());
    }
    Quantity::parse(text.trim()).map(|q| q.to_string()).map_err(|e| e.to_string())
}

/// Whether the text is surely what upstream would write: a few digits that no larger unit divides, and a suffix.
fn is_canonical_quantity(text: &str) -> bool {
    const MAX_DIGITS: usize = 6;
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    if digits > MAX_DIGITS || text.starts_with('0') {
        return false;
    }
    let Ok(number) = text[..digits].parse::<u32>() else { return false };
    match &text[digits..] {
        "" | "n" | "u" | "m" | "k" | "M" | "G" | "T" | "P" => number % 1000 != 0,
        "Ki" | "Mi" | "Gi" | "Ti" => number % 1024 != 0,
        _ => false,
    }
}

fn canonical_time(text: &str) -> Result<Value, String> {
    if is_canonical_time(text) {
        return Ok(text.into());
    }
    match time::parse_rfc3339(text) {
        Some(seconds) => Ok(time::rfc3339(seconds).into()),
        None => Err(time_error(text, "2006-01-02T15:04:05Z07:00")),
    }
}

/// Six digits after the point, as Go's layout has them.
fn canonical_micro_time(text: &str) -> Result<Value, String> {
    const LAYOUT: &str = "2006-01-02T15:04:05.000000Z07:00";
    const SECONDS: usize = 19;
    const FRACTION: usize = 7;
    let Some(at) = time::parse(text) else { return Err(time_error(text, LAYOUT)) };
    let refused = |rest: &str, part: &str| {
        Err(format!("parsing time {text:?} as {LAYOUT:?}: cannot parse {rest:?} as {part:?}"))
    };
    let rest = text.get(SECONDS..).unwrap_or_default();
    let digits = |fraction: &str| fraction.bytes().skip(1).all(|byte| byte.is_ascii_digit());
    match (rest.starts_with('.'), rest.get(..FRACTION), rest.get(FRACTION..)) {
        (true, Some(fraction), Some(zone)) if digits(fraction) => match zone.starts_with(['Z', '+', '-']) {
            true => Ok(time::rfc3339_micro(at.as_second(), at.subsec_nanosecond()).into()),
            false => refused(zone, "Z07:00"),
        },
        _ => refused(rest, ".000000"),
    }
}

/// Whether the text is the canonical form of an instant that surely exists, so that it need not be parsed.
fn is_canonical_time(text: &str) -> bool {
    let bytes = text.as_bytes();
    let shaped = bytes.len() == 20
        && bytes.iter().enumerate().all(|(at, b)| match at {
            4 | 7 => *b == b'-',
            10 => *b == b'T',
            13 | 16 => *b == b':',
            19 => *b == b'Z',
            _ => b.is_ascii_digit(),
        });
    let pair = |at: usize| (bytes[at] - b'0') * 10 + (bytes[at + 1] - b'0');
    shaped
        && (1..=12).contains(&pair(5))
        && (1..=28).contains(&pair(8))
        && pair(11) < 24
        && pair(14) < 60
        && pair(17) < 60
}

fn time_error(text: &str, layout: &str) -> String {
    format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\"")
}

/// Standard base64 without line breaks, or Go's message.
pub fn canonical_bytes(text: &str) -> Result<String, String> {
    let joined: String;
    let text = if text.contains(['\r', '\n']) {
        joined = text.replace(['\r', '\n'], "");
        &joined
    } else {
        text
    };
    match STANDARD.decode(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => {
            let at = match error {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                base64::DecodeError::InvalidLength(length) => length - length % 4,
                base64::DecodeError::InvalidPadding => text.len(),
            };
            Err(format!("illegal base64 data at input byte {at}"))
        }
    }
}

/// Whether upstream's `omitempty` drops the value: the zero of a field that is no pointer.
pub fn is_dropped(field: &Field, value: &Value) -> bool {
    if field.pointer() || field.always() {
        return matches!(value, Value::Null);
    }
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty() && matches!(field.ty, Type::String | Type::Bytes),
        Value::Bool(b) => !b && field.ty == Type::Bool,
        Value::Number(n) => {
            matches!(field.ty, Type::Int32 | Type::Int64 | Type::Double) && n.as_f64() == Some(0.0)
        }
        Value::Array(items) => items.is_empty() && matches!(field.ty, Type::List(_) | Type::Strings),
        Value::Object(map) => {
            map.is_empty()
                && (matches!(field.ty, Type::Map(_))
                    || (field.omit_zero() && matches!(field.ty, Type::Object(_))))
        }
    }
}

/// What Go makes of a null inside a list or a map; `None` where null stays null.
pub fn zero(ty: Type) -> Option<Value> {
    Some(match ty {
        Type::String | Type::Bytes => "".into(),
        Type::Bool => false.into(),
        Type::Int32 | Type::Int64 | Type::Double | Type::IntOrString => 0.into(),
        Type::Quantity => "0".into(),
        Type::Object(_) | Type::Map(_) | Type::FieldsV1 => Value::Object(Default::default()),
        Type::List(_) | Type::Strings => Value::Array(Vec::new()),
        _ => return None,
    })
}

/// The type as Go prints it.
pub fn go_type(ty: Type) -> String {
    match ty {
        Type::String => "string".into(),
        Type::Bytes => "[]uint8".into(),
        Type::Bool => "bool".into(),
        Type::Int32 => "int32".into(),
        Type::Int64 => "int64".into(),
        Type::Double => "float64".into(),
        Type::Quantity => "resource.Quantity".into(),
        Type::IntOrString => "intstr.IntOrString".into(),
        Type::Time => "v1.Time".into(),
        Type::MicroTime => "v1.MicroTime".into(),
        Type::Object(id) => id.get().go_type().into(),
        Type::List(of) => format!("[]{}", go_type(*of)),
        Type::Strings => "[]string".into(),
        Type::Map(of) => format!("map[string]{}", go_type(*of)),
        Type::Raw => "runtime.RawExtension".into(),
        Type::Json => "v1.JSON".into(),
        Type::FieldsV1 => "v1.FieldsV1".into(),
        Type::SchemaOrArray => "v1.JSONSchemaPropsOrArray".into(),
        Type::SchemaOrBool => "v1.JSONSchemaPropsOrBool".into(),
        Type::SchemaOrStrings => "v1.JSONSchemaPropsOrStringArray".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_that_need_no_reading_are_as_they_would_be_written() {
        let suffixes = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "e3", "x"];
        for number in ["", "0", "1", "01", "250", "1000", "1024", "1500", "2048", "999999", "1000000"] {
            for suffix in suffixes {
                let text = format!("{number}{suffix}");
                if is_canonical_quantity(&text) {
                    assert_eq!(Quantity::parse(&text).unwrap().to_string(), text);
                }
            }
        }
        assert!(
            is_canonical_quantity("250m") && is_canonical_quantity("512Mi") && is_canonical_quantity("8")
        );
    }

    #[test]
    fn a_time_of_microseconds_has_all_six_digits() {
        let read = |text: &str| {
            canonical_micro_time(text).map_err(|why| why.rsplit_once(": ").unwrap().1.to_owned())
        };
        for (text, wanted) in [
            ("2026-01-01T00:00:00.000001Z", Ok("2026-01-01T00:00:00.000001Z")),
            ("2026-01-01T02:00:00.500000+02:00", Ok("2026-01-01T00:00:00.500000Z")),
            ("2026-01-01T00:00:00Z", Err(r#"cannot parse "Z" as ".000000""#)),
            ("2026-01-01T00:00:00.5Z", Err(r#"cannot parse ".5Z" as ".000000""#)),
            ("2026-01-01T00:00:00.123456789Z", Err(r#"cannot parse "789Z" as "Z07:00""#)),
            ("x", Err(r#"cannot parse "x" as "2006""#)),
        ] {
            assert_eq!(read(text), wanted.map(Value::from).map_err(str::to_owned), "{text}");
        }
    }
}
