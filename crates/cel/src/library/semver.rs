//! Semantic versions.
//!
//! Upstream: apiserver/pkg/cel/library/semverlib.go, github.com/blang/semver/v4

use std::cmp::Ordering;
use std::rc::Rc;

use super::{Extension, Function, no_overload};
use crate::error::EvalError;
use crate::value::Value;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

pub static FUNCTIONS: &[Function] = &[
    Function {
        name: "semver",
        eval: |args| parse_args(args)?.map(|version| Value::Extension(Extension::Semver(Rc::new(version)))),
        overloads: &[
            ("string_to_semver", "(string) -> kubernetes.Semver"),
            ("string_bool_to_semver", "(string, bool) -> kubernetes.Semver"),
        ],
    },
    Function {
        name: "isSemver",
        eval: |args| Ok(Value::Bool(parse_args(args)?.is_ok())),
        overloads: &[
            ("is_semver_string", "(string) -> bool"),
            ("is_semver_string_bool", "(string, bool) -> bool"),
        ],
    },
    Function {
        name: "major",
        eval: |args| part(args, |version| version.numbers[0]),
        overloads: &[("semver_major", "kubernetes.Semver.() -> int")],
    },
    Function {
        name: "minor",
        eval: |args| part(args, |version| version.numbers[1]),
        overloads: &[("semver_minor", "kubernetes.Semver.() -> int")],
    },
    Function {
        name: "patch",
        eval: |args| part(args, |version| version.numbers[2]),
        overloads: &[("semver_patch", "kubernetes.Semver.() -> int")],
    },
];

/// A version; what follows `+` says nothing about its order.
#[derive(Debug)]
pub struct Version {
    numbers: [u64; 3],
    prerelease: Vec<Identifier>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Identifier {
    /// Numbers come before words.
    Number(u64),
    Word(String),
}

impl Version {
    pub fn order(&self, other: &Version) -> Ordering {
        let released = |version: &Version| version.prerelease.is_empty();
        self.numbers
            .cmp(&other.numbers)
            .then_with(|| released(self).cmp(&released(other)))
            .then_with(|| self.prerelease.cmp(&other.prerelease))
    }
}

/// The version of the arguments, or why they are none.
fn parse_args(args: &[Value<'_>]) -> std::result::Result<std::result::Result<Version, EvalError>, EvalError> {
    let (text, normalize) = match args {
        [Value::String(text)] => (text, false),
        [Value::String(text), Value::Bool(normalize)] => (text, *normalize),
        _ => return no_overload(),
    };
    let parsed = if normalize { normalized(text).and_then(|text| parse(&text)) } else { parse(text) };
    Ok(parsed.map_err(EvalError::new))
}

fn part<'a>(args: &[Value<'a>], of: fn(&Version) -> u64) -> Result<'a> {
    match args {
        [Value::Extension(Extension::Semver(version))] => Ok(Value::Int(of(version) as i64)),
        _ => no_overload(),
    }
}

/// Without a `v`, with zeros for numbers that are missing, without zeros before others.
fn normalized(text: &str) -> std::result::Result<String, String> {
    let text = text.strip_prefix('v').unwrap_or(text);
    let mut parts: Vec<String> = text.splitn(3, '.').map(str::to_owned).collect();
    for part in parts.iter_mut().filter(|part| part.len() > 1) {
        let trimmed = part.trim_start_matches('0');
        let digit = trimmed.starts_with(|c: char| c.is_ascii_digit());
        *part = if digit { trimmed.to_owned() } else { format!("0{trimmed}") };
    }
    if parts.len() < 3 {
        if parts.last().is_some_and(|last| last.contains(['+', '-'])) {
            return Err("short version cannot contain PreRelease/Build meta data".to_owned());
        }
        parts.resize(3, "0".to_owned());
    }
    Ok(parts.join("."))
}

fn parse(text: &str) -> std::result::Result<Version, String> {
    if text.is_empty() {
        return Err("Version string empty".to_owned());
    }
    let parts: Vec<&str> = text.splitn(3, '.').collect();
    let [major, minor, rest] = parts.as_slice() else {
        return Err("No Major.Minor.Patch elements found".to_owned());
    };
    let (rest, build) = match rest.split_once('+') {
        Some((rest, build)) => (rest, Some(build)),
        None => (*rest, None),
    };
    let (patch, prerelease) = match rest.split_once('-') {
        Some((patch, prerelease)) => (patch, Some(prerelease)),
        None => (rest, None),
    };
    let numbers = [number("major", major)?, number("minor", minor)?, number("patch", patch)?];
    let prerelease = prerelease.into_iter().flat_map(|all| all.split('.')).map(identifier);
    let prerelease = prerelease.collect::<std::result::Result<_, _>>()?;
    for meta in build.into_iter().flat_map(|all| all.split('.')) {
        if meta.is_empty() {
            return Err("Build meta data is empty".to_owned());
        }
        if !meta.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            return Err(format!("Invalid character(s) found in build meta data {meta:?}"));
        }
    }
    Ok(Version { numbers, prerelease })
}

fn number(name: &str, digits: &str) -> std::result::Result<u64, String> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("Invalid character(s) found in {name} number {digits:?}"));
    }
    if digits.len() > 1 && digits.starts_with('0') {
        let title = format!("{}{}", name[..1].to_uppercase(), &name[1..]);
        return Err(format!("{title} number must not contain leading zeroes {digits:?}"));
    }
    digits.parse().map_err(|_| format!("strconv.ParseUint: parsing {digits:?}: value out of range"))
}

fn identifier(text: &str) -> std::result::Result<Identifier, String> {
    if text.is_empty() {
        return Err("Prerelease is empty".to_owned());
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        if text.len() > 1 && text.starts_with('0') {
            return Err(format!("Numeric PreRelease version must not contain leading zeroes {text:?}"));
        }
        let out_of_range = |_| format!("strconv.ParseUint: parsing {text:?}: value out of range");
        return text.parse().map(Identifier::Number).map_err(out_of_range);
    }
    if text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Ok(Identifier::Word(text.to_owned()));
    }
    Err(format!("Invalid character(s) found in prerelease {text:?}"))
}
