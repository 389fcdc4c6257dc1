//! What the core asks of the shells. Actions are executed in order; what comes of them comes back as events.

use std::sync::Arc;

use crate::fact::Fact;
use crate::model::{
    ArtifactName, AttemptId, Binding, CallId, DeviceIndex, FailureClass, JobId, RequestId, TaskId, Timestamp,
    Usage, WorkerId,
};

/// Everything that the core can want.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    missing_docs,
    reason = "the fields of the variants are named for what they are"
)]
pub enum Action {
    /// Send the attempt to its worker. `State` has the task's details.
    Assign(Assignment),
    /// Ask for a prefetched attempt back.
    Recall { worker: WorkerId, attempt: AttemptId },
    /// Stop the attempt and discard what it makes.
    Stop {
        worker: WorkerId,
        attempt: AttemptId,
        reason: StopReason,
    },
    /// The report of a completion has been judged.
    CompletionJudged {
        worker: WorkerId,
        attempt: AttemptId,
        accepted: bool,
    },
    /// Answer to a call of an attempt.
    Answer {
        worker: WorkerId,
        call: CallId,
        answer: Result<Answer, Refusal>,
    },
    /// For a subscription: one per task.
    TaskResult {
        worker: WorkerId,
        call: CallId,
        task: RequestId,
        outcome: TaskOutcome,
    },
    /// For a channel reader, in order; `None` ends it.
    ChannelMessage {
        worker: WorkerId,
        call: CallId,
        offset: u64,
        payload: Option<Arc<[u8]>>,
    },

    /// A job was taken or refused.
    JobAnswered {
        uid: Arc<str>,
        answer: Result<JobId, Refusal>,
    },
    /// A job changed its phase or the reason why it waits.
    JobChanged { job: JobId, phase: JobPhase },
    /// A task changed its state.
    TaskChanged {
        job: JobId,
        task: TaskId,
        change: TaskChange,
    },
    /// A worker may be asked to leave: it drained.
    WorkerEmpty { worker: WorkerId },
    /// A worker can't be taken; its stream should be closed.
    WorkerRefused { worker: WorkerId, refusal: Refusal },
    /// What must be kept for a recovery, with the other facts of this event or not at all. Only with
    /// [`Limits::record_facts`](crate::Limits).
    Record(Fact),
    /// Nothing refers to these bytes any more.
    DeleteArtifact {
        job: JobId,
        name: ArtifactName,
        binding: Binding,
    },
}

/// An attempt on its way to a worker.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignment {
    /// Which worker.
    pub worker: WorkerId,
    /// Which of its devices; none in the control lane.
    pub device: Option<DeviceIndex>,
    /// Its lease.
    pub attempt: AttemptId,
    /// Its job.
    pub job: JobId,
    /// Its task.
    pub task: TaskId,
    /// Counted from 1 within its task.
    pub number: u32,
    /// Epoch of its task: it is another one once the job, or what submitted the task, has begun anew.
    pub epoch: u32,
    /// Fetched ahead: all slots of the device are taken. A device starts what it was given in the order in which it
    /// was given, each as soon as there is a slot.
    pub prefetch: bool,
    /// Nothing else may run on the device beside it.
    pub alone: bool,
    /// Times that the job was planned again with a smaller segment.
    pub replans: u32,
    /// It runs beside another attempt of its task, which takes far longer than its type usually does: the first valid
    /// result counts.
    pub speculative: bool,
    /// Inputs with what they are bound to.
    pub inputs: Vec<(ArtifactName, Binding)>,
    /// Results of the tasks that it depends on, in order.
    pub dependency_results: Vec<Arc<[u8]>>,
}

/// Why an attempt is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopReason {
    /// The user cancelled the job.
    Cancelled,
    /// The job is suspended.
    Suspended,
    /// A deadline has passed.
    DeadlinePassed,
    /// The job failed elsewhere.
    JobFailed,
    /// Its task is done by another attempt.
    Superseded,
    /// Its lease is not this worker's any more.
    LeaseLost,
    /// Its plan was dropped.
    Replanned,
    /// A waiting parent makes room, so that leaves can run; it will be run again.
    Preempted,
}

/// A good answer to a call.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Nothing to say.
    Done,
    /// For submitted tasks, in order, with whether each has already succeeded.
    Tasks(Vec<(TaskId, bool)>),
    /// What the name is bound to.
    Artifact(Binding),
    /// Whether the artifact was dropped with its last reference.
    Dropped(bool),
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq)]
pub enum TaskOutcome {
    /// With its inline result.
    Succeeded(Arc<[u8]>),
    /// With the words of its last failure.
    Failed(Arc<str>),
}

/// What a job is doing, and why.
#[derive(Clone, Debug, PartialEq)]
pub enum JobPhase {
    /// Not started.
    Queued(WaitReason),
    /// Its root has been dispatched.
    Running,
    /// Nothing of it runs; finished tasks are kept.
    Suspended,
    /// Its concluding task succeeded.
    Succeeded,
    /// It can't succeed.
    Failed {
        /// Short CamelCase word.
        reason: Arc<str>,
        /// For the user.
        message: Arc<str>,
        /// Class of the failure that ended it; none for deadlines and limits.
        class: Option<FailureClass>,
    },
    /// The user stopped it.
    Cancelled,
}

/// Why a job waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WaitReason {
    /// It is about to be considered.
    Admitted,
    /// No worker of its backend version is connected.
    NoWorkerOfBackend,
    /// No worker is large enough for its largest task.
    NoWorkerLargeEnough,
    /// Workers are busy with other jobs.
    WaitingForCapacity,
    /// No worker has the host memory for its planner now.
    WaitingForHostMemory,
}

/// How a task went on.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    missing_docs,
    reason = "the fields of the variants are named for what they are"
)]
pub enum TaskChange {
    /// It was submitted.
    Created,
    /// Its dependencies have succeeded.
    Ready,
    /// An attempt was assigned.
    Assigned {
        attempt: AttemptId,
        worker: WorkerId,
        prefetch: bool,
    },
    /// The attempt runs on its device.
    Started { attempt: AttemptId },
    /// An attempt ended without a result and the task waits to be tried again.
    Retrying {
        attempt: AttemptId,
        class: FailureClass,
        message: Arc<str>,
        not_before: Timestamp,
    },
    /// It has its result.
    Succeeded {
        attempt: Option<AttemptId>,
        usage: Usage,
    },
    /// It will not be tried again.
    Failed { message: Arc<str> },
    /// Its job ended or its plan was dropped first.
    Dropped,
}

/// Why the core refuses. Each tells the caller's mistake or the limit that was passed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The attempt is unknown or its lease is lost.
    #[error("the attempt has lost its lease")]
    LeaseLost,
    /// The job is over.
    #[error("the job is over")]
    JobOver,
    /// Nothing has this name.
    #[error("{0} is not known in this job")]
    NotFound(Arc<str>),
    /// A task depends on one that was not submitted before it.
    #[error(
        "task {task} depends on {dependency}, which was not submitted before it: submit dependencies first"
    )]
    UnknownDependency {
        /// The task.
        task: RequestId,
        /// What it depends on.
        dependency: RequestId,
    },
    /// Tasks of a job run only on the backend that plans it.
    #[error("task {0} asks for another backend than its job's")]
    OtherBackend(RequestId),
    /// The same request id with other content.
    #[error("request id {0} was used for another task: request ids are unique within a plan")]
    RequestIdReused(RequestId),
    /// A limit of `Limits` was passed.
    #[error("more than {limit} {what}")]
    LimitExceeded {
        /// Field of `Limits`.
        what: &'static str,
        /// Its value.
        limit: u64,
    },
    /// Only markers may be completed by others.
    #[error("task {0} is no marker")]
    NotAMarker(RequestId),
}
