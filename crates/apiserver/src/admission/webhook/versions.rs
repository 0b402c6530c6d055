//! Objects in the version that a webhook was registered for, and back; and what a webhook made of one, read as
//! its kind.

use apimachinery::{GroupVersionKind, Status};
use resources::ResourceDef;
use resources::custom::Conversion;
use schema::structural::embedded::Malformed;
use serde_json::Value;

use crate::extensions::convert::Converter;
use crate::negotiate::Format;
use crate::seams::AdmissionRequest;

/// The object in another version of its kind, by a conversion webhook where the kind has one.
pub(crate) async fn convert(
    converter: &Converter,
    request: &AdmissionRequest<'_>,
    from: &GroupVersionKind,
    to: &GroupVersionKind,
    object: Value,
) -> Result<Value, Status> {
    let custom = request.def.and_then(|def| def.custom.as_ref());
    let custom = custom.filter(|custom| custom.versions.conversion != Conversion::None);
    let Some(custom) = custom.filter(|_| from != to && !object.is_null() && is_whole(request)) else {
        return Ok(convert_known(request, from, to, object));
    };
    let mut object = object;
    schema::apply::open_owners(&mut object);
    let converted = converter.trees(custom, vec![object], &to.group_version().to_string()).await?;
    let mut object = converted.into_iter().next().unwrap_or_default();
    // What the webhook made is pruned, not refused.
    let _ = custom.versions.shape(&mut object, Malformed::Drop);
    Ok(object)
}

/// Whether what is sent is an object of the kind.
fn is_whole(request: &AdmissionRequest<'_>) -> bool {
    matches!(request.subresource, "" | "status")
}

/// The object in another version of its kind, with its owners as all know them. Both versions are served from the
/// same stored objects.
pub(crate) fn convert_known(
    request: &AdmissionRequest<'_>,
    from: &GroupVersionKind,
    to: &GroupVersionKind,
    mut object: Value,
) -> Value {
    schema::apply::open_owners(&mut object);
    if from == to || object.is_null() || !is_whole(request) {
        return object;
    }
    let Some(own) = request.def else { return object };
    let row = |gvk: &GroupVersionKind| -> Option<&ResourceDef> {
        if own.gvk() == *gvk {
            return Some(own);
        }
        resources::table().iter().find(|row| row.gvk() == *gvk).map(|row| &**row)
    };
    match (row(from), row(to)) {
        (Some(from), Some(to)) => {
            resources::convert::to_storage(from, &mut object);
            resources::convert::from_storage(to, &mut object);
        }
        // Custom kinds that say no more have the same fields in all versions.
        _ => object["apiVersion"] = to.group_version().to_string().into(),
    }
    object
}

/// What a webhook made of an object: of a known kind, without what the kind does not have, and with its defaults.
pub(crate) fn read(
    gvk: &GroupVersionKind,
    request: &AdmissionRequest<'_>,
    object: Value,
) -> Result<Value, Status> {
    let definition = api::tables::kind(&gvk.group, &gvk.version, &gvk.kind);
    let mut object = match definition {
        None => object,
        Some(definition) => {
            let text = object.to_string();
            let strictness = schema::decode::Strictness::Ignore;
            let decoded =
                crate::handle::decode_body(Format::Json, text.as_bytes(), Some(definition), strictness);
            let mut object = decoded.map_err(Status::internal)?.object;
            schema::default::apply_declared(&mut object, definition);
            object
        }
    };
    if let Some(def) = request.def.filter(|def| def.gvk() == *gvk) {
        def.strategy.default(&mut object);
    }
    Ok(object)
}
