//! Whatever a client asks, it gets an answer: no request makes the server panic or fail.

#![allow(clippy::unwrap_used)]

use apiserver::bootstrap::loopback_user;
use apiserver::handle::{self, Peer, RequestBody};
use apiserver::negotiate::Forms;
use apiserver::request::{Query, RequestInfo};
use apiserver::testing;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"];
const WORDS: &[&str] = &[
    "api",
    "apis",
    "v1",
    "apps",
    "namespaces",
    "default",
    "pods",
    "deployments",
    "watch",
    "status",
    "scale",
    "log",
    "proxy",
    "exec",
    "binding",
    "finalize",
    "configmaps",
    "customresourcedefinitions",
    "apiextensions.k8s.io",
    "openapi",
    "v2",
    "v3",
    "healthz",
    "metrics",
    "selfsubjectaccessreviews",
    "authorization.k8s.io",
    "a",
    "..",
    "%2f",
    "%",
    "%zz",
    "é",
    "",
];
const PARAMETERS: &[&str] = &[
    "watch",
    "limit",
    "continue",
    "labelSelector",
    "fieldSelector",
    "resourceVersion",
    "resourceVersionMatch",
    "timeoutSeconds",
    "fieldManager",
    "fieldValidation",
    "force",
    "dryRun",
    "sendInitialEvents",
    "pretty",
    "allowWatchBookmarks",
    "gracePeriodSeconds",
    "propagationPolicy",
    "includeObject",
];
const VALUES: &[&str] = &[
    "",
    "0",
    "1",
    "-1",
    "true",
    "a=b",
    "a in (b,c)",
    "!a",
    "metadata.name=x",
    "Exact",
    "NotOlderThan",
    "Strict",
    "All",
    "18446744073709551616",
    "eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ",
    "%00",
    "Orphan",
    "a,",
    "(",
    "=",
];
const TYPES: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/cbor",
    "application/vnd.kubernetes.protobuf",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
    "text/html",
    "",
];
const ACCEPTED: &[&str] = &[
    "*/*",
    "application/json;as=Table;g=meta.k8s.io;v=v1",
    "application/vnd.kubernetes.protobuf",
    "application/cbor",
    "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
    "application/yaml",
    "nonsense",
    "a/b;q=x",
];

#[derive(Debug)]
struct Asked {
    method: &'static str,
    uri: String,
    content_type: &'static str,
    accept: &'static str,
    body: Vec<u8>,
}

fn asked() -> impl Strategy<Value = Asked> {
    let one = |list: &'static [&'static str]| prop::sample::select(list);
    let path = prop::collection::vec(one(WORDS), 0..7).prop_map(|parts| format!("/{}", parts.join("/")));
    let query = prop::collection::vec((one(PARAMETERS), one(VALUES)), 0..4).prop_map(|pairs| {
        let pairs: Vec<String> =
            pairs.into_iter().map(|(name, value)| format!("{name}={}", value.replace(' ', "+"))).collect();
        pairs.join("&")
    });
    let json = prop::sample::select(vec![
        r#"{}"#,
        r#"[]"#,
        r#"null"#,
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{}}"#,
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"generateName":"a"},"data":{"a":1}}"#,
        r#"{"metadata":{"managedFields":[{"fieldsV1":{"f:x":[]}}]}}"#,
        r#"[{"op":"add","path":"/metadata/labels","value":{"a":"b"}}]"#,
        r#"{"spec":{"replicas":-1},"$patch":"delete"}"#,
        "a: &a [*a]\n",
    ]);
    let body = prop_oneof![
        json.prop_map(|text| text.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..64),
        Just(b"k8s\0\x0a\x04\x0a\x02v1".to_vec()),
        Just("[".repeat(20_000).into_bytes()),
    ];
    (one(METHODS), path, query, one(TYPES), one(ACCEPTED), body).prop_map(
        |(method, path, query, content_type, accept, body)| {
            let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
            Asked { method, uri, content_type, accept, body }
        },
    )
}

/// Always the same requests.
fn runner() -> TestRunner {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    TestRunner::new_with_rng(Config { failure_persistence: None, ..Config::default() }, rng)
}

#[tokio::test]
async fn every_request_is_answered() {
    let config = handle::Config { forms: Forms::ALL, ..testing::config() };
    let server = testing::server_of(config).await;
    server.bootstrap(Vec::new()).await.unwrap();
    let (mut runner, requests) = (runner(), asked());
    for _ in 0..3000 {
        let asked = requests.new_tree(&mut runner).unwrap().current();
        let request = Request::builder()
            .method(asked.method)
            .uri(&asked.uri)
            .header("content-type", asked.content_type)
            .header("accept", asked.accept)
            .body(RequestBody::Ready(Bytes::from(asked.body.clone())));
        // What is no URI never reaches the server.
        let Ok(request) = request else { continue };
        let answered = async {
            let response = server.handle(request, Peer::Local(loopback_user())).await;
            let code = response.status().as_u16();
            let watches = asked.uri.contains("watch");
            if !watches && asked.method != "CONNECT" {
                response.into_body().collect().await.unwrap();
            }
            code
        };
        let code = tokio::time::timeout(std::time::Duration::from_secs(30), answered).await;
        let code = code.unwrap_or_else(|_| panic!("no answer came: {asked:?}"));
        assert!((200..600).contains(&code), "{asked:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_path_is_read(path in "/[ -~]{0,60}", method in prop::sample::select(METHODS)) {
        if let Ok(uri) = path.parse::<http::Uri>() {
            if let Ok(mut info) = RequestInfo::new(&method.parse().unwrap(), &uri) {
                info.name_by_selector();
            }
            let _ = Query::parse(uri.query());
        }
    }
}
