//! URLs as Go reads a request's: absolute, or a path.
//!
//! Upstream: apiserver/pkg/cel/library/urls.go, net/url ParseRequestURI

use std::collections::BTreeMap;
use std::rc::Rc;

use super::{Extension, Function, no_overload};
use crate::error::EvalError;
use crate::value::{Key, Map, Value};

type Result<'a> = std::result::Result<Value<'a>, EvalError>;

pub static FUNCTIONS: &[Function] = &[
    Function {
        name: "url",
        eval: |args| match args {
            [Value::String(text)] => {
                Url::parse(text).map(|url| Value::Extension(Extension::Url(Rc::new(url)))).map_err(|why| {
                    EvalError::new(format!("URL parse error during conversion from string: {why}"))
                })
            }
            _ => no_overload(),
        },
        overloads: &[("string_to_url", "(string) -> kubernetes.URL")],
    },
    Function {
        name: "isURL",
        eval: |args| match args {
            [Value::String(text)] => Ok(Value::Bool(Url::parse(text).is_ok())),
            _ => no_overload(),
        },
        overloads: &[("is_url_string", "(string) -> bool")],
    },
    Function {
        name: "getScheme",
        eval: |args| part(args, |url| &url.scheme),
        overloads: &[("url_get_scheme", "kubernetes.URL.() -> string")],
    },
    Function {
        name: "getHost",
        eval: |args| part(args, |url| &url.host),
        overloads: &[("url_get_host", "kubernetes.URL.() -> string")],
    },
    Function {
        name: "getHostname",
        eval: |args| part(args, |url| url.host_and_port().0),
        overloads: &[("url_get_hostname", "kubernetes.URL.() -> string")],
    },
    Function {
        name: "getPort",
        eval: |args| part(args, |url| url.host_and_port().1),
        overloads: &[("url_get_port", "kubernetes.URL.() -> string")],
    },
    Function {
        name: "getEscapedPath",
        eval: |args| part(args, |url| &url.path),
        overloads: &[("url_get_escaped_path", "kubernetes.URL.() -> string")],
    },
    Function {
        name: "getQuery",
        eval: query,
        overloads: &[("url_get_query", "kubernetes.URL.() -> map(string, list(string))")],
    },
];

/// The parts of a URL.
#[derive(Debug, Default)]
pub struct Url {
    pub text: String,
    scheme: String,
    host: String,
    /// Escaped.
    path: String,
    query: String,
}

impl Url {
    pub fn parse(text: &str) -> std::result::Result<Url, String> {
        let wrong = |why: &str| format!("parse {text:?}: {why}");
        if text.is_empty() {
            return Err(wrong("empty url"));
        }
        if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return Err(wrong("net/url: invalid control character in URL"));
        }
        let (scheme, rest) = match text.find(':') {
            Some(0) => return Err(wrong("missing protocol scheme")),
            Some(colon) if is_scheme(&text[..colon]) => {
                (text[..colon].to_ascii_lowercase(), &text[colon + 1..])
            }
            Some(colon)
                if !text[..colon].contains('/')
                    && text[..colon].starts_with(|c: char| !c.is_alphabetic()) =>
            {
                return Err(wrong("first path segment in URL cannot contain colon"));
            }
            _ => (String::new(), text),
        };
        if scheme.is_empty() && !rest.starts_with('/') {
            return Err(wrong("invalid URI for request"));
        }
        // What follows a `#` is kept from the request's reading and cut for the parts.
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut url = Url { text: text.to_owned(), scheme, query: query.to_owned(), ..Url::default() };
        if !rest.starts_with('/') {
            // `mailto:a@b` has neither host nor path.
            return Ok(url);
        }
        let path = match rest.strip_prefix("//") {
            Some(after) if !url.scheme.is_empty() || !rest.starts_with("///") => {
                let end = after.find('/').unwrap_or(after.len());
                let (authority, path) = after.split_at(end);
                url.host = host(authority).map_err(|why| wrong(&why))?;
                path
            }
            _ => rest,
        };
        url.path = escape_path(path).map_err(|why| wrong(&why))?;
        Ok(url)
    }

    /// The name or address without brackets, and the port.
    fn host_and_port(&self) -> (&str, &str) {
        let host = self.host.as_str();
        let (name, port) = match host.rfind(':') {
            Some(colon) if !host[colon..].contains(']') => (&host[..colon], &host[colon + 1..]),
            _ => (host, ""),
        };
        let name = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
        (name, port)
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
}

fn host(authority: &str) -> std::result::Result<String, String> {
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.contains(' ') {
        return Err("invalid character \" \" in host name".to_owned());
    }
    if let Some(bad) = host.chars().find(|c| "\\^`{}|".contains(*c)) {
        return Err(format!("invalid character {:?} in host name", bad.to_string()));
    }
    let after = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or("missing ']' in host")?.1,
        None => host.find(':').map_or("", |colon| &host[colon..]),
    };
    let port = after.strip_prefix(':');
    let right = after.is_empty() || port.is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    if !right {
        return Err(format!("invalid port {after:?} after host"));
    }
    percent(host)?;
    Ok(host.to_owned())
}

/// Checks escapes, and decodes them.
fn percent(text: &str) -> std::result::Result<Vec<u8>, String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'%' {
            out.push(bytes[at]);
            at += 1;
            continue;
        }
        let digits = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let shown = || String::from_utf8_lossy(&bytes[at..bytes.len().min(at + 3)]).into_owned();
        out.push(value.ok_or_else(|| format!("invalid URL escape {:?}", shown()))?);
        at += 3;
    }
    Ok(out)
}

fn escape_path(path: &str) -> std::result::Result<String, String> {
    percent(path)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@%!'()*[]".contains(&b);
    let mut escaped = String::with_capacity(path.len());
    for b in path.bytes() {
        if plain(b) {
            escaped.push(b as char);
        } else {
            escaped.push_str(&format!("%{b:02X}"));
        }
    }
    Ok(escaped)
}

fn part<'a>(args: &[Value<'a>], of: for<'u> fn(&'u Url) -> &'u str) -> Result<'a> {
    match args {
        [Value::Extension(Extension::Url(url))] => Ok(Value::string(of(url))),
        _ => no_overload(),
    }
}

fn query<'a>(args: &[Value<'a>]) -> Result<'a> {
    let [Value::Extension(Extension::Url(url))] = args else { return no_overload() };
    let mut values: BTreeMap<Key, Vec<Value<'a>>> = BTreeMap::new();
    let decode = |text: &str| {
        let bytes = percent(&text.replace('+', " ")).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    // Pairs that cannot be read are left out, as upstream leaves them out.
    for pair in url.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if let (Some(key), Some(value)) = (decode(key), decode(value)) {
            values.entry(Key::String(key.into())).or_default().push(Value::string(value));
        }
    }
    let entries = values.into_iter().map(|(key, values)| (key, Value::list(values))).collect();
    Ok(Value::Map(Map::Entries(Rc::new(entries))))
}
