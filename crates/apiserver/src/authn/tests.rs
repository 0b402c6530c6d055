use std::sync::atomic::{AtomicI64, Ordering};

use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::{Value, json};

use super::*;
use crate::admission::fake::{Fake, random, user};
use crate::admission::tree::text;
use crate::seams::{Attributes, Authorize, Decision, Verdict};

const NOW: i64 = 1_800_000_000;

/// A clock that tests set, and the same as a parameter.
fn clock() -> (Arc<AtomicI64>, Clock) {
    let seconds = Arc::new(AtomicI64::new(NOW));
    let shown = seconds.clone();
    (seconds, Arc::new(move || jiff::Timestamp::from_second(shown.load(Ordering::SeqCst)).unwrap()))
}

struct Authority {
    params: CertificateParams,
    key: KeyPair,
}

fn time(seconds: i64) -> std::time::Duration {
    std::time::Duration::from_secs(seconds.try_into().unwrap())
}

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    Authority { params, key: KeyPair::generate().unwrap() }
}

impl Authority {
    fn certificate(&self) -> CertificateDer<'static> {
        self.params.self_signed(&self.key).unwrap().der().clone()
    }

    fn client(&self, name: &str, groups: &[&str], usage: ExtendedKeyUsagePurpose) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        if !name.is_empty() {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + time(NOW - 100);
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + time(NOW + 100);
        params.extended_key_usages = vec![usage];
        let issuer = Issuer::from_params(&self.params, &self.key);
        params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap().der().clone()
    }
}

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(*name, value.parse().unwrap());
    }
    headers
}

fn find(
    authenticators: &Authenticators,
    pairs: &[(&'static str, &str)],
    peer: &[CertificateDer<'static>],
) -> Result<Option<UserInfo>, Status> {
    let uri = http::Uri::from_static("/");
    let headers = headers(pairs);
    futures::executor::block_on(authenticators.authenticate(&headers, &uri, peer))
}

#[test]
fn certificates_name_users() {
    let (ours, others) = (authority("ours"), authority("others"));
    let (seconds, clock) = clock();
    let config = Config { client_authorities: vec![ours.certificate()], ..Default::default() };
    let authenticators = Authenticators::new(config, Fake::new([]), clock).unwrap();
    let client = ExtendedKeyUsagePurpose::ClientAuth;
    let jane = [ours.client("jane", &["devs"], client.clone())];
    let found = find(&authenticators, &[], &jane).unwrap().unwrap();
    assert_eq!(
        (found.name.as_str(), found.groups.as_slice()),
        ("jane", ["devs", AUTHENTICATED].map(String::from).as_slice())
    );
    let id = &found.extra[CREDENTIAL_ID][0];
    assert!(id.starts_with("X509SHA256=") && id.len() == 11 + 64, "{id}");
    assert_eq!(find(&authenticators, &[], &[]).unwrap(), None);
    assert_eq!(find(&authenticators, &[], &[ours.client("", &["devs"], client.clone())]).unwrap(), None);
    let wrong = [
        others.client("jane", &[], client),
        ours.client("jane", &[], ExtendedKeyUsagePurpose::ServerAuth),
        CertificateDer::from(vec![1, 2, 3]),
    ];
    for certificate in wrong {
        assert_eq!(find(&authenticators, &[], &[certificate]).unwrap_err().code, 401);
    }
    for end in [NOW - 101, NOW + 101] {
        seconds.store(end, Ordering::SeqCst);
        assert!(find(&authenticators, &[], &jane).is_err(), "a remembered chain ends with its certificate");
    }
}

#[test]
fn a_front_proxy_vouches_with_a_certificate_of_its_own() {
    let (ours, proxies) = (authority("ours"), authority("proxies"));
    let (_, clock) = clock();
    let config = Config {
        client_authorities: vec![ours.certificate()],
        request_headers: Some(RequestHeaders::usual(vec![proxies.certificate()], vec!["front".to_owned()])),
        ..Default::default()
    };
    let authenticators = Authenticators::new(config, Fake::new([]), clock).unwrap();
    let usage = || ExtendedKeyUsagePurpose::ClientAuth;
    let asked = [
        ("x-remote-user", "jane"),
        ("x-remote-group", "devs"),
        ("x-remote-group", "ops"),
        ("x-remote-extra-scopes", "a"),
        ("x-remote-uid", "7"),
    ];
    let found = find(&authenticators, &asked, &[proxies.client("front", &[], usage())]).unwrap().unwrap();
    assert_eq!((found.name.as_str(), found.uid.as_str()), ("jane", "7"));
    assert_eq!(found.groups, ["devs", "ops", AUTHENTICATED]);
    assert_eq!(found.extra["scopes"], ["a"]);
    let direct = find(&authenticators, &asked, &[ours.client("joe", &[], usage())]).unwrap().unwrap();
    assert_eq!(direct.name, "joe", "the headers of others mean nothing");
    assert!(find(&authenticators, &asked, &[proxies.client("else", &[], usage())]).is_err());
    assert!(
        find(&authenticators, &[], &[proxies.client("front", &[], usage())]).is_err(),
        "a proxy is no user"
    );
    assert_eq!(find(&authenticators, &asked, &[]).unwrap(), None);
}

#[test]
fn bearer_tokens_are_read_where_clients_put_them() {
    let encoded = URL_SAFE_NO_PAD.encode("secret");
    let protocol = format!("v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.{encoded}");
    type Headers<'a> = &'a [(&'static str, &'a str)];
    let cases: [(Headers<'_>, Option<&str>); 6] = [
        (&[("authorization", "Bearer secret")], Some("secret")),
        (&[("authorization", "bearer secret")], Some("secret")),
        (&[("authorization", "Basic secret")], None),
        (&[("authorization", "Bearer ")], None),
        (&[("upgrade", "websocket"), ("sec-websocket-protocol", &protocol)], Some("secret")),
        (&[("sec-websocket-protocol", &protocol)], None),
    ];
    for (pairs, expected) in cases {
        assert_eq!(bearer_token(&headers(pairs)).as_deref(), expected, "{pairs:?}");
    }
}

#[test]
fn static_tokens_name_users_and_others_are_refused() {
    let (_, clock) = clock();
    let token = StaticToken { token: "t0".to_owned(), user: user("jane", &[]) };
    let config = Config { static_tokens: vec![token], ..Default::default() };
    let authenticators = Authenticators::new(config, Fake::new([]), clock).unwrap();
    let found = find(&authenticators, &[("authorization", "Bearer t0")], &[]).unwrap().unwrap();
    assert_eq!(found, user("jane", &[AUTHENTICATED]));
    for wrong in ["Bearer t1", "Bearer a.b.c", "Bearer abcdef.0123456789abcdef"] {
        assert_eq!(find(&authenticators, &[("authorization", wrong)], &[]).unwrap_err().code, 401, "{wrong}");
    }
}

#[test]
fn bootstrap_tokens_live_in_secrets() {
    let secret = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let mut data = json!({
            "token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true",
            "auth-extra-groups": "system:bootstrappers:workers",
        });
        let data = data.as_object_mut().unwrap();
        change(data);
        let encoded: serde_json::Map<String, Value> = data
            .iter()
            .map(|(key, value)| (key.clone(), STANDARD.encode(value.as_str().unwrap()).into()))
            .collect();
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"namespace": "kube-system", "name": "bootstrap-token-abcdef"}, "data": encoded,
        })
    };
    let found = |secret: Value| {
        let now = jiff::Timestamp::from_second(NOW).unwrap();
        bootstrap_token::authenticate("abcdef.0123456789abcdef", &*Fake::new([secret]), now)
    };
    let user = found(secret(&|_| {})).unwrap();
    assert_eq!(user.name, "system:bootstrap:abcdef");
    assert_eq!(user.groups, ["system:bootstrappers", "system:bootstrappers:workers"]);
    type Change = fn(&mut serde_json::Map<String, Value>);
    let set = [
        |data: &mut serde_json::Map<String, Value>| drop(data.insert("token-secret".into(), "x".into())),
        |data| drop(data.insert("token-id".into(), "x".into())),
        |data| drop(data.insert("expiration".into(), "2020-01-01T00:00:00Z".into())),
        |data| drop(data.insert("expiration".into(), "soon".into())),
        |data| drop(data.remove("usage-bootstrap-authentication")),
        |data| drop(data.insert("auth-extra-groups".into(), "system:masters".into())),
    ] as [Change; 6];
    for (number, change) in set.iter().enumerate() {
        assert_eq!(found(secret(change)), None, "case {number}");
    }
    assert!(
        found(secret(&|data| drop(data.insert("expiration".into(), "2100-01-01T00:00:00Z".into()))))
            .is_some()
    );
}

fn object(kind: &str, namespace: &str, name: &str, uid: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": kind, "spec": spec,
        "metadata": {"namespace": namespace, "name": name, "uid": uid},
    })
}

struct Tokens {
    lookup: Arc<Fake>,
    issuer: TokenIssuer,
    authenticators: Authenticators,
    seconds: Arc<AtomicI64>,
}

const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

fn tokens_with(key: SigningKey) -> Tokens {
    let (seconds, clock) = clock();
    let lookup = Fake::new([
        object("ServiceAccount", "shop", "runner", "u1", Value::Null),
        object("Pod", "shop", "web", "p1", json!({"serviceAccountName": "runner", "nodeName": "n1"})),
        object("Node", "", "n1", "nu1", json!({})),
        object("Secret", "shop", "s", "su1", Value::Null),
    ]);
    let config = Config {
        service_account_keys: vec![key.verifying.clone()],
        issuers: vec![ISSUER.to_owned()],
        audiences: vec![ISSUER.to_owned()],
        ..Default::default()
    };
    let authenticators = Authenticators::new(config, lookup.clone(), clock.clone()).unwrap();
    let issuer = TokenIssuer::new(key, ISSUER.to_owned(), vec![ISSUER.to_owned()], clock, random());
    Tokens { lookup, issuer, authenticators, seconds }
}

fn new_key() -> SigningKey {
    SigningKey::from_pem(&KeyPair::generate().unwrap().serialize_pem()).unwrap()
}

impl Tokens {
    fn issue(&self, spec: Value) -> Result<Value, Status> {
        self.issuer.issue(&*self.lookup, "shop", "runner", json!({"spec": spec}))
    }

    fn token(&self, spec: Value) -> String {
        text(&self.issue(spec).unwrap(), "status.token").to_owned()
    }

    fn who(&self, token: &str) -> Option<UserInfo> {
        find(&self.authenticators, &[("authorization", &format!("Bearer {token}"))], &[]).ok().flatten()
    }
}

fn bound_to(kind: &str, name: &str) -> Value {
    json!({"boundObjectRef": {"apiVersion": "v1", "kind": kind, "name": name}})
}

fn claims(token: &str) -> Value {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap()).unwrap()
}

#[test]
fn issued_tokens_carry_upstreams_claims() {
    let tokens = tokens_with(new_key());
    let answer = tokens.issue(bound_to("Pod", "web")).unwrap();
    assert_eq!(answer["spec"]["expirationSeconds"], 3600);
    assert_eq!(answer["spec"]["audiences"], json!([ISSUER]));
    assert_eq!(answer["status"]["expirationTimestamp"], "2027-01-15T09:00:00Z");
    assert_eq!(answer["metadata"]["name"], "runner");
    let token = text(&answer, "status.token");
    let jti = "07070707-0707-4707-8707-070707070707";
    assert_eq!(
        claims(token),
        json!({
            "aud": [ISSUER], "exp": NOW + 3600, "iat": NOW, "nbf": NOW, "iss": ISSUER, "jti": jti,
            "sub": "system:serviceaccount:shop:runner",
            "kubernetes.io": {
                "namespace": "shop",
                "node": {"name": "n1", "uid": "nu1"},
                "pod": {"name": "web", "uid": "p1"},
                "serviceaccount": {"name": "runner", "uid": "u1"},
            },
        })
    );
    let user = tokens.who(token).unwrap();
    assert_eq!(user.name, "system:serviceaccount:shop:runner");
    assert_eq!(user.uid, "u1");
    assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:shop", AUTHENTICATED]);
    let extra = |key: &str| user.extra[&format!("authentication.kubernetes.io/{key}")].clone();
    assert_eq!(extra("credential-id"), [format!("JTI={jti}")]);
    assert_eq!((extra("pod-name"), extra("pod-uid")), (vec!["web".to_owned()], vec!["p1".to_owned()]));
    assert_eq!((extra("node-name"), extra("node-uid")), (vec!["n1".to_owned()], vec!["nu1".to_owned()]));
}

#[test]
fn the_token_of_a_pods_volume_lives_a_year() {
    let tokens = tokens_with(new_key());
    let mut spec = bound_to("Pod", "web");
    spec["expirationSeconds"] = 3607.into();
    let answer = tokens.issue(spec.clone()).unwrap();
    let told = claims(text(&answer, "status.token"));
    assert_eq!(told["exp"], NOW + 365 * 24 * 3600);
    assert_eq!(told["kubernetes.io"]["warnafter"], NOW + 3607);
    assert_eq!(answer["spec"]["expirationSeconds"], 3607);
    spec["audiences"] = json!(["vault"]);
    let told = claims(&tokens.token(spec));
    assert_eq!(told["exp"], NOW + 3607, "only for the server itself");
}

#[test]
fn tampered_tokens_are_refused() {
    let tokens = tokens_with(new_key());
    let token = tokens.token(json!({}));
    assert!(tokens.who(&token).is_some());
    let parts: Vec<&str> = token.split('.').collect();
    let mut other = claims(&token);
    other["sub"] = "system:serviceaccount:kube-system:admin".into();
    let other = URL_SAFE_NO_PAD.encode(other.to_string());
    let none = URL_SAFE_NO_PAD.encode(json!({"alg": "none"}).to_string());
    let hmac = URL_SAFE_NO_PAD.encode(json!({"alg": "HS256"}).to_string());
    let tampered = [
        format!("{}.{other}.{}", parts[0], parts[2]),
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{hmac}.{}.{}", parts[1], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        format!("{}.{}", parts[0], parts[1]),
        format!("{token}.x"),
        format!("{}A.{}.{}", parts[0], parts[1], parts[2]),
        tokens_with(new_key()).token(json!({})),
    ];
    for token in tampered {
        assert_eq!(tokens.who(&token), None, "{token}");
    }
    assert!(tokens.who(&token).is_some());
}

#[test]
fn tokens_die_with_what_they_are_bound_to() {
    let tokens = tokens_with(new_key());
    let plain = tokens.token(json!({}));
    let of_pod = tokens.token(bound_to("Pod", "web"));
    let of_secret = tokens.token(bound_to("Secret", "s"));
    let of_node = tokens.token(bound_to("Node", "n1"));
    for token in [&plain, &of_pod, &of_secret, &of_node] {
        assert!(tokens.who(token).is_some());
    }
    tokens.lookup.put(object("Pod", "shop", "web", "p2", json!({"serviceAccountName": "runner"})));
    assert_eq!(tokens.who(&of_pod), None, "another pod of the same name");
    tokens.lookup.remove("secrets", "shop", "s");
    assert_eq!(tokens.who(&of_secret), None);
    tokens.lookup.remove("nodes", "", "n1");
    assert_eq!(tokens.who(&of_node), None);
    let mut leaving = object("ServiceAccount", "shop", "runner", "u1", Value::Null);
    leaving["metadata"]["deletionTimestamp"] =
        jiff::Timestamp::from_second(NOW - 30).unwrap().to_string().into();
    tokens.lookup.put(leaving.clone());
    assert!(tokens.who(&plain).is_some(), "deleted but a moment ago");
    leaving["metadata"]["deletionTimestamp"] =
        jiff::Timestamp::from_second(NOW - 90).unwrap().to_string().into();
    tokens.lookup.put(leaving);
    assert_eq!(tokens.who(&plain), None);
}

#[test]
fn tokens_have_their_time_and_audience() {
    let tokens = tokens_with(new_key());
    let token = tokens.token(json!({}));
    for (seconds, alive) in [(-61, false), (-59, true), (3600, true), (3660, true), (3661, false)] {
        tokens.seconds.store(NOW + seconds, Ordering::SeqCst);
        assert_eq!(tokens.who(&token).is_some(), alive, "{seconds}");
    }
    tokens.seconds.store(NOW, Ordering::SeqCst);
    let other = tokens.token(json!({"audiences": ["vault"]}));
    assert_eq!(tokens.who(&other), None);
    let for_vault = ["vault".to_owned()];
    let review = tokens.authenticators.authenticate_token(&other, &for_vault);
    assert!(futures::executor::block_on(review).unwrap().is_some());
}

#[test]
fn requests_for_tokens_are_checked() {
    let tokens = tokens_with(new_key());
    let mut with_uid = bound_to("Pod", "web");
    with_uid["boundObjectRef"]["uid"] = "p0".into();
    let cases = [
        (
            json!({"expirationSeconds": 599}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 599: may not \
             specify a duration less than 10 minutes",
        ),
        (
            json!({"expirationSeconds": (1_i64 << 32) + 1}),
            422,
            "TokenRequest.authentication.k8s.io \"\" is invalid: spec.expirationSeconds: Invalid value: 4294967297: \
             may not specify a duration larger than 2^32 seconds",
        ),
        (bound_to("Pod", "none"), 404, "pods \"none\" not found"),
        (bound_to("Deployment", "x"), 400, "cannot bind token to object of type /v1, Kind=Deployment"),
        (
            with_uid,
            409,
            "Operation cannot be fulfilled on Pod \"web\": the UID in the bound object reference (p0) does not match \
             the UID in record. The object might have been deleted and then recreated",
        ),
    ];
    for (spec, code, message) in cases {
        let status = tokens.issue(spec).unwrap_err();
        assert_eq!((status.code, status.message.as_str()), (code, message));
    }
    let status = tokens.issuer.issue(&*tokens.lookup, "shop", "none", json!({})).unwrap_err();
    assert_eq!(status.message, "serviceaccounts \"none\" not found");
    tokens.lookup.put(object("Pod", "shop", "alien", "p3", json!({"serviceAccountName": "else"})));
    let status = tokens.issue(bound_to("Pod", "alien")).unwrap_err();
    assert_eq!(
        status.message,
        "cannot bind token for serviceaccount \"runner\" to pod running with different serviceaccount name."
    );
}

/// The key, and its id, were made by another program.
#[test]
fn rsa_keys_sign_too_and_are_named_as_others_name_them() {
    let private = include_str!("testdata/rsa.key");
    let id = "0ZzYgZHCH5mtoZhY2RvqDmO93l12Ie1VGUeGlixFUHw";
    let public = VerifyingKey::all_from_pem(include_str!("testdata/rsa.pub")).unwrap();
    assert_eq!(public[0].id, id);
    let tokens = tokens_with(SigningKey::from_pem(private).unwrap());
    assert_eq!(tokens.issuer.verifying_key().id, id);
    assert!(tokens.who(&tokens.token(json!({}))).is_some());
    let jwks = tokens.issuer.jwks();
    assert_eq!((&jwks["keys"][0]["kty"], &jwks["keys"][0]["e"]), (&json!("RSA"), &json!("AQAB")));
    assert_eq!(jwks["keys"][0]["n"].as_str().unwrap().len(), 342);
    assert!(SigningKey::from_pem("no key").is_err());
}

#[test]
fn the_issuer_describes_itself() {
    let tokens = tokens_with(new_key());
    let key = &tokens.issuer.jwks()["keys"][0];
    assert_eq!((&key["kty"], &key["crv"], &key["alg"]), (&json!("EC"), &json!("P-256"), &json!("ES256")));
    assert_eq!(key["kid"], tokens.issuer.verifying_key().id);
    assert_eq!(
        tokens.issuer.openid_configuration("https://x/openid/v1/jwks"),
        json!({
            "issuer": ISSUER,
            "jwks_uri": "https://x/openid/v1/jwks",
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    );
}

/// Allows what it lists: `resource[/subresource] [namespace/]name`.
struct Only(&'static [&'static str]);

impl Authorize for Only {
    fn authorize<'a>(&'a self, _user: &'a UserInfo, attributes: &'a Attributes) -> Verdict<'a> {
        let Attributes { resource, subresource, namespace, name, .. } = attributes;
        let slash = |a: &str, b: &str| if a.is_empty() { b.to_owned() } else { format!("{a}/{b}") };
        let resource =
            if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
        let asked = format!("{resource} {}", slash(namespace, name));
        match attributes.verb == "impersonate" && self.0.contains(&asked.as_str()) {
            true => Decision::Allow { reason: String::new() }.into(),
            false => Decision::NoOpinion { reason: String::new() }.into(),
        }
    }

    fn rules(&self, _user: &UserInfo, _namespace: &str) -> Value {
        Value::Null
    }
}

#[test]
fn people_act_as_others_when_allowed() {
    let only = Only(&[
        "users jane",
        "users system:anonymous",
        "groups devs",
        "groups system:unauthenticated",
        "userextras/acme.com/scope view",
        "uids 7",
        "serviceaccounts shop/runner",
    ]);
    let act = |pairs: &[(&'static str, &str)]| {
        let headers = headers(pairs);
        futures::executor::block_on(impersonate(user("root", &["ops"]), &headers, &only))
    };
    let acting = |pairs: &[(&'static str, &str)]| act(pairs).unwrap();
    assert_eq!(acting(&[]), user("root", &["ops"]));
    assert_eq!(acting(&[("impersonate-user", "jane")]), user("jane", &[AUTHENTICATED]));
    assert_eq!(
        acting(&[("impersonate-user", "jane"), ("impersonate-group", "devs")]),
        user("jane", &["devs", AUTHENTICATED])
    );
    assert_eq!(
        acting(&[("impersonate-user", "jane"), ("impersonate-group", UNAUTHENTICATED)]).groups,
        [UNAUTHENTICATED]
    );
    assert_eq!(acting(&[("impersonate-user", ANONYMOUS)]).groups, [UNAUTHENTICATED]);
    assert_eq!(
        acting(&[("impersonate-user", "system:serviceaccount:shop:runner")]),
        user(
            "system:serviceaccount:shop:runner",
            &["system:serviceaccounts", "system:serviceaccounts:shop", AUTHENTICATED]
        )
    );
    let full = acting(&[
        ("impersonate-user", "jane"),
        ("impersonate-uid", "7"),
        ("impersonate-extra-acme.com%2fscope", "view"),
    ]);
    assert_eq!(full.uid, "7");
    assert_eq!(full.extra["acme.com/scope"], ["view"]);
    assert_eq!(
        act(&[("impersonate-user", "joe")]).unwrap_err().message,
        "users \"joe\" is forbidden: User \"root\" cannot impersonate resource \"users\" in API group \"\" at the \
         cluster scope"
    );
    assert_eq!(act(&[("impersonate-group", "devs")]).unwrap_err().code, 400);
    assert_eq!(act(&[("impersonate-user", "jane"), ("impersonate-group", "ops")]).unwrap_err().code, 403);
}
