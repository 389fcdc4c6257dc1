//! The simulated store: objects by key.

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
}

/// The store, as it is at the server.
#[derive(Debug, Default)]
pub(crate) struct Store {
    pub(crate) objects: BTreeMap<Arc<str>, Object>,
    /// Until then nobody reaches it.
    pub(crate) away_until: u64,
    /// Requests that were carried out, by kind.
    pub(crate) requests: u64,
}

impl Store {
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
        self.objects.remove(key).is_some()
    }

    /// Keys below a prefix.
    pub(crate) fn list(&mut self, prefix: &str) -> Vec<Arc<str>> {
        self.requests += 1;
        self.objects
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded))
            .map(|(key, _)| key)
            .take_while(|key| key.starts_with(prefix))
            .cloned()
            .collect()
    }
}
