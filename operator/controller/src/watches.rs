//! Caches of objects, filled by watches and trimmed to what is read.
//!
//! Owns how several namespaces become one cache. Does not own what is done about a change: whoever starts a watch
//! says whom it wakes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::stream::{BoxStream, SelectAll, Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::{Store, Writer};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::ClusterKey;
use crate::metrics::Metrics;

/// Objects that one page of a list has: a job may carry 96 KiB, and its last applied manifest as much again.
const PAGE_SIZE: u32 = 100;

/// Objects that shall be looked at, each at most once, so that the queue is never longer than there are objects.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: Mutex<BTreeSet<ClusterKey>>,
    woken: Notify,
}

impl Queue {
    /// Has this object looked at soon.
    pub fn wake(&self, key: ClusterKey) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.insert(key) {
            self.woken.notify_one();
        }
    }

    /// Has all these looked at soon.
    pub fn wake_all(&self, keys: impl IntoIterator<Item = ClusterKey>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(keys);
        self.woken.notify_one();
    }

    /// The next object; waits until there is one. One task at a time may call it.
    pub async fn next(&self) -> ClusterKey {
        loop {
            let woken = self.woken.notified();
            let next = self
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_first();
            if let Some(key) = next {
                return key;
            }
            woken.await;
        }
    }

    /// The objects as they are woken.
    pub fn stream(self: Arc<Self>) -> impl Stream<Item = ClusterKey> {
        futures::stream::unfold(self, |queue| async move {
            let key = queue.next().await;
            Some((key, queue))
        })
    }
}

/// Namespace and name of an object.
pub fn key_of<K: Resource>(object: &K) -> ClusterKey {
    ClusterKey {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

/// Reference to the object with this key.
pub fn reference<K: Resource<DynamicType = ()>>(key: &ClusterKey) -> ObjectRef<K> {
    ObjectRef::new(&key.name).within(&key.namespace)
}

/// What is watched.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Labels that objects must carry; all objects where empty.
    pub labels: String,
    /// Namespaces; all where empty.
    pub namespaces: Vec<String>,
}

impl Selection {
    fn config(&self) -> watcher::Config {
        let config = watcher::Config::default().page_size(PAGE_SIZE);
        if self.labels.is_empty() {
            config
        } else {
            config.labels(&self.labels)
        }
    }

    fn apis<K>(&self, client: &Client) -> Vec<Api<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        if self.namespaces.is_empty() {
            return vec![Api::all(client.clone())];
        }
        let namespaced = |namespace: &String| Api::namespaced(client.clone(), namespace);
        self.namespaces.iter().map(namespaced).collect()
    }
}

/// Keeps a cache of whole objects, after `trim` took away what nobody reads. `touched` is told every object that
/// appeared, changed or went.
pub async fn watch_objects<K>(
    client: Client,
    selection: Selection,
    writer: Writer<K>,
    metrics: Arc<Metrics>,
    trim: impl FnMut(&mut K) + Send,
    touched: impl FnMut(&K) + Send,
) where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let watches = selection.apis(&client).into_iter();
    let watches = watches
        .map(|api| watcher::watcher::<K>(api, selection.config()).boxed())
        .collect();
    fill(watches, writer, &metrics, trim, touched).await;
}

/// As [`watch_objects`], for objects that are in no namespace.
pub async fn watch_all<K>(
    api: Api<K>,
    writer: Writer<K>,
    metrics: Arc<Metrics>,
    trim: impl FnMut(&mut K) + Send,
    touched: impl FnMut(&K) + Send,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let watch = watcher::watcher::<K>(api, Selection::default().config()).boxed();
    fill(vec![watch], writer, &metrics, trim, touched).await;
}

type Watch<K> = BoxStream<'static, watcher::Result<Event<K>>>;

/// Follows all watches for as long as it is polled.
async fn fill<K>(
    watches: Vec<Watch<K>>,
    mut writer: Writer<K>,
    metrics: &Metrics,
    mut trim: impl FnMut(&mut K) + Send,
    mut touched: impl FnMut(&K) + Send,
) where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let cache = writer.as_reader();
    let mut merge = Merge::new(watches.len());
    let numbered = |(index, stream): (usize, Watch<K>)| {
        stream.default_backoff().map(move |event| (index, event)).boxed()
    };
    let mut events: SelectAll<_> = watches.into_iter().enumerate().map(numbered).collect();
    while let Some((index, event)) = events.next().await {
        match event {
            Ok(event) => {
                for event in merge.take(index, event.modify(&mut trim), &cache) {
                    apply(&mut writer, &cache, &event, &mut touched);
                }
            }
            Err(error) => {
                let kind = K::kind(&()).into_owned();
                metrics.watch_failed(&kind);
                tracing::warn!(kind, %error, "a watch broke and is started again");
            }
        }
    }
}

/// Applies one event and tells what it touched, also what went while nobody watched.
fn apply<K>(writer: &mut Writer<K>, cache: &Store<K>, event: &Event<K>, touched: &mut impl FnMut(&K))
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    let before = if matches!(event, Event::InitDone) {
        cache.state()
    } else {
        Vec::new()
    };
    writer.apply_watcher_event(event);
    match event {
        Event::Apply(object) | Event::InitApply(object) | Event::Delete(object) => touched(object),
        Event::Init => {}
        Event::InitDone => {
            // Told a second time, since the cache has them only now.
            cache.state().iter().for_each(|object| touched(object));
            before
                .iter()
                .filter(|object| cache.get(&reference(&key_of(object.as_ref()))).is_none())
                .for_each(|object| touched(object));
        }
    }
}

/// Makes one sequence of events from those of several watches: it is complete when all have listed, and a watch that
/// lists again later removes only what it no longer has.
struct Merge<K> {
    watches: Vec<Watched>,
    /// What was seen while not all have listed.
    early: BTreeMap<ClusterKey, K>,
    complete: bool,
}

#[derive(Default)]
struct Watched {
    known: BTreeSet<ClusterKey>,
    /// What is not listed yet, while it lists again.
    missing: BTreeSet<ClusterKey>,
    listed: bool,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Merge<K> {
    fn new(watches: usize) -> Self {
        let watches = (0..watches).map(|_| Watched::default()).collect();
        Merge {
            watches,
            early: BTreeMap::new(),
            complete: false,
        }
    }

    fn take(&mut self, index: usize, event: Event<K>, cache: &Store<K>) -> Vec<Event<K>> {
        // A single watch is its own sequence, and the cache replaces itself when it lists again.
        if self.watches.len() == 1 {
            return vec![event];
        }
        let watched = &mut self.watches[index];
        match event {
            Event::Init => watched.missing = watched.known.clone(),
            Event::InitApply(object) | Event::Apply(object) => {
                let key = key_of(&object);
                watched.missing.remove(&key);
                watched.known.insert(key.clone());
                if self.complete {
                    return vec![Event::Apply(object)];
                }
                self.early.insert(key, object);
            }
            Event::Delete(object) => {
                watched.known.remove(&key_of(&object));
                if self.complete {
                    return vec![Event::Delete(object)];
                }
                self.early.remove(&key_of(&object));
            }
            Event::InitDone => {
                watched.listed = true;
                return self.listed(index, cache);
            }
        }
        Vec::new()
    }

    fn listed(&mut self, index: usize, cache: &Store<K>) -> Vec<Event<K>> {
        let gone = std::mem::take(&mut self.watches[index].missing);
        for key in &gone {
            self.watches[index].known.remove(key);
            self.early.remove(key);
        }
        if self.complete {
            let gone = gone.iter().filter_map(|key| cache.get(&reference(key)));
            return gone
                .map(|object| Event::Delete(object.as_ref().clone()))
                .collect();
        }
        if !self.watches.iter().all(|watched| watched.listed) {
            return Vec::new();
        }
        self.complete = true;
        let early = std::mem::take(&mut self.early)
            .into_values()
            .map(Event::InitApply);
        std::iter::once(Event::Init)
            .chain(early)
            .chain(std::iter::once(Event::InitDone))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use prometheus::Registry;

    use super::*;

    fn config_map(namespace: &str, name: &str) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some(namespace.to_owned());
        object.metadata.name = Some(name.to_owned());
        object
    }

    fn key(namespace: &str, name: &str) -> ClusterKey {
        ClusterKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    struct World {
        writer: Writer<ConfigMap>,
        cache: Store<ConfigMap>,
        merge: Merge<ConfigMap>,
        touched: Vec<String>,
    }

    impl World {
        fn of(watches: usize) -> World {
            let (cache, writer) = kube::runtime::reflector::store();
            World {
                writer,
                cache,
                merge: Merge::new(watches),
                touched: Vec::new(),
            }
        }

        fn take(&mut self, index: usize, event: Event<ConfigMap>) {
            for event in self.merge.take(index, event, &self.cache) {
                let touched = &mut self.touched;
                apply(&mut self.writer, &self.cache, &event, &mut |object| {
                    touched.push(object.name_any());
                });
            }
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> = self
                .cache
                .state()
                .iter()
                .map(|object| object.name_any())
                .collect();
            names.sort();
            names
        }

        fn is_ready(&self) -> bool {
            futures::FutureExt::now_or_never(self.cache.wait_until_ready()).is_some()
        }
    }

    #[test]
    fn a_cache_over_two_namespaces_is_ready_once_both_have_listed() {
        let mut world = World::of(2);
        world.take(0, Event::Init);
        world.take(0, Event::InitApply(config_map("a", "one")));
        world.take(0, Event::InitApply(config_map("a", "gone")));
        world.take(0, Event::InitDone);
        world.take(0, Event::Delete(config_map("a", "gone")));
        assert!(!world.is_ready());
        world.take(1, Event::Init);
        world.take(1, Event::InitApply(config_map("b", "two")));
        world.take(1, Event::InitDone);
        assert!(world.is_ready());
        assert_eq!(world.names(), ["one", "two"]);
    }

    #[test]
    fn a_namespace_that_lists_again_takes_away_only_its_own() {
        let mut world = World::of(2);
        for (index, namespace, name) in [(0, "a", "one"), (1, "b", "two")] {
            world.take(index, Event::Init);
            world.take(index, Event::InitApply(config_map(namespace, name)));
            world.take(index, Event::InitDone);
        }
        world.touched.clear();
        world.take(0, Event::Init);
        world.take(0, Event::InitApply(config_map("a", "three")));
        assert_eq!(world.names(), ["one", "three", "two"]);
        world.take(0, Event::InitDone);
        assert_eq!(world.names(), ["three", "two"]);
        assert_eq!(world.touched, ["three", "one"]);
    }

    #[test]
    fn what_went_while_the_watch_was_broken_is_told() {
        let mut world = World::of(1);
        world.take(0, Event::Init);
        world.take(0, Event::InitApply(config_map("a", "one")));
        world.take(0, Event::InitDone);
        world.touched.clear();
        world.take(0, Event::Init);
        world.take(0, Event::InitDone);
        assert_eq!(world.touched, ["one"]);
        assert!(world.names().is_empty());
    }

    #[tokio::test]
    async fn an_object_waits_once_however_often_it_is_woken() {
        let queue = Queue::default();
        queue.wake(key("a", "one"));
        queue.wake(key("a", "one"));
        queue.wake_all([key("a", "two"), key("a", "one")]);
        assert_eq!(queue.next().await, key("a", "one"));
        assert_eq!(queue.next().await, key("a", "two"));
        assert!(futures::FutureExt::now_or_never(queue.next()).is_none());
    }

    #[test]
    fn metrics_have_names_of_their_own() {
        let registry = Registry::new();
        Metrics::new(&registry).unwrap();
        assert!(Metrics::new(&registry).is_err());
    }
}
