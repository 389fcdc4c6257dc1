//! A coordinator process: the production engine with everything around it that does I/O replaced by the simulation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prover_artifacts::Prefix;
use prover_coordinator::engine::{
    Command, Connected, Deletion, Engine, EngineParts, JobRequest, Metrics, Refused, Released, SessionHandle,
    command_of, hello,
};
use prover_coordinator::{
    Binding, ClusterView, Identity, JobPolicy, JobView, Milliseconds, Phase, Timestamp,
};
use prover_runtime::Clock;
use prover_wire::protocol::coordinator_message::Message as Down;
use prover_wire::protocol::worker_message::Message as Up;
use prover_wire::protocol::{self as wire};
use tokio::sync::{mpsc, oneshot, watch};

use crate::api::{ApiPhase, ProofJob, WriteResult};
use crate::model::Content;
use crate::random::Random;
use crate::trace::note;
use crate::world::{Happening as Any, World};

/// The origin of every clock, so that a skew never makes a time negative.
pub(crate) const ORIGIN: u64 = 1_000_000_000;
/// Messages that wait for a worker: more than any run sends at once.
const OUTBOUND: usize = 4_096;
/// Longest wait before a deletion that failed is tried again.
const DELETE_AGAIN: u64 = 1_000;

/// What happens to a coordinator process.
#[derive(Debug)]
pub(crate) enum Happening {
    /// The engine wanted to be woken.
    Wake,
    /// The log wanted to be woken.
    LogWake,
    /// The store answers a request of the log.
    LogAnswer {
        id: prover_log::RequestId,
        answer: prover_log::Answer,
    },
    /// It looks at the Lease.
    LeaseTick,
    /// The watches of jobs and pods have shown everything that there is.
    Synced,
    /// A job changed, as the watch of the API server says.
    Watched(Box<ProofJob>),
    /// The answer to a status write.
    Written {
        uid: Arc<str>,
        result: WriteResult,
    },
    /// Looks at a job again.
    Reconcile {
        uid: Arc<str>,
    },
    /// An artifact is deleted.
    Delete {
        key: Arc<str>,
    },
    /// The kubelet or the watch of pods says something.
    AgentEnded {
        pod: Arc<str>,
        uid: Arc<str>,
    },
    PodGone {
        pod: Arc<str>,
        uid: Arc<str>,
    },
}

/// A clock that the loop sets.
#[derive(Debug, Default)]
struct VirtualClock(AtomicU64);

impl Clock for VirtualClock {
    fn now_milliseconds(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A stream as the coordinator has it.
#[derive(Debug)]
struct Session {
    place: usize,
    process: u64,
    handle: SessionHandle,
    messages: mpsc::Receiver<wire::CoordinatorMessage>,
    connected: Connected,
    devices: Vec<Arc<str>>,
}

/// What a leader has.
#[derive(Debug)]
pub(crate) struct Lead {
    pub(crate) epoch: u64,
    pub(crate) engine: Engine,
    /// Records that the log was given, and those that it has.
    pub(crate) appended: u64,
    pub(crate) committed: u64,
    /// All jobs that exist were submitted.
    synced: bool,
    clock: Arc<VirtualClock>,
    sessions: BTreeMap<u64, Session>,
    views: BTreeMap<Arc<str>, watch::Receiver<Arc<JobView>>>,
    /// What the engine was told last of each job.
    told: BTreeMap<Arc<str>, (JobPolicy, bool)>,
    /// Status writes that are on their way.
    writing: BTreeSet<Arc<str>>,
    /// Deleted jobs of which it was asked what must stay.
    releasing: BTreeMap<Arc<str>, oneshot::Receiver<Released>>,
    /// Deleted jobs whose prefixes were swept.
    swept: BTreeSet<Arc<str>>,
    wake_at: Option<u64>,
}

/// A coordinator's place, and the process in it.
#[derive(Debug)]
pub(crate) struct Replica {
    /// Counts the processes.
    pub(crate) incarnation: u64,
    pub(crate) up: bool,
    pub(crate) paused_until: u64,
    /// When this process began.
    pub(crate) born: u64,
    pub(crate) machine: Option<prover_log::Machine>,
    /// What the log says so far.
    pub(crate) known: Option<prover_coordinator::engine::Replica>,
    pub(crate) taking_over: bool,
    pub(crate) log_wake_at: Option<u64>,
    pub(crate) followed_at: u64,
    /// What its clock is ahead of the true time, plus the origin.
    pub(crate) clock_ahead: u64,
    pub(crate) lead: Option<Box<Lead>>,
    /// Jobs as the watch has shown them.
    pub(crate) jobs: BTreeMap<Arc<str>, ProofJob>,
}

impl World {
    pub(crate) fn start_replicas(&mut self, setting: &mut Random) {
        let skew = self.faults.clock_skew;
        for replica in 0..2 {
            let ahead = ORIGIN + setting.between(0, 2 * skew) - skew;
            self.replicas.push(crate::log::mk_replica(ahead));
            let after = setting.between(0, 500);
            self.after(after, Any::StartReplica { replica });
        }
    }

    /// A coordinator has the lead: it goes on with what the log says.
    pub(crate) fn begin_lead(&mut self, replica: usize, epoch: u64) {
        let clock = Arc::new(VirtualClock::default());
        let registry = prover_runtime::prometheus::Registry::new();
        let metrics = match Metrics::register(&registry) {
            Ok(metrics) => metrics,
            Err(error) => return self.violated("metrics", error.to_string()),
        };
        let now = self.now + self.replicas[replica].clock_ahead;
        clock.0.store(now, Ordering::Relaxed);
        let (cluster, _) = watch::channel(Arc::new(ClusterView::default()));
        let parts = EngineParts {
            limits: self.limits.clone(),
            epoch,
            heartbeat_interval: Duration::from_millis(1_000),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            metrics,
            cluster,
        };
        let Some(known) = self.replicas[replica].known.take() else {
            return self.violated("log", format!("r{replica} leads a second time"));
        };
        let engine = match known.lead(parts) {
            Ok(engine) => engine,
            Err(error) => return self.violated("log", format!("the log makes no state: {error}")),
        };
        note!(self, replica, epoch, "r{replica}: leads in epoch {epoch}");
        self.replicas[replica].taking_over = false;
        self.replicas[replica].lead = Some(Box::new(Lead {
            epoch,
            engine,
            appended: 0,
            committed: 0,
            synced: false,
            clock,
            sessions: BTreeMap::new(),
            views: BTreeMap::new(),
            told: BTreeMap::new(),
            writing: BTreeSet::new(),
            releasing: BTreeMap::new(),
            swept: BTreeSet::new(),
            wake_at: None,
        }));
        self.engine_does(replica, None);
        let jobs: Vec<Arc<str>> = self.replicas[replica].jobs.keys().cloned().collect();
        for uid in jobs {
            self.reconcile(replica, &uid);
        }
        let after = self.random.between(100, 3_000);
        self.for_replica(replica, after, Happening::Synced);
    }

    /// The watches have shown everything: pods that are not there are gone, jobs that are not there are forgotten.
    fn synced(&mut self, replica: usize) {
        if self.now < self.api.away_until {
            return self.for_replica(replica, 1_000, Happening::Synced);
        }
        let jobs: Vec<ProofJob> = self.api.jobs.values().cloned().collect();
        for job in jobs {
            self.watched(replica, job);
        }
        let pods = self.workers.iter().filter(|worker| worker.up);
        let pods = pods.map(|worker| worker.pod.as_str().into()).collect();
        self.engine_does(replica, Some(Command::SetPods { pods }));
        self.engine_does(replica, Some(Command::JobsSynced));
        if let Some(lead) = self.lead(replica) {
            lead.synced = true;
        }
    }

    pub(crate) fn for_replica(&mut self, replica: usize, after: u64, what: Happening) {
        let incarnation = self.replicas[replica].incarnation;
        self.for_incarnation(replica, incarnation, after, what);
    }

    /// Something happens to a replica unless it has ended by then.
    pub(crate) fn for_incarnation(&mut self, replica: usize, incarnation: u64, after: u64, what: Happening) {
        self.after(
            after,
            Any::Replica {
                replica,
                incarnation,
                what,
            },
        );
    }

    pub(crate) fn replica_does(&mut self, replica: usize, what: Happening) {
        if !self.replicas[replica].up {
            return;
        }
        match what {
            Happening::Wake => {
                if let Some(lead) = &mut self.replicas[replica].lead
                    && lead.wake_at.is_some_and(|at| at <= self.now)
                {
                    lead.wake_at = None;
                    self.engine_does(replica, None);
                }
            }
            Happening::LogWake => self.log_wake(replica),
            Happening::LogAnswer { id, answer } => self.log_answered(replica, id, answer),
            Happening::LeaseTick => self.lease_tick(replica),
            Happening::Synced => self.synced(replica),
            Happening::Watched(job) => self.watched(replica, *job),
            Happening::Written { uid, result } => self.written(replica, &uid, result),
            Happening::Reconcile { uid } => self.reconcile(replica, &uid),
            Happening::Delete { key } => self.delete_object(replica, key),
            Happening::AgentEnded { pod, uid } => {
                let command = Command::AgentEnded {
                    pod_name: pod,
                    pod_uid: uid,
                };
                self.engine_does(replica, Some(command));
            }
            Happening::PodGone { pod, uid } => {
                let command = Command::PodGone {
                    pod_name: pod,
                    pod_uid: uid,
                };
                self.engine_does(replica, Some(command));
            }
        }
    }

    fn watched(&mut self, replica: usize, job: ProofJob) {
        let known = self.replicas[replica].jobs.get(&job.uid);
        // A watch that was opened again may repeat what is known.
        if known.is_none_or(|known| known.version < job.version) {
            let uid = job.uid.clone();
            self.replicas[replica].jobs.insert(uid.clone(), job);
            self.reconcile(replica, &uid);
        }
    }

    /// The kubelet says that the agent of a pod has ended.
    pub(crate) fn tell_agent_ended(&mut self, place: usize) {
        let pod: Arc<str> = self.workers[place].pod.as_str().into();
        let uid: Arc<str> = self.workers[place].pod_uid.as_str().into();
        for replica in 0..self.replicas.len() {
            let after = self.random.between(10, 3_000);
            let (pod, uid) = (pod.clone(), uid.clone());
            self.for_replica(replica, after, Happening::AgentEnded { pod, uid });
        }
    }

    /// The watch of pods says that a pod is gone.
    pub(crate) fn tell_pod_gone(&mut self, place: usize) {
        let pod: Arc<str> = self.workers[place].pod.as_str().into();
        let uid: Arc<str> = self.workers[place].pod_uid.as_str().into();
        for replica in 0..self.replicas.len() {
            let after = self.random.between(10, 3_000);
            let (pod, uid) = (pod.clone(), uid.clone());
            self.for_replica(replica, after, Happening::PodGone { pod, uid });
        }
    }

    // ---- streams ----

    pub(crate) fn replica_hears(&mut self, connection: u64, message: Up) {
        let Some(known) = self.connections.get_mut(&connection) else {
            return;
        };
        let (replica, place, process) = (known.replica, known.place, known.process);
        if known.incarnation == 0 {
            known.incarnation = self.replicas[replica].incarnation;
        }
        if !self.replicas[replica].up || known.incarnation != self.replicas[replica].incarnation {
            return self.replica_side_ends(connection);
        }
        let Some(lead) = &self.replicas[replica].lead else {
            return self.refuse_stream(replica, connection);
        };
        if let Up::Hello(message) = message {
            return self.hello(replica, connection, place, process, message);
        }
        let Some(session) = lead.sessions.get(&connection) else {
            return;
        };
        if let Up::Heartbeat(heartbeat) = &message {
            let attempts = heartbeat.attempts.clone();
            self.ledger.heartbeat(place, process, replica, self.now, attempts);
        }
        let attempt = match &message {
            Up::Succeeded(report) => Some(report.attempt_id),
            _ => None,
        };
        let message = wire::WorkerMessage {
            message: Some(message),
        };
        match command_of(&session.connected, &session.devices, connection, message) {
            Ok(Some(command)) => {
                if let Some(attempt) = attempt {
                    self.check_report_delivered(attempt, replica);
                }
                self.engine_does(replica, Some(command));
            }
            Ok(None) => {}
            Err(Refused::Message(error) | Refused::Call { error, .. }) => {
                self.violated("messages", format!("a good message is refused: {error}"));
            }
        }
    }

    /// A standby says who leads, as the Lease has it.
    fn refuse_stream(&mut self, replica: usize, connection: u64) {
        let holder = self.api.lease.holder.map(|(holder, _)| holder);
        if let Some(leader) = holder.filter(|holder| *holder != replica) {
            let address = format!("r{leader}");
            self.send_down(connection, Down::NotLeader(wire::NotLeader { address }));
        }
        self.replica_side_ends(connection);
    }

    fn hello(
        &mut self,
        replica: usize,
        connection: u64,
        place: usize,
        process: u64,
        message: wire::WorkerHello,
    ) {
        let Some(known) = self.connections.get(&connection) else {
            return;
        };
        let (pod_name, pod_uid) = known.pod.clone();
        let devices = message.devices.iter().map(|device| device.id.as_str().into());
        let devices: Vec<Arc<str>> = devices.collect();
        let identity = Identity::Worker { pod_name, pod_uid };
        let attempts = message.held.iter().map(|held| held.attempt_id).collect();
        let checked = match hello(message, &identity) {
            Ok(checked) => checked,
            Err((_, status)) => {
                return self.violated("messages", format!("a good hello is refused: {status}"));
            }
        };
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let handle = SessionHandle {
            id: connection,
            outbound,
            closer: prover_coordinator::engine::Closer::default(),
        };
        let (reply, mut answer) = oneshot::channel();
        let command = Command::Connect {
            hello: Box::new(checked),
            identity,
            session: handle.clone(),
            reply,
        };
        let Some(lead) = self.lead(replica) else { return };
        lead.engine.handle(command);
        match answer.try_recv() {
            Ok(Ok(connected)) => {
                lead.sessions.insert(
                    connection,
                    Session {
                        place,
                        process,
                        handle,
                        messages,
                        connected,
                        devices,
                    },
                );
                self.ledger.heartbeat(place, process, replica, self.now, attempts);
                note!(self, place, replica, "r{replica}: welcomes w{place}");
            }
            Ok(Err(status)) => {
                note!(
                    self,
                    place,
                    replica,
                    "r{replica}: refuses w{place}: {}",
                    status.message()
                );
                self.replica_side_ends(connection);
            }
            Err(_) => self.violated("engine", "a hello was not answered at once".to_owned()),
        }
        self.engine_does(replica, None);
    }

    pub(crate) fn replica_lost_stream(&mut self, replica: usize, connection: u64) {
        let Some(lead) = &mut self.replicas[replica].lead else {
            return;
        };
        if let Some(session) = lead.sessions.remove(&connection) {
            note!(
                self,
                session.place,
                replica,
                "r{replica}: lost the stream {connection} of w{}",
                session.place
            );
            let worker = session.connected.worker;
            self.ledger.stream_ended(session.place, session.process, replica);
            let command = Command::Disconnected {
                worker,
                session: connection,
            };
            self.engine_does(replica, Some(command));
        }
    }

    // ---- the engine ----

    pub(crate) fn lead(&mut self, replica: usize) -> Option<&mut Lead> {
        let ahead = self.replicas[replica].clock_ahead;
        let lead = self.replicas[replica].lead.as_deref_mut()?;
        lead.clock.0.store(self.now + ahead, Ordering::Relaxed);
        Some(lead)
    }

    /// One turn, as the actor takes it: a command, the timers, and what comes of both.
    pub(crate) fn engine_does(&mut self, replica: usize, command: Option<Command>) {
        let Some(lead) = self.lead(replica) else { return };
        if let Some(command) = command {
            lead.engine.handle(command);
        }
        lead.engine.run_timers();
        let epoch = lead.epoch;
        let mut messages = Vec::new();
        let mut closed = Vec::new();
        for (connection, session) in &mut lead.sessions {
            while let Ok(message) = session.messages.try_recv() {
                messages.push((*connection, session.place, session.process, message.message));
            }
            if session.handle.closer.told().is_some() {
                closed.push(*connection);
            }
        }
        let deletions = lead.engine.take_deletions();
        let changed: Vec<Arc<str>> = lead
            .views
            .iter_mut()
            // The view of a job that ended before it had a backend is the last one of its channel.
            .filter_map(|(uid, view)| view.has_changed().unwrap_or(true).then(|| uid.clone()))
            .collect();
        let wake = lead.engine.next_wake();
        self.check_stops_sent(&messages);
        for (connection, place, process, message) in messages {
            let Some(message) = message else { continue };
            self.check_sent(replica, epoch, place, process, &message);
            self.send_down(connection, message);
        }
        for connection in closed {
            self.close_session(replica, connection);
        }
        for deletion in deletions {
            match deletion {
                Deletion::Artifact(key) => {
                    let after = self.random.between(1, self.faults.store_latency.max(1));
                    self.for_replica(replica, after, Happening::Delete { key });
                }
                Deletion::Job(prefix) => {
                    for key in self.store.list(prefix.as_str(), self.now) {
                        self.for_replica(replica, 1, Happening::Delete { key });
                    }
                }
                Deletion::Leftovers { prefix, keep } => {
                    let attempts = format!("{}attempts/", prefix.as_str());
                    let stale = self.faults.stale_list;
                    let late = if self.random.chance(stale) { 10_000 } else { 0 };
                    for key in self.store.list(&attempts, self.now.saturating_sub(late)) {
                        if !keep.contains(&key) {
                            self.for_replica(replica, 1, Happening::Delete { key });
                        }
                    }
                }
            }
        }
        for uid in changed {
            self.show(replica, &uid);
        }
        self.wake_later(replica, wake);
        self.sweep_released(replica);
        if self.append_records(replica) {
            self.log_turn(replica);
        }
    }

    fn close_session(&mut self, replica: usize, connection: u64) {
        let Some(lead) = self.lead(replica) else { return };
        let Some(session) = lead.sessions.remove(&connection) else {
            return;
        };
        let worker = session.connected.worker;
        lead.engine.handle(Command::Disconnected {
            worker,
            session: connection,
        });
        self.ledger.stream_ended(session.place, session.process, replica);
        note!(
            self,
            session.place,
            replica,
            "r{replica}: closes the stream {connection} of w{}",
            session.place
        );
        self.replica_side_ends(connection);
    }

    fn wake_later(&mut self, replica: usize, wake: Option<Timestamp>) {
        let ahead = self.replicas[replica].clock_ahead;
        let Some(wake) = wake else { return };
        let at = wake.0.saturating_sub(ahead).max(self.now + 1);
        let Some(lead) = self.replicas[replica].lead.as_deref_mut() else {
            return;
        };
        if lead.wake_at.is_none_or(|before| at < before) {
            lead.wake_at = Some(at);
            self.for_replica(replica, at - self.now, Happening::Wake);
        }
    }

    fn delete_object(&mut self, replica: usize, key: Arc<str>) {
        let fails = self.faults.store_error;
        if self.now < self.store.away_until || self.random.chance(fails) {
            return self.for_replica(replica, DELETE_AGAIN, Happening::Delete { key });
        }
        note!(self, replica, key.len(), "r{replica}: deletes {key}");
        self.check_deleted(&key);
        self.store.delete(&key);
        let lost = self.faults.store_lost_answer;
        if self.random.chance(lost) {
            self.for_replica(replica, DELETE_AGAIN, Happening::Delete { key });
        }
    }

    // ---- jobs ----

    /// Brings the engine in line with a job as the watch has shown it.
    fn reconcile(&mut self, replica: usize, uid: &Arc<str>) {
        let Some(job) = self.replicas[replica].jobs.get(uid).cloned() else {
            return;
        };
        let Some(lead) = self.lead(replica) else { return };
        let view = lead.views.get(uid).map(|view| view.borrow().phase);
        if job.removed {
            return;
        }
        if job.deleted {
            return match view {
                Some(phase) if !phase.is_terminal() => {
                    self.engine_does(replica, Some(Command::Cancel { uid: uid.clone() }));
                }
                _ if lead.swept.contains(uid) => self.api_finalize(replica, uid),
                _ => self.release(replica, uid),
            };
        }
        if job.phase.as_ref().is_some_and(ApiPhase::is_terminal) {
            return;
        }
        let policy = JobPolicy {
            priority: job.priority,
            // Users say the true time.
            deadline: job.deadline.map(|at| Timestamp(at + ORIGIN)),
            active_deadline: job.active_deadline.map(Milliseconds),
            max_workers: job.max_workers,
            suspended: job.suspend,
        };
        let told = lead.told.insert(uid.clone(), (policy, job.cancel));
        if view.is_none() {
            return self.submit(replica, &job, policy);
        }
        if told.is_none_or(|(told, _)| told != policy) {
            let uid = uid.clone();
            note!(self, replica, job.index, "r{replica}: {uid} gets {policy:?}");
            self.check_policy_told(replica, &uid, &policy);
            self.engine_does(replica, Some(Command::SetPolicy { uid, policy }));
        }
        if job.cancel && !told.is_some_and(|(_, cancelled)| cancelled) {
            note!(self, replica, job.index, "r{replica}: cancels {uid}");
            self.check_cancel_told(replica, uid);
            self.engine_does(replica, Some(Command::Cancel { uid: uid.clone() }));
        }
    }

    /// A job is deleted and over: asks what of it must stay, once.
    fn release(&mut self, replica: usize, uid: &Arc<str>) {
        let Ok(prefix) = Prefix::job(uid) else { return };
        let Some(lead) = self.lead(replica) else { return };
        if lead.releasing.contains_key(uid) {
            return;
        }
        let (reply, answer) = oneshot::channel();
        lead.releasing.insert(uid.clone(), answer);
        note!(self, replica, 0, "r{replica}: releases {uid}");
        let uid = uid.clone();
        self.engine_does(replica, Some(Command::Release { uid, prefix, reply }));
    }

    /// Sweeps the prefixes of released jobs, but for what was answered and what users keep.
    fn sweep_released(&mut self, replica: usize) {
        let Some(lead) = self.lead(replica) else { return };
        let mut answered = Vec::new();
        lead.releasing.retain(|uid, answer| match answer.try_recv() {
            Ok(released) => {
                answered.push((uid.clone(), released));
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => false,
        });
        for (uid, released) in answered {
            let held: BTreeSet<Arc<str>> = match released {
                Ok(held) => held.into_iter().collect(),
                Err(error) => return self.violated("engine", format!("{uid} is not released: {error}")),
            };
            let proof = self.replicas[replica]
                .jobs
                .get(&uid)
                .and_then(|job| job.proof.clone());
            let viewed = self.lead(replica).and_then(|lead| {
                lead.swept.insert(uid.clone());
                let view = lead.views.get(&uid)?.borrow().clone();
                view.proof.as_ref().map(|proof| proof.proof.key.clone())
            });
            for key in self.store.list(&format!("jobs/{uid}/"), self.now) {
                if !held.contains(&key) && Some(&key) != proof.as_ref() && Some(&key) != viewed.as_ref() {
                    self.check_swept(&key);
                    self.for_replica(replica, 1, Happening::Delete { key });
                }
            }
            self.api_finalize(replica, &uid);
        }
    }

    fn submit(&mut self, replica: usize, job: &ProofJob, policy: JobPolicy) {
        let uid = &job.uid;
        let manifest = manifest(&self.jobs[job.index], job.suspend, job.cancel);
        let sources = ["program", "input"].map(|name| {
            let binding = Binding {
                key: format!("jobs/{uid}/sources/{name}").into(),
                sha256: Content::SOURCE.sha256(),
                size_bytes: 100,
            };
            (name.into(), binding)
        });
        let request = match JobRequest::unchecked(&manifest, "", sources.to_vec()) {
            Ok(request) => Box::new(request),
            Err(error) => return self.violated("engine", error.to_string()),
        };
        note!(self, replica, job.index, "r{replica}: submits {uid}");
        if job.cancel {
            self.check_cancel_told(replica, uid);
        }
        let Some(lead) = self.lead(replica) else { return };
        let (reply, mut answer) = oneshot::channel();
        lead.engine.handle(Command::Submit { request, reply });
        match answer.try_recv() {
            Ok(Ok(view)) => {
                lead.views.insert(uid.clone(), view);
                lead.engine.handle(Command::SetPolicy {
                    uid: uid.clone(),
                    policy,
                });
                self.check_policy_told(replica, uid, &policy);
                self.engine_does(replica, None);
                self.show(replica, uid);
            }
            Ok(Err(error)) => self.violated("engine", format!("{uid} is refused: {error}")),
            Err(_) => self.violated("engine", "a submission was not answered at once".to_owned()),
        }
    }

    /// Writes what a view says into the job's status, where that differs.
    fn show(&mut self, replica: usize, uid: &Arc<str>) {
        let Some(job) = self.replicas[replica].jobs.get(uid).cloned() else {
            return;
        };
        let Some(lead) = self.lead(replica) else { return };
        let Some(view) = lead.views.get_mut(uid) else {
            return;
        };
        let view = view.borrow_and_update().clone();
        let phase = ApiPhase::of(&view);
        if view.phase.is_terminal() && job.deleted {
            return self.reconcile(replica, uid);
        }
        // What another leader has ended stays so, whatever one that is not told yet believes.
        let over = job.phase.as_ref().is_some_and(ApiPhase::is_terminal);
        if over || job.phase.as_ref() == Some(&phase) || job.removed || !lead.writing.insert(uid.clone()) {
            return;
        }
        let proof = view.proof.as_ref().map(|proof| proof.proof.key.clone());
        self.api_write_status(replica, uid, job.version, phase, proof);
    }

    fn written(&mut self, replica: usize, uid: &Arc<str>, result: WriteResult) {
        let Some(lead) = self.lead(replica) else { return };
        lead.writing.remove(uid);
        match result {
            WriteResult::Done(job) => {
                let known = self.replicas[replica].jobs.get(uid);
                if known.is_none_or(|known| known.version < job.version) {
                    self.replicas[replica].jobs.insert(uid.clone(), *job);
                }
                self.show(replica, uid);
            }
            WriteResult::Gone => {}
            WriteResult::Conflict | WriteResult::Failed => {
                let after = self.random.between(100, 1_000);
                let uid = uid.clone();
                self.for_replica(replica, after, Happening::Reconcile { uid: uid.clone() });
                self.after(after, Any::Api(crate::api::Happening::ShowAgain { replica, uid }));
            }
        }
    }

    /// What a leader believes, for whoever reads a trace.
    pub(crate) fn tell_beliefs(&mut self) {
        for replica in 0..self.replicas.len() {
            let Some(lead) = &self.replicas[replica].lead else {
                continue;
            };
            let state = lead.engine.state();
            for worker in state.workers() {
                self.trace
                    .line(self.now, format_args!("r{replica} believes {worker:?}"));
            }
            for job in state.jobs() {
                self.trace
                    .line(self.now, format_args!("r{replica} believes {job:?}"));
                for task in state.tasks(job.job) {
                    let (name, state) = (&task.spec.request_id, task.state);
                    let current = task.current;
                    self.trace
                        .line(self.now, format_args!("    {name} is {state:?} {current:?}"));
                }
            }
        }
    }

    /// Whether a leader knows of a job that has not ended.
    pub(crate) fn replica_says_unfinished(&self, replica: usize, uid: &Arc<str>) -> bool {
        let Some(lead) = &self.replicas[replica].lead else {
            return false;
        };
        // An end is shown once the log has it.
        let view = lead
            .views
            .get(uid)
            .filter(|_| lead.committed >= lead.engine.recorded());
        view.is_some_and(|view| !view.borrow().phase.is_terminal())
    }

    pub(crate) fn show_again(&mut self, replica: usize, uid: &Arc<str>) {
        self.show(replica, uid);
    }
}

/// The job as a user writes it.
fn manifest(model: &crate::model::JobModel, suspend: bool, cancel: bool) -> prover_crds::ProofJob {
    let manifest = serde_json::json!({
        "apiVersion": "proving.rs/v1alpha1",
        "kind": "ProofJob",
        "metadata": { "name": &*model.uid, "namespace": &*model.tenant, "uid": &*model.uid },
        "spec": {
            "clusterRef": { "name": "cluster" },
            "program": { "inline": "AA==" },
            "proof": { "system": crate::model::SYSTEM, "kind": model.kind() },
            "retryLimit": model.retry_limit,
            "suspend": suspend,
            "cancel": cancel,
        },
    });
    serde_json::from_value(manifest)
        .unwrap_or_else(|error| unreachable!("the manifest is well-formed: {error}"))
}

impl ApiPhase {
    fn of(view: &JobView) -> ApiPhase {
        match view.phase {
            Phase::Queued => ApiPhase::Queued,
            Phase::Running => ApiPhase::Running,
            Phase::Suspended => ApiPhase::Suspended,
            Phase::Succeeded => ApiPhase::Succeeded,
            Phase::Failed => ApiPhase::Failed(view.reason.clone()),
            Phase::Cancelled => ApiPhase::Cancelled,
        }
    }
}
