//! FlowSchema: which requests share a priority level.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("flowcontrol.apiserver.k8s.io/v1", "FlowSchema", "flowschemas")
        .status()
        .columns("Name,PriorityLevel,MatchingPrecedence,DistinguisherMethod,Age,MissingPL", cells)
        .strategy(Rules { default, validate, generation: true, ..Rules::PLAIN })
        .build()
}

fn cells(schema: &Value, now: i64) -> Vec<Cell> {
    let dangling = list(schema, "status.conditions").iter().find(|c| text(c, "type") == "Dangling");
    cells![
        get::name(schema),
        text(schema, "spec.priorityLevelConfiguration.name"),
        count(schema, "spec.matchingPrecedence"),
        print::or(schema, "spec.distinguisherMethod.type", "<none>"),
        age(schema, now),
        dangling.map_or("?", |c| text(c, "status")),
    ]
}

fn default(schema: &mut Value) {
    if number(schema, "spec.matchingPrecedence") == 0 {
        set(schema, "spec.matchingPrecedence", 1000);
    }
}

const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

/// Upstream: pkg/apis/flowcontrol/validation/validation.go ValidateFlowSchema
fn validate(schema: &Value) -> Errors {
    let mut errors = Errors::new();
    let precedence = number(schema, "spec.matchingPrecedence");
    let place = path("spec.matchingPrecedence");
    if precedence <= 0 {
        errors.push(Error::invalid(&place, precedence, "must be a positive value"));
    }
    if precedence > 10_000 {
        errors.push(Error::invalid(&place, precedence, "must not be greater than 10000"));
    }
    if precedence == 1 && get::name(schema) != "exempt" {
        let detail = "only the schema named 'exempt' may have matchingPrecedence 1";
        errors.push(Error::invalid(&place, precedence, detail));
    }
    if has(schema, "spec.distinguisherMethod") {
        let method = text(schema, "spec.distinguisherMethod.type");
        let place = path("spec.distinguisherMethod.type");
        let wrong = crate::validate::one_of(method, &place, &["ByNamespace", "ByUser"]);
        // Upstream shows the method by the names of its own type.
        errors.extend(wrong.into_iter().map(|error| error.showing(format!("{{\"Type\":{method:?}}}"))));
    }
    let level = text(schema, "spec.priorityLevelConfiguration.name");
    let place = path("spec.priorityLevelConfiguration.name");
    if level.is_empty() {
        errors.push(Error::required(&place, "must reference a priority level"));
    }
    errors.extend(crate::validate::each(
        if level.is_empty() { Vec::new() } else { names::dns1123_subdomain(level) },
        &place,
        level,
    ));
    for (rule, place) in get::items(schema, "spec.rules", &path("spec.rules")) {
        errors.extend(validate_rule(rule, &place));
    }
    errors
}

fn validate_rule(rule: &Value, place: &Path) -> Errors {
    let mut errors = Errors::new();
    let subjects = get::items(rule, "subjects", &place.child("subjects"));
    if subjects.is_empty() {
        errors.push(Error::required(&place.child("subjects"), "subjects must contain at least one value"));
    }
    for (subject, place) in subjects {
        errors.extend(validate_subject(subject, &place));
    }
    if list(rule, "resourceRules").is_empty() && list(rule, "nonResourceRules").is_empty() {
        let detail = "at least one of resourceRules and nonResourceRules has to be non-empty";
        errors.push(Error::required(place, detail));
    }
    for (rule, place) in get::items(rule, "resourceRules", &place.child("resourceRules")) {
        errors.extend(validate_resource_rule(rule, &place));
    }
    for (rule, place) in get::items(rule, "nonResourceRules", &place.child("nonResourceRules")) {
        errors.extend(verbs(rule, &place));
        let detail = "nonResourceURLs must contain at least one value";
        errors.extend(words(rule, &place, "nonResourceURLs", "non-resource URLs", detail));
        let urls = get::texts(rule, "nonResourceURLs");
        for (index, url) in urls.iter().enumerate().filter(|(_, url)| **url != "*") {
            let place = place.child("nonResourceURLs").index(index);
            errors.extend(wrong_url(url).map(|why| Error::invalid(&place, *url, why)));
        }
    }
    errors
}

/// Upstream: pkg/apis/flowcontrol/validation/validation.go ValidateNonResourceURLPath
fn wrong_url(url: &str) -> Option<&'static str> {
    let wildcards = url.matches('*').count();
    match url {
        "" => Some("must not be empty"),
        "/" => None,
        url if !url.starts_with('/') => Some("must start with slash"),
        url if url.contains(' ') => Some("must not contain white-space"),
        url if url.contains("//") => Some("must not contain double slash"),
        url if wildcards > 1 || (wildcards == 1 && !url.ends_with("/*")) => {
            Some("wildcard can only do suffix matching")
        }
        _ => None,
    }
}

/// What a kind of subject is told by.
const SUBJECTS: [(&str, &str); 3] =
    [("User", "user"), ("Group", "group"), ("ServiceAccount", "serviceAccount")];

fn validate_subject(subject: &Value, place: &Path) -> Errors {
    let kind = text(subject, "kind");
    if !SUBJECTS.iter().any(|(known, _)| *known == kind) {
        return vec![Error::not_supported(&place.child("kind"), kind, &["Group", "ServiceAccount", "User"])];
    }
    let mut errors = Errors::new();
    for (known, field) in SUBJECTS {
        let (own, given) = (known == kind, has(subject, field));
        let place = place.child(field);
        if own && !given {
            errors
                .push(Error::required(&place, format!("{field} is required when subject kind is '{known}'")));
        } else if given && !own {
            let detail = format!("{field} is forbidden when subject kind is not '{known}'");
            errors.push(Error::forbidden(&place, detail));
        } else if own && text(subject, &format!("{field}.name")).is_empty() {
            errors.push(Error::required(&place.child("name"), ""));
        }
    }
    if kind == "ServiceAccount" && has(subject, "serviceAccount") {
        let place = place.child("serviceAccount");
        let (name, namespace) =
            (text(subject, "serviceAccount.name"), text(subject, "serviceAccount.namespace"));
        if !matches!(name, "" | "*") {
            errors.extend(crate::validate::each(names::dns1123_subdomain(name), &place.child("name"), name));
        }
        let place = place.child("namespace");
        if namespace.is_empty() {
            errors.push(Error::required(&place, "must specify namespace for service account"));
        } else {
            errors.extend(crate::validate::each(names::dns1123_label(namespace), &place, namespace));
        }
    }
    errors
}

/// A list that holds something, and nothing beside `*`.
fn words(rule: &Value, place: &Path, field: &str, what: &str, empty: &str) -> Errors {
    let (values, place) = (get::texts(rule, field), place.child(field));
    if values.is_empty() {
        return vec![Error::required(&place, empty)];
    }
    if values.len() > 1 && values.contains(&"*") {
        let detail = format!("if '*' is present, must not specify other {what}");
        return vec![Error::invalid(&place, json!(values), detail)];
    }
    Errors::new()
}

fn verbs(rule: &Value, place: &Path) -> Errors {
    let mut errors = words(rule, place, "verbs", "verbs", "verbs must contain at least one value");
    let verbs = get::texts(rule, "verbs");
    if !verbs.contains(&"*") && verbs.iter().any(|verb| !VERBS.contains(verb)) {
        errors.push(Error::not_supported(&place.child("verbs"), json!(verbs), &VERBS));
    }
    errors
}

fn validate_resource_rule(rule: &Value, place: &Path) -> Errors {
    let mut errors = verbs(rule, place);
    let detail = "resource rules must supply at least one api group";
    errors.extend(words(rule, place, "apiGroups", "api groups", detail));
    let detail = "resource rules must supply at least one resource";
    errors.extend(words(rule, place, "resources", "resources", detail));
    let namespaces = get::texts(rule, "namespaces");
    if !namespaces.is_empty() || !is_true(rule, "clusterScope") {
        let detail = "resource rules that are not cluster scoped must supply at least one namespace";
        errors.extend(words(rule, place, "namespaces", "namespaces", detail));
    }
    for (index, namespace) in namespaces.iter().enumerate().filter(|(_, namespace)| **namespace != "*") {
        for message in names::dns1123_label(namespace) {
            let detail = format!("each member of this list must be '*' or a DNS-1123 label; {message}");
            errors.push(Error::invalid(&place.child("namespaces").index(index), *namespace, detail));
        }
    }
    errors
}
