//! `pods/eviction`: a deletion that PodDisruptionBudgets may refuse.
//!
//! Upstream: pkg/registry/core/pod/storage/eviction.go

use std::sync::Arc;

use apimachinery::selector::LabelSelector;
use apimachinery::status::Cause;
use apimachinery::time::rfc3339;
use apimachinery::{GroupResource, GroupVersionKind, Status};
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::part::Part;
use super::read;
use crate::handle::Asked;
use crate::options::DeleteOptions;
use crate::registry::call::Call;
use crate::registry::metadata;
use crate::seams::{Attributes, Lookup, Operation};

const EVICTION: GroupVersionKind = GroupVersionKind::from_static("policy", "v1", "Eviction");
const PODS: GroupResource = GroupResource::from_static("", "pods");
const BUDGETS: GroupResource = GroupResource::from_static("policy", "poddisruptionbudgets");

/// How many pods may be evicted before the budget's controller has seen any of them go.
const MAX_DISRUPTED_PODS: usize = 2000;

/// After how long its controller will have seen a budget.
const UNSEEN_RETRY_SECONDS: u32 = 10;

pub async fn handle(call: &mut Call<'_>, asked: &Asked, body: &Bytes) -> Result<(StatusCode, Value), Status> {
    let mut eviction = read(call, asked, body, &EVICTION)?;
    let name = asked.info.attributes.name.clone();
    let given = metadata::text(&eviction, "name");
    if !given.is_empty() && given != name {
        return Err(Status::bad_request("name in URL does not match name in Eviction object"));
    }
    let options = DeleteOptions::parse(&asked.info.query, Some(&eviction["deleteOptions"]))?;
    call.options.dry_run |= options.dry_run;
    call.mutate(Operation::Create, &name, &mut eviction, None).await?;
    call.validate_admission(Operation::Create, &name, &mut eviction, None).await?;
    let pod =
        call.registry().get(call.resource, call.namespace(), &name)?.ok_or_else(|| call.not_found(&name))?;
    let pod = call.tree(&pod).await?;
    if !ignores_budgets(&pod) {
        charge_budget(call, asked, &name, &pod).await?;
    }
    if !call.options.dry_run {
        mark_disrupted(call, asked, &name).await?;
    }
    // As upstream: the pod that the budget was asked for, and no later one of its name.
    let options = DeleteOptions {
        uid: options.uid.or_else(|| Some(metadata::text(&pod, "uid").to_owned())),
        ..options
    };
    match call.delete(&name, &options).await {
        Ok(_) => {}
        Err(status) if status.is_not_found() => {}
        Err(status) => return Err(status),
    }
    Ok((
        StatusCode::CREATED,
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}),
    ))
}

/// Pods that are gone, or have not begun, disrupt nothing.
fn ignores_budgets(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or_default();
    matches!(phase, "Succeeded" | "Failed" | "Pending") || metadata::is_terminating(pod)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// What a budget says to an eviction.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// Without taking from the budget: the pod is not ready, so it counts for nothing.
    Free,
    Charge,
    Refuse {
        cause: String,
        /// When it is worth to ask again, in seconds; 0 when nobody knows.
        retry_after: u32,
    },
    /// The budget itself is wrong.
    Wrong(&'static str),
}

/// Upstream: pkg/registry/core/pod/storage/eviction.go checkAndDecrement
fn decide(budget: &Value, pod: &Value) -> Verdict {
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let status = &budget["status"];
    let name = metadata::text(budget, "name");
    if !is_ready(pod) {
        let always = budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow";
        let healthy = number(&status["currentHealthy"]) >= number(&status["desiredHealthy"]);
        if always || (healthy && number(&status["desiredHealthy"]) > 0) {
            return Verdict::Free;
        }
    }
    if number(&status["observedGeneration"]) < number(&budget["metadata"]["generation"]) {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return Verdict::Refuse { cause, retry_after: UNSEEN_RETRY_SECONDS };
    }
    if number(&status["disruptionsAllowed"]) < 0 {
        return Verdict::Wrong("pdb disruptions allowed is negative");
    }
    if status["disruptedPods"].as_object().map_or(0, |pods| pods.len()) > MAX_DISRUPTED_PODS {
        return Verdict::Wrong(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        );
    }
    if number(&status["disruptionsAllowed"]) == 0 {
        return Verdict::Refuse { cause: why_none_allowed(name, status), retry_after: 0 };
    }
    Verdict::Charge
}

fn why_none_allowed(name: &str, status: &Value) -> String {
    let number = |value: &Value| value.as_i64().unwrap_or(0);
    let (current, desired) = (number(&status["currentHealthy"]), number(&status["desiredHealthy"]));
    let mut conditions = status["conditions"].as_array().into_iter().flatten();
    let said = |condition: &Value, field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    let denied = conditions
        .find(|condition| condition["type"] == "DisruptionAllowed")
        .filter(|condition| condition["status"] == "False" && !said(condition, "message").is_empty())
        .map(|condition| (said(condition, "reason"), said(condition, "message")));
    let not_allowed = format!("The disruption budget {name} does not allow evicting pods currently");
    match denied {
        // Who could not count has counts that mean nothing.
        Some((reason, message)) if reason == "SyncFailed" => {
            format!("{not_allowed} because it failed sync: {message}")
        }
        _ if current <= desired => {
            format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently")
        }
        Some((reason, message)) => format!("{not_allowed} ({reason}): {message}"),
        None => not_allowed,
    }
}

fn refused(cause: String, retry_after: u32) -> Status {
    let message = "Cannot evict pod as it would violate the pod's disruption budget.";
    let mut status = Status::too_many_requests(message, retry_after);
    let cause = Cause { reason: "DisruptionBudget".into(), message: cause, field: String::new() };
    status.details.get_or_insert_default().causes.push(cause);
    status
}

/// Takes the eviction from the one budget that covers the pod.
async fn charge_budget(call: &Call<'_>, asked: &Asked, pod_name: &str, pod: &Value) -> Result<(), Status> {
    let namespace = asked.info.attributes.namespace.as_str();
    let covers = |budget: &Arc<Value>| {
        LabelSelector::from_object(&budget["spec"]["selector"])
            .is_ok_and(|selector| selector.matches_object(pod))
    };
    let registry = call.registry();
    let budgets: Vec<Arc<Value>> =
        Lookup::list(&**registry, &BUDGETS, Some(namespace)).into_iter().filter(covers).collect();
    let budget = match budgets.as_slice() {
        [] => return Ok(()),
        [budget] => budget,
        _ => {
            return Err(Status::unknown_error(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
    };
    let now = rfc3339(call.server.now());
    let mut change = |budget: &Value| match decide(budget, pod) {
        Verdict::Free => Ok(budget.clone()),
        Verdict::Refuse { cause, retry_after } => Err(refused(cause, retry_after)),
        Verdict::Wrong(why) => {
            let budgets = GroupResource::from_static("policy", "poddisruptionbudget");
            Err(Status::forbidden(&budgets, metadata::text(budget, "name"), why))
        }
        Verdict::Charge => {
            let mut charged = budget.clone();
            let allowed = charged["status"]["disruptionsAllowed"].as_i64().unwrap_or(0);
            charged["status"]["disruptionsAllowed"] = (allowed - 1).into();
            charged["status"]["disruptedPods"][pod_name] = now.as_str().into();
            Ok(charged)
        }
    };
    write_status(call, asked, &BUDGETS, metadata::text(budget, "name"), &mut change).await
}

/// A write to the status of another object, on behalf of who evicts.
async fn write_status(
    call: &Call<'_>,
    asked: &Asked,
    of: &GroupResource,
    name: &str,
    change: &mut (dyn FnMut(&Value) -> Result<Value, Status> + Send),
) -> Result<(), Status> {
    let table = call.registry().table();
    let resource = table.stored(of).ok_or_else(Status::page_not_found)?;
    let attributes = Attributes {
        group: of.group.to_string(),
        resource: of.resource.to_string(),
        subresource: "status".into(),
        ..asked.info.attributes.clone()
    };
    let mut update = Call {
        server: call.server,
        resource,
        attributes: &attributes,
        user: &asked.user,
        options: call.options.clone(),
        options_value: call.options_value.clone(),
        manager: call.manager.clone(),
        warnings: Vec::new(),
        annotations: Vec::new(),
        applied: false,
        versioned: false,
    };
    update.update(name, Part::Status, false, change).await.map(drop)
}

/// Says on the pod why it goes, for those who count its failure.
///
/// Upstream: pkg/registry/core/pod/storage/eviction.go addConditionAndDeletePod
async fn mark_disrupted(call: &Call<'_>, asked: &Asked, name: &str) -> Result<(), Status> {
    let now = rfc3339(call.server.now());
    let mut change = |pod: &Value| Ok(disrupted(pod, &now));
    match write_status(call, asked, &PODS, name, &mut change).await {
        Err(status) if status.is_not_found() => Ok(()),
        written => written,
    }
}

fn disrupted(pod: &Value, now: &str) -> Value {
    const KIND: &str = "DisruptionTarget";
    let mut marked = pod.clone();
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let before = conditions.iter().position(|condition| condition["type"] == KIND);
    let before =
        before.map(|index| conditions.remove(index)).filter(|condition| condition["status"] == "True");
    let since = before.map_or_else(|| json!(now), |condition| condition["lastTransitionTime"].clone());
    conditions.push(json!({
        "type": KIND, "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API: evicting",
        "lastProbeTime": null, "lastTransitionTime": since,
    }));
    marked["status"]["conditions"] = conditions.into();
    marked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_allows_what_it_has_left() {
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let budget = |allowed: i64| {
            json!({"metadata": {"name": "b"}, "status": {
                "disruptionsAllowed": allowed, "desiredHealthy": 3, "currentHealthy": 3,
            }})
        };
        assert_eq!(decide(&budget(1), &ready), Verdict::Charge);
        assert_eq!(decide(&budget(0), &json!({})), Verdict::Free);
        let Verdict::Refuse { cause, .. } = decide(&budget(0), &ready) else { panic!("refused") };
        assert_eq!(cause, "The disruption budget b needs 3 healthy pods and has 3 currently");
    }

    #[test]
    fn an_evicted_pod_says_so_once() {
        let pod = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let once = disrupted(&pod, "2026-01-01T00:00:00Z");
        assert_eq!(once["status"]["conditions"][1]["reason"], "EvictionByEvictionAPI");
        assert_eq!(disrupted(&once, "2026-01-02T00:00:00Z"), once);
    }
}
