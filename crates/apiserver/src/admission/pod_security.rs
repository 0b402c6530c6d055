//! Pod security standards, as namespaces ask for them by labels: violations are refused or warned of.
//!
//! Upstream: pod-security-admission/admission/admission.go

use std::collections::BTreeMap;

use apimachinery::field::{self, Path};
use apimachinery::{GroupKind, Status, names};
use serde::Deserialize;
use serde_json::Value;

use super::configuration::versioned;
use super::pod_security_checks::{Finding, evaluate};
use super::tree::{at, items, label, text};
use super::{Context, Plugin, core, forbid, is, is_create, is_update};
use crate::audit::Annotation;
use crate::seams::{AdmissionRequest, Operation};

pub(super) struct PodSecurity;

/// Checking a namespace's pods for a new level stops here.
const MAX_PODS: usize = 3000;

const PREFIX: &str = "pod-security.kubernetes.io/";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    #[default]
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    fn parse(name: &str) -> Option<Self> {
        match name {
            "privileged" => Some(Level::Privileged),
            "baseline" => Some(Level::Baseline),
            "restricted" => Some(Level::Restricted),
            _ => None,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        }
    }
}

/// A level of a Kubernetes minor version; `None` is the latest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Standard {
    pub level: Level,
    pub minor: Option<u32>,
}

impl std::fmt::Display for Standard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.minor {
            None => write!(f, "{}:latest", self.level.as_str()),
            Some(minor) => write!(f, "{}:v1.{minor}", self.level.as_str()),
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Policy {
    enforce: Standard,
    audit: Standard,
    warn: Standard,
}

/// What holds for namespaces that do not say, and for whom nothing holds.
#[derive(Default)]
pub(super) struct Security {
    defaults: Policy,
    exemptions: Exemptions,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Exemptions {
    usernames: Vec<String>,
    namespaces: Vec<String>,
    runtime_classes: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Configuration {
    defaults: BTreeMap<String, String>,
    exemptions: Exemptions,
}

/// Upstream: pod-security-admission/admission/api/validation/validation.go ValidatePodSecurityConfiguration
pub(super) fn configured(document: Option<&Value>) -> Result<Security, String> {
    let Some(document) = document else { return Ok(Security::default()) };
    let versions = ["v1", "v1beta1", "v1alpha1"];
    let Configuration { defaults, exemptions } =
        versioned(document, "pod-security.admission.config.k8s.io", &versions, "PodSecurityConfiguration")?;
    let mut errors = Vec::new();
    let mut known = Vec::new();
    let mut read = |mode: &'static str| {
        let mut standard = Standard::default();
        let path = Path::new("defaults");
        let version = format!("{mode}-version");
        let said = |key: &str| defaults.get(key).map(String::as_str).filter(|text| !text.is_empty());
        if let Some(given) = said(mode) {
            match Level::parse(given) {
                Some(level) => standard.level = level,
                None => errors.push(field::Error::invalid(&path.child(mode), given, WRONG_LEVEL)),
            }
        }
        if let Some(given) = said(&version) {
            match parse_version(given) {
                Some(minor) => standard.minor = minor,
                None => errors.push(field::Error::invalid(&path.child(&version), given, WRONG_VERSION)),
            }
        }
        known.extend([mode.to_owned(), version]);
        standard
    };
    let (enforce, warn, audit) = (read("enforce"), read("warn"), read("audit"));
    if let Some(other) = defaults.keys().find(|key| !known.contains(key)) {
        return Err(format!("unknown field \"defaults.{other}\""));
    }
    errors.extend(exemptions.wrong());
    match errors.is_empty() {
        true => Ok(Security { defaults: Policy { enforce, audit, warn }, exemptions }),
        false => Err(field::aggregate(&errors)),
    }
}

impl Exemptions {
    fn wrong(&self) -> Vec<field::Error> {
        fn nameless(name: &str) -> Vec<String> {
            let why = name.is_empty().then(|| "username must not be empty".to_owned());
            why.into_iter().collect()
        }
        type Check = fn(&str) -> Vec<String>;
        let lists: [(&str, &[String], Check); 3] = [
            ("namespaces", &self.namespaces, names::dns1123_label),
            ("runtimeClasses", &self.runtime_classes, names::dns1123_subdomain),
            ("usernames", &self.usernames, nameless),
        ];
        let mut errors = Vec::new();
        for (list, given, check) in lists {
            for (index, name) in given.iter().enumerate() {
                let path = Path::new("exemptions").child(list).index(index);
                let wrong = check(name);
                if !wrong.is_empty() {
                    errors.push(field::Error::invalid(&path, name.as_str(), wrong.join(", ")));
                } else if given[..index].contains(name) {
                    errors.push(field::Error::duplicate(&path, name.as_str()));
                }
            }
        }
        errors
    }

    /// Why nothing holds for what is asked in a namespace by a user.
    fn of(&self, request: &AdmissionRequest<'_>) -> Option<&'static str> {
        let namespace = self.namespaces.iter().any(|name| name == request.namespace);
        let user = || self.usernames.contains(&request.user.name);
        if namespace { Some("namespace") } else { user().then_some("user") }
    }

    /// Why nothing holds for a pod.
    fn of_pod(&self, pod: &Value) -> Option<&'static str> {
        let class = text(pod, "spec.runtimeClassName");
        let exempt = !class.is_empty() && self.runtime_classes.iter().any(|name| name == class);
        exempt.then_some("runtimeClass")
    }
}

const WRONG_LEVEL: &str = "must be one of privileged, baseline, restricted";
const WRONG_VERSION: &str = "must be \"latest\" or \"v1.x\"";

/// `latest` or `v1.N` without leading zeros.
fn parse_version(text: &str) -> Option<Option<u32>> {
    if text == "latest" {
        return Some(None);
    }
    let digits = text.strip_prefix("v1.")?;
    let plain = digits == "0" || !digits.starts_with('0');
    (plain && digits.bytes().all(|b| b.is_ascii_digit())).then(|| digits.parse().ok()).flatten().map(Some)
}

/// The policy of a namespace's labels, and what is wrong with them. A level that cannot be read is enforced as
/// restricted and not warned of.
///
/// Upstream: pod-security-admission/api/helpers.go PolicyToEvaluate
fn policy(namespace: &Value, defaults: &Policy) -> (Policy, Vec<field::Error>) {
    let mut errors = Vec::new();
    let mut read = |mode: &str, fallback: Level, mut standard: Standard| {
        let path = |key: &str| Path::new("metadata").child("labels").key(key);
        let level_key = format!("{PREFIX}{mode}");
        let given = label(namespace, &level_key);
        let parsed = given.map(Level::parse);
        if let (Some(given), Some(parsed)) = (given, parsed) {
            standard.level = parsed.unwrap_or(fallback);
            if parsed.is_none() {
                errors.push(field::Error::invalid(&path(&level_key), given, WRONG_LEVEL));
            }
        }
        let version_key = format!("{PREFIX}{mode}-version");
        let version = label(namespace, &version_key);
        if let Some(given) = version {
            match parse_version(given) {
                Some(minor) => standard.minor = minor,
                None => errors.push(field::Error::invalid(&path(&version_key), given, WRONG_VERSION)),
            }
        }
        (standard, parsed, version.is_some())
    };
    let (enforce, enforce_level, _) = read("enforce", Level::Restricted, defaults.enforce);
    let (audit, ..) = read("audit", Level::Privileged, defaults.audit);
    let (mut warn, warn_level, has_warn_version) = read("warn", Level::Privileged, defaults.warn);
    if warn_level.is_none() && enforce_level.flatten().is_some() && enforce.level > warn.level {
        warn.level = enforce.level;
        if !has_warn_version {
            warn.minor = enforce.minor;
        }
    }
    (Policy { enforce, audit, warn }, errors)
}

/// `reason (detail), reason (detail)`.
fn details(findings: &[Finding]) -> String {
    let show = |finding: &Finding| match finding.detail.is_empty() {
        true => finding.reason.clone(),
        false => format!("{} ({})", finding.reason, finding.detail),
    };
    findings.iter().map(show).collect::<Vec<_>>().join(", ")
}

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn validate(&self, context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
        if !is_create(request) && !is_update(request) {
            return Ok(());
        }
        if is(request, "", "namespaces") {
            return validate_namespace(context, request);
        }
        if is(request, "", "pods") {
            return validate_pod(context, request);
        }
        if request.subresource.is_empty() {
            warn_of_template(context, request);
        }
        Ok(())
    }
}

fn validate_namespace(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    if !request.subresource.is_empty() {
        return Ok(());
    }
    let Security { defaults, exemptions } = &context.settings.security;
    let (new, errors) = policy(request.object, defaults);
    let (old, old_errors) = request.old_object.map(|old| policy(old, defaults)).unwrap_or_default();
    if !errors.is_empty() && (request.old_object.is_none() || errors != old_errors) {
        let name = text(request.object, "metadata.name");
        return Err(Status::invalid(&GroupKind::new("", "Namespace"), name, &errors));
    }
    let name = text(request.object, "metadata.name").to_owned();
    let exempt = exemptions.namespaces.contains(&name);
    if request.operation == Operation::Create && exempt {
        request.warnings.extend(exemption_warning(&name, &new, defaults, request.object));
    }
    let loosened = new.enforce.minor == old.enforce.minor && new.enforce.level <= old.enforce.level;
    if request.operation == Operation::Update
        && new.enforce != old.enforce
        && new.enforce.level != Level::Privileged
        && !loosened
    {
        match exempt {
            true => request.warnings.extend(exemption_warning(&name, &new, defaults, request.object)),
            false => request.warnings.extend(warn_of_pods(context, &name, new.enforce)),
        }
    }
    Ok(())
}

/// That what a namespace asks for by its labels does not hold there.
///
/// Upstream: pod-security-admission/admission/admission.go exemptNamespaceWarning
fn exemption_warning(name: &str, policy: &Policy, defaults: &Policy, namespace: &Value) -> Option<String> {
    let modes = [("enforce", policy.enforce), ("audit", policy.audit), ("warn", policy.warn)];
    let restricts = |standard: &Standard| standard.level != Level::Privileged;
    if policy == defaults || !modes.iter().any(|(_, standard)| restricts(standard)) {
        return None;
    }
    let says = |mode: &str| {
        let keys = [format!("{PREFIX}{mode}"), format!("{PREFIX}{mode}-version")];
        keys.iter().any(|key| label(namespace, key).is_some())
    };
    let shown: Vec<String> = modes
        .iter()
        .filter(|(mode, standard)| restricts(standard) && says(mode))
        .map(|(mode, standard)| format!("{mode}={standard}"))
        .collect();
    let shown = shown.join(", ");
    Some(format!("namespace {name:?} is exempt from Pod Security, and the policy ({shown}) will be ignored"))
}

/// What of the pods that are there violates a new level. Of the pods of one controller one is looked at.
fn warn_of_pods(context: &Context, namespace: &str, standard: Standard) -> Vec<String> {
    let mut pods = Vec::new();
    let mut replicas = Vec::new();
    let mut controllers = std::collections::HashSet::new();
    for pod in context.lookup.list(&core("pods"), Some(namespace)) {
        let owners = items(&pod, "metadata.ownerReferences");
        let controller =
            owners.iter().find(|owner| owner["controller"] == true).map(|owner| text(owner, "uid"));
        match controller {
            Some(uid) if !controllers.insert(uid.to_owned()) => replicas.push(pod.clone()),
            _ => pods.push(pod.clone()),
        }
    }
    pods.extend(replicas);
    let total = pods.len();
    pods.truncate(MAX_PODS);
    let mut violations: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for pod in &pods {
        let findings = evaluate(standard, pod);
        if findings.is_empty() {
            continue;
        }
        let reason = findings.iter().map(|finding| finding.reason.as_str()).collect::<Vec<_>>().join(", ");
        let name = text(pod, "metadata.name");
        let (first, count) = violations.entry(reason).or_insert_with(|| (name.to_owned(), 0));
        *count += 1;
        if name < first.as_str() {
            *first = name.to_owned();
        }
    }
    let mut warnings = Vec::new();
    if pods.len() < total {
        let checked = pods.len();
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {total} existing pods"
        ));
    }
    if violations.is_empty() {
        return warnings;
    }
    let standard = standard.to_string();
    warnings.push(format!(
        "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level {standard:?}"
    ));
    let mut lines: Vec<String> = violations
        .into_iter()
        .map(|(reason, (name, count))| match count {
            1 => format!("{name}: {reason}"),
            2 => format!("{name} (and 1 other pod): {reason}"),
            more => format!("{name} (and {} other pods): {reason}", more - 1),
        })
        .collect();
    lines.sort();
    warnings.extend(lines);
    warnings
}

/// Only what runs matters of an update: the containers and their images.
fn is_significant(new: &Value, old: &Value) -> bool {
    let images = |pod: &Value, list: &str| -> Vec<(String, String)> {
        let named = |c: &Value| (text(c, "name").to_owned(), text(c, "image").to_owned());
        items(pod, list).iter().map(named).collect()
    };
    let plain = |pod: &Value, list: &str| -> Vec<String> {
        images(pod, list).into_iter().map(|(_, image)| image).collect()
    };
    let differ = |list| plain(new, list) != plain(old, list);
    let before = images(old, "spec.ephemeralContainers");
    differ("spec.containers")
        || differ("spec.initContainers")
        || images(new, "spec.ephemeralContainers").iter().any(|container| !before.contains(container))
}

fn validate_pod(context: &Context, request: &mut AdmissionRequest<'_>) -> Result<(), Status> {
    const IGNORED: [&str; 8] =
        ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];
    if IGNORED.contains(&request.subresource) {
        return Ok(());
    }
    let Security { defaults, exemptions } = &context.settings.security;
    if let Some(exempt) = exemptions.of(request) {
        note(request, "exempt", exempt.to_owned());
        return Ok(());
    }
    let Some(namespace) = context.lookup.get(&core("namespaces"), "", request.namespace) else {
        return Err(Status::internal(format!("failed to lookup namespace {:?}", request.namespace)));
    };
    let (policy, errors) = policy(&namespace, defaults);
    let standards = [policy.enforce, policy.audit, policy.warn];
    if standards.iter().all(|standard| standard.level == Level::Privileged) && errors.is_empty() {
        return Ok(());
    }
    if request.old_object.is_some_and(|old| is_update(request) && !is_significant(request.object, old)) {
        return Ok(());
    }
    if let Some(exempt) = exemptions.of_pod(request.object) {
        note(request, "exempt", exempt.to_owned());
        return Ok(());
    }
    note(request, "enforce-policy", policy.enforce.to_string());
    audit(policy.audit, request);
    let findings = evaluate(policy.enforce, request.object);
    if !findings.is_empty() {
        let standard = policy.enforce.to_string();
        return Err(forbid(request, format!("violates PodSecurity {standard:?}: {}", details(&findings))));
    }
    warn(policy.warn, &*request.object, request.warnings);
    Ok(())
}

fn note(request: &mut AdmissionRequest<'_>, key: &str, value: String) {
    request.annotations.push(Annotation::new(format!("{PREFIX}{key}"), value));
}

/// Tells the audit log what the namespace wants to know of.
fn audit(standard: Standard, request: &mut AdmissionRequest<'_>) {
    let mut violations = Vec::new();
    warn(standard, request.object, &mut violations);
    for violation in violations {
        note(request, "audit-violations", violation);
    }
}

fn warn(standard: Standard, pod: &Value, warnings: &mut Vec<String>) {
    let findings = evaluate(standard, pod);
    if !findings.is_empty() {
        let standard = standard.to_string();
        warnings.push(format!("would violate PodSecurity {standard:?}: {}", details(&findings)));
    }
}

/// Kinds that make pods are only warned of: the pods themselves are refused.
fn warn_of_template(context: &Context, request: &mut AdmissionRequest<'_>) {
    let path = match (&*request.gvr.group, &*request.gvr.resource) {
        ("", "replicationcontrollers")
        | ("apps", "deployments" | "replicasets" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => "spec.template",
        ("batch", "cronjobs") => "spec.jobTemplate.spec.template",
        ("", "podtemplates") => "template",
        _ => return,
    };
    let Some(template) = at(request.object, path) else { return };
    let Security { defaults, exemptions } = &context.settings.security;
    if let Some(exempt) = exemptions.of(request).or_else(|| exemptions.of_pod(template)) {
        note(request, "exempt", exempt.to_owned());
        return;
    }
    let Some(namespace) = context.lookup.get(&core("namespaces"), "", request.namespace) else { return };
    let (policy, _) = policy(&namespace, defaults);
    let mut violations = Vec::new();
    warn(policy.audit, template, &mut violations);
    warn(policy.warn, template, request.warnings);
    for violation in violations {
        note(request, "audit-violations", violation);
    }
}
