//! The cluster's CA certificate as a ConfigMap in every namespace, for pods to verify the API server by.

use std::sync::Arc;

use api::Object;
use api::core::v1::{ConfigMap, Namespace};
use api::meta::ObjectMeta;
use controller_runtime::{Filter, Informer, WorkQueue};

use crate::Error;
use crate::context::Context;
use crate::objects::namespace_is_terminating;
use crate::service_account::is_active;

/// Upstream: pkg/controller/certificates/rootcacertpublisher/publisher.go
const NAME: &str = "kube-root-ca.crt";
const DESCRIPTION_KEY: &str = "kubernetes.io/description";
const DESCRIPTION: &str = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal \
    endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across \
    distributions of Kubernetes clusters.";
const WORKERS: usize = 1;

/// What the ConfigMap shall be; `None` when it is so.
fn decide(namespace: &str, existing: Option<&ConfigMap>, ca: &str) -> Option<ConfigMap> {
    let data = [("ca.crt".to_owned(), ca.to_owned())].into();
    let annotated = |map: &ConfigMap| {
        map.metadata
            .annotations
            .as_ref()
            .and_then(|a| a.get(DESCRIPTION_KEY))
            .is_some_and(|d| d == DESCRIPTION)
    };
    if existing.is_some_and(|map| map.data.as_ref() == Some(&data) && annotated(map)) {
        return None;
    }
    let mut map = existing.cloned().unwrap_or_else(|| ConfigMap {
        metadata: ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(NAME.to_owned()),
            ..Default::default()
        },
        ..Default::default()
    });
    map.data = Some(data);
    map.metadata
        .annotations
        .get_or_insert_default()
        .insert(DESCRIPTION_KEY.to_owned(), DESCRIPTION.to_owned());
    Some(map)
}

struct Controller {
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
    ca: String,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        namespaces: context.informers.informer(),
        maps: context.informers.filtered(Filter::fields(format!("metadata.name={NAME}"))),
        ca: context.config.root_ca_pem.clone(),
    });
    let queue = WorkQueue::new();
    let namespaces = queue.clone();
    controller.namespaces.subscribe(move |event| namespaces.add(event.object().name().to_owned()));
    let maps = queue.clone();
    controller.maps.subscribe(move |event| maps.add(event.object().namespace().to_owned()));
    context.work(&controller, &queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, namespace: String) -> Result<(), Error> {
        if !self.namespaces.get(&namespace).is_some_and(|namespace| is_active(&namespace)) {
            return Ok(());
        }
        let existing = self.maps.get_in(&namespace, NAME);
        let Some(map) = decide(&namespace, existing.as_deref(), &self.ca) else { return Ok(()) };
        let outcome = match existing {
            Some(_) => self.maps.update(&map).await,
            None => self.maps.create(&map).await,
        };
        match outcome {
            Err(error) if error.is_already_exists() || namespace_is_terminating(&error) => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundle_is_made_and_mended() {
        let made = decide("ns", None, "PEM").unwrap();
        assert_eq!((made.namespace(), made.name()), ("ns", NAME));
        assert!(decide("ns", Some(&made), "PEM").is_none());
        assert_eq!(decide("ns", Some(&made), "NEW").unwrap().data.unwrap()["ca.crt"], "NEW");
        let mut spoilt = made.clone();
        spoilt.data = None;
        assert_eq!(decide("ns", Some(&spoilt), "PEM"), Some(made));
    }
}
