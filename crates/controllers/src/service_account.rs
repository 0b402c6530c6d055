//! A `default` ServiceAccount in every namespace.

use std::sync::Arc;

use api::Object;
use api::core::v1::{Namespace, ServiceAccount};
use api::meta::ObjectMeta;
use controller_runtime::{Event, Filter, Informer, WorkQueue};

use crate::Error;
use crate::context::Context;
use crate::objects::{is_deleting, namespace_is_terminating};

const NAME: &str = "default";
const WORKERS: usize = 1;

/// Whether a namespace may still get objects.
pub(crate) fn is_active(namespace: &Namespace) -> bool {
    let phase = namespace.status.as_ref().and_then(|status| status.phase.as_deref());
    !is_deleting(namespace) && phase != Some("Terminating")
}

struct Controller {
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
}

/// Runs the controller until the shutdown.
pub(crate) async fn run(context: Context) {
    let controller = Arc::new(Controller {
        namespaces: context.informers.informer(),
        accounts: context.informers.filtered(Filter::fields(format!("metadata.name={NAME}"))),
    });
    let queue = WorkQueue::new();
    let namespaces = queue.clone();
    controller.namespaces.subscribe(move |event| namespaces.add(event.object().name().to_owned()));
    let accounts = queue.clone();
    controller.accounts.subscribe(move |event| {
        if matches!(event, Event::Deleted(_)) {
            accounts.add(event.object().namespace().to_owned());
        }
    });
    context.work(&controller, &queue, WORKERS, Controller::reconcile).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, namespace: String) -> Result<(), Error> {
        let active = self.namespaces.get(&namespace).is_some_and(|namespace| is_active(&namespace));
        if !active || self.accounts.get_in(&namespace, NAME).is_some() {
            return Ok(());
        }
        let metadata = ObjectMeta {
            namespace: Some(namespace.clone()),
            name: Some(NAME.to_owned()),
            ..Default::default()
        };
        match self.accounts.create(&ServiceAccount { metadata, ..Default::default() }).await {
            Err(error) if error.is_already_exists() || namespace_is_terminating(&error) => Ok(()),
            outcome => Ok(outcome.map(drop)?),
        }
    }
}
