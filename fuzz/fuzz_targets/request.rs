//! Whole requests to a server over memory storage. The input is `METHOD URI`, then lines of headers, an empty line,
//! and the body.

#![no_main]

use std::cell::OnceCell;
use std::sync::Arc;
use std::time::Duration;

use apiserver::bootstrap::loopback_user;
use apiserver::handle::{ApiServer, Config, Peer, RequestBody};
use apiserver::negotiate::Forms;
use apiserver::testing;
use bytes::Bytes;
use http_body_util::BodyExt;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;

thread_local! {
    static SERVER: OnceCell<(Runtime, Arc<ApiServer>)> = const { OnceCell::new() };
}

/// Watches go on for ever: what has come by then is enough.
const PATIENCE: Duration = Duration::from_millis(5);

fn request(data: &[u8]) -> Option<http::Request<RequestBody>> {
    let end = data.windows(2).position(|pair| pair == b"\n\n").unwrap_or(data.len());
    let mut lines = std::str::from_utf8(&data[..end]).ok()?.lines();
    let (method, uri) = lines.next()?.split_once(' ')?;
    let mut request = http::Request::builder().method(method).uri(uri);
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        request = request.header(name, value);
    }
    let body = data.get(end + 2..).unwrap_or_default();
    request.body(RequestBody::Ready(Bytes::copy_from_slice(body))).ok()
}

fuzz_target!(|data: &[u8]| {
    let Some(request) = request(data) else { return };
    SERVER.with(|cell| {
        let (runtime, server) = cell.get_or_init(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime can be made");
            let config = Config { forms: Forms::ALL, ..testing::config() };
            let server = runtime.block_on(testing::server_of(config));
            (runtime, server)
        });
        runtime.block_on(async {
            let response = server.handle(request, Peer::Local(loopback_user())).await;
            assert!((100..600).contains(&response.status().as_u16()));
            let _ = tokio::time::timeout(PATIENCE, response.into_body().collect()).await;
        });
    });
});
