//! One call of the CNI protocol: the command and its names from the environment, the configuration from stdin,
//! the answer as JSON on stdout.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::process::ExitCode;

use linux::netns::NetNs;
use serde_json::{Value, json};

use crate::config::{Attachment, Config, MAX_CONFIG_BYTES, Protocol, VERSIONS};
use crate::ipam::{Addresses, Held};
use crate::policy::{self, PodName};
use crate::{Error, attach, host, rules};

/// Answers the call that the environment describes. There are no arguments in the protocol.
pub fn main(_: impl Iterator<Item = OsString>) -> ExitCode {
    let environment = |name: &str| std::env::var(name).ok();
    let mut stdin = Vec::new();
    let read = std::io::stdin().take(MAX_CONFIG_BYTES).read_to_end(&mut stdin);
    let answer = read.map_err(Error::io("read stdin")).and_then(|_| answer(&environment, &stdin));
    let (output, code) = match answer {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(result)) => (result, ExitCode::SUCCESS),
        Err(error) => (refusal(&error, &stdin), ExitCode::FAILURE),
    };
    let mut stdout = std::io::stdout();
    match writeln!(stdout, "{output}").and_then(|()| stdout.flush()) {
        Ok(()) => code,
        // The caller went away; there is nobody left to tell.
        Err(_) => ExitCode::FAILURE,
    }
}

/// The version that the caller writes, if it is one of ours; results and errors repeat it.
fn spoken_version(version: &str) -> &str {
    VERSIONS.into_iter().find(|known| *known == version).unwrap_or(VERSIONS[0])
}

fn refusal(error: &Error, stdin: &[u8]) -> Value {
    let config: Value = serde_json::from_slice(stdin).unwrap_or_default();
    let version = spoken_version(config["cniVersion"].as_str().unwrap_or_default());
    let mut details = Vec::new();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        details.push(cause.to_string());
        next = cause.source();
    }
    json!({"cniVersion": version, "code": error.code(), "msg": error.chain(), "details": details.join(": ")})
}

type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

fn required(environment: Environment<'_>, name: &str) -> Result<String, Error> {
    environment(name)
        .filter(|value| !value.is_empty())
        .ok_or_else(|| Error::Environment(format!("{name} is not set")))
}

fn attachment(environment: Environment<'_>) -> Result<Attachment, Error> {
    Attachment::new(&required(environment, "CNI_CONTAINERID")?, &required(environment, "CNI_IFNAME")?)
}

/// Does what was asked; the result to print, if the command has one.
fn answer(environment: Environment<'_>, stdin: &[u8]) -> Result<Option<Value>, Error> {
    let command = required(environment, "CNI_COMMAND")?;
    if command == "VERSION" {
        return Ok(Some(json!({"cniVersion": VERSIONS[1], "supportedVersions": VERSIONS})));
    }
    let config = Config::parse(stdin)?;
    match command.as_str() {
        "ADD" => {
            let pod = environment("CNI_ARGS").and_then(|arguments| PodName::read(&arguments));
            let netns = required(environment, "CNI_NETNS")?;
            add(&config, &attachment(environment)?, &netns, pod.as_ref()).map(Some)
        }
        "DEL" => delete(&config, &attachment(environment)?).map(|()| None),
        "CHECK" => {
            check(&config, &attachment(environment)?, &required(environment, "CNI_NETNS")?).map(|()| None)
        }
        "STATUS" => config.pod_cidrs().map(|_| None),
        "GC" => collect(&config).map(|()| None),
        other => Err(Error::Environment(format!("CNI_COMMAND={other:?} is not a command"))),
    }
}

fn add(config: &Config, attachment: &Attachment, netns: &str, pod: Option<&PodName>) -> Result<Value, Error> {
    let ranges = config.pod_cidrs()?;
    let mappings = config.port_mappings()?;
    let namespace = NetNs::open(netns).map_err(Error::io(format!("open the network namespace {netns}")))?;
    for range in &ranges {
        host::enable_forwarding(range.is_ipv6())?;
    }
    // The lock is free while the kernel works: wiring touches only what is the attachment's own.
    let given = Addresses::lock(&config.state_dir).and_then(|table| table.give(&ranges, attachment));
    let made = given.and_then(|addresses| {
        if let (Some(dir), Some(pod)) = (&config.policy_dir, pod) {
            policy::announce(dir, attachment, pod, &addresses)?;
        }
        attach::add(attachment, &namespace, &addresses, config.mtu)?;
        publish(config, attachment, &addresses, &mappings)?;
        Ok(addresses)
    });
    match made {
        Ok(addresses) => Ok(result(config, attachment, netns, &addresses)),
        Err(error) => {
            // The first error is the one to tell; what cannot be undone now, DEL or GC undoes.
            let _ = delete(config, attachment);
            Err(error)
        }
    }
}

fn publish(
    config: &Config,
    attachment: &Attachment,
    addresses: &[IpAddr],
    mappings: &[crate::config::PortMapping],
) -> Result<(), Error> {
    if mappings.is_empty() {
        return Ok(());
    }
    let sysctl = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", attachment.host_link());
    std::fs::write(&sysctl, "1").map_err(Error::io(format!("write {sysctl}")))?;
    for address in addresses {
        let mine: Vec<_> = mappings.iter().filter(|m| m.is_for(address.is_ipv6())).cloned().collect();
        let held = Held { address: *address, attachment: attachment.clone() };
        // Remembered before they are made, so that DEL finds them whatever happens between.
        Addresses::lock(&config.state_dir)?.set_port_mappings(&held, &mine)?;
        linux::nft::apply(&rules::publish(&mine, *address)).map_err(Error::HostPorts)?;
    }
    Ok(())
}

fn result(config: &Config, attachment: &Attachment, netns: &str, addresses: &[IpAddr]) -> Value {
    let mac = |end| attachment.mac(end).map(|byte| format!("{byte:02x}")).join(":");
    let ips: Vec<Value> = addresses
        .iter()
        .map(|address| {
            let length = attach::full_length(*address);
            json!({"address": format!("{address}/{length}"), "gateway": attach::gateway(*address), "interface": 1})
        })
        .collect();
    let routes: Vec<Value> = addresses
        .iter()
        .map(|address| {
            let destination = if address.is_ipv6() { "::/0" } else { "0.0.0.0/0" };
            json!({"dst": destination, "gw": attach::gateway(*address)})
        })
        .collect();
    json!({
        "cniVersion": spoken_version(&config.cni_version),
        "interfaces": [
            {"name": attachment.host_link(), "mac": mac("host")},
            {"name": attachment.interface(), "mac": mac("pod"), "sandbox": netns},
        ],
        "ips": ips,
        "routes": routes,
        "dns": {},
    })
}

/// Takes an attachment away. The namespace may be gone: the link is known by its name, the rest by the files.
fn delete(config: &Config, attachment: &Attachment) -> Result<(), Error> {
    attach::runtime()?.block_on(attach::delete_link(attachment))?;
    withdraw(config, attachment)?;
    let table = Addresses::lock(&config.state_dir)?;
    for held in table.held_by(attachment)? {
        release(&table, &held)?;
    }
    Ok(())
}

fn withdraw(config: &Config, attachment: &Attachment) -> Result<(), Error> {
    config.policy_dir.as_ref().map_or(Ok(()), |dir| policy::withdraw(dir, attachment))
}

fn release(table: &Addresses, held: &Held) -> Result<(), Error> {
    let mappings = table.port_mappings(held);
    for mapping in &mappings {
        match linux::nft::apply(&rules::unpublish(mapping, held.address)) {
            // Refused: the port leads to another pod by now. Missing: nothing was ever published.
            Ok(()) | Err(linux::nft::Error::Refused(_) | linux::nft::Error::Missing) => {}
            Err(error) => return Err(Error::HostPorts(error)),
        }
    }
    if mappings.iter().any(|mapping| mapping.protocol == Protocol::Udp) {
        let cut =
            linux::conntrack::delete(|flow| flow.protocol == 17 && flow.reply_source.ip() == held.address);
        cut.map_err(Error::io("cut the flows of a host port"))?;
    }
    table.take_back(held)
}

fn check(config: &Config, attachment: &Attachment, netns: &str) -> Result<(), Error> {
    let namespace = NetNs::open(netns).map_err(Error::io(format!("open the network namespace {netns}")))?;
    let held = Addresses::lock(&config.state_dir)?.held_by(attachment)?;
    if held.is_empty() {
        let container = attachment.container_id().to_owned();
        return Err(Error::Changed { container, what: "it has no address".to_owned() });
    }
    let addresses: Vec<IpAddr> = held.iter().map(|held| held.address).collect();
    attach::check(attachment, &namespace, &addresses)
}

/// Takes away every attachment that the caller does not name. Without a list there is nothing to go by.
fn collect(config: &Config) -> Result<(), Error> {
    let Some(valid) = &config.valid_attachments else { return Ok(()) };
    let valid: BTreeSet<(&str, &str)> =
        valid.iter().map(|one| (one.container_id.as_str(), one.ifname.as_str())).collect();
    let table = Addresses::lock(&config.state_dir)?;
    let runtime = attach::runtime()?;
    for held in table.held()? {
        let attachment = &held.attachment;
        if !valid.contains(&(attachment.container_id(), attachment.interface())) {
            runtime.block_on(attach::delete_link(attachment))?;
            withdraw(config, attachment)?;
            release(&table, &held)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
