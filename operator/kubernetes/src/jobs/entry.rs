//! What is kept of one job: what is needed, not the whole object.

use std::cmp::Reverse;

use prover_coordinator::{JobHandle, JobPolicy, Timestamp, policy};
use prover_crds::{JobDefaults, Phase, ProofJob, ProofJobSpec, ProofSpec};
use tokio::task::AbortHandle;

use crate::events::Chatter;
use crate::status::Situation;
use crate::writer::JobName;

/// Where a job stands.
#[derive(Debug)]
pub(super) enum Stage {
    /// Nobody can tell yet whether the cluster takes it.
    Unknown,
    /// The cluster does not take it as things stand.
    Refused,
    /// Accepted, waits for its admission.
    Backlog,
    /// Its sources are on their way into the store.
    Admitting,
    /// Its admission failed and is tried again.
    Retrying { at: Timestamp },
    /// The coordinator has it.
    Taken { handle: JobHandle, _views: Views },
    /// It has ended, which is being written.
    Ended,
    /// Its object is being deleted, or gone: its artifacts are collected. `keep` are the keys that its user keeps;
    /// none: they must be read from its status first.
    Collecting {
        keep: Option<Vec<String>>,
        reason: SweepReason,
    },
    /// Its artifacts are collected, which is being written.
    Collected(SweepReason),
}

/// Why artifacts of a job are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SweepReason {
    /// Its object is being deleted, or gone: all but what its user keeps goes.
    Deleted,
    /// It ended long ago: what its user kept goes too.
    RetentionOver,
}

/// The task that tells of a job's views; it ends with this.
#[derive(Debug)]
pub(super) struct Views(pub(super) AbortHandle);

impl Drop for Views {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The place of a job among those that wait for their admission.
pub(super) type Turn = (Reverse<bool>, Reverse<i32>, i64, JobName);

/// One job.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) stage: Stage,
    /// As its status tells it.
    pub(super) situation: Situation,
    pub(super) generation: Option<i64>,
    /// When the object was created, in seconds.
    created: i64,
    pub(super) proof: ProofSpec,
    pub(super) policy: JobPolicy,
    pub(super) cancel: bool,
    /// Its object has a deletion timestamp.
    pub(super) deleting: bool,
    /// Its object is gone: nothing is written any more.
    pub(super) gone: bool,
    /// The cluster had accepted it when it was first seen, or has since.
    pub(super) accepted: bool,
    /// It counts among the unfinished ones.
    pub(super) counted: bool,
    /// It has one of the places of jobs that may run at once.
    pub(super) slot: bool,
    /// It had started under an earlier coordinator.
    pub(super) restarted: bool,
    pub(super) failed_admissions: u32,
    /// Its place in the backlog, while it is there.
    pub(super) turn: Option<Turn>,
    pub(super) chatter: Chatter,
    pub(super) timer: Option<Timestamp>,
    pub(super) seen_at: Timestamp,
    /// Phase that was shown last, of the coordinator's.
    pub(super) shown: Option<prover_coordinator::Phase>,
}

impl Job {
    pub(super) fn new(object: &ProofJob, defaults: &JobDefaults, now: Timestamp) -> Job {
        let status = object.status.as_ref();
        Job {
            stage: Stage::Unknown,
            situation: Situation::Refused {
                reason: prover_crds::reasons::PROGRESSING,
                message: String::new(),
            },
            generation: object.metadata.generation,
            created: object
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or(0, |time| time.0.as_second()),
            proof: object.spec.proof.clone(),
            policy: policy(&effective(&object.spec, defaults)),
            cancel: object.spec.cancel,
            deleting: object.metadata.deletion_timestamp.is_some(),
            gone: false,
            accepted: status.is_some_and(|status| status.accepted_time.is_some()),
            counted: false,
            slot: false,
            restarted: status.is_some_and(|status| status.start_time.is_some()),
            failed_admissions: 0,
            turn: None,
            chatter: Chatter::default(),
            timer: None,
            seen_at: now,
            shown: None,
        }
    }

    /// Whether it would be taken if fewer others were unfinished.
    pub(super) fn waits_for_room(&self) -> bool {
        matches!(self.situation, Situation::Refused { reason, .. } if reason == prover_crds::reasons::TOO_MANY_JOBS)
    }

    /// What the core is told: a job without a place is held back.
    pub(super) fn core_policy(&self) -> JobPolicy {
        JobPolicy {
            suspended: self.policy.suspended || !self.slot,
            ..self.policy
        }
    }

    /// Whether it would run if it had a place.
    pub(super) fn wants_slot(&self) -> bool {
        let alive = self.shown.is_none_or(|phase| !phase.is_terminal());
        matches!(self.stage, Stage::Admitting | Stage::Taken { .. })
            && alive
            && !self.policy.suspended
            && !self.slot
    }

    /// Its place among those that wait for their admission: jobs that were accepted before first.
    pub(super) fn mk_turn(&self, name: &JobName) -> Turn {
        (
            Reverse(self.restarted),
            Reverse(self.policy.priority),
            self.created,
            name.clone(),
        )
    }
}

/// Whether an object's job has ended, as its status says.
pub(super) fn has_ended(object: &ProofJob) -> bool {
    let phase = object.status.as_ref().and_then(|status| status.phase);
    phase.is_some_and(Phase::is_terminal)
}

/// A specification with the cluster's defaults for what it leaves out, without its large parts.
fn effective(spec: &ProofJobSpec, defaults: &JobDefaults) -> ProofJobSpec {
    ProofJobSpec {
        priority: spec.priority,
        deadline: spec.deadline.clone(),
        active_deadline_seconds: spec.active_deadline_seconds.or(defaults.active_deadline_seconds),
        max_workers: spec.max_workers,
        suspend: spec.suspend,
        ..ProofJobSpec::default()
    }
}

/// Gives a job the cluster's defaults for what it leaves out.
pub(super) fn apply_defaults(spec: &mut ProofJobSpec, defaults: &JobDefaults) {
    spec.retry_limit = spec.retry_limit.or(defaults.retry_limit);
    spec.active_deadline_seconds = spec.active_deadline_seconds.or(defaults.active_deadline_seconds);
    if spec.proof.system != prover_crds::ProofSystem::Command {
        spec.max_cycles = spec.max_cycles.or(defaults.max_cycles);
    }
}

/// The mutable part of a specification, in the core's words.
pub(super) fn policy_of(spec: &ProofJobSpec, defaults: &JobDefaults) -> JobPolicy {
    policy(&effective(spec, defaults))
}
