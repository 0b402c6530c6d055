//! How a definition says that its versions are converted.
//!
//! Upstream: apiextensions-apiserver/pkg/apis/apiextensions/validation/validation.go validateCustomResourceConversion

use apimachinery::names;
use serde_json::Value;

use super::spec::Options;
use crate::get::{Errors, at, has, text, texts};
use crate::kinds::admission::webhooks::client_config;
use crate::prelude::{Error, Path};
use crate::validate::{decode_base64, required_one_of};

const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

pub fn validate(definition: &Value, path: &Path, options: &Options) -> Errors {
    let mut errors = Errors::new();
    if !has(definition, "spec.conversion") {
        return errors;
    }
    let strategy = text(definition, "spec.conversion.strategy");
    errors.extend(required_one_of(strategy, &path.child("strategy"), &["None", "Webhook"]));
    let webhook = at(definition, "spec.conversion.webhook").unwrap_or(&Value::Null);
    let (client, versions) = (path.child("webhookClientConfig"), path.child("conversionReviewVersions"));
    let reviewed = texts(webhook, "conversionReviewVersions");
    if strategy != "Webhook" {
        let detail = "should not be set when strategy is not set to Webhook";
        if has(webhook, "clientConfig") {
            errors.push(Error::forbidden(&client, detail));
        }
        if !reviewed.is_empty() {
            errors.push(Error::forbidden(&versions, detail));
        }
        return errors;
    }
    if has(webhook, "clientConfig") {
        errors.extend(client_config(webhook, &client));
        let bundle = text(webhook, "clientConfig.caBundle");
        if !options.allow_invalid_ca_bundle && !is_valid_ca_bundle(bundle) {
            let detail = "unable to load root certificates: unable to parse bytes as PEM block";
            errors.push(Error::invalid(&client.child("caBundle"), bundle, detail));
        }
    } else {
        errors.push(Error::required(&client, "required when strategy is set to Webhook"));
    }
    errors.extend(review_versions(&reviewed, &versions, options));
    errors
}

fn review_versions(versions: &[&str], path: &Path, options: &Options) -> Errors {
    if versions.is_empty() {
        return vec![Error::required(path, "")];
    }
    let mut errors = Errors::new();
    for (at, version) in versions.iter().enumerate() {
        let path = path.index(at);
        if versions[..at].contains(version) {
            errors.push(Error::invalid(&path, *version, "duplicate version"));
            continue;
        }
        let wrong = names::dns1035_label(version);
        errors.extend(wrong.into_iter().map(|why| Error::invalid(&path, *version, why)));
    }
    if options.require_known_review_version && !is_reviewable(versions) {
        let detail = format!("must include at least one of {}", REVIEW_VERSIONS.join(", "));
        errors.push(Error::invalid(path, Value::from(versions), detail));
    }
    errors
}

/// Whether the server speaks one of the versions of ConversionReview.
pub fn is_reviewable(versions: &[&str]) -> bool {
    versions.iter().any(|version| REVIEW_VERSIONS.contains(version))
}

/// Whether a bundle (base64, as JSON has it) holds certificates, or is not given.
pub fn is_valid_ca_bundle(bundle: &str) -> bool {
    if bundle.is_empty() {
        return true;
    }
    let Some(bytes) = decode_base64(&bundle.into()) else { return false };
    let text = String::from_utf8_lossy(&bytes);
    text.split("-----BEGIN CERTIFICATE-----").skip(1).any(|rest| {
        let Some((body, _)) = rest.split_once("-----END CERTIFICATE-----") else { return false };
        let body: String = body.split_whitespace().collect();
        // Every certificate is a DER sequence.
        decode_base64(&body.into()).is_some_and(|der| der.first() == Some(&0x30))
    })
}
