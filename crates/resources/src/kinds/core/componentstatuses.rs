//! ComponentStatus: how the control plane's parts are. Deprecated upstream, still listed by clients.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    Row::cluster("v1", "ComponentStatus", "componentstatuses")
        .short(&["cs"])
        .deprecated("v1 ComponentStatus is deprecated in v1.19+")
        .verbs(&[Verb::Get, Verb::List])
        .columns("Name,Status,Message,Error", cells)
        .build()
}

fn cells(component: &Value, _now: i64) -> Vec<Cell> {
    let healthy = list(component, "conditions").iter().find(|c| text(c, "type") == "Healthy");
    let Some(condition) = healthy else { return cells![get::name(component), "Unknown", "", ""] };
    let status = if text(condition, "status") == "True" { "Healthy" } else { "Unhealthy" };
    cells![get::name(component), status, text(condition, "message"), text(condition, "error")]
}
