//! Storage version migrations: every object of a resource that was written before the migration is written once more,
//! and so comes into the version that is stored now. Of one resource's migrations one runs at a time, the oldest first.
//!
//! Upstream: pkg/controller/storageversionmigrator

use std::cmp::Ordering;
use std::sync::Arc;
use std::time::Duration;

use api::Object;
use api::meta::{Condition, GroupResource, Time};
use api::storagemigration::v1beta1::StorageVersionMigration;
use apimachinery::GroupVersionResource;
use client::{Client, Error as ClientError, ListOptions, PatchType, Resource};
use controller_runtime::{ApiResource, Informer, WorkQueue, discover, retry_on_conflict};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Error;
use crate::context::Context;
use crate::objects::created;

const WORKERS: usize = 5;
const PAGE: u32 = 500;
/// So long a resource may be unknown: a definition may have come only just now.
const PATIENCE: Duration = Duration::from_secs(60);
const VERBS: [&str; 3] = ["update", "patch", "list"];

/// What is next for a migration.
#[derive(Debug, PartialEq)]
pub(crate) enum Step {
    Nothing,
    /// It is its turn.
    Begin,
    /// It has to be known which objects were there when it began.
    Checkpoint,
    /// What was written up to this resource version is written anew.
    Migrate(String),
    /// It has ended and makes way for the next.
    MakeWay,
}

fn is(migration: &StorageVersionMigration, kind: &str) -> bool {
    let conditions = migration.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut same = conditions.filter(|condition| condition.type_ == kind);
    same.any(|condition| condition.status == "True")
}

fn has_ended(migration: &StorageVersionMigration) -> bool {
    is(migration, "Succeeded") || is(migration, "Failed")
}

fn resource(migration: &StorageVersionMigration) -> GroupResource {
    migration.spec.as_ref().map(|spec| spec.resource.clone()).unwrap_or_default()
}

/// Decides of the migration, given all that there are.
pub(crate) fn decide(migration: &StorageVersionMigration, all: &[Arc<StorageVersionMigration>]) -> Step {
    let (running, ended) = (is(migration, "Running"), has_ended(migration));
    match (running, ended) {
        (true, true) => return Step::MakeWay,
        (false, true) => return Step::Nothing,
        (true, false) => {}
        (false, false) => {
            let of = resource(migration);
            let others =
                || all.iter().filter(|other| other.uid() != migration.uid() && resource(other) == of);
            let before = |other: &StorageVersionMigration| {
                created(other).cmp(&created(migration)).then_with(|| other.name().cmp(migration.name()))
                    == Ordering::Less
            };
            let waits = others().any(|other| is(other, "Running") || !has_ended(other) && before(other));
            return if waits { Step::Nothing } else { Step::Begin };
        }
    }
    match migration.status.as_ref().and_then(|status| status.resource_version.clone()) {
        Some(version) if !version.is_empty() => Step::Migrate(version),
        _ => Step::Checkpoint,
    }
}

/// The migration with the condition; one that it has already stays as it is.
fn with_condition(
    migration: &StorageVersionMigration,
    kind: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> StorageVersionMigration {
    let mut updated = migration.clone();
    let conditions = updated.status.get_or_insert_default().conditions.get_or_insert_default();
    if !conditions.iter().any(|condition| condition.type_ == kind) {
        conditions.push(Condition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            last_transition_time: Time(now),
            observed_generation: None,
        });
    }
    updated
}

/// Whether a write that failed may do better the next time.
///
/// Upstream: pkg/controller/storageversionmigrator/storageversionmigrator.go isRetriableError
fn is_passing(error: &ClientError) -> bool {
    error.status().is_none_or(|status| matches!(status.code, 429 | 500 | 503 | 504))
}

struct Controller {
    context: Context,
    migrations: Informer<StorageVersionMigration>,
    queue: WorkQueue<String>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let migrations = context.informers.informer::<StorageVersionMigration>();
    let controller = Arc::new(Controller { migrations, queue: WorkQueue::new(), context });
    let this = controller.clone();
    controller.migrations.subscribe(move |event| {
        let of = resource(event.object());
        // What becomes of one decides whose turn it is.
        let all = this.migrations.list();
        let same = all.iter().filter(|migration| resource(migration) == of);
        same.for_each(|migration| this.queue.add(migration.name().to_owned()));
        this.queue.add(event.object().name().to_owned());
    });
    controller.context.work(&controller, &controller.queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, name: String) -> Result<(), Error> {
        let Some(migration) = self.migrations.get(&name) else { return Ok(()) };
        match decide(&migration, &self.migrations.list()) {
            Step::Nothing => Ok(()),
            Step::Begin => self.begin(&migration).await,
            Step::Checkpoint => self.checkpoint(&migration).await,
            Step::Migrate(version) => self.migrate(&migration, &version).await,
            Step::MakeWay => self.make_way(&migration).await,
        }
    }

    fn now(&self) -> Timestamp {
        self.context.clock().now()
    }

    async fn write(&self, migration: &StorageVersionMigration) -> Result<(), Error> {
        match self.migrations.update_status(migration).await {
            Err(error) if error.is_not_found() => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }

    async fn fail(&self, migration: &StorageVersionMigration, why: &str) -> Result<(), Error> {
        let reason = "StorageVersionMigrationFailed";
        self.write(&with_condition(migration, "Failed", reason, why, self.now())).await
    }

    async fn begin(&self, migration: &StorageVersionMigration) -> Result<(), Error> {
        let message = format!("Migration {} is running", migration.name());
        let mark = |_: &Value| Mark {
            status: "True",
            reason: "MigrationRunning",
            message: message.clone(),
            stored: None,
        };
        self.mark_definition(migration, mark).await?;
        let message = "The migration is running";
        self.write(&with_condition(migration, "Running", "MigrationRunning", message, self.now())).await
    }

    /// The resource in discovery. `None` when the migration is not to go on now: it failed.
    async fn find(&self, migration: &StorageVersionMigration) -> Result<Option<ApiResource>, Error> {
        let of = resource(migration);
        let (group, plural) = (of.group, of.resource);
        let (resources, undiscovered) = discover(&self.context.client).await?;
        let found = resources.into_iter().find(|found| {
            found.resource.gvr.group == group.as_str() && found.resource.gvr.resource == plural.as_str()
        });
        let Some(found) = found else {
            let age = self.now().duration_since(created(migration));
            if !undiscovered.is_empty() || Duration::try_from(age).unwrap_or_default() < PATIENCE {
                let why = "resource does not exist in our rest mapper, requeuing to attempt again";
                return Err(Error::Unfinished(why.to_owned()));
            }
            self.fail(migration, "resource does not exist in discovery").await?;
            return Ok(None);
        };
        if !VERBS.iter().all(|verb| found.can(verb)) {
            let gvr = &found.resource.gvr;
            let why = format!(
                "resource \"{}, Resource={}\" does not support discovery operations: [{}]",
                gvr.group_version(),
                gvr.resource,
                VERBS.join(" ")
            );
            self.fail(migration, &why).await?;
            return Ok(None);
        }
        Ok(Some(found))
    }

    async fn checkpoint(&self, migration: &StorageVersionMigration) -> Result<(), Error> {
        let Some(found) = self.find(migration).await? else { return Ok(()) };
        let one = ListOptions { limit: Some(1), ..Default::default() };
        let list = self.context.client.list_values(&found.resource, None, &one).await?;
        let mut updated = migration.clone();
        updated.status.get_or_insert_default().resource_version = Some(list.resource_version);
        self.write(&updated).await
    }

    async fn migrate(&self, migration: &StorageVersionMigration, version: &str) -> Result<(), Error> {
        let Some(found) = self.find(migration).await? else { return Ok(()) };
        match self.rewrite(&found, version.parse().unwrap_or(u64::MAX)).await {
            Ok(()) => {
                let reason = "StorageVersionMigrationSucceeded";
                self.write(&with_condition(migration, "Succeeded", reason, "", self.now())).await
            }
            Err(error) if is_passing(&error) || error.is_expired() => Err(error.into()),
            Err(error) => {
                let why = format!("migration encountered unhandled error: {error}");
                self.fail(migration, &why).await
            }
        }
    }

    /// Writes every object anew that was last written up to this version. What others write meanwhile is written.
    async fn rewrite(&self, found: &ApiResource, version: u64) -> Result<(), ClientError> {
        let client = &self.context.client;
        let mut page = ListOptions { limit: Some(PAGE), ..Default::default() };
        loop {
            let list = client.list_values(&found.resource, None, &page).await?;
            for object in &list.items {
                let metadata = &object["metadata"];
                let written = metadata["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok());
                if written.is_none_or(|written| written <= version) {
                    rewrite_one(client, found, metadata).await?;
                }
            }
            if list.continue_token.is_empty() {
                return Ok(());
            }
            page.continue_token = Some(list.continue_token);
        }
    }

    async fn make_way(&self, migration: &StorageVersionMigration) -> Result<(), Error> {
        let succeeded = is(migration, "Succeeded");
        self.mark_definition(migration, |definition| finished(definition, succeeded)).await?;
        let now = self.now();
        let mut updated = migration.clone();
        let conditions = updated.status.iter_mut().flat_map(|status| status.conditions.iter_mut().flatten());
        for condition in conditions.filter(|condition| condition.type_ == "Running") {
            condition.status = "False".to_owned();
            condition.reason = "MigrationCompleted".to_owned();
            condition.message = "Migration completed".to_owned();
            condition.last_transition_time = Time(now);
            condition.observed_generation = migration.metadata.generation;
        }
        self.write(&updated).await
    }

    /// Tells the definition of a custom resource about its migration, as `mark` says. Other resources have none.
    async fn mark_definition(
        &self,
        migration: &StorageVersionMigration,
        mark: impl Fn(&Value) -> Mark + Sync,
    ) -> Result<(), Error> {
        let of = resource(migration);
        let name = format!("{}.{}", of.resource, of.group);
        Ok(retry_on_conflict(|| self.mark_once(&name, &mark)).await?)
    }

    async fn mark_once(
        &self,
        name: &str,
        mark: &(impl Fn(&Value) -> Mark + Sync),
    ) -> Result<(), ClientError> {
        let gvr =
            GroupVersionResource::from_static("apiextensions.k8s.io", "v1", "customresourcedefinitions");
        let definitions = Resource { gvr, namespaced: false };
        let client = &self.context.client;
        let definition = match client.get_value(&definitions, "", name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            found => found?,
        };
        let Mark { status, reason, message, stored } = mark(&definition);
        let mut patch = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": name, "resourceVersion": definition["metadata"]["resourceVersion"]},
            "status": {"conditions": [{
                "type": "StorageMigrating",
                "status": status,
                "reason": reason,
                "message": message,
                "lastTransitionTime": self.context.clock().time(),
                "observedGeneration": definition["metadata"]["generation"],
            }]},
        });
        if let Some(stored) = stored {
            patch["status"]["storedVersions"] = stored;
        }
        let patched =
            client.patch_value(&definitions, "", name, Some("status"), PatchType::Apply, &patch).await;
        patched.map(drop)
    }
}

/// What a definition says of its migration.
struct Mark {
    status: &'static str,
    reason: &'static str,
    message: String,
    /// The versions that are stored, where that is known.
    stored: Option<Value>,
}

/// A write that changes nothing, of exactly this object.
async fn rewrite_one(client: &Client, found: &ApiResource, metadata: &Value) -> Result<(), ClientError> {
    let text = |field: &str| metadata[field].as_str().unwrap_or_default();
    let patch = json!({
        "apiVersion": found.resource.gvr.group_version().to_string(),
        "kind": found.kind,
        "metadata": {"uid": text("uid"), "resourceVersion": text("resourceVersion")},
    });
    let (namespace, name) = (text("namespace"), text("name"));
    match client.patch_value(&found.resource, namespace, name, None, PatchType::Apply, &patch).await {
        // Somebody else has written it.
        Err(error) if error.is_conflict() => Ok(()),
        patched => patched.map(drop),
    }
}

/// What a definition says after a migration. Which versions are stored is known only if it did not change meanwhile.
fn finished(definition: &Value, succeeded: bool) -> Mark {
    let conditions = definition["status"]["conditions"].as_array().into_iter().flatten();
    let mut migrating = conditions.filter(|condition| condition["type"] == "StorageMigrating");
    let generation = &definition["metadata"]["generation"];
    let unchanged = migrating.next().is_some_and(|condition| condition["observedGeneration"] == *generation);
    let versions = definition["spec"]["versions"].as_array().into_iter().flatten();
    let mut stored =
        versions.filter(|version| version["storage"] == true).map(|version| json!([version["name"]]));
    let (reason, message) = match (succeeded, unchanged) {
        (false, _) => ("MigrationFailed", "The migration has failed"),
        (true, true) => {
            ("MigrationSucceeded", "The migration has succeeded and the stored versions have been updated")
        }
        (true, false) => (
            "MigrationSucceeded",
            "The migration has succeeded but the stored versions have not been updated due to a generation mismatch",
        ),
    };
    let stored = if unchanged { stored.next() } else { None };
    Mark { status: "False", reason, message: message.to_owned(), stored }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn migration(
        name: &str,
        age: i64,
        of: &str,
        conditions: &[&str],
        version: &str,
    ) -> Arc<StorageVersionMigration> {
        let created = Timestamp::from_second(1_000 - age).unwrap().to_string();
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|kind| {
                json!({"type": kind, "status": "True", "reason": "R", "message": "", "lastTransitionTime": created})
            })
            .collect();
        let migration = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": created},
            "spec": {"resource": {"group": "", "resource": of}},
            "status": {"conditions": conditions, "resourceVersion": version},
        });
        Arc::new(StorageVersionMigration::from_value(migration).unwrap())
    }

    #[test]
    fn one_of_a_resource_runs_at_a_time_the_oldest_first() {
        let check = |all: &[Arc<StorageVersionMigration>], expected: &[Step]| {
            let steps: Vec<Step> = all.iter().map(|migration| decide(migration, all)).collect();
            assert_eq!(steps, expected);
        };
        let of = |name: &str, age: i64, conditions: &[&str]| migration(name, age, "secrets", conditions, "");
        check(&[of("young", 1, &[]), of("old", 9, &[])], &[Step::Nothing, Step::Begin]);
        check(&[of("b", 5, &[]), of("a", 5, &[])], &[Step::Nothing, Step::Begin]);
        check(&[of("young", 1, &["Running"]), of("old", 9, &[])], &[Step::Checkpoint, Step::Nothing]);
        check(
            &[of("young", 1, &[]), of("old", 9, &["Running", "Succeeded"])],
            &[Step::Nothing, Step::MakeWay],
        );
        check(&[of("young", 1, &[]), of("old", 9, &["Failed"])], &[Step::Begin, Step::Nothing]);
        check(
            &[of("a", 5, &[]), migration("b", 9, "configmaps", &["Running"], "7")],
            &[Step::Begin, Step::Migrate("7".into())],
        );
    }

    #[test]
    fn stored_versions_are_told_when_the_definition_is_the_same() {
        let definition = |observed: i64| {
            json!({"metadata": {"generation": 3},
                "spec": {"versions": [{"name": "v1", "storage": false}, {"name": "v2", "storage": true}]},
                "status": {"conditions": [{"type": "StorageMigrating", "observedGeneration": observed}]}})
        };
        assert_eq!(finished(&definition(3), true).stored, Some(json!(["v2"])));
        assert_eq!(finished(&definition(2), true).stored, None);
        assert_eq!(finished(&definition(2), false).reason, "MigrationFailed");
    }
}
