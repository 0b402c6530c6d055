//! The network while things break: connections by the thousand, and what stays of a node that is gone.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::time::Duration;

use e2e::dev::{Dev, SERVICE, counts, pod};
use e2e::traffic::{Conversation, Traffic, ask};
use e2e::{eventually, eventually_within, images, succeed};
use serde_json::Value;

/// Pods that serve on for a while when they are told to end, as those do that want no connection refused.
fn deployment(replicas: u8, linger_seconds: u8, more: &str) -> String {
    format!(
        "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  strategy: {{rollingUpdate: {{maxSurge: 2, maxUnavailable: 0}}}}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      terminationGracePeriodSeconds: 40
      containers:
      - name: web
        image: test.local/web:v1
        readinessProbe: {{httpGet: {{path: /, port: 8080}}, periodSeconds: 1}}
        lifecycle: {{preStop: {{sleep: {{seconds: {linger_seconds}}}}}}}
{more}
---
"
    )
}

fn service(dev: &Dev) -> SocketAddr {
    let ip = dev.kubectl("get service web -o jsonpath={.spec.clusterIP}");
    SocketAddr::new(ip.parse().unwrap(), 80)
}

/// Waits until rules, links, routes and addresses of these nodes are no more than they were.
fn nothing_leaked(dev: &Dev, before: &[(u8, Vec<(&'static str, usize)>)]) {
    for (node, then) in before {
        eventually("rules, links, routes and addresses are as many as before", || {
            let now = counts(dev, *node);
            let is_fewer = now.iter().zip(then).all(|(now, then)| now.1 <= then.1);
            if is_fewer { Ok(()) } else { Err(format!("{now:?}, before {then:?}")) }
        });
    }
}

#[test]
fn ten_thousand_connections_while_endpoints_roll_and_the_control_plane_restarts() {
    let dev = Dev::up(2, &[]);
    dev.load_web();
    dev.load(&images::web("test.local/web:v2", "two"));
    let before: Vec<_> = [1, 2].map(|node| (node, counts(&dev, node))).to_vec();
    dev.apply(&(deployment(4, 20, "") + SERVICE));
    dev.kubectl("rollout status deployment/web --timeout=60s");
    let (target, first, second) = (service(&dev), dev.namespace(1), dev.namespace(2));
    eventually("the Service is in force", || match ask(&first, target, 20).failures {
        failures if failures.is_empty() => Ok(()),
        failures => Err(failures.join(", ")),
    });

    let held = Conversation::several(&first, target, 100);
    let traffic = Traffic::start(&first, target, 8);
    traffic.more(1_000);
    dev.kubectl("set image deployment/web web=test.local/web:v2");
    dev.kubectl("rollout status deployment/web --timeout=60s");
    eventually("new connections go to ready endpoints only", || {
        let tally = ask(&first, target, 100);
        let is_new = tally.answers.keys().all(|words| words.starts_with("two from "));
        if is_new && tally.failures.is_empty() { Ok(()) } else { Err(format!("{tally:?}")) }
    });
    // The endpoints that left still serve those who were there before.
    for conversation in held {
        let said = conversation.end().expect("a connection lives on when its endpoint leaves");
        assert!(said.starts_with("one from "), "{said}");
    }
    traffic.more(10_000usize.saturating_sub(traffic.asked()));
    let tally = traffic.stop();
    assert_eq!(tally.failures, [""; 0], "{:?}", tally.answers);
    assert!(tally.answers.len() >= 8, "all pods of both kinds answered: {:?}", tally.answers);
    println!("{} connections: {:?}", tally.answers.values().sum::<usize>(), tally.answers);

    let traffic = Traffic::start(&second, target, 4);
    traffic.more(500);
    dev.kill(1);
    traffic.more(1_000);
    succeed(dev.dev("up").arg("--nodes=2"));
    dev.kubectl("rollout status deployment/web --timeout=60s");
    traffic.more(1_000);
    let tally = traffic.stop();
    assert_eq!(tally.failures, [""; 0], "the control plane is not on the way of packets");

    dev.kubectl("delete service web");
    dev.kubectl("delete deployment web");
    nothing_leaked(&dev, &before);
    succeed(&mut dev.dev("down"));
    assert_eq!(dev.traces(), "");
}

/// A minute until a node that says nothing is given up, and a minute until its pods are forgotten.
const LONG: Duration = Duration::from_secs(150);

/// Names of the ready pods and the nodes they are on.
fn ready_pods(dev: &Dev) -> Vec<(String, String)> {
    let pods: Value = serde_json::from_str(&dev.kubectl("get pods -l app=web -o json")).unwrap();
    let is_ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        pod["metadata"]["deletionTimestamp"].is_null()
            && conditions.into_iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let pods = pods["items"].as_array().unwrap().iter().filter(is_ready);
    pods.map(|pod| (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]))).collect()
}

#[test]
fn what_leads_to_a_node_that_is_gone_for_good_goes_too() {
    let dev = Dev::up(3, &["--network-backend=vxlan-only"]);
    dev.load_web();
    let gone_at_once = "      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 0}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 0}";
    let lost = dev.node(3);
    dev.apply(&(deployment(3, 1, gone_at_once) + &pod("stays", &dev.node(1)) + SERVICE));
    dev.kubectl("rollout status deployment/web --timeout=60s");
    assert!(ready_pods(&dev).iter().any(|(_, node)| *node == lost), "{:?}", ready_pods(&dev));
    let address = dev.kubectl(&format!("get node {lost} -o jsonpath={{.status.addresses[0].address}}"));
    let range = dev.kubectl(&format!("get node {lost} -o jsonpath={{.spec.podCIDR}}"));
    let leads_there = |node: u8| {
        let routes = succeed(dev.inside(node, "ip").args(["route"]));
        let forwarding = succeed(dev.inside(node, "bridge").args(["fdb", "show", "dev", "trierarch-vxlan"]));
        (routes.contains(&range), forwarding.contains(&address))
    };
    for node in [1, 2] {
        eventually("the tunnel leads to every node", || match leads_there(node) {
            (true, true) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    succeed(dev.dev("stop-node").arg(&lost));
    let (target, first) = (service(&dev), dev.namespace(1));
    eventually_within(LONG, "its endpoints leave and its pods are replaced", || {
        let ready = ready_pods(&dev);
        let elsewhere = ready.iter().filter(|(_, node)| *node != lost).count();
        // Three of the Deployment, and the one that stays.
        if elsewhere == ready.len() && elsewhere == 4 { Ok(()) } else { Err(format!("{ready:?}")) }
    });
    eventually("nothing goes to the lost node any more", || match ask(&first, target, 60).failures {
        failures if failures.is_empty() => Ok(()),
        failures => Err(failures.join(", ")),
    });
    assert_eq!(leads_there(1), (true, true), "a node that is away may come back");

    dev.kubectl(&format!("delete node {lost}"));
    for node in [1, 2] {
        eventually("routes and forwarding entries to it go with the Node", || match leads_there(node) {
            (false, false) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }
    eventually_within(LONG, "its pods are forgotten", || {
        let nodes = dev.kubectl("get pods -o jsonpath={.items[*].spec.nodeName}");
        if nodes.contains(&lost) { Err(nodes) } else { Ok(()) }
    });
    succeed(&mut dev.dev("down"));
    assert_eq!(dev.traces(), "");
}
