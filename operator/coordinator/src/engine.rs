//! The coordinator without its streams, its store and its waiting: commands in, messages to workers, views and answers
//! out, in order.
//!
//! Owns the order of everything. Does not own decisions (the core) nor I/O (streams, store): it never waits, so a slow
//! worker or store never holds up the others. It depends on nothing but its commands and its clock, so that a
//! simulation which repeats both repeats everything.
//!
//! Public for the parts of this workspace that drive it: the actor, the simulation, the benchmarks.

mod again;
mod durable;
mod execute;
mod groups;
mod jobs;
mod release;
mod show;
mod workers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prover_core::{Action, CallId, Event, JobId, Limits, State, Timestamp, WorkerId};
use prover_runtime::Clock;
use tokio::sync::watch;

use crate::catalogue::Catalogue;
use crate::container::Containers;
use crate::record::JobRecord;
use crate::remembered::Memory;
use crate::view::ClusterView;

pub use crate::admission::JobRequest;
pub use crate::command::{Command, Connected, Released, Submitted};
pub use crate::convert::{ConversionError, Hello};
pub use crate::deletes::Deletion;
pub use crate::metrics::Metrics;
pub use crate::remembered::{Record, RecordError, ShellFact};
pub use crate::replica::{Replica, ReplicaError};
pub use crate::session::{Closer, Refused, SessionHandle, command_of, hello};

use durable::Held;
use groups::Groups;
use jobs::WaitingJob;
use workers::Worker;

/// What an engine is made with.
#[derive(Clone, Debug)]
pub struct EngineParts {
    /// Limits of the scheduling core.
    pub limits: Limits,
    /// Counts the coordinators of a cluster, so that workers refuse an older one.
    pub epoch: u64,
    /// How often workers shall report what they hold.
    pub heartbeat_interval: Duration,
    /// What time it is; read several times per command.
    pub clock: Arc<dyn Clock>,
    /// Where it counts what it does.
    pub metrics: Metrics,
    /// Where it shows workers and queue.
    pub cluster: watch::Sender<Arc<ClusterView>>,
}

/// Everything that the coordinator knows.
#[derive(Debug)]
pub struct Engine {
    state: State,
    parts: EngineParts,
    workers: BTreeMap<WorkerId, Worker>,
    worker_ids: BTreeMap<Arc<str>, WorkerId>,
    next_worker: u64,
    catalogue: Catalogue,
    jobs: BTreeMap<JobId, JobRecord>,
    /// Jobs whose proof system no worker offers yet, by uid.
    waiting: BTreeMap<Arc<str>, WaitingJob>,
    /// Reused between events.
    actions: Vec<Action>,
    /// Events that follow from executing actions.
    following: VecDeque<Event>,
    /// Jobs that changed since their last view, by when the next one may be made.
    due_views: BTreeSet<(Timestamp, JobId)>,
    /// Deadlines of the jobs in `waiting`.
    waiting_deadlines: BTreeSet<(Timestamp, Arc<str>)>,
    /// Workers without a stream, by when they are forgotten.
    lost_workers: BTreeSet<(Timestamp, WorkerId)>,
    /// UIDs of pods that are gone: what signed in before and says its hello after is too late.
    gone_pods: workers::GonePods,
    /// Pods that the operator wants to go.
    leaving: BTreeSet<Arc<str>>,
    /// Until when that holds; none where no pod shall go.
    leaving_until: Option<Timestamp>,
    groups: Groups,
    /// Workers that something is said to at the end of this turn.
    unsent: Vec<WorkerId>,
    /// Workers whose acknowledgements wait for other messages, by until when; those that have gone since are passed over.
    acknowledging: VecDeque<(Timestamp, WorkerId)>,
    /// What is to be deleted from the store.
    deletions: Vec<Deletion>,
    /// What the log will be given, by event.
    unwritten: Vec<Vec<Record>>,
    /// Records so far.
    recorded: u64,
    /// Records that the log has.
    committed: u64,
    /// What waits for the log, by the records that it must have.
    held: VecDeque<(u64, Held)>,
    /// The call whose answer waits for the log.
    promising: Option<CallId>,
    /// Who reports or calls, for answers about attempts that the core does not know.
    speaker: Option<WorkerId>,
    /// The log takes nothing more.
    log_full: bool,
    /// What a coordinator after this one must know of jobs; empty without a log.
    memory: Memory,
    /// Jobs that are over, whose attempts may have left something in the store.
    to_sweep: BTreeSet<JobId>,
    /// Jobs whose phase changed with the event whose actions are executed; whether they are over.
    phases_changed: Vec<(JobId, bool)>,
    /// Released jobs of which attempts have not left yet.
    releasing: Vec<release::Releasing>,
    /// Failures that wait for the kubelet's word.
    containers: Containers,
    cluster_changed: bool,
    cluster_published: Timestamp,
}

impl Engine {
    /// Nothing known yet.
    #[must_use]
    pub fn new(parts: EngineParts) -> Engine {
        let state = State::in_epoch(parts.limits.clone(), parts.epoch);
        Engine::with_state(parts, state)
    }

    fn with_state(parts: EngineParts, state: State) -> Engine {
        Engine {
            state,
            parts,
            workers: BTreeMap::new(),
            worker_ids: BTreeMap::new(),
            next_worker: 1,
            catalogue: Catalogue::default(),
            jobs: BTreeMap::new(),
            waiting: BTreeMap::new(),
            actions: Vec::new(),
            following: VecDeque::new(),
            due_views: BTreeSet::new(),
            waiting_deadlines: BTreeSet::new(),
            lost_workers: BTreeSet::new(),
            gone_pods: workers::GonePods::default(),
            leaving: BTreeSet::new(),
            leaving_until: None,
            groups: Groups::default(),
            unsent: Vec::new(),
            acknowledging: VecDeque::new(),
            deletions: Vec::new(),
            unwritten: Vec::new(),
            recorded: 0,
            committed: 0,
            held: VecDeque::new(),
            promising: None,
            speaker: None,
            log_full: false,
            memory: Memory::default(),
            to_sweep: BTreeSet::new(),
            phases_changed: Vec::new(),
            releasing: Vec::new(),
            containers: Containers::default(),
            cluster_changed: true,
            cluster_published: Timestamp::default(),
        }
    }

    /// What the scheduling core knows.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What may be deleted from the store now; each is answered once.
    pub fn take_deletions(&mut self) -> Vec<Deletion> {
        std::mem::take(&mut self.deletions)
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.parts.clock.now_milliseconds())
    }

    /// When [`Engine::run_timers`] has something to do if no command comes; none: never.
    #[must_use]
    pub fn next_wake(&self) -> Option<Timestamp> {
        let due = [
            self.state.next_timer(),
            self.due_views.first().map(|(due, _)| *due),
            self.waiting_deadlines.first().map(|(due, _)| *due),
            self.lost_workers.first().map(|(due, _)| *due),
            self.containers.next_due(),
            self.leaving_until,
            self.acknowledging.front().map(|(due, _)| *due),
            self.cluster_changed
                .then_some(self.cluster_published + show::CLUSTER_INTERVAL),
        ];
        due.into_iter().flatten().min()
    }

    /// Ends a turn, to be called after commands: what the time has brought (timers of the core, deadlines, views that are
    /// due), then what all of the turn has for workers goes to their streams.
    pub fn run_timers(&mut self) {
        let now = self.now();
        if self.state.next_timer().is_some_and(|due| due <= now) {
            self.apply(Event::Tick);
        }
        self.expire_waiting_jobs(now);
        self.forget_lost_workers(now);
        self.judge_overdue_failures(now);
        self.lapse_leaving(now);
        self.show_due();
        self.sweep_ended();
        self.answer_releases();
        self.flush();
    }

    /// Does one thing.
    pub fn handle(&mut self, command: Command) {
        // Jobs that wait for a backend are counted without the core hearing of them.
        self.cluster_changed = true;
        match command {
            Command::Submit { request, reply } => self.submit(*request, reply),
            Command::Cancel { uid } => self.cancel(&uid),
            Command::SetPolicy { uid, policy } => self.set_policy(&uid, policy),
            Command::SetTenantPolicy { tenant, policy } => {
                self.apply(Event::TenantPolicyChanged { tenant, policy });
            }
            Command::Forget { uid } => self.forget(&uid),
            Command::Release { uid, prefix, reply } => self.release(uid, prefix, reply),
            Command::JobsSynced => self.jobs_synced(),
            Command::KnownSources { uid, reply } => drop(reply.send(self.known_sources(&uid))),
            Command::SetPods { pods } => self.set_pods(&pods),
            Command::WorkerGone { worker_id } => self.worker_gone(&worker_id),
            Command::PodGone { pod_name, pod_uid } => self.pod_gone(&pod_name, &pod_uid),
            Command::SetLeaving { pods, reply } => {
                let unknown = self.set_leaving(pods);
                // Whoever asked has gone away; the marks stay.
                let _ = reply.send(unknown);
            }
            Command::SetGroups { groups } => {
                self.groups.offers = groups;
                self.cluster_changed = true;
            }
            Command::AgentEnded { pod_name, pod_uid } => self.agent_ended(&pod_name, &pod_uid),
            Command::ContainerEnded {
                pod_uid,
                container,
                end,
            } => self.container_ended(pod_uid, container, &end),
            Command::Connect {
                hello,
                identity,
                session,
                reply,
            } => self.connect(*hello, identity, session, reply),
            Command::Disconnected { worker, session } => self.disconnected(worker, session),
            Command::Report {
                worker,
                session,
                report,
            } => {
                if self.is_current(worker, session) {
                    self.speaker = Some(worker);
                    self.report(worker, report);
                    self.speaker = None;
                }
            }
            Command::Call {
                worker,
                session,
                event,
            } => {
                if self.is_current(worker, session) {
                    self.speaker = Some(worker);
                    self.call(worker, event);
                    self.speaker = None;
                }
            }
        }
    }

    /// Applies an event, executes what the core asks for, and applies what follows from that.
    fn apply(&mut self, event: Event) {
        let actions = self.core_actions(event);
        self.execute_all(actions);
    }

    /// Applies an event without executing its actions: [`Engine::execute_all`] must follow.
    fn core_actions(&mut self, event: Event) -> Vec<Action> {
        let now = self.now();
        let mut actions = std::mem::take(&mut self.actions);
        self.promising = durable::promising_call(&event);
        self.state.apply(event, now, &mut actions);
        if self.parts.limits.record_facts {
            // Before anything is done about the event, so that it is known what must wait for the log.
            let facts = actions.extract_if(.., |action| matches!(action, Action::Record(_)));
            let facts = facts.filter_map(|action| match action {
                Action::Record(fact) => Some(fact),
                _ => None,
            });
            let facts = facts.collect();
            self.record_core(facts);
        }
        self.parts.metrics.events.inc();
        self.cluster_changed = true;
        actions
    }

    /// Executes actions in order, then applies the events that followed from executing them.
    fn execute_all(&mut self, mut actions: Vec<Action>) {
        loop {
            for action in actions.drain(..) {
                self.execute(action);
            }
            self.actions = actions;
            self.show_phases();
            let Some(event) = self.following.pop_front() else {
                return;
            };
            actions = self.core_actions(event);
        }
    }
}
