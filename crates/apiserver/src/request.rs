//! What a request asks for, read from its method, path and query alone.
//!
//! Upstream: apiserver/pkg/endpoints/request/requestinfo.go NewRequestInfo

use apimachinery::Status;
use http::{Method, Uri};

use crate::seams::Attributes;

/// The query of a request, decoded, in its order.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Query(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name, true), decode(value, true))
                })
                .collect(),
        )
    }

    /// The first value; `None` when the parameter is not given.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// As upstream reads booleans of queries: anything but `false` and `0` is true, once given.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.get(name).map(|value| !value.eq_ignore_ascii_case("false") && value != "0")
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Decodes `%xx`, and `+` in queries. What is not UTF-8 is replaced.
pub fn decode(text: &str, plus: bool) -> String {
    if !(text.contains('%') || (plus && text.contains('+'))) {
        return text.to_owned();
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'+' if plus => bytes.push(b' '),
            b'%' => {
                let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
                match digits.and_then(|d| u8::from_str_radix(d, 16).ok()) {
                    Some(byte) => {
                        bytes.push(byte);
                        rest = &tail[2..];
                    }
                    None => bytes.push(b'%'),
                }
            }
            byte => bytes.push(*byte),
        }
    }
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub struct RequestInfo {
    pub attributes: Attributes,
    /// What follows the subresource: the path for a proxy, with its leading slash; `None` when nothing follows.
    pub rest: Option<String>,
    pub query: Query,
    /// The query as it was sent, for those it is sent on to.
    pub raw_query: Option<String>,
    /// The deprecated `/watch/` in the path.
    pub watch_path: bool,
}

impl RequestInfo {
    pub fn new(method: &Method, uri: &Uri) -> Result<Self, Status> {
        let path = uri.path();
        let query = Query::parse(uri.query());
        let attributes = Attributes {
            path: decode(path, false),
            verb: method.as_str().to_ascii_lowercase(),
            ..Default::default()
        };
        let raw_query = uri.query().map(str::to_owned);
        let mut info = RequestInfo { attributes, query, raw_query, ..Default::default() };
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", rest @ ..] if rest.len() >= 2 => ("", rest),
            ["apis", group, rest @ ..] if rest.len() >= 2 => (*group, rest),
            _ => return Ok(info),
        };
        info.attributes.is_resource = true;
        info.attributes.group = decode(group, false);
        info.attributes.version = decode(rest[0], false);
        info.resource_path(method, path, &rest[1..])?;
        Ok(info)
    }

    /// Reads what follows the version.
    fn resource_path(&mut self, method: &Method, path: &str, mut parts: &[&str]) -> Result<(), Status> {
        let attributes = &mut self.attributes;
        attributes.verb = match *method {
            Method::POST => "create",
            Method::GET | Method::HEAD => "get",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        }
        .to_owned();
        if parts[0] == "watch" {
            if parts.len() < 2 {
                return Err(Status::internal(format!(
                    "unable to determine kind and namespace from url, {path}"
                )));
            }
            self.watch_path = true;
            attributes.verb = "watch".to_owned();
            parts = &parts[1..];
        }
        if let ["namespaces", namespace, rest @ ..] = parts {
            attributes.namespace = decode(namespace, false);
            if !rest.is_empty() && !matches!(rest[0], "status" | "finalize") {
                parts = rest;
            }
        }
        attributes.resource = decode(parts[0], false);
        attributes.name = parts.get(1).map(|name| decode(name, false)).unwrap_or_default();
        attributes.subresource = parts.get(2).map(|name| decode(name, false)).unwrap_or_default();
        if parts.len() > 3 {
            self.rest =
                Some(format!("/{}", parts[3..].join("/")) + if path.ends_with('/') { "/" } else { "" });
        } else if parts.len() == 3 && path.ends_with('/') {
            self.rest = Some("/".to_owned());
        }
        self.collection_verbs();
        Ok(())
    }

    /// Without a name, `get` is `list` or `watch`, and `delete` is `deletecollection`.
    fn collection_verbs(&mut self) {
        let attributes = &mut self.attributes;
        if attributes.name.is_empty() && attributes.verb == "get" {
            let watch = self.query.flag("watch").unwrap_or(false);
            attributes.verb = if watch { "watch" } else { "list" }.to_owned();
        }
        if attributes.name.is_empty() && attributes.verb == "delete" {
            attributes.verb = "deletecollection".to_owned();
        }
        if matches!(attributes.verb.as_str(), "list" | "watch" | "deletecollection") && !self.watch_path {
            let selector = |name| self.query.get(name).unwrap_or_default().to_owned();
            attributes.field_selector = selector("fieldSelector");
            attributes.label_selector = selector("labelSelector");
        }
    }

    /// The object that a list or watch is restricted to by `metadata.name=`, which authorization sees as its name.
    pub fn name_by_selector(&mut self) {
        if self.attributes.name.is_empty()
            && matches!(self.attributes.verb.as_str(), "list" | "watch")
            && let Ok(selector) =
                apimachinery::selector::FieldSelector::parse(&self.attributes.field_selector)
            && let Some(name) = selector.exact("metadata.name")
            && apimachinery::names::path_segment(name).is_empty()
        {
            self.attributes.name = name.to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(method: &str, uri: &str, expected: &str) {
        let uri: Uri = uri.parse().unwrap();
        let mut info = RequestInfo::new(&method.parse().unwrap(), &uri).unwrap();
        info.name_by_selector();
        let a = &info.attributes;
        let got = format!(
            "{} {} {}/{} ns={} {}/{}/{} {}",
            if a.is_resource { "resource" } else { "path" },
            a.verb,
            a.group,
            a.version,
            a.namespace,
            a.resource,
            a.name,
            a.subresource,
            info.rest.as_deref().unwrap_or("-"),
        );
        assert_eq!(got, expected, "{method} {uri}");
    }

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        for (method, uri, expected) in [
            ("GET", "/api/v1/namespaces", "resource list /v1 ns= namespaces// -"),
            ("GET", "/api/v1/namespaces/a", "resource get /v1 ns=a namespaces/a/ -"),
            ("PUT", "/api/v1/namespaces/a/finalize", "resource update /v1 ns=a namespaces/a/finalize -"),
            ("GET", "/api/v1/namespaces/a/pods", "resource list /v1 ns=a pods// -"),
            ("GET", "/api/v1/pods?watch=1", "resource watch /v1 ns= pods// -"),
            ("GET", "/api/v1/pods?watch=false", "resource list /v1 ns= pods// -"),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name%3Dx", "resource list /v1 ns= pods/x/ -"),
            ("GET", "/api/v1/watch/namespaces/a/pods/p", "resource watch /v1 ns=a pods/p/ -"),
            (
                "DELETE",
                "/apis/apps/v1/namespaces/a/deployments",
                "resource deletecollection apps/v1 ns=a deployments// -",
            ),
            (
                "GET",
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "resource get apps/v1 ns=a deployments/d/scale -",
            ),
            ("POST", "/api/v1/namespaces/a/pods/p/proxy/x/y/", "resource create /v1 ns=a pods/p/proxy /x/y/"),
            ("GET", "/api/v1/namespaces/a/pods/p/proxy/", "resource get /v1 ns=a pods/p/proxy /"),
            ("GET", "/apis/apps/v1", "path get / ns= // -"),
            ("GET", "/healthz", "path get / ns= // -"),
            ("GET", "/api/v1", "path get / ns= // -"),
        ] {
            check(method, uri, expected);
        }
    }
}
