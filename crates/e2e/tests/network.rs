//! The network between nodes: both families, tunnels, and what goes wrong on the way.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use e2e::dev::{Dev, SERVICE, ask, counts, pod};
use e2e::{eventually, succeed};

fn addresses(dev: &Dev, pod: &str) -> Vec<String> {
    let all = dev.kubectl(&format!("get pod {pod} -o jsonpath={{.status.podIPs[*].ip}}"));
    all.split_whitespace().map(str::to_owned).collect()
}

/// Asks a Service until these pods have answered, and no other has.
fn answered_by(dev: &Dev, from: &str, host: &str, wanted: &[&str]) {
    let wanted: BTreeSet<&str> = wanted.iter().copied().collect();
    let mut seen = BTreeSet::new();
    eventually("the Service is answered by its endpoints", || {
        let said = ask(dev, from, host, 80)?;
        let found = ["a", "b", "c"].into_iter().find(|pod| said.contains(&format!("one from {pod}\n")));
        seen.extend(found);
        // What was an endpoint a moment ago may have answered still.
        seen.retain(|pod| wanted.contains(pod));
        if seen == wanted { Ok(()) } else { Err(format!("{seen:?}")) }
    });
}

const DUAL: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

#[test]
fn both_families_go_through_tunnels_and_nothing_leaks() {
    let dev = Dev::up(2, &["--ip-family=dual", "--network-backend=vxlan-only"]);
    dev.load_web();
    let before: Vec<_> = [1, 2].map(|node| counts(&dev, node)).to_vec();
    dev.apply(&(pod("a", &dev.node(1)) + &pod("b", &dev.node(2)) + DUAL));
    dev.kubectl("wait --for=condition=Ready pod/a pod/b --timeout=60s");
    let (a, b) = (addresses(&dev, "a"), addresses(&dev, "b"));
    assert!(a.len() == 2 && !a[0].contains(':') && a[1].contains(':'), "{a:?}");
    for to in &b {
        eventually("pod to pod through the tunnel", || ask(&dev, "a", to, 8080));
    }
    let link = succeed(dev.inside(1, "ip").args(["-d", "link", "show", "trierarch-vxlan"]));
    assert!(link.contains("mtu 1450") && link.contains("nolearning"), "{link}");
    let mtu = succeed(&mut dev.shell("a", "cat /sys/class/net/eth0/mtu"));
    assert_eq!(mtu.trim(), "1450", "a pod's packets fit into the tunnel");

    let ips = dev.kubectl("get service web -o jsonpath={.spec.clusterIPs[*]}");
    assert_eq!(ips.split(' ').count(), 2, "{ips}");
    for ip in ips.split(' ') {
        answered_by(&dev, "a", ip, &["a", "b"]);
    }
    for pod in ["a", "b"] {
        eventually("the Service's name has both addresses on every node", || {
            let said = succeed(&mut dev.shell(pod, "nslookup web.default.svc.cluster.local"));
            if ips.split(' ').all(|ip| said.contains(ip)) { Ok(()) } else { Err(said) }
        });
    }
    // The nodes are the load balancer: their addresses answer, in both families.
    let balancer = eventually("the Service has addresses of nodes", || {
        let ips = dev.kubectl("get service web -o jsonpath={.status.loadBalancer.ingress[*].ip}");
        if ips.split(' ').count() == 4 { Ok(ips) } else { Err(ips) }
    });
    for ip in balancer.split(' ') {
        let host = if ip.contains(':') { format!("http://[{ip}]/") } else { format!("http://{ip}/") };
        eventually("a node's address answers", || {
            let output = dev.host.command("curl").args(["-sS", "--max-time", "3", &host]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if said.contains("one from") { Ok(()) } else { Err(format!("{host}: {said}")) }
        });
    }

    succeed(dev.dev("cut-node").arg(dev.node(2)));
    ask(&dev, "a", &b[0], 8080).expect_err("a node that is cut off answers nobody");
    succeed(dev.dev("heal-node").arg(dev.node(2)));
    for to in &b {
        eventually("healed", || ask(&dev, "a", to, 8080));
    }

    dev.kubectl("delete service web");
    dev.kubectl("delete pod a b --timeout=60s");
    for node in [1, 2] {
        eventually("rules, links, routes and addresses are as many as before", || {
            let now = counts(&dev, node);
            let then = &before[usize::from(node) - 1];
            // The tunnel and the DNS came with the nodes, perhaps after the first count.
            if now.iter().zip(then).all(|(now, then)| now.1 <= then.1) {
                Ok(())
            } else {
                Err(format!("{now:?} {then:?}"))
            }
        });
    }
    succeed(&mut dev.dev("down"));
    assert_eq!(dev.traces(), "");
}

#[test]
fn connections_live_on_while_endpoints_roll_and_agents_die() {
    let dev = Dev::up(2, &[]);
    dev.load_web();
    dev.apply(
        &(pod("a", &dev.node(1))
            + &pod("b", &dev.node(2))
            + &pod("c", &dev.node(2))
            + SERVICE
            + "---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: web}
  ports: [{port: 90, targetPort: 9000}]
"),
    );
    dev.kubectl("wait --for=condition=Ready pod/a pod/b pod/c --timeout=60s");
    dev.kubectl("label pod a app-");
    let service = dev.kubectl("get service web -o jsonpath={.spec.clusterIP}");
    let echo = dev.kubectl("get service echo -o jsonpath={.spec.clusterIP}");
    answered_by(&dev, "a", &service, &["b", "c"]);

    // A connection to pod b, by the Service.
    dev.kubectl("label pod c app-");
    answered_by(&dev, "a", &service, &["b"]);
    // Neither end is of a command that ends when a node's process does.
    succeed(&mut dev.shell("b", "nc -l -p 9000 -e cat > /dev/null 2>&1 < /dev/null &"));
    let talk = format!(
        "(n=0; while true; do n=$((n+1)); echo tick $n; sleep 1; done | nc {echo} 90 > /tmp/ticks) \
         > /dev/null 2>&1 < /dev/null &"
    );
    let ticks = || -> Result<usize, String> {
        let output = dev.shell("a", "cat /tmp/ticks").output().unwrap();
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).lines().count())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    };
    let lives_on = || {
        let before = eventually("the client's pod can be looked into", ticks);
        eventually("the connection carries what is sent", || match ticks()? {
            now if now > before + 1 => Ok(()),
            now => Err(format!("{now} after {before}")),
        });
    };
    eventually("the server listens", || {
        succeed(&mut dev.shell("a", &talk));
        std::thread::sleep(std::time::Duration::from_secs(2));
        if ticks()? > 0 { Ok(()) } else { Err("silence".to_owned()) }
    });
    // Its endpoint leaves the Service: the connection lives on, new ones go elsewhere.
    dev.kubectl("label pod c app=web");
    dev.kubectl("label pod b app-");
    answered_by(&dev, "a", &service, &["c"]);
    for _ in 0..20 {
        let said = ask(&dev, "a", &service, 80).unwrap();
        assert!(said.contains("one from c"), "a new connection went to {said}");
    }
    lives_on();

    // The node's process alone dies. Its pods run on, and are found again.
    let container = |pod: &str| {
        dev.kubectl(&format!("get pod {pod} -o jsonpath={{.status.containerStatuses[0].containerID}}"))
    };
    let before = (container("b"), container("c"));
    for node in [2, 1] {
        dev.kill(node);
        succeed(dev.dev("up").arg("--nodes=2"));
        lives_on();
    }
    assert_eq!((container("b"), container("c")), before);
    for pod in ["a", "b", "c"] {
        eventually("a pod that was adopted can be entered", || {
            let output = dev.shell(pod, "hostname").output().unwrap();
            if output.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&output.stderr).into_owned())
            }
        });
        let restarts =
            dev.kubectl(&format!("get pod {pod} -o jsonpath={{.status.containerStatuses[0].restartCount}}"));
        assert_eq!(restarts, "0", "{pod}");
    }
    answered_by(&dev, "a", &service, &["c"]);
    succeed(&mut dev.dev("down"));
    assert_eq!(dev.traces(), "");
}
