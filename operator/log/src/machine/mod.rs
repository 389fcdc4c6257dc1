//! The protocol as a pure state machine.
//!
//! A machine reads (`reading`), may take over and lead (`leading`), and as leader writes checkpoints and deletes what
//! they cover (`checkpointing`). This file has what is common: requests, their failures, their time.
//!
//! Why a stale leader never commits: its next object has the sequence at which its successor began its epoch. That
//! object is never deleted, so creating another one there fails for ever. What is deleted (objects with records, below
//! a complete checkpoint) may be created again by a writer that sleeps: a leader can only write again what lay there
//! before, byte for byte, and a follower that takes over at such a place finds, listing the checkpoints after its
//! epoch was created, one beyond it, and does not lead. Readers begin at the newest checkpoint and see neither.

mod calls;
mod checkpointing;
mod leading;
mod reading;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use self::calls::{Call, Calls, Purpose};
pub use self::checkpointing::CheckpointContent;
use self::leading::Leader;
use self::reading::Reader;
use crate::error::{AppendError, CheckpointError, LogError};
use crate::format::MAX_OBJECT_BYTES;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::model::{Index, Phase, Progress, Replayed, State, WriterId};
use crate::request::{Answer, Failure, Operation, Request, RequestId};

/// What a follower was asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    Rest,
    CatchUp,
    TakeOver,
}

/// What the machine is.
#[derive(Debug)]
enum Role {
    Follower(Goal),
    Leader(Box<Leader>),
    Fenced { epoch: u64 },
    Failed(Arc<LogError>),
}

/// Failures since the last success.
#[derive(Debug, Clone)]
struct Trouble {
    since: Duration,
    error: Arc<str>,
}

/// The protocol of one reader or leader: answers of the store in, requests to the store out. `now` is the time since
/// any fixed moment and never falls.
#[derive(Debug)]
pub struct Machine {
    writer: WriterId,
    limits: Limits,
    role: Role,
    reader: Reader,
    calls: Calls,
    replayed: Vec<Replayed>,
    /// Sequences of the beginnings of epochs that were seen: never deleted.
    epochs: BTreeSet<u64>,
    refusal: Option<LogError>,
    trouble: Option<Trouble>,
    checkpoint_trouble: Option<Arc<str>>,
    committed: Index,
    checkpointed: Index,
    metrics: Metrics,
}

impl Machine {
    /// A machine that reads from the newest checkpoint on. Two machines never share a writer id.
    pub fn new(writer: WriterId, limits: Limits) -> Self {
        Self {
            writer,
            limits: limits.clamped(),
            role: Role::Follower(Goal::Rest),
            reader: Reader::default(),
            calls: Calls::default(),
            replayed: Vec::new(),
            epochs: BTreeSet::new(),
            refusal: None,
            trouble: None,
            checkpoint_trouble: None,
            committed: Index::default(),
            checkpointed: Index::default(),
            metrics: Metrics::default(),
        }
    }

    /// Reads on to the end, once. The phase is `CaughtUp` when that is done. Does nothing while it takes over or leads.
    pub fn catch_up(&mut self) {
        if let Role::Follower(goal @ Goal::Rest) = &mut self.role {
            *goal = Goal::CatchUp;
            self.reader.begin_round();
        }
    }

    /// Reads on to the end and appends the next epoch. The phase is `Leading` when that is done. One that gives up is
    /// `Reading` again, and `take_refusal` says why.
    pub fn take_over(&mut self) {
        if let Role::Follower(goal) = &mut self.role
            && *goal != Goal::TakeOver
        {
            if *goal == Goal::Rest {
                self.reader.begin_round();
            }
            *goal = Goal::TakeOver;
            self.reader.tries = 0;
        }
    }

    /// Goes back to reading, unless it leads already. Its epoch may be in the log all the same: then nobody leads until
    /// somebody takes over.
    pub fn give_up_taking_over(&mut self) {
        if matches!(self.role, Role::Follower(Goal::TakeOver)) {
            self.rest();
        }
    }

    /// Takes what the store answered. Unknown ids (late and repeated answers) change nothing.
    pub fn answer(&mut self, id: RequestId, answer: Answer, now: Duration) {
        let Some((purpose, call)) = self.calls.take(id) else {
            return;
        };
        match answer {
            Answer::Failed(failure) => self.failed_call(purpose, call, failure, now),
            answer => {
                if purpose.is_background() {
                    self.checkpoint_trouble = None;
                } else {
                    self.trouble = None;
                }
                if let Err(error) = self.answered(&purpose, &answer, now) {
                    self.wrong_answer(purpose, call, error, now);
                }
            }
        }
    }

    /// The requests to send now. Call it after every other call and at `wake_at`.
    pub fn poll(&mut self, now: Duration) -> Vec<Request> {
        for (purpose, call) in self.calls.expired(now) {
            let failure = Failure {
                retry: true,
                damaged: false,
                category: "timeout",
                problem: format!("no answer within {:?}", self.limits.request_timeout),
            };
            self.failed_call(purpose, call, failure, now);
        }
        self.plan(now);
        let requests = self.calls.send(now, now + self.limits.request_timeout);
        for request in &requests {
            let requests = &mut self.metrics.requests;
            match request.operation {
                Operation::Create { .. } => requests.put += 1,
                Operation::Read { .. } => requests.get += 1,
                Operation::Delete { .. } => requests.delete += 1,
                Operation::List { .. } => requests.list += 1,
            }
        }
        requests
    }

    /// When to call `poll` again if nothing else happens before. It may be past.
    pub fn wake_at(&self) -> Option<Duration> {
        let commit = match &self.role {
            Role::Leader(leader) => leader.commit_at(&self.limits),
            _ => None,
        };
        [commit, self.calls.wake_at()].into_iter().flatten().min()
    }

    /// What was read since the last call, in order.
    pub fn take_replayed(&mut self) -> Vec<Replayed> {
        std::mem::take(&mut self.replayed)
    }

    /// What ended the last `catch_up` or `take_over` without success, once.
    pub fn take_refusal(&mut self) -> Option<LogError> {
        self.refusal.take()
    }

    /// Takes records for commit, in order; answers the index of the last one. All of them or none are taken; those of
    /// one call are committed together if they fit into one object.
    pub fn append<R: AsRef<[u8]>>(&mut self, records: &[R]) -> Result<Index, AppendError> {
        let leader = match &mut self.role {
            Role::Leader(leader) => leader,
            Role::Follower(_) => return Err(AppendError::NotLeading),
            Role::Fenced { epoch } => return Err(AppendError::Fenced { epoch: *epoch }),
            Role::Failed(error) => return Err(AppendError::Failed(Arc::clone(error))),
        };
        let result = leader.append(records, &self.limits);
        self.metrics.queue_bytes = leader.queue_bytes as u64;
        self.metrics.refused_appends += u64::from(matches!(result, Err(AppendError::QueueFull { .. })));
        result
    }

    /// Takes a checkpoint: records that say the same as all up to `through`. It is written once these are committed;
    /// afterwards everything that it covers is deleted, except the beginnings of epochs.
    pub fn checkpoint(&mut self, content: CheckpointContent, through: Index) -> Result<(), CheckpointError> {
        match &mut self.role {
            Role::Leader(leader) => {
                let range = (self.checkpointed, leader.last());
                leader.begin_checkpoint(content, through, range, self.writer, &self.limits)
            }
            _ => Err(CheckpointError::NotLeading),
        }
    }

    /// What the machine does now.
    pub fn phase(&self) -> Phase {
        match &self.role {
            Role::Follower(Goal::TakeOver) => Phase::TakingOver,
            Role::Follower(Goal::Rest) if self.reader.at_end => Phase::CaughtUp,
            Role::Follower(_) => Phase::Reading,
            Role::Leader(leader) => Phase::Leading { epoch: leader.epoch },
            Role::Fenced { epoch } => Phase::Fenced { epoch: *epoch },
            Role::Failed(error) => Phase::Failed(Arc::clone(error)),
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let state = match &self.role {
            Role::Fenced { epoch } => State::Fenced { epoch: *epoch },
            Role::Failed(error) => State::Failed {
                error: Arc::clone(error),
            },
            Role::Follower(_) | Role::Leader(_) => {
                self.trouble
                    .clone()
                    .map_or(State::Healthy, |Trouble { since, error }| State::Retrying {
                        since,
                        error,
                    })
            }
        };
        let due = |leader: &Leader| leader.checkpoint_due(&self.limits);
        Progress {
            committed: self.committed,
            checkpointed: self.checkpointed,
            checkpoint_due: matches!(&self.role, Role::Leader(leader) if due(leader)),
            checkpoint_error: self.checkpoint_trouble.clone(),
            state,
        }
    }

    /// What it did so far.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn plan(&mut self, now: Duration) {
        match self.role {
            Role::Follower(Goal::Rest) | Role::Fenced { .. } | Role::Failed(_) => {}
            Role::Follower(_) => self.plan_reading(),
            Role::Leader(_) => {
                self.plan_commit(now);
                self.plan_checkpoint();
            }
        }
    }

    /// Goes on with an answer that is no failure. An error means that what came can't be used.
    fn answered(&mut self, purpose: &Purpose, answer: &Answer, now: Duration) -> Result<(), LogError> {
        if matches!(self.role, Role::Leader(_)) {
            match purpose {
                Purpose::Commit(_) | Purpose::ReadCommitConflict(_) => {
                    self.answered_commit(purpose, answer, now)
                }
                _ => self.answered_checkpoint(purpose, answer),
            }
        } else {
            self.answered_reading(purpose, answer, now)
        }
    }

    /// A damaged object may have been damaged on the way: it is read again some times. Everything else is final.
    fn wrong_answer(&mut self, purpose: Purpose, mut call: Call, error: LogError, now: Duration) {
        call.damages += 1;
        let again = matches!(error, LogError::Damaged { .. }) && call.damages < self.limits.damaged_reads;
        if again {
            self.metrics.failures += 1;
            let at = now + self.backoff(call.damages);
            self.calls.again(purpose, call, at);
        } else {
            self.fail(error);
        }
    }

    fn failed_call(&mut self, purpose: Purpose, mut call: Call, failure: Failure, now: Duration) {
        self.metrics.failures += 1;
        call.failures += 1;
        let Failure {
            retry,
            damaged,
            category,
            problem,
        } = failure;
        let key = purpose.name();
        if damaged && !purpose.is_background() {
            call.damages += 1;
            if call.damages >= self.limits.damaged_reads {
                return self.fail(LogError::Damaged { key, problem });
            }
        }
        if !retry && matches!(self.role, Role::Follower(_)) {
            self.rest();
            self.refusal = Some(LogError::Refused {
                key,
                category,
                problem,
            });
            return;
        }
        let error: Arc<str> = format!("{key}: {problem}").into();
        if purpose.is_background() {
            self.checkpoint_trouble = Some(error);
            if self.give_up_sweeping(&purpose, call.failures, retry) {
                return;
            }
        } else {
            let since = self.trouble.as_ref().map_or(now, |trouble| trouble.since);
            self.trouble = Some(Trouble { since, error });
        }
        let at = now + self.backoff(call.failures);
        self.calls.again(purpose, call, at);
    }

    fn backoff(&self, failures: u32) -> Duration {
        let doubled = 1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.limits
            .first_backoff
            .saturating_mul(doubled)
            .min(self.limits.longest_backoff)
    }

    fn rest(&mut self) {
        self.calls.clear();
        self.role = Role::Follower(Goal::Rest);
    }

    fn fail(&mut self, error: LogError) {
        self.calls.clear();
        self.role = Role::Failed(Arc::new(error));
    }
}

impl Limits {
    /// These limits, cut to what the format allows and to what makes progress at all.
    fn clamped(mut self) -> Self {
        self.object_bytes = self.object_bytes.clamp(1 << 10, MAX_OBJECT_BYTES);
        self.part_bytes = self.part_bytes.clamp(1 << 10, MAX_OBJECT_BYTES);
        self.checkpoint_parts = self.checkpoint_parts.max(1);
        self.max_objects = self.max_objects.max(1);
        self.parallel_reads = self.parallel_reads.max(1);
        self.parallel_deletes = self.parallel_deletes.max(1);
        self.listed_objects = self.listed_objects.max(2);
        self.damaged_reads = self.damaged_reads.max(1);
        self
    }
}
