//! What people and scrapers see of the levels: `/debug/api_priority_and_fairness/*` and metrics.
//!
//! Upstream: apiserver/pkg/util/flowcontrol/apf_controller_debug.go, metrics/metrics.go

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use apimachinery::Status;
use http::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::FlowControl;
use super::configuration::Level;
use super::queues::Digest;
use crate::body::{Body, Response};
use crate::handle::ApiServer;

type Labels = Vec<(&'static str, String)>;

fn digest(level: &Level) -> Digest {
    level.queues.lock().unwrap_or_else(PoisonError::into_inner).digest()
}

/// Rows of cells, in columns.
fn table(rows: Vec<Vec<String>>) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let wide = |column: usize| rows.iter().map(|row| row[column].len() + 2).max().unwrap_or(0).max(8);
    let widths: Vec<usize> = (0..columns).map(wide).collect();
    let mut text = String::new();
    for row in &rows {
        for (at, cell) in row.iter().enumerate() {
            let cell = if at + 1 < columns { format!("{cell},") } else { cell.clone() };
            text += &format!("{cell:<width$}", width = widths[at]);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

fn head(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

pub fn handle(server: &Arc<ApiServer>, path: &str) -> Result<Response, Status> {
    let text = match path.strip_prefix("/debug/api_priority_and_fairness/") {
        Some("dump_priority_levels") => server.flow_control.dump_levels(),
        Some("dump_queues") => server.flow_control.dump_queues(),
        // Requests are not kept once they are dealt with; those that wait are told by their queues.
        Some("dump_requests") => table(vec![head(&[
            "PriorityLevelName",
            "FlowSchemaName",
            "QueueIndex",
            "RequestIndexInQueue",
            "FlowDistingsher",
            "ArriveTime",
            "InitialSeats",
            "FinalSeats",
            "AdditionalLatency",
            "StartTime",
        ])]),
        _ => return Err(Status::page_not_found()),
    };
    Ok(crate::encode::respond(StatusCode::OK, "text/plain; charset=utf-8", Body::Full(text.into())))
}

impl FlowControl {
    fn dump_levels(&self) -> String {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut rows: Vec<Vec<String>> = Vec::new();
        for (at, level) in current.levels.iter().enumerate() {
            let digest = digest(level);
            let of_level = || current.schemas.iter().filter(|schema| schema.level == at);
            let dispatched: u64 = of_level().map(|schema| schema.counts.dispatched.load(Relaxed)).sum();
            let rejected: u64 = of_level()
                .map(|schema| {
                    schema.counts.queue_full.load(Relaxed) + schema.counts.concurrency_limit.load(Relaxed)
                })
                .sum();
            let timed_out: u64 = of_level().map(|schema| schema.counts.timed_out.load(Relaxed)).sum();
            let cancelled: u64 = of_level().map(|schema| schema.counts.cancelled.load(Relaxed)).sum();
            rows.push(vec![
                level.name.clone(),
                digest.active_queues.to_string(),
                (digest.executing == 0 && digest.waiting == 0).to_string(),
                false.to_string(),
                digest.waiting.to_string(),
                digest.executing.to_string(),
                dispatched.to_string(),
                rejected.to_string(),
                timed_out.to_string(),
                cancelled.to_string(),
            ]);
        }
        rows.sort();
        rows.insert(
            0,
            head(&[
                "PriorityLevelName",
                "ActiveQueues",
                "IsIdle",
                "IsQuiescing",
                "WaitingRequests",
                "ExecutingRequests",
                "DispatchedRequests",
                "RejectedRequests",
                "TimedoutRequests",
                "CancelledRequests",
            ]),
        );
        table(rows)
    }

    fn dump_queues(&self) -> String {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut rows =
            vec![head(&["PriorityLevelName", "Index", "PendingRequests", "SeatsInUse", "NextDispatchR"])];
        for level in &current.levels {
            let queues = level.queues.lock().unwrap_or_else(PoisonError::into_inner);
            for (index, (waiting, seats, next)) in queues.dump().enumerate() {
                rows.push(vec![
                    level.name.clone(),
                    index.to_string(),
                    waiting.to_string(),
                    seats.to_string(),
                    format!("{next:.8}"),
                ]);
            }
        }
        table(rows)
    }

    /// What is so now, for one scrape.
    pub fn register(&self, registry: &mut Registry) {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let dispatched = Family::<Labels, Counter>::default();
        let rejected = Family::<Labels, Counter>::default();
        for schema in &current.schemas {
            let level = &current.levels[schema.level].name;
            let labels = vec![("priority_level", level.clone()), ("flow_schema", schema.name.clone())];
            dispatched.get_or_create(&labels).inc_by(schema.counts.dispatched.load(Relaxed));
            for (reason, count) in [
                ("queue-full", &schema.counts.queue_full),
                ("concurrency-limit", &schema.counts.concurrency_limit),
                ("time-out", &schema.counts.timed_out),
                ("cancelled", &schema.counts.cancelled),
            ] {
                let count = count.load(Relaxed);
                if count > 0 {
                    let mut labels = labels.clone();
                    labels.push(("reason", reason.to_owned()));
                    rejected.get_or_create(&labels).inc_by(count);
                }
            }
        }
        let prefix = "apiserver_flowcontrol";
        registry.register(format!("{prefix}_dispatched_requests"), "Requests that were let run", dispatched);
        registry.register(format!("{prefix}_rejected_requests"), "Requests that were refused", rejected);
        type Figure = (&'static str, &'static str, fn(&Level, Digest) -> usize);
        let figures: [Figure; 7] = [
            ("current_executing_requests", "Requests that run", |_, d| d.executing),
            ("current_executing_seats", "Seats that are taken", |_, d| d.seats as usize),
            ("current_inqueue_requests", "Requests that wait", |_, d| d.waiting),
            ("current_inqueue_seats", "Seats that are waited for", |_, d| d.waiting_seats as usize),
            ("nominal_limit_seats", "The level's part of all seats", |level, _| level.nominal as usize),
            ("lower_limit_seats", "What the level keeps at least", |level, _| level.lower() as usize),
            ("current_limit_seats", "Seats of the level, lent and borrowed ones counted", |_, d| {
                d.limit as usize
            }),
        ];
        for (name, help, figure) in figures {
            let family = Family::<Labels, Gauge>::default();
            for level in &current.levels {
                let labels = vec![("priority_level", level.name.clone())];
                family
                    .get_or_create(&labels)
                    .set(i64::try_from(figure(level, digest(level))).unwrap_or(i64::MAX));
            }
            registry.register(format!("{prefix}_{name}"), help, family);
        }
    }
}
