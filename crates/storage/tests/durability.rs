//! What survives: a writer killed at random under load, a machine that loses power between syncs, a damaged file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "durability/disk.rs"]
mod disk;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use disk::Simulated;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use storage::disk::Folder;
use storage::embedded::{Embedded, Sizes};
use storage::{Error, Expect, RangeOptions, Store};

const KILLS: usize = 100;
const WRITERS: usize = 8;
/// So small that files are begun and checkpoints written all the time.
const SMALL: Sizes = Sizes { segment: 16 << 10, dead: 32 << 10 };
/// Set for the child that is to be killed: where its store is.
const VICTIM: &str = "STORAGE_TEST_VICTIM";

/// A value that says its own key and number, and is long enough to be torn.
fn value(key: &str, number: u64) -> Bytes {
    Bytes::from(format!("{key} {number} ").repeat(40))
}

fn number_of(key: &str, found: &[u8]) -> u64 {
    let text = std::str::from_utf8(found).expect("a whole value is text");
    let number = text.split(' ').nth(1).expect("a value has a number").parse().expect("a number");
    assert_eq!(found, value(key, number), "a half-written value of {key}");
    number
}

fn open(path: &Path) -> Embedded {
    Embedded::open_on(Arc::new(Folder::open(path).unwrap()), SMALL).unwrap()
}

/// Writes until it is killed, and says each write that was answered.
#[test]
fn victim() {
    let Ok(path) = std::env::var(VICTIM) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(open(Path::new(&path)));
        println!("open");
        let write = |writer: usize| {
            let store = store.clone();
            async move {
                let key = format!("/key/{writer}");
                let mut number = match store.get(&key, None).await.unwrap() {
                    Some(entry) => number_of(&key, &entry.value),
                    None => 0,
                };
                loop {
                    number += 1;
                    let entry = store.put(&key, value(&key, number), Expect::Anything).await.unwrap();
                    writeln!(std::io::stdout().lock(), "answered {key} {number}").unwrap();
                    if number % 7 == 0 {
                        store.compact(entry.modified - 3).await.unwrap();
                    }
                }
            }
        };
        futures::future::join_all((0..WRITERS).map(|w| tokio::spawn(write(w)))).await;
    });
}

#[test]
fn a_writer_killed_at_random_loses_no_answered_write() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let mut random = StdRng::seed_from_u64(1);
    let mut answered: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..KILLS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
            .env(VICTIM, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut left = random.random_range(1..300);
        while left > 0 {
            note(&lines.next().expect("the writer goes on").unwrap(), &mut answered, &mut left);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts too.
        for line in lines.map_while(Result::ok) {
            note(&line, &mut answered, &mut left);
        }
        check(&path, &answered);
    }
    assert_eq!(answered.len(), WRITERS);
    let names = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
    assert!(names.iter().any(|name| name.starts_with("state-")), "checkpoints were written: {names:?}");
    assert!(names.len() < 20, "old files go: {names:?}");
}

/// Reads one line of the victim; the last may be cut.
fn note(line: &str, answered: &mut BTreeMap<String, u64>, left: &mut i32) {
    if let ["answered", key, number] = line.split(' ').collect::<Vec<_>>()[..]
        && let Ok(number) = number.parse()
    {
        answered.insert(key.to_owned(), number);
        *left -= 1;
    }
}

#[tokio::main(flavor = "current_thread")]
async fn check(path: &Path, answered: &BTreeMap<String, u64>) {
    let store = open(path);
    for entry in store.range("/", RangeOptions::default()).await.unwrap().entries {
        let number = number_of(&entry.key, &entry.value);
        let at_least = answered.get(&*entry.key).copied().unwrap_or(0);
        assert!(number >= at_least, "{}: {at_least} was answered, {number} is kept", entry.key);
    }
    for key in answered.keys() {
        assert!(store.get(key, None).await.unwrap().is_some(), "{key} was answered");
    }
}

#[tokio::test]
async fn power_lost_at_any_moment_loses_no_answered_write() {
    for seed in 0..60 {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = Simulated::default();
        let store = Embedded::open_on(Arc::new(disk.clone()), SMALL).unwrap();
        let writes = random.random_range(1..150);
        for number in 1..=writes {
            let entry = store.put("/key/a", value("/key/a", number), Expect::Anything).await.unwrap();
            if number % 16 == 0 {
                store.compact(entry.modified).await.unwrap();
            }
        }
        // Writes in flight when the power goes.
        let late = store.put("/key/a", value("/key/a", writes + 1), Expect::Anything);
        let (_, found) = tokio::join!(late, async { disk.after_power_loss(&mut random) });
        drop(store);
        let store = Embedded::open_on(Arc::new(found), SMALL).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let entry = store.get("/key/a", None).await.unwrap().unwrap();
        let number = number_of("/key/a", &entry.value);
        assert!(number == writes || number == writes + 1, "seed {seed}: {number} of {writes}");
        // What was cut off does not come back between later writes.
        for later in 1..=3 {
            store.put("/key/b", value("/key/b", later), Expect::Anything).await.unwrap();
        }
    }
}

/// What a store on this disk has at a key.
async fn kept(disk: &Simulated, key: &str) -> Option<u64> {
    let store = Embedded::open_on(Arc::new(disk.clone()), SMALL).unwrap();
    store.get(key, None).await.unwrap().map(|entry| number_of(key, &entry.value))
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_loses_none() {
    let disk = Simulated::default();
    let store = Embedded::open_on(Arc::new(disk.clone()), SMALL).unwrap();
    store.put("/key/a", value("/key/a", 1), Expect::Anything).await.unwrap();
    disk.set_room(Some(3 << 20));
    let mut number = 1;
    let refused = loop {
        match store.put("/key/a", value("/key/a", number + 1), Expect::Anything).await {
            Ok(_) => number += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.to_string(), "cannot write to the store");
    assert_eq!(number_of("/key/a", &store.get("/key/a", None).await.unwrap().unwrap().value), number);
    disk.set_room(None);
    number += 1;
    store.put("/key/a", value("/key/a", number), Expect::Anything).await.unwrap();
    drop(store);
    assert_eq!(kept(&disk, "/key/a").await, Some(number));
}

#[tokio::test]
async fn after_a_sync_that_failed_nothing_is_written_until_the_store_is_opened_again() {
    let disk = Simulated::default();
    let store = Embedded::open_on(Arc::new(disk.clone()), SMALL).unwrap();
    store.put("/key/a", value("/key/a", 1), Expect::Anything).await.unwrap();
    disk.fail_syncs(true);
    store.put("/key/a", value("/key/a", 2), Expect::Anything).await.unwrap_err();
    disk.fail_syncs(false);
    store.put("/key/a", value("/key/a", 3), Expect::Anything).await.unwrap_err();
    assert_eq!(number_of("/key/a", &store.get("/key/a", None).await.unwrap().unwrap().value), 1);
    drop(store);
    let number = kept(&disk, "/key/a").await;
    assert!(number == Some(1) || number == Some(2), "{number:?}: what was refused last is not known");
}

#[tokio::test]
async fn a_checkpoint_stands_for_the_old_log() {
    let disk = Simulated::default();
    let store = Embedded::open_on(Arc::new(disk.clone()), SMALL).unwrap();
    let is_small = || {
        let names = disk.names();
        names.len() < 12 && names.iter().any(|name| name.starts_with("state-"))
    };
    for number in (1..20_000).take_while(|number| *number < 600 || !is_small()) {
        let key = format!("/key/{}", number % 10);
        let entry = store.put(&key, value(&key, number), Expect::Anything).await.unwrap();
        if number % 50 == 0 {
            store.delete(&key, Expect::Anything).await.unwrap();
            store.compact(entry.modified).await.unwrap();
        }
    }
    let (revision, range) =
        (store.revision().await.unwrap(), store.range("/", RangeOptions::default()).await.unwrap());
    drop(store);
    assert!(disk.bytes() < 300 << 10, "{} bytes are kept: {:?}", disk.bytes(), disk.names());
    assert_eq!(disk.names().iter().filter(|name| name.starts_with("state-")).count(), 1);
    let store = Embedded::open_on(Arc::new(disk.clone()), SMALL).unwrap();
    assert_eq!(store.revision().await.unwrap(), revision);
    assert_eq!(store.range("/", RangeOptions::default()).await.unwrap(), range);
    drop(store);
    let checkpoint = disk.names().into_iter().find(|name| name.starts_with("state-")).unwrap();
    disk.flip(&checkpoint, 100);
    let error = Embedded::open_on(Arc::new(disk), SMALL).err().expect("the damage is found");
    assert_eq!(
        error.to_string(),
        format!("the store is damaged: the commit at byte 0 of {checkpoint} does not match its checksum")
    );
}

#[tokio::test]
async fn a_missing_file_of_the_log_is_reported() {
    let disk = Simulated::default();
    let store = Embedded::open_on(Arc::new(disk.clone()), SMALL).unwrap();
    for number in 1..=100 {
        store.put("/key/a", value("/key/a", number), Expect::Anything).await.unwrap();
    }
    drop(store);
    let second = disk.names().into_iter().filter(|name| name.starts_with("log-")).nth(1).unwrap();
    storage::disk::Disk::remove(&disk, &second).unwrap();
    let error = Embedded::open_on(Arc::new(disk), SMALL).err().expect("the hole is found");
    let first = second.trim_start_matches("log-").trim_start_matches('0');
    assert_eq!(
        error.to_string(),
        format!("the store is damaged: revision {first} is missing from the store")
    );
}

#[tokio::test]
async fn a_damaged_record_is_reported_and_not_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let store = Embedded::open(&path).unwrap();
    store.put("/key/a", Bytes::from_static(b"a value to look for"), Expect::Anything).await.unwrap();
    drop(store);
    let log = path.join("log-00000000000000000002");
    let mut file = std::fs::read(&log).unwrap();
    let at = file.windows(19).position(|w| w == b"a value to look for").unwrap();
    file[at] ^= 1;
    std::fs::write(&log, file).unwrap();
    let error = Embedded::open(&path).err().expect("the damage is found");
    assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "the store is damaged: the commit at byte 0 of log-00000000000000000002 does not match its checksum"
    );
}

#[tokio::test]
async fn an_open_store_cannot_be_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let store = Embedded::open(&path).unwrap();
    let error = Embedded::open(&path).err().expect("the store is in use");
    assert_eq!(error.to_string(), format!("the store {} is in use by another process", path.display()));
    drop(store);
    Embedded::open(&path).unwrap();
}

#[tokio::test]
async fn a_closed_store_lets_go_of_its_file_while_it_is_held() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let held = Embedded::open(&path).unwrap();
    held.put("/a", Bytes::from_static(b"1"), Expect::Absent).await.unwrap();
    held.close().await.unwrap();
    held.close().await.unwrap();
    let refused = held.put("/a", Bytes::from_static(b"2"), Expect::Anything).await.unwrap_err();
    assert!(matches!(refused, storage::Error::Closed), "{refused}");
    let opened = Embedded::open(&path).unwrap();
    assert_eq!(
        opened.get("/a", None).await.unwrap().map(|entry| entry.value),
        Some(Bytes::from_static(b"1"))
    );
}

#[tokio::test]
async fn history_and_compaction_outlive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    let store = Embedded::open(&path).unwrap();
    for number in 1..=9 {
        store.put("/key/a", value("/key/a", number), Expect::Anything).await.unwrap();
    }
    store.put("/key/b", Bytes::new(), Expect::Anything).await.unwrap();
    store.delete("/key/b", Expect::Anything).await.unwrap();
    store.compact(6).await.unwrap();
    drop(store);
    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), 12);
    assert_eq!(number_of("/key/a", &store.get("/key/a", Some(8)).await.unwrap().unwrap().value), 7);
    assert!(matches!(store.get("/key/a", Some(5)).await, Err(Error::Compacted { compacted: 6, .. })));
    assert_eq!(store.watch("/", 6).await.unwrap().next().await.unwrap().len(), 6);
    store.compact(12).await.unwrap();
    drop(store);
    let store = Embedded::open(&path).unwrap();
    assert_eq!(store.revision().await.unwrap(), 12);
    assert_eq!(store.range("/", RangeOptions::default()).await.unwrap().entries.len(), 1);
}
