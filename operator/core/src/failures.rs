//! What happens when an attempt ends without a result: try again, elsewhere, larger, alone, plan anew, or give up.

use std::sync::Arc;

use crate::action::{Action, StopReason, TaskChange};
use crate::attempts::{Lease, NO_DEVICE, Place};
use crate::fact::Fact;
use crate::jobs::root_class_key;
use crate::model::{AttemptId, DeviceClass, FailureClass, Milliseconds, TaskId, Timestamp, Usage};
use crate::slab::NONE;
use crate::state::State;
use crate::tasks::Stage;
use crate::timers::Timer;

/// Each failure of a task makes its next wait so many times as long: what was an accident goes on almost at once, and
/// three retries still outlast a hiccup of five seconds.
const BACKOFF_GROWTH: u64 = 4;
/// Failures that are counted for the backoff: far beyond every longest wait.
const BACKOFF_FAILURES: u32 = 16;

/// What a failure means for its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The job fails with the prover's words.
    Fatal,
    /// Counts toward the job's retry limit and is tried again.
    Retry,
    /// As `Retry`, and the task killed a child.
    Crash,
    /// It may have been another one that killed the child: tried alone, not counted.
    Suspect,
    /// A larger device, else a new plan. True: it killed a child.
    TooSmall(bool),
    /// Counts toward the infrastructure limit.
    Lost,
}

impl State {
    pub(crate) fn attempt_failed(
        &mut self,
        id: AttemptId,
        class: FailureClass,
        reason: &Arc<str>,
        message: Arc<str>,
        usage: Usage,
        out: &mut Vec<Action>,
    ) {
        let Some(attempt) = self.find_attempt(id) else {
            return;
        };
        match self.attempts[attempt].lease {
            Lease::Held => {}
            Lease::Stopping(_) => return self.stopped_attempt_left(attempt, usage, out),
            Lease::Lost => {
                self.attempts[attempt].lease = Lease::Ended(false);
                return;
            }
            Lease::Ended(_) => return,
        }
        let verdict = self.verdict(attempt, class);
        let device = self.device_of(attempt);
        self.release(attempt, out);
        self.settle_usage(attempt, usage);
        self.attempts[attempt].lease = Lease::Ended(false);
        self.detach(attempt);
        // What fails everywhere ends the task; anything else does not matter while another attempt runs.
        if verdict != Verdict::Fatal && self.runs_on(self.attempts[attempt].task) {
            return;
        }
        self.execute(attempt, verdict, class, reason, message, device, out);
    }

    /// Worker (as an entry's identity), its host memory and the device's memory.
    fn device_of(&self, attempt: u32) -> (u64, u64, u64) {
        let entry = &self.attempts[attempt];
        if entry.place == Place::None {
            return (0, 0, 0);
        }
        let worker = &self.workers[entry.worker];
        let vram = worker
            .devices
            .get(usize::from(entry.device))
            .map_or(0, |device| device.vram_bytes);
        (self.workers.id(entry.worker), worker.spec.host_memory_bytes, vram)
    }

    fn verdict(&mut self, attempt: u32, class: FailureClass) -> Verdict {
        match class {
            FailureClass::Fatal | FailureClass::InvalidInput => Verdict::Fatal,
            FailureClass::Retryable | FailureClass::Artifact => Verdict::Retry,
            FailureClass::OutOfMemory => Verdict::TooSmall(false),
            FailureClass::WorkerLost => Verdict::Lost,
            FailureClass::ChildCrashed | FailureClass::ChildHung => {
                if self.is_one_of_several_suspects(attempt) {
                    Verdict::Suspect
                } else {
                    Verdict::Crash
                }
            }
            FailureClass::ChildOutOfMemory => {
                if self.is_one_of_several_suspects(attempt) {
                    Verdict::Suspect
                } else {
                    Verdict::TooSmall(true)
                }
            }
        }
    }

    /// Whether another attempt may have killed the child. Those that ran beside become suspects too. A task that
    /// was suspected as often as a task may crash is charged all the same.
    fn is_one_of_several_suspects(&mut self, attempt: u32) -> bool {
        let entry = &self.attempts[attempt];
        if entry.place == Place::None {
            return false;
        }
        let worker = &self.workers[entry.worker];
        let in_control = entry.device == NO_DEVICE;
        let (alone, suspect, task) = (entry.alone, entry.suspect, entry.task);
        let beside: Vec<u32> = worker
            .devices
            .iter()
            .enumerate()
            .filter(|(index, _)| in_control || *index == usize::from(entry.device))
            .flat_map(|(_, device)| device.running.iter())
            .chain(worker.control.iter())
            .copied()
            .filter(|other| *other != attempt && self.attempts[*other].started_at.is_some())
            .collect();
        for other in &beside {
            self.attempts[*other].suspect = true;
        }
        let beside_on_device = beside
            .iter()
            .any(|other| self.attempts[*other].device != NO_DEVICE);
        let others = if in_control {
            beside_on_device || beside.len() > 1
        } else {
            !beside.is_empty()
        };
        // Beside a suspect there can only be a lost attempt that came back and is being stopped.
        let secluded = alone && !beside_on_device;
        if secluded || !(suspect || others) {
            return false;
        }
        self.tasks[task].trouble_mut().suspected += 1;
        self.tasks[task].trouble().suspected < self.limits.crashes_per_task
    }

    #[allow(clippy::too_many_arguments)]
    fn execute(
        &mut self,
        attempt: u32,
        verdict: Verdict,
        class: FailureClass,
        reason: &Arc<str>,
        message: Arc<str>,
        device: (u64, u64, u64),
        out: &mut Vec<Action>,
    ) {
        let task = self.attempts[attempt].task;
        let job = self.tasks[task].job;
        self.tasks[task].trouble_mut().last_failure = Some(message.clone());
        match verdict {
            Verdict::Fatal => return self.attempt_is_fatal(attempt, class, reason, message, out),
            Verdict::Lost => {
                if self.count_infrastructure(task, &message, out) {
                    self.try_again(attempt, class, message, Milliseconds(0), out);
                }
                return;
            }
            Verdict::Suspect => self.tasks[task].alone = true,
            Verdict::Retry | Verdict::Crash | Verdict::TooSmall(_) => {
                self.jobs[job].failures += 1;
                self.tasks[task].trouble_mut().failures += 1;
            }
        }
        if matches!(verdict, Verdict::Crash | Verdict::TooSmall(true)) {
            self.tasks[task].trouble_mut().crashes += 1;
            // Whatever killed a child is tried again without neighbours that it could kill.
            self.tasks[task].alone = true;
            if self.tasks[task].trouble().crashes >= self.limits.crashes_per_task {
                let crashes = self.tasks[task].trouble().crashes;
                let message =
                    format!("the task killed the prover {crashes} times and is quarantined: {message}");
                return self.attempt_is_fatal(attempt, class, "TaskQuarantined", message.into(), out);
            }
        }
        self.fence(task, out);
        self.record_failures(job, out);
        let (failures, limit) = (self.jobs[job].failures, self.jobs[job].retry_limit);
        if failures > limit {
            let message =
                format!("{failures} attempts failed where {limit} are tried again; the last: {message}");
            return self.attempt_is_fatal(attempt, class, "RetryLimitExceeded", message.into(), out);
        }
        self.tasks[task].trouble_mut().avoid = device.0;
        if matches!(verdict, Verdict::TooSmall(_)) && !self.find_larger(task, device.1, device.2) {
            return self.replan(attempt, class, message, out);
        }
        if matches!(verdict, Verdict::TooSmall(_)) {
            self.record_counts(task, out);
        }
        let delay = self.backoff(task);
        self.try_again(attempt, class, message, delay, out);
    }

    /// The job fails with the words of this attempt.
    pub(crate) fn attempt_is_fatal(
        &mut self,
        attempt: u32,
        class: FailureClass,
        reason: &str,
        message: Arc<str>,
        out: &mut Vec<Action>,
    ) {
        let task = self.attempts[attempt].task;
        let job = self.tasks[task].job;
        if self.tasks[task].stage.is_terminal() {
            return;
        }
        self.fail_task(task, &message, out);
        self.fail_job(job, reason, message, Some(class), out);
    }

    /// Counts the loss of a worker. False: it was one too many and the job has failed.
    fn count_infrastructure(&mut self, task: u32, message: &Arc<str>, out: &mut Vec<Action>) -> bool {
        let job = self.tasks[task].job;
        self.jobs[job].infrastructure_failures += 1;
        self.fence(task, out);
        self.record_failures(job, out);
        let (losses, limit) = (
            self.jobs[job].infrastructure_failures,
            self.limits.infrastructure_retry_limit,
        );
        if losses <= limit {
            return true;
        }
        let message: Arc<str> =
            format!("workers were lost {losses} times where {limit} are survived: {message}").into();
        self.fail_task(task, &message, out);
        self.fail_job(job, "WorkersLost", message, Some(FailureClass::WorkerLost), out);
        false
    }

    fn record_failures(&self, job: u32, out: &mut Vec<Action>) {
        self.record(out, || self.job_counted(job));
    }

    fn backoff(&self, task: u32) -> Milliseconds {
        let failures = self.tasks[task].trouble().failures;
        let growth = BACKOFF_GROWTH.saturating_pow(failures.saturating_sub(1).min(BACKOFF_FAILURES));
        let wait = self.limits.backoff.0.saturating_mul(growth);
        Milliseconds(wait.min(self.limits.backoff_max.0))
    }

    /// Moves a task to the class of larger devices or workers than those on which it ran out of memory.
    fn find_larger(&mut self, task: u32, host_bytes: u64, vram_bytes: u64) -> bool {
        let class = usize::from(self.tasks[task].class);
        let mut key = self.classes.entries[class].key.clone();
        let in_control = self.classes.control & (1 << class) != 0;
        if key.requirements.device_class == DeviceClass::Gpu && !in_control {
            key.minimum_vram_bytes = key.minimum_vram_bytes.max(vram_bytes.saturating_add(1));
        } else {
            key.minimum_host_bytes = key.minimum_host_bytes.max(host_bytes.saturating_add(1));
        }
        let exists = self.workers.iter().any(|(_, worker)| {
            worker.takes_work()
                && worker.fits & (1 << class) != 0
                && worker.spec.host_memory_bytes >= key.minimum_host_bytes
                && (in_control
                    || worker.devices.iter().any(|device| {
                        device.usable
                            && device.class == key.requirements.device_class
                            && device.vram_bytes >= key.minimum_vram_bytes
                    }))
        });
        exists && self.change_class(task, key).is_ok()
    }

    /// Puts a task back, at once or after a wait. A channel writer that has sent is started anew by its parent.
    fn try_again(
        &mut self,
        attempt: u32,
        class: FailureClass,
        message: Arc<str>,
        delay: Milliseconds,
        out: &mut Vec<Action>,
    ) {
        let task = self.attempts[attempt].task;
        if self.tasks[task].stage != Stage::Active {
            return;
        }
        let id = self.attempt_id(attempt);
        let not_before = self.now + delay;
        self.task_changed(
            task,
            TaskChange::Retrying {
                attempt: id,
                class,
                message,
                not_before,
            },
            out,
        );
        if self.tasks[task].sent {
            return self.restart_parent(task, out);
        }
        if delay == Milliseconds(0) {
            return self.make_ready(task, true, out);
        }
        self.tasks[task].trouble_mut().not_before = not_before;
        self.tasks[task].trouble_mut().avoid_until = not_before + self.limits.backoff_max;
        self.set_stage(task, Stage::Backoff);
        self.timers.set(not_before, Timer::Retry(self.tasks.id(task)));
    }

    pub(crate) fn retry_due(&mut self, id: u64, out: &mut Vec<Action>) {
        let Some(task) = self.tasks.find(id) else { return };
        let entry = &self.tasks[task];
        if entry.stage != Stage::Backoff || entry.trouble().not_before > self.now {
            return;
        }
        let patience = entry.trouble().avoid_until;
        self.make_ready(task, true, out);
        if self.tasks[task].picky && patience > self.now {
            self.timers.set(patience, Timer::Patience(id));
        }
    }

    /// An attempt's lease is lost. Its task waits in front of the others for the next worker.
    pub(crate) fn lose(&mut self, attempt: u32, why: &str, out: &mut Vec<Action>) {
        let entry = &self.attempts[attempt];
        let (lease, started, task) = (entry.lease, entry.started_at.is_some(), entry.task);
        match lease {
            Lease::Held => {}
            Lease::Stopping(_) => {
                // It may still be there when its worker comes back.
                self.stopped_attempt_left(attempt, Usage::default(), out);
                self.attempts[attempt].lease = Lease::Lost;
                return;
            }
            Lease::Lost | Lease::Ended(_) => return,
        }
        self.release(attempt, out);
        self.settle_usage(attempt, Usage::default());
        self.attempts[attempt].lease = Lease::Lost;
        self.detach(attempt);
        if self.tasks[task].stage != Stage::Active || self.runs_on(task) {
            return self.record_counts(task, out);
        }
        let message: Arc<str> = why.into();
        self.tasks[task].trouble_mut().last_failure = Some(message.clone());
        if !started {
            self.fence(task, out);
        }
        if !started || self.count_infrastructure(task, &message, out) {
            self.try_again(attempt, FailureClass::WorkerLost, message, Milliseconds(0), out);
        }
    }

    /// Starts the parent of a task as a new epoch: unfinished tasks below it are dropped, finished ones stay and
    /// answer to the same request, channels begin anew.
    pub(crate) fn restart_parent(&mut self, task: u32, out: &mut Vec<Action>) {
        let job = self.tasks[task].job;
        let parent = match self.tasks[task].parent {
            NONE => task,
            parent => parent,
        };
        if self.tasks[parent].stage.is_terminal() {
            let message: Arc<str> =
                "a task that had sent messages failed after the task that had submitted it was done".into();
            self.fail_task(task, &message, out);
            return self.fail_job(job, "ParentEnded", message, Some(FailureClass::Retryable), out);
        }
        self.record(out, || Fact::ParentRestarted {
            task: TaskId(self.tasks.id(parent)),
            at: self.now,
        });
        let recording = std::mem::replace(&mut self.recording, false);
        self.jobs[job].epoch += 1;
        for below in self.tasks_below(parent) {
            self.drop_channel(below);
            if !self.tasks[below].stage.is_terminal() {
                self.drop_task(below, StopReason::Replanned, out);
            }
        }
        self.recording = recording;
        self.run_again(parent, out);
    }

    /// Tasks that a task submitted, and those below them, in the order of submission.
    pub(crate) fn tasks_below(&self, parent: u32) -> Vec<u32> {
        let mut below = std::collections::BTreeSet::from([parent]);
        let mut list = Vec::new();
        let first = self.tasks[parent].order as usize + 1;
        for task in self.jobs[self.tasks[parent].job]
            .tasks
            .iter()
            .skip(first)
            .copied()
        {
            if below.contains(&self.tasks[task].parent) {
                below.insert(task);
                list.push(task);
            }
        }
        list
    }

    /// Stops a parent's attempt and lets it wait for another one, with a fresh channel.
    fn run_again(&mut self, parent: u32, out: &mut Vec<Action>) {
        let job = self.tasks[parent].job;
        self.drop_channel(parent);
        self.tasks[parent].sent = false;
        self.tasks[parent].epoch = self.jobs[job].epoch;
        let current = self.tasks[parent].current;
        if current != NONE {
            self.stop_attempt(current, StopReason::Replanned, out);
        }
        // Whoever was lost before may still come back or report: what it submitted is dropped, so it has not succeeded.
        for attempt in self.attempts_of(job) {
            let entry = &mut self.attempts[attempt];
            entry.discarded |= entry.task == parent;
        }
        self.fence(parent, out);
        if self.jobs[job].root == parent {
            self.release_reservation(job);
        }
        match self.tasks[parent].stage {
            Stage::Active => self.make_ready(parent, true, out),
            Stage::Backoff | Stage::Ready | Stage::Waiting => {}
            Stage::Succeeded | Stage::Failed | Stage::Dropped => {
                unreachable!("only a live parent is run again")
            }
        }
    }

    /// Plans the whole job once more with a smaller segment, since nothing larger is to be had.
    fn replan(&mut self, attempt: u32, class: FailureClass, message: Arc<str>, out: &mut Vec<Action>) {
        let task = self.attempts[attempt].task;
        let job = self.tasks[task].job;
        let (replans, limit) = (self.jobs[job].replans, self.limits.replans);
        let root = self.jobs[job].root;
        if replans >= limit
            || (self.tasks[root].stage.is_terminal() && self.tasks[root].stage != Stage::Succeeded)
        {
            let message = format!(
                "memory did not suffice, not even after {replans} plans with smaller segments: {message}"
            );
            return self.attempt_is_fatal(attempt, class, "OutOfMemory", message.into(), out);
        }
        let revived = self.tasks[root].stage == Stage::Succeeded;
        if revived {
            // The class that it had may be another one by now.
            let (key, _) = root_class_key(&self.jobs[job].spec.clone(), self.jobs[job].leaf_class);
            match self.class_of(key) {
                Ok(found) => self.tasks[root].class = found,
                Err(refusal) => {
                    let message = format!("the job can't be planned again: {refusal}: {message}");
                    return self.attempt_is_fatal(attempt, class, "OutOfMemory", message.into(), out);
                }
            }
        }
        let id = self.attempt_id(attempt);
        let change = TaskChange::Retrying {
            attempt: id,
            class,
            message,
            not_before: self.now,
        };
        self.task_changed(task, change, out);
        self.record(out, || Fact::JobReplanned {
            job: self.job_id(job),
            at: self.now,
        });
        let recording = std::mem::replace(&mut self.recording, false);
        self.jobs[job].replans += 1;
        self.jobs[job].epoch += 1;
        for at in 0..self.jobs[job].tasks.len() {
            let other = self.jobs[job].tasks[at];
            if other == root {
                continue;
            }
            self.drop_channel(other);
            if self.tasks[other].stage.is_terminal() {
                self.forget_request(other);
            } else {
                self.drop_task(other, StopReason::Replanned, out);
            }
        }
        self.unbind_all(job, out);
        self.permit_plan_dropped(job, out);
        self.recording = recording;
        if revived {
            self.revive_root(root);
        }
        self.run_again(root, out);
    }

    /// A planner that was done has to plan again: its success belonged to the plan that was dropped.
    fn revive_root(&mut self, root: u32) {
        let entry = &mut self.tasks[root];
        entry.stage = Stage::Active;
        entry.result = None;
        entry.accepted = 0;
        let (job, kind, class) = (entry.job, entry.kind as usize, usize::from(entry.class));
        self.jobs[job].active += 1;
        self.types.entries[kind].running += 1;
        self.classes.entries[class].references += 1;
        for at in 0..self.tasks[root].inputs.len() {
            let input = self.tasks[root].inputs[at] as usize;
            self.jobs[job].artifacts[input].consumers += 1;
        }
    }

    /// When a task's attempt may be tried again, for the views.
    pub(crate) fn not_before(&self, task: u32) -> Option<Timestamp> {
        (self.tasks[task].stage == Stage::Backoff).then_some(self.tasks[task].trouble().not_before)
    }
}
