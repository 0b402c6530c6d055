//! ControllerRevisions: the templates that a DaemonSet or StatefulSet has had, to roll out and to go back to.

use std::collections::BTreeSet;
use std::sync::Arc;

use api::Object;
use api::apps::v1::ControllerRevision;
use api::core::v1::PodTemplateSpec;
use api::machinery::runtime::RawExtension;
use api::meta::{LabelSelector, ObjectMeta};
use client::{Client, DeleteOptions, PatchType};
use controller_runtime::Informer;
use serde_json::{Value, json};

use crate::Error;
use crate::context::Context;
use crate::objects::{controller_reference, created, label, short_hash};
use crate::ownership::{add_index, candidates, claim_all};
use crate::selector::Labels;

/// Names that collide are made again with another number; this many collisions are no accident.
const MAX_COLLISIONS: usize = 20;

/// What a revision holds of a template: a strategic patch that brings it back.
///
/// Upstream: pkg/controller/daemon/update.go getPatch
pub(crate) fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(template).unwrap_or_default();
    template["$patch"] = json!("replace");
    json!({ "spec": { "template": template } })
}

/// Reads the template out of a revision.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// The revisions of an owner, sorted out by what its template is now.
#[derive(Debug, Default)]
pub(crate) struct Lineage {
    pub current: Option<Arc<ControllerRevision>>,
    /// Others with the same data.
    pub doubles: Vec<Arc<ControllerRevision>>,
    /// Oldest first.
    pub old: Vec<Arc<ControllerRevision>>,
    /// The number that the current one shall have at least.
    pub number: i64,
}

/// Upstream: pkg/controller/daemon/update.go constructHistory
pub(crate) fn sort_out(revisions: Vec<Arc<ControllerRevision>>, data: &Value) -> Lineage {
    let same = |revision: &ControllerRevision| revision.data.as_ref().is_some_and(|own| own.0 == *data);
    let (mut doubles, mut old): (Vec<_>, Vec<_>) = revisions.into_iter().partition(|r| same(r));
    let order = |r: &Arc<ControllerRevision>| (r.revision, created(&**r), r.name().to_owned());
    doubles.sort_by_cached_key(order);
    old.sort_by_cached_key(order);
    let number = old.last().map_or(0, |last| last.revision).saturating_add(1);
    Lineage { current: doubles.pop(), doubles, old, number }
}

/// The old revisions to forget, oldest first: those that no pod is of, so that `limit` of all are left.
pub(crate) fn outlived(
    old: &[Arc<ControllerRevision>],
    limit: i32,
    live: impl Fn(&ControllerRevision) -> bool,
) -> Vec<Arc<ControllerRevision>> {
    let excess = old.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    old.iter().filter(|revision| !live(revision)).take(excess).cloned().collect()
}

/// Reads and writes the revisions of one kind of owner.
pub(crate) struct History {
    pub client: Client,
    pub revisions: Informer<ControllerRevision>,
    /// The label of revisions that holds the hash.
    pub hash_label: &'static str,
}

impl History {
    pub fn new(context: &Context, hash_label: &'static str) -> Self {
        let revisions = context.informers.informer();
        add_index(&revisions);
        History { client: context.client.clone(), revisions, hash_label }
    }

    /// All revisions that the owner has, adopted and let go as its selector says.
    pub async fn claim<O: Object>(
        &self,
        owner: &O,
        selector: &LabelSelector,
    ) -> Result<Vec<Arc<ControllerRevision>>, client::Error> {
        let candidates = candidates(&self.revisions, owner);
        claim_all(&self.client, &self.revisions, owner, selector, candidates).await
    }

    /// Makes sure that the current template has a revision, with the highest number of all.
    pub async fn ensure<O: Object>(
        &self,
        owner: &O,
        lineage: &Lineage,
        labels: &Labels,
        data: &Value,
        collisions: &mut Option<i32>,
    ) -> Result<Arc<ControllerRevision>, Error> {
        let Some(current) = &lineage.current else {
            return self.create(owner, lineage.number, labels, data, collisions).await;
        };
        if current.revision >= lineage.number {
            return Ok(current.clone());
        }
        let patch = json!({ "revision": lineage.number });
        Ok(self.revisions.patch(current, None, PatchType::Merge, &patch).await?)
    }

    async fn create<O: Object>(
        &self,
        owner: &O,
        number: i64,
        labels: &Labels,
        data: &Value,
        collisions: &mut Option<i32>,
    ) -> Result<Arc<ControllerRevision>, Error> {
        for _ in 0..MAX_COLLISIONS {
            let hash = short_hash(&data.to_string(), *collisions);
            let revision = self.make(owner, number, labels, data, &hash);
            match self.revisions.create(&revision).await {
                Err(error) if error.is_already_exists() => {}
                outcome => return Ok(outcome?),
            }
            let existing: ControllerRevision = self.client.get(owner.namespace(), revision.name()).await?;
            if existing.data == revision.data && crate::objects::is_controlled_by(&existing, owner.uid()) {
                return Ok(self.revisions.assume(existing));
            }
            *collisions = Some(collisions.unwrap_or(0).saturating_add(1));
        }
        Err(Error::Unfinished(format!("no free name for a revision of {}", owner.name())))
    }

    fn make<O: Object>(
        &self,
        owner: &O,
        number: i64,
        labels: &Labels,
        data: &Value,
        hash: &str,
    ) -> ControllerRevision {
        let mut labels = labels.clone();
        labels.insert(self.hash_label.to_owned(), hash.to_owned());
        // Upstream: pkg/controller/history/controller_history.go ControllerRevisionName
        let prefix: String = owner.name().chars().take(223).collect();
        ControllerRevision {
            metadata: ObjectMeta {
                name: Some(format!("{prefix}-{hash}")),
                namespace: Some(owner.namespace().to_owned()),
                labels: Some(labels),
                annotations: owner.metadata().annotations.clone(),
                owner_references: Some(vec![controller_reference(owner)]),
                ..Default::default()
            },
            data: Some(RawExtension(data.clone())),
            revision: number,
        }
    }

    pub async fn delete(&self, gone: &[Arc<ControllerRevision>]) -> Result<(), client::Error> {
        for revision in gone {
            let options = DeleteOptions::uid(revision.uid());
            let outcome =
                self.client.delete::<ControllerRevision>(revision.namespace(), revision.name(), &options);
            match outcome.await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// The values of a label among objects.
pub(crate) fn label_values<'a, T: Object>(
    objects: impl IntoIterator<Item = &'a Arc<T>>,
    key: &str,
) -> BTreeSet<String> {
    objects.into_iter().filter_map(|object| label(&**object, key)).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::tests::arcs;

    fn revision(name: &str, number: i64, data: &Value) -> ControllerRevision {
        ControllerRevision {
            metadata: ObjectMeta { name: Some(name.into()), ..Default::default() },
            data: Some(RawExtension(data.clone())),
            revision: number,
        }
    }

    #[test]
    fn going_back_raises_the_number_of_an_old_revision() {
        let (one, two) = (json!(1), json!(2));
        let all = || arcs([revision("a", 1, &one), revision("b", 2, &two)]);
        for (data, current, old, number) in [
            (&one, Some("a"), vec!["b"], 3),
            (&two, Some("b"), vec!["a"], 2),
            (&json!(3), None, vec!["a", "b"], 3),
        ] {
            let lineage = sort_out(all(), data);
            assert_eq!(lineage.current.as_ref().map(|r| r.name()), current);
            assert_eq!(lineage.old.iter().map(|r| r.name()).collect::<Vec<_>>(), old);
            assert_eq!(lineage.number, number);
        }
    }

    #[test]
    fn what_pods_are_of_is_kept() {
        let old = arcs((1..5).map(|n| revision(&n.to_string(), n, &json!(n))));
        for (limit, live, expected) in [
            (10, "", vec![]),
            (2, "", vec!["1", "2"]),
            (2, "1", vec!["2", "3"]),
            (0, "4", vec!["1", "2", "3"]),
        ] {
            let gone = outlived(&old, limit, |r| r.name() == live);
            assert_eq!(gone.iter().map(|r| r.name()).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_template_comes_back_as_it_was() {
        let template: PodTemplateSpec = serde_json::from_value(json!({
            "metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "one"}]},
        }))
        .unwrap();
        assert_eq!(template_of(&revision("a", 1, &data_of(&template))), Some(template));
    }
}
