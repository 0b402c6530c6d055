//! Pods' networks: CNI plugins, executed as the CNI specification 1.0 says.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use cri::v1::{PodSandboxConfig, Protocol};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::config::{CniConfig, Config};
use crate::{Error, images};

/// The one built in, which is this program itself.
const BUILTIN: &str = "trierarch-cni";
/// A plugin that takes longer will not come back.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(60);
pub(crate) const INTERFACE: &str = "eth0";

/// A network: its name and its plugins in order, each with its configuration.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Network {
    name: String,
    version: String,
    plugins: Vec<Value>,
}

impl Network {
    /// Reads a plugin's configuration or a list of them.
    fn parse(text: &[u8]) -> Result<Self, String> {
        let conf: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
        let string = |key: &str| conf[key].as_str().map(str::to_owned);
        let plugins = match conf["plugins"].as_array() {
            Some(plugins) => plugins.clone(),
            None => vec![conf.clone()],
        };
        if plugins.is_empty() || plugins.iter().any(|plugin| !plugin["type"].is_string()) {
            return Err("a plugin without a type".to_owned());
        }
        let name = string("name").ok_or("the network has no name")?;
        Ok(Self { name, version: string("cniVersion").unwrap_or_else(|| "0.1.0".to_owned()), plugins })
    }

    /// What a plugin reads on stdin: its configuration with what the call adds to it.
    fn input(&self, plugin: &Value, previous: Option<&Value>, runtime: &Value) -> Value {
        let mut input = plugin.clone();
        input["name"] = json!(self.name);
        input["cniVersion"] = json!(self.version);
        if let Some(previous) = previous {
            input["prevResult"] = previous.clone();
        }
        let mut wanted = serde_json::Map::new();
        for (capability, value) in runtime.as_object().into_iter().flatten() {
            if plugin["capabilities"][capability] == json!(true) {
                wanted.insert(capability.clone(), value.clone());
            }
        }
        if !wanted.is_empty() {
            input["runtimeConfig"] = Value::Object(wanted);
        }
        input
    }
}

/// The network that pods join now, or why there is none.
pub(crate) fn current(config: &Config, pod_cidrs: &[String]) -> Result<Option<Network>, String> {
    let (conf_dir, builtin) = match &config.cni {
        CniConfig::Disabled => return Ok(None),
        CniConfig::Plugins { conf_dir, builtin, .. } => (conf_dir, builtin),
    };
    if let Some(path) = first_conf(conf_dir) {
        let text = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        return Network::parse(&text).map(Some).map_err(|e| format!("{}: {e}", path.display()));
    }
    if pod_cidrs.is_empty() {
        return Err("no CNI configuration, and the node has no pod CIDR yet".to_owned());
    }
    let conf = builtin.conf(pod_cidrs);
    Network::parse(conf.to_string().as_bytes()).map(Some)
}

/// The first configuration by name, as every engine chooses.
fn first_conf(dir: &Path) -> Option<PathBuf> {
    let is_conf = |path: &PathBuf| {
        path.extension().is_some_and(|kind| kind == "conf" || kind == "conflist" || kind == "json")
    };
    std::fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).filter(is_conf).min()
}

/// A pod to connect or disconnect.
#[derive(Debug)]
pub(crate) struct Attachment<'a> {
    pub sandbox: &'a str,
    /// Empty when the namespace is gone already.
    pub netns: String,
    pub pod: &'a PodSandboxConfig,
    /// What the plugins answered when they connected the pod, for those that disconnect it by that.
    pub result: Option<Value>,
}

/// Connects the pod and returns its addresses, the first one the pod's own, and what the last plugin answered.
pub(crate) async fn add(
    config: &Config,
    network: &Network,
    at: &Attachment<'_>,
) -> Result<(Vec<String>, Option<Value>), Error> {
    let runtime = runtime_config(at.pod);
    let mut result: Option<Value> = None;
    for plugin in &network.plugins {
        let input = network.input(plugin, result.as_ref(), &runtime);
        result = Some(call(config, "ADD", plugin, &input, at).await?);
    }
    let addresses = result.as_ref().map(addresses).unwrap_or_default();
    if addresses.is_empty() {
        return Err(Error::Network { plugin: network.name.clone(), message: "gave no address".to_owned() });
    }
    Ok((addresses, result))
}

/// Disconnects the pod: the plugins in reverse. Safe to repeat.
pub(crate) async fn delete(config: &Config, network: &Network, at: &Attachment<'_>) -> Result<(), Error> {
    let runtime = runtime_config(at.pod);
    for plugin in network.plugins.iter().rev() {
        let input = network.input(plugin, at.result.as_ref(), &runtime);
        call(config, "DEL", plugin, &input, at).await?;
    }
    Ok(())
}

fn runtime_config(pod: &PodSandboxConfig) -> Value {
    let mapping = |port: &cri::v1::PortMapping| {
        let protocol = match port.protocol() {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        };
        json!({
            "hostPort": port.host_port, "containerPort": port.container_port,
            "protocol": protocol, "hostIP": port.host_ip,
        })
    };
    let ports: Vec<Value> = pod.port_mappings.iter().filter(|port| port.host_port > 0).map(mapping).collect();
    if ports.is_empty() { json!({}) } else { json!({ "portMappings": ports }) }
}

fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let address = |ip: &Value| Some(ip["address"].as_str()?.split('/').next()?.to_owned());
    ips.iter().filter_map(address).collect()
}

async fn call(
    config: &Config,
    command: &str,
    plugin: &Value,
    input: &Value,
    at: &Attachment<'_>,
) -> Result<Value, Error> {
    let name = plugin["type"].as_str().unwrap_or_default().to_owned();
    let failed = |message: String| Error::Network { plugin: name.clone(), message };
    let CniConfig::Plugins { bin_dirs, .. } = &config.cni else { return Ok(Value::Null) };
    let mut process = match name.as_str() {
        BUILTIN => {
            let mut process = tokio::process::Command::new(&config.self_exe);
            process.arg("cni");
            process
        }
        _ if name.contains('/') => return Err(failed("its type is not a name".to_owned())),
        _ => {
            let found = bin_dirs.iter().map(|dir| dir.join(&name)).find(|path| path.exists());
            tokio::process::Command::new(found.ok_or_else(|| failed(format!("not found in {bin_dirs:?}")))?)
        }
    };
    let metadata = at.pod.metadata.clone().unwrap_or_default();
    let path = std::env::join_paths(bin_dirs).map_err(|e| failed(e.to_string()))?;
    let mut child = process
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", at.sandbox)
        .env("CNI_NETNS", &at.netns)
        .env("CNI_IFNAME", INTERFACE)
        .env("CNI_PATH", path)
        .env(
            "CNI_ARGS",
            format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
                metadata.namespace, metadata.name, at.sandbox, metadata.uid
            ),
        )
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let mut stdin = child.stdin.take().ok_or_else(|| failed("it has no stdin".to_owned()))?;
    let talk = async move {
        // A plugin that does not read its input says why in its answer.
        let _ = stdin.write_all(input.to_string().as_bytes()).await;
        drop(stdin);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PLUGIN_TIMEOUT, talk)
        .await
        .map_err(|_| failed(format!("{command} took longer than {PLUGIN_TIMEOUT:?}")))?
        .map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null));
    }
    Err(failed(complaint(&output.stdout, &output.stderr)))
}

/// The error that a plugin prints on stdout as JSON, or what it said on stderr.
fn complaint(stdout: &[u8], stderr: &[u8]) -> String {
    let error: Value = serde_json::from_slice(stdout).unwrap_or(Value::Null);
    match error["msg"].as_str() {
        Some(message) => match error["details"].as_str().filter(|details| !details.is_empty()) {
            Some(details) => format!("{message}: {details}"),
            None => message.to_owned(),
        },
        None => String::from_utf8_lossy(stderr).trim().chars().take(1024).collect(),
    }
}

/// Brings up the loopback link of the namespace that the calling thread is in.
pub(crate) fn loopback_up() -> Result<(), linux::Error> {
    let failed = |_| linux::Error::call("bring up lo", rustix::io::Errno::NETDOWN);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    runtime
        .block_on(async {
            let netlink = linux::netlink::Netlink::open()?;
            match netlink.link("lo").await? {
                Some(link) => netlink.set_up(link.index).await,
                None => Err(std::io::ErrorKind::NotFound.into()),
            }
        })
        .map_err(failed)
}

/// The text of a pod's resolv.conf.
pub(crate) fn resolv_conf(dns: &cri::v1::DnsConfig) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    text
}

/// An image's name for messages, whatever form it came in.
pub(crate) fn shown(reference: &str) -> String {
    images::normalize(reference).unwrap_or_else(|_| reference.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_reads_its_own_part_and_what_it_can_do() {
        let list = br#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"bridge"},
            {"type":"portmap","capabilities":{"portMappings":true}}]}"#;
        let network = Network::parse(list).unwrap();
        let runtime = json!({ "portMappings": [1], "bandwidth": {} });
        let first = network.input(&network.plugins[0], None, &runtime);
        assert_eq!(first, json!({ "type": "bridge", "name": "n", "cniVersion": "1.0.0" }));
        let second = network.input(&network.plugins[1], Some(&json!({ "ips": [] })), &runtime);
        assert_eq!(second["runtimeConfig"], json!({ "portMappings": [1] }));
        assert_eq!(second["prevResult"], json!({ "ips": [] }));
        assert!(Network::parse(b"{}").is_err());
        assert!(Network::parse(br#"{"name":"n","plugins":[{}]}"#).is_err());
    }

    #[test]
    fn answers_are_read() {
        let result = json!({ "ips": [{ "address": "10.42.0.5/32" }, { "address": "fd00::5/128" }] });
        assert_eq!(addresses(&result), ["10.42.0.5", "fd00::5"]);
        assert_eq!(complaint(br#"{"code":7,"msg":"no","details":"why"}"#, b""), "no: why");
        assert_eq!(complaint(b"", b"panic\n"), "panic");
        let dns = cri::v1::DnsConfig {
            servers: vec!["10.43.0.10".into()],
            searches: vec!["a".into(), "b".into()],
            options: vec!["ndots:5".into()],
        };
        assert_eq!(resolv_conf(&dns), "search a b\nnameserver 10.43.0.10\noptions ndots:5\n");
    }
}
