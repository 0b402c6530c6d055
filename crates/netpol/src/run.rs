//! The executor: events of the API server and questions of the CNI plugin become one transaction after another.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use api::core::v1::{Namespace as ApiNamespace, Pod as ApiPod, Service};
use api::networking::v1::NetworkPolicy;
use client::{Client, ListOptions};
use controller_runtime::{Cached, Event, Filter, Informer, InformerFactory};
use linux::nft::{Family, Steps, has_table};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::cluster::{self, Cluster};
use crate::object::{Namespace, Pod, PodFacts, Resolver, StoredPolicy};
use crate::sandboxes::{Files, Sandbox, Sandboxes};
use crate::table::TABLE;
use crate::{Config, Error};

/// How long events are gathered after the first: a rollout's come in bursts, and a transaction costs a process.
const GATHER: Duration = Duration::from_millis(5);
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// How long a new pod waits for the API server's newest word before what was heard so far has to do.
const REFRESH: Duration = Duration::from_secs(2);

const BY_ADDRESS: &str = "address";
/// The cluster's DNS: what upstream's addons call it.
const DNS_NAMESPACE: &str = "kube-system";
const DNS_NAME: &str = "kube-dns";

/// Keeps the table of a node.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    sandboxes: Option<Sandboxes>,
}

impl Agent {
    /// Listens for the CNI plugin from now on, so that whatever starts a pod after this finds somebody to ask.
    pub fn new(config: Config) -> Result<Self, Error> {
        let sandboxes = config.dir.as_deref().map(Sandboxes::bind).transpose()?;
        Ok(Agent { config, sandboxes })
    }

    /// Keeps the table as the API server's policies want it until shutdown.
    pub async fn run(self, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
        // The informers end with their own token, so that whatever way this ends they do.
        let stop = shutdown.child_token();
        let _stop_informers = stop.clone().drop_guard();
        let factory = InformerFactory::new(client.clone(), stop.clone());
        let view = View::new(&factory);
        let dirty = Arc::new(Dirty::default());
        view.subscribe(&dirty);
        factory.start();

        let (applied, in_force) = watch::channel(0);
        let files = self.sandboxes.as_ref().map(|sandboxes| sandboxes.files.clone());
        let follow = async {
            let mut ended = Ok(());
            if factory.synced().await {
                if let Some(files) = &files {
                    dirty.add_all(files);
                }
                let mut rules = Rules::new(self.config.node_name, view.clone());
                ended = tokio::select! {
                    () = stop.cancelled() => Ok(()),
                    error = rules.follow(&dirty, &applied) => Err(error),
                };
            }
            stop.cancel();
            ended
        };
        let serve = async {
            if let (Some(sandboxes), Some(files)) = (self.sandboxes, &files) {
                let asked = Asked {
                    client,
                    view: view.clone(),
                    dirty: dirty.clone(),
                    files: files.clone(),
                    in_force,
                };
                let asked = Arc::new(asked);
                let answer = |id: String| {
                    let (asked, stop) = (asked.clone(), stop.clone());
                    async move {
                        tokio::select! {
                            () = stop.cancelled() => Err("the agent is stopping".to_owned()),
                            answer = asked.answer(&id) => answer,
                        }
                    }
                };
                sandboxes.serve(answer, stop.clone()).await;
            }
        };
        let (ended, ()) = tokio::join!(follow, serve);
        factory.stopped().await;
        ended
    }
}

/// What the API server says.
#[derive(Clone)]
struct View {
    pods: Informer<Pod>,
    namespaces: Informer<Namespace>,
    policies: Informer<StoredPolicy>,
    dns: Informer<Service>,
}

impl View {
    fn new(factory: &InformerFactory) -> Self {
        let pods = factory.reduced::<ApiPod, Pod>(Filter::default());
        pods.add_index(BY_ADDRESS, |pod| pod.facts.addresses.iter().map(IpAddr::to_string).collect());
        let dns = Filter::namespace(DNS_NAMESPACE);
        View {
            pods,
            namespaces: factory.reduced::<ApiNamespace, Namespace>(Filter::default()),
            policies: factory.reduced::<NetworkPolicy, StoredPolicy>(Filter::default()),
            dns: factory.filtered(Filter { fields: Some(format!("metadata.name={DNS_NAME}")), ..dns }),
        }
    }

    fn subscribe(&self, dirty: &Arc<Dirty>) {
        let pods = dirty.clone();
        self.pods.subscribe(move |event| match event {
            Event::Updated { old, new } if old.facts == new.facts => {}
            _ => {
                pods.add(|changed| changed.pods.insert(event.object().key()));
            }
        });
        let namespaces = dirty.clone();
        self.namespaces.subscribe(move |event| match event {
            Event::Updated { old, new } if old.labels == new.labels => {}
            _ => {
                namespaces.add(|changed| changed.namespaces.insert(event.object().key()));
            }
        });
        let policies = dirty.clone();
        self.policies.subscribe(move |event| match event {
            Event::Updated { old, new } if old.policy == new.policy => {}
            _ => {
                policies.add(|changed| changed.policies.insert(event.object().key()));
            }
        });
        let dns = dirty.clone();
        self.dns.subscribe(move |_| {
            dns.add(|changed| changed.dns = true);
        });
    }
}

/// What changed since it was last taken.
#[derive(Default)]
struct Changed {
    pods: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    policies: BTreeSet<String>,
    dns: bool,
    sandboxes: BTreeMap<String, Option<Sandbox>>,
    /// Grows with every change: whoever made one waits until it is in force.
    ticket: u64,
}

#[derive(Default)]
struct Dirty {
    changed: Mutex<Changed>,
    wake: Notify,
}

impl Dirty {
    fn lock(&self) -> std::sync::MutexGuard<'_, Changed> {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add<R>(&self, change: impl FnOnce(&mut Changed) -> R) -> u64 {
        let mut changed = self.lock();
        change(&mut changed);
        changed.ticket += 1;
        self.wake.notify_one();
        changed.ticket
    }

    /// Reads a sandbox's file anew. Under the lock, so that of two readers the later one has the last word.
    fn add_sandbox(&self, files: &Files, id: &str) -> std::io::Result<u64> {
        let mut read = Ok(());
        let ticket = self.add(|changed| match files.read(id) {
            Ok(sandbox) => drop(changed.sandboxes.insert(id.to_owned(), sandbox)),
            Err(error) => read = Err(error),
        });
        read.map(|()| ticket)
    }

    fn add_all(&self, files: &Files) {
        self.add(|changed| match files.all() {
            Ok(all) => changed.sandboxes.extend(all.into_iter().map(|(id, sandbox)| (id, Some(sandbox)))),
            Err(error) => tracing::warn!(%error, "the sandboxes of this node cannot be listed"),
        });
    }

    /// Whether somebody waits.
    fn is_urgent(&self) -> bool {
        !self.lock().sandboxes.is_empty()
    }

    fn take(&self) -> Changed {
        let mut changed = self.lock();
        let ticket = changed.ticket;
        std::mem::replace(&mut *changed, Changed { ticket, ..Changed::default() })
    }
}

/// Answers the CNI plugin.
struct Asked {
    client: Client,
    view: View,
    dirty: Arc<Dirty>,
    files: Files,
    in_force: watch::Receiver<u64>,
}

impl Asked {
    /// Returns once the rules of the sandbox are in force; those of one that is gone, once they are gone.
    async fn answer(&self, id: &str) -> Result<(), String> {
        let mut in_force = self.in_force.clone();
        let stopped = |_| "the agent is stopping".to_owned();
        // Before the first transaction nothing is known.
        in_force.wait_for(|ticket| *ticket > 0).await.map_err(stopped)?;
        let unreadable = |error: std::io::Error| format!("the sandbox's file cannot be read: {error}");
        if let Some(sandbox) = self.files.read(id).map_err(unreadable)? {
            self.refresh(&sandbox).await?;
        }
        let mine = self.dirty.add_sandbox(&self.files, id).map_err(unreadable)?;
        in_force.wait_for(|ticket| *ticket >= mine).await.map_err(stopped)?;
        Ok(())
    }

    /// Hears what the API server says of a pod and of its namespace's policies now: each watch is a stream of its
    /// own, and a policy that is older than the pod may still be on its way when the pod is here.
    async fn refresh(&self, sandbox: &Sandbox) -> Result<(), String> {
        let Sandbox { namespace, name, uid, .. } = sandbox;
        let ask = async {
            let policies = ListOptions::default();
            tokio::try_join!(
                self.client.get::<ApiPod>(namespace, name),
                self.client.list::<NetworkPolicy>(Some(namespace), &policies)
            )
        };
        match tokio::time::timeout(REFRESH, ask).await {
            Ok(Ok((pod, policies))) => {
                self.view.pods.assume(pod.into());
                for policy in policies.items {
                    self.view.policies.assume(policy.into());
                }
            }
            Ok(Err(error)) if error.is_not_found() => {
                return Err(format!("the API server knows no pod {namespace}/{name}"));
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "a new pod gets the rules of the policies heard of so far")
            }
            Err(_) => tracing::warn!("a new pod gets the rules of the policies heard of so far"),
        }
        match self.view.pods.get(&sandbox.pod_key()) {
            Some(pod) if pod.has_uid(uid) => Ok(()),
            Some(_) => Err(format!("the pod {namespace}/{name} is another one by now")),
            None => Err(format!("the pod {namespace}/{name} is not known yet")),
        }
    }
}

/// A sandbox, and what was last heard of its pod: its containers outlive a pod that is deleted by force.
struct Known {
    sandbox: Sandbox,
    facts: Option<Arc<PodFacts>>,
}

/// The state of the kernel's table, as far as this process brought it there.
struct Rules {
    node_name: String,
    view: View,
    cluster: Cluster,
    sandboxes: BTreeMap<String, Known>,
    /// Sandboxes by the key of their pod.
    of_pod: BTreeMap<String, BTreeSet<String>>,
    /// Keys of pods by the addresses of their sandboxes.
    given: BTreeMap<IpAddr, String>,
    /// Whether the kernel's table is what `cluster` says; if not, it is written whole.
    is_in_step: bool,
}

impl Rules {
    fn new(node_name: String, view: View) -> Self {
        Rules {
            node_name,
            view,
            cluster: Cluster::default(),
            sandboxes: BTreeMap::new(),
            of_pod: BTreeMap::new(),
            given: BTreeMap::new(),
            is_in_step: false,
        }
    }

    /// Carries out every change. Ends only where nothing can be done ever: without nft.
    async fn follow(&mut self, dirty: &Dirty, applied: &watch::Sender<u64>) -> Error {
        let mut retry = FIRST_RETRY;
        dirty.add(|_| ());
        loop {
            dirty.wake.notified().await;
            if !dirty.is_urgent() {
                tokio::time::sleep(GATHER).await;
            }
            let changed = dirty.take();
            let ticket = changed.ticket;
            match apply(self.decide(changed)).await {
                Ok(()) => {
                    self.is_in_step = true;
                    retry = FIRST_RETRY;
                    applied.send_replace(ticket);
                }
                Err(error @ Error::Table(linux::nft::Error::Missing)) => return error,
                Err(error) => {
                    tracing::error!(%error, "the table of policies cannot be brought up to date; it will be written anew");
                    self.is_in_step = false;
                    tokio::time::sleep(retry).await;
                    retry = (retry * 2).min(LAST_RETRY);
                    dirty.wake.notify_one();
                }
            }
        }
    }

    /// Brings the decider up to date and returns what does the same to the kernel's table.
    fn decide(&mut self, changed: Changed) -> Steps {
        let Changed { mut pods, namespaces, policies, dns, sandboxes, .. } = changed;
        for (id, sandbox) in sandboxes {
            self.set_sandbox(id, sandbox, &mut pods);
        }
        for name in namespaces {
            let namespace = self.view.namespaces.get(&name);
            self.cluster.set_namespace(&name, namespace.map(|namespace| namespace.labels.clone()));
        }
        for name in policies {
            let policy = self.view.policies.get(&name);
            self.cluster.set_policy(&name, policy.map(|stored| stored.policy.clone()));
        }
        if dns {
            let service = self.view.dns.get_in(DNS_NAMESPACE, DNS_NAME);
            self.cluster.set_resolver(service.and_then(|service| Resolver::read(&service)));
        }
        for key in pods {
            self.set_pod(&key);
        }
        let change = self.cluster.settle();
        if self.is_in_step {
            change.steps()
        } else if has_table(Family::Inet, TABLE).unwrap_or(true) {
            // Policies are in force by what is there, and shall be at every moment.
            Steps::of_text(self.cluster.text())
        } else {
            self.cluster.steps()
        }
    }

    /// Notes a sandbox, or that it is gone. Whose rules that changes is added to `pods`.
    fn set_sandbox(&mut self, id: String, sandbox: Option<Sandbox>, pods: &mut BTreeSet<String>) {
        if self.sandboxes.get(&id).map(|known| &known.sandbox) == sandbox.as_ref() {
            return;
        }
        let before = self.sandboxes.remove(&id);
        if let Some(Known { sandbox: before, .. }) = &before {
            let key = before.pod_key();
            if let Some(ids) = self.of_pod.get_mut(&key) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.of_pod.remove(&key);
                }
            }
            self.given.retain(|address, owner| *owner != key || !before.addresses.contains(address));
            pods.insert(key);
            self.cluster.set_pod(&orphan(&id), None);
        }
        let addresses =
            before.iter().map(|known| &known.sandbox).chain(&sandbox).flat_map(|one| &one.addresses);
        for address in addresses {
            let holders = self.view.pods.by_index(BY_ADDRESS, &address.to_string());
            pods.extend(holders.iter().map(|pod| pod.key()));
        }
        if let Some(sandbox) = sandbox {
            let key = sandbox.pod_key();
            self.given.extend(sandbox.addresses.iter().map(|address| (*address, key.clone())));
            self.of_pod.entry(key.clone()).or_default().insert(id.clone());
            self.sandboxes.insert(id, Known { sandbox, facts: None });
            pods.insert(key);
        }
    }

    fn set_pod(&mut self, key: &str) {
        let pod = self.view.pods.get(key);
        let mut addresses = BTreeSet::new();
        for id in self.of_pod.get(key).into_iter().flatten() {
            let Some(known) = self.sandboxes.get_mut(id) else { continue };
            match pod.as_ref().filter(|pod| pod.has_uid(&known.sandbox.uid)) {
                Some(pod) => {
                    known.facts = Some(pod.facts.clone());
                    addresses.extend(known.sandbox.addresses.iter().copied());
                    self.cluster.set_pod(&orphan(id), None);
                }
                None => {
                    let addresses = known.sandbox.addresses.clone();
                    let facts = known.facts.clone();
                    let left = cluster::Pod { facts, addresses, is_subject: true, is_peer: false };
                    self.cluster.set_pod(&orphan(id), Some(left));
                }
            }
        }
        let seen = pod.map(|pod| pod.facts.clone()).filter(|facts| !facts.is_host_network);
        let model = seen.and_then(|facts| {
            if addresses.is_empty() && !facts.is_over {
                // An address that was given to a sandbox of another pod is no longer this one's.
                let is_free = |address: &&IpAddr| self.given.get(address).is_none_or(|owner| owner == key);
                addresses.extend(facts.addresses.iter().filter(is_free));
            }
            (!addresses.is_empty()).then(|| cluster::Pod {
                addresses: addresses.into_iter().collect(),
                is_subject: facts.node == self.node_name,
                is_peer: !facts.is_over,
                facts: Some(facts),
            })
        });
        self.cluster.set_pod(key, model);
    }
}

/// The name of a sandbox that is not its pod's any more; no pod has a space in its key.
fn orphan(id: &str) -> String {
    format!("sandbox {id}")
}

async fn apply(steps: Steps) -> Result<(), Error> {
    let applied = tokio::task::spawn_blocking(|| steps.apply()).await;
    Ok(applied.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?)
}
