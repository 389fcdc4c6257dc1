//! Jobs: admission, policy, suspension, deadlines, the end and forgetting.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::sync::Arc;

use crate::action::{Action, JobPhase, Refusal, StopReason, TaskChange, WaitReason};
use crate::artifacts::Artifact;
use crate::classes::ClassKey;
use crate::control::Reservation;
use crate::fact::Fact;
use crate::model::{
    BackendVersion, FailureClass, JobId, JobPolicy, JobSpec, Lane, Milliseconds, TaskId, TenantName,
    TenantPolicy, Timestamp,
};
use crate::names::Names;
use crate::order::{MaskTree, Rank};
use crate::permits::JobPermits;
use crate::queue::ClassQueues;
use crate::speed::USUAL;
use crate::state::State;
use crate::tasks::Stage;
use crate::timers::Timer;

/// Tenants that are told apart. More are refused.
pub(crate) const TENANTS: usize = 10_000;

/// A map that is only looked up, never iterated; hashing without randomness keeps the core deterministic.
pub(crate) type Lookup<K, V> = HashMap<K, V, BuildHasherDefault<DefaultHasher>>;

/// A tenant and its jobs that have something to run.
#[derive(Debug)]
pub(crate) struct Tenant {
    pub(crate) name: TenantName,
    pub(crate) policy: TenantPolicy,
    /// Devices on which its attempts have a place, with how many they are; kept only while the devices are bounded.
    pub(crate) devices: BTreeMap<(u32, u16), u32>,
    /// Its devices are as many as it may have: only these are given its tasks.
    pub(crate) capped: bool,
    /// Device time in microseconds divided by the weight.
    pub(crate) share: u64,
    /// Corrections of estimates that wait for the next change of the rank.
    pub(crate) correction: i64,
    /// How long its tasks take in relation to the means of their types, in parts of [`USUAL`].
    pub(crate) pace: u64,
    pub(crate) jobs: MaskTree,
    /// Rank and classes as they stand in the order of tenants.
    pub(crate) published: Option<(Rank, u64)>,
    /// Share of the last job that was given something: where a job that wakes up begins.
    pub(crate) floor: u64,
}

/// A job. The order of the fields is kept: what every decision reads and writes lies together in front.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Job {
    // What every decision touches.
    pub(crate) queued_mask: u64,
    pub(crate) queues: ClassQueues,
    pub(crate) share: u64,
    pub(crate) correction: i64,
    pub(crate) published: Option<(Rank, u64)>,
    pub(crate) policy: JobPolicy,
    pub(crate) capped: bool,
    pub(crate) forget: bool,
    /// Counted among the jobs whose leaves must fit beside parents.
    pub(crate) leaf_counted: bool,
    pub(crate) root_concludes: bool,
    pub(crate) leaf_class: u8,
    pub(crate) tenant: u32,
    pub(crate) root: u32,
    pub(crate) ready: u32,
    pub(crate) backoff: u32,
    pub(crate) active: u32,
    /// Attempts that hold a place on a worker, stopping ones too.
    pub(crate) placed: u32,
    pub(crate) concluding: u32,
    pub(crate) replans: u32,
    /// The last one of the list of its attempts.
    pub(crate) last_attempt: u32,
    pub(crate) device_microseconds: u64,
    pub(crate) energy_millijoules: u64,
    pub(crate) phase: JobPhase,
    /// Its ready tasks count as waiting work.
    pub(crate) counted: bool,

    // The rest.
    pub(crate) uid: Arc<str>,
    /// As submitted.
    pub(crate) spec: Arc<JobSpec>,
    pub(crate) backend: BackendVersion,
    pub(crate) retry_limit: u32,
    /// Host memory of each level of the parent chain, the root first.
    pub(crate) chain: Vec<u64>,
    pub(crate) reservation: Option<Reservation>,
    /// Group of jobs that wait for the same.
    pub(crate) wait_key: Option<(u8, u8)>,

    /// Attempts with a device per worker, kept only while `max_workers` is set.
    pub(crate) workers: BTreeMap<u32, u32>,

    // Tasks.
    pub(crate) tasks: Vec<u32>,
    pub(crate) by_request: Names,
    /// Tasks of the current plan.
    pub(crate) planned: usize,
    pub(crate) epoch: u32,
    pub(crate) failures: u32,
    pub(crate) infrastructure_failures: u32,
    /// Second attempts that were started beside others.
    pub(crate) speculative: u32,

    // Artifacts.
    pub(crate) artifacts: Vec<Artifact>,
    pub(crate) artifact_by_name: Names,
    pub(crate) cache_keys: Vec<Arc<str>>,
    pub(crate) permits: JobPermits,

    // Times.
    pub(crate) submitted_at: Timestamp,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Option<Timestamp>,
    pub(crate) active_since: Option<Timestamp>,
    pub(crate) active_before: Milliseconds,
    pub(crate) active_timer: Option<Timestamp>,
}

impl Job {
    pub(crate) fn is_over(&self) -> bool {
        matches!(
            self.phase,
            JobPhase::Succeeded | JobPhase::Failed { .. } | JobPhase::Cancelled
        )
    }

    /// Whether its tasks may be dispatched.
    pub(crate) fn may_run(&self) -> bool {
        matches!(self.phase, JobPhase::Queued(_) | JobPhase::Running)
    }
}

impl State {
    pub(crate) fn job_id(&self, job: u32) -> JobId {
        JobId(self.jobs.id(job))
    }

    pub(crate) fn tenant_index(&mut self, name: &TenantName) -> Result<u32, Refusal> {
        if let Some(tenant) = self.tenant_by_name.get(name) {
            return Ok(*tenant);
        }
        if self.tenants.len() >= TENANTS {
            return Err(Refusal::LimitExceeded {
                what: "tenants",
                limit: TENANTS as u64,
            });
        }
        let tenant = self.tenants.len() as u32;
        self.tenants.push(Tenant {
            name: name.clone(),
            policy: TenantPolicy::default(),
            devices: BTreeMap::new(),
            capped: false,
            share: self.tenant_floor,
            correction: 0,
            pace: USUAL,
            jobs: MaskTree::new(),
            published: None,
            floor: 0,
        });
        self.tenant_by_name.insert(name.clone(), tenant);
        Ok(tenant)
    }

    pub(crate) fn tenant_policy_changed(
        &mut self,
        name: &TenantName,
        policy: TenantPolicy,
        out: &mut Vec<Action>,
    ) {
        // A name beyond the limit has no jobs either, so its policy does not matter.
        let Ok(tenant) = self.tenant_index(name) else {
            return;
        };
        let entry = &mut self.tenants[tenant as usize];
        let old = std::mem::replace(&mut entry.policy, policy);
        if old != policy {
            self.record(out, || Fact::TenantPolicyChanged {
                tenant: name.clone(),
                policy,
            });
        }
        if old.max_devices != policy.max_devices {
            self.recount_tenant_devices(tenant);
            self.republish_tenant(tenant);
            // Planners may have waited for a bound above zero.
            self.control_wanted = true;
        }
    }

    pub(crate) fn job_submitted(&mut self, spec: JobSpec, out: &mut Vec<Action>) {
        let uid = spec.uid.clone();
        let answer = match self.job_by_uid.get(&uid) {
            Some(job) => Ok(self.job_id(*job)),
            None => self.admit(spec).map(|job| self.job_id(job)),
        };
        let is_new = match &answer {
            Ok(job) => self
                .jobs
                .find(job.0)
                .filter(|job| self.jobs[*job].tasks.is_empty()),
            Err(_) => None,
        };
        out.push(Action::JobAnswered { uid, answer });
        if let Some(job) = is_new {
            self.begin_job(job, out);
        }
    }

    /// Takes a job or says which limit it passes. Its root is created by `begin_job`.
    fn admit(&mut self, spec: JobSpec) -> Result<u32, Refusal> {
        let limit = self.limits.jobs;
        if self.jobs.len() >= limit {
            return Err(Refusal::LimitExceeded {
                what: "jobs",
                limit: limit as u64,
            });
        }
        self.check_task_sizes(&spec.root)?;
        if let Some(dependency) = spec.root.depends_on.first() {
            let (task, dependency) = (spec.root.request_id.clone(), dependency.clone());
            return Err(Refusal::UnknownDependency { task, dependency });
        }
        let tenant = self.tenant_index(&spec.tenant)?;
        let leaf_class = self.class_of(ClassKey::of(&spec.largest_leaf))?;
        self.classes.entries[usize::from(leaf_class)].references += 1;
        let (root_key, chain) = root_class_key(&spec, leaf_class);
        let root_class = match self.class_of(root_key) {
            Ok(class) => class,
            Err(refusal) => {
                self.classes.entries[usize::from(leaf_class)].references -= 1;
                return Err(refusal);
            }
        };
        let spec = Arc::new(spec);
        let root = Arc::new(spec.root.clone());
        let uid = spec.uid.clone();
        let job = self
            .jobs
            .insert(new_job(spec, tenant, leaf_class, chain, self.now));
        self.name_artifacts(job);
        self.job_by_uid.insert(uid, job);
        self.pending_root = Some((root, root_class));
        Ok(job)
    }

    /// Names the artifacts that a job's specification names.
    pub(crate) fn name_artifacts(&mut self, job: u32) {
        let spec = self.jobs[job].spec.clone();
        for (name, binding) in &spec.sources {
            let artifact = self.artifact_index(job, name);
            let artifact = &mut self.jobs[job].artifacts[artifact as usize];
            artifact.source = true;
            artifact.binding = Some(Box::new(binding.clone()));
        }
        for name in &spec.retained {
            let artifact = self.artifact_index(job, name);
            self.jobs[job].artifacts[artifact as usize].retained = true;
        }
    }

    fn begin_job(&mut self, job: u32, out: &mut Vec<Action>) {
        let Some((spec, class)) = self.pending_root.take() else {
            return;
        };
        self.refresh_cap(job);
        self.set_deadline_timers(job);
        self.permit_job_started();
        let phase = self.jobs[job].phase.clone();
        out.push(Action::JobChanged {
            job: self.job_id(job),
            phase,
        });
        let root = self.create_task(job, spec, None, class, out);
        self.jobs[job].root = root;
        self.record(out, || Fact::JobAdmitted {
            job: self.job_id(job),
            root: TaskId(self.tasks.id(root)),
            spec: self.jobs[job].spec.clone(),
            at: self.now,
        });
        self.wait_enter(job);
        self.task_submitted(root, out);
    }

    pub(crate) fn job_policy_changed(&mut self, id: JobId, policy: JobPolicy, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.find(id.0) else { return };
        if self.jobs[job].is_over() {
            return;
        }
        self.cancel_deadline_timers(job);
        let old = self.jobs[job].policy;
        self.jobs[job].policy = policy;
        if old != policy {
            let at = self.now;
            self.record(out, || Fact::JobPolicyChanged { job: id, policy, at });
        }
        if old.max_workers != policy.max_workers {
            self.recount_workers(job);
        }
        match (old.suspended, policy.suspended) {
            (false, true) => self.suspend(job, out),
            (true, false) => self.resume(job, out),
            _ => {}
        }
        self.set_deadline_timers(job);
        self.republish(job);
        let placed: Vec<u32> = self.jobs[job].workers.keys().copied().collect();
        for worker in placed {
            self.mark_dirty(worker);
        }
    }

    fn suspend(&mut self, job: u32, out: &mut Vec<Action>) {
        if let Some(since) = self.jobs[job].active_since.take() {
            let active = self.now - since;
            self.jobs[job].active_before.0 += active.0;
        }
        self.wait_leave(job);
        self.set_phase(job, JobPhase::Suspended, out);
        for at in 0..self.jobs[job].tasks.len() {
            let task = self.jobs[job].tasks[at];
            match self.tasks[task].stage {
                Stage::Active => {
                    self.stop_attempts(task, StopReason::Suspended, out);
                    if self.tasks[task].sent {
                        self.restart_parent(task, out);
                    } else if self.tasks[task].stage == Stage::Active {
                        self.make_ready(task, true, out);
                    }
                }
                Stage::Backoff => self.make_ready(task, false, out),
                Stage::Ready => self.give_device_back(task),
                _ => {}
            }
        }
        self.release_reservation(job);
        self.uncount_leaf(job);
        self.republish(job);
    }

    fn resume(&mut self, job: u32, out: &mut Vec<Action>) {
        let root = self.jobs[job].root;
        if self.tasks[root].stage == Stage::Succeeded {
            self.begin_active_time(job, out);
            self.count_leaf(job);
            self.set_phase(job, JobPhase::Running, out);
        } else {
            self.set_phase(job, JobPhase::Queued(WaitReason::Admitted), out);
            self.wait_enter(job);
        }
        self.republish(job);
        self.newly_queued |= self.jobs[job].queued_mask;
        self.control_wanted = true;
        self.chain_jobs.push(job);
    }

    /// The active time of a job goes on from now.
    pub(crate) fn begin_active_time(&mut self, job: u32, out: &mut Vec<Action>) {
        self.jobs[job].active_since = Some(self.now);
        let (id, at) = (self.job_id(job), self.now);
        self.record(out, || Fact::JobActive { job: id, at });
    }

    pub(crate) fn set_phase(&mut self, job: u32, phase: JobPhase, out: &mut Vec<Action>) {
        if self.jobs[job].phase != phase {
            self.jobs[job].phase = phase.clone();
            self.recount_ready(job);
            out.push(Action::JobChanged {
                job: self.job_id(job),
                phase,
            });
        }
    }

    /// Ready tasks count as waiting work only while their job may run: nobody buys machines for a suspended one.
    fn recount_ready(&mut self, job: u32) {
        let counted = self.jobs[job].may_run();
        if std::mem::replace(&mut self.jobs[job].counted, counted) == counted || self.jobs[job].ready == 0 {
            return;
        }
        for task in &self.jobs[job].tasks {
            let entry = &self.tasks[*task];
            if entry.stage != Stage::Ready {
                continue;
            }
            let kind = &mut self.types.entries[entry.kind as usize];
            if counted {
                kind.add_ready(entry.class);
            } else {
                kind.remove_ready(entry.class);
            }
        }
    }

    pub(crate) fn set_deadline_timers(&mut self, job: u32) {
        let id = self.jobs.id(job);
        let entry = &mut self.jobs[job];
        if let Some(deadline) = entry.policy.deadline {
            self.timers.set(deadline, Timer::Deadline(id));
        }
        if let (Some(limit), Some(since)) = (entry.policy.active_deadline, entry.active_since) {
            let at = Timestamp((since.0 + limit.0).saturating_sub(entry.active_before.0));
            entry.active_timer = Some(at);
            self.timers.set(at, Timer::ActiveDeadline(id));
        }
    }

    fn cancel_deadline_timers(&mut self, job: u32) {
        let id = self.jobs.id(job);
        if let Some(deadline) = self.jobs[job].policy.deadline {
            self.timers.cancel(deadline, Timer::Deadline(id));
        }
        if let Some(at) = self.jobs[job].active_timer.take() {
            self.timers.cancel(at, Timer::ActiveDeadline(id));
        }
    }

    pub(crate) fn deadline_passed(&mut self, id: u64, active: bool, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.find(id) else { return };
        if self.jobs[job].is_over() {
            return;
        }
        let (reason, message) = if active {
            let limit = self.jobs[job].policy.active_deadline.unwrap_or_default();
            (
                "ActiveDeadlineExceeded",
                format!("the job was active for longer than {} s", limit.0 / 1000),
            )
        } else {
            (
                "DeadlineExceeded",
                "the deadline passed before the proof was there".to_owned(),
            )
        };
        let phase = JobPhase::Failed {
            reason: reason.into(),
            message: message.into(),
            class: None,
        };
        self.finish_job(job, phase, StopReason::DeadlinePassed, out);
    }

    pub(crate) fn job_cancelled(&mut self, id: JobId, out: &mut Vec<Action>) {
        if let Some(job) = self.jobs.find(id.0) {
            self.finish_job(job, JobPhase::Cancelled, StopReason::Cancelled, out);
        }
    }

    pub(crate) fn fail_job(
        &mut self,
        job: u32,
        reason: &str,
        message: Arc<str>,
        class: Option<FailureClass>,
        out: &mut Vec<Action>,
    ) {
        let phase = JobPhase::Failed {
            reason: reason.into(),
            message,
            class,
        };
        self.finish_job(job, phase, StopReason::JobFailed, out);
    }

    /// Makes a job terminal: what runs is stopped, what waits is dropped, what it held is released.
    pub(crate) fn finish_job(
        &mut self,
        job: u32,
        phase: JobPhase,
        reason: StopReason,
        out: &mut Vec<Action>,
    ) {
        if self.jobs[job].is_over() {
            return;
        }
        self.record(out, || Fact::JobFinished {
            job: self.job_id(job),
            phase: phase.clone(),
            at: self.now,
        });
        let recording = std::mem::replace(&mut self.recording, false);
        self.wait_leave(job);
        self.cancel_deadline_timers(job);
        self.jobs[job].finished_at = Some(self.now);
        if let Some(since) = self.jobs[job].active_since.take() {
            let active = self.now - since;
            self.jobs[job].active_before.0 += active.0;
        }
        self.set_phase(job, phase, out);
        self.republish(job);
        for at in 0..self.jobs[job].tasks.len() {
            let task = self.jobs[job].tasks[at];
            if !self.tasks[task].stage.is_terminal() {
                self.drop_task(task, reason, out);
            }
        }
        self.release_reservation(job);
        self.uncount_leaf(job);
        self.permit_job_over(job, out);
        let leaf = usize::from(self.jobs[job].leaf_class);
        self.classes.entries[leaf].references -= 1;
        assert!(
            self.jobs[job].queued_mask == 0,
            "a job that is over has nothing queued"
        );
        self.recording = recording;
    }

    pub(crate) fn job_forgotten(&mut self, id: JobId, out: &mut Vec<Action>) {
        let Some(job) = self.jobs.find(id.0) else { return };
        if self.jobs[job].is_over() {
            self.jobs[job].forget = true;
            self.forget_if_idle(job, out);
        }
    }

    /// Frees a forgotten job as soon as none of its attempts holds a place on a worker.
    pub(crate) fn forget_if_idle(&mut self, job: u32, out: &mut Vec<Action>) {
        if !self.jobs[job].forget || self.jobs[job].placed > 0 {
            return;
        }
        let id = self.job_id(job);
        self.record(out, || Fact::JobForgotten { job: id });
        let recording = std::mem::replace(&mut self.recording, false);
        self.delete_all_artifacts(job, out);
        self.recording = recording;
        let attempts = self.attempts_of(job);
        let Some(entry) = self.jobs.remove(job) else {
            return;
        };
        self.job_by_uid.remove(&entry.uid);
        for attempt in attempts {
            if let Some(attempt) = self.attempts.remove(attempt) {
                self.adopted.remove(&attempt.id);
            }
        }
        for task in entry.tasks {
            self.tasks.remove(task);
        }
    }

    /// A job whose planner is done and of which nothing runs or could run will never end by itself.
    pub(crate) fn fail_if_stalled(&mut self, job: u32, out: &mut Vec<Action>) {
        let entry = &self.jobs[job];
        if !matches!(entry.phase, JobPhase::Running)
            || entry.ready + entry.backoff + entry.active > 0
            || self.tasks[entry.root].stage != Stage::Succeeded
        {
            return;
        }
        let (reason, message): (&str, Arc<str>) = if entry.concluding == 0 {
            (
                "NothingConcludes",
                "the planner ended without a task that checks and concludes the proof".into(),
            )
        } else {
            (
                "Stalled",
                "every task that is left waits for a task, an artifact or a marker that nobody makes".into(),
            )
        };
        self.fail_job(job, reason, message, Some(FailureClass::Fatal), out);
    }

    /// Inlined, so that a change is written where it stays and not copied there.
    #[inline(always)]
    pub(crate) fn task_changed(&self, task: u32, change: TaskChange, out: &mut Vec<Action>) {
        let job = self.job_id(self.tasks[task].job);
        out.push(Action::TaskChanged {
            job,
            task: TaskId(self.tasks.id(task)),
            change,
        });
    }
}

/// Class of a root: what it needs, what its chain holds, which leaf must fit.
pub(crate) fn root_class_key(spec: &JobSpec, leaf_class: u8) -> (ClassKey, Vec<u64>) {
    let mut key = ClassKey::of(&spec.root.requirements);
    if spec.root.requirements.lane == Lane::Device {
        return (key, Vec::new());
    }
    let mut chain: Vec<u64> = spec
        .parent_chain
        .iter()
        .map(|level| level.host_memory_bytes)
        .collect();
    let own = spec.root.requirements.host_memory_bytes;
    match chain.first_mut() {
        Some(first) => *first = own.max(*first),
        None => chain.push(own),
    }
    key.chain_bytes = chain.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes));
    key.leaf = Some(leaf_class);
    (key, chain)
}

pub(crate) fn new_job(
    spec: Arc<JobSpec>,
    tenant: u32,
    leaf_class: u8,
    chain: Vec<u64>,
    now: Timestamp,
) -> Job {
    Job {
        uid: spec.uid.clone(),
        tenant,
        policy: spec.policy,
        counted: !spec.policy.suspended,
        phase: if spec.policy.suspended {
            JobPhase::Suspended
        } else {
            JobPhase::Queued(WaitReason::Admitted)
        },
        backend: spec.root.requirements.backend.clone(),
        retry_limit: spec.retry_limit,
        root_concludes: spec.root_concludes,
        root: crate::slab::NONE,
        leaf_class,
        chain,
        reservation: None,
        wait_key: None,
        leaf_counted: false,
        queues: ClassQueues::default(),
        queued_mask: 0,
        share: 0,
        correction: 0,
        published: None,
        capped: false,
        workers: BTreeMap::new(),
        tasks: Vec::new(),
        by_request: Names::of(&spec.uid),
        planned: 0,
        ready: 0,
        backoff: 0,
        active: 0,
        concluding: 0,
        last_attempt: crate::slab::NONE,
        placed: 0,
        epoch: 0,
        replans: 0,
        failures: 0,
        infrastructure_failures: 0,
        speculative: 0,
        artifacts: Vec::new(),
        artifact_by_name: Names::of(&spec.uid),
        cache_keys: Vec::new(),
        permits: JobPermits::default(),
        submitted_at: now,
        started_at: None,
        finished_at: None,
        active_since: None,
        active_before: Milliseconds(0),
        active_timer: None,
        device_microseconds: 0,
        energy_millijoules: 0,
        forget: false,
        spec,
    }
}
