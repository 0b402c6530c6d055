//! A logind of our own at the other end of a bus without a bus, and a pod that is to go.

use std::os::fd::OwnedFd;
use std::sync::Mutex;

use serde_json::{Value, json};
use zbus::connection::Builder;
use zbus::object_server::SignalEmitter;

use super::*;
use crate::worker::tests::{Bench, phase};

const PATH: &str = "/org/freedesktop/login1";

/// What both managers are asked.
struct Machine {
    delay: Arc<Mutex<u64>>,
    /// The other ends of locks: they close with them.
    locks: tokio::sync::mpsc::UnboundedSender<OwnedFd>,
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Machine {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::zvariant::OwnedFd {
        let why_expected = "Kubelet needs time to handle node shutdown";
        assert_eq!([what, who, why, mode], ["shutdown", "kubelet", why_expected, "delay"]);
        let (read, write) = rustix::pipe::pipe().unwrap();
        self.locks.send(read).unwrap();
        write.into()
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> u64 {
        *self.delay.lock().unwrap()
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(emitter: &SignalEmitter<'_>, begins: bool) -> zbus::Result<()>;
}

struct Systemd(Arc<Mutex<u64>>);

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) {
        assert_eq!((name, whom, signal), ("systemd-logind.service", "all", 1));
        *self.0.lock().unwrap() = 30_000_000;
    }
}

struct Bus {
    server: zbus::Connection,
    logind: Logind,
    locks: tokio::sync::mpsc::UnboundedReceiver<OwnedFd>,
    settings: tempfile::TempDir,
}

async fn bus() -> Bus {
    let (ours, theirs) = tokio::net::UnixStream::pair().unwrap();
    let (locks, taken) = tokio::sync::mpsc::unbounded_channel();
    let delay = Arc::new(Mutex::new(5_000_000));
    let server = Builder::unix_stream(theirs)
        .server(zbus::Guid::generate())
        .unwrap()
        .p2p()
        .serve_at(PATH, Machine { delay: delay.clone(), locks })
        .unwrap()
        .serve_at("/org/freedesktop/systemd1", Systemd(delay))
        .unwrap()
        .build();
    let (server, client) = tokio::try_join!(server, Builder::unix_stream(ours).p2p().build()).unwrap();
    let settings = tempfile::tempdir().unwrap();
    let logind = Logind::new(&client, settings.path()).await.unwrap();
    Bus { server, logind, locks: taken, settings }
}

impl Bus {
    async fn tell(server: &zbus::Connection, begins: bool) {
        let emitter = SignalEmitter::new(server, PATH).unwrap();
        Machine::prepare_for_shutdown(&emitter, begins).await.unwrap();
    }
}

async fn is_closed(lock: OwnedFd) -> bool {
    tokio::task::spawn_blocking(move || rustix::io::read(&lock, &mut [0; 1]).unwrap() == 0).await.unwrap()
}

#[tokio::test]
async fn pods_end_before_the_shutdown_goes_on() {
    let spec = json!({
        "priority": 5, "terminationGracePeriodSeconds": 60,
        "containers": [{"name": "web", "image": "present"}],
    });
    let mut bench = Bench::new(spec).await;
    bench.status("the pod runs", phase("Running")).await;
    bench.core.pods.lock().unwrap().insert(bench.uid.clone(), bench.desired.borrow().pod.clone());
    let Bus { server, logind, mut locks, settings } = bus().await;
    let periods = [Period { priority: 0, seconds: 20 }, Period { priority: 10, seconds: 10 }];
    let core = bench.core.clone();
    let watching = tokio::spawn(async move {
        let _ = watch_machine(&core, &periods, logind).await;
    });
    let lock = locks.recv().await.unwrap();
    let written = std::fs::read_to_string(settings.path().join("99-kubelet.conf")).unwrap();
    assert_eq!(written, "# Kubelet logind override\n[Login]\nInhibitDelayMaxSec=30\n");
    assert_eq!(bench.core.shutdown.refusal(), None);
    // It listens from after it has taken the lock: only then a call is answered in order.
    let mut begun = bench.core.shutdown.watch();
    while !*begun.borrow_and_update() {
        Bus::tell(&server, true).await;
        let _ = tokio::time::timeout(Duration::from_millis(50), begun.changed()).await;
    }
    assert!(is_closed(lock).await, "the shutdown goes on");
    assert_eq!(bench.core.shutdown.refusal().unwrap().reason, "NodeShutdown");
    let calls = bench.runtime.calls();
    assert!(calls.contains(&"stop web-0 20s".to_owned()), "{calls:?}");
    let told = |status: &Value| {
        let conditions = status["conditions"].as_array().into_iter().flatten();
        let disrupted = conditions.into_iter().any(|condition| {
            condition["type"] == "DisruptionTarget" && condition["reason"] == "TerminationByKubelet"
        });
        status["phase"] == "Failed"
            && status["reason"] == "Terminated"
            && status["message"] == MESSAGE
            && disrupted
    };
    bench.status("the pod has failed", told).await;
    let record = Record::read(bench.core.paths.root());
    assert!(record.start.is_some() && record.end.is_some());

    Bus::tell(&server, false).await;
    begun.wait_for(|begun| !begun).await.unwrap();
    assert!(locks.recv().await.is_some(), "the next shutdown is held up again");
    watching.abort();
    bench.delete(0).await;
}
