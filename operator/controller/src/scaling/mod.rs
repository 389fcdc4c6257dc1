//! Replicas of worker groups: what coordinators tell of their work becomes a number of workers, to and from zero.
//!
//! Owns the replicas of worker Deployments, written through `/scale` only, who leaves, and the operator's stream to each
//! coordinator. Does not own the Deployments themselves, nor the status of a ProverCluster.

mod execute;
mod gather;
pub mod model;
pub mod plan;
pub mod plane;
#[cfg(test)]
mod simulation;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::core::DeserializeGuard;
use kube::runtime::controller::Action;
use prover_crds::ProverCluster;
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::caches::Queues;
use crate::drive::{Driver, Failure};
use crate::metrics::ControllerName;
use crate::watches::{key_of, reference};
use crate::{ClusterKey, Context};
use execute::{ScaleError, execute};
use gather::gather;
use plan::{History, plan_cluster};
use plane::{Dial, DialService, Plane};

/// ProverClusters whose replicas are decided at once.
const CONCURRENCY: u16 = 8;
/// Changes of pods come in bursts: looked at together.
const DEBOUNCE: Duration = Duration::from_millis(50);
/// A cluster is looked at again after this time although nothing changed, since cooldowns pass.
const LOOK_PERIOD: Duration = Duration::from_secs(5);
/// Between two looks for streams of clusters that went.
const SWEEP_PERIOD: Duration = Duration::from_secs(10);

/// The stream to a coordinator, and what is remembered of its groups.
struct Scaled {
    plane: Arc<Plane>,
    history: Mutex<History>,
    _stop: DropGuard,
}

struct Scaler {
    context: Arc<Context>,
    queues: Queues,
    dial: Arc<dyn Dial>,
    clusters: Mutex<BTreeMap<ClusterKey, Arc<Scaled>>>,
    streams: tokio::sync::Mutex<JoinSet<()>>,
}

/// Looks after the replicas of all clusters until `stop`.
pub(crate) async fn run(context: Arc<Context>, queues: Queues, stop: CancellationToken) {
    let driver = Driver {
        name: ControllerName::Scaling,
        concurrency: CONCURRENCY,
        debounce: DEBOUNCE,
        metrics: context.metrics.clone(),
        clock: Arc::clone(&context.clock),
    };
    let store = context.caches.clusters.clone();
    let scaler = Arc::new(Scaler {
        context,
        queues: queues.clone(),
        dial: Arc::new(DialService),
        clusters: Mutex::default(),
        streams: tokio::sync::Mutex::default(),
    });
    let look = {
        let scaler = Arc::clone(&scaler);
        move |cluster| {
            let scaler = Arc::clone(&scaler);
            async move { scaler.look_at(cluster).await }
        }
    };
    tokio::select! {
        () = driver.run(store, queues.scaling, stop.cancelled_owned(), look) => {}
        () = scaler.sweep() => {}
    }
}

impl Scaler {
    async fn look_at(&self, cluster: Arc<DeserializeGuard<ProverCluster>>) -> Result<Action, Failure> {
        let Ok(cluster) = &cluster.0 else {
            return Ok(Action::await_change());
        };
        let key = key_of(cluster);
        let scaled = self.scaled(&key).await;
        let state = scaled.plane.state();
        let facts = gather(cluster, &key, &self.context.caches, state.as_deref());
        let now_ms = self.context.clock.now_milliseconds();
        let decision = {
            let mut history = scaled.history.lock().unwrap_or_else(PoisonError::into_inner);
            plan_cluster(&facts, &mut history, now_ms)
        };
        let executed = execute(
            &self.context,
            &key,
            &facts,
            &decision,
            (&scaled.plane, state.as_deref()),
        )
        .await;
        executed.map_err(|error: ScaleError| Failure {
            category: error.category(),
            retry: error.retry(),
            message: error.to_string(),
        })?;
        Ok(Action::requeue(LOOK_PERIOD))
    }

    /// The stream to this cluster's coordinator, opened where there is none yet.
    async fn scaled(&self, key: &ClusterKey) -> Arc<Scaled> {
        let mut streams = self.streams.lock().await;
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(scaled) = clusters.get(key) {
            return Arc::clone(scaled);
        }
        let plane = Plane::new(
            key.clone(),
            Arc::clone(&self.context),
            Arc::clone(&self.dial),
            self.queues.clone(),
        );
        let plane = Arc::new(plane);
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let listening = Arc::clone(&plane);
        streams.spawn(async move { listening.listen(stopped).await });
        let scaled = Arc::new(Scaled {
            plane,
            history: Mutex::default(),
            _stop: stop.drop_guard(),
        });
        clusters.insert(key.clone(), Arc::clone(&scaled));
        scaled
    }

    /// Ends the streams of clusters that went, for as long as it is polled.
    async fn sweep(&self) {
        loop {
            tokio::time::sleep(SWEEP_PERIOD).await;
            let store = &self.context.caches.clusters;
            self.clusters
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|key, _| store.get(&reference(key)).is_some());
            let mut streams = self.streams.lock().await;
            while streams.try_join_next().is_some() {}
        }
    }
}
