//! The store in memory: for tests and simulations. Nothing outlives the process.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::state::{FIRST_REVISION, Shared, State, decide_delete, decide_put, deletion_of};
use crate::{Entry, Expect, Follower, Range, RangeOptions, Result, Revision, Store, Watch};

pub struct Memory(Arc<Shared>);

impl Memory {
    pub fn new() -> Self {
        Memory(Shared::new(State::new(FIRST_REVISION)))
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Store for Memory {
    async fn revision(&self) -> Result<Revision> {
        Ok(self.0.revision())
    }

    async fn get(&self, key: &str, revision: Option<Revision>) -> Result<Option<Entry>> {
        self.0.get(key, revision)
    }

    async fn range(&self, prefix: &str, options: RangeOptions) -> Result<Range> {
        self.0.range(prefix, options)
    }

    async fn put(&self, key: &str, value: Bytes, expect: Expect) -> Result<Entry> {
        self.0.write(|state| {
            let change = decide_put(state.current(key), &key.into(), value, expect, state.revision() + 1)?;
            let entry = change.value.clone().expect("a put has a value");
            state.apply(Arc::new(change));
            bound(state);
            Ok(entry)
        })
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<Option<(Entry, Revision)>> {
        self.0.write(|state| {
            let Some(change) = decide_delete(state.current(key), &key.into(), expect, state.revision() + 1)?
            else {
                return Ok(None);
            };
            let deleted = change.previous.clone().expect("a delete has a previous entry");
            let revision = change.revision;
            state.apply(Arc::new(change));
            bound(state);
            Ok(Some((deleted, revision)))
        })
    }

    async fn put_and_delete(&self, key: &str, value: Bytes, expect: Expect) -> Result<(Entry, Revision)> {
        self.0.write(|state| {
            let change = decide_put(state.current(key), &key.into(), value, expect, state.revision() + 1)?;
            let (last, deletion) = deletion_of(&change);
            let revision = deletion.revision;
            state.apply(Arc::new(change));
            state.apply(Arc::new(deletion));
            bound(state);
            Ok((last, revision))
        })
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch> {
        self.0.watch(prefix, after)
    }

    fn follow(&self, after: Revision, follower: Follower) -> Result<()> {
        self.0.follow(after, follower)
    }

    async fn compact(&self, revision: Revision) -> Result<()> {
        self.0.write(|state| state.compact(revision));
        Ok(())
    }
}

fn bound(state: &mut State) {
    if let Some(revision) = state.excess() {
        state.compact(revision);
    }
}
