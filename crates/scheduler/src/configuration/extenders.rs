//! What the configuration says of extenders.
//!
//! Upstream: pkg/scheduler/apis/config/validation/validation.go validateExtenders

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::field::{self, Path};
use apimachinery::names;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use client::https::{Identity, Trust};
use serde::Deserialize;

use super::Error;
use crate::extender::{Extender, Settings};

/// Upstream: pkg/scheduler/extender.go DefaultExtenderTimeout
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct File {
    url_prefix: String,
    filter_verb: String,
    preempt_verb: String,
    prioritize_verb: String,
    bind_verb: String,
    weight: i64,
    #[serde(rename = "enableHTTPS")]
    enable_https: bool,
    tls_config: Option<Tls>,
    http_timeout: Option<String>,
    node_cache_capable: bool,
    managed_resources: Vec<Managed>,
    ignorable: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Tls {
    insecure: bool,
    server_name: String,
    cert_file: PathBuf,
    key_file: PathBuf,
    ca_file: PathBuf,
    cert_data: String,
    key_data: String,
    ca_data: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Managed {
    name: String,
    ignored_by_scheduler: bool,
}

pub fn validate(extenders: &[File]) -> Vec<field::Error> {
    let root = Path::new("extenders");
    let mut errors = Vec::new();
    let mut seen: Vec<&str> = Vec::new();
    for (at, extender) in extenders.iter().enumerate() {
        let path = root.index(at);
        if !extender.prioritize_verb.is_empty() && extender.weight <= 0 {
            let words = "must have a positive weight applied to it";
            errors.push(field::Error::invalid(&path.child("weight"), extender.weight, words));
        }
        for (at, managed) in extender.managed_resources.iter().enumerate() {
            let path = path.child("managedResources").index(at).child("name");
            let name = managed.name.as_str();
            let wrong = names::qualified_name(name);
            if wrong.is_empty() && !is_extended(name) {
                errors.push(field::Error::invalid(&path, name, "is an invalid extended resource name"));
            }
            errors.extend(wrong.into_iter().map(|why| field::Error::invalid(&path, name, why)));
            if seen.contains(&name) {
                errors.push(field::Error::invalid(&path, name, "duplicate extender managed resource name"));
            }
            seen.push(name);
        }
    }
    let binders = extenders.iter().filter(|extender| !extender.bind_verb.is_empty()).count();
    if binders > 1 {
        let found = format!("found {binders} extenders implementing bind");
        errors.push(field::Error::invalid(&root, found, "only one extender can implement bind"));
    }
    errors
}

/// Upstream: pkg/apis/core/v1/helper/helpers.go IsExtendedResourceName
fn is_extended(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

/// The resources that only extenders count.
pub fn ignored(extenders: &[File]) -> Vec<String> {
    let managed = extenders.iter().flat_map(|extender| &extender.managed_resources);
    managed.filter(|managed| managed.ignored_by_scheduler).map(|managed| managed.name.clone()).collect()
}

pub fn build(files: Vec<File>) -> Result<Arc<[Extender]>, Error> {
    let extenders = files.into_iter().enumerate().map(|(at, file)| {
        let wrong = |why: String| Error::Plugins(format!("extenders[{at}]: {why}"));
        let settings = settings(file).map_err(wrong)?;
        Extender::new(settings).map_err(|error| wrong(error.to_string()))
    });
    extenders.collect()
}

fn settings(file: File) -> Result<Settings, String> {
    let timeout = match file.http_timeout.as_deref() {
        None | Some("0" | "0s") => TIMEOUT,
        Some(text) => {
            let parsed = text.parse::<jiff::SignedDuration>().map_err(|e| format!("httpTimeout: {e}"))?;
            Duration::try_from(parsed).map_err(|e| format!("httpTimeout: {e}"))?
        }
    };
    let tls = file.tls_config.unwrap_or_default();
    let data = |text: &str| STANDARD.decode(text).map_err(|e| format!("tlsConfig: {e}"));
    let read = |path: &PathBuf| std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()));
    let roots = match (tls.ca_data.is_empty(), tls.ca_file.as_os_str().is_empty()) {
        (false, _) => Some(data(&tls.ca_data)?),
        (true, false) => Some(read(&tls.ca_file)?),
        (true, true) => None,
    };
    let trust = match roots {
        _ if tls.insecure => Trust::Anyone,
        Some(roots) => Trust::Roots(roots),
        // Upstream: pkg/scheduler/extender.go makeTransport: HTTPS without a CA is not verified.
        None if file.enable_https => Trust::Anyone,
        None => Trust::System,
    };
    let identity = if !tls.cert_data.is_empty() {
        Some(Identity::Pem { certificate: data(&tls.cert_data)?, key: data(&tls.key_data)? })
    } else if !tls.cert_file.as_os_str().is_empty() {
        Some(Identity::Files { certificate: tls.cert_file, key: tls.key_file })
    } else {
        None
    };
    Ok(Settings {
        url_prefix: file.url_prefix,
        filter_verb: file.filter_verb,
        preempt_verb: file.preempt_verb,
        prioritize_verb: file.prioritize_verb,
        bind_verb: file.bind_verb,
        weight: file.weight,
        timeout,
        node_cache_capable: file.node_cache_capable,
        managed_resources: file.managed_resources.into_iter().map(|managed| managed.name).collect(),
        ignorable: file.ignorable,
        trust,
        identity,
        tls_server_name: (!tls.server_name.is_empty()).then_some(tls.server_name),
    })
}
