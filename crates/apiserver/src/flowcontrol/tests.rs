use std::sync::Arc;

use super::*;
use crate::admission::fake::{Fake, user};

fn lend_all(levels: &[(u32, u32, u32, u32)]) -> Vec<u32> {
    let levels: Vec<Demand> = levels
        .iter()
        .map(|(seats, lower, nominal, upper)| Demand {
            seats: *seats,
            lower: *lower,
            nominal: *nominal,
            upper: *upper,
        })
        .collect();
    lend(&levels)
}

#[test]
fn levels_lend_what_they_do_not_use_and_keep_their_least() {
    for (levels, expected) in [
        // Nobody wants more than his part.
        (&[(5, 5, 10, 99), (3, 0, 10, 99)][..], vec![5, 3]),
        // The idle one lends what it may.
        (&[(30, 5, 10, 99), (0, 4, 10, 99)], vec![16, 4]),
        // Two borrow by the size of their parts, within their bounds.
        (&[(90, 0, 10, 99), (90, 0, 20, 25), (0, 0, 30, 99)], vec![20, 25, 0]),
    ] {
        let limits = lend_all(levels);
        assert_eq!(limits, expected, "{levels:?}");
        let parts: u32 = levels.iter().map(|level| level.2).sum();
        assert!(limits.iter().sum::<u32>() <= parts, "never more than there is");
    }
}

fn asked() -> Attributes {
    Attributes {
        verb: "get".into(),
        resource: "pods".into(),
        is_resource: true,
        namespace: "a".into(),
        ..Default::default()
    }
}

/// A server with a single seat that anybody may have.
fn one_seat(response: serde_json::Value) -> (Arc<Fake>, FlowControl) {
    let mut level = objects::levels().pop().expect("there are levels");
    level["metadata"]["name"] = "only".into();
    level["spec"]["limited"]["limitResponse"] = response;
    let mut schema = objects::schemas().pop().expect("there are schemas");
    schema["spec"]["priorityLevelConfiguration"]["name"] = "only".into();
    (Fake::new([level, schema]), FlowControl::new(1))
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_seat_waits_his_turn_and_goes_away_without_a_trace() {
    let queuing =
        serde_json::json!({"type": "Queue", "queuing": {"queues": 4, "handSize": 2, "queueLengthLimit": 1}});
    let (lookup, flow) = one_seat(queuing);
    let jane = user("jane", &["system:authenticated"]);
    let asked = asked();
    let admit = || async { flow.admit(&*lookup, &jane, &asked, || 1).await };
    let (classified, first) = admit().await;
    let first = first.unwrap().unwrap();
    assert!(classified.is_some());
    let second = admit();
    tokio::pin!(second);
    assert!(futures::poll!(second.as_mut()).is_pending());
    {
        // A client that does not wait to the end.
        let third = admit();
        tokio::pin!(third);
        assert!(futures::poll!(third.as_mut()).is_pending());
    }
    drop(first);
    let second = second.await.1.unwrap();
    let fourth = admit();
    tokio::pin!(fourth);
    assert!(futures::poll!(fourth.as_mut()).is_pending());
    // Nobody gives his seat back for longer than anybody waits.
    assert_eq!(fourth.await.1.err(), Some(Refused));
    drop(second);
    assert!(admit().await.1.is_ok());
}

#[tokio::test]
async fn a_level_that_rejects_does_so_and_strangers_are_not_held_back() {
    let (lookup, flow) = one_seat(serde_json::json!({"type": "Reject"}));
    let asked = asked();
    let jane = user("jane", &["system:authenticated"]);
    let seat = flow.admit(&*lookup, &jane, &asked, || 1).await.1.unwrap();
    assert_eq!(flow.admit(&*lookup, &jane, &asked, || 1).await.1.err(), Some(Refused));
    let nobody = user("nobody", &[]);
    assert!(flow.admit(&*lookup, &nobody, &asked, || 1).await.1.unwrap().is_none());
    drop(seat);
    assert!(flow.admit(&*lookup, &jane, &asked, || 1).await.1.is_ok());
}
