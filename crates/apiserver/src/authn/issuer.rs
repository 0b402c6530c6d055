//! [`TokenIssuer`]: answers TokenRequests.
//!
//! Upstream: pkg/registry/core/serviceaccount/storage/token.go

use apimachinery::field::{self, Path};
use apimachinery::{GroupKind, GroupResource, GroupVersion, Status};
use serde_json::{Value, json};

use super::jwt::{self, Bound, Claims, Kubernetes};
use super::keys::{SigningKey, VerifyingKey, jwks, openid_configuration};
use super::service_account::user_name;
use super::{Clock, Random};
use crate::admission::tree::{at, integer, set, strings, text};
use crate::seams::Lookup;

const SERVICE_ACCOUNTS: GroupResource = GroupResource::from_static("", "serviceaccounts");
const TOKEN_REQUEST: GroupKind = GroupKind::from_static("authentication.k8s.io", "TokenRequest");
const MIN_EXPIRATION_SECONDS: i64 = 10 * 60;
const MAX_EXPIRATION_SECONDS: i64 = 1 << 32;
const DEFAULT_EXPIRATION_SECONDS: i64 = 60 * 60;

/// A token asked for exactly this long is the one of a pod's volume: it lives a year, so that clients that never
/// read it again go on, and tells after this time that it should have been read again.
const WARN_ONLY_EXPIRATION_SECONDS: i64 = 60 * 60 + 7;
const EXTENDED_EXPIRATION_SECONDS: i64 = 365 * 24 * 60 * 60;

/// Makes the tokens of ServiceAccounts.
pub struct TokenIssuer {
    key: SigningKey,
    issuer: String,
    /// The audiences of a token that asks for none: this server.
    audiences: Vec<String>,
    clock: Clock,
    random: Random,
}

/// What a token is asked for to be bound to, as found.
#[derive(Default)]
struct Binding {
    pod: Option<Bound>,
    node: Option<Bound>,
    secret: Option<Bound>,
}

fn bound(object: &Value) -> Bound {
    Bound { name: text(object, "metadata.name").to_owned(), uid: text(object, "metadata.uid").to_owned() }
}

impl TokenIssuer {
    pub fn new(
        key: SigningKey,
        issuer: String,
        audiences: Vec<String>,
        clock: Clock,
        random: Random,
    ) -> Self {
        TokenIssuer { key, issuer, audiences, clock, random }
    }

    /// Answers a TokenRequest for an account: the request with its defaults and its `status`.
    pub fn issue(
        &self,
        lookup: &dyn Lookup,
        namespace: &str,
        name: &str,
        mut request: Value,
    ) -> Result<Value, Status> {
        self.check_names(namespace, name, &request)?;
        let account = lookup
            .get(&SERVICE_ACCOUNTS, namespace, name)
            .ok_or_else(|| Status::not_found(&SERVICE_ACCOUNTS, name))?;
        let uid = text(&account, "metadata.uid");
        let asked_uid = text(&request, "metadata.uid");
        if !asked_uid.is_empty() && asked_uid != uid {
            let resource = GroupResource::new("authentication.k8s.io", "TokenRequest");
            let why = format!(
                "the UID in the token request ({asked_uid}) does not match the UID of the service account ({uid})"
            );
            return Err(Status::conflict(&resource, name, why));
        }
        if strings(&request, "spec.audiences").is_empty() {
            set(&mut request, "spec.audiences", json!(self.audiences));
        }
        let expiration = integer(&request, "spec.expirationSeconds").unwrap_or(DEFAULT_EXPIRATION_SECONDS);
        validate_expiration(expiration)?;
        let binding = find_binding(lookup, namespace, name, &request)?;

        let now = (self.clock)();
        let audiences = strings(&request, "spec.audiences");
        let extended = binding.pod.is_some()
            && expiration == WARN_ONLY_EXPIRATION_SECONDS
            && audiences.iter().all(|audience| self.audiences.contains(audience));
        let (lifetime, warn_after) = match extended {
            true => (EXTENDED_EXPIRATION_SECONDS, Some(now.as_second() + expiration)),
            false => (expiration, None),
        };
        let claims = Claims {
            aud: audiences,
            exp: now.as_second() + lifetime,
            iat: now.as_second(),
            nbf: now.as_second(),
            iss: self.issuer.clone(),
            jti: self.unique_id(),
            sub: user_name(namespace, name),
            kubernetes: Kubernetes {
                namespace: namespace.to_owned(),
                node: binding.node,
                pod: binding.pod,
                secret: binding.secret,
                serviceaccount: bound(&account),
                warnafter: warn_after,
            },
        };
        let token = jwt::sign(&self.key, &claims)
            .map_err(|error| Status::internal(format!("failed to generate token: {error}")))?;
        set(&mut request, "apiVersion", "authentication.k8s.io/v1");
        set(&mut request, "kind", "TokenRequest");
        set(&mut request, "metadata.name", name);
        set(&mut request, "metadata.namespace", namespace);
        set(&mut request, "metadata.uid", uid);
        set(&mut request, "metadata.creationTimestamp", rfc3339(now.as_second()));
        set(&mut request, "spec.expirationSeconds", expiration);
        let expires = rfc3339(now.as_second() + expiration);
        set(&mut request, "status", json!({"token": token, "expirationTimestamp": expires}));
        Ok(request)
    }

    fn check_names(&self, namespace: &str, name: &str, request: &Value) -> Result<(), Status> {
        for (key, wanted) in [("name", name), ("namespace", namespace)] {
            let asked = text(request, &format!("metadata.{key}"));
            if !asked.is_empty() && asked != wanted {
                let detail = format!("must match the service account {key} if specified");
                let error = field::Error::invalid(&Path::new("metadata").child(key), asked, detail);
                return Err(Status::invalid(&TOKEN_REQUEST, name, &[error]));
            }
        }
        Ok(())
    }

    fn unique_id(&self) -> String {
        let mut bytes = [0; 16];
        (self.random)(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    pub fn verifying_key(&self) -> &VerifyingKey {
        &self.key.verifying
    }

    /// The body of `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        jwks(std::slice::from_ref(self.verifying_key()))
    }

    /// The body of `/.well-known/openid-configuration`.
    pub fn openid_configuration(&self, jwks_uri: &str) -> Value {
        openid_configuration(&self.issuer, jwks_uri, std::slice::from_ref(self.verifying_key()))
    }
}

fn rfc3339(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map(|at| at.to_string()).unwrap_or_default()
}

/// Upstream: pkg/apis/authentication/validation/validation.go ValidateTokenRequest
fn validate_expiration(seconds: i64) -> Result<(), Status> {
    let detail = match seconds {
        ..MIN_EXPIRATION_SECONDS => "may not specify a duration less than 10 minutes",
        _ if seconds > MAX_EXPIRATION_SECONDS => "may not specify a duration larger than 2^32 seconds",
        _ => return Ok(()),
    };
    let path = Path::new("spec").child("expirationSeconds");
    Err(Status::invalid(&TOKEN_REQUEST, "", &[field::Error::invalid(&path, seconds, detail)]))
}

fn find_binding(
    lookup: &dyn Lookup,
    namespace: &str,
    account: &str,
    request: &Value,
) -> Result<Binding, Status> {
    let Some(reference) = at(request, "spec.boundObjectRef") else { return Ok(Binding::default()) };
    let (kind, name) = (text(reference, "kind"), text(reference, "name"));
    let api_version = text(reference, "apiVersion");
    let group_version = GroupVersion::parse(api_version).unwrap_or_default();
    let find = |resource: &'static str, namespace: &str| {
        let resource = GroupResource::from_static("", resource);
        lookup.get(&resource, namespace, name).ok_or_else(|| Status::not_found(&resource, name))
    };
    let mut binding = Binding::default();
    let object = match (&*group_version.group, kind) {
        ("", "Pod") => {
            let pod = find("pods", namespace)?;
            if text(&pod, "spec.serviceAccountName") != account {
                return Err(Status::bad_request(format!(
                    "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                )));
            }
            binding.pod = Some(bound(&pod));
            let node = text(&pod, "spec.nodeName");
            if !node.is_empty() {
                let found = lookup.get(&GroupResource::from_static("", "nodes"), "", node);
                let unknown = || Bound { name: node.to_owned(), uid: String::new() };
                binding.node = Some(found.as_deref().map_or_else(unknown, bound));
            }
            pod
        }
        ("", "Node") => {
            let node = find("nodes", "")?;
            binding.node = Some(bound(&node));
            node
        }
        ("", "Secret") => {
            let secret = find("secrets", namespace)?;
            binding.secret = Some(bound(&secret));
            secret
        }
        (group, kind) => {
            let version = &group_version.version;
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    let asked_uid = text(reference, "uid");
    if !asked_uid.is_empty() && text(&object, "metadata.uid") != asked_uid {
        let why = format!(
            "the UID in the bound object reference ({asked_uid}) does not match the UID in record. The object might \
             have been deleted and then recreated"
        );
        return Err(Status::conflict(&GroupResource::new("", kind.to_owned()), name, why));
    }
    Ok(binding)
}
