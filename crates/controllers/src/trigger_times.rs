//! When that happened which endpoints are written because of: an annotation that tells how long it took.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use api::Object;
use api::core::v1::{Pod, Service};
use jiff::Timestamp;

use crate::objects::annotations_mut;

const ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

struct Known {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

/// The moments that were known of each Service when its endpoints were last looked at.
///
/// Upstream: staging/src/k8s.io/endpointslice/util/trigger_time_tracker.go TriggerTimeTracker
#[derive(Default)]
pub(crate) struct TriggerTimes(Mutex<HashMap<String, Known>>);

/// When the pod last became ready, or ceased to be.
fn moment_of(pod: &Pod) -> Option<Timestamp> {
    let mut conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.find(|condition| condition.type_ == "Ready")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

impl TriggerTimes {
    /// The earliest of the moments that are new since the last call for the Service.
    pub fn next<'a>(&self, service: &Service, pods: impl Iterator<Item = &'a Pod>) -> Option<Timestamp> {
        let created = service.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let pods = pods.filter_map(|pod| Some((pod.name().to_owned(), moment_of(pod)?)));
        let now = Known { service: created, pods: pods.collect() };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = known.get(&service.key()) else {
            known.insert(service.key(), now);
            return created;
        };
        let of_pods = now.pods.iter().filter(|(name, at)| before.pods.get(*name).is_none_or(|old| old < at));
        let of_service = created.filter(|_| before.service < created);
        let next = of_pods.map(|(_, at)| *at).chain(of_service).min();
        known.insert(service.key(), now);
        next
    }

    pub fn forget(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// Says the moment on an object, or that there is none.
pub(crate) fn tell<T: Object>(object: &mut T, moment: Option<Timestamp>) {
    match moment {
        Some(moment) => drop(annotations_mut(object).insert(ANNOTATION.to_owned(), moment.to_string())),
        None => {
            if let Some(annotations) = &mut object.metadata_mut().annotations {
                annotations.remove(ANNOTATION);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::tests::{at, pod};

    #[test]
    fn the_first_new_moment_counts() {
        let times = TriggerTimes::default();
        let mut service = Service::default();
        service.metadata.creation_timestamp = Some(api::meta::Time(at(5)));
        let since = |name: &str, seconds: i64| {
            let mut pod = pod(name, "Running", true);
            for condition in pod.status.as_mut().unwrap().conditions.iter_mut().flatten() {
                condition.last_transition_time = Some(api::meta::Time(at(seconds)));
            }
            pod
        };
        let check = |pods: &[Pod], expected: Option<i64>| {
            assert_eq!(times.next(&service, pods.iter()), expected.map(at));
        };
        check(&[since("a", 1)], Some(5));
        check(&[since("a", 1)], None);
        check(&[since("a", 9), since("b", 7)], Some(7));
        check(&[since("b", 7)], None);
        times.forget("");
    }
}
