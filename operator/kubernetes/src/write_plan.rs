//! When the status of a job is written: a pure decision with its reason.
//!
//! Owns the bounds on writes. Does not own what is written ([`crate::status`]) nor the writing ([`crate::writer`]).

use std::collections::VecDeque;

use prover_coordinator::{Milliseconds, Timestamp};
use prover_crds::{Phase, ProofJobStatus};

/// Shortest time between two writes of one job that only tell of its progress.
pub(crate) const PROGRESS_INTERVAL: Milliseconds = Milliseconds(10_000);
/// How long the first status of a job waits where it only says that the job waits: mostly it runs by then, and one write
/// says both.
pub(crate) const FIRST_WAIT_HOLD: Milliseconds = Milliseconds(100);
/// Shortest time between two writes of one job that only tell what it waits for.
pub(crate) const WAIT_INTERVAL: Milliseconds = Milliseconds(1_000);
/// Writes of progress per second, of all jobs together.
pub(crate) const PROGRESS_WRITES_PER_SECOND: usize = 20;
const SECOND: Milliseconds = Milliseconds(1_000);

/// Why a status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WriteReason {
    /// The job has ended.
    Ended,
    /// Nothing was written yet, or phase, conditions or observed generation changed.
    Changed,
    /// Only its progress did.
    Progress,
}

impl WriteReason {
    /// Label of metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            WriteReason::Ended => "ended",
            WriteReason::Changed => "changed",
            WriteReason::Progress => "progress",
        }
    }
}

/// What is to be done about a status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteDecision {
    /// Write it.
    Now(WriteReason),
    /// Write it then, if nothing more important comes.
    At(Timestamp, WriteReason),
    /// It is what is written already.
    Nothing,
}

/// When something was wanted and written of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    /// When this process wanted a status first.
    pub(crate) first_wanted: Option<Timestamp>,
    /// When this process wrote the last one; none: never.
    pub(crate) last_write: Option<Timestamp>,
}

/// Decides about a status. `written` is what the API server has, as far as it is known.
pub(crate) fn plan_write(
    written: Option<&ProofJobStatus>,
    wanted: &ProofJobStatus,
    times: Times,
    now: Timestamp,
) -> WriteDecision {
    if written == Some(wanted) {
        return WriteDecision::Nothing;
    }
    let ended = |status: &ProofJobStatus| status.phase.is_some_and(|phase| phase.is_terminal());
    if ended(wanted) {
        return WriteDecision::Now(WriteReason::Ended);
    }
    let Some(written) = written else {
        return WriteDecision::Now(WriteReason::Changed);
    };
    let waits = wanted.phase == Some(Phase::Queued);
    if waits
        && written.phase.is_none()
        && let Some(first) = times.first_wanted
        && first + FIRST_WAIT_HOLD > now
    {
        return WriteDecision::At(first + FIRST_WAIT_HOLD, WriteReason::Changed);
    }
    if differs_in_kind(written, wanted) {
        return WriteDecision::Now(WriteReason::Changed);
    }
    match times.last_write.map(|last| last + interval(waits)) {
        Some(due) if due > now => WriteDecision::At(due, WriteReason::Progress),
        _ => WriteDecision::Now(WriteReason::Progress),
    }
}

/// Shortest time between two writes of one job that tell nothing that anybody waits for.
pub(crate) fn interval(waits: bool) -> Milliseconds {
    if waits { WAIT_INTERVAL } else { PROGRESS_INTERVAL }
}

/// Whether more changed than progress: what people and scripts wait for.
fn differs_in_kind(written: &ProofJobStatus, wanted: &ProofJobStatus) -> bool {
    let conditions = |status: &ProofJobStatus| {
        let mut list: Vec<(String, String)> = status
            .conditions
            .iter()
            .map(|condition| (condition.type_.clone(), condition.status.clone()))
            .collect();
        list.sort();
        list
    };
    written.phase != wanted.phase
        || written.observed_generation != wanted.observed_generation
        || conditions(written) != conditions(wanted)
}

/// Bounds the writes of progress of all jobs together.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    /// When the latest ones were written, at most as many as are allowed per second.
    written: VecDeque<Timestamp>,
}

impl Budget {
    /// Takes one write, or says when there is one again.
    pub(crate) fn take(&mut self, now: Timestamp) -> Result<(), Timestamp> {
        while self.written.front().is_some_and(|first| *first + SECOND <= now) {
            self.written.pop_front();
        }
        match self.written.front() {
            Some(first) if self.written.len() >= PROGRESS_WRITES_PER_SECOND => Err(*first + SECOND),
            _ => {
                self.written.push_back(now);
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests;
