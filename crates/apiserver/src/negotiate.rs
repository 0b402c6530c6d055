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
/// Everything that can be spoken; CBOR, the last, only where it is switched on.
const KNOWN: [&str; 4] = [JSON, YAML, PROTOBUF, CBOR];
/// The same of watches: YAML does not stream.
const STREAMED: [&str; 3] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch", CBOR_SEQ];

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

/// The forms that a server speaks: CBOR only when the feature `CBORServingAndStorage` is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms {
    pub cbor: bool,
}

impl Forms {
    pub const ALL: Forms = Forms { cbor: true };

    fn of(self, media_type: &str) -> Option<Format> {
        Format::of(media_type).filter(|format| self.cbor || *format != Format::Cbor)
    }

    /// What refusals name.
    fn names(self) -> &'static [&'static str] {
        &KNOWN[..KNOWN.len() - usize::from(!self.cbor)]
    }

    fn streamed_names(self) -> &'static [&'static str] {
        &STREAMED[..STREAMED.len() - usize::from(!self.cbor)]
    }

    /// Whether a route produces anything of what is accepted, whatever the parameters say: upstream's router looks
    /// before anybody else does. Those of lists and watches stream too.
    ///
    /// Upstream: go-restful jsr311.go detectRoute, route.go matchesAccept; apiserver/pkg/endpoints/installer.go
    pub fn check_produced(self, headers: &HeaderMap, streams: bool) -> Result<(), Status> {
        let Some(accepted) = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()) else {
            return Ok(());
        };
        let plain = |range: &str| range.split(';').next().unwrap_or_default().trim().to_owned();
        let known =
            |range: &str| matches!(plain(range).as_str(), "" | "*/*") || self.of(&plain(range)).is_some();
        if accepted.split(',').any(known) {
            return Ok(());
        }
        let mut produced = self.names().to_vec();
        produced.extend(self.streamed_names().iter().filter(|_| streams));
        let message = format!("406: Not Acceptable\n\nAvailable representations: {}", produced.join(", "));
        Err(Status::failure(406, "NotAcceptable", message).with_details(Details::default()))
    }

    /// How to answer with an object. Shapes are only for routes that have them; others answer the object itself
    /// only when no shape was asked for.
    pub fn accept(self, headers: &HeaderMap, shapes: bool) -> Result<Negotiated, Status> {
        let Some(first) = headers.get(header::ACCEPT) else { return Ok(Negotiated::default()) };
        if first == JSON {
            return Ok(Negotiated::default());
        }
        self.first_of(&clauses(headers), |clause| self.negotiate(clause, shapes))
    }

    /// The same for custom kinds: their objects have no protobuf form, only what is told about them has.
    pub fn accept_custom(self, headers: &HeaderMap) -> Result<Negotiated, Status> {
        let has_form = |n: &Negotiated| n.format != Format::Protobuf || n.shape != Shape::Object;
        self.first_of(&clauses(headers), |clause| self.negotiate(clause, true).filter(has_form))
    }

    fn first_of<'a>(
        self,
        clauses: &[Clause<'a>],
        negotiate: impl Fn(&Clause<'a>) -> Option<Negotiated>,
    ) -> Result<Negotiated, Status> {
        if clauses.is_empty() {
            return Ok(Negotiated::default());
        }
        clauses.iter().find_map(negotiate).ok_or_else(|| Status::not_acceptable(self.names()))
    }

    /// A watch is answered in a form that streams, or not at all.
    ///
    /// Upstream: apiserver/pkg/endpoints/handlers/negotiation/negotiate.go NegotiateOutputMediaTypeStream
    pub fn check_stream(self, negotiated: Negotiated) -> Result<(), Status> {
        match negotiated.format {
            Format::Yaml => Err(Status::not_acceptable(self.streamed_names())),
            _ => Ok(()),
        }
    }

    /// The form of a refusal: the first wanted one that there is, whatever shape was asked for.
    pub fn of_failure(self, accepted: &HeaderValue) -> Format {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accepted.clone());
        let wanted = clauses(&headers);
        wanted.iter().find_map(|clause| self.range(clause.media_type)).unwrap_or_default()
    }

    fn range(self, media_type: &str) -> Option<Format> {
        match media_type {
            "*/*" | "application/*" => Some(Format::Json),
            other => self.of(other),
        }
    }

    /// Upstream: apiserver/pkg/endpoints/handlers/negotiation/negotiate.go acceptMediaTypeOptions,
    /// apiserver/pkg/endpoints/handlers/rest.go AllowsMediaTypeTransform
    fn negotiate(self, clause: &Clause<'_>, shapes: bool) -> Option<Negotiated> {
        let format = self.range(clause.media_type)?;
        let said = |name: &str| clause.parameter(name).filter(|value| !value.is_empty());
        let stream = said("stream");
        if stream.is_some_and(|schema| schema != "watch" || format == Format::Yaml) {
            return None;
        }
        if said("sv").is_some_and(|version| version != "v1" || !shapes) {
            return None;
        }
        let transformed = ["as", "g", "v"].iter().any(|name| clause.parameter(name).is_some());
        let shape = match (said("as"), said("g"), said("v")) {
            _ if !transformed => Shape::Object,
            (Some(kind), Some("meta.k8s.io"), Some("v1" | "v1beta1")) if shapes => match kind {
                "Table" if matches!(format, Format::Json | Format::Yaml) => Shape::Table,
                "PartialObjectMetadata" | "PartialObjectMetadataList" => Shape::Metadata,
                _ => return None,
            },
            _ => return None,
        };
        Some(Negotiated { format, shape, stream: stream.is_some() })
    }

    /// The form of an object in a body.
    pub fn content(self, headers: &HeaderMap) -> Result<Format, Status> {
        let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Format::Json) };
        match plain(value) {
            // Upstream: clients that say nothing and curl's default send JSON.
            "" | "*/*" => Ok(Format::Json),
            other => self.of(other).ok_or_else(|| Status::unsupported_media_type(self.names())),
        }
    }

    /// The form of a patch. Custom kinds take no strategic ones.
    ///
    /// Upstream: apiserver/pkg/endpoints/installer.go, apiextensions-apiserver/pkg/apiserver/customresource_handler.go
    pub fn patch(self, headers: &HeaderMap, strategic: bool) -> Result<Patch, Status> {
        let known = PATCHES.iter().filter(|(name, patch)| match patch {
            Patch::Strategic => strategic,
            _ => self.cbor || *name != APPLY_CBOR,
        });
        let sent = headers.get(header::CONTENT_TYPE).map(plain).unwrap_or_default();
        let found = known.clone().find(|(name, _)| *name == sent);
        found.map(|(_, patch)| *patch).ok_or_else(|| {
            if !strategic {
                let names: Vec<&str> = known.map(|(name, _)| *name).collect();
                return Status::unsupported_media_type(&names);
            }
            // Upstream's router refuses what no route takes, before anybody has words for it.
            Status::failure(415, "UnsupportedMediaType", "415: Unsupported Media Type")
                .with_details(Details::default())
        })
    }
}

/// A media type without its parameters.
fn plain(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch {
    Json,
    Merge,
    Strategic,
    Apply,
}

const APPLY_CBOR: &str = "application/apply-patch+cbor";
const PATCHES: [(&str, Patch); 5] = [
    ("application/json-patch+json", Patch::Json),
    ("application/merge-patch+json", Patch::Merge),
    ("application/strategic-merge-patch+json", Patch::Strategic),
    ("application/apply-patch+yaml", Patch::Apply),
    (APPLY_CBOR, Patch::Apply),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: header::HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, value.parse().unwrap())])
    }

    fn check(accepted: &str, expected: Option<(Format, Shape)>) {
        let found = Forms::ALL.accept(&headers(header::ACCEPT, accepted), true);
        assert_eq!(found.ok().map(|n| (n.format, n.shape)), expected, "{accepted}");
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

    #[test]
    fn a_form_whose_parameters_cannot_be_met_is_passed_over() {
        for form in ["application/vnd.kubernetes.protobuf", "application/cbor"] {
            check(&format!("{form};as=Table;g=meta.k8s.io;v=v1"), None);
        }
        for parameters in ["g=meta.k8s.io;v=v1", "v=v1", "stream=other", "sv=v2"] {
            let accepted = format!("application/json;{parameters},application/yaml");
            check(&accepted, Some((Format::Yaml, Shape::Object)));
        }
        check("application/yaml;stream=watch", None);
        check("application/json;stream=watch;sv=v1", Some((Format::Json, Shape::Object)));
    }

    #[test]
    fn cbor_is_known_only_where_it_is_switched_on() {
        let off = Forms::default();
        let accepted = headers(header::ACCEPT, "application/cbor");
        let text = |forms: Forms| forms.check_produced(&accepted, true).err().map(|status| status.message);
        let wanted = "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, \
                      application/vnd.kubernetes.protobuf, application/json;stream=watch, \
                      application/vnd.kubernetes.protobuf;stream=watch";
        assert_eq!((text(off).as_deref(), text(Forms::ALL)), (Some(wanted), None));
        let both = headers(header::ACCEPT, "application/cbor, application/yaml");
        assert_eq!(off.accept(&both, true).map(|n| n.format).ok(), Some(Format::Yaml));
        let body = headers(header::CONTENT_TYPE, "application/cbor");
        assert_eq!(off.content(&body).err().map(|status| status.code), Some(415));
        assert_eq!(Forms::ALL.content(&body), Ok(Format::Cbor));
        let apply = headers(header::CONTENT_TYPE, APPLY_CBOR);
        assert_eq!(Forms::ALL.patch(&apply, false), Ok(Patch::Apply));
        let refused = off.patch(&apply, false).unwrap_err().message;
        assert!(
            refused.ends_with(
                ": application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml"
            ),
            "{refused}"
        );
        assert_eq!(off.patch(&apply, true).unwrap_err().message, "415: Unsupported Media Type");
    }
}
