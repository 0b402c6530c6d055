//! What `kubectl get pods` shows.
//!
//! Upstream: pkg/printers/internalversion/printers.go printPod

use crate::prelude::*;

/// What the containers of a pod add up to.
struct Summary {
    ready: usize,
    total: usize,
    restarts: i64,
    /// The latest end of a container that was started again.
    last_restart: Option<i64>,
    reason: String,
}

pub fn cells(pod: &Value, now: i64) -> Vec<Cell> {
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(then) if summary.restarts != 0 => {
            format!("{} ({} ago)", summary.restarts, apimachinery::time::human_duration(now - then))
        }
        _ => summary.restarts.to_string(),
    };
    let ip = list(pod, "status.podIPs").first().map(|ip| text(ip, "ip")).filter(|ip| !ip.is_empty());
    cells![
        get::name(pod),
        format!("{}/{}", summary.ready, summary.total),
        summary.reason,
        restarts,
        age(pod, now),
        ip.unwrap_or("<none>"),
        print::or(pod, "spec.nodeName", "<none>"),
        print::or(pod, "status.nominatedNodeName", "<none>"),
        readiness_gates(pod),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let passed = gates.iter().filter(|g| print::condition(pod, text(g, "conditionType"), "True")).count();
    format!("{passed}/{}", gates.len())
}

/// An init container that keeps running beside the others.
fn is_sidecar(pod: &Value, name: &str) -> bool {
    let container = list(pod, "spec.initContainers").iter().find(|c| text(c, "name") == name);
    container.is_some_and(|c| text(c, "restartPolicy") == "Always")
}

fn ended(status: &Value) -> Option<i64> {
    apimachinery::time::parse_rfc3339(text(status, "lastState.terminated.finishedAt"))
}

/// Why a container ended: its reason, or its signal or exit code.
fn end_reason(terminated: &Value) -> String {
    match (text(terminated, "reason"), number(terminated, "signal")) {
        ("", 0) => format!("ExitCode:{}", number(terminated, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn summarize(pod: &Value) -> Summary {
    let phase = text(pod, "status.phase");
    let mut reason = print::or(pod, "status.reason", phase).to_owned();
    let gated = |c: &Value| text(c, "type") == "PodScheduled" && text(c, "reason") == "SchedulingGated";
    if list(pod, "status.conditions").iter().any(gated) {
        reason = "SchedulingGated".to_owned();
    }
    let names = list(pod, "spec.initContainers").iter().map(|c| text(c, "name"));
    let sidecars = names.filter(|name| is_sidecar(pod, name)).count();
    let mut summary = Summary {
        ready: 0,
        total: list(pod, "spec.containers").len() + sidecars,
        restarts: 0,
        last_restart: None,
        reason,
    };
    let initializing = init_containers(pod, &mut summary);
    if !initializing || print::condition(pod, "Initialized", "True") {
        main_containers(pod, &mut summary);
    }
    let deleting = has(pod, "metadata.deletionTimestamp");
    if deleting && text(pod, "status.reason") == "NodeLost" {
        summary.reason = "Unknown".to_owned();
    } else if deleting && !matches!(phase, "Succeeded" | "Failed") {
        summary.reason = "Terminating".to_owned();
    }
    summary
}

/// Looks for the first init container that holds the pod up; whether there is one.
fn init_containers(pod: &Value, summary: &mut Summary) -> bool {
    for (index, status) in list(pod, "status.initContainerStatuses").iter().enumerate() {
        summary.restarts += number(status, "restartCount");
        summary.last_restart = summary.last_restart.max(ended(status));
        let terminated = at(status, "state.terminated");
        let waiting = text(status, "state.waiting.reason");
        if terminated.is_some_and(|t| number(t, "exitCode") == 0) {
            continue;
        }
        if is_sidecar(pod, text(status, "name")) && is_true(status, "started") {
            summary.ready += usize::from(is_true(status, "ready"));
            continue;
        }
        summary.reason = match terminated {
            Some(terminated) => format!("Init:{}", end_reason(terminated)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{index}/{}", list(pod, "spec.initContainers").len()),
        };
        return true;
    }
    false
}

fn main_containers(pod: &Value, summary: &mut Summary) {
    // Of the init containers only those that keep running count now.
    summary.restarts = 0;
    summary.last_restart = None;
    for status in list(pod, "status.initContainerStatuses") {
        if is_sidecar(pod, text(status, "name")) {
            summary.restarts += number(status, "restartCount");
            summary.last_restart = summary.last_restart.max(ended(status));
        }
    }
    let mut running = false;
    let mut error = String::new();
    for status in list(pod, "status.containerStatuses").iter().rev() {
        summary.restarts += number(status, "restartCount");
        summary.last_restart = summary.last_restart.max(ended(status));
        let waiting = text(status, "state.waiting.reason");
        if !waiting.is_empty() {
            summary.reason = waiting.to_owned();
        } else if let Some(terminated) = at(status, "state.terminated") {
            summary.reason = end_reason(terminated);
            if number(terminated, "exitCode") != 0 {
                error = summary.reason.clone();
            }
        } else if is_true(status, "ready") && has(status, "state.running") {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.reason == "Completed" {
        if running && print::condition(pod, "Ready", "True") {
            summary.reason = "Running".to_owned();
        } else if !error.is_empty() {
            summary.reason = error;
        } else if running {
            summary.reason = "NotReady".to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The cells Ready, Status and Restarts of a pod with one container, or more when given.
    fn check(status: Value, expected: [&str; 3]) {
        let count = list(&status, "containerStatuses").len().max(1);
        let containers: Vec<Value> = (0..count).map(|i| json!({"name": i.to_string()})).collect();
        check_pod(json!({"spec": {"containers": containers}, "status": status}), expected);
    }

    fn check_pod(pod: Value, expected: [&str; 3]) {
        let cells = cells(&pod, 1_000);
        let shown: Vec<&str> = cells[1..4].iter().filter_map(Value::as_str).collect();
        assert_eq!(shown, expected, "{pod}");
    }

    #[test]
    fn status_tells_what_matters_most() {
        let running = json!({"running": {}});
        check(json!({"phase": "Pending"}), ["0/1", "Pending", "0"]);
        check(
            json!({"phase": "Running", "containerStatuses": [{"ready": true, "state": running}]}),
            ["1/1", "Running", "0"],
        );
        check(
            json!({"phase": "Running", "containerStatuses": [{"restartCount": 3,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"finishedAt": "1970-01-01T00:11:40Z"}}}]}),
            ["0/1", "CrashLoopBackOff", "3 (5m ago)"],
        );
        check(
            json!({"phase": "Succeeded", "containerStatuses":
                [{"state": {"terminated": {"reason": "Completed", "exitCode": 0}}}]}),
            ["0/1", "Completed", "0"],
        );
        check(
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
            ["0/1", "ExitCode:3", "0"],
        );
        check(
            json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"signal": 9}}}]}),
            ["0/1", "Signal:9", "0"],
        );
        check(
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}], "containerStatuses": [
                {"state": {"terminated": {"reason": "Completed"}}}, {"ready": true, "state": running}]}),
            ["1/2", "Running", "0"],
        );
        check(json!({"phase": "Failed", "reason": "Evicted"}), ["0/1", "Evicted", "0"]);
        check(
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
            ["0/1", "SchedulingGated", "0"],
        );
    }

    #[test]
    fn init_containers_come_first() {
        let pod = |statuses: Value| {
            json!({"spec": {"containers": [{"name": "c"}],
                "initContainers": [{"name": "a"}, {"name": "b", "restartPolicy": "Always"}]},
                "status": {"phase": "Pending", "initContainerStatuses": statuses}})
        };
        check_pod(pod(json!([{"name": "a", "state": {"running": {}}}])), ["0/2", "Init:0/2", "0"]);
        check_pod(
            pod(
                json!([{"name": "a", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
            ),
            ["0/2", "Init:CrashLoopBackOff", "2"],
        );
        check_pod(
            pod(json!([{"name": "a", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}])),
            ["0/2", "Init:Error", "0"],
        );
        check_pod(
            pod(json!([{"name": "a", "state": {"terminated": {"exitCode": 0}}},
                {"name": "b", "started": true, "ready": true, "state": {"running": {}}}])),
            ["1/2", "Pending", "0"],
        );
    }

    #[test]
    fn deleted_pods_are_terminating() {
        let pod = |reason: &str| {
            json!({"metadata": {"deletionTimestamp": "1970-01-01T00:00:00Z"},
                "spec": {"containers": [{"name": "c"}]}, "status": {"phase": "Running", "reason": reason}})
        };
        check_pod(pod(""), ["0/1", "Terminating", "0"]);
        check_pod(pod("NodeLost"), ["0/1", "Unknown", "0"]);
    }
}
