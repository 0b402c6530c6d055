//! What every controller stands on: caches of the API server's state that keep themselves fresh, and the
//! means to act on what they say.
//!
//! Start with [`InformerFactory`]: one list and watch per kind, however many parts of a controller read it.
//! Handlers of an [`Informer`] put keys into a [`WorkQueue`], [`run_workers`] takes them out and reconciles,
//! [`EventRecorder`] and [`SeriesRecorder`] tell people what was done, [`LeaderElector`] lets one replica of many act:
//! the first to come, or whom the API server chooses of those that declare their [`Candidacy`].
//!
//! What always holds:
//! - Nothing polls. An idle cluster costs open watches and nothing else.
//! - A cache is level-triggered truth: whoever missed an event still finds the state.
//! - What is written through an [`Informer`] is read back from it at once ([`Informer::create`] and its
//!   siblings), so that controllers need no bookkeeping of expected events.
//!
//! Deliberately absent: periodic resyncs, expectations, a controller object.

mod batch;
mod candidate;
mod clock;
mod discovery;
mod events;
mod identity;
mod informer;
mod leader;
mod metadata;
mod metrics;
mod queue;
mod reading;
mod reflector;
mod series;
mod store;
mod worker;

pub use batch::{Deletions, retry_on_conflict, slow_start};
pub use candidate::Candidacy;
pub use clock::Clock;
pub use discovery::{ApiResource, discover};
pub use events::{EventDelivery, EventRecorder, EventType, reference};
pub use identity::Identity;
pub use informer::{Filter, Informer, InformerFactory};
pub use leader::LeaderElector;
pub use metadata::Metadata;
pub use metrics::{QueueMetrics, scrape};
pub use queue::WorkQueue;
pub use series::{Deed, SeriesDelivery, SeriesRecorder};
pub use store::{Cached, Event};
pub use worker::run_workers;
