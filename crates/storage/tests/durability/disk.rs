//! A disk that keeps what was synced and, of what was not, whatever chance leaves when the power goes; that fills up,
//! and fails.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use rand::Rng;
use rand::rngs::StdRng;
use storage::disk::{Disk, Medium};

const SECTOR: usize = 512;

#[derive(Clone, Default)]
pub struct Simulated(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    names: Names,
    synced_names: Names,
    files: Vec<File>,
    /// How many bytes files may have.
    room: Option<usize>,
    fails_syncs: bool,
}

/// Which file has a name.
type Names = BTreeMap<String, usize>;

#[derive(Clone, Default)]
struct File {
    seen: Vec<u8>,
    synced: Vec<u8>,
    unsynced: Vec<Op>,
}

#[derive(Clone)]
enum Op {
    Write(usize, Vec<u8>),
    Size(usize),
}

impl File {
    /// What is left of it: each unsynced write sector by sector, or not.
    fn after_power_loss(&self, random: &mut StdRng) -> File {
        let mut found = self.synced.clone();
        let luck = random.random_range(0..4);
        for op in &self.unsynced {
            match op {
                Op::Size(size) if luck > 0 => found.resize(*size, 0),
                Op::Size(_) => {}
                Op::Write(at, bytes) => {
                    let mut from = 0;
                    while from < bytes.len() {
                        let to = bytes.len().min(from + SECTOR - (at + from) % SECTOR);
                        if random.random_range(0..4) < luck {
                            found.resize(found.len().max(at + to), 0);
                            found[at + from..at + to].copy_from_slice(&bytes[from..to]);
                        }
                        from = to;
                    }
                }
            }
        }
        File { seen: found.clone(), synced: found, unsynced: Vec::new() }
    }
}

impl Simulated {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The disk as found after the power came back.
    pub fn after_power_loss(&self, random: &mut StdRng) -> Simulated {
        let state = self.state();
        let names = if random.random_bool(0.5) { &state.names } else { &state.synced_names };
        let files = state.files.iter().map(|file| file.after_power_loss(random)).collect();
        let (names, synced_names) = (names.clone(), names.clone());
        Simulated(Arc::new(Mutex::new(State { names, synced_names, files, room: None, fails_syncs: false })))
    }

    pub fn set_room(&self, room: Option<usize>) {
        self.state().room = room;
    }

    pub fn fail_syncs(&self, fails: bool) {
        self.state().fails_syncs = fails;
    }

    pub fn names(&self) -> Vec<String> {
        self.state().names.keys().cloned().collect()
    }

    pub fn bytes(&self) -> usize {
        self.state().bytes()
    }

    pub fn flip(&self, name: &str, at: usize) {
        let mut state = self.state();
        let file = state.names[name];
        state.files[file].seen[at] ^= 1;
    }
}

impl State {
    fn bytes(&self) -> usize {
        self.names.values().map(|file| self.files[*file].seen.len()).sum()
    }

    fn sync(&self) -> io::Result<()> {
        if self.fails_syncs { Err(io::Error::other("the disk failed")) } else { Ok(()) }
    }
}

impl Disk for Simulated {
    fn names(&self) -> io::Result<Vec<String>> {
        Ok(Simulated::names(self))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn Medium>> {
        let file = self.state().names.get(name).copied().ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Opened { disk: self.clone(), file }))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Medium>> {
        let mut state = self.state();
        state.files.push(File::default());
        let file = state.files.len() - 1;
        state.names.insert(name.to_owned(), file);
        Ok(Box::new(Opened { disk: self.clone(), file }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        let file = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.state().names.remove(name).map(drop).ok_or(io::ErrorKind::NotFound.into())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state();
        state.sync()?;
        state.synced_names = state.names.clone();
        Ok(())
    }
}

struct Opened {
    disk: Simulated,
    file: usize,
}

impl Medium for Opened {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.state().files[self.file].seen.len() as u64)
    }

    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let at = at as usize;
        out.copy_from_slice(&self.disk.state().files[self.file].seen[at..at + out.len()]);
        Ok(())
    }

    fn write_at(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.state();
        let (at, all) = (at as usize, state.bytes());
        let more = (at + bytes.len()).saturating_sub(state.files[self.file].seen.len());
        let room = state.room.map_or(usize::MAX, |room| room.saturating_sub(all));
        // A disk that fills up takes the first part.
        let taken = if more > room { bytes.len() - (more - room).min(bytes.len()) } else { bytes.len() };
        let file = &mut state.files[self.file];
        let end = at + taken;
        file.seen.resize(file.seen.len().max(end), 0);
        file.seen[at..end].copy_from_slice(&bytes[..taken]);
        file.unsynced.push(Op::Write(at, bytes[..taken].to_vec()));
        if taken < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        let file = &mut state.files[self.file];
        file.seen.resize(size as usize, 0);
        file.unsynced.push(Op::Size(size as usize));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.sync()?;
        let file = &mut state.files[self.file];
        file.synced = file.seen.clone();
        file.unsynced.clear();
        Ok(())
    }
}
