//! User namespaces: each pod with `hostUsers: false` has a range of ids of the machine of its own, in which it is
//! root and everybody else. The range is written into the pod's directory, where the next kubelet finds it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use api::core::v1::Pod;
use cri::v1 as pb;
use serde_json::{Value, json};

use crate::paths::Paths;

/// Upstream: pkg/kubelet/kubeletconfig/defaults.go DefaultKubeletUserNamespacesIDsPerPod
const IDS_PER_POD: u32 = 65536;
/// Below this are the machine's own ids.
const FIRST: u32 = IDS_PER_POD;

/// Which pod has which range.
pub struct Ranges {
    paths: Paths,
    /// As many pods as a node may have.
    capacity: u32,
    /// The first id of each pod's range, by the pod's UID.
    taken: Mutex<BTreeMap<String, u32>>,
}

impl Ranges {
    /// Finds the ranges again that a former kubelet gave out.
    // Upstream: pkg/kubelet/userns/userns_manager.go MakeUserNsManager
    pub fn open(paths: Paths, max_pods: u32) -> Self {
        let mut taken = BTreeMap::new();
        for entry in fs::read_dir(paths.pods()).into_iter().flatten().flatten() {
            let Ok(uid) = entry.file_name().into_string() else { continue };
            match read(&paths, &uid) {
                Ok(Some(first)) => drop(taken.insert(uid, first)),
                Ok(None) => {}
                Err(error) => tracing::warn!(pod = uid, error, "the ids of a pod cannot be read"),
            }
        }
        // Pods that go still have theirs while others come.
        Ranges { paths, capacity: max_pods.max(1024).saturating_mul(2), taken: Mutex::new(taken) }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, u32>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The namespace that the pod's sandbox is to have. `supported` is what the runtime says of itself.
    // Upstream: pkg/kubelet/userns/userns_manager.go GetOrCreateUserNamespaceMappings
    pub fn of(&self, pod: &Pod, handler: &str, supported: bool) -> Result<pb::UserNamespace, String> {
        if pod.spec.as_ref().and_then(|s| s.host_users) != Some(false) {
            return Ok(pb::UserNamespace { mode: pb::NamespaceMode::Node as i32, ..Default::default() });
        }
        if !supported {
            let who = match handler {
                "" => "runtime does not support user namespaces".to_owned(),
                _ => format!("RuntimeClass handler {handler:?} does not support user namespaces"),
            };
            return Err(format!("can't set `spec.hostUsers: false`, {who}"));
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let mut taken = self.lock();
        let first = match taken.get(uid) {
            Some(first) => *first,
            None => {
                let first = free(&taken, self.capacity).ok_or(
                    "create user namespace: could not find an empty slot to allocate a user namespace",
                )?;
                self.write(uid, first).map_err(|error| format!("create user namespace: {error}"))?;
                taken.insert(uid.to_owned(), first);
                first
            }
        };
        let mapping = pb::IdMapping { host_id: first, container_id: 0, length: IDS_PER_POD };
        Ok(pb::UserNamespace {
            mode: pb::NamespaceMode::Pod as i32,
            uids: vec![mapping],
            gids: vec![mapping],
        })
    }

    /// The id on the machine of the pod's root, if it has ids of its own.
    pub fn root_of(&self, pod_uid: &str) -> Option<u32> {
        self.lock().get(pod_uid).copied()
    }

    /// The pod is gone, with its directory and all that belonged to these ids.
    pub fn release(&self, pod_uid: &str) {
        self.lock().remove(pod_uid);
    }

    /// Whole or not at all, and there after a crash: two pods must never share a range.
    fn write(&self, uid: &str, first: u32) -> io::Result<()> {
        let mapping = json!([{"hostId": first, "containerId": 0, "length": IDS_PER_POD}]);
        let text = json!({"uidMappings": mapping, "gidMappings": mapping}).to_string();
        let dir = self.paths.pod(uid);
        let temporary = dir.join(".userns");
        let file = fs::File::create(&temporary)?;
        io::Write::write_all(&mut &file, text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, self.paths.user_namespace(uid))?;
        fs::File::open(dir)?.sync_all()
    }
}

fn free(taken: &BTreeMap<String, u32>, capacity: u32) -> Option<u32> {
    let used: std::collections::BTreeSet<u32> = taken.values().copied().collect();
    let all = (0..capacity).map_while(|index| index.checked_mul(IDS_PER_POD)?.checked_add(FIRST));
    all.into_iter().find(|first| first.checked_add(IDS_PER_POD - 1).is_some() && !used.contains(first))
}

// Upstream: pkg/kubelet/userns/userns_manager.go parseUserNsFileAndRecord
fn read(paths: &Paths, uid: &str) -> Result<Option<u32>, String> {
    let text = match fs::read(paths.user_namespace(uid)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let content: Value =
        serde_json::from_slice(&text).map_err(|e| format!("invalid user namespace mappings file: {e}"))?;
    let mapping = &content["uidMappings"][0];
    let number = |key: &str| mapping[key].as_u64().and_then(|n| u32::try_from(n).ok());
    match (number("hostId"), number("containerId"), number("length")) {
        (Some(first), Some(0), Some(IDS_PER_POD)) if first >= FIRST && first % IDS_PER_POD == 0 => {
            Ok(Some(first))
        }
        _ => Err(format!("invalid user namespace configuration: {mapping}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, host_users: Value) -> Pod {
        let spec = json!({"hostUsers": host_users, "containers": []});
        serde_json::from_value(json!({"metadata": {"uid": uid}, "spec": spec})).unwrap()
    }

    #[test]
    fn pods_have_ranges_of_their_own_that_outlive_the_kubelet() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path(), dir.path());
        for uid in ["a", "b", "c"] {
            fs::create_dir_all(paths.pod(uid)).unwrap();
        }
        let first = |ranges: &Ranges, uid: &str| {
            ranges.of(&pod(uid, json!(false)), "", true).unwrap().uids[0].host_id
        };
        let ranges = Ranges::open(paths.clone(), 110);
        assert_eq!([first(&ranges, "a"), first(&ranges, "b"), first(&ranges, "a")], [65536, 131_072, 65536]);
        let shared = ranges.of(&pod("c", Value::Null), "", false).unwrap();
        assert_eq!((shared.mode(), shared.uids.len()), (pb::NamespaceMode::Node, 0));
        let ranges = Ranges::open(paths.clone(), 110);
        assert_eq!([first(&ranges, "c"), first(&ranges, "b")], [196_608, 131_072]);
        fs::remove_dir_all(paths.pod("a")).unwrap();
        ranges.release("a");
        fs::create_dir_all(paths.pod("d")).unwrap();
        assert_eq!(first(&ranges, "d"), 65536);
    }

    #[test]
    fn a_runtime_without_them_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let ranges = Ranges::open(Paths::new(dir.path(), dir.path()), 110);
        let refused = |handler: &str| ranges.of(&pod("a", json!(false)), handler, false).unwrap_err();
        let words = "can't set `spec.hostUsers: false`, runtime does not support user namespaces";
        assert_eq!(refused(""), words);
        assert!(refused("runc").contains("RuntimeClass handler \"runc\" does not support user namespaces"));
    }
}
