//! `/exec`, `/attach` and `/portForward`: the runtime is asked for an address, and what the caller speaks there,
//! WebSocket or SPDY, is passed through byte for byte.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cri::v1 as pb;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{Answer, Query, find_pod, full, text};
use crate::core::Core;
use crate::pod_state::{self, State};
use crate::runtime::describe;
use api::Object;

/// As much of the runtime's refusal as is passed on.
const MAX_REFUSAL_BYTES: usize = 64 << 10;

/// The streams of one connection: they end with it.
#[derive(Clone, Default)]
pub struct Streams(Arc<Mutex<JoinSet<()>>>);

impl Streams {
    fn spawn(&self, stream: impl Future<Output = ()> + Send + 'static) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).spawn(stream);
    }

    /// Waits until all have ended.
    pub async fn finished(&self) {
        let mut all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        while all.join_next().await.is_some() {}
    }
}

/// The id of a running container.
pub async fn container_id(
    core: &Core,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<String, Box<Answer>> {
    let found = find_pod(core, namespace, pod)?;
    let state = pod_state::read(core.runtime.as_ref(), found.uid()).await;
    let state = state.map_err(|e| Box::new(text(StatusCode::INTERNAL_SERVER_ERROR, describe(&e))))?;
    let running = state.container(container).filter(|c| c.state == State::Running).map(|c| c.id.clone());
    running.ok_or_else(|| {
        Box::new(text(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")")))
    })
}

pub async fn serve(
    core: Arc<Core>,
    request: Request<Incoming>,
    parts: &[&str],
    query: &Query,
    streams: Streams,
) -> Answer {
    let url = match url(&core, parts, query).await {
        Ok(url) => url,
        Err(answer) => return *answer,
    };
    match proxy(request, &url, streams).await {
        Ok(answer) => answer,
        Err(why) => text(StatusCode::BAD_GATEWAY, format!("error streaming to the container runtime: {why}")),
    }
}

/// Where the runtime serves the stream. The pod's UID may stand between its name and the container's.
async fn url(core: &Core, parts: &[&str], query: &Query) -> Result<String, Box<Answer>> {
    let failed = |e: tonic::Status| {
        let code = if e.code() == tonic::Code::NotFound {
            StatusCode::NOT_FOUND
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        Box::new(text(code, describe(&e)))
    };
    let flag = |a: &str, b: &str| query.flag(a) || query.flag(b);
    let (stdin, stdout, stderr, tty) =
        (flag("input", "stdin"), flag("output", "stdout"), flag("error", "stderr"), query.flag("tty"));
    match parts {
        ["exec", namespace, pod, .., container] if parts.len() >= 4 => {
            let container_id = container_id(core, namespace, pod, container).await?;
            let cmd = query.all("command");
            // A terminal has one stream for both.
            let request = pb::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr: stderr && !tty };
            core.runtime.exec_url(request).await.map_err(failed)
        }
        ["attach", namespace, pod, .., container] if parts.len() >= 4 => {
            let container_id = container_id(core, namespace, pod, container).await?;
            let request = pb::AttachRequest { container_id, stdin, tty, stdout, stderr: stderr && !tty };
            core.runtime.attach_url(request).await.map_err(failed)
        }
        ["portForward", namespace, pod, ..] => {
            let found = find_pod(core, namespace, pod)?;
            let state = pod_state::read(core.runtime.as_ref(), found.uid()).await.map_err(failed)?;
            let Some(sandbox) = state.sandboxes.iter().find(|s| s.ready) else {
                return Err(Box::new(text(
                    StatusCode::NOT_FOUND,
                    "pod not found (\"the pod has no sandbox\")",
                )));
            };
            let ports =
                query.all("port").iter().flat_map(|p| p.split(',')).filter_map(|p| p.parse().ok()).collect();
            let request = pb::PortForwardRequest { pod_sandbox_id: sandbox.id.clone(), port: ports };
            core.runtime.port_forward_url(request).await.map_err(failed)
        }
        _ => Err(Box::new(text(StatusCode::NOT_FOUND, "404 page not found"))),
    }
}

/// Sends the request on as it is and joins the two connections when the runtime agrees.
async fn proxy(mut request: Request<Incoming>, url: &str, streams: Streams) -> Result<Answer, String> {
    let target: http::Uri = url.parse().map_err(|e| format!("{e}"))?;
    let authority = target.authority().ok_or("the runtime gave an address without a host")?.clone();
    let tcp = TcpStream::connect(authority.as_str()).await.map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(tcp)).await.map_err(|e| e.to_string())?;
    streams.spawn(async move {
        // Its end shows at the streams that it carries.
        let _ = connection.with_upgrades().await;
    });
    let path = target.path_and_query().map_or("/", |p| p.as_str());
    let mut onward = Request::builder().method(request.method()).uri(path);
    for (name, value) in request.headers().iter().filter(|(name, _)| **name != header::HOST) {
        onward = onward.header(name, value);
    }
    let onward = onward.header(header::HOST, authority.as_str()).body(Empty::<Bytes>::new());
    let onward = onward.map_err(|e| e.to_string())?;
    let mut answer = sender.send_request(onward).await.map_err(|e| e.to_string())?;
    let code = answer.status();
    let headers = answer.headers().clone();
    if code != StatusCode::SWITCHING_PROTOCOLS {
        let body = Limited::new(answer.into_body(), MAX_REFUSAL_BYTES).collect().await;
        let mut refusal = Response::new(full(body.map(|b| b.to_bytes()).unwrap_or_default()));
        *refusal.status_mut() = code;
        return Ok(refusal);
    }
    let (theirs, ours) = (hyper::upgrade::on(&mut answer), hyper::upgrade::on(&mut request));
    streams.spawn(async move {
        let (Ok(theirs), Ok(ours)) = tokio::join!(theirs, ours) else { return };
        let (mut theirs, mut ours) = (TokioIo::new(theirs), TokioIo::new(ours));
        if let Err(error) = tokio::io::copy_bidirectional(&mut theirs, &mut ours).await {
            tracing::debug!(%error, "a stream ended");
        }
    });
    let mut switching = Response::new(full(Bytes::new()));
    *switching.status_mut() = code;
    *switching.headers_mut() = headers;
    Ok(switching)
}
