//! Every pod runs as a ServiceAccount, with a token for the API in a projected volume.
//!
//! Upstream: plugin/pkg/admission/serviceaccount/admission.go

use std::collections::BTreeSet;
use std::sync::Arc;

use apimachinery::{GroupResource, Status};
use serde_json::{Value, json};

use super::pod::{is_mirror, secret_names};
use super::tree::{annotation, at, flag, items, list_mut, set, text};
use super::{Context, Plugin, core, forbid, is, is_create, is_update, is_whole};
use crate::seams::AdmissionRequest;

pub(super) const SERVICE_ACCOUNTS: GroupResource = core("serviceaccounts");
const DEFAULT: &str = "default";
const VOLUME_PREFIX: &str = "kube-api-access-";
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Clients that never read the token again are told so after an hour; see the token issuer.
const EXPIRATION_SECONDS: i64 = 60 * 60 + 7;
const ENFORCE_MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";

/// Names are made of letters and digits that do not form words.
const SUFFIX_ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX_LENGTH: usize = 5;

pub(super) const NAME: &str = "ServiceAccount";

pub(super) struct ServiceAccount;

/// The name of the `default` account when the request is a pod that wants it.
pub(super) fn default_account_wanted(request: &AdmissionRequest<'_>) -> Option<&'static str> {
    let name = text(request.object, "spec.serviceAccountName");
    let wants = is_whole(request, "", "pods")
        && is_create(request)
        && !is_mirror(request.object)
        && (name.is_empty() || name == DEFAULT);
    wants.then_some(DEFAULT)
}

fn find(context: &Context, request: &AdmissionRequest<'_>) -> Result<Arc<Value>, Status> {
    let (namespace, name) = (request.namespace, text(request.object, "spec.serviceAccountName"));
    if name.is_empty() {
        let pod = text(request.object, "metadata.name");
        return Err(forbid(request, format!("no service account specified for pod {namespace}/{pod}")));
    }
    context.lookup.get(&SERVICE_ACCOUNTS, namespace, name).ok_or_else(|| {
        let why =
            format!("error looking up service account {namespace}/{name}: serviceaccount {name:?} not found");
        forbid(request, why)
    })
}

impl Plugin for ServiceAccount {
    fn name(&self) -> &'static str {
        NAME
    }

    fn mutate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_whole(request, "", "pods") || !is_create(request) {
            return Ok(());
        }
        if is_mirror(request.object) {
            return self.validate(context, request);
        }
        if text(request.object, "spec.serviceAccountName").is_empty() {
            set(request.object, "spec.serviceAccountName", DEFAULT);
        }
        let account = find(context, request)?;
        let automount = flag(request.object, "spec.automountServiceAccountToken")
            .or_else(|| flag(&account, "automountServiceAccountToken"))
            .unwrap_or(true);
        if automount {
            mount_token(context, request.object);
        }
        let secrets = items(&account, "imagePullSecrets");
        if items(request.object, "spec.imagePullSecrets").is_empty() && !secrets.is_empty() {
            let names: Vec<Value> =
                secrets.iter().map(|secret| json!({"name": text(secret, "name")})).collect();
            set(request.object, "spec.imagePullSecrets", names);
        }
        self.validate(context, request)
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is(request, "", "pods") {
            return Ok(());
        }
        if request.subresource == "ephemeralcontainers" && is_update(request) {
            let account = find(context, request)?;
            let check = |mountable: &BTreeSet<&str>| {
                check_containers(
                    request.object,
                    "ephemeralContainers",
                    "ephemeral container",
                    mountable,
                    &account,
                )
            };
            return check_mountable(&account, check).map_err(|why| forbid(request, why));
        }
        if !request.subresource.is_empty() || !is_create(request) {
            return Ok(());
        }
        if is_mirror(request.object) {
            return match mirror_fault(request.object) {
                Some(why) => Err(forbid(request, why)),
                None => Ok(()),
            };
        }
        let account = find(context, request)?;
        check_mountable(&account, |mountable| check_secrets(request.object, mountable, &account))
            .map_err(|why| forbid(request, why))
    }
}

/// What a mirror pod may not have.
fn mirror_fault(pod: &Value) -> Option<&'static str> {
    if !text(pod, "spec.serviceAccountName").is_empty() {
        return Some("a mirror pod may not reference service accounts");
    }
    if !secret_names(pod).is_empty() {
        return Some("a mirror pod may not reference secrets");
    }
    let token = |volume: &Value| {
        items(volume, "projected.sources").iter().any(|source| at(source, "serviceAccountToken").is_some())
    };
    items(pod, "spec.volumes")
        .iter()
        .any(token)
        .then_some("a mirror pod may not use ServiceAccountToken volume projections")
}

/// A name suffix of a kind that is not in use yet; a clash only fails the one request.
fn suffix(context: &Context) -> String {
    let mut bytes = [0; SUFFIX_LENGTH];
    (context.random)(&mut bytes);
    bytes.iter().map(|byte| SUFFIX_ALPHABET[usize::from(*byte) % SUFFIX_ALPHABET.len()] as char).collect()
}

fn mount_token(context: &Context, pod: &mut Value) {
    let present = items(pod, "spec.volumes")
        .iter()
        .map(|volume| text(volume, "name"))
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let has_volume = present.is_some();
    let name = present.unwrap_or_else(|| format!("{VOLUME_PREFIX}{}", suffix(context)));
    let mut mounted = false;
    for list in ["spec.initContainers", "spec.containers"] {
        if items(pod, list).is_empty() {
            continue;
        }
        for container in list_mut(pod, list).into_iter().flatten() {
            let occupied = |mount| text(mount, "mountPath") == MOUNT_PATH;
            if items(container, "volumeMounts").iter().any(occupied) {
                continue;
            }
            if let Some(mounts) = list_mut(container, "volumeMounts") {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
                mounted = true;
            }
        }
    }
    if mounted
        && !has_volume
        && let Some(volumes) = list_mut(pod, "spec.volumes")
    {
        volumes.push(token_volume(&name));
    }
}

fn token_volume(name: &str) -> Value {
    json!({
        "name": name,
        "projected": {
            "defaultMode": 0o644,
            "sources": [
                {"serviceAccountToken": {"expirationSeconds": EXPIRATION_SECONDS, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{
                    "path": "namespace",
                    "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"},
                }]}},
            ],
        },
    })
}

/// Runs the check where the account asks for it.
fn check_mountable(
    account: &Value,
    check: impl FnOnce(&BTreeSet<&str>) -> Result<(), String>,
) -> Result<(), String> {
    let enforced =
        matches!(annotation(account, ENFORCE_MOUNTABLE), Some("1" | "t" | "T" | "TRUE" | "true" | "True"));
    if !enforced {
        return Ok(());
    }
    check(&items(account, "secrets").iter().map(|secret| text(secret, "name")).collect())
}

fn check_secrets(pod: &Value, mountable: &BTreeSet<&str>, account: &Value) -> Result<(), String> {
    let account_name = text(account, "metadata.name");
    for volume in items(pod, "spec.volumes") {
        let name = text(volume, "secret.secretName");
        if at(volume, "secret").is_some() && !mountable.contains(name) {
            return Err(format!(
                "volume with secret.secretName=\"{name}\" is not allowed because service account {account_name} does \
                 not reference that secret"
            ));
        }
    }
    check_containers(pod, "initContainers", "init container", mountable, account)?;
    check_containers(pod, "containers", "container", mountable, account)?;
    let pull: BTreeSet<&str> =
        items(account, "imagePullSecrets").iter().map(|secret| text(secret, "name")).collect();
    for (index, secret) in items(pod, "spec.imagePullSecrets").iter().enumerate() {
        let name = text(secret, "name");
        if !pull.contains(name) {
            return Err(format!(
                "imagePullSecrets[{index}].name=\"{name}\" is not allowed because service account {account_name} does \
                 not reference that imagePullSecret"
            ));
        }
    }
    Ok(())
}

fn check_containers(
    pod: &Value,
    list: &str,
    kind: &str,
    mountable: &BTreeSet<&str>,
    account: &Value,
) -> Result<(), String> {
    let account_name = text(account, "metadata.name");
    let refuse = |container: &Value, how: String, secret: &str| {
        Err(format!(
            "{kind} {} with {how} referencing secret.secretName=\"{secret}\" is not allowed because service account \
             {account_name} does not reference that secret",
            text(container, "name")
        ))
    };
    for container in at(pod, "spec").map(|spec| items(spec, list)).unwrap_or_default() {
        for env in items(container, "env") {
            let secret = text(env, "valueFrom.secretKeyRef.name");
            if at(env, "valueFrom.secretKeyRef").is_some() && !mountable.contains(secret) {
                return refuse(container, format!("envVar {}", text(env, "name")), secret);
            }
        }
        for env in items(container, "envFrom") {
            let secret = text(env, "secretRef.name");
            if at(env, "secretRef").is_some() && !mountable.contains(secret) {
                return refuse(container, "envFrom".to_owned(), secret);
            }
        }
    }
    Ok(())
}
