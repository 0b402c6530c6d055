//! Names: a pod's hostname, its hosts file and its resolver configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;

use api::Object;
use api::core::v1::{HostAlias, Pod};

use crate::pod;

/// The limits that resolvers have, and how many bytes a search line may take.
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_BYTES: usize = 2048;

/// A resolver configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// Reads the node's resolv.conf; what is not understood is passed over, as resolvers do.
// Upstream: pkg/kubelet/network/dns/dns.go parseResolvConf
pub fn parse_resolv_conf(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let keyword = words.next().unwrap_or_default();
        let words = words.map(str::to_owned);
        match keyword {
            "nameserver" => resolver.servers.extend(words.take(1)),
            // The last search line counts.
            "search" => resolver.searches = words.map(|w| trim_dot(&w)).collect(),
            "domain" if resolver.searches.is_empty() => resolver.searches = words.collect(),
            "options" => resolver.options.extend(words),
            _ => {}
        }
    }
    resolver
}

fn trim_dot(domain: &str) -> String {
    if domain == "." { domain.to_owned() } else { domain.trim_end_matches('.').to_owned() }
}

/// What a pod's resolver configuration is made from.
pub struct Cluster<'a> {
    pub servers: &'a [IpAddr],
    pub domain: &'a str,
    pub node: &'a Resolver,
}

/// The pod's resolver, and what to warn about.
// Upstream: pkg/kubelet/network/dns/dns.go GetPodDNS
pub fn resolver(pod: &Pod, cluster: &Cluster) -> (Resolver, Vec<String>) {
    let spec = pod.spec.clone().unwrap_or_default();
    let mut warnings = Vec::new();
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let by_cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !pod::host_network(pod),
        _ => false,
    };
    let mut resolver = Resolver::default();
    if by_cluster && !cluster.servers.is_empty() {
        resolver.servers = cluster.servers.iter().map(IpAddr::to_string).collect();
        if !cluster.domain.is_empty() {
            let (namespace, domain) = (pod.namespace(), cluster.domain);
            resolver.searches =
                vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
        }
        for search in &cluster.node.searches {
            if !resolver.searches.contains(search) {
                resolver.searches.push(search.clone());
            }
        }
        resolver.options = vec!["ndots:5".to_owned()];
    } else if policy != "None" {
        if by_cluster {
            warnings.push(format!(
                "pod: {:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using {policy:?} \
                 policy. Falling back to \"Default\" policy.",
                pod::display(pod)
            ));
        }
        resolver = cluster.node.clone();
        if resolver.servers.is_empty() {
            resolver.servers = vec!["127.0.0.1".to_owned()];
        }
    }
    if let Some(config) = &spec.dns_config {
        let add = |list: &mut Vec<String>, more: &Option<Vec<String>>| {
            for item in more.iter().flatten() {
                if !list.contains(item) {
                    list.push(item.clone());
                }
            }
        };
        add(&mut resolver.servers, &config.nameservers);
        add(&mut resolver.searches, &config.searches);
        let own =
            config.options.iter().flatten().map(|o| (o.name.clone().unwrap_or_default(), o.value.clone()));
        resolver.options = merge_options(&resolver.options, own);
    }
    within_limits(&mut resolver, &mut warnings);
    (resolver, warnings)
}

/// The pod's options win over those of the same name.
fn merge_options(base: &[String], own: impl Iterator<Item = (String, Option<String>)>) -> Vec<String> {
    let mut merged: BTreeMap<String, Option<String>> = BTreeMap::new();
    for option in base {
        let (name, value) =
            option.split_once(':').map_or((option.as_str(), None), |(n, v)| (n, Some(v.to_owned())));
        merged.insert(name.to_owned(), value);
    }
    merged.extend(own.map(|(name, value)| (name, value.filter(|v| !v.is_empty()))));
    merged.into_iter().map(|(name, value)| value.map_or(name.clone(), |v| format!("{name}:{v}"))).collect()
}

fn within_limits(resolver: &mut Resolver, warnings: &mut Vec<String>) {
    let before = resolver.searches.len();
    resolver.searches.truncate(MAX_SEARCHES);
    while resolver.searches.join(" ").len() > MAX_SEARCH_BYTES {
        resolver.searches.pop();
    }
    if resolver.searches.len() < before {
        warnings.push(format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {}",
            resolver.searches.join(" ")
        ));
    }
    if resolver.servers.len() > MAX_NAMESERVERS {
        resolver.servers.truncate(MAX_NAMESERVERS);
        warnings.push(format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {}",
            resolver.servers.join(" ")
        ));
    }
}

/// The longest hostname that the kernel takes.
const MAX_HOSTNAME: usize = 63;

/// The pod's hostname, and its domain if it has one.
// Upstream: pkg/kubelet/kubelet_pods.go GeneratePodHostNameAndDomain
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, String) {
    let spec = pod.spec.clone().unwrap_or_default();
    let short = |name: &str| {
        let cut: String = name.chars().take(MAX_HOSTNAME).collect();
        if name.len() > MAX_HOSTNAME { cut.trim_end_matches(['-', '.']).to_owned() } else { cut }
    };
    if let Some(name) = &spec.hostname_override {
        return (short(name), String::new());
    }
    let name = spec.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or(pod.name());
    let domain = match spec.subdomain.as_deref() {
        Some(subdomain) if !subdomain.is_empty() => {
            format!("{subdomain}.{}.svc.{cluster_domain}", pod.namespace())
        }
        _ => String::new(),
    };
    (short(name), domain)
}

/// The hostname that the kernel is told: with the pod's domain if the pod asks for that.
// Upstream: pkg/kubelet/util/util_unix.go GetNodenameForKernel
pub fn kernel_hostname(pod: &Pod, cluster_domain: &str) -> Result<String, String> {
    let (hostname, domain) = hostname(pod, cluster_domain);
    if pod.spec.as_ref().and_then(|s| s.set_hostname_as_fqdn) != Some(true) || domain.is_empty() {
        return Ok(hostname);
    }
    let whole = format!("{hostname}.{domain}");
    const MAX_FQDN: usize = 64;
    if whole.len() > MAX_FQDN {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {whole} is too long ({MAX_FQDN} \
             characters is the max, {} characters requested)",
            whole.len()
        ));
    }
    Ok(whole)
}

/// The hosts file of a pod with a network of its own.
// Upstream: pkg/kubelet/kubelet_pods.go managedHostsFileContent
pub fn hosts_file(pod_ips: &[String], hostname: &str, domain: &str, aliases: &[HostAlias]) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
    );
    for ip in pod_ips {
        if domain.is_empty() {
            text.push_str(&format!("{ip}\t{hostname}\n"));
        } else {
            text.push_str(&format!("{ip}\t{hostname}.{domain}\t{hostname}\n"));
        }
    }
    text + &alias_lines(aliases)
}

/// The hosts file of a pod in the node's network: the node's, and the pod's aliases.
pub fn host_network_hosts_file(node_hosts: &str, aliases: &[HostAlias]) -> String {
    format!("# Kubernetes-managed hosts file (host network).\n{node_hosts}{}", alias_lines(aliases))
}

fn alias_lines(aliases: &[HostAlias]) -> String {
    if aliases.is_empty() {
        return String::new();
    }
    let lines = aliases.iter().map(|alias| {
        let names = alias.hostnames.as_deref().unwrap_or_default();
        format!("{}\t{}\n", alias.ip, names.join("\t"))
    });
    format!("\n# Entries added by HostAliases.\n{}", lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# c\nnameserver 1.1.1.1 # x\nsearch a. b\nsearch c\noptions ndots:2 edns0\njunk\n";
        let want = Resolver {
            servers: vec!["1.1.1.1".into()],
            searches: vec!["c".into()],
            options: vec!["ndots:2".into(), "edns0".into()],
        };
        assert_eq!(parse_resolv_conf(text), want);
    }

    #[test]
    fn policies() {
        let node = parse_resolv_conf("nameserver 9.9.9.9\nsearch corp\n");
        let servers = ["10.43.0.10".parse().unwrap()];
        let cluster = Cluster { servers: &servers, domain: "cluster.local", node: &node };
        let config = json!({"nameservers": ["8.8.8.8"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}]});
        let cases = [
            (
                json!({"dnsPolicy": "ClusterFirst"}),
                "10.43.0.10 | n.svc.cluster.local svc.cluster.local cluster.local corp | ndots:5",
            ),
            (json!({"dnsPolicy": "ClusterFirst", "hostNetwork": true}), "9.9.9.9 | corp | "),
            (
                json!({"dnsPolicy": "ClusterFirstWithHostNet", "hostNetwork": true}),
                "10.43.0.10 | n.svc.cluster.local svc.cluster.local cluster.local corp | ndots:5",
            ),
            (json!({"dnsPolicy": "Default"}), "9.9.9.9 | corp | "),
            (json!({"dnsPolicy": "None", "dnsConfig": config}), "8.8.8.8 | x | ndots:2"),
            (json!({"dnsPolicy": "Default", "dnsConfig": config}), "9.9.9.9 8.8.8.8 | corp x | ndots:2"),
        ];
        for (mut spec, want) in cases {
            spec["containers"] = json!([]);
            let object = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec});
            let pod: Pod = serde_json::from_value(object).unwrap();
            let (r, warnings) = resolver(&pod, &cluster);
            let words =
                format!("{} | {} | {}", r.servers.join(" "), r.searches.join(" "), r.options.join(" "));
            assert_eq!((words.as_str(), warnings.len()), (want, 0), "{spec}");
        }
    }

    #[test]
    fn hosts_files() {
        let alias = HostAlias { ip: "1.2.3.4".into(), hostnames: Some(vec!["foo".into(), "bar".into()]) };
        expect![[r#"
            # Kubernetes-managed hosts file.
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            fe00::0	ip6-localnet
            fe00::0	ip6-mcastprefix
            fe00::1	ip6-allnodes
            fe00::2	ip6-allrouters
            10.42.0.2	web.sub.n.svc.cluster.local	web

            # Entries added by HostAliases.
            1.2.3.4	foo	bar
        "#]]
        .assert_eq(&hosts_file(&["10.42.0.2".into()], "web", "sub.n.svc.cluster.local", &[alias]));
    }

    #[test]
    fn long_names_are_cut_to_a_hostname() {
        let mut pod = Pod::default();
        pod.metadata.name = Some(format!("{}-x", "a".repeat(62)));
        assert_eq!(hostname(&pod, "d").0, "a".repeat(62));
    }

    #[test]
    fn the_kernel_is_told_the_whole_name_when_asked() {
        let check = |fqdn: bool, subdomain: &str, want: Result<&str, &str>| {
            let spec = json!({"setHostnameAsFQDN": fqdn, "subdomain": subdomain, "containers": []});
            let object = json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec});
            let pod: Pod = serde_json::from_value(object).unwrap();
            let name = kernel_hostname(&pod, "cluster.local");
            assert_eq!(name.as_deref().map_err(|why| &why[..21]), want);
        };
        check(false, "sub", Ok("p"));
        check(true, "", Ok("p"));
        check(true, "sub", Ok("p.sub.n.svc.cluster.local"));
        check(true, &"s".repeat(60), Err("failed to construct F"));
    }
}
