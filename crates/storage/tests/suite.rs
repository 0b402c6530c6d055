//! The contract of [`Store`], run on every backend.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use bytes::Bytes;
use storage::{Change, Error, Expect, RangeOptions, Store};

/// A backend to check, and what must live as long as it.
struct Backend {
    store: Box<dyn Store>,
    _directory: Option<tempfile::TempDir>,
}

fn memory() -> Backend {
    Backend { store: Box::new(storage::memory::Memory::new()), _directory: None }
}

fn embedded() -> Backend {
    let directory = tempfile::tempdir().unwrap();
    let store = storage::embedded::Embedded::open(&directory.path().join("state")).unwrap();
    Backend { store: Box::new(store), _directory: Some(directory) }
}

/// One test a line: its name, run on every backend.
macro_rules! suite {
    ($($name:ident)+) => {
        mod on_memory { $(#[tokio::test] async fn $name() { super::$name(&*super::memory().store).await })+ }
        mod on_embedded { $(#[tokio::test] async fn $name() { super::$name(&*super::embedded().store).await })+ }
    };
}

suite! {
    an_empty_store_is_at_revision_one
    every_commit_is_one_revision
    writes_hold_to_what_they_expect
    a_deleted_key_begins_anew
    a_last_state_is_seen_before_its_deletion
    ranges_page_in_key_order
    old_revisions_can_be_read
    compaction_keeps_the_newest_state
    watches_see_every_change_of_their_prefix_once
    a_watch_resumes_from_a_kept_revision
    a_watch_of_compacted_history_is_refused
    many_writers_of_one_key_lose_nothing
    a_closed_store_ends_its_watches
}

async fn put(store: &dyn Store, key: &str, value: &'static str) -> u64 {
    store.put(key, Bytes::from_static(value.as_bytes()), Expect::Anything).await.unwrap().modified
}

async fn keys(store: &dyn Store, prefix: &str, options: RangeOptions) -> (Vec<String>, usize) {
    let range = store.range(prefix, options).await.unwrap();
    (range.entries.iter().map(|e| e.key.to_string()).collect(), range.remaining)
}

/// `revision +key=value` or `revision -key`, for comparison.
fn words(changes: &[Arc<Change>]) -> Vec<String> {
    let word = |c: &Arc<Change>| match &c.value {
        Some(e) => format!("{} +{}={}", c.revision, c.key, String::from_utf8_lossy(&e.value)),
        None => format!("{} -{}", c.revision, c.key),
    };
    changes.iter().map(word).collect()
}

async fn an_empty_store_is_at_revision_one(store: &dyn Store) {
    assert_eq!(store.revision().await.unwrap(), 1);
    assert_eq!(store.get("/a", None).await.unwrap(), None);
    assert_eq!(store.delete("/a", Expect::Anything).await.unwrap(), None);
    assert_eq!(store.revision().await.unwrap(), 1);
}

async fn every_commit_is_one_revision(store: &dyn Store) {
    assert_eq!(put(store, "/a", "1").await, 2);
    assert_eq!(put(store, "/b", "1").await, 3);
    assert_eq!(put(store, "/a", "2").await, 4);
    let (deleted, revision) = store.delete("/a", Expect::Anything).await.unwrap().unwrap();
    assert_eq!((deleted.created, deleted.modified, revision), (2, 4, 5));
    assert_eq!(store.revision().await.unwrap(), 5);
}

async fn writes_hold_to_what_they_expect(store: &dyn Store) {
    let entry = store.put("/a", Bytes::from_static(b"1"), Expect::Absent).await.unwrap();
    let Err(Error::Conflict(Some(current))) = store.put("/a", Bytes::new(), Expect::Absent).await else {
        panic!("the key exists");
    };
    assert_eq!(current, entry);
    assert!(matches!(
        store.put("/a", Bytes::new(), Expect::Modified(1)).await,
        Err(Error::Conflict(Some(_)))
    ));
    assert!(matches!(store.put("/b", Bytes::new(), Expect::Modified(2)).await, Err(Error::Conflict(None))));
    assert!(matches!(store.delete("/a", Expect::Modified(9)).await, Err(Error::Conflict(Some(_)))));
    assert!(matches!(store.delete("/b", Expect::Modified(9)).await, Err(Error::Conflict(None))));
    store.put("/a", Bytes::from_static(b"2"), Expect::Modified(entry.modified)).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), 3);
}

async fn a_deleted_key_begins_anew(store: &dyn Store) {
    put(store, "/a", "1").await;
    store.delete("/a", Expect::Modified(2)).await.unwrap();
    let entry = store.put("/a", Bytes::new(), Expect::Absent).await.unwrap();
    assert_eq!((entry.created, entry.modified), (4, 4));
}

async fn a_last_state_is_seen_before_its_deletion(store: &dyn Store) {
    let created = put(store, "/a", "1").await;
    let last = || Bytes::from_static(b"last");
    let stale = store.put_and_delete("/a", last(), Expect::Modified(created + 1)).await.unwrap_err();
    assert!(matches!(stale, Error::Conflict(Some(_))), "{stale}");
    let (entry, revision) = store.put_and_delete("/a", last(), Expect::Modified(created)).await.unwrap();
    assert_eq!((entry.value.clone(), entry.modified, revision), (last(), created + 1, created + 2));
    assert_eq!(store.get("/a", None).await.unwrap(), None);
    let mut watch = store.watch("/a", created).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(watch.next().await.unwrap());
    }
    assert_eq!(seen[0].value.as_ref(), Some(&entry));
    assert_eq!((seen[1].value.as_ref(), seen[1].previous.as_ref()), (None, Some(&entry)));
    assert!(seen[0].previous.is_some() && seen[1].revision == revision);
}

async fn ranges_page_in_key_order(store: &dyn Store) {
    for key in ["/p/c", "/p/a", "/q/z", "/p/b", "/o/y", "/p"] {
        put(store, key, "").await;
    }
    let page =
        |after: Option<&str>, limit| RangeOptions { after: after.map(Into::into), limit, revision: None };
    assert_eq!(
        keys(store, "/p/", page(None, 0)).await,
        (vec!["/p/a".into(), "/p/b".into(), "/p/c".into()], 0)
    );
    assert_eq!(keys(store, "/p/", page(None, 2)).await, (vec!["/p/a".into(), "/p/b".into()], 1));
    assert_eq!(keys(store, "/p/", page(Some("/p/b"), 2)).await, (vec!["/p/c".into()], 0));
    assert_eq!(keys(store, "/p/", page(Some("/p/z"), 2)).await, (vec![], 0));
    assert_eq!(keys(store, "/none/", page(None, 0)).await, (vec![], 0));
}

async fn old_revisions_can_be_read(store: &dyn Store) {
    put(store, "/a", "1").await;
    put(store, "/b", "1").await;
    put(store, "/a", "2").await;
    store.delete("/b", Expect::Anything).await.unwrap();
    put(store, "/c", "1").await;
    let at = |revision| RangeOptions { revision: Some(revision), ..Default::default() };
    assert_eq!(keys(store, "/", at(1)).await.0, Vec::<String>::new());
    assert_eq!(keys(store, "/", at(2)).await.0, ["/a"]);
    assert_eq!(keys(store, "/", at(4)).await.0, ["/a", "/b"]);
    assert_eq!(keys(store, "/", at(5)).await.0, ["/a"]);
    assert_eq!(keys(store, "/", at(6)).await.0, ["/a", "/c"]);
    assert_eq!(keys(store, "/", RangeOptions { limit: 1, ..at(4) }).await, (vec!["/a".into()], 1));
    assert_eq!(store.get("/a", Some(3)).await.unwrap().unwrap().value, "1");
    assert_eq!(store.get("/b", Some(5)).await.unwrap(), None);
    assert!(matches!(store.get("/a", Some(7)).await, Err(Error::Future { requested: 7, newest: 6 })));
}

async fn compaction_keeps_the_newest_state(store: &dyn Store) {
    put(store, "/a", "1").await;
    put(store, "/a", "2").await;
    put(store, "/b", "1").await;
    store.compact(3).await.unwrap();
    assert_eq!(store.get("/a", None).await.unwrap().unwrap().value, "2");
    assert_eq!(store.get("/a", Some(3)).await.unwrap().unwrap().value, "2");
    let refused = store.range("/", RangeOptions { revision: Some(2), ..Default::default() }).await;
    assert!(matches!(refused, Err(Error::Compacted { requested: 2, compacted: 3 })));
    store.compact(2).await.unwrap();
    store.compact(100).await.unwrap();
    assert_eq!(store.revision().await.unwrap(), 4);
    assert_eq!(keys(store, "/", RangeOptions::default()).await.0, ["/a", "/b"]);
    assert_eq!(put(store, "/c", "").await, 5);
}

async fn watches_see_every_change_of_their_prefix_once(store: &dyn Store) {
    let mut watch = store.watch("/p/", 1).await.unwrap();
    put(store, "/p/a", "1").await;
    put(store, "/q/a", "1").await;
    put(store, "/p/a", "2").await;
    store.delete("/p/a", Expect::Anything).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        seen.extend(watch.next().await.unwrap());
    }
    assert_eq!(words(&seen), ["2 +/p/a=1", "4 +/p/a=2", "5 -/p/a"]);
    assert_eq!(seen[2].previous.as_ref().unwrap().value, "2");
}

async fn a_watch_resumes_from_a_kept_revision(store: &dyn Store) {
    for value in ["1", "2", "3"] {
        put(store, "/a", value).await;
    }
    let mut watch = store.watch("/", 3).await.unwrap();
    assert_eq!(words(&watch.next().await.unwrap()), ["4 +/a=3"]);
    assert!(matches!(store.watch("/", 5).await.err(), Some(Error::Future { .. })));
}

async fn a_watch_of_compacted_history_is_refused(store: &dyn Store) {
    let mut behind = store.watch("/", 1).await.unwrap();
    for value in ["1", "2", "3"] {
        put(store, "/a", value).await;
    }
    store.compact(3).await.unwrap();
    assert!(matches!(behind.next().await, Err(Error::Compacted { requested: 1, compacted: 3 })));
    assert!(matches!(store.watch("/", 2).await.err(), Some(Error::Compacted { .. })));
    assert_eq!(words(&store.watch("/", 3).await.unwrap().next().await.unwrap()), ["4 +/a=3"]);
}

async fn many_writers_of_one_key_lose_nothing(store: &dyn Store) {
    put(store, "/n", "0").await;
    let add = || async {
        for _ in 0..20 {
            loop {
                let entry = store.get("/n", None).await.unwrap().unwrap();
                let n: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                let value = Bytes::from((n + 1).to_string());
                match store.put("/n", value, Expect::Modified(entry.modified)).await {
                    Ok(_) => break,
                    Err(Error::Conflict(_)) => {}
                    Err(e) => panic!("{e}"),
                }
            }
        }
    };
    futures::future::join_all((0..8).map(|_| add())).await;
    assert_eq!(store.get("/n", None).await.unwrap().unwrap().value, "160");
}

async fn a_closed_store_ends_its_watches(_: &dyn Store) {
    for backend in [memory(), embedded()] {
        let mut watch = backend.store.watch("/", 1).await.unwrap();
        drop(backend);
        assert!(matches!(watch.next().await, Err(Error::Closed)));
    }
}
