//! The status of an autoscaler.

use api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, MetricStatus};
use api::meta::Time;
use jiff::Timestamp;

/// Upstream: pkg/controller/podautoscaler/horizontal.go setConditionInList
pub(super) fn set_condition(
    autoscaler: &mut HorizontalPodAutoscaler,
    now: Timestamp,
    kind: &str,
    is_so: bool,
    reason: &str,
    message: String,
) {
    let status = if is_so { "True" } else { "False" };
    let conditions = autoscaler.status.get_or_insert_default().conditions.get_or_insert_default();
    let index = conditions.iter().position(|condition| condition.type_ == kind).unwrap_or_else(|| {
        conditions.push(HorizontalPodAutoscalerCondition { type_: kind.to_owned(), ..Default::default() });
        conditions.len() - 1
    });
    let condition = &mut conditions[index];
    if condition.status != status {
        condition.last_transition_time = Some(Time(now));
        status.clone_into(&mut condition.status);
    }
    condition.reason = Some(reason.to_owned());
    condition.message = Some(message);
}

/// Without a wish the one from before stands.
pub(super) fn set(
    autoscaler: &mut HorizontalPodAutoscaler,
    current: i32,
    desired: Option<i32>,
    metrics: Vec<MetricStatus>,
    scaled_at: Option<Time>,
) {
    let status = autoscaler.status.get_or_insert_default();
    status.current_replicas = Some(current);
    if let Some(desired) = desired {
        status.desired_replicas = desired;
    }
    status.current_metrics = (!metrics.is_empty()).then_some(metrics);
    if scaled_at.is_some() {
        status.last_scale_time = scaled_at;
    }
}
