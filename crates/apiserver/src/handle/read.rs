//! Reading bodies: bounded in size and time, in any of the forms, with upstream's words for what cannot be read.

use std::time::Duration;

use apimachinery::Status;
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde_json::Value;

use super::Asked;
use crate::encode;
use crate::extensions::admit;
use crate::negotiate::Format;
use crate::options::DeleteOptions;
use crate::registry::call::Call;

/// Upstream: apiserver/pkg/server/config.go MaxRequestBodyBytes
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// A body that is still to be read.
pub enum RequestBody {
    Ready(Bytes),
    Incoming(Incoming),
}

impl RequestBody {
    /// The whole body, which must be of a size that an object can have.
    pub async fn read(self) -> Result<Bytes, Status> {
        let incoming = match self {
            RequestBody::Ready(bytes) if bytes.len() <= MAX_BODY_BYTES => return Ok(bytes),
            RequestBody::Ready(_) => return Err(too_large()),
            RequestBody::Incoming(incoming) => incoming,
        };
        let collected =
            tokio::time::timeout(BODY_TIMEOUT, Limited::new(incoming, MAX_BODY_BYTES).collect()).await;
        match collected {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large()),
            Ok(Err(error)) => Err(Status::bad_request(format!("unable to read the body: {error}"))),
            Err(_) => Err(Status::timeout("the body did not arrive in time", 0)),
        }
    }
}

fn too_large() -> Status {
    Status::request_entity_too_large(format!("limit is {MAX_BODY_BYTES}"))
}

/// What upstream reads a body as first, in the words of its decoder.
const TYPE_META: &str = " Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \
                         \"json:\\\"kind,omitempty\\\"\" }";

/// The object of a body, in the shape of its kind.
pub fn read_object(call: &mut Call<'_>, headers: &http::HeaderMap, body: &Bytes) -> Result<Value, Status> {
    let format = call.server.config.forms.content(headers)?;
    let def = call.def();
    let strictness = call.strictness();
    let mut decoded = match (format, call.resource.definition) {
        (Format::Json, Some(definition)) => schema::decode::json_to_write(body, definition, strictness),
        (format, definition) => decode_body(format, body, definition, strictness),
    };
    if let Some(custom) = &def.custom {
        if let Ok(decoded) = &decoded {
            check_custom_kind(def, &decoded.object, body)?;
        }
        decoded = decoded.and_then(|decoded| admit::shape(custom, decoded, strictness));
    }
    let root_type = format!(" Go value of type {}.{}", def.version, def.kind);
    let decoded = decoded.map_err(|error| match &error {
        schema::Error::Type(found) if found.ends_with(&root_type) => Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: \
             {}{TYPE_META} ({})",
            def.kind,
            found.trim_end_matches(&root_type),
            summary(body)
        )),
        schema::Error::Type(_) => Status::bad_request(schema::decode::cannot_be_handled(&def.kind, &def.version, &error)),
        _ => Status::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; json parse error: \
             {error} ({})",
            def.kind,
            summary(body)
        )),
    })?;
    let mut object = decoded.object;
    call.check_kind(&mut object)?;
    if let (Some(error), crate::options::FieldValidation::Strict) =
        (schema::decode::strict_error(&decoded.problems), call.options.field_validation)
    {
        let (kind, version) = (&def.kind, &def.version);
        return Err(Status::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {error}"
        )));
    }
    call.report(decoded.problems)?;
    Ok(object)
}

/// An object of a custom kind says itself what it is.
///
/// Upstream: apimachinery/pkg/apis/meta/v1/unstructured/helpers.go unstructuredJSONScheme
fn check_custom_kind(def: &resources::ResourceDef, object: &Value, body: &[u8]) -> Result<(), Status> {
    let said = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let unrecognized = |why: String| {
        let message = format!("the object provided is unrecognized (must be of type {}): {why}", def.kind);
        Err(Status::bad_request(format!("{message} ({})", summary(body))))
    };
    if !object.is_object() {
        let is = crate::registry::create::json_type(object);
        let why = format!("couldn't get version/kind; json parse error: json: cannot unmarshal {is} into");
        return unrecognized(why + TYPE_META);
    }
    if said("kind").is_empty() {
        return unrecognized(format!("Object 'Kind' is missing in '{}'", String::from_utf8_lossy(body)));
    }
    if said("apiVersion").is_empty() {
        let expected = encode::group_version(def);
        return Err(Status::bad_request(format!(
            "the API version in the data () does not match the expected API version ({expected})"
        )));
    }
    Ok(())
}

/// A body in any of the forms.
pub fn decode_body(
    format: Format,
    body: &[u8],
    definition: Option<&'static api::tables::Definition>,
    strictness: schema::decode::Strictness,
) -> Result<schema::decode::Decoded, schema::Error> {
    match (format, definition) {
        (Format::Json, Some(definition)) => schema::decode::json(body, definition, strictness),
        (Format::Yaml, Some(definition)) => schema::decode::yaml(body, definition, strictness),
        (Format::Json, None) => schema::decode::untyped_json(body),
        (Format::Yaml, None) => schema::decode::untyped_yaml(body),
        (Format::Cbor, Some(definition)) => {
            schema::decode::value(schema::cbor::decode(body)?, definition, strictness)
        }
        (Format::Cbor, None) => {
            let object = schema::cbor::decode(body)?;
            Ok(schema::decode::Decoded { object, problems: Vec::new() })
        }
        (Format::Protobuf, _) => {
            let (gvk, mut object) = schema::protobuf::decode(body)?;
            object["apiVersion"] = gvk.group_version().to_string().into();
            object["kind"] = gvk.kind.to_string().into();
            Ok(schema::decode::Decoded { object, problems: Vec::new() })
        }
    }
}

/// What upstream shows of a body that it cannot read.
///
/// Upstream: apiserver/pkg/endpoints/handlers/rest.go summarizeData
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let shown = &body[..body.len().min(SHOWN)];
    let more = if body.len() > SHOWN { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(shown)),
        Some(_) => shown.iter().map(|byte| format!("{byte:02x}")).collect::<String>() + more,
    }
}

/// DeleteOptions come in the body, in any form and under any group's version, or in the query.
pub(super) fn read_delete_options(
    call: &Call<'_>,
    asked: &Asked,
    body: &Bytes,
) -> Result<DeleteOptions, Status> {
    if body.is_empty() {
        return DeleteOptions::parse(&asked.info.query, None);
    }
    let format = call.server.config.forms.content(&asked.parts.headers)?;
    let definition = api::tables::definition("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions");
    let decoded = match (format, definition) {
        (Format::Protobuf, Some(definition)) => schema::protobuf::open(body).and_then(|envelope| {
            let object = schema::protobuf::decode_message(envelope.message, definition)?;
            Ok(schema::decode::Decoded { object, problems: Vec::new() })
        }),
        _ => decode_body(format, body, definition, schema::decode::Strictness::Ignore),
    };
    let decoded = decoded.map_err(|error| {
        let words = match &error {
            schema::Error::Syntax(_) => "couldn't get version/kind; json parse error: ",
            _ => "",
        };
        Status::bad_request(format!("{words}{error}"))
    })?;
    let said = |field: &str| decoded.object.get(field).and_then(Value::as_str).unwrap_or_default();
    if !matches!(said("kind"), "" | "DeleteOptions") {
        let scheme = "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27";
        let (kind, version) = (said("kind"), said("apiVersion"));
        let why = format!("no kind {kind:?} is registered for version {version:?} in scheme {scheme:?}");
        return Err(Status::bad_request(why));
    }
    DeleteOptions::parse(&asked.info.query, Some(&decoded.object))
}
