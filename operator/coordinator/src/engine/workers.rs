//! Workers and their streams: hello, replacement, loss, and what they report.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use prover_core::{
    Action, ArtifactName, AttemptId, Binding, Event, FailureClass, JobId, JobPhase, Milliseconds, Standing,
    Timestamp, WorkerId, WorkerSpec,
};
use prover_crds::names::{CONTROL_SLOT, backend_container};
use prover_wire::LEAVING_LIFE_MS;
use prover_wire::limits::MESSAGES_PER_BATCH;
use prover_wire::protocol as wire;
use prover_wire::protocol::coordinator_message::Message as Outbound;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use tonic::Status;

use super::Engine;
use crate::catalogue::Backend;
use crate::command::Connected;
use crate::container::{ContainerEnd, ContainerKey, Decision, HeldFailure, waits_for_container};
use crate::convert::{self, Completion, Hello, Report};
use crate::error::AdmissionError;
use crate::identity::Identity;
use crate::remembered::ShellChange;
use crate::session::{SessionHandle, envelope};
use crate::view::ExecutionReport;

/// How long a worker without a stream is known beyond its lease: a name for logs and a place for a late return.
const LOST_WORKER_MEMORY: Milliseconds = Milliseconds(60_000);

/// Reason of a job whose concluding task proved nothing that can be shown.
const INVALID_CONCLUSION: &str = "InvalidConclusion";

/// How long an acknowledgement may wait for something else that goes to the same worker: it would cost a message of its
/// own, and only a worker that leaves waits for it.
const ACKNOWLEDGE_WITHIN: Milliseconds = Milliseconds(20);

/// Metric label of what is said about another worker's attempt.
const FOREIGN_ATTEMPT: &str = "foreign_attempt";

/// Metric label of a key that belongs to another attempt.
const FOREIGN_KEY: &str = "foreign_key";

/// Pods that are remembered as gone: more than can go while a hello is waited for.
const GONE_PODS_REMEMBERED: usize = 8_192;

/// The latest pods that are gone, by UID.
#[derive(Debug, Default)]
pub(super) struct GonePods {
    known: BTreeSet<Arc<str>>,
    order: VecDeque<Arc<str>>,
}

impl GonePods {
    fn remember(&mut self, uid: &str) {
        let uid: Arc<str> = uid.into();
        if self.known.insert(Arc::clone(&uid)) {
            self.order.push_back(uid);
        }
        if self.order.len() > GONE_PODS_REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// A worker that is not gone.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) spec: WorkerSpec,
    /// Who signed in for it.
    pub(super) identity: Identity,
    pub(super) device_ids: Vec<Arc<str>>,
    pub(super) backend: Arc<Backend>,
    /// Its current stream.
    pub(super) session: Option<SessionHandle>,
    /// Messages for that stream, in their order.
    unsent: Vec<wire::CoordinatorMessage>,
    /// They go at the end of the turn. Else all are acknowledgements, which wait for something to travel with.
    urgent: bool,
    /// Until when they wait.
    acknowledge_at: Timestamp,
    /// It said that it drains: it waits for its acknowledgements before it goes.
    drains: bool,
    /// When it is forgotten, while it has no stream.
    forget_at: Option<Timestamp>,
    pub(super) host_memory_used_bytes: u64,
    pub(super) process_id: u64,
    /// As its agent process, which the nonce names, counts its streams; 0 where it does not.
    stream: u64,
    process_nonce: u64,
    pub(super) idle_since: Option<Timestamp>,
    /// Calls about artifacts that wait for their answer, with the name that they are about.
    pub(super) named_calls: BTreeMap<u64, ArtifactName>,
}

impl Engine {
    /// Reports of an older stream of the same worker are of no interest: the newer one said what it holds.
    pub(super) fn is_current(&self, worker: WorkerId, session: u64) -> bool {
        let current = self
            .workers
            .get(&worker)
            .and_then(|worker| worker.session.as_ref());
        current.is_some_and(|current| current.id == session)
    }

    pub(super) fn connect(
        &mut self,
        hello: Hello,
        identity: Identity,
        session: SessionHandle,
        reply: oneshot::Sender<Result<Connected, Status>>,
    ) {
        let answer = self.try_connect(hello, identity, session);
        let connected = answer.is_ok();
        // The reader waits for the answer even when its stream has ended.
        let _ = reply.send(answer);
        if connected {
            self.admit_waiting();
        }
    }

    fn try_connect(
        &mut self,
        hello: Hello,
        identity: Identity,
        session: SessionHandle,
    ) -> Result<Connected, Status> {
        let epoch = self.parts.epoch;
        if hello.highest_epoch > epoch {
            let told = format!(
                "this coordinator has epoch {epoch}, but the worker has seen epoch {}: a newer coordinator leads",
                hello.highest_epoch
            );
            return Err(Status::failed_precondition(told));
        }
        self.make_way(&hello.spec.name, &identity)?;
        self.refuse_late(&hello)?;
        let worker = match self.worker_ids.get(&hello.spec.name) {
            Some(worker) => *worker,
            None => {
                let worker = WorkerId(self.next_worker);
                self.next_worker += 1;
                worker
            }
        };
        let (pod, name) = (identity.pod_name().cloned(), hello.spec.name.clone());
        let held: Vec<AttemptId> = hello.held.iter().map(|held| held.attempt).collect();
        let spec = Box::new(hello.spec.clone());
        let actions = self.core_actions(Event::WorkerConnected {
            worker,
            spec,
            held: hello.held.clone(),
        });
        if let Some(refusal) = refusal_of(&actions, worker) {
            self.execute_all(actions);
            return Err(Status::resource_exhausted(refusal));
        }
        let backend = self.introduce(worker, hello, identity, session);
        let (stopped, actions) = split_stops(actions, worker, &held);
        self.send(
            worker,
            Outbound::Welcome(wire::Welcome {
                epoch,
                heartbeat_interval_ms: u64::try_from(self.parts.heartbeat_interval.as_millis())
                    .unwrap_or(u64::MAX),
                stop: stopped,
                batch_messages: u32::try_from(MESSAGES_PER_BATCH).unwrap_or(u32::MAX),
            }),
        );
        self.execute_all(actions);
        if let Some(pod) = pod {
            // One agent per pod: that this one is there proves that one of another name is not. Not before it is known
            // what this one holds: nothing of that may be given to others.
            self.not_awaited(|awaited| *awaited != *name && convert::pod_of(awaited) == &*pod);
        }
        self.mark_leaving(worker);
        Ok(Connected { worker, backend })
    }

    /// A hello that was long on its way says what its worker held then: heard after a newer one, it would take from
    /// the worker all that it was given since.
    fn refuse_late(&self, hello: &Hello) -> Result<(), Status> {
        let known = self.worker_ids.get(&hello.spec.name);
        let known = known.and_then(|worker| self.workers.get(worker));
        let newest = known
            .filter(|record| record.process_nonce == hello.process_nonce)
            .map(|record| record.stream);
        match newest {
            Some(newest) if 0 < hello.stream && hello.stream < newest => Err(Status::aborted(format!(
                "this is stream {} of the worker, which has opened stream {newest} since",
                hello.stream
            ))),
            _ => Ok(()),
        }
    }

    /// Nobody takes the place of a worker but the same pod, or a later one of the same name: that the later one
    /// exists proves that the earlier one does not.
    fn make_way(&mut self, name: &str, identity: &Identity) -> Result<(), Status> {
        if let Identity::Worker { pod_uid, .. } = identity
            && self.gone_pods.known.contains(pod_uid)
        {
            return Err(Status::unauthenticated("the pod of this worker is gone"));
        }
        let known = self.worker_ids.get(name).copied();
        let Some((worker, record)) = known.and_then(|worker| Some((worker, self.workers.get(&worker)?)))
        else {
            return Ok(());
        };
        match (&record.identity, identity) {
            (before, now) if before == now => Ok(()),
            (Identity::Worker { .. }, Identity::Worker { .. }) => {
                tracing::info!(%worker, name, "a later pod of the same name took the place of a worker");
                self.remove_worker(worker);
                Ok(())
            }
            _ => Err(Status::permission_denied(format!(
                "worker {name} is known under another identity"
            ))),
        }
    }

    fn introduce(
        &mut self,
        worker: WorkerId,
        hello: Hello,
        identity: Identity,
        session: SessionHandle,
    ) -> Arc<Backend> {
        let mut named_calls = BTreeMap::new();
        if let Some(previous) = self.workers.remove(&worker) {
            named_calls = previous.named_calls;
            if let Some(older) = previous.session {
                older.closer.close(Status::aborted(
                    "another stream of this worker took the place of this one",
                ));
            }
            if let Some(forget_at) = previous.forget_at {
                self.lost_workers.remove(&(forget_at, worker));
            }
            if previous.spec.backend != hello.spec.backend {
                self.catalogue.remove(worker);
            }
        }
        let backend = self.catalogue.add(worker, &hello.backend);
        tracing::info!(
            %worker, name = %hello.spec.name, group = %hello.spec.group, devices = hello.spec.devices.len(),
            backend = %backend.version.name, version = %backend.version.version, held = hello.held.len(),
            "a worker connected"
        );
        self.worker_ids.insert(hello.spec.name.clone(), worker);
        let record = Worker {
            spec: hello.spec,
            identity,
            device_ids: hello.device_ids,
            backend: Arc::clone(&backend),
            session: Some(session),
            unsent: Vec::new(),
            urgent: false,
            acknowledge_at: Timestamp::default(),
            drains: false,
            forget_at: None,
            host_memory_used_bytes: 0,
            process_id: hello.process_id,
            stream: hello.stream,
            process_nonce: hello.process_nonce,
            idle_since: None,
            named_calls,
        };
        self.groups.remember(&record.spec);
        self.workers.insert(worker, record);
        backend
    }

    /// Brings the core's mark of a worker in line with what the operator wants of its pod.
    fn mark_leaving(&mut self, worker: WorkerId) {
        let pod = self
            .workers
            .get(&worker)
            .and_then(|record| record.identity.pod_name());
        if let Some(pod) = pod {
            let leaving = self.leaving.contains(pod);
            self.apply(Event::WorkerLeavingChanged { worker, leaving });
            if leaving {
                self.acknowledge_now(worker);
            }
        }
    }

    /// An operator that does not say again who shall leave is away, and nobody would take the marks back.
    pub(super) fn lapse_leaving(&mut self, now: Timestamp) {
        if self.leaving_until.is_some_and(|until| until <= now) {
            tracing::warn!(
                workers = self.leaving.len(),
                "the operator did not say again who shall leave: all work again"
            );
            self.set_leaving(BTreeSet::new());
        }
    }

    /// Replaces the pods that shall leave and answers those that no worker is known of.
    pub(super) fn set_leaving(&mut self, pods: BTreeSet<Arc<str>>) -> Vec<Arc<str>> {
        self.leaving_until = (!pods.is_empty()).then(|| self.now() + Milliseconds(LEAVING_LIFE_MS));
        let before = std::mem::replace(&mut self.leaving, pods);
        let mut known = BTreeSet::new();
        let mut changed = Vec::new();
        for (worker, record) in &self.workers {
            let Some(pod) = record.identity.pod_name() else {
                continue;
            };
            if self.leaving.contains(pod) != before.contains(pod) {
                changed.push(*worker);
            }
            known.insert(Arc::clone(pod));
        }
        for worker in changed {
            tracing::info!(
                %worker, name = %self.worker_name(worker), "the operator changed whether a worker shall leave"
            );
            self.mark_leaving(worker);
        }
        self.leaving.difference(&known).cloned().collect()
    }

    pub(super) fn disconnected(&mut self, worker: WorkerId, session: u64) {
        if self.is_current(worker, session) {
            tracing::info!(%worker, name = %self.worker_name(worker), "a worker's stream ended");
            self.lose_stream(worker);
            self.apply(Event::WorkerDisconnected { worker });
        }
    }

    /// Takes the stream away and remembers when to forget the worker.
    fn lose_stream(&mut self, worker: WorkerId) -> Option<SessionHandle> {
        let limits = &self.parts.limits;
        let grace = Milliseconds(limits.lease.0.max(limits.reconnect_grace.0) + LOST_WORKER_MEMORY.0);
        let forget_at = self.now() + grace;
        let record = self.workers.get_mut(&worker)?;
        let session = record.session.take()?;
        self.parts.metrics.undelivered.inc_by(record.unsent.len() as u64);
        record.unsent.clear();
        record.urgent = false;
        record.forget_at = Some(forget_at);
        self.lost_workers.insert((forget_at, worker));
        Some(session)
    }

    pub(super) fn worker_gone(&mut self, name: &str) {
        if let Some(worker) = self.worker_ids.get(name).copied() {
            tracing::info!(%worker, name, "a worker is gone");
            self.remove_worker(worker);
        } else {
            self.not_awaited(|awaited| awaited == name);
        }
    }

    fn workers_of_pod(&self, pod_name: &str, pod_uid: &str) -> Vec<WorkerId> {
        let of_pod = |identity: &Identity| match identity {
            Identity::Worker {
                pod_name: name,
                pod_uid: uid,
            } => **name == *pod_name && **uid == *pod_uid,
            Identity::LocalWorker | Identity::Operator => false,
        };
        self.workers
            .iter()
            .filter(|(_, record)| of_pod(&record.identity))
            .map(|(worker, _)| *worker)
            .collect()
    }

    /// Only a worker without a stream is taken for lost: where there is a stream, the kubelet has started the next
    /// agent already, and that one must not be declared dead.
    pub(super) fn agent_ended(&mut self, pod_name: &str, pod_uid: &str) {
        for worker in self.workers_of_pod(pod_name, pod_uid) {
            if self
                .workers
                .get(&worker)
                .is_some_and(|record| record.session.is_none())
            {
                tracing::info!(%worker, name = %self.worker_name(worker), "the agent of a worker has ended");
                self.remove_worker(worker);
            }
        }
    }

    pub(super) fn pod_gone(&mut self, pod_name: &str, pod_uid: &str) {
        self.gone_pods.remember(pod_uid);
        self.not_awaited(|awaited| convert::pod_of(awaited) == pod_name);
        for worker in self.workers_of_pod(pod_name, pod_uid) {
            tracing::info!(%worker, name = %self.worker_name(worker), pod_uid, "the pod of a worker is gone");
            self.remove_worker(worker);
        }
    }

    fn remove_worker(&mut self, worker: WorkerId) {
        if let Some(record) = self.workers.remove(&worker) {
            if let Some(session) = record.session {
                session
                    .closer
                    .close(Status::aborted("this worker was reported gone"));
            }
            if let Some(forget_at) = record.forget_at {
                self.lost_workers.remove(&(forget_at, worker));
            }
            self.worker_ids.remove(&record.spec.name);
        }
        self.catalogue.remove(worker);
        self.apply(Event::WorkerGone { worker });
    }

    pub(super) fn forget_lost_workers(&mut self, now: Timestamp) {
        while let Some((due, worker)) = self.lost_workers.first().copied() {
            if due > now {
                return;
            }
            self.remove_worker(worker);
            self.lost_workers.remove(&(due, worker));
        }
    }

    pub(super) fn worker_name(&self, worker: WorkerId) -> Arc<str> {
        match self.workers.get(&worker) {
            Some(record) => record.spec.name.clone(),
            None => format!("worker {worker}").into(),
        }
    }

    /// Says something to a worker with the end of this turn, so that all that one turn has for it travels together.
    pub(super) fn send(&mut self, worker: WorkerId, message: Outbound) {
        let record = self.workers.get_mut(&worker);
        let found = record.and_then(|record| {
            let room = record.session.as_ref()?.outbound.max_capacity();
            Some((record, room))
        });
        let Some((record, room)) = found else {
            self.parts.metrics.undelivered.inc();
            return;
        };
        record.unsent.push(envelope(message));
        // More than that does not travel together anyway.
        let full = record.unsent.len() >= MESSAGES_PER_BATCH.min(room);
        if !std::mem::replace(&mut record.urgent, true) {
            self.unsent.push(worker);
        }
        if full && !self.hand_to_stream(worker) {
            self.close_slow(worker);
            self.following.push_back(Event::WorkerDisconnected { worker });
        }
    }

    /// Acknowledges the end of an attempt with what is said to its worker next, or when that has waited long enough.
    pub(super) fn send_acknowledgement(&mut self, worker: WorkerId, message: wire::CompletionAcknowledged) {
        let due = self.now() + ACKNOWLEDGE_WITHIN;
        let message = Outbound::Acknowledged(message);
        let record = self.workers.get_mut(&worker);
        let Some((record, room)) = record.and_then(|record| {
            let room = record.session.as_ref()?.outbound.max_capacity();
            Some((record, room))
        }) else {
            self.parts.metrics.undelivered.inc();
            return;
        };
        let pod = record.identity.pod_name();
        let leaves = record.drains || pod.is_some_and(|pod| self.leaving.contains(pod));
        let full = record.unsent.len() + 1 >= MESSAGES_PER_BATCH.min(room);
        if leaves || full || record.urgent {
            return self.send(worker, message);
        }
        if record.unsent.is_empty() {
            record.acknowledge_at = due;
            self.acknowledging.push_back((due, worker));
        }
        record.unsent.push(envelope(message));
    }

    /// Nothing more is waited for to travel with the acknowledgements of a worker.
    fn acknowledge_now(&mut self, worker: WorkerId) {
        let Some(record) = self.workers.get_mut(&worker) else {
            return;
        };
        if !record.unsent.is_empty() && !std::mem::replace(&mut record.urgent, true) {
            self.unsent.push(worker);
        }
    }

    /// Lets acknowledgements go that have waited long enough, and forgets those that have gone with others.
    fn acknowledge_due(&mut self) {
        let now = self.now();
        while let Some((due, worker)) = self.acknowledging.front().copied() {
            let record = self.workers.get(&worker);
            let waits = record.is_some_and(|record| {
                !record.unsent.is_empty() && !record.urgent && record.acknowledge_at == due
            });
            if waits && due > now {
                return;
            }
            self.acknowledging.pop_front();
            if waits {
                self.acknowledge_now(worker);
            }
        }
    }

    /// Puts what this turn has for workers into the queues of their streams. A worker that does not empty its queue is
    /// disconnected: it will reconnect and say what it holds, and the others do not wait for it.
    pub(super) fn flush(&mut self) {
        self.acknowledge_due();
        // What disconnecting a worker brings may be for another one.
        while !self.unsent.is_empty() {
            for worker in std::mem::take(&mut self.unsent) {
                if !self.hand_to_stream(worker) {
                    self.close_slow(worker);
                    self.apply(Event::WorkerDisconnected { worker });
                }
            }
        }
    }

    /// False where the queue of the stream has no room.
    fn hand_to_stream(&mut self, worker: WorkerId) -> bool {
        let Some(record) = self.workers.get_mut(&worker) else {
            return true;
        };
        let Some(session) = &record.session else {
            return true;
        };
        record.urgent = false;
        let count = record.unsent.len();
        match session.outbound.try_reserve_many(count) {
            Ok(places) => {
                for (place, message) in places.zip(record.unsent.drain(..)) {
                    place.send(message);
                }
                true
            }
            // The stream has ended; its reader will say so.
            Err(TrySendError::Closed(())) => {
                record.unsent.clear();
                self.parts.metrics.undelivered.inc_by(count as u64);
                true
            }
            Err(TrySendError::Full(())) => false,
        }
    }

    fn close_slow(&mut self, worker: WorkerId) {
        let name = self.worker_name(worker);
        tracing::warn!(%worker, %name, "a worker does not read its messages and is disconnected");
        self.parts.metrics.slow_workers.inc();
        if let Some(session) = self.lose_stream(worker) {
            session.closer.close(Status::resource_exhausted(
                "the worker does not read its messages fast enough: its queue is full",
            ));
        }
    }

    /// Ends all streams: the coordinator stops.
    pub fn close_all(&mut self) {
        for worker in self.workers.values_mut() {
            if let Some(session) = worker.session.take() {
                session
                    .closer
                    .close(Status::unavailable("the coordinator is shutting down"));
            }
        }
    }

    /// Ends all streams at once, whatever waits in them: another coordinator leads, at this HOST:PORT if it is known.
    pub fn hand_over(&mut self, leader: Option<&str>) {
        for worker in self.workers.values_mut() {
            if let Some(session) = worker.session.take() {
                session.closer.hand_over(leader);
            }
        }
    }

    /// Whether an attempt is another worker's, so that nothing of what this one says about it counts.
    fn is_foreign(&self, worker: WorkerId, attempt: AttemptId) -> bool {
        let foreign = self.state.standing(worker, attempt) == Standing::Foreign;
        if foreign {
            self.parts.metrics.message_refused(FOREIGN_ATTEMPT);
            let name = self.worker_name(worker);
            tracing::warn!(%worker, %name, %attempt, "a worker speaks of another worker's attempt and is not heard");
        }
        foreign
    }

    pub(super) fn report(&mut self, worker: WorkerId, report: Report) {
        if let Some(attempt) = report.attempt()
            && self.is_foreign(worker, attempt)
        {
            // An end is answered, so that an agent in error does not keep it for ever.
            if matches!(report, Report::Succeeded(_) | Report::Failed { .. }) {
                self.acknowledge(worker, attempt, false);
            }
            // Nothing else is given to a worker while it may still have what is not its own.
            if report.is_end() {
                self.apply(Event::ForeignAttemptLeft { worker, attempt });
            }
            return;
        }
        match report {
            Report::Heartbeat {
                sequence,
                attempts,
                host_memory_used_bytes,
            } => {
                if let Some(record) = self.workers.get_mut(&worker) {
                    record.host_memory_used_bytes = host_memory_used_bytes;
                }
                self.apply(Event::WorkerHeartbeat { worker, attempts });
                self.send(worker, Outbound::Heartbeat(wire::HeartbeatAnswer { sequence }));
            }
            Report::Progress { attempt, execution } => drop(self.executed(attempt, execution)),
            Report::Succeeded(completion) => self.succeeded(worker, *completion),
            Report::Failed {
                attempt,
                execution,
                event,
            } => {
                self.executed_for_good(attempt, execution);
                self.failure_reported(worker, attempt, event);
            }
            Report::DeviceChanged {
                device,
                usable,
                reason,
            } => {
                let name = self.worker_name(worker);
                tracing::warn!(%worker, %name, %device, usable, reason, "a device changed");
                self.apply(Event::DeviceChanged {
                    worker,
                    device,
                    usable,
                });
            }
            Report::Draining { reason } => {
                tracing::info!(%worker, name = %self.worker_name(worker), reason, "a worker drains");
                if let Some(record) = self.workers.get_mut(&worker) {
                    record.drains = true;
                }
                self.acknowledge_now(worker);
                self.apply(Event::WorkerDraining { worker });
            }
            Report::Event(event) => self.apply(event),
        }
    }

    /// What executing the program told, as far as it is known.
    fn executed(&mut self, attempt: AttemptId, execution: Option<ExecutionReport>) -> Option<JobId> {
        let (execution, told) = (execution?, self.state.attempt(attempt)?);
        self.jobs.get_mut(&told.job)?.execution = Some(execution);
        self.mark_changed(told.job);
        Some(told.job)
    }

    /// The same at the end of an attempt, which a later coordinator must know.
    fn executed_for_good(&mut self, attempt: AttemptId, execution: Option<ExecutionReport>) {
        let job = self.executed(attempt, execution);
        let record = job.and_then(|job| self.jobs.get(&job));
        if let Some(record) = record
            && let Some(execution) = &record.execution
        {
            let uid = record.request.uid.clone();
            let told = ShellChange::Executed(convert::told_execution(execution));
            self.record_shell(&uid, told, false);
        }
    }

    /// A failure that the end of a container may explain waits for the kubelet's word about it.
    fn failure_reported(&mut self, worker: WorkerId, attempt: AttemptId, event: Event) {
        let key = waits_for_container(&event)
            .then(|| self.container_of(worker, attempt))
            .flatten();
        let Some(key) = key else {
            return self.judge_failure(worker, event);
        };
        let now = self.now();
        match self.containers.failed(key, HeldFailure { worker, event }, now) {
            Decision::Judge(event) => self.judge_failure(worker, event),
            Decision::Hold => tracing::debug!(%worker, %attempt, "a failure waits for the kubelet's word"),
        }
    }

    /// The container in which an attempt ran; none in local mode.
    fn container_of(&self, worker: WorkerId, attempt: AttemptId) -> Option<ContainerKey> {
        let record = self.workers.get(&worker)?;
        let Identity::Worker { pod_uid, .. } = &record.identity else {
            return None;
        };
        let slot = match self.state.attempt(attempt)?.device {
            Some(device) => record.device_ids.get(usize::from(device.0))?,
            None => CONTROL_SLOT,
        };
        Some((Arc::clone(pod_uid), backend_container(slot).into()))
    }

    fn judge_failure(&mut self, worker: WorkerId, event: Event) {
        if let Event::AttemptFailed { attempt, .. } = &event {
            let attempt = *attempt;
            self.failed(attempt, event);
            self.acknowledge(worker, attempt, true);
        }
    }

    pub(super) fn container_ended(&mut self, pod_uid: Arc<str>, container: Arc<str>, end: &ContainerEnd) {
        let now = self.now();
        for held in self.containers.ended(&(pod_uid, container), end, now) {
            self.judge_failure(held.worker, held.event);
        }
    }

    pub(super) fn judge_overdue_failures(&mut self, now: Timestamp) {
        while let Some(held) = self.containers.overdue(now) {
            self.judge_failure(held.worker, held.event);
        }
    }

    fn failed(&mut self, attempt: AttemptId, event: Event) {
        if let Event::AttemptFailed {
            class,
            usage,
            reason,
            message,
            ..
        } = &event
        {
            self.parts
                .metrics
                .attempts_failed
                .with_label_values(&[class_label(*class)])
                .inc();
            self.parts
                .metrics
                .device_seconds
                .inc_by(usage.device_time.0 as f64 / 1_000.0);
            tracing::info!(%attempt, ?class, %reason, words = %message, "an attempt failed");
        }
        let job = self.state.attempt(attempt).map(|told| told.job);
        if let Some(record) = job.and_then(|job| self.jobs.get_mut(&job)) {
            record.failed_attempts += 1;
        }
        self.apply(event);
    }

    /// Notes what answering the call will need. False: nothing is known of the worker.
    fn note_call(&mut self, worker: WorkerId, event: &Event) -> bool {
        let Some(record) = self.workers.get_mut(&worker) else {
            return false;
        };
        if let Event::ArtifactBound { call, name, .. } | Event::ArtifactResolved { call, name, .. } = event {
            record
                .named_calls
                .insert(convert::worker_call_id(*call), name.clone());
        }
        true
    }

    /// A call of an attempt. Names are bound only to keys of the attempt itself, so that no worker can make one
    /// job's artifact pass for another's.
    pub(super) fn call(&mut self, worker: WorkerId, event: Event) {
        if let Some((call, attempt)) = event.caller()
            && self.is_foreign(worker, attempt)
        {
            let answer = wire::Answer {
                call_id: convert::worker_call_id(call),
                error: format!("attempt {attempt} was not given to this worker"),
                error_kind: wire::ErrorKind::LeaseLost.into(),
                ..wire::Answer::default()
            };
            return self.send(worker, Outbound::Answer(answer));
        }
        if let Event::ArtifactBound {
            call,
            attempt,
            name,
            binding,
        } = &event
            && let Some(key) = self.foreign_key(*attempt, [binding])
        {
            self.parts.metrics.message_refused(FOREIGN_KEY);
            tracing::warn!(%worker, %attempt, %name, key, "an attempt names a key that is not its own");
            let answer = wire::Answer {
                call_id: convert::worker_call_id(*call),
                error: format!("{name} is bound to {key}, which is not below the keys of attempt {attempt}"),
                error_kind: wire::ErrorKind::InvalidArgument.into(),
                ..wire::Answer::default()
            };
            self.send(worker, Outbound::Answer(answer));
            return;
        }
        if self.log_full
            && let Event::TasksSubmitted { call, .. } = &event
        {
            self.parts
                .metrics
                .refused_without_log
                .with_label_values(&["tasks"])
                .inc();
            let answer = wire::Answer {
                call_id: convert::worker_call_id(*call),
                error: AdmissionError::LogUnavailable.to_string(),
                error_kind: wire::ErrorKind::Unavailable.into(),
                ..wire::Answer::default()
            };
            return self.send(worker, Outbound::Answer(answer));
        }
        if self.note_call(worker, &event) {
            self.apply(event);
        }
    }

    /// The first key that is not below the attempt's own; none where the attempt is not known any more.
    fn foreign_key<'a>(
        &self,
        attempt: AttemptId,
        bindings: impl IntoIterator<Item = &'a Binding>,
    ) -> Option<String> {
        let mut bindings = bindings.into_iter().peekable();
        // Most results are small and name no key.
        bindings.peek()?;
        let told = self.state.attempt(attempt)?;
        let prefix = self
            .jobs
            .get(&told.job)?
            .request
            .prefix
            .attempt_prefix(attempt.0)
            .ok()?;
        let foreign = bindings.find(|binding| !binding.key.starts_with(prefix.as_str()));
        foreign.map(|binding| binding.key.to_string())
    }

    fn succeeded(&mut self, worker: WorkerId, completion: Completion) {
        let Completion {
            attempt,
            outputs,
            result,
            execution,
            proof,
            usage,
        } = completion;
        if let Some(key) = self.foreign_key(attempt, outputs.iter().map(|(_, binding)| binding)) {
            self.parts.metrics.message_refused(FOREIGN_KEY);
            let event = Event::AttemptFailed {
                attempt,
                class: FailureClass::Fatal,
                reason: "ForeignArtifactKey".into(),
                message: format!("the attempt named the key {key}, which is not its own").into(),
                usage,
            };
            self.failed(attempt, event);
            self.acknowledge(worker, attempt, false);
            return;
        }
        self.parts
            .metrics
            .device_seconds
            .inc_by(usage.device_time.0 as f64 / 1_000.0);
        self.executed_for_good(attempt, execution);
        if let Some(told) = self.state.attempt(attempt)
            && self.concludes(&told)
        {
            if !self.inputs_are_bound(&told) {
                let event = Event::AttemptFailed {
                    attempt,
                    class: FailureClass::WorkerLost,
                    reason: "InputsLost".into(),
                    message: "what was checked was lost with the coordinator before and is made again".into(),
                    usage,
                };
                self.failed(attempt, event);
                self.acknowledge(worker, attempt, false);
                return;
            }
            let bound = |name: &str| {
                outputs.iter().any(|(output, _)| **output == *name)
                    || self.state.artifact(told.job, &name.into()).is_some()
            };
            match self.check_conclusion(&told, proof.as_ref(), bound) {
                Ok(()) => {
                    if let Some(record) = self.jobs.get_mut(&told.job) {
                        record.proof.clone_from(&proof);
                        let uid = record.request.uid.clone();
                        if let Some(proof) = proof {
                            self.record_shell(&uid, ShellChange::Proved(proof), false);
                        }
                    }
                }
                Err(message) => {
                    let message = message.into();
                    self.apply(Event::JobAborted {
                        job: told.job,
                        reason: INVALID_CONCLUSION,
                        message,
                    });
                }
            }
        }
        self.apply(Event::AttemptSucceeded {
            attempt,
            outputs,
            result,
            usage,
        });
    }

    /// Whether everything that an attempt has read and what it waited for is known. What the coordinator before had not committed is not: the
    /// attempt was given to its worker before that.
    fn inputs_are_bound(&self, told: &prover_core::AttemptView) -> bool {
        self.state.task(told.task).is_none_or(|task| {
            let bound = |input| self.state.artifact(told.job, input).is_some();
            let succeeded = |name: &Arc<str>| {
                let dependency = self.state.task_by_request(told.job, name);
                let dependency = dependency.and_then(|dependency| self.state.task(dependency));
                dependency.is_some_and(|task| task.state == prover_core::TaskState::Succeeded)
            };
            task.spec.inputs.iter().all(bound) && task.spec.depends_on.iter().all(succeeded)
        })
    }

    /// Whether the success of this attempt would make its job succeed.
    fn concludes(&self, told: &prover_core::AttemptView) -> bool {
        let Some(job) = self.state.job(told.job) else {
            return false;
        };
        if !matches!(
            job.phase,
            JobPhase::Running | JobPhase::Queued(_) | JobPhase::Suspended
        ) {
            return false;
        }
        let executes_only = self
            .jobs
            .get(&told.job)
            .is_some_and(|record| record.request.execute_only);
        let concludes = self
            .state
            .task(told.task)
            .is_some_and(|task| task.spec.concludes_job);
        concludes || (executes_only && job.root == told.task)
    }

    /// The last gate before a job counts as proved: a task of a verifying type says so, and what it verified is
    /// an artifact of the job. Backends are programs of others, so nothing of this is taken on trust elsewhere.
    fn check_conclusion(
        &self,
        told: &prover_core::AttemptView,
        proof: Option<&prover_backend::protocol::ProofReport>,
        bound: impl Fn(&str) -> bool,
    ) -> Result<(), String> {
        let Some(record) = self.jobs.get(&told.job) else {
            return Ok(());
        };
        if record.request.execute_only {
            return match record.execution {
                Some(_) => Ok(()),
                None => Err("the program was executed, but its backend reported nothing of it".to_owned()),
            };
        }
        let task_type = self
            .state
            .task(told.task)
            .map(|task| task.spec.task_type.clone())
            .unwrap_or_default();
        let verifies = record
            .backend
            .task_types
            .get(&task_type)
            .is_some_and(|task_type| task_type.verifies);
        if !verifies {
            return Err(format!(
                "the job was concluded by a task of type {task_type:?}, which verifies nothing"
            ));
        }
        if record.backend.emulated {
            return Ok(());
        }
        let Some(proof) = proof else {
            return Err(format!(
                "the task of type {task_type:?} that concluded the job reported no verified proof"
            ));
        };
        if !bound(&proof.proof) {
            return Err(format!(
                "the proof was reported as artifact {:?}, which does not exist",
                proof.proof
            ));
        }
        if !proof.public_values.is_empty() && !bound(&proof.public_values) {
            let name = &proof.public_values;
            return Err(format!(
                "the public values were reported as artifact {name:?}, which does not exist"
            ));
        }
        Ok(())
    }
}

fn refusal_of(actions: &[Action], refused: WorkerId) -> Option<String> {
    actions.iter().find_map(|action| match action {
        Action::WorkerRefused { worker, refusal } if *worker == refused => Some(refusal.to_string()),
        _ => None,
    })
}

/// Stops of held attempts travel in the welcome, so that the worker never takes them for its own.
fn split_stops(actions: Vec<Action>, to: WorkerId, held: &[AttemptId]) -> (Vec<u64>, Vec<Action>) {
    let mut stopped = Vec::new();
    let others = actions.into_iter().filter(|action| match action {
        Action::Stop { worker, attempt, .. } if *worker == to && held.contains(attempt) => {
            stopped.push(attempt.0);
            false
        }
        _ => true,
    });
    let others = others.collect();
    (stopped, others)
}

fn class_label(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Retryable => "retryable",
        FailureClass::OutOfMemory => "out_of_memory",
        FailureClass::Fatal => "fatal",
        FailureClass::InvalidInput => "invalid_input",
        FailureClass::Artifact => "artifact",
        FailureClass::ChildCrashed => "child_crashed",
        FailureClass::ChildHung => "child_hung",
        FailureClass::ChildOutOfMemory => "child_out_of_memory",
        FailureClass::WorkerLost => "worker_lost",
    }
}
