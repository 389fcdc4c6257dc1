//! Tasks: creation, readiness and their ends.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::action::{Action, JobPhase, Refusal, StopReason, TaskChange};
use crate::channels::Links;
use crate::classes::ClassKey;
use crate::fact::Fact;
use crate::model::{ArtifactName, AttemptId, Lane, TaskId, TaskSpec, Timestamp, Usage};
use crate::slab::NONE;
use crate::state::State;

/// Heights beyond this one are not told apart: a tree of 2^63 leaves has no more.
const HIGHEST: u8 = 63;

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Waits for dependencies or inputs; a marker, for its completion.
    Waiting,
    /// May be dispatched.
    Ready,
    /// Waits after a failure.
    Backoff,
    /// Has an attempt with a lease.
    Active,
    Succeeded,
    Failed,
    Dropped,
}

impl Stage {
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Stage::Succeeded | Stage::Failed | Stage::Dropped)
    }
}

/// A task. The order of the fields is kept: what every decision reads and writes comes first; the description, which
/// it does not need, lies apart.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Task {
    pub(crate) job: u32,
    pub(crate) kind: u32,
    /// Position among its job's tasks.
    pub(crate) order: u32,
    /// Changes whenever it leaves a queue, so that old entries don't count.
    pub(crate) ticket: u32,
    /// Dependencies and inputs that are missing.
    pub(crate) pending: u32,
    pub(crate) attempts: u32,
    pub(crate) current: u32,
    /// Task whose attempt submitted it.
    pub(crate) parent: u32,
    pub(crate) class: u8,
    /// Longest chain of dependencies below it; what is lowest has the longest way to the end of the job.
    pub(crate) height: u8,
    pub(crate) stage: Stage,
    pub(crate) marker: bool,
    pub(crate) queued: bool,
    /// Among the tasks that are placed one by one.
    pub(crate) picky: bool,
    /// Must have a device for itself, since it may have killed a child.
    pub(crate) alone: bool,
    /// Has sent a channel message: it can't be tried again in place.
    pub(crate) sent: bool,
    /// Has submitted tasks: it is a parent.
    pub(crate) submits: bool,
    /// Belongs to the current plan.
    pub(crate) planned: bool,
    pub(crate) from_cache: bool,
    /// As in its description, kept here since every success asks.
    pub(crate) concludes: bool,
    pub(crate) completes: bool,
    pub(crate) cacheable: bool,
    /// Was there before the recovery that made this state.
    pub(crate) before: bool,
    /// Ready, but nothing is done about it until it is known what workers hold.
    pub(crate) held_back: bool,
    /// Artifacts of its job.
    pub(crate) inputs: Places,
    pub(crate) dependencies: Places,
    pub(crate) result: Option<Arc<[u8]>>,
    pub(crate) device_microseconds: u64,
    pub(crate) energy_millijoules: u64,
    /// Says something once it is terminal.
    finished_at: Timestamp,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) dependents: Places,
    pub(crate) outputs: Places,
    pub(crate) links: Option<Box<Links>>,
    pub(crate) epoch: u32,
    /// Attempts up to this number have lost the lease for good.
    pub(crate) fence: u32,
    /// What went wrong with it; most tasks have nothing there.
    trouble: Option<Box<Trouble>>,
    pub(crate) submitted_at: Timestamp,
    /// Identity of the attempt whose result it has, or 0.
    pub(crate) accepted: u64,
    pub(crate) spec: Arc<TaskSpec>,
}

/// Places in other lists. Most tasks have at most two of each, which need no memory of their own.
pub(crate) type Places = SmallVec<[u32; 2]>;

/// What went wrong with a task.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) failures: u32,
    /// Children that it alone can have killed.
    pub(crate) crashes: u32,
    /// Crashes in which it was one of several suspects.
    pub(crate) suspected: u32,
    /// Identity of the entry of the worker on which it failed last, or 0.
    pub(crate) avoid: u64,
    /// When it takes that worker too; when it may be tried again.
    pub(crate) avoid_until: Timestamp,
    pub(crate) not_before: Timestamp,
    pub(crate) last_failure: Option<Arc<str>>,
}

impl Trouble {
    const NONE: Trouble = Trouble {
        failures: 0,
        crashes: 0,
        suspected: 0,
        avoid: 0,
        avoid_until: Timestamp(0),
        not_before: Timestamp(0),
        last_failure: None,
    };
}

static NO_TROUBLE: Trouble = Trouble::NONE;

impl Task {
    pub(crate) fn finished_at(&self) -> Option<Timestamp> {
        self.stage.is_terminal().then_some(self.finished_at)
    }

    /// Becomes terminal without anything else that comes with it.
    pub(crate) fn end(&mut self, stage: Stage, at: Timestamp) {
        (self.stage, self.finished_at) = (stage, at);
    }

    pub(crate) fn trouble(&self) -> &Trouble {
        self.trouble.as_deref().unwrap_or(&NO_TROUBLE)
    }

    pub(crate) fn trouble_mut(&mut self) -> &mut Trouble {
        self.trouble.get_or_insert_with(|| Box::new(Trouble::NONE))
    }

    /// Replaces what went wrong with it.
    pub(crate) fn set_trouble(
        &mut self,
        failures: u32,
        crashes: u32,
        suspected: u32,
        last: Option<Arc<str>>,
    ) {
        if failures + crashes + suspected > 0 || last.is_some() || self.trouble.is_some() {
            let trouble = self.trouble_mut();
            (trouble.failures, trouble.crashes, trouble.suspected) = (failures, crashes, suspected);
            trouble.last_failure = last;
        }
    }
}

/// A task that waits, without what it reads, makes and waits for.
#[allow(clippy::too_many_arguments)]
pub(crate) fn new_task(
    job: u32,
    kind: u32,
    order: u32,
    epoch: u32,
    parent: u32,
    class: u8,
    height: u8,
    spec: Arc<TaskSpec>,
    now: Timestamp,
) -> Task {
    Task {
        job,
        kind,
        order,
        ticket: 0,
        pending: 0,
        attempts: 0,
        current: NONE,
        parent,
        class,
        height,
        stage: Stage::Waiting,
        marker: spec.marker,
        queued: false,
        picky: false,
        alone: false,
        sent: false,
        submits: false,
        planned: true,
        from_cache: false,
        concludes: spec.concludes_job,
        completes: !spec.completes.is_empty(),
        cacheable: spec.cache_key.is_some(),
        before: false,
        held_back: false,
        epoch,
        fence: 0,
        trouble: None,
        dependencies: Places::new(),
        dependents: Places::new(),
        inputs: Places::new(),
        outputs: Places::new(),
        submitted_at: now,
        started_at: None,
        finished_at: now,
        device_microseconds: 0,
        energy_millijoules: 0,
        result: None,
        links: None,
        accepted: 0,
        spec,
    }
}

/// What a task's description names, as entries of the state.
pub(crate) struct Described {
    pub(crate) kind: u32,
    pub(crate) inputs: Places,
    pub(crate) outputs: Places,
    pub(crate) dependencies: Places,
    pub(crate) height: u8,
}

impl State {
    pub(crate) fn check_task_sizes(&self, spec: &TaskSpec) -> Result<(), Refusal> {
        let limit = self.limits.opaque_bytes;
        if spec.parameters.len() > limit {
            return Err(Refusal::LimitExceeded {
                what: "opaque_bytes",
                limit: limit as u64,
            });
        }
        Ok(())
    }

    /// How long the longest chain of dependencies below a task is that depends on these.
    pub(crate) fn height_above(&self, dependencies: &[u32]) -> u8 {
        dependencies
            .iter()
            .map(|dependency| self.tasks[*dependency].height.saturating_add(1).min(HIGHEST))
            .max()
            .unwrap_or(0)
    }

    /// Lets a description share the names that its job, its artifacts and its type have already: there are a million
    /// tasks, and each would keep its own copies.
    fn keep_names_once(&self, job: u32, spec: &mut Arc<TaskSpec>, inputs: &[u32], outputs: &[u32]) {
        // Somebody who shares the description has a reason to keep it.
        let Some(spec) = Arc::get_mut(spec) else { return };
        let job = &self.jobs[job];
        for (names, places) in [(&mut spec.inputs, inputs), (&mut spec.outputs, outputs)] {
            for (name, place) in names.iter_mut().zip(places) {
                *name = job.artifacts[*place as usize].name.clone();
            }
        }
        for name in &mut spec.depends_on {
            if let Some(known) = job.by_request.known(name) {
                *name = known.clone();
            }
        }
        if spec.requirements.backend == job.backend {
            spec.requirements.backend = job.backend.clone();
        }
        spec.task_type = self.types.shared_name(&spec.task_type, &spec.requirements);
        if spec.parameters.is_empty() {
            spec.parameters = Arc::default();
        }
    }

    /// Finds what a description names among what the job has, and makes it share those names; artifacts that it names
    /// first are made.
    pub(crate) fn described(&mut self, job: u32, spec: &mut Arc<TaskSpec>) -> Described {
        let kind = self
            .types
            .intern(&spec.task_type, &spec.requirements, spec.estimated_device_time);
        let mut places = |names: &[ArtifactName]| -> Places {
            names.iter().map(|name| self.artifact_index(job, name)).collect()
        };
        let (inputs, outputs) = (places(&spec.inputs), places(&spec.outputs));
        self.keep_names_once(job, spec, &inputs, &outputs);
        let by_request = &self.jobs[job].by_request;
        let dependencies: Places = spec
            .depends_on
            .iter()
            .filter_map(|name| by_request.get(name))
            .collect();
        let height = self.height_above(&dependencies);
        Described {
            kind,
            inputs,
            outputs,
            dependencies,
            height,
        }
    }

    /// Creates a task whose request id is new and whose dependencies are known.
    pub(crate) fn create_task(
        &mut self,
        job: u32,
        mut spec: Arc<TaskSpec>,
        parent: Option<u32>,
        class: u8,
        out: &mut Vec<Action>,
    ) -> u32 {
        let Described {
            kind,
            inputs,
            outputs,
            dependencies,
            height,
        } = self.described(job, &mut spec);
        let entry = &self.jobs[job];
        let (order, epoch) = (entry.tasks.len() as u32, entry.epoch);
        let request_id = spec.request_id.clone();
        let concludes = spec.concludes_job;
        let mut pending = 0;
        if !spec.marker {
            self.classes.entries[usize::from(class)].references += 1;
        }
        let mut entry = new_task(
            job,
            kind,
            order,
            epoch,
            parent.unwrap_or(NONE),
            class,
            height,
            spec,
            self.now,
        );
        entry.outputs = outputs;
        let task = self.tasks.insert(entry);
        for dependency in &dependencies {
            if self.tasks[*dependency].stage != Stage::Succeeded {
                self.tasks[*dependency].dependents.push(task);
                pending += 1;
            }
        }
        for input in &inputs {
            let artifact = &mut self.jobs[job].artifacts[*input as usize];
            artifact.consumers += 1;
            artifact.consumed = true;
            if artifact.binding.is_none() {
                artifact.waiters.push(task);
                pending += 1;
            }
        }
        let entry = &mut self.tasks[task];
        (entry.pending, entry.dependencies, entry.inputs) = (pending, dependencies, inputs);
        let entry = &mut self.jobs[job];
        entry.tasks.push(task);
        entry.by_request.insert(request_id, task);
        entry.planned += 1;
        entry.concluding += u32::from(concludes);
        // A root comes with the fact of its job.
        if let Some(parent) = parent {
            self.record(out, || Fact::TaskSubmitted {
                job: self.job_id(job),
                task: TaskId(self.tasks.id(task)),
                parent: Some(TaskId(self.tasks.id(parent))),
                epoch,
                spec: self.tasks[task].spec.clone(),
                at: self.now,
            });
        }
        self.task_changed(task, TaskChange::Created, out);
        task
    }

    /// A task has just been created: it may be answered from the cache or be ready.
    pub(crate) fn task_submitted(&mut self, task: u32, out: &mut Vec<Action>) {
        if self.tasks[task].marker || self.answer_from_cache(task, out) {
            return;
        }
        if self.tasks[task].pending == 0 {
            self.make_ready(task, false, out);
        }
    }

    /// One thing that the task waited for is there.
    pub(crate) fn one_less_pending(&mut self, task: u32, out: &mut Vec<Action>) {
        let entry = &mut self.tasks[task];
        assert!(
            entry.pending > 0,
            "a task that is told of a dependency waits for one"
        );
        entry.pending -= 1;
        if entry.pending > 0 || entry.marker || entry.stage != Stage::Waiting {
            return;
        }
        if !self.answer_from_cache(task, out) {
            self.make_ready(task, false, out);
        }
    }

    /// Moves a task to another stage and keeps the counts of its job and type.
    pub(crate) fn set_stage(&mut self, task: u32, stage: Stage) {
        let entry = &mut self.tasks[task];
        let old = std::mem::replace(&mut entry.stage, stage);
        assert!(!old.is_terminal(), "a terminal task stays as it is");
        let class = entry.class;
        let job = &mut self.jobs[entry.job];
        let kind = &mut self.types.entries[entry.kind as usize];
        match old {
            Stage::Ready => {
                job.ready -= 1;
                if job.counted {
                    kind.remove_ready(class);
                }
            }
            Stage::Backoff => job.backoff -= 1,
            Stage::Active => (job.active, kind.running) = (job.active - 1, kind.running - 1),
            _ => {}
        }
        match stage {
            Stage::Ready => {
                job.ready += 1;
                if job.counted {
                    kind.add_ready(class);
                }
            }
            Stage::Backoff => job.backoff += 1,
            Stage::Active => (job.active, kind.running) = (job.active + 1, kind.running + 1),
            _ => {}
        }
        if stage.is_terminal() {
            entry.finished_at = self.now;
            if !entry.marker {
                self.classes.entries[usize::from(entry.class)].references -= 1;
            }
        }
    }

    /// A task may be dispatched from now on: put into its job's queue, or among those that are placed singly.
    pub(crate) fn make_ready(&mut self, task: u32, front: bool, out: &mut Vec<Action>) {
        let entry = &self.tasks[task];
        if entry.pending > 0 {
            // Its attempt had outlived the leader that knew what it had waited for.
            return self.set_stage(task, Stage::Waiting);
        }
        let was_waiting = entry.stage == Stage::Waiting;
        self.set_stage(task, Stage::Ready);
        if was_waiting {
            self.task_changed(task, TaskChange::Ready, out);
        }
        if self.waits_for_workers(task) {
            self.hold_back(task);
        } else {
            self.queue_ready(task, front);
        }
    }

    /// Lets a ready task wait where placement sees it.
    pub(crate) fn queue_ready(&mut self, task: u32, front: bool) {
        if self.is_picky(task) {
            self.tasks[task].picky = true;
            self.picky.insert(task);
            self.control_wanted = true;
        } else {
            self.enqueue(task, front);
        }
        if self.lane(task) == Lane::Control {
            let job = self.tasks[task].job;
            if self.jobs[job].root != task {
                self.chain_jobs.push(job);
            }
            self.control_wanted = true;
            self.waits_changed = true;
        }
    }

    /// Takes a ready task out of whatever it waits in.
    pub(crate) fn take_out(&mut self, task: u32) {
        if self.tasks[task].queued {
            self.dequeue(task);
        }
        if self.tasks[task].picky {
            self.unpick(task);
        }
        self.tasks[task].held_back = false;
    }

    /// Moves a task to another class, such as one of larger devices.
    pub(crate) fn change_class(&mut self, task: u32, key: ClassKey) -> Result<(), Refusal> {
        let class = self.class_of(key)?;
        let old = std::mem::replace(&mut self.tasks[task].class, class);
        self.classes.entries[usize::from(class)].references += 1;
        self.classes.entries[usize::from(old)].references -= 1;
        Ok(())
    }

    /// A task has its result, from an attempt, from the cache or, as a marker, by being completed.
    pub(crate) fn succeed(
        &mut self,
        task: u32,
        attempt: Option<AttemptId>,
        result: Arc<[u8]>,
        usage: Usage,
        out: &mut Vec<Action>,
    ) {
        self.set_stage(task, Stage::Succeeded);
        self.tasks[task].result = Some(result);
        self.task_changed(task, TaskChange::Succeeded { attempt, usage }, out);
        let job = self.tasks[task].job;
        let markers = if self.tasks[task].completes {
            self.tasks[task].spec.completes.len()
        } else {
            0
        };
        for at in 0..markers {
            let marker = self.jobs[job]
                .by_request
                .get(&self.tasks[task].spec.completes[at]);
            if let Some(marker) = marker {
                self.complete_marker(marker, attempt, out);
            }
        }
        self.end_links(task, out);
        for at in 0..self.tasks[task].inputs.len() {
            let artifact = self.tasks[task].inputs[at];
            self.consumer_done(job, artifact, true, out);
        }
        for dependent in std::mem::take(&mut self.tasks[task].dependents) {
            if !self.tasks[dependent].stage.is_terminal() {
                self.one_less_pending(dependent, out);
            }
        }
        let is_root = self.jobs[job].root == task;
        if is_root {
            self.release_reservation(job);
        }
        if self.tasks[task].concludes || (is_root && self.jobs[job].root_concludes) {
            self.finish_job(job, JobPhase::Succeeded, StopReason::Superseded, out);
        } else if self.jobs[job].active == 0 {
            self.fail_if_stalled(job, out);
        }
    }

    /// Completes a marker. Again does no harm.
    pub(crate) fn complete_marker(&mut self, marker: u32, by: Option<AttemptId>, out: &mut Vec<Action>) {
        let entry = &self.tasks[marker];
        if entry.marker && !entry.stage.is_terminal() && entry.planned {
            self.record(out, || Fact::MarkerCompleted {
                task: TaskId(self.tasks.id(marker)),
                at: self.now,
            });
            self.succeed(marker, by, Arc::from([]), Usage::default(), out);
        }
    }

    /// A task will not be run any more, since its job is over or its plan was dropped.
    pub(crate) fn drop_task(&mut self, task: u32, reason: StopReason, out: &mut Vec<Action>) {
        self.take_out(task);
        self.record(out, || Fact::TaskDropped {
            task: TaskId(self.tasks.id(task)),
            at: self.now,
        });
        let ran = self.runs_on(task);
        self.stop_attempts(task, reason, out);
        self.set_stage(task, Stage::Dropped);
        if ran {
            // Its end follows from the fact of whatever ended it, but not how often it was tried.
            let recording = std::mem::replace(&mut self.recording, self.limits.record_facts);
            self.fence(task, out);
            self.recording = recording;
        }
        self.task_changed(task, TaskChange::Dropped, out);
        self.end_links(task, out);
        let job = self.tasks[task].job;
        for at in 0..self.tasks[task].inputs.len() {
            let artifact = self.tasks[task].inputs[at];
            self.consumer_done(job, artifact, false, out);
        }
        self.forget_request(task);
    }

    /// Takes a task out of the current plan, so that its request id may name another one.
    pub(crate) fn forget_request(&mut self, task: u32) {
        let entry = &mut self.tasks[task];
        if !std::mem::replace(&mut entry.planned, false) {
            return;
        }
        let job = &mut self.jobs[entry.job];
        job.planned -= 1;
        job.concluding -= u32::from(entry.spec.concludes_job);
        if !job.is_over() && job.by_request.get(&entry.spec.request_id) == Some(task) {
            job.by_request.remove(&entry.spec.request_id);
        }
    }

    /// Fails a task for good, and its job with it.
    pub(crate) fn fail_task(&mut self, task: u32, message: &Arc<str>, out: &mut Vec<Action>) {
        self.take_out(task);
        self.stop_attempts(task, StopReason::JobFailed, out);
        self.tasks[task].trouble_mut().last_failure = Some(message.clone());
        self.record_counts(task, out);
        self.record(out, || Fact::TaskFailed {
            task: TaskId(self.tasks.id(task)),
            message: message.clone(),
            at: self.now,
        });
        self.set_stage(task, Stage::Failed);
        self.task_changed(
            task,
            TaskChange::Failed {
                message: message.clone(),
            },
            out,
        );
        self.end_links(task, out);
        let job = self.tasks[task].job;
        for at in 0..self.tasks[task].inputs.len() {
            let artifact = self.tasks[task].inputs[at];
            self.consumer_done(job, artifact, false, out);
        }
    }

    pub(crate) fn lane(&self, task: u32) -> Lane {
        if self.classes.control & (1 << self.tasks[task].class) != 0 {
            Lane::Control
        } else {
            Lane::Device
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attempts::Attempt;
    use crate::slab::Slab;

    #[test]
    fn tasks_and_attempts_stay_small() {
        assert_eq!(size_of::<Places>(), 24, "as large as a vector");
        assert_eq!(Slab::<Task>::entry_bytes(), 256, "four cache lines");
        let attempt = Slab::<Attempt>::entry_bytes();
        assert!(attempt <= 168, "{attempt} bytes");
    }
}
