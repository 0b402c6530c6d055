use api::core::v1::{PodSpec, Probe};

use super::*;
use crate::pod_state::SandboxRecord;

/// `init` names ending in `*` are sidecars.
fn pod(policy: &str, init: &[&str], regular: &[&str]) -> Pod {
    let container = |name: &&str| Container {
        name: name.trim_end_matches('*').into(),
        image: Some("image".into()),
        restart_policy: name.ends_with('*').then(|| "Always".into()),
        ..Default::default()
    };
    let spec = PodSpec {
        restart_policy: Some(policy.into()),
        init_containers: Some(init.iter().map(container).collect()),
        containers: regular.iter().map(container).collect(),
        ..Default::default()
    };
    Pod { spec: Some(spec), ..Default::default() }
}

fn record(name: &str, state: State, exit_code: i32) -> ContainerRecord {
    ContainerRecord { id: format!("id-{name}"), name: name.into(), state, exit_code, ..Default::default() }
}

fn with_sandbox(containers: Vec<ContainerRecord>) -> PodState {
    let sandbox =
        SandboxRecord { id: "box".into(), ready: true, ips: vec!["10.42.0.2".into()], ..Default::default() };
    PodState { sandboxes: vec![sandbox], containers }
}

/// A plan in one line: what a table can hold.
fn words(plan: &Plan) -> String {
    let mut words = Vec::new();
    if plan.kill_pod {
        words.push("kill-pod".to_owned());
    }
    if plan.create_sandbox {
        words.push(format!("sandbox#{}", plan.attempt));
    }
    words
        .extend(plan.reset.iter().map(|r| format!("reset[{}{}]", if r.kill { "kill " } else { "" }, r.name)));
    words.extend(plan.kill.iter().map(|k| format!("kill[{}]", k.message)));
    words.extend(plan.start_ephemeral.iter().map(|i| format!("ephemeral{i}")));
    words.extend(plan.start_init.iter().map(|i| format!("init{i}")));
    words.extend(plan.start.iter().map(|i| format!("start{i}")));
    words.join(" ")
}

#[track_caller]
fn check(pod: &Pod, state: &PodState, probes: &ProbeResults, want: &str) {
    assert_eq!(words(&compute_pod_actions(pod, state, probes)), want, "{state:?}");
}

#[test]
fn plans_without_a_sandbox() {
    let none = ProbeResults::default();
    let dead_box = |containers| {
        let mut state = with_sandbox(containers);
        state.sandboxes[0].ready = false;
        state
    };
    let done = || vec![record("a", State::Exited, 0)];
    check(&pod("Always", &[], &["a", "b"]), &PodState::default(), &none, "kill-pod sandbox#0 start0 start1");
    check(&pod("Always", &["i"], &["a"]), &PodState::default(), &none, "kill-pod sandbox#0 init0");
    check(&pod("Always", &[], &["a"]), &dead_box(done()), &none, "kill-pod sandbox#1 start0");
    check(&pod("Never", &[], &["a"]), &dead_box(done()), &none, "kill-pod");
    check(&pod("OnFailure", &[], &["a"]), &dead_box(done()), &none, "kill-pod");
    check(&pod("OnFailure", &[], &["a", "b"]), &dead_box(done()), &none, "kill-pod sandbox#1 start1");
    check(&pod("Never", &[], &["a"]), &dead_box(vec![]), &none, "kill-pod sandbox#1 start0");
    let mut no_address = with_sandbox(vec![]);
    no_address.sandboxes[0].ips.clear();
    check(&pod("Always", &[], &["a"]), &no_address, &none, "kill-pod sandbox#1 start0");
}

#[test]
fn plans_for_regular_containers() {
    let none = ProbeResults::default();
    let running = || record("a", State::Running, 0);
    let cases = [
        ("Always", vec![], "start0"),
        ("Always", vec![running()], ""),
        ("Always", vec![record("a", State::Exited, 0)], "start0"),
        ("OnFailure", vec![record("a", State::Exited, 0)], "kill-pod"),
        ("OnFailure", vec![record("a", State::Exited, 1)], "start0"),
        ("Never", vec![record("a", State::Exited, 1)], "kill-pod"),
        ("Never", vec![record("a", State::Created, 0)], "start0"),
        (
            "Always",
            vec![record("a", State::Unknown, 0)],
            "kill[Container is in \"unknown\" state, try killing it before restart] start0",
        ),
        (
            "Always",
            vec![ContainerRecord { hash: "1".into(), ..running() }],
            "kill[Container a definition changed, will be restarted] start0",
        ),
    ];
    for (policy, containers, want) in cases {
        check(&pod(policy, &[], &["a"]), &with_sandbox(containers), &none, want);
    }
}

#[test]
fn failed_probes_kill_and_restart_by_policy() {
    let failed = |id: &str| HashMap::from([(id.to_owned(), ProbeResult::Failure)]);
    let live = ProbeResults { liveness: failed("id-a"), ..Default::default() };
    let startup = ProbeResults { startup: failed("id-a"), ..Default::default() };
    let state = with_sandbox(vec![record("a", State::Running, 0)]);
    let restarted = "kill[Container a failed liveness probe, will be restarted] start0";
    check(&pod("Always", &[], &["a"]), &state, &live, restarted);
    check(&pod("Never", &[], &["a"]), &state, &live, "kill-pod kill[Container a failed liveness probe]");
    let restarted = "kill[Container a failed startup probe, will be restarted] start0";
    check(&pod("OnFailure", &[], &["a"]), &state, &startup, restarted);
}

#[test]
fn plans_for_init_containers() {
    let none = ProbeResults::default();
    let cases = [
        (vec![], "init0"),
        (vec![record("i", State::Running, 0)], ""),
        (vec![record("i", State::Exited, 0)], "init1"),
        (vec![record("i", State::Exited, 1)], "init0"),
        (vec![record("i", State::Exited, 0), record("j", State::Running, 0)], ""),
        (vec![record("j", State::Exited, 0)], "start0"),
        (vec![record("a", State::Running, 0)], ""),
    ];
    for (containers, want) in cases {
        check(&pod("Always", &["i", "j"], &["a"]), &with_sandbox(containers), &none, want);
    }
    let failed = with_sandbox(vec![record("i", State::Exited, 1)]);
    check(&pod("Never", &["i"], &["a"]), &failed, &none, "kill-pod");
}

#[test]
fn sidecars_start_in_order_and_restart_beside_the_rest() {
    let none = ProbeResults::default();
    let with = |names: &[(&str, State)]| with_sandbox(names.iter().map(|(n, s)| record(n, *s, 0)).collect());
    let one = pod("Never", &["s*", "i"], &["a"]);
    check(&one, &with(&[("s", State::Running)]), &none, "init1");
    check(&one, &with(&[("s", State::Running), ("i", State::Exited)]), &none, "start0");
    check(&one, &with(&[("s", State::Exited), ("i", State::Running)]), &none, "init0");
    check(&one, &with(&[("s", State::Exited), ("i", State::Exited), ("a", State::Running)]), &none, "init0");
    check(
        &one,
        &with(&[("s", State::Exited), ("i", State::Exited), ("a", State::Exited)]),
        &none,
        "kill-pod",
    );

    let mut probed = pod("Always", &["s*"], &["a"]);
    let spec = probed.spec.as_mut().expect("built above");
    spec.init_containers.as_mut().expect("built above")[0].startup_probe = Some(Probe::default());
    let state = with(&[("s", State::Running)]);
    check(&probed, &state, &none, "");
    let result = |r| ProbeResults { startup: HashMap::from([("id-s".to_owned(), r)]), ..Default::default() };
    check(&probed, &state, &result(ProbeResult::Success), "start0");
    check(
        &probed,
        &state,
        &result(ProbeResult::Failure),
        "kill[Init container s failed startup probe] init0",
    );
}

#[test]
fn a_container_that_asks_for_it_has_all_begin_anew() {
    let none = ProbeResults::default();
    let mut pod = pod("Never", &["i", "s*"], &["a", "b"]);
    let rule = serde_json::json!({"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}});
    let container = &mut pod.spec.as_mut().unwrap().containers[1];
    container.restart_policy = Some("Never".into());
    container.restart_policy_rules = Some(vec![serde_json::from_value(rule).unwrap()]);
    let all = |code| {
        let old = record("a", State::Exited, 0);
        let mut all = vec![record("i", State::Exited, 0), record("s", State::Running, 0)];
        all.extend([record("a", State::Running, 0), record("b", State::Exited, code), old]);
        with_sandbox(all)
    };
    check(&pod, &all(42), &none, "reset[kill a] reset[a] reset[i] reset[kill s] reset[b]");
    check(&pod, &all(1), &none, "");
    check(&pod, &with_sandbox(vec![]), &none, "init0");
}
