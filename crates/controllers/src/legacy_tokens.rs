//! Tokens that were once made for every ServiceAccount and that nobody uses any more: first they are marked as
//! invalid, and after as long again they go.
//!
//! Upstream: pkg/controller/serviceaccount/legacy_serviceaccount_token_cleaner.go

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use api::Object;
use api::core::v1::{ConfigMap, Pod, Secret, ServiceAccount};
use client::{DeleteOptions, PatchType, Preconditions};
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, ToSpan};
use serde_json::json;

use crate::Error;
use crate::context::Context;
use crate::objects::{created, is_deleting, label};
use crate::service_account_tokens::{account_key, informer, is_for};

/// Upstream: pkg/controller/serviceaccount/legacy_serviceaccount_token_cleaner.go DefaultCleanerSyncInterval
const INTERVAL: Duration = Duration::from_secs(24 * 3600);
const LAST_USED: &str = "kubernetes.io/legacy-token-last-used";
const INVALID_SINCE: &str = "kubernetes.io/legacy-token-invalid-since";
/// Where the API server says since when it notes the use of tokens.
const TRACKING: (&str, &str, &str) =
    ("kube-system", "kube-apiserver-legacy-service-account-token-tracking", "since");

#[derive(Debug, PartialEq)]
enum Plan {
    Keep,
    /// Mark it as invalid from this day on.
    Invalidate(Date),
    Delete,
}

fn day(moment: Timestamp) -> Date {
    moment.to_zoned(TimeZone::UTC).date()
}

fn parse(date: &str) -> Option<Date> {
    Date::strptime("%Y-%m-%d", date).ok()
}

/// Whether use has been noted for so long that silence means disuse.
fn is_tracked_long_enough(since: &str, period: SignedDuration, now: Timestamp) -> bool {
    let first_whole_day = parse(since).and_then(|since| since.checked_add(1.day()).ok());
    let began = first_whole_day.and_then(|day| Some(day.to_zoned(TimeZone::UTC).ok()?.timestamp()));
    began.and_then(|began| began.checked_add(period).ok()).is_some_and(|enough| now >= enough)
}

/// Decides about a token that its account names, and that no pod mounts when `mounted` is false.
fn decide(
    secret: &Secret,
    account: Option<&ServiceAccount>,
    mounted: bool,
    period: SignedDuration,
    now: Timestamp,
) -> Plan {
    let Ok(edge) = now.checked_sub(period) else { return Plan::Keep };
    if created(secret) >= edge || is_deleting(secret) || mounted {
        return Plan::Keep;
    }
    let unused = match label(secret, LAST_USED) {
        None => true,
        Some(used) => parse(used).is_some_and(|used| used < day(edge)),
    };
    let names = |account: &ServiceAccount| {
        account.secrets.iter().flatten().any(|named| named.name.as_deref() == Some(secret.name()))
    };
    // Only those that were made by themselves are named by their account: what people made is theirs.
    if !unused || !account.is_some_and(|account| is_for(secret, account) && names(account)) {
        return Plan::Keep;
    }
    match label(secret, INVALID_SINCE).and_then(parse) {
        None => Plan::Invalidate(day(now)),
        Some(since) if since >= day(edge) => Plan::Keep,
        Some(_) => Plan::Delete,
    }
}

/// The Secrets that a pod may read.
///
/// Upstream: pkg/api/v1/pod/util.go VisitPodSecretNames
fn secrets_of(pod: &Pod) -> BTreeSet<String> {
    let Some(spec) = &pod.spec else { return BTreeSet::new() };
    let mut names: BTreeSet<String> =
        spec.image_pull_secrets.iter().flatten().map(|reference| reference.name.clone()).collect();
    let value = serde_json::to_value(spec).unwrap_or_default();
    collect_names(&value, &mut names);
    names
}

/// Names in fields that refer to Secrets, wherever in a pod they are.
fn collect_names(value: &serde_json::Value, names: &mut BTreeSet<String>) {
    const REFERENCES: [&str; 7] = [
        "secret",
        "secretRef",
        "secretKeyRef",
        "nodePublishSecretRef",
        "controllerPublishSecretRef",
        "nodeStageSecretRef",
        "nodeExpandSecretRef",
    ];
    match value {
        serde_json::Value::Object(fields) => {
            for (key, value) in fields {
                if REFERENCES.contains(&key.as_str()) {
                    let name = value["name"].as_str().or_else(|| value["secretName"].as_str());
                    names.extend(name.map(str::to_owned));
                }
                if key == "azureFile" {
                    names.extend(value["secretName"].as_str().map(str::to_owned));
                }
                collect_names(value, names);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect_names(item, names)),
        _ => {}
    }
}

/// Runs the controller until the shutdown: a look a day.
pub(crate) async fn run(context: Context) {
    let secrets = informer(&context);
    let accounts = context.informers.informer::<ServiceAccount>();
    let pods = context.informers.informer::<Pod>();
    if !context.synced().await {
        return;
    }
    loop {
        // Most clusters have no such token: those are asked nothing.
        if !secrets.is_empty() {
            let mut mounted: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            for secret in secrets.list() {
                mounted.entry(secret.namespace().to_owned()).or_insert_with_key(|namespace| {
                    pods.by_namespace(namespace).iter().flat_map(|pod| secrets_of(pod)).collect()
                });
            }
            if let Err(error) = look(&context, &secrets, &accounts, &mounted).await {
                tracing::debug!(%error, "unused tokens stay for another day");
            }
        }
        tokio::select! {
            () = context.shutdown.cancelled() => return,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

async fn look(
    context: &Context,
    secrets: &controller_runtime::Informer<Secret>,
    accounts: &controller_runtime::Informer<ServiceAccount>,
    mounted: &BTreeMap<String, BTreeSet<String>>,
) -> Result<(), Error> {
    let (namespace, name, key) = TRACKING;
    let map: ConfigMap = context.client.get(namespace, name).await?;
    let since = map.data.as_ref().and_then(|data| data.get(key)).map(String::as_str).unwrap_or_default();
    let now = context.clock().now();
    let period = SignedDuration::try_from(context.config.options.legacy_token_clean_up_period)
        .map_err(|error| Error::Config(error.to_string()))?;
    if !is_tracked_long_enough(since, period, now) {
        return Ok(());
    }
    for secret in secrets.list() {
        let in_use = mounted.get(secret.namespace()).is_some_and(|names| names.contains(secret.name()));
        let account = accounts.get(&account_key(&secret));
        match decide(&secret, account.as_deref(), in_use, period, now) {
            Plan::Keep => {}
            Plan::Invalidate(since) => {
                let patch = json!({"metadata": {
                    "uid": secret.uid(), "labels": {INVALID_SINCE: since.strftime("%Y-%m-%d").to_string()},
                }});
                if let Err(error) = secrets.patch(&secret, None, PatchType::Merge, &patch).await {
                    tracing::warn!(secret = secret.key(), %error, "an unused token cannot be marked as invalid");
                }
            }
            Plan::Delete => {
                let preconditions =
                    Preconditions { uid: None, resource_version: secret.metadata.resource_version.clone() };
                let options = DeleteOptions { preconditions: Some(preconditions), ..Default::default() };
                match context.client.delete::<Secret>(secret.namespace(), secret.name(), &options).await {
                    Err(error) if !error.is_not_found() && !error.is_conflict() => {
                        tracing::warn!(secret = secret.key(), %error, "an unused token cannot be deleted");
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const PERIOD: SignedDuration = SignedDuration::from_hours(365 * 24);

    fn at(day: &str) -> Timestamp {
        format!("{day}T12:00:00Z").parse().unwrap()
    }

    fn secret(created: &str, labels: serde_json::Value) -> Secret {
        Secret::from_value(json!({"metadata": {
            "namespace": "ns", "name": "token", "uid": "s", "labels": labels, "creationTimestamp": at(created).to_string(),
            "annotations": {"kubernetes.io/service-account.name": "robot", "kubernetes.io/service-account.uid": "u"},
        }}))
        .unwrap()
    }

    fn account(uid: &str, names: &[&str]) -> ServiceAccount {
        let secrets: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
        let metadata = json!({"namespace": "ns", "name": "robot", "uid": uid});
        ServiceAccount::from_value(json!({"metadata": metadata, "secrets": secrets})).unwrap()
    }

    #[test]
    fn what_is_long_unused_is_marked_and_goes() {
        let named = account("u", &["token"]);
        let now = at("2026-01-01");
        for (secret, account, mounted, expected) in [
            (secret("2020-01-01", json!({})), Some(&named), false, Plan::Invalidate(day(now))),
            (
                secret("2020-01-01", json!({INVALID_SINCE: "soon"})),
                Some(&named),
                false,
                Plan::Invalidate(day(now)),
            ),
            (secret("2020-01-01", json!({INVALID_SINCE: "2025-06-01"})), Some(&named), false, Plan::Keep),
            (secret("2020-01-01", json!({INVALID_SINCE: "2024-06-01"})), Some(&named), false, Plan::Delete),
            (secret("2025-06-01", json!({})), Some(&named), false, Plan::Keep),
            (secret("2020-01-01", json!({LAST_USED: "2025-06-01"})), Some(&named), false, Plan::Keep),
            (
                secret("2020-01-01", json!({LAST_USED: "2024-06-01"})),
                Some(&named),
                false,
                Plan::Invalidate(day(now)),
            ),
            (secret("2020-01-01", json!({LAST_USED: "lately"})), Some(&named), false, Plan::Keep),
            (secret("2020-01-01", json!({})), Some(&named), true, Plan::Keep),
            (secret("2020-01-01", json!({})), None, false, Plan::Keep),
            (secret("2020-01-01", json!({})), Some(&account("u", &["other"])), false, Plan::Keep),
            (secret("2020-01-01", json!({})), Some(&account("v", &["token"])), false, Plan::Keep),
        ] {
            assert_eq!(
                decide(&secret, account, mounted, PERIOD, now),
                expected,
                "{:?}",
                secret.metadata.labels
            );
        }
    }

    #[test]
    fn silence_means_disuse_only_after_as_long() {
        for (since, now, expected) in [
            ("2025-01-01", "2026-01-01", false),
            ("2025-01-01", "2026-01-02", true),
            ("yesterday", "2026-01-02", false),
        ] {
            assert_eq!(is_tracked_long_enough(since, PERIOD, at(now)), expected, "{since} {now}");
        }
    }

    #[test]
    fn secrets_of_pods_are_found_wherever_they_are() {
        let pod = Pod::from_value(json!({"metadata": {"name": "p"}, "spec": {
            "imagePullSecrets": [{"name": "pull"}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "volume"}},
                {"name": "b", "projected": {"sources": [{"secret": {"name": "projected"}}]}},
                {"name": "c", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "csi"}}},
                {"name": "d", "configMap": {"name": "not this"}},
            ],
            "containers": [{
                "name": "c", "image": "i", "envFrom": [{"secretRef": {"name": "from"}}],
                "env": [{"name": "E", "valueFrom": {"secretKeyRef": {"name": "key", "key": "k"}}}],
            }],
        }}))
        .unwrap();
        let found: Vec<_> = secrets_of(&pod).into_iter().collect();
        assert_eq!(found, ["csi", "from", "key", "projected", "pull", "volume"]);
    }
}
