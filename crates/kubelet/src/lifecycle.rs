//! Lifecycle hooks: what runs right after a container's start and right before its end.

use std::time::Duration;

use api::core::v1::{Container, LifecycleHandler};

use crate::http_get;
use crate::runtime::{Runtime, describe};

/// How long a hook's request may take when nothing else bounds it.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs a hook in a container. The error is for the container's status, not for events: it may hold secrets.
// Upstream: pkg/kubelet/lifecycle/handlers.go Run
pub async fn run(
    runtime: &dyn Runtime,
    hook: &LifecycleHandler,
    container: &Container,
    container_id: &str,
    pod: &str,
    pod_ip: &str,
) -> Result<(), String> {
    let name = &container.name;
    if let Some(action) = &hook.exec {
        let command = action.command.clone().unwrap_or_default();
        let (why, output) = match runtime.exec_sync(container_id, &command, 0).await {
            Ok(answer) if answer.exit_code == 0 => return Ok(()),
            Ok(answer) => {
                let mut output = answer.stdout;
                output.extend_from_slice(&answer.stderr);
                let why = format!("command '{}' exited with {}: ", command.join(" "), answer.exit_code);
                (why, String::from_utf8_lossy(&output).into_owned())
            }
            Err(error) => (describe(&error), String::new()),
        };
        let command = command.join(" ");
        return Err(format!(
            "Exec lifecycle hook ([{command}]) for Container {name:?} in Pod {pod:?} failed - error: {why}, message: \
             {output:?}"
        ));
    }
    if let Some(action) = &hook.http_get {
        let sent = match http_get::target(action, container, pod_ip) {
            Ok(target) => http_get::get(&target, "kube-lifecycle/1.36", REQUEST_TIMEOUT).await,
            Err(why) => Err(why),
        };
        let path = action.path.as_deref().unwrap_or("/");
        return sent.map(drop).map_err(|why| {
            format!(
                "HTTP lifecycle hook ({path}) for Container {name:?} in Pod {pod:?} failed - error: {why}"
            )
        });
    }
    if let Some(action) = &hook.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(action.seconds).unwrap_or(0))).await;
        return Ok(());
    }
    Err("Cannot run handler: invalid handler".to_owned())
}
