//! The one task that owns the scheduling core's state: events in, actions out, in order.
//!
//! Owns the order of everything. Does not own decisions (the core) nor I/O (streams, store): it never waits for
//! anything but its queue and the clock, so a slow worker or store never holds up the others.

mod execute;
mod groups;
mod jobs;
mod show;
mod workers;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use prover_core::{Action, Event, JobId, Limits, Milliseconds, State, Timestamp, WorkerId};
use prover_runtime::Clock;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::catalogue::Catalogue;
use crate::command::Command;
use crate::container::Containers;
use crate::deletes::Deletion;
use crate::metrics::Metrics;
use crate::record::JobRecord;
use crate::view::ClusterView;

use groups::Groups;
use jobs::WaitingJob;
use workers::Worker;

/// Commands that are applied before views and timers get their turn.
const COMMANDS_PER_TURN: usize = 256;

/// What the actor is made with.
pub(crate) struct ActorParts {
    pub(crate) limits: Limits,
    /// Counts the coordinators of a cluster, so that workers refuse an older one.
    pub(crate) epoch: u64,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) metrics: Metrics,
    pub(crate) deletions: mpsc::Sender<Deletion>,
    pub(crate) cluster: watch::Sender<Arc<ClusterView>>,
}

/// Everything that the coordinator knows.
pub(crate) struct Actor {
    state: State,
    parts: ActorParts,
    workers: BTreeMap<WorkerId, Worker>,
    worker_ids: HashMap<Arc<str>, WorkerId>,
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
    groups: Groups,
    /// Failures that wait for the kubelet's word.
    containers: Containers,
    cluster_changed: bool,
    cluster_published: Timestamp,
}

impl Actor {
    pub(crate) fn new(parts: ActorParts) -> Actor {
        Actor {
            state: State::in_epoch(parts.limits.clone(), parts.epoch),
            parts,
            workers: BTreeMap::new(),
            worker_ids: HashMap::new(),
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
            groups: Groups::default(),
            containers: Containers::default(),
            cluster_changed: true,
            cluster_published: Timestamp::default(),
        }
    }

    /// Runs until it is stopped or nobody can send commands any more.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(COMMANDS_PER_TURN);
        loop {
            let wake = self.wake_at();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                count = commands.recv_many(&mut batch, COMMANDS_PER_TURN) => {
                    if count == 0 {
                        break;
                    }
                    for command in batch.drain(..) {
                        self.handle(command);
                    }
                }
                () = sleep_until(wake) => {}
            }
            self.run_timers();
            self.show_due();
        }
        self.close_all();
    }

    fn now(&self) -> Timestamp {
        Timestamp(self.parts.clock.now_milliseconds())
    }

    /// When something is due if no command comes; none: never.
    fn wake_at(&self) -> Option<Instant> {
        let due = [
            self.state.next_timer(),
            self.due_views.first().map(|(due, _)| *due),
            self.waiting_deadlines.first().map(|(due, _)| *due),
            self.lost_workers.first().map(|(due, _)| *due),
            self.containers.next_due(),
            self.cluster_changed
                .then_some(self.cluster_published + show::CLUSTER_INTERVAL),
        ];
        let due = due.into_iter().flatten().min()?;
        let Milliseconds(wait) = due - self.now();
        // A timer that is due already still lets commands in between.
        Some(Instant::now() + Duration::from_millis(wait.max(1)))
    }

    fn run_timers(&mut self) {
        let now = self.now();
        if self.state.next_timer().is_some_and(|due| due <= now) {
            self.apply(Event::Tick);
        }
        self.expire_waiting_jobs(now);
        self.forget_lost_workers(now);
        self.judge_overdue_failures(now);
    }

    fn handle(&mut self, command: Command) {
        // Jobs that wait for a backend are counted without the core hearing of them.
        self.cluster_changed = true;
        match command {
            Command::Submit { request, reply } => self.submit(*request, reply),
            Command::Cancel { uid } => self.cancel(&uid),
            Command::SetPolicy { uid, policy } => self.set_policy(&uid, policy),
            Command::SetWeight { tenant, weight } => {
                self.apply(Event::TenantWeightChanged { tenant, weight });
            }
            Command::Forget { uid } => self.forget(&uid),
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
                    self.report(worker, report);
                }
            }
            Command::Call {
                worker,
                session,
                event,
            } => {
                if self.is_current(worker, session) {
                    self.call(worker, event);
                }
            }
        }
    }

    /// Applies an event, executes what the core asks for, and applies what follows from that.
    fn apply(&mut self, event: Event) {
        let actions = self.core_actions(event);
        self.execute_all(actions);
    }

    /// Applies an event without executing its actions: [`Actor::execute_all`] must follow.
    fn core_actions(&mut self, event: Event) -> Vec<Action> {
        let now = self.now();
        let mut actions = std::mem::take(&mut self.actions);
        self.state.apply(event, now, &mut actions);
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
            let Some(event) = self.following.pop_front() else {
                return;
            };
            actions = self.core_actions(event);
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
