//! Webhooks over real TLS on this machine, asked by a whole server.

use std::sync::{Arc, Mutex};

use http_body_util::BodyExt;
use serde_json::{Value, json};
use testkit::https::JsonServer;

use crate::ApiServer;
use crate::admission::Chain;
use crate::authz::Authorizer;
use crate::bootstrap::loopback_user;
use crate::handle::{Peer, RequestBody};
use crate::registry::Registry;
use crate::seams::Lookup;
use crate::testing;

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";

/// A webhook that answers what a function makes of the question's `request`, and remembers the questions.
struct Server {
    url: String,
    bundle: String,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Server {
    async fn start(answer: impl Fn(&Value) -> Value + Send + Sync + 'static) -> Self {
        use base64::Engine;
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let server = JsonServer::start(move |_, review| {
            seen.lock().unwrap().push(review["request"].clone());
            let mut response = answer(&review["request"]);
            if response.is_null() {
                return None;
            }
            response["uid"] = review["request"]["uid"].clone();
            let (version, kind) = (&review["apiVersion"], &review["kind"]);
            Some((200, json!({"apiVersion": version, "kind": kind, "response": response})))
        });
        let JsonServer { address, certificate } = server.await;
        let bundle = base64::engine::general_purpose::STANDARD.encode(certificate);
        Server { url: format!("https://{address}/hook"), bundle, asked }
    }

    /// A webhook of this server, for all writes of a resource.
    fn webhook(&self, name: &str, resource: &str) -> Value {
        json!({
            "name": name, "clientConfig": {"url": self.url, "caBundle": self.bundle},
            "rules": [{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": [resource]}],
            "sideEffects": "None", "admissionReviewVersions": ["v1"], "timeoutSeconds": 5,
        })
    }

    fn asked(&self) -> Vec<Value> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn patch(operations: Value) -> Value {
    use base64::Engine;
    let patch = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    json!({"allowed": true, "patchType": "JSONPatch", "patch": patch})
}

struct Api(Arc<ApiServer>);

struct Answer {
    code: u16,
    warnings: Vec<String>,
    body: Value,
}

impl Api {
    async fn new() -> Self {
        let registry = Registry::new(Arc::new(storage::memory::Memory::new()), resources::table().to_vec())
            .await
            .unwrap();
        let mut config = testing::config();
        let lookup: Arc<dyn Lookup> = registry.clone();
        let authorizer = Arc::new(Authorizer::new(lookup.clone()));
        config.admit = Arc::new(Chain::new(lookup, authorizer, config.random.clone()));
        let server = ApiServer::new(registry.clone(), config, Default::default());
        let shutdown = server.shutdown.clone();
        server.tasks.spawn(async move { registry.run(shutdown).await.unwrap() });
        server.bootstrap(Vec::new()).await.unwrap();
        Api(server)
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = http::Request::builder().method(method).uri(path).header("content-type", kind);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = request.body(RequestBody::Ready(body.into())).unwrap();
        let response = self.0.handle(request, Peer::Local(loopback_user())).await;
        let (parts, body) = response.into_parts();
        let warnings = parts.headers.get_all("warning").iter().map(|w| w.to_str().unwrap().to_owned());
        Answer {
            code: parts.status.as_u16(),
            warnings: warnings.collect(),
            body: serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap_or_default(),
        }
    }

    async fn configure(&self, kind: &str, name: &str, webhooks: Value) {
        let object = json!({"apiVersion": "admissionregistration.k8s.io/v1",
                            "kind": format!("{kind}WebhookConfiguration"),
                            "metadata": {"name": name}, "webhooks": webhooks});
        let plural = format!("{}webhookconfigurations", kind.to_lowercase());
        let answer = self.send("POST", &format!("{GROUP}/{plural}"), &object).await;
        assert_eq!(answer.code, 201, "{}", answer.body);
    }
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"a": "1"}})
}

#[tokio::test]
async fn a_mutating_webhook_changes_the_object_and_is_told_everything() {
    let api = Api::new().await;
    let hook = Server::start(|_| patch(json!([{"op": "add", "path": "/data/b", "value": "2"}]))).await;
    api.configure("Mutating", "m", json!([hook.webhook("m.x.y", "configmaps")])).await;
    let made = api.send("POST", &format!("{MAPS}?fieldManager=me"), &map("one")).await;
    assert_eq!((made.code, &made.body["data"]), (201, &json!({"a": "1", "b": "2"})));
    let asked = hook.asked();
    assert_eq!(asked.len(), 1);
    let question = &asked[0];
    assert_eq!(question["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(question["requestResource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!(question["options"]["kind"], "CreateOptions");
    assert_eq!((&question["name"], &question["namespace"]), (&json!("one"), &json!("default")));
    assert_eq!((&question["operation"], &question["dryRun"]), (&json!("CREATE"), &json!(false)));
    assert_eq!(question["userInfo"]["username"], "system:apiserver");
    assert_eq!((&question["object"]["kind"], &question["oldObject"]), (&json!("ConfigMap"), &Value::Null));

    let gone = api.send("DELETE", &format!("{MAPS}/one"), &Value::Null).await;
    assert_eq!(gone.code, 500, "a deletion has no object that could be changed: {}", gone.body);
    assert!(gone.body["message"].as_str().unwrap().contains("attempted to modify the object"));
    let asked = hook.asked();
    assert_eq!((&asked[0]["object"], &asked[0]["oldObject"]["data"]["b"]), (&Value::Null, &json!("2")));
}

#[tokio::test]
async fn defaults_are_filled_in_again_and_webhooks_see_each_others_changes() {
    let api = Api::new().await;
    // The first adds a container; the second asks again when something changed behind it.
    let adds = Server::start(|asked| {
        let count = asked["object"]["spec"]["containers"].as_array().unwrap().len();
        match count {
            1 => patch(
                json!([{"op": "add", "path": "/spec/containers/-", "value": {"name": "b", "image": "i"}}]),
            ),
            _ => json!({"allowed": true}),
        }
    })
    .await;
    let watches = Server::start(|_| json!({"allowed": true})).await;
    let mut first = watches.webhook("first.x.y", "pods");
    first["reinvocationPolicy"] = "IfNeeded".into();
    api.configure("Mutating", "a", json!([first])).await;
    api.configure("Mutating", "b", json!([adds.webhook("second.x.y", "pods")])).await;
    let account = json!({"metadata": {"name": "default"}});
    api.send("POST", "/api/v1/namespaces/default/serviceaccounts", &account).await;
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "image": "i"}]}});
    let made = api.send("POST", "/api/v1/namespaces/default/pods", &pod).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(made.body["spec"]["containers"][1]["imagePullPolicy"], "Always");
    let counts: Vec<usize> =
        watches.asked().iter().map(|q| q["object"]["spec"]["containers"].as_array().unwrap().len()).collect();
    assert_eq!(counts, [1, 2], "asked before and after the other's change");
    assert_eq!(adds.asked().len(), 1, "who does not ask for it is asked once");
}

#[tokio::test]
async fn a_validating_webhook_refuses_warns_and_is_asked_about_dry_runs_only_without_side_effects() {
    let api = Api::new().await;
    let hook = Server::start(|asked| match asked["object"]["data"]["a"].as_str() {
        Some("bad") => json!({"allowed": false, "status": {"message": "no bad data", "code": 403,
                                                             "reason": "Forbidden"}}),
        _ => json!({"allowed": true, "warnings": ["take care"]}),
    })
    .await;
    let mut webhook = hook.webhook("v.x.y", "configmaps");
    webhook["sideEffects"] = "None".into();
    api.configure("Validating", "v", json!([webhook])).await;
    let made = api.send("POST", MAPS, &map("one")).await;
    assert_eq!((made.code, made.warnings), (201, vec!["299 - \"take care\"".to_owned()]));
    let refused = api.send("PATCH", &format!("{MAPS}/one"), &json!({"data": {"a": "bad"}})).await;
    assert_eq!(refused.code, 403);
    assert_eq!(refused.body["message"], r#"admission webhook "v.x.y" denied the request: no bad data"#);
    assert_eq!(refused.body["reason"], "Forbidden");
    let asked = hook.asked();
    assert_eq!(
        (&asked[1]["operation"], &asked[1]["oldObject"]["data"]["a"]),
        (&json!("UPDATE"), &json!("1"))
    );
    let tried = api.send("POST", &format!("{MAPS}?dryRun=All"), &map("two")).await;
    assert_eq!((tried.code, hook.asked()[0]["dryRun"].clone()), (201, json!(true)));
}

#[tokio::test]
async fn a_webhook_that_does_not_answer_fails_the_request_or_is_passed_over_by_its_policy() {
    let api = Api::new().await;
    let hook = Server::start(|_| Value::Null).await;
    let mut webhook = hook.webhook("slow.x.y", "configmaps");
    webhook["timeoutSeconds"] = 1.into();
    api.configure("Validating", "v", json!([webhook])).await;
    let failed = api.send("POST", MAPS, &map("one")).await;
    assert_eq!((failed.code, &failed.body["reason"]), (500, &json!("InternalError")));
    let expected = format!(
        "Internal error occurred: failed calling webhook \"slow.x.y\": failed to call webhook: Post \
         \"{}?timeout=1s\": context deadline exceeded",
        hook.url
    );
    assert_eq!(failed.body["message"], expected);
    let path = format!("{GROUP}/validatingwebhookconfigurations/v");
    let ignore = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
    let mut configured = api.send("GET", &path, &Value::Null).await.body;
    configured["webhooks"][0]["failurePolicy"] = ignore[0]["value"].clone();
    assert_eq!(api.send("PUT", &path, &configured).await.code, 200, "webhooks are not asked about webhooks");
    assert_eq!(api.send("POST", MAPS, &map("one")).await.code, 201);
    // Nobody is there, and nobody's certificate is believed.
    configured["webhooks"][0]["failurePolicy"] = "Fail".into();
    for (url, bundle, why) in [
        ("https://127.0.0.1:1/", hook.bundle.as_str(), "dial tcp 127.0.0.1:1: connect: connection refused"),
        (
            hook.url.as_str(),
            Server::start(|_| Value::Null).await.bundle.as_str(),
            "tls: failed to verify certificate: x509: certificate signed by unknown authority",
        ),
    ] {
        configured["webhooks"][0]["clientConfig"] = json!({"url": url, "caBundle": bundle});
        let current = api.send("GET", &path, &Value::Null).await.body;
        configured["metadata"]["resourceVersion"] = current["metadata"]["resourceVersion"].clone();
        let put = api.send("PUT", &path, &configured).await;
        assert_eq!(put.code, 200, "{}", put.body);
        let failed = api.send("POST", MAPS, &map("two")).await;
        assert!(failed.body["message"].as_str().unwrap().ends_with(why), "{}", failed.body["message"]);
    }
}

#[tokio::test]
async fn a_webhook_is_asked_about_the_version_that_it_knows() {
    let api = Api::new().await;
    let hook = Server::start(|asked| {
        assert_eq!(asked["object"]["apiVersion"], "events.k8s.io/v1");
        patch(json!([{"op": "add", "path": "/note", "value": "changed"}]))
    })
    .await;
    let mut webhook = hook.webhook("m.x.y", "events");
    webhook["rules"][0]["apiGroups"] = json!(["events.k8s.io"]);
    api.configure("Mutating", "m", json!([webhook])).await;
    let event = json!({"metadata": {"name": "e"}, "message": "was", "reason": "R", "type": "Normal",
                       "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}});
    let made = api.send("POST", "/api/v1/namespaces/default/events", &event).await;
    assert_eq!((made.code, &made.body["message"]), (201, &json!("changed")), "{}", made.body);
    let asked = hook.asked();
    assert_eq!(
        (&asked[0]["kind"]["group"], &asked[0]["requestKind"]["group"]),
        (&json!("events.k8s.io"), &json!(""))
    );
}

#[tokio::test]
async fn the_scale_of_a_workload_is_asked_about_as_a_scale() {
    let api = Api::new().await;
    let hook =
        Server::start(|_| patch(json!([{"op": "replace", "path": "/spec/replicas", "value": 7}]))).await;
    api.configure("Mutating", "m", json!([hook.webhook("m.x.y", "*/scale")])).await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    assert_eq!(api.send("POST", deployments, &deployment).await.code, 201);
    let scaled =
        api.send("PATCH", &format!("{deployments}/d/scale"), &json!({"spec": {"replicas": 3}})).await;
    assert_eq!((scaled.code, &scaled.body["spec"]["replicas"]), (200, &json!(7)), "{}", scaled.body);
    let asked = hook.asked();
    assert_eq!((&asked[0]["kind"]["kind"], &asked[0]["subResource"]), (&json!("Scale"), &json!("scale")));
    assert_eq!(
        (&asked[0]["oldObject"]["spec"]["replicas"], &asked[0]["object"]["spec"]["replicas"]),
        (&json!(1), &json!(3))
    );
}

/// A kind with two versions that a webhook converts; the admission webhook knows only the one that is not asked for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_custom_object_is_converted_for_a_webhook_that_knows_another_version() {
    let converter = Server::start(|request| {
        let convert = |object: &Value| {
            let mut object = object.clone();
            object["apiVersion"] = request["desiredAPIVersion"].clone();
            let (from, to) = match request["desiredAPIVersion"].as_str() {
                Some("example.com/v2") => ("color", "colour"),
                _ => ("colour", "color"),
            };
            if let Some(value) = object.as_object_mut().unwrap().remove(from) {
                object[to] = value;
            }
            object
        };
        let objects = request["objects"].as_array().unwrap();
        let converted: Vec<Value> = objects.iter().map(convert).collect();
        json!({"result": {"status": "Success"}, "convertedObjects": converted})
    })
    .await;
    let admission = Server::start(|request| {
        patch(json!([{"op": "add", "path": "/colour", "value": format!("{} now", request["object"]["colour"].as_str().unwrap())}]))
    })
    .await;
    let api = Api::new().await;
    let version = |name: &str, storage: bool, field: &str| {
        json!({"name": name, "served": true, "storage": storage, "schema": {"openAPIV3Schema": {
            "type": "object", "properties": {field: {"type": "string"}}}}})
    };
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "paints.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "paints", "singular": "paint", "kind": "Paint", "listKind": "PaintList"},
            "versions": [version("v1", true, "color"), version("v2", false, "colour")],
            "conversion": {"strategy": "Webhook", "webhook": {
                "conversionReviewVersions": ["v1"],
                "clientConfig": {"url": converter.url, "caBundle": converter.bundle}}},
        },
    });
    let mut changes = api.0.registry.table_changes();
    let made = api.send("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", &definition).await;
    assert_eq!(made.code, 201, "{}", made.body);
    changes.changed().await.unwrap();
    let mut webhook = admission.webhook("paint.example.com", "paints");
    webhook["rules"][0]["apiVersions"] = json!(["v2"]);
    api.configure("Mutating", "paint", json!([webhook])).await;
    let paint =
        json!({"apiVersion": "example.com/v1", "kind": "Paint", "metadata": {"name": "p"}, "color": "red"});
    let made = api.send("POST", "/apis/example.com/v1/namespaces/default/paints", &paint).await;
    assert_eq!(made.code, 201, "{}", made.body);
    assert_eq!(made.body["color"], "red now");
    let asked = admission.asked();
    assert_eq!(asked[0]["kind"]["version"], "v2");
    assert_eq!(asked[0]["requestKind"]["version"], "v1");
    assert_eq!(asked[0]["object"]["colour"], "red");
    // Policies know the other version too.
    let constraints = json!({"resourceRules": [{"operations": ["CREATE"], "apiGroups": ["example.com"],
                             "apiVersions": ["v2"], "resources": ["paints"]}]});
    let louder = "[JSONPatch{op: 'replace', path: '/colour', value: object.colour + '!'}]";
    for (kind, plural, spec) in [
        (
            "MutatingAdmissionPolicy",
            "mutatingadmissionpolicies",
            json!({"matchConstraints": constraints, "reinvocationPolicy": "Never",
                   "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": louder}}]}),
        ),
        ("MutatingAdmissionPolicyBinding", "mutatingadmissionpolicybindings", json!({"policyName": "paint"})),
        (
            "ValidatingAdmissionPolicy",
            "validatingadmissionpolicies",
            json!({"matchConstraints": constraints,
                   "validations": [{"expression": "!object.colour.startsWith('black')"}]}),
        ),
        (
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
            json!({"policyName": "paint", "validationActions": ["Deny"]}),
        ),
    ] {
        let object = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
                            "metadata": {"name": "paint"}, "spec": spec});
        let made = api.send("POST", &format!("{GROUP}/{plural}"), &object).await;
        assert_eq!(made.code, 201, "{}", made.body);
    }
    for (color, code, shown) in [("blue", 201, json!("blue! now")), ("black", 422, Value::Null)] {
        let paint = json!({"apiVersion": "example.com/v1", "kind": "Paint", "metadata": {"name": color},
                           "color": color});
        let made = api.send("POST", "/apis/example.com/v1/namespaces/default/paints", &paint).await;
        assert_eq!((made.code, &made.body["color"]), (code, &shown), "{}", made.body);
    }
}
