//! [`Clock`]: the wall clock as a parameter.

use std::sync::Arc;

use jiff::Timestamp;

/// Tells the time of day. Only the binary reads the machine's clock; tests and simulations bring their own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Clock {
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        Clock(Arc::new(now))
    }

    pub fn now(&self) -> Timestamp {
        (self.0)()
    }

    /// Now, as API objects hold it.
    pub fn time(&self) -> api::meta::Time {
        api::meta::Time(self.now())
    }

    pub fn micro_time(&self) -> api::meta::MicroTime {
        api::meta::MicroTime(self.now())
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}
