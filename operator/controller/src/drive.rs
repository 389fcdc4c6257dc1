//! Has objects of one kind looked at: woken ones, each by one task at a time, with a limit on how many at once.

use std::convert::Infallible;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::StreamExt;
use futures::{FutureExt, Stream};
use kube::Resource;
use kube::runtime::controller::{Action, Config, Error, applier};
use kube::runtime::reflector::store::Store;
use prover_runtime::Clock;

use crate::metrics::{ControllerName, Metrics};
use crate::retry::{Failures, Retry};
use crate::watches::{Queue, key_of, reference};

/// A failed look at an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Short name for metrics.
    pub category: &'static str,
    /// When it is worth trying again.
    pub retry: Retry,
    /// For people.
    pub message: String,
}

/// How objects of one kind are looked at.
pub struct Driver {
    /// Who looks, for metrics and logs.
    pub name: ControllerName,
    /// Objects looked at at once.
    pub concurrency: u16,
    /// Changes within this time are looked at together.
    pub debounce: Duration,
    /// Counts.
    pub metrics: Metrics,
    /// Times the looks.
    pub clock: Arc<dyn Clock>,
}

impl Driver {
    /// Looks at every object of `store` once, and from then on at those that `queue` wakes, until `stop` is ready; then
    /// waits for the looks that have begun.
    pub async fn run<K, Look, Looking>(
        self,
        store: Store<K>,
        queue: Arc<Queue>,
        stop: impl Future<Output = ()>,
        look: Look,
    ) where
        K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
        Look: Fn(Arc<K>) -> Looking + Clone + Send + Sync + 'static,
        Looking: Future<Output = Result<Action, Failure>> + Send,
    {
        queue.wake_all(store.state().iter().map(|object| key_of(object.as_ref())));
        let woken = queue
            .stream()
            .map(|key| Ok::<_, Infallible>(reference::<K>(&key)));
        let config = Config::default()
            .concurrency(self.concurrency)
            .debounce(self.debounce);
        let driver = Arc::new((self, Failures::default()));
        let reconcile = {
            let driver = Arc::clone(&driver);
            move |object: Arc<K>, _: Arc<()>| {
                let (driver, look) = (Arc::clone(&driver), look.clone());
                async move { Ok::<_, Infallible>(driver.0.look_at(object, look, &driver.1).await) }.boxed()
            }
        };
        let never = |_: Arc<K>, error: &Infallible, _: Arc<()>| match *error {};
        let looks = applier(
            reconcile,
            never,
            Arc::new(()),
            store,
            woken.take_until(stop),
            config,
        );
        forget_objects_that_went(looks, &driver.1).await;
    }

    async fn look_at<K, Look, Looking>(&self, object: Arc<K>, look: Look, failures: &Failures) -> Action
    where
        K: Resource<DynamicType = ()>,
        Look: Fn(Arc<K>) -> Looking,
        Looking: Future<Output = Result<Action, Failure>>,
    {
        let key = key_of(object.as_ref());
        let began = self.clock.now_milliseconds();
        let outcome = look(object).await;
        let took = Duration::from_millis(self.clock.now_milliseconds().saturating_sub(began));
        let category = outcome.as_ref().err().map(|failure| failure.category);
        self.metrics.reconciled(self.name, category, took);
        match outcome {
            Ok(action) => {
                failures.succeeded(&key);
                action
            }
            Err(failure) => {
                let again = failures.failed(&key, failure.retry);
                let (controller, reason) = (self.name.as_str(), failure.message);
                tracing::warn!(
                    controller,
                    namespace = key.namespace,
                    name = key.name,
                    ?again,
                    reason,
                    "failed"
                );
                again.map_or_else(Action::await_change, Action::requeue)
            }
        }
    }
}

async fn forget_objects_that_went<K>(
    looks: impl Stream<
        Item = Result<(kube::runtime::reflector::ObjectRef<K>, Action), Error<Infallible, Infallible>>,
    >,
    failures: &Failures,
) where
    K: Resource<DynamicType = ()>,
    K::DynamicType: Hash,
{
    let mut looks = std::pin::pin!(looks);
    while let Some(look) = looks.next().await {
        match look {
            Ok(_) => {}
            Err(Error::ObjectNotFound(gone)) => failures.succeeded(&crate::ClusterKey {
                namespace: gone.namespace.clone().unwrap_or_default(),
                name: gone.name.clone(),
            }),
            Err(error) => tracing::error!(%error, "a controller can't go on"),
        }
    }
}
