//! Volumes on the nodes' own disks, made on demand: the class `local-path`, and on each node who makes the folder
//! for a claim that the scheduler placed there, and removes it when the claim is gone.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use api::Object;
use api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use api::storage::v1::StorageClass;
use client::Client;
use controller_runtime::{
    Clock, EventRecorder, Informer, InformerFactory, WorkQueue, reference, run_workers,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{PROVISIONED_BY, PROVISIONER, SELECTED_NODE, class_of_claim, volume_name, volume_phase};
use crate::Error;
use crate::objects::{annotation, is_deleting};

pub const NAME: &str = "trierarch.io/local-path";
const CLASS: &str = "local-path";
/// Holds a volume until its folder is gone.
const FINALIZER: &str = "trierarch.io/local-path";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The class that claims get which name none: a cluster starts with it. Whoever changes it keeps their changes.
pub fn storage_class() -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
        "metadata": {"name": CLASS, "annotations": {super::DEFAULT_CLASS: "true"}},
        "provisioner": NAME,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    })
}

/// Who makes folders on a node.
#[derive(Clone)]
pub struct LocalPath {
    pub node_name: String,
    /// Below which the folders are.
    pub root: PathBuf,
    pub clock: Clock,
}

struct Provisioner {
    config: LocalPath,
    client: Client,
    events: EventRecorder,
    claims: Informer<PersistentVolumeClaim>,
    volumes: Informer<PersistentVolume>,
    classes: Informer<StorageClass>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Claim(String),
    Volume(String),
}

/// Why no folder is made for a claim.
pub(super) fn refusal(claim: &PersistentVolumeClaim) -> Option<&'static str> {
    let spec = claim.spec.as_ref()?;
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    if modes.iter().any(|mode| mode != "ReadWriteOnce" && mode != "ReadWriteOncePod") {
        return Some("only the access modes ReadWriteOnce and ReadWriteOncePod are supported");
    }
    if spec.volume_mode.as_deref() == Some("Block") {
        return Some("block volumes are not supported");
    }
    if spec.data_source.is_some() || spec.data_source_ref.is_some() {
        return Some("data sources are not supported");
    }
    spec.selector.is_some().then_some("claim Selector is not supported")
}

/// The volume for a claim on a node whose label for its host name is given.
pub(super) fn volume_for(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    host: &str,
    path: &str,
) -> PersistentVolume {
    let spec = claim.to_value()["spec"].take();
    let volume = json!({
        "metadata": {
            "name": format!("pvc-{}", claim.uid()),
            "annotations": {PROVISIONED_BY: NAME},
            "finalizers": [FINALIZER],
        },
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.name(),
            "volumeMode": "Filesystem",
            "hostPath": {"path": path, "type": "DirectoryOrCreate"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [host]}]},
            ]}},
        },
    });
    let mut volume = PersistentVolume::from_value(volume).expect("the volume has the shape of one");
    volume.spec.get_or_insert_default().claim_ref = Some(reference(claim));
    volume
}

/// The folder of one of our volumes: right below the root, so that a volume that somebody else wrote cannot have
/// anything else removed.
pub(super) fn folder(volume: &PersistentVolume, root: &Path) -> Option<PathBuf> {
    if annotation(volume, PROVISIONED_BY) != Some(NAME) {
        return None;
    }
    let path = Path::new(&volume.spec.as_ref()?.host_path.as_ref()?.path);
    let plain = matches!(path.components().next_back(), Some(Component::Normal(_)));
    (plain && path.parent() == Some(root)).then(|| path.to_owned())
}

/// Whether a folder is to be removed.
pub(super) fn is_done(volume: &PersistentVolume) -> bool {
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let released = volume_phase(volume) == "Released" && policy == Some("Delete");
    let ours = volume.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER);
    // Who deletes a volume in use gets it kept by its protection; until then the folder stays.
    let protected = volume.metadata.finalizers.iter().flatten().any(|f| f == "kubernetes.io/pv-protection");
    (released || (is_deleting(volume) && !protected && policy == Some("Delete"))) && ours
}

/// Makes and removes folders on this node until the shutdown.
pub async fn run_node(config: LocalPath, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let informers = InformerFactory::new(client.clone(), shutdown.clone());
    let component = format!("{NAME}_{}", config.node_name);
    let (events, delivery) =
        EventRecorder::new(client.clone(), &component, &config.node_name, config.clock.clone());
    let telling = tokio::spawn(delivery.run(shutdown.clone()));
    let provisioner = Arc::new(Provisioner {
        events,
        claims: informers.informer(),
        volumes: informers.informer(),
        classes: informers.informer(),
        client,
        config,
    });
    let queue = WorkQueue::new();
    let (claims, this) = (queue.clone(), provisioner.clone());
    provisioner.claims.subscribe(move |event| {
        if this.is_wanted(event.object()) {
            claims.add(Key::Claim(Object::key(&**event.object())));
        }
    });
    let (volumes, this) = (queue.clone(), provisioner.clone());
    provisioner.volumes.subscribe(move |event| {
        let volume = event.object();
        if is_done(volume) && folder(volume, &this.config.root).is_some() {
            volumes.add(Key::Volume(volume.name().to_owned()));
        }
    });
    informers.start();
    if informers.synced().await {
        run_workers("local-path-provisioner", &queue, 2, &shutdown, move |key| {
            let provisioner = provisioner.clone();
            async move {
                match key {
                    Key::Claim(key) => provisioner.provision(&key).await,
                    Key::Volume(name) => provisioner.remove(&name).await,
                }
            }
        })
        .await;
    }
    informers.stopped().await;
    if let Err(error) = telling.await
        && error.is_panic()
    {
        return Err(Error::Unfinished("telling events ended by a panic".to_owned()));
    }
    Ok(())
}

impl Provisioner {
    fn is_wanted(&self, claim: &PersistentVolumeClaim) -> bool {
        annotation(claim, PROVISIONER) == Some(NAME)
            && annotation(claim, SELECTED_NODE) == Some(&self.config.node_name)
            && volume_name(claim).is_empty()
            && !is_deleting(claim)
    }

    async fn provision(&self, key: &str) -> Result<(), Error> {
        let Some(claim) = self.claims.get(key).filter(|claim| self.is_wanted(claim)) else { return Ok(()) };
        let Some(class) = self.classes.get(class_of_claim(&claim)) else { return Ok(()) };
        let name = format!("pvc-{}", claim.uid());
        if self.volumes.get(&name).is_some() {
            return Ok(());
        }
        let message = format!("External provisioner is provisioning volume for claim {key:?}");
        self.events.normal(&*claim, "Provisioning", message);
        let made = match refusal(&claim) {
            Some(why) => Err(why.to_owned()),
            None => self.make(&claim, &class, &name).await,
        };
        match made {
            Ok(()) => {
                let message = format!("Successfully provisioned volume {name}");
                self.events.normal(&*claim, "ProvisioningSucceeded", message);
                Ok(())
            }
            Err(why) => {
                let class = class.name();
                let message = format!("failed to provision volume with StorageClass {class:?}: {why}");
                self.events.warning(&*claim, "ProvisioningFailed", message.clone());
                match refusal(&claim) {
                    Some(_) => Ok(()),
                    None => Err(Error::Unfinished(message)),
                }
            }
        }
    }

    async fn make(
        &self,
        claim: &PersistentVolumeClaim,
        class: &StorageClass,
        name: &str,
    ) -> Result<(), String> {
        let node: Node =
            self.client.get("", &self.config.node_name).await.map_err(|error| error.to_string())?;
        let labels = node.metadata.labels.as_ref();
        let host = labels.and_then(|labels| labels.get(HOSTNAME)).map_or(node.name(), String::as_str);
        let path = self.config.root.join(format!("{name}_{}_{}", claim.namespace(), claim.name()));
        make_folder(&path).await.map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        let volume = volume_for(claim, class, host, &path.to_string_lossy());
        match self.client.create(&volume).await {
            Err(error) if !error.is_already_exists() => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    async fn remove(&self, name: &str) -> Result<(), Error> {
        let Some(volume) = self.volumes.get(name).filter(|volume| is_done(volume)) else { return Ok(()) };
        let Some(path) = folder(&volume, &self.config.root) else { return Ok(()) };
        match tokio::fs::remove_dir_all(&path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let message = format!("cannot remove {}: {error}", path.display());
                self.events.warning(&*volume, "VolumeFailedDelete", message.clone());
                return Err(Error::Unfinished(message));
            }
            _ => {}
        }
        if !is_deleting(&*volume) {
            let options = client::DeleteOptions::uid(volume.uid());
            match self.client.delete::<PersistentVolume>("", name, &options).await {
                Err(error) if !error.is_not_found() => return Err(error.into()),
                _ => {}
            }
        }
        let fresh: PersistentVolume = match self.client.get("", name).await {
            Err(error) if error.is_not_found() => return Ok(()),
            fresh => fresh?,
        };
        let mut freed = fresh;
        freed.metadata.finalizers.iter_mut().for_each(|all| all.retain(|finalizer| finalizer != FINALIZER));
        match self.client.update(&freed).await {
            Err(error) if !error.is_not_found() => Err(error.into()),
            _ => Ok(()),
        }
    }
}

/// For whatever user the container has.
async fn make_folder(path: &Path) -> io::Result<()> {
    tokio::fs::create_dir_all(path).await?;
    tokio::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).await
}
