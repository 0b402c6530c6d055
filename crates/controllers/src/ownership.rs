//! Which objects a controller's object owns: those that name it as their controller, and orphans that its
//! selector matches, which it adopts; what it owns and no longer matches it lets go.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::Object;
use api::meta::{LabelSelector, ObjectMeta};
use client::{Client, Error, PatchType};
use controller_runtime::{Event, Informer};
use serde_json::json;

use crate::objects::{controller_of, controller_reference, is_deleting};
use crate::selector;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Ours and matching.
    Keep,
    /// Nobody's and matching.
    Adopt,
    /// Ours and not matching.
    Release,
    /// None of our business.
    Ignore,
}

/// Upstream: pkg/controller/controller_ref_manager.go ClaimObject
pub(crate) fn claim(owner: &ObjectMeta, selector: &LabelSelector, object: &ObjectMeta) -> Claim {
    let matches = selector::matches(selector, object.labels.as_ref());
    let owner_deleting = owner.deletion_timestamp.is_some();
    match controller_of(object) {
        Some(controller) if Some(&controller.uid) != owner.uid.as_ref() => Claim::Ignore,
        Some(_) if matches => Claim::Keep,
        Some(_) if owner_deleting => Claim::Ignore,
        Some(_) => Claim::Release,
        None if owner_deleting || !matches || object.deletion_timestamp.is_some() => Claim::Ignore,
        None => Claim::Adopt,
    }
}

/// The index under which [`candidates`] finds objects.
const INDEX: &str = "controller";

pub(crate) fn add_index<T: Object>(informer: &Informer<T>) {
    informer.add_index(INDEX, |object| {
        let controller = controller_of(object.metadata());
        vec![controller.map_or_else(|| format!("orphan/{}", object.namespace()), |owner| owner.uid.clone())]
    });
}

/// What is controlled by the owner.
pub(crate) fn controlled<T: Object>(informer: &Informer<T>, owner_uid: &str) -> Vec<Arc<T>> {
    informer.by_index(INDEX, owner_uid)
}

/// What nobody controls in a namespace.
pub(crate) fn orphans<T: Object>(informer: &Informer<T>, namespace: &str) -> Vec<Arc<T>> {
    informer.by_index(INDEX, &format!("orphan/{namespace}"))
}

/// What the owner controls or may adopt.
pub(crate) fn candidates<T: Object, O: Object>(informer: &Informer<T>, owner: &O) -> Vec<Arc<T>> {
    let mut all = controlled(informer, owner.uid());
    all.extend(orphans(informer, owner.namespace()));
    all
}

/// The keys of those whom the change of an object concerns: who controlled it before and does now, or, when nobody
/// does, all who may adopt it.
pub(crate) fn concerned<O: Object, T: Object>(
    event: &Event<T>,
    owners: &Informer<O>,
    selector: impl Fn(&O) -> LabelSelector,
) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for object in event.old().into_iter().chain([event.object()]) {
        let owner = controller_of(object.metadata());
        let owner = owner.filter(|owner| owner.kind == O::KIND && owner.api_version == O::api_version());
        keys.extend(owner.map(|owner| format!("{}/{}", object.namespace(), owner.name)));
    }
    let object = event.object();
    if !matches!(event, Event::Deleted(_)) && controller_of(object.metadata()).is_none() {
        let labels = object.metadata().labels.as_ref();
        let adopters = owners.by_namespace(object.namespace());
        let adopters = adopters.iter().filter(|owner| selector::matches(&selector(owner), labels));
        keys.extend(adopters.map(|owner| owner.key()));
    }
    keys
}

/// Adopts and releases, and returns what the owner owns then.
pub(crate) async fn claim_all<O: Object, T: Object>(
    client: &Client,
    informer: &Informer<T>,
    owner: &O,
    selector: &LabelSelector,
    candidates: Vec<Arc<T>>,
) -> Result<Vec<Arc<T>>, Error> {
    let mut owned = Vec::new();
    let mut may_adopt = None;
    for object in candidates {
        match claim(owner.metadata(), selector, object.metadata()) {
            Claim::Ignore => {}
            Claim::Keep => owned.push(object),
            Claim::Adopt => {
                // The cache may be behind a deletion: what is going away adopts nothing.
                let may = match may_adopt {
                    Some(may) => may,
                    None => *may_adopt.insert(is_alive(client, owner).await?),
                };
                if may {
                    owned.extend(adopt(informer, owner, &object).await?);
                }
            }
            Claim::Release => release(informer, owner, &object).await?,
        }
    }
    Ok(owned)
}

async fn is_alive<O: Object>(client: &Client, owner: &O) -> Result<bool, Error> {
    match client.get::<O>(owner.namespace(), owner.name()).await {
        Ok(fresh) => Ok(fresh.uid() == owner.uid() && !is_deleting(&fresh)),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
    }
}

async fn adopt<O: Object, T: Object>(
    informer: &Informer<T>,
    owner: &O,
    object: &Arc<T>,
) -> Result<Option<Arc<T>>, Error> {
    let mut owners = object.metadata().owner_references.clone().unwrap_or_default();
    owners.push(controller_reference(owner));
    patch_owners(informer, object, serde_json::to_value(owners).map_err(|e| Error::Decode(e.into()))?).await
}

async fn release<O: Object, T: Object>(
    informer: &Informer<T>,
    owner: &O,
    object: &Arc<T>,
) -> Result<(), Error> {
    let owners = object.metadata().owner_references.iter().flatten();
    let rest: Vec<_> = owners.filter(|reference| reference.uid != owner.uid()).collect();
    patch_owners(informer, object, serde_json::to_value(rest).map_err(|e| Error::Decode(e.into()))?)
        .await
        .map(drop)
}

/// `None` when the object is gone.
async fn patch_owners<T: Object>(
    informer: &Informer<T>,
    object: &Arc<T>,
    owners: serde_json::Value,
) -> Result<Option<Arc<T>>, Error> {
    let metadata = object.metadata();
    let patch = json!({"metadata": {
        "uid": metadata.uid,
        "resourceVersion": metadata.resource_version,
        "ownerReferences": owners,
    }});
    match informer.patch(object, None, PatchType::Merge, &patch).await {
        Ok(patched) => Ok(Some(patched)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use api::meta::{OwnerReference, Time};

    use super::*;

    #[test]
    fn claims() {
        let metadata = |labels: &str, controller: Option<&str>, deleting: bool| ObjectMeta {
            uid: Some("me".into()),
            labels: Some([("app".to_owned(), labels.to_owned())].into()),
            owner_references: controller.map(|uid| {
                vec![OwnerReference { uid: uid.into(), controller: Some(true), ..Default::default() }]
            }),
            deletion_timestamp: deleting.then_some(Time(jiff::Timestamp::UNIX_EPOCH)),
            ..Default::default()
        };
        let selector = LabelSelector {
            match_labels: Some([("app".to_owned(), "web".to_owned())].into()),
            match_expressions: None,
        };
        let (alive, dying) = (metadata("", None, false), metadata("", None, true));
        for (owner, object, expected) in [
            (&alive, metadata("web", Some("me"), false), Claim::Keep),
            (&alive, metadata("web", Some("me"), true), Claim::Keep),
            (&alive, metadata("other", Some("me"), false), Claim::Release),
            (&alive, metadata("web", None, false), Claim::Adopt),
            (&alive, metadata("web", None, true), Claim::Ignore),
            (&alive, metadata("other", None, false), Claim::Ignore),
            (&alive, metadata("web", Some("you"), false), Claim::Ignore),
            (&dying, metadata("web", Some("me"), false), Claim::Keep),
            (&dying, metadata("other", Some("me"), false), Claim::Ignore),
            (&dying, metadata("web", None, false), Claim::Ignore),
        ] {
            assert_eq!(claim(owner, &selector, &object), expected, "{object:?}");
        }
    }
}
