//! What the shells may read: jobs, tasks, attempts, workers and queue depth. Owns no state and changes none.

use std::sync::Arc;

use crate::action::JobPhase;
use crate::model::{
    AttemptId, BackendVersion, DeviceClass, DeviceIndex, JobId, JobPolicy, Milliseconds, TaskId, TaskSpec,
    TenantName, Timestamp, WorkerId, WorkerSpec,
};

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskState {
    /// Waits for tasks, for inputs that are not bound yet or, as a marker, for its completion.
    Waiting,
    /// May be dispatched.
    Ready,
    /// Failed and waits to be tried again.
    Backoff,
    /// Assigned to a worker, not reported as started.
    Assigned,
    /// Runs on a worker.
    Running,
    /// Has its result.
    Succeeded,
    /// Will not be tried again.
    Failed,
    /// Its job ended or its plan was dropped first.
    Dropped,
}

/// Where an attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttemptState {
    /// Fetched ahead; holds no slot.
    Prefetched,
    /// Holds a slot, but its worker has not reported its start.
    Assigned,
    /// Runs.
    Started,
    /// Its successor has started in its slot; its outputs are on their way.
    Leaving,
    /// Was told to stop and still holds its slot.
    Stopping,
    /// Its lease is lost.
    Lost,
}

/// A job.
#[derive(Clone, Debug)]
pub struct JobView<'a> {
    /// Identity.
    pub job: JobId,
    /// As submitted.
    pub uid: &'a Arc<str>,
    /// Namespace.
    pub tenant: &'a TenantName,
    /// What it is doing and why.
    pub phase: &'a JobPhase,
    /// As it stands now.
    pub policy: JobPolicy,
    /// Its root task.
    pub root: TaskId,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When its root was first dispatched.
    pub started_at: Option<Timestamp>,
    /// When it became terminal.
    pub finished_at: Option<Timestamp>,
    /// Times that it was planned again with a smaller segment.
    pub replans: u32,
    /// Counts the plans: replans and restarts of parents.
    pub epoch: u32,
    /// Failures of its own, counted toward its retry limit.
    pub failures: u32,
    /// Losses of workers, counted toward the infrastructure limit.
    pub infrastructure_failures: u32,
    /// Tasks of the current plan.
    pub tasks: usize,
    /// Attempts that hold a lease.
    pub attempts_running: u32,
    /// Device time of all its attempts, divided where attempts overlapped on a device.
    pub device_time: Milliseconds,
    /// Energy of all its attempts in millijoules.
    pub energy_millijoules: u64,
}

/// A task.
#[derive(Clone, Debug)]
pub struct TaskView<'a> {
    /// Identity.
    pub task: TaskId,
    /// Its job.
    pub job: JobId,
    /// As submitted.
    pub spec: &'a TaskSpec,
    /// Where it stands.
    pub state: TaskState,
    /// Plan that it belongs to.
    pub epoch: u32,
    /// Attempts so far.
    pub attempts: u32,
    /// Its current attempt and that attempt's worker.
    pub current: Option<(AttemptId, WorkerId)>,
    /// When it was submitted.
    pub submitted_at: Timestamp,
    /// When its last attempt started.
    pub started_at: Option<Timestamp>,
    /// When it became terminal.
    pub finished_at: Option<Timestamp>,
    /// Device time of all its attempts.
    pub device_time: Milliseconds,
    /// Energy of all its attempts in millijoules.
    pub energy_millijoules: u64,
    /// Inline result of the accepted attempt.
    pub result: Option<&'a Arc<[u8]>>,
    /// Whether the action cache answered it.
    pub from_cache: bool,
    /// Words of its last failure.
    pub last_failure: Option<&'a Arc<str>>,
}

/// An attempt.
#[derive(Clone, Debug)]
pub struct AttemptView {
    /// Identity.
    pub attempt: AttemptId,
    /// Its task.
    pub task: TaskId,
    /// Its job.
    pub job: JobId,
    /// Its worker; none when the worker was forgotten.
    pub worker: Option<WorkerId>,
    /// Its device; none in the control lane.
    pub device: Option<DeviceIndex>,
    /// Counted from 1 within its task.
    pub number: u32,
    /// Where it stands.
    pub state: AttemptState,
    /// When it was assigned.
    pub assigned_at: Timestamp,
    /// When it started.
    pub started_at: Option<Timestamp>,
}

/// A worker.
#[derive(Clone, Debug)]
pub struct WorkerView<'a> {
    /// Identity.
    pub worker: WorkerId,
    /// As it presented itself.
    pub spec: &'a WorkerSpec,
    /// Whether its stream is open.
    pub connected: bool,
    /// Whether its lease holds.
    pub alive: bool,
    /// Whether it takes nothing new.
    pub draining: bool,
    /// Attempts with a slot or host memory.
    pub running: usize,
    /// Attempts fetched ahead.
    pub prefetched: usize,
    /// Slots of usable devices.
    pub slots: usize,
    /// Host memory that no attempt and no reservation holds, in bytes.
    pub host_memory_free_bytes: u64,
    /// Host memory reserved for parents, in bytes.
    pub host_memory_parents_bytes: u64,
}

/// Tasks of a job by type and state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskTypeCount {
    /// Task type.
    pub task_type: Arc<str>,
    /// Tasks of this type.
    pub total: u64,
    /// Waiting for others or in backoff.
    pub waiting: u64,
    /// Ready to be dispatched.
    pub ready: u64,
    /// Assigned or running.
    pub running: u64,
    /// With a result.
    pub succeeded: u64,
    /// Failed or dropped.
    pub ended: u64,
}

/// Work that waits and runs for one device class of one backend version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueDepth {
    /// Backend that runs it.
    pub backend: BackendVersion,
    /// Kind of device.
    pub device_class: DeviceClass,
    /// Tasks that are ready.
    pub waiting: u64,
    /// Estimated device time of the tasks that are ready.
    pub waiting_device_time: Milliseconds,
    /// Tasks that are assigned.
    pub running: u64,
    /// Estimated device time of the tasks that are assigned, less what they have run.
    pub running_device_time: Milliseconds,
}
