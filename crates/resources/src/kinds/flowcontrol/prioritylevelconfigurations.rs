//! PriorityLevelConfiguration: how many requests of a level run at once, and what happens to the rest.

use crate::prelude::*;

pub fn row() -> Arc<ResourceDef> {
    const KIND: &str = "PriorityLevelConfiguration";
    Row::cluster("flowcontrol.apiserver.k8s.io/v1", KIND, "prioritylevelconfigurations")
        .status()
        .columns("Name,Type,NominalConcurrencyShares,Queues,HandSize,QueueLengthLimit,Age", cells)
        .strategy(Rules { default, validate, generation: true, ..Rules::PLAIN })
        .build()
}

fn cells(level: &Value, now: i64) -> Vec<Cell> {
    let shown =
        |field: &str| at(level, &format!("spec.limited.{field}")).cloned().unwrap_or_else(|| "<none>".into());
    cells![
        get::name(level),
        text(level, "spec.type"),
        shown("nominalConcurrencyShares"),
        shown("limitResponse.queuing.queues"),
        shown("limitResponse.queuing.handSize"),
        shown("limitResponse.queuing.queueLengthLimit"),
        age(level, now),
    ]
}

/// Upstream: pkg/apis/flowcontrol/v1/defaults.go
fn default(level: &mut Value) {
    if has(level, "spec.exempt") {
        get::default(level, "spec.exempt.nominalConcurrencyShares", 0);
        get::default(level, "spec.exempt.lendablePercent", 0);
    }
    if has(level, "spec.limited") {
        get::default(level, "spec.limited.nominalConcurrencyShares", 30);
        get::default(level, "spec.limited.lendablePercent", 0);
    }
    if has(level, "spec.limited.limitResponse.queuing") {
        for (field, value) in [("handSize", 8), ("queues", 64), ("queueLengthLimit", 50)] {
            let at = format!("spec.limited.limitResponse.queuing.{field}");
            if number(level, &at) == 0 {
                set(level, &at, value);
            }
        }
    }
}

/// Upstream: pkg/apis/flowcontrol/validation/validation.go ValidatePriorityLevelConfigurationSpec
fn validate(level: &Value) -> Errors {
    let kind = text(level, "spec.type");
    let place = path("spec.type");
    let mut errors = Errors::new();
    if (get::name(level) == "exempt") != (kind == "Exempt") {
        let detail = "must be 'Exempt' if and only if `name` is 'exempt'";
        errors.push(Error::invalid(&place, kind, detail));
    }
    match kind {
        "Exempt" if has(level, "spec.limited") => {
            let detail = "must be nil if the type is not Limited";
            errors.push(Error::forbidden(&path("spec.limited"), detail));
        }
        "Exempt" => errors.extend(seats(level, "spec.exempt")),
        "Limited" => errors.extend(validate_limited(level)),
        _ => errors.push(Error::not_supported(&place, kind, &["Exempt", "Limited"])),
    }
    errors
}

/// Shares, and what of them may be lent and borrowed.
fn seats(level: &Value, of: &str) -> Errors {
    let mut errors = Errors::new();
    let shares = number(level, &format!("{of}.nominalConcurrencyShares"));
    if shares < 0 {
        let place = path(of).child("nominalConcurrencyShares");
        errors.push(Error::invalid(&place, shares, "must be a non-negative integer"));
    }
    let lendable = number(level, &format!("{of}.lendablePercent"));
    if !(0..=100).contains(&lendable) {
        let place = path(of).child("lendablePercent");
        errors.push(Error::invalid(&place, lendable, "must be between 0 and 100, inclusive"));
    }
    let borrowing = number(level, &format!("{of}.borrowingLimitPercent"));
    if borrowing < 0 {
        let place = path(of).child("borrowingLimitPercent");
        errors.push(Error::invalid(&place, borrowing, "if specified, must be a non-negative integer"));
    }
    errors
}

fn validate_limited(level: &Value) -> Errors {
    let mut errors = Errors::new();
    if has(level, "spec.exempt") {
        errors.push(Error::forbidden(&path("spec.exempt"), "must be nil if the type is Limited"));
    }
    if !has(level, "spec.limited") {
        errors.push(Error::required(&path("spec.limited"), "must not be empty when type is Limited"));
        return errors;
    }
    errors.extend(seats(level, "spec.limited"));
    let place = path("spec.limited.limitResponse");
    let queuing = has(level, "spec.limited.limitResponse.queuing");
    match text(level, "spec.limited.limitResponse.type") {
        "Reject" if queuing => {
            let detail = "must be nil if limited.limitResponse.type is not Limited";
            errors.push(Error::forbidden(&place.child("queuing"), detail));
        }
        "Reject" => {}
        "Queue" if !queuing => {
            let detail = "must not be empty if limited.limitResponse.type is Limited";
            errors.push(Error::required(&place.child("queuing"), detail));
        }
        "Queue" => errors.extend(validate_queuing(level, &place.child("queuing"))),
        other => errors.push(Error::not_supported(&place.child("type"), other, &["Queue", "Reject"])),
    }
    errors
}

/// Upstream: pkg/apis/flowcontrol/validation/validation.go ValidatePriorityLevelQueuingConfiguration
fn validate_queuing(level: &Value, place: &Path) -> Errors {
    let mut errors = Errors::new();
    let of = |field: &str| number(level, &format!("spec.limited.limitResponse.queuing.{field}"));
    let (queues, hand) = (of("queues"), of("handSize"));
    for field in ["queueLengthLimit", "queues", "handSize"] {
        if of(field) <= 0 {
            errors.push(Error::invalid(&place.child(field), of(field), "must be positive"));
        }
    }
    if queues > 10_000_000 {
        errors.push(Error::invalid(&place.child("queues"), queues, "must not be greater than 10000000"));
    }
    if hand > queues {
        let detail = format!("should not be greater than queues ({queues})");
        errors.push(Error::invalid(&place.child("handSize"), hand, detail));
    } else if entropy_bits(queues, hand) > MAX_HASH_BITS {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {MAX_HASH_BITS}"
        );
        errors.push(Error::invalid(&place.child("handSize"), hand, detail));
    }
    errors
}

/// Upstream: apiserver/pkg/util/shufflesharding/dealer.go MaxHashBits, RequiredEntropyBits
const MAX_HASH_BITS: u32 = 60;

/// How many bits choose a hand out of a deck: those of the number of ordered hands, rounded up.
fn entropy_bits(deck: i64, hand: i64) -> u32 {
    let cards = (0..hand).map_while(|drawn| u128::try_from(deck - drawn).ok());
    let mut hands: u128 = 1;
    for left in cards {
        hands = hands.saturating_mul(left.max(1));
    }
    u128::BITS - hands.saturating_sub(1).leading_zeros()
}
