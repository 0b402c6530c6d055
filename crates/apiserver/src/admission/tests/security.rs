//! Pod security.

use serde_json::{Value, json};

use super::super::fake::{Case, context};
use super::object;

fn namespace(labels: &[(&str, &str)]) -> Value {
    let labels: serde_json::Map<String, Value> = labels
        .iter()
        .map(|(key, value)| (format!("pod-security.kubernetes.io/{key}"), (*value).into()))
        .collect();
    object("Namespace", "", "shop", json!({"metadata": {"labels": labels}}))
}

fn check(labels: &[(&str, &str)], spec: Value) -> (String, Vec<String>) {
    let context = context([namespace(labels)]);
    let mut case = Case::create(object("Pod", "shop", "p", json!({"spec": spec})));
    let refused = case.admit(&context, "PodSecurity").err().map(|status| status.message).unwrap_or_default();
    let why = refused.strip_prefix("pods \"p\" is forbidden: violates PodSecurity ").unwrap_or(&refused);
    (why.to_owned(), case.warnings)
}

#[test]
fn the_restricted_standard_names_what_is_missing() {
    let spec = json!({"containers": [{"name": "c"}]});
    assert_eq!(
        check(&[("enforce", "restricted")], spec).0,
        "\"restricted:latest\": allowPrivilegeEscalation != false (container \"c\" must set \
         securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set \
         securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set \
         securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set \
         securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
    );
    let good = json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "v", "emptyDir": {}}],
        "containers": [{"name": "c", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        }}],
    });
    assert_eq!(check(&[("enforce", "restricted")], good), (String::new(), Vec::new()));
}

#[test]
fn the_baseline_standard_names_what_is_too_much() {
    let container = |context: Value| json!({"containers": [{"name": "c", "securityContext": context}]});
    let cases = [
        (json!({"containers": [{"name": "c"}]}), ""),
        (json!({"hostNetwork": true, "hostPID": true}), "host namespaces (hostNetwork=true, hostPID=true)"),
        (
            container(json!({"privileged": true})),
            "privileged (container \"c\" must not set securityContext.privileged=true)",
        ),
        (
            container(json!({"capabilities": {"add": ["SYS_ADMIN", "CHOWN"]}})),
            "non-default capabilities (container \"c\" must not include \"SYS_ADMIN\" in \
             securityContext.capabilities.add)",
        ),
        (json!({"volumes": [{"name": "h", "hostPath": {}}]}), "hostPath volumes (volume \"h\")"),
        (
            json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 443}]}]}),
            "hostPort (container \"a\" uses hostPorts 443, 80)",
        ),
        (
            json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "h"}}}]}),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"h\")",
        ),
        (
            container(json!({"procMount": "Unmasked"})),
            "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            json!({"hostUsers": false, "containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]}),
            "",
        ),
        (
            json!({"securityContext": {"seLinuxOptions": {"type": "spc_t", "user": "u"}}}),
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
        ),
        (
            json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
            "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]}}),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
        (
            container(json!({"appArmorProfile": {"type": "Unconfined"}})),
            "forbidden AppArmor profile (container \"c\" must not set AppArmor profile type to \"Unconfined\")",
        ),
    ];
    for (spec, expected) in cases {
        let (why, _) = check(&[("enforce", "baseline")], spec);
        assert_eq!(why.strip_prefix("\"baseline:latest\": ").unwrap_or(&why), expected);
    }
}

#[test]
fn restricted_checks_replace_baseline_ones() {
    let good = |change: &dyn Fn(&mut Value)| {
        let mut spec = json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
            }}],
        });
        change(&mut spec);
        let why = check(&[("enforce", "restricted")], spec).0;
        why.strip_prefix("\"restricted:latest\": ").unwrap_or(&why).to_owned()
    };
    assert_eq!(
        good(&|spec| spec["volumes"] = json!([{"name": "h", "hostPath": {}}, {"name": "n", "nfs": {}}])),
        "restricted volume types (volumes \"h\", \"n\" use restricted volume types \"hostPath\", \"nfs\")"
    );
    assert_eq!(
        good(&|spec| spec["containers"][0]["securityContext"]["capabilities"]["add"] = json!(["SYS_TIME"])),
        "unrestricted capabilities (container \"c\" must not include \"SYS_TIME\" in securityContext.capabilities.add)"
    );
    assert_eq!(
        good(&|spec| spec["securityContext"]["runAsUser"] = 0.into()),
        "runAsUser=0 (pod must not set runAsUser=0)"
    );
    assert_eq!(
        good(&|spec| spec["containers"][0]["securityContext"]["runAsNonRoot"] = false.into()),
        "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false)"
    );
}

#[test]
fn versions_pin_what_is_checked() {
    let probe = json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "h"}}}]});
    assert_eq!(check(&[("enforce", "baseline"), ("enforce-version", "v1.33")], probe.clone()).0, "");
    assert!(
        check(&[("enforce", "baseline"), ("enforce-version", "v1.34")], probe)
            .0
            .starts_with("\"baseline:v1.34\"")
    );
    let sysctl = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.ip_local_reserved_ports"}]}});
    assert_ne!(check(&[("enforce", "baseline"), ("enforce-version", "v1.26")], sysctl.clone()).0, "");
    assert_eq!(check(&[("enforce", "baseline"), ("enforce-version", "v1.99")], sysctl).0, "");
}

#[test]
fn a_namespace_may_warn_without_refusing() {
    let host = json!({"hostNetwork": true});
    let warning = "would violate PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)";
    assert_eq!(check(&[("warn", "baseline")], host.clone()), (String::new(), vec![warning.to_owned()]));
    assert_eq!(check(&[], host.clone()), (String::new(), Vec::new()));
    assert!(check(&[("enforce", "nonsense")], host).0.starts_with("\"restricted:latest\""), "fails closed");
    let context = context([namespace(&[("enforce", "baseline")])]);
    let mut case = Case::create(object(
        "Deployment",
        "shop",
        "d",
        json!({
            "spec": {"template": {"spec": {"hostNetwork": true}}},
        }),
    ));
    case.admit(&context, "PodSecurity").unwrap();
    assert_eq!(case.warnings, [warning]);
}

#[test]
fn only_what_runs_matters_of_an_update() {
    let context = context([namespace(&[("enforce", "baseline")])]);
    let pod = |image: &str| {
        object(
            "Pod",
            "shop",
            "p",
            json!({"spec": {
                "hostNetwork": true, "containers": [{"name": "c", "image": image}],
            }}),
        )
    };
    assert_eq!(Case::update(pod("a"), pod("a")).refusal(&context, "PodSecurity"), "");
    assert_ne!(Case::update(pod("a"), pod("b")).refusal(&context, "PodSecurity"), "");
}

#[test]
fn labels_of_namespaces_are_checked_and_their_pods_looked_at() {
    let pod = |name: &str, owner: Option<&str>| {
        let owners: Vec<Value> = owner.iter().map(|uid| json!({"uid": uid, "controller": true})).collect();
        object(
            "Pod",
            "shop",
            name,
            json!({
                "metadata": {"ownerReferences": owners}, "spec": {"hostNetwork": true},
            }),
        )
    };
    let context = context([pod("b", Some("r")), pod("a", None), pod("c", Some("r"))]);
    let mut case = Case::update(namespace(&[]), namespace(&[("enforce", "baseline")]));
    case.admit(&context, "PodSecurity").unwrap();
    assert_eq!(
        case.warnings,
        [
            "existing pods in namespace \"shop\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "a (and 2 other pods): host namespaces",
        ]
    );
    let wrong = namespace(&[("enforce", "x"), ("warn-version", "1.2")]);
    assert_eq!(
        Case::create(wrong.clone()).refusal(&context, "PodSecurity"),
        "Namespace \"shop\" is invalid: [metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"x\": \
         must be one of privileged, baseline, restricted, metadata.labels[pod-security.kubernetes.io/warn-version]: \
         Invalid value: \"1.2\": must be \"latest\" or \"v1.x\"]"
    );
    assert_eq!(
        Case::update(wrong.clone(), wrong).refusal(&context, "PodSecurity"),
        "",
        "what was wrong may stay"
    );
}
