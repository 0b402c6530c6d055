//! `/containerLogs`: a container's log, followed if asked.

use std::sync::Arc;

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Answer, Query, find_pod, stream, text};
use crate::core::Core;
use crate::logs::{self, Ended, Options};
use crate::pod;
use crate::pod_state::{self, State};
use api::Object;

fn bad(message: String) -> Answer {
    text(StatusCode::BAD_REQUEST, message)
}

/// What the query asks for, now.
fn options(query: &Query, now: Timestamp) -> Result<Options, String> {
    let number = |key: &str| match query.get(key) {
        Some(value) => {
            value.parse::<u64>().map(Some).map_err(|_| format!("invalid value for {key}: {value:?}"))
        }
        None => Ok(None),
    };
    let since = match (number("sinceSeconds")?, query.get("sinceTime")) {
        (Some(seconds), _) => {
            Some(now - SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX / 4)))
        }
        (None, Some(time)) => {
            Some(time.parse().map_err(|_| format!("invalid value for sinceTime: {time:?}"))?)
        }
        (None, None) => None,
    };
    Ok(Options {
        follow: query.flag("follow"),
        tail_lines: number("tailLines")?,
        since,
        timestamps: query.flag("timestamps"),
        limit_bytes: number("limitBytes")?,
        stream: query.get("stream").map(str::to_owned),
    })
}

// Upstream: pkg/kubelet/kubelet_pods.go GetKubeletContainerLogs
pub async fn serve(core: Arc<Core>, namespace: &str, name: &str, container: &str, query: &Query) -> Answer {
    let found = match find_pod(&core, namespace, name) {
        Ok(pod) => pod,
        Err(answer) => return *answer,
    };
    if pod::find_container(&found, container).is_none() {
        let message = format!("container {container:?} not found in pod {name:?}");
        return text(StatusCode::NOT_FOUND, message);
    }
    let mut options = match options(query, core.config.clock.now()) {
        Ok(options) => options,
        Err(why) => return bad(why),
    };
    let uid = found.uid().to_owned();
    // Subscribed before the state is read, so that no end is missed.
    let changes = core.changes.subscribe();
    let state = pod_state::read(core.runtime.as_ref(), &uid).await.unwrap_or_default();
    let previous = query.flag("previous");
    let mut records = state.containers.iter().filter(|c| c.name == container);
    let record = if previous { records.nth(1) } else { records.next() };
    let Some(record) = record.filter(|r| r.state != State::Created) else {
        if previous {
            return bad(format!("previous terminated container {container:?} in pod {name:?} not found"));
        }
        return bad(format!(
            "container {container:?} in pod {name:?} is waiting to start: ContainerCreating"
        ));
    };
    options.follow &= record.state == State::Running;
    let path = record.log_path.clone().into();
    let ended = ended(core.clone(), changes, uid, record.id.clone());
    let (out, chunks) = mpsc::channel(8);
    // The task lives as long as its reader: it ends when the connection drops the other end.
    let reading = tokio::spawn(async move {
        if let Err(error) = logs::stream(path, options, ended, out).await {
            tracing::debug!(%error, "cannot read a container's log");
        }
    });
    let chunks = ReceiverStream::new(chunks);
    let guard = AbortOnDrop(reading);
    let body = futures::StreamExt::map(chunks, move |chunk| {
        let _ = &guard;
        chunk
    });
    super::answer(StatusCode::OK, "text/plain", stream(body))
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Resolves when the container no longer runs.
fn ended(
    core: Arc<Core>,
    mut changes: tokio::sync::broadcast::Receiver<String>,
    uid: String,
    container_id: String,
) -> Ended {
    use tokio::sync::broadcast::error::RecvError;
    Box::pin(async move {
        loop {
            match changes.recv().await {
                Ok(changed) if changed != uid => continue,
                Ok(_) | Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
            match core.runtime.container_status(&container_id).await {
                Ok(status) if status.state() == cri::v1::ContainerState::ContainerRunning => {}
                _ => return,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for() {
        let now = Timestamp::from_second(1000).unwrap();
        let parse = |text: &str| options(&Query::parse(text), now);
        let all = parse("follow=true&tailLines=5&sinceSeconds=10&timestamps=1&limitBytes=7").unwrap();
        assert!(all.follow && all.timestamps);
        assert_eq!((all.tail_lines, all.limit_bytes), (Some(5), Some(7)));
        assert_eq!(all.since, Timestamp::from_second(990).ok());
        assert!(parse("tailLines=x").is_err() && parse("sinceTime=yesterday").is_err());
    }
}
