//! The words of the scheduling core: identities, resources, what jobs, tasks and workers are.
//!
//! Owns plain data only; how it changes is decided in the state.

use std::fmt;
use std::sync::Arc;

/// A point in time: milliseconds since an origin that the shell chooses once (the Unix epoch in production).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

/// A span of time in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Milliseconds(pub u64);

impl std::ops::Add<Milliseconds> for Timestamp {
    type Output = Timestamp;
    fn add(self, span: Milliseconds) -> Timestamp {
        Timestamp(self.0.saturating_add(span.0))
    }
}

impl std::ops::Sub for Timestamp {
    type Output = Milliseconds;
    fn sub(self, earlier: Timestamp) -> Milliseconds {
        Milliseconds(self.0.saturating_sub(earlier.0))
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "{}", self.0)
            }
        }
    };
}

identity!(
    /// A job within one coordinator. Never used twice.
    JobId(u64)
);
identity!(
    /// A task within one coordinator. Never used twice.
    TaskId(u64)
);
identity!(
    /// One try of a task on one worker. Never used twice, so it is the fencing token of its lease.
    AttemptId(u64)
);
identity!(
    /// A worker's session identity within one coordinator: kept over reconnects of the same agent process.
    WorkerId(u64)
);
impl WorkerId {
    /// Stands in an action for the worker of an attempt that the core does not know (its job was forgotten):
    /// the shell answers whoever sent the event.
    pub const UNKNOWN: WorkerId = WorkerId(u64::MAX);
}
identity!(
    /// Index of a device within its worker.
    DeviceIndex(u16)
);
identity!(
    /// A call of an attempt that is answered later (a permit, a subscription, a channel reader).
    CallId(u64)
);

/// Name of an artifact within its job.
pub type ArtifactName = Arc<str>;
/// The client's own name of a task within the plan of its job.
pub type RequestId = Arc<str>;
/// Namespace that a job belongs to.
pub type TenantName = Arc<str>;

/// Kind of device that a task runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceClass {
    /// Processor cores.
    Cpu,
    /// A GPU or a MIG slice of one.
    Gpu,
}

/// Which capacity a task takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// A slot of a device, host memory and VRAM.
    Device,
    /// Host memory only: planners and other parents, which wait for their children.
    Control,
}

/// A backend and its version: a worker only gets tasks of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackendVersion {
    /// Such as `risc0`.
    pub name: Arc<str>,
    /// Such as `3.1.0`.
    pub version: Arc<str>,
}

/// What a task needs to run. Tasks with equal requirements share one requirement class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requirements {
    /// Which capacity it takes.
    pub lane: Lane,
    /// Kind of device; for the control lane any worker of the backend serves.
    pub device_class: DeviceClass,
    /// Bytes of host memory while it runs.
    pub host_memory_bytes: u64,
    /// Bytes of device memory while it runs.
    pub vram_bytes: u64,
    /// Backend that runs it.
    pub backend: BackendVersion,
}

/// A task as its submitter describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskSpec {
    /// Unique within the job's plan epoch; submitted again, it answers with the same task.
    pub request_id: RequestId,
    /// Task type of the backend, such as `prove`.
    pub task_type: Arc<str>,
    /// What it needs. Ignored for markers.
    pub requirements: Requirements,
    /// Request ids of tasks of this plan that must have succeeded before.
    pub depends_on: Vec<RequestId>,
    /// Artifacts that it reads. They must be bound when it is dispatched.
    pub inputs: Vec<ArtifactName>,
    /// Artifacts that its completion binds.
    pub outputs: Vec<ArtifactName>,
    /// Passed through to the worker.
    pub parameters: Arc<[u8]>,
    /// Canonical key of the action cache, if its type is cacheable.
    pub cache_key: Option<Arc<str>>,
    /// Expected time on a device, if known.
    pub estimated_device_time: Option<Milliseconds>,
    /// Markers that its success completes, so that an answer from the action cache completes them too.
    pub completes: Vec<RequestId>,
    /// The job succeeds when this task does.
    pub concludes_job: bool,
    /// No worker runs it: any attempt of the job completes it.
    pub marker: bool,
}

/// Priority and limits of a job that may change while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobPolicy {
    /// Higher goes first within a tenant.
    pub priority: i32,
    /// When the proof must be there. Passing it fails the job.
    pub deadline: Option<Timestamp>,
    /// Longest time that the job may be active; suspended time does not count.
    pub active_deadline: Option<Milliseconds>,
    /// Workers that may run this job's device tasks at once.
    pub max_workers: Option<u32>,
    /// Admitted, but nothing of it runs.
    pub suspended: bool,
}

/// Share and bounds of a tenant; may change at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TenantPolicy {
    /// Share in device-seconds relative to the others; 0 counts as 1.
    pub weight: u32,
    /// Devices that its attempts may take at once, those behind which they are fetched ahead among them. What runs
    /// when the bound is lowered runs on, and an attempt that was lost and comes back is taken over it.
    pub max_devices: Option<u32>,
}

impl Default for TenantPolicy {
    fn default() -> Self {
        TenantPolicy {
            weight: 1,
            max_devices: None,
        }
    }
}

/// A job as the shell submits it.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSpec {
    /// Unique name over restarts (the object's UID in Kubernetes). Submitted again, it answers with the same job.
    pub uid: Arc<str>,
    /// Namespace.
    pub tenant: TenantName,
    /// What may change later.
    pub policy: JobPolicy,
    /// Failures of the job's own attempts that may be repaired by trying again, for the whole job.
    pub retry_limit: u32,
    /// The task that plans the job. Runs in the control lane.
    pub root: TaskSpec,
    /// The job succeeds when its root does (jobs that only execute): otherwise a job whose root succeeded without
    /// a task that concludes it fails.
    pub root_concludes: bool,
    /// What each waiting ancestor of a leaf holds in the control lane, the root first.
    pub parent_chain: Vec<Requirements>,
    /// The largest task of the job: it must fit some worker before the job starts.
    pub largest_leaf: Requirements,
    /// Artifacts that exist before the job starts.
    pub sources: Vec<(ArtifactName, Binding)>,
    /// Artifacts that outlive the job.
    pub retained: Vec<ArtifactName>,
}

/// What an artifact name is bound to: the first binding of a name wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Key in the store.
    pub key: Arc<str>,
    /// Hash of the bytes.
    pub sha256: [u8; 32],
    /// Size in bytes.
    pub size_bytes: u64,
}

/// A device of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSpec {
    /// Kind of device.
    pub class: DeviceClass,
    /// Bytes of device memory; 0 for processor cores.
    pub vram_bytes: u64,
    /// Attempts that it runs at once.
    pub slots: u16,
}

/// A worker as it presents itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerSpec {
    /// Unique name of the agent process.
    pub name: Arc<str>,
    /// Worker group.
    pub group: Arc<str>,
    /// Bytes of host memory for attempts of both lanes.
    pub host_memory_bytes: u64,
    /// Devices in a fixed order.
    pub devices: Vec<DeviceSpec>,
    /// Backend that it runs.
    pub backend: BackendVersion,
}

/// An attempt that a reconnecting worker still has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldAttempt {
    /// Which.
    pub attempt: AttemptId,
    /// Task that it tries, as it was told with the assignment.
    pub task: TaskId,
    /// Device that it was given; none in the control lane.
    pub device: Option<DeviceIndex>,
    /// Counted from 1 within its task, as it was told with the assignment.
    pub number: u32,
    /// Epoch of its task, as it was told with the assignment.
    pub epoch: u32,
    /// Whether it had left the prefetch queue.
    pub started: bool,
    /// Whether it is completed and only waits for the acknowledgement.
    pub completed: bool,
}

/// Why an attempt failed: decides what happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailureClass {
    /// May succeed elsewhere or later; counts toward the job's retry limit.
    Retryable,
    /// Device or host memory did not suffice.
    OutOfMemory,
    /// Will fail everywhere.
    Fatal,
    /// The program or the input is at fault.
    InvalidInput,
    /// An artifact was missing or damaged.
    Artifact,
    /// The child died; suspects run alone before one of them is charged.
    ChildCrashed,
    /// The child stopped answering.
    ChildHung,
    /// The child was killed for its memory.
    ChildOutOfMemory,
    /// Eviction, preemption, drain, node loss: counts toward the infrastructure limit.
    WorkerLost,
}

/// What an attempt used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Time on the device as the backend measured it.
    pub device_time: Milliseconds,
    /// Energy in millijoules, 0 where unknown.
    pub energy_millijoules: u64,
}
