//! What survives: a writer killed at random under load, a machine that loses power between syncs, a damaged file.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::StorageBackend;
use storage::embedded::Embedded;
use storage::{Error, Expect, RangeOptions, Store};

const KILLS: usize = 100;
const WRITERS: usize = 8;
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

/// Writes until it is killed, and says each write that was answered.
#[test]
fn victim() {
    let Ok(path) = std::env::var(VICTIM) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = Arc::new(Embedded::open(Path::new(&path)).unwrap());
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
    let path = directory.path().join("state.redb");
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
    let store = Embedded::open(path).unwrap();
    for entry in store.range("/", RangeOptions::default()).await.unwrap().entries {
        let number = number_of(&entry.key, &entry.value);
        let at_least = answered.get(&*entry.key).copied().unwrap_or(0);
        assert!(number >= at_least, "{}: {at_least} was answered, {number} is kept", entry.key);
    }
    for key in answered.keys() {
        assert!(store.get(key, None).await.unwrap().is_some(), "{key} was answered");
    }
}

/// A disk that keeps what was synced and, of what was not, whatever chance leaves when the power goes.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<Sectors>>);

#[derive(Debug, Default)]
struct Sectors {
    seen: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Range<usize>>,
}

impl Disk {
    /// The disk as found after the power came back: each unsynced write whole, cut or lost.
    fn after_power_loss(&self, random: &mut StdRng) -> Disk {
        let sectors = self.0.lock().unwrap();
        let mut found = sectors.synced.clone();
        if random.random_bool(0.5) {
            found.resize(sectors.seen.len().max(found.len()), 0);
        }
        for write in &sectors.unsynced {
            let kept = match random.random_range(0..3) {
                0 => 0,
                1 => random.random_range(0..=write.len()),
                _ => write.len(),
            };
            let end = (write.start + kept).min(found.len()).min(sectors.seen.len());
            if write.start < end {
                found[write.start..end].copy_from_slice(&sectors.seen[write.start..end]);
            }
        }
        Disk(Arc::new(Mutex::new(Sectors { seen: found.clone(), synced: found, unsynced: Vec::new() })))
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.lock().unwrap().seen.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let start = offset as usize;
        out.copy_from_slice(&self.0.lock().unwrap().seen[start..start + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.lock().unwrap().seen.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        let mut sectors = self.0.lock().unwrap();
        sectors.synced = sectors.seen.clone();
        sectors.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let mut sectors = self.0.lock().unwrap();
        let range = offset as usize..offset as usize + data.len();
        sectors.seen[range.clone()].copy_from_slice(data);
        sectors.unsynced.push(range);
        Ok(())
    }
}

#[tokio::test]
async fn power_lost_at_any_moment_loses_no_answered_write() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let disk = Disk::default();
        let store = Embedded::open_on(disk.clone()).unwrap();
        let writes = random.random_range(1..60);
        for number in 1..=writes {
            store.put("/key/a", value("/key/a", number), Expect::Anything).await.unwrap();
        }
        // Writes in flight when the power goes.
        let late = store.put("/key/a", value("/key/a", writes + 1), Expect::Anything);
        let (_, found) = tokio::join!(late, async { disk.after_power_loss(&mut random) });
        drop(store);
        let store = Embedded::open_on(found).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        let entry = store.get("/key/a", None).await.unwrap().unwrap();
        let number = number_of("/key/a", &entry.value);
        assert!(number == writes || number == writes + 1, "seed {seed}: {number} of {writes}");
    }
}

#[tokio::test]
async fn a_damaged_record_is_reported_and_not_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let store = Embedded::open(&path).unwrap();
    store.put("/key/a", Bytes::from_static(b"a value to look for"), Expect::Anything).await.unwrap();
    drop(store);
    let mut file = std::fs::read(&path).unwrap();
    let at = file.windows(19).position(|w| w == b"a value to look for").unwrap();
    file[at] ^= 1;
    std::fs::write(&path, file).unwrap();
    let error = Embedded::open(&path).err().expect("the damage is found");
    assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "the store is damaged: the record of revision 2 does not match its checksum"
    );
}

#[tokio::test]
async fn an_open_store_cannot_be_opened_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
    let store = Embedded::open(&path).unwrap();
    let error = Embedded::open(&path).err().expect("the store is in use");
    assert_eq!(error.to_string(), format!("the store {} is in use by another process", path.display()));
    drop(store);
    Embedded::open(&path).unwrap();
}

#[tokio::test]
async fn a_closed_store_lets_go_of_its_file_while_it_is_held() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.redb");
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
    let path = directory.path().join("state.redb");
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
