//! The simulated store: objects by key, creation only if absent, lists that may be stale.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::Content;

/// What lies under a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Object {
    /// What an attempt or a user put there.
    Artifact(Content),
    /// The beginning of an upload that never ended.
    Torn,
    /// An object of the log.
    Bytes(Arc<[u8]>),
}

/// The store, as it is at the server.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) objects: BTreeMap<Arc<str>, Object>,
    /// When each object of the log was created, for lists that miss the last of them.
    created: BTreeMap<Arc<str>, u64>,
    /// Until then nobody reaches it.
    pub(crate) away_until: u64,
    /// Requests that were carried out, by kind.
    pub(crate) requests: u64,
}

impl Store {
    /// Creates an object. False: there is one already.
    pub(crate) fn create(&mut self, key: &Arc<str>, object: Object, now: u64) -> bool {
        self.requests += 1;
        if self.objects.contains_key(key) {
            return false;
        }
        self.created.insert(key.clone(), now);
        self.objects.insert(key.clone(), object);
        true
    }

    pub(crate) fn put(&mut self, key: &Arc<str>, object: Object) {
        self.requests += 1;
        self.objects.insert(key.clone(), object);
    }

    pub(crate) fn get(&mut self, key: &str) -> Option<Object> {
        self.requests += 1;
        self.objects.get(key).cloned()
    }

    /// True: it was there.
    pub(crate) fn delete(&mut self, key: &str) -> bool {
        self.requests += 1;
        self.created.remove(key);
        self.objects.remove(key).is_some()
    }

    /// Keys below a prefix, but for those that were created after `as_of`.
    pub(crate) fn list(&mut self, prefix: &str, as_of: u64) -> Vec<Arc<str>> {
        self.requests += 1;
        self.objects
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(prefix))
            .filter(|key| self.created.get(*key).is_none_or(|created| *created <= as_of))
            .cloned()
            .collect()
    }
}
