//! The scheduler's own functions, one pod after the other: choosing a node, taking its room, and preemption. They
//! are measured in processor time of their one thread, which other work of the machine does not disturb.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use api::Object;
use api::core::v1::{Node, Pod};
use scheduler::budgets::Budgets;
use scheduler::cluster::Cluster;
use scheduler::cycle::Scheduler;
use scheduler::{PodInfo, Profile, preemption};
use serde_json::{Value, json};

use super::shapes::{HIGH_PRIORITY, Shape, Size};
use crate::work::micros;

pub struct Measured {
    pub per_second: f64,
    pub p99_micros: f64,
}

pub fn run(shape: &Shape, size: &Size) -> anyhow::Result<Measured> {
    let mut bench =
        Bench { profile: Profile::default(), cluster: Cluster::default(), scheduler: Scheduler::new(1) };
    for number in 0..size.nodes {
        bench.cluster.set_node(Arc::new(Node::from_value(shape.node(number))?));
    }
    for (at, pods) in size.before.iter().enumerate() {
        for number in 0..pods.count {
            let pod = pod(&(pods.pod)(), pods.namespace, &format!("before-{at}-{number}"))?;
            bench.schedule(&Arc::new(PodInfo::new(pod.into())))?;
        }
    }
    let template = (size.pod)();
    let mut latencies = Vec::with_capacity(size.measured);
    let mut all = Duration::ZERO;
    for number in 0..size.measured {
        let pod = pod(&template, size.namespace, &crate::body::name(number))?;
        let begun = processor_time();
        bench.schedule(&Arc::new(PodInfo::new(pod.into())))?;
        let spent = processor_time().saturating_sub(begun);
        all += spent;
        latencies.push(micros(spent));
    }
    let measured = crate::work::Measured::new(size.measured, all, latencies, 0);
    Ok(Measured { per_second: measured.per_second(), p99_micros: measured.quantile(0.99) * 1e3 })
}

/// What this thread has spent so far.
fn processor_time() -> Duration {
    let spent = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(spent.tv_sec.unsigned_abs(), spent.tv_nsec as u32)
}

/// A pod as the API server would have it.
fn pod(template: &Value, namespace: &str, name: &str) -> anyhow::Result<Pod> {
    let mut pod = template.clone();
    pod["metadata"]["namespace"] = namespace.into();
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["uid"] = json!(name);
    if !pod["spec"]["priorityClassName"].is_null() {
        pod["spec"]["priority"] = HIGH_PRIORITY.into();
    }
    Ok(Pod::from_value(pod)?)
}

struct Bench {
    profile: Profile,
    cluster: Cluster,
    scheduler: Scheduler,
}

impl Bench {
    /// Places the pod, if need be in the place of others.
    fn schedule(&mut self, pod: &Arc<PodInfo>) -> anyhow::Result<()> {
        let placed = self.scheduler.place(&self.profile, pod, &mut self.cluster);
        let node = match placed {
            Ok(node) => node,
            Err(against) => {
                let start = self.scheduler.next_random() as usize;
                let (budgets, memo) = (Budgets::default(), &mut self.scheduler.memo);
                let (profile, cluster) = (&self.profile, &mut self.cluster);
                let places = preemption::places(profile, pod, cluster, &against, &budgets, start, memo);
                let best = places.ok().and_then(|places| preemption::best(&places));
                let best =
                    best.and_then(|place| preemption::candidate(profile, pod, cluster, place.node, &budgets));
                let Some(best) = best else {
                    bail!("{} fits nowhere: {against}", pod.key);
                };
                for victim in &best.victims {
                    self.cluster.remove_pod(&victim.key);
                }
                self.cluster.nominate(pod.clone(), &best.node);
                match self.scheduler.place(&self.profile, pod, &mut self.cluster) {
                    Ok(node) => node,
                    Err(against) => bail!("{} does not fit after preemption: {against}", pod.key),
                }
            }
        };
        self.cluster.withdraw(&pod.key);
        self.cluster.assume(pod.clone(), &node);
        Ok(())
    }
}
