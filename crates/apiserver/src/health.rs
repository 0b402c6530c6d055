//! `/healthz`, `/livez`, `/readyz`, `/version`, `/metrics`, and the issuer's own pages.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use apimachinery::Status;
use http::StatusCode;
use serde_json::json;

use crate::body::{Body, Response};
use crate::encode::{self, respond};
use crate::handle::{ApiServer, Asked};
use crate::negotiate::Format;

pub const VERSION: &str = "v1.36.2+trierarch";

/// Whether the server is fit to serve.
#[derive(Default)]
pub struct Health {
    /// The objects that a cluster starts with are there.
    pub bootstrapped: AtomicBool,
}

impl Health {
    /// The checks in upstream's order, each with whether it passes.
    fn checks(&self, server: &ApiServer, ready: bool) -> Vec<(&'static str, bool)> {
        let bootstrapped = self.bootstrapped.load(Ordering::Acquire);
        let running = !server.shutdown.is_cancelled();
        let mut checks = vec![("ping", true), ("log", true), ("etcd", true)];
        checks.push(("poststarthook/start-system-namespaces-controller", bootstrapped));
        checks.push(("poststarthook/rbac/bootstrap-roles", bootstrapped));
        checks.push(("poststarthook/scheduling/bootstrap-system-priority-classes", bootstrapped));
        if ready {
            checks.push(("informer-sync", true));
            checks.push(("shutdown", running));
        }
        checks
    }
}

pub fn handle(server: &Arc<ApiServer>, asked: &Asked, path: &str) -> Result<Response, Status> {
    let issuer = || server.config.issuer.as_ref().ok_or_else(Status::page_not_found);
    match path {
        "/version" => Ok(encode::value(Format::Json, StatusCode::OK, &version())),
        "/metrics" => {
            let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            Ok(respond(StatusCode::OK, content_type, Body::Full(server.metrics.text(server).into())))
        }
        "/openid/v1/jwks" => {
            let body = issuer()?.jwks().to_string();
            Ok(respond(StatusCode::OK, "application/jwk-set+json", Body::Full(body.into())))
        }
        "/.well-known/openid-configuration" => {
            let uri =
                format!("https://{}/openid/v1/jwks", std::net::SocketAddr::from(server.config.advertise));
            Ok(encode::value(Format::Json, StatusCode::OK, &issuer()?.openid_configuration(&uri)))
        }
        _ => check(server, asked, path),
    }
}

fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "36", "emulationMajor": "1", "emulationMinor": "36",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": VERSION, "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc", "platform": format!("linux/{}", architecture()),
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Upstream: apiserver/pkg/server/healthz/healthz.go handleRootHealth
fn check(server: &Arc<ApiServer>, asked: &Asked, path: &str) -> Result<Response, Status> {
    let mut segments = path.trim_matches('/').splitn(2, '/');
    let root = segments.next().unwrap_or_default();
    let checks = server.health.checks(server, root == "readyz");
    if !matches!(root, "healthz" | "livez" | "readyz") {
        return Err(Status::page_not_found());
    }
    let text = |code, text: String| {
        let mut response = respond(code, "text/plain; charset=utf-8", Body::Full(text.into()));
        let nosniff = http::HeaderValue::from_static("nosniff");
        response.headers_mut().insert(http::header::X_CONTENT_TYPE_OPTIONS, nosniff);
        response
    };
    if let Some(name) = segments.next() {
        let (_, passes) =
            checks.iter().find(|(check, _)| *check == name).ok_or_else(Status::page_not_found)?;
        return Ok(match passes {
            true => text(StatusCode::OK, "ok".into()),
            false => text(
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("internal server error: {name} is not done\n"),
            ),
        });
    }
    let excluded: Vec<&str> = asked.info.query.all("exclude").collect();
    let mut lines = String::new();
    let mut failed = false;
    for (name, passes) in checks {
        if excluded.contains(&name) {
            lines += &format!("[+]{name} excluded: ok\n");
            continue;
        }
        failed |= !passes;
        lines +=
            &if passes { format!("[+]{name} ok\n") } else { format!("[-]{name} failed: reason withheld\n") };
    }
    if failed {
        return Ok(text(StatusCode::INTERNAL_SERVER_ERROR, format!("{lines}{root} check failed\n")));
    }
    let verbose = asked.info.query.get("verbose").is_some();
    Ok(text(StatusCode::OK, if verbose { format!("{lines}{root} check passed\n") } else { "ok".into() }))
}
