//! Several nodes on one machine, by `trierarch dev`.

use e2e::dev::{Dev, SERVICE, ask, pod};
use e2e::{eventually, succeed};

#[test]
fn pods_of_two_nodes_reach_each_other_and_nothing_stays() {
    let dev = Dev::up(2, &[]);
    dev.load_web();
    dev.apply(&(pod("a", &dev.node(1)) + &pod("b", &dev.node(2)) + SERVICE));
    dev.kubectl("wait --for=condition=Ready pod/a pod/b --timeout=60s");
    let address = |pod: &str| dev.kubectl(&format!("get pod {pod} -o jsonpath={{.status.podIP}}"));
    for (from, to) in [("a", "b"), ("b", "a")] {
        let to = address(to);
        eventually("pod to pod across nodes", || ask(&dev, from, &to, 8080));
    }
    let service = dev.kubectl("get service web -o jsonpath={.spec.clusterIP}");
    for from in ["a", "b"] {
        eventually("the Service's name resolves on every node", || {
            let said = dev.kubectl(&format!("exec {from} -- nslookup web.default.svc.cluster.local"));
            if said.contains(&service) { Ok(()) } else { Err(said) }
        });
        let mut seen = std::collections::BTreeSet::new();
        eventually("both pods answer by the Service", || {
            let said = ask(&dev, from, &service, 80)?;
            seen.extend(["a", "b"].into_iter().filter(|pod| said.contains(&format!("one from {pod}\n"))));
            if seen.len() == 2 { Ok(()) } else { Err(format!("{seen:?} {said}")) }
        });
    }
    assert!(dev.kubectl("logs b").contains("one serves"), "the second node's kubelet is believed");

    // Rights of a node end at the node.
    let second = format!("{}/kubelet.kubeconfig", dev.node(2));
    for forbidden in ["get secrets -A".to_owned(), format!("label node {} stolen=yes", dev.node(1))] {
        let said = e2e::fail(&mut dev.kubectl_of(&second, &forbidden));
        assert!(said.contains("orbidden"), "{said}");
    }

    let b = address("b");
    succeed(dev.dev("cut-node").arg(dev.node(2)));
    ask(&dev, "a", &b, 8080).expect_err("a node that is cut off answers nobody");
    succeed(dev.dev("heal-node").arg(dev.node(2)));
    eventually("healed", || ask(&dev, "a", &b, 8080));

    succeed(dev.dev("stop-node").arg(dev.node(2)));
    let listed = succeed(&mut dev.dev("list"));
    assert!(listed.contains("1/2"), "{listed}");
    succeed(dev.dev("up").arg("--nodes=2"));
    dev.kubectl("wait --for=condition=Ready pod/b --timeout=60s");
    succeed(&mut dev.dev("down"));
    assert_eq!(dev.traces(), "");
}
