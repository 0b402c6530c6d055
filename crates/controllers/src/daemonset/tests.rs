use serde_json::{Value, json};

use super::*;
use crate::objects::tests::{arcs, at, pod};

fn set(strategy: Value) -> DaemonSet {
    DaemonSet::from_value(json!({
        "metadata": {"namespace": "ns", "name": "d", "uid": "d", "generation": 1},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}}, "updateStrategy": strategy,
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c"}]}},
        },
        "status": {
            "currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
            "observedGeneration": 1,
        },
    }))
    .unwrap()
}

fn rolling(surge: i32, unavailable: i32) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

fn nodes(count: usize) -> Vec<Arc<Node>> {
    arcs((1..=count).map(|n| Node::from_value(json!({"metadata": {"name": format!("n{n}")}})).unwrap()))
}

/// `name@node:hash`, with `!` before what is not ready, `-` what is going, `F` what has failed.
fn pods(text: &str) -> Vec<Arc<Pod>> {
    arcs(text.split_whitespace().map(|text| {
        let (name, rest) = text.split_once('@').unwrap();
        let (node, hash) = rest.split_once(':').unwrap();
        let phase = if name.contains('F') { "Failed" } else { "Running" };
        let mut pod = pod(name.trim_start_matches(['!', '-', 'F']), phase, !name.contains(['!', 'F']));
        pod.spec.as_mut().unwrap().node_name = Some(node.to_owned());
        pod.metadata.labels = Some([(HASH_LABEL.to_owned(), hash.to_owned())].into());
        if name.contains('-') {
            pod.metadata.deletion_timestamp = pod.metadata.creation_timestamp.clone();
        }
        pod
    }))
}

fn check(strategy: Value, node_count: usize, present: &str, create: &str, delete: &str) {
    let (set, nodes, pods) = (set(strategy), nodes(node_count), pods(present));
    let backoff = Backoff::default();
    let observed =
        Observed { set: &set, nodes: &nodes, pods: &pods, hash: "new", backoff: &backoff, now: at(100) };
    let plan = decide(&observed);
    assert_eq!(plan.create.join(" "), create, "created of {present}");
    assert_eq!(
        plan.delete.iter().map(|pod| pod.name()).collect::<Vec<_>>().join(" "),
        delete,
        "of {present}"
    );
}

#[test]
fn one_pod_on_each_node() {
    check(rolling(0, 1), 2, "", "n1 n2", "");
    check(rolling(0, 1), 2, "a@n1:new", "n2", "");
    check(rolling(0, 1), 1, "a@n1:new b@n1:new", "", "b");
    check(rolling(0, 1), 1, "-a@n1:new", "", "");
    check(rolling(0, 1), 1, "Fa@n1:new", "", "a");
    check(rolling(1, 0), 1, "-a@n1:new", "n1", "");
}

#[test]
fn old_pods_are_replaced_within_the_limits() {
    check(json!({"type": "OnDelete"}), 2, "a@n1:old b@n2:old", "", "");
    check(rolling(0, 1), 3, "a@n1:old b@n2:old c@n3:old", "", "a");
    check(rolling(0, 2), 3, "a@n1:old b@n2:old c@n3:old", "", "a b");
    check(rolling(0, 1), 3, "a@n1:old !b@n2:new c@n3:old", "", "");
    check(rolling(0, 1), 3, "a@n1:old b@n2:new !c@n3:old", "", "c");
    check(rolling(0, 1), 2, "a@n1:old -b@n2:old", "", "");
    check(rolling(0, 0), 2, "a@n1:old b@n2:old", "", "a");
    check(rolling(0, 1), 2, "a@n1:new b@n2:new", "", "");
}

#[test]
fn surging_starts_the_new_before_the_old_goes() {
    check(rolling(1, 0), 2, "a@n1:old b@n2:old", "n1", "");
    check(rolling(1, 0), 2, "a@n1:old !c@n1:new b@n2:old", "", "");
    check(rolling(1, 0), 2, "a@n1:old c@n1:new b@n2:old", "", "a");
    check(rolling(1, 0), 2, "!a@n1:old b@n2:old", "n1 n2", "");
    check(rolling(2, 0), 2, "a@n1:old b@n2:old", "n1 n2", "");
}

#[test]
fn pods_that_wait_for_a_node_that_is_gone_go_too() {
    let set = set(rolling(0, 1));
    let mut waiting = pod("a", "Pending", false);
    super::super::placement::tie_to_node(waiting.spec.as_mut().unwrap(), "gone");
    let (backoff, pods) = (Backoff::default(), arcs([waiting]));
    let observed =
        Observed { set: &set, nodes: &[], pods: &pods, hash: "new", backoff: &backoff, now: at(0) };
    assert_eq!(decide(&observed).delete.len(), 1);
}

#[test]
fn a_node_that_fails_pods_is_given_more_time_each_time() {
    let (set, nodes, pods) = (set(rolling(0, 1)), nodes(1), pods("Fa@n1:new"));
    let mut backoff = Backoff::default();
    for (seconds, deletes, again) in
        [(0, 1, None), (0, 0, Some(1)), (1, 1, None), (2, 0, Some(2)), (3, 1, None), (6, 0, Some(4))]
    {
        let now = at(seconds);
        let observed =
            Observed { set: &set, nodes: &nodes, pods: &pods, hash: "new", backoff: &backoff, now };
        let plan = decide(&observed);
        assert_eq!((plan.delete.len(), plan.again), (deletes, again.map(Duration::from_secs)), "{seconds}");
        assert_eq!(plan.events.len(), deletes);
        for key in plan.failed {
            backoff.next(&key, now);
        }
    }
}

#[test]
fn the_status_counts_nodes() {
    let (set, nodes, backoff) = (set(rolling(0, 1)), nodes(3), Backoff::default());
    let pods = pods("a@n1:new !b@n2:old");
    let observed =
        Observed { set: &set, nodes: &nodes, pods: &pods, hash: "new", backoff: &backoff, now: at(100) };
    let (status, _) = status(&observed, None);
    let numbers = [
        status.desired_number_scheduled,
        status.current_number_scheduled,
        status.number_ready,
        status.updated_number_scheduled.unwrap(),
        status.number_available.unwrap(),
        status.number_unavailable.unwrap(),
        status.number_misscheduled,
    ];
    assert_eq!(numbers, [3, 2, 1, 1, 1, 2, 0]);
}
