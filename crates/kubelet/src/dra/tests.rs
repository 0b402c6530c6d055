//! Claims of an API server in memory, and a driver on a socket.

use std::path::Path;
use std::sync::Arc;

use apiserver::seams::UserInfo;
use apiserver::testing;
use cri::dra::v1::dra_plugin_server::{DraPlugin, DraPluginServer};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

use super::*;

/// Prepares everything, unless it is to fail, and notes what it was asked.
#[derive(Clone, Default)]
struct Plain(Arc<Mutex<(Vec<String>, Option<String>)>>);

impl Plain {
    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().0)
    }

    fn fail(&self, why: Option<&str>) {
        self.0.lock().unwrap().1 = why.map(str::to_owned);
    }

    fn serve(&self, dir: &Path) -> Plugin {
        let endpoint = dir.join("dra.sock");
        let incoming = UnixListenerStream::new(UnixListener::bind(&endpoint).unwrap());
        let service = DraPluginServer::new(self.clone());
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        Plugin {
            kind: PLUGIN_KIND.into(),
            name: "d.example.com".into(),
            endpoint,
            versions: vec!["v1.DRAPlugin".into()],
        }
    }
}

#[tonic::async_trait]
impl DraPlugin for Plain {
    async fn node_prepare_resources(
        &self,
        request: Request<pb::NodePrepareResourcesRequest>,
    ) -> Result<Response<pb::NodePrepareResourcesResponse>, Status> {
        let mut world = self.0.lock().unwrap();
        let error = world.1.clone().unwrap_or_default();
        let answers = request.into_inner().claims.into_iter().map(|claim| {
            world.0.push(format!("prepare {}/{}", claim.namespace, claim.name));
            let device = |request: &str| pb::Device {
                request_names: vec![request.to_owned()],
                pool_name: "pool".into(),
                device_name: request.to_owned(),
                cdi_device_ids: vec![format!("e/gpu={}-{request}", claim.name)],
                share_id: None,
            };
            let devices = vec![device("one"), device("two")];
            (claim.uid.clone(), pb::NodePrepareResourceResponse { devices, error: error.clone() })
        });
        let claims = answers.collect();
        Ok(Response::new(pb::NodePrepareResourcesResponse { claims }))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<pb::NodeUnprepareResourcesRequest>,
    ) -> Result<Response<pb::NodeUnprepareResourcesResponse>, Status> {
        let mut world = self.0.lock().unwrap();
        let answers = request.into_inner().claims.into_iter().map(|claim| {
            world.0.push(format!("unprepare {}/{}", claim.namespace, claim.name));
            (claim.uid, pb::NodeUnprepareResourceResponse::default())
        });
        let claims = answers.collect();
        Ok(Response::new(pb::NodeUnprepareResourcesResponse { claims }))
    }
}

fn pod(uid: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": format!("pod-{uid}"), "namespace": "n", "uid": uid},
        "spec": {
            "resourceClaims": [{"name": "gpu", "resourceClaimName": "shared"}],
            "containers": [
                {"name": "all", "resources": {"claims": [{"name": "gpu"}]}},
                {"name": "one", "resources": {"claims": [{"name": "gpu", "request": "one"}]}},
                {"name": "none"},
            ],
        },
    }))
    .unwrap()
}

async fn claim(client: &Client, users: &[&str]) {
    let named: Value = json!({
        "metadata": {"name": "shared", "namespace": "n"},
        "spec": {"devices": {"requests": [{"name": "one", "exactly": {"deviceClassName": "gpu"}}]}},
    });
    let made = client.create(&serde_json::from_value::<ResourceClaim>(named).unwrap()).await.unwrap();
    let users: Vec<Value> = users
        .iter()
        .map(|uid| json!({"resource": "pods", "name": format!("pod-{uid}"), "uid": uid}))
        .collect();
    let result = json!({"request": "one", "driver": "d.example.com", "pool": "pool", "device": "one"});
    let status = json!({"status": {"allocation": {"devices": {"results": [result]}}, "reservedFor": users}});
    let merge = client::PatchType::Merge;
    client.patch::<ResourceClaim>("n", made.name(), Some("status"), merge, &status).await.unwrap();
}

#[tokio::test]
async fn claims_are_prepared_once_shared_and_taken_back() {
    let server = testing::server().await;
    let user = UserInfo { name: "test".into(), groups: vec!["system:masters".into()], ..Default::default() };
    let client = Client::new(server.in_process(user), "test");
    let namespace = json!({"metadata": {"name": "n"}});
    client.create(&serde_json::from_value::<api::core::v1::Namespace>(namespace).unwrap()).await.unwrap();
    claim(&client, &["a", "b"]).await;
    let dir = tempfile::tempdir().unwrap();
    let dra = Dra::open(dir.path().to_owned(), client.clone());
    let (first, second) = (pod("a"), pod("b"));
    let why = dra.prepare(&first).await.unwrap_err();
    assert_eq!(why, "prepare dynamic resources: DRA driver d.example.com is not registered");
    let driver = Plain::default();
    let plugin = driver.serve(dir.path());
    dra.validate(&plugin).unwrap();
    dra.register(&plugin).await.unwrap();
    let why = dra.prepare(&pod("c")).await.unwrap_err();
    assert!(why.contains("pod pod-c (c) is not allowed to use ResourceClaim shared"), "{why}");
    driver.fail(Some("no power"));
    let why = dra.prepare(&first).await.unwrap_err();
    let words = "prepare dynamic resources: NodePrepareResources failed for ResourceClaim shared: no power";
    assert_eq!(why, words);
    driver.fail(None);
    driver.calls();
    for pod in [&first, &first, &second] {
        dra.prepare(pod).await.unwrap();
    }
    assert_eq!(driver.calls(), ["prepare n/shared"]);
    let ids = |dra: &Dra| -> Vec<Vec<String>> {
        let containers = &first.spec.as_ref().unwrap().containers;
        containers.iter().map(|container| dra.cdi_ids(&first, container).unwrap()).collect()
    };
    let wanted = [vec!["e/gpu=shared-one", "e/gpu=shared-two"], vec!["e/gpu=shared-one"], vec![]];
    assert_eq!(ids(&dra), wanted);
    let shown = dra.shown_of(&first, &first.spec.as_ref().unwrap().containers[1]);
    assert_eq!((shown.len(), shown[0].claim_resources[0].device_name.as_str()), (1, "one"));

    // The next kubelet knows, and has it prepared again for a sandbox that it makes.
    let dra = Dra::open(dir.path().to_owned(), client);
    assert_eq!(ids(&dra), wanted);
    dra.register(&plugin).await.unwrap();
    dra.release("a").await.unwrap();
    assert_eq!(driver.calls(), [""; 0], "the other pod still has it");
    dra.prepare(&second).await.unwrap();
    dra.release("b").await.unwrap();
    dra.release("b").await.unwrap();
    assert_eq!(driver.calls(), ["prepare n/shared", "unprepare n/shared"]);
    assert_eq!(state::read(dir.path()), Ok(Claims::new()));
    dra.deregister(&plugin).await;
    assert!(dra.prepare(&first).await.unwrap_err().ends_with("is not registered"));
}
