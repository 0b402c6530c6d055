//! Servers that an operator names, over real TLS on this machine: who a token names, who may do what, which images
//! may run, and where events of the audit log go.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use apiserver::admission::Chain;
use apiserver::admission::configuration::{Documents, Settings};
use apiserver::admission::selection::Selection;
use apiserver::audit::log::Mode as Waits;
use apiserver::audit::policy::Policy;
use apiserver::audit::webhook::{Batching, Options, WebhookSink};
use apiserver::audit::{Auditor, Sink};
use apiserver::authn::{self, Authenticators, TokenWebhook};
use apiserver::authz::config::{AuthorizationConfiguration, Flags, Means};
use apiserver::authz::reload::Reload;
use apiserver::authz::{Authorizer, Metrics, Mode};
use apiserver::handle::{ApiServer, Config, Peer, RequestBody};
use apiserver::seams::{Attributes, Authorize, Decided, Decision, Lookup, UserInfo};
use apiserver::{Registry, testing};
use client::kubeconfig::Kubeconfig;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use testkit::https::JsonServer;
use tokio_util::sync::CancellationToken;

/// A server of reviews, with a kubeconfig that leads to it.
struct Reviewer {
    dir: tempfile::TempDir,
    /// The paths and bodies of all requests.
    asked: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Reviewer {
    async fn start(answer: impl Fn(&Value) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = asked.clone();
        let server = JsonServer::start(move |parts, review| {
            assert_eq!(parts.headers["authorization"], "Bearer secret");
            let answer = answer(&review);
            seen.lock().unwrap().push((parts.uri.path().to_owned(), review));
            Some(answer)
        });
        let JsonServer { address, certificate } = server.await;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), certificate).unwrap();
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'https://{address}/review', certificate-authority: ca.pem}}}}]\n\
             users: [{{name: u, user: {{token: secret}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        );
        std::fs::write(dir.path().join("kubeconfig"), kubeconfig).unwrap();
        Reviewer { dir, asked }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("kubeconfig")
    }

    fn config(&self) -> client::https::Config {
        Kubeconfig::read(&self.kubeconfig()).unwrap().config(None).unwrap()
    }

    fn asked(&self) -> Vec<(String, Value)> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn user(name: &str) -> UserInfo {
    UserInfo { name: name.into(), groups: vec!["system:authenticated".into()], ..Default::default() }
}

fn get_pods(namespace: &str) -> Attributes {
    Attributes {
        verb: "list".into(),
        namespace: namespace.into(),
        version: "v1".into(),
        resource: "pods".into(),
        is_resource: true,
        ..Default::default()
    }
}

/// Allows jane, denies joe, has no opinion on nobody, and cannot judge others.
fn judge(review: &Value) -> (u16, Value) {
    let status = match review["spec"]["user"].as_str().unwrap() {
        "jane" => json!({"allowed": true, "reason": "known"}),
        "joe" => json!({"allowed": false, "denied": true, "reason": "never"}),
        "nobody" => json!({"allowed": false}),
        _ => return (400, json!({"message": "no"})),
    };
    (200, json!({"kind": review["kind"], "apiVersion": review["apiVersion"], "status": status}))
}

async fn registry() -> Arc<Registry> {
    let store = Arc::new(storage::memory::Memory::new());
    Registry::new(store, resources::table().to_vec()).await.unwrap()
}

fn means(metrics: Metrics) -> Means {
    fn in_cluster() -> Result<client::https::Config, client::Error> {
        unreachable!("none is in the cluster")
    }
    Means { random: testing::config().random, in_cluster, policies: None, metrics }
}

fn written(authorizers: &str) -> String {
    format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\n{authorizers}")
}

fn modes(text: &str, metrics: &Metrics) -> Vec<Mode> {
    let configuration = AuthorizationConfiguration::parse(&written(text)).unwrap();
    configuration.modes(&means(metrics.clone())).unwrap()
}

/// What is counted, line by line.
fn told(metrics: &Metrics) -> String {
    let mut registry = prometheus_client::registry::Registry::default();
    metrics.register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

fn webhook(name: &str, kubeconfig: &Path, more: &str) -> String {
    format!(
        "- type: Webhook\n  name: {name}\n  webhook: {{timeout: 3s, subjectAccessReviewVersion: v1, {more}, \
         connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}}}\n",
        kubeconfig.display()
    )
}

#[tokio::test]
async fn authorizers_are_asked_in_turn_and_their_answers_kept() {
    let first = Reviewer::start(judge).await;
    let second = Reviewer::start(|review| {
        (200, json!({"kind": review["kind"], "status": {"allowed": true, "reason": "second"}}))
    })
    .await;
    let condition = "failurePolicy: Deny, matchConditionSubjectAccessReviewVersion: v1, matchConditions: \
                     [{expression: \"request.resourceAttributes.namespace != 'free'\"}]";
    let text = format!(
        "authorizers:\n{}{}",
        webhook("first", &first.kubeconfig(), condition),
        webhook("second", &second.kubeconfig(), "failurePolicy: NoOpinion"),
    );
    let metrics = Metrics::default();
    let authorizer = Authorizer::counted(modes(&text, &metrics), registry().await, metrics.clone());
    let ask = async |name: &str, namespace: &str| {
        let (user, attributes) = (user(name), get_pods(namespace));
        authorizer.authorize(&user, &attributes).decided().await
    };
    let allow = |reason: &str| Decided::from(Decision::Allow { reason: reason.to_owned() });
    assert_eq!(ask("jane", "n").await, allow("known"));
    assert_eq!(ask("jane", "n").await, allow("known"));
    let asked = first.asked();
    assert_eq!((asked.len(), asked[0].0.as_str()), (1, "/review"), "the second answer was kept");
    assert_eq!(asked[0].1["spec"]["resourceAttributes"]["namespace"], "n");
    assert_eq!(ask("joe", "n").await.decision, Decision::Deny { reason: "never".into() });
    assert!(second.asked().is_empty(), "who is denied is not asked about again");
    assert_eq!(ask("nobody", "n").await, allow("second"));
    assert_eq!(ask("joe", "free").await, allow("second"));
    let failed = ask("other", "n").await;
    assert_eq!(failed.decision, Decision::Deny { reason: String::new() });
    assert!(failed.error.is_some_and(|error| error.contains("rejected our request")));
    // Members of system:masters are asked nobody about.
    let master = UserInfo { groups: vec!["system:masters".into()], ..user("root") };
    first.asked();
    assert_eq!(authorizer.authorize(&master, &get_pods("n")).decided().await, allow(""));
    assert!(first.asked().is_empty());
    let told = told(&metrics);
    for line in [
        r#"apiserver_authorization_decisions_total{type="Webhook",name="first",decision="allowed"} 2"#,
        r#"apiserver_authorization_decisions_total{type="Webhook",name="first",decision="denied"} 2"#,
        r#"apiserver_authorization_decisions_total{type="Webhook",name="second",decision="allowed"} 2"#,
        r#"apiserver_authorization_webhook_evaluations_total{name="first",result="success"} 3"#,
        r#"apiserver_authorization_webhook_evaluations_total{name="first",result="error"} 1"#,
        r#"apiserver_authorization_webhook_duration_seconds_count{name="first",result="error"} 1"#,
    ] {
        assert!(told.lines().any(|told| told == line), "{line}\n{told}");
    }
    assert!(!told.contains("_fail_open_total{"), "{told}");
}

#[tokio::test]
async fn an_answer_is_read_no_further_than_it_may_be_long() {
    let reviewer = Reviewer::start(|review| {
        let reason = "x".repeat(review["spec"]["user"].as_str().unwrap().parse().unwrap());
        (200, json!({"kind": review["kind"], "status": {"allowed": true, "reason": reason}}))
    })
    .await;
    let text = format!("authorizers:\n{}", webhook("w", &reviewer.kubeconfig(), "failurePolicy: NoOpinion"));
    let metrics = Metrics::default();
    let authorizer = Authorizer::counted(modes(&text, &metrics), registry().await, metrics.clone());
    let ask = async |length: usize| {
        let (user, attributes) = (user(&length.to_string()), get_pods("n"));
        authorizer.authorize(&user, &attributes).decided().await
    };
    assert!(matches!(ask(2 << 20).await.decision, Decision::Allow { .. }));
    let refused = ask(4 << 20).await;
    assert_eq!(refused.decision, Decision::NoOpinion { reason: String::new() });
    let why = refused.error.unwrap();
    assert!(why.ends_with(": the answer is longer than 3145728 bytes"), "{why}");
    assert_eq!(reviewer.asked().len(), 2, "what is too long is not asked for again");
    let line = r#"apiserver_authorization_webhook_evaluations_fail_open_total{name="w",result="error"} 1"#;
    assert!(told(&metrics).lines().any(|told| told == line));
}

#[tokio::test]
async fn a_configuration_is_read_again_when_its_file_changes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("authorization.yaml");
    let allow = written("authorizers: [{type: AlwaysAllow, name: alwaysallow}, {type: RBAC, name: rbac}]");
    std::fs::write(&path, &allow).unwrap();
    let metrics = Metrics::default();
    let means = means(metrics.clone());
    let used = AuthorizationConfiguration::parse(&allow).unwrap();
    let made = used.modes(&means).unwrap();
    let authorizer = Arc::new(Authorizer::counted(made, registry().await, metrics.clone()));
    let shutdown = CancellationToken::new();
    let reload = Reload::new(path.clone(), allow.clone(), used, means);
    let clock = testing::config().clock;
    let following = tokio::spawn(reload.follow(authorizer.clone(), "server".into(), clock, shutdown.clone()));
    let may = || {
        let decided = authorizer.decide(&user("jane"), &get_pods("n"));
        matches!(decided.decision, Decision::Allow { .. })
    };
    assert!(may());
    let reloads = |status: &str| format!("automatic_reloads_total{{status=\"{status}\",");
    let until = async |line: String| {
        let there = async {
            while !told(&metrics).contains(&line) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), there).await.unwrap();
    };
    // What the server started with is missing: nothing changes.
    std::fs::write(&path, written("authorizers: [{type: RBAC, name: rbac}]")).unwrap();
    until(reloads("failure")).await;
    assert!(may());
    let reviewer = Reviewer::start(judge).await;
    let first = webhook("w", &reviewer.kubeconfig(), "failurePolicy: Deny");
    let rest = "- {type: RBAC, name: rbac}\n- {type: AlwaysAllow, name: alwaysallow}\n";
    let text = written(&format!("authorizers:\n{first}{rest}"));
    // As an editor does it: another file takes the place of the first.
    std::fs::write(dir.path().join("new"), text).unwrap();
    std::fs::rename(dir.path().join("new"), &path).unwrap();
    until(reloads("success")).await;
    let joe = user("joe");
    let decided = authorizer.authorize(&joe, &get_pods("n")).decided().await;
    assert_eq!(decided.decision, Decision::Deny { reason: "never".into() });
    shutdown.cancel();
    following.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_nobody_can_judge_fails_and_plugins_ask_too() {
    let reviewer = Reviewer::start(judge).await;
    let flags = |file: &Path| Flags {
        modes: vec!["Webhook".into()],
        policy_file: None,
        webhook_config_file: Some(file.to_owned()),
        webhook_version: "v1beta1".into(),
        authorized_ttl: Duration::ZERO,
        unauthorized_ttl: Duration::ZERO,
    };
    let random = testing::config().random;
    let configuration = flags(&reviewer.kubeconfig()).configuration().unwrap();
    let modes = configuration.modes(&means(Metrics::default())).unwrap();
    let registry = registry().await;
    let authorizer = Arc::new(Authorizer::of_modes(modes, registry.clone()));
    let chain = Chain::new(registry.clone(), authorizer.clone(), random);
    let config = Config { authorize: authorizer, admit: Arc::new(chain), ..testing::config() };
    let server = serve(registry, config).await;
    let pods = "/api/v1/namespaces/default/pods";
    let (code, text) = send(&server, "jane", "GET", pods, &Value::Null).await;
    assert_eq!(code, 200, "{text}");
    let review = reviewer.asked().remove(0).1;
    assert_eq!(review["apiVersion"], "authorization.k8s.io/v1beta1");
    assert_eq!(review["spec"]["group"], json!(["system:authenticated"]));
    let (code, text) = send(&server, "joe", "GET", pods, &Value::Null).await;
    assert_eq!((code, text.contains("cannot list resource")), (403, true), "{text}");
    let (code, text) = send(&server, "other", "GET", "/api/v1/pods?a='b'&c", &Value::Null).await;
    assert_eq!(code, 500);
    assert!(text.starts_with(r#"Internal Server Error: "/api/v1/pods?a='b'&amp;c": "#), "{text}");
    // Who may grant what he does not have himself is asked in the midst of admission.
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"},
                      "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
    let roles = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/roles";
    let (code, text) = send(&server, "jane", "POST", roles, &role).await;
    assert_eq!(code, 201, "{text}");
    let verbs: Vec<Value> =
        reviewer.asked().iter().map(|(_, r)| r["spec"]["resourceAttributes"]["verb"].clone()).collect();
    assert!(verbs.contains(&"escalate".into()), "{verbs:?}");
}

async fn serve(registry: Arc<Registry>, config: Config) -> Arc<ApiServer> {
    let server = ApiServer::new(registry.clone(), config, Default::default());
    let shutdown = server.shutdown.clone();
    server.tasks.spawn(async move { registry.run(shutdown).await.unwrap() });
    server.bootstrap(Vec::new()).await.unwrap();
    server
}

async fn send(server: &Arc<ApiServer>, name: &str, method: &str, path: &str, body: &Value) -> (u16, String) {
    let request =
        http::Request::builder().method(method).uri(path).header("content-type", "application/json");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let request = request.body(RequestBody::Ready(body.into())).unwrap();
    let response = server.handle(request, Peer::Local(user(name))).await;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (code, String::from_utf8_lossy(&bytes).into_owned())
}

#[tokio::test]
async fn tokens_that_nobody_here_knows_are_asked_about() {
    let reviewer = Reviewer::start(|review| {
        let status = match review["spec"]["token"].as_str().unwrap() {
            "good" => json!({"authenticated": true, "user": {"username": "jane", "groups": ["devs"]}}),
            _ => json!({"authenticated": false, "error": "unknown token"}),
        };
        (200, json!({"kind": "TokenReview", "apiVersion": review["apiVersion"], "status": status}))
    })
    .await;
    let time = Duration::from_secs(120);
    let webhook = TokenWebhook::new(&reviewer.config(), "v1", time, testing::config().random).unwrap();
    let config = authn::Config {
        webhook: Some(Arc::new(webhook)),
        audiences: vec!["api".into()],
        ..Default::default()
    };
    let clock = testing::config().clock;
    let authenticators = Authenticators::new(config, registry().await, clock).unwrap();
    for _ in 0..2 {
        let found = authenticators.authenticate_token("good", &[]).await.unwrap().unwrap();
        assert_eq!((found.name.as_str(), found.groups), ("jane", vec!["devs".to_owned()]));
    }
    let asked = reviewer.asked();
    assert_eq!(asked.len(), 1, "the second answer was kept");
    assert_eq!(asked[0].1["spec"], json!({"token": "good", "audiences": ["api"]}));
    assert_eq!(authenticators.authenticate_token("bad", &[]).await, Err("unknown token".into()));
    let refused = TokenWebhook::new(&reviewer.config(), "v2", time, testing::config().random).err();
    assert!(refused.is_some_and(|why| why.starts_with("unsupported authentication webhook version \"v2\"")));
}

fn sink(reviewer: &Reviewer, mode: Waits) -> WebhookSink {
    let batching =
        Batching { buffer_size: 10_000, max_size: 3, max_wait: Duration::from_millis(50), throttle: None };
    let options = Options { mode, batching, truncating: None, patience: Duration::from_millis(1) };
    WebhookSink::new(&reviewer.config(), options, testing::config().random).unwrap()
}

async fn audited(sink: WebhookSink) -> Arc<ApiServer> {
    let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: Metadata}]\n";
    let (policy, _) = Policy::parse(text.as_bytes()).unwrap();
    let auditor = Auditor { policy: Arc::new(policy), sink: Arc::new(sink) as Arc<dyn Sink> };
    serve(registry().await, Config { audit: Some(auditor), ..testing::config() }).await
}

fn uris(asked: &[(String, Value)]) -> Vec<String> {
    let items = asked.iter().flat_map(|(_, list)| list["items"].as_array().unwrap());
    items.map(|event| event["requestURI"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn events_are_posted_in_batches_and_none_is_lost_at_the_end() {
    let reviewer = Reviewer::start(|_| (200, Value::Null)).await;
    let server = audited(sink(&reviewer, Waits::Batch)).await;
    for at in 0..7 {
        send(&server, "jane", "GET", &format!("/api/v1/pods?limit={}", at + 1), &Value::Null).await;
    }
    server.shutdown.cancel();
    server.tasks.close();
    server.tasks.wait().await;
    let asked = reviewer.asked();
    let list = &asked[0].1;
    assert_eq!((&list["kind"], &list["apiVersion"]), (&json!("EventList"), &json!("audit.k8s.io/v1")));
    assert!(asked.iter().all(|(_, list)| list["items"].as_array().unwrap().len() <= 3));
    let mut seen = uris(&asked);
    seen.retain(|uri| uri.contains("limit="));
    seen.sort();
    assert_eq!(seen, (1..=7).map(|at| format!("/api/v1/pods?limit={at}")).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_strict_log_that_takes_nothing_refuses_requests() {
    for (mode, code) in [(Waits::Blocking, 200), (Waits::BlockingStrict, 500)] {
        let reviewer = Reviewer::start(|list| {
            let refused = list["items"][0]["requestURI"].as_str().unwrap().contains("limit=");
            (if refused { 503 } else { 200 }, Value::Null)
        })
        .await;
        let text = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n";
        let (policy, _) = Policy::parse(text.as_bytes()).unwrap();
        let auditor = Auditor { policy: Arc::new(policy), sink: Arc::new(sink(&reviewer, mode)) };
        let config = Config { audit: Some(auditor), ..testing::config() };
        let server = serve(registry().await, config).await;
        reviewer.asked();
        let (got, text) = send(&server, "jane", "GET", "/api/v1/pods?limit=1", &Value::Null).await;
        assert_eq!(got, code, "{mode:?} {text}");
        let tried = uris(&reviewer.asked());
        assert!(tried.len() >= 5, "it is tried again: {tried:?}");
    }
}

/// A server whose plugins are told what the file says.
async fn configured(plugins: &[&str], text: &str) -> Arc<ApiServer> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admission.yaml");
    let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\n";
    std::fs::write(&path, format!("{head}{text}")).unwrap();
    let documents = Documents::read(&path).unwrap();
    let names: Vec<String> = plugins.iter().map(|name| (*name).to_owned()).collect();
    let selection = Selection::of_flags(&names, &["ServiceAccount".to_owned()]).unwrap();
    let config = testing::config();
    let settings = Settings::new(&documents, &selection, &config.random).unwrap();
    let registry = registry().await;
    let lookup: Arc<dyn Lookup> = registry.clone();
    let authorizer = Arc::new(Authorizer::new(lookup.clone()));
    let chain = Arc::new(Chain::new(lookup, authorizer, config.random.clone()).with(&selection, settings));
    let server = serve(registry, Config { admit: chain.clone(), ..config }).await;
    let own = client::Client::new(server.in_process(user("system:apiserver")), "apiserver");
    assert!(chain.client().set(own).is_ok());
    server
}

fn pod(name: &str, image: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
           "spec": {"containers": [{"name": "c", "image": image}]}})
}

#[tokio::test]
async fn images_run_only_when_their_server_says_so() {
    let reviewer = Reviewer::start(|review| {
        let image = review["spec"]["containers"][0]["image"].as_str().unwrap();
        let status = match image {
            "good" => json!({"allowed": true}),
            "down" => return (400, Value::Null),
            _ => json!({"allowed": false, "reason": "bad image"}),
        };
        (200, json!({"kind": "ImageReview", "apiVersion": review["apiVersion"], "status": status}))
    })
    .await;
    for default_allow in [false, true] {
        let text = format!(
            "plugins: [{{name: ImagePolicyWebhook, configuration: {{imagePolicy: {{kubeConfigFile: {}, defaultAllow: \
             {default_allow}}}}}}}]\n",
            reviewer.kubeconfig().display()
        );
        let server = configured(&["ImagePolicyWebhook"], &text).await;
        let pods = "/api/v1/namespaces/default/pods";
        for (image, code, wanted) in [
            ("good", 201, ""),
            ("bad", 403, "image policy webhook backend denied one or more images: bad image"),
            ("down", if default_allow { 201 } else { 403 }, ""),
        ] {
            let (got, text) = send(&server, "jane", "POST", pods, &pod(image, image)).await;
            assert_eq!((got, text.contains(wanted)), (code, true), "{text}");
        }
        let asked = reviewer.asked();
        assert_eq!(asked[0].1["spec"], json!({"containers": [{"image": "good"}], "namespace": "default"}));
    }
}

#[tokio::test]
async fn namespaces_are_made_when_something_is_made_in_them() {
    let server = configured(&["NamespaceAutoProvision"], "plugins: []\n").await;
    let (code, text) = send(&server, "jane", "POST", "/api/v1/namespaces/new/pods", &pod("p", "i")).await;
    assert_eq!(code, 201, "{text}");
    let (code, _) = send(&server, "jane", "GET", "/api/v1/namespaces/new", &Value::Null).await;
    assert_eq!(code, 200);
    let dry = "/api/v1/namespaces/other/pods?dryRun=All";
    assert_eq!(send(&server, "jane", "POST", dry, &pod("p", "i")).await.0, 404);
}
