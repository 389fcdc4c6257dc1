//! What the shells tell the core. One event is applied at a time, each with the time at which it is applied.

use std::sync::Arc;

use crate::model::{
    ArtifactName, AttemptId, Binding, CallId, DeviceIndex, FailureClass, HeldAttempt, JobId, JobPolicy,
    JobSpec, Milliseconds, RequestId, TaskSpec, TenantName, TenantPolicy, Usage, WorkerId, WorkerSpec,
};

/// Everything that can happen.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    missing_docs,
    reason = "the fields of the variants are named for what they are"
)]
pub enum Event {
    /// A job is admitted. The same uid again changes nothing and answers with the same job.
    JobSubmitted(Box<JobSpec>),
    /// Priority, deadlines, workers or suspension changed.
    JobPolicyChanged { job: JobId, policy: JobPolicy },
    /// The user wants it to stop.
    JobCancelled { job: JobId },
    /// The shell knows that the job can't succeed (its source vanished, its cluster goes).
    JobAborted {
        job: JobId,
        reason: &'static str,
        message: Arc<str>,
    },
    /// The terminal job's artifacts and records may go.
    JobForgotten { job: JobId },
    /// Share and bounds of a tenant; the default until told otherwise.
    TenantPolicyChanged {
        tenant: TenantName,
        policy: TenantPolicy,
    },

    /// A worker opened its stream, for the first time or again. `held` is what it still has.
    WorkerConnected {
        worker: WorkerId,
        spec: Box<WorkerSpec>,
        held: Vec<HeldAttempt>,
    },
    /// The stream broke: running attempts live on for the reconnect grace.
    WorkerDisconnected { worker: WorkerId },
    /// Proof that the worker is gone (pod deleted, process reaped): no grace.
    WorkerGone { worker: WorkerId },
    /// Proof that a worker is gone that has not connected since the recovery: it is not waited for any longer.
    AwaitedWorkerGone { name: Arc<str> },
    /// It takes nothing new.
    WorkerDraining { worker: WorkerId },
    /// The shell wants it to leave, or does not any more: meanwhile it takes nothing new and finishes what it has.
    /// Unlike draining it is taken back, and it outlives reconnects.
    WorkerLeavingChanged { worker: WorkerId, leaving: bool },
    /// It is alive and holds these attempts.
    WorkerHeartbeat {
        worker: WorkerId,
        attempts: Vec<AttemptId>,
    },
    /// A device became usable or unusable.
    DeviceChanged {
        worker: WorkerId,
        device: DeviceIndex,
        usable: bool,
    },

    /// The attempt left the prefetch queue and runs on its device.
    AttemptStarted { attempt: AttemptId },
    /// The outputs are in the store.
    AttemptSucceeded {
        attempt: AttemptId,
        outputs: Vec<(ArtifactName, Binding)>,
        result: Arc<[u8]>,
        usage: Usage,
    },
    /// The attempt ended without a result.
    AttemptFailed {
        attempt: AttemptId,
        class: FailureClass,
        reason: Arc<str>,
        message: Arc<str>,
        usage: Usage,
    },
    /// Answer to a recall: given back, or too late since it started.
    RecallAnswered { attempt: AttemptId, given_back: bool },
    /// A stopped attempt has left its device.
    AttemptStopped { attempt: AttemptId },
    /// A worker does not have an attempt that counts as another one's, or has it no more. Whatever else it says about it is
    /// not heard.
    ForeignAttemptLeft { worker: WorkerId, attempt: AttemptId },

    /// An attempt submits tasks of its job. All are taken or none.
    TasksSubmitted {
        call: CallId,
        attempt: AttemptId,
        tasks: Vec<TaskSpec>,
    },
    /// An attempt completes a marker of its job.
    MarkerCompleted {
        call: CallId,
        attempt: AttemptId,
        marker: RequestId,
    },
    /// An attempt wants the result of tasks of its job.
    TasksSubscribed {
        call: CallId,
        attempt: AttemptId,
        tasks: Vec<RequestId>,
    },
    /// An attempt appends to the channel of a task (of its own where `task` is none). It numbers what it sends there
    /// from 0 on, so that a message that was sent again counts once.
    ChannelMessageSent {
        call: CallId,
        attempt: AttemptId,
        task: Option<RequestId>,
        number: u64,
        payload: Arc<[u8]>,
    },
    /// An attempt reads the channel of a task from an offset on.
    ChannelOpened {
        call: CallId,
        attempt: AttemptId,
        task: RequestId,
        start_offset: u64,
    },
    /// An attempt has put an artifact into the store and names it.
    ArtifactBound {
        call: CallId,
        attempt: AttemptId,
        name: ArtifactName,
        binding: Binding,
    },
    /// An attempt asks what a name is bound to.
    ArtifactResolved {
        call: CallId,
        attempt: AttemptId,
        name: ArtifactName,
    },
    /// An attempt drops names.
    ArtifactsDeleted {
        call: CallId,
        attempt: AttemptId,
        names: Vec<ArtifactName>,
    },
    /// An attempt adds a named reference.
    ReferenceAdded {
        call: CallId,
        attempt: AttemptId,
        name: ArtifactName,
        reference: Arc<str>,
    },
    /// An attempt removes a named reference.
    ReferenceRemoved {
        call: CallId,
        attempt: AttemptId,
        name: ArtifactName,
        reference: Arc<str>,
    },
    /// An attempt wants to put `bytes` into the store.
    PermitRequested {
        call: CallId,
        attempt: AttemptId,
        name: ArtifactName,
        bytes: u64,
    },

    /// Nothing but time has passed. Due timers are run by every event; this one is for when there is no other.
    Tick,
}

impl Event {
    /// The call that the event is, and the attempt that makes it; none of all other events.
    pub fn caller(&self) -> Option<(CallId, AttemptId)> {
        match self {
            Event::TasksSubmitted { call, attempt, .. }
            | Event::MarkerCompleted { call, attempt, .. }
            | Event::TasksSubscribed { call, attempt, .. }
            | Event::ChannelMessageSent { call, attempt, .. }
            | Event::ChannelOpened { call, attempt, .. }
            | Event::ArtifactBound { call, attempt, .. }
            | Event::ArtifactResolved { call, attempt, .. }
            | Event::ArtifactsDeleted { call, attempt, .. }
            | Event::ReferenceAdded { call, attempt, .. }
            | Event::ReferenceRemoved { call, attempt, .. }
            | Event::PermitRequested { call, attempt, .. } => Some((*call, *attempt)),
            _ => None,
        }
    }

    /// The attempt that has left its worker, whatever its end; none of all other events.
    pub fn ended(&self) -> Option<AttemptId> {
        match self {
            Event::AttemptSucceeded { attempt, .. }
            | Event::AttemptFailed { attempt, .. }
            | Event::AttemptStopped { attempt }
            | Event::RecallAnswered {
                attempt,
                given_back: true,
            } => Some(*attempt),
            _ => None,
        }
    }
}

/// Limits and spans that the shell sets once. Every default is documented with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Silence after which a worker's leases are lost.
    pub lease: Milliseconds,
    /// How long running attempts live on after their worker's stream broke.
    pub reconnect_grace: Milliseconds,
    /// First wait before a failed task is tried again; grows fourfold with each failure up to `backoff_max`.
    pub backoff: Milliseconds,
    /// Longest wait before a failed task is tried again.
    pub backoff_max: Milliseconds,
    /// Losses of workers that a job survives; apart from its own retry limit.
    pub infrastructure_retry_limit: u32,
    /// Children that one task may kill before it is quarantined and its job failed.
    pub crashes_per_task: u32,
    /// Times that a job is planned again with a smaller segment after it ran out of memory.
    pub replans: u32,
    /// Jobs that are not forgotten.
    pub jobs: usize,
    /// Tasks per job, markers among them.
    pub tasks_per_job: usize,
    /// Workers.
    pub workers: usize,
    /// Distinct requirements.
    pub requirement_classes: usize,
    /// Messages per channel.
    pub channel_messages: usize,
    /// Bytes per channel.
    pub channel_bytes: usize,
    /// Bytes of opaque parameters, results and messages.
    pub opaque_bytes: usize,
    /// Bytes that permits may hold at once.
    pub permit_bytes: u64,
    /// Bytes of permits that each running job is guaranteed.
    pub permit_bytes_per_job: u64,
    /// Attempts fetched ahead per slot.
    pub prefetch_per_slot: u16,
    /// Entries of the action cache; the oldest goes first.
    pub cache_entries: usize,
    /// Entries of the action cache that are results without artifacts, which outlive their jobs; the oldest goes first.
    pub lasting_results: usize,
    /// Bytes of keys and results of those.
    pub lasting_result_bytes: usize,
    /// Whether durable changes come out as [`Action::Record`](crate::Action). Local mode keeps none.
    pub record_facts: bool,
    /// Inside a job what is lowest in its graph goes first, since it has the longest way to the job's end; else the
    /// order of submission decides.
    pub longest_path_first: bool,
    /// A task whose attempt runs for so many percent of the mean of its type may get a second attempt while devices
    /// idle and nothing is ready for them; 0: never.
    pub speculate_after_percent: u32,
    /// No attempt that has run for less gets a second one beside it.
    pub speculate_after: Milliseconds,
    /// Second attempts at once, in percent of the slots; one is always allowed.
    pub speculate_share_percent: u32,
    /// A task that fits some worker, and that is first in the fair order, is passed over for lack of room for so long
    /// at most; then a device is emptied for it. 0: for ever.
    pub longest_passed_over: Milliseconds,
    /// Tasks go to the worker groups that were measured to be fast first, and at the end of the queue slow ones get none
    /// that a fast one would end earlier.
    pub fast_devices_first: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            lease: Milliseconds(30_000),
            reconnect_grace: Milliseconds(10_000),
            backoff: Milliseconds(250),
            backoff_max: Milliseconds(60_000),
            infrastructure_retry_limit: 100,
            crashes_per_task: 3,
            replans: 4,
            jobs: 100_000,
            tasks_per_job: 1_000_000,
            workers: 20_000,
            requirement_classes: 64,
            channel_messages: 100_000,
            channel_bytes: 64 << 20,
            opaque_bytes: 64 << 10,
            permit_bytes: 64 << 30,
            permit_bytes_per_job: 256 << 20,
            prefetch_per_slot: 1,
            cache_entries: 1_000_000,
            lasting_results: 10_000,
            lasting_result_bytes: 16 << 20,
            record_facts: false,
            longest_path_first: true,
            // Twice the mean is far beyond the spread of segments, which are cut to equal size.
            speculate_after_percent: 200,
            speculate_after: Milliseconds(2_000),
            speculate_share_percent: 5,
            longest_passed_over: Milliseconds(60_000),
            fast_devices_first: true,
        }
    }
}
