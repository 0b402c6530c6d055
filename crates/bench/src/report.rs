//! Tables for people and JSON for programs.

use serde_json::{Value, json};

use crate::scale;
use crate::target::Target;
use crate::work::{Measured, Row, Step};

/// What upstream's server and its store were measured at, on two cores that the load generator shared, JSON over
/// HTTP/2: operations a second, least and most. Quoted beside other runs; a server that is measured in the same run
/// says more.
fn upstream(step: Step) -> (f64, f64) {
    match step {
        Step::Create => (1050.0, 1150.0),
        Step::Get => (3400.0, 4000.0),
        Step::List => (8.0, 9.0),
        Step::Pages => (50.0, 58.0),
        Step::Patch => (780.0, 820.0),
        Step::Update => (520.0, 545.0),
        Step::Watch => (18_000.0, 25_000.0),
        Step::Delete => (820.0, 870.0),
    }
}

/// The factor that is to be reached over upstream.
fn wanted(step: Step) -> f64 {
    match step {
        Step::List | Step::Pages | Step::Watch => 8.0,
        _ => 10.0,
    }
}

pub fn print(rows: &[Row], targets: &[Target], as_json: bool) -> anyhow::Result<()> {
    if as_json {
        println!("{:#}", json_of(rows, targets));
        return Ok(());
    }
    for (at, target) in targets.iter().enumerate() {
        println!("\n{}", target.name);
        println!(
            "{:<10} {:<20} {:>9} {:>8} {:>8} {:>8} {:>9} {:>7} {:>7}   {:>15} {:>7} {:>5}",
            "",
            "",
            "ops/s",
            "p50 ms",
            "p90 ms",
            "p99 ms",
            "CPU µs/op",
            "MB/s",
            "RSS MB",
            "upstream quoted",
            "factor",
            "aim"
        );
        for row in rows {
            line(row, at);
        }
    }
    if let [first, second] = targets {
        println!("\n{} against {}, in the same run", first.name, second.name);
        for row in rows {
            let (one, other) = (&row.measured[0], &row.measured[1]);
            let factor = one.per_second() / other.per_second();
            let cost = other.cpu_micros() / one.cpu_micros();
            println!(
                "{:<10} {:<20} {factor:>6.1} times as many a second, {cost:>6.1} times less processor time for each",
                form(row),
                row.step.title()
            );
        }
    }
    Ok(())
}

fn form(row: &Row) -> String {
    let version = if row.http == crate::Http::Two { "h2" } else { "h1" };
    format!("{:?}/{version}", row.encoding).to_lowercase().replace("protobuf", "proto")
}

fn line(row: &Row, at: usize) {
    let measured = &row.measured[at];
    let (least, most) = upstream(row.step);
    println!(
        "{:<10} {:<20} {:>9.0} {:>8.2} {:>8.2} {:>8.2} {:>9.1} {:>7.1} {:>7.0}   {:>15} {:>6.1}x {:>4}x",
        form(row),
        row.step.title(),
        measured.per_second(),
        measured.quantile(0.5),
        measured.quantile(0.9),
        measured.quantile(0.99),
        measured.cpu_micros(),
        measured.bytes as f64 / 1e6 / measured.elapsed.as_secs_f64(),
        row.resident_bytes[at] as f64 / 1e6,
        format!("{least}–{most}"),
        measured.per_second() / ((least + most) / 2.0),
        wanted(row.step),
    );
}

fn json_of(rows: &[Row], targets: &[Target]) -> Value {
    let steps = rows.iter().map(|row| {
        let servers = targets.iter().zip(&row.measured).zip(&row.resident_bytes);
        let servers = servers.map(|((target, measured), resident)| {
            let mut value = numbers(measured);
            value["server"] = target.name.as_str().into();
            value["residentBytes"] = (*resident).into();
            value
        });
        let (least, most) = upstream(row.step);
        json!({
            "step": row.step.title(), "form": form(row), "servers": servers.collect::<Vec<_>>(),
            "upstreamQuoted": [least, most], "wantedFactor": wanted(row.step),
        })
    });
    json!({"steps": steps.collect::<Vec<_>>()})
}

fn numbers(measured: &Measured) -> Value {
    json!({
        "perSecond": measured.per_second(), "operations": measured.operations, "bytes": measured.bytes,
        "p50Milliseconds": measured.quantile(0.5), "p90Milliseconds": measured.quantile(0.9),
        "p99Milliseconds": measured.quantile(0.99), "cpuMicroseconds": measured.cpu_micros(),
    })
}

pub fn print_scale(report: &scale::Report, as_json: bool) -> anyhow::Result<()> {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    if as_json {
        let writes = report.writes.iter().map(|cost| {
            let mut value = numbers(&cost.measured);
            value["beside"] = cost.beside.into();
            value
        });
        println!(
            "{:#}",
            json!({
                "server": report.server, "pods": report.pods, "nodes": report.nodes,
                "writes": writes.collect::<Vec<_>>(), "residentBytes": report.resident_bytes,
                "listSeconds": report.list.as_secs_f64(), "listBytes": report.list_bytes,
                "pageSeconds": report.page.as_secs_f64(), "residentBytesAfterList": report.resident_after_list,
                "restartSeconds": report.restart.map(|time| time.as_secs_f64()),
                "residentBytesAfterRestart": report.resident_after_restart,
            })
        );
        return Ok(());
    }
    println!("\n{}: {} pods and {} nodes", report.server, report.pods, report.nodes);
    for cost in &report.writes {
        println!(
            "creates beside {:>7} pods  {:>8.0}/s   p50 {:.2} ms, p99 {:.2} ms",
            cost.beside,
            cost.measured.per_second(),
            cost.measured.quantile(0.5),
            cost.measured.quantile(0.99)
        );
    }
    println!("memory                      {:>8.0} MB", megabytes(report.resident_bytes));
    let list = report.list.as_secs_f64();
    println!("list of all pods            {list:>8.2} s    {:.0} MB", megabytes(report.list_bytes as u64));
    println!("memory after the list       {:>8.0} MB", megabytes(report.resident_after_list));
    println!("first page of 500           {:>8.1} ms", report.page.as_secs_f64() * 1e3);
    if let Some(restart) = report.restart {
        println!("restart to ready            {:>8.2} s", restart.as_secs_f64());
        println!("memory after the restart    {:>8.0} MB", megabytes(report.resident_after_restart));
    }
    Ok(())
}
