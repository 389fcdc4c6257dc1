//! Recovery: a state from facts, facts from a state, and what workers still hold from the epoch before.
//!
//! Replay keeps only what is durable; what follows from it (who waits for what, who reads what, what may run, which
//! classes exist) is made once at its end, so it can't drift apart. Then tasks that were there before are held back
//! until the workers that the facts know have connected or are gone, at most for the reconnect grace: what they hold
//! gets its lease back under its old identity.

mod adopt;
mod checkpoint;
mod replay;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::action::{Action, JobPhase, WaitReason};
use crate::classes::ClassKey;
use crate::event::Limits;
use crate::fact::{Fact, RecoveryError};
use crate::jobs::root_class_key;
use crate::model::Timestamp;
use crate::state::State;
use crate::tasks::Stage;

pub use replay::Replay;

/// What is still open after a recovery.
#[derive(Debug)]
pub(crate) struct Recovering {
    /// Workers that are waited for, and how many of each name.
    awaited: BTreeMap<Arc<str>, u32>,
    /// Ready tasks that nothing is done about yet. May name tasks that have gone on since.
    held_back: Vec<u32>,
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
}
