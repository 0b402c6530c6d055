//! Durations and moments: how they are written, and the parts of them.
//!
//! Time zones come from the machine's database by name, as upstream's do; an offset needs none.

use std::str::FromStr;

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use super::{Function, no_overload};
use crate::error::EvalError;
use crate::value::Value;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

pub static FUNCTIONS: &[Function] = &[
    Function {
        name: "duration",
        eval: to_duration,
        overloads: &[
            ("duration_to_duration", "(duration) -> duration"),
            ("int64_to_duration", "(int) -> duration"),
            ("string_to_duration", "(string) -> duration"),
        ],
    },
    Function {
        name: "timestamp",
        eval: to_timestamp,
        overloads: &[
            ("timestamp_to_timestamp", "(timestamp) -> timestamp"),
            ("int64_to_timestamp", "(int) -> timestamp"),
            ("string_to_timestamp", "(string) -> timestamp"),
        ],
    },
    Function {
        name: "getFullYear",
        eval: |args| part(args, |moment| moment.year().into()),
        overloads: MOMENT,
    },
    Function {
        name: "getMonth",
        eval: |args| part(args, |moment| i64::from(moment.month()) - 1),
        overloads: MOMENT,
    },
    Function { name: "getDate", eval: |args| part(args, |moment| moment.day().into()), overloads: MOMENT },
    Function {
        name: "getDayOfMonth",
        eval: |args| part(args, |moment| i64::from(moment.day()) - 1),
        overloads: MOMENT,
    },
    Function {
        name: "getDayOfWeek",
        eval: |args| part(args, |moment| moment.weekday().to_sunday_zero_offset().into()),
        overloads: MOMENT,
    },
    Function {
        name: "getDayOfYear",
        eval: |args| part(args, |moment| i64::from(moment.day_of_year()) - 1),
        overloads: MOMENT,
    },
    Function {
        name: "getHours",
        eval: |args| part_or(args, 3_600_000_000_000, |moment| moment.hour().into()),
        overloads: MOMENT_OR_DURATION,
    },
    Function {
        name: "getMinutes",
        eval: |args| part_or(args, 60_000_000_000, |moment| moment.minute().into()),
        overloads: MOMENT_OR_DURATION,
    },
    Function {
        name: "getSeconds",
        eval: |args| part_or(args, 1_000_000_000, |moment| moment.second().into()),
        overloads: MOMENT_OR_DURATION,
    },
    Function {
        name: "getMilliseconds",
        eval: |args| part_or(args, 1_000_000, |moment| moment.millisecond().into()),
        overloads: MOMENT_OR_DURATION,
    },
];

const MOMENT: &[(&str, &str)] =
    &[("timestamp_part", "timestamp.() -> int"), ("timestamp_part_with_tz", "timestamp.(string) -> int")];

const MOMENT_OR_DURATION: &[(&str, &str)] = &[
    ("timestamp_part", "timestamp.() -> int"),
    ("timestamp_part_with_tz", "timestamp.(string) -> int"),
    ("duration_part", "duration.() -> int"),
];

fn part<'a>(args: &[Value<'a>], of: fn(&Zoned) -> i64) -> Result<'a> {
    let (moment, zone) = match args {
        [Value::Timestamp(moment)] => (moment, TimeZone::UTC),
        [Value::Timestamp(moment), Value::String(zone)] => (moment, parse_zone(zone)?),
        _ => return no_overload(),
    };
    Ok(Value::Int(of(&moment.to_zoned(zone))))
}

fn part_or<'a>(args: &[Value<'a>], unit: i64, of: fn(&Zoned) -> i64) -> Result<'a> {
    match args {
        [Value::Duration(nanoseconds)] => Ok(Value::Int(nanoseconds / unit)),
        _ => part(args, of),
    }
}

/// `America/New_York`, `02:00`, `-05:30`.
///
/// Upstream: cel-go common/types/timestamp.go timeZone
fn parse_zone(zone: &str) -> std::result::Result<TimeZone, EvalError> {
    let unknown = || EvalError::new(format!("unknown time zone {zone}"));
    let Some((hours, minutes)) = zone.split_once(':') else {
        return match zone {
            "" | "UTC" => Ok(TimeZone::UTC),
            name => TimeZone::get(name).map_err(|_| unknown()),
        };
    };
    let hours: i32 = hours.parse().map_err(|_| unknown())?;
    let minutes: i32 = minutes.parse().map_err(|_| unknown())?;
    let minutes = if zone.starts_with('-') { -minutes } else { minutes };
    let seconds = hours.checked_mul(3600).and_then(|hours| hours.checked_add(minutes.checked_mul(60)?));
    let offset = seconds.and_then(|seconds| jiff::tz::Offset::from_seconds(seconds).ok());
    offset.map(TimeZone::fixed).ok_or_else(unknown)
}

pub fn shift<'a>(moment: Timestamp, nanoseconds: i64) -> Result<'a> {
    let sum = moment.as_nanosecond() + i128::from(nanoseconds);
    let moment = Timestamp::from_nanosecond(sum).ok().filter(in_range);
    moment.map(Value::Timestamp).ok_or_else(|| EvalError::new("timestamp overflow"))
}

/// Years 1 to 9999.
fn in_range(moment: &Timestamp) -> bool {
    (-62_135_596_800..=253_402_300_799).contains(&moment.as_second())
}

fn to_duration<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Duration(nanoseconds)] | [Value::Int(nanoseconds)] => Ok(Value::Duration(*nanoseconds)),
        [Value::String(text)] => parse_duration(text)
            .map(Value::Duration)
            .ok_or_else(|| EvalError::new(format!("time: invalid duration {:?}", &**text))),
        _ => no_overload(),
    }
}

fn to_timestamp<'a>(args: &[Value<'a>]) -> Result<'a> {
    match args {
        [Value::Timestamp(moment)] => Ok(Value::Timestamp(*moment)),
        [Value::Int(seconds)] => Timestamp::from_second(*seconds)
            .ok()
            .filter(in_range)
            .map(Value::Timestamp)
            .ok_or_else(|| EvalError::new("timestamp overflow")),
        [Value::String(text)] => parse_moment(text)
            .map(Value::Timestamp)
            .ok_or_else(|| EvalError::new(format!("parsing time {:?} as RFC 3339: cannot parse", &**text))),
        _ => no_overload(),
    }
}

/// In seconds, as `3723.5s`.
pub fn format_duration(duration: &Value<'_>) -> String {
    let Value::Duration(nanoseconds) = duration else { return String::new() };
    format!("{}s", *nanoseconds as f64 / 1e9)
}

const UNITS: &[(&str, f64)] = &[
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// As Go reads a duration: `1h2m3.5s`.
pub fn parse_duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanoseconds: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let (number, tail) = rest.split_at(digits);
        let letters: usize =
            tail.chars().take_while(|c| !c.is_ascii_digit() && *c != '.').map(char::len_utf8).sum();
        let (unit, tail) = tail.split_at(letters);
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if number.is_empty() || number == "." || fraction.contains('.') {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        let part = if fraction.is_empty() { 0.0 } else { f64::from_str(&format!("0.{fraction}")).ok()? };
        let amount = whole.checked_mul(*factor as i128)?.checked_add((part * factor) as i128)?;
        nanoseconds = nanoseconds.checked_add(amount)?;
        rest = tail;
    }
    i64::try_from(nanoseconds * sign).ok()
}

/// As the `duration` format of schemas is read: as Go reads it, or in words, up to weeks.
///
/// Upstream: kube-openapi pkg/validation/strfmt/duration.go ParseDuration
pub fn parse_api_duration(text: &str) -> Option<i64> {
    const WORDS: &[(&[&str], i64)] = &[
        (&["ns", "nano"], 1),
        (&["us", "µs", "micro"], 1_000),
        (&["ms", "milli"], 1_000_000),
        (&["s", "sec"], 1_000_000_000),
        (&["m", "min"], 60_000_000_000),
        (&["h", "hr", "hour"], 3_600_000_000_000),
        (&["d", "day"], 86_400_000_000_000),
        (&["w", "wk", "week"], 604_800_000_000_000),
    ];
    if let Some(nanoseconds) = parse_duration(text) {
        return Some(nanoseconds);
    }
    let mut sum: i64 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: i64 = rest[..digits].parse().ok()?;
        let tail = rest[digits..].trim_start();
        let letters: usize = tail.chars().take_while(|c| c.is_alphabetic()).map(char::len_utf8).sum();
        let word = tail[..letters].trim_end_matches('s');
        let word = if letters == 1 { &tail[..letters] } else { word };
        let (_, unit) = WORDS.iter().find(|(names, _)| {
            names.iter().any(|name| *name == &tail[..letters] || (name.len() > 1 && word.starts_with(name)))
        })?;
        sum = sum.checked_add(number.checked_mul(*unit)?)?;
        rest = tail[letters..].trim_start();
    }
    Some(sum)
}

/// RFC 3339 with a time zone.
pub fn parse_moment(text: &str) -> Option<Timestamp> {
    let shape = text.as_bytes();
    let dated = shape.len() >= 20 && shape[4] == b'-' && shape[10] == b'T';
    let moment: Timestamp = dated.then(|| text.parse().ok())??;
    in_range(&moment).then_some(moment)
}

/// As the `date-time` and `date` formats of schemas are read.
pub fn parse_api_moment(text: &str) -> Option<Timestamp> {
    if text.len() == 10 {
        return parse_moment(&format!("{text}T00:00:00Z"));
    }
    let upper = text.replacen([' ', 't'], "T", 1).replace('z', "Z");
    parse_moment(&upper)
}
