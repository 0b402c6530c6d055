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

fn validate(schema: &Value) -> Errors {
    let mut errors = Errors::new();
    let precedence = number(schema, "spec.matchingPrecedence");
    let at = path("spec.matchingPrecedence");
    if precedence <= 0 {
        errors.push(Error::invalid(&at, precedence, "must be a positive value"));
    }
    if precedence > 10_000 {
        errors.push(Error::invalid(&at, precedence, "must not be greater than 10000"));
    }
    if text(schema, "spec.priorityLevelConfiguration.name").is_empty() {
        errors.push(Error::required(
            &path("spec.priorityLevelConfiguration.name"),
            "must reference a priority level",
        ));
    }
    errors
}
