//! Authorization by others: a server is asked by a SubjectAccessReview, and what it says is kept for a while.
//!
//! What always holds: a request that the conditions exclude costs nobody a call; what a client may make as long as it
//! likes is not kept.
//!
//! Upstream: apiserver/plugin/pkg/authorizer/webhook/webhook.go

use std::time::Duration;

use apimachinery::selector::{FieldOperator, FieldSelector, LabelSelector, Operator};
use cel::{Env, PER_CALL_LIMIT, Program, Type};
use client::kept::Kept;
use serde_json::{Value, json};

use super::metrics::Metrics;
use crate::admission::join_errors;
use crate::remote::review_server::{Failure, ReviewServer};
use crate::seams::{Attributes, Decided, Decision, UserInfo};

const MOST_ANSWERS: usize = 8192;
/// Upstream: maxControlledAttrCacheSize
const MOST_KEPT_BYTES: usize = 10_000;

/// The version of SubjectAccessReview that a server knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V1beta1,
}

impl Version {
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "v1" => Some(Version::V1),
            "v1beta1" => Some(Version::V1beta1),
            _ => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Version::V1 => "v1",
            Version::V1beta1 => "v1beta1",
        }
    }
}

/// How a server is asked.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub version: Version,
    /// How long is kept that somebody may; zero for not at all.
    pub authorized: Duration,
    /// How long is kept that somebody may not.
    pub unauthorized: Duration,
    /// Whether a request is denied when the server cannot be asked, rather than left to other authorizers.
    pub denies_on_failure: bool,
}

/// A condition that a request must meet to be asked about.
pub struct Condition {
    text: String,
    program: Program,
}

/// A server that decides.
pub struct Webhook {
    name: String,
    server: ReviewServer,
    metrics: Metrics,
    options: Options,
    conditions: Vec<Condition>,
    kept: Kept<Answer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    allowed: bool,
    denied: bool,
    reason: String,
}

impl Condition {
    /// Upstream: apiserver/pkg/authorization/cel/compile.go CompileCELExpression
    pub fn compile(text: &str) -> Result<Self, String> {
        let program = Env::kubernetes().variable("request", request_type()).compile(text);
        let program = program.map_err(|why| format!("compilation failed: {why}"))?;
        match program.result_type() {
            Type::Bool => Ok(Condition { text: text.to_owned(), program }),
            other => Err(format!("must evaluate to bool but got {other}")),
        }
    }

    fn holds(&self, request: &Value) -> Result<bool, String> {
        let evaluation = self.program.eval(&[("request", cel::Value::json(request))], PER_CALL_LIMIT);
        let text = &self.text;
        let value = evaluation.result.map_err(|error| {
            format!("cel evaluation error: expression '{text}' resulted in error: {error}")
        })?;
        value.as_bool().ok_or_else(|| {
            format!("cel evaluation error: expression '{text}' eval result type should be bool")
        })
    }
}

/// Upstream: apiserver/pkg/authorization/cel/compile.go buildRequestType
fn request_type() -> Type {
    let texts = || Type::list(Type::String);
    let requirement = Type::object(
        "kubernetes.SelectorRequirement",
        [("key", Type::String), ("operator", Type::String), ("values", texts())],
    );
    let selector = |name: &str| {
        let requirements = Type::list(requirement.clone());
        Type::object(name, [("rawSelector", Type::String), ("requirements", requirements)])
    };
    let mut resource: Vec<(&str, Type)> =
        ["namespace", "verb", "group", "version", "resource", "subresource", "name"]
            .map(|name| (name, Type::String))
            .to_vec();
    resource.push(("fieldSelector", selector("kubernetes.FieldSelectorAttributes")));
    resource.push(("labelSelector", selector("kubernetes.LabelSelectorAttributes")));
    let other =
        Type::object("kubernetes.NonResourceAttributes", [("path", Type::String), ("verb", Type::String)]);
    Type::object(
        "kubernetes.SubjectAccessReviewSpec",
        [
            ("resourceAttributes", Type::object("kubernetes.ResourceAttributes", resource)),
            ("nonResourceAttributes", other),
            ("user", Type::String),
            ("groups", texts()),
            ("extra", Type::map(Type::String, texts())),
            ("uid", Type::String),
        ],
    )
}

impl Webhook {
    pub fn new(
        name: &str,
        server: ReviewServer,
        options: Options,
        conditions: Vec<Condition>,
        metrics: Metrics,
    ) -> Self {
        let (counted, named) = (metrics.clone(), name.to_owned());
        let server = server.observed(move |attempt, time| counted.asked(&named, attempt, time));
        Webhook { name: name.to_owned(), server, metrics, options, conditions, kept: Kept::new(MOST_ANSWERS) }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) async fn authorize(&self, user: &UserInfo, attributes: &Attributes) -> Decided {
        match concerns(&self.conditions, &seen_by_conditions(user, attributes)) {
            Ok(true) => {}
            Ok(false) => return Decision::NoOpinion { reason: String::new() }.into(),
            Err(why) => return self.failed(why),
        }
        let spec = spec(user, attributes);
        let key = spec.to_string();
        if let Some(answer) = self.kept.get(&key) {
            return answer.decided();
        }
        let review = review(self.options.version, spec);
        let read = |answer: Value| Answer::read(self.options.version, &answer).map_err(Failure::of_answer);
        match self.server.ask_for(&review, read).await {
            Err(failure) => {
                tracing::error!(%failure, "failed to make webhook authorizer request");
                if !self.options.denies_on_failure {
                    self.metrics.failed_open(&self.name, failure.attempt());
                }
                self.failed(failure.into())
            }
            Ok(answer) => {
                let time = if answer.allowed { self.options.authorized } else { self.options.unauthorized };
                if said_by_client(attributes) < MOST_KEPT_BYTES {
                    self.kept.put(key, answer.clone(), time);
                }
                answer.decided()
            }
        }
    }

    fn failed(&self, why: String) -> Decided {
        let reason = String::new();
        let decision = match self.options.denies_on_failure {
            true => Decision::Deny { reason },
            false => Decision::NoOpinion { reason },
        };
        Decided { decision, error: Some(why) }
    }
}

impl Answer {
    fn read(version: Version, review: &Value) -> Result<Self, String> {
        let wanted = format!("authorization.k8s.io/{}", version.as_str());
        for (field, wanted) in [("kind", "SubjectAccessReview"), ("apiVersion", &wanted)] {
            // What the answer does not say of itself is as it was asked for.
            if let Some(said) = review.get(field).filter(|said| *said != wanted) {
                return Err(format!("the answer's {field} is {said}, not {wanted:?}"));
            }
        }
        let status = &review["status"];
        Ok(Answer {
            allowed: status["allowed"] == true,
            denied: status["denied"] == true,
            reason: status["reason"].as_str().unwrap_or_default().to_owned(),
        })
    }

    fn decided(self) -> Decided {
        let Answer { allowed, denied, reason } = self;
        let both = "webhook subject access review returned both allow and deny response";
        match (allowed, denied) {
            (_, true) => {
                Decided { decision: Decision::Deny { reason }, error: allowed.then(|| both.to_owned()) }
            }
            (true, false) => Decision::Allow { reason }.into(),
            (false, false) => Decision::NoOpinion { reason }.into(),
        }
    }
}

/// Whether a request is to be asked about: one condition that does not hold decides, whatever is wrong with others.
///
/// Upstream: apiserver/pkg/authorization/cel/matcher.go Eval
fn concerns(conditions: &[Condition], request: &Value) -> Result<bool, String> {
    let mut wrong = Vec::new();
    for condition in conditions {
        match condition.holds(request) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => wrong.push(why),
        }
    }
    if wrong.is_empty() { Ok(true) } else { Err(join_errors(&wrong)) }
}

/// How much of a question a client chooses.
fn said_by_client(attributes: &Attributes) -> usize {
    let Attributes { verb, namespace, group, version, resource, subresource, name, path, .. } = attributes;
    [verb, namespace, group, version, resource, subresource, name, path].map(String::len).iter().sum()
}

/// The fields of an object that say something.
fn filled<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Value {
    let said = fields.into_iter().filter(|(_, text)| !text.is_empty());
    Value::Object(said.map(|(name, text)| (name.to_owned(), text.into())).collect())
}

fn resource_texts(attributes: &Attributes) -> [(&'static str, &str); 7] {
    [
        ("namespace", &attributes.namespace),
        ("verb", &attributes.verb),
        ("group", &attributes.group),
        ("version", &attributes.version),
        ("resource", &attributes.resource),
        ("subresource", &attributes.subresource),
        ("name", &attributes.name),
    ]
}

/// The requirements of a field selector; one that cannot be read restricts nothing.
fn field_requirements(selector: &str) -> Vec<Value> {
    let requirements = FieldSelector::parse(selector).unwrap_or_default().requirements;
    let shown = requirements.iter().map(|requirement| {
        let operator = match requirement.operator {
            FieldOperator::Equals => "In",
            FieldOperator::NotEquals => "NotIn",
        };
        json!({"key": requirement.field, "operator": operator, "values": [requirement.value]})
    });
    shown.collect()
}

/// Those of a label selector, but for comparisons, which a review has no word for.
fn label_requirements(selector: &str) -> Vec<Value> {
    let selector = LabelSelector::parse(selector).unwrap_or_default();
    let shown = selector.requirements().iter().filter_map(|requirement| {
        let operator = match requirement.operator() {
            Operator::Equals | Operator::DoubleEquals | Operator::In => "In",
            Operator::NotEquals | Operator::NotIn => "NotIn",
            Operator::Exists => "Exists",
            Operator::DoesNotExist => "DoesNotExist",
            Operator::GreaterThan | Operator::LessThan => return None,
        };
        let mut shown = json!({"key": requirement.key(), "operator": operator});
        if !requirement.values().is_empty() {
            shown["values"] = json!(requirement.values());
        }
        Some(shown)
    });
    shown.collect()
}

fn add_selectors(resource: &mut Value, attributes: &Attributes) {
    for (field, requirements) in [
        ("fieldSelector", field_requirements(&attributes.field_selector)),
        ("labelSelector", label_requirements(&attributes.label_selector)),
    ] {
        if !requirements.is_empty() {
            resource[field] = json!({"requirements": requirements});
        }
    }
}

/// What is asked, as `authorization.k8s.io/v1` says it.
fn spec(user: &UserInfo, attributes: &Attributes) -> Value {
    let mut spec = filled([("user", user.name.as_str()), ("uid", user.uid.as_str())]);
    if attributes.is_resource {
        let mut resource = filled(resource_texts(attributes));
        add_selectors(&mut resource, attributes);
        spec["resourceAttributes"] = resource;
    } else {
        spec["nonResourceAttributes"] =
            filled([("path", attributes.path.as_str()), ("verb", attributes.verb.as_str())]);
    }
    if !user.groups.is_empty() {
        spec["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        spec["extra"] = json!(user.extra);
    }
    spec
}

fn review(version: Version, mut spec: Value) -> Value {
    // Upstream: api/authorization/v1beta1/types.go SubjectAccessReviewSpec
    if version == Version::V1beta1
        && let Some(fields) = spec.as_object_mut()
        && let Some(groups) = fields.remove("groups")
    {
        fields.insert("group".to_owned(), groups);
    }
    json!({
        "kind": "SubjectAccessReview",
        "apiVersion": format!("authorization.k8s.io/{}", version.as_str()),
        "metadata": {},
        "spec": spec,
        "status": {"allowed": false},
    })
}

/// The `request` of conditions, in which texts are there though they are empty.
///
/// Upstream: apiserver/pkg/authorization/cel/compile.go convertObjectToUnstructured
fn seen_by_conditions(user: &UserInfo, attributes: &Attributes) -> Value {
    let mut seen = json!({"user": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
    if attributes.is_resource {
        let texts = resource_texts(attributes).map(|(name, text)| (name.to_owned(), text.into()));
        let mut resource = Value::Object(texts.into_iter().collect());
        add_selectors(&mut resource, attributes);
        seen["resourceAttributes"] = resource;
    } else {
        seen["nonResourceAttributes"] = json!({"verb": attributes.verb, "path": attributes.path});
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jane() -> UserInfo {
        UserInfo { name: "jane".into(), groups: vec!["devs".into()], ..Default::default() }
    }

    fn pods() -> Attributes {
        Attributes {
            verb: "list".into(),
            namespace: "n".into(),
            version: "v1".into(),
            resource: "pods".into(),
            is_resource: true,
            field_selector: "spec.nodeName=n1".into(),
            label_selector: "a in (x,y),!b,c>1".into(),
            ..Default::default()
        }
    }

    #[test]
    fn a_review_says_what_is_asked_in_the_servers_version() {
        let attributes = json!({
            "namespace": "n", "verb": "list", "version": "v1", "resource": "pods",
            "fieldSelector": {"requirements": [{"key": "spec.nodeName", "operator": "In", "values": ["n1"]}]},
            "labelSelector": {"requirements": [
                {"key": "a", "operator": "In", "values": ["x", "y"]}, {"key": "b", "operator": "DoesNotExist"},
            ]},
        });
        for (version, groups) in [(Version::V1, "groups"), (Version::V1beta1, "group")] {
            let review = review(version, spec(&jane(), &pods()));
            assert_eq!(review["apiVersion"], format!("authorization.k8s.io/{}", version.as_str()));
            let mut wanted = json!({"user": "jane", "resourceAttributes": attributes});
            wanted[groups] = json!(["devs"]);
            assert_eq!(review["spec"], wanted);
        }
        let path = Attributes { verb: "get".into(), path: "/healthz".into(), ..Default::default() };
        let wanted = json!({"user": "jane", "groups": ["devs"],
                            "nonResourceAttributes": {"path": "/healthz", "verb": "get"}});
        assert_eq!(spec(&jane(), &path), wanted);
    }

    #[test]
    fn conditions_say_whether_a_server_is_asked() {
        let request = seen_by_conditions(&jane(), &pods());
        for (texts, wanted) in [
            (&[][..], Ok(true)),
            (&["request.user == 'jane'", "'devs' in request.groups"], Ok(true)),
            (&["has(request.resourceAttributes) && request.resourceAttributes.verb == 'get'"], Ok(false)),
            (&["request.nonResourceAttributes.path == '/x'", "request.user == 'joe'"], Ok(false)),
            (&["request.nonResourceAttributes.path == '/x'"], Err("no such key: nonResourceAttributes")),
            (&["request.resourceAttributes.?labelSelector.requirements.hasValue()"], Ok(true)),
        ] {
            let conditions: Vec<Condition> =
                texts.iter().map(|text| Condition::compile(text).unwrap()).collect();
            match (concerns(&conditions, &request), wanted) {
                (Err(got), Err(wanted)) => assert!(got.contains(wanted), "{got}"),
                (got, wanted) => assert_eq!(got, wanted.map_err(str::to_owned), "{texts:?}"),
            }
        }
        for (text, wanted) in [
            ("request.user", "must evaluate to bool but got string"),
            ("request.nothing == ''", "compilation failed: "),
        ] {
            let why = Condition::compile(text).err().unwrap();
            assert!(why.starts_with(wanted), "{why}");
        }
    }

    #[test]
    fn an_answer_allows_denies_or_leaves_it_to_others() {
        let reason = || "r".to_owned();
        for (status, wanted, error) in [
            (json!({"allowed": true, "reason": "r"}), Decision::Allow { reason: reason() }, false),
            (json!({"allowed": false, "reason": "r"}), Decision::NoOpinion { reason: reason() }, false),
            (json!({"denied": true, "reason": "r"}), Decision::Deny { reason: reason() }, false),
            (
                json!({"allowed": true, "denied": true, "reason": "r"}),
                Decision::Deny { reason: reason() },
                true,
            ),
        ] {
            let review = json!({"kind": "SubjectAccessReview", "status": status});
            let decided = Answer::read(Version::V1, &review).unwrap().decided();
            assert_eq!((decided.decision, decided.error.is_some()), (wanted, error), "{status}");
        }
        for wrong in [json!({"kind": "TokenReview"}), json!({"apiVersion": "authorization.k8s.io/v1beta1"})] {
            assert!(Answer::read(Version::V1, &wrong).is_err(), "{wrong}");
        }
    }
}
