//! One scheduling cycle: a pod and the cluster in, a node or the reasons against all nodes out.
//!
//! Upstream: pkg/scheduler/schedule_one.go

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::extender::Extender;
use crate::framework::{Filter, LooksAt, Refusal};
use crate::memo::{Known, Memo};
use crate::node::Load;
use crate::plugins::Point;
use crate::profile::{Profile, add_up};
use crate::{NodeInfo, PodInfo};

/// In clusters up to this size every node is looked at.
const MIN_NODES_TO_FIND: usize = 100;

/// Why no node will do. Displays as upstream: `0/3 nodes are available: 2 Insufficient cpu, …`.
#[derive(Debug, Default)]
pub struct Unschedulable {
    pub nodes: usize,
    /// How many nodes each reason speaks of.
    pub reasons: Vec<(Cow<'static, str>, usize)>,
    /// The plugins that refused.
    pub refused_by: Vec<&'static str>,
    /// Nodes, by index, on which evicting pods may help.
    pub resolvable: Vec<usize>,
    /// Why no node was even looked at.
    pub everywhere: Option<String>,
    /// What preemption has to say.
    pub preemption: Option<String>,
}

impl Unschedulable {
    /// One plugin refuses all nodes at once.
    fn everywhere(cluster: &Cluster, plugin: &'static str, refusal: &Refusal) -> Self {
        let nodes = cluster.turns();
        Unschedulable {
            nodes: nodes.len(),
            refused_by: vec![plugin],
            resolvable: if refusal.unresolvable { Vec::new() } else { nodes.to_vec() },
            everywhere: Some(refusal.words()),
            ..Unschedulable::default()
        }
    }

    pub fn count(&mut self, node: usize, plugin: &'static str, refusal: &Refusal) {
        if !refusal.unresolvable {
            self.resolvable.push(node);
        }
        if !self.refused_by.contains(&plugin) {
            self.refused_by.push(plugin);
        }
        refusal.reasons().for_each(|reason| self.add(reason, 1));
    }

    /// Takes in the refusals that a memo knows, of so many nodes each.
    pub fn count_known(&mut self, known: &Known, refused: &[usize]) {
        let some = known.refusals().iter().zip(refused).filter(|(_, nodes)| **nodes > 0);
        for ((plugin, refusal), nodes) in some {
            if !self.refused_by.contains(plugin) {
                self.refused_by.push(plugin);
            }
            refusal.reasons().for_each(|reason| self.add(reason, *nodes));
        }
    }

    /// There are few reasons, and thousands of nodes for each.
    #[expect(clippy::ptr_arg, reason = "a reason that is static is kept without a copy")]
    pub fn add(&mut self, reason: &Cow<'static, str>, nodes: usize) {
        let same = |known: &str| std::ptr::eq(known, &**reason) || known == &**reason;
        match self.reasons.iter_mut().find(|(known, _)| same(known)) {
            Some((_, count)) => *count += nodes,
            None => self.reasons.push((reason.clone(), nodes)),
        }
    }
}

impl fmt::Display for Unschedulable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Upstream: pkg/scheduler/scheduler.go ErrNoNodesAvailable
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available:", self.nodes)?;
        let mut reasons: Vec<String> =
            self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        reasons.extend(self.everywhere.clone());
        write!(f, " {}.", reasons.join(", "))?;
        match &self.preemption {
            Some(words) => write!(f, " preemption: {words}"),
            None => Ok(()),
        }
    }
}

struct Asked<'a> {
    plugin: &'static str,
    filter: Box<dyn Filter + 'a>,
    /// How often it was asked of a node as it is.
    times: Cell<u64>,
}

impl Asked<'_> {
    fn check(&self, node: &NodeInfo) -> Result<(), (&'static str, Refusal)> {
        self.times.set(self.times.get() + 1);
        self.filter.check(node).map_err(|refusal| (self.plugin, refusal))
    }
}

/// The filters that a pod's plugins left.
pub struct Filters<'a> {
    all: Vec<Asked<'a>>,
    /// How many of the first ones look at no single pods.
    leading: usize,
    /// How many of these are steady.
    steady: usize,
}

impl<'a> Filters<'a> {
    pub fn new(profile: &'a Profile, pod: &'a PodInfo, cluster: &'a Cluster) -> Self {
        let plugins = profile.plugins.iter().filter(|configured| configured.filters);
        let filters = plugins.filter_map(|configured| {
            let plugin = &configured.plugin;
            Some(Asked { plugin: plugin.name(), filter: plugin.filter(pod, cluster)?, times: Cell::new(0) })
        });
        let all: Vec<_> = filters.collect();
        let leading = all.iter().take_while(|asked| asked.filter.looks_at() != LooksAt::Pods).count();
        let steady = all.iter().take(leading).take_while(|asked| asked.filter.is_steady()).count();
        Filters { all, leading, steady }
    }

    /// The first filters, whose answers hold for pods that are alike.
    pub fn steady(&self) -> Vec<&'static str> {
        self.all[..self.steady].iter().map(|asked| asked.plugin).collect()
    }

    pub fn are_steady(&self) -> bool {
        self.steady == self.all.len()
    }

    /// What the steady ones say of the node, with the pods that wait for its room.
    pub fn check_steady(
        &self,
        pod: &PodInfo,
        cluster: &Cluster,
        node: &NodeInfo,
    ) -> Result<(), (&'static str, Refusal)> {
        let mut expected = expected_before(pod, cluster, node).peekable();
        let fuller = expected.peek().is_some().then(|| {
            let mut load = node.load.clone();
            expected.for_each(|other| load.add(other));
            load
        });
        // What bears the larger load bears the smaller.
        let load = fuller.as_ref().unwrap_or(&node.load);
        self.all[..self.steady].iter().try_for_each(|asked| {
            asked.times.set(asked.times.get() + 1);
            asked.filter.check_loaded(node, load).map_err(|refusal| (asked.plugin, refusal))
        })
    }

    /// What the others say of a node that the steady ones allow.
    fn check_rest(
        &mut self,
        pod: &PodInfo,
        cluster: &Cluster,
        node: usize,
    ) -> Result<(), (&'static str, Refusal)> {
        if self.are_steady() {
            return Ok(());
        }
        let node = cluster.node_at(node);
        if node.awaited {
            return self.check_with_nominated(pod, cluster, node);
        }
        self.all[self.steady..].iter().try_for_each(|asked| asked.check(node))
    }

    /// Whether some filter looks at single pods, so that a node's load alone does not say whether it will do.
    pub fn look_at_pods(&self) -> bool {
        self.leading < self.all.len()
    }

    /// What the filters before the first that looks at single pods would say of the node under another load.
    pub fn check_loaded(&self, node: &NodeInfo, load: &Load) -> Result<(), (&'static str, Refusal)> {
        let leading = &self.all[..self.leading];
        leading.iter().try_for_each(|asked| {
            asked.filter.check_loaded(node, load).map_err(|refusal| (asked.plugin, refusal))
        })
    }

    /// Whether filters of a load allow this one, on a node that will do in all else.
    pub fn bear(&self, node: &NodeInfo, load: &Load) -> bool {
        let mut of_load = self.all.iter().filter(|asked| asked.filter.looks_at() == LooksAt::Load);
        of_load.all(|asked| asked.filter.check_loaded(node, load).is_ok())
    }

    /// The first refusal, and whose.
    pub fn check(&self, node: &NodeInfo) -> Result<(), (&'static str, Refusal)> {
        self.all.iter().try_for_each(|asked| asked.check(node))
    }

    pub fn assume(&mut self, pod: &PodInfo, node: &NodeInfo, count: i64) {
        self.all.iter_mut().for_each(|asked| asked.filter.assume(pod, node, count));
    }

    /// Checks the node as it is, and also as it will be when the pods arrive that wait for its room.
    pub fn check_with_nominated(
        &mut self,
        pod: &PodInfo,
        cluster: &Cluster,
        node: &NodeInfo,
    ) -> Result<(), (&'static str, Refusal)> {
        if !node.awaited {
            return self.check(node);
        }
        let expected: Vec<_> = expected_before(pod, cluster, node).collect();
        if !expected.is_empty() && !self.look_at_pods() {
            // What bears the larger load bears the smaller.
            let mut load = node.load.clone();
            expected.iter().for_each(|other| load.add(other));
            return self.check_loaded(node, &load);
        }
        if !expected.is_empty() {
            let mut fuller = node.clone();
            for other in &expected {
                fuller.add_pod(Arc::clone(other));
                self.assume(other, node, 1);
            }
            let fits = self.check(&fuller);
            expected.iter().for_each(|other| self.assume(other, node, -1));
            fits?;
        }
        self.check(node)
    }
}

/// The pods, not less important than this one, that wait for room of the node.
pub fn expected_before<'a>(
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    node: &NodeInfo,
) -> impl Iterator<Item = &'a Arc<PodInfo>> {
    let waiting = if node.awaited { cluster.nominated(node.name()) } else { &[] };
    waiting.iter().filter(|other| other.priority >= pod.priority && other.key != pod.key)
}

/// Places pods, one after the other.
pub struct Scheduler {
    /// Where the search begins, so that all nodes get their turn.
    start: usize,
    /// Breaks ties: a small generator, seeded by the caller, so that a run can be repeated.
    random: u64,
    /// What the last cycle took.
    pub spent: Spent,
    /// What is known of nodes from pods before.
    pub memo: Memo,
}

/// What the steps of a cycle took, and which plugins were asked how often.
#[derive(Default)]
pub struct Spent {
    pub steps: Vec<(Point, &'static str, Duration)>,
    pub asked: Vec<(Point, &'static str, u64)>,
}

impl Spent {
    fn step(&mut self, point: Point, succeeded: bool, begun: Instant) {
        let status = if succeeded { "Success" } else { "Unschedulable" };
        self.steps.push((point, status, begun.elapsed()));
    }
}

impl Scheduler {
    pub fn new(seed: u64) -> Self {
        Scheduler { start: 0, random: seed | 1, spent: Spent::default(), memo: Memo::default() }
    }

    /// The same, with nothing known.
    #[cfg(test)]
    pub fn without_memo(&self) -> Self {
        Scheduler { start: self.start, random: self.random, spent: Spent::default(), memo: Memo::default() }
    }

    /// The name of the best node.
    pub fn place(
        &mut self,
        profile: &Profile,
        pod: &PodInfo,
        cluster: &mut Cluster,
    ) -> Result<String, Box<Unschedulable>> {
        profile.ask(pod, cluster);
        cluster.take_turns();
        let cluster = &*cluster;
        let feasible = self.feasible(profile, pod, cluster)?;
        Ok(self.choose(profile, pod, cluster, &feasible, &HashMap::new()))
    }

    /// The same, with extenders asked between the steps.
    pub async fn place_with(
        &mut self,
        extenders: &[Extender],
        profile: &Profile,
        pod: &PodInfo,
        cluster: &mut Cluster,
    ) -> Result<Result<String, Box<Unschedulable>>, String> {
        profile.ask(pod, cluster);
        cluster.take_turns();
        let cluster = &*cluster;
        let mut feasible = match self.feasible(profile, pod, cluster) {
            Ok(feasible) => feasible,
            Err(against) => return Ok(Err(against)),
        };
        let mut against = Unschedulable { nodes: cluster.turns().len(), ..Default::default() };
        let interested = || extenders.iter().filter(|extender| extender.is_interested(&pod.pod));
        for extender in interested() {
            match extender.filter(pod, &feasible).await {
                Ok(filtered) => {
                    feasible.retain(|node| filtered.nodes.iter().any(|name| name == node.name()));
                    for (name, (reason, unresolvable)) in filtered.failed {
                        let Some(at) = cluster.index_of(&name) else { continue };
                        let mut refusal = Refusal::new(reason);
                        refusal.unresolvable = unresolvable;
                        against.count(at, "", &refusal);
                    }
                }
                Err(error) if extender.is_ignorable() => {
                    tracing::info!(error, "an extender failed and is left out");
                }
                Err(error) => return Err(error),
            }
            if feasible.is_empty() {
                // Any change may make an extender think otherwise.
                against.refused_by.clear();
                return Ok(Err(Box::new(against)));
            }
        }
        let mut extra: HashMap<String, i64> = HashMap::new();
        for extender in interested() {
            for (name, score) in extender.scores(pod, &feasible).await {
                *extra.entry(name).or_default() += score;
            }
        }
        Ok(Ok(self.choose(profile, pod, cluster, &feasible, &extra)))
    }

    /// The nodes that will do: enough of them, or the one that was cleared for the pod.
    fn feasible<'a>(
        &mut self,
        profile: &Profile,
        pod: &PodInfo,
        cluster: &'a Cluster,
    ) -> Result<Vec<&'a NodeInfo>, Box<Unschedulable>> {
        self.spent = Spent::default();
        let begun = Instant::now();
        if !cluster.turns().is_empty()
            && let Some((plugin, refusal)) = profile.refuse_all(pod, cluster)
        {
            self.spent.step(Point::PreFilter, false, begun);
            return Err(Box::new(Unschedulable::everywhere(cluster, plugin, &refusal)));
        }
        let mut filters = Filters::new(profile, pod, cluster);
        self.spent.step(Point::PreFilter, true, begun);
        let begun = Instant::now();
        let found = self.among_filters(profile, pod, cluster, &mut filters);
        // Upstream: schedule_one.go findNodesThatPassFilters: that no node will do is no failure of the step
        self.spent.step(Point::Filter, true, begun);
        let asked = filters.all.iter().map(|asked| (Point::Filter, asked.plugin, asked.times.get()));
        self.spent.asked.extend(asked.filter(|(_, _, times)| *times > 0));
        found
    }

    fn among_filters<'a>(
        &mut self,
        profile: &Profile,
        pod: &PodInfo,
        cluster: &'a Cluster,
        filters: &mut Filters,
    ) -> Result<Vec<&'a NodeInfo>, Box<Unschedulable>> {
        // The node that was cleared for the pod is tried first.
        let nominated = cluster.nominated_to(&pod.key).or(pod.nominated_node());
        if let Some(node) = nominated.and_then(|name| cluster.node(name))
            && cluster.is_within(node.index)
            && filters.check_with_nominated(pod, cluster, node).is_ok()
        {
            return Ok(vec![node]);
        }
        if let Some((names, plugins)) = profile.narrow(pod) {
            return search_among(pod, cluster, filters, &names, &plugins);
        }
        let enough = nodes_to_find(cluster.turns().len(), profile.percentage_of_nodes);
        self.search(profile, pod, cluster, filters, enough)
    }

    /// The best of these; extenders' scores come on top of the plugins'.
    fn choose(
        &mut self,
        profile: &Profile,
        pod: &PodInfo,
        cluster: &Cluster,
        nodes: &[&NodeInfo],
        extra: &HashMap<String, i64>,
    ) -> String {
        if let [only] = nodes {
            return only.name().to_owned();
        }
        let begun = Instant::now();
        let scorers = profile.scorers(pod, cluster, nodes);
        self.spent.step(Point::PreScore, true, begun);
        let begun = Instant::now();
        let mut scores = add_up(&scorers, nodes);
        self.spent.step(Point::Score, true, begun);
        let asked = scorers.iter().map(|scorer| (Point::Score, scorer.plugin, nodes.len() as u64));
        self.spent.asked.extend(asked);
        for (score, node) in scores.iter_mut().zip(nodes) {
            *score += extra.get(node.name()).copied().unwrap_or(0);
        }
        self.best(&scores, nodes).name().to_owned()
    }

    /// Looks through the nodes until enough will do.
    fn search<'a>(
        &mut self,
        profile: &Profile,
        pod: &PodInfo,
        cluster: &'a Cluster,
        filters: &mut Filters,
        enough: usize,
    ) -> Result<Vec<&'a NodeInfo>, Box<Unschedulable>> {
        let turns = cluster.turns();
        let nodes = turns.len();
        let mut feasible = Vec::new();
        let mut against = Unschedulable { nodes, ..Default::default() };
        let mut looked_at = 0;
        let mut next = if nodes > 0 { self.start % nodes } else { 0 };
        let known = self.memo.of(&profile.scheduler_name, pod, filters.steady(), cluster.nodes().len());
        // How many nodes each of the known refusals speaks of.
        let mut refused: Vec<usize> = Vec::new();
        // Where it waits for room itself there is more room for it than for others of its kind.
        let own = cluster.nominated_to(&pod.key).and_then(|name| cluster.index_of(name));
        while looked_at < nodes && feasible.len() < enough {
            let at = turns[next];
            looked_at += 1;
            next = if next + 1 == nodes { 0 } else { next + 1 };
            let checked = if own == Some(at) {
                filters.check_with_nominated(pod, cluster, cluster.node_at(at))
            } else {
                let ask = || filters.check_steady(pod, cluster, cluster.node_at(at));
                if let Some(refusal) = known.verdict(at, cluster.version(at), ask) {
                    refused.resize(known.refusals().len(), 0);
                    refused[refusal] += 1;
                    if !known.refusals()[refusal].1.unresolvable {
                        against.resolvable.push(at);
                    }
                    continue;
                }
                filters.check_rest(pod, cluster, at)
            };
            match checked {
                Ok(()) => feasible.push(cluster.node_at(at)),
                Err((plugin, refusal)) => against.count(at, plugin, &refusal),
            }
        }
        self.start = next;
        against.count_known(known, &refused);
        if feasible.is_empty() { Err(Box::new(against)) } else { Ok(feasible) }
    }

    /// One of those with the highest score.
    fn best<'a>(&mut self, scores: &[i64], nodes: &[&'a NodeInfo]) -> &'a NodeInfo {
        let best = scores.iter().copied().max().unwrap_or(0);
        let equals = || (0..nodes.len()).filter(|at| scores[*at] == best);
        let chosen = self.next_random() as usize % equals().count();
        nodes[equals().nth(chosen).expect("it is less than there are")]
    }

    /// Xorshift: evenness is enough.
    pub fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}

/// Looks at the only nodes that can do.
///
/// Upstream: pkg/scheduler/schedule_one.go findNodesThatFitPod, framework/types.go Diagnosis
fn search_among<'a>(
    pod: &PodInfo,
    cluster: &'a Cluster,
    filters: &mut Filters,
    names: &[String],
    plugins: &[&'static str],
) -> Result<Vec<&'a NodeInfo>, Box<Unschedulable>> {
    let nodes = cluster.turns().len();
    let mut against = Unschedulable { nodes, refused_by: plugins.to_vec(), ..Default::default() };
    let mut feasible = Vec::new();
    let known: Vec<usize> =
        names.iter().filter_map(|name| cluster.index_of(name)).filter(|at| cluster.is_within(*at)).collect();
    for at in &known {
        let node = cluster.node_at(*at);
        match filters.check_with_nominated(pod, cluster, node) {
            Ok(()) => feasible.push(node),
            Err((plugin, refusal)) => against.count(*at, plugin, &refusal),
        }
    }
    if !feasible.is_empty() {
        return Ok(feasible);
    }
    if nodes > known.len() {
        let reason = format!("node(s) didn't satisfy plugin(s) [{}]", plugins.join(" "));
        against.add(&reason.into(), nodes - known.len());
    }
    Err(Box::new(against))
}

/// How many feasible nodes are enough, so that large clusters are not searched through for each pod.
///
/// Upstream: pkg/scheduler/schedule_one.go numFeasibleNodesToFind
fn nodes_to_find(nodes: usize, percentage: usize) -> usize {
    if nodes < MIN_NODES_TO_FIND {
        return nodes;
    }
    let percentage = match percentage {
        0 => 50_usize.saturating_sub(nodes / 125).max(5),
        given => given.min(100),
    };
    (nodes * percentage / 100).max(MIN_NODES_TO_FIND)
}

#[cfg(test)]
mod tests {
    use api::Object;
    use api::core::v1::{Node, Pod};
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, cpu: &str, labels: Value, taints: Value) -> Arc<Node> {
        let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints},
            "status": {"allocatable": {"cpu": cpu, "memory": "4Gi", "pods": "10"}}});
        Arc::new(Node::from_value(node).unwrap())
    }

    fn pod(name: &str, labels: Value, mut spec: Value) -> Arc<PodInfo> {
        if spec["containers"].is_null() {
            spec["containers"] = json!([{"name": "c", "resources": {"requests": {"cpu": "1"}}}]);
        }
        let pod = json!({"metadata": {"name": name, "namespace": "default", "labels": labels}, "spec": spec});
        Arc::new(PodInfo::new(Pod::from_value(pod).unwrap().into()))
    }

    fn cluster(nodes: &[Arc<Node>]) -> Cluster {
        let mut cluster = Cluster::default();
        nodes.iter().for_each(|node| drop(cluster.set_node(node.clone())));
        cluster
    }

    fn place(cluster: &mut Cluster, pod: &PodInfo) -> String {
        Scheduler::new(7).place(&Profile::default(), pod, cluster).unwrap_or_else(|e| e.to_string())
    }

    #[test]
    fn refusals_are_counted_in_upstream_words() {
        let taint = json!([{"key": "x", "effect": "NoSchedule"}]);
        let mut cluster = cluster(&[
            node("a", "0", json!({}), json!([])),
            node("b", "0", json!({}), json!([])),
            node("c", "4", json!({}), taint),
        ]);
        assert_eq!(
            place(&mut cluster, &pod("p", json!({}), json!({}))),
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 Insufficient cpu."
        );
        assert_eq!(
            place(&mut Cluster::default(), &pod("p", json!({}), json!({}))),
            "no nodes available to schedule pods"
        );
    }

    #[test]
    fn the_emptier_node_is_better() {
        let mut cluster =
            cluster(&[node("a", "4", json!({}), json!([])), node("b", "4", json!({}), json!([]))]);
        cluster.assume(pod("other", json!({}), json!({})), "a");
        assert_eq!(place(&mut cluster, &pod("p", json!({}), json!({}))), "b");
    }

    #[test]
    fn an_assumed_pod_takes_room_until_it_is_forgotten() {
        let mut cluster = cluster(&[node("a", "1", json!({}), json!([]))]);
        cluster.assume(pod("other", json!({}), json!({})), "a");
        let waiting = pod("p", json!({}), json!({}));
        assert_eq!(place(&mut cluster, &waiting), "0/1 nodes are available: 1 Insufficient cpu.");
        assert!(cluster.forget("default/other").is_some());
        assert_eq!(place(&mut cluster, &waiting), "a");
    }

    #[test]
    fn pods_of_a_group_keep_away_from_each_other_when_asked() {
        let labels = |name: &str| json!({"kubernetes.io/hostname": name});
        let mut cluster =
            cluster(&[node("a", "4", labels("a"), json!([])), node("b", "4", labels("b"), json!([]))]);
        let term = json!({"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"});
        let away = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}});
        for name in ["p1", "p2"] {
            let pod = pod(name, json!({"app": "web"}), away.clone());
            let node = place(&mut cluster, &pod);
            cluster.assume(pod, &node);
        }
        assert_eq!(cluster.nodes().map(|n| n.pods.len()).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(
            place(&mut cluster, &pod("p3", json!({"app": "web"}), away)),
            "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules."
        );
        assert_eq!(
            place(&mut cluster, &pod("p4", json!({"app": "web"}), json!({}))),
            "0/2 nodes are available: 2 node(s) didn't satisfy existing pods anti-affinity rules."
        );
    }

    #[test]
    fn pods_spread_evenly_over_zones() {
        let zone = |zone: &str| json!({"zone": zone});
        let mut cluster = cluster(&[
            node("a1", "8", zone("a"), json!([])),
            node("a2", "8", zone("a"), json!([])),
            node("b1", "8", zone("b"), json!([])),
            node("none", "8", json!({}), json!([])),
        ]);
        let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
        for at in 0..6 {
            let pod = pod(&format!("p{at}"), json!({"app": "web"}), spread.clone());
            let node = place(&mut cluster, &pod);
            cluster.assume(pod, &node);
        }
        let of = |name: &str| cluster.node(name).unwrap().pods.len();
        assert_eq!((of("a1") + of("a2"), of("b1"), of("none")), (3, 3, 0));
    }

    #[test]
    fn a_pod_that_names_its_node_is_tried_there_only() {
        let mut cluster = cluster(&[
            node("a", "4", json!({}), json!([])),
            node("b", "0", json!({}), json!([])),
            node("c", "4", json!({}), json!([])),
        ]);
        let on = |name: &str| {
            let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [name]}]});
            let required = json!({"nodeSelectorTerms": [term]});
            let nodes = json!({"requiredDuringSchedulingIgnoredDuringExecution": required});
            pod("p", json!({}), json!({"affinity": {"nodeAffinity": nodes}}))
        };
        assert_eq!(place(&mut cluster, &on("c")), "c");
        assert_eq!(
            place(&mut cluster, &on("b")),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't satisfy plugin(s) [NodeAffinity]."
        );
        assert_eq!(
            place(&mut cluster, &on("d")),
            "0/3 nodes are available: 3 node(s) didn't satisfy plugin(s) [NodeAffinity]."
        );
        let name = |name: &str| json!({"key": "metadata.name", "operator": "In", "values": [name]});
        let terms = json!({"nodeSelectorTerms": [{"matchFields": [name("a"), name("c")]}]});
        let both = json!({"requiredDuringSchedulingIgnoredDuringExecution": terms});
        let both = pod("p", json!({}), json!({"affinity": {"nodeAffinity": both}}));
        assert_eq!(place(&mut cluster, &both), "0/3 nodes are available: pod affinity terms conflict.");
    }

    #[test]
    fn room_that_was_made_is_kept_for_whom_it_was_made() {
        let mut cluster = cluster(&[node("a", "1", json!({}), json!([]))]);
        let important = pod("important", json!({}), json!({"priority": 10}));
        cluster.nominate(important.clone(), "a");
        let other = pod("other", json!({}), json!({}));
        assert_eq!(place(&mut cluster, &other), "0/1 nodes are available: 1 Insufficient cpu.");
        assert_eq!(place(&mut cluster, &important), "a");
        assert!(cluster.withdraw("default/important"));
        assert_eq!(place(&mut cluster, &other), "a");
    }

    #[test]
    fn nodes_of_all_zones_take_turns() {
        let zone = |zone: &str| json!({"topology.kubernetes.io/zone": zone});
        let mut cluster = cluster(&[
            node("a1", "4", zone("a"), json!([])),
            node("a2", "4", zone("a"), json!([])),
            node("a3", "4", zone("a"), json!([])),
            node("b1", "4", zone("b"), json!([])),
            node("none", "4", json!({}), json!([])),
        ]);
        let turns = |cluster: &mut Cluster| {
            cluster.take_turns();
            let names = cluster.turns().iter().map(|at| cluster.node_at(*at).name());
            names.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(turns(&mut cluster), "a1 b1 none a2 a3");
        cluster.remove_node("a1");
        assert_eq!(turns(&mut cluster), "a2 b1 none a3");
        cluster.set_node(node("a3", "4", zone("c"), json!([])));
        assert_eq!(turns(&mut cluster), "a2 a3 b1 none");
    }

    #[test]
    fn large_clusters_are_searched_in_part() {
        assert_eq!(nodes_to_find(50, 0), 50);
        assert_eq!(nodes_to_find(1000, 0), 420);
        assert_eq!(nodes_to_find(5000, 0), 500);
        assert_eq!(nodes_to_find(1000, 30), 300);
    }
}
