//! Objects that have a time to go: what the cleaners of certificate requests and bootstrap tokens share.

use std::sync::Arc;

use api::Object;
use controller_runtime::{Informer, WorkQueue};
use jiff::Timestamp;

use crate::Error;
use crate::context::Context;
use crate::objects::until;

struct Expiry<T> {
    context: Context,
    objects: Informer<T>,
    /// From when on an object is to be removed; `None` keeps it.
    end: fn(&T) -> Option<Timestamp>,
    queue: WorkQueue<String>,
}

/// Removes each object when its time has come, until the shutdown.
pub(crate) async fn run<T: Object>(context: Context, objects: Informer<T>, end: fn(&T) -> Option<Timestamp>) {
    let expiry = Arc::new(Expiry { context, objects, end, queue: WorkQueue::new() });
    let queue = expiry.queue.clone();
    expiry.objects.subscribe(move |event| queue.add(Object::key(&**event.object())));
    expiry.context.work(&expiry, &expiry.queue, 1, Expiry::reconcile).await;
}

impl<T: Object> Expiry<T> {
    async fn reconcile(self: Arc<Self>, key: String) -> Result<(), Error> {
        let Some(object) = self.objects.get(&key) else { return Ok(()) };
        let Some(end) = (self.end)(&object) else { return Ok(()) };
        let left = until(end, self.context.clock().now());
        if left.is_zero() {
            self.context.delete(&*object).await?;
        } else {
            self.queue.add_after(key, left);
        }
        Ok(())
    }
}
