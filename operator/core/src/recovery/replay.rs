//! Replay: facts into what is durable of a state, and at the end what follows from it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Recovering;
use crate::action::JobPhase;
use crate::event::Limits;
use crate::fact::{ArtifactFacts, Fact, RecoveryError, TaskCounts, TaskSuccess};
use crate::jobs::{new_job, root_class_key};
use crate::model::{JobId, JobPolicy, JobSpec, TaskId, TaskSpec, Timestamp};
use crate::slab::NONE;
use crate::state::State;
use crate::tasks::{Described, Stage, new_task};
use crate::timers::Timer;

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
                attempt,
                number,
                payload,
            } => {
                let task = self.task(task)?;
                self.state.restore_message(task, attempt, number, payload);
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
                // What names bytes in the store goes with its job, which a checkpoint states before.
                if !outputs.is_empty() {
                    self.job(job)?;
                }
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
        if let Some(old) = self.state.jobs[job].by_request.get(&spec.request_id) {
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
        self.state.tasks[task].end(stage, now);
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
