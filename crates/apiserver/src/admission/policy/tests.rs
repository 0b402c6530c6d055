use serde_json::{Value, json};

use super::*;
use crate::admission::Context;
use crate::admission::fake::{Case, context, random};
use crate::admission::webhook::client::WebhookClient;
use crate::remote::outbound::Peers;
use crate::remote::resolve::Resolver;

fn policy(spec: Value) -> Value {
    let mut policy = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": "p", "uid": "u", "resourceVersion": "1"},
        "spec": {"matchConstraints": {"resourceRules": [{"operations": ["*"], "apiGroups": ["*"],
                 "apiVersions": ["*"], "resources": ["*"]}]}}});
    for (name, value) in spec.as_object().expect("a spec has fields") {
        policy["spec"][name] = value.clone();
    }
    policy
}

fn binding(spec: Value) -> Value {
    let mut binding = json!({"apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": "b"},
        "spec": {"policyName": "p", "validationActions": ["Deny"]}});
    for (name, value) in spec.as_object().expect("a spec has fields") {
        binding["spec"][name] = value.clone();
    }
    binding
}

fn mutating(mut object: Value) -> Value {
    let kind = object["kind"].as_str().expect("a test object has a kind").replace("Validating", "Mutating");
    object["kind"] = kind.into();
    object
}

fn pod() -> Value {
    json!({"apiVersion": "v1", "kind": "Pod",
           "metadata": {"name": "x", "namespace": "ns", "labels": {"app": "web"}},
           "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn world(objects: impl IntoIterator<Item = Value>) -> Context {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ns", "labels": {"env": "dev"}}});
    context(objects.into_iter().chain([namespace]))
}

/// The code and message of a refusal, or `admitted`, and the warnings.
fn judged(context: &Context, case: &mut Case) -> (String, Vec<String>) {
    let policies = Policies::new();
    let peers = Arc::new(Peers::new(Resolver::new(context.lookup.clone()), None));
    let converter = Converter { webhooks: WebhookClient::new(peers), random: random() };
    let result = case.run(|request| {
        futures::executor::block_on(async {
            let mut rounds = Rounds::default();
            policies.mutate(context, request, &mut rounds, &converter).await?;
            policies.validate(context, request, &converter).await
        })
    });
    let told = match result {
        Ok(()) => "admitted".to_owned(),
        Err(status) => format!("{} {} {}", status.code, status.reason, status.message),
    };
    (told, case.warnings.clone())
}

fn denied(message: &str) -> String {
    format!(
        "422 Invalid pods \"x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: {message}"
    )
}

#[test]
fn validations_decide_and_say_why() {
    let one = |validation: Value| json!({"validations": [validation]});
    let cases = [
        (one(json!({"expression": "object.metadata.name == 'x'"})), "admitted".to_owned()),
        (
            one(json!({"expression": "object.metadata.name == 'y'"})),
            denied("failed expression: object.metadata.name == 'y'"),
        ),
        (one(json!({"expression": "false", "message": "no"})), denied("no")),
        (
            one(json!({"expression": "false", "messageExpression": "'because ' + object.metadata.name"})),
            denied("because x"),
        ),
        // What is wrong with a message does not decide.
        (
            one(json!({"expression": "false", "message": "no", "messageExpression": "object.gone"})),
            denied("no"),
        ),
        (
            one(json!({"expression": "object.gone == 1"})),
            denied("expression 'object.gone == 1' resulted in error: no such key: gone"),
        ),
        (
            json!({"failurePolicy": "Ignore", "validations": [{"expression": "object.gone == 1"}]}),
            "admitted".to_owned(),
        ),
        (
            json!({"matchConditions": [{"name": "m", "expression": "object.metadata.name != 'x'"}],
                   "validations": [{"expression": "false"}]}),
            "admitted".to_owned(),
        ),
        (
            json!({"variables": [{"name": "a", "expression": "object.metadata.labels.app"},
                                 {"name": "b", "expression": "variables.a + '!'"},
                                 {"name": "unused", "expression": "object.gone"}],
                   "validations": [{"expression": "variables.b == 'web!'"},
                                   {"expression": "variables.b == 'db'", "messageExpression": "variables.b"}]}),
            denied("web!"),
        ),
        (one(json!({"expression": "namespaceObject.metadata.labels.env == 'dev'"})), "admitted".to_owned()),
        (
            one(
                json!({"expression": "request.userInfo.username == 'jane' && request.operation == 'CREATE' && \
                                      request.resource.resource == 'pods' && oldObject == null"}),
            ),
            "admitted".to_owned(),
        ),
        (
            one(
                json!({"expression": "authorizer.group('').resource('pods').namespace('ns').check('create').allowed()",
                       "message": "may not"}),
            ),
            denied("may not"),
        ),
    ];
    for (spec, expected) in cases {
        let context = world([policy(spec.clone()), binding(json!({}))]);
        assert_eq!(judged(&context, &mut Case::create(pod())).0, expected, "{spec}");
    }
}

#[test]
fn bindings_say_what_is_done_and_bring_parameters() {
    let fails = json!({"validations": [{"expression": "false", "message": "no", "reason": "Forbidden"}]});
    let context = world([policy(fails.clone()), binding(json!({"validationActions": ["Warn"]}))]);
    let warning = "Validation failed for ValidatingAdmissionPolicy 'p' with binding 'b': no".to_owned();
    assert_eq!(judged(&context, &mut Case::create(pod())), ("admitted".to_owned(), vec![warning]));
    let context = world([policy(fails.clone()), binding(json!({}))]);
    assert!(judged(&context, &mut Case::create(pod())).0.starts_with("403 Forbidden "));
    let context = world([policy(fails.clone())]);
    assert_eq!(
        judged(&context, &mut Case::create(pod())).0,
        "admitted",
        "without a binding nothing is in force"
    );

    let with_params = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
                             "validations": [{"expression": "params == null || params.data.ok == 'yes'"}]});
    let map = |name: &str, ok: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"ok": ok},
               "metadata": {"name": name, "namespace": "ns", "labels": {"param": "yes"}}})
    };
    let failed = denied("failed expression: params == null || params.data.ok == 'yes'");
    let missing = denied(
        "failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction",
    );
    for (reference, expected) in [
        (json!({"name": "good", "parameterNotFoundAction": "Deny"}), "admitted"),
        (json!({"name": "bad", "parameterNotFoundAction": "Deny"}), failed.as_str()),
        (json!({"name": "gone", "parameterNotFoundAction": "Deny"}), missing.as_str()),
        (json!({"name": "gone", "parameterNotFoundAction": "Allow"}), "admitted"),
        (
            json!({"selector": {"matchLabels": {"param": "yes"}}, "parameterNotFoundAction": "Deny"}),
            failed.as_str(),
        ),
    ] {
        let objects = [
            policy(with_params.clone()),
            binding(json!({"paramRef": reference})),
            map("good", "yes"),
            map("bad", "no"),
        ];
        assert_eq!(judged(&world(objects), &mut Case::create(pod())).0, expected, "{reference}");
    }
}

#[test]
fn mutations_change_the_object() {
    let apply = |expression: &str| json!({"mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}}]});
    let patch = |expression: &str| json!({"mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": expression}}]});
    let label = "/metadata/labels/added";
    for (spec, at, expected) in [
        (
            apply("Object{metadata: Object.metadata{labels: {'added': object.metadata.name}}}"),
            label,
            json!("x"),
        ),
        (
            apply(
                "Object{spec: Object.spec{containers: [Object.spec.containers{name: 'c', image: 'other'}]}}",
            ),
            "/spec/containers/0/image",
            json!("other"),
        ),
        (
            patch(
                "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('added'), value: 'y'}]",
            ),
            label,
            json!("y"),
        ),
        (patch("[JSONPatch{op: 'test', path: '/metadata/name', value: 'z'}]"), "/metadata/name", json!("x")),
    ] {
        let context = world([mutating(policy(spec.clone())), mutating(binding(json!({})))]);
        let mut case = Case::create(pod());
        assert_eq!(judged(&context, &mut case).0, "admitted", "{spec}");
        assert_eq!(case.object.pointer(at), Some(&expected), "{spec}");
    }
    let wrong = apply("Object{spec: Object.wrong{}}");
    let context = world([mutating(policy(wrong)), mutating(binding(json!({})))]);
    let expected = "403 Invalid policy 'p' with binding 'b' denied request: type mismatch: unexpected type name \
                    \"Object.wrong\", expected \"Object.spec\", which matches field name path from root Object type";
    assert_eq!(judged(&context, &mut Case::create(pod())).0, expected);
}

#[test]
fn policies_are_not_asked_about_policies() {
    let nothing = json!({"validations": [{"expression": "false"}]});
    let context = world([policy(nothing.clone()), binding(json!({}))]);
    assert_eq!(judged(&context, &mut Case::create(policy(nothing))).0, "admitted");
}
