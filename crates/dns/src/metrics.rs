//! [`Metrics`]: what is counted of the server, by CoreDNS's names.

use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

type Label = (&'static str, String);
type Durations = Family<[Label; 2], Histogram, fn() -> Histogram>;

/// As CoreDNS names a server of port 53, which is what askers see of any.
const SERVER: &str = "dns://:53";
/// The types that CoreDNS counts by name.
const TYPES: [RecordType; 16] = [
    RecordType::AAAA,
    RecordType::A,
    RecordType::CNAME,
    RecordType::DNSKEY,
    RecordType::DS,
    RecordType::HTTPS,
    RecordType::MX,
    RecordType::NSEC3,
    RecordType::NSEC,
    RecordType::NS,
    RecordType::PTR,
    RecordType::RRSIG,
    RecordType::SOA,
    RecordType::SRV,
    RecordType::TXT,
    RecordType::ANY,
];

fn from_a_quarter_millisecond() -> Histogram {
    Histogram::new(exponential_buckets(0.00025, 2.0, 16))
}

#[derive(Debug)]
struct Inner {
    requests: Family<[Label; 5], Counter>,
    responses: Family<[Label; 4], Counter>,
    seconds: Durations,
}

/// One question that was answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answered<'a> {
    /// The cluster's domain, or the root for names that were forwarded.
    pub zone: &'a str,
    /// Who answered: the zone, or somebody else.
    pub is_forwarded: bool,
    pub is_tcp: bool,
    pub is_ipv6: bool,
    pub kind: RecordType,
    pub code: ResponseCode,
    pub took: Duration,
}

/// A handle; clones share what is counted.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Inner>);

impl Default for Metrics {
    fn default() -> Self {
        Metrics(Arc::new(Inner {
            requests: Family::default(),
            responses: Family::default(),
            seconds: Durations::new_with_constructor(from_a_quarter_millisecond),
        }))
    }
}

impl Metrics {
    pub(crate) fn answered(&self, answered: &Answered<'_>) {
        let server = || ("server", SERVER.to_owned());
        let zone = || ("zone", answered.zone.to_owned());
        let proto = ("proto", if answered.is_tcp { "tcp" } else { "udp" }.to_owned());
        let family = ("family", if answered.is_ipv6 { "2" } else { "1" }.to_owned());
        let kind = TYPES.iter().find(|kind| **kind == answered.kind);
        let kind = ("type", kind.map_or_else(|| "other".to_owned(), ToString::to_string));
        self.0.requests.get_or_create(&[server(), zone(), proto, family, kind]).inc();
        let plugin = ("plugin", if answered.is_forwarded { "forward" } else { "kubernetes" }.to_owned());
        let rcode = ("rcode", rcode(answered.code));
        self.0.responses.get_or_create(&[server(), zone(), rcode, plugin]).inc();
        self.0.seconds.get_or_create(&[server(), zone()]).observe(answered.took.as_secs_f64());
    }

    /// Has the server told of with all else that a process tells.
    pub fn register(&self, registry: &mut Registry) {
        let Inner { requests, responses, seconds } = &*self.0;
        let registry = registry.sub_registry_with_prefix("coredns_dns");
        registry.register("requests", "Questions by zone, protocol, family and type", requests.clone());
        registry.register("responses", "Answers by zone, code and who gave them", responses.clone());
        registry.register("request_duration_seconds", "How long answering takes", seconds.clone());
    }

    /// All of it, for one scrape.
    pub fn text(&self) -> String {
        controller_runtime::scrape(|registry| self.register(registry))
    }
}

/// A code as CoreDNS writes it.
fn rcode(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => u16::from(other).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_told_of_by_coredns_names() {
        let metrics = Metrics::default();
        let own = Answered {
            zone: "cluster.local.",
            is_forwarded: false,
            is_tcp: false,
            is_ipv6: false,
            kind: RecordType::A,
            code: ResponseCode::NoError,
            took: Duration::from_micros(100),
        };
        metrics.answered(&own);
        metrics.answered(&Answered { kind: RecordType::NAPTR, ..own });
        let other = Answered { zone: ".", is_forwarded: true, is_tcp: true, is_ipv6: true, ..own };
        metrics.answered(&Answered { code: ResponseCode::NXDomain, ..other });
        let text = metrics.text();
        for line in [
            "coredns_dns_requests_total{server=\"dns://:53\",zone=\"cluster.local.\",proto=\"udp\",family=\"1\",\
             type=\"A\"} 1",
            "coredns_dns_requests_total{server=\"dns://:53\",zone=\"cluster.local.\",proto=\"udp\",family=\"1\",\
             type=\"other\"} 1",
            "coredns_dns_requests_total{server=\"dns://:53\",zone=\".\",proto=\"tcp\",family=\"2\",type=\"A\"} 1",
            "coredns_dns_responses_total{server=\"dns://:53\",zone=\"cluster.local.\",rcode=\"NOERROR\",\
             plugin=\"kubernetes\"} 2",
            "coredns_dns_responses_total{server=\"dns://:53\",zone=\".\",rcode=\"NXDOMAIN\",plugin=\"forward\"} 1",
            "coredns_dns_request_duration_seconds_count{server=\"dns://:53\",zone=\"cluster.local.\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
