//! A store whose values are encrypted on the way in and decrypted on the way out, each kind of object by the
//! providers that its keys' prefix is given. [`Providers`] writes what upstream writes, byte for byte, so that a
//! store can be moved between the two.
//!
//! What always holds: the first provider encrypts; every provider decrypts what it once wrote; a value that no
//! provider knows is an error and never served as it is.
//!
//! Upstream: apiserver/pkg/storage/value/transformer.go, encrypt/aes/aes.go, encrypt/secretbox/secretbox.go

use std::sync::Arc;

use aes::{Aes128, Aes192, Aes256};
use aes_gcm::aead::{Aead, KeyInit, Payload, consts::U12};
use aes_gcm::{AesGcm, Nonce};
use async_trait::async_trait;
use bytes::Bytes;
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit};
use crypto_secretbox::XSalsa20Poly1305;

use storage::{
    Change, Entry, Error, Expect, Follower, Range, RangeOptions, Result, Revision, Store, Watch, WatchSource,
};

/// Fills bytes that nobody can guess.
pub type Random = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

/// What every encrypted value begins with.
const ENCRYPTED: &[u8] = b"k8s:enc:";
const CBC_IV: usize = 16;
const GCM_NONCE: usize = 12;
const SECRETBOX_NONCE: usize = 24;

/// How values are encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// AES-CBC with PKCS#7 padding.
    AesCbc,
    /// AES-GCM, bound to the key that the value is stored at.
    AesGcm,
    /// XSalsa20 and Poly1305.
    Secretbox,
}

impl Algorithm {
    fn prefix(self) -> &'static str {
        match self {
            Algorithm::AesCbc => "k8s:enc:aescbc:v1:",
            Algorithm::AesGcm => "k8s:enc:aesgcm:v1:",
            Algorithm::Secretbox => "k8s:enc:secretbox:v1:",
        }
    }

    /// How many bytes a secret may have.
    ///
    /// Upstream: apiserver/pkg/apis/apiserver/validation/validation_encryption.go
    pub fn key_lengths(self) -> &'static [usize] {
        match self {
            Algorithm::AesCbc | Algorithm::Secretbox => &[32],
            Algorithm::AesGcm => &[16, 24, 32],
        }
    }
}

/// One key of a provider, or none: values as they are.
#[derive(Clone)]
pub enum Provider {
    Identity,
    Key { algorithm: Algorithm, name: String, secret: Vec<u8> },
}

impl Provider {
    fn prefix(&self) -> Vec<u8> {
        match self {
            Provider::Identity => Vec::new(),
            Provider::Key { algorithm, name, .. } => format!("{}{name}:", algorithm.prefix()).into_bytes(),
        }
    }

    fn encrypt(&self, key: &str, value: &[u8], random: &Random) -> Option<Vec<u8>> {
        let Provider::Key { algorithm, secret, .. } = self else { return Some(value.to_vec()) };
        let mut nonce = [0; SECRETBOX_NONCE];
        random(&mut nonce);
        let payload = Payload { msg: value, aad: key.as_bytes() };
        let (nonce, sealed) = match algorithm {
            Algorithm::AesCbc => {
                let iv = &nonce[..CBC_IV];
                let cipher = cbc::Encryptor::<Aes256>::new_from_slices(secret, iv).ok()?;
                (iv, cipher.encrypt_padded_vec_mut::<Pkcs7>(value))
            }
            Algorithm::AesGcm => {
                let nonce = &nonce[..GCM_NONCE];
                (nonce, with_gcm(secret, |cipher| cipher.seal(nonce, payload))?)
            }
            Algorithm::Secretbox => {
                let cipher = XSalsa20Poly1305::new_from_slice(secret).ok()?;
                (&nonce[..], cipher.encrypt((&nonce).into(), value).ok()?)
            }
        };
        Some([self.prefix().as_slice(), nonce, sealed.as_slice()].concat())
    }

    /// `sealed` is without the prefix.
    fn decrypt(&self, key: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let Provider::Key { algorithm, secret, .. } = self else { return Some(sealed.to_vec()) };
        let split = |length| sealed.split_at_checked(length);
        match algorithm {
            Algorithm::AesCbc => {
                let (iv, sealed) = split(CBC_IV)?;
                let cipher = cbc::Decryptor::<Aes256>::new_from_slices(secret, iv).ok()?;
                cipher.decrypt_padded_vec_mut::<Pkcs7>(sealed).ok()
            }
            Algorithm::AesGcm => {
                let (nonce, sealed) = split(GCM_NONCE)?;
                let payload = Payload { msg: sealed, aad: key.as_bytes() };
                with_gcm(secret, |cipher| cipher.open(nonce, payload))
            }
            Algorithm::Secretbox => {
                let (nonce, sealed) = split(SECRETBOX_NONCE)?;
                let nonce = <[u8; SECRETBOX_NONCE]>::try_from(nonce).ok()?;
                XSalsa20Poly1305::new_from_slice(secret).ok()?.decrypt((&nonce).into(), sealed).ok()
            }
        }
    }
}

/// AES-GCM of one of three key lengths.
trait Gcm {
    fn seal(&self, nonce: &[u8], payload: Payload<'_, '_>) -> Option<Vec<u8>>;
    fn open(&self, nonce: &[u8], payload: Payload<'_, '_>) -> Option<Vec<u8>>;
}

impl<C: Aead<NonceSize = U12>> Gcm for C {
    fn seal(&self, nonce: &[u8], payload: Payload<'_, '_>) -> Option<Vec<u8>> {
        self.encrypt(Nonce::from_slice(nonce), payload).ok()
    }

    fn open(&self, nonce: &[u8], payload: Payload<'_, '_>) -> Option<Vec<u8>> {
        self.decrypt(Nonce::from_slice(nonce), payload).ok()
    }
}

fn with_gcm(secret: &[u8], work: impl FnOnce(&dyn Gcm) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    match secret.len() {
        16 => work(&AesGcm::<Aes128, U12>::new_from_slice(secret).ok()?),
        24 => work(&AesGcm::<Aes192, U12>::new_from_slice(secret).ok()?),
        _ => work(&AesGcm::<Aes256, U12>::new_from_slice(secret).ok()?),
    }
}

/// The providers of some objects, the first of which writes.
#[derive(Clone)]
pub struct Providers(pub Vec<Provider>);

impl Providers {
    fn seal(&self, key: &str, value: &[u8], random: &Random) -> Result<Vec<u8>> {
        let first = self.0.first();
        first
            .and_then(|provider| provider.encrypt(key, value, random))
            .ok_or_else(|| damaged(key, "it cannot be encrypted"))
    }

    fn open(&self, key: &str, stored: &[u8]) -> Result<Vec<u8>> {
        for provider in &self.0 {
            let prefix = provider.prefix();
            // Values as they are begin with nothing; what is encrypted by another is not one of them.
            let plain_of_other = prefix.is_empty() && stored.starts_with(ENCRYPTED);
            if let Some(sealed) = stored.strip_prefix(prefix.as_slice()).filter(|_| !plain_of_other) {
                return provider.decrypt(key, sealed).ok_or_else(|| damaged(key, "it cannot be decrypted"));
            }
        }
        Err(damaged(key, "no matching prefix found"))
    }
}

fn damaged(key: &str, why: &str) -> Error {
    Error::Corrupt { what: format!("{key}: {why}") }
}

/// The providers of a key; `None` for values that are stored as they are.
pub type Choose = Arc<dyn Fn(&str) -> Option<Arc<Providers>> + Send + Sync>;

#[derive(Clone)]
struct Transform {
    choose: Choose,
    random: Random,
}

impl Transform {
    fn entry(&self, entry: Entry) -> Result<Entry> {
        match (self.choose)(&entry.key) {
            None => Ok(entry),
            Some(providers) => {
                let value = providers.open(&entry.key, &entry.value)?.into();
                Ok(Entry { value, ..entry })
            }
        }
    }

    fn change(&self, change: Arc<Change>) -> Result<Arc<Change>> {
        if (self.choose)(&change.key).is_none() {
            return Ok(change);
        }
        let Change { revision, key, value, previous } = (*change).clone();
        let value = value.map(|entry| self.entry(entry)).transpose()?;
        let previous = previous.map(|entry| self.entry(entry)).transpose()?;
        Ok(Arc::new(Change { revision, key, value, previous }))
    }

    fn changes(&self, changes: Vec<Arc<Change>>) -> Result<Vec<Arc<Change>>> {
        changes.into_iter().map(|change| self.change(change)).collect()
    }

    /// What a write that was refused found is told in the clear, too.
    fn refusal(&self, error: Error) -> Error {
        match error {
            Error::Conflict(Some(entry)) => match self.entry(entry) {
                Ok(entry) => Error::Conflict(Some(entry)),
                Err(error) => error,
            },
            other => other,
        }
    }
}

/// A store with encrypted values over another.
pub struct Encrypted {
    inner: Arc<dyn Store>,
    transform: Transform,
}

impl Encrypted {
    pub fn new(inner: Arc<dyn Store>, choose: Choose, random: Random) -> Self {
        Encrypted { inner, transform: Transform { choose, random } }
    }
}

#[async_trait]
impl Store for Encrypted {
    async fn revision(&self) -> Result<Revision> {
        self.inner.revision().await
    }

    async fn get(&self, key: &str, revision: Option<Revision>) -> Result<Option<Entry>> {
        self.inner.get(key, revision).await?.map(|entry| self.transform.entry(entry)).transpose()
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Range> {
        let mut range = self.inner.range(prefix, options).await?;
        let entries = range.entries.into_iter().map(|entry| self.transform.entry(entry));
        range.entries = entries.collect::<Result<_>>()?;
        Ok(range)
    }

    async fn put(&self, key: &str, value: Bytes, expect: Expect) -> Result<Entry> {
        let Some(providers) = (self.transform.choose)(key) else {
            return self.inner.put(key, value, expect).await;
        };
        let sealed = providers.seal(key, &value, &self.transform.random)?;
        let written = self.inner.put(key, sealed.into(), expect).await;
        written.map(|entry| Entry { value, ..entry }).map_err(|error| self.transform.refusal(error))
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<Option<(Entry, Revision)>> {
        let deleted = self.inner.delete(key, expect).await.map_err(|error| self.transform.refusal(error))?;
        deleted.map(|(entry, revision)| Ok((self.transform.entry(entry)?, revision))).transpose()
    }

    async fn put_and_delete(&self, key: &str, value: Bytes, expect: Expect) -> Result<(Entry, Revision)> {
        let sealed = match (self.transform.choose)(key) {
            Some(providers) => providers.seal(key, &value, &self.transform.random)?.into(),
            None => value.clone(),
        };
        let deleted = self.inner.put_and_delete(key, sealed, expect).await;
        deleted
            .map(|(entry, revision)| (Entry { value, ..entry }, revision))
            .map_err(|error| self.transform.refusal(error))
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        let inner = self.inner.watch(prefix, after).await?;
        Ok(Watch::new(Decrypted { inner, transform: self.transform.clone() }))
    }

    fn follow(&self, after: Revision, follower: Follower) -> Result<()> {
        let transform = self.transform.clone();
        let decrypted = move |changes: &[Arc<Change>]| match transform.changes(changes.to_vec()) {
            Ok(changes) => follower(&changes),
            // What was written a moment ago by this process is read by it: the keys are the same.
            Err(error) => tracing::error!(%error, "a change cannot be told"),
        };
        self.inner.follow(after, Box::new(decrypted))
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.inner.compact(revision).await
    }
}

struct Decrypted {
    inner: Watch,
    transform: Transform,
}

#[async_trait]
impl WatchSource for Decrypted {
    async fn next(&mut self) -> Result<Vec<Arc<Change>>> {
        let changes = self.inner.next().await?;
        self.transform.changes(changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use storage::memory::Memory;

    fn key(algorithm: Algorithm, name: &str, length: usize) -> Provider {
        Provider::Key { algorithm, name: name.into(), secret: vec![name.as_bytes()[0]; length] }
    }

    fn encrypted(inner: &Arc<Memory>, providers: Vec<Provider>) -> Encrypted {
        let providers = Arc::new(Providers(providers));
        let choose = move |key: &str| key.starts_with("/registry/secrets/").then(|| providers.clone());
        let random = |bytes: &mut [u8]| bytes.fill(7);
        Encrypted::new(inner.clone(), Arc::new(choose), Arc::new(random))
    }

    const SECRET: &str = "/registry/secrets/a/b";

    #[tokio::test]
    async fn what_is_written_is_read_and_lies_encrypted() {
        for (algorithm, length) in [
            (Algorithm::AesCbc, 32),
            (Algorithm::AesGcm, 16),
            (Algorithm::AesGcm, 24),
            (Algorithm::AesGcm, 32),
            (Algorithm::Secretbox, 32),
        ] {
            let inner = Arc::new(Memory::new());
            let store = encrypted(&inner, vec![key(algorithm, "k1", length), Provider::Identity]);
            let mut watch = store.watch("/registry/secrets/", 1).await.unwrap();
            let written = store.put(SECRET, "topsecret".into(), Expect::Absent).await.unwrap();
            assert_eq!(&written.value[..], b"topsecret");
            let stored = inner.get(SECRET, None).await.unwrap().unwrap().value;
            let prefix = format!("{}k1:", algorithm.prefix());
            assert!(stored.starts_with(prefix.as_bytes()), "{stored:?}");
            assert!(!stored.windows(9).any(|window| window == b"topsecret"));
            assert_eq!(&store.get(SECRET, None).await.unwrap().unwrap().value[..], b"topsecret");
            let range = store.range("/registry/", RangeOptions::default()).await.unwrap();
            assert_eq!(&range.entries[0].value[..], b"topsecret");
            let change = watch.next().await.unwrap().remove(0);
            assert_eq!(&change.value.as_ref().unwrap().value[..], b"topsecret");
            let refused = store.put(SECRET, "x".into(), Expect::Absent).await.unwrap_err();
            assert!(matches!(refused, Error::Conflict(Some(entry)) if &entry.value[..] == b"topsecret"));
            let (deleted, _) = store.delete(SECRET, Expect::Anything).await.unwrap().unwrap();
            assert_eq!(&deleted.value[..], b"topsecret");
            store.put("/registry/pods/a/b", "pod".into(), Expect::Absent).await.unwrap();
            assert_eq!(&inner.get("/registry/pods/a/b", None).await.unwrap().unwrap().value[..], b"pod");
        }
    }

    #[tokio::test]
    async fn keys_are_rotated_and_lost_keys_are_told() {
        let inner = Arc::new(Memory::new());
        inner.put(SECRET, "plain".into(), Expect::Absent).await.unwrap();
        let (old, new) = (key(Algorithm::AesCbc, "old", 32), key(Algorithm::Secretbox, "new", 32));
        let first = encrypted(&inner, vec![old.clone(), Provider::Identity]);
        let read = first.get(SECRET, None).await.unwrap().unwrap();
        assert_eq!(&read.value[..], b"plain", "what was there before is read");
        first.put(SECRET, read.value, Expect::Modified(read.modified)).await.unwrap();
        let second = encrypted(&inner, vec![new.clone(), old]);
        assert_eq!(&second.get(SECRET, None).await.unwrap().unwrap().value[..], b"plain");
        for left in [vec![new], vec![Provider::Identity], vec![key(Algorithm::AesCbc, "other", 32)]] {
            let error = encrypted(&inner, left).get(SECRET, None).await.unwrap_err();
            assert!(error.to_string().contains("/registry/secrets/a/b: no matching prefix found"), "{error}");
        }
        let same_name =
            Provider::Key { algorithm: Algorithm::AesCbc, name: "old".into(), secret: vec![0; 32] };
        assert!(encrypted(&inner, vec![same_name]).get(SECRET, None).await.is_err(), "a wrong key");
    }

    #[tokio::test]
    async fn a_value_of_gcm_belongs_to_its_key() {
        let inner = Arc::new(Memory::new());
        let store = encrypted(&inner, vec![key(Algorithm::AesGcm, "k", 32)]);
        store.put(SECRET, "mine".into(), Expect::Absent).await.unwrap();
        let stored = inner.get(SECRET, None).await.unwrap().unwrap().value;
        inner.put("/registry/secrets/a/c", stored, Expect::Absent).await.unwrap();
        assert!(store.get("/registry/secrets/a/c", None).await.is_err(), "moved by someone without the key");
    }
}
