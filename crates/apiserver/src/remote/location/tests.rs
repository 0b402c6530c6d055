use serde_json::json;

use super::*;

struct World;

impl Lookup for World {
    fn get(&self, resource: &GroupResource, _: &str, name: &str) -> Option<Arc<Value>> {
        let pod = |containers: Value| {
            json!({
                "metadata": {"name": name}, "spec": {"nodeName": "n", "containers": containers}, "status": {"podIP": "10.1.0.9"},
            })
        };
        let object = match (&*resource.resource, name) {
            ("pods", "one") => pod(json!([{"name": "a", "ports": [{"containerPort": 8080}]}])),
            ("pods", "two") => pod(json!([{"name": "a"}, {"name": "b"}])),
            ("nodes", "n") => {
                json!({"status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.7"}]}})
            }
            ("services", "web") => json!({"spec": {"ports": [{"name": "http", "port": 80}]}}),
            _ => return None,
        };
        Some(Arc::new(object))
    }

    fn list(&self, _: &GroupResource, _: Option<&str>) -> Vec<Arc<Value>> {
        vec![Arc::new(json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "web"}}, "ports": [{"name": "http", "port": 8080}],
            "endpoints": [{"addresses": ["10.1.0.4"], "conditions": {"ready": false}}, {"addresses": ["10.1.0.5"]}],
        }))]
    }

    fn revision(&self, _: &GroupResource) -> u64 {
        1
    }
}

fn check(uri: &str, expected: &str) {
    let info = RequestInfo::new(&http::Method::GET, &format!("/api/v1/{uri}").parse().unwrap()).unwrap();
    let got = match locate(&World, &info.attributes, &info) {
        Ok(t) => {
            format!("{}://{}:{}{}", if t.tls { "https" } else { "http" }, t.host, t.port, t.path_and_query)
        }
        Err(status) => status.message,
    };
    assert_eq!(got, expected, "{uri}");
}

#[test]
fn requests_go_on_to_where_upstream_sends_them() {
    for (uri, expected) in [
        (
            "namespaces/d/pods/one/log?follow=true&tailLines=5",
            "https://10.0.0.7:10250/containerLogs/d/one/a?follow=true&tailLines=5",
        ),
        (
            "namespaces/d/pods/two/exec?container=b&command=sh&command=-c&command=a+b&stdin=true&tty=1&stdout=false",
            "https://10.0.0.7:10250/exec/d/two/b?input=1&tty=1&command=sh&command=-c&command=a%20b",
        ),
        ("namespaces/d/pods/two/log", "a container name must be specified for pod two, choose one of: [a b]"),
        ("namespaces/d/pods/two/log?container=c", "container c is not valid for pod two"),
        ("namespaces/d/pods/one/portforward?ports=80", "https://10.0.0.7:10250/portForward/d/one?port=80"),
        ("namespaces/d/pods/one/proxy/x/y?z=1", "http://10.1.0.9:8080/x/y?z=1"),
        ("namespaces/d/pods/https:one:443/proxy/", "https://10.1.0.9:443/"),
        ("namespaces/d/services/web:http/proxy/a", "http://10.1.0.5:8080/a"),
        ("namespaces/d/services/web:nope/proxy/a", "no service port \"nope\" found for service \"web\""),
        ("nodes/n/proxy/stats/summary", "https://10.0.0.7:10250/stats/summary"),
        ("namespaces/d/pods/none/log", "pods \"none\" not found"),
    ] {
        check(uri, expected);
    }
}
