use std::sync::Arc;

use expect_test::{Expect, expect};

use super::*;

/// Objects in a list, searched.
#[derive(Default)]
struct Fixture {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
}

impl Cluster for Fixture {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.iter().find(|s| s.namespace() == namespace && s.name() == name).cloned()
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        let is_of = |slice: &&Arc<EndpointSlice>| {
            slice.namespace() == namespace
                && slice.metadata.labels.as_ref().unwrap()[SERVICE_LABEL] == service
        };
        self.slices.iter().filter(is_of).cloned().collect()
    }

    fn has_namespace(&self, name: &str) -> bool {
        matches!(name, "default" | "shop")
    }

    fn services_at(&self, address: IpAddr) -> Vec<Arc<Service>> {
        self.services.iter().filter(|service| cluster_ips(service).any(|ip| ip == address)).cloned().collect()
    }

    fn slices_at(&self, address: IpAddr) -> Vec<Arc<EndpointSlice>> {
        self.slices.iter().filter(|slice| endpoints(slice).any(|(_, ip)| ip == address)).cloned().collect()
    }
}

fn fixture() -> Fixture {
    let service = |text: &str| Arc::new(Service::from_slice(text.as_bytes()).unwrap());
    let slice = |text: &str| Arc::new(EndpointSlice::from_slice(text.as_bytes()).unwrap());
    Fixture {
        services: vec![
            service(
                r#"{"metadata":{"name":"web","namespace":"shop"},"spec":{"clusterIP":"10.43.0.7",
                "clusterIPs":["10.43.0.7","fd43::7"],"ports":[{"name":"http","port":80},{"name":"q","port":443,
                "protocol":"UDP"}]}}"#,
            ),
            service(
                r#"{"metadata":{"name":"db","namespace":"shop"},"spec":{"clusterIP":"None","clusterIPs":["None"],
                "ports":[{"name":"sql","port":5432}]}}"#,
            ),
            service(r#"{"metadata":{"name":"idle","namespace":"shop"},"spec":{"clusterIP":"None"}}"#),
            service(
                r#"{"metadata":{"name":"ext","namespace":"shop"},"spec":{"type":"ExternalName",
                "externalName":"example.org"}}"#,
            ),
        ],
        slices: vec![
            slice(
                r#"{"metadata":{"name":"db-1","namespace":"shop","labels":{"kubernetes.io/service-name":"db"}},
                "addressType":"IPv4","ports":[{"name":"sql","port":15432,"protocol":"TCP"}],"endpoints":[
                {"addresses":["10.42.0.5"],"hostname":"db-0"},{"addresses":["10.42.0.6"]},
                {"addresses":["10.42.0.9"],"hostname":"db-9","conditions":{"ready":false}}]}"#,
            ),
            slice(
                r#"{"metadata":{"name":"web-1","namespace":"shop","labels":{"kubernetes.io/service-name":"web"}},
                "addressType":"IPv4","ports":[{"name":"http","port":8080}],"endpoints":[{"addresses":["10.42.0.8"]}]}"#,
            ),
        ],
    }
}

fn check(question: &str, expected: Expect) {
    let (kind, name) = question.split_once(' ').unwrap();
    let zone = Zone::new("cluster.local").unwrap();
    let name = Name::from_str(name).unwrap();
    let text = match zone.answer(&fixture(), &name, kind.parse().unwrap()) {
        Answer::Records { records, additional } => {
            let text: Vec<String> = records.iter().map(ToString::to_string).collect();
            let more = additional.iter().map(|record| format!("+ {record}"));
            text.into_iter().chain(more).collect::<Vec<_>>().join("\n")
        }
        Answer::Alias { record, .. } => format!("alias {record}"),
        other => format!("{other:?}"),
    };
    expected.assert_eq(&text);
}

#[test]
fn services() {
    check("A web.shop.svc.cluster.local.", expect!["web.shop.svc.cluster.local. 5 IN A 10.43.0.7"]);
    check("AAAA web.shop.svc.cluster.local.", expect!["web.shop.svc.cluster.local. 5 IN AAAA fd43::7"]);
    check("A WEB.Shop.SVC.cluster.LOCAL.", expect!["web.shop.svc.cluster.local. 5 IN A 10.43.0.7"]);
    check("TXT web.shop.svc.cluster.local.", expect!["NoData"]);
    check("A nothing.shop.svc.cluster.local.", expect!["NoSuchName"]);
    check(
        "SRV _http._tcp.web.shop.svc.cluster.local.",
        expect![[r#"
        _http._tcp.web.shop.svc.cluster.local. 5 IN SRV 0 100 80 web.shop.svc.cluster.local.
        + web.shop.svc.cluster.local. 5 IN A 10.43.0.7
        + web.shop.svc.cluster.local. 5 IN AAAA fd43::7"#]],
    );
    check("SRV _http._udp.web.shop.svc.cluster.local.", expect!["NoSuchName"]);
    check(
        "SRV web.shop.svc.cluster.local.",
        expect![[r#"
        web.shop.svc.cluster.local. 5 IN SRV 0 50 80 web.shop.svc.cluster.local.
        web.shop.svc.cluster.local. 5 IN SRV 0 50 443 web.shop.svc.cluster.local.
        + web.shop.svc.cluster.local. 5 IN A 10.43.0.7
        + web.shop.svc.cluster.local. 5 IN AAAA fd43::7"#]],
    );
    check("A _tcp.web.shop.svc.cluster.local.", expect!["NoData"]);
    check(
        "A ext.shop.svc.cluster.local.",
        expect!["alias ext.shop.svc.cluster.local. 5 IN CNAME example.org."],
    );
}

#[test]
fn headless_services() {
    check(
        "A db.shop.svc.cluster.local.",
        expect![[r#"
        db.shop.svc.cluster.local. 5 IN A 10.42.0.5
        db.shop.svc.cluster.local. 5 IN A 10.42.0.6"#]],
    );
    check("AAAA db.shop.svc.cluster.local.", expect!["NoData"]);
    check("A db-0.db.shop.svc.cluster.local.", expect!["db-0.db.shop.svc.cluster.local. 5 IN A 10.42.0.5"]);
    check(
        "A 10-42-0-6.db.shop.svc.cluster.local.",
        expect!["10-42-0-6.db.shop.svc.cluster.local. 5 IN A 10.42.0.6"],
    );
    check("A db-9.db.shop.svc.cluster.local.", expect!["NoSuchName"]);
    check(
        "SRV _sql._tcp.db.shop.svc.cluster.local.",
        expect![[r#"
        _sql._tcp.db.shop.svc.cluster.local. 5 IN SRV 0 50 15432 10-42-0-6.db.shop.svc.cluster.local.
        _sql._tcp.db.shop.svc.cluster.local. 5 IN SRV 0 50 15432 db-0.db.shop.svc.cluster.local.
        + 10-42-0-6.db.shop.svc.cluster.local. 5 IN A 10.42.0.6
        + db-0.db.shop.svc.cluster.local. 5 IN A 10.42.0.5"#]],
    );
    check("A idle.shop.svc.cluster.local.", expect!["NoSuchName"]);
}

#[test]
fn reverse_names() {
    check(
        "PTR 7.0.43.10.in-addr.arpa.",
        expect!["7.0.43.10.in-addr.arpa. 5 IN PTR web.shop.svc.cluster.local."],
    );
    check(
        "PTR 5.0.42.10.in-addr.arpa.",
        expect!["5.0.42.10.in-addr.arpa. 5 IN PTR db-0.db.shop.svc.cluster.local."],
    );
    check("PTR 8.0.42.10.in-addr.arpa.", expect!["Elsewhere"]);
    check("PTR 1.2.0.192.in-addr.arpa.", expect!["Elsewhere"]);
    check("A 7.0.43.10.in-addr.arpa.", expect!["NoData"]);
    check(
        "PTR 7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.d.f.ip6.arpa.",
        expect![
            "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.3.4.d.f.ip6.arpa. 5 IN PTR web.shop.svc.cluster.local."
        ],
    );
}

#[test]
fn other_names() {
    check(
        "A 10-42-0-5.shop.pod.cluster.local.",
        expect!["10-42-0-5.shop.pod.cluster.local. 5 IN A 10.42.0.5"],
    );
    check("A junk.shop.pod.cluster.local.", expect!["NoSuchName"]);
    check("A 10-42-0-5.nowhere.pod.cluster.local.", expect!["NoSuchName"]);
    check("TXT dns-version.cluster.local.", expect!["dns-version.cluster.local. 5 IN TXT 1.1.0"]);
    check("NS cluster.local.", expect!["cluster.local. 5 IN NS ns.dns.cluster.local."]);
    check(
        "SOA cluster.local.",
        expect![
            "cluster.local. 5 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5"
        ],
    );
    check("A svc.cluster.local.", expect!["NoData"]);
    check("A shop.svc.cluster.local.", expect!["NoData"]);
    check("A nowhere.svc.cluster.local.", expect!["NoSuchName"]);
    check("A example.org.", expect!["Elsewhere"]);
    check("A notcluster.local.", expect!["Elsewhere"]);
    check("A .", expect!["Elsewhere"]);
}
