//! Sends a request on to an aggregated API server: the user goes in headers, which the server believes because
//! this server shows the front proxy's certificate.
//!
//! Upstream: kube-aggregator/pkg/apiserver/handler_proxy.go, client-go/transport/round_trippers.go
//! SetAuthProxyHeaders

use std::sync::Arc;

use apimachinery::Status;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde_json::Value;

use super::is_available;
use crate::body::{Body, BoxError, Response};
use crate::handle::{ApiServer, Asked, RequestBody};
use crate::remote::outbound::OutgoingBody;
use crate::remote::tunnel;
use crate::seams::UserInfo;

/// A refusal in plain text, as upstream's aggregator answers.
fn unavailable(why: &str) -> Response {
    let body = Body::Full(format!("{why}\n").into());
    let mut response =
        crate::encode::respond(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", body);
    let nosniff = HeaderValue::from_static("nosniff");
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

pub async fn forward(server: &Arc<ApiServer>, service: &Value, asked: Asked) -> Result<Response, Status> {
    if !is_available(service) {
        return Ok(unavailable("service unavailable"));
    }
    let peer = match server.aggregation.peer(service) {
        Ok(peer) => peer,
        Err(why) => {
            tracing::warn!(why, "an aggregated API server cannot be asked");
            return Ok(unavailable("service unavailable"));
        }
    };
    let Asked { mut parts, body, user, .. } = asked;
    let upgrades = parts.headers.contains_key(header::UPGRADE);
    let own_side = tunnel::OwnSide::take(&mut parts);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let authority = peer.address.authority();
    let uri = if upgrades { path.to_owned() } else { format!("https://{authority}{path}") };
    let body: OutgoingBody = match body {
        RequestBody::Ready(bytes) => Full::new(bytes).map_err(|never| match never {}).boxed_unsync(),
        RequestBody::Incoming(incoming) => incoming.map_err(BoxError::from).boxed_unsync(),
    };
    let request = Request::builder().method(parts.method.clone()).uri(uri).body(body);
    let mut request =
        request.map_err(|error| Status::bad_request(format!("cannot send the request on: {error}")))?;
    let headers = request.headers_mut();
    *headers = tunnel::passed_on(&parts.headers, upgrades);
    if let Ok(host) = HeaderValue::from_str(&authority) {
        headers.insert(header::HOST, host);
    }
    name_user(headers, &user);
    let unreachable = |why: &str| unavailable(&format!("error trying to reach service: {why}"));
    if !upgrades {
        return Ok(match peer.send(request).await {
            Ok(answer) => tunnel::copied(answer),
            Err(why) => unreachable(&why),
        });
    }
    let io = match peer.connect().await {
        Ok(io) => io,
        Err(why) => return Ok(unreachable(&why)),
    };
    match tunnel::exchange(server, io, request).await {
        Ok(answer) if answer.status() == StatusCode::SWITCHING_PROTOCOLS => {
            tunnel::join(server, answer, own_side)
        }
        Ok(answer) => Ok(tunnel::copied(answer)),
        Err(error) => Ok(unreachable(&error.to_string())),
    }
}

/// Says who asks, and takes away what the client may have said of that itself.
fn name_user(headers: &mut HeaderMap, user: &UserInfo) {
    let claimed: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-remote-")).cloned().collect();
    for name in claimed {
        headers.remove(name);
    }
    let mut put = |name: &str, value: &str| {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_maybe_shared(Bytes::from(value.to_owned()))) {
            headers.append(name, value);
        }
    };
    put("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        put("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        put("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", header_key(key));
        for value in values {
            put(&name, value);
        }
    }
}

/// A key as a header's name can hold it: everything else as `%XX`.
///
/// Upstream: client-go/transport/round_trippers.go headerKeyEscape
fn header_key(key: &str) -> String {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte);
    key.bytes()
        .map(|byte| if legal(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_named_and_nobody_names_himself() {
        let mut headers = HeaderMap::new();
        for name in ["x-remote-user", "x-remote-group", "x-remote-extra-scopes", "x-remote-uid"] {
            headers.insert(name, HeaderValue::from_static("root"));
        }
        headers.insert("accept", HeaderValue::from_static("*/*"));
        let user = UserInfo {
            name: "jane".into(),
            groups: vec!["a".into(), "b".into()],
            extra: [("example.com/x".to_owned(), vec!["1".to_owned()])].into(),
            ..Default::default()
        };
        name_user(&mut headers, &user);
        let mut shown: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        shown.sort();
        assert_eq!(
            shown,
            [
                "accept: */*",
                "x-remote-extra-example.com%2fx: 1",
                "x-remote-group: a",
                "x-remote-group: b",
                "x-remote-user: jane"
            ]
        );
    }
}
