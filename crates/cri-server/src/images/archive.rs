//! Importing archives: OCI layouts and what `docker save` writes, as tar, gzip or zstd.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;

use super::Error;
use super::format::{
    CONFIG_OCI, CONTAINERD_NAME, Descriptor, LAYER_OCI, MANIFEST_OCI, Manifest, REF_NAME, for_this_machine,
};
use super::store::{MAX_JSON, Store, archive_name};
use super::unpack::decompressed;

/// As many files as an archive may hold; each is a blob or a small JSON document.
const MAX_ENTRIES: usize = 10_000;

/// One image of `docker save`'s manifest.json.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// What was read of an archive: where each file's bytes went.
#[derive(Debug, Default)]
struct Contents {
    blobs: BTreeMap<String, (String, u64)>,
    links: BTreeMap<String, String>,
    index: Option<Vec<u8>>,
    docker: Option<Vec<u8>>,
}

impl Contents {
    fn blob(&self, path: &str) -> Result<&(String, u64), Error> {
        let linked = self.links.get(path).map_or(path, String::as_str);
        self.blobs.get(linked).ok_or_else(|| Error::Malformed(format!("the archive has no {path}")))
    }
}

impl Store {
    /// Imports every image of an archive and returns their names, or ids where the archive names none.
    pub fn import(&self, archive: impl Read + Send) -> Result<Vec<String>, Error> {
        let underway = self.begin();
        let imported = self.import_all(archive);
        drop(underway);
        if imported.is_err()
            && let Err(error) = self.sweep()
        {
            tracing::warn!(%error, "cannot delete what an import left");
        }
        imported
    }

    fn import_all(&self, archive: impl Read + Send) -> Result<Vec<String>, Error> {
        let contents = self.read_archive(archive)?;
        let mut imported = Vec::new();
        if let Some(index) = &contents.index {
            let index: Manifest = json(index, "index.json")?;
            for entry in &index.manifests {
                imported.extend(self.import_entry(entry)?);
            }
        } else if let Some(docker) = &contents.docker {
            let images: Vec<DockerImage> = json(docker, "manifest.json")?;
            for image in images {
                imported.extend(self.import_docker(&contents, &image)?);
            }
        } else {
            return Err(Error::Malformed("the archive has neither index.json nor manifest.json".to_owned()));
        }
        Ok(imported)
    }

    /// Imports a file.
    pub fn import_file(&self, path: &Path) -> Result<Vec<String>, Error> {
        self.import(File::open(path).map_err(Error::io(path))?)
    }

    fn read_archive(&self, archive: impl Read + Send) -> Result<Contents, Error> {
        let unreadable = |e: io::Error| Error::Malformed(format!("the archive cannot be read: {e}"));
        let mut archive = tar::Archive::new(decompressed(archive).map_err(unreadable)?);
        let mut contents = Contents::default();
        for (count, entry) in archive.entries().map_err(unreadable)?.enumerate() {
            if count >= MAX_ENTRIES {
                return Err(Error::Malformed("the archive has too many files".to_owned()));
            }
            let mut entry = entry.map_err(unreadable)?;
            let path = entry.path().map_err(unreadable)?.display().to_string();
            let path = path.trim_start_matches("./").to_owned();
            match entry.header().entry_type() {
                tar::EntryType::Regular => {}
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    if let Some(target) = entry.link_name().map_err(unreadable)? {
                        // docker save links a repeated layer as `../<id>/layer.tar`.
                        let target = target.display().to_string();
                        contents.links.insert(path, target.trim_start_matches("../").to_owned());
                    }
                    continue;
                }
                _ => continue,
            }
            match path.as_str() {
                "index.json" => contents.index = Some(small(&mut entry).map_err(unreadable)?),
                "manifest.json" => contents.docker = Some(small(&mut entry).map_err(unreadable)?),
                "oci-layout" | "repositories" => {}
                _ => {
                    let expected = path.strip_prefix("blobs/sha256/").map(|hex| format!("sha256:{hex}"));
                    let stored = self.put(&mut entry, expected.as_deref())?;
                    contents.blobs.insert(path, stored);
                }
            }
        }
        Ok(contents)
    }

    fn import_entry(&self, entry: &Descriptor) -> Result<Option<String>, Error> {
        let name = [CONTAINERD_NAME, REF_NAME].iter().find_map(|key| entry.annotations.get(*key));
        let name = name.and_then(|name| archive_name(name));
        let path = self.blob(&entry.digest)?;
        let content: Manifest = json(&std::fs::read(&path).map_err(Error::io(&path))?, &entry.digest)?;
        let manifest = if content.config.is_some() {
            entry.clone()
        } else {
            // An attestation or an image for other machines is passed over.
            match for_this_machine(&content.manifests) {
                Some(chosen) if self.has_blob(&chosen.digest) => chosen.clone(),
                _ => return Ok(None),
            }
        };
        let id = self.register(name.as_deref(), &manifest, true)?;
        Ok(Some(name.unwrap_or(id)))
    }

    /// An image of `docker save` has no manifest; one is written for it.
    fn import_docker(&self, contents: &Contents, image: &DockerImage) -> Result<Vec<String>, Error> {
        let descriptor = |media_type: &str, path: &str| -> Result<Descriptor, Error> {
            let (digest, size) = contents.blob(path)?.clone();
            Ok(Descriptor { media_type: media_type.to_owned(), digest, size, ..Descriptor::default() })
        };
        let layers: Result<Vec<Descriptor>, Error> =
            image.layers.iter().map(|path| descriptor(LAYER_OCI, path)).collect();
        let manifest = Manifest {
            schema_version: 2,
            media_type: MANIFEST_OCI.to_owned(),
            config: Some(descriptor(CONFIG_OCI, &image.config)?),
            layers: layers?,
            manifests: Vec::new(),
        };
        let bytes = serde_json::to_vec(&manifest).map_err(|e| Error::Malformed(e.to_string()))?;
        let (digest, size) = self.put(bytes.as_slice(), None)?;
        let manifest =
            Descriptor { media_type: MANIFEST_OCI.to_owned(), digest, size, ..Descriptor::default() };
        let tags = image.repo_tags.iter().flatten();
        let names: Vec<String> = tags.filter_map(|tag| archive_name(tag)).collect();
        if names.is_empty() {
            return Ok(vec![self.register(None, &manifest, true)?]);
        }
        for name in &names {
            self.register(Some(name), &manifest, true)?;
        }
        Ok(names)
    }
}

fn small(entry: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    entry.take(MAX_JSON).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8], what: &str) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|e| Error::Malformed(format!("{what}: {e}")))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::images::{BuildConfig, BuildFile, build};

    fn archive() -> Vec<u8> {
        let file = BuildFile { path: "/bin/hello".into(), mode: 0o755, bytes: b"#!".to_vec() };
        let config =
            BuildConfig { entrypoint: vec!["/bin/hello".into()], user: "7".into(), ..Default::default() };
        build("example.org/hello:v1", &[file], &config).unwrap()
    }

    #[test]
    fn what_is_built_can_be_imported_found_unpacked_and_removed() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.import(archive().as_slice()).unwrap(), ["example.org/hello:v1"]);
        let store = Store::open(dir.path()).unwrap();
        let image = store.find("example.org/hello:v1").unwrap();
        assert_eq!((image.run.user.as_str(), image.diff_ids.len()), ("7", 1));
        assert_eq!(store.find(&image.id).unwrap().id, image.id);
        assert_eq!(store.find(&image.repo_digests[0]).unwrap().id, image.id);
        let layers = store.layers(&image.id).unwrap();
        assert!(layers[0].join("bin/hello").exists());
        let in_use: BTreeSet<String> = image.diff_ids.iter().cloned().collect();
        store.remove("example.org/hello:v1", &in_use).unwrap();
        assert!(store.find(&image.id).is_none());
        assert!(layers[0].exists(), "a container still uses it");
        assert_eq!(std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count(), 0);
    }

    #[test]
    fn a_blob_that_is_not_its_digest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut bytes = archive();
        let at = bytes.windows(3).position(|window| window == b"#!\0").unwrap();
        bytes[at] = b'X';
        assert!(matches!(store.import(bytes.as_slice()), Err(Error::Digest { .. })));
        assert!(store.import(b"not an archive".as_slice()).is_err());
        assert_eq!(std::fs::read_dir(store.tmp()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_disk_takes_no_image_and_lets_images_go() {
        let dir = tempfile::tempdir().unwrap();
        linux::mounts::mount_tmpfs(dir.path(), rustix::mount::MountFlags::empty(), "size=1m")
            .expect("mounting needs root");
        let store = Store::open(&dir.path().join("images")).unwrap();
        let blobs = || std::fs::read_dir(store.root().join("blobs/sha256")).unwrap().count();
        store.import(archive().as_slice()).unwrap();
        let before = blobs();
        // The small files before it have room.
        let bytes = (0..2_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let file = BuildFile { path: "/large".into(), mode: 0o644, bytes };
        let large = build("example.org/large:v1", &[file], &BuildConfig::default()).unwrap();
        let refused = store.import(large.as_slice()).unwrap_err();
        assert!(refused.is_storage_full(), "{refused:?}");
        assert_eq!(blobs(), before);

        let mut filler = File::create(dir.path().join("filler")).unwrap();
        while std::io::Write::write_all(&mut filler, &[1; 512]).is_ok() {}
        assert!(store.put(b"x".as_slice(), None).unwrap_err().is_storage_full());
        store.remove("example.org/hello:v1", &BTreeSet::new()).unwrap();
        assert_eq!(blobs(), 0);
        assert!(Store::open(store.root()).unwrap().list().is_empty());
        drop(filler);
        linux::mounts::unmount_lazy(dir.path()).unwrap();
    }
}
