//! A kubelet that dies at any moment of a volume's life, and the one that comes after it.

use super::*;

/// What the kubelet that comes after finds of the pod.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Then {
    Wanted,
    Gone,
}

/// Runs a volume's life until the driver hangs in its call number `at`, before or after doing it; then another
/// kubelet takes over. False when the life ended before that.
async fn die_at(spec: Value, at: usize, after: bool, then: Then) -> bool {
    let mut bench = Bench::new(plain()).await;
    let source = bench.source("h", spec).await;
    bench.mock.world().hang = Some((at, after));
    let reached = {
        let life = async {
            bench.setup(&pod("u"), &source).await.unwrap();
            bench.teardown("u").await.unwrap();
        };
        tokio::select! {
            () = life => false,
            () = bench.mock.hung.notified() => true,
        }
    };
    let before = bench.mock.calls();
    bench.mock.world().hang = None;
    if !reached {
        assert_eq!(before, ["stage h", "publish h", "unpublish h", "unstage h"]);
        bench.assert_clean();
        return false;
    }
    bench.restart().await;
    let ending = before.contains(&"unpublish h".to_owned());
    if then == Then::Wanted && ending {
        // Another pod comes for the volume that is being taken away.
        bench.setup(&pod("v"), &source).await.unwrap();
        assert_eq!(bench.mock.world().nonsense, Vec::<String>::new(), "after {before:?}");
    } else if then == Then::Wanted {
        bench.setup(&pod("u"), &source).await.unwrap();
        let again = bench.mock.calls();
        // What the driver has answered is not asked again; what it has not, is.
        let want: &[&str] = if before.len() == 1 { &["stage h", "publish h"] } else { &["publish h"] };
        assert_eq!(again, want, "after {before:?}");
    }
    bench.teardown("u").await.unwrap();
    bench.teardown("v").await.unwrap();
    let last = bench.mock.calls();
    let ended = before.last().is_some_and(|call| call == "unstage h");
    assert!(ended || last.contains(&"unstage h".to_owned()), "{before:?} then {last:?}");
    bench.assert_clean();
    true
}

#[tokio::test]
async fn a_kubelet_may_die_between_any_two_steps() {
    for spec in [json!({}), json!({"volumeMode": "Block"})] {
        for then in [Then::Wanted, Then::Gone] {
            for after in [false, true] {
                let mut at = 0;
                while die_at(spec.clone(), at, after, then).await {
                    at += 1;
                }
                assert_eq!(at, 4, "each call was died in");
            }
        }
    }
}

#[tokio::test]
async fn what_is_there_is_not_asked_for_again() {
    let mut bench = Bench::new(plain()).await;
    let source = bench.source("h", json!({})).await;
    bench.setup(&pod("u"), &source).await.unwrap();
    bench.mock.calls();
    bench.restart().await;
    bench.setup(&pod("u"), &source).await.unwrap();
    assert_eq!(bench.mock.calls(), Vec::<String>::new());
    // Another pod finds the volume staged.
    bench.setup(&pod("v"), &source).await.unwrap();
    assert_eq!(bench.mock.calls(), ["publish h"]);
    bench.teardown("u").await.unwrap();
    bench.teardown("v").await.unwrap();
    bench.assert_clean();
}
