//! [`SeriesRecorder`]: events of `events.k8s.io`, which say besides what was done and to which other object. The
//! second time of the same event makes a series of it; how often it happened is then told when the series ends, and
//! now and then while it goes on.
//!
//! Upstream: client-go/tools/events

use std::collections::HashMap;
use std::time::Duration;

use api::Object;
use api::core::v1::ObjectReference;
use api::events::v1::{Event, EventSeries};
use api::meta::MicroTime;
use client::{Client, Error, PatchType};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::events::{EventType, QUEUE, event_name, make_room, persist};

/// A series without an event for so long has ended.
///
/// Upstream: client-go/tools/events/event_broadcaster.go finishTime
const FINISH: Duration = Duration::from_secs(6 * 60);
/// After so many looks for what has ended, those that go on are told anew, so that they do not expire.
///
/// Upstream: client-go/tools/events/event_broadcaster.go refreshTime
const REFRESH: u32 = 5;

/// What is told of an object.
pub struct Deed {
    pub kind: EventType,
    pub reason: &'static str,
    /// What was done, or tried.
    pub action: &'static str,
    pub note: String,
}

struct Told {
    regarding: ObjectReference,
    related: Option<ObjectReference>,
    deed: Deed,
    at: jiff::Timestamp,
}

/// A handle that tells events. Clones tell for the same controller.
#[derive(Clone)]
pub struct SeriesRecorder {
    queue: mpsc::Sender<Told>,
    clock: Clock,
}

impl SeriesRecorder {
    /// The recorder of a controller on a host, and what delivers its events: a future for the caller's own tasks.
    pub fn new(client: Client, controller: &str, host: &str, clock: Clock) -> (Self, SeriesDelivery) {
        let (queue, told) = mpsc::channel(QUEUE);
        let series = AllSeries {
            controller: controller.to_owned(),
            instance: format!("{controller}-{host}"),
            known: HashMap::new(),
        };
        let delivery = SeriesDelivery { client, told, series, clock: clock.clone() };
        (SeriesRecorder { queue, clock }, delivery)
    }

    pub fn tell(&self, regarding: ObjectReference, related: Option<ObjectReference>, deed: Deed) {
        let told = Told { regarding, related, deed, at: self.clock.now() };
        if let Err(mpsc::error::TrySendError::Full(told)) = self.queue.try_send(told) {
            tracing::debug!(reason = told.deed.reason, "too many events; one is dropped");
        }
    }
}

/// Delivers what the recorder was told.
pub struct SeriesDelivery {
    client: Client,
    told: mpsc::Receiver<Told>,
    series: AllSeries,
    clock: Clock,
}

impl SeriesDelivery {
    /// Delivers until the shutdown, or until the last recorder is gone.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut looks = 0;
        // When to look for series that have ended; never while there are none.
        let mut look: Option<Instant> = None;
        loop {
            let ring = async {
                match look {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let write = tokio::select! {
                () = shutdown.cancelled() => return,
                told = self.told.recv() => {
                    let Some(told) = told else { return };
                    look.get_or_insert_with(|| Instant::now() + FINISH);
                    self.series.tell(told).into_iter().collect()
                }
                () = ring => {
                    looks += 1;
                    let mut write = self.series.end(self.clock.now());
                    if looks % REFRESH == 0 {
                        write.extend(self.series.going_on());
                    }
                    look = (!self.series.known.is_empty()).then(|| Instant::now() + FINISH);
                    write
                }
            };
            for event in &write {
                let client = &self.client;
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    _ = persist(move || attempt(client, event)) => {}
                }
            }
        }
    }
}

/// A series is written into its event; an event that is not there, or not any more, is made.
async fn attempt(client: &Client, event: &Event) -> Result<Event, Error> {
    if let Some(series) = &event.series {
        let patch = serde_json::json!({ "series": series });
        match client.patch(event.namespace(), event.name(), None, PatchType::Strategic, &patch).await {
            Err(error) if error.is_not_found() => {}
            patched => return patched,
        }
    }
    client.create(event).await
}

/// Events are the same when all but time, note and count are.
type Key = (EventType, &'static str, &'static str, ObjectKey, Option<ObjectKey>);
type ObjectKey = [Option<String>; 7];

fn object_key(object: &ObjectReference) -> ObjectKey {
    let ObjectReference { api_version, field_path, kind, name, namespace, resource_version, uid } =
        object.clone();
    [api_version, field_path, kind, name, namespace, resource_version, uid]
}

struct Known {
    event: Event,
    /// As often as the API server has been told of it.
    told: i32,
}

/// Decides what becomes of a told event.
struct AllSeries {
    controller: String,
    instance: String,
    known: HashMap<Key, Known>,
}

impl AllSeries {
    /// The event to write: the first of its kind, or the second, with which a series begins.
    fn tell(&mut self, told: Told) -> Option<Event> {
        let related = told.related.as_ref().map(object_key);
        let key = (told.deed.kind, told.deed.reason, told.deed.action, object_key(&told.regarding), related);
        if let Some(known) = self.known.get_mut(&key) {
            let count = known.event.series.as_ref().map_or(1, |series| series.count).saturating_add(1);
            known.event.series = Some(EventSeries { count, last_observed_time: MicroTime(told.at) });
            return (known.told == 1).then(|| {
                known.told = count;
                known.event.clone()
            });
        }
        let event = self.event(told);
        make_room(&mut self.known);
        self.known.insert(key, Known { event: event.clone(), told: 1 });
        Some(event)
    }

    fn event(&self, told: Told) -> Event {
        let Told { regarding, related, deed, at } = told;
        let mut event = Event {
            event_time: Some(MicroTime(at)),
            reporting_controller: Some(self.controller.clone()),
            reporting_instance: Some(self.instance.clone()),
            action: Some(deed.action.to_owned()),
            reason: Some(deed.reason.to_owned()),
            related,
            note: Some(deed.note),
            type_: Some(deed.kind.as_str().to_owned()),
            ..Default::default()
        };
        let namespace = regarding.namespace.clone().filter(|namespace| !namespace.is_empty());
        event.metadata.namespace = Some(namespace.unwrap_or_else(|| "default".into()));
        event.metadata.name = Some(event_name(&regarding, at));
        event.regarding = Some(regarding);
        event
    }

    /// Forgets what has ended; the series among it that happened more often than was told.
    fn end(&mut self, now: jiff::Timestamp) -> Vec<Event> {
        let ended = |known: &Known| {
            let series = known.event.series.as_ref().map(|series| &series.last_observed_time);
            let last = series.or(known.event.event_time.as_ref());
            last.is_none_or(|last| Duration::try_from(now.duration_since(last.0)).is_ok_and(|d| d >= FINISH))
        };
        let ended = self.known.extract_if(|_, known| ended(known));
        ended.filter_map(|(_, known)| known.news().then_some(known.event)).collect()
    }

    /// The series that have not ended.
    fn going_on(&mut self) -> Vec<Event> {
        let series = self.known.values_mut().filter(|known| known.event.series.is_some());
        let told = series.map(|known| {
            known.told = known.event.series.as_ref().map_or(1, |series| series.count);
            known.event.clone()
        });
        told.collect()
    }
}

impl Known {
    fn news(&self) -> bool {
        self.event.series.as_ref().is_some_and(|series| series.count > self.told)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    fn told(note: &str, related: Option<&str>, second: i64) -> Told {
        let pod = |name: &str| ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some("ns".into()),
            name: Some(name.into()),
            ..Default::default()
        };
        let deed = Deed {
            kind: EventType::Warning,
            reason: "FailedScheduling",
            action: "Scheduling",
            note: note.into(),
        };
        Told { regarding: pod("web"), related: related.map(pod), deed, at: at(second) }
    }

    fn series() -> AllSeries {
        AllSeries { controller: "test".into(), instance: "test-host".into(), known: HashMap::new() }
    }

    fn words<'a>(events: impl IntoIterator<Item = &'a Event>) -> Vec<String> {
        let words = events.into_iter().map(|event| {
            let series = event.series.as_ref();
            format!("{} {}", event.note.as_deref().unwrap(), series.map_or(1, |series| series.count))
        });
        words.collect()
    }

    #[test]
    fn the_second_time_makes_a_series_and_the_last_is_told_when_it_ends() {
        let mut all = series();
        assert_eq!(words(&all.tell(told("a", None, 0))), ["a 1"]);
        assert_eq!(words(&all.tell(told("b", None, 1))), ["a 2"]);
        assert_eq!(words(&all.tell(told("c", None, 2))), [""; 0]);
        assert_eq!(words(&all.tell(told("d", Some("other"), 3))), ["d 1"]);
        assert_eq!(words(&all.end(at(300))), [""; 0]);
        assert_eq!(words(&all.end(at(362))), ["a 3"]);
        assert_eq!(words(&all.end(at(363))), [""; 0]);
        assert!(all.known.is_empty());
    }

    #[test]
    fn what_was_told_is_not_told_again_but_to_keep_it() {
        let mut all = series();
        all.tell(told("a", None, 0));
        assert_eq!(words(&all.going_on()), [""; 0]);
        all.tell(told("a", None, 1));
        all.tell(told("a", None, 2));
        assert_eq!(words(&all.going_on()), ["a 3"]);
        assert_eq!(words(&all.end(at(1_000))), [""; 0]);
    }

    #[test]
    fn an_event_says_who_did_what() {
        let event = series().tell(told("a", Some("other"), 1)).unwrap().to_value();
        assert_eq!(
            event,
            serde_json::json!({
                "apiVersion": "events.k8s.io/v1", "kind": "Event",
                "metadata": {"namespace": "ns", "name": "web.3b9aca00"},
                "eventTime": "1970-01-01T00:00:01.000000Z",
                "reportingController": "test", "reportingInstance": "test-host",
                "action": "Scheduling", "reason": "FailedScheduling", "type": "Warning", "note": "a",
                "regarding": {"kind": "Pod", "namespace": "ns", "name": "web"},
                "related": {"kind": "Pod", "namespace": "ns", "name": "other"},
            })
        );
    }
}
