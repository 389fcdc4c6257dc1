//! What a coordinator shows of its jobs and workers: snapshots that are made a few times per second at most.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use prover_core::{BackendVersion, Binding, Forecast, JobId, TaskId, Timestamp};

use crate::task_list::TaskList;

/// What a job is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not started; the view's `reason` tells what it waits for.
    Queued,
    /// Its root task has been dispatched.
    Running,
    /// Nothing of it runs; finished tasks are kept.
    Suspended,
    /// Its proof was made and verified.
    Succeeded,
    /// It can't succeed; the view's `reason` and `message` tell why.
    Failed,
    /// The user stopped it.
    Cancelled,
}

impl Phase {
    /// Nothing changes any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Phase::Succeeded | Phase::Failed | Phase::Cancelled)
    }

    /// As a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Phase::Queued => "Queued",
            Phase::Running => "Running",
            Phase::Suspended => "Suspended",
            Phase::Succeeded => "Succeeded",
            Phase::Failed => "Failed",
            Phase::Cancelled => "Cancelled",
        }
    }
}

/// A job at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct JobView {
    /// Its id; none while it waits for a worker that offers its proof system.
    pub id: Option<JobId>,
    /// Its unique name over restarts.
    pub uid: Arc<str>,
    /// Name of the manifest.
    pub name: Arc<str>,
    /// Namespace of the manifest.
    pub tenant: Arc<str>,
    /// What it is doing.
    pub phase: Phase,
    /// Short CamelCase word: why it waits or failed.
    pub reason: Arc<str>,
    /// For the user; empty where there is nothing to say.
    pub message: Arc<str>,
    /// It failed for its program, its input, or a store that can't take its artifacts.
    pub bad_input: bool,
    /// In the order in which they are shown.
    pub stages: Vec<StageProgress>,
    /// In the order of their submission. Tasks of dropped plans stay, as `Dropped`.
    pub tasks: TaskList,
    /// What executing the program told, as far as it is known.
    pub execution: Option<ExecutionReport>,
    /// The verified proof. Only of jobs that succeeded and are not emulated.
    pub proof: Option<ProofView>,
    /// What the program made public, in the store. Only of jobs that succeeded.
    pub public_values: Option<Binding>,
    /// Its results are made up from a model: it never claims a proof.
    pub emulated: bool,
    /// Backend that it is pinned to.
    pub backend: Option<BackendVersion>,
    /// When it was taken.
    pub submitted_at: Timestamp,
    /// When its root task was dispatched first.
    pub started_at: Option<Timestamp>,
    /// When it became terminal.
    pub finished_at: Option<Timestamp>,
    /// From its start to its end, or to the moment of this view.
    pub elapsed: Duration,
    /// Total cycles per second of `elapsed`; of finished jobs whose cycles are known.
    pub effective_hz: Option<f64>,
    /// Prover gas units per second of `elapsed`; of proofs that are finished and whose gas is known.
    pub pgu_per_second: Option<f64>,
    /// Time on devices of all its attempts as the backend measured it.
    pub device_seconds: f64,
    /// Energy of all its attempts in joules; 0 where unknown.
    pub energy_joules: f64,
    /// Attempts of all its tasks.
    pub attempts: u64,
    /// Attempts that ended without a result.
    pub failed_attempts: u64,
    /// Failures that count toward its retry limit.
    pub failures: u32,
    /// Losses of workers, which do not.
    pub infrastructure_failures: u32,
    /// From its start to its end or to the moment of this view, without the time in which it was suspended.
    pub active: Duration,
    /// Time on devices by the worker group of the last attempt of each task.
    pub device_time_by_group: BTreeMap<Arc<str>, Duration>,
    /// Times that it was planned again with a smaller segment.
    pub replans: u32,
    /// Attempts that were started beside others which took too long: the only work that is done twice on purpose.
    pub speculative_attempts: u32,
    /// Whether it meets its deadline, with the arithmetic; none where it has none or has ended.
    pub forecast: Option<Forecast>,
}

/// One stage of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageProgress {
    /// Such as `Prove`.
    pub name: Arc<str>,
    /// Stages are shown in ascending order.
    pub order: u32,
    /// Tasks that have succeeded.
    pub done: u64,
    /// Tasks known so far; it grows while the planner runs.
    pub total: u64,
    /// Tasks that run on a device or in the control lane.
    pub running: u64,
}

/// What a task is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TaskState {
    /// It waits for the tasks that it depends on.
    Waiting,
    /// It waits for a worker.
    Ready,
    /// An attempt is on its way to or being fetched ahead by a worker.
    Assigned,
    /// An attempt runs.
    Running,
    /// An attempt ended without a result; it waits to be tried again.
    Retrying,
    /// It has its result.
    Succeeded,
    /// It will not be tried again.
    Failed,
    /// Its job ended or its plan was dropped first.
    Dropped,
}

impl TaskState {
    /// As a word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            TaskState::Waiting => "Waiting",
            TaskState::Ready => "Ready",
            TaskState::Assigned => "Assigned",
            TaskState::Running => "Running",
            TaskState::Retrying => "Retrying",
            TaskState::Succeeded => "Succeeded",
            TaskState::Failed => "Failed",
            TaskState::Dropped => "Dropped",
        }
    }
}

/// One task of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskView {
    /// Its id.
    pub id: TaskId,
    /// The planner's own name of it.
    pub request_id: Arc<str>,
    /// Such as `prove`.
    pub task_type: Arc<str>,
    /// Stage that its type belongs to.
    pub stage: Arc<str>,
    /// Completed by attempts of other tasks; no worker runs it.
    pub marker: bool,
    /// What it is doing.
    pub state: TaskState,
    /// Attempts so far.
    pub attempts: u32,
    /// When its last attempt started to run.
    pub started_at: Option<Timestamp>,
    /// When it became terminal.
    pub ended_at: Option<Timestamp>,
    /// From the start of its last attempt to its end.
    pub wall: Option<Duration>,
    /// Time on the device as the backend measured it.
    pub device_time: Duration,
    /// Worker of its last attempt.
    pub worker: Option<Arc<str>>,
    /// Words of its last failure.
    pub failure: Option<Arc<str>>,
    /// Answered from what another task had made.
    pub from_cache: bool,
}

/// What executing the program told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecutionReport {
    /// Segments (RISC Zero) or shards (SP1).
    pub segments: u64,
    /// Cycles of the program itself.
    pub user_cycles: u64,
    /// All cycles that are proved, padding and paging among them.
    pub total_cycles: u64,
    /// Identity of the program, hexadecimal.
    pub program_id: String,
    /// As the program ended.
    pub exit_code: i64,
    /// Power of two of the cycles per segment.
    pub segment_po2: u32,
    /// SP1's prover gas units (PGU); none where nobody computed them.
    pub gas: Option<u64>,
    /// SHA-256 of what the program made public, hexadecimal; empty where it is not known.
    pub public_values_sha256: String,
}

/// What the verifying task found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofReport {
    /// Identity of the program that the proof was checked against, hexadecimal.
    pub program_id: String,
    /// Size of the proof in bytes.
    pub proof_bytes: u64,
    /// What the proof is, as the backend's own verifier names it.
    pub verifier: String,
}

/// A verified proof and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofView {
    /// What the verifying task found.
    pub report: ProofReport,
    /// The proof in the store.
    pub proof: Binding,
    /// What the program made public, in the store.
    pub public_values: Option<Binding>,
}

/// A worker at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerView {
    /// Its own name.
    pub worker_id: Arc<str>,
    /// Its worker group.
    pub group: Arc<str>,
    /// Its stream is open.
    pub connected: bool,
    /// Name of its pod; none in local mode.
    pub pod: Option<Arc<str>>,
    /// It takes nothing new, since it said that it will go.
    pub draining: bool,
    /// It takes nothing new, since the operator wants it to go.
    pub leaving: bool,
    /// Since when it has had nothing to do; none while it has.
    pub idle_since: Option<Timestamp>,
    /// Devices that are out of order.
    pub failed_devices: usize,
    /// Backend that it runs.
    pub backend: BackendVersion,
    /// Devices, usable or not.
    pub devices: usize,
    /// Attempts that it runs or fetches ahead.
    pub attempts: usize,
    /// Bytes of host memory for attempts.
    pub host_memory_bytes: u64,
    /// Bytes of host memory in use as of its last heartbeat.
    pub host_memory_used_bytes: u64,
    /// Process id of the agent on its machine; 0 where unknown.
    pub process_id: u64,
}

/// Work that waits and runs in one device class.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ClassDepth {
    /// Tasks that are ready and wait.
    pub waiting_tasks: u64,
    /// Tasks that are assigned or run.
    pub running_tasks: u64,
    /// Estimated device-seconds of the waiting tasks.
    pub waiting_device_seconds: f64,
    /// Estimated device-seconds of the running tasks.
    pub running_device_seconds: f64,
}

/// How much work there is: not a count of jobs, but seconds of devices.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct QueueDepth {
    /// On processor cores.
    pub cpu: ClassDepth,
    /// On GPUs.
    pub gpu: ClassDepth,
    /// Jobs that have not started.
    pub queued_jobs: u64,
    /// Jobs that run.
    pub running_jobs: u64,
}

/// The whole coordinator at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClusterView {
    /// Of the coordinator; 0 before its first view.
    pub epoch: u64,
    /// All workers that are not gone, by name.
    pub workers: Vec<WorkerView>,
    /// How much work there is.
    pub queue_depth: QueueDepth,
    /// Work per worker group, by name.
    pub groups: Vec<GroupDepth>,
    /// What the connected workers of each group make, by name.
    pub proofs: Vec<GroupProofs>,
    /// Backend versions that unfinished jobs are pinned to.
    pub pinned_backends: Vec<BackendVersion>,
}

/// Work for the workers of one group. A task that several groups could take waits for each of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupDepth {
    /// Name of the group.
    pub group: Arc<str>,
    /// Tasks that wait and that it could take, and tasks that its workers hold.
    pub work: ClassDepth,
    /// Jobs that wait for a worker, which this group could bring.
    pub jobs_without_worker: u64,
}

/// What the connected workers of a group make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupProofs {
    /// Name of the group.
    pub group: Arc<str>,
    /// Systems and kinds of proof that some of them make, in order.
    pub offered: BTreeSet<(String, String)>,
    /// Kinds of proof that some of them would make, but for what is missing, in order.
    pub withheld: Vec<WithheldProof>,
}

/// A kind of proof that workers would make, but for what is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WithheldProof {
    /// Such as `sp1`.
    pub system: String,
    /// Such as `Groth16`.
    pub kind: String,
    /// Short CamelCase word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// How many workers say so.
    pub workers: usize,
}

/// What the workers of a group will offer, known before the first of them comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOffer {
    /// Name of the group.
    pub group: Arc<str>,
    /// The word under which its backend offers proofs, as `ProofSpec::offered_as` says it.
    pub offered_as: Arc<str>,
}
