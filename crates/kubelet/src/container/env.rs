//! The environment of a container.

use std::collections::BTreeMap;

use api::Object;
use api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret, Service};

use super::downward::{self, Surroundings};
use super::expansion::expand;
use crate::env_file;

/// The ConfigMaps and Secrets that the pod's variables name, as far as they exist.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    pub config_maps: BTreeMap<String, ConfigMap>,
    pub secrets: BTreeMap<String, Secret>,
}

/// The names that a container's variables need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    pub config_maps: Vec<String>,
    pub secrets: Vec<String>,
}

pub fn needed(container: &Container) -> Needed {
    let mut needed = Needed::default();
    for source in container.env_from.iter().flatten() {
        needed.config_maps.extend(source.config_map_ref.iter().map(|r| r.name.clone()));
        needed.secrets.extend(source.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|v| v.value_from.as_ref()) {
        needed.config_maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        needed.secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    needed
}

/// The variables, in no order that counts: sorted by name. An error is what keeps the container from being made.
// Upstream: pkg/kubelet/kubelet_pods.go makeEnvironmentVariables
pub fn environment(
    pod: &Pod,
    container: &Container,
    services: &BTreeMap<String, String>,
    sources: &Sources,
    files: Files<'_>,
    around: &Surroundings,
) -> Result<BTreeMap<String, String>, String> {
    let mut env = BTreeMap::new();
    let namespace = pod.namespace();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(map) => {
                    env.extend(map.data.iter().flatten().map(|(k, v)| (format!("{prefix}{k}"), v.clone())));
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("configmap {:?} not found", reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(secret) => {
                    env.extend(
                        secret.data.iter().flatten().map(|(k, v)| {
                            (format!("{prefix}{k}"), String::from_utf8_lossy(&v.0).into_owned())
                        }),
                    )
                }
                None if reference.optional == Some(true) => {}
                None => return Err(format!("secret {:?} not found", reference.name)),
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (variable.value.as_deref().filter(|v| !v.is_empty()), &variable.value_from) {
            (Some(text), _) => {
                Some(expand(text, |name| env.get(name).or_else(|| services.get(name)).cloned()))
            }
            (None, Some(source)) => from_source(source, pod, container, namespace, sources, files, around)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.insert(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        env.entry(name.clone()).or_insert_with(|| value.clone());
    }
    Ok(env)
}

/// `None` when the source is optional and not there.
fn from_source(
    source: &EnvVarSource,
    pod: &Pod,
    container: &Container,
    namespace: &str,
    sources: &Sources,
    files: Files<'_>,
    around: &Surroundings,
) -> Result<Option<String>, String> {
    if let Some(field) = &source.field_ref {
        return downward::field(field, pod, around).map(Some);
    }
    if let Some(resource) = &source.resource_field_ref {
        return downward::resource(resource, pod, container, around).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        let Some(map) = sources.config_maps.get(&key.name) else {
            return if optional { Ok(None) } else { Err(format!("configmap {:?} not found", key.name)) };
        };
        return match map.data.as_ref().and_then(|d| d.get(&key.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", key.key, key.name)),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        let Some(secret) = sources.secrets.get(&key.name) else {
            return if optional { Ok(None) } else { Err(format!("secret {:?} not found", key.name)) };
        };
        return match secret.data.as_ref().and_then(|d| d.get(&key.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", key.key, key.name)),
        };
    }
    if let Some(selector) = &source.file_key_ref {
        let text = files(&selector.volume_name, &selector.path)?;
        let value = env_file::value(&text, &selector.key)
            .map_err(|why| {
                tracing::warn!(
                    pod = pod.name(),
                    file = selector.path,
                    why,
                    "a pod's environment file is not valid"
                );
                "couldn't parse env file".to_owned()
            })?
            .filter(|value| !value.is_empty());
        let (key, path) = (&selector.key, &selector.path);
        return match value {
            Some(value) => Ok(Some(value)),
            None if selector.optional == Some(true) => Ok(None),
            None => Err(format!("environment variable key {key:?} not found in file {path:?}")),
        };
    }
    Ok(Some(String::new()))
}

/// Reads a file of one of the pod's volumes, by the volume's name and the path in it.
pub type Files<'a> = &'a dyn Fn(&str, &str) -> Result<String, String>;

/// The variables that tell a pod of services: those of its namespace if it wants links, and the API server's
/// always.
// Upstream: pkg/kubelet/kubelet_pods.go getServiceEnvVarMap
pub fn service_variables<'a>(
    services: impl Iterator<Item = &'a Service>,
    namespace: &str,
    links: bool,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let mut of_namespace = Vec::new();
    for service in services {
        let address = cluster_ip(service);
        if address.is_empty() || address == "None" {
            continue;
        }
        if service.namespace() == namespace && links {
            of_namespace.push(service);
        } else if service.namespace() == "default" && service.name() == "kubernetes" {
            describe(service, &mut variables);
        }
    }
    for service in of_namespace {
        describe(service, &mut variables);
    }
    variables
}

fn cluster_ip(service: &Service) -> &str {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).unwrap_or_default()
}

// Upstream: pkg/kubelet/envvars/envvars.go FromServices
fn describe(service: &Service, variables: &mut BTreeMap<String, String>) {
    let upper = |name: &str| name.replace('-', "_").to_uppercase();
    let prefix = upper(service.name());
    let address = cluster_ip(service);
    let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
    variables.insert(format!("{prefix}_SERVICE_HOST"), address.to_owned());
    let ports = service.spec.as_ref().and_then(|s| s.ports.as_deref()).unwrap_or_default();
    for (index, port) in ports.iter().enumerate() {
        let number = port.port;
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let (lower, caps) = (protocol.to_lowercase(), protocol.to_uppercase());
        let url = format!("{lower}://{host}:{number}");
        if index == 0 {
            variables.insert(format!("{prefix}_SERVICE_PORT"), number.to_string());
            variables.insert(format!("{prefix}_PORT"), url.clone());
        }
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            variables.insert(format!("{prefix}_SERVICE_PORT_{}", upper(name)), number.to_string());
        }
        let of_port = format!("{prefix}_PORT_{number}_{caps}");
        variables.insert(format!("{of_port}_PROTO"), lower);
        variables.insert(format!("{of_port}_PORT"), number.to_string());
        variables.insert(format!("{of_port}_ADDR"), address.to_owned());
        variables.insert(of_port, url);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(container: Value, want: Result<&str, &str>) {
        let container: Container = serde_json::from_value(container).unwrap();
        let mut pod = Pod::default();
        pod.metadata.name = Some("p".into());
        pod.metadata.namespace = Some("n".into());
        let map: ConfigMap = serde_json::from_value(json!({"data": {"K": "v", "L": "w"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"data": {"S": "c2VjcmV0"}})).unwrap();
        let sources = Sources {
            config_maps: BTreeMap::from([("m".into(), map)]),
            secrets: BTreeMap::from([("s".into(), secret)]),
        };
        let services = BTreeMap::from([("WEB_SERVICE_HOST".to_owned(), "10.0.0.1".to_owned())]);
        let files = |volume: &str, path: &str| match (volume, path) {
            ("v", "f") => Ok("X='from a file'\n".to_owned()),
            _ => Err(format!("no {path} in {volume}")),
        };
        let env = environment(&pod, &container, &services, &sources, &files, &Surroundings::default());
        let words = env.map(|env| {
            let pairs = env.iter().filter(|(k, _)| !k.starts_with("WEB")).map(|(k, v)| format!("{k}={v}"));
            pairs.collect::<Vec<_>>().join(" ")
        });
        assert_eq!(words.as_deref().map_err(String::as_str), want, "{container:?}");
    }

    #[test]
    fn environments() {
        check(
            json!({"name": "c", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(WEB_SERVICE_HOST)-$(C)"}]}),
            Ok("A=1 B=1-10.0.0.1-$(C)"),
        );
        check(
            json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "s"}}]}),
            Ok("P_K=v P_L=w S=secret"),
        );
        check(
            json!({"name": "c", "envFrom": [{"configMapRef": {"name": "m"}}], "env": [{"name": "K", "value": "mine"}]}),
            Ok("K=mine L=w"),
        );
        check(
            json!({"name": "c", "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
            Ok("N=p"),
        );
        check(
            json!({"name": "c", "env": [{"name": "N", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "none"}}}]}),
            Err("couldn't find key none in ConfigMap n/m"),
        );
        check(
            json!({"name": "c", "env": [{"name": "N", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "k"}}}]}),
            Err("configmap \"none\" not found"),
        );
        check(
            json!({"name": "c", "env": [{"name": "N", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": true}}}]}),
            Ok(""),
        );
    }

    #[test]
    fn files_of_volumes() {
        let from = |key: &str, optional: bool| {
            json!({"name": "c", "env": [{"name": "A", "valueFrom": {"fileKeyRef": {
                "volumeName": "v", "path": "f", "key": key, "optional": optional}}}]})
        };
        check(from("X", false), Ok("A=from a file"));
        check(from("Y", true), Ok(""));
        check(from("Y", false), Err("environment variable key \"Y\" not found in file \"f\""));
    }

    #[test]
    fn services_are_told() {
        let service = |namespace: &str, name: &str, address: &str| -> Service {
            serde_json::from_value(json!({
                "metadata": {"namespace": namespace, "name": name},
                "spec": {"clusterIP": address, "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
            }))
            .unwrap()
        };
        let all = [
            service("n", "my-web", "10.0.0.2"),
            service("default", "kubernetes", "10.0.0.1"),
            service("n", "headless", "None"),
            service("other", "x", "10.0.0.3"),
        ];
        let variables = service_variables(all.iter(), "n", true);
        assert_eq!(variables["MY_WEB_PORT_80_TCP"], "tcp://10.0.0.2:80");
        assert_eq!(variables["MY_WEB_SERVICE_PORT_HTTP"], "80");
        assert_eq!(variables["KUBERNETES_SERVICE_HOST"], "10.0.0.1");
        assert_eq!(variables.len(), 16);
        assert_eq!(service_variables(all.iter(), "n", false).len(), 8);
    }
}
