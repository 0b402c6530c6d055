//! What a new user does, with stock kubectl.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use e2e::{Background, Cluster, eventually, images, succeed};

const APPLICATION: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 3
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: test.local/web:v1
        ports:
        - {name: http, containerPort: 8080}
        readinessProbe:
          httpGet: {path: /, port: http}
          periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  type: NodePort
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http, nodePort: 30080}
";

fn cluster_with_application() -> Cluster {
    let cluster = Cluster::start();
    cluster.import(&images::web("test.local/web:v1", "one"));
    cluster.import(&images::web("test.local/web:v2", "two"));
    cluster.apply(APPLICATION);
    cluster.kubectl_prints("rollout status deployment/web --timeout=60s");
    cluster
}

/// Asks until this many pods have answered.
fn answers(cluster: &Cluster, address: &str, version: &str, pods: usize) {
    let mut answered = std::collections::BTreeSet::new();
    eventually(&format!("{pods} pods of version {version} answer at {address}"), || {
        answered.extend(cluster.curl(address).filter(|answer| answer.starts_with(version)));
        if answered.len() >= pods { Ok(()) } else { Err(format!("{answered:?}")) }
    });
}

#[test]
fn a_deployment_behind_a_service_from_apply_to_delete() {
    let cluster = cluster_with_application();
    let service_ip = cluster.kubectl_prints("get service web -o jsonpath={.spec.clusterIP}");
    answers(&cluster, &format!("http://{service_ip}/"), "one", 3);
    answers(&cluster, &format!("http://{}:30080/", e2e::NODE_IP), "one", 3);

    let wide = cluster.kubectl_prints("get pods -o wide");
    assert!(wide.starts_with("NAME"), "{wide}");
    assert_eq!(wide.matches("1/1     Running   0").count(), 3, "{wide}");
    assert_eq!(wide.matches("node-1").count(), 3, "{wide}");
    let described = cluster.kubectl_prints("describe deployment web");
    assert!(
        described.contains("3 desired | 3 updated | 3 total | 3 available | 0 unavailable"),
        "{described}"
    );
    assert!(described.contains("ScalingReplicaSet"), "{described}");
    let described = cluster.kubectl_prints("describe pod -l app=web");
    for reason in ["Scheduled", "Pulled", "Created", "Started"] {
        assert_eq!(described.matches(&format!(" {reason} ")).count(), 3, "{reason} in {described}");
    }

    cluster.kubectl_prints("scale deployment web --replicas=5");
    cluster.kubectl_prints("rollout status deployment/web --timeout=60s");
    assert_eq!(cluster.get("deployment web")["status"]["readyReplicas"], 5);
    cluster.kubectl_prints("scale deployment web --replicas=2");

    cluster.kubectl_prints("set image deployment/web web=test.local/web:v2");
    cluster.kubectl_prints("rollout status deployment/web --timeout=60s");
    answers(&cluster, &format!("http://{service_ip}/"), "two", 2);
    cluster.kubectl_prints("rollout undo deployment/web");
    cluster.kubectl_prints("rollout status deployment/web --timeout=60s");
    answers(&cluster, &format!("http://{service_ip}/"), "one", 2);

    cluster.kubectl_prints("delete deployment,service web --timeout=60s");
    cluster.kubectl_prints("wait --for=delete pod -l app=web --timeout=60s");
    eventually("nothing answers", || cluster.curl(&format!("http://{service_ip}/")).map_or(Ok(()), Err));
}

#[test]
fn logs_exec_and_port_forward_reach_a_pod() {
    let cluster = cluster_with_application();
    let pod = cluster.kubectl_prints("get pods -l app=web -o jsonpath={.items[0].metadata.name}");

    let logs = Background::start(&mut cluster.kubectl(&format!("logs -f {pod}")));
    logs.line_with("one serves");
    assert!(cluster.kubectl_prints(&format!("logs {pod} --tail=100")).contains("one serves"));

    let hostname = cluster.kubectl_prints(&format!("exec {pod} -- hostname"));
    assert_eq!(hostname.trim(), pod);
    let failed = cluster.kubectl(&format!("exec {pod} -- /bin/sh")).args(["-c", "exit 7"]).status().unwrap();
    assert_eq!(failed.code(), Some(7), "the exit code of the command is kubectl's");
    // A terminal, as a person has: `script` makes one.
    let kubeconfig = cluster.data_dir().join("admin.kubeconfig");
    let typed = format!(
        "stty rows 33 cols 77; printf 'ls -d /bin\\nexit\\n' | kubectl --kubeconfig {} exec -it {pod} -- /bin/sh",
        kubeconfig.display()
    );
    let seen = succeed(cluster.namespace.command("script").args(["-qec", &typed, "/dev/null"]));
    assert!(seen.contains("/bin"), "{seen}");

    let forward = Background::start(&mut cluster.kubectl(&format!("port-forward pod/{pod} 18080:8080")));
    forward.line_with("Forwarding from 127.0.0.1:18080");
    answers(&cluster, "http://127.0.0.1:18080/", "one", 1);
}

#[test]
fn names_of_services_resolve_in_pods() {
    let cluster = cluster_with_application();
    let service_ip = cluster.kubectl_prints("get service web -o jsonpath={.spec.clusterIP}");
    let pod = cluster.kubectl_prints("get pods -l app=web -o jsonpath={.items[0].metadata.name}");
    eventually("the Service's name resolves", || {
        let output = cluster
            .kubectl(&format!("exec {pod} -- nslookup web.default.svc.cluster.local"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if said.contains(&service_ip) { Ok(()) } else { Err(said) }
    });
    let resolv = cluster.kubectl_prints(&format!("exec {pod} -- cat /etc/resolv.conf"));
    assert!(resolv.contains("search default.svc.cluster.local svc.cluster.local cluster.local"), "{resolv}");
}
