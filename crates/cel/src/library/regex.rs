//! Regular expressions in RE2's dialect, of bounded size.

use regex::{Regex, RegexBuilder};

use super::{Function, no_overload};
use crate::error::EvalError;
use crate::value::Value;

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

/// How large a compiled pattern may be.
const MAX_COMPILED_BYTES: usize = 2 << 20;
const MAX_NESTING: u32 = 100;

/// The evaluator looks for the pattern among those that it has compiled before it calls these.
pub static FUNCTIONS: &[Function] = &[
    Function {
        name: "matches",
        eval: uncached,
        overloads: &[("matches", "(string, string) -> bool"), ("matches_string", "string.(string) -> bool")],
    },
    Function {
        name: "find",
        eval: uncached,
        overloads: &[("string_find_string", "string.(string) -> string")],
    },
    Function {
        name: "findAll",
        eval: uncached,
        overloads: &[
            ("string_find_all_string", "string.(string) -> list(string)"),
            ("string_find_all_string_int", "string.(string, int) -> list(string)"),
        ],
    },
];

/// Whether a function takes a pattern as its second argument.
pub fn takes_pattern(function: &str) -> bool {
    matches!(function, "matches" | "find" | "findAll")
}

fn uncached<'a>(_: &[Value<'a>]) -> Result<'a> {
    no_overload()
}

/// Compiles a pattern.
pub fn compile(pattern: &str) -> std::result::Result<Regex, EvalError> {
    let compiled = translate(pattern).and_then(|translated| {
        let mut builder = RegexBuilder::new(&translated);
        let builder = builder.size_limit(MAX_COMPILED_BYTES).dfa_size_limit(MAX_COMPILED_BYTES);
        builder.nest_limit(MAX_NESTING).build().ok()
    });
    compiled.ok_or_else(|| EvalError::new(format!("error parsing regexp: invalid pattern: `{pattern}`")))
}

/// RE2's classes of digits, words and blanks are of ASCII, and its brackets know no operators.
fn translate(pattern: &str) -> Option<String> {
    let mut out = String::with_capacity(pattern.len());
    let mut chars = pattern.chars().peekable();
    // How many characters of a class have been read; nothing outside of one.
    let mut class: Option<usize> = None;
    while let Some(c) = chars.next() {
        match (c, class) {
            ('\\', _) => {
                let escaped = chars.next()?;
                match (escaped, class.is_some()) {
                    ('d', false) => out.push_str("[0-9]"),
                    ('d', true) => out.push_str("0-9"),
                    ('D', false) => out.push_str("[^0-9]"),
                    ('w', false) => out.push_str("[0-9A-Za-z_]"),
                    ('w', true) => out.push_str("0-9A-Za-z_"),
                    ('W', false) => out.push_str("[^0-9A-Za-z_]"),
                    ('s', false) => out.push_str("[\\t\\n\\x0C\\r ]"),
                    ('s', true) => out.push_str("\\t\\n\\x0C\\r "),
                    ('S', false) => out.push_str("[^\\t\\n\\x0C\\r ]"),
                    ('D' | 'W' | 'S', true) => out.push_str(match escaped {
                        'D' => "[^0-9]",
                        'W' => "[^0-9A-Za-z_]",
                        _ => "[^\\t\\n\\x0C\\r ]",
                    }),
                    ('b', false) => out.push_str("(?-u:\\b)"),
                    ('B', false) => out.push_str("(?-u:\\B)"),
                    ('Q', false) => {
                        let mut quoted = String::new();
                        while let Some(c) = chars.next() {
                            if c == '\\' && chars.peek() == Some(&'E') {
                                chars.next();
                                break;
                            }
                            quoted.push(c);
                        }
                        out.push_str(&regex::escape(&quoted));
                    }
                    ('C', _) | ('<' | '>', _) => return None,
                    (other, _) => {
                        out.push('\\');
                        out.push(other);
                    }
                }
                class = class.map(|read| read + 1);
            }
            ('[', None) => {
                out.push('[');
                class = Some(0);
                if chars.peek() == Some(&'^') {
                    chars.next();
                    out.push('^');
                }
            }
            ('[', Some(_)) if chars.peek() == Some(&':') => {
                // A named class, such as `[:alpha:]`, is copied to its end.
                out.push('[');
                while let Some(c) = chars.next() {
                    out.push(c);
                    if c == ':' && chars.peek() == Some(&']') {
                        out.extend(chars.next());
                        break;
                    }
                }
                class = class.map(|read| read + 1);
            }
            (']', Some(0)) => {
                out.push_str("\\]");
                class = Some(1);
            }
            (']', Some(_)) => {
                out.push(']');
                class = None;
            }
            ('[' | '&' | '~', Some(read)) => {
                out.push('\\');
                out.push(c);
                class = Some(read + 1);
            }
            (c, _) => {
                out.push(c);
                class = class.map(|read| read + 1);
            }
        }
    }
    Some(out)
}

/// One of the functions here, with its pattern compiled.
pub fn eval<'a>(function: &str, args: &[Value<'a>], regex: &Regex) -> Result<'a> {
    let Some(Value::String(text)) = args.first() else { return no_overload() };
    let whole = |found: regex::Match<'_>| Value::string(found.as_str());
    match (function, args) {
        ("matches", [_, _]) => Ok(Value::Bool(regex.is_match(text))),
        ("find", [_, _]) => Ok(regex.find(text).map_or_else(|| Value::string(""), whole)),
        ("findAll", [_, _]) => Ok(Value::list(regex.find_iter(text).map(whole).collect())),
        ("findAll", [_, _, Value::Int(limit)]) => {
            let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
            Ok(Value::list(regex.find_iter(text).take(limit).map(whole).collect()))
        }
        _ => no_overload(),
    }
}
