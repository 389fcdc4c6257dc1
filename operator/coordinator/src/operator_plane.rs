//! The operator plane: what the operator learns of workers and work, and asks of workers, to scale them.
//!
//! Owns the service and its limits. Does not own the numbers (the engine's view) nor the marks (the engine).

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use prover_core::Timestamp;
use prover_runtime::Clock;
use prover_wire::operator_plane as wire;
use prover_wire::operator_plane::operator_plane_server::OperatorPlane;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::command::Command;
use crate::role::Standing;
use crate::sign_in::SignIn;
use crate::store_watch::StoreState;
use crate::view::{ClassDepth, ClusterView, GroupProofs, WorkerView};

/// Time between two states where the operator does not say.
const INTERVAL: Duration = Duration::from_secs(1);
/// Shortest time between two states: that of the views.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(200);
/// A state is told at least this often, so that the operator knows that it is current.
const LONGEST_SILENCE: Duration = Duration::from_secs(10);
/// Pods that one request names: as many workers as a cluster may have.
const PODS: usize = 20_000;
/// Longest name of a pod.
const POD_NAME_BYTES: usize = 253;

/// The service that the operator calls.
#[derive(Debug)]
pub(crate) struct OperatorPlaneService {
    pub(crate) sign_in: SignIn,
    pub(crate) standing: Standing,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) cluster: watch::Receiver<Arc<ClusterView>>,
    pub(crate) store: watch::Receiver<StoreState>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) stop: CancellationToken,
}

type StateStream = Pin<Box<dyn Stream<Item = Result<wire::ClusterState, Status>> + Send>>;

#[tonic::async_trait]
impl OperatorPlane for OperatorPlaneService {
    type WatchStream = StateStream;

    async fn watch(&self, request: Request<wire::WatchRequest>) -> Result<Response<StateStream>, Status> {
        self.sign_in.operator(&request).await?;
        self.standing.check()?;
        let interval = match request.get_ref().interval_ms {
            0 => INTERVAL,
            asked => Duration::from_millis(asked.into()).clamp(SHORTEST_INTERVAL, LONGEST_SILENCE),
        };
        let watching = Watching {
            cluster: self.cluster.clone(),
            store: self.store.clone(),
            clock: Arc::clone(&self.clock),
            stop: self.stop.clone(),
            interval,
            first: true,
            standing: self.standing.clone(),
        };
        Ok(Response::new(Box::pin(stream::unfold(
            watching,
            |mut watching| async move {
                let state = watching.next().await?;
                Some((Ok(state), watching))
            },
        ))))
    }

    async fn set_leaving(
        &self,
        request: Request<wire::SetLeavingRequest>,
    ) -> Result<Response<wire::SetLeavingResponse>, Status> {
        self.sign_in.operator(&request).await?;
        self.standing.check()?;
        let pods = request.into_inner().pods;
        if pods.len() > PODS || pods.iter().any(|pod| pod.len() > POD_NAME_BYTES) {
            return Err(Status::invalid_argument(format!(
                "at most {PODS} pods may leave, each with a name of at most {POD_NAME_BYTES} bytes"
            )));
        }
        let pods: BTreeSet<Arc<str>> = pods.into_iter().map(Into::into).collect();
        let (reply, answer) = oneshot::channel();
        let stopped = || Status::unavailable("the coordinator is shutting down");
        self.commands
            .send(Command::SetLeaving { pods, reply })
            .await
            .map_err(|_| stopped())?;
        let unknown = answer.await.map_err(|_| stopped())?;
        Ok(Response::new(wire::SetLeavingResponse {
            unknown: unknown.iter().map(ToString::to_string).collect(),
        }))
    }
}

/// One watch.
struct Watching {
    cluster: watch::Receiver<Arc<ClusterView>>,
    store: watch::Receiver<StoreState>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
    interval: Duration,
    first: bool,
    standing: Standing,
}

impl Watching {
    /// The next state, none when the coordinator stops.
    async fn next(&mut self) -> Option<wire::ClusterState> {
        if !std::mem::take(&mut self.first) {
            tokio::select! {
                () = self.stop.cancelled() => return None,
                () = tokio::time::sleep(self.interval) => {}
            }
            let silence = LONGEST_SILENCE.saturating_sub(self.interval);
            tokio::select! {
                () = self.stop.cancelled() => return None,
                changed = self.cluster.changed() => changed.ok()?,
                changed = self.store.changed() => changed.ok()?,
                () = tokio::time::sleep(silence) => {}
            }
        }
        if !self.standing.leads() {
            return None;
        }
        let view = self.cluster.borrow_and_update().clone();
        let store = self.store.borrow_and_update().clone();
        Some(state(&view, store, Timestamp(self.clock.now_milliseconds())))
    }
}

/// A view in the words of the operator plane.
fn state(view: &ClusterView, store: StoreState, now: Timestamp) -> wire::ClusterState {
    let class = |name: &str, depth: &ClassDepth| wire::ClassWork {
        device_class: name.to_owned(),
        waiting_tasks: depth.waiting_tasks,
        running_tasks: depth.running_tasks,
        waiting_device_seconds: depth.waiting_device_seconds,
        running_device_seconds: depth.running_device_seconds,
    };
    let groups = view.groups.iter().map(|told| wire::GroupWork {
        group: told.group.to_string(),
        waiting_tasks: told.work.waiting_tasks,
        running_tasks: told.work.running_tasks,
        waiting_device_seconds: told.work.waiting_device_seconds,
        running_device_seconds: told.work.running_device_seconds,
        jobs_without_worker: told.jobs_without_worker,
    });
    let pinned = view.pinned_backends.iter();
    wire::ClusterState {
        epoch: view.epoch,
        waiting_jobs: view.queue_depth.queued_jobs,
        running_jobs: view.queue_depth.running_jobs,
        groups: groups.collect(),
        workers: view.workers.iter().map(|told| worker(told, now)).collect(),
        classes: vec![
            class("cpu", &view.queue_depth.cpu),
            class("gpu", &view.queue_depth.gpu),
        ],
        pinned_backend_versions: pinned
            .map(|backend| format!("{} {}", backend.name, backend.version))
            .collect(),
        store_ready: Some(store.ready),
        store_reason: store.reason.to_owned(),
        store_message: store.message,
        proofs: view.proofs.iter().map(proofs).collect(),
    }
}

fn proofs(told: &GroupProofs) -> wire::GroupProofs {
    let withheld = told.withheld.iter().map(|told| wire::WithheldProof {
        system: told.system.clone(),
        kind: told.kind.clone(),
        reason: told.reason.clone(),
        message: told.message.clone(),
        workers: u32::try_from(told.workers).unwrap_or(u32::MAX),
    });
    let offered = told.offered.iter();
    wire::GroupProofs {
        group: told.group.to_string(),
        offered: offered.map(|(system, kind)| format!("{system}/{kind}")).collect(),
        withheld: withheld.collect(),
    }
}

fn worker(told: &WorkerView, now: Timestamp) -> wire::WorkerState {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    wire::WorkerState {
        pod: told.pod.as_deref().unwrap_or(&told.worker_id).to_owned(),
        group: told.group.to_string(),
        connected: told.connected,
        leaving: told.leaving || told.draining,
        attempts: count(told.attempts),
        devices: count(told.devices),
        failed_devices: count(told.failed_devices),
        idle_ms: told.idle_since.map_or(0, |since| (now - since).0.max(1)),
        backend_version: format!("{} {}", told.backend.name, told.backend.version),
    }
}
