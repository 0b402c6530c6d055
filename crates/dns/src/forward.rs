//! Names that are not the cluster's: asked of upstream servers, answers kept for a while.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};

use crate::Error;

/// How many answers are kept.
const CACHE_ENTRIES: u64 = 4096;
/// Answers are kept no longer than CoreDNS keeps them.
const LONGEST_KEPT: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(2);
/// As resolv.conf: more are not looked at.
const MAX_UPSTREAMS: usize = 3;

/// The servers that a resolv.conf names.
pub fn upstreams(resolv_conf: &str) -> Vec<SocketAddr> {
    let servers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next())?
    });
    servers.filter_map(|address| address.parse().ok()).map(|address: IpAddr| (address, 53).into()).collect()
}

/// Leaves out the servers that are this one, by whatever address.
pub(crate) fn without_self(
    upstreams: &[SocketAddr],
    bound: &[SocketAddr],
    service_addresses: &[IpAddr],
) -> Vec<SocketAddr> {
    let is_self = |server: &SocketAddr| {
        service_addresses.contains(&server.ip())
            || bound.iter().any(|own| {
                own.port() == server.port()
                    && (own.ip() == server.ip() || own.ip().is_unspecified() || server.ip().is_unspecified())
            })
    };
    upstreams.iter().filter(|server| !is_self(server)).copied().take(MAX_UPSTREAMS).collect()
}

/// What upstream said.
pub(crate) struct Forwarded {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
}

impl Forwarded {
    fn code(code: ResponseCode) -> Self {
        Forwarded { code, answers: Vec::new(), authorities: Vec::new() }
    }
}

/// The way to upstream; without servers, every question is refused.
pub(crate) struct Forwarder {
    resolver: Option<TokioResolver>,
}

impl Forwarder {
    pub fn new(servers: &[SocketAddr]) -> Result<Self, Error> {
        if servers.is_empty() {
            return Ok(Forwarder { resolver: None });
        }
        let mut config = ResolverConfig::default();
        for server in servers {
            let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
                let mut connection = ConnectionConfig::new(protocol);
                connection.port = server.port();
                connection
            });
            config.add_name_server(NameServerConfig::new(server.ip(), true, connections.into()));
        }
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.cache_size = CACHE_ENTRIES;
        options.positive_max_ttl = Some(LONGEST_KEPT);
        options.negative_max_ttl = Some(LONGEST_KEPT);
        options.use_hosts_file = ResolveHosts::Never;
        options.preserve_intermediates = true;
        options.timeout = TIMEOUT;
        options.attempts = 2;
        options.edns0 = true;
        Ok(Forwarder { resolver: Some(builder.build().map_err(Error::Forward)?) })
    }

    pub async fn ask(&self, name: &Name, kind: RecordType) -> Forwarded {
        let Some(resolver) = &self.resolver else { return Forwarded::code(ResponseCode::Refused) };
        // Fully qualified: no search path is applied.
        let mut name = name.clone();
        name.set_fqdn(true);
        match resolver.lookup(name, kind).await {
            Ok(lookup) => Forwarded {
                code: ResponseCode::NoError,
                answers: lookup.answers().to_vec(),
                authorities: Vec::new(),
            },
            Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => {
                let soa = nothing.soa.map(|soa| soa.into_record_of_rdata());
                Forwarded {
                    code: nothing.response_code,
                    answers: Vec::new(),
                    authorities: soa.into_iter().collect(),
                }
            }
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Forwarded::code(code),
            Err(error) => {
                tracing::debug!(%error, "upstream gave no answer");
                Forwarded::code(ResponseCode::ServFail)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_of_a_resolv_conf() {
        let text = "# nameserver 9.9.9.9\nsearch x\nnameserver 192.0.2.53\nnameserver\nnameserver junk\n nameserver ::1 # x\n";
        let found: Vec<String> = upstreams(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.53:53", "[::1]:53"]);
    }

    #[test]
    fn the_server_never_asks_itself() {
        let parse =
            |text: &str| -> Vec<SocketAddr> { text.split_whitespace().map(|a| a.parse().unwrap()).collect() };
        let cases = [
            ("192.0.2.1:53 192.0.2.2:53", "192.0.2.1:53", "192.0.2.2:53"),
            ("192.0.2.1:53", "192.0.2.1:10053", "192.0.2.1:53"),
            ("192.0.2.1:53", "0.0.0.0:53", ""),
            ("10.43.0.10:53", "192.0.2.1:10053", ""),
            (
                "192.0.2.1:53 192.0.2.2:53 192.0.2.3:53 192.0.2.4:53",
                "",
                "192.0.2.1:53 192.0.2.2:53 192.0.2.3:53",
            ),
        ];
        for (servers, bound, expected) in cases {
            let found = without_self(&parse(servers), &parse(bound), &["10.43.0.10".parse().unwrap()]);
            assert_eq!(found, parse(expected), "{servers} at {bound}");
        }
    }
}
