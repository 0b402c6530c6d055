//! In which form to answer, and in which form the body came.
//!
//! Upstream: apiserver/pkg/endpoints/handlers/negotiation/negotiate.go

use apimachinery::Status;
use apimachinery::status::Details;
use http::{HeaderMap, HeaderValue, header};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Json,
    Yaml,
    Protobuf,
    Cbor,
}

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
pub const CBOR: &str = "application/cbor";
/// CBOR items one after the other: watches.
pub const CBOR_SEQ: &str = "application/cbor-seq";
/// What refusals name: upstream has no CBOR unless asked for it, and clients compare these words.
const ACCEPTED: &[&str] = &[JSON, YAML, PROTOBUF];

impl Format {
    pub fn content_type(self) -> &'static str {
        match self {
            Format::Json => JSON,
            Format::Yaml => YAML,
            Format::Protobuf => PROTOBUF,
            Format::Cbor => CBOR,
        }
    }

    fn of(media_type: &str) -> Option<Self> {
        match media_type {
            JSON => Some(Format::Json),
            YAML => Some(Format::Yaml),
            PROTOBUF => Some(Format::Protobuf),
            CBOR | CBOR_SEQ => Some(Format::Cbor),
            _ => None,
        }
    }
}

/// What an object is answered as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    #[default]
    Object,
    Table,
    /// PartialObjectMetadata, or a list of it.
    Metadata,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Negotiated {
    pub format: Format,
    pub shape: Shape,
    /// `;stream=watch` is told in the content type of the answer.
    pub stream: bool,
}

/// One media range of an Accept header.
pub struct Clause<'a> {
    pub media_type: &'a str,
    pub parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| *n == name).map(|(_, v)| *v)
    }
}

/// The media ranges, the most wanted first.
pub fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let lines = headers.get_all(header::ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    let mut clauses: Vec<Clause<'_>> =
        lines.flat_map(|line| line.split(',')).take(64).filter_map(clause).collect();
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
}

fn clause(text: &str) -> Option<Clause<'_>> {
    let mut parts = text.split(';').map(str::trim);
    let media_type = parts.next().filter(|m| !m.is_empty())?;
    let mut clause = Clause { media_type, parameters: Vec::new(), quality: 1.0 };
    for (name, value) in parts.filter_map(|p| p.split_once('=')) {
        match name.trim() {
            "q" => clause.quality = value.trim().parse().unwrap_or(0.0),
            name => clause.parameters.push((name, value.trim())),
        }
    }
    (clause.quality > 0.0).then_some(clause)
}

/// What upstream's routes say that they produce; those of lists and watches streams too.
const PRODUCED: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const STREAMED: &str = "application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";

/// Whether a route produces anything of what is accepted, whatever the parameters say: upstream's router looks before
/// anybody else does.
///
/// Upstream: go-restful jsr311.go detectRoute, route.go matchesAccept; apiserver/pkg/endpoints/installer.go
pub fn check_produced(headers: &HeaderMap, streams: bool) -> Result<(), Status> {
    let Some(accepted) = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()) else {
        return Ok(());
    };
    let plain = |range: &str| range.split(';').next().unwrap_or_default().trim().to_owned();
    let known =
        |range: &str| matches!(plain(range).as_str(), "" | "*/*") || Format::of(&plain(range)).is_some();
    if accepted.split(',').any(known) {
        return Ok(());
    }
    let more = if streams { format!(", {STREAMED}") } else { String::new() };
    let message = format!("406: Not Acceptable\n\nAvailable representations: {PRODUCED}{more}");
    Err(Status::failure(406, "NotAcceptable", message).with_details(Details::default()))
}

/// How to answer with an object. Shapes are only for routes that have them; others answer the object itself only
/// when no shape was asked for.
pub fn accept(headers: &HeaderMap, shapes: bool) -> Result<Negotiated, Status> {
    let Some(first) = headers.get(header::ACCEPT) else { return Ok(Negotiated::default()) };
    if first == JSON {
        return Ok(Negotiated::default());
    }
    let clauses = clauses(headers);
    if clauses.is_empty() {
        return Ok(Negotiated::default());
    }
    clauses
        .iter()
        .find_map(|clause| negotiate(clause, shapes))
        .ok_or_else(|| Status::not_acceptable(ACCEPTED))
}

/// The same for custom kinds: their objects have no protobuf form, only what is told about them has.
pub fn accept_custom(headers: &HeaderMap) -> Result<Negotiated, Status> {
    if !headers.contains_key(header::ACCEPT) {
        return Ok(Negotiated::default());
    }
    let clauses = clauses(headers);
    let has_form = |n: &Negotiated| n.format != Format::Protobuf || n.shape != Shape::Object;
    let wanted = clauses.iter().find_map(|clause| negotiate(clause, true).filter(has_form));
    wanted.ok_or_else(|| Status::not_acceptable(&[JSON, YAML]))
}

/// The form of a refusal: the first wanted one that there is, whatever shape was asked for.
pub fn of_failure(accepted: &HeaderValue) -> Format {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, accepted.clone());
    let wanted = clauses(&headers);
    let format = |clause: &Clause<'_>| match clause.media_type {
        "*/*" | "application/*" => Some(Format::Json),
        other => Format::of(other),
    };
    wanted.iter().find_map(format).unwrap_or_default()
}

fn negotiate(clause: &Clause<'_>, shapes: bool) -> Option<Negotiated> {
    let format = match clause.media_type {
        "*/*" | "application/*" => Format::Json,
        other => Format::of(other)?,
    };
    let shape = match clause.parameter("as") {
        None => Shape::Object,
        Some(_) if !shapes => return None,
        Some(name) => {
            if clause.parameter("g") != Some("meta.k8s.io")
                || !matches!(clause.parameter("v"), Some("v1" | "v1beta1"))
            {
                return None;
            }
            match name {
                "Table" if format != Format::Protobuf => Shape::Table,
                "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Metadata,
                _ => return None,
            }
        }
    };
    Some(Negotiated { format, shape, stream: clause.parameter("stream") == Some("watch") })
}

/// The form of an object in a body.
pub fn content(headers: &HeaderMap) -> Result<Format, Status> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Format::Json) };
    let media_type = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match media_type {
        // Upstream: clients that say nothing and curl's default send JSON.
        "" | "*/*" => Ok(Format::Json),
        other => Format::of(other).ok_or_else(|| Status::unsupported_media_type(ACCEPTED)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch {
    Json,
    Merge,
    Strategic,
    Apply,
}

const PATCHES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

/// The form of a patch. Custom kinds take no strategic ones.
pub fn patch(headers: &HeaderMap, strategic: bool) -> Result<Patch, Status> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    match value.split(';').next().unwrap_or_default().trim() {
        "application/json-patch+json" => Ok(Patch::Json),
        "application/merge-patch+json" => Ok(Patch::Merge),
        "application/strategic-merge-patch+json" if strategic => Ok(Patch::Strategic),
        "application/apply-patch+yaml" | "application/apply-patch+cbor" | "application/apply-patch" => {
            Ok(Patch::Apply)
        }
        _ => Err(Status::unsupported_media_type(PATCHES)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accepted: &str, expected: Option<(Format, Shape)>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accepted.parse().unwrap());
        assert_eq!(accept(&headers, true).ok().map(|n| (n.format, n.shape)), expected, "{accepted}");
    }

    #[test]
    fn the_most_wanted_form_that_is_there_is_taken() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        check(
            &format!("{table},application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"),
            Some((Format::Json, Shape::Table)),
        );
        check("application/vnd.kubernetes.protobuf, */*", Some((Format::Protobuf, Shape::Object)));
        check("application/cbor, application/json", Some((Format::Cbor, Shape::Object)));
        check("application/cbor-seq", Some((Format::Cbor, Shape::Object)));
        check(
            "text/html;q=0.9, application/yaml;q=0.8, application/json;q=0.5",
            Some((Format::Yaml, Shape::Object)),
        );
        check("application/json;as=Unknown;g=meta.k8s.io;v=v1", None);
        check("application/xml", None);
        check(
            "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
            Some((Format::Json, Shape::Metadata)),
        );
    }
}
