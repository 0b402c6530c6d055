//! Who may ask the kubelet what. The kubelet reads who the caller is; the API server decides whether it may.

use client::delegated::{Asked, Delegated, User};
use http::request::Parts;
use http::{Method, StatusCode, header};

use super::{Answer, text};

/// Passes a caller that may make the request; else says why not.
pub async fn check(
    delegated: &Delegated,
    node: &str,
    request: &Parts,
    shown: Option<User>,
) -> Result<(), Answer> {
    let user = match (shown, bearer(request)) {
        (Some(user), _) => Some(user),
        (None, Some(token)) => delegated.authenticate(token).await.map_err(|error| failed(&error))?,
        (None, None) => None,
    };
    let Some(user) = user else { return Err(text(StatusCode::UNAUTHORIZED, "Unauthorized")) };
    let (verb, subresources) = attributes(&request.method, request.uri.path());
    for subresource in subresources {
        let asked = Asked::Resource { verb, resource: "nodes", subresource, name: node };
        if delegated.authorize(&user, &asked).await.map_err(|error| failed(&error))? {
            return Ok(());
        }
    }
    let (name, subresources) = (&user.name, subresources.join(" "));
    let words =
        format!("Forbidden (user={name}, verb={verb}, resource=nodes, subresource(s)=[{subresources}])");
    Err(text(StatusCode::FORBIDDEN, words))
}

fn bearer(request: &Parts) -> Option<&str> {
    request.headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

fn failed(error: &client::Error) -> Answer {
    tracing::warn!(error = error as &dyn std::error::Error, "cannot ask whether a caller may");
    text(StatusCode::INTERNAL_SERVER_ERROR, format!("Authorization error: {error}"))
}

/// What a request is to the API server: a verb on subresources of the node, of which any one will do.
///
/// Upstream: pkg/kubelet/server/auth.go GetRequestAttributes
fn attributes(method: &Method, path: &str) -> (&'static str, &'static [&'static str]) {
    let verb = match *method {
        Method::POST => "create",
        Method::GET => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    };
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    let subresources: &[&str] = match first {
        "pods" | "runningpods" => &["pods", "proxy"],
        "configz" => &["configz", "proxy"],
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "checkpoint" => &["checkpoint"],
        _ => &["proxy"],
    };
    (verb, subresources)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_subresources_of_the_node() {
        let check = |method: Method, path: &str, verb: &str, subresources: &[&str]| {
            assert_eq!(attributes(&method, path), (verb, subresources), "{path}");
        };
        check(Method::GET, "/pods", "get", &["pods", "proxy"]);
        check(Method::GET, "/metrics/resource", "get", &["metrics"]);
        check(Method::GET, "/stats/summary", "get", &["stats"]);
        check(Method::POST, "/exec/ns/pod/container", "create", &["proxy"]);
        check(Method::GET, "/containerLogs/ns/pod/container", "get", &["proxy"]);
        check(Method::GET, "/metricsx", "get", &["proxy"]);
    }
}
