//! Certificates that are issued again before they end, while everything that shows them goes on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use client::kubeconfig::Kubeconfig;
use controller_runtime::Clock;
use tokio_util::sync::CancellationToken;

use crate::certificates::Current;
use crate::pki::{self, Leaf, Names, Pki};

/// Certificates are looked at no more often than this, should one be due that cannot be issued.
const MIN_WAIT: Duration = Duration::from_secs(60);

/// A kubeconfig that is written again when its certificate is.
#[derive(Clone)]
pub struct KubeconfigFile {
    pub path: PathBuf,
    pub server: String,
    pub leaf: Leaf,
    /// Whether the file holds certificate and key, to be carried elsewhere, or names the files of this machine,
    /// which its reader takes anew when they change.
    pub holds_keys: bool,
}

/// The cluster's certificates, and all that must hear when one changes.
pub struct Renewal {
    pki: Mutex<Pki>,
    /// What is shown in handshakes.
    shown: BTreeMap<Leaf, Arc<Current>>,
    kubeconfigs: Vec<KubeconfigFile>,
    names: Names,
    clock: Clock,
}

impl Renewal {
    /// Shows these certificates in handshakes.
    pub fn new(pki: Pki, shown: &[Leaf], names: Names, clock: Clock) -> anyhow::Result<Self> {
        let current = |leaf: &Leaf| Ok((*leaf, Current::new(&pki.shown(*leaf))?));
        let shown = shown.iter().map(current).collect::<anyhow::Result<_>>()?;
        Ok(Renewal { pki: Mutex::new(pki), shown, kubeconfigs: Vec::new(), names, clock })
    }

    pub fn pki(&self) -> MutexGuard<'_, Pki> {
        self.pki.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A certificate as it is shown, now and after it was renewed.
    pub fn current(&self, leaf: Leaf) -> Arc<Current> {
        self.shown[&leaf].clone()
    }

    /// Writes a kubeconfig, now and whenever its certificate was renewed.
    pub fn keep(&mut self, file: KubeconfigFile) -> anyhow::Result<()> {
        self.write(&file)?;
        self.kubeconfigs.push(file);
        Ok(())
    }

    fn write(&self, file: &KubeconfigFile) -> anyhow::Result<()> {
        let pki = self.pki();
        if file.holds_keys {
            let pair = pki.pair(file.leaf);
            return pki::write_kubeconfig(&file.path, &file.server, pki.authority(), "admin", pair);
        }
        let mut config = Kubeconfig::single("trierarch", &file.server, pki.authority(), "", "");
        let (certificate, key) = pki.files(file.leaf);
        let user = &mut config.users[0].user;
        (user.client_certificate_data, user.client_key_data) = (None, None);
        (user.client_certificate, user.client_key) = (Some(certificate), Some(key));
        write_private(&file.path, &config)
    }

    /// Issues again what is due and tells who shows it. What was renewed.
    fn renew(&self) -> anyhow::Result<Vec<Leaf>> {
        let renewed = self.pki().renew(&self.names, self.clock.now())?;
        for leaf in &renewed {
            if let Some(current) = self.shown.get(leaf) {
                current.replace(&self.pki().shown(*leaf))?;
            }
        }
        for file in self.kubeconfigs.iter().filter(|file| renewed.contains(&file.leaf)) {
            self.write(file)?;
        }
        Ok(renewed)
    }

    /// Renews until the shutdown. What cannot be renewed now is tried again: until it ends, it serves.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) -> anyhow::Result<()> {
        loop {
            let now = self.clock.now();
            let due = self.pki().next_renewal().unwrap_or(now);
            let wait = Duration::try_from(due.duration_since(now)).unwrap_or_default().max(MIN_WAIT);
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                () = tokio::time::sleep(wait) => {}
            }
            match self.renew() {
                Ok(renewed) if renewed.is_empty() => {}
                Ok(renewed) => tracing::info!(?renewed, "certificates were renewed"),
                Err(error) => tracing::error!("certificates cannot be renewed: {error:#}"),
            }
        }
    }
}

/// A kubeconfig that only its owner may read.
pub fn write_private(path: &Path, config: &Kubeconfig) -> anyhow::Result<()> {
    pki::write_atomically(path, config.to_yaml()?.as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::Lives;
    use crate::pki::tests::names;

    /// Time goes by, nobody restarts anything, and no handshake ever meets a certificate that has ended.
    #[tokio::test(start_paused = true)]
    async fn what_is_shown_never_ends() {
        let dir = tempfile::tempdir().unwrap();
        let begun = tokio::time::Instant::now();
        let zero = jiff::Timestamp::from_second(1_800_000_000).unwrap();
        let clock = Clock::new(move || zero + begun.elapsed());
        let lives = Lives { authority: Duration::from_secs(40_000), leaf: Duration::from_secs(3600) };
        let pki = Pki::load_or_create(dir.path(), &names(), lives, clock.now()).unwrap();
        let mut renewal = Renewal::new(pki, &[Leaf::ApiServer], names(), clock.clone()).unwrap();
        let kubeconfig = dir.path().join("admin.kubeconfig");
        let server = "https://192.0.2.7:6443".to_owned();
        let admin = KubeconfigFile { path: kubeconfig.clone(), server, leaf: Leaf::Admin, holds_keys: true };
        renewal.keep(admin).unwrap();
        let shown = renewal.current(Leaf::ApiServer);
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(Arc::new(renewal).run(shutdown.clone()));
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..24 {
            tokio::time::sleep(Duration::from_secs(1800)).await;
            let config = Kubeconfig::read(&kubeconfig).unwrap().config(None).unwrap();
            let Some(client::https::Identity::Pem { certificate, .. }) = config.identity else { panic!() };
            let client_ends = pki::ends(std::str::from_utf8(&certificate).unwrap()).unwrap();
            let server_ends = shown.ends().unwrap();
            let now = clock.now().as_second();
            assert!(now < client_ends && now < server_ends, "{now} {client_ends} {server_ends}");
            seen.insert(server_ends);
        }
        assert!(seen.len() >= 10, "twelve hours of certificates that live for one: {seen:?}");
        shutdown.cancel();
        running.await.unwrap().unwrap();
    }

    #[test]
    fn a_kubeconfig_of_files_names_them() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::new(|| jiff::Timestamp::from_second(1_800_000_000).unwrap());
        let pki = Pki::load_or_create(dir.path(), &names(), Lives::default(), clock.now()).unwrap();
        let mut renewal = Renewal::new(pki, &[], names(), clock).unwrap();
        let path = dir.path().join("scheduler.kubeconfig");
        let server = "https://127.0.0.1:6443".to_owned();
        let file = KubeconfigFile { path: path.clone(), server, leaf: Leaf::Scheduler, holds_keys: false };
        renewal.keep(file).unwrap();
        let identity = Kubeconfig::read(&path).unwrap().config(None).unwrap().identity;
        let Some(client::https::Identity::Files { key, .. }) = identity else { panic!() };
        assert_eq!(key, dir.path().join("scheduler.key"));
    }
}
