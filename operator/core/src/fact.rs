//! What must outlive the coordinator, as facts: what is so, not what was asked.
//!
//! With [`Limits::record_facts`](crate::Limits) every durable change comes out as [`Action::Record`](crate::Action),
//! in order, among the other actions of its event. [`State::recover`](crate::State::recover) makes a state with the
//! same jobs, tasks and identities of them; [`State::checkpoint`](crate::State::checkpoint) states the whole of what
//! is durable in the same words, so there is one format. The facts of one event belong together: a log keeps all of
//! them or none.
//!
//! **Why facts.** A newer version of the core would decide differently about the same commands. A fact states the
//! outcome, so an older log means the same to it.
//!
//! **Recorded:** jobs with their specification, policy, active time, plans, counters, ends; tasks with their
//! specification, parent and plan, what their attempts used and how often they failed, their ends with bindings and
//! results; names of artifacts, what they are bound to, references; messages of channels; entries of the action
//! cache; policies of tenants; names of workers, to know whom to wait for.
//!
//! **Not recorded, and what takes its place:**
//! - assignments, starts, recalls: workers say what they hold when they connect ([`HeldAttempt`](crate::HeldAttempt));
//! - waits after failures, and which worker a task avoids: after recovery a task is tried at once, anywhere;
//! - permits: all are free after recovery. What was granted is put into the store all the same, so the store may
//!   hold more than the limit by what was granted at that moment;
//! - subscriptions and readers of channels: whoever still runs asks again;
//! - fair shares: everybody begins anew with what is running. Tenants and jobs that had work queued were level but
//!   for one task per slot, so this is nearer to the truth than sums of what was ever used;
//! - measured times of task types: measured again from the successes that are replayed;
//! - that a job is to be forgotten while attempts of it still run: the shell asks again;
//! - deletes that were due: bytes whose delete was not carried out are left to the sweep of the job's prefix.

use std::sync::Arc;

use crate::action::JobPhase;
use crate::model::{
    ArtifactName, AttemptId, Binding, JobId, JobPolicy, JobSpec, Milliseconds, TaskId, TaskSpec, TenantName,
    TenantPolicy, Timestamp,
};

/// One durable change, or in a checkpoint one part of what is durable.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// A job was taken, with its root task. Its sources are bound.
    JobAdmitted {
        /// Its identity, also after recovery.
        job: JobId,
        /// Its root.
        root: TaskId,
        /// As submitted.
        spec: Arc<JobSpec>,
        /// When.
        at: Timestamp,
    },
    /// A job has another policy. Its active time stops with its suspension.
    JobPolicyChanged {
        /// Which.
        job: JobId,
        /// All of it.
        policy: JobPolicy,
        /// When.
        at: Timestamp,
    },
    /// The active time of a job goes on: its root was dispatched, or it was resumed while tasks are left.
    JobActive {
        /// Which.
        job: JobId,
        /// When.
        at: Timestamp,
    },
    /// Failures of a job's attempts, as they stand.
    JobCounted {
        /// Which.
        job: JobId,
        /// Counted toward its retry limit.
        failures: u32,
        /// Counted toward the infrastructure limit.
        infrastructure_failures: u32,
    },
    /// A job is planned once more with a smaller segment. All tasks but its root leave the plan, those that had not
    /// ended are dropped; all names but those of sources are unbound and forgotten, channels are empty; the root has
    /// to run again even if it had succeeded.
    JobReplanned {
        /// Which.
        job: JobId,
        /// When.
        at: Timestamp,
    },
    /// A job is over. Its tasks that had not ended are dropped.
    JobFinished {
        /// Which.
        job: JobId,
        /// A terminal one.
        phase: JobPhase,
        /// When.
        at: Timestamp,
    },
    /// A job that is over is gone with its tasks, names and entries of the action cache, but for those without outputs.
    JobForgotten {
        /// Which.
        job: JobId,
    },
    /// Only in checkpoints: plans and times of a job.
    JobStands {
        /// Which.
        job: JobId,
        /// Counts its plans.
        epoch: u32,
        /// Plan that its root belongs to.
        root_epoch: u32,
        /// How many of them were made for smaller segments.
        replans: u32,
        /// When its root was first dispatched.
        started_at: Option<Timestamp>,
        /// Since when it has been active.
        active_since: Option<Timestamp>,
        /// How long it was active before.
        active_before: Milliseconds,
    },
    /// A task was submitted. One of an earlier plan with the same request id leaves the plan.
    TaskSubmitted {
        /// Its job.
        job: JobId,
        /// Its identity, also after recovery.
        task: TaskId,
        /// Task whose attempt submitted it.
        parent: Option<TaskId>,
        /// Plan that it belongs to.
        epoch: u32,
        /// As submitted.
        spec: Arc<TaskSpec>,
        /// When.
        at: Timestamp,
    },
    /// A task begins a new plan for what it submits. Tasks below it that had not ended are dropped; channels of it
    /// and of those below are empty.
    ParentRestarted {
        /// Which.
        task: TaskId,
        /// When.
        at: Timestamp,
    },
    /// What is known of a task's attempts, as it stands, after one ended without a result.
    TaskCounted(Box<TaskCounts>),
    /// A task has its result.
    TaskSucceeded(Box<TaskSuccess>),
    /// The success of a cacheable task, with its outputs as they are bound now, is an entry of the action cache.
    TaskCached {
        /// Which.
        task: TaskId,
    },
    /// A marker was completed.
    MarkerCompleted {
        /// Which.
        task: TaskId,
        /// When.
        at: Timestamp,
    },
    /// A task failed for good.
    TaskFailed {
        /// Which.
        task: TaskId,
        /// Words of its last failure.
        message: Arc<str>,
        /// When.
        at: Timestamp,
    },
    /// A task left the plan before it ended.
    TaskDropped {
        /// Which.
        task: TaskId,
        /// When.
        at: Timestamp,
    },
    /// Only in checkpoints: a task that had ended belongs to no plan any more.
    TaskLeftPlan {
        /// Which.
        task: TaskId,
    },
    /// A name was bound, unless it was bound before.
    ArtifactBound {
        /// Job of the name.
        job: JobId,
        /// The name.
        name: ArtifactName,
        /// What it stands for.
        binding: Binding,
    },
    /// A name stands for nothing any more and never will in this plan.
    ArtifactDropped {
        /// Job of the name.
        job: JobId,
        /// The name.
        name: ArtifactName,
    },
    /// Nobody but the tasks that read it needs an artifact: its references are gone.
    ArtifactReleased {
        /// Job of the name.
        job: JobId,
        /// The name.
        name: ArtifactName,
    },
    /// Only in checkpoints: a name with all that is known of it.
    ArtifactStands(Box<ArtifactFacts>),
    /// A named reference keeps an artifact.
    ReferenceAdded {
        /// Job of the name.
        job: JobId,
        /// The artifact.
        name: ArtifactName,
        /// Name of the reference.
        reference: Arc<str>,
    },
    /// A named reference is gone.
    ReferenceRemoved {
        /// Job of the name.
        job: JobId,
        /// The artifact.
        name: ArtifactName,
        /// Name of the reference.
        reference: Arc<str>,
    },
    /// The next message of a channel.
    ChannelMessageSent {
        /// Task whose channel it is.
        task: TaskId,
        /// Task that sent it, which can't be tried again in place from then on. None in checkpoints.
        sender: Option<TaskId>,
        /// The attempt that sent it.
        attempt: AttemptId,
        /// As the attempt numbers what it sends to this channel.
        number: u64,
        /// The message.
        payload: Arc<[u8]>,
    },
    /// Only in checkpoints: an entry of the action cache.
    CacheEntryStands {
        /// Job that made it and with which it goes, unless it has no outputs: then it outlives the job.
        job: JobId,
        /// Canonical key.
        key: Arc<str>,
        /// In the order in which the task declares them.
        outputs: Vec<(ArtifactName, Binding)>,
        /// Inline result.
        result: Arc<[u8]>,
    },
    /// An entry made room for others in the action cache.
    CacheEntryDropped {
        /// Canonical key.
        key: Arc<str>,
    },
    /// A tenant has another share or other bounds.
    TenantPolicyChanged {
        /// Which.
        tenant: TenantName,
        /// All of it.
        policy: TenantPolicy,
    },
    /// A worker was taken that was not known.
    WorkerJoined {
        /// Its unique name.
        name: Arc<str>,
    },
    /// A worker is gone or was given up.
    WorkerGone {
        /// Its unique name.
        name: Arc<str>,
    },
}

/// What is known of a task's attempts. All values are totals.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskCounts {
    /// Which task.
    pub task: TaskId,
    /// Attempts that ended.
    pub attempts: u32,
    /// Attempts up to this number have no lease and get none again.
    pub fence: u32,
    /// Failures that may be repaired by trying again.
    pub failures: u32,
    /// Children that it alone can have killed.
    pub crashes: u32,
    /// Crashes in which it was one of several suspects.
    pub suspected: u32,
    /// Must have a device for itself.
    pub alone: bool,
    /// Has sent a message: it can't be tried again in place.
    pub sent: bool,
    /// Workers with less host memory have proved too small; 0 where none has. Bytes.
    pub minimum_host_bytes: u64,
    /// Devices with less memory have proved too small; 0 where none has. Bytes.
    pub minimum_vram_bytes: u64,
    /// Device time of its attempts, in microseconds.
    pub device_microseconds: u64,
    /// Energy of its attempts, in millijoules.
    pub energy_millijoules: u64,
    /// Words of its last failure.
    pub last_failure: Option<Arc<str>>,
}

/// The success of a task.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskSuccess {
    /// Which task.
    pub task: TaskId,
    /// Whose result it is; none where the action cache answered.
    pub attempt: Option<AttemptId>,
    /// Its attempts.
    pub attempts: u32,
    /// Names that it bound, unless they were bound before.
    pub outputs: Vec<(ArtifactName, Binding)>,
    /// Inline result.
    pub result: Arc<[u8]>,
    /// Device time of all its attempts, in microseconds.
    pub device_microseconds: u64,
    /// Energy of all its attempts, in millijoules.
    pub energy_millijoules: u64,
    /// When its last attempt started.
    pub started_at: Option<Timestamp>,
    /// Whether the action cache answered.
    pub from_cache: bool,
    /// When.
    pub at: Timestamp,
}

/// A name of an artifact with all that is known of it.
#[derive(Clone, Debug, PartialEq)]
pub struct ArtifactFacts {
    /// Job of the name.
    pub job: JobId,
    /// The name.
    pub name: ArtifactName,
    /// What it is bound to.
    pub binding: Option<Binding>,
    /// Its bytes are counted among those that several names or the action cache share.
    pub shared: bool,
    /// It was bound and has been dropped since.
    pub gone: bool,
    /// There was a task that reads it, or it was released.
    pub consumed: bool,
    /// Names of the references that keep it.
    pub references: Vec<Arc<str>>,
}

/// Why facts make no state. Never worth a retry: the same facts fail again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoveryError {
    /// A fact is about a job that no fact before it admitted.
    #[error("a fact is about job {0}, which no fact before it admitted")]
    UnknownJob(JobId),
    /// A fact is about a task that no fact before it submitted.
    #[error("a fact is about task {0}, which no fact before it submitted")]
    UnknownTask(TaskId),
    /// An identity is given a second time.
    #[error("a fact gives the identity {identity} to a second {what}")]
    IdentityReused {
        /// `job` or `task`.
        what: &'static str,
        /// The identity.
        identity: u64,
    },
    /// A task that has ended ends once more.
    #[error("a fact ends task {0}, which has ended before")]
    EndedTwice(TaskId),
    /// The limits that are set now are too low for what the facts state.
    #[error("the facts need more than {limit} {what}")]
    LimitExceeded {
        /// Field of `Limits`.
        what: &'static str,
        /// Its value.
        limit: u64,
    },
}

impl RecoveryError {
    /// Short name for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            RecoveryError::UnknownJob(_) => "unknown_job",
            RecoveryError::UnknownTask(_) => "unknown_task",
            RecoveryError::IdentityReused { .. } => "identity_reused",
            RecoveryError::EndedTwice(_) => "ended_twice",
            RecoveryError::LimitExceeded { .. } => "limit_exceeded",
        }
    }

    /// Whether the same facts may make a state later: never.
    pub fn is_retryable(&self) -> bool {
        false
    }
}
