//! Objects of custom kinds in another of their versions, by the webhook that their definition names.
//!
//! Upstream: apiextensions-apiserver/pkg/apiserver/conversion/webhook_converter.go

use std::time::Duration;

use apimachinery::{GroupVersion, Status, objectmeta};
use resources::custom::{Conversion, Custom};
use serde_json::{Value, json};

use crate::admission::webhook::client::WebhookClient;
use crate::authn::Random;
use crate::registry::metadata::text;

/// How long a webhook may take for one review.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The way to webhooks that convert.
pub struct Converter {
    pub webhooks: WebhookClient,
    pub random: Random,
}

impl Converter {
    fn uid(&self) -> String {
        let mut bytes = [0; 16];
        (self.random)(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    /// All objects in the version, or none with the reason. Those that are of it already stay as they are.
    pub async fn trees(
        &self,
        custom: &Custom,
        objects: Vec<Value>,
        api_version: &str,
    ) -> Result<Vec<Value>, Status> {
        trees(self, custom, objects, api_version).await
    }
}

async fn trees(
    converter: &Converter,
    custom: &Custom,
    objects: Vec<Value>,
    api_version: &str,
) -> Result<Vec<Value>, Status> {
    let Conversion::Webhook { client_config, review_versions } = &custom.versions.conversion else {
        return Ok(objects);
    };
    let others: Vec<&Value> = objects.iter().filter(|object| object["apiVersion"] != api_version).collect();
    let Some(first) = others.first() else { return Ok(objects) };
    let gvk = shown(first);
    let failed = |why: String| Status::internal(format!("conversion webhook for {gvk} failed: {why}"));
    let review_version = review_versions.iter().find(|version| matches!(version.as_str(), "v1" | "v1beta1"));
    let review_version =
        review_version.ok_or_else(|| Status::internal("no supported conversion review versions"))?;
    let uid = converter.uid();
    let review = json!({
        "apiVersion": format!("apiextensions.k8s.io/{review_version}"), "kind": "ConversionReview",
        "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": others},
    });
    let answer = converter.webhooks.call(client_config, &review, TIMEOUT).await;
    let answer = answer.map_err(|error| failed(call_error(&error)))?;
    let converted = read(&answer, review_version, &uid).map_err(failed)?;
    if converted.len() != others.len() {
        return Err(Status::internal(format!(
            "conversion webhook for {gvk} returned {} objects, expected {}",
            converted.len(),
            others.len()
        )));
    }
    let mut converted = converted.iter().enumerate();
    objects
        .into_iter()
        .map(|object| {
            if object["apiVersion"] == api_version {
                return Ok(object);
            }
            let (at, converted) = converted.next().ok_or_else(|| Status::internal("an object is missing"))?;
            checked(&object, converted, at, api_version).map_err(|why| {
                Status::internal(format!("conversion webhook for {gvk} returned invalid {why}"))
            })
        })
        .collect()
}

fn call_error(error: &crate::admission::webhook::client::CallError) -> String {
    let words = error.to_string();
    words.strip_prefix("failed to call webhook: ").map(str::to_owned).unwrap_or(words)
}

/// As Go prints a GroupVersionKind.
fn shown(object: &Value) -> String {
    let kind = object["kind"].as_str().unwrap_or_default();
    format!("{}, Kind={kind}", object["apiVersion"].as_str().unwrap_or_default())
}

/// The objects of an answer.
fn read<'v>(answer: &'v Value, version: &str, uid: &str) -> Result<&'v [Value], String> {
    if version == "v1" {
        let expected = "apiextensions.k8s.io/v1, Kind=ConversionReview";
        let got = shown(answer);
        if got != expected {
            return Err(format!("expected webhook response of {expected}, got {got}"));
        }
    }
    let response = answer.get("response").filter(|response| response.is_object());
    let response = response.ok_or("no response provided")?;
    let given = response["uid"].as_str().unwrap_or_default();
    if version == "v1" && given != uid {
        return Err(format!("expected response.uid={uid:?}, got {given:?}"));
    }
    let result = &response["result"];
    let status = result["status"].as_str().unwrap_or_default();
    if status != "Success" {
        return Err(match result["message"].as_str().unwrap_or_default() {
            "" => format!("response.result.status was '{status}', not 'Success'"),
            message => message.to_owned(),
        });
    }
    Ok(response["convertedObjects"].as_array().map(Vec::as_slice).unwrap_or_default())
}

/// The converted object, if it is still the same one: a webhook may change labels and annotations, but no other
/// metadata.
fn checked(object: &Value, converted: &Value, at: usize, api_version: &str) -> Result<Value, String> {
    let invalid = |why: String| format!("converted object at index {at}: {why}");
    let version = |object: &Value| object["apiVersion"].as_str().unwrap_or_default().to_owned();
    if version(converted) != api_version {
        let got = GroupVersion::parse(&version(converted)).unwrap_or_default();
        return Err(invalid(format!("invalid groupVersion (expected {api_version}, received {got})")));
    }
    let kind = |object: &Value| object["kind"].as_str().unwrap_or_default().to_owned();
    if kind(object) != kind(converted) {
        let (expected, got) = (kind(object), kind(converted));
        return Err(invalid(format!("invalid kind (expected {expected}, received {got})")));
    }
    for (field, words) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (was, is) = (text(object, field), text(converted, field));
        if was != is {
            return Err(invalid(format!("must have the same {words}: {was} != {is}")));
        }
    }
    let metadata =
        converted.get("metadata").ok_or("metadata in object: missing metadata in converted object")?;
    let mut restored = object["metadata"].clone();
    let Some(fields) = restored.as_object_mut() else { return Err(invalid("no metadata".to_owned())) };
    for field in ["labels", "annotations"] {
        match metadata.get(field).filter(|value| !value.is_null()) {
            Some(value) => fields.insert(field.to_owned(), value.clone()),
            None => fields.remove(field),
        };
    }
    let path = apimachinery::field::Path::new("metadata");
    let wrong = objectmeta::validate(&restored, &path, objectmeta::Finalizers::Any);
    if !wrong.is_empty() && restored != object["metadata"] {
        return Err(format!("metadata in object: {}", apimachinery::field::aggregate(&wrong)));
    }
    let mut converted = converted.clone();
    converted["metadata"] = restored;
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_may_change_labels_and_annotations_but_not_who_an_object_is() {
        let object = json!({"apiVersion": "g/v1", "kind": "K", "metadata": {
            "name": "a", "uid": "u", "resourceVersion": "5", "labels": {"a": "b"}}});
        let answer =
            |metadata: Value| json!({"apiVersion": "g/v2", "kind": "K", "metadata": metadata, "x": 1});
        let converted = answer(json!({"name": "a", "uid": "u", "annotations": {"c": "d"}}));
        assert_eq!(
            checked(&object, &converted, 0, "g/v2"),
            Ok(json!({"apiVersion": "g/v2", "kind": "K", "x": 1, "metadata": {
                "name": "a", "uid": "u", "resourceVersion": "5", "annotations": {"c": "d"}}}))
        );
        for (converted, expected) in [
            (
                answer(json!({"name": "b", "uid": "u"})),
                "converted object at index 0: must have the same name: a != b",
            ),
            (
                json!({"apiVersion": "g/v3", "kind": "K"}),
                "converted object at index 0: invalid groupVersion (expected g/v2, received g/v3)",
            ),
        ] {
            assert_eq!(checked(&object, &converted, 0, "g/v2"), Err(expected.to_owned()));
        }
    }

    #[test]
    fn answers_are_read_as_upstream_reads_them() {
        let answer = |response: Value| json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response});
        let good = answer(json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [{}]}));
        assert_eq!(read(&good, "v1", "u").map(<[Value]>::len), Ok(1));
        for (answer, expected) in [
            (
                json!({}),
                "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got , Kind=",
            ),
            (answer(Value::Null), "no response provided"),
            (answer(json!({"uid": "x"})), "expected response.uid=\"u\", got \"x\""),
            (answer(json!({"uid": "u", "result": {"status": "Failure", "message": "no"}})), "no"),
            (answer(json!({"uid": "u"})), "response.result.status was '', not 'Success'"),
        ] {
            assert_eq!(read(&answer, "v1", "u"), Err(expected.to_owned()));
        }
    }
}
