//! Recovery: a state from facts, facts from a state, and what workers still hold from the epoch before.
//!
//! Replay keeps only what is durable; what follows from it (who waits for what, who reads what, what may run, which
//! classes exist) is made once at its end, so it can't drift apart. Then tasks that were there before are held back
//! until the workers that the facts know have connected or are gone, at most for the reconnect grace: what they hold
//! gets its lease back under its old identity.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::action::{Action, JobPhase, StopReason, TaskChange, WaitReason};
use crate::attempts::{Attempt, Lease, NO_DEVICE, Place};
use crate::classes::ClassKey;
use crate::event::Limits;
use crate::fact::{ArtifactFacts, Fact, RecoveryError, TaskCounts, TaskSuccess};
use crate::jobs::{new_job, root_class_key};
use crate::model::{
    AttemptId, HeldAttempt, JobId, JobPolicy, JobSpec, Lane, TaskId, TaskSpec, TenantPolicy, Timestamp,
};
use crate::slab::NONE;
use crate::state::State;
use crate::tasks::{Described, Stage, new_task};
use crate::timers::Timer;

/// What is still open after a recovery.
#[derive(Debug)]
pub(crate) struct Recovering {
    /// Workers that are waited for, and how many of each name.
    awaited: BTreeMap<Arc<str>, u32>,
    /// Ready tasks that nothing is done about yet. May name tasks that have gone on since.
    held_back: Vec<u32>,
}

/// Makes a state from facts, one by one: a standby keeps one that follows the log.
#[derive(Debug)]
pub struct Replay {
    state: State,
    workers: BTreeMap<Arc<str>, u32>,
    /// Host and device memory that have proved too small for a task, in bytes.
    minimums: BTreeMap<u32, (u64, u64)>,
    latest: Timestamp,
}

impl Replay {
    /// Nothing known yet.
    pub fn new(limits: Limits) -> Replay {
        let mut state = State::new(limits);
        state.recording = false;
        Replay {
            state,
            workers: BTreeMap::new(),
            minimums: BTreeMap::new(),
            latest: Timestamp(0),
        }
    }

    fn job(&self, id: JobId) -> Result<u32, RecoveryError> {
        self.state.jobs.find(id.0).ok_or(RecoveryError::UnknownJob(id))
    }

    fn task(&self, id: TaskId) -> Result<u32, RecoveryError> {
        self.state.tasks.find(id.0).ok_or(RecoveryError::UnknownTask(id))
    }

    fn live_task(&self, id: TaskId) -> Result<u32, RecoveryError> {
        let task = self.task(id)?;
        if self.state.tasks[task].stage.is_terminal() {
            return Err(RecoveryError::EndedTwice(id));
        }
        Ok(task)
    }

    /// The next fact happened then. In a checkpoint facts are ordered by what they are about.
    fn reach(&mut self, at: Timestamp) {
        self.latest = self.latest.max(at);
        self.state.now = at;
    }

    /// The next fact. After an error the replay is of no use any more.
    pub fn apply(&mut self, fact: Fact) -> Result<(), RecoveryError> {
        match fact {
            Fact::JobAdmitted { job, root, spec, at } => self.job_admitted(job, root, &spec, at),
            Fact::JobPolicyChanged { job, policy, at } => self.job_policy_changed(job, policy, at),
            Fact::JobActive { job, at } => self.job_active(job, at),
            Fact::JobCounted {
                job,
                failures,
                infrastructure_failures,
            } => {
                let job = self.job(job)?;
                let entry = &mut self.state.jobs[job];
                (entry.failures, entry.infrastructure_failures) = (failures, infrastructure_failures);
                Ok(())
            }
            Fact::JobReplanned { job, at } => self.job_replanned(job, at),
            Fact::JobFinished { job, phase, at } => self.job_finished(job, phase, at),
            Fact::JobForgotten { job } => self.job_forgotten(job),
            Fact::JobStands {
                job,
                epoch,
                root_epoch,
                replans,
                started_at,
                active_since,
                active_before,
            } => {
                let job = self.job(job)?;
                let root = self.state.jobs[job].root;
                self.state.tasks[root].epoch = root_epoch;
                let entry = &mut self.state.jobs[job];
                (entry.epoch, entry.replans) = (epoch, replans);
                (entry.started_at, entry.active_since, entry.active_before) =
                    (started_at, active_since, active_before);
                Ok(())
            }
            fact => self.apply_to_task(fact),
        }
    }

    fn apply_to_task(&mut self, fact: Fact) -> Result<(), RecoveryError> {
        match fact {
            Fact::TaskSubmitted {
                job,
                task,
                parent,
                epoch,
                spec,
                at,
            } => self.task_submitted(job, task, parent, epoch, spec, at),
            Fact::ParentRestarted { task, at } => self.parent_restarted(task, at),
            Fact::TaskCounted(counts) => self.task_counted(*counts),
            Fact::TaskSucceeded(success) => self.task_succeeded(*success),
            Fact::TaskCached { task } => {
                let task = self.task(task)?;
                self.state.cache_success(task);
                Ok(())
            }
            Fact::MarkerCompleted { task, at } => {
                let task = self.live_task(task)?;
                self.reach(at);
                self.end(task, Stage::Succeeded);
                self.state.tasks[task].result = Some(Arc::from([]));
                Ok(())
            }
            Fact::TaskFailed { task, message, at } => {
                let task = self.live_task(task)?;
                self.reach(at);
                self.state.tasks[task].trouble_mut().last_failure = Some(message);
                self.end(task, Stage::Failed);
                Ok(())
            }
            Fact::TaskDropped { task, at } => {
                let task = self.live_task(task)?;
                self.reach(at);
                self.drop_task(task);
                Ok(())
            }
            Fact::TaskLeftPlan { task } => {
                let task = self.task(task)?;
                self.state.forget_request(task);
                Ok(())
            }
            fact => self.apply_to_artifact(fact),
        }
    }

    fn apply_to_artifact(&mut self, fact: Fact) -> Result<(), RecoveryError> {
        match fact {
            Fact::ArtifactBound { job, name, binding } => {
                let job = self.job(job)?;
                let index = self.state.artifact_index(job, &name);
                self.state.bind(job, index, binding, false, &mut Vec::new());
            }
            Fact::ArtifactDropped { job, name } => {
                let job = self.job(job)?;
                let index = self.state.artifact_index(job, &name);
                self.state.unbind(job, index, &mut Vec::new());
            }
            Fact::ArtifactReleased { job, name } => {
                let job = self.job(job)?;
                let index = self.state.artifact_index(job, &name);
                let artifact = &mut self.state.jobs[job].artifacts[index as usize];
                artifact.consumed = true;
                artifact.references.clear();
            }
            Fact::ArtifactStands(facts) => self.artifact_stands(*facts)?,
            Fact::ReferenceAdded { job, name, reference } => {
                let job = self.job(job)?;
                let index = self.state.artifact_index(job, &name);
                let artifact = &mut self.state.jobs[job].artifacts[index as usize];
                artifact.references.insert(reference);
            }
            Fact::ReferenceRemoved { job, name, reference } => {
                let job = self.job(job)?;
                let index = self.state.artifact_index(job, &name);
                let artifact = &mut self.state.jobs[job].artifacts[index as usize];
                artifact.references.remove(&reference);
                artifact.consumed = true;
            }
            Fact::ChannelMessageSent {
                task,
                sender,
                payload,
            } => {
                let task = self.task(task)?;
                self.state.restore_message(task, payload);
                if let Some(sender) = sender {
                    let sender = self.task(sender)?;
                    self.state.tasks[sender].sent = true;
                }
            }
            fact => return self.apply_to_others(fact),
        }
        Ok(())
    }

    fn apply_to_others(&mut self, fact: Fact) -> Result<(), RecoveryError> {
        match fact {
            Fact::CacheEntryStands {
                job,
                key,
                outputs,
                result,
            } => {
                let job = self.job(job)?;
                self.state.restore_cached(job, key, outputs, result);
            }
            Fact::CacheEntryDropped { key } => self.state.drop_cached(&key, &mut Vec::new()),
            Fact::TenantPolicyChanged { tenant, policy } => {
                self.state.tenant_policy_changed(&tenant, policy, &mut Vec::new());
            }
            Fact::WorkerJoined { name } => *self.workers.entry(name).or_insert(0) += 1,
            Fact::WorkerGone { name } => {
                if let Some(count) = self.workers.get_mut(&name) {
                    *count -= 1;
                    if *count == 0 {
                        self.workers.remove(&name);
                    }
                }
            }
            _ => unreachable!("every fact about jobs, tasks and artifacts was applied before"),
        }
        Ok(())
    }

    // ---- jobs ----

    fn job_admitted(
        &mut self,
        id: JobId,
        root: TaskId,
        spec: &Arc<JobSpec>,
        at: Timestamp,
    ) -> Result<(), RecoveryError> {
        self.reach(at);
        let tenant = self
            .state
            .tenant_index(&spec.tenant)
            .map_err(|_| RecoveryError::LimitExceeded {
                what: "tenants",
                limit: crate::jobs::TENANTS as u64,
            })?;
        let (_, chain) = root_class_key(spec, 0);
        let entry = new_job(spec.clone(), tenant, 0, chain, self.state.now);
        let reused = RecoveryError::IdentityReused {
            what: "job",
            identity: id.0,
        };
        let job = self.state.jobs.restore(id.0, entry).ok_or(reused)?;
        self.state.name_artifacts(job);
        self.state.job_by_uid.insert(spec.uid.clone(), job);
        let root = self.insert_task(job, root, None, 0, Arc::new(spec.root.clone()))?;
        self.state.jobs[job].root = root;
        Ok(())
    }

    fn job_policy_changed(
        &mut self,
        id: JobId,
        policy: JobPolicy,
        at: Timestamp,
    ) -> Result<(), RecoveryError> {
        let job = self.job(id)?;
        self.reach(at);
        self.state.jobs[job].policy = policy;
        if policy.suspended {
            self.stop_active_time(job);
        }
        Ok(())
    }

    fn job_active(&mut self, id: JobId, at: Timestamp) -> Result<(), RecoveryError> {
        let job = self.job(id)?;
        self.reach(at);
        let (entry, now) = (&mut self.state.jobs[job], self.state.now);
        entry.started_at = entry.started_at.or(Some(now));
        entry.active_since = entry.active_since.or(Some(now));
        Ok(())
    }

    fn stop_active_time(&mut self, job: u32) {
        let (entry, now) = (&mut self.state.jobs[job], self.state.now);
        if let Some(since) = entry.active_since.take() {
            entry.active_before.0 += (now - since).0;
        }
    }

    fn job_replanned(&mut self, id: JobId, at: Timestamp) -> Result<(), RecoveryError> {
        let job = self.job(id)?;
        self.reach(at);
        self.state.jobs[job].replans += 1;
        self.state.jobs[job].epoch += 1;
        let root = self.state.jobs[job].root;
        for task in self.state.jobs[job].tasks.clone() {
            self.state.drop_channel(task);
            if task == root {
                continue;
            }
            if self.state.tasks[task].stage.is_terminal() {
                self.state.forget_request(task);
            } else {
                self.drop_task(task);
            }
        }
        self.state.unbind_all(job, &mut Vec::new());
        let epoch = self.state.jobs[job].epoch;
        let entry = &mut self.state.tasks[root];
        entry.stage = Stage::Waiting;
        entry.finished_at = None;
        entry.result = None;
        entry.accepted = 0;
        entry.sent = false;
        entry.epoch = epoch;
        Ok(())
    }

    fn job_finished(&mut self, id: JobId, phase: JobPhase, at: Timestamp) -> Result<(), RecoveryError> {
        let job = self.job(id)?;
        self.reach(at);
        self.stop_active_time(job);
        let now = self.state.now;
        self.state.jobs[job].finished_at = Some(now);
        self.state.jobs[job].phase = phase;
        for task in self.state.jobs[job].tasks.clone() {
            if !self.state.tasks[task].stage.is_terminal() {
                self.drop_task(task);
            }
        }
        Ok(())
    }

    fn job_forgotten(&mut self, id: JobId) -> Result<(), RecoveryError> {
        let job = self.job(id)?;
        self.state.delete_all_artifacts(job, &mut Vec::new());
        if let Some(entry) = self.state.jobs.take(job) {
            self.state.job_by_uid.remove(&entry.uid);
            for task in entry.tasks {
                self.state.tasks.take(task);
                self.minimums.remove(&task);
            }
        }
        Ok(())
    }

    // ---- tasks ----

    fn task_submitted(
        &mut self,
        job: JobId,
        id: TaskId,
        parent: Option<TaskId>,
        epoch: u32,
        spec: Arc<TaskSpec>,
        at: Timestamp,
    ) -> Result<(), RecoveryError> {
        let job = self.job(job)?;
        let parent = parent.map(|parent| self.task(parent)).transpose()?;
        self.reach(at);
        if let Some(old) = self.state.jobs[job].by_request.get(&spec.request_id).copied() {
            self.state.forget_request(old);
        }
        let task = self.insert_task(job, id, parent, epoch, spec)?;
        self.state.tasks[task].epoch = epoch;
        if let Some(parent) = parent {
            self.state.tasks[parent].submits = true;
        }
        Ok(())
    }

    fn insert_task(
        &mut self,
        job: u32,
        id: TaskId,
        parent: Option<u32>,
        epoch: u32,
        mut spec: Arc<TaskSpec>,
    ) -> Result<u32, RecoveryError> {
        let state = &mut self.state;
        let Described {
            kind,
            inputs,
            outputs,
            dependencies,
            height,
        } = state.described(job, &mut spec);
        for input in &inputs {
            state.jobs[job].artifacts[*input as usize].consumed = true;
        }
        let order = state.jobs[job].tasks.len() as u32;
        let (request_id, concludes) = (spec.request_id.clone(), spec.concludes_job);
        let mut entry = new_task(
            job,
            kind,
            order,
            epoch,
            parent.unwrap_or(NONE),
            0,
            height,
            spec,
            state.now,
        );
        (entry.inputs, entry.outputs, entry.dependencies) = (inputs, outputs, dependencies);
        entry.before = true;
        let reused = RecoveryError::IdentityReused {
            what: "task",
            identity: id.0,
        };
        let task = state.tasks.restore(id.0, entry).ok_or(reused)?;
        let entry = &mut state.jobs[job];
        entry.tasks.push(task);
        entry.by_request.insert(request_id, task);
        entry.planned += 1;
        entry.concluding += u32::from(concludes);
        Ok(task)
    }

    fn end(&mut self, task: u32, stage: Stage) {
        let now = self.state.now;
        let entry = &mut self.state.tasks[task];
        entry.stage = stage;
        entry.finished_at = Some(now);
    }

    fn drop_task(&mut self, task: u32) {
        self.end(task, Stage::Dropped);
        self.state.forget_request(task);
    }

    fn parent_restarted(&mut self, id: TaskId, at: Timestamp) -> Result<(), RecoveryError> {
        let parent = self.live_task(id)?;
        self.reach(at);
        let job = self.state.tasks[parent].job;
        self.state.jobs[job].epoch += 1;
        for below in self.state.tasks_below(parent) {
            self.state.drop_channel(below);
            if !self.state.tasks[below].stage.is_terminal() {
                self.drop_task(below);
            }
        }
        self.state.drop_channel(parent);
        self.state.tasks[parent].sent = false;
        self.state.tasks[parent].epoch = self.state.jobs[job].epoch;
        Ok(())
    }

    fn task_counted(&mut self, counts: TaskCounts) -> Result<(), RecoveryError> {
        let task = self.task(counts.task)?;
        self.count_usage(task, counts.device_microseconds, counts.energy_millijoules);
        let entry = &mut self.state.tasks[task];
        (entry.attempts, entry.fence) = (counts.attempts, counts.fence);
        entry.set_trouble(
            counts.failures,
            counts.crashes,
            counts.suspected,
            counts.last_failure,
        );
        (entry.alone, entry.sent) = (counts.alone, counts.sent);
        let minimums = (counts.minimum_host_bytes, counts.minimum_vram_bytes);
        if minimums == (0, 0) {
            self.minimums.remove(&task);
        } else {
            self.minimums.insert(task, minimums);
        }
        Ok(())
    }

    /// Brings the usage of a task, and of its job, to these totals.
    fn count_usage(&mut self, task: u32, microseconds: u64, millijoules: u64) {
        let entry = &mut self.state.tasks[task];
        let more_time = microseconds.saturating_sub(entry.device_microseconds);
        let more_energy = millijoules.saturating_sub(entry.energy_millijoules);
        entry.device_microseconds += more_time;
        entry.energy_millijoules += more_energy;
        let job = &mut self.state.jobs[entry.job];
        job.device_microseconds += more_time;
        job.energy_millijoules += more_energy;
    }

    fn task_succeeded(&mut self, success: TaskSuccess) -> Result<(), RecoveryError> {
        let task = self.live_task(success.task)?;
        self.reach(success.at);
        self.count_usage(task, success.device_microseconds, success.energy_millijoules);
        self.end(task, Stage::Succeeded);
        let entry = &mut self.state.tasks[task];
        entry.attempts = success.attempts;
        entry.accepted = success.attempt.map_or(0, |attempt| attempt.0);
        entry.result = Some(success.result);
        entry.started_at = success.started_at;
        entry.from_cache = success.from_cache;
        let (job, kind) = (entry.job, entry.kind);
        if success.device_microseconds > 0 {
            self.state.types.measure(kind, success.device_microseconds);
        }
        self.state
            .bind_outputs(job, task, success.outputs, &mut Vec::new());
        Ok(())
    }

    // ---- artifacts ----

    fn artifact_stands(&mut self, facts: ArtifactFacts) -> Result<(), RecoveryError> {
        let job = self.job(facts.job)?;
        let index = self.state.artifact_index(job, &facts.name);
        if let (Some(binding), true) = (&facts.binding, facts.shared) {
            self.state.cache.hold(&binding.key);
        }
        let artifact = &mut self.state.jobs[job].artifacts[index as usize];
        artifact.binding = facts.binding.map(Box::new);
        (artifact.shared, artifact.gone, artifact.consumed) = (facts.shared, facts.gone, facts.consumed);
        artifact.references = facts.references.into_iter().collect();
        Ok(())
    }

    // ---- the end ----

    /// The state in a new epoch, higher than all before. Nothing is dispatched before the first event.
    pub fn finish(self, epoch: u64, now: Timestamp) -> Result<State, RecoveryError> {
        let mut state = self.state;
        state.now = self.latest.max(now);
        state.begin_epoch(epoch);
        let awaited = self.workers;
        if !awaited.is_empty() {
            state
                .timers
                .set(state.now + state.limits.reconnect_grace, Timer::Recovered);
            state.recovering = Some(Recovering {
                awaited,
                held_back: Vec::new(),
            });
        }
        let jobs: Vec<u32> = state.jobs.iter().map(|(job, _)| job).collect();
        for job in jobs.iter().copied() {
            if state.jobs[job].is_over() {
                state.jobs[job].counted = false;
                state.permit_job_was_over(job);
            } else {
                state.classify(job, &self.minimums)?;
            }
        }
        let mut told = Vec::new();
        for job in jobs {
            if !state.jobs[job].is_over() {
                state.go_on(job, &mut told);
            }
        }
        state.recording = state.limits.record_facts;
        Ok(state)
    }
}

impl State {
    /// A state that knows what the facts state, in an epoch that is higher than all before: the identities of jobs
    /// and tasks are the same, those of later attempts are new. Nothing is dispatched before the first event.
    ///
    /// Tasks that were there before are held back until all workers that the facts know have connected again or are
    /// known to be gone, at most for the reconnect grace; what they hold gets its lease back.
    pub fn recover(
        limits: Limits,
        epoch: u64,
        facts: impl IntoIterator<Item = Fact>,
        now: Timestamp,
    ) -> Result<State, RecoveryError> {
        let mut replay = Replay::new(limits);
        for fact in facts {
            replay.apply(fact)?;
        }
        replay.finish(epoch, now)
    }

    /// Gives the live tasks of a job their requirement classes.
    fn classify(&mut self, job: u32, minimums: &BTreeMap<u32, (u64, u64)>) -> Result<(), RecoveryError> {
        let spec = self.jobs[job].spec.clone();
        let leaf = self.class_again(ClassKey::of(&spec.largest_leaf))?;
        self.classes.entries[usize::from(leaf)].references += 1;
        self.jobs[job].leaf_class = leaf;
        let (root_key, _) = root_class_key(&spec, leaf);
        for at in 0..self.jobs[job].tasks.len() {
            let task = self.jobs[job].tasks[at];
            let entry = &self.tasks[task];
            if entry.marker || entry.stage.is_terminal() {
                continue;
            }
            let mut key = if self.jobs[job].root == task {
                root_key.clone()
            } else {
                ClassKey::of(&entry.spec.requirements)
            };
            if let Some((host_bytes, vram_bytes)) = minimums.get(&task) {
                (key.minimum_host_bytes, key.minimum_vram_bytes) = (*host_bytes, *vram_bytes);
            }
            let class = self.class_again(key)?;
            self.classes.entries[usize::from(class)].references += 1;
            self.tasks[task].class = class;
        }
        Ok(())
    }

    fn class_again(&mut self, key: ClassKey) -> Result<u8, RecoveryError> {
        self.class_of(key).map_err(|_| RecoveryError::LimitExceeded {
            what: "requirement_classes",
            limit: self.limits.requirement_classes as u64,
        })
    }

    /// Makes everything that follows from what is durable of a job that is not over.
    fn go_on(&mut self, job: u32, out: &mut Vec<Action>) {
        self.permit_job_started();
        for at in 0..self.jobs[job].tasks.len() {
            let task = self.jobs[job].tasks[at];
            if !self.tasks[task].stage.is_terminal() {
                self.wait_again(task);
            }
        }
        let entry = &mut self.jobs[job];
        entry.phase = if entry.policy.suspended {
            JobPhase::Suspended
        } else if entry.active_since.is_some() {
            JobPhase::Running
        } else {
            JobPhase::Queued(WaitReason::Admitted)
        };
        entry.counted = entry.may_run();
        if entry.phase == JobPhase::Running {
            self.count_leaf(job);
        }
        self.refresh_cap(job);
        self.set_deadline_timers(job);
        self.wait_enter(job);
        for at in 0..self.jobs[job].tasks.len() {
            let task = self.jobs[job].tasks[at];
            let entry = &self.tasks[task];
            if !entry.marker && !entry.stage.is_terminal() && entry.pending == 0 {
                self.make_ready(task, false, out);
            }
        }
    }

    /// Counts what a task waits for and reads.
    fn wait_again(&mut self, task: u32) {
        let job = self.tasks[task].job;
        let mut pending = 0;
        for at in 0..self.tasks[task].dependencies.len() {
            let dependency = self.tasks[task].dependencies[at];
            if self.tasks[dependency].stage != Stage::Succeeded {
                self.tasks[dependency].dependents.push(task);
                pending += 1;
            }
        }
        for at in 0..self.tasks[task].inputs.len() {
            let input = self.tasks[task].inputs[at];
            let artifact = &mut self.jobs[job].artifacts[input as usize];
            artifact.consumers += 1;
            if artifact.binding.is_none() {
                artifact.waiters.push(task);
                pending += 1;
            }
        }
        self.tasks[task].pending = pending;
    }

    // ---- who is waited for ----

    /// Names of the workers that are waited for since the recovery, before tasks that were there are dispatched.
    pub fn awaited_workers(&self) -> impl Iterator<Item = &Arc<str>> {
        self.recovering
            .iter()
            .flat_map(|recovering| recovering.awaited.keys())
    }

    /// Whether a ready task must wait until it is known what workers hold of it.
    pub(crate) fn waits_for_workers(&self, task: u32) -> bool {
        self.recovering.is_some() && self.tasks[task].before
    }

    pub(crate) fn hold_back(&mut self, task: u32) {
        self.tasks[task].held_back = true;
        if let Some(recovering) = &mut self.recovering {
            recovering.held_back.push(task);
        }
    }

    /// A worker has connected that was not known in this epoch. True: it was waited for.
    pub(crate) fn awaited_worker_came(&mut self, name: &Arc<str>, out: &mut Vec<Action>) -> bool {
        let awaited = self.recovering.as_mut().and_then(|r| r.awaited.remove(name));
        // It is one again, however often it had joined.
        for _ in 1..awaited.unwrap_or(0) {
            self.record(out, || Fact::WorkerGone { name: name.clone() });
        }
        awaited.is_some()
    }

    /// A worker that is waited for will not come.
    pub(crate) fn awaited_worker_gone(&mut self, name: &Arc<str>, out: &mut Vec<Action>) {
        let awaited = self.recovering.as_mut().and_then(|r| r.awaited.remove(name));
        for _ in 0..awaited.unwrap_or(0) {
            self.record(out, || Fact::WorkerGone { name: name.clone() });
        }
        self.end_recovery_if_complete(out);
    }

    pub(crate) fn end_recovery_if_complete(&mut self, out: &mut Vec<Action>) {
        if self.recovering.as_ref().is_some_and(|r| r.awaited.is_empty()) {
            self.end_recovery(out);
        }
    }

    /// Nobody is waited for any longer: what was held back may run.
    pub(crate) fn end_recovery(&mut self, out: &mut Vec<Action>) {
        let Some(recovering) = self.recovering.take() else {
            return;
        };
        self.topology_changed = true;
        for (name, count) in recovering.awaited {
            for _ in 0..count {
                self.record(out, || Fact::WorkerGone { name: name.clone() });
            }
        }
        let mut tasks = recovering.held_back;
        tasks.retain(|task| self.tasks.get(*task).is_some_and(|entry| entry.held_back));
        tasks.sort_by_key(|task| (self.tasks[*task].job, self.tasks[*task].order));
        tasks.dedup();
        for task in tasks {
            self.tasks[task].held_back = false;
            self.queue_ready(task, false);
        }
    }

    // ---- what workers hold ----

    /// The order in which held attempts are looked at: parents before the children of their chain, then what runs
    /// before what was fetched ahead.
    pub(crate) fn held_in_order(&self, held: &[HeldAttempt]) -> Vec<HeldAttempt> {
        let mut held = held.to_vec();
        held.sort_by_key(|held| {
            let is_root = self
                .tasks
                .find(held.task.0)
                .is_some_and(|task| self.jobs[self.tasks[task].job].root == task);
            (held.device.is_some(), !is_root, !(held.started || held.completed))
        });
        held
    }

    /// Takes on an attempt of an earlier epoch that a worker holds. False: nothing is known of its task, or the
    /// attempt is complete and its task has ended.
    ///
    /// It gets its lease back if its task has not ended, it did not lose the lease before, and no later
    /// attempt is there. Else it is stopped and holds its place until it has left; if it is complete, its
    /// report is judged as that of any lost attempt.
    pub(crate) fn adopt(&mut self, worker: u32, held: HeldAttempt, out: &mut Vec<Action>) -> bool {
        let Some(task) = self.tasks.find(held.task.0) else {
            return false;
        };
        let ended = self.tasks[task].stage.is_terminal();
        let device = held.device.map_or(NO_DEVICE, |device| device.0);
        let misplaced = (self.tasks[task].spec.requirements.lane == Lane::Control) != (device == NO_DEVICE);
        let this_epoch = self.attempts.is_of_this_epoch(held.attempt.0);
        if this_epoch || misplaced || self.tasks[task].marker || (ended && held.completed) {
            return false;
        }
        let Some(attempt) = self.adopted_attempt(worker, task, device, held) else {
            return false;
        };
        let entry = &self.tasks[task];
        let job = entry.job;
        // Numbers begin anew where an epoch did not know of an attempt: then the later epoch's counts.
        let rank = |attempt: &Attempt| (attempt.number, attempt.id);
        let newer = self
            .attempts
            .get(entry.current)
            .is_none_or(|current| rank(current) < (held.number, held.attempt.0));
        let same_plan = held.epoch == entry.epoch;
        let wanted = !ended && same_plan && held.number > entry.fence && newer && self.jobs[job].may_run();
        let place = if held.completed {
            self.place_completed(attempt, worker).filter(|_| wanted)
        } else {
            self.place_adopted(attempt, worker, held.started, wanted)
        };
        let Some(place) = place.filter(|_| wanted) else {
            self.refuse_adopted(attempt, worker, held, place, out);
            return true;
        };
        self.take_out(task);
        if self.jobs[job].root == task {
            self.release_reservation(job);
        }
        self.stop_attempts(task, StopReason::LeaseLost, out);
        if self.tasks[task].stage != Stage::Active {
            self.set_stage(task, Stage::Active);
        }
        let told = self.counts_of(task);
        let entry = &mut self.tasks[task];
        // One that was counted already is not counted again when it ends.
        self.attempts[attempt].regained = held.number <= entry.attempts;
        entry.attempts = entry.attempts.max(held.number);
        entry.fence = entry.fence.min(held.number - 1);
        entry.current = attempt;
        let (kind, alone) = (entry.kind, entry.alone);
        // Others that this epoch knows nothing of may have been before it.
        if self.counts_of(task) != told {
            self.record_counts(task, out);
        }
        self.attempts[attempt].lease = Lease::Held;
        // What is complete books nothing but its place.
        self.attempts[attempt].left = held.completed;
        self.book_adopted(attempt, worker, place);
        if place != Place::Control {
            let charged = self.types.entries[kind as usize].mean_microseconds;
            self.attempts[attempt].charged = charged;
            self.charge(job, charged);
            if alone && place == Place::Slot {
                self.attempts[attempt].alone = true;
                self.workers[worker].devices[usize::from(device)].reserved_for = task;
            }
        }
        if self.jobs[job].root == task {
            self.root_started(job, out);
        }
        let (id, worker_id) = (held.attempt, self.workers[worker].id);
        let prefetch = place == Place::Ahead;
        let change = TaskChange::Assigned {
            attempt: id,
            worker: worker_id,
            prefetch,
        };
        self.task_changed(task, change, out);
        if held.completed {
            self.attempts[attempt].started_at = Some(self.now);
        } else if held.started {
            self.attempt_started(id, out);
        }
        true
    }

    /// An entry for an attempt of an earlier epoch, without lease and place. None: there is no class for its needs.
    fn adopted_attempt(&mut self, worker: u32, task: u32, device: u16, held: HeldAttempt) -> Option<u32> {
        let entry = &self.tasks[task];
        let job = entry.job;
        let class = if entry.stage.is_terminal() {
            // The class that it had may be another one by now.
            self.class_of(ClassKey::of(&entry.spec.clone().requirements))
                .ok()?
        } else {
            entry.class
        };
        let slots = self.workers[worker]
            .devices
            .get(usize::from(device))
            .map_or(1, |device| device.slots.max(1));
        let attempt = self.attempts.insert(Attempt {
            id: held.attempt.0,
            number: held.number,
            adopted_slots: slots,
            ..self.blank_attempt(task, worker, device, class, device == NO_DEVICE)
        });
        self.jobs[job].last_attempt = attempt;
        self.adopted.insert(held.attempt.0, attempt);
        Some(attempt)
    }

    /// Stops an attempt that is not wanted, unless it is complete: then its report is judged when it comes.
    fn refuse_adopted(
        &mut self,
        attempt: u32,
        worker: u32,
        held: HeldAttempt,
        place: Option<Place>,
        out: &mut Vec<Action>,
    ) {
        let task = self.attempts[attempt].task;
        let entry = &mut self.tasks[task];
        // What an attempt of another plan submitted is dropped, or was never recorded.
        self.attempts[attempt].discarded = held.epoch != entry.epoch;
        if !entry.stage.is_terminal() && held.number > entry.attempts {
            entry.attempts = held.number;
            self.fence(task, out);
        }
        if held.completed {
            return;
        }
        let Some(place) = place else {
            let worker = self.workers[worker].id;
            return out.push(Action::Stop {
                worker,
                attempt: held.attempt,
                reason: StopReason::LeaseLost,
            });
        };
        let device = self.attempts[attempt].device;
        self.put(attempt, worker, device, place);
        if place == Place::Control {
            self.book_own(attempt, worker);
        }
        self.mark_dirty(worker);
        self.stop_attempt(attempt, StopReason::LeaseLost, out);
    }

    /// An attempt that is complete needs nothing any more, but is its worker's until its report is judged.
    fn place_completed(&self, attempt: u32, worker: u32) -> Option<Place> {
        let device = self.attempts[attempt].device;
        if device == NO_DEVICE {
            return Some(Place::Control);
        }
        let known = self.workers[worker].devices.get(usize::from(device));
        known.map(|_| Place::Leaving)
    }

    fn place_adopted(&self, attempt: u32, worker: u32, started: bool, wanted: bool) -> Option<Place> {
        let entry = &self.attempts[attempt];
        let holder = &self.workers[worker];
        if entry.device != NO_DEVICE {
            let secluded = wanted && self.tasks[entry.task].alone;
            let taken = holder
                .devices
                .get(usize::from(entry.device))
                .is_none_or(|device| {
                    !(device.running.is_empty() && device.ahead.is_empty() && device.leaving.is_empty())
                });
            if secluded && taken {
                return None;
            }
            return self.place_again(attempt, worker, started, wanted);
        }
        let is_root = self.jobs[entry.job].root == entry.task;
        if wanted && !is_root && self.free_level(attempt, worker).is_some() {
            return Some(Place::Control);
        }
        let bytes = if wanted && is_root {
            self.classes.host_bytes[usize::from(entry.class)]
        } else {
            entry.needs_host_bytes
        };
        // A later attempt of a root takes over the memory that an earlier one keeps for the chain.
        let kept = self.jobs[entry.job].reservation.as_ref();
        let kept = kept.filter(|kept| wanted && is_root && kept.worker == worker);
        let freed: u64 = kept.map_or(0, |kept| {
            let unused = kept.levels.iter().filter(|level| level.used_by == NONE);
            unused.map(|level| level.bytes).sum()
        });
        (holder.host_free + freed >= bytes).then_some(Place::Control)
    }

    /// A level of its job's chain that a child of it can take.
    fn free_level(&self, attempt: u32, worker: u32) -> Option<u8> {
        let entry = &self.attempts[attempt];
        let reservation = self.jobs[entry.job].reservation.as_ref();
        let reservation = reservation.filter(|reservation| reservation.worker == worker)?;
        let level = reservation
            .levels
            .iter()
            .position(|level| level.used_by == NONE && level.bytes >= entry.needs_host_bytes)?;
        Some(level as u8)
    }

    fn book_adopted(&mut self, attempt: u32, worker: u32, place: Place) {
        let entry = &self.attempts[attempt];
        let (device, class, job, task) = (entry.device, entry.class, entry.job, entry.task);
        // What is complete holds its place only.
        let complete = place == Place::Leaving || (place == Place::Control && entry.left);
        self.put(attempt, worker, device, place);
        self.mark_dirty(worker);
        if place != Place::Control || complete {
            return;
        }
        match self
            .free_level(attempt, worker)
            .filter(|_| self.jobs[job].root != task)
        {
            Some(level) => {
                self.attempts[attempt].level = Some(level);
                if let Some(reservation) = &mut self.jobs[job].reservation {
                    reservation.levels[usize::from(level)].used_by = attempt;
                }
            }
            None => self.book_control(attempt, worker, class),
        }
    }

    // ---- checkpoints ----

    /// Facts that make the same durable state as all facts so far.
    pub fn checkpoint(&self) -> Vec<Fact> {
        let mut facts = Vec::new();
        for tenant in self
            .tenants
            .iter()
            .filter(|tenant| tenant.policy != TenantPolicy::default())
        {
            facts.push(Fact::TenantPolicyChanged {
                tenant: tenant.name.clone(),
                policy: tenant.policy,
            });
        }
        let mut jobs: Vec<u32> = self.jobs.iter().map(|(job, _)| job).collect();
        // The order of admission, which is that of identities within an epoch.
        jobs.sort_by_key(|job| self.jobs.id(*job));
        for job in &jobs {
            self.checkpoint_job(*job, &mut facts);
        }
        self.checkpoint_cache(&mut facts);
        for job in jobs {
            if self.jobs[job].is_over() {
                facts.push(Fact::JobFinished {
                    job: self.job_id(job),
                    phase: self.jobs[job].phase.clone(),
                    at: self.jobs[job].finished_at.unwrap_or_default(),
                });
            }
        }
        for (_, worker) in self.workers.iter() {
            facts.push(Fact::WorkerJoined {
                name: worker.spec.name.clone(),
            });
        }
        if let Some(recovering) = &self.recovering {
            for (name, count) in &recovering.awaited {
                facts.extend((0..*count).map(|_| Fact::WorkerJoined { name: name.clone() }));
            }
        }
        facts
    }

    fn checkpoint_job(&self, job: u32, facts: &mut Vec<Fact>) {
        let entry = &self.jobs[job];
        let id = self.job_id(job);
        facts.push(Fact::JobAdmitted {
            job: id,
            root: TaskId(self.tasks.id(entry.root)),
            spec: entry.spec.clone(),
            at: entry.submitted_at,
        });
        if entry.policy != entry.spec.policy {
            facts.push(Fact::JobPolicyChanged {
                job: id,
                policy: entry.policy,
                at: entry.submitted_at,
            });
        }
        for task in entry.tasks.iter().copied().filter(|task| *task != entry.root) {
            let entry = &self.tasks[task];
            facts.push(Fact::TaskSubmitted {
                job: id,
                task: TaskId(self.tasks.id(task)),
                parent: (entry.parent != NONE).then(|| TaskId(self.tasks.id(entry.parent))),
                epoch: entry.epoch,
                spec: entry.spec.clone(),
                at: entry.submitted_at,
            });
        }
        facts.push(Fact::JobStands {
            job: id,
            epoch: entry.epoch,
            root_epoch: self.tasks[entry.root].epoch,
            replans: entry.replans,
            started_at: entry.started_at,
            active_since: entry.active_since,
            active_before: entry.active_before,
        });
        if entry.failures + entry.infrastructure_failures > 0 {
            facts.push(self.job_counted(job));
        }
        for task in &entry.tasks {
            self.checkpoint_task(*task, facts);
        }
        let mut read = vec![false; entry.artifacts.len()];
        for task in &entry.tasks {
            for input in &self.tasks[*task].inputs {
                read[*input as usize] = true;
            }
        }
        for (artifact, read) in entry.artifacts.iter().zip(read) {
            // What follows from the specifications of the job and its tasks.
            let implied = !artifact.gone
                && artifact.references.is_empty()
                && artifact.consumed == read
                && (artifact.binding.is_none() || artifact.source);
            if implied {
                continue;
            }
            facts.push(Fact::ArtifactStands(Box::new(ArtifactFacts {
                job: id,
                name: artifact.name.clone(),
                binding: artifact.binding.as_deref().cloned(),
                shared: artifact.shared,
                gone: artifact.gone,
                consumed: artifact.consumed,
                references: artifact.references.iter().cloned().collect(),
            })));
        }
    }

    fn checkpoint_task(&self, task: u32, facts: &mut Vec<Fact>) {
        let entry = &self.tasks[task];
        let id = TaskId(self.tasks.id(task));
        let job = &self.jobs[entry.job];
        let counts = self.counts_of(task);
        if counts.is_told(entry.stage == Stage::Succeeded) {
            facts.push(Fact::TaskCounted(Box::new(counts)));
        }
        self.checkpoint_channel(task, facts);
        let at = entry.finished_at.unwrap_or_default();
        let named = job.by_request.get(&entry.spec.request_id) == Some(&task);
        match entry.stage {
            Stage::Succeeded if entry.marker => facts.push(Fact::MarkerCompleted { task: id, at }),
            // Names stand for themselves.
            Stage::Succeeded => facts.push(Fact::TaskSucceeded(Box::new(TaskSuccess {
                task: id,
                attempt: (entry.accepted != 0).then_some(AttemptId(entry.accepted)),
                attempts: entry.attempts,
                outputs: Vec::new(),
                result: entry.result.clone().unwrap_or_default(),
                device_microseconds: entry.device_microseconds,
                energy_millijoules: entry.energy_millijoules,
                started_at: entry.started_at,
                from_cache: entry.from_cache,
                at,
            }))),
            Stage::Failed => facts.push(Fact::TaskFailed {
                task: id,
                message: entry.trouble().last_failure.clone().unwrap_or_default(),
                at,
            }),
            // What was dropped with its job is named until the job is forgotten.
            Stage::Dropped if !(job.is_over() && named) => facts.push(Fact::TaskDropped { task: id, at }),
            _ => {}
        }
        if !entry.planned && matches!(entry.stage, Stage::Succeeded | Stage::Failed) {
            facts.push(Fact::TaskLeftPlan { task: id });
        }
    }

    pub(crate) fn job_counted(&self, job: u32) -> Fact {
        Fact::JobCounted {
            job: self.job_id(job),
            failures: self.jobs[job].failures,
            infrastructure_failures: self.jobs[job].infrastructure_failures,
        }
    }

    /// What is known of a task's attempts. One that holds the lease counts when it has ended.
    pub(crate) fn counts_of(&self, task: u32) -> TaskCounts {
        let entry = &self.tasks[task];
        let running = self
            .attempts
            .get(entry.current)
            .is_some_and(|current| !current.regained);
        let minimums = if entry.stage.is_terminal() || entry.marker {
            (0, 0)
        } else {
            let key = &self.classes.entries[usize::from(entry.class)].key;
            (key.minimum_host_bytes, key.minimum_vram_bytes)
        };
        let trouble = entry.trouble();
        TaskCounts {
            task: TaskId(self.tasks.id(task)),
            attempts: entry.attempts - u32::from(running) - u32::from(self.twins.contains_key(&task)),
            fence: entry.fence,
            failures: trouble.failures,
            crashes: trouble.crashes,
            suspected: trouble.suspected,
            alone: entry.alone,
            sent: entry.sent,
            minimum_host_bytes: minimums.0,
            minimum_vram_bytes: minimums.1,
            device_microseconds: entry.device_microseconds,
            energy_millijoules: entry.energy_millijoules,
            last_failure: trouble.last_failure.clone(),
        }
    }

    pub(crate) fn record_counts(&self, task: u32, out: &mut Vec<Action>) {
        self.record(out, || Fact::TaskCounted(Box::new(self.counts_of(task))));
    }

    pub(crate) fn record(&self, out: &mut Vec<Action>, fact: impl FnOnce() -> Fact) {
        if self.recording {
            out.push(Action::Record(fact()));
        }
    }
}

impl TaskCounts {
    /// Whether it says more than a task that was just submitted, or than the fact of its success.
    fn is_told(&self, succeeded: bool) -> bool {
        let beyond_success = (self.failures, self.crashes, self.suspected, self.fence) != (0, 0, 0, 0)
            || self.alone
            || self.sent
            || self.last_failure.is_some();
        let beyond_submission = self.attempts > 0
            || self.minimum_host_bytes + self.minimum_vram_bytes > 0
            || self.device_microseconds + self.energy_millijoules > 0;
        beyond_success || (!succeeded && beyond_submission)
    }
}
