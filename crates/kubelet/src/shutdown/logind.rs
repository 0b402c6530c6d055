//! logind, over the system's bus: who tells of shutdowns, and lets them be held up for a while.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use zbus::Connection;
use zbus::zvariant::OwnedFd;

/// Upstream: pkg/kubelet/nodeshutdown/systemd/inhibit_linux.go logindConfigDirectory
const SETTINGS: &str = "/etc/systemd/logind.conf.d";
const OUR_SETTINGS: &str = "99-kubelet.conf";
/// How often, and after which first wait, logind is asked whether it has read its settings: it does not tell.
const ASKS: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(100);
const SIGHUP: i32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the system's bus: {0}")]
    Bus(#[from] zbus::Error),
    #[error("{}: {source}", path.display())]
    Settings { path: PathBuf, source: std::io::Error },
    #[error(
        "node shutdown manager was timed out after {ASKS} attempts waiting for logind InhibitDelayMaxSec to update to \
         {wanted:?} (ShutdownGracePeriod), current value is {current:?}"
    )]
    Delay { wanted: Duration, current: Duration },
}

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<OwnedFd>;

    #[zbus(property(emits_changed_signal = "false"), name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> zbus::Result<u64>;

    #[zbus(signal)]
    fn prepare_for_shutdown(&self, begins: bool) -> zbus::Result<()>;
}

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Systemd {
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
}

/// Holds shutdowns up until it is dropped.
pub struct Lock {
    _held: OwnedFd,
}

pub struct Logind {
    manager: ManagerProxy<'static>,
    systemd: SystemdProxy<'static>,
    settings: PathBuf,
}

/// The machine's own.
pub async fn connect() -> Result<Logind, Error> {
    Logind::new(&Connection::system().await?, Path::new(SETTINGS)).await
}

impl Logind {
    pub async fn new(connection: &Connection, settings: &Path) -> Result<Self, Error> {
        let (manager, systemd) =
            tokio::try_join!(ManagerProxy::new(connection), SystemdProxy::new(connection))?;
        Ok(Logind { manager, systemd, settings: settings.to_path_buf() })
    }

    async fn delay(&self) -> Result<Duration, Error> {
        Ok(Duration::from_micros(self.manager.inhibit_delay_max_usec().await?))
    }

    /// Has logind wait for this long at least, where it would not.
    pub async fn allow_delay(&self, wanted: Duration) -> Result<(), Error> {
        if self.delay().await? >= wanted {
            return Ok(());
        }
        self.write_delay(wanted)?;
        self.systemd.kill_unit("systemd-logind.service", "all", SIGHUP).await?;
        let mut wait = FIRST_WAIT;
        for _ in 0..ASKS {
            if self.delay().await? >= wanted {
                return Ok(());
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        Err(Error::Delay { wanted, current: self.delay().await? })
    }

    fn write_delay(&self, wanted: Duration) -> Result<(), Error> {
        let path = self.settings.join(OUR_SETTINGS);
        let text = format!("# Kubelet logind override\n[Login]\nInhibitDelayMaxSec={}\n", wanted.as_secs());
        std::fs::create_dir_all(&self.settings)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(|source| Error::Settings { path, source })
    }

    /// Holds shutdowns up.
    pub async fn inhibit(&self) -> Result<Lock, Error> {
        let why = "Kubelet needs time to handle node shutdown";
        let held = self.manager.inhibit("shutdown", "kubelet", why, "delay").await?;
        Ok(Lock { _held: held })
    }

    /// Tells when a shutdown begins, and when it is called off.
    pub async fn shutdowns(&self) -> Result<Events, Error> {
        Ok(Events(self.manager.receive_prepare_for_shutdown().await?))
    }
}

pub struct Events(PrepareForShutdownStream);

impl Events {
    /// Whether a shutdown begins now, or is called off; `None` when the bus is gone.
    pub async fn next(&mut self) -> Option<bool> {
        loop {
            match self.0.next().await?.args() {
                Ok(arguments) => return Some(arguments.begins),
                Err(error) => tracing::warn!(%error, "a word of a shutdown that cannot be read"),
            }
        }
    }
}
