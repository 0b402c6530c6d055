//! Named formats of texts: what a name, a label or a date may look like.
//!
//! Upstream: apiserver/pkg/cel/library/format.go

use apimachinery::names;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{Extension, Function, no_overload, time, url};
use crate::error::EvalError;
use crate::value::Value;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// A format: what is wrong with a text of it, and how long upstream says its pattern is, for costs.
pub struct NamedFormat {
    pub name: &'static str,
    problems: fn(&str) -> Vec<String>,
    pub pattern_length: u64,
}

const UUID_PATTERN_LENGTH: u64 = 71;
const DATE_TIME_PATTERN_LENGTH: u64 = 71;
const URL_PATTERN_LENGTH: u64 = 1103;
const BASE64_PATTERN_LENGTH: u64 = 84;

pub static FORMATS: &[NamedFormat] = &[
    NamedFormat { name: "dns1123Label", problems: names::dns1123_label, pattern_length: 30 },
    NamedFormat { name: "dns1123Subdomain", problems: names::dns1123_subdomain, pattern_length: 60 },
    NamedFormat { name: "dns1035Label", problems: names::dns1035_label, pattern_length: 30 },
    NamedFormat { name: "qualifiedName", problems: names::qualified_name, pattern_length: 60 },
    NamedFormat {
        name: "dns1123LabelPrefix",
        problems: |text| names::dns1123_label(&names::mask_trailing_dash(text)),
        pattern_length: 30,
    },
    NamedFormat {
        name: "dns1123SubdomainPrefix",
        problems: |text| names::dns1123_subdomain(&names::mask_trailing_dash(text)),
        pattern_length: 60,
    },
    NamedFormat {
        name: "dns1035LabelPrefix",
        problems: |text| names::dns1035_label(&names::mask_trailing_dash(text)),
        pattern_length: 30,
    },
    NamedFormat { name: "labelValue", problems: names::label_value, pattern_length: 40 },
    NamedFormat {
        name: "uri",
        problems: |text| url::Url::parse(text).err().into_iter().collect(),
        pattern_length: URL_PATTERN_LENGTH,
    },
    NamedFormat {
        name: "uuid",
        problems: |text| unless(is_uuid(text), "does not match the UUID format"),
        pattern_length: UUID_PATTERN_LENGTH,
    },
    NamedFormat {
        name: "byte",
        problems: |text| unless(!text.is_empty() && STANDARD.decode(text).is_ok(), "invalid base64"),
        pattern_length: BASE64_PATTERN_LENGTH,
    },
    NamedFormat {
        name: "date",
        problems: |text| unless(text.len() == 10 && time::parse_api_moment(text).is_some(), "invalid date"),
        pattern_length: DATE_TIME_PATTERN_LENGTH,
    },
    NamedFormat {
        name: "datetime",
        problems: |text| {
            unless(text.len() > 10 && time::parse_api_moment(text).is_some(), "invalid datetime")
        },
        pattern_length: DATE_TIME_PATTERN_LENGTH,
    },
];

macro_rules! constant {
    ($name:literal, $index:literal) => {
        Function {
            name: concat!("format.", $name),
            eval: |_| Ok(Value::Extension(Extension::Format(&FORMATS[$index]))),
            overloads: &[(concat!("format.", $name), "() -> kubernetes.NamedFormat")],
        }
    };
}

pub static FUNCTIONS: &[Function] = &[
    constant!("dns1123Label", 0),
    constant!("dns1123Subdomain", 1),
    constant!("dns1035Label", 2),
    constant!("qualifiedName", 3),
    constant!("dns1123LabelPrefix", 4),
    constant!("dns1123SubdomainPrefix", 5),
    constant!("dns1035LabelPrefix", 6),
    constant!("labelValue", 7),
    constant!("uri", 8),
    constant!("uuid", 9),
    constant!("byte", 10),
    constant!("date", 11),
    constant!("datetime", 12),
    Function {
        name: "format.named",
        eval: named,
        overloads: &[("format-named", "(string) -> optional_type(kubernetes.NamedFormat)")],
    },
    Function {
        name: "validate",
        eval: validate,
        overloads: &[("format-validate", "kubernetes.NamedFormat.(string) -> optional_type(list(string))")],
    },
];

fn unless(right: bool, problem: &str) -> Vec<String> {
    if right { Vec::new() } else { vec![problem.to_owned()] }
}

fn is_uuid(text: &str) -> bool {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let dashes = text.char_indices().filter(|(_, c)| *c == '-').map(|(index, _)| index);
    digits.len() == 32
        && digits.bytes().all(|b| b.is_ascii_hexdigit())
        && (text.len() == 32 || dashes.eq([8, 13, 18, 23]))
}

fn named<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::String(name)] = args else { return no_overload() };
    let format = FORMATS.iter().find(|format| format.name == &**name);
    Ok(format.map_or_else(Value::none, |format| Value::some(Value::Extension(Extension::Format(format)))))
}

fn validate<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::Extension(Extension::Format(format)), Value::String(text)] = args else {
        return no_overload();
    };
    let problems = (format.problems)(text);
    if problems.is_empty() {
        return Ok(Value::none());
    }
    Ok(Value::some(Value::list(problems.into_iter().map(Value::string).collect())))
}
