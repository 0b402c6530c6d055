//! The content store: an OCI layout with names, and layers unpacked beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use sha2::{Digest, Sha256};

use super::Error;
use super::build::hex;
use super::format::{
    ConfigFile, Descriptor, INDEX_OCI, Manifest, REF_NAME, RunConfig, digest_hex, normalize, parse,
};
use super::unpack::unpack;

/// Marks a name whose content came from an archive rather than from its registry.
const IMPORTED: &str = "io.trierarch.imported";
/// In a layer's folder: since which start of the machine it is there, whole.
const BOOT: &str = "boot";
/// JSON documents of images are small; a larger one is an attack or a mistake.
pub(super) const MAX_JSON: u64 = 16 << 20;

/// An image as callers see it.
#[derive(Debug, Clone)]
pub struct ImageInfo {
    /// The digest of its configuration, which is what Kubernetes calls the image's id.
    pub id: String,
    pub manifest_digest: String,
    pub repo_tags: Vec<String>,
    pub repo_digests: Vec<String>,
    pub size: u64,
    pub run: RunConfig,
    pub diff_ids: Vec<String>,
}

#[derive(Debug, Clone)]
struct Name {
    manifest: Descriptor,
    imported: bool,
}

#[derive(Debug, Clone)]
struct Image {
    manifest: Descriptor,
    layers: Vec<Descriptor>,
    config: Descriptor,
    run: RunConfig,
    diff_ids: Vec<String>,
}

#[derive(Debug, Default, Clone)]
struct Index {
    /// By full reference.
    names: BTreeMap<String, Name>,
    /// By manifest digest. Several manifests may share a configuration, and so an id.
    images: BTreeMap<String, Image>,
}

/// The images of one engine. Its methods read and write files: call them off the async threads.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    boot: String,
    index: Mutex<Index>,
    /// One lock a layer that is being unpacked, so that two pods do not unpack it twice.
    unpacking: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
    /// How many pulls and imports store blobs that no image names yet.
    underway: Mutex<usize>,
}

/// A pull or an import, while which no blob is taken for garbage.
pub(super) struct Underway<'s>(&'s Store);

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        *self.0.underway() -= 1;
    }
}

impl Store {
    /// Opens the store at `root`, making it if it is not there, and clears what a crash left unfinished.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let store = Self {
            root: root.to_path_buf(),
            boot: boot.trim().to_owned(),
            index: Mutex::default(),
            unpacking: Mutex::default(),
            underway: Mutex::default(),
        };
        let _ = fs::remove_dir_all(store.tmp());
        for dir in [store.root.join("blobs/sha256"), store.root.join("layers"), store.tmp()] {
            fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
        }
        let layout = store.root.join("oci-layout");
        if !layout.exists() {
            fs::write(&layout, r#"{"imageLayoutVersion":"1.0.0"}"#).map_err(Error::io(&layout))?;
        }
        store.load()?;
        Ok(store)
    }

    fn load(&self) -> Result<(), Error> {
        let path = self.root.join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(Error::io(&path)(e)),
        };
        let index: Manifest = from_json(&bytes, "index.json")?;
        let mut loaded = self.lock();
        for mut entry in index.manifests {
            // An image whose files are damaged is as good as absent: it is pulled again.
            let Ok(image) = self.read_image(&entry) else { continue };
            loaded.images.insert(entry.digest.clone(), image);
            if let Some(name) = entry.annotations.remove(REF_NAME) {
                let imported = entry.annotations.remove(IMPORTED).is_some();
                loaded.names.insert(name, Name { manifest: entry, imported });
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn underway(&self) -> MutexGuard<'_, usize> {
        self.underway.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn begin(&self) -> Underway<'_> {
        *self.underway() += 1;
        Underway(self)
    }

    pub(super) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// The path of a blob.
    pub(super) fn blob(&self, digest: &str) -> Result<PathBuf, Error> {
        let hex = digest_hex(digest).ok_or_else(|| Error::Malformed(format!("digest {digest:?}")))?;
        Ok(self.root.join("blobs/sha256").join(hex))
    }

    pub(super) fn has_blob(&self, digest: &str) -> bool {
        self.blob(digest).is_ok_and(|path| path.exists())
    }

    /// Stores bytes under their digest; if `expected` is given they must have it.
    pub(super) fn put(&self, mut from: impl Read, expected: Option<&str>) -> Result<(String, u64), Error> {
        let mut file = self.temporary()?;
        let path = file.path.clone();
        let mut hasher = Sha256::new();
        let mut size = 0;
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let length = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::io(&path)(e)),
            };
            hasher.update(&buffer[..length]);
            size += length as u64;
            file.file.write_all(&buffer[..length]).map_err(Error::io(&path))?;
        }
        let actual = format!("sha256:{}", hex(&hasher.finalize()));
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            return Err(Error::Digest { what: "blob".to_owned(), expected: expected.to_owned(), actual });
        }
        file.commit(&self.blob(&actual)?)?;
        Ok((actual, size))
    }

    /// A temporary file that is gone unless it is committed.
    pub(super) fn temporary(&self) -> Result<Temporary, Error> {
        let path = self.tmp().join(uuid::Uuid::new_v4().simple().to_string());
        let file = File::create(&path).map_err(Error::io(&path))?;
        Ok(Temporary { path, file })
    }

    fn read_json<T: serde::de::DeserializeOwned>(&self, digest: &str) -> Result<T, Error> {
        let path = self.blob(digest)?;
        let file = File::open(&path).map_err(Error::io(&path))?;
        let mut bytes = Vec::new();
        file.take(MAX_JSON).read_to_end(&mut bytes).map_err(Error::io(&path))?;
        from_json(&bytes, digest)
    }

    fn read_image(&self, manifest: &Descriptor) -> Result<Image, Error> {
        let content: Manifest = self.read_json(&manifest.digest)?;
        let config =
            content.config.ok_or_else(|| Error::Malformed("the manifest has no config".to_owned()))?;
        let file: ConfigFile = self.read_json(&config.digest)?;
        if file.rootfs.diff_ids.len() != content.layers.len() {
            return Err(Error::Malformed("the config counts other layers than the manifest".to_owned()));
        }
        for layer in &content.layers {
            if !self.has_blob(&layer.digest) {
                return Err(Error::Malformed(format!("layer {} is missing", layer.digest)));
            }
        }
        let bare = Descriptor { annotations: BTreeMap::new(), ..manifest.clone() };
        Ok(Image {
            manifest: bare,
            layers: content.layers,
            config,
            run: file.config.unwrap_or_default(),
            diff_ids: file.rootfs.diff_ids,
        })
    }

    /// Gives a manifest whose blobs are all stored a name, or none, and returns the image's id.
    pub(super) fn register(
        &self,
        reference: Option<&str>,
        manifest: &Descriptor,
        imported: bool,
    ) -> Result<String, Error> {
        let image = self.read_image(manifest)?;
        let id = image.config.digest.clone();
        let mut index = self.lock();
        let mut next = index.clone();
        if let Some(reference) = reference {
            next.names.insert(reference.to_owned(), Name { manifest: image.manifest.clone(), imported });
        }
        next.images.insert(manifest.digest.clone(), image);
        // What cannot be written down is not there.
        self.save(&next)?;
        *index = next;
        Ok(id)
    }

    /// Writes the index whole: the old one stays until the new one is on disk.
    fn save(&self, index: &Index) -> Result<(), Error> {
        let mut manifests = Vec::new();
        for (reference, name) in &index.names {
            let mut entry = name.manifest.clone();
            entry.annotations.insert(REF_NAME.to_owned(), reference.clone());
            if name.imported {
                entry.annotations.insert(IMPORTED.to_owned(), "true".to_owned());
            }
            manifests.push(entry);
        }
        let named: BTreeSet<&str> = index.names.values().map(|name| name.manifest.digest.as_str()).collect();
        let nameless = index.images.values().filter(|image| !named.contains(image.manifest.digest.as_str()));
        manifests.extend(nameless.map(|image| image.manifest.clone()));
        let file = Manifest {
            schema_version: 2,
            media_type: INDEX_OCI.to_owned(),
            manifests,
            ..Manifest::default()
        };
        let bytes = serde_json::to_vec_pretty(&file).map_err(|e| Error::Malformed(e.to_string()))?;
        let mut temporary = self.temporary()?;
        temporary.file.write_all(&bytes).map_err(Error::io(&temporary.path))?;
        temporary.commit(&self.root.join("index.json"))
    }

    /// All images, one for each id.
    pub fn list(&self) -> Vec<ImageInfo> {
        let index = self.lock();
        let mut by_id: BTreeMap<&str, &Image> = BTreeMap::new();
        for image in index.images.values() {
            by_id.entry(&image.config.digest).or_insert(image);
        }
        by_id.values().map(|image| info(&index, image)).collect()
    }

    /// Finds an image by name, by name and digest, or by id (also shortened).
    pub fn find(&self, reference: &str) -> Option<ImageInfo> {
        let index = self.lock();
        find(&index, reference).map(|image| info(&index, image))
    }

    /// Whether a name's content came from an archive.
    pub(crate) fn was_imported(&self, reference: &str) -> bool {
        self.lock().names.get(reference).is_some_and(|name| name.imported)
    }

    /// Removes an image with all its names; one that is not there is not an error. What `in_use` names, the
    /// layers of containers, stays until they are gone.
    pub fn remove(&self, reference: &str, in_use: &BTreeSet<String>) -> Result<(), Error> {
        let mut index = self.lock();
        let Some(id) = find(&index, reference).map(|image| image.config.digest.clone()) else {
            return Ok(());
        };
        index.images.retain(|_, image| image.config.digest != id);
        let Index { names, images } = &mut *index;
        names.retain(|_, name| images.contains_key(&name.manifest.digest));
        // The files go first: a full disk has room for the index then. An image that the index names but whose files
        // are gone is as good as absent.
        let mut layers: BTreeSet<&str> = in_use.iter().filter_map(|digest| digest_hex(digest)).collect();
        let needed = index.images.values().flat_map(|image| &image.diff_ids);
        layers.extend(needed.filter_map(|digest| digest_hex(digest)));
        self.keep_only("layers", &layers)?;
        self.sweep_blobs(&index)?;
        self.save(&index)
    }

    /// Deletes what a pull or import stored that came to nothing.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        self.sweep_blobs(&self.lock())
    }

    /// Deletes the blobs that no image needs, unless somebody stores some for an image to come: then the next sweep
    /// finds them.
    fn sweep_blobs(&self, index: &Index) -> Result<(), Error> {
        let underway = self.underway();
        if *underway > 0 {
            return Ok(());
        }
        let all = index
            .images
            .values()
            .flat_map(|image| [&image.manifest, &image.config].into_iter().chain(&image.layers));
        let blobs = all.filter_map(|descriptor| digest_hex(&descriptor.digest)).collect();
        self.keep_only("blobs/sha256", &blobs)
    }

    fn keep_only(&self, folder: &str, names: &BTreeSet<&str>) -> Result<(), Error> {
        let folder = self.root.join(folder);
        for entry in fs::read_dir(&folder).map_err(Error::io(&folder))?.flatten() {
            let path = entry.path();
            if entry.file_name().to_str().is_some_and(|name| names.contains(name)) {
                continue;
            }
            let removed = match path.is_dir() {
                true => {
                    // What says that a layer is whole goes before its files do.
                    let _ = fs::remove_file(path.join(BOOT));
                    fs::remove_dir_all(&path)
                }
                false => fs::remove_file(&path),
            };
            removed.map_err(Error::io(path))?;
        }
        Ok(())
    }

    /// The unpacked layers of an image, the topmost first, unpacking those that are not yet.
    pub fn layers(&self, reference: &str) -> Result<Vec<PathBuf>, Error> {
        let image = {
            let index = self.lock();
            find(&index, reference).cloned().ok_or_else(|| Error::NotFound(reference.to_owned()))?
        };
        let mut paths = Vec::new();
        for (layer, diff_id) in image.layers.iter().zip(&image.diff_ids) {
            paths.push(self.unpacked(layer, diff_id)?);
        }
        paths.reverse();
        Ok(paths)
    }

    fn unpacked(&self, layer: &Descriptor, diff_id: &str) -> Result<PathBuf, Error> {
        let hex = digest_hex(diff_id).ok_or_else(|| Error::Malformed(format!("diff id {diff_id:?}")))?;
        let home = self.root.join("layers").join(hex);
        let is_current = || fs::read_to_string(home.join(BOOT)).is_ok_and(|boot| boot == self.boot);
        if is_current() {
            return Ok(home.join("fs"));
        }
        let gate = {
            let mut gates = self.unpacking.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            gates.entry(hex.to_owned()).or_default().clone()
        };
        let _gate = gate.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if is_current() {
            return Ok(home.join("fs"));
        }
        let fresh = self.tmp().join(uuid::Uuid::new_v4().simple().to_string());
        fs::create_dir_all(fresh.join("fs")).map_err(Error::io(&fresh))?;
        let done = self.unpack_into(layer, diff_id, &fresh);
        if done.is_err() {
            let _ = fs::remove_dir_all(&fresh);
        }
        done?;
        if home.exists() {
            fs::remove_dir_all(&home).map_err(Error::io(&home))?;
        }
        fs::rename(&fresh, &home).map_err(Error::io(&home))?;
        Ok(home.join("fs"))
    }

    fn unpack_into(&self, layer: &Descriptor, diff_id: &str, fresh: &Path) -> Result<(), Error> {
        let blob = self.blob(&layer.digest)?;
        let actual = unpack(File::open(&blob).map_err(Error::io(&blob))?, &fresh.join("fs"))?;
        if actual != diff_id {
            let what = format!("the content of layer {}", layer.digest);
            return Err(Error::Digest { what, expected: diff_id.to_owned(), actual });
        }
        let boot = fresh.join(BOOT);
        fs::write(&boot, &self.boot).map_err(Error::io(boot))
    }

    /// Bytes and inodes that the store takes.
    pub fn usage(&self) -> (u64, u64) {
        crate::stats::disk_usage(&self.root)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }
}

fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::Malformed(format!("{what}: {e}")))
}

fn find<'i>(index: &'i Index, reference: &str) -> Option<&'i Image> {
    let wanted = reference.strip_prefix("sha256:").unwrap_or(reference);
    let is_hex = wanted.len() >= 12 && wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hex {
        let by_id = |image: &&Image| {
            image.config.digest["sha256:".len()..].starts_with(wanted)
                || image.manifest.digest["sha256:".len()..] == *wanted
        };
        if let Some(image) = index.images.values().find(by_id) {
            return Some(image);
        }
    }
    let parsed = parse(reference).ok()?;
    if let Some(digest) = parsed.digest() {
        return index.images.get(digest);
    }
    index.images.get(&index.names.get(&parsed.whole())?.manifest.digest)
}

fn info(index: &Index, image: &Image) -> ImageInfo {
    let mut repo_tags = Vec::new();
    let mut repo_digests = BTreeSet::new();
    for (reference, name) in &index.names {
        let Some(named) = index.images.get(&name.manifest.digest) else { continue };
        if named.config.digest != image.config.digest {
            continue;
        }
        if !reference.contains('@') {
            repo_tags.push(reference.clone());
        }
        if let Ok(parsed) = parse(reference) {
            repo_digests.insert(format!(
                "{}/{}@{}",
                parsed.registry(),
                parsed.repository(),
                name.manifest.digest
            ));
        }
    }
    let size: u64 = image.layers.iter().map(|layer| layer.size).sum();
    ImageInfo {
        id: image.config.digest.clone(),
        manifest_digest: image.manifest.digest.clone(),
        repo_tags,
        repo_digests: repo_digests.into_iter().collect(),
        size: size + image.config.size + image.manifest.size,
        run: image.run.clone(),
        diff_ids: image.diff_ids.clone(),
    }
}

/// A file that is removed unless it becomes something.
pub(super) struct Temporary {
    pub path: PathBuf,
    pub file: File,
}

impl Temporary {
    /// Makes it durable and moves it to its place.
    pub(super) fn commit(self, to: &Path) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        fs::rename(&self.path, to).map_err(Error::io(to))?;
        let dir = to.parent().unwrap_or(Path::new("/"));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io(dir))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already if it was committed.
        let _ = fs::remove_file(&self.path);
    }
}

/// The full name of an archive's image, if what the archive says is one.
pub(super) fn archive_name(name: &str) -> Option<String> {
    // A bare tag, which some writers put there, names nothing.
    (name.contains('/') || name.contains(':')).then(|| normalize(name).ok()).flatten()
}
