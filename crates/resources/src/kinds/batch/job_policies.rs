//! What a Job says about indexes, failures and success.
//!
//! Upstream: pkg/apis/batch/validation/validation.go validateJobSpec, validatePodFailurePolicy,
//! validateSuccessPolicy

use crate::prelude::*;
use crate::validate::{domain_prefixed_path, each, non_negative_at, one_of};

const MOST_INDEXED_PODS: i64 = 100_000;
const MANY_COMPLETIONS: i64 = 100_000;
const MOST_OF_MANY: i64 = 10_000;
const MOST_RULES: usize = 20;
const MOST_EXIT_CODES: usize = 255;
const LONGEST_MANAGER: usize = 63;
const LONGEST_INDEXES: usize = 64 * 1024;

/// `job` is the spec, `path` its place.
pub fn validate(job: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if has(job, "maxFailedIndexes") && !has(job, "backoffLimitPerIndex") {
        let detail = "when maxFailedIndexes is specified";
        errors.push(Error::required(&path.child("backoffLimitPerIndex"), detail));
    }
    if has(job, "managedBy") {
        let (manager, at) = (text(job, "managedBy"), path.child("managedBy"));
        errors.extend(domain_prefixed_path(manager, &at));
        if manager.len() > LONGEST_MANAGER {
            errors.push(Error::too_long(&at, LONGEST_MANAGER));
        }
    }
    let mode = text(job, "completionMode");
    if has(job, "completionMode") {
        errors.extend(one_of(mode, &path.child("completionMode"), &["NonIndexed", "Indexed"]));
    }
    if mode == "Indexed" {
        errors.extend(validate_indexed(job, path));
    } else if mode.is_empty() || mode == "NonIndexed" {
        for field in ["backoffLimitPerIndex", "maxFailedIndexes"] {
            if let Some(value) = get::int(job, field) {
                errors.push(Error::invalid(&path.child(field), value, "requires indexed completion mode"));
            }
        }
    }
    let failure = path.child("podFailurePolicy").child("rules");
    let rules = get::items(job, "podFailurePolicy.rules", &failure);
    if rules.len() > MOST_RULES {
        errors.push(Error::too_many(&failure, rules.len(), MOST_RULES));
    }
    for (rule, at) in rules {
        errors.extend(validate_failure_rule(job, rule, &at));
    }
    if let Some(policy) = job.get("successPolicy").filter(|policy| !policy.is_null()) {
        let at = path.child("successPolicy");
        if mode == "Indexed" {
            errors.extend(validate_success(job, policy, &at));
        } else {
            let error = Error::invalid(&at, policy.clone(), "requires indexed completion mode");
            errors.push(error.showing(shown_success(policy)));
        }
    }
    if has(job, "podReplacementPolicy") {
        let supported: &[&str] =
            if has(job, "podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
        let at = path.child("podReplacementPolicy");
        errors.extend(one_of(text(job, "podReplacementPolicy"), &at, supported));
    }
    errors
}

fn validate_indexed(job: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let int = |field: &str| get::int(job, field);
    let (completions, parallelism, failed) =
        (int("completions"), int("parallelism"), int("maxFailedIndexes"));
    let mut at_most = |field: &str, value: Option<i64>, most: i64, when: &str| {
        if let Some(value) = value.filter(|value| *value > most) {
            let detail = format!("must be less than or equal to {most}{when}");
            errors.push(Error::invalid(&path.child(field), value, detail));
        }
    };
    at_most("parallelism", parallelism, MOST_INDEXED_PODS, " when completion mode is Indexed");
    at_most("maxFailedIndexes", failed, MOST_INDEXED_PODS, "");
    let many = completions.is_some_and(|n| n > MANY_COMPLETIONS) && int("backoffLimitPerIndex").is_some();
    if many {
        let when =
            format!(" when completions are above {MANY_COMPLETIONS} and used with backoff limit per index");
        at_most("parallelism", parallelism, MOST_OF_MANY, &when);
        at_most("maxFailedIndexes", failed, MOST_OF_MANY, &when);
    }
    if completions.is_none() {
        errors.push(Error::required(&path.child("completions"), "when completion mode is Indexed"));
    }
    if let (Some(completions), Some(failed)) = (completions, failed)
        && failed > completions
    {
        let detail = "must be less than or equal to completions";
        errors.push(Error::invalid(&path.child("maxFailedIndexes"), failed, detail));
    }
    if many && failed.is_none() {
        let detail = format!("must be specified when completions is above {MANY_COMPLETIONS}");
        errors.push(Error::required(&path.child("maxFailedIndexes"), detail));
    }
    errors
}

/// As Go prints a list of texts.
fn valid_values(values: &[&str]) -> String {
    let quoted: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    format!("valid values: [{}]", quoted.join(" "))
}

fn required_one_of(value: &str, at: &Path, supported: &[&str]) -> Errors {
    if value.is_empty() {
        return vec![Error::required(at, valid_values(supported))];
    }
    one_of(value, at, supported)
}

fn validate_failure_rule(job: &Value, rule: &Value, path: &Path) -> Errors {
    const ACTIONS: &[&str] = &["Count", "FailIndex", "FailJob", "Ignore"];
    let mut errors = Errors::new();
    let action = text(rule, "action");
    let at_action = path.child("action");
    errors.extend(required_one_of(action, &at_action, ACTIONS));
    if action == "FailIndex" && !has(job, "backoffLimitPerIndex") {
        let detail = "requires the backoffLimitPerIndex to be set";
        errors.push(Error::invalid(&at_action, action, detail));
    }
    let codes = rule.get("onExitCodes").filter(|codes| !codes.is_null());
    if let Some(codes) = codes {
        errors.extend(validate_exit_codes(job, codes, &path.child("onExitCodes")));
    }
    let at_conditions = path.child("onPodConditions");
    let conditions = get::items(rule, "onPodConditions", &at_conditions);
    if conditions.len() > MOST_RULES {
        errors.push(Error::too_many(&at_conditions, conditions.len(), MOST_RULES));
    }
    for (condition, at) in &conditions {
        let kind = text(condition, "type");
        errors.extend(each(names::qualified_name(kind), &at.child("type"), kind));
        let at = at.child("status");
        errors.extend(required_one_of(text(condition, "status"), &at, &["False", "True", "Unknown"]));
    }
    let detail = match (codes.is_some(), conditions.is_empty()) {
        (true, false) => "specifying both OnExitCodes and OnPodConditions is not supported",
        (false, true) => "specifying one of OnExitCodes and OnPodConditions is required",
        _ => return errors,
    };
    errors.push(Error::invalid(path, Value::Null, detail).without_value());
    errors
}

fn validate_exit_codes(job: &Value, codes: &Value, path: &Path) -> Errors {
    let mut errors = required_one_of(text(codes, "operator"), &path.child("operator"), &["In", "NotIn"]);
    let containers = ["containers", "initContainers"];
    let names = containers.iter().flat_map(|field| list(job, &format!("template.spec.{field}")));
    let name = text(codes, "containerName");
    if has(codes, "containerName") && !names.into_iter().any(|container| text(container, "name") == name) {
        let detail = "must be one of the container or initContainer names in the pod template";
        errors.push(Error::invalid(&path.child("containerName"), name, detail));
    }
    let at_values = path.child("values");
    let values: Vec<i64> = list(codes, "values").iter().filter_map(Value::as_i64).collect();
    let all = || Value::from(values.clone());
    if values.is_empty() {
        errors.push(Error::invalid(&at_values, all(), "at least one value is required"));
    } else if values.len() > MOST_EXIT_CODES {
        errors.push(Error::too_many(&at_values, values.len(), MOST_EXIT_CODES));
    }
    for (at, value) in values.iter().enumerate() {
        if *value == 0 && text(codes, "operator") == "In" {
            let detail = "must not be 0 for the In operator";
            errors.push(Error::invalid(&at_values.index(at), *value, detail));
        }
        if values[..at].contains(value) {
            errors.push(Error::duplicate(&at_values.index(at), *value));
        }
    }
    if !values.is_sorted() {
        errors.push(Error::invalid(&at_values, all(), "must be ordered"));
    }
    errors
}

/// A success policy by the names of upstream's own type.
fn shown_success(policy: &Value) -> String {
    let rule = |rule: &Value| {
        let (indexes, count) = (&rule["succeededIndexes"], &rule["succeededCount"]);
        format!("{{\"SucceededIndexes\":{indexes},\"SucceededCount\":{count}}}")
    };
    let rules = policy.get("rules").and_then(Value::as_array);
    let rules = rules.map(|rules| rules.iter().map(rule).collect::<Vec<_>>().join(","));
    format!("{{\"Rules\":{}}}", rules.map_or("null".to_owned(), |rules| format!("[{rules}]")))
}

fn validate_success(job: &Value, policy: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let at_rules = path.child("rules");
    let rules = get::items(policy, "rules", &at_rules);
    if rules.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errors.push(Error::required(&at_rules, detail));
    }
    if rules.len() > MOST_RULES {
        errors.push(Error::too_many(&at_rules, rules.len(), MOST_RULES));
    }
    let completions = number(job, "completions");
    for (rule, at) in rules {
        let (count, indexes) = (get::int(rule, "succeededCount"), has(rule, "succeededIndexes"));
        if count.is_none() && !indexes {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            errors.push(Error::required(&at, detail));
        }
        let mut total = 0;
        if indexes {
            let (value, at) = (text(rule, "succeededIndexes"), at.child("succeededIndexes"));
            if value.len() > LONGEST_INDEXES {
                errors.push(Error::too_long(&at, LONGEST_INDEXES));
            }
            match count_indexes(value, completions) {
                Ok(found) => total = found,
                Err(why) => {
                    let detail = format!("error parsing succeededIndexes: {why}");
                    errors.push(Error::invalid(&at, value, detail));
                }
            }
        }
        let Some(count) = count else { continue };
        let at = at.child("succeededCount");
        errors.extend(non_negative_at(rule, "succeededCount", &at));
        if count > completions {
            let detail =
                format!("must be less than or equal to {completions} (the number of specified completions)");
            errors.push(Error::invalid(&at, count, detail));
        }
        if indexes && count > total {
            let detail = format!(
                "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
            );
            errors.push(Error::invalid(&at, count, detail));
        }
    }
    errors
}

/// How many indexes a text such as `0,2-4` names.
///
/// Upstream: pkg/apis/batch/validation/validation.go validateIndexesFormat, parseIndexInterval
fn count_indexes(indexes: &str, completions: i64) -> Result<i64, String> {
    if indexes.is_empty() {
        return Ok(0);
    }
    let parse = |text: &str| {
        text.parse::<i64>().map_err(|_| format!("cannot convert string to integer for index: {text:?}"))
    };
    let (mut total, mut last) = (0, None);
    for interval in indexes.split(',') {
        let limits: Vec<&str> = interval.split('-').collect();
        if limits.len() > 2 {
            return Err(format!(
                "the fragment {interval:?} violates the requirement that an index interval can have at most two parts separated by '-'"
            ));
        }
        let first = parse(limits[0])?;
        if first >= completions {
            return Err(format!("too large index: {:?}", limits[0]));
        }
        let end = match limits.get(1) {
            None => first,
            Some(text) => {
                let end = parse(text)?;
                if end >= completions {
                    return Err(format!("too large index: {text:?}"));
                }
                if first >= end {
                    return Err(format!("non-increasing order, previous: {first}, current: {end}"));
                }
                end
            }
        };
        if let Some(last) = last.filter(|last| *last >= first) {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        total += end - first + 1;
        last = Some(end);
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_counted_or_refused() {
        for (text, expected) in [
            ("", Ok(0)),
            ("0", Ok(1)),
            ("0,2-4", Ok(4)),
            ("5", Err("too large index: \"5\"")),
            ("3,1", Err("non-increasing order, previous: 3, current: 1")),
            ("a", Err("cannot convert string to integer for index: \"a\"")),
        ] {
            assert_eq!(count_indexes(text, 5), expected.map_err(str::to_owned), "{text}");
        }
    }
}
