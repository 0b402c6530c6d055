use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{CertifiedKey, KeyPair};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::config::{AuthenticationConfiguration, Flags};
use super::*;
use crate::admission::fake::Fake;

const NOW: i64 = 1_700_000_000;

fn now() -> jiff::Timestamp {
    jiff::Timestamp::from_second(NOW).unwrap()
}

fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// An issuer that listens, with the key that it signs with.
struct Issuer {
    url: String,
    /// PEM.
    authority: String,
    pair: EcdsaKeyPair,
    asked: Arc<AtomicUsize>,
}

impl Issuer {
    async fn start() -> Self {
        let key = KeyPair::generate().unwrap();
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &key.serialize_der(), &random)
            .unwrap();
        let CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let private = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let chain = vec![CertificateDer::from(cert.der().to_vec())];
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let tls = tls.unwrap().with_no_client_auth().with_single_cert(chain, private).unwrap();
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let url = format!("https://localhost:{}", address.port());
        let point = pair.public_key().as_ref();
        let keys = json!({"keys": [
            {"kty": "oct", "kid": "other", "k": "AA"},
            {"kty": "EC", "crv": "P-256", "kid": "one", "use": "sig", "alg": "ES256",
             "x": encode(&point[1..33]), "y": encode(&point[33..])},
        ]});
        let discovery = json!({"issuer": url, "jwks_uri": format!("{url}/keys")});
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = asked.clone();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
                let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
                while !head.ends_with(b"\r\n\r\n") {
                    match tls.read(&mut buffer).await {
                        Ok(read) if read > 0 => head.extend_from_slice(&buffer[..read]),
                        _ => break,
                    }
                }
                counter.fetch_add(1, Ordering::Relaxed);
                let body = if head.starts_with(b"GET /keys ") { &keys } else { &discovery }.to_string();
                let length = body.len();
                let answer =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
                let _ = tls.write_all(answer.as_bytes()).await;
                let _ = tls.shutdown().await;
            }
        });
        Issuer { url, authority: cert.pem(), pair, asked }
    }

    fn token(&self, claims: Value) -> String {
        let mut all = json!({"iss": self.url, "aud": "cluster", "exp": NOW + 60, "sub": "jane"});
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        let header = encode(br#"{"alg":"ES256","kid":"one"}"#);
        let message = format!("{header}.{}", encode(all.to_string().as_bytes()));
        let proof = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encode(proof.as_ref()))
    }

    fn flags(&self) -> Flags {
        Flags {
            issuer_url: self.url.clone(),
            client_id: "cluster".into(),
            username_claim: "sub".into(),
            groups_claim: "groups".into(),
            groups_prefix: "oidc:".into(),
            required_claims: vec![("team".into(), "a".into())],
            signing_algorithms: vec!["ES256".into()],
            authority: self.authority.clone(),
            ..Flags::default()
        }
    }
}

fn issuers(configurations: Vec<Jwt>) -> Issuers {
    Issuers::new(configurations, Fake::new([])).unwrap_or_else(|errors| panic!("{errors:?}"))
}

#[tokio::test]
async fn a_token_names_its_user() {
    let issuer = Issuer::start().await;
    let trusted = issuers(vec![issuer.flags().issuer()]);
    let good = json!({"team": "a", "groups": ["dev", "ops"]});
    let user = trusted.authenticate(&issuer.token(good.clone()), now()).await.unwrap().unwrap();
    assert_eq!(user.name, format!("{}#jane", issuer.url));
    assert_eq!(user.groups, ["oidc:dev", "oidc:ops"]);
    assert_eq!(trusted.authenticate("no token", now()).await, Ok(None));
    assert_eq!(issuer.asked.load(Ordering::Relaxed), 2, "its keys are known");

    let with = |changes: Value| {
        let mut claims = good.clone();
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        issuer.token(claims)
    };
    for (token, wanted) in [
        (with(json!({"exp": NOW - 1})), "oidc: token is expired"),
        (with(json!({"exp": null})), "oidc: token is expired"),
        (with(json!({"nbf": NOW + 301})), "before the nbf"),
        (with(json!({"aud": ["else"]})), r#"expected audience in ["cluster"] got ["else"]"#),
        (with(json!({"team": "b"})), "value does not match. Got = b, want = a"),
        (with(json!({"sub": 5})), "parse username claims \"sub\""),
        (with(json!({"groups": 5})), "parse groups claim \"groups\""),
    ] {
        let error = trusted.authenticate(&token, now()).await.unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
    // Another's signature: the issuer is asked no sooner than its keys may have changed.
    let other = Issuer { url: issuer.url.clone(), ..Issuer::start().await };
    let forged = other.token(good);
    assert!(trusted.authenticate(&forged, now()).await.unwrap_err().contains("failed to verify signature"));
    assert_eq!(issuer.asked.load(Ordering::Relaxed), 2);
    let later = jiff::Timestamp::from_second(NOW + 11).unwrap();
    assert!(trusted.authenticate(&forged, later).await.is_err());
    assert_eq!(issuer.asked.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn expressions_map_claims() {
    let issuer = Issuer::start().await;
    let text = format!(
        "
apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
jwt:
- issuer:
    url: {}
    audiences: [cluster]
    certificateAuthority: {:?}
  claimValidationRules:
  - expression: 'claims.level > 2'
    message: the level is too low
  claimMappings:
    username: {{expression: 'claims.sub + \"@corp\"'}}
    groups: {{expression: 'claims.roles.split(\",\")'}}
    uid: {{claim: id}}
    extra: [{{key: 'corp.example/level', valueExpression: 'string(claims.level)'}}]
  userValidationRules:
  - expression: '!user.username.startsWith(\"system:\")'
    message: names of the system are not for users
",
        issuer.url, issuer.authority
    );
    let configuration = AuthenticationConfiguration::parse(&text).unwrap();
    let trusted = issuers(configuration.jwt);
    let token = issuer.token(json!({"level": 3, "roles": "a,b", "id": "42"}));
    let user = trusted.authenticate(&token, now()).await.unwrap().unwrap();
    assert_eq!((user.name.as_str(), user.uid.as_str()), ("jane@corp", "42"));
    assert_eq!(user.groups, ["a", "b"]);
    assert_eq!(user.extra["corp.example/level"], ["3"]);
    for (claims, wanted) in [
        (json!({"level": 1, "roles": "", "id": "1"}), "the level is too low"),
        (json!({"level": 3, "roles": "", "id": "1", "sub": "system:x"}), "names of the system"),
        (json!({"level": 3, "id": "1"}), "group claim expression"),
    ] {
        let error = trusted.authenticate(&issuer.token(claims), now()).await.unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn expressions_that_do_not_compile_are_told() {
    let jwt = Jwt {
        issuer: config::Issuer { url: "https://a".into(), audiences: vec!["a".into()], ..Default::default() },
        claim_mappings: config::Mappings {
            username: config::Mapping { expression: "claims.".into(), ..Default::default() },
            ..Default::default()
        },
        ..Jwt::default()
    };
    let Err(errors) = Issuers::new(vec![jwt], Fake::new([])) else { panic!("it compiled") };
    assert!(errors[0].starts_with("jwt[0].claimMappings.username.expression: Invalid value"), "{errors:?}");
}
