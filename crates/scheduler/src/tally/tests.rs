use api::core::v1::Node;
use serde_json::{Value, json};

use super::*;
use crate::cluster::Cluster;
use crate::testing::pod_info;

/// Small and even enough: what it gives is fixed by the seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }
}

fn node(name: usize, zone: Option<usize>) -> Arc<Node> {
    let mut labels = json!({ "host": format!("n{name}") });
    if let Some(zone) = zone {
        labels["zone"] = format!("z{zone}").into();
    }
    let node = json!({"metadata": {"name": format!("n{name}"), "labels": labels}});
    Arc::new(Node::from_value(node).unwrap())
}

fn pod(name: usize, app: usize, spec: Value) -> Arc<PodInfo> {
    pod_info(json!({"metadata": {"name": format!("p{name}"), "namespace": "default",
        "labels": {"app": format!("a{app}")}}, "spec": spec}))
}

fn term(app: usize, topology: &str) -> Value {
    json!({"labelSelector": {"matchLabels": {"app": format!("a{app}")}}, "topologyKey": topology})
}

fn affinity(field: &str, app: usize, topology: &str) -> Value {
    let terms = json!({"requiredDuringSchedulingIgnoredDuringExecution": [term(app, topology)]});
    json!({"affinity": { field: terms }})
}

/// A pod that asks all kinds of questions about one app.
fn asking(app: usize) -> Arc<PodInfo> {
    let mut spec = affinity("podAffinity", app, "zone");
    spec["affinity"]["podAntiAffinity"] =
        affinity("podAntiAffinity", app, "host")["affinity"]["podAntiAffinity"].take();
    spec["topologySpreadConstraints"] = json!([{"maxSkew": 1, "topologyKey": "zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": format!("a{app}")}}}]);
    pod(1_000 + app, app, spec)
}

/// What is counted is what is there, node by node.
fn check(cluster: &mut Cluster, app: usize) {
    let asking = asking(app);
    let own = asking.required_affinity.iter().chain(&asking.required_anti_affinity);
    let questions: Vec<_> =
        own.map(|w| &w.question).chain(asking.spread.iter().map(|s| &s.question)).collect();
    cluster.ask(questions.iter().copied());
    for question in questions {
        let count = cluster.answer(question);
        let value = |node: &NodeInfo| node.labels().get(&question.topology_key).cloned();
        let matching = |node: &NodeInfo| {
            let matches = |pod: &&Arc<PodInfo>| pod::labels(&pod.pod)["app"] == format!("a{app}");
            node.pods.iter().filter(matches).count() as i64
        };
        let of = |value_of: &Option<String>| -> i64 {
            cluster.nodes().filter(|n| value(n) == *value_of).map(matching).sum()
        };
        for node in cluster.nodes() {
            let expected = value(node).map_or(0, |v| of(&Some(v)));
            assert_eq!(count.of(node), expected, "{} on {}", question.id, node.name());
            assert_eq!(count.covers(node), value(node).is_some());
        }
        if question.scope.is_some() {
            let parts: std::collections::BTreeSet<String> = cluster.nodes().filter_map(value).collect();
            assert_eq!(count.parts(), parts.len(), "{}", question.id);
            let least = parts.iter().map(|v| of(&Some(v.clone()))).min().unwrap_or(0);
            assert_eq!(count.least(), least, "{}", question.id);
        }
    }
    let against: i64 =
        cluster.wishes(&asking, |wish| wish == Wish::Away).map(|(_, _, count)| count.total()).sum();
    let wants = |pod: &&Arc<PodInfo>| {
        pod.required_anti_affinity
            .iter()
            .any(|wanted| wanted.term.selector.matches_map(pod::labels(&asking.pod)))
    };
    assert_eq!(against, cluster.nodes().flat_map(|n| &n.pods).filter(wants).count() as i64);
}

#[test]
fn counts_follow_whatever_happens() {
    for seed in 1..40 {
        let (mut cluster, mut random) = (Cluster::default(), Random(seed * 7919));
        for _ in 0..150 {
            let (name, app) = (random.below(12), random.below(3));
            match random.below(8) {
                0 | 1 => {
                    let zone = Some(random.below(4)).filter(|zone| *zone < 3);
                    drop(cluster.set_node(node(name, zone)));
                }
                2 => drop(cluster.remove_node(&format!("n{name}"))),
                3 => drop(cluster.remove_pod(&format!("default/p{}", random.below(40)))),
                kind => {
                    let spec = if kind == 4 { affinity("podAntiAffinity", app, "host") } else { json!({}) };
                    cluster.assume(pod(random.below(40), app, spec), &format!("n{name}"));
                }
            }
            if random.below(4) == 0 {
                check(&mut cluster, app);
            }
        }
    }
}

#[test]
fn what_would_be_is_told_without_being() {
    let mut cluster = Cluster::default();
    for (name, zone) in [(0, 0), (1, 0), (2, 1), (3, 2)] {
        cluster.set_node(node(name, Some(zone)));
    }
    for (name, on) in [(0, "n0"), (1, "n1"), (2, "n2"), (3, "n2"), (4, "n3")] {
        cluster.assume(pod(name, 1, json!({})), on);
    }
    let asking = asking(1);
    let question = &asking.spread[0].question;
    cluster.ask([question]);
    let mut count = cluster.answer(question);
    assert_eq!((count.parts(), count.least(), count.total()), (3, 1, 5));
    let node = |name: &str| cluster.node(name).unwrap();
    count.add(node("n3"), 1);
    assert_eq!((count.least(), count.of(node("n3"))), (2, 2));
    count.add(node("n0"), -2);
    assert_eq!((count.least(), count.of(node("n1"))), (0, 0));
    count.add(node("n0"), 2);
    count.add(node("n3"), -1);
    assert_eq!((count.least(), count.total()), (1, 5));
    assert_eq!(cluster.answer(question).of(node("n3")), 1);
}

#[test]
fn questions_that_nobody_asks_any_more_are_forgotten() {
    let mut cluster = Cluster::default();
    cluster.set_node(node(0, Some(0)));
    let ask = |cluster: &mut Cluster, app: usize| {
        let asking = asking(app);
        cluster.ask([&asking.spread[0].question]);
        assert_eq!(cluster.answer(&asking.spread[0].question).parts(), 1);
    };
    (0..2 * MAX_QUESTIONS).for_each(|app| ask(&mut cluster, app));
    assert_eq!(cluster.questions(), MAX_QUESTIONS);
    ask(&mut cluster, 0);
}
