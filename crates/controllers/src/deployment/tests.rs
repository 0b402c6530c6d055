use serde_json::json;

use super::*;
use crate::objects::tests::{arcs, at};

fn deployment(replicas: i32, surge: &str, unavailable: &str) -> Deployment {
    let number = |text: &str| text.parse::<i32>().map_or_else(|_| json!(text), |number| json!(number));
    let rolling = json!({"maxSurge": number(surge), "maxUnavailable": number(unavailable)});
    Deployment::from_value(json!({
        "metadata": {"namespace": "ns", "name": "web", "uid": "d", "generation": 1},
        "spec": {
            "replicas": replicas,
            "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "new"}]}},
        },
    }))
    .unwrap()
}

/// A ReplicaSet with an image, of a size, so many of it available.
fn set(image: &str, revision: i64, size: i32, available: i32, deployment: &Deployment) -> ReplicaSet {
    ReplicaSet::from_value(json!({
        "metadata": {
            "namespace": "ns", "name": format!("web-{image}"), "uid": image, "generation": 1,
            "creationTimestamp": at(revision).to_string(),
            "annotations": {
                REVISION: revision.to_string(),
                DESIRED: wanted(deployment).to_string(),
                MAX: (wanted(deployment) + max_surge(deployment)).to_string(),
            },
        },
        "spec": {
            "replicas": size,
            "selector": {"matchLabels": {"app": "web", HASH_LABEL: image}},
            "template": {
                "metadata": {"labels": {"app": "web", HASH_LABEL: image}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
        "status": {"replicas": size, "readyReplicas": available, "availableReplicas": available, "observedGeneration": 1},
    }))
    .unwrap()
}

/// What the plan does, in words.
fn words(plan: &Plan) -> String {
    let mut words: Vec<String> =
        plan.create.iter().map(|set| format!("create {}", replicas_of(set))).collect();
    words.extend(plan.update.iter().map(|(set, _)| format!("{}={}", set.name(), replicas_of(set))));
    words.extend(plan.delete.iter().map(|name| format!("delete {name}")));
    words.join(" ")
}

#[test]
fn a_rolling_update_goes_step_by_step() {
    // size and availability of old and new, then what is done
    let check = |surge, unavailable, old: (i32, i32), new: Option<(i32, i32)>, expected: &str| {
        let deployment = deployment(10, surge, unavailable);
        let old = set("old", 1, old.0, old.1, &deployment);
        let new = new.map(|new| set("new", 2, new.0, new.1, &deployment));
        let plan = decide(&deployment, &arcs([old].into_iter().chain(new)), false, at(100));
        assert_eq!(words(&plan), expected);
    };
    check("25%", "25%", (10, 10), None, "create 3");
    check("25%", "25%", (10, 10), Some((3, 0)), "web-old=8");
    check("25%", "25%", (8, 8), Some((3, 0)), "web-new=5");
    check("25%", "25%", (8, 8), Some((5, 0)), "");
    check("25%", "25%", (8, 8), Some((5, 3)), "web-old=5");
    check("25%", "25%", (0, 0), Some((10, 10)), "");
    check("1", "0", (10, 10), Some((1, 0)), "");
    check("1", "0", (10, 10), Some((1, 1)), "web-old=9");
    // Unavailable old pods go first, and may go at once.
    check("0", "1", (10, 7), Some((0, 0)), "web-old=9");
    // Neither surge nor unavailability: one may be unavailable.
    check("0", "0", (10, 10), Some((0, 0)), "web-old=9");
}

#[test]
fn sizes_change_in_proportion() {
    let check = |wanted: i32, old: i32, new: i32, expected: &str| {
        let before = deployment(10, "20%", "0");
        let now = deployment(wanted, "20%", "0");
        let sets = [set("old", 1, old, old, &before), set("new", 2, new, new, &before)];
        assert_eq!(words(&decide(&now, &arcs(sets), false, at(100))), expected);
    };
    check(20, 10, 2, "web-old=20 web-new=4");
    check(5, 10, 2, "web-old=5 web-new=1");
    check(0, 10, 2, "web-old=0 web-new=0");
    check(20, 0, 10, "web-new=20");
}

#[test]
fn recreate_waits_for_old_pods() {
    let mut deployment = deployment(3, "0", "0");
    deployment.spec.as_mut().unwrap().strategy =
        Some(api::apps::v1::DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None });
    let words_of = |old: i32, run: bool| {
        words(&decide(&deployment, &arcs([set("old", 1, old, old, &deployment)]), run, at(100)))
    };
    assert_eq!(words_of(3, true), "web-old=0");
    assert_eq!(words_of(0, true), "");
    assert_eq!(words_of(0, false), "create 3");
}

#[test]
fn a_new_template_of_old_takes_a_new_revision() {
    let deployment = deployment(1, "1", "0");
    let sets = [set("new", 1, 0, 0, &deployment), set("other", 2, 1, 1, &deployment)];
    let plan = decide(&deployment, &arcs(sets), false, at(100));
    let (new, event) = &plan.update[0];
    assert_eq!(annotation(new, REVISION), Some("3"));
    assert_eq!(annotation(new, REVISION_HISTORY), Some("1"));
    assert_eq!(event.as_deref(), Some("Scaled up replica set web-new from 0 to 1"));
    assert_eq!(plan.revision.as_deref(), Some("3"));
}

#[test]
fn a_finished_rollout_keeps_the_history_limit() {
    let mut deployment = deployment(1, "1", "0");
    let sets =
        [set("a", 1, 0, 0, &deployment), set("b", 2, 0, 0, &deployment), set("new", 3, 1, 1, &deployment)];
    let first = decide(&deployment, &arcs(sets.clone()), false, at(100));
    deployment.status = first.status;
    assert_eq!(words(&decide(&deployment, &arcs(sets), false, at(101))), "delete web-a");
}

#[test]
fn conditions_tell_of_progress_and_its_lack() {
    let mut deployment = deployment(1, "1", "0");
    let reason = |status: &DeploymentStatus| find(status, "Progressing").unwrap().reason.clone().unwrap();

    let plan = decide(&deployment, &[], false, at(0));
    let status = plan.status.unwrap();
    assert_eq!(reason(&status), "NewReplicaSetCreated");
    assert_eq!(find(&status, "Available").unwrap().reason.as_deref(), Some("MinimumReplicasUnavailable"));
    deployment.status = Some(status);

    let starting = [set("new", 1, 1, 0, &deployment)];
    let plan = decide(&deployment, &arcs(starting.clone()), false, at(10));
    assert_eq!(plan.again, Some(Duration::from_secs(601)));
    let status = plan.status.unwrap();
    assert_eq!(reason(&status), "ReplicaSetUpdated");
    assert_eq!(
        find(&status, "Progressing").unwrap().message.as_deref(),
        Some("ReplicaSet \"web-new\" is progressing.")
    );
    deployment.status = Some(status);

    let stuck = decide(&deployment, &arcs(starting), false, at(611)).status.unwrap();
    assert_eq!(reason(&stuck), "ProgressDeadlineExceeded");

    let done = decide(&deployment, &arcs([set("new", 1, 1, 1, &deployment)]), false, at(20)).status.unwrap();
    assert_eq!(reason(&done), "NewReplicaSetAvailable");
    assert_eq!(find(&done, "Available").unwrap().reason.as_deref(), Some("MinimumReplicasAvailable"));
    deployment.status = Some(done);
    let again = decide(&deployment, &arcs([set("new", 1, 1, 1, &deployment)]), false, at(30));
    assert!(again.status.is_none() && again.again.is_none());
}

#[test]
fn pausing_stops_the_rollout() {
    let mut deployment = deployment(10, "25%", "25%");
    deployment.spec.as_mut().unwrap().paused = Some(true);
    let plan = decide(&deployment, &arcs([set("old", 1, 10, 10, &deployment)]), false, at(0));
    assert_eq!(words(&plan), "");
    let status = plan.status.unwrap();
    assert_eq!(find(&status, "Progressing").unwrap().reason.as_deref(), Some("DeploymentPaused"));
}
