//! The state of one ProverCluster's scheduling and the entry of every event.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::action::Action;
use crate::attempts::Attempt;
use crate::cache::ActionCache;
use crate::classes::{Classes, TaskTypes};
use crate::control::WaitGroup;
use crate::event::{Event, Limits};
use crate::jobs::{Job, Tenant};
use crate::model::{AttemptId, TaskSpec, TenantName, Timestamp, WorkerId};
use crate::order::MaskTree;
use crate::permits::PermitPool;
use crate::recovery::Recovering;
use crate::slab::Slab;
use crate::speed::Group;
use crate::tasks::Task;
use crate::timers::{Timer, Timers};
use crate::workers::Worker;

/// Everything that the core knows.
#[derive(Debug)]
pub struct State {
    pub(crate) limits: Limits,
    pub(crate) now: Timestamp,
    pub(crate) jobs: Slab<Job>,
    pub(crate) job_by_uid: BTreeMap<Arc<str>, u32>,
    pub(crate) tasks: Slab<Task>,
    pub(crate) attempts: Slab<Attempt>,
    pub(crate) workers: Slab<Worker>,
    pub(crate) worker_by_id: BTreeMap<WorkerId, u32>,
    pub(crate) tenants: Vec<Tenant>,
    pub(crate) tenant_by_name: BTreeMap<TenantName, u32>,
    pub(crate) tenant_order: MaskTree,
    pub(crate) tenant_floor: u64,
    pub(crate) classes: Classes,
    pub(crate) types: TaskTypes,
    pub(crate) timers: Timers,
    pub(crate) cache: ActionCache,
    pub(crate) permits: PermitPool,
    /// Whether durable changes come out as facts. Off while what changes follows from a fact that did.
    pub(crate) recording: bool,
    pub(crate) recovering: Option<Recovering>,
    /// Attempts of earlier epochs that workers still hold, by their identities.
    pub(crate) adopted: BTreeMap<u64, u32>,
    /// Jobs at the limit of their workers.
    pub(crate) capped_jobs: u32,
    /// Tenants at the limit of their devices.
    pub(crate) capped_tenants: u32,
    /// Ready tasks that are placed one by one, and the devices that are emptied for them.
    pub(crate) picky: BTreeSet<u32>,
    pub(crate) picky_devices: BTreeMap<u32, (u64, u16)>,
    pub(crate) waiting: BTreeMap<(u8, u8), WaitGroup>,
    /// Second attempts that run beside the first ones, by task.
    pub(crate) twins: BTreeMap<u32, u32>,
    /// Attempts that may run on a worker though nothing is booked there for them, with that worker.
    pub(crate) strays: BTreeSet<(AttemptId, u32)>,
    pub(crate) straggler_timer: Option<Timestamp>,
    pub(crate) groups: Vec<Group>,
    /// The fastest first.
    pub(crate) groups_by_speed: Vec<u32>,
    /// Classes of the device lane that had queued tasks after the last event.
    pub(crate) waiting_classes: u64,
    pub(crate) aging_timer: Option<Timestamp>,

    // What the current event leaves to `settle`.
    pub(crate) dirty: Vec<u32>,
    pub(crate) spare: Vec<u32>,
    pub(crate) newly_queued: u64,
    pub(crate) topology_changed: bool,
    pub(crate) control_wanted: bool,
    pub(crate) waits_changed: bool,
    pub(crate) chain_jobs: Vec<u32>,
    pub(crate) to_forget: Vec<u32>,
    pub(crate) pending_root: Option<(Arc<TaskSpec>, u8)>,
}

/// Epoch of a state that follows no other.
const FIRST_EPOCH: u64 = 1;

impl State {
    /// Nothing known yet, in the first epoch.
    pub fn new(limits: Limits) -> State {
        State::in_epoch(limits, FIRST_EPOCH)
    }

    /// Nothing known yet. Jobs, tasks and attempts have other identities than those of other epochs, of which
    /// workers may still hold some.
    pub fn in_epoch(limits: Limits, epoch: u64) -> State {
        let epochs = epoch.saturating_sub(FIRST_EPOCH);
        State {
            recording: limits.record_facts,
            recovering: None,
            adopted: BTreeMap::new(),
            limits,
            now: Timestamp(0),
            jobs: Slab::in_epoch(epochs),
            job_by_uid: BTreeMap::new(),
            tasks: Slab::in_epoch(epochs),
            attempts: Slab::in_epoch(epochs),
            workers: Slab::new(),
            worker_by_id: BTreeMap::new(),
            tenants: Vec::new(),
            tenant_by_name: BTreeMap::new(),
            tenant_order: MaskTree::new(),
            tenant_floor: 0,
            classes: Classes::new(),
            types: TaskTypes::new(),
            timers: Timers::default(),
            cache: ActionCache::default(),
            permits: PermitPool::default(),
            capped_jobs: 0,
            capped_tenants: 0,
            picky: BTreeSet::new(),
            picky_devices: BTreeMap::new(),
            waiting: BTreeMap::new(),
            twins: BTreeMap::new(),
            strays: BTreeSet::new(),
            straggler_timer: None,
            groups: Vec::new(),
            groups_by_speed: Vec::new(),
            waiting_classes: 0,
            aging_timer: None,
            dirty: Vec::new(),
            spare: Vec::new(),
            newly_queued: 0,
            topology_changed: false,
            control_wanted: false,
            waits_changed: false,
            chain_jobs: Vec::new(),
            to_forget: Vec::new(),
            pending_root: None,
        }
    }

    /// Identities that are given from now on are those of this epoch.
    pub(crate) fn begin_epoch(&mut self, epoch: u64) {
        let epochs = epoch.saturating_sub(FIRST_EPOCH);
        self.jobs.begin_epoch(epochs);
        self.tasks.begin_epoch(epochs);
        self.attempts.begin_epoch(epochs);
    }

    /// Applies one event at the time at which it happens and appends what the shell must do to `actions`.
    /// Time never goes back: an earlier `now` counts as the latest one seen. Events about what is not known
    /// (a job that was forgotten, a worker that is gone) change nothing.
    pub fn apply(&mut self, event: Event, now: Timestamp, actions: &mut Vec<Action>) {
        self.now = self.now.max(now);
        while let Some(timer) = self.timers.pop_due(self.now) {
            self.run_timer(timer, actions);
        }
        self.dispatch(event, actions);
        self.settle(actions);
    }

    /// When [`Event::Tick`] should be applied if nothing else happens before.
    pub fn next_timer(&self) -> Option<Timestamp> {
        self.timers.next()
    }

    /// The limits that were set.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    fn run_timer(&mut self, timer: Timer, out: &mut Vec<Action>) {
        match timer {
            Timer::Lease(worker) => self.lease_due(worker, out),
            Timer::Grace(worker) => self.grace_due(worker, out),
            Timer::Recovered => self.end_recovery(out),
            Timer::Retry(task) => self.retry_due(task, out),
            // Placement looks at the task again by itself.
            Timer::Patience(_) => self.control_wanted = true,
            Timer::Aging => self.aging_due(out),
            Timer::Stragglers => self.stragglers_due(out),
            Timer::Deadline(job) => self.deadline_passed(job, false, out),
            Timer::ActiveDeadline(job) => self.deadline_passed(job, true, out),
        }
    }

    fn dispatch(&mut self, event: Event, out: &mut Vec<Action>) {
        if let Some(attempt) = event.ended() {
            self.stray_ended(attempt);
        }
        match event {
            Event::AttemptStarted { attempt } => self.attempt_started(attempt, out),
            Event::AttemptSucceeded {
                attempt,
                outputs,
                result,
                usage,
            } => {
                self.attempt_succeeded(attempt, outputs, result, usage, out);
            }
            Event::AttemptFailed {
                attempt,
                class,
                reason,
                message,
                usage,
            } => {
                self.attempt_failed(attempt, class, &reason, message, usage, out);
            }
            Event::RecallAnswered { attempt, given_back } => self.recall_answered(attempt, given_back, out),
            Event::AttemptStopped { attempt } => self.attempt_stopped(attempt, out),
            Event::ForeignAttemptLeft { worker, attempt } => self.stray_left(worker, attempt),

            Event::JobSubmitted(spec) => self.job_submitted(*spec, out),
            Event::JobPolicyChanged { job, policy } => self.job_policy_changed(job, policy, out),
            Event::JobCancelled { job } => self.job_cancelled(job, out),
            Event::JobAborted { job, reason, message } => {
                if let Some(job) = self.jobs.find(job.0) {
                    self.fail_job(job, reason, message, None, out);
                }
            }
            Event::JobForgotten { job } => self.job_forgotten(job, out),
            Event::TenantPolicyChanged { tenant, policy } => self.tenant_policy_changed(&tenant, policy, out),

            Event::WorkerConnected { worker, spec, held } => self.worker_connected(worker, spec, &held, out),
            Event::WorkerDisconnected { worker } => self.worker_disconnected(worker),
            Event::WorkerGone { worker } => self.worker_gone(worker, out),
            Event::AwaitedWorkerGone { name } => self.awaited_worker_gone(&name, out),
            Event::WorkerDraining { worker } => self.worker_draining(worker, out),
            Event::WorkerLeavingChanged { worker, leaving } => {
                self.worker_leaving_changed(worker, leaving, out);
            }
            Event::WorkerHeartbeat { worker, attempts } => self.worker_heartbeat(worker, &attempts, out),
            Event::DeviceChanged {
                worker,
                device,
                usable,
            } => self.device_changed(worker, device, usable, out),

            Event::Tick => {}
            call => self.called(call, out),
        }
    }
}
