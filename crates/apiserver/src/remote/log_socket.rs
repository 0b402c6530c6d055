//! Logs over WebSocket, for clients that have nothing else, as browsers: each block of the log is a message.
//!
//! Upstream: apimachinery/pkg/util/httpstream/wsstream/stream.go

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Message, Role};

use super::tunnel::OwnSide;
use crate::body::{Body, BoxError, Response};
use crate::handle::ApiServer;

/// How blocks become messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coding {
    Binary,
    Base64,
}

/// A client that wants a WebSocket.
#[derive(Debug, PartialEq, Eq)]
pub struct Wanted {
    key: String,
    /// The chosen one of the client's protocols, if it named any.
    protocol: Option<&'static str>,
    coding: Coding,
}

impl Wanted {
    /// `None` when the request is an ordinary one.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        if !text(header::UPGRADE)?.eq_ignore_ascii_case("websocket") {
            return None;
        }
        let key = text(header::SEC_WEBSOCKET_KEY)?.to_owned();
        let named = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
        let mut named = named.filter_map(|value| value.to_str().ok()).flat_map(|list| list.split(','));
        let known = named.find_map(|name| match name.trim() {
            "binary.k8s.io" => Some(("binary.k8s.io", Coding::Binary)),
            "base64.binary.k8s.io" => Some(("base64.binary.k8s.io", Coding::Base64)),
            _ => None,
        });
        let (protocol, coding) = known.map_or((None, Coding::Binary), |(name, coding)| (Some(name), coding));
        Some(Wanted { key, protocol, coding })
    }

    /// Answers with a WebSocket that carries the log; a refusal stays what it is.
    pub fn answer(self, server: &Arc<ApiServer>, log: Response, own_side: Option<OwnSide>) -> Response {
        let Some(OwnSide { upgrade, noted }) = own_side.filter(|_| log.status().is_success()) else {
            return log;
        };
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        if let Ok(accept) = HeaderValue::from_str(&derive_accept_key(self.key.as_bytes())) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(protocol) = self.protocol {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        let shutdown = server.shutdown.clone();
        let coding = self.coding;
        server.tasks.spawn(async move {
            let _noted = noted;
            tokio::select! {
                () = shutdown.cancelled() => {}
                result = carry(log.into_body(), upgrade, coding) => if let Err(error) = result {
                    tracing::debug!(error, "a log's WebSocket ended");
                },
            }
        });
        response
    }
}

async fn carry(mut log: Body, own_side: hyper::upgrade::OnUpgrade, coding: Coding) -> Result<(), BoxError> {
    let io = TokioIo::new(own_side.await?);
    let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    let (mut sender, mut receiver) = socket.split();
    loop {
        tokio::select! {
            frame = log.frame() => {
                let Some(frame) = frame else { break };
                let Ok(block) = frame?.into_data() else { continue };
                let message = match coding {
                    Coding::Binary => Message::Binary(block),
                    Coding::Base64 => Message::Text(STANDARD.encode(block).into()),
                };
                sender.send(message).await?;
            }
            // Nothing is expected of the client but that it closes.
            message = receiver.next() => match message {
                None | Some(Ok(Message::Close(_))) => break,
                Some(message) => drop(message?),
            },
        }
    }
    Ok(sender.close().await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_known_protocol_is_taken() {
        let asked = |protocols: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::UPGRADE, HeaderValue::from_static("WebSocket"));
            headers.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("k"));
            if let Some(protocols) = protocols {
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocols));
            }
            Wanted::of(&headers).map(|wanted| (wanted.protocol, wanted.coding))
        };
        assert_eq!(asked(None), Some((None, Coding::Binary)));
        assert_eq!(asked(Some("x, binary.k8s.io")), Some((Some("binary.k8s.io"), Coding::Binary)));
        assert_eq!(asked(Some("base64.binary.k8s.io")), Some((Some("base64.binary.k8s.io"), Coding::Base64)));
        assert_eq!(Wanted::of(&HeaderMap::new()), None);
    }
}
