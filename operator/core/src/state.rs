//! The state of one ProverCluster's scheduling and the entry of every event.

use crate::action::Action;
use crate::event::{Event, Limits};
use crate::model::{ArtifactName, AttemptId, Binding, JobId, TaskId, Timestamp, WorkerId};
use crate::views::{AttemptView, JobView, QueueDepth, TaskTypeCount, TaskView, WorkerView};

/// Everything that the core knows.
#[derive(Debug)]
pub struct State {
    limits: Limits,
}

#[allow(unused_variables)]
impl State {
    /// Nothing known yet.
    pub fn new(limits: Limits) -> State {
        State { limits }
    }
    /// Applies one event at the time at which it happens and appends what the shell must do to `actions`.
    /// Time never goes back: an earlier `now` counts as the latest one seen.
    pub fn apply(&mut self, event: Event, now: Timestamp, actions: &mut Vec<Action>) {}
    /// When [`Event::Tick`] should be applied if nothing else happens before.
    pub fn next_timer(&self) -> Option<Timestamp> {
        None
    }
    /// The limits that were set.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
    /// A job that is not forgotten.
    pub fn job(&self, job: JobId) -> Option<JobView<'_>> {
        None
    }
    /// A job by its unique name.
    pub fn job_by_uid(&self, uid: &str) -> Option<JobId> {
        None
    }
    /// All jobs that are not forgotten, in no particular but in a stable order.
    pub fn jobs(&self) -> impl Iterator<Item = JobView<'_>> {
        std::iter::empty()
    }
    /// A task.
    pub fn task(&self, task: TaskId) -> Option<TaskView<'_>> {
        None
    }
    /// A task of the current plan by its request id.
    pub fn task_by_request(&self, job: JobId, request: &str) -> Option<TaskId> {
        None
    }
    /// All tasks of a job in the order of submission, those of dropped plans too.
    pub fn tasks(&self, job: JobId) -> impl Iterator<Item = TaskView<'_>> {
        std::iter::empty()
    }
    /// Tasks of the current plan of a job by type, in the order of first submission.
    pub fn task_counts(&self, job: JobId) -> Vec<TaskTypeCount> {
        Vec::new()
    }
    /// What a name of a job is bound to.
    pub fn artifact(&self, job: JobId, name: &ArtifactName) -> Option<&Binding> {
        None
    }
    /// An attempt whose task is not terminal or that still holds a slot.
    pub fn attempt(&self, attempt: AttemptId) -> Option<AttemptView> {
        None
    }
    /// All known workers, ordered by identity.
    pub fn workers(&self) -> impl Iterator<Item = WorkerView<'_>> {
        std::iter::empty()
    }
    /// A worker.
    pub fn worker(&self, worker: WorkerId) -> Option<WorkerView<'_>> {
        None
    }
    /// Attempts that a worker holds.
    pub fn worker_attempts(&self, worker: WorkerId) -> Vec<AttemptId> {
        Vec::new()
    }
    /// Work that waits and runs, per backend version and device class.
    pub fn queue_depth(&self) -> Vec<QueueDepth> {
        Vec::new()
    }
}
