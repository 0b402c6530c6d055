//! Bodies, made once: a pod of about 1.6 KiB whose name, and later a mark, are overwritten in place.

use anyhow::Context;
use bytes::Bytes;
use memchr::memmem;
use serde_json::{Value, json};

use crate::Encoding;

/// What names look like, so that one can be put in another's place in any encoding.
pub const NAME: &str = "bench-pod-0000000";
/// What stands before the sixteen digits of a mark.
pub const MARK: &[u8] = b"@bench=";
const MARK_DIGITS: usize = 16;

pub fn name(number: usize) -> String {
    format!("bench-pod-{number:07}")
}

/// A body with a place for a name.
pub struct Template {
    bytes: Vec<u8>,
    names: Vec<usize>,
}

impl Template {
    pub fn pod(encoding: Encoding) -> anyhow::Result<Self> {
        Self::new(&pod(), "io.k8s.api.core.v1.Pod", encoding)
    }

    pub fn node(encoding: Encoding) -> anyhow::Result<Self> {
        Self::new(&node(), "io.k8s.api.core.v1.Node", encoding)
    }

    pub fn new(object: &Value, definition: &str, encoding: Encoding) -> anyhow::Result<Self> {
        let bytes = match encoding {
            Encoding::Json => object.to_string().into_bytes(),
            Encoding::Protobuf => {
                let definition = api::tables::definition(definition).context("the kind has a definition")?;
                schema::protobuf::encode(object, definition)?
            }
        };
        let names = memmem::find_iter(&bytes, NAME).collect();
        Ok(Template { bytes, names })
    }

    pub fn named(&self, number: usize) -> Bytes {
        let mut bytes = self.bytes.clone();
        for &at in &self.names {
            bytes[at..at + NAME.len()].copy_from_slice(name(number).as_bytes());
        }
        bytes.into()
    }
}

/// Overwrites the mark of an object that was read, in any encoding.
pub fn mark(body: &[u8], number: u64) -> anyhow::Result<Bytes> {
    let at = memmem::find(body, MARK).context("the object has lost its mark")? + MARK.len();
    let mut bytes = body.to_vec();
    bytes[at..at + MARK_DIGITS].copy_from_slice(format!("{number:016}").as_bytes());
    Ok(bytes.into())
}

/// The marks of the objects in a stream that comes in pieces.
#[derive(Default)]
pub struct Marks {
    /// The end of the last piece, which may hold the beginning of a mark.
    tail: Vec<u8>,
}

impl Marks {
    const WHOLE: usize = MARK.len() + MARK_DIGITS;

    pub fn of(&mut self, piece: &[u8], mut found: impl FnMut(u64)) {
        let joined;
        let bytes = if self.tail.is_empty() {
            piece
        } else {
            self.tail.extend_from_slice(piece);
            joined = std::mem::take(&mut self.tail);
            &joined
        };
        let mut end = 0;
        for at in memmem::find_iter(bytes, MARK) {
            if let Some(digits) = bytes.get(at + MARK.len()..at + Self::WHOLE) {
                let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                number.into_iter().for_each(&mut found);
                end = at + Self::WHOLE;
            }
        }
        let rest = bytes.len().saturating_sub(Self::WHOLE - 1).max(end);
        if let Some(at) = memchr::memchr(MARK[0], &bytes[rest..]) {
            self.tail = bytes[rest + at..].to_vec();
        }
    }
}

/// A merge patch of a pod's status.
pub fn status_patch(number: usize) -> Bytes {
    json!({"status": {"phase": "Running", "message": format!("{number:08}"), "podIP": "10.42.0.7",
        "podIPs": [{"ip": "10.42.0.7"}]}})
    .to_string()
    .into()
}

/// A merge patch that sets the mark.
pub fn mark_patch(number: u64) -> Bytes {
    format!(r#"{{"metadata":{{"annotations":{{"bench.example.com/mark":"@bench={number:016}"}}}}}}"#).into()
}

/// A pod as people write them. No scheduler looks at it, and no token is mounted into it, so that what is measured
/// is the API server.
fn pod() -> Value {
    let probe = |path: &str, period: u32| {
        json!({"httpGet": {"path": path, "port": "http", "scheme": "HTTP"}, "initialDelaySeconds": 3,
            "periodSeconds": period, "timeoutSeconds": 2, "failureThreshold": 3, "successThreshold": 1})
    };
    let env = |name: &str, value: &str| json!({"name": name, "value": value});
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": NAME,
            "labels": {"app.kubernetes.io/name": "storefront", "app.kubernetes.io/part-of": "shop", "tier": "web",
                "pod-template-hash": "6d4b75cb6d"},
            "annotations": {"bench.example.com/mark": "@bench=0000000000000000",
                "prometheus.io/scrape": "true", "prometheus.io/port": "8080"}},
        "spec": {
            "schedulerName": "none-for-bench", "automountServiceAccountToken": false, "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "containers": [{
                "name": "web", "image": "registry.example.com/shop/storefront:v4.11.2",
                "imagePullPolicy": "IfNotPresent",
                "args": ["--listen=:8080", "--log-level=info", "--database=postgres.shop.svc.cluster.local:5432"],
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"},
                    {"name": "metrics", "containerPort": 9090, "protocol": "TCP"}],
                "env": [env("REGION", "eu-central-1"), env("CACHE_URL", "redis://cache.shop.svc:6379/0"),
                    env("FEATURE_FLAGS", "new-checkout,recommendations")],
                "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}, "limits": {"memory": "512Mi"}},
                "livenessProbe": probe("/livez", 10), "readinessProbe": probe("/readyz", 5),
                "volumeMounts": [{"name": "config", "mountPath": "/etc/storefront", "readOnly": true},
                    {"name": "cache", "mountPath": "/var/cache/storefront"}]}],
            "volumes": [{"name": "config", "configMap": {"name": "storefront", "defaultMode": 420}},
                {"name": "cache", "emptyDir": {}}]}})
}

fn node() -> Value {
    let amount = json!({"cpu": "8", "memory": "32Gi", "pods": "110"});
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NAME, "labels": {"kubernetes.io/hostname": NAME, "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64", "topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDR": "10.42.0.0/24", "unschedulable": true},
        "status": {"capacity": amount, "allocatable": amount,
            "addresses": [{"type": "InternalIP", "address": "192.0.2.7"}, {"type": "Hostname", "address": NAME}],
            "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux", "kernelVersion": "6.1.0",
                "osImage": "Debian GNU/Linux 12", "kubeletVersion": "v1.36.2", "kubeProxyVersion": "",
                "containerRuntimeVersion": "x://1", "bootID": "", "machineID": "", "systemUUID": ""}}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_of_the_size_that_upstream_was_measured_with() {
        let json = Template::pod(Encoding::Json).unwrap();
        assert!((1500..1750).contains(&json.bytes.len()), "{} bytes", json.bytes.len());
        let named = json.named(42);
        assert!(memmem::find(&named, b"bench-pod-0000042").is_some());
        assert!(Template::pod(Encoding::Protobuf).unwrap().bytes.len() < json.bytes.len());
    }

    #[test]
    fn marks_are_found_once_wherever_the_stream_is_cut() {
        let stream = b"xx@bench=0000000000000007yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy@bench=0000000000000008";
        for size in 1..stream.len() + 1 {
            let (mut marks, mut found) = (Marks::default(), Vec::new());
            for piece in stream.chunks(size) {
                marks.of(piece, |number| found.push(number));
            }
            assert_eq!(found, [7, 8], "pieces of {size}");
        }
    }
}
