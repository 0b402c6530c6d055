//! Where a request goes on to.
//!
//! Upstream: pkg/registry/core/{pod,node,service}/strategy.go and storage.go, the *Location functions

use std::fmt::Write;
use std::sync::Arc;

use apimachinery::field::{Error, Path};
use apimachinery::{GroupResource, Status};
use serde_json::Value;

use crate::request::RequestInfo;
use crate::seams::{Attributes, Lookup};

const PODS: GroupResource = GroupResource::from_static("", "pods");
const NODES: GroupResource = GroupResource::from_static("", "nodes");
const SERVICES: GroupResource = GroupResource::from_static("", "services");
const SLICES: GroupResource = GroupResource::from_static("discovery.k8s.io", "endpointslices");

const KUBELET_PORT: i64 = 10250;

/// A server, and what to ask it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub tls: bool,
    /// Kubelets are shown this server's certificate.
    pub kubelet: bool,
    pub host: String,
    pub port: u16,
    pub path_and_query: String,
}

impl Target {
    /// Host and port as a URL has them; addresses of IPv6 stand in brackets there.
    pub fn authority(&self) -> String {
        let (host, port) = (&self.host, self.port);
        if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }
}

pub fn locate(lookup: &dyn Lookup, attributes: &Attributes, info: &RequestInfo) -> Result<Target, Status> {
    let path = || {
        let rest = info.rest.clone().unwrap_or_else(|| "/".to_owned());
        match attributes.subresource.as_str() {
            "proxy" => rest,
            _ => "/".to_owned(),
        }
    };
    let Attributes { namespace, name, .. } = attributes;
    match (attributes.resource.as_str(), attributes.subresource.as_str()) {
        ("pods", "proxy") => {
            let (scheme, id, port) = split(name)?;
            let pod = lookup.get(&PODS, namespace, id).ok_or_else(|| Status::not_found(&PODS, id))?;
            let address = pod["status"]["podIP"].as_str().unwrap_or_default();
            if address.is_empty() {
                return Err(Status::bad_request("address not allowed"));
            }
            let port = match port {
                "" => first_port(&pod).unwrap_or(80),
                port => number(port, "pod", id)?,
            };
            Ok(target(scheme, false, address, port, with_query(path(), info)))
        }
        ("services", "proxy") => service(lookup, namespace, name, with_query(path(), info)),
        ("nodes", "proxy") => {
            let (scheme, id, port) = split(name)?;
            let node = lookup.get(&NODES, "", id).ok_or_else(|| Status::not_found(&NODES, id))?;
            let own = kubelet_port(&node);
            let port = if port.is_empty() { own } else { number(port, "node", id)? };
            let kubelet = port == own;
            let scheme = if kubelet { "https" } else { scheme };
            Ok(target(scheme, kubelet, &node_address(&node)?, port, with_query(path(), info)))
        }
        ("pods", subresource) => pod_stream(lookup, namespace, name, subresource, info),
        _ => Err(Status::page_not_found()),
    }
}

fn target(scheme: &str, kubelet: bool, host: &str, port: u16, path_and_query: String) -> Target {
    Target { tls: scheme == "https", kubelet, host: host.to_owned(), port, path_and_query }
}

/// The query, less what is meant for this server.
fn with_query(path: String, info: &RequestInfo) -> String {
    let mut text = path;
    if let Some(query) = &info.raw_query {
        text.push('?');
        text.push_str(query);
    }
    text
}

/// `name`, `name:port`, `scheme:name:port`.
///
/// Upstream: apimachinery/pkg/util/net/port_split.go SplitSchemeNamePort
fn split(id: &str) -> Result<(&str, &str, &str), Status> {
    let parts: Vec<&str> = id.split(':').collect();
    let split = match parts.as_slice() {
        [name] => ("", *name, ""),
        [name, port] => ("", *name, *port),
        [scheme @ ("http" | "https" | ""), name, port] => (*scheme, *name, *port),
        _ => ("", "", ""),
    };
    if split.1.is_empty() {
        Err(Status::bad_request(format!("invalid proxy request {id:?}")))
    } else {
        Ok(split)
    }
}

fn number(port: &str, kind: &str, name: &str) -> Result<u16, Status> {
    port.parse()
        .ok()
        .filter(|n| *n != 0)
        .ok_or_else(|| Status::bad_request(format!("invalid {kind} request {name:?}")))
}

fn first_port(pod: &Value) -> Option<u16> {
    let containers = pod["spec"]["containers"].as_array()?;
    let ports = containers.iter().flat_map(|c| c["ports"].as_array().into_iter().flatten());
    ports.filter_map(|p| p["containerPort"].as_u64()).find_map(|n| u16::try_from(n).ok())
}

fn kubelet_port(node: &Value) -> u16 {
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_i64().unwrap_or(KUBELET_PORT);
    u16::try_from(port).ok().filter(|n| *n != 0).unwrap_or(10250)
}

/// Upstream: pkg/kubeapiserver/options KubeletPreferredAddressTypes, but that addresses need no name service here
fn node_address(node: &Value) -> Result<String, Status> {
    let addresses = node["status"]["addresses"].as_array().cloned().unwrap_or_default();
    let of_type =
        |kind: &str| addresses.iter().find(|a| a["type"] == kind).and_then(|a| a["address"].as_str());
    let found = ["InternalIP", "ExternalIP", "Hostname"].into_iter().find_map(of_type);
    found.map(str::to_owned).ok_or_else(|| {
        Status::internal(format!(
            "no preferred addresses found; known addresses: {}",
            Value::from(addresses.clone())
        ))
    })
}

/// `id` may name a port, by name or number: `web:http`.
fn service(lookup: &dyn Lookup, namespace: &str, id: &str, path_and_query: String) -> Result<Target, Status> {
    let (scheme, name, port) = split(id)?;
    let service = lookup.get(&SERVICES, namespace, name).ok_or_else(|| Status::not_found(&SERVICES, name))?;
    let ports = service["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let wanted = ports.iter().find(|p| match port {
        "" => ports.len() == 1 || p["name"].as_str().unwrap_or_default().is_empty(),
        port => p["name"] == port || p["port"].as_u64().is_some_and(|n| n.to_string() == port),
    });
    let unavailable = |why: String| Err(Status::service_unavailable(why));
    let Some(wanted) = wanted else {
        return unavailable(format!("no service port {port:?} found for service {name:?}"));
    };
    let wanted = wanted["name"].as_str().unwrap_or_default();
    for slice in lookup.list(&SLICES, Some(namespace)) {
        if slice["metadata"]["labels"]["kubernetes.io/service-name"] != name {
            continue;
        }
        let port = slice["ports"].as_array().into_iter().flatten();
        let port = port.into_iter().find(|p| p["name"].as_str().unwrap_or_default() == wanted);
        let Some(port) = port.and_then(|p| p["port"].as_u64()).and_then(|n| u16::try_from(n).ok()) else {
            continue;
        };
        let ready = |e: &&Value| e["conditions"]["ready"].as_bool().unwrap_or(true);
        let endpoint = slice["endpoints"].as_array().into_iter().flatten().find(ready);
        if let Some(address) = endpoint.and_then(|e| e["addresses"][0].as_str()) {
            return Ok(target(scheme, false, address, port, path_and_query));
        }
    }
    unavailable(format!("no endpoints available for service {id:?}"))
}

/// Whether there is nobody yet to ask for a log that is well asked for: the log of such a pod is empty.
///
/// Upstream: pkg/registry/core/pod/strategy.go LogLocation, pkg/registry/core/pod/rest/log.go Get
pub fn is_log_of_nobody(
    lookup: &dyn Lookup,
    attributes: &Attributes,
    info: &RequestInfo,
) -> Result<bool, Status> {
    let Attributes { namespace, name, .. } = attributes;
    check_log_options(info)?;
    let pod = lookup.get(&PODS, namespace, name).ok_or_else(|| Status::not_found(&PODS, name))?;
    container(&pod, info)?;
    Ok(pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty())
}

/// Upstream: pkg/apis/core/validation/validation.go ValidatePodLogOptions
fn check_log_options(info: &RequestInfo) -> Result<(), Status> {
    let given = |name: &str| info.query.get(name).filter(|value| !value.is_empty());
    let number = |name: &str| match given(name).map(|text| (text, text.parse::<i64>())) {
        None => Ok(None),
        Some((_, Ok(number))) => Ok(Some(number)),
        Some((text, Err(_))) => {
            Err(Status::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")))
        }
    };
    let since = given("sinceTime");
    if let Some(text) = since.filter(|text| apimachinery::time::parse_rfc3339(text).is_none()) {
        return Err(Status::bad_request(format!(
            "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
        )));
    }
    let (tail, limit, seconds) = (number("tailLines")?, number("limitBytes")?, number("sinceSeconds")?);
    let mut errors = Vec::new();
    let mut check = |name: &str, number: Option<i64>, least: i64, detail: &str| {
        let wrong = number.filter(|number| *number < least);
        errors.extend(wrong.map(|number| Error::invalid(&Path::new(name), number, detail)));
    };
    check("tailLines", tail, 0, "must be greater than or equal to 0");
    check("limitBytes", limit, 1, "must be greater than 0");
    if since.is_none() {
        check("sinceSeconds", seconds, 1, "must be greater than 0");
    } else if seconds.is_some() {
        let detail = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.push(Error::forbidden(&Path::root(), detail));
    }
    if info.query.get("stream").is_some() {
        errors.push(Error::forbidden(&Path::new("stream"), "may not be specified"));
    }
    let kind = apimachinery::GroupKind::from_static("", "PodLogOptions");
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid(&kind, &info.attributes.name, &errors)) }
}

fn pod_stream(
    lookup: &dyn Lookup,
    namespace: &str,
    name: &str,
    subresource: &str,
    info: &RequestInfo,
) -> Result<Target, Status> {
    let pod = lookup.get(&PODS, namespace, name).ok_or_else(|| Status::not_found(&PODS, name))?;
    let node_name = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let path = match subresource {
        "portforward" => format!("/portForward/{namespace}/{name}"),
        "log" => format!("/containerLogs/{namespace}/{name}/{}", container(&pod, info)?),
        _ => format!("/{subresource}/{namespace}/{name}/{}", container(&pod, info)?),
    };
    if node_name.is_empty() {
        return Err(Status::bad_request(format!("pod {name} does not have a host assigned")));
    }
    let node: Arc<Value> =
        lookup.get(&NODES, "", node_name).ok_or_else(|| Status::not_found(&NODES, node_name))?;
    let query = stream_query(subresource, info)?;
    let path_and_query = if query.is_empty() { path } else { format!("{path}?{query}") };
    Ok(target("https", true, &node_address(&node)?, kubelet_port(&node), path_and_query))
}

/// The asked container, or the only one, or the annotated default.
///
/// Upstream: pkg/registry/core/pod/strategy.go validateContainer
fn container(pod: &Value, info: &RequestInfo) -> Result<String, Status> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let (main, init, ephemeral) =
        (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let asked = info.query.get("container").unwrap_or_default();
    if asked.is_empty() {
        return match main.as_slice() {
            [] => Err(Status::bad_request(format!("pod {name} has no containers"))),
            [only] => Ok(only.clone()),
            _ => {
                let default =
                    pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
                if let Some(default) = default.filter(|d| main.iter().any(|m| m == d)) {
                    return Ok(default.to_owned());
                }
                let mut message = format!(
                    "a container name must be specified for pod {name}, choose one of: [{}]",
                    main.join(" ")
                );
                if !init.is_empty() {
                    write!(message, " or one of the init containers: [{}]", init.join(" "))
                        .expect("a String grows");
                }
                Err(Status::bad_request(message))
            }
        };
    }
    if main.iter().chain(&init).chain(&ephemeral).any(|c| c == asked) {
        return Ok(asked.to_owned());
    }
    Err(Status::bad_request(format!("container {asked} is not valid for pod {name}")))
}

/// What the kubelet is asked, in its own words.
///
/// Upstream: pkg/registry/core/pod/strategy.go streamParams, LogLocation
fn stream_query(subresource: &str, info: &RequestInfo) -> Result<String, Status> {
    let mut query = String::new();
    let mut push = |name: &str, value: &str| {
        if !query.is_empty() {
            query.push('&');
        }
        query.push_str(name);
        query.push('=');
        for byte in value.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    query.push(byte as char)
                }
                _ => write!(query, "%{byte:02X}").expect("a String grows"),
            }
        }
    };
    let asked = &info.query;
    match subresource {
        "log" => {
            for flag in ["follow", "previous", "timestamps"] {
                if asked.flag(flag) == Some(true) {
                    push(flag, "true");
                }
            }
            for name in ["sinceSeconds", "tailLines", "limitBytes"] {
                if let Some(value) = asked.get(name).filter(|v| !v.is_empty()) {
                    push(name, value);
                }
            }
            if let Some(value) = asked.get("sinceTime").filter(|v| !v.is_empty()) {
                push("sinceTime", value);
            }
        }
        "portforward" => asked.all("ports").for_each(|ports| push("port", ports)),
        _ => {
            for (flag, name) in
                [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
            {
                if asked.flag(flag) == Some(true) {
                    push(name, "1");
                }
            }
            asked.all("command").for_each(|word| push("command", word));
        }
    }
    Ok(query)
}

#[cfg(test)]
mod tests;
