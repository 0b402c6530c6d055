use std::fmt::Write;

use api::core::v1::{Container, ContainerStatus, PodReadinessGate, PodSpec};
use expect_test::{Expect, expect};

use super::*;
use crate::pod_state::{ContainerRecord, SandboxRecord, State};

fn pod(policy: &str, init: &[&str], regular: &[&str]) -> Pod {
    let container = |name: &&str| Container {
        name: name.trim_end_matches('*').into(),
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

struct Case {
    pod: Pod,
    old: PodStatus,
    state: PodState,
    waiting: HashMap<String, Waiting>,
    readiness: Readiness,
    terminal: bool,
    verdict: Option<Verdict>,
}

impl Case {
    fn new(pod: Pod, state: PodState) -> Self {
        Case {
            pod,
            old: PodStatus::default(),
            state,
            waiting: HashMap::new(),
            readiness: Readiness::default(),
            terminal: false,
            verdict: None,
        }
    }

    fn status(&self) -> PodStatus {
        generate(&Facts {
            resize: &[],
            pod: &self.pod,
            old: &self.old,
            state: &self.state,
            waiting: &self.waiting,
            readiness: &self.readiness,
            devices: &HashMap::new(),
            terminal: self.terminal,
            verdict: self.verdict.as_ref(),
            runtime_name: "trierarch",
            host_ips: &["192.0.2.1".to_owned()],
            recursive_read_only: true,
            now: Timestamp::UNIX_EPOCH,
        })
    }

    #[track_caller]
    fn check(&self, want: Expect) {
        want.assert_eq(&words(&self.status()));
    }
}

fn state_words(state: Option<&api::core::v1::ContainerState>) -> String {
    let Some(state) = state else { return "-".into() };
    if state.running.is_some() {
        return "running".into();
    }
    if let Some(t) = &state.terminated {
        return format!("exited {} {}", t.exit_code, t.reason.clone().unwrap_or_default())
            .trim_end()
            .to_owned();
    }
    let waiting = state.waiting.clone().unwrap_or_default();
    let words =
        format!("waiting {} {}", waiting.reason.unwrap_or_default(), waiting.message.unwrap_or_default());
    words.trim_end().to_owned()
}

fn words(status: &PodStatus) -> String {
    let mut out = String::new();
    let reason = status.reason.clone().unwrap_or_default();
    writeln!(out, "{} {reason}", status.phase.clone().unwrap_or_default()).unwrap();
    let of = |s: &ContainerStatus| {
        let last = state_words(s.last_state.as_ref());
        format!(
            "  {} ready={} restarts={} {} | {last}",
            s.name,
            s.ready,
            s.restart_count,
            state_words(s.state.as_ref())
        )
    };
    for container in pod::all_statuses(status) {
        writeln!(out, "{}", of(container)).unwrap();
    }
    for c in status.conditions.iter().flatten().filter(|c| c.status != "True") {
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        writeln!(out, "  not {}: {} {}", c.type_, text(&c.reason), text(&c.message)).unwrap();
    }
    out.lines().map(|l| l.trim_end().to_owned() + "\n").collect()
}

#[test]
fn a_pod_from_nothing_to_running() {
    Case::new(pod("Always", &["i", "j"], &["a"]), PodState::default()).check(expect![[r#"
        Pending
          i ready=false restarts=0 waiting PodInitializing | -
          j ready=false restarts=0 waiting PodInitializing | -
          a ready=false restarts=0 waiting PodInitializing | -
          not PodReadyToStartContainers:
          not Initialized: ContainersNotInitialized containers with incomplete status: [i j]
          not Ready: ContainersNotReady containers with unready status: [a]
          not ContainersReady: ContainersNotReady containers with unready status: [a]
    "#]]);
    let done = with_sandbox(vec![
        record("i", State::Exited, 0),
        record("j", State::Exited, 0),
        record("a", State::Running, 0),
    ]);
    Case::new(pod("Always", &["i", "j"], &["a"]), done).check(expect![[r#"
        Running
          i ready=true restarts=0 exited 0 | -
          j ready=true restarts=0 exited 0 | -
          a ready=true restarts=0 running | -
    "#]]);
}

#[test]
fn a_crashing_container_waits_and_keeps_its_last_state() {
    let mut case = Case::new(pod("Always", &[], &["a"]), with_sandbox(vec![record("a", State::Exited, 1)]));
    let message = "back-off 10s restarting failed container=a pod=p_n(u)".to_owned();
    case.waiting.insert("a".into(), Waiting { reason: "CrashLoopBackOff".into(), message });
    case.check(expect![[r#"
        Running
          a ready=false restarts=0 waiting CrashLoopBackOff back-off 10s restarting failed container=a pod=p_n(u) | exited 1
          not Ready: ContainersNotReady containers with unready status: [a]
          not ContainersReady: ContainersNotReady containers with unready status: [a]
    "#]]);
}

#[test]
fn phases_of_finished_pods() {
    let cases = [
        ("Never", 0, false, "Succeeded"),
        ("Never", 1, false, "Failed"),
        ("OnFailure", 0, false, "Succeeded"),
        ("OnFailure", 1, false, "Running"),
        ("Always", 0, false, "Running"),
        ("Always", 0, true, "Succeeded"),
        ("Always", 1, true, "Failed"),
    ];
    for (policy, exit_code, terminal, want) in cases {
        let state = with_sandbox(vec![record("a", State::Exited, exit_code)]);
        let mut case = Case::new(pod(policy, &[], &["a"]), state);
        case.terminal = terminal;
        assert_eq!(case.status().phase.as_deref(), Some(want), "{policy} {exit_code} {terminal}");
    }
    let failed_init = with_sandbox(vec![record("i", State::Exited, 1)]);
    Case::new(pod("Never", &["i"], &["a"]), failed_init).check(expect![[r#"
        Failed
          i ready=false restarts=0 exited 1 | -
          a ready=false restarts=0 waiting PodInitializing | -
          not Initialized: ContainersNotInitialized containers with incomplete status: [i]
          not Ready: PodFailed
          not ContainersReady: PodFailed
    "#]]);
}

#[test]
fn gates_probes_and_verdicts() {
    let mut case = Case::new(pod("Always", &[], &["a"]), with_sandbox(vec![record("a", State::Running, 0)]));
    case.pod.spec.as_mut().unwrap().readiness_gates =
        Some(vec![PodReadinessGate { condition_type: "g".into() }]);
    case.check(expect![[r#"
        Running
          a ready=true restarts=0 running | -
          not Ready: ReadinessGatesNotReady corresponding condition of pod readiness gate "g" does not exist.
    "#]]);
    case.readiness.ready.insert("id-a".into(), false);
    case.verdict =
        Some(Verdict { reason: "DeadlineExceeded".into(), message: "m".into(), ..Default::default() });
    case.check(expect![[r#"
        Failed DeadlineExceeded
          a ready=false restarts=0 running | -
          not Ready: PodFailed
          not ContainersReady: PodFailed
    "#]]);
    let target = |case: &Case| {
        let conditions = case.status().conditions.unwrap_or_default();
        conditions.into_iter().find(|c| c.type_ == "DisruptionTarget").and_then(|c| c.reason)
    };
    assert_eq!(target(&case), None);
    case.verdict = Some(Verdict {
        reason: "Evicted".into(),
        message: "m".into(),
        disrupted: true,
        ..Default::default()
    });
    assert_eq!(target(&case).as_deref(), Some("TerminationByKubelet"));
}

#[test]
fn a_terminal_phase_never_changes() {
    let mut case = Case::new(pod("Always", &[], &["a"]), with_sandbox(vec![record("a", State::Running, 0)]));
    case.old.phase = Some("Failed".into());
    case.old.reason = Some("Evicted".into());
    let status = case.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("Evicted")));
}
