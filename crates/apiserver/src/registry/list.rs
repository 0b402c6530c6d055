//! Lists: consistent, at a revision, and in pages.

use std::sync::Arc;

use apimachinery::Status;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use base64::{DecodeError, Engine};
use serde::{Deserialize, Serialize};
use storage::{RangeOptions, Revision};

use super::cache::State;
use super::object::Object;
use super::{Registry, Resource, store_error};
use crate::options::{ListOptions, VersionMatch};

/// Objects of one revision, or of a page of it.
pub struct Listing {
    pub objects: Vec<Arc<Object>>,
    pub revision: Revision,
    /// Empty on the last page.
    pub continue_token: String,
    /// How many follow, unless a selector makes that unknown.
    pub remaining: Option<usize>,
}

/// Where a list goes on. Upstream's token, so that clients that look inside find what they expect.
///
/// Upstream: apiserver/pkg/storage/continue.go
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    /// Negative: at the newest revision, whatever it is.
    rv: i64,
    /// The key after which to go on, below the resource's prefix, with a zero byte behind it.
    start: String,
}

fn encode_token(revision: i64, start: &str) -> String {
    let token = Token { v: "meta.k8s.io/v1".into(), rv: revision, start: format!("{start}\0") };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("a token is strings and a number"))
}

fn decode_token(text: &str) -> Result<Token, Status> {
    let bad = |why: String| {
        Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"))
    };
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|error| {
        let at = match error {
            DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
            DecodeError::InvalidLength(length) => length - length % 4,
            DecodeError::InvalidPadding => text.len(),
        };
        bad(format!("illegal base64 data at input byte {at}"))
    })?;
    let token: Token = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
    if token.v != "meta.k8s.io/v1" {
        return Err(bad(format!("server does not recognize this encoded version {:?}", token.v)));
    }
    if token.rv == 0 {
        return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)".into()));
    }
    if token.start.is_empty() || token.start.starts_with('/') || token.start.contains("..") {
        return Err(bad(token.start));
    }
    Ok(token)
}

const EXPIRED_CONTINUE: &str = "The provided continue parameter is too old to display a consistent list result. \
     You can start a new list without the continue parameter, or use the continue token in this response to \
     retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - \
     objects that were created, modified, or deleted between the time the first chunk was returned and now may \
     show up in the list.";

impl ListOptions {
    /// Whether an object is one of those asked for.
    pub fn matches(&self, resource: &Resource, object: &Object) -> bool {
        let labels = object_labels(self, object);
        labels && self.fields.matches(|path| object.field(&resource.def, path))
    }

    pub fn selects_all(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }
}

fn object_labels(options: &ListOptions, object: &Object) -> bool {
    options.labels.is_empty() || options.labels.matches_map(object.labels())
}

/// A list being gathered.
struct Page<'a> {
    resource: &'a Resource,
    options: &'a ListOptions,
    prefix: String,
    after: Option<String>,
}

impl Registry {
    /// `namespace` is empty for all.
    pub async fn list(
        &self,
        resource: &Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<Listing, Status> {
        if resource.def.custom.is_none() {
            return self.list_stored(resource, namespace, options).await;
        }
        // What a selector is asked about is the object as the row shows it.
        let mut all = options.clone();
        let selects = !options.selects_all();
        if selects {
            (all.labels, all.fields) = Default::default();
        }
        let mut shown = Vec::new();
        loop {
            let listing = self.list_stored(resource, namespace, &all).await?;
            let views = self.views(resource, listing.objects).await?;
            shown.extend(views.into_iter().filter(|view| !selects || options.matches(resource, view)));
            let full = options.limit == 0 || shown.len() >= options.limit || !selects;
            if full || listing.continue_token.is_empty() {
                return Ok(Listing {
                    objects: shown,
                    remaining: listing.remaining.filter(|_| !selects),
                    ..listing
                });
            }
            // As many as are still wanted, so that the token is behind the last one.
            all.limit = options.limit - shown.len();
            all.continue_token = listing.continue_token;
            all.resource_version.clear();
            all.version_match = None;
        }
    }

    /// The objects as they are stored.
    async fn list_stored(
        &self,
        resource: &Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<Listing, Status> {
        let mut page = Page { resource, options, prefix: resource.prefix(namespace), after: None };
        if !options.continue_token.is_empty() {
            if !matches!(options.resource_version.as_str(), "" | "0") {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let token = decode_token(&options.continue_token)?;
            let start = token.start.trim_end_matches('\0');
            page.after = Some(format!("{}{start}", page.prefix));
            return match Revision::try_from(token.rv) {
                Ok(revision) => self.list_at(&page, revision).await.map_err(|error| expired(error, start)),
                Err(_) => self.list_now(&page),
            };
        }
        match (options.revision()?, options.version_match) {
            (Some(revision), Some(VersionMatch::Exact)) => {
                self.list_at(&page, revision).await.map_err(|mut error| {
                    if error.is_expired() {
                        error.message = "The resourceVersion for the provided list is too old.".into();
                    }
                    error
                })
            }
            (Some(revision), _) => {
                self.caught_up(revision).await?;
                // Upstream: apiserver/pkg/storage/cacher/delegator: what any cache knows is told at once.
                let whole = ListOptions { limit: 0, ..options.clone() };
                page.options = if revision == 0 { &whole } else { options };
                self.list_now(&page)
            }
            (None, _) => self.list_now(&page),
        }
    }

    fn list_now(&self, page: &Page<'_>) -> Result<Listing, Status> {
        // Read before the lock is taken: all changes up to here are in the state, and the state's own newest
        // change may be later.
        let progress = self.progress();
        let state = page.resource.cache()?.read();
        let revision = progress.max(state.newest());
        Ok(page.listing_of(&state, revision))
    }

    /// The state as of a revision: the present one when nothing changed since, else what the store kept. A revision
    /// that is forgotten is so for all, whether its objects have changed or not.
    async fn list_at(&self, page: &Page<'_>, revision: Revision) -> Result<Listing, Status> {
        self.caught_up(revision).await?;
        const NO_KEY: &str = "\0";
        let at = RangeOptions { revision: Some(revision), ..RangeOptions::default() };
        self.store().range(NO_KEY, at).await.map_err(store_error)?;
        {
            let state = page.resource.cache()?.read();
            if state.newest() <= revision {
                return Ok(page.listing_of(&state, revision));
            }
        }
        let mut objects = Vec::new();
        let mut after = page.after.clone();
        loop {
            let range =
                RangeOptions { after: after.take(), limit: page.options.limit, revision: Some(revision) };
            let range = self.store().range(&page.prefix, range).await.map_err(store_error)?;
            let last = range.entries.last().map(|entry| entry.key.to_string());
            for (at, entry) in range.entries.iter().enumerate() {
                let object = Arc::new(Object::new(entry));
                if page.options.selects_all() || page.options.matches(page.resource, &object) {
                    objects.push(object);
                }
                if page.full(&objects) {
                    let remaining = range.remaining + range.entries.len() - at - 1;
                    return Ok(page.finish(objects, revision, remaining));
                }
            }
            if range.remaining == 0 {
                return Ok(page.finish(objects, revision, 0));
            }
            after = last;
        }
    }
}

/// Tells an expired client how to go on.
fn expired(mut error: Status, start: &str) -> Status {
    if error.is_expired() {
        error.message = EXPIRED_CONTINUE.into();
        error.metadata.continue_token = encode_token(-1, start);
    }
    error
}

impl Page<'_> {
    fn full(&self, objects: &[Arc<Object>]) -> bool {
        self.options.limit > 0 && objects.len() >= self.options.limit
    }

    fn listing_of(&self, state: &State, revision: Revision) -> Listing {
        if let Some(object) = self.single(state) {
            let objects =
                object.into_iter().filter(|o| self.options.matches(self.resource, o)).cloned().collect();
            return self.finish(objects, revision, 0);
        }
        let all = self.options.selects_all();
        let mut objects = Vec::new();
        let mut range = state.range(&self.prefix, self.after.as_deref());
        for object in range.by_ref() {
            if all || self.options.matches(self.resource, object) {
                objects.push(object.clone());
            }
            if self.full(&objects) {
                break;
            }
        }
        let remaining = range.count();
        self.finish(objects, revision, remaining)
    }

    /// The one object that can match, when the name is asked for.
    fn single<'s>(&self, state: &'s State) -> Option<Option<&'s Arc<Object>>> {
        let name = self.options.fields.exact("metadata.name")?;
        let one_place = !self.resource.def.namespaced() || self.prefix != self.resource.prefix("");
        (one_place && self.after.is_none()).then(|| state.get(&format!("{}{name}", self.prefix)))
    }

    fn finish(&self, objects: Vec<Arc<Object>>, revision: Revision, remaining: usize) -> Listing {
        let mut listing = Listing { objects, revision, continue_token: String::new(), remaining: None };
        if remaining > 0
            && let Some(last) = listing.objects.last()
        {
            let start = last.key.strip_prefix(&self.prefix).unwrap_or_default();
            listing.continue_token = encode_token(i64::try_from(revision).unwrap_or(i64::MAX), start);
            listing.remaining = self.options.selects_all().then_some(remaining);
        }
        listing
    }
}
