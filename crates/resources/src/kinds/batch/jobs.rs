//! Job: pods that are to finish.

use apimachinery::selector::LabelSelector;

use crate::podspec;
use crate::prelude::*;
use crate::strategy::{Context, Strategy};
use crate::validate::{immutable, non_negative_at, same, selector};

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("batch/v1", "Job", "jobs")
        .category("all")
        .status()
        .columns("Name,Status,Completions,Duration,Age,+Containers,+Images,+Selector", cells)
        .field("status.successful", |o| number(o, "status.succeeded").to_string())
        .strategy(Jobs)
        .build()
}

fn cells(job: &Value, now: i64) -> Vec<Cell> {
    let succeeded = number(job, "status.succeeded");
    let completions = match (get::int(job, "spec.completions"), number(job, "spec.parallelism")) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        _ => format!("{succeeded}/1"),
    };
    let time = |field: &str| apimachinery::time::parse_rfc3339(text(job, field));
    let duration = time("status.startTime").map_or_else(String::new, |start| {
        apimachinery::time::human_duration(time("status.completionTime").unwrap_or(now) - start)
    });
    let (names, images) = print::containers(job, "spec.template.spec");
    let selector = print::selector(job, "spec.selector");
    cells![get::name(job), status(job), completions, duration, age(job, now), names, images, selector]
}

fn status(job: &Value) -> &'static str {
    let has_condition = |kind: &str| print::condition(job, kind, "True");
    if has_condition("Complete") {
        "Complete"
    } else if has_condition("Failed") {
        "Failed"
    } else if has(job, "metadata.deletionTimestamp") {
        "Terminating"
    } else if has_condition("Suspended") {
        "Suspended"
    } else if has_condition("FailureTarget") {
        "FailureTarget"
    } else if has_condition("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

/// Upstream: pkg/apis/batch/v1/defaults.go SetDefaults_Job
fn default(job: &mut Value) {
    default_spec(job, "spec");
    if get::len(job, "metadata.labels") == 0
        && let Some(labels) = at(job, "spec.template.metadata.labels").cloned()
    {
        set(job, "metadata.labels", labels);
    }
}

pub fn default_spec(object: &mut Value, spec: &str) {
    podspec::default_template(object, &format!("{spec}.template"));
    let field = |name: &str| format!("{spec}.{name}");
    if !has(object, &field("completions")) && !has(object, &field("parallelism")) {
        set(object, &field("completions"), 1);
    }
    get::default(object, &field("parallelism"), 1);
    let backoff = if has(object, &field("backoffLimitPerIndex")) { i64::from(i32::MAX) } else { 6 };
    get::default(object, &field("backoffLimit"), backoff);
    get::default_absent(object, &field("completionMode"), "NonIndexed");
    get::default(object, &field("suspend"), false);
    let replacement = if has(object, &field("podFailurePolicy")) { "Failed" } else { "TerminatingOrFailed" };
    get::default_absent(object, &field("podReplacementPolicy"), replacement);
    get::default(object, &field("manualSelector"), false);
    for rule in get::list_mut(object, &field("podFailurePolicy.rules")) {
        for pattern in get::list_mut(rule, "onPodConditions") {
            get::default(pattern, "status", "True");
        }
    }
}

struct Jobs;

impl Strategy for Jobs {
    fn default(&self, job: &mut Value) {
        default(job);
    }

    fn prepare_create(&self, _context: &Context, job: &mut Value) {
        get::remove(job, "status");
        set(job, "status", json!({}));
        set(job, "metadata.generation", 1);
        generate_selector(job);
    }

    fn validate(&self, job: &Value) -> Errors {
        let mut errors = validate_generated(job);
        errors.extend(validate_job(job));
        let last = number(job, "spec.completions") - 1;
        if text(job, "spec.completionMode") == "Indexed" && last >= 0 {
            let host = format!("{}-{last}", get::name(job));
            if !names::dns1123_label(&host).is_empty() {
                let detail = format!("will not able to create pod with invalid DNS label: {host}");
                errors.push(Error::invalid(&path("metadata.name"), get::name(job), detail));
            }
        }
        errors
    }

    fn validate_update(&self, job: &Value, old: &Value) -> Errors {
        let mut errors = validate_job(job);
        for field in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy"] {
            errors.extend(immutable(job, old, &format!("spec.{field}")));
        }
        if text(job, "spec.completionMode") != "Indexed" {
            errors.extend(immutable(job, old, "spec.completions"));
        }
        // A suspended job that never started may still be told where to run.
        let waiting = is_true(old, "spec.suspend") && !has(old, "status.startTime");
        let template = |value: &Value| {
            let mut template = at(value, "spec.template").cloned().unwrap_or_default();
            if waiting {
                for field in ["nodeSelector", "affinity", "tolerations", "schedulingGates"] {
                    get::remove(&mut template, &format!("spec.{field}"));
                }
                for field in ["labels", "annotations"] {
                    get::remove(&mut template, &format!("metadata.{field}"));
                }
            }
            template
        };
        if !same(Some(&template(job)), Some(&template(old))) {
            let value = at(job, "spec.template").cloned().unwrap_or_default();
            errors.push(Error::invalid(&path("spec.template"), value, crate::validate::IMMUTABLE));
        }
        errors
    }

    fn generation_changed(&self, job: &Value, old: &Value) -> Option<bool> {
        Some(!same(at(job, "spec"), at(old, "spec")))
    }

    fn warnings(&self, job: &Value, old: Option<&Value>) -> Vec<String> {
        if old.is_some() {
            return Vec::new();
        }
        let mut warnings = name_warning(job);
        warnings.extend(podspec::template_warnings(job));
        warnings
    }

    /// Dependents of jobs were always orphaned by clients that say nothing.
    fn orphans_by_default(&self) -> bool {
        true
    }
}

/// The name is also part of the hostnames of pods.
pub fn name_warning(object: &Value) -> Vec<String> {
    let messages = names::dns1123_label(get::name(object));
    if messages.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "metadata.name: this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is \
         recommended: [{}]",
        messages.join(" ")
    )]
}

/// What holds for a job at any time.
///
/// Upstream: pkg/apis/batch/validation/validation.go ValidateJobSpec
fn validate_job(job: &Value) -> Errors {
    let spec = path("spec");
    let mut errors = validate_spec(job, "spec", &spec);
    match at(job, "spec.selector") {
        None => {
            errors.push(Error::required(&spec.child("selector"), ""));
            // No selector selects nothing.
            let template = at(job, "spec.template").unwrap_or(&Value::Null);
            errors.push(podspec::unmatched(template, &spec.child("template")));
        }
        Some(value) => {
            errors.extend(selector(value, &spec.child("selector")));
            errors.extend(podspec::validate_selected(job, "spec.template", &spec.child("template")));
        }
    }
    errors
}

/// The selector and labels that the server made are those of the job.
///
/// Upstream: pkg/apis/batch/validation/validation.go validateGeneratedSelector
fn validate_generated(job: &Value) -> Errors {
    let mut errors = Errors::new();
    if is_true(job, "spec.manualSelector") || !has(job, "spec.selector") {
        return errors;
    }
    let selected = at(job, "spec.selector").unwrap_or(&Value::Null);
    let own = json!({"metadata": {"labels": {
        "batch.kubernetes.io/controller-uid": text(job, "metadata.uid"),
        "batch.kubernetes.io/job-name": get::name(job),
        "controller-uid": text(job, "metadata.uid"),
        "job-name": get::name(job),
    }}});
    if LabelSelector::from_object(selected).is_ok_and(|selector| !selector.matches_object(&own)) {
        let detail = "`selector` not auto-generated";
        errors.push(Error::invalid(&path("spec.selector"), selected.clone(), detail));
    }
    errors
}

/// A job without a selector of its own selects the pods that carry its uid.
///
/// Upstream: pkg/registry/batch/job/strategy.go generateSelector
fn generate_selector(job: &mut Value) {
    if is_true(job, "spec.manualSelector") {
        return;
    }
    let (name, uid) = (get::name(job).to_owned(), text(job, "metadata.uid").to_owned());
    // A job that was made without labels shares those of its template, in upstream's memory too.
    let shares = at(job, "metadata.labels") == at(job, "spec.template.metadata.labels");
    if let Some(labels) = get::fields_mut(job, "spec.template.metadata.labels") {
        for (key, value) in [
            ("job-name", &name),
            ("controller-uid", &uid),
            ("batch.kubernetes.io/job-name", &name),
            ("batch.kubernetes.io/controller-uid", &uid),
        ] {
            labels.insert(key.to_owned(), value.as_str().into());
        }
    }
    if let Some(labels) = get::fields_mut(job, "spec.selector.matchLabels") {
        labels.entry("batch.kubernetes.io/controller-uid").or_insert_with(|| uid.into());
    }
    if shares && let Some(labels) = at(job, "spec.template.metadata.labels").cloned() {
        set(job, "metadata.labels", labels);
    }
}

/// Upstream: pkg/apis/batch/validation/validation.go validateJobSpec
pub fn validate_spec(object: &Value, prefix: &str, spec: &Path) -> Errors {
    let mut errors = Errors::new();
    let field = |name: &str| format!("{prefix}.{name}");
    const COUNTS: &[&str] = &[
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    for name in COUNTS {
        errors.extend(non_negative_at(object, &field(name), &spec.child(name)));
    }
    errors.extend(super::job_policies::validate(at(object, prefix).unwrap_or(&Value::Null), spec));
    errors.extend(podspec::validate_template(object, &field("template"), &spec.child("template")));
    let at = spec.child("template").child("spec").child("restartPolicy");
    match text(object, &field("template.spec.restartPolicy")) {
        "" | "Always" => errors.push(Error::required(&at, "valid values: \"OnFailure\", \"Never\"")),
        "OnFailure" if has(object, &field("podFailurePolicy")) => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(Error::invalid(&at, "OnFailure", detail));
        }
        "OnFailure" | "Never" => {}
        other => errors.push(Error::not_supported(&at, other, &["OnFailure", "Never"])),
    }
    errors
}
