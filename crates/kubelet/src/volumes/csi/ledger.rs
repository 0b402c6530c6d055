//! Who uses which volume of a driver, and how far each is. No I/O: what is written here was done elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::record::Identity;

/// How far something that a driver does is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    #[default]
    None,
    /// The driver was asked and has not answered: it may have done it.
    Uncertain,
    Done,
}

#[derive(Debug)]
struct Volume {
    identity: Identity,
    /// One at a time asks the driver about the volume.
    turn: Arc<Semaphore>,
    staged: Progress,
    /// UIDs of the pods that want it, and how far it is with each.
    users: BTreeMap<String, Progress>,
    /// What this node last made it, in bytes.
    size: Option<i64>,
    /// Growing it has failed for good, at least once.
    stuck: bool,
}

impl Volume {
    fn is_idle(&self) -> bool {
        self.users.is_empty() && self.staged == Progress::None
    }
}

/// A driver's name and its handle of a volume.
pub type Key = (String, String);

pub fn key(volume: &Identity) -> Key {
    (volume.driver.clone(), volume.handle.clone())
}

/// All volumes that pods of this node want or that are still staged here.
#[derive(Debug, Default)]
pub struct Ledger(BTreeMap<Key, Volume>);

impl Ledger {
    /// Notes that a pod wants the volume. Returns the turn to wait for.
    pub fn want(&mut self, volume: &Identity, pod_uid: &str) -> Arc<Semaphore> {
        let entry = self.entry(volume);
        entry.users.entry(pod_uid.to_owned()).or_default();
        entry.turn.clone()
    }

    fn entry(&mut self, volume: &Identity) -> &mut Volume {
        self.0.entry(key(volume)).or_insert_with(|| Volume {
            identity: volume.clone(),
            turn: Arc::new(Semaphore::new(1)),
            staged: Progress::None,
            users: BTreeMap::new(),
            size: None,
            stuck: false,
        })
    }

    pub fn turn(&self, key: &Key) -> Option<Arc<Semaphore>> {
        self.0.get(key).map(|volume| volume.turn.clone())
    }

    pub fn staged(&self, volume: &Identity) -> Progress {
        self.0.get(&key(volume)).map_or(Progress::None, |v| v.staged)
    }

    pub fn set_staged(&mut self, volume: &Identity, progress: Progress) {
        self.entry(volume).staged = progress;
        self.tidy(&key(volume));
    }

    pub fn published(&self, volume: &Identity, pod_uid: &str) -> Progress {
        self.0.get(&key(volume)).and_then(|v| v.users.get(pod_uid)).copied().unwrap_or_default()
    }

    pub fn set_published(&mut self, volume: &Identity, pod_uid: &str, progress: Progress) {
        self.entry(volume).users.insert(pod_uid.to_owned(), progress);
    }

    /// The size that this node last made the volume.
    pub fn size(&self, volume: &Identity) -> Option<i64> {
        self.0.get(&key(volume)).and_then(|v| v.size)
    }

    pub fn set_size(&mut self, volume: &Identity, bytes: i64) {
        let entry = self.entry(volume);
        (entry.size, entry.stuck) = (Some(bytes), false);
    }

    /// Notes that growing the volume has failed for good. Returns whether it had before.
    pub fn set_stuck(&mut self, volume: &Identity) -> bool {
        std::mem::replace(&mut self.entry(volume).stuck, true)
    }

    /// Whether another pod has it.
    pub fn is_elsewhere(&self, volume: &Identity, pod_uid: &str) -> bool {
        let others = self.0.get(&key(volume)).into_iter().flat_map(|v| &v.users);
        others.into_iter().any(|(uid, progress)| uid != pod_uid && *progress != Progress::None)
    }

    /// The pod wants nothing any more and has nothing. Returns the volumes that nobody uses now but that are
    /// staged.
    pub fn release(&mut self, pod_uid: &str) -> Vec<Key> {
        let released: Vec<Key> = self
            .0
            .iter_mut()
            .filter_map(|(key, volume)| volume.users.remove(pod_uid).map(|_| key.clone()))
            .collect();
        released.iter().for_each(|key| self.tidy(key));
        released.into_iter().filter(|key| self.leaver(key).is_some()).collect()
    }

    fn tidy(&mut self, key: &Key) {
        if self.0.get(key).is_some_and(Volume::is_idle) {
            self.0.remove(key);
        }
    }

    /// The volume, if it is staged and nobody uses it.
    pub fn leaver(&self, key: &Key) -> Option<Identity> {
        self.0.get(key).filter(|v| v.users.is_empty() && !v.is_idle()).map(|v| v.identity.clone())
    }

    /// All that are staged and that nobody uses.
    pub fn leavers(&self) -> Vec<Key> {
        self.0.keys().filter(|key| self.leaver(key).is_some()).cloned().collect()
    }

    /// The volumes that must not be detached from the node, as nodes call them. `attached` says of a driver
    /// whether its volumes are attached at all.
    pub fn in_use(&self, attached: impl Fn(&str) -> bool) -> Vec<String> {
        let kept = self.0.values().filter(|v| !v.identity.ephemeral && attached(&v.identity.driver));
        // The map's order is not that of the names.
        let names: BTreeSet<String> = kept.map(|v| v.identity.unique_name()).collect();
        names.into_iter().collect()
    }

    /// The pods that want a volume that they do not have yet.
    pub fn waiting(&self) -> BTreeSet<String> {
        let users = self.0.values().flat_map(|v| &v.users);
        users.filter(|(_, progress)| **progress != Progress::Done).map(|(uid, _)| uid.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(handle: &str) -> Identity {
        let (driver, name) = ("d".to_owned(), handle.to_owned());
        Identity { driver, handle: handle.to_owned(), name, block: false, ephemeral: false }
    }

    #[test]
    fn a_volume_leaves_after_its_last_user() {
        let mut ledger = Ledger::default();
        let a = volume("a");
        let names = |ledger: &Ledger| ledger.in_use(|_| true);
        ledger.want(&a, "p");
        ledger.want(&a, "q");
        assert_eq!(names(&ledger), ["kubernetes.io/csi/d^a"]);
        assert_eq!(ledger.in_use(|_| false), Vec::<String>::new());
        ledger.set_staged(&a, Progress::Uncertain);
        ledger.set_published(&a, "p", Progress::Done);
        assert!(ledger.is_elsewhere(&a, "q") && !ledger.is_elsewhere(&a, "p"));
        assert_eq!(ledger.waiting(), BTreeSet::from(["q".to_owned()]));
        assert_eq!((ledger.release("p"), ledger.leavers()), (vec![], vec![]));
        assert_eq!(ledger.release("q"), [key(&a)]);
        assert_eq!((ledger.leaver(&key(&a)), names(&ledger).len()), (Some(a.clone()), 1));
        ledger.set_staged(&a, Progress::None);
        assert_eq!((ledger.leavers(), names(&ledger)), (vec![], vec![]));
    }

    #[test]
    fn what_was_never_staged_just_goes() {
        let mut ledger = Ledger::default();
        ledger.want(&volume("a"), "p");
        assert_eq!((ledger.release("p"), ledger.in_use(|_| true)), (vec![], vec![]));
    }
}
