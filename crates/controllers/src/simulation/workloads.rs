//! DaemonSets, StatefulSets, Jobs, CronJobs and quotas in the simulated cluster.

use super::*;

const PODS: &str = "v1/pods";

fn template(image: &str) -> Value {
    json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

async fn set_image<T: Object>(cluster: &Cluster, name: &str, image: &str) {
    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    cluster.client.patch::<T>("default", name, None, client::PatchType::Merge, &patch).await.unwrap();
}

fn names(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|object| object["metadata"]["name"].as_str().unwrap()).collect()
}

fn images(objects: &[Value]) -> Vec<&str> {
    objects.iter().map(|pod| pod["spec"]["containers"][0]["image"].as_str().unwrap()).collect()
}

/// Lets every pod that runs succeed.
fn succeed(cluster: &Cluster) {
    let mut state = cluster.server.state.lock().unwrap();
    let running = state.1.iter().filter(|(key, pod)| key.0 == PODS && pod["status"]["phase"] == "Running");
    let running: Vec<_> = running.map(|(key, pod)| (key.clone(), pod.clone())).collect();
    for (key, mut pod) in running {
        pod["status"] = json!({"phase": "Succeeded"});
        cluster.server.commit(&mut state, key, pod);
    }
}

#[tokio::test(start_paused = true)]
async fn a_daemon_runs_on_the_node_and_is_rolled_over() {
    let cluster = begin().await;
    let daemon = json!({
        "metadata": {"namespace": "default", "name": "d"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}}, "template": template("one"),
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}},
        },
    });
    cluster.create::<api::apps::v1::DaemonSet>(daemon).await;
    cluster.settle().await;
    assert_eq!(images(&cluster.all(PODS)), ["one"]);
    set_image::<api::apps::v1::DaemonSet>(&cluster, "d", "two").await;
    cluster.settle().await;
    assert_eq!(images(&cluster.all(PODS)), ["two"]);
    assert_eq!(cluster.all("apps/v1/controllerrevisions").len(), 2);
    let status = cluster.all("apps/v1/daemonsets")[0]["status"].clone();
    assert_eq!((&status["numberAvailable"], &status["updatedNumberScheduled"]), (&json!(1), &json!(1)));
    // Going back makes the old revision the newest, and no third one.
    set_image::<api::apps::v1::DaemonSet>(&cluster, "d", "one").await;
    cluster.settle().await;
    assert_eq!(images(&cluster.all(PODS)), ["one"]);
    let revisions = cluster.all("apps/v1/controllerrevisions");
    let mut numbers: Vec<_> =
        revisions.iter().map(|revision| revision["revision"].as_i64().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3]);
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stateful_set_keeps_names_and_claims() {
    let cluster = begin().await;
    let set = json!({
        "metadata": {"namespace": "default", "name": "s"},
        "spec": {
            "replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "serviceName": "s", "template": template("one"),
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {}}],
        },
    });
    cluster.create::<api::apps::v1::StatefulSet>(set).await;
    cluster.settle().await;
    assert_eq!(names(&cluster.all(PODS)), ["s-0", "s-1", "s-2"]);
    assert_eq!(names(&cluster.all("v1/persistentvolumeclaims")), ["data-s-0", "data-s-1", "data-s-2"]);
    set_image::<api::apps::v1::StatefulSet>(&cluster, "s", "two").await;
    cluster.settle().await;
    assert_eq!(images(&cluster.all(PODS)), ["two", "two", "two"]);
    let status = cluster.all("apps/v1/statefulsets")[0]["status"].clone();
    assert_eq!(status["currentRevision"], status["updateRevision"], "{status}");
    let scale = json!({"spec": {"replicas": 1}});
    let scaled: Result<api::apps::v1::StatefulSet, _> =
        cluster.client.patch("default", "s", None, client::PatchType::Merge, &scale).await;
    scaled.unwrap();
    cluster.settle().await;
    assert_eq!(names(&cluster.all(PODS)), ["s-0"]);
    assert_eq!(cluster.all("v1/persistentvolumeclaims").len(), 3);
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_job_completes_is_counted_and_goes() {
    let cluster = begin().await;
    let job = json!({
        "metadata": {"namespace": "default", "name": "j"},
        "spec": {
            "completions": 3, "parallelism": 2, "backoffLimit": 6, "ttlSecondsAfterFinished": 60,
            "selector": {"matchLabels": {"app": "web"}}, "template": template("one"),
        },
    });
    cluster.create::<api::batch::v1::Job>(job).await;
    cluster.settle().await;
    assert_eq!(cluster.all(PODS).len(), 2);
    for _ in 0..2 {
        succeed(&cluster);
        cluster.settle().await;
    }
    let status = cluster.all("batch/v1/jobs")[0]["status"].clone();
    assert_eq!((&status["succeeded"], &status["active"]), (&json!(3), &Value::Null), "{status}");
    let kinds: Vec<_> = status["conditions"].as_array().unwrap().iter().map(|c| c["type"].clone()).collect();
    assert_eq!(kinds, ["SuccessCriteriaMet", "Complete"]);
    assert_eq!(cluster.all(PODS).len(), 3);
    assert!(
        cluster
            .all(PODS)
            .iter()
            .all(|pod| pod["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty))
    );
    tokio::time::sleep(Duration::from_secs(61)).await;
    cluster.settle().await;
    assert!(cluster.all("batch/v1/jobs").is_empty() && cluster.all(PODS).is_empty());
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_job_lets_its_pods_go() {
    let cluster = begin().await;
    let job = json!({
        "metadata": {"namespace": "default", "name": "j"},
        "spec": {
            "completions": 2, "parallelism": 2, "backoffLimit": 6,
            "selector": {"matchLabels": {"app": "web"}}, "template": template("one"),
        },
    });
    cluster.create::<api::batch::v1::Job>(job).await;
    cluster.settle().await;
    cluster.client.delete::<api::batch::v1::Job>("default", "j", &Default::default()).await.unwrap();
    cluster.settle().await;
    assert!(cluster.all("batch/v1/jobs").is_empty() && cluster.all(PODS).is_empty());
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_cron_job_makes_a_job_a_minute() {
    let cluster = begin().await;
    let job = json!({
        "completions": 1, "parallelism": 1, "backoffLimit": 6,
        "selector": {"matchLabels": {"app": "web"}}, "template": template("one"),
    });
    let cron_job = json!({
        "metadata": {"namespace": "default", "name": "c"},
        "spec": {
            "schedule": "* * * * *", "concurrencyPolicy": "Allow", "successfulJobsHistoryLimit": 1,
            "jobTemplate": {"spec": job},
        },
    });
    cluster.create::<api::batch::v1::CronJob>(cron_job).await;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        for _ in 0..2 {
            cluster.settle().await;
            succeed(&cluster);
        }
        cluster.settle().await;
        seen.extend(names(&cluster.all("batch/v1/jobs")).into_iter().map(str::to_owned));
    }
    let minute = 1_767_225_600 / 60;
    assert_eq!(
        seen.into_iter().collect::<Vec<_>>(),
        [format!("c-{}", minute + 1), format!("c-{}", minute + 2)]
    );
    assert_eq!(cluster.all("batch/v1/jobs").len(), 1);
    let status = cluster.all("batch/v1/cronjobs")[0]["status"].clone();
    assert_eq!(
        (&status["lastScheduleTime"], &status["active"]),
        (&json!("2026-01-01T00:02:00Z"), &Value::Null)
    );
    cluster.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_quota_tells_what_is_used() {
    let cluster = begin().await;
    let hard = json!({"pods": "10", "count/deployments.apps": "5"});
    let quota = json!({"metadata": {"namespace": "default", "name": "q"}, "spec": {"hard": hard}});
    cluster.create::<api::core::v1::ResourceQuota>(quota).await;
    cluster.create::<api::apps::v1::Deployment>(deployment("one", 3)).await;
    cluster.settle().await;
    let used = cluster.all("v1/resourcequotas")[0]["status"]["used"].clone();
    assert_eq!(used, json!({"pods": "3", "count/deployments.apps": "1"}));
    cluster.stop().await;
}
