//! [`EventRecorder`]: tells people what was done, as Event objects. Telling never holds up doing: what does not
//! fit the queue is dropped, and who tells too much of one object is not heard.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use api::Object;
use api::core::v1::{Event, EventSource, ObjectReference};
use client::{Client, Error, PatchType};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// Events that await delivery.
pub(crate) const QUEUE: usize = 1000;
/// Upstream: client-go/tools/record/events_cache.go, the defaults of all that follow.
const CACHE: usize = 4096;
const SIMILAR_MAX: usize = 10;
const SIMILAR_SECONDS: i64 = 600;
const SPAM_BURST: f64 = 25.0;
const SPAM_TOKENS_PER_SECOND: f64 = 1.0 / 300.0;
/// Upstream: client-go/tools/record/event.go maxTriesPerEvent
const TRIES: u32 = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    Normal,
    Warning,
}

impl EventType {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            EventType::Normal => "Normal",
            EventType::Warning => "Warning",
        }
    }
}

struct Told {
    about: ObjectReference,
    kind: EventType,
    reason: String,
    message: String,
    at: jiff::Timestamp,
}

/// What an event is about.
pub fn reference<T: Object>(object: &T) -> ObjectReference {
    let metadata = object.metadata();
    ObjectReference {
        api_version: Some(T::api_version()),
        kind: Some(T::KIND.to_owned()),
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        resource_version: metadata.resource_version.clone(),
        field_path: None,
    }
}

/// A handle that tells events. Clones tell for the same component.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<Told>,
    clock: Clock,
}

impl EventRecorder {
    /// The recorder of a component, and what delivers its events: a future for the caller's own tasks. `host` is
    /// the node's name, or empty.
    pub fn new(client: Client, component: &str, host: &str, clock: Clock) -> (Self, EventDelivery) {
        let (queue, told) = mpsc::channel(QUEUE);
        let source = EventSource {
            component: Some(component.to_owned()),
            host: Some(host.to_owned()).filter(|host| !host.is_empty()),
        };
        let delivery = EventDelivery { client, told, correlator: Correlator::new(source) };
        (EventRecorder { queue, clock }, delivery)
    }

    pub fn event<T: Object>(&self, object: &T, kind: EventType, reason: &str, message: impl Into<String>) {
        self.event_about(reference(object), kind, reason, message);
    }

    pub fn normal<T: Object>(&self, object: &T, reason: &str, message: impl Into<String>) {
        self.event(object, EventType::Normal, reason, message);
    }

    pub fn warning<T: Object>(&self, object: &T, reason: &str, message: impl Into<String>) {
        self.event(object, EventType::Warning, reason, message);
    }

    pub fn event_about(
        &self,
        about: ObjectReference,
        kind: EventType,
        reason: &str,
        message: impl Into<String>,
    ) {
        let told =
            Told { about, kind, reason: reason.to_owned(), message: message.into(), at: self.clock.now() };
        if let Err(mpsc::error::TrySendError::Full(told)) = self.queue.try_send(told) {
            tracing::debug!(reason = told.reason, "too many events; one is dropped");
        }
    }
}

/// Delivers what the recorder was told.
pub struct EventDelivery {
    client: Client,
    told: mpsc::Receiver<Told>,
    correlator: Correlator,
}

/// How an event reaches the server.
enum Delivery {
    Create(Box<Event>),
    /// It happened before under this name: count it there. The whole event, should that be gone.
    Count(Box<Event>),
}

impl EventDelivery {
    /// Delivers until the shutdown, or until the last recorder is gone.
    pub async fn run(mut self, shutdown: CancellationToken) {
        loop {
            let told = tokio::select! {
                () = shutdown.cancelled() => return,
                told = self.told.recv() => told,
            };
            let Some(told) = told else { return };
            let Some((key, delivery)) = self.correlator.correlate(told) else { continue };
            let (client, delivery) = (&self.client, &delivery);
            tokio::select! {
                () = shutdown.cancelled() => return,
                written = persist(move || attempt(client, delivery)) => self.correlator.written(key, written),
            }
        }
    }
}

/// The event as the server now holds it; `None` when it was refused or the server stays away.
pub(crate) async fn persist<E, Attempt>(attempt: impl Fn() -> Attempt) -> Option<E>
where
    Attempt: Future<Output = Result<E, Error>>,
{
    let mut delay = Duration::from_millis(500);
    for _ in 0..TRIES {
        match attempt().await {
            Ok(event) => return Some(event),
            Err(Error::Transport(error)) => tracing::debug!(%error, "an event cannot be delivered yet"),
            Err(error) => {
                tracing::debug!(%error, "the server rejected an event");
                return None;
            }
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_secs(10));
    }
    None
}

async fn attempt(client: &Client, delivery: &Delivery) -> Result<Event, Error> {
    let event = match delivery {
        Delivery::Create(event) => event,
        Delivery::Count(event) => {
            let value = event.to_value();
            let patch = serde_json::json!({
                "count": value["count"],
                "lastTimestamp": value["lastTimestamp"],
                "message": value["message"],
            });
            let patched = client.patch(event.namespace(), event.name(), None, PatchType::Merge, &patch).await;
            match patched {
                Err(error) if error.is_not_found() => event,
                outcome => return outcome,
            }
        }
    };
    client.create(&**event).await
}

/// Events are the same when all but time and count are.
type EventKey = (ObjectKey, EventType, String, String);
/// Of an event's subject: namespace, kind, name, uid, field path.
type ObjectKey = (String, String, String, String, String);

fn object_key(about: &ObjectReference) -> ObjectKey {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    (text(&about.namespace), text(&about.kind), text(&about.name), text(&about.uid), text(&about.field_path))
}

struct Similar {
    messages: BTreeSet<String>,
    last: jiff::Timestamp,
}

struct Bucket {
    tokens: f64,
    last: jiff::Timestamp,
}

struct Known {
    name: String,
    count: i32,
    first: jiff::Timestamp,
}

/// Decides what becomes of a told event: nothing when its subject is told of too often, a count when it was
/// told before, one line for many when only its message varies.
struct Correlator {
    source: EventSource,
    known: HashMap<EventKey, Known>,
    similar: HashMap<(ObjectKey, EventType, String), Similar>,
    buckets: HashMap<ObjectKey, Bucket>,
}

impl Correlator {
    fn new(source: EventSource) -> Self {
        Correlator { source, known: HashMap::new(), similar: HashMap::new(), buckets: HashMap::new() }
    }

    fn correlate(&mut self, told: Told) -> Option<(EventKey, Delivery)> {
        let about = object_key(&told.about);
        let message = self.aggregate(&about, &told);
        if !self.admit(&about, told.at) {
            return None;
        }
        // Aggregated events are one whatever their message.
        let distinct = if message == told.message { message.clone() } else { String::new() };
        let key = (about, told.kind, told.reason.clone(), distinct);
        Some(match self.known.get_mut(&key) {
            Some(known) => {
                known.count = known.count.saturating_add(1);
                let event = event(&self.source, &told, message, known);
                (key, Delivery::Count(Box::new(event)))
            }
            None => {
                let known = Known { name: event_name(&told.about, told.at), count: 1, first: told.at };
                let event = event(&self.source, &told, message, &known);
                make_room(&mut self.known);
                self.known.insert(key.clone(), known);
                (key, Delivery::Create(Box::new(event)))
            }
        })
    }

    /// What the server answered: an event that it does not hold is not counted up.
    fn written(&mut self, key: EventKey, event: Option<Event>) {
        match event {
            Some(event) => {
                if let Some(known) = self.known.get_mut(&key) {
                    known.name = event.name().to_owned();
                }
            }
            None => drop(self.known.remove(&key)),
        }
    }

    /// The message, or the one that stands for many.
    fn aggregate(&mut self, about: &ObjectKey, told: &Told) -> String {
        let key = (about.clone(), told.kind, told.reason.clone());
        make_room(&mut self.similar);
        let similar =
            self.similar.entry(key).or_insert_with(|| Similar { messages: BTreeSet::new(), last: told.at });
        if told.at.as_second() - similar.last.as_second() > SIMILAR_SECONDS {
            similar.messages.clear();
        }
        similar.last = told.at;
        similar.messages.insert(told.message.clone());
        if similar.messages.len() < SIMILAR_MAX {
            return told.message.clone();
        }
        if similar.messages.len() > SIMILAR_MAX {
            similar.messages.pop_first();
        }
        format!("(combined from similar events): {}", told.message)
    }

    fn admit(&mut self, about: &ObjectKey, now: jiff::Timestamp) -> bool {
        make_room(&mut self.buckets);
        let bucket =
            self.buckets.entry(about.clone()).or_insert_with(|| Bucket { tokens: SPAM_BURST, last: now });
        let elapsed = now.duration_since(bucket.last).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + elapsed * SPAM_TOKENS_PER_SECOND).min(SPAM_BURST);
        bucket.last = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }
}

/// The name of an event about an object.
pub(crate) fn event_name(about: &ObjectReference, at: jiff::Timestamp) -> String {
    format!("{}.{:x}", about.name.as_deref().unwrap_or_default(), at.as_nanosecond())
}

/// A full cache is emptied: what is lost is only that a few repeats become new events.
pub(crate) fn make_room<K, V>(cache: &mut HashMap<K, V>) {
    if cache.len() >= CACHE {
        cache.clear();
    }
}

fn event(source: &EventSource, told: &Told, message: String, known: &Known) -> Event {
    let namespace =
        told.about.namespace.clone().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into());
    let mut event = Event {
        involved_object: told.about.clone(),
        reason: Some(told.reason.clone()),
        message: Some(message),
        type_: Some(told.kind.as_str().to_owned()),
        count: Some(known.count),
        first_timestamp: Some(api::meta::Time(known.first)),
        last_timestamp: Some(api::meta::Time(told.at)),
        source: Some(source.clone()),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone().or(Some(String::new())),
        ..Default::default()
    };
    event.metadata.namespace = Some(namespace);
    event.metadata.name = Some(known.name.clone());
    event
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(reason: &str, message: &str, second: i64) -> Told {
        let about = ObjectReference {
            kind: Some("Pod".into()),
            namespace: Some("ns".into()),
            name: Some("web".into()),
            ..Default::default()
        };
        let at = jiff::Timestamp::from_second(second).unwrap();
        Told { about, kind: EventType::Normal, reason: reason.into(), message: message.into(), at }
    }

    fn correlator() -> Correlator {
        Correlator::new(EventSource { component: Some("test".into()), host: None })
    }

    fn words(outcome: Option<(EventKey, Delivery)>) -> String {
        match outcome {
            None => "dropped".into(),
            Some((_, Delivery::Create(e))) => {
                format!("create {} {}", e.name(), e.message.as_deref().unwrap())
            }
            Some((_, Delivery::Count(e))) => {
                format!("count {} {}", e.count.unwrap(), e.message.as_deref().unwrap())
            }
        }
    }

    #[test]
    fn repeats_are_counted() {
        let mut correlator = correlator();
        assert_eq!(words(correlator.correlate(told("Pulled", "a", 1))), "create web.3b9aca00 a");
        assert_eq!(words(correlator.correlate(told("Pulled", "a", 2))), "count 2 a");
        assert_eq!(words(correlator.correlate(told("Pulled", "b", 3))), "create web.b2d05e00 b");
    }

    #[test]
    fn varying_messages_are_combined_and_spam_is_dropped() {
        let mut correlator = correlator();
        let all: Vec<_> =
            (0..30).map(|i| words(correlator.correlate(told("Failed", &format!("m{i}"), i)))).collect();
        assert!(all[8].starts_with("create") && all[8].ends_with(" m8"));
        assert!(all[9].starts_with("create") && all[9].ends_with("(combined from similar events): m9"));
        assert_eq!(all[10], "count 2 (combined from similar events): m10");
        assert_eq!(all[25], "dropped");
        assert_ne!(words(correlator.correlate(told("Failed", "later", 400))), "dropped");
    }

    #[test]
    fn a_refused_event_is_not_counted() {
        let mut correlator = correlator();
        let (key, _) = correlator.correlate(told("Pulled", "a", 1)).unwrap();
        correlator.written(key, None);
        assert!(words(correlator.correlate(told("Pulled", "a", 2))).starts_with("create"));
    }
}
